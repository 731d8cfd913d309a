"""The sums that strassen_twice.py multiplies: the outer level's of pixels; of weights, ahead or beside products."""

from functools import partial

import numpy as np
from numba.core import types

from . import tracing
from .call import CALL
from .compilation import inlined
from .microkernel import VECTORS, panel_rows, vector_type
from .strassen_sums import CHANNELS, PRODUCTS, pack_rows_function, seven_of
from .threads import LINE, lines, task_loop
from .tracing import first_lanes, interleave, load, load_lanes, loop, store, traced
from .vectors import record_at

QUARTERS = 4  # of the channels, and of the filters
OUTER, INNER = 4 * QUARTERS, 4  # rows of sums: of the outer sums the quarters; and the inner of one outer product


def row_bytes(real, lone):
    """Of a channel of each quarter, all sums: an odd number of lines, so that channels share no place of the caches."""
    V = vector_type(real)
    numbers = (OUTER + INNER) * VECTORS * V.bytes + lone * (OUTER * LINE + INNER * V.item_bytes)
    return (-(-numbers // LINE) | 1) * LINE


def sums_twice_function(real, lone):
    """A Numba function add_pixels(to, x, x_tile, x_half, x_step, count): the quarters of -T2, of -T1, of T3 and of -T4
    of the outer halves, for `count` channels of each quarter. x_half: to the second half of the channels.
    """
    V, tile = vector_type(real), VECTORS * vector_type(real).bytes
    row = row_bytes(real, lone)

    @traced(types.void)
    def add_pixels(to, x, x_tile, x_half, x_step, count):
        def sums(type_, here, there):
            halves = (here, here + 2 * x_tile, here + x_half, here + x_half + 2 * x_tile)
            for quarter, offset in enumerate((0, x_tile, x_half // 2, x_half // 2 + x_tile)):
                b11, b12, b21, b22 = (load(type_, half + offset) for half in halves)
                t1 = b11 - b12
                t2 = b22 + t1
                for i, total in enumerate((-t2, t1, b22 - b12, b21 - t2)):
                    store(there + (tile + lone * LINE) * (4 * i + quarter), total)

        def channel(c):
            here, there = x + c * x_step, to + c * row
            for j in range(VECTORS):
                sums(V, here + V.bytes * j, there + V.bytes * j)
            if lone:
                sums(V.scalar, here + tile, there + tile)

        loop(count, channel)

    return add_pixels


def outer_operand(q, number):
    """The four quarters of what outer product q takes of the left operand. number(i, j): of the i-th quarter of the
    filters and the j-th of the channels.
    """

    def half_of(i, j):
        return [number(2 * i + k, 2 * j + c) for k in (0, 1) for c in (0, 1)]

    halves = [half_of(i, j) for i in (0, 1) for j in (0, 1)]
    return [outer_seven(*numbers)[q] for numbers in zip(*halves)]


def outer_seven(a11, a12, a21, a22):
    """What the outer products take of the left operand, in their order; those of -T2 and -T1 with a minus."""
    s1 = a21 + a22
    return a11, a12, a11 - s1, -s1, a11 + a12 - s1, a11 - a21, a22


# Single calls make the left operands of a panel, 8 filters of each quarter and an outer product, while they multiply:
# the rows of outer products 2 to 5 two panels before, and from these or from w its seven inner operands one before.

FIRST_SUMMED, TERMS = 2, (0b1101, 0b1100, 0b1111, 0b0101)  # bit by bit which quarters: A11 + A12 - (A21 + A22)


def sum_rows(V, step, to, w, w_k, half_filters, half_channels, row_vectors, terms):
    """Traced: at each of `depth` steps a share of `rows` rows, of row_vectors each, of an outer product's operand.

    w: the first of these rows in A11; to: the first sum's.
    """
    share = 2 * panel_rows() // V.count
    present = [first_lanes(V, (terms >> i & 1) * V.count) for i in range(4)]
    for number in (step * share + i for i in range(share)):
        row = number // row_vectors
        at = (number - row * row_vectors) * V.bytes
        here = w + row * w_k + at
        places = here, here + half_channels, here + half_filters, here + half_filters + half_channels
        a11, a12, a21, a22 = (load_lanes(V, place, mask) for place, mask in zip(places, present))
        store(to + row * summed_row(row_vectors * V.bytes) + at, a11 + a12 - (a21 + a22))


def summed_row(row_bytes):
    """Bytes from row to row of such sums: a line more, or all would begin at the same places of the caches."""
    return row_bytes + LINE


def panel_functions(real):
    """Numba functions of a range of filters, of `count` panels for each outer product q.

    made_places(call, made): where a single call's rows and panels lie, behind what it has `made`.
    place(call, panels, q, i, count): where panel i lies. beside(call, makes, panels, w, summed, q, i, count): what its
    products do in a single call for those that follow: is a panel packed? and pair_function's `packing`; are rows
    summed? and its `summing`. pack_first(call, panels, w): before all others. summed: where such rows lie.
    """
    item, vector_bytes, rows = np.dtype(real).itemsize, vector_type(real).bytes, panel_rows()
    pack_rows, row_from_row = pack_rows_function(real), inlined(summed_row)

    @inlined
    def product_bytes(call):
        return call.Cg // 4 * rows * item

    @inlined
    def made_places(call, made):
        summed = made + LINE
        return summed, summed + 2 * rows * row_from_row(call.Cg // 2 * item)

    @inlined
    def place(call, panels, q, i, count):
        number = (q * count + i) % 2 if call.ring else i * PRODUCTS + q
        return panels + number * (PRODUCTS * product_bytes(call))

    @inlined
    def following(q, i, count):
        return (q, i + 1) if i + 1 < count else (q + 1, 0)

    @inlined
    def packing(call, to, w, summed, q, i):
        half_filters, half_channels = call.Kg // 2 * call.w_k, call.Cg // 2 * item
        if FIRST_SUMMED <= q < FIRST_SUMMED + len(TERMS):
            row = row_from_row(half_channels)
            return to, summed, row, rows * row, half_channels // 2
        begin = w + i * rows * call.w_k
        begin += 0 if q == 0 else half_channels if q == 1 else half_filters + half_channels  # A11, A12, A22
        return to, begin, call.w_k, half_filters // 2, half_channels // 2

    @inlined
    def summing(call, summed, w, q, i):
        half_filters, half_channels = call.Kg // 2 * call.w_k, call.Cg // 2 * item
        terms, begin = TERMS[min(max(q - FIRST_SUMMED, 0), len(TERMS) - 1)], w + i * rows * call.w_k
        vectors, other_rows = half_channels // vector_bytes, rows * row_from_row(half_channels)
        return summed, begin, call.w_k, half_filters, half_channels, vectors, terms, other_rows, half_filters // 2

    @inlined
    def beside(call, makes, panels, w, summed, q, i, count):
        q, i = following(q, i, count)
        packs, packed = makes and q < PRODUCTS, packing(call, place(call, panels, q, i, count), w, summed, q, i)
        q, i = following(q, i, count)
        sums = makes and FIRST_SUMMED <= q < FIRST_SUMMED + len(TERMS)
        return packs, packed, sums, summing(call, summed, w, q, i)

    @inlined
    def pack_first(call, panels, w):
        filters, channels = call.Kg // 4 * call.w_k, call.Cg // 4
        pack_rows(panels, product_bytes(call), w, call.w_k, filters, channels * item, channels // CHANNELS)

    return made_places, place, beside, pack_first


def staged_bytes(dtype_name):
    """Of a worker: one vector's channels of all quarters of a panel."""
    return lines(QUARTERS**2 * panel_rows() * vector_type(dtype_name).bytes)


def pack_vectors_function(dtype_name):
    """A Numba function pack_vectors(to, panel, w, w_k, quarter_filters, quarter_channels, count, staged): all 49 panels
    of `rows` filters, count vectors of their channels, which are neighbours. staged: room for one of every quarter.
    """
    V, rows = vector_type(dtype_name), panel_rows()

    @traced(types.void)
    def pack_vectors(to, panel, w, w_k, quarter_filters, quarter_channels, count, staged):
        def some(channels):
            here, there = w + channels * V.bytes, to + channels * (rows * V.bytes)

            def stage(i):
                def quarter(j):
                    begin = here + i * quarter_filters + j * quarter_channels
                    for k, vector in enumerate(interleave([load(V, begin + w_k * k) for k in range(rows)])):
                        store(staged + ((i * QUARTERS + j) * rows + k) * V.bytes, vector)

                loop(tracing.constant(w, QUARTERS), quarter)

            loop(tracing.constant(w, QUARTERS), stage)

            def outer(q, j):
                vector = staged + j * V.bytes
                four = outer_operand(q, lambda i, k: load(V, vector + (i * QUARTERS + k) * rows * V.bytes))
                for p, total in enumerate(seven_of(*four)):
                    store(there + panel * (q * PRODUCTS + p) + j * V.bytes, total)

            for q in range(PRODUCTS):
                loop(tracing.constant(w, rows), partial(outer, q))

        loop(count, some)

    return pack_vectors


def build_pack(dtype_name):
    """Task: the panels of `rows` filters and of those a quarter, a half and three quarters of all further. call.w: the
    weights, call.y: the panels, call.workspace: staged_bytes of every worker.
    """
    rows, item = panel_rows(), np.dtype(dtype_name).itemsize
    V, step = vector_type(dtype_name), staged_bytes(dtype_name)
    W, pack_vectors = V.count, pack_vectors_function(dtype_name)

    @traced(types.void)
    def pack_number(to, panel, w, quarter_filters, quarter_channels):
        """All 49 of one filter and channel."""
        for q in range(PRODUCTS):
            four = outer_operand(q, lambda i, j: load(V.scalar, w + quarter_filters * i + quarter_channels * j))
            for p, number in enumerate(seven_of(*four)):
                store(to + panel * (q * PRODUCTS + p), number)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        depth, panels = call.Cg // 4, call.Kg // 4 // rows
        panel, quarter_filters, quarter_channels = depth * rows * item, call.Kg // 4 * call.w_k, depth * call.w_c
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        to, done = call.y + index * (PRODUCTS * PRODUCTS * panel), 0
        if call.w_c == item:
            staged = call.workspace + worker * step
            pack_vectors(to, panel, w, call.w_k, quarter_filters, quarter_channels, depth // W, staged)
            done = depth // W * W
        for c in range(done, depth):
            for k in range(rows):
                here, there = w + k * call.w_k + c * call.w_c, to + (c * rows + k) * item
                pack_number(there, panel, here, quarter_filters, quarter_channels)

    return task_loop(pack)
