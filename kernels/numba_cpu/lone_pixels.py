"""The last few pixels of a map, too few for a vector: dot products, with the vector along the depth instead.

    7 x 7 pixels = 48 in one tile of 3 vectors, and 1:   y[k] = w[k][0 .. 15] * x[0 .. 15] + w[k][16 .. 31] * ...

Why: the micro-kernel takes a third of a whole tile's time for a vector with one pixel in it, since loads become its
limit, so 7 x 7 maps took 1.35 times as long as 48 pixels. Weights lie along their depth in memory as they come, so
all that is to be done before is to gather the pixel's x values side by side, once for all filters.

Measured on two Zen 5 cores: 512 -> 2048 channels of 7 x 7, 1x1, 220 microseconds instead of 282, where 48 pixels take
195: the weights come from the L2 cache once more.
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import panel_rows, plain, vector_type
from .short_floats import memory_functions
from .tracing import (
    I64,
    choose,
    convert,
    extract,
    first_lanes,
    load,
    load_lanes,
    loop,
    maximum,
    minimum,
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


def lone_pixels_function(dtype, arithmetic=None):
    """A Numba function that multiplies all rows of A with one to MOST gathered columns. arithmetic: as in
    microkernel.tile_function.

    lone_pixels(columns, rows, a, a_row, gathered, depth, partial, ...): the arguments of the micro-kernel's `multiply`,
    with the same meaning. A's rows are contiguous, and may be read as far as a whole panel.
    """
    V, rows_at_once = vector_type(dtype), panel_rows()
    kind = arithmetic or plain(V)
    item, stored = V.item_bytes, kind.result_bytes

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
        totals = sums_of(multiplied(lambda at: load_lanes(V, at, some), whole * V.bytes, totals))

        def continued():
            return [total + load(V.scalar, partial + partial_row * i) for i, total in enumerate(totals)]

        def leave():
            for i, total in enumerate(sums):
                store(partial + partial_row * i, total)

        def finish():
            least, most = (convert(limit, V.scalar) for limit in (low, high))
            for i, total in enumerate(sums):
                with when(left > i):
                    total = with_residual(total + load(V.scalar, bias + item * i), i)
                    kind.write(out + out_row * i, maximum(least, minimum(most, total)))

        def with_residual(total, i):
            def added():
                return [total + kind.read(V.scalar, residual + residual_row * i)]

            return choose(residual.differs(0), added, lambda: [total])[0]

        sums = choose(first, lambda: totals, continued)
        choose(out.differs(0), finish, leave)

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
