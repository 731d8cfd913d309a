"""Dilated convolution by Winograd: the pixels that a dilated window reads together become images of their own.

    dilation 2      a b a b a b       every second row and column:   a a a    b b b      an undilated 3 x 3 on each
                    c d c d c d       four images                    a a a    b b b
                    a b a b a b                                      c c c    d d d      their outputs go back between
                    c d c d c d                                      c c c    d d d      each other

With dilation d there are d x d such images, each a d-th as high and wide, and they are a batch of undilated ones with
the same filters. Each brings its padding along, so no window reaches beyond an image. x is gathered once and y
scattered once; F(4 x 4), or F(2 x 2) where images are so small that it is predicted to be faster, saves more.

Measured on two Zen 5 cores with AVX-512, plans: 256 -> 256 channels of 65 x 65 at dilation 2 in 4.4 ms, of which
gathering and scattering take 0.5, where `blocked` takes 10.8; 512 -> 256 of 33 x 33 at dilation 6 in 3.9 instead of
5.8. At dilation 12 and 18, where images have 3 x 3 and 2 x 2 outputs, it is hardly faster than that, 5.3 and 6.5 ms:
the weights, 19 MB transformed, stream by for every few tiles. PyTorch and OpenVINO take 3.5 and 2.5 there, since they
leave out taps that meet only padding, 0.4 and 0.6 of all.
Lesson: scattering number by number through the general epilogue took 14 cycles each, in a loop of its own 2.
Source: the images are the "atrous" decomposition of Chen et al., DeepLab, TPAMI 2018, section 3.1; winograd.py's below.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numba.core import types

from . import winograd
from .call import CALL, pack_call, problem_fields
from .compilation import compiled
from .epilogue import CLAMP, store_one_function
from .microkernel import CALL_SECONDS, CLOCK
from .short_floats import memory_functions
from .threads import lines, run_tasks, task_loop
from .tracing import Lanes, convert, load, loop, maximum, minimum, store, traced
from .vectors import record_at

passes = ("forward",)

MOST_BYTES = 32 << 20  # of the gathered images and of their outputs
GATHER_CYCLES, SCATTER_CYCLES = 2.0, 3.0  # a number
SMALL_IMAGES = 1.25  # times what winograd.py's model says, beside that of blocked.py


def build_gather(dtype_name):
    """Task: one channel of one image of x, to all images that are made of it. call.y: where they go."""
    item = np.dtype(dtype_name).itemsize
    read, write, _, _ = memory_functions(dtype_name)

    def gather(call_address, index, worker):
        call = record_at(CALL, call_address)
        n, c = index // call.C, index % call.C
        x, images = call.x + n * call.x_n + c * call.x_c, call.dilation_h * call.dilation_w
        rows = (call.P + call.dilation_h - 1) // call.dilation_h + call.R - 1
        columns = (call.Q + call.dilation_w - 1) // call.dilation_w + call.S - 1
        for image in range(images):
            to = call.y + (n * images + image) * call.y_n + c * call.y_k
            h, first = image // call.dilation_w - call.top, image % call.dilation_w - call.left
            for _ in range(rows):
                inside, v = h >= 0 and h < call.H, first
                for _ in range(columns):
                    write(to, read(x + h * call.x_h + v * call.x_w) if inside and v >= 0 and v < call.W else 0.0)
                    to, v = to + item, v + call.dilation_w
                h += call.dilation_h

    return task_loop(gather)


def build_scatter(dtype_name):
    """Task: one filter's outputs of one image of y, from all images that hold a part of them. call.x: these."""
    read, _, _, _ = memory_functions(dtype_name)
    store_one = store_one_function(dtype_name)
    number = Lanes("f64" if dtype_name == "float64" else "f32")

    @traced(types.void)
    def put_apart(y, y_step, sums, count, low, high):
        """Neighbouring sums, clamped, to places y_step bytes apart."""
        least, most = convert(low, number), convert(high, number)

        def one(i):
            total = load(number, sums + i * number.bytes)
            store(y + i * y_step, maximum(least, minimum(most, total)))

        loop(count, one)

    def scatter(call_address, index, worker):
        call = record_at(CALL, call_address)
        n, k = index // call.K, index % call.K
        images = call.dilation_h * call.dilation_w
        sums = call.x + n * images * call.x_n + k * call.x_c
        plain = call.activation == CLAMP and not call.has_residual
        for p in range(call.P):
            row = sums + p % call.dilation_h * call.dilation_w * call.x_n + p // call.dilation_h * call.x_h
            for first in range(min(call.dilation_w, call.Q)):
                here = row + first * call.x_n
                if plain:
                    count = (call.Q - first + call.dilation_w - 1) // call.dilation_w
                    y = call.y + n * call.y_n + k * call.y_k + p * call.y_p + first * call.y_q
                    put_apart(y, call.dilation_w * call.y_q, here, count, call.low, call.high)
                    continue
                for q in range(first, call.Q, call.dilation_w):
                    store_one(call, n, k, p * call.Q + q, read(here))
                    here += call.x_w

    return task_loop(scatter)


@lru_cache(maxsize=1024)
def undilated(problem):
    """The convolution of all images; residual and activation wait for their outputs to be back in place."""
    images = problem.dilation[0] * problem.dilation[1]
    outputs = [-(-size // step) for size, step in zip((problem.P, problem.Q), problem.dilation, strict=True)]
    return replace(
        problem, N=problem.N * images, H=outputs[0] + problem.R - 1, W=outputs[1] + problem.S - 1, dilation=(1, 1),
        padding=((0, 0), (0, 0)), layout="NCHW", activation=None, has_residual=False,
    )  # fmt: skip


def image_bytes(problem):
    """Of the gathered images, and of their outputs."""
    inner = undilated(problem)
    return [lines(int(np.prod(shape)) * problem.dtype.itemsize) for shape in (inner.x_shape, inner.y_shape)]


@lru_cache(maxsize=1024)
def tile_side(problem, device) -> int:
    """Of the output tiles: 4, or 2 where that is faster."""
    inner = undilated(problem)
    possible = [m for m in (4, 2) if not winograd.why_not(m, inner, device)]
    return min(possible, key=lambda m: winograd.predicted_seconds(m, inner, device))


# ---- the kernel ----


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if problem.dilation == (1, 1):
        return ["dilated windows only, got dilation (1, 1)"]
    reasons = [] if problem.dtype == problem.accumulate else [f"float32 and float64 only, x is {problem.dtype}"]
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    reasons += winograd.why_not(4, undilated(problem), device)
    if sum(image_bytes(problem)) > MOST_BYTES:
        reasons.append(f"would gather {sum(image_bytes(problem)):,} bytes of images, at most {MOST_BYTES:,}")
    return reasons


def workspace_bytes(problem, device):
    m = tile_side(problem, device)
    return sum(image_bytes(problem)) + winograd.workspace_bytes(m, undilated(problem), device)


def one_call_bytes(problem, device):
    alone = winograd.one_call_bytes(tile_side(problem, device), undilated(problem), device)
    return None if alone is None else sum(image_bytes(problem)) + alone


def packed_bytes(problem, device):
    return winograd.packed_bytes(tile_side(problem, device), undilated(problem), device)


def pack(problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned)."""
    winograd.pack(tile_side(problem, device), undilated(problem), device, w, packed)


def predicted_seconds(problem, device):
    inner = undilated(problem)
    moved = GATHER_CYCLES * np.prod(inner.x_shape) + SCATTER_CYCLES * np.prod(problem.y_shape)
    seconds = SMALL_IMAGES * winograd.predicted_seconds(tile_side(problem, device), inner, device)
    return float(seconds + 2 * CALL_SECONDS + moved / CLOCK / device.threads)


def pack_seconds(problem, device):
    return winograd.pack_seconds(tile_side(problem, device), undilated(problem), device)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as it is, into y; all in logical order."""
    inner, fields, name = undilated(problem), problem_fields(problem), problem.dtype.name
    images, sums = parts_of(workspace, problem, inner)
    gather = pack_call(fields, x, x, images, None, None, None)
    run_tasks(compiled(build_gather, name), gather, problem.N * problem.C, device.threads)
    rest = workspace[sum(image_bytes(problem)) :]
    winograd.run(tile_side(problem, device), inner, device, images, w, sums, bias, None, rest)
    scatter = pack_call(fields, sums, sums, y, None, residual, None)
    run_tasks(compiled(build_scatter, name), scatter, problem.N * problem.K, device.threads)


def parts_of(workspace, problem, inner):
    """The images and their outputs, as arrays in the workspace."""
    first, second = image_bytes(problem)
    memory = workspace[:first], workspace[first : first + second]
    shapes = inner.x_shape, inner.y_shape
    return [
        part[: int(np.prod(shape)) * problem.dtype.itemsize].view(problem.dtype).reshape(shape)
        for part, shape in zip(memory, shapes, strict=True)
    ]
