"""Winograd's transforms as straight lines of vector instructions: one lane is one tile.

    input     B^T d B   (m+2)^2 pixels of a tile     -> (m+2)^2 numbers, one for each of the multiplications
    filter    G g G^T   9 taps                       -> (m+2)^2 numbers
    output    A^T M A   (m+2)^2 sums over channels   -> m^2 outputs

Each is a small matrix from the left and from the right: first every row, then every column. The matrices' rows
(for A^T: columns) come in pairs for the points p and -p, equal in the even and opposite in the odd places:

    row(+p) = even + odd      row(-p) = even - odd        so `even` and `odd` are computed once: F(4,3)'s B^T costs
                                                          12 multiply-adds for 6 inputs instead of 20

A row of a tile is 4 (6, 8) neighbouring floats at an address of its own: 8 tiles are loaded as 8 quads, two to a
register, and a 4 x 4 transpose inside each half of the register makes of them 4 vectors with a tile per lane. So the
tiles of a vector may lie anywhere, ends of rows cost nothing, and no load reads past a tile.
"""

from numba.core import types

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
    select,
    shuffle,
    store,
    traced,
    transpose,
    zeros,
)
from .winograd_matrices import HALF, ONE, filter_matrix, input_matrix, output_matrix

QUAD = 4


# ---- small matrices times lists of vectors ----


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
    """Index pairs of the points p, -p among `count` points that begin with 0 and end with infinity."""
    return [(i, i + 1) for i in range(1, count - 1, 2)]


def times_paired_rows(matrix, values):
    """matrix @ values, where rows 1 and 2, 3 and 4, ... belong to the points p and -p."""
    result = [None] * len(matrix)
    for plus, minus in pairs(len(matrix)):
        both = list(zip(matrix[plus], matrix[minus], strict=True))
        even = combine([(a + b) * HALF for a, b in both], values)
        odds = [(a - b) * HALF for a, b in both]
        lead = next(c for c in reversed(odds) if c)
        odd = combine([c / lead for c in odds], values)
        if lead == ONE:
            result[plus], result[minus] = even + odd, even - odd
        else:
            result[plus] = fma(odd, constant(odd, float(lead)), even)
            result[minus] = fma(odd, constant(odd, -float(lead)), even)
    return [combine(row, values) if done is None else done for row, done in zip(matrix, result, strict=True)]


def times_paired_columns(matrix, values):
    """matrix @ values, where columns 1 and 2, 3 and 4, ... belong to the points p and -p."""
    matrix, values = [list(row) for row in matrix], list(values)
    for plus, minus in pairs(len(values)):
        a, b = values[plus], values[minus]
        values[plus], values[minus] = a + b, a - b
        for row in matrix:
            c, d = row[plus], row[minus]
            row[plus], row[minus] = (c + d) * HALF, (c - d) * HALF
    return [combine(row, values) for row in matrix]


# ---- quads of many addresses as vectors ----


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


# ---- the three transforms; planes are numbered column by column, each `plane` bytes after the last ----


def tile_addresses(V, base, table):
    """base + table[i] for every lane i; the table holds 64-bit byte offsets."""
    return [base + load(I64, table + I64.bytes * i) for i in range(V.count)]


def spread_rows(m, V):
    """spread(source, source_row, source_channel, channels, top, bottom, left, right, target, pitch): the pixels of
    V.count tiles in a row, one tile per lane: pixel (i, j) of every tile to the vector at
    target + (i * (m + 2) + j) * pitch, and so on for `channels` channels.

    Zeros stand for rows outside top .. bottom-1 and columns outside left .. right-1, which are not read.
    """
    size = m + 2

    @traced(types.void)
    def spread(source, source_row, source_channel, channels, top, bottom, left, right, target, pitch):
        masks = [lanes_between(V, constant(left, k * V.count), left, right) for k in range(m + 1)]

        def write(to, row, columns):
            for j, column in enumerate(columns):
                store(to + pitch * (row * size + j), column)

        def copy(here, to, row):
            *pixels, beyond = [load_lanes(V, here + V.bytes * k, mask) for k, mask in enumerate(masks)]
            for k in range(m + 1):
                prefetch(here + ahead + V.bytes * k)
            columns = every(pixels, m)
            following = [shuffle(columns[j], beyond, [*range(1, V.count), V.count + j]) for j in range(2)]
            write(to, row, columns + following)

        def blank(to, row):
            write(to, row, [zeros(V, source)] * size)

        def channel(c):
            here, to = source + source_channel * c, target + pitch * (size * size) * c
            loop(top, lambda i: blank(to, i))
            loop(bottom - top, lambda i: copy(here + source_row * (i + top), to, i + top))
            loop(constant(top, size) - bottom, lambda i: blank(to, i + bottom))

        ahead = source_channel * channels
        loop(channels, channel)

    return spread


def input_transform(m, V):
    """transform(source, pitch, target, plane): what spread_rows has written, at `source`, to planes."""
    matrix, size = input_matrix(m), m + 2

    @traced(types.void)
    def transform(source, pitch, target, plane):
        def pixels(i):
            return [load(V, source + pitch * (i * size + j)) for j in range(size)]

        rows = [times_paired_rows(matrix, pixels(i)) for i in range(size)]
        for j in range(size):
            for value in times_paired_rows(matrix, [row[j] for row in rows]):
                store(target, value)
                target = target + plane

    return transform


def filter_transform(m, V, vectors=1, store_vector=store):
    """transform(base, step, table, target, plane, turned): nine taps at base + table[lane] to their planes.

    And so on for `vectors` vectors that begin `step` bytes apart; all of a plane's are stored together. turned: whether
    the taps lie there last first.
    """

    @traced(types.void)
    def transform(base, step, table, target, plane, turned):
        addresses = tile_addresses(V, base, table)

        def taps_of(i):
            taps = load_rows(V, [a + step * i for a in addresses], 9)
            return [select(turned, last, first) for first, last in zip(taps, reversed(taps), strict=True)]

        taps = [taps_of(i) for i in range(vectors)]
        for values in zip(*(filter_planes(m, nine) for nine in taps), strict=True):
            for i, value in enumerate(values):
                store_vector(target + V.bytes * i, value)
            target = target + plane

    return transform


def side_by_side_filter_transform(m, V):
    """transform(base, row, column, target, plane): the same of filters that lie side by side; tap (r, s) of them at
    base + r * row + s * column.
    """

    @traced(types.void)
    def transform(base, row, column, target, plane):
        taps = [load(V, base + row * r + column * s) for r in range(3) for s in range(3)]
        for value in filter_planes(m, taps):
            store(target, value)
            target = target + plane

    return transform


def filter_planes(m, taps):
    """Of nine taps, row by row: a value for every plane."""
    matrix = filter_matrix(m)
    rows = [times_paired_rows(matrix, taps[3 * r : 3 * r + 3]) for r in range(3)]
    return [value for j in range(m + 2) for value in times_paired_rows(matrix, [row[j] for row in rows])]


def output_transform(m, V):
    """transform(source, plane, target, pitch): planes to m rows, `pitch` apart, of a vector for each of m columns."""
    matrix, size = output_matrix(m), m + 2

    @traced(types.void)
    def transform(source, plane, target, pitch):
        columns = []
        for _ in range(size):
            sums = []
            for _ in range(size):
                sums.append(load(V, source))
                source = source + plane
            columns.append(times_paired_columns(matrix, sums))
        for i in range(m):
            for j, output in enumerate(times_paired_columns(matrix, [column[i] for column in columns])):
                store(target + pitch * i + V.bytes * j, output)

    return transform
