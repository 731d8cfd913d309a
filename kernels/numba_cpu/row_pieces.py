"""Neighbouring output pixels gathered into one vector, although they lie in several rows of x or stick out of it.

    pixels      12 13 | 14 15 16 17 | 18 19        of a map of 4 columns under one tap: pieces of three rows of x
    a vector    [ a  b | c  d  e  f |  g  h ]

A piece is read by one masked load, from where the vector's first lane would lie if the whole vector lay in that
piece's row: its lanes then arrive in their places, the others are zero and their memory is not touched, and so are
the lanes of padding. The first piece is stored, the others are merged into what is there. With stride 2, two loads and
a shuffle do the same. Where a piece begins and ends is worked out once and serves all channels.

Why so: maps of 7 to 28 columns hardly ever fill a vector of 16 from one row. Measured on two Zen 5 cores: packing takes
half a cycle a number for 1x1 and 1.3 for 3x3 with stride 2 (3 where rows have 7 columns), and blocked_by_filters 0.66
ms instead of 1.55 on 128 -> 128 channels of 56 x 56 with stride 2, whose numbers would be copied one by one.
"""

from numba.core import types

from .compilation import inlined
from .microkernel import vector_type
from .tracing import (
    Lanes,
    choose,
    constant,
    lanes_between,
    load,
    load_lanes,
    loop,
    select,
    shuffle,
    store,
    traced,
)


def neighbours(V, x, first, end):
    """read(address): the vector there, of which lanes first .. end-1 are read and the others are zero."""
    mask = lanes_between(V, constant(x, 0), first, end)
    return lambda here: load_lanes(V, here, mask)


def every_second(V, x, first, end):
    """As neighbours, but of the numbers there every second one."""
    return read_apart(V, x, first, end, 2)


def read_apart(V, x, first, end, step):
    """As neighbours, but of the numbers there every `step`-th one, which lie in as many vectors."""
    masks = [lanes_between(V, constant(x, V.count * i), first * step, (end - 1) * step + 1) for i in range(step)]

    def lane_from(lane, i):
        """Which lane is to be taken when the i-th vector joins what those before it gave."""
        number = lane * step
        if number >= V.count * i:
            return V.count + number % V.count
        return number if i == 1 else lane

    def read(here):
        vectors = [load_lanes(V, here + V.bytes * i, mask) for i, mask in enumerate(masks)]
        found = vectors[0]
        for i in range(1, step):
            found = shuffle(found, vectors[i], [lane_from(lane, i) for lane in range(V.count)])
        return found

    return read


def copy_pieces_function(real, count):
    """A Numba function copy_pieces(call, to, step, x, pixel, end, r, s, channels): `count` pixels from `pixel` on, as
    far as `end`, at one tap of the window; to `to`, `step` bytes further for each channel. x: address of the image's
    first channel. Its numbers are of type `real` in memory too, a column of outputs one or two of them apart.
    """
    V = Lanes(vector_type(real).kind, count)
    item = V.item_bytes

    def pieces_of(reader):
        @traced(types.void)
        def copy(to, step, x, x_step, channels, first, end, merge):
            mask, read = lanes_between(V, constant(x, 0), first, end), reader(V, x, first, end)

            def put():
                loop(channels, lambda c: store(to + c * step, read(x + c * x_step)))

            def add():
                def one(c):
                    store(to + c * step, select(mask, read(x + c * x_step), load(V, to + c * step)))

                loop(channels, one)

            choose(merge, add, put)

        return copy

    copy_neighbours, copy_every_second = pieces_of(neighbours), pieces_of(every_second)

    @inlined
    def copy_pieces(call, to, step, x, pixel, end, r, s, channels):
        p, q = pixel // call.Q, pixel % call.Q
        shift = s * call.dilation_w - call.left
        inside = max(-(shift // call.stride_w), 0)  # the first column that meets the image, and the one behind the last
        outside = min((call.W - 1 - shift) // call.stride_w + 1, call.Q)
        wanted = min(count, end - pixel)
        lane = 0
        while lane < wanted:
            pixels = min(call.Q - q, wanted - lane)
            h = p * call.stride_h - call.top + r * call.dilation_h
            first, behind = max(inside - q, 0), min(outside - q, pixels)
            if h < 0 or h >= call.H or behind < first:
                first, behind = 0, 0
            here = x + h * call.x_h + (q * call.stride_w + shift) * call.x_w - lane * call.stride_w * item
            if call.stride_w == 1:
                copy_neighbours(to, step, here, call.x_c, channels, lane + first, lane + behind, lane > 0)
            else:
                copy_every_second(to, step, here, call.x_c, channels, lane + first, lane + behind, lane > 0)
            lane, q, p = lane + pixels, 0, p + 1

    return copy_pieces
