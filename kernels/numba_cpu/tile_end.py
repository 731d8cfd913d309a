"""How a register tile ends, row by row: what few_channels.py and pixels_in_place.py share.

sums in registers ---residual, clamp---> y            of each row that is one of the outputs
                  ---to memory, row after row: residual, activation---> y            so that it is written out once
"""

from .epilogue import CLAMP, activated, clamped, limits
from .tracing import choose, load, loop, select, store, when


def finish_rows(sums, left, activation, scratch, with_residual, put):
    """Finish and store the rows of a tile.

    sums: of each row its vectors. left: how many rows are outputs, perhaps more than there are. activation: (kind, low,
    high, slope). scratch: room for all sums. with_residual, put: of a row's vectors and its number.
    """
    rows, vectors, V = len(sums), len(sums[0]), sums[0][0].type
    kind, low, high, slope = activation

    def clamp():
        ends = limits(V, low, high)
        for i, row in enumerate(sums):
            with when(left > i):
                put([clamped(total, ends) for total in with_residual(row, i)], i)

    def others():
        for i, row in enumerate(sums):
            for j, total in enumerate(row):
                store(scratch + V.bytes * (vectors * i + j), total)

        def one(i):
            totals = [load(V, scratch + V.bytes * (i * vectors + j)) for j in range(vectors)]
            put(activated(with_residual(totals, i), kind, low, high, slope), i)

        loop(select(left < rows, left, rows), one)

    choose(kind.equals(CLAMP), clamp, others)
