"""Images of which one window sees everything, as a fully connected layer or the 1x1 layers of squeeze-and-excitation
have them: a matrix, the weights as they lie, times a vector.

    y[k] = sum over d of w[k, d] * x[d]        8 filters at once, 16 depths of each in a vector; then their lanes added

Why beside lone_pixels.py, which does the same for what is left of a map: no table of offsets is made, no pixel
gathered, x lies side by side already. Sums of 8 filters leave as one vector.

Reading the weights is the limit, in a core's own caches too, and a second thread takes a microsecond to join: so as
many threads as there are `BYTES_PER_THREAD` of weights.

Measured on two Zen 5 cores, a plan's call: XXX
Source: gemv, as in Goto and van de Geijn, High-Performance Implementation of the Level-3 BLAS, ACM TOMS 2008.
"""

import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import weight_rows
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .epilogue import activated
from .lone_pixels import lane_sums
from .microkernel import vector_type
from .threads import task_loop
from .tracing import choose, first_lanes, fma, load, load_lanes, loop, minimum, store_lanes, traced, zeros
from .vectors import record_at

ROWS = 8  # filters at once: their sums wait for nothing, and their weights are not too many streams
BYTES_PER_THREAD = 256 << 10

PARTS = ("parts", "packed_row")
CALL_ONE = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in PARTS]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is the window as large as the image, and are sums made in the type of the arrays?"""
    whole = (problem.R, problem.S) == (problem.H, problem.W) and problem.padding == ((0, 0), (0, 0))
    return whole and problem.groups == 1 and problem.dtype == problem.accumulate


def takes(x, w, y, bias, residual) -> bool:
    """Are all arrays without gaps? Packed weights, of one dimension, are."""
    return all(array is None or array.flags.c_contiguous for array in (x, w, y, bias, residual))


def dot_function(dtype_name):
    """The traced function for the products of one image with up to ROWS filters, from weights to store."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def dot_rows(a, a_row, left, x, depth, y, bias, has_bias, residual, has_residual, kind, low, high, slope):
        rows = [a + a_row * minimum(left - 1, i) for i in range(ROWS)]  # beyond the last the last one again

        def multiplied(read, at, totals):
            column = read(x + at)
            return [fma(read(row + at), column, total) for row, total in zip(rows, totals)]

        whole = depth // V.count
        totals = [zeros(V, a) for _ in range(ROWS)]
        totals = loop(whole, lambda d, totals: multiplied(lambda at: load(V, at), d * V.bytes, totals), totals)
        some = first_lanes(V, depth - whole * V.count)

        def with_rest():
            return multiplied(lambda at: load_lanes(V, at, some), whole * V.bytes, totals)

        totals = choose(depth > whole * V.count, with_rest, lambda: totals)
        for i, sums in enumerate(lane_sums(totals)):
            first, there = sums.type.count * i, first_lanes(sums.type, left - sums.type.count * i)
            sums = with_added(has_bias, sums, bias + V.item_bytes * first, there)
            sums = with_added(has_residual, sums, residual + V.item_bytes * first, there)
            store_lanes(y + V.item_bytes * first, activated([sums], kind, low, high, slope)[0], there)

    def with_added(condition, sums, numbers, there):
        return choose(condition.differs(0), lambda: [sums + load_lanes(sums.type, numbers, there)], lambda: [sums])[0]

    return dot_rows


def build(dtype_name):
    item = np.dtype(dtype_name).itemsize
    dot_rows = dot_function(dtype_name)

    def task(call_address, index, worker):
        call = record_at(CALL_ONE, call_address)
        depth = call.C * call.R * call.S
        w_row = call.packed_row if call.w_k == 0 else call.w_k
        panels = (call.K + ROWS - 1) // ROWS
        begin, end = panels * index // call.parts * ROWS, panels * (index + 1) // call.parts * ROWS
        for k in range(begin, min(end, call.K), ROWS):
            for n in range(call.N):
                here = (n * call.K + k) * item
                dot_rows(
                    call.w + k * w_row, w_row, call.K - k, call.x + n * depth * item, depth, call.y + here,
                    call.bias + k * item, call.has_bias, call.residual + here, call.has_residual, call.activation,
                    call.low, call.high, call.slope,
                )  # fmt: skip

    return task_loop(task)


def part_count(problem, threads) -> int:
    """Ranges of filters, one for a thread."""
    count = problem.K * problem.reduction * problem.dtype.itemsize * problem.N
    return max(1, min(threads, count // BYTES_PER_THREAD, -(-problem.K // ROWS)))


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    parts = part_count(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(PARTS)}q", parts, weight_rows.row_bytes(problem))
    return fields, compiled(build, problem.dtype.name), parts
