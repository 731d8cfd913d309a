"""The seven products of strassen.py, each with what becomes of it while its sums are still in registers."""

from numba.core import types

from . import tracing
from .microkernel import VECTORS, accumulate, panel_rows, vector_type
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
