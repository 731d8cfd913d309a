"""Winograd's transforms as straight lines of vector instructions: one lane is one tile.

    input     B^T d B   the pixels of a tile    -> a number for each of the multiplications
    filter    G g G^T   R S taps                -> the same
    output    A^T M A   a sum for each plane    -> m x m outputs

Each is a small matrix from the left and from the right: first every row, then every column; with a stride, every
other pixel or tap by a matrix of its own (the phases of winograd_matrices.py). The matrices' rows
(for A^T: columns) come in pairs for the points p and -p, equal in the even and opposite in the odd places:

    row(+p) = even + odd      row(-p) = even - odd        so `even` and `odd` are computed once: F(4,3)'s B^T costs
                                                          12 multiply-adds for 6 inputs instead of 20

With 32 registers the input transform takes less of what is scarce on Zen 4, multiply-adds and stores: odd, where it
is a multiple, is one before it is added and subtracted, which needs no multiply-adds; F(6,3)'s points 1 and -1 leave
a factor that other points' rows share (14 multiply-adds and 12 additions for 8 inputs, not 22 and 2); and a few
columns of planes at a time stay in registers, for which pixels are loaded again (28 numbers are spilled, not 66). A
tile by F(6) so takes 312 cycles instead of 447 where all lies in L1, by F(4) 131 instead of 180; plans of 64 channels
of 56 x 56 and of 128 of 28 x 28 take 0.98 of the time, with strides 0.995; errors of layers differ by 1 % or less. With
16 registers, which spill more, plans took 0.98 to 1.015; filters' transforms, which wait for their stores, 1.00 to
1.02. Nothing came of taps that keep the factors of G, so that A^T has ones (1.0; F(4) of 7 x 7 / 2 0.98), nor of
fetching lines of y before they are stored (1.01 to 1.04).

The taps of a filter are neighbouring floats at an address of its own: those of 8 filters are loaded as 8 quads, two to
a register, and a 4 x 4 transpose inside each half of the register makes of them 4 vectors with a filter per lane.
"""

from numba.core import types

from . import target
from .short_floats import widen
from .tracing import (
    I64,
    Lanes,
    constant,
    fma,
    lanes_between,
    load,
    load_lanes,
    loop,
    prefetch,
    shuffle,
    store,
    traced,
    transpose,
    zeros,
)
from .winograd_matrices import HALF, LONE, ONE, ZERO, lean_filter_matrix, lean_input_matrix, lean_output_matrix

QUAD = 4
MOST_COLUMNS = 4  # of points, of 6 to 8 numbers each on their way through the input transform


# Small matrices times lists of vectors.


def combine(coefficients, values):
    """Sum of coefficient * value; exact zeros are skipped and a coefficient of 1 starts the sum where there is one."""
    terms = sorted((c != ONE, i) for i, c in enumerate(coefficients) if c)
    total = None
    for _, i in terms:
        factor, value = coefficients[i], values[i]
        if total is None:
            total = value if factor == ONE else value * float(factor)
        elif factor == ONE:
            total = total + value
        elif factor == -ONE:
            total = total - value
        else:
            total = fma(value, constant(value, float(factor)), total)
    return total


def pairs(count):
    """Index pairs of the points p, -p among `count` points that begin with 0 and may end with infinity."""
    return [(i, i + 1) for i in range(1, count - 1, 2)] if count != LONE else []


def times_paired_rows(matrix, values, adding=False):
    """matrix @ values, where rows 1 and 2, 3 and 4, ... belong to the points p and -p; None for a row of zeros."""
    result = [None] * len(matrix)
    for plus, minus in pairs(len(matrix)):
        result[plus], result[minus] = pair_of_rows(matrix[plus], matrix[minus], values, adding)
    return [combine(row, values) if done is None else done for row, done in zip(matrix, result, strict=True)]


def rows_in_turn(matrix, values):
    """The same, a row made when it is asked for."""
    partners, waiting = dict(pairs(len(matrix))), {}
    for i, row in enumerate(matrix):
        if i in partners:
            waiting[i], waiting[partners[i]] = pair_of_rows(row, matrix[partners[i]], values)
        yield waiting[i] if i in waiting else combine(row, values)


def pair_of_rows(plus, minus, values, adding=False):
    """plus @ values and minus @ values. adding: at last by a product and two additions, instead of multiply-adds."""
    both = list(zip(plus, minus, strict=True))
    evens, odds = [(a + b) * HALF for a, b in both], [(a - b) * HALF for a, b in both]
    if not any(evens) or not any(odds):
        return combine(plus, values), combine(minus, values)
    even = combine(evens, values)
    lead = next(c for c in reversed(odds) if c)
    odd = combine([c / lead for c in odds], values)
    if adding and lead != ONE:
        odd, lead = odd * float(lead), ONE
    if lead == ONE:
        return even + odd, even - odd
    return fma(odd, constant(odd, float(lead)), even), fma(odd, constant(odd, -float(lead)), even)


def times_paired_columns(matrix, values, added=None):
    """matrix @ values, where columns 1 and 2, 3 and 4, ... belong to the points p and -p. added: a value that begins
    the sum of each row, or None for a row that has none.
    """
    matrix, values = [list(row) for row in matrix], list(values)
    for plus, minus in pairs(len(values)):
        a, b = values[plus], values[minus]
        values[plus], values[minus] = a + b, a - b
        for row in matrix:
            c, d = row[plus], row[minus]
            row[plus], row[minus] = (c + d) * HALF, (c - d) * HALF
    starts = added or [None] * len(matrix)
    return [
        combine(row, values) if start is None else combine([ONE, *row], [start, *values])
        for row, start in zip(matrix, starts, strict=True)
    ]


# Quads of many addresses as vectors.


def join(parts):
    """Short vectors of one length, one after another in a longer one."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        parts = [shuffle(a, b, range(n)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def transpose_quads(rows):
    """Of 4 vectors r0 .. r3: in each quarter of 4 lanes, lane t of result e is lane e of r_t."""
    n = rows[0].type.count

    def pick(a, b, order):
        lanes = [base + (i if i < QUAD else n + i - QUAD) for base in range(0, n, QUAD) for i in order]
        return shuffle(a, b, lanes)

    low, high = (0, 4, 1, 5), (2, 6, 3, 7)
    a, b, c, d = pick(*rows[:2], low), pick(*rows[:2], high), pick(*rows[2:], low), pick(*rows[2:], high)
    return [pick(a, c, (0, 1, 4, 5)), pick(a, c, (2, 3, 6, 7)), pick(b, d, (0, 1, 4, 5)), pick(b, d, (2, 3, 6, 7))]


def load_quads(V, addresses, offset):
    """4 vectors: element 0 .. 3 after `offset` elements at each address; lane i is address i's."""
    quad = Lanes(V.kind, QUAD)
    parts = [load(quad, a + offset * V.item_bytes) for a in addresses]
    return transpose_quads([join(parts[t::QUAD]) for t in range(QUAD)])


def load_rows(V, addresses, count):
    """`count` >= 4 vectors: element e at every address."""
    result = [None] * count
    for offset in sorted({*range(0, count - QUAD + 1, QUAD), count - QUAD}):
        result[offset : offset + QUAD] = load_quads(V, addresses, offset)
    return result


def every(vectors, n):
    """n vectors of n vectors' numbers: number 0 and every n-th from there on, number 1 and every n-th, ..."""
    if n == 1:
        return vectors
    count = vectors[0].type.count
    if n % 2 == 0:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        halves = [every([shuffle(a, b, range(i, 2 * count, 2)) for a, b in pairs], n // 2) for i in range(2)]
        return [vector for pair in zip(*halves, strict=True) for vector in pair]
    return [picked(vectors, range(i, n * count, n)) for i in range(n)]


def picked(vectors, numbers):
    """One vector of some of the numbers of several, which lie in ascending order."""
    count = vectors[0].type.count
    result = vectors[0]
    for v, vector in enumerate(vectors):
        lanes = [
            count + number % count if number // count == v else lane if v else number % count
            for lane, number in enumerate(numbers)
        ]
        result = shuffle(result, vector, lanes)
    return result


def transposed_copy(dtype_name, V):
    """copy(source, source_step, target, target_step): V.count vectors of that dtype; lane i of each to vector i."""

    @traced(types.void)
    def copy(source, source_step, target, target_step):
        rows = []
        for i in range(V.count):
            short = dtype_name in ("float16", "bfloat16")
            row = load(V.of("i16") if short else V, source + source_step * i)
            rows.append(widen(row, dtype_name) if short else row)
        for i, column in enumerate(transpose(rows)):
            store(target + target_step * i, column)

    return copy


# The three transforms; planes are numbered column by column, each `plane` bytes after the last.


def tile_addresses(V, base, table):
    """base + table[i] for every lane i; the table holds 64-bit byte offsets."""
    return [base + load(I64, table + I64.bytes * i) for i in range(V.count)]


def shifted(columns, beyond, number):
    """Pixel `number` of every tile, where that lies in a later tile. beyond: the pixels behind the last tile."""
    count, step = columns[0].type.count, len(columns)
    tiles, column = divmod(number, step)
    kept, missing = list(range(tiles, count)), [column + i * step for i in range(tiles)]
    result = shuffle(columns[column], beyond[0], kept + [count + i % count for i in missing])
    for v, vector in enumerate(beyond[1:], start=1):
        lanes = [count + i % count if i // count == v else count - tiles + t for t, i in enumerate(missing)]
        result = shuffle(result, vector, [*range(count - tiles), *lanes])
    return result


def spread_rows(tile, V):
    """spread(source, source_row, 1, source_channel, channels, top, bottom, left, right, target, pitch): the pixels of
    V.count tiles in a row, one tile per lane: pixel (i, j) of every tile to the vector at
    target + (i * tile.columns.span + j) * pitch, and so on for `channels` channels.

    Zeros stand for rows outside top .. bottom-1 and columns outside left .. right-1, which are not read.
    """
    width, step = tile.columns.span, tile.columns.step
    loads = step - (step - width) // V.count  # the pixels of all tiles, and what the last tile reads of later ones

    def apart(pixels):
        columns = every(pixels[:step], step)
        return columns + [shifted(columns, pixels[step:], j) for j in range(step, width)]

    return spread_function(tile, V, loads, apart, V)


def tiles_of_two_vectors(tile, V):
    """How many neighbours have all their pixels in two vectors: half a vector's lanes at most."""
    return min(V.count // 2, (2 * V.count - tile.columns.span) // tile.columns.step + 1)


def spread_short_rows(tile, V):
    """The same of `tiles_of_two_vectors` tiles, to half vectors: one shuffle for each pixel of a tile. Where there are
    none, as of windows of 11 columns with stride 4 in vectors of 8, nobody calls it.
    """
    width, step, tiles = tile.columns.span, tile.columns.step, tiles_of_two_vectors(tile, V)
    if tiles < 1:
        return spread_rows(tile, V)
    lanes = [step * min(lane, tiles - 1) for lane in range(V.count // 2)]

    def apart(pixels):
        return [shuffle(*pixels, [at + j for at in lanes]) for j in range(width)]

    return spread_function(tile, V, 2, apart, Lanes(V.kind, V.count // 2))


def spread_function(tile, V, loads, apart, stored):
    """apart(vectors of a row's pixels): a vector, of type `stored`, for each column of the tiles."""
    height, width = tile.rows.span, tile.columns.span

    @traced(types.void)
    def spread(source, source_row, _, source_channel, channels, top, bottom, left, right, target, pitch):
        masks = [lanes_between(V, constant(left, k * V.count), left, right) for k in range(loads)]

        def write(to, row, columns):
            for j, column in enumerate(columns):
                store(to + pitch * (row * width + j), column)

        def copy(here, to, row):
            pixels = [load_lanes(V, here + V.bytes * k, mask) for k, mask in enumerate(masks)]
            for k in range(loads):
                prefetch(here + ahead + V.bytes * k)
            write(to, row, apart(pixels))

        def blank(to, row):
            write(to, row, [zeros(stored, source)] * width)

        def channel(c):
            here, to = source + source_channel * c, target + pitch * (height * width) * c
            loop(top, lambda i: blank(to, i))
            loop(bottom - top, lambda i: copy(here + source_row * (i + top), to, i + top))
            loop(constant(top, height) - bottom, lambda i: blank(to, i + bottom))

        ahead = source_channel * channels
        loop(channels, channel)

    return spread


def spread_images(tile, V):
    """spread(source, source_row, apart, ...): the same of V.count tiles of as many dilated images, whose pixels lie
    `apart` columns apart: a pixel of theirs is a vector as it lies.
    """
    height, width = tile.rows.span, tile.columns.span

    @traced(types.void)
    def spread(source, source_row, apart, source_channel, channels, top, bottom, left, right, target, pitch):
        masks = [lanes_between(V, apart * j, left, right) for j in range(width)]

        def copy(here, to, row):
            for j, mask in enumerate(masks):
                store(to + pitch * (row * width + j), load_lanes(V, here + apart * (j * V.item_bytes), mask))
                prefetch(here + source_channel * channels + apart * (j * V.item_bytes))

        def blank(to, row):
            for j in range(width):
                store(to + pitch * (row * width + j), zeros(V, source))

        def channel(c):
            here, to = source + source_channel * c, target + pitch * (height * width) * c
            loop(top, lambda i: blank(to, i))
            loop(bottom - top, lambda i: copy(here + source_row * (i + top), to, i + top))
            loop(constant(top, height) - bottom, lambda i: blank(to, i + bottom))

        loop(channels, channel)

    return spread


def planes_of(tile, transform, grid, runs=None):
    """Of rows of pixels or taps, both ways: for every plane a list of the numbers of the phases that it has.

    transform(axis, values): a list for each phase, by points. grid(): the rows; once for each of the `runs` of points
    across, or of all.
    """
    for columns in runs or [range(tile.columns.points)]:
        rows = [transform(tile.columns, row) for row in grid()]
        for j in columns:
            here = [b for b, values in enumerate(rows[0]) if values[j] is not None]
            sides = [transform(tile.rows, [row[b][j] for row in rows]) for b in here]
            for i in range(tile.rows.points):
                yield [phase[i] for side in sides for phase in side if phase[i] is not None]


def columns_together(tile):
    """Runs of the points across, with pairs in one, whose numbers the registers hold, or most of them.

    With 16 registers, or of a stride, one of all: shorter ones would load pixels as often as that saves.
    """
    count = tile.columns.points
    most = MOST_COLUMNS if target.register_count() == 32 and tile.phases == 1 else count
    runs, seconds = [], {j for _, j in pairs(count)}
    for j in range(count):
        if runs and (j in seconds or len(runs[-1]) + (j + 1 in seconds) < most):
            runs[-1].append(j)
        else:
            runs.append([j])
    return runs


def transformed_inputs(axis, pixels):
    return [times_input_rows(lean_input_matrix(axis, f), pixels[f :: axis.stride]) for f in range(axis.phases)]


def times_input_rows(matrix, values):
    """times_paired_rows, where rows are polynomials. If 1 and -1 are points, all others' rows have the factor z^2 - 1,
    which is a difference of values and made once for all; of four points there is nothing to share.
    """
    if target.register_count() < 32:
        return times_paired_rows(matrix, values)
    quotients = [without_factor(row) for row in matrix]
    if quotients.count(None) != 2 or len(matrix) == 4:
        return times_paired_rows(matrix, values, adding=True)
    differences = [after - before for before, after in zip(values, values[2:], strict=False)]
    shared = times_paired_rows([quotient or () for quotient in quotients], differences, adding=True)
    others = [() if quotient else row for quotient, row in zip(quotients, matrix, strict=True)]
    alone = times_paired_rows(others, values, adding=True)
    return [a if b is None else b for a, b in zip(alone, shared, strict=True)]


def without_factor(row):
    """The coefficients, lowest first, of row / (z^2 - 1); None where that leaves a remainder."""
    quotient = [ZERO, ZERO]
    for c in row:
        quotient.append(quotient[-2] - c)
    return None if any(quotient[-2:]) else tuple(quotient[2:-2])


def transformed_taps(axis, taps):
    return [times_paired_rows(lean_filter_matrix(axis, f), taps[f :: axis.stride]) for f in range(axis.phases)]


def input_transform(tile, V):
    """transform(source, source_row, pitch, target, plane, channel, row): a tile's pixels, vectors that lie `pitch`
    bytes apart in rows that lie `source_row` apart, to planes.

    A plane of one phase has `plane` bytes, of several so many times as many; a channel's vectors of all phases lie
    `row` apart, and `channel` bytes, times the phases, from the plane's start. By phases, each has a plane of its own.
    """
    height, width = tile.rows.span, tile.columns.span

    @traced(types.void)
    def transform(source, source_row, pitch, target, plane, channel, row):
        def grid():
            return ([load(V, source + source_row * i + pitch * j) for j in range(width)] for i in range(height))

        for values in planes_of(tile, transformed_inputs, grid, columns_together(tile)):
            if tile.by_phases:
                for i, value in enumerate(values):
                    store(target + channel + plane * i, value)
                target = target + plane * len(values)
                continue
            for i, value in enumerate(values):
                store(target + channel * len(values) + row * i, value)
            target = target + plane * len(values)

    return transform


def filter_planes(tile, taps):
    """Of a window's taps, row by row: for every plane a list of the numbers of the phases that it has, made when asked
    for.

    Or, by phases, for every number that is stored a list of that.
    """
    S = tile.columns.taps
    grid = [taps[i : i + S] for i in range(0, len(taps), S)]
    if tile.by_phases or tile.phases == 1:
        return numbers_of(tile, grid)
    return planes_of(tile, transformed_taps, lambda: grid)


def numbers_of(tile, grid):
    """Column by column, [number] for each of tile.numbers: of the long phases at all points, then of each short one.

    Few registers do not hold the taps until the last number: all rows are made first then.
    """
    in_turn = target.register_count() == 32
    times, made = (rows_in_turn, iter) if in_turn else (times_paired_rows, list)
    rows = [made(different_numbers(tile.columns, row, times)) for row in grid]
    for column in zip(*rows, strict=True):
        for number in made(different_numbers(tile.rows, column, times)):
            yield [number]


def different_numbers(axis, taps, times):
    for f in range(axis.phases):
        numbers = times(lean_filter_matrix(axis, f), taps[f :: axis.stride])
        yield from numbers if f < axis.long_phases else list(numbers)[-1:]


def output_transform(tile, V):
    """transform(source, plane, target, row, column): planes to a vector for each output, so far apart."""
    down, across = lean_output_matrix(tile.rows), lean_output_matrix(tile.columns)

    @traced(types.void)
    def transform(source, plane, target, row, column):
        columns = []
        for _ in range(tile.columns.points):
            sums = []
            for _ in range(tile.rows.points):
                sums.append(load(V, source))
                source = source + plane
            columns.append(times_paired_columns(down, sums))
        for i in range(tile.rows.m):
            for j, output in enumerate(times_paired_columns(across, [sums[i] for sums in columns])):
                store(target + row * i + column * j, output)

    return transform
