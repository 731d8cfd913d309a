"""Input gradient of depthwise layers with a stride, straight from grad_y: whole lines of grad_x, written once.

    grad_x[c, i t + f, j u + g] = sum over the taps (r, s) that phase (f, g) meets of
                                  w[c, r, s] * grad_y[c, i + shift(f, r), j + shift(g, s)]

    for every channel of every image, for every coarse row i, for every vector of coarse columns j:
        a vector of grad_y for each shift                  3 x 3 with stride 2: 9 taps, 4 shifts, 4 phases
        for every phase: the sum of its taps' products
        the sums of phases that are neighbours in a row of grad_x, interleaved, stored

Why beside the others: as forward problems of their own the phases write every second number of each line, once each,
and input_grad_stacked.py has 4 rows and a depth of 1 for the micro-kernel here.
Rows that half a vector holds take vectors of half the width: Zen 4 starts two of them where it starts one whole.

Measured on two Zen 4 cores with AVX-512, 3 x 3 with stride 2, microseconds; "before" is by phase, PyTorch has channels
last, and its times for 8 images moved between two runs:

    channels x map    1 image (before)    PyTorch    8 images (before)    PyTorch
      96 x 112           101   (503)        136        764   (13,156)      3,614, 14,412
     144 x 56             56   (402)         78        236    (3,593)        459, 1,596
     192 x 28             39   (426)         63        106    (1,169)        140, 222
     576 x 14             40   (235)         63        122    (1,137)        119, 124

Held to AVX2 a line that is whole is stored without masks: 96 x 112 119 instead of 357, 144 x 56 95 instead of 169.

Source: as input_grad.py's; depthwise layers are from Howard et al., MobileNets, 2017.
"""

import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .microkernel import vector_type
from .threads import task_loop
from .tracing import (
    Lanes,
    broadcast,
    choose,
    first_lanes,
    fma,
    interleave,
    lanes_between,
    load,
    load_lanes,
    loop,
    store,
    store_lanes,
    traced,
    when,
    zeros,
)
from .vectors import lanes, record_at

TASKS = 32  # at least, where there are so many channels and images
MOST_TAPS = 25  # beyond, what the compiler makes of it has not been looked at

CALL_PLANES = from_dtype(np.dtype([*CALL_DTYPE.descr, ("tasks", "i8")]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays whose columns are neighbours?"""
    depthwise = problem.Cg == problem.Kg == 1 and problem.layout == "NCHW" and problem.dtype == problem.accumulate
    few = problem.R * problem.S <= MOST_TAPS and problem.stride[1] <= 2
    alone = not (problem.has_bias or problem.activation)
    return depthwise and few and alone and target.vector_bytes() >= 32


def takes(grad_y, grad_x) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    return grad_y.strides[3] == grad_y.itemsize and grad_x.strides[3] == grad_x.itemsize


def phases_of(window, stride, dilation, before):
    """Of an axis: for each phase of the stride the taps that it meets, each with its shift in grad_y."""

    def met(f):
        numerators = [(tap, f + before - tap * dilation) for tap in range(window)]
        return [(tap, number // stride) for tap, number in numerators if number % stride == 0]

    return [met(f) for f in range(stride)]


def plane_function(dtype_name, width, rows, columns):
    """The traced function for one channel of one image. width: of a vector; rows, columns: `phases_of` both axes."""
    V = Lanes(vector_type(np.dtype(dtype_name)).kind, width)
    scalar, item = Lanes(V.kind), V.item_bytes
    shifts_h, shifts_w = ({shift: 0 for taps in axis for _, shift in taps} for axis in (rows, columns))

    @traced(types.void)
    def plane(grad, grad_h, P, Q, w, w_r, w_s, to, to_h, H, W):
        coarse_h, coarse_w = ((size + (len(axis) - 1)) // len(axis) for size, axis in ((H, rows), (W, columns)))
        weights = {
            (r, s): broadcast(V, load(scalar, w + w_r * r + w_s * s))
            for taps in rows for r, _ in taps for more in columns for s, _ in more
        }  # fmt: skip

        def of_row(i, j, masks, shift):
            """The vectors of the row of grad_y that lies `shift` from row i; zeros outside."""
            p, here = i + shift, grad + grad_h * (i + shift) + j * item

            def inside():
                return [load_lanes(V, here + item * shift_w, mask) for shift_w, mask in zip(shifts_w, masks)]

            return choose((p >= 0) & (p < P), inside, lambda: [zeros(V, grad)] * len(masks))

        def phase_sum(found, row_taps, column_taps):
            total = None
            for r, shift_h in row_taps:
                for s, shift_w in column_taps:
                    number, weight = found[shift_h][shift_w], weights[r, s]
                    total = number * weight if total is None else fma(number, weight, total)
            return zeros(V, grad) if total is None else total

        def store_line(to, line, masks, whole):
            """The vectors side by side; whole ones without a mask, which costs AVX2 much."""

            def all_lanes():
                for m, vector in enumerate(line):
                    store(to + V.bytes * m, vector)

            def some_lanes():
                for m, (vector, mask) in enumerate(zip(line, masks)):
                    store_lanes(to + V.bytes * m, vector, mask)

            choose(whole, all_lanes, some_lanes)

        def step(i, k):
            j = k * width
            masks = [lanes_between(V, j + shift, 0, Q) for shift in shifts_w]
            left = W - j * len(columns)  # of a row of grad_x
            inside = [first_lanes(V, left - width * m) for m in range(len(columns))]
            found = {shift: dict(zip(shifts_w, of_row(i, j, masks, shift))) for shift in shifts_h}
            for f, row_taps in enumerate(rows):
                h = i * len(rows) + f
                with when(h < H):
                    line = interleave([phase_sum(found, row_taps, column_taps) for column_taps in columns])
                    here = to + to_h * h + j * (len(columns) * item)
                    store_line(here, line, inside, left >= width * len(columns))

        steps = (coarse_w + (width - 1)) // width
        loop(coarse_h, lambda i: loop(steps, lambda k: step(i, k)))

    return plane


def build(*constants):
    plane = plane_function(*constants)

    def planes(call_address, index, worker):
        """Task: some channels of some images."""
        call = record_at(CALL_PLANES, call_address)
        count = call.N * call.C
        for number in range(count * index // call.tasks, count * (index + 1) // call.tasks):
            n, c = number // call.C, number % call.C
            plane(
                call.x + n * call.x_n + c * call.x_c, call.x_h, call.P, call.Q, call.w + c * call.w_k, call.w_r,
                call.w_s, call.y + n * call.y_n + c * call.y_k, call.y_p, call.H, call.W,
            )  # fmt: skip

    return task_loop(planes)


def width_of(problem) -> int:
    """Of a vector: a whole one, or half if that holds a coarse row."""
    W = lanes(problem.dtype)
    return W // 2 if -(-problem.W // problem.stride[1]) <= W // 2 else W


def cycles(problem) -> float:
    """Predicted, beside what moving the arrays takes."""
    steps = -(-problem.W // problem.stride[1] // width_of(problem)) * -(-problem.H // problem.stride[0])
    return problem.N * problem.C * steps * (20 + 2 * problem.R * problem.S / target.multiply_adds_per_cycle())


@lru_cache(maxsize=1024)
def prepared(problem):
    """The record's fixed part, the compiled loop, and the number of tasks."""
    sizes = zip((problem.R, problem.S), problem.stride, problem.dilation, problem.padding, strict=True)
    axes = [
        tuple(map(tuple, phases_of(window, stride, dilation, before)))
        for window, stride, dilation, (before, _) in sizes
    ]
    tasks = min(problem.N * problem.C, TASKS)
    fields = problem_fields(problem) + struct.pack("q", tasks)
    return fields, compiled(build, problem.dtype.name, width_of(problem), *axes), tasks
