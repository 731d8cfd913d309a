"""x as flat planes, so that any run of output pixels is one contiguous run of numbers, whatever the window's tap.

    Q = 4, 3 x 3, stride 1: the plane of tap column s = 0       0 x00 x01 x02 | 0 x10 x11 x12 | 0 x20 x21 x22 | ...
    row by row what the output columns read, padding included   ^ pixels from here on for r = 0
                                                                                ^ from here on for r = 1, and so on

Output rows follow each other without a gap, so a vector of pixels may begin anywhere and cross as many rows as it
likes. One plane serves all rows of the window: the next row's pixels are Q numbers further. With a stride of 2 even and
odd rows of x make a plane each. A number is copied S times (or less, with a stride), not R S times, and a row at a
time: each store may run over the row's end, since the next row is written after it.

A lone row (of sequences: P = 1, R = 1) needs no rows without a gap: one plane, or one for each phase of the stride,
with its padding and (S - 1) dilations more, serves all taps of the window, from a group's first pixel on. On two Zen 4
cores 64 -> 64 channels of 1 x 8,000 under 1 x 3 with dilation 2 take 0.95 instead of 1.1 ms, 32 -> 32 of 1 x 24,000
under 1 x 11 with dilation 5 2.5 instead of 4.3, since a group's planes then lie in the L2 cache. With stride 2 8 -> 16
channels of 1 x 16,000 under 1 x 5 take 0.5 to 0.77 of the time, four images of 128 -> 128 of 1 x 1,500 under 1 x 3
0.85 to 0.9, held to AVX2 512 -> 512 of 1 x 3,199 0.87; with AVX-512, where each vector that begins within a line is two
loads, 1.05, so many filters have a plane for each tap there.

Measured on two Zen 5 cores, 3 x 3 with stride 2: copying is 2 to 9 % of the layer, about a cycle a number of a plane.
Panels, in which every tap had vectors of its own, gathered from pieces of rows, took 15 to 20 %. With stride 3 copying
by vectors and not number by number takes 104 instead of 125 microseconds (two Zen 4 cores, 48 -> 64 channels of 50 x
50 under 3 x 3).
"""

from functools import partial

import numpy as np
from numba.core import types

from . import target
from .compilation import inlined
from .microkernel import vector_type
from .patches import are_patches, copy_patches_function
from .row_pieces import neighbours, read_apart
from .short_floats import memory_functions
from .tracing import I64, first_lanes, load, load_lanes, loop, prefetch, store, traced
from .vectors import lanes

MOST_SHIFTED = 256  # filters for which vectors that begin within a line, each one's a load more, cost less than copies
MOST_APART = 4  # columns of x from output to output, up to which rows are copied by vectors
X_BYTES = 12 << 10  # of x: so many channels make their planes in turn, for x to stay in the L1 cache for all taps


def copy_planes_function(dtype_name):
    """`planes_function` for arrays of that dtype, whose numbers become float32 or float64."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, same = np.dtype(real).itemsize, dtype_name == np.dtype(real).name
    copy_any, copy_patches = planes_function(copy_inside_function(dtype_name), real), copy_patches_function(real)

    @inlined
    def copy_planes(call, to, plane_bytes, x, p0, phases, channels, rows, first, last, row_planes):
        if same and call.x_w == item and are_patches(call):
            copy_patches(call, to, plane_bytes, x, 0, channels * call.R, p0, rows, first, last)
        else:
            copy_any(call, to, plane_bytes, x, p0, phases, channels, rows, first, last, row_planes)

    return copy_planes


def copy_inside_function(dtype_name):
    """A Numba function copy_inside(call, to, to_channel, x, x_row, channels, rows, inside, outside, first, last): rows
    that lie inside the image, as do their columns from `inside` to `outside`; x: address of column 0.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, W = np.dtype(real).itemsize, lanes(real)
    stored_item = 2 if dtype_name.endswith("16") else item
    same = item == stored_item
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write, _, write_vector = memory_functions(np.dtype(real).name)
    V = vector_type(real)

    def rows_of(reader):
        @traced(types.void)
        def copy(to, to_channel, to_row, x, x_channel, x_row, channels, rows, first, end):
            """A vector of each row of each channel; of its lanes first .. end-1 are read, the others are zero."""
            read = reader(V, x, first, end)

            def channel(c):
                here, there = x + c * x_channel, to + c * to_channel
                loop(rows, lambda i: store(there + i * to_row, read(here + i * x_row)))

            loop(channels, channel)

        return copy

    copy_neighbours = rows_of(neighbours)
    copy_second, copy_third, copy_fourth = (rows_of(partial(read_apart, step=n)) for n in range(2, MOST_APART + 1))
    clear = clear_function(real)

    @inlined
    def copy_row(to, x, pitch, count):
        done = 0
        if pitch == stored_item:
            done = count // W * W
            for q in range(0, done, W):
                write_vector(to + q * item, read_vector(x + q * stored_item))
        for q in range(done, count):
            write(to + q * item, read(x + q * pitch))

    @inlined
    def copy_inside(call, to, to_channel, x, x_row, channels, rows, inside, outside, first, last):
        row, pitch = call.Q * item, call.stride_w * call.x_w
        if same and call.x_w == item and call.stride_w <= MOST_APART:
            # From right to left, since what a vector writes beyond its row, the first of the next row puts right.
            for q in range(first + (last - 1 - first) // W * W, first - 1, -W):
                here, there, begin, end = x + q * pitch, to + q * item, inside - q, outside - q
                if call.stride_w == 1:
                    copy_neighbours(there, to_channel, row, here, call.x_c, x_row, channels, rows, begin, end)
                elif call.stride_w == 2:
                    copy_second(there, to_channel, row, here, call.x_c, x_row, channels, rows, begin, end)
                elif call.stride_w == 3:
                    copy_third(there, to_channel, row, here, call.x_c, x_row, channels, rows, begin, end)
                else:
                    copy_fourth(there, to_channel, row, here, call.x_c, x_row, channels, rows, begin, end)
            return
        for c in range(channels):
            for i in range(rows):
                here, there = x + c * call.x_c + i * x_row, to + c * to_channel + i * row
                begin, end = min(max(inside, first), last), min(max(outside, first), last)
                clear(there + first * item, begin - first)
                copy_row(there + begin * item, here + begin * pitch, pitch, end - begin)
                clear(there + end * item, last - end)

    return copy_inside


def copy_runs_function(real):
    """A Numba function copy_runs(to, to_channel, x, x_channel, channels, count): of each channel `count` neighbouring
    numbers, and zeros behind them up to a vector's end.
    """
    V = vector_type(real)

    @traced(types.void)
    def copy_runs(to, to_channel, x, x_channel, channels, count):
        whole = count // V.count
        rest = first_lanes(V, count - whole * V.count)

        def channel(c):
            here, there = x + c * x_channel, to + c * to_channel

            def vector(i):  # and ask for the next channel's: a run ends before the processor has begun to fetch ahead
                prefetch(here + x_channel + i * V.bytes)
                store(there + i * V.bytes, load(V, here + i * V.bytes))

            loop(whole, vector)
            store(there + whole * V.bytes, load_lanes(V, here + whole * V.bytes, rest))

        loop(channels, channel)

    return copy_runs


def clear_function(real):
    """A Numba function clear(to, count): zeros."""
    item = np.dtype(real).itemsize
    _, write, _, _ = memory_functions(np.dtype(real).name)

    @inlined
    def clear(to, count):
        for i in range(count):
            write(to + i * item, 0.0)

    return clear


def planes_function(copy_inside, real, apart=1):
    """A Numba function copy_planes(call, to, plane_bytes, x, p0, phases, channels, rows, first, last, row_planes): for
    every channel, row phase and tap column the plane of `rows` rows from output row p0 on; of their columns those from
    `first` to `last`, and perhaps more. x: address of the image's first channel of this block. plane_bytes: from plane
    to plane, a vector more than its rows take. row_planes: how many a lone row has for all tap columns
    (`shared_planes`), or 0. apart: how many channels of x further the next plane's is.
    """
    item, clear = np.dtype(real).itemsize, clear_function(real)

    @inlined
    def copy_tap(call, to, to_channel, x, h, v, channels, rows, first, last, columns):
        """The planes of one row phase and tap column, of every channel. h, v: x's row and column for the planes' first
        ones. columns: how many they have.
        """
        row = call.Q * item
        above = min(max((call.stride_h - 1 - h) // call.stride_h, 0), rows)
        behind = min(max((call.H - h + call.stride_h - 1) // call.stride_h, above), rows)
        inside = min(max((call.stride_w - 1 - v) // call.stride_w, 0), columns)
        outside = min(max((call.W - v + call.stride_w - 1) // call.stride_w, inside), columns)
        here = x + (h + above * call.stride_h) * call.x_h + v * call.x_w
        x_row = call.stride_h * call.x_h
        middle = to + above * row
        copy_inside(call, middle, to_channel, here, x_row, channels, behind - above, inside, outside, first, last)
        for c in range(channels):
            for i in range(rows):
                if i < above or i >= behind:
                    clear(to + c * to_channel + i * row + first * item, last - first)

    @inlined
    def copy_planes(call, to, plane_bytes, x, p0, phases, channels, rows, first, last, row_planes):
        taps, apart_w, more = call.S, call.dilation_w, 0
        if row_planes:
            taps, apart_w, more = row_planes, 1, (call.S - 1) * call.dilation_w // call.stride_w
        to_channel, columns = phases * taps * plane_bytes, call.Q + more
        at_once = max(X_BYTES // (rows * call.stride_h * (last - first) * call.stride_w * item), 1)
        for c in range(0, channels, at_once):
            some, here, there = min(at_once, channels - c), x + c * apart * call.x_c, to + c * to_channel
            for phase in range(phases):
                for s in range(taps):
                    h = p0 * call.stride_h - call.top + phase
                    plane = there + (phase * taps + s) * plane_bytes
                    v = s * apart_w - call.left
                    copy_tap(call, plane, to_channel, here, h, v, some, rows, first, last + more, columns)

    return copy_planes


@traced(types.void)
def put_word(address, i, word):
    store(address + I64.bytes * i, word)


@inlined
def fill_offsets(call, to, plane_bytes, phases, channels, item, row_planes):
    """The table of how far behind the first plane a pixel's number lies for each depth (c, r, s), in bytes. row_planes:
    as in `planes_function`.
    """
    taps, to_channel = call.R * call.S, (row_planes if row_planes else phases * call.S) * plane_bytes
    for r in range(call.R):
        phase, below = r * call.dilation_h % call.stride_h, r * call.dilation_h // call.stride_h
        for s in range(call.S):
            plane, column = (phase * call.S + s) * plane_bytes, s * call.dilation_w
            if row_planes:
                plane = column % call.stride_w * plane_bytes + column // call.stride_w * item
            first = plane + below * call.Q * item
            for c in range(channels):
                put_word(to, c * taps + r * call.S + s, c * to_channel + first)


def shared_planes(problem) -> int:
    """Of a lone row, how many planes its taps may share, one for each phase of the stride that they have; else 0."""
    stride, dilation = problem.stride[1], problem.dilation[1]
    shifted = stride > 1 and target.vector_bytes() == 64 and problem.Kg > MOST_SHIFTED
    if problem.P > 1 or problem.R > 1 or stride >= problem.S or shifted:
        return 0
    return 1 if dilation % stride == 0 else stride


def row_phases(problem) -> int:
    """How many planes of rows there are for a channel and a tap column: tap row r reads r * dilation % stride's."""
    stride, dilation = problem.stride[0], problem.dilation[0]
    return 1 if problem.R == 1 or dilation % stride == 0 else stride


def rows_below(problem) -> int:
    """How many rows a plane has beyond those of the outputs, for the window's last row."""
    return (problem.R - 1) * problem.dilation[0] // problem.stride[0]
