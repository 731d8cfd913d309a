"""What strassen_by_filters.py does in registers: a product of a tile, and the sums of x for all seven."""

from numba.core import types

from .column_stores import store_columns
from .epilogue import clamped, limits
from .microkernel import accumulate, panel_rows, vector_type
from .strassen_sums import seven_of
from .tracing import (
    Lanes,
    choose,
    constant,
    first_lanes,
    load,
    load_lanes,
    loop,
    minimum,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
    transpose,
    when,
)


def product_function(real, height, width, added_to, becomes):
    """A Numba function for one product: a tile of height pixels, `width` vectors of filters.

    added_to: the names of the tiles to which it is added. becomes: from its sums and the tiles to what is stored.
    """
    V = vector_type(real)

    @traced(types.void)
    def product(
        a, a_step, b, depth, ahead, ahead_step, t, e, waiting, goes_on, out, out_row, left, bias, residual,
        residual_row, low, high,
    ):  # fmt: skip
        def tile(where):
            return [[load(V, where + V.bytes * (width * i + j)) for j in range(width)] for i in range(height)]

        def keep(where, sums):
            for i, vectors in enumerate(sums):
                for j, vector in enumerate(vectors):
                    store(where + V.bytes * (width * i + j), vector)

        def finish(sums):
            sums = choose(goes_on.differs(0), lambda: added(sums, tile(waiting)), lambda: sums)
            choose(out.differs(0), lambda: put(sums), lambda: keep(waiting, sums))

        def put(sums):
            ends = limits(V, low, high)
            for j, columns in enumerate(zip(*sums)):
                number = load(V, bias + V.bytes * j)
                for i in vector_starts(V, height):
                    some, first = columns[i : i + V.count], V.item_bytes * i
                    store_columns(
                        [column + number for column in some], left - i, out + (out_row * (V.count * j) + first),
                        out_row, select(residual.differs(0), residual + (residual_row * (V.count * j) + first), 0),
                        residual_row, lambda total: clamped(total, ends),
                    )  # fmt: skip

        waits = {"t": t, "e": e}
        sums = accumulate(
            V, height, width, a, V.item_bytes, panel_rows() * V.item_bytes, a_step, b, width * V.bytes, depth, None,
            ahead, ahead_step,
        )  # fmt: skip
        for name in added_to:  # after the loop: sums that begin with these would round each step at their size
            sums = added(sums, tile(waits[name]))
        becomes(sums, Tiles(tile, keep, finish, t, e))

    return product


def vector_starts(V, height):
    """The pixels of a tile where vectors of them begin; the last ends with the tile, perhaps over the one before."""
    return [*range(0, height - V.count, V.count), max(height - V.count, 0)]


def added(one, other):
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


class Tiles:
    """What the sums of a product become: the tiles t and e, and the finished y."""

    def __init__(self, tile, keep, finish, t, e):
        self.tile, self.keep, self.finish, self.t, self.e = tile, keep, finish, t, e

    def keep_t(self, sums):
        self.keep(self.t, sums)

    def keep_e(self, sums):
        self.keep(self.e, sums)

    def keep_t_and_finish_with_e(self, sums):
        self.keep(self.t, sums)
        self.finish(added(sums, self.tile(self.e)))


# Of each product, in their order: to which tiles it is added, and what becomes of it.
STEPS = (
    ((), lambda sums, tiles: tiles.keep_t(sums)),
    (("t",), lambda sums, tiles: tiles.finish(sums)),
    (("t",), lambda sums, tiles: tiles.keep_t(sums)),
    ((), lambda sums, tiles: tiles.keep_e(sums)),
    (("t", "e"), lambda sums, tiles: tiles.finish(sums)),
    (("t",), lambda sums, tiles: tiles.keep_t_and_finish_with_e(sums)),
    (("t",), lambda sums, tiles: tiles.finish(sums)),
)


def sum_pixels_function(real, height):
    """A Numba function sum_pixels(to, panel, tile, x, x_half, x_step, count, tiles, pixels): what the products take of
    `count` channels whose pixels lie side by side; panel, tile: bytes from product to product and from tile to tile.
    """
    kind, lanes = vector_type(real).kind, vector_type(real).count
    piece = Lanes(kind, 1 << (height - 1).bit_length())
    V = Lanes(kind, max(lanes, piece.count))  # a register may hold fewer pixels than a tile is high
    at_once, row = V.count // height, height * V.item_bytes

    def piece_of(vector, number):
        order = range(number * height, number * height + piece.count)
        return shuffle(vector, vector, [lane % V.count for lane in order])

    @traced(types.void)
    def sum_pixels(to, panel, tile, x, x_half, x_step, count, tiles, pixels):
        half = tiles * height
        whole = first_lanes(piece, constant(to, height))

        def channel_by(put):
            def channel(c):
                def some(i):
                    first = i * (at_once * height)
                    here = x + c * x_step + first * V.item_bytes
                    behind, inside = here + half * V.item_bytes, first_lanes(V, half - first)
                    last = first_lanes(V, minimum(half, pixels - half) - first)
                    a11, a12 = (load_lanes(V, where, inside) for where in (here, here + x_half))
                    a21, a22 = (load_lanes(V, where, last) for where in (behind, behind + x_half))
                    sums = seven_of(a11, a12, a21, a22)
                    for number in range(at_once):
                        there = to + c * row + (i * at_once + number) * tile
                        with when(tiles > i * at_once + number):
                            for p, vector in enumerate(sums):
                                put(there + panel * p, piece_of(vector, number))

                loop((tiles + (at_once - 1)) // at_once, some)

            return channel

        # What a piece is longer than a tile's row, the next channel's puts right, and the last may not write.
        loop(count - 1, channel_by(store))
        with when(count > 0):
            channel_by(lambda where, part: store_lanes(where, part, whole))(count - 1)

    return sum_pixels


def sum_rows_function(real, height):
    """A Numba function sum_rows(to, panel, x, x_half, x_second, x_step, count, tiles): S2, S1, S4 and S3 of `count`
    channels whose pixels lie side by side, those of half the pixels side by side; for tiles as high as a vector.

    x_second: how far behind the first half of the pixels the second begins. panel: bytes from sum to sum.
    """
    V = vector_type(real)

    @traced(types.void)
    def sum_rows(to, panel, x, x_half, x_second, x_step, count, tiles):
        def channel(c):
            def tile(i):
                for start in vector_starts(V, height):
                    at = i * (height * V.item_bytes) + start * V.item_bytes
                    first, there = x + c * x_step + at, to + (c * tiles * height) * V.item_bytes + at
                    a11, a12, a21, a22 = (
                        load(V, where) for where in (first, first + x_half, first + x_second, first + x_half + x_second)
                    )
                    for p, vector in enumerate(seven_of(a11, a12, a21, a22)[2:6]):
                        store(there + panel * p, vector)

            loop(tiles, tile)

        loop(count, channel)

    return sum_rows


def seven_of_filters(b11, b12, b21, b22):
    """What the seven products take of the right operand, in their order."""
    t1 = b12 - b11
    t2 = b22 - t1
    return b11, b21, t2, t1, b22, b22 - b12, b21 - t2


def pack_vectors_function(real, group):
    """A Numba function pack_vectors(to, panel, w, w_k, half_filters, half_channels, count): these of `count` vectors of
    channels and one of filters, whose channels lie side by side. group: filters of a panel, which are `panel` bytes
    apart.
    """
    V = vector_type(real)

    @traced(types.void)
    def pack_vectors(to, panel, w, w_k, half_filters, half_channels, count):
        def some(i):
            first = w + i * V.bytes
            begins = (first, first + half_filters, first + half_channels, first + half_filters + half_channels)
            quarters = [transpose([load(V, begin + w_k * k) for k in range(V.count)]) for begin in begins]
            for d, quarter in enumerate(zip(*quarters)):
                there = to + i * (V.count * group * V.item_bytes) + d * group * V.item_bytes
                for p, vector in enumerate(seven_of_filters(*quarter)):
                    store(there + panel * p, vector)

        loop(count, some)

    return pack_vectors
