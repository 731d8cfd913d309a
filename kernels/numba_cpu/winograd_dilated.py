"""Dilated convolution by Winograd: the pixels that a dilated window reads together are images of their own.

    dilation 2      a b a b a b       every second row and column:   a a a    b b b      an undilated 3 x 3 on each
                    c d c d c d       four images                    a a a    b b b
                    a b a b a b                                      c c c    d d d      their outputs lie between
                    c d c d c d                                      c c c    d d d      each other, as the pixels do

With dilation d there are d x d such images, each a d-th as high and wide, and they are a batch of undilated ones with
the same filters. Nobody has to gather them: winograd.py's lanes are tiles, and where these are the tiles at one place
of d neighbouring images, a pixel of theirs is a vector of x as it lies, and an output one of y:

    tile (0, 0) of a and b, pixel (0, 0): x[0, 0:2]      pixel (0, 1): x[0, 2:4]      pixel (1, 0): x[2, 0:2]

Each image brings its padding along, which leaves small ones without the products of outputs that they do not have:
of 3 x 3, 25 of F(4 x 4)'s 36. Images of 2 x 2 have 9 (winograd_matrices.py). F(4 x 4), or F(2 x 2) where images are so
small that it is predicted to be faster, saves more. Images that are smaller than others may be parts of their own, with
smaller windows (dilated_parts.py).

Measured on two Zen 5 cores with AVX-512, plans: 512 -> 256 channels of 33 x 33 at dilation 6 in 3.3 ms, at 12 in 2.5,
at 18 in 1.8; 512 -> 512 at dilation 4 in 5.8; 256 -> 256 of 65 x 65 at dilation 2 in 4.5 (`blocked`: 6.1, 6.5, 6.6,
12, 11). Images gathered beforehand and outputs scattered afterwards made these 3.9, 5.9, 5.3, 7.9 and 4.5. PyTorch,
which leaves out taps that meet only padding, takes 3.4 to 4 at dilation 12 and 2.6 to 3 at 18.
Lesson: outputs stored at every second column, 2 numbers at a time, took 1.2 ms at dilation 2, side by side 0.7.
Source: the images are the "atrous" decomposition of Chen et al., DeepLab, TPAMI 2018, section 3.1; winograd.py's below.
"""

import numpy as np

from . import winograd
from .call import CALL, pack_call, problem_fields
from .compilation import compiled
from .dilated_parts import parts, seconds, undilated
from .microkernel import CLOCK
from .short_floats import memory_functions
from .threads import lines, run_tasks, task_loop
from .vectors import record_at

passes = ("forward",)

MOST_BYTES = 32 << 20  # of a copy of x whose pixels lie side by side, where those of x do not
COPY_CYCLES = 2.0  # a number


def build_copy(dtype_name):
    """Task: one channel of one image of x, row by row and without gaps, to call.y."""
    item = np.dtype(dtype_name).itemsize
    read, write, _, _ = memory_functions(dtype_name)

    def copy(call_address, index, worker):
        call = record_at(CALL, call_address)
        x, to = call.x + index // call.C * call.x_n + index % call.C * call.x_c, call.y + index * call.H * call.W * item
        for h in range(call.H):
            for v in range(call.W):
                write(to, read(x + h * call.x_h + v * call.x_w))
                to += item

    return task_loop(copy)


def copy_bytes(problem):
    return lines(int(np.prod(problem.x_shape)) * problem.dtype.itemsize)


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if problem.dilation == (1, 1):
        return ["dilated windows only, got dilation (1, 1)"]
    reasons = [] if problem.dtype == problem.accumulate else [f"float32 and float64 only, x is {problem.dtype}"]
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    reasons += winograd.why_not(4, undilated(problem), device)
    if copy_bytes(problem) > MOST_BYTES:
        reasons.append(f"might copy {copy_bytes(problem):,} bytes of x, at most {MOST_BYTES:,}")
    return reasons


def workspace_bytes(problem, device):
    return copy_bytes(problem) + max(part.workspace_bytes for part in parts(problem, device))


def one_call_bytes(problem, device):
    return copy_bytes(problem) + max(part.one_call_bytes for part in parts(problem, device, packed=False))


def packed_bytes(problem, device):
    return sum(part.packed_bytes for part in parts(problem, device))


def packed_parts(problem, device, packed):
    """Each part and its weights' bytes in `packed`."""
    at = 0
    for part in parts(problem, device):
        yield part, packed[at : at + part.packed_bytes]
        at += part.packed_bytes


def pack(problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned)."""
    for part, own in packed_parts(problem, device, packed):
        part.pack(device, w, own)


def predicted_seconds(problem, device):
    copied = COPY_CYCLES * np.prod(problem.x_shape) if problem.layout != "NCHW" else 0
    return float(seconds(parts(problem, device)) + copied / CLOCK / device.threads)


def pack_seconds(problem, device):
    return seconds(parts(problem, device, packed=False), packed=False) - seconds(parts(problem, device))


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as it is, into y; all in logical order."""
    count = copy_bytes(problem)
    if x.strides[3] != x.itemsize:
        copy = workspace[: x.size * x.itemsize].view(x.dtype).reshape(x.shape)
        call = pack_call(problem_fields(problem), x, x, copy, None, None, None)
        run_tasks(compiled(build_copy, problem.dtype.name), call, problem.N * problem.C, device.threads)
        x = copy
    if w.ndim == 1:
        some = packed_parts(problem, device, w)
    else:
        some = ((part, w) for part in parts(problem, device, packed=False))
    for part, weights in some:
        part.run(device, x, weights, y, bias, residual, workspace[count:])
