"""Storing a tile's columns where its rows are neighbours in memory: transposed on the way out of the registers.

    sums in registers: a vector of filters per pixel       y in NCHW: for each filter, pixels side by side
    pixel 0   [ f0 f1 f2 f3 ... ]
    pixel 1   [ f0 f1 f2 f3 ... ]     interleave          [ f0: pixels 0 1 2 .. 7 | f1: pixels 0 1 2 .. 7 ]
      ...                             ----------->        [ f2: ...               | f3: ...               ]
    pixel 7   [ f0 f1 f2 f3 ... ]     24 shuffles         ...            16 stores of 8 pixels

Why here and not through memory: sums that were stored, read again in squares and transposed then cost 1.3 cycles an
output on a Zen 5, a tenth of a 1x1 convolution of 200 channels.
"""

from .tracing import Lanes, choose, first_lanes, interleave, load, load_lanes, minimum, shuffle, store, store_lanes


def store_columns(rows, left, out, out_column, residual, residual_column, finish, store_whole=store):
    """Write finish(rows + residual): lane l of row i to out + l * out_column + i * the number's size, for i < left.

    rows: vectors of one type. residual: its address, laid out alike with residual_column; 0 if there is none. finish:
    from vector to vector. store_whole: how rows are stored of which none is left out.
    """
    V, count = rows[0].type, len(rows)
    power = 1 << (count - 1).bit_length()
    piece = Lanes(V.kind, min(power, V.count))
    vectors = interleave(rows + [rows[0]] * (power - count))

    def places(i):
        """(column, row) where each piece of vector i belongs."""
        numbers = range(i * V.count, (i + 1) * V.count, piece.count)
        return [(number // power, number % power) for number in numbers]

    def read(column, row, some):
        here = residual + residual_column * column + V.item_bytes * row
        return load(piece, here) if some is None else load_lanes(piece, here, first_lanes(piece, some - row))

    def put(some):
        """The first `some` rows, or all."""

        def added():
            return [v + joined([read(*place, some) for place in places(i)]) for i, v in enumerate(vectors)]

        for i, total in enumerate(choose(residual.differs(0), added, lambda: vectors)):
            finished = finish(total)
            for number, (column, row) in enumerate(places(i)):
                to = out + out_column * column + V.item_bytes * row
                part = shuffle(finished, finished, range(number * piece.count, (number + 1) * piece.count))
                if some is None:
                    store_whole(to, part)
                else:
                    store_lanes(to, part, first_lanes(piece, some - row))

    if count == power:
        choose(left >= count, lambda: put(None), lambda: put(left))
    else:
        put(minimum(left, count))


def joined(parts):
    """One vector of them all; a power of two of vectors alike."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [shuffle(a, b, range(2 * n)) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]
