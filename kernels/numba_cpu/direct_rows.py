"""Depthwise convolution of small windows, straight from x to y: no panel, and masks only where a row has its ends.

    x row   . | x x x x x x x x x x x x x x x x x x x | .     loads that lie inside the row are plain ones; those at its
              [ load ][ load ][ load ][masked]                ends are masked, and lanes outside are zero: the padding
              with stride 2 two neighbours give a vector of even and one of odd columns; the tap after next is the same
              vector moved by one lane

    for every plane, or part of one, of a task
        for every few output rows, every few vectors of them      sums in registers, rows x vectors
            for every input row they read                         rows of padding are read from a row of zeros
                for every tap column, for every output row that it belongs to: multiply-add

Why beside sliding_window.py's tile: copying a plane into a panel takes longer than its window. Masks are computed once
a strip of tiles; masking every load, and every row of padding, made the same layers 2 to 2.5 times slower. Measured on
two Zen 5 cores beside PyTorch's faster form: MobileNetV2's depthwise layers 1.2 to 2.0 times as fast, where panels gave
0.4 to 1.5; held to AVX2 0.9 to 1.8, panels 0.7 to 1.4. On small planes what surrounds the tiles counts: five divisions
a plane were a third of 7 x 7's time, and seven rows a tile instead of four a tenth of 14 x 14's.
It wants masked loads, so it serves processors with AVX2 and more; float32 or float64, NCHW, rows contiguous in memory.
Source: Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions, ICML 2018.
"""

import struct
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .epilogue import activated
from .microkernel import vector_type
from .sliding_window import store_first
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
    select,
    shuffle,
    store,
    traced,
    zeros,
)
from .vectors import lanes, record_at

MOST_VECTORS, MOST_ROWS = 4, 8  # of a tile
MOST_MULTIPLY_ADDS = 200  # of one tile: it is written out
TASKS_PER_THREAD = 8
CYCLES_PER_PLANE = 40.0
WHOLE, CUT, OUTSIDE = "whole", "cut", "outside"  # what a load's lanes are: inside the row all, some, none

CALL_DIRECT = from_dtype(np.dtype(CALL_DTYPE.descr + [("tasks", "i8"), ("worker_bytes", "i8")]))


def serves(problem) -> bool:
    """Is this the faster way, for arrays whose rows are contiguous?"""
    if target.vector_bytes() < 32 or problem.layout != "NCHW" or problem.dtype != problem.accumulate:
        return False
    small = problem.R * problem.S <= 25 and max(problem.padding[1]) < lanes(problem.dtype)
    return small and problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2))


def takes(x, y, residual) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    return all(array is None or array.strides[3] == array.itemsize for array in (x, y, residual))


@lru_cache(maxsize=1024)
def tile(problem):
    """(rows, vectors) of outputs computed at once: as many rows as make the plane cheapest."""
    vectors = min(-(-problem.Q // lanes(problem.dtype)), MOST_VECTORS)
    window, stride = problem.R * problem.S, problem.stride[0]
    registers = (target.register_count() - 1 - vectors) // vectors  # the others hold a weight and a row of x
    beside_weights = (target.register_count() - window - vectors) // vectors
    # 4 rows share enough input to repay weights that are loaded again and again; with stride 2 there is less to share.
    most = max(min(4, registers), min(beside_weights, MOST_ROWS))
    if stride == 2 and most < problem.P:
        most = 2
    most = min(most, problem.P, MOST_MULTIPLY_ADDS // (vectors * window))
    return min(range(1, max(most, 1) + 1), key=lambda rows: plane_cycles(problem, rows, vectors)), vectors


def load_columns(S, stride, vectors, L):
    """Where each load of a row begins, in columns from the tile's first."""
    if stride == 1:
        return [s + v * L for s in range(S) for v in range(vectors)]
    return [h * L for h in range(2 * vectors + (S > 2))]


def short_row_loads(problem):
    """What each load of a row is, where one tile holds the whole row."""
    _, vectors = tile(problem)
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


def build(dtype_name, R, S, stride, rows, vectors, short_row):
    """short_row: what a row's loads are, where a tile holds the whole row; () where rows are longer than tiles."""
    V = vector_type(dtype_name)
    L, item = V.count, V.item_bytes
    starts = load_columns(S, stride, vectors, L)
    reach = max(starts) + L

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

    def row_loads(row, kinds, first_column, W):
        """The loads of a row whose first column, which may be padding, has the address `row`."""
        for start, kind in zip(starts, kinds):
            here = row + start * item
            if kind == WHOLE:
                yield load(V, here)
            elif kind == CUT:
                yield load_lanes(V, here, lanes_between(V, first_column + start, 0, W))
            else:
                yield zeros(V, row)

    @traced(types.void)
    def clear(address):
        for offset in range(0, reach * item, V.bytes):
            store(address + offset, zeros(V, address))

    @traced(types.void)
    def plane(
        x, x_h, w, w_r, w_s, y, y_p, residual, residual_p, has_residual, bias, H, W, P, Q, top, left, no_row,
        kind, low, high, slope, first_block, blocks,
    ):  # fmt: skip
        """Some blocks of `rows` output rows of one plane. no_row: a row of zeros."""
        weights = [[broadcast(V, load(V.scalar, w + w_r * r + w_s * s)) for s in range(S)] for r in range(R)]
        start = broadcast(
            V, choose(bias.differs(0), lambda: [load(V.scalar, bias)], lambda: [constant(x, 0, V.scalar)])[0]
        )

        def put(p, q, kinds):
            """The tile of output rows p .. and columns q .."""
            first_column = q * stride - left
            sums = [[start] * vectors for _ in range(rows)]
            for i in range((rows - 1) * stride + R):
                h = p * stride - top + i
                row = select((h >= 0) & (h < H), x + x_h * h + first_column * item, no_row)
                for s, columns in enumerate(tap_columns(row_loads(row, kinds, first_column, W))):
                    for j in range(rows):
                        r = i - j * stride
                        if 0 <= r < R:
                            sums[j] = [fma(c, weights[r][s], total) for c, total in zip(columns, sums[j])]
            finish(p, q, sums)

        def finish(p, q, sums):
            kept = Q - (vectors - 1) * L
            places = [(j, v) for j in range(rows) for v in range(vectors)]

            def is_cut(v):
                return short_row and v == vectors - 1

            def more(j, v):
                here = residual + residual_p * (p + j) + (q + v * L) * item
                return load_lanes(V, here, first_lanes(V, kept)) if is_cut(v) else load(V, here)

            def added():
                return [sums[j][v] + more(j, v) for j, v in places]

            totals = choose(has_residual.differs(0), added, lambda: [sums[j][v] for j, v in places])
            for (j, v), total in zip(places, activated(totals, kind, low, high, slope)):
                to = y + y_p * (p + j) + (q + v * L) * item
                if is_cut(v):
                    store_first(to, total, kept)
                else:
                    store(to, total)

        def strip(q, kinds):
            loop(blocks, lambda i: put(minimum((first_block + i) * rows, P - rows), q, kinds))

        def strip_of_long_rows(i):
            q = minimum(i * (vectors * L), Q - vectors * L)
            first = q * stride - left
            inside = (first >= 0) & (first + reach <= W)
            choose(
                inside,
                lambda: strip(q, (WHOLE,) * len(starts)),
                lambda: strip(q, end_loads(S, stride, vectors, L)),
            )

        if short_row:
            strip(constant(x, 0), short_row)
        else:
            loop((Q + (vectors * L - 1)) // (vectors * L), strip_of_long_rows)

    def task(call_address, index, worker):
        call = record_at(CALL_DIRECT, call_address)
        no_row = call.workspace + worker * call.worker_bytes
        clear(no_row)
        a_plane = (call.P + rows - 1) // rows
        total = call.N * call.K * a_plane
        place, end = total * index // call.tasks, total * (index + 1) // call.tasks
        n, k, block = place // a_plane // call.K, place // a_plane % call.K, place % a_plane
        c, m = k // call.Kg, k % call.Kg
        while place < end:
            blocks = min(a_plane - block, end - place)
            place += blocks
            plane(
                call.x + n * call.x_n + c * call.x_c, call.x_h, call.w + k * call.w_k, call.w_r, call.w_s,
                call.y + n * call.y_n + k * call.y_k, call.y_p,
                call.residual + n * call.residual_n + k * call.residual_k, call.residual_p, call.has_residual,
                call.bias + k * call.bias_k if call.has_bias else 0, call.H, call.W, call.P, call.Q, call.top,
                call.left, no_row, call.activation, call.low, call.high, call.slope, block, blocks,
            )  # fmt: skip
            block, k, m = 0, k + 1, m + 1  # dividing for each plane would take as long as a small one
            if m == call.Kg:
                c, m = c + 1, 0
            if k == call.K:
                n, k, c = n + 1, 0, 0

    return task_loop(task)


def worker_bytes(problem) -> int:
    """A row of zeros as long as a tile reads."""
    _, vectors = tile(problem)
    L = lanes(problem.dtype)
    reach = max(load_columns(problem.S, problem.stride[1], vectors, L)) + L
    return -(-reach // L) * L * problem.dtype.itemsize


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    rows, vectors = tile(problem)
    blocks = problem.N * problem.K * -(-problem.P // rows)
    tasks = min(blocks, TASKS_PER_THREAD * threads if threads > 1 else 1)
    short_row = short_row_loads(problem) if vectors * lanes(problem.dtype) > problem.Q else ()
    loop = compiled(build, problem.dtype.name, problem.R, problem.S, problem.stride[0], rows, vectors, short_row)
    return problem_fields(problem) + struct.pack("2q", tasks, worker_bytes(problem)), loop, tasks


def cycles(problem) -> float:
    """Of all planes."""
    return problem.N * problem.K * plane_cycles(problem, *tile(problem))


def plane_cycles(problem, rows, vectors) -> float:
    """Loads, shuffles and multiply-adds, two a cycle each, and a tile's stores."""
    tiles = -(-problem.P // rows) * -(-problem.Q // (vectors * lanes(problem.dtype)))
    input_rows = (rows - 1) * problem.stride[0] + problem.R
    loads = input_rows * vectors * (problem.S if problem.stride[0] == 1 else 2 + problem.S / 2)
    multiply_adds = rows * vectors * problem.R * problem.S / target.multiply_adds_per_cycle()
    return CYCLES_PER_PLANE + tiles * (max(loads, multiply_adds) + 2 * rows * vectors + 12)
