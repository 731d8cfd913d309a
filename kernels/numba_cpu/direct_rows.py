"""Depthwise convolution of small windows, straight from x to y: no panel, and masks only where a row has its ends.

    x row   . | x x x x x x x x x x x x x x x x x x x | .     loads that lie inside the row are plain ones; those at its
              [ load ][ load ][ load ][masked]                ends are masked, and lanes outside are zero: the padding
              with stride 2 two neighbours give a vector of even and one of odd columns; the tap after next is the same
              vector moved by one lane

    for every plane, or band of one, of a task
        for every few vectors of columns                          weights in registers, where they fit
            for every row of x, from top to bottom                a row of padding is read from a row of zeros
                multiply it into the sums of the output rows that it belongs to: 3 x 3 has 3 of them
                the oldest of these is done: clamp and store; the others move on to the next row

Every row is loaded once for all rows of outputs (three times for the taps of a row). What is more than a clamp, other
activations and residuals, is done to y afterwards, row by row, so that its code takes no registers here.

Why beside sliding_window.py's tile: copying a plane into a panel takes longer than its window. Measured on two Zen 5
cores beside PyTorch's faster form: MobileNetV2's depthwise layers 1.4 to 2.4 times as fast; held to AVX2 1.2 to 2.4.
What was learned there:
- Tiles of 4 to 7 rows, whose weights LLVM spilled to memory for every plane and whose first and last rows of x were
  read by two tiles, took 1.4 (56 x 56) to 1.9 times (28 x 28) as long.
- On small planes what surrounds the rows counts. Masks, limits and fields of the call are made once for all planes of a
  task, since stores to y keep the compiler from doing so: 7 x 7 takes 74 instead of 97 cycles a plane.
- With 8 tasks a thread the last ones were taken from the other thread's share in every call, and with them the lines of
  y in its cache: 2 tasks a thread take 1 to 3 microseconds less.
- A row of 16 lanes takes 7 to 8 cycles for 9 multiply-adds, loads masked or not: lines of the cache crossed, not masks.
- 7 x 7 of ConvNeXt, whose weights come from the L1 cache: 28 x 28 50 microseconds instead of 69, 56 x 56 84 instead of
  104. Longer windows' sums fill no registers: 49 x 1 took 3 times as long as through a panel.
It wants masked loads, so it serves processors with AVX2 and more; float32 or float64, NCHW, rows contiguous in memory.
Source: Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018.
"""

import math
import struct
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .epilogue import CLAMP, activated
from .microkernel import vector_type
from .sliding_window import store_first
from .threads import task_loop, worker_span
from .tracing import (
    broadcast,
    choose,
    constant,
    convert,
    first_lanes,
    fma,
    lanes_between,
    load,
    load_lanes,
    loop,
    maximum,
    minimum,
    select,
    shuffle,
    store,
    traced,
    when,
    zeros,
)
from .vectors import lanes, record_at

MOST_TAPS, LONGEST_SIDE = 25, 7  # of a window, one or the other: a row of x is written out for each tap
MOST_VECTORS = 4  # of a row of outputs computed at once
FEWEST_ROWS = 8  # of a band of a plane: those above and below it are read twice
TASKS_PER_THREAD = 2
CYCLES_PER_PLANE = 40.0
WHOLE, CUT, OUTSIDE = "whole", "cut", "outside"  # what a load's lanes are: inside the row all, some, none

CALL_DIRECT = from_dtype(np.dtype(CALL_DTYPE.descr + [("tasks", "i8"), ("bands", "i8"), ("worker_bytes", "i8")]))


def serves(problem) -> bool:
    """Is this the faster way, for arrays whose rows are contiguous?"""
    if target.vector_bytes() < 32 or problem.layout != "NCHW" or problem.dtype != problem.accumulate:
        return False
    small = problem.R * problem.S <= MOST_TAPS or max(problem.R, problem.S) <= LONGEST_SIDE
    small = small and max(problem.padding[1]) < lanes(problem.dtype)
    small = small and live_rows(problem.R, problem.stride[0]) <= problem.P
    if problem.stride[1] == 2:  # the one load beyond a tile's has half as many columns of either kind as it has lanes
        small = small and lanes(problem.dtype) + 2 >= problem.S
    return small and problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2))


def takes(x, y, residual) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    item = x.itemsize
    return x.strides[3] == y.strides[3] == item and (residual is None or residual.strides[3] == item)


def live_rows(R, stride) -> int:
    """How many output rows an input row belongs to."""
    return -(-R // stride)


def weights_fit(R, S, stride, vectors) -> bool:
    """Do all weights stay in registers, beside the sums, a row of x, the bias and two limits?"""
    return R * S + registers_beside_weights(R, S, stride, vectors) <= target.register_count()


def registers_beside_weights(R, S, stride, vectors) -> int:
    row = vectors if stride == 1 else 2 * vectors + 2
    return live_rows(R, stride) * vectors + row + 3


@lru_cache(maxsize=1024)
def row_vectors(problem):
    """How many vectors of a row of outputs are computed at once."""
    R, S, stride = problem.R, problem.S, problem.stride[0]
    most = [
        v for v in range(1, MOST_VECTORS + 1) if registers_beside_weights(R, S, stride, v) < target.register_count()
    ]
    enough = -(-problem.Q // lanes(problem.dtype))
    return min(most or [1], key=lambda vectors: row_cycles(problem, min(vectors, enough)))


def load_columns(S, stride, vectors, L):
    """Where each load of a row begins, in columns from the tile's first."""
    if stride == 1:
        return [s + v * L for s in range(S) for v in range(vectors)]
    return [h * L for h in range(2 * vectors + (S > 2))]


def short_row_loads(problem):
    """What each load of a row is, where one tile holds the whole row."""
    vectors = row_vectors(problem)
    L, left = lanes(problem.dtype), problem.padding[1][0]
    starts = [column - left for column in load_columns(problem.S, problem.stride[1], vectors, L)]
    return tuple(
        WHOLE if start >= 0 and start + L <= problem.W else OUTSIDE if start >= problem.W else CUT for start in starts
    )


def end_loads(S, stride, vectors, L):
    """What each load of a tile's row may be at either end of a long row: its first and last ones are cut."""
    columns = load_columns(S, stride, vectors, L)
    inner = range(L, vectors * L * stride - L - S + 1)
    return tuple(WHOLE if column in inner else CUT for column in columns)


def build(dtype_name, R, S, stride, vectors, short_row):
    """short_row: what a row's loads are, where a tile holds the whole row; () where rows are longer than tiles."""
    V = vector_type(dtype_name)
    L, item = V.count, V.item_bytes
    starts = load_columns(S, stride, vectors, L)
    reach = max(starts) + L
    live = live_rows(R, stride)
    in_registers = weights_fit(R, S, stride, vectors)

    def tap_columns(loads):
        """For each tap column the vectors that it multiplies, from a row's loads, which are made as they are needed."""
        if stride == 1:
            for _ in range(S):
                yield [next(loads) for _ in range(vectors)]
            return
        pairs = [(next(loads), next(loads)) for _ in range(vectors)]
        pairs += [(last, last) for last in loads]
        sorted_columns = [[shuffle(a, b, range(odd, 2 * L, 2)) for a, b in pairs] for odd in (0, 1)]
        for s in range(S):
            columns, moved = sorted_columns[s % 2], s // 2
            if moved == 0:
                yield columns[:vectors]
            else:
                yield [shuffle(a, b, range(moved, moved + L)) for a, b in pairwise(columns)]

    def row_loads(row, kinds, masks):
        """The loads of a row whose first column, which may be padding, has the address `row`."""
        for start, kind, mask in zip(starts, kinds, masks):
            here = row + start * item
            if kind == WHOLE:
                yield load(V, here)
            elif kind == CUT:
                yield load_lanes(V, here, mask)
            else:
                yield zeros(V, row)

    @traced(types.void)
    def clear(address):
        for offset in range(0, reach * item, V.bytes):
            store(address + offset, zeros(V, address))

    @traced(types.void)
    def some_planes(
        x, x_c, x_h, w, w_k, w_r, w_s, y, y_k, y_p, residual, residual_k, residual_p, has_residual, bias, bias_k,
        has_bias, H, W, Q, top, left, scratch, kind, low, high, slope, planes, m, Kg, p0, count,
    ):  # fmt: skip
        """`count` output rows from row p0 on of `planes` planes. scratch: a row of zeros, and room for the weights.

        m: which of its channel's Kg filters the first plane belongs to.
        """
        no_row, taps = scratch, scratch + reach_bytes(S, stride, vectors, L, item)
        kept = Q - (vectors - 1) * L
        plain = kind.equals(CLAMP) & has_residual.equals(0)
        least, most = (
            broadcast(V, convert(select(plain, limit, infinity), V.scalar))
            for limit, infinity in ((low, -math.inf), (high, math.inf))
        )

        def masks_of(first_column, kinds):
            return [what == CUT and lanes_between(V, first_column + at, 0, W) for at, what in zip(starts, kinds)]

        masks_of_short_row = short_row and masks_of(constant(x, 0) - left, short_row)

        def is_cut(v):
            return short_row and v == vectors - 1

        def put(to, v, total):
            if is_cut(v):
                store_first(to, total, kept)
            else:
                store(to, total)

        def take(address, v):
            return load_lanes(V, address, first_lanes(V, kept)) if is_cut(v) else load(V, address)

        def plane(x, w, y, residual, bias):
            numbers = [[load(V.scalar, w + w_r * r + w_s * s) for s in range(S)] for r in range(R)]
            if in_registers:
                weights = [[broadcast(V, number) for number in row] for row in numbers]
            else:
                for i, number in enumerate(chain.from_iterable(numbers)):
                    store(taps + i * item, number)
            start = broadcast(V, load(V.scalar, select(has_bias.differs(0), bias, no_row)))

            def weight(r, s):
                return weights[r][s] if in_registers else broadcast(V, load(V.scalar, taps + (r * S + s) * item))

            def strip(q, kinds, masks):
                x_first = x + (q * stride - left) * item

                def add_rows(j, sums):
                    """Add to the sums of rows p, p - 1, ... the taps of the x rows that p = p0 + j reads first."""
                    sums = list(sums)
                    for a in range(stride):
                        if not any(total and a + stride * m < R for m, total in enumerate(sums)):
                            continue
                        h = (p0 + j) * stride - top + a
                        row = select((h >= 0) & (h < H), x_first + x_h * h, no_row)
                        for s, columns in enumerate(tap_columns(row_loads(row, kinds, masks))):
                            for m, totals in enumerate(sums):
                                r = a + stride * m
                                if totals and r < R:
                                    sums[m] = [fma(c, weight(r, s), total) for c, total in zip(columns, totals)]
                    return sums

                def finish(j, totals):
                    to = y + y_p * (p0 + j) + q * item
                    for v, total in enumerate(totals):
                        put(to + v * V.bytes, v, maximum(least, minimum(most, total)))

                def one_row(j, carried):
                    *carried, done = add_rows(j, [[start] * vectors, *carried])
                    finish(j - (live - 1), done)
                    return carried

                carried = []
                for j in range(live - 1):
                    carried = add_rows(constant(q, j), [[start] * vectors, *carried])
                carried = loop(count - (live - 1), lambda j, carried: one_row(j + (live - 1), carried), carried)
                for j in range(live - 1):
                    *carried, done = add_rows(count + j, [None] * (j + 1) + carried)[j + 1 :]
                    finish(count + j - (live - 1), done)

                def others(j):
                    """What is not a clamp of the sums, from memory."""
                    to, more = y + y_p * (p0 + j) + q * item, residual + residual_p * (p0 + j) + q * item
                    for v in range(vectors):
                        put(to + v * V.bytes, v, other(take(to + v * V.bytes, v), more + v * V.bytes, v))

                def other(total, more, v):
                    total = choose(has_residual.differs(0), lambda: [total + take(more, v)], lambda: [total])
                    return activated(total, kind, low, high, slope)[0]

                with when(plain.equals(False)):
                    loop(count, others)

            def strip_of_long_rows(i):
                q = minimum(i * (vectors * L), Q - vectors * L)
                first = q * stride - left
                inside = (first >= 0) & (first + reach <= W)
                ends = end_loads(S, stride, vectors, L)
                choose(
                    inside,
                    lambda: strip(q, (WHOLE,) * len(starts), [None] * len(starts)),
                    lambda: strip(q, ends, masks_of(first, ends)),
                )

            if short_row:
                strip(constant(x, 0), short_row, masks_of_short_row)
            else:
                loop((Q + (vectors * L - 1)) // (vectors * L), strip_of_long_rows)

        def one_plane(i, carried):
            x, w, y, residual, bias, m = carried
            plane(x, w, y, residual, bias)
            last = (m + 1).equals(Kg)
            x, m = select(last, x + x_c, x), select(last, 0, m + 1)
            return [x, w + w_k, y + y_k, residual + residual_k, bias + bias_k, m]

        loop(planes, one_plane, [x, w, y, residual, bias, m])

    def task(call_address, index, worker):
        call = record_at(CALL_DIRECT, call_address)
        scratch = call.workspace + worker * call.worker_bytes
        clear(scratch)
        bands = call.bands
        total = call.N * call.K * bands
        place, end = total * index // call.tasks, total * (index + 1) // call.tasks
        while place < end:
            band, k, n = place % bands, place // bands % call.K, place // bands // call.K
            if bands == 1:
                planes, p0, p1 = min(call.K - k, end - place), 0, call.P
                place += planes
            else:
                some = min(bands - band, end - place)
                planes, p0, p1 = 1, call.P * band // bands, call.P * (band + some) // bands
                place += some
            c = k // call.Kg
            some_planes(
                call.x + n * call.x_n + c * call.x_c, call.x_c, call.x_h, call.w + k * call.w_k, call.w_k, call.w_r,
                call.w_s, call.y + n * call.y_n + k * call.y_k, call.y_k, call.y_p,
                call.residual + n * call.residual_n + k * call.residual_k, call.residual_k, call.residual_p,
                call.has_residual, call.bias + k * call.bias_k, call.bias_k, call.has_bias, call.H, call.W, call.Q,
                call.top, call.left, scratch, call.activation, call.low, call.high, call.slope, planes, k % call.Kg,
                call.Kg, p0, p1 - p0,
            )  # fmt: skip

    return task_loop(task)


def reach_bytes(S, stride, vectors, L, item) -> int:
    """Of what a tile reads of one row, in whole vectors."""
    reach = max(load_columns(S, stride, vectors, L)) + L
    return -(-reach // L) * L * item


def worker_bytes(problem) -> int:
    """A row of zeros as long as a tile reads, and the weights of a window."""
    L, item = lanes(problem.dtype), problem.dtype.itemsize
    row = reach_bytes(problem.S, problem.stride[1], row_vectors(problem), L, item)
    return worker_span(row + problem.R * problem.S * item)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    vectors = row_vectors(problem)
    planes, tasks = problem.N * problem.K, TASKS_PER_THREAD * threads if threads > 1 else 1
    rows = max(FEWEST_ROWS, live_rows(problem.R, problem.stride[0]))
    bands = max(1, min(-(-tasks // planes), problem.P // rows))
    tasks = min(planes * bands, tasks)
    short_row = short_row_loads(problem) if vectors * lanes(problem.dtype) > problem.Q else ()
    loop = compiled(build, problem.dtype.name, problem.R, problem.S, problem.stride[0], vectors, short_row)
    return problem_fields(problem) + struct.pack("3q", tasks, bands, worker_bytes(problem)), loop, tasks


def cycles(problem) -> float:
    """Of all planes."""
    plane = problem.P * row_cycles(problem, row_vectors(problem))
    return problem.N * problem.K * (CYCLES_PER_PLANE + plane)


def row_cycles(problem, vectors) -> float:
    """Of one row of outputs: loads, shuffles and multiply-adds, two a cycle each, and its stores."""
    strips, stride = -(-problem.Q // (vectors * lanes(problem.dtype))), problem.stride[0]
    loads = stride * vectors * (problem.S if stride == 1 else 2 + problem.S / 2)
    if not weights_fit(problem.R, problem.S, stride, vectors):
        loads += problem.R * problem.S / 2
    multiply_adds = vectors * problem.R * problem.S / target.multiply_adds_per_cycle()
    return strips * (max(loads, multiply_adds) + vectors + 2)
