"""The last few pixels of a map, too few for a vector: dot products, with the vector along the depth instead.

    7 x 7 pixels = 48 in one tile of 3 vectors, and 1:     y[k] = w[k][0 .. 15] . x[0 .. 15] + w[k][16 .. 31] . x[16 .. 31] ...

Why: the micro-kernel takes a third of a whole tile's time for a vector with one pixel in it, since loads become its
limit, so 7 x 7 maps took 1.35 times as long as 48 pixels. Weights lie along their depth in memory as they come, so
all that is to be done before is to gather the pixel's x values side by side, once for all filters.

Measured on two Zen 5 cores: 512 -> 2048 channels of 7 x 7 1x1 200 microseconds instead of 282.
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import panel_rows, vector_type
from .short_floats import memory_functions
from .tracing import choose, constant, extract, first_lanes, fma, load, load_lanes, loop, shuffle, store, traced, zeros

MOST = 4  # pixels; a vector's tile takes as long as about a dozen of them, but they are gathered one by one


def lone_pixels_function(dtype):
    """A Numba function lone_pixels(count, rows, w, w_row, x, x_step, depth, sums, sums_row, first, gathered).

    Adds to sums[i][j] (or, if `first`, puts there) the product of w[i] and x[:, j], for `rows` rows of w, which may be
    read as far as a whole panel, and `count` columns of x. w_row, x_step, sums_row: bytes from row to row; the numbers
    of a row are neighbours. gathered: memory for `depth` numbers.
    """
    V, rows_at_once = vector_type(dtype), panel_rows()
    item = V.item_bytes
    read, write, _, _ = memory_functions(np.dtype(dtype).name)

    @traced(types.void)
    def dot_rows(w, w_row, x, depth, sums, sums_row, first):
        def multiplied(load_from, at, totals):
            column = load_from(x + at)
            return [fma(load_from(w + w_row * i + at), column, total) for i, total in enumerate(totals)]

        totals = [zeros(V, w) for _ in range(rows_at_once)]
        whole = depth // V.count
        totals = loop(whole, lambda d, totals: multiplied(lambda at: load(V, at), d * V.bytes, totals), totals)
        some = first_lanes(V, depth - whole * V.count)
        totals = multiplied(lambda at: load_lanes(V, at, some), whole * V.bytes, totals)
        for i, total in enumerate(sums_of(totals)):
            here = sums + sums_row * i
            before = choose(first, lambda: [constant(total, 0)], lambda here=here: [load(V.scalar, here)])[0]
            store(here, before + total)

    @inlined
    def lone_pixels(count, rows, w, w_row, x, x_step, depth, sums, sums_row, first, gathered):
        for j in range(count):
            for d in range(depth):
                write(gathered + d * item, read(x + d * x_step + j * item))
            for i in range(0, rows, rows_at_once):
                dot_rows(w + i * w_row, w_row, gathered, depth, sums + i * sums_row + j * item, sums_row, first)

    return lone_pixels


def sums_of(vectors):
    """The sum of each vector's lanes: halves are added to halves, of two vectors at once while there are two."""
    vectors, width = list(vectors), vectors[0].type.count
    while width > 1:
        if len(vectors) > 1:
            vectors = [halves_added(a, b, width) for a, b in zip(vectors[::2], vectors[1::2])]
        else:
            vectors = [halves_added(vectors[0], vectors[0], width)]
        width //= 2
    return [extract(vector, lane) for vector in vectors for lane in range(vector.type.count)]


def halves_added(a, b, width):
    """Both vectors consist of sums of `width` lanes each; the same sums of half as many lanes, in one vector."""
    lanes = range(2 * a.type.count if b is not a else a.type.count)
    low = [lane for lane in lanes if lane % width < width // 2]
    high = [lane for lane in lanes if lane % width >= width // 2]
    return shuffle(a, b, low) + shuffle(a, b, high)
