"""The GEMM micro-kernel: a small tile of the result kept in registers while everything else streams past.

    C[i, j] += sum over d of  A[d, i] * B[d, j]           i: tile rows, j: tile columns, one vector = W columns

                        B[d]: 3 vectors
                     [ b0 ][ b1 ][ b2 ]
    A[d, 0] in every  [c00 ][c01 ][c02 ]     One step d: load 3 vectors, broadcast 4 numbers, do 12 fused multiply-adds
    lane      A[d, 1] [c10 ][c11 ][c12 ]     on 12 accumulators. 7 loads for 12 multiply-adds, so both multipliers of
              A[d, 2] [c20 ][c21 ][c22 ]     the core stay busy: they start 2 a cycle and take 4 cycles each, so at
              A[d, 3] [c30 ][c31 ][c32 ]     least 8 accumulators are needed. 12 + 3 + 1 are the 16 registers of AVX2.

With 32 registers (AVX-512, NEON) the tile has 8 rows: 24 accumulators. At the right edge of C tiles of 2 and 1
vectors follow. The tile of one vector is 8 rows high even with 16 registers, since 4 accumulators would wait for
each other. Where 12, 20, 36 or 60 rows leave half a tile or less, `blocked` has a tile of 4 rows and 3 vectors: 12
accumulators are enough (two Zen 4 cores: 56 -> 12 channels of 128 x 128 in 0.84 of the time, 12 -> 12 under 3 x 3 0.79,
36 filters 0.92, 58 0.98).

What the rows and columns are is up to the caller. NCHW: rows are filters (A: the weights), columns are pixels
(B). NHWC: rows are pixels, columns are filters. A is read one number at a time, so its rows and steps may have any
stride; B's columns are contiguous, its steps may have any stride.

Measured (Zen 3, AVX2, one core): `tile_gflops` 92 to 94 where `peak_gflops` finds 94 to 96, so 0.97 of the peak at
depth 256, 0.89 at depth 64; tiles of 2 vectors 0.83 of that and of 1 vector 0.62, since loads become the limit. On a
Zen 5 with AVX-512 0.98 at depth 256, 0.97 at 64, and fetching ahead makes no difference.
Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 2008; the register tile as
in Van Zee and van de Geijn, BLIS, ACM TOMS 2015.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba.core import types

from . import target, tracing
from .column_stores import store_columns
from .compilation import inlined
from .epilogue import clamped, limits
from .tracing import (
    I64,
    Lanes,
    choose,
    first_lanes,
    fma,
    load,
    load_lanes,
    loop,
    select,
    store,
    store_past_cache,
    traced,
    when,
)
from .vectors import lanes

VECTORS = 3  # columns of the widest tile, in vectors
AHEAD = 1_024  # how far, in bytes, to fetch a stream ahead: the processor's own prefetcher stops at every page's end


def tile_rows(vectors) -> int:
    """How many rows a tile of that many vectors has, so that enough accumulators are in flight and none is
    spilled.
    """
    return 8 if target.register_count() == 32 or vectors == 1 else 4


def panel_rows() -> int:
    """Rows of A that lie together when packed; every tile's rows are one panel, or two."""
    return tile_rows(VECTORS)


def half_rows() -> int:
    """Rows of half a widest tile, where that keeps the multipliers busy; else 0."""
    return panel_rows() // 2 if target.register_count() == 32 else 0


def multiplied_rows(rows) -> int:
    """Rows that the widest tiles, and half of one, multiply for so many."""
    whole = -(-rows // panel_rows()) * panel_rows()
    return whole - half_rows() if half_rows() and whole - rows >= half_rows() else whole


def holds_lone(dtype) -> bool:
    """Is there a register for the sums of one more column, with the widest tile's rows in its lanes?"""
    return target.register_count() == 32 and lanes(dtype) >= panel_rows()


def vector_type(dtype) -> Lanes:
    return Lanes(f"f{8 * np.dtype(dtype).itemsize}", lanes(dtype))


@dataclass(frozen=True)
class Arithmetic:
    """How sums are made and how results lie in memory, where that is not as sums do.

    multiply_add(a, b, sums): of vectors. read(V, address), write(address, sums): a result, or as many side by side as
    the sums have lanes. result_bytes: of one.
    """

    multiply_add: Callable
    read: Callable
    write: Callable
    result_bytes: int


def plain(V) -> Arithmetic:
    return Arithmetic(fma, load, store, V.item_bytes)


def past_cache_arithmetic(V) -> Arithmetic:
    """As `plain`, with results that are stored past the cache: each vector of them is a whole line."""
    return Arithmetic(fma, load, store_past_cache, V.item_bytes)


def accumulate(
    V, rows, vectors, a, a_row, a_panel, a_step, b, b_step, depth, sums, ahead=None, ahead_step=None, b_vector=None, *,
    fetched=1, apart=None, also=None, indirect=False, multiply_add=fma, lone=None, aside=None, begins=None, less=None,
):  # fmt: skip
    """The inner loop, traced: `sums` plus A times B over `depth` steps. All strides in bytes.

    sums: None, if the first step's products begin them; of plain multiply-adds. So does the lone column's then.
    begins: whether they do, where that is known when running; `sums` is then a function that gives the others.

    a_row: from row to row, in panels; or a list, of where each row lies.

    indirect: b_step is the address of a table that says how far behind b each step's vectors lie.

    ahead: memory that will be needed soon, fetched into the cache `ahead_step` bytes further at every step; A, if
    None. b_vector: from vector to vector of B; they are neighbours, if None. fetched: how many memories are fetched
    ahead, `apart` bytes apart; like the vectors of B, if None. also: (address, bytes at a step, [(how far behind, into
    the cache of which level), ...]), of A that will be needed.

    lone: one more column of B, (L, its sums, where, from number to number), the sums of A's rows in the lanes of one
    vector L: then these are returned too. A's rows are neighbours, so that a step's are such a vector.

    aside(d, b, columns): what else step d does while the multipliers are busy; B's vectors there, and where they lie.

    less: (where, bytes at a step, the same of the lone column), of what is subtracted from B.
    """
    b_vector = V.bytes if b_vector is None else b_vector
    apart = b_vector if apart is None else apart
    ahead, ahead_step = (a + AHEAD, a_step) if ahead is None else (ahead, ahead_step)
    panel = panel_rows()

    def step(d, carried):
        sums, a, b, ahead, *alone = carried
        here = b + load(I64, b_step + I64.bytes * d) if indirect else b
        columns = [load(V, here + b_vector * j) for j in range(vectors)]
        if less:
            columns = [column - load(V, less[0] + less[1] * d + V.bytes * j) for j, column in enumerate(columns)]
        if aside:
            aside(d, here, columns)
        added = []
        for i in range(rows):
            where = a + (a_row[i] if isinstance(a_row, list) else a_row * (i % panel) + a_panel * (i // panel))
            weight = tracing.broadcast(V, load(V.scalar, where))
            if sums is None:
                added.append([weight * column for column in columns])
            else:
                added.append([multiply_add(weight, columns[j], sums[i][j]) for j in range(vectors)])
        for j in range(fetched):
            tracing.prefetch(ahead + apart * j)
        if also:
            soon, soon_step, places = also
            for behind, level in places:
                tracing.prefetch(soon + soon_step * d + behind, level)
        alone = with_lone(d, a, *alone) if lone else []
        return [added, a + a_step, b if indirect else b + b_step, ahead + ahead_step, *alone]

    def with_lone(d, a, sums, x):
        L, _, _, x_step = lone
        number, column = load(L.scalar, x), load(L, a)
        if less:
            number = number - load(L.scalar, less[2] + less[3] * d)
        number = tracing.broadcast(L, number)
        return [number * column if sums is None else fma(number, column, sums), x + x_step]

    def first_step(sums):
        return step(tracing.constant(a, 0), [sums, *start[1:]])

    start = [sums, a, b, ahead, *(lone[1:3] if lone else [])]
    if begins is not None:
        start = choose(begins, lambda: first_step(None), lambda: first_step(sums()))
    elif sums is None:
        start = first_step(None)
    if sums is None or begins is not None:
        sums, _, _, _, *alone = loop(depth - 1, lambda d, carried: step(d + 1, carried), start)
    else:
        sums, _, _, _, *alone = loop(depth, step, start)
    return (sums, alone[0]) if lone else sums


def accumulate_with_dots(V, rows, vectors, a, a_row, b, b_step, depth, sums, ahead, x, dots):
    """As `accumulate` of rows of A that are numbers side by side, b_step: a table, and the products of these rows with
    the numbers at x, as sums of vectors along the depth, which wait at `dots`: each vector of a row is multiplied where
    its numbers have just been read, in the L1 cache. Sums are made in the order of lone_pixels.py.
    """

    def tiles(at, entry, count, sums):
        return accumulate(
            V, rows, vectors, a + at, a_row, 0, V.item_bytes, b, b_step + entry, count, sums, ahead + at, V.item_bytes,
            indirect=True,
        )  # fmt: skip

    def add_dots(read, at):
        column = read(x + at)
        for i in range(rows):
            there = dots + V.bytes * i
            store(there, fma(read(a + a_row * i + at), column, load(V, there)))

    def some(i, sums):
        sums = tiles(i * V.bytes, i * (I64.bytes * V.count), tracing.constant(a, V.count), sums)
        add_dots(lambda where: load(V, where), i * V.bytes)
        return sums

    for i in range(rows):
        store(dots + V.bytes * i, tracing.zeros(V, a))
    whole = depth // V.count
    sums = loop(whole, some, sums)
    left = depth - whole * V.count
    sums = tiles(whole * V.bytes, whole * (I64.bytes * V.count), left, sums)
    inside = first_lanes(V, left)
    add_dots(lambda where: load_lanes(V, where, inside), whole * V.bytes)
    return sums


# A whole tile: sums from where the last depth block left them, to where the next or the result needs them.


def tile_function(dtype, rows, vectors, bias_of, transposed=False, indirect=False, arithmetic=None, with_dots=False):
    """A Numba function for one tile of rows x vectors; bias_of: "row" or "column", what a bias belongs to.
    arithmetic: another than plain multiply-adds of `dtype`; not where results are transposed.

    Where it is the column, vectors of B lie one after the other, each with all its steps; else side by side.

    The sums start with the first products (`first`) or at what `partial` holds, and go back to `partial`; or, where
    `out` is not 0, they are finished: y = clamp(sums + bias + residual), for the first `left` rows. bias: 0, if rows
    have none. transposed: in y and residual,
    columns lie out_row and residual_row apart, and the numbers of a column are neighbours. Addresses and strides are
    in bytes. with_dots: the function has two more arguments, those of `accumulate_with_dots`.
    """
    V = vector_type(dtype)
    kind = arithmetic or plain(V)
    result_vector = V.count * kind.result_bytes

    def emit(
        a, a_row, a_panel, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first,
        out, out_row, left, bias, residual, residual_row, low, high, *dotted,
    ):  # fmt: skip
        def fresh():
            return [[tracing.zeros(V, a) for _ in range(vectors)] for _ in range(rows)]

        def continued():
            return [[load(V, partial + partial_row * i + V.bytes * j) for j in range(vectors)] for i in range(rows)]

        def leave():
            for i in range(rows):
                for j in range(vectors):
                    store(partial + partial_row * i + V.bytes * j, sums[i][j])

        def clamp(total):
            return clamped(total, limits(V, low, high))

        def finish():
            bounded = low.differs(-np.inf) | high.differs(np.inf)
            for i in range(rows):
                with when(left > i):
                    for j, total in enumerate(limited(with_residual(with_bias(i), i), bounded)):
                        kind.write(out + out_row * i + result_vector * j, total)

        def limited(totals, bounded):
            return choose(bounded, lambda: [clamp(total) for total in totals], lambda: totals)

        def finish_transposed():
            for j, columns in enumerate(zip(*(with_bias(i) for i in range(rows)))):
                first_column = V.count * j
                store_columns(
                    list(columns), left, out + out_row * first_column, out_row,
                    select(residual.differs(0), residual + residual_row * first_column, 0), residual_row, clamp,
                )  # fmt: skip

        def with_bias(i):
            if bias_of == "row":
                return choose(bias.differs(0), lambda: with_number(i), lambda: sums[i])
            return [total + load(V, bias + V.bytes * j) for j, total in enumerate(sums[i])]

        def with_number(i):
            number = tracing.broadcast(V, load(V.scalar, bias + V.item_bytes * i))
            return [total + number for total in sums[i]]

        def with_residual(totals, i):
            def added():
                here = residual + residual_row * i
                return [t + kind.read(V, here + result_vector * j) for j, t in enumerate(totals)]

            return choose(residual.differs(0), added, lambda: totals)

        if dotted:
            sums = choose(first, fresh, continued)
            sums = accumulate_with_dots(V, rows, vectors, a, a_row, b, b_step, depth, sums, ahead, *dotted)
        else:
            b_vector = depth * b_step if bias_of == "column" else None
            begins = first if kind.multiply_add is fma else None
            sums = choose(first, fresh, continued) if begins is None else continued
            sums = accumulate(
                V, rows, vectors, a, a_row, a_panel, a_step, b, b_step, depth, sums, ahead, ahead_step, b_vector,
                indirect=indirect, multiply_add=kind.multiply_add, begins=begins,
            )  # fmt: skip
        choose(out.differs(0), finish_transposed if transposed else finish, leave)

    @traced(types.void)
    def tile(
        a, a_row, a_panel, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first,
        out, out_row, left, bias, residual, residual_row, low, high,
    ):  # fmt: skip
        emit(
            a, a_row, a_panel, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first,
            out, out_row, left, bias, residual, residual_row, low, high,
        )  # fmt: skip

    @traced(types.void)
    def dotting_tile(
        a, a_row, a_panel, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first,
        out, out_row, left, bias, residual, residual_row, low, high, x, dots,
    ):  # fmt: skip
        emit(
            a, a_row, a_panel, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first,
            out, out_row, left, bias, residual, residual_row, low, high, x, dots,
        )  # fmt: skip

    return dotting_tile if with_dots else tile


def multiply_function(dtype, bias_of, rows=None, transposed=False, indirect=False, arithmetic=None, halves=False):
    """A Numba function that multiplies all rows of A with one column tile of B, tile by tile.

    rows: of a tile, and of a panel of A, if they are not to be as many as the registers hold. transposed, arithmetic:
    as in `tile_function`. indirect: as in `accumulate`. halves: whether the last rows of A, if they are no more than
    half a tile's (`half_rows`), are a tile of their own.

    multiply(vectors, rows, a, ...): as a tile's arguments, for `rows` rows; a_panel: from panel to panel of A. What
    is fetched ahead is A; or, if `ahead` is not 0, with the first ahead_rows rows, or all, what begins there and moves
    on by ahead_panel and ahead_step from panel to panel and step to step.
    """
    item, panel = np.dtype(dtype).itemsize, rows or panel_rows()
    bias_step = item if bias_of == "row" else 0
    one_rows, two_rows, three_rows = (rows or tile_rows(vectors) for vectors in (1, 2, 3))
    one = tile_function(dtype, one_rows, 1, bias_of, transposed, indirect, arithmetic)
    two = tile_function(dtype, two_rows, 2, bias_of, transposed, indirect, arithmetic)
    three = tile_function(dtype, three_rows, 3, bias_of, transposed, indirect, arithmetic)
    few_rows = half_rows() if halves else 0
    few = tile_function(dtype, few_rows or three_rows, 3, bias_of, transposed, indirect, arithmetic)

    @inlined
    def multiply(
        vectors, rows, a, a_row, a_panel, a_step, b, b_step, depth, partial, partial_row, first,
        out, out_row, bias, residual, residual_row, low, high, ahead=0, ahead_panel=0, ahead_step=0,
        ahead_rows=sys.maxsize,
    ):  # fmt: skip
        height = three_rows if vectors == 3 else two_rows if vectors == 2 else one_rows
        for i in range(0, rows, height):
            here = a + i // panel * a_panel
            soon, soon_step = here + AHEAD, a_step
            if ahead != 0 and i < ahead_rows:
                soon, soon_step = ahead + i // panel * ahead_panel, ahead_step
            sums = partial + i * partial_row
            to = out + i * (item if transposed else out_row) if out != 0 else 0
            add = residual + i * (item if transposed else residual_row) if residual != 0 else 0
            weight = bias + i * bias_step if bias != 0 else 0
            if few_rows and vectors == 3 and rows - i <= few_rows:
                few(here, a_row, a_panel, a_step, b, b_step, depth, soon, soon_step, sums, partial_row, first,
                    to, out_row, rows - i, weight, add, residual_row, low, high)  # fmt: skip
            elif vectors == 3:
                three(here, a_row, a_panel, a_step, b, b_step, depth, soon, soon_step, sums, partial_row, first,
                      to, out_row, rows - i, weight, add, residual_row, low, high)  # fmt: skip
            elif vectors == 2:
                two(here, a_row, a_panel, a_step, b, b_step, depth, soon, soon_step, sums, partial_row, first,
                    to, out_row, rows - i, weight, add, residual_row, low, high)  # fmt: skip
            else:
                one(here, a_row, a_panel, a_step, b, b_step, depth, soon, soon_step, sums, partial_row, first,
                    to, out_row, rows - i, weight, add, residual_row, low, high)  # fmt: skip

    return multiply


# What it costs.

CLOCK = 3.05e9  # cycles a second, for predictions: the Zen 3 they were fitted on; kernels compare alike on others
MEMORY_BYTES = 12e9  # a second, from and to memory that is no longer in the L2 cache
CALL_SECONDS = 6e-6
# Multiply-adds of a vector that a tile of so many vectors takes as long as: narrow ones wait for loads where there are
# 16 registers (Zen 3) and hardly with 32 (Zen 5).
TAIL_UNITS = {16: (0.0, 1.6, 2.4, 3.0), 32: (0.0, 1.2, 2.0, 3.0)}


def tail_units(vectors) -> float:
    return TAIL_UNITS[target.register_count()][vectors]


def multiply_cycles(rows, columns, depth, dtype) -> float:
    """Predicted cycles of a rows x columns x depth product: 0.9 of the core's multiply-adds kept busy."""
    W = lanes(dtype)
    wide, rest = divmod(columns, VECTORS * W)
    units = VECTORS * wide + tail_units(-(-rest // W))
    return units * rows * depth / target.multiply_adds_per_cycle() / 0.9


def predicted(problem, device, cycles, memory_bytes=MEMORY_BYTES) -> float:
    """Seconds for that many cycles of work shared by the device's threads, and for moving x, w and y once.

    memory_bytes: a second, of each of two threads.
    """
    N, C, H, W = problem.x_shape
    numbers = N * C * H * W + problem.K * problem.reduction + N * problem.K * problem.P * problem.Q
    return CALL_SECONDS + cycles / CLOCK / device.threads + numbers * problem.dtype.itemsize / memory_bytes / 2
