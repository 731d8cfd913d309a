"""The last few pixels of a map, too few for a vector: dot products, with the vector along the depth instead.

    7 x 7 pixels = 48 in one tile of 3 vectors, and 1:   y[k] = w[k][0 .. 15] * x[0 .. 15] + w[k][16 .. 31] * ...

Why: the micro-kernel takes a third of a whole tile's time for a vector with one pixel in it, since loads become its
limit, so 7 x 7 maps took 1.35 times as long as 48 pixels. Weights lie along their depth in memory as they come, so
all that is to be done before is to gather the pixel's x values side by side, once for all filters.

Measured on two Zen 5 cores: 512 -> 2048 channels of 7 x 7, 1x1, 220 microseconds instead of 282, where 48 pixels take
195: the weights come from the L2 cache once more. So a pixel that is alone is multiplied together with the tile before
it, 16 depths of 8 filters whenever the tile has just read these, with sums that wait in the L1 cache, since the tile
has all registers but a few. On two Zen 4 cores with AVX-512 that takes 0.94 to 0.98 of the time on 7 x 7, and 48 pixels
0.97 of it; fetching weights ahead for products of their own, by 4, 8 or 16 vectors, changed nothing or took longer.
"""

import numpy as np
from numba.core import types

from . import target
from .compilation import inlined
from .epilogue import clamped, limits
from .microkernel import AHEAD, VECTORS, panel_rows, plain, tile_function, vector_type
from .short_floats import memory_functions
from .tracing import (
    I64,
    Lanes,
    choose,
    extract,
    first_lanes,
    load,
    load_lanes,
    loop,
    shuffle,
    store,
    traced,
    when,
    zeros,
)

MOST = 4  # pixels; a vector's tile takes as long as about a dozen of them, but they are gathered one by one


def gather_function(dtype):
    """A Numba function gather(to, count, x, offsets, depth): `count` columns of x, each as a row of numbers. offsets:
    address of a table that says how far behind x each depth lies, in bytes.
    """
    item = np.dtype(dtype).itemsize
    read, write, _, _ = memory_functions(np.dtype(dtype).name)

    @traced(types.int64)
    def entry(table, i):
        return load(I64, table + I64.bytes * i)

    @inlined
    def gather(to, count, x, offsets, depth):
        for j in range(count):
            for d in range(depth):
                write(to + (j * depth + d) * item, read(x + entry(offsets, d) + j * item))

    return gather


def finish_dots_function(kind, item):
    """finish_dots(totals, partial, ...), traced: each vector's lanes are summed, and these sums are left in `partial`
    or finished as the micro-kernel's are. kind: an Arithmetic. item: bytes from bias to bias.
    """

    def finish_dots(totals, partial, partial_row, first, out, out_row, left, bias, residual, residual_row, low, high):
        scalar = Lanes(totals[0].type.kind)
        totals = sums_of(totals)

        def continued():
            return [total + load(scalar, partial + partial_row * i) for i, total in enumerate(totals)]

        def leave():
            for i, total in enumerate(sums):
                store(partial + partial_row * i, total)

        def finish():
            ends = limits(scalar, low, high)
            for i, total in enumerate(sums):
                with when(left > i):
                    total = with_residual(total + load(scalar, bias + item * i), i)
                    kind.write(out + out_row * i, clamped(total, ends))

        def with_residual(total, i):
            def added():
                return [total + kind.read(scalar, residual + residual_row * i)]

            return choose(residual.differs(0), added, lambda: [total])[0]

        sums = choose(first, lambda: totals, continued)
        choose(out.differs(0), finish, leave)

    return finish_dots


def lone_pixels_function(dtype, arithmetic=None):
    """A Numba function that multiplies all rows of A with one to MOST gathered columns. arithmetic: as in
    microkernel.tile_function.

    lone_pixels(columns, rows, a, a_row, gathered, depth, partial, ...): the arguments of the micro-kernel's `multiply`,
    with the same meaning. A's rows are contiguous, and may be read as far as a whole panel.
    """
    V, rows_at_once = vector_type(dtype), panel_rows()
    kind = arithmetic or plain(V)
    item, stored = V.item_bytes, kind.result_bytes
    finish_dots = finish_dots_function(kind, item)

    @traced(types.void)
    def dot_rows(
        a, a_row, x, depth, partial, partial_row, first, out, out_row, left, bias, residual, residual_row, low, high
    ):
        def multiplied(read, at, totals):
            column = read(x + at)
            return [kind.multiply_add(read(a + a_row * i + at), column, total) for i, total in enumerate(totals)]

        whole = depth // V.count
        totals = [zeros(V, a) for _ in range(rows_at_once)]
        totals = loop(whole, lambda d, totals: multiplied(lambda at: load(V, at), d * V.bytes, totals), totals)
        some = first_lanes(V, depth - whole * V.count)
        totals = multiplied(lambda at: load_lanes(V, at, some), whole * V.bytes, totals)
        finish_dots(totals, partial, partial_row, first, out, out_row, left, bias, residual, residual_row, low, high)

    @inlined
    def lone_pixels(
        columns, rows, a, a_row, gathered, depth, partial, partial_row, first, out, out_row, bias, residual,
        residual_row, low, high,
    ):  # fmt: skip
        for i in range(0, rows, rows_at_once):
            for j in range(columns):
                dot_rows(
                    a + i * a_row, a_row, gathered + j * depth * item, depth, partial + i * partial_row + j * item,
                    partial_row, first, out + i * out_row + j * stored if out != 0 else 0, out_row, rows - i,
                    bias + i * item, residual + i * residual_row + j * stored if residual != 0 else 0, residual_row,
                    low, high,
                )  # fmt: skip

    return lone_pixels


def joins_a_tile() -> bool:
    """Are there registers to multiply a lone pixel within the loop of a tile? With 16 the tile's sums leave theirs at
    every step, and layers take 1.2 to 1.5 times as long.
    """
    return target.register_count() == 32


def tile_with_lone_function(dtype):
    """A Numba function multiply_with_lone(rows, ...): the micro-kernel's `multiply` of 3 vectors for all rows of A and,
    while these are in the L1 cache, their products with the column that lies gathered at x.

    dots: room for a vector of each row of a panel. x_partial, x_out, x_residual: as partial, out and residual, for the
    lone pixel. B is found by a table.
    """
    V, rows_at_once = vector_type(dtype), panel_rows()
    kind = plain(V)
    item = V.item_bytes
    finish_dots = finish_dots_function(kind, item)
    tile = tile_function(dtype, rows_at_once, VECTORS, "row", indirect=True, with_dots=True)

    @traced(types.void)
    def finish_lone(dots, partial, partial_row, first, out, out_row, left, bias, residual, residual_row, low, high):
        totals = [load(V, dots + V.bytes * i) for i in range(rows_at_once)]
        finish_dots(totals, partial, partial_row, first, out, out_row, left, bias, residual, residual_row, low, high)

    @inlined
    def multiply_with_lone(
        rows, a, a_row, b, b_step, depth, partial, partial_row, first, out, out_row, bias, residual, residual_row,
        low, high, x, dots, x_partial, x_out, x_residual,
    ):  # fmt: skip
        for i in range(0, rows, rows_at_once):
            here, at, add, number = a + i * a_row, i * out_row, i * residual_row, bias + i * item
            tile(
                here, a_row, 0, item, b, b_step, depth, here + AHEAD, item, partial + i * partial_row, partial_row,
                first, out + at if out != 0 else 0, out_row, rows - i, number, residual + add if residual != 0 else 0,
                residual_row, low, high, x, dots,
            )  # fmt: skip
            finish_lone(
                dots, x_partial + i * partial_row, partial_row, first, x_out + at if out != 0 else 0, out_row,
                rows - i, number, x_residual + add if residual != 0 else 0, residual_row, low, high,
            )  # fmt: skip

    return multiply_with_lone


def sums_of(vectors):
    """The sum of each vector's lanes, as numbers."""
    return [extract(sums, lane) for sums in lane_sums(vectors) for lane in range(sums.type.count)]


def lane_sums(vectors):
    """The sum of each vector's lanes, in the lanes of as few vectors as hold them: halves are added to halves, of two
    vectors at once while there are two.
    """
    vectors, width = list(vectors), vectors[0].type.count
    while width > 1:
        if len(vectors) > 1:
            vectors = [halves_added(a, b, width) for a, b in zip(vectors[::2], vectors[1::2])]
        else:
            vectors = [halves_added(vectors[0], vectors[0], width)]
        width //= 2
    return vectors


def halves_added(a, b, width):
    """Both vectors consist of sums of `width` lanes each; the same sums of half as many lanes, in one vector."""
    lanes = range(2 * a.type.count if b is not a else a.type.count)
    low = [lane for lane in lanes if lane % width < width // 2]
    high = [lane for lane in lanes if lane % width >= width // 2]
    return shuffle(a, b, low) + shuffle(a, b, high)
