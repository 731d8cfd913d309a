"""x as flat planes, so that any run of output pixels is one contiguous run of numbers, whatever the window's tap.

    Q = 4, 3 x 3, stride 1: the plane of tap column s = 0       0 x00 x01 x02 | 0 x10 x11 x12 | 0 x20 x21 x22 | ...
    row by row what the output columns read, padding included   ^ pixels from here on for r = 0
                                                                                ^ from here on for r = 1, and so on

Output rows follow each other without a gap, so a vector of pixels may begin anywhere and cross as many rows as it
likes. One plane serves all rows of the window: the next row's pixels are Q numbers further. With a stride of 2 even and
odd rows of x make a plane each. A number is copied S times (or less, with a stride), not R S times, and a row at a
time: each store may run over the row's end, since the next row is written after it.

Measured on two Zen 5 cores: a fifth of a cycle a number where rows have 14 or 28 columns. Panels, in which every tap
had a vector of its own, gathered from pieces of rows, took 1.2 cycles for 28 columns and 3 for 7, nine times per number.
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .row_pieces import copy_rows_functions
from .short_floats import memory_functions
from .tracing import I64, store, traced
from .vectors import lanes


def copy_planes_function(dtype_name):
    """A Numba function copy_planes(call, to, plane_bytes, x, p0, rows, phases, channels): for every channel, row phase
    and tap column the plane of `rows` rows from output row p0 on. x: address of the image's first channel of this
    block. The last plane is written as far as a vector past its end.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, W = np.dtype(real).itemsize, lanes(real)
    stored_item = 2 if dtype_name.endswith("16") else item
    same = item == stored_item
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write, _, write_vector = memory_functions(np.dtype(real).name)
    copy_neighbours, copy_every_second = copy_rows_functions(real, W)

    @inlined
    def clear(to, count):
        for i in range(count):
            write(to + i * item, 0.0)

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
    def copy_inside(call, to, x, step, rows, inside, outside):
        """Rows that lie inside the image; of their columns those from `inside` to `outside`. x: of column 0."""
        row, pitch = call.Q * item, call.stride_w * call.x_w
        if same and call.x_w == item and call.stride_w <= 2:
            for q in range((call.Q - 1) // W * W, -1, -W):  # what a vector writes too much, the one after it puts right
                if call.stride_w == 1:
                    copy_neighbours(to + q * item, row, x + q * pitch, step, rows, inside - q, outside - q, False)
                else:
                    copy_every_second(to + q * item, row, x + q * pitch, step, rows, inside - q, outside - q, False)
            return
        for j in range(rows):
            here = to + j * row
            clear(here, inside)
            copy_row(here + inside * item, x + j * step + inside * pitch, pitch, outside - inside)
            clear(here + outside * item, call.Q - outside)

    @inlined
    def copy_plane(call, to, x, h, rows, s):
        """h: x's row for the plane's first one."""
        v, row = s * call.dilation_w - call.left, call.Q * item
        above = min(max((call.stride_h - 1 - h) // call.stride_h, 0), rows)
        behind = min(max((call.H - h + call.stride_h - 1) // call.stride_h, above), rows)
        inside = min(max((call.stride_w - 1 - v) // call.stride_w, 0), call.Q)
        outside = min(max((call.W - v + call.stride_w - 1) // call.stride_w, inside), call.Q)
        here = x + (h + above * call.stride_h) * call.x_h + v * call.x_w
        clear(to, above * call.Q)
        copy_inside(call, to + above * row, here, call.stride_h * call.x_h, behind - above, inside, outside)
        clear(to + behind * row, (rows - behind) * call.Q)

    @inlined
    def copy_planes(call, to, plane_bytes, x, p0, rows, phases, channels):
        for c in range(channels):
            for phase in range(phases):
                for s in range(call.S):
                    copy_plane(call, to, x + c * call.x_c, p0 * call.stride_h - call.top + phase, rows, s)
                    to += plane_bytes

    return copy_planes


@traced(types.void)
def put_word(address, i, word):
    store(address + I64.bytes * i, word)


@inlined
def fill_offsets(call, to, plane_bytes, phases, channels, item):
    """The table of how far behind the first plane a pixel's number lies for each depth (c, r, s), in bytes."""
    d = 0
    for c in range(channels):
        for r in range(call.R):
            phase, below = r * call.dilation_h % call.stride_h, r * call.dilation_h // call.stride_h
            for s in range(call.S):
                plane = (c * phases + phase) * call.S + s
                put_word(to, d, plane * plane_bytes + below * call.Q * item)
                d += 1


def row_phases(problem) -> int:
    """How many planes of rows there are for a channel and a tap column: tap row r reads that of r * dilation % stride."""
    stride, dilation = problem.stride[0], problem.dilation[0]
    return 1 if problem.R == 1 or dilation % stride == 0 else stride


def rows_below(problem) -> int:
    """How many rows a plane has beyond those of the outputs, for the window's last row."""
    return (problem.R - 1) * problem.dilation[0] // problem.stride[0]
