"""The seven products of strassen.py, each with what becomes of it while its sums are still in registers."""

import numpy as np
from numba.core import types

from . import target
from .compilation import inlined
from .epilogue import clamped, limits
from .microkernel import AHEAD, VECTORS, accumulate, panel_rows, vector_type
from .strassen_sums import CHANNELS, PRODUCTS, pack_few, spaced_row, sums_made
from .threads import LINE
from .tracing import (
    Lanes,
    broadcast,
    choose,
    constant,
    extract,
    load,
    load_strided,
    prefetch,
    store,
    traced,
    when,
)


def product_function(real, lone, becomes, makes=None, packs=(), by_rows=False, differs=False, fetches=False):
    """A Numba function for one product of half the channels; becomes: of it, t and e, what is stored to t, e or y.
    by_rows: whether weights lie in rows (spaced_row), not in panels. fetches: whether y's lines are fetched ahead.
    makes: of a number of this operand and its `Quarters`, sums of the same channels; such a product's arguments say
    where these and those lie. packs: steps of packing the next filters' weights (strassen_sums.py), done beside it,
    `depth` // CHANNELS times each; such a product's further arguments are pack_few's. differs: whether what lies at
    `less` is subtracted from the right operand; else `less` and the three behind it say nothing. bias, residual, also:
    0 if there is none. also: a tile like the residual's, to which what is finished is added before all else.

    Tiles are lists of rows; where there is a lone pixel, its filters are one more row, of one vector.
    """
    V, rows = vector_type(real), panel_rows()
    L = Lanes(V.kind, rows)

    def emit(
        a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, also, residual_row, low, high, soon, soon_step,
        less=None, aside=None, pack=None,
    ):  # fmt: skip
        row = VECTORS * V.bytes

        def tile(where):
            sums = [[load(V, where + row * i + V.bytes * j) for j in range(VECTORS)] for i in range(rows)]
            return [*sums, [load(L, where + row * rows)]] if lone else sums

        def keep(where, sums):
            for i, vectors in enumerate(sums):
                for j, vector in enumerate(vectors):
                    store(where + row * i + V.bytes * j, vector)

        def keep_sum(where, sums):
            """Of these and what lies there: one by one, or registers do not suffice for both."""
            for i, vectors in enumerate(sums):
                for j, vector in enumerate(vectors):
                    there = where + row * i + V.bytes * j
                    store(there, load(vector.type, there) + vector)

        def biases():
            sums = [[broadcast(V, load(V.scalar, bias + V.item_bytes * i))] * VECTORS for i in range(rows)]
            return [*sums, [load(L, bias)]] if lone else sums

        def add_to_another(sums):
            for i in range(rows):
                for j, total in enumerate(sums[i]):
                    there = also + residual_row * i + V.bytes * j
                    store(there, load(V, there) + total)
            if lone:
                column = load_strided(L, also + row, residual_row) + sums[rows][0]
                for i in range(rows):
                    store(also + residual_row * i + row, extract(column, i))

        def residuals():
            sums = [[load(V, residual + residual_row * i + V.bytes * j) for j in range(VECTORS)] for i in range(rows)]
            return [*sums, [load_strided(L, residual + row, residual_row)]] if lone else sums

        def clamp(sums):
            return [[clamped(total, limits(total.type, low, high)) for total in vectors] for vectors in sums]

        def finish(sums):
            with when(also.differs(0)):
                add_to_another(sums)
            sums = choose(bias.differs(0), lambda: added(biases(), sums), lambda: sums)
            sums = choose(residual.differs(0), lambda: added(residuals(), sums), lambda: sums)
            bounded = low.differs(-np.inf) | high.differs(np.inf)  # most are not, and each limit is a cycle a vector
            sums = choose(bounded, lambda: clamp(sums), lambda: sums)
            for i in range(rows):
                for j, total in enumerate(sums[i]):
                    store(y + y_row * i + V.bytes * j, total)
                if lone:
                    store(y + y_row * i + row, extract(sums[rows][0], i))

        def fetch_tile(d):
            """Two lines of y at every step, of one row after the other, and then of all further."""
            lines = -(-(row + lone * V.item_bytes + LINE - V.item_bytes) // LINE)  # at most, wherever a row begins
            here = y + y_row * (d % rows) + 2 * LINE * (d // rows % -(-lines // 2))
            prefetch(here, to_write=True)
            prefetch(here + LINE, to_write=True)

        def beside(d, here, columns):
            if aside:
                aside(d, here, columns)
            if fetches:
                fetch_tile(d)

        def steps(first, count, sums=None, aside=beside):
            """So many from that one on, added to these sums."""
            column = (L, sums and sums[1], x + x_step * first, x_step) if lone else None
            sums = sums and (sums[0] if lone else sums)
            a_row, a_step = V.item_bytes, rows * V.item_bytes
            if by_rows:
                a_row, a_step = spaced_row(depth, V.item_bytes), V.item_bytes
            return accumulate(
                V, rows, VECTORS, a + a_step * first, a_row, 0, a_step,
                b + b_step * first, b_step, count, sums, soon + soon_step * first, soon_step, lone=column, aside=aside,
                less=behind(first) if differs else None,
            )  # fmt: skip

        def behind(first):
            b, b_step, x, x_step = less
            return b + b_step * first, b_step, x + x_step * first, x_step

        sums, done = None, constant(a, 0)
        for number in packs:
            sums = steps(done, depth // CHANNELS, sums, lambda d, here, columns, number=number: pack(number, d))
            done += depth // CHANNELS
        sums = steps(done, depth - done, sums)
        becomes([*sums[0], [sums[1]]] if lone else sums, Tiles(tile, keep, keep_sum, finish, t, e))

    @traced(types.void)
    def product(
        a, b, b_step, x, x_step, less, less_step, less_x, less_x_step, depth, t, e, y, y_row, bias, residual, also,
        residual_row, low, high, soon, soon_step,
    ):  # fmt: skip
        emit(
            a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, also, residual_row, low, high, soon,
            soon_step, (less, less_step, less_x, less_x_step),
        )  # fmt: skip

    @traced(types.void)
    def making_product(
        a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, also, residual_row, low, high, right, down,
        totals, panel, step, alone, lone_panel, lone_step,
    ):  # fmt: skip
        def make(d, here, columns):
            for j, own in enumerate(columns):
                there = totals + step * d + V.bytes * j
                makes(own, Quarters(V, here + V.bytes * j, right, down, there, panel))
            if lone:
                here, there = here + VECTORS * V.bytes, alone + lone_step * d
                makes(load(V.scalar, here), Quarters(V.scalar, here, right, down, there, lone_panel))

        emit(
            a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, also, residual_row, low, high, a + AHEAD,
            rows * V.item_bytes, aside=make,
        )  # fmt: skip

    @traced(types.void)
    def packing_product(
        a, b, b_step, x, x_step, less, less_step, less_x, less_x_step, depth, t, e, y, y_row, bias, residual, also,
        residual_row, low, high, soon, soon_step, to, panel_bytes, w, w_k, half_filters, half_channels,
    ):  # fmt: skip
        def pack(number, i):
            there, here = to + i * (CHANNELS * rows * V.item_bytes), w + i * (CHANNELS * V.item_bytes)
            pack_few(V, number, there, panel_bytes, here, w_k, half_filters, half_channels)

        emit(
            a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, also, residual_row, low, high, soon,
            soon_step, (less, less_step, less_x, less_x_step), pack=pack,
        )  # fmt: skip

    if packs:
        return packing_product
    return making_product if makes else product


class Tiles:
    """What a product may be added to and become: the tiles t and e, and the finished y."""

    def __init__(self, tile, keep, keep_sum, finish, t, e):
        self.tile, self.keep, self.keep_sum, self.finish, self.t, self.e = tile, keep, keep_sum, finish, t, e


def added(one, other, sign=1):
    return [[a + b if sign > 0 else a - b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


class Quarters:
    """Numbers of the right operand's other quarters, as they lie from one that a product has read, and their sums'."""

    def __init__(self, type_, here, right, down, there, apart):
        self.type, self.here, self.right, self.down, self.there, self.apart = type_, here, right, down, there, apart

    def number(self, offset):
        return load(self.type, self.here + offset)

    def kept(self, i):
        return load(self.type, self.there + self.apart * i)

    def keep(self, i, total):
        store(self.there + self.apart * i, total)


def second_sum(b11, quarters):
    """T2; and T1, which is returned."""
    t1 = quarters.number(quarters.right) - b11
    quarters.keep(0, quarters.number(quarters.right + quarters.down) - t1)
    return t1


def first_sums(b11, quarters):
    """T2 and T1."""
    quarters.keep(1, second_sum(b11, quarters))


def other_sums(b21, quarters):
    """T3 and T4, where T2 is made."""
    quarters.keep(2, quarters.number(quarters.right) - quarters.number(quarters.right - quarters.down))
    quarters.keep(3, quarters.kept(0) - b21)


def packs_beside() -> bool:
    """Are there registers for packing weights beside multiply-adds?"""
    return target.register_count() == 32


def fetches_y() -> bool:
    """Are steps long enough to fetch two lines besides? With 16 registers, 12 multiply-adds and 7 loads each, not."""
    return target.register_count() == 32


@inlined
def next_weights(a, a_product):
    """Where the weights lie that each product wants soon."""
    a += AHEAD
    return (
        a, a + a_product, a + 2 * a_product, a + 3 * a_product, a + 4 * a_product, a + 5 * a_product, a + 6 * a_product
    )  # fmt: skip


def pair_function(real, lone, by_rows=False):
    """A Numba function multiply_pair: the four tiles of `rows` filters and of those half of all further, of two
    neighbouring tiles of pixels, by seven products.

    makes: are the sums to be made by the first two products? Else they are there. packs: are weights to be packed
    behind those of the seven products? packing: these weights, and from filter to filter, to the other halves of the
    filters and of the channels. a: the weights of the first product, a_product bytes before the next one's. x: where
    the left tile of the first half of the channels begins; the other half lies x_half, the right tile x_right, channels
    x_step further. totals, alone: T2 and, if they are made, T1, T3 and T4, and those of the lone pixels, `panel` and
    lone_panel from sum to sum, `step` and lone_step from channel to channel. t: room for two tiles. y_half, y_tile,
    r_half, r_tile: to the other filters and the other tile. above, below, residual, also: 0 if none.
    by_rows: as in product_function, for the seven; then nothing is packed.
    soon: of each product what to fetch ahead, a line `soon_step` bytes behind another at every step.
    """
    V, rows = vector_type(real), panel_rows()
    row, beside, differs = VECTORS * V.bytes, packs_beside(), sums_made() == 1
    tile_bytes = rows * row + lone * LINE

    def product(becomes, makes=None, packs=(), differs=False):
        fetches = fetches_y() and becomes in (finish_t, finish_e, both, finish_less)
        return product_function(real, lone, becomes, makes, packs, by_rows, differs, fetches)

    def keep_first(p, tiles):
        tiles.keep(tiles.t, p)

    def add_to_t(p, tiles):
        tiles.keep_sum(tiles.t, p)

    def keep_e(p, tiles):
        tiles.keep(tiles.e, added(tiles.tile(tiles.t), p))

    def finish_t(p, tiles):
        tiles.finish(added(tiles.tile(tiles.t), p))

    def finish_e(p, tiles):
        tiles.finish(added(tiles.tile(tiles.e), p))

    def both(p, tiles):
        tiles.keep_sum(tiles.t, p)
        finish_e(p, tiles)

    def finish_less(p, tiles):
        tiles.finish(added(tiles.tile(tiles.t), p, -1))

    product_1, product_2, product_6, product_3 = (product(f) for f in (keep_first, finish_t, add_to_t, finish_e))
    product_5, product_7, product_4 = (product(f, differs=differs) for f in (keep_e, both, finish_less))
    making_1 = product(keep_first, second_sum if differs else first_sums)
    making_2 = product(finish_t, other_sums)
    packing_6, packing_5 = product_6, product_5
    if beside:
        packing_6 = product(add_to_t, packs=(0, 1, 2))
        packing_5 = product(keep_e, packs=(3, 4), differs=differs)

    @inlined
    def multiply_pair(
        makes, packs, packing, a, a_product, x, x_step, x_half, x_right, totals, panel, step, alone, lone_panel,
        lone_step, depth, t, y, y_row, y_half, y_tile, above, below, residual, also, residual_row, r_half, r_tile, low,
        high, soon, soon_step,
    ):  # fmt: skip
        e, lower, right = t + tile_bytes, x + x_half, x + x_half + x_right
        r12, r21, r22, also_12, also_21, also_22 = 0, 0, 0, 0, 0, 0
        if residual != 0:
            r12, r21, r22 = residual + r_tile, residual + r_half, residual + r_half + r_tile
        if also != 0:
            also_12, also_21, also_22 = also + r_tile, also + r_half, also + r_half + r_tile
        t2 = totals, step, alone, lone_step
        t1, less_1 = (totals + panel, step, alone + lone_panel, lone_step), t2
        t3, less_3 = (totals + 2 * panel, step, alone + 2 * lone_panel, lone_step), t2
        t4, less_4 = (totals + 3 * panel, step, alone + 3 * lone_panel, lone_step), t2
        if differs:
            t1, t3, t4 = (right, x_step, right + row, x_step), t2, t2
            less_3, less_4 = (x, x_step, x + row, x_step), (lower, x_step, lower + row, x_step)
        if makes:
            making_1(
                a, x, x_step, x + row, x_step, depth, t, e, 0, 0, 0, 0, 0, 0, low, high,
                x_right, x_half, totals, panel, step, alone, lone_panel, lone_step,
            )  # fmt: skip
        else:
            product_1(
                a, x, x_step, x + row, x_step, *t2, depth, t, e, 0, 0, 0, 0, 0, 0, low, high, soon[0], soon_step
            )  # fmt: skip
        a += a_product
        if makes and not differs:
            making_2(
                a, lower, x_step, lower + row, x_step, depth, t, e, y, y_row, above, residual, also,
                residual_row, low, high, x_right, x_half, totals, panel, step, alone, lone_panel, lone_step,
            )  # fmt: skip
        else:
            product_2(
                a, lower, x_step, lower + row, x_step, *t2, depth, t, e, y, y_row, above, residual, also,
                residual_row, low, high, soon[1], soon_step,
            )  # fmt: skip
        a += a_product
        if beside and packs:
            to, (w, w_k, half_filters, half_channels) = a + (PRODUCTS - 2) * a_product, packing
            packing_6(
                a, *t2, *t2, depth, t, e, 0, 0, 0, 0, 0, 0, low, high, soon[2], soon_step,
                to, a_product, w, w_k, half_filters, half_channels,
            )  # fmt: skip
            packing_5(
                a + a_product, *t1, *less_1, depth, t, e, 0, 0, 0, 0, 0, 0, low, high, soon[3], soon_step,
                to, a_product, w, w_k, half_filters, half_channels,
            )  # fmt: skip
        else:
            product_6(a, *t2, *t2, depth, t, e, 0, 0, 0, 0, 0, 0, low, high, soon[2], soon_step)
            product_5(a + a_product, *t1, *less_1, depth, t, e, 0, 0, 0, 0, 0, 0, low, high, soon[3], soon_step)
        a += 2 * a_product
        product_3(
            a, right, x_step, right + row, x_step, *t2, depth, t, e, y + y_tile, y_row, above, r12, also_12,
            residual_row, low, high, soon[4], soon_step,
        )  # fmt: skip
        a += a_product
        y += y_half
        product_7(
            a, *t3, *less_3, depth, t, e, y + y_tile, y_row, below, r22, also_22, residual_row, low, high, soon[5],
            soon_step,
        )  # fmt: skip
        a += a_product
        product_4(
            a, *t4, *less_4, depth, t, e, y, y_row, below, r21, also_21, residual_row, low, high, soon[6], soon_step
        )  # fmt: skip

    return multiply_pair
