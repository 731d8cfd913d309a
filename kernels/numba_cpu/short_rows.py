"""Depthwise convolution of maps whose rows fill few vectors: straight from x to y, with masks for what sticks out.

    x rows        . | x x x x x x x | .      one masked load for each tap column: lanes outside the image are zero,
    lanes           [ 0 1 2 3 4 5 6 7 . . ]  which is the padding; lanes past the row are not stored

    for every plane of a task
        for every few output rows                     sums in registers, rows x vectors
            for every input row they read, every tap column
                load the row, shifted by the tap; with stride 2 two loads give two tap columns, even and odd lanes
                for every output row that it belongs to: multiply-add

Why beside sliding_window.py's tile: on maps of 7 to 56 columns copying a plane into a panel takes longer than its
window. Measured on two Zen 5 cores, in microseconds, panels against this: 960 maps of 7 x 7 166 and 30, 576 of 14 x 14
with stride 2 131 and 32, 192 of 28 x 28 83 and 35, 144 of 56 x 56 134 and 107. It wants masked loads and stores as
cheap as others, so it serves processors with AVX-512 only; float32 or float64, NCHW, rows contiguous in memory.
Source: Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018.
"""

import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .epilogue import activated
from .microkernel import vector_type
from .threads import task_loop
from .tracing import (
    broadcast,
    choose,
    constant,
    first_lanes,
    fma,
    lanes_between,
    load,
    load_lanes,
    loop,
    minimum,
    no_lanes,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
)
from .vectors import lanes, record_at

MOST_VECTORS = 4  # of a row
MOST_MULTIPLY_ADDS = 200  # of one tile: it is written out
TASKS_PER_THREAD = 8
CYCLES_PER_PLANE = 40.0

CALL_SHORT = from_dtype(np.dtype(CALL_DTYPE.descr + [("tasks", "i8")]))


def serves(problem) -> bool:
    """Is this the faster way, for arrays whose rows are contiguous?"""
    if target.vector_bytes() < 64 or problem.layout != "NCHW" or problem.dtype != problem.accumulate:
        return False
    few = -(-problem.Q // lanes(problem.dtype)) <= MOST_VECTORS and problem.R * problem.S <= 25
    return few and problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2))


def takes(x, y, residual) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    return all(array is None or array.strides[3] == array.itemsize for array in (x, y, residual))


def tile(problem):
    """(rows, vectors) of outputs computed at once."""
    vectors = -(-problem.Q // lanes(problem.dtype))
    registers = (target.register_count() - 10) // vectors  # the others hold weights and a row of x
    affordable = MOST_MULTIPLY_ADDS // (vectors * problem.R * problem.S)
    return max(1, min(problem.P, 4, registers, affordable)), vectors


def build(dtype_name, R, S, stride, rows, vectors):
    V = vector_type(dtype_name)
    L, item = V.count, V.item_bytes

    def tap_columns(x, first_column, W):
        """For every input row: how its vectors are read for each tap column. Returns read(row address, is inside)."""
        if stride == 1:
            masks = [
                [lanes_between(V, first_column + s + v * L, 0, W) for v in range(vectors)] for s in range(S)
            ]  # fmt: skip

            def read(row, inside):
                nothing = no_lanes(V, row)
                for s in range(S):
                    yield (
                        s,
                        [
                            load_lanes(V, row + (s + v * L) * item, select(inside, masks[s][v], nothing))
                            for v in range(vectors)
                        ],
                    )

            return read
        halves = range(2 * vectors)
        masks = {s: [lanes_between(V, first_column + s + h * L, 0, W) for h in halves] for s in range(0, S, 2)}

        def read(row, inside):
            nothing = no_lanes(V, row)
            for s in range(0, S, 2):
                loaded = [load_lanes(V, row + (s + h * L) * item, select(inside, masks[s][h], nothing)) for h in halves]
                for tap in range(s, min(s + 2, S)):
                    picked = range(tap - s, 2 * L, 2)
                    yield tap, [shuffle(loaded[2 * v], loaded[2 * v + 1], picked) for v in range(vectors)]

        return read

    @traced(types.void)
    def plane(
        x, x_h, w, w_r, w_s, y, y_p, residual, residual_p, has_residual, bias, H, W, P, Q, top, left,
        kind, low, high, slope,
    ):  # fmt: skip
        weights = [[broadcast(V, load(V.scalar, w + w_r * r + w_s * s)) for s in range(S)] for r in range(R)]
        start = broadcast(
            V, choose(bias.differs(0), lambda: [load(V.scalar, bias)], lambda: [constant(x, 0, V.scalar)])[0]
        )
        read = tap_columns(x, constant(x, 0) - left, W)
        row_start = x - left * item
        kept = [first_lanes(V, Q - v * L) for v in range(vectors)]

        def block(t):
            p = minimum(t * rows, P - rows)
            sums = [[start] * vectors for _ in range(rows)]
            for i in range((rows - 1) * stride + R):
                h = p * stride - top + i
                inside = (h >= 0) & (h < H)
                for s, columns in read(row_start + x_h * h, inside):
                    for j in range(rows):
                        r = i - j * stride
                        if 0 <= r < R:
                            sums[j] = [fma(c, weights[r][s], total) for c, total in zip(columns, sums[j])]
            places = [(j, v) for j in range(rows) for v in range(vectors)]

            def added():
                return [
                    sums[j][v] + load_lanes(V, residual + residual_p * (p + j) + v * V.bytes, kept[v])
                    for j, v in places
                ]

            totals = choose(has_residual.differs(0), added, lambda: [sums[j][v] for j, v in places])
            for (j, v), total in zip(places, activated(totals, kind, low, high, slope)):
                to = y + y_p * (p + j) + v * V.bytes
                if v < vectors - 1:
                    store(to, total)
                else:
                    store_lanes(to, total, kept[v])

        loop((P + (rows - 1)) // rows, block)

    def task(call_address, index, worker):
        call = record_at(CALL_SHORT, call_address)
        planes = call.N * call.K
        for place in range(planes * index // call.tasks, planes * (index + 1) // call.tasks):
            n, k = place // call.K, place % call.K
            plane(
                call.x + n * call.x_n + k // call.Kg * call.x_c, call.x_h, call.w + k * call.w_k, call.w_r, call.w_s,
                call.y + n * call.y_n + k * call.y_k, call.y_p,
                call.residual + n * call.residual_n + k * call.residual_k, call.residual_p, call.has_residual,
                call.bias + k * call.bias_k if call.has_bias else 0, call.H, call.W, call.P, call.Q, call.top,
                call.left, call.activation, call.low, call.high, call.slope,
            )  # fmt: skip

    return task_loop(task)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    tasks = min(problem.N * problem.K, TASKS_PER_THREAD * threads if threads > 1 else 1)
    loop = compiled(build, problem.dtype.name, problem.R, problem.S, problem.stride[0], *tile(problem))
    return problem_fields(problem) + struct.pack("q", tasks), loop, tasks


def cycles(problem) -> float:
    """Of all planes: a masked load or a shuffle a cycle, two multiply-adds a cycle, and a tile's stores."""
    rows, vectors = tile(problem)
    tiles = -(-problem.P // rows)
    input_rows = (rows - 1) * problem.stride[0] + problem.R
    loads = input_rows * problem.S * vectors * (1 if problem.stride[0] == 1 else 2.4)
    multiply_adds = rows * vectors * problem.R * problem.S / target.multiply_adds_per_cycle()
    each = CYCLES_PER_PLANE + tiles * (max(loads, multiply_adds) + 3 * rows * vectors + 12)
    return problem.N * problem.K * each
