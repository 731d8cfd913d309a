"""Copying x for the CPU weight gradient: the slab that a task's rows need, padded, and split as its mode wants it
(weight_grad.py has the modes).
"""

from numba.core import types

from .compilation import inlined
from .microkernel import vector_type
from .tracing import lanes_between, load, load_lanes, loop, prefetch, shuffle, store, traced, when
from .vectors import broadcast
from .weight_grad_cuts import BATCHED, COLUMNS, SHORT, WINDOWS
from .weight_grad_types import Types


def copy_row_functions(dtype_name):
    """Numba functions: clear(to, count) and copy_row, of one row."""
    t = Types(dtype_name)
    W, V, item, zero = t.W, t.V, t.item, t.real(0)
    lanes_type, same = vector_type(t.real), t.item == t.stored_item
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums

    @traced(V)
    def read_between(address, first, last):
        """Lane j: what lies j numbers behind `address`, or zero outside of first .. last - 1, where nothing is read."""
        return load_lanes(lanes_type, address, lanes_between(lanes_type, first * 0, first, last))

    @traced(V)
    def read_second(address):
        return shuffle(load(lanes_type, address), load(lanes_type, address + lanes_type.bytes), range(0, 2 * W, 2))

    @traced(V)
    def read_second_between(address, first, last):
        """read_between of every second number."""
        halves = []
        for half in (0, W):
            inside = lanes_between(lanes_type, first * 0 + half, 2 * first, 2 * last - 1)
            halves.append(load_lanes(lanes_type, address + half * item, inside))
        return shuffle(*halves, range(0, 2 * W, 2))

    @inlined
    def clear(to, count):
        done = count // W * W
        for j in range(0, done, W):
            write_sums(to + j * item, broadcast(V, zero))
        for j in range(done, count):
            write_sum(to + j * item, zero)

    @inlined
    def copy_row(to, x, step, first, last, pitch):
        """Columns first .. last - 1 come from x, `step` bytes apart; zeros before and after.

        x: of column 0. The last vector of a row may reach into the next one, which is copied later.
        """
        if same and step == item:
            for j in range(0, pitch, W):
                whole = first <= j and j + W <= last
                values = read_vector(x + j * step) if whole else read_between(x + j * step, first - j, last - j)
                write_sums(to + j * item, values)
        elif same and step == 2 * item:
            for j in range(0, pitch, W):
                whole = first <= j and j + W < last  # one more: a whole vector holds the number behind the last one too
                values = read_second(x + j * step) if whole else read_second_between(x + j * step, first - j, last - j)
                write_sums(to + j * item, values)
        else:
            clear(to, first)
            for j in range(first, last):
                write_sum(to + j * item, read(x + j * step))
            clear(to + last * item, pitch - last)

    return clear, copy_row


def neighbours(V, first, last, vectors):
    """What reads vector j of a row, zeros outside of lanes first .. last - 1; masks are made once for all rows."""
    masks = [lanes_between(V, first * 0 + j * V.count, first, last) for j in range(vectors)]
    return lambda x, j: load_lanes(V, x + V.bytes * j, masks[j])


def every_second(V, first, last, vectors):
    masks = [lanes_between(V, first * 0 + i * V.count, 2 * first, 2 * last - 1) for i in range(2 * vectors)]

    def vector(x, j):
        halves = [load_lanes(V, x + V.bytes * i, masks[i]) for i in (2 * j, 2 * j + 1)]
        return shuffle(*halves, range(0, 2 * V.count, 2))

    return vector


def lines_copied_by(V, reader):
    """A Numba function copy_lines; reader: neighbours or every_second."""

    @traced(types.void)
    def copy_lines(to, step, x, x_step, ahead, count, vectors, first, last):
        """A short row of each of `count` channels; the row `ahead` bytes further is fetched."""

        def of(number):
            vector = reader(V, first, last, number)

            def channel(c):
                prefetch(x + c * x_step + ahead)
                for j in range(number):
                    store(to + c * step + V.bytes * j, vector(x + c * x_step, j))

            loop(count, channel)

        for number in range(1, SHORT + 1):
            with when(vectors.equals(number)):
                of(number)

    return copy_lines


@inlined
def short_rows(call, W):
    return call.pitch <= SHORT * W


@inlined
def meets_a_tap(phase, taps, dilation, stride):
    meets = False
    for tap in range(taps):
        meets |= tap * dilation % stride == phase
    return meets


@inlined
def columns_inside(call, shift):
    """The outputs of a row whose input at this shift lies inside the image: the first, and the one behind them."""
    first = min(max(0, (-shift + call.stride_w - 1) // call.stride_w), call.pitch)
    return first, min(max(first, (call.W - shift + call.stride_w - 1) // call.stride_w), call.pitch)


def copy_line_function(dtype_name):
    """A Numba function: one row of each of some channels."""
    t = Types(dtype_name)
    W, item, V, same = t.W, t.item, vector_type(t.real), t.item == t.stored_item
    _, copy_row = copy_row_functions(dtype_name)
    copy_neighbours, copy_every_second = lines_copied_by(V, neighbours), lines_copied_by(V, every_second)

    @inlined
    def copy_line(call, to, step, x, count, first, last):
        """copy_row of `count` channels, `step` bytes apart where they go. The last vector may reach into what follows
        the row, which is copied later or lies behind the plane.
        """
        x_step, vectors = call.stride_w * call.x_w, (call.pitch + W - 1) // W
        if same and x_step == item and short_rows(call, W):
            copy_neighbours(to, step, x, call.x_c, call.stride_h * call.x_h, count, vectors, first, last)
        elif same and x_step == 2 * item and short_rows(call, W):
            copy_every_second(to, step, x, call.x_c, call.stride_h * call.x_h, count, vectors, first, last)
        else:
            for c in range(count):
                copy_row(to + c * step, x + c * call.x_c, x_step, first, last, call.pitch)

    return copy_line


def copy_input_function(dtype_name):
    """A Numba function: the slab of x that a task's rows need, padded and split, to where the task keeps it."""
    item, W = Types(dtype_name).item, Types(dtype_name).W
    clear, copy_row = copy_row_functions(dtype_name)
    copy_line = copy_line_function(dtype_name)

    @inlined
    def copy_planes(call, to, step, x, count, first_row, row_shift, column_shift):
        """Element (row, j) of a plane is x's at (first_row + row) stride + row_shift - top, j stride + ... - left.

        x: of the first of `count` channels, whose planes lie `step` bytes apart.
        """
        shift = column_shift - call.left
        first, last = columns_inside(call, shift)
        for row in range(call.slab_rows):
            h = (first_row + row) * call.stride_h + row_shift - call.top
            inside = h >= 0 and h < call.H
            line = to + row * call.pitch * item
            copy_line(
                call, line, step, x + h * call.x_h + shift * call.x_w, count, first if inside else 0,
                last if inside else 0,
            )  # fmt: skip

    @inlined
    def copy_plane(call, to, x, first_row, row_shift, column_shift):
        """copy_planes of one channel, row by row: with few channels masks would not be worth their making."""
        shift = column_shift - call.left
        first, last = columns_inside(call, shift)
        for row in range(call.slab_rows):
            h = (first_row + row) * call.stride_h + row_shift - call.top
            line = to + row * call.pitch * item
            if h >= 0 and h < call.H:
                copy_row(line, x + h * call.x_h + shift * call.x_w, call.stride_w * call.x_w, first, last, call.pitch)
            else:
                clear(line, call.pitch)

    @inlined
    def copy_batch(call, to, x, images, row0, rows):
        """Row (c, tap) of tiles: what that tap reads, row after row, image after image."""
        taps, plane = call.R * call.S, call.plane * item
        for tap in range(taps):
            shift_h, shift_w = tap // call.S * call.dilation_h - call.top, tap % call.S * call.dilation_w - call.left
            c = (row0 - tap + taps - 1) // taps
            row = c * taps + tap - row0
            count = (rows - row + taps - 1) // taps
            first, last = columns_inside(call, shift_w)
            for line in range(images * call.P):
                image, h = line // call.P, line % call.P * call.stride_h + shift_h
                here = x + image * call.x_n + c * call.x_c + h * call.x_h + shift_w * call.x_w
                inside, into = h >= 0 and h < call.H, to + row * plane + line * call.Q * item
                copy_line(call, into, taps * plane, here, count, first if inside else 0, last if inside else 0)

    @inlined
    def copy_input(call, to, x, images, first_row, row0, rows):
        """x: the group's first channel of the image; row0: the first of the task's rows of tiles."""
        plane, taps = call.plane * item, call.R * call.S
        if call.mode == BATCHED:
            copy_batch(call, to, x, images, row0, rows)
            return
        if call.mode == WINDOWS:
            for i in range(row0, row0 + rows):
                channel, tap = x + i // taps * call.x_c, i % taps
                shift_h, shift_w = tap // call.S * call.dilation_h, tap % call.S * call.dilation_w
                copy_plane(call, to + (i - row0) * plane, channel, first_row, shift_h, shift_w)
            return
        for a in range(call.copies_h):
            if meets_a_tap(a, call.R, call.dilation_h, call.stride_h):
                for b in range(call.copies_w):
                    if call.mode == COLUMNS or meets_a_tap(b, call.S, call.dilation_w, call.stride_w):
                        column_shift = b * call.dilation_w if call.mode == COLUMNS else b
                        first = to + (a * call.copies_w + b) * call.row_block * plane
                        channels, at_a_time = x + row0 * call.x_c, rows if short_rows(call, W) else 1
                        for i in range(0, rows, at_a_time):  # long rows one plane after the other, as they are fetched
                            here = channels + i * call.x_c
                            copy_planes(call, first + i * plane, plane, here, at_a_time, first_row, a, column_shift)

    return copy_input
