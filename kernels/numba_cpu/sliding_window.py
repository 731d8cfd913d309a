"""The sliding window: a tile of outputs computed from rows that lie, padded and converted, in the first-level cache.

    panel: padded input rows                 tile: `rows` x `vectors` registers of sums
    0 0 0 0 0 0 0 0 0 0 0 0                  input row i, tap column s:
    0 x x x x x x x x x x 0   row i  ----->    load `vectors` vectors of x, once
    0 x x x x x x x x x x 0                    for every output row j that row i belongs to (tap row i - j * step):
    0 x x x x x x x x x x 0                        one weight, `vectors` multiply-adds

Why rows of input and not taps are the outer loop: a loaded vector of x serves all output rows of the tile, so 4 x 3
vectors of sums take 3 + 4 loads for 12 multiply-adds, where tap by tap they take 13, and processors do about as many
loads as multiply-adds a cycle.

Why a panel (panel.py fills it): padding, stride, dilation, 16-bit types and odd memory strides are settled while a row
is copied, once for all R * S taps that read it, and the tile knows none of them. With a stride, columns are sorted by
their remainder, so that every tap reads neighbours.

The lanes of a vector are neighbouring columns of one channel (one weight for all), neighbouring channels of one pixel
(a weight each), or neighbours in a row of pixels of few channels (weights that repeat); the tile is the same code.

Measured on a Zen 3 core with AVX2 (peak 98 GFLOP/s): 86 GFLOP/s for 31 x 31, 71 for 9 x 9.
Left alone, LLVM keeps the weights that the next input row needs again and spills them, and unrolls loops over 31 taps
into the same trouble: `hidden` addresses and counts prevent both.
Source: register blocking as in Zhang, Franchetti and Low, High Performance Zero-Memory Overhead Direct Convolutions,
ICML 2018.
"""

from dataclasses import dataclass
from itertools import groupby
from math import gcd

from numba.core import types

from . import target
from .epilogue import activated
from .short_floats import as_numbers, as_stored, lanes_for, stored_kind, vector_of
from .tracing import (
    Lanes,
    broadcast,
    choose,
    constant,
    extract,
    first_lanes,
    fma,
    hidden,
    load,
    load_lanes,
    loop,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
    when,
)

UNROLLED = 330  # multiply-adds; longer tiles loop over tap columns: a 31 x 31 window would be 11,532 instructions


@dataclass(frozen=True)
class Window:
    """What a tile is compiled for.

    step: how many rows of taps further the next output row begins. rows, vectors: the tile. vector_bytes: from one
    vector of a panel row to the next. stride, dilation: along a row. lanes_are_channels: or else they are columns, of
    one channel or of `interleaved` ones, side by side.
    """

    dtype_name: str
    R: int
    S: int
    step: int
    rows: int
    vectors: int
    vector_bytes: int
    stride: int
    dilation: int
    lanes_are_channels: bool
    interleaved: int = 1

    @property
    def has_vectors_of_weights(self):
        return self.lanes_are_channels or self.interleaved > 1

    @property
    def weight_vectors(self):
        """How many of a tap's vectors of weights differ: neighbouring vectors may begin with different channels."""
        item_bytes = vector_of(self.dtype_name).item_bytes
        return self.interleaved // gcd(self.interleaved, self.vector_bytes // item_bytes)

    @property
    def weight_lanes(self):
        """How many numbers a tap's weights are."""
        return self.weight_vectors * lanes_for(self.dtype_name) if self.has_vectors_of_weights else 1

    @property
    def unrolled(self):
        return self.R * self.S * self.rows * self.vectors <= UNROLLED


def window_sums(window, panel, row_bytes, phase_bytes, weights):
    """The sums of one tile, [rows][vectors], traced: the bias, then R x S taps.

    panel: address of the tile's first input row and column. row_bytes: from one row of taps to the next. phase_bytes:
    from columns with one remainder by the stride to the next. weights: address of the bias, followed by the taps.
    """
    V = vector_of(window.dtype_name)
    weight_bytes = window.weight_lanes * V.item_bytes
    column_bytes = V.bytes if window.lanes_are_channels else V.item_bytes
    taps = weights + weight_bytes

    def weights_at(address):
        """For each vector of the tile."""
        if not window.has_vectors_of_weights:
            return [broadcast(V, load(V.scalar, address))] * window.vectors
        loaded = [load(V, address + n * V.bytes) for n in range(window.weight_vectors)]
        return [loaded[v % len(loaded)] for v in range(window.vectors)]

    def add_tap(sums, outputs, x, w):
        """Add one tap of one input row to each output row; the next one's weight lies `step` rows of taps back."""
        columns = [load(V, x + v * window.vector_bytes) for v in range(window.vectors)]
        sums = list(sums)
        for j in outputs:
            factors = weights_at(w - j * window.step * window.S * weight_bytes)
            sums[j] = [fma(column, factor, total) for column, factor, total in zip(columns, factors, sums[j])]
        return sums

    def add_row(sums, outputs, i):
        # Hidden, or weights that the next row uses too are kept, and spilled, where loading them again is free.
        x, w = panel + row_bytes * i, hidden(taps + i * (window.S * weight_bytes))
        for first, count, apart, remainder, column, advance in runs_of_tap_columns(window):
            start = x + phase_bytes * remainder + column * column_bytes

            def tap(n, sums, start=start, first=first, apart=apart, advance=advance):
                return add_tap(
                    sums, outputs, start + n * (advance * column_bytes), w + (n * apart + first) * weight_bytes
                )

            sums = repeat(panel, count, tap, sums, window.unrolled)
        return sums

    sums = [weights_at(weights) for _ in range(window.rows)]
    for outputs, first, count in runs_of_input_rows(window.R, window.step, window.rows):

        def row(n, sums, outputs=outputs, first=first):
            return add_row(sums, outputs, n + first)

        sums = repeat(panel, count, row, sums, window.unrolled or count == 1)
    return sums


def repeat(like, count, body, carried, unrolled):
    """carried = body(i, carried) for i = 0 .. count-1, written out or as a loop."""
    if not unrolled:
        return loop(hidden(constant(like, count)), body, carried)
    for i in range(count):
        carried = body(constant(like, i), carried)
    return carried


def runs_of_input_rows(R, step, rows):
    """(output rows, first input row, how many): a tile's input rows, neighbours with the same output rows together.

    >>> list(runs_of_input_rows(5, 1, 2))
    [([0], 0, 1), ([0, 1], 1, 4), ([1], 5, 1)]
    """

    def outputs(i):
        return [j for j in range(rows) if 0 <= i - j * step < R]

    for output_rows, run in groupby(range((rows - 1) * step + R), outputs):
        run = list(run)
        if output_rows:
            yield output_rows, run[0], len(run)


def runs_of_tap_columns(window):
    """(first tap, how many, taps apart, remainder, place, places apart): tap columns whose places advance evenly.

    With stride t, column c of the padded row lies at place c // t among those of remainder c % t. All tap columns in
    order where the tile is unrolled; else those of one remainder after those of another.
    """
    stride, dilation = (1, window.dilation) if window.lanes_are_channels else (window.stride, window.dilation)
    apart = stride // gcd(stride, dilation)
    if window.unrolled:
        for s in range(window.S):
            yield s, 1, 1, s * dilation % stride, s * dilation // stride, 0
        return
    for first in range(min(apart, window.S)):
        count = len(range(first, window.S, apart))
        yield first, count, apart, first * dilation % stride, first * dilation // stride, apart * dilation // stride


def window_tile(window):
    """The traced function that computes and stores one tile: rows x vectors vectors of outputs."""
    V, stored = vector_of(window.dtype_name), Lanes(stored_kind(window.dtype_name), lanes_for(window.dtype_name))
    dtype_name, rows, vectors = window.dtype_name, window.rows, window.vectors

    @traced(types.void)
    def tile(
        panel, row_bytes, phase_bytes, weights, y, y_row, y_vector, y_lane, residual, residual_row,
        residual_vector, residual_lane, has_residual, lanes, scratch, kind, low, high, slope,
    ):  # fmt: skip
        """lanes: how many of each vector's lanes are outputs; of interleaved channels, of the last vector's, since the
        others' are outputs that the next vector writes again. scratch: rows * vectors vectors, for the slow way out.
        """
        sums = window_sums(window, panel, row_bytes, phase_bytes, weights)
        places = [(j, v) for j in range(rows) for v in range(vectors)]
        item = stored.item_bytes
        adjacent = y_lane.equals(item) & (residual_lane.equals(item) | has_residual.equals(0))

        def is_cut(v):
            return window.interleaved > 1 and v == vectors - 1

        def more(j, v):
            here = residual + residual_row * j + residual_vector * v
            read = load_lanes(stored, here, first_lanes(stored, lanes)) if is_cut(v) else load(stored, here)
            return as_numbers(read, dtype_name)

        def with_residual():
            return [sums[j][v] + more(j, v) for j, v in places]

        def whole_vectors():
            totals = choose(has_residual.differs(0), with_residual, lambda: [sums[j][v] for j, v in places])
            for (j, v), value in zip(places, activated(totals, kind, low, high, slope)):
                put = store_some if is_cut(v) else store_all
                put(y + y_row * j + y_vector * v, as_stored(value, dtype_name), lanes)

        def through_scratch():
            for n, (j, v) in enumerate(places):
                store(scratch + n * V.bytes, sums[j][v])

            def row(j):
                def vector(v):
                    numbers = scratch + (j * vectors + v) * V.bytes
                    out, more = y + y_row * j + y_vector * v, residual + residual_row * j + residual_vector * v
                    choose(
                        adjacent,
                        lambda: first_of_a_vector(numbers, out, more),
                        lambda: lane_by_lane(numbers, out, more),
                    )

                loop(constant(panel, vectors), vector)

            loop(constant(panel, rows), row)

        def first_of_a_vector(numbers, out, more):
            total = load(V, numbers)

            def added():
                return [total + as_numbers(load_lanes(stored, more, first_lanes(stored, lanes)), dtype_name)]

            value = choose(has_residual.differs(0), added, lambda: [total])
            store_first(out, as_stored(activated(value, kind, low, high, slope)[0], dtype_name), lanes)

        def lane_by_lane(numbers, out, more):
            def lane(n):
                total = load(V.scalar, numbers + n * V.item_bytes)

                def added():
                    return [total + as_numbers(load(stored.scalar, more + residual_lane * n), dtype_name)]

                value = choose(has_residual.differs(0), added, lambda: [total])
                store(out + y_lane * n, as_stored(activated(value, kind, low, high, slope)[0], dtype_name))

            loop(lanes, lane)

        enough = adjacent if window.interleaved > 1 else adjacent & lanes.equals(V.count)
        choose(enough, whole_vectors, through_scratch)

    return tile


def store_all(address, vector, count):
    store(address, vector)


def store_some(address, vector, count):
    """Write the first `count` lanes, or all."""
    if target.vector_bytes() == 64:
        store_lanes(address, vector, first_lanes(vector.type, count))
    else:
        whole = count.equals(vector.type.count)
        choose(whole, lambda: store(address, vector), lambda: store_first(address, vector, count))


def store_first(address, vector, count):
    """Write the first `count` lanes, fewer than all, as halves of halves: AVX2's masked store is slow on a Zen 3."""
    n, item = vector.type.count, vector.type.item_bytes
    if target.vector_bytes() == 64:
        store_lanes(address, vector, first_lanes(vector.type, count))
        return
    while n > 2:
        n //= 2
        low, high = shuffle(vector, vector, range(n)), shuffle(vector, vector, range(n, 2 * n))
        has_half = (count & n).differs(0)
        with when(has_half):
            store(address, low)
        vector, address = select(has_half, high, low), select(has_half, address + n * item, address)
    with when((count & 1).differs(0)):
        store(address, extract(vector, 0))
