"""The seven products of strassen.py, each with what becomes of it while its sums are still in registers."""

from numba.core import types

from . import tracing
from .compilation import inlined
from .microkernel import VECTORS, accumulate, panel_rows, vector_type
from .threads import LINE
from .tracing import Lanes, choose, convert, extract, load, maximum, minimum, store, traced, zeros


def product_function(real, lone, becomes):
    """A Numba function for one product of half the channels; becomes: of it, t and e, what is stored to t, e or y.

    Tiles are lists of rows; where there is a lone pixel, its filters are one more row, of one vector.
    """
    V, rows = vector_type(real), panel_rows()
    L = Lanes(V.kind, rows)

    @traced(types.void)
    def product(a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, residual_row, low, high):
        row = VECTORS * V.bytes

        def tile(where):
            sums = [[load(V, where + row * i + V.bytes * j) for j in range(VECTORS)] for i in range(rows)]
            return [*sums, [load(L, where + row * rows)]] if lone else sums

        def keep(where, sums):
            for i, vectors in enumerate(sums):
                for j, vector in enumerate(vectors):
                    store(where + row * i + V.bytes * j, vector)

        def finish(sums):
            least, most = (tracing.broadcast(V, convert(limit, V.scalar)) for limit in (low, high))
            for i in range(rows):
                number = tracing.broadcast(V, load(V.scalar, bias + V.item_bytes * i))
                for j, total in enumerate(with_residual([total + number for total in sums[i]], i)):
                    store(y + y_row * i + V.bytes * j, maximum(least, minimum(most, total)))
            if lone:
                finish_lone(sums[rows][0] + load(L, bias))

        def finish_lone(sums):
            least, most = (convert(limit, V.scalar) for limit in (low, high))
            totals = [extract(sums, i) for i in range(rows)]

            def added():
                return [total + load(V.scalar, residual + residual_row * i + row) for i, total in enumerate(totals)]

            for i, total in enumerate(choose(residual.differs(0), added, lambda: totals)):
                store(y + y_row * i + row, maximum(least, minimum(most, total)))

        def with_residual(totals, i):
            def added():
                return [total + load(V, residual + residual_row * i + V.bytes * j) for j, total in enumerate(totals)]

            return choose(residual.differs(0), added, lambda: totals)

        fresh = [[zeros(V, a) for _ in range(VECTORS)] for _ in range(rows)]
        step = rows * V.item_bytes
        column = (L, zeros(L, a), x, x_step) if lone else None
        sums = accumulate(V, rows, VECTORS, a, V.item_bytes, 0, step, b, b_step, depth, fresh, lone=column)
        becomes([*sums[0], [sums[1]]] if lone else sums, Tiles(tile, keep, finish, t, e))

    return product


class Tiles:
    """What a product may be added to and become: the tiles t and e, and the finished y."""

    def __init__(self, tile, keep, finish, t, e):
        self.tile, self.keep, self.finish, self.t, self.e = tile, keep, finish, t, e

    def added(self, where, sums, sign=1):
        return [
            [a + b if sign > 0 else a - b for a, b in zip(*rows, strict=True)]
            for rows in zip(self.tile(where), sums, strict=True)
        ]


def pair_function(real, lone):
    """A Numba function multiply_pair: the four tiles of `rows` filters and of those half of all further, of two
    neighbouring tiles of pixels, by seven products.

    a: the weights of the first product, a_product bytes before the next one's. x: where the left tile of the first half
    of the channels begins; the other half lies x_half, the right tile x_right, channels x_step further. totals, alone:
    what `sums_function` made, `panel` and lone_panel from sum to sum, `step` and lone_step from channel to channel. t:
    room for two tiles. y_half, y_tile, r_half, r_tile: to the other filters and the other tile.
    """
    V, rows = vector_type(real), panel_rows()
    row = VECTORS * V.bytes
    tile_bytes = rows * row + lone * LINE
    product_1 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.t, p))
    product_2 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.t, p)))
    product_6 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.t, tiles.added(tiles.t, p)))
    product_5 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.e, tiles.added(tiles.t, p)))
    product_3 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.e, p)))
    product_4 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.t, p, -1)))

    def both(p, tiles):
        tiles.keep(tiles.t, tiles.added(tiles.t, p))
        tiles.finish(tiles.added(tiles.e, p))

    product_7 = product_function(real, lone, both)

    @inlined
    def multiply_pair(
        a, a_product, x, x_step, x_half, x_right, totals, panel, step, alone, lone_panel, lone_step, depth, t, y, y_row,
        y_half, y_tile, above, below, residual, residual_row, r_half, r_tile, low, high,
    ):  # fmt: skip
        e, x_lone = t + tile_bytes, x + row
        r12, r21, r22 = 0, 0, 0
        if residual != 0:
            r12, r21, r22 = residual + r_tile, residual + r_half, residual + r_half + r_tile
        product_1(a, x, x_step, x_lone, x_step, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        product_2(
            a, x + x_half, x_step, x_lone + x_half, x_step, depth, t, e, y, y_row, above, residual, residual_row, low,
            high,
        )  # fmt: skip
        a += a_product
        product_6(a, totals + panel, step, alone + lone_panel, lone_step, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        product_5(a, totals, step, alone, lone_step, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        x += x_half + x_right
        product_3(a, x, x_step, x + row, x_step, depth, t, e, y + y_tile, y_row, above, r12, residual_row, low, high)
        a += a_product
        y += y_half
        totals += 2 * panel
        alone += 2 * lone_panel
        product_7(
            a, totals, step, alone, lone_step, depth, t, e, y + y_tile, y_row, below, r22, residual_row, low, high
        )
        a += a_product
        totals += panel
        alone += lone_panel
        product_4(a, totals, step, alone, lone_step, depth, t, e, y, y_row, below, r21, residual_row, low, high)

    return multiply_pair
