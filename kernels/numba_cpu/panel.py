"""Filling a panel: rows of x copied into the first-level cache, padded, widened to the type of the sums, and sorted.

    x row    a b c d e f g h            stride 1      0 a b c d e f g h 0
                                        stride 2      0 b d f h   the columns of remainder 0, then those of remainder 1
                                                      a c e g 0

What a window's tile (sliding_window.py) then reads are neighbours in float32 or float64, and no edges.

Lessons:
- Masked loads at the edges of each row took 40 % of the time on planes of 14 x 14, more than the window itself: rows
  are copied by whole vectors instead, the last one overlapping the one before it, over zeros written first.
- Sorting a row by stride so, over zeros, takes 110 to 140 cycles for 64 to 224 columns (Zen 5). By columns of vectors,
  each down all rows, masks are made once and nothing is written twice: half of that.
- Down a column the processor's prefetcher sees rows far apart. Asking for the columns two steps on, 3 channels of
  640 x 640 to 16 filters take 0.88 of the time (530 to 540 microseconds, two Zen 4 cores, AVX-512), one step on 0.93,
  three as two; 224 x 224, which come from the L2 cache, the same. Held to AVX2 0.97 to 1.01.
- Masked loads of 16 bits are as fast as others where vectors have 64 bytes: a first layer with stride 2 in bfloat16
  takes 0.92 of the time. With AVX2 there are none.
"""

from numba.core import types

from . import target
from .compilation import inlined
from .short_floats import as_numbers, lanes_for, real_of, stored_kind, vector_of
from .tracing import (
    Lanes,
    choose,
    first_lanes,
    lanes_between,
    load,
    load_lanes,
    load_strided,
    loop,
    prefetch,
    shuffle,
    store,
    traced,
    zeros,
)

AHEAD = 2  # columns of pairs of vectors


def panel_filling(dtype_name):
    """Numba functions: (fill_columns, fill_pixels), which fill a panel, (number_at, put_number) for one number."""
    return (fill_columns_function(dtype_name), fill_pixels_function(dtype_name), *number_functions(dtype_name))


def number_functions(dtype_name):
    """Numba functions: number_at, one number of x as a number of the sums, and put_number, one into a panel."""
    real, kind = real_of(dtype_name), stored_kind(dtype_name)

    @traced(real)
    def number_at(address):
        return as_numbers(load(Lanes(kind), address), dtype_name)

    @traced(types.void)
    def put_number(address, number):
        store(address, number)

    return number_at, put_number


def clear_row_function(dtype_name):
    """A Numba function clear_row(panel, count): zeros, by whole vectors."""
    L, number_bytes = lanes_for(dtype_name), real_of(dtype_name).bitwidth // 8

    @traced(types.void)
    def put_zeros(address):
        store(address, zeros(vector_of(dtype_name), address))

    @inlined
    def clear_row(panel, count):
        for i in range(0, count, L):
            put_zeros(panel + i * number_bytes)

    return clear_row


def moved(dtype_name, count):
    """The traced function that copies `count` neighbours."""
    kind = stored_kind(dtype_name)

    @traced(types.void)
    def move_some(to, address):
        store(to, as_numbers(load(Lanes(kind, count), address), dtype_name))

    return move_some


def sorted_apart(dtype_name, count):
    """The traced function that copies `count` pairs of neighbours, the first of each apart from the second."""
    kind = stored_kind(dtype_name)

    @traced(types.void)
    def sort_some(to, phase_bytes, address):
        here, after = (load(Lanes(kind, count), address + n * Lanes(kind, count).bytes) for n in (0, 1))
        store(to, as_numbers(shuffle(here, after, range(0, 2 * count, 2)), dtype_name))
        store(to + phase_bytes, as_numbers(shuffle(here, after, range(1, 2 * count, 2)), dtype_name))

    return sort_some


def sort_rows_function(dtype_name):
    """A Numba function: rows that lie inside the image, the numbers of even columns apart from those of odd ones."""
    kind, L = stored_kind(dtype_name), lanes_for(dtype_name)
    item, number_bytes = Lanes(kind).item_bytes, real_of(dtype_name).bitwidth // 8

    @traced(types.void)
    def sort_rows(to, row_bytes, phase_bytes, x, x_h, rows, first, W, count):
        """Rows that lie inside the image, by columns of vectors, so that masks are made once for all rows."""
        pair = Lanes(kind, L)

        def vector_column(i):
            w = first + i * (2 * L)
            here, there = x + w * item, to + i * (L * number_bytes)

            def copy(readers):
                def one_row(row):
                    for n in range(2 * AHEAD, 2 * AHEAD + 2):
                        prefetch(here + x_h * row + n * pair.bytes)
                    a, b = (read(here + x_h * row + n * pair.bytes) for n, read in enumerate(readers))
                    for odd in (0, 1):
                        vector = as_numbers(shuffle(a, b, range(odd, 2 * L, 2)), dtype_name)
                        store(there + row_bytes * row + phase_bytes * odd, vector)

                loop(rows, one_row)

            def masked(n):
                mask = lanes_between(pair, w + n * L, 0, W)
                return lambda at: load_lanes(pair, at, mask)

            whole = (w >= 0) & (w + 2 * L <= W)
            choose(whole, lambda: copy([lambda at: load(pair, at)] * 2), lambda: copy([masked(0), masked(1)]))

        loop((count + (L - 1)) // L, vector_column)

    return sort_rows


def row_functions(dtype_name):
    """Numba functions that copy `count` numbers of a row: move_row, neighbours; sort_row, pairs of neighbours;
    gather_row, numbers that lie apart.
    """
    kind, L = stored_kind(dtype_name), lanes_for(dtype_name)
    item, number_bytes = Lanes(kind).item_bytes, real_of(dtype_name).bitwidth // 8
    number_at, put_number = number_functions(dtype_name)
    move_vector, move_half = moved(dtype_name, L), moved(dtype_name, L // 2)
    sort_vector, sort_half = sorted_apart(dtype_name, L), sorted_apart(dtype_name, L // 2)

    @traced(types.void)
    def gather_vector(to, address, step):
        store(to, as_numbers(load_strided(Lanes(kind, L), address, step), dtype_name))

    @inlined
    def gather_row(to, row, step, count):
        """Numbers `step` bytes apart."""
        for i in range(0, count - L + 1, L):
            gather_vector(to + i * number_bytes, row + i * step, step)
        for i in range(count // L * L, count):
            put_number(to + i * number_bytes, number_at(row + i * step))

    @inlined
    def move_row(to, row, count):
        """Without masks, which take longer than two overlapping moves."""
        if count >= L:
            for i in range(0, count - L, L):
                move_vector(to + i * number_bytes, row + i * item)
            move_vector(to + (count - L) * number_bytes, row + (count - L) * item)
        elif count >= L // 2:
            move_half(to, row)
            move_half(to + (count - L // 2) * number_bytes, row + (count - L // 2) * item)
        else:
            for i in range(count):
                put_number(to + i * number_bytes, number_at(row + i * item))

    @inlined
    def sort_row(to, phase_bytes, row, count):
        if count >= L:
            for i in range(0, count - L, L):
                sort_vector(to + i * number_bytes, phase_bytes, row + 2 * i * item)
            sort_vector(to + (count - L) * number_bytes, phase_bytes, row + 2 * (count - L) * item)
        elif count >= L // 2:
            rest = count - L // 2
            sort_half(to, phase_bytes, row)
            sort_half(to + rest * number_bytes, phase_bytes, row + 2 * rest * item)
        else:
            for i in range(count):
                put_number(to + i * number_bytes, number_at(row + 2 * i * item))
                put_number(to + i * number_bytes + phase_bytes, number_at(row + (2 * i + 1) * item))

    return move_row, sort_row, gather_row


def fill_columns_function(dtype_name):
    """A Numba function: a panel of rows of one channel, their columns sorted by the remainder of the stride."""
    real, kind = real_of(dtype_name), stored_kind(dtype_name)
    item, number_bytes = Lanes(kind).item_bytes, real.bitwidth // 8
    number_at, put_number = number_functions(dtype_name)
    clear_row, sort_rows = clear_row_function(dtype_name), sort_rows_function(dtype_name)
    move_row, sort_row, gather_row = row_functions(dtype_name)
    masks_are_fast = target.vector_bytes() >= (64 if kind == "i16" else 32)

    @inlined
    def place_columns(to, row, x_w, first, stride, start, end, W):
        """Places start .. end-1 of columns first, first + stride, ...; zero where the row has no such column."""
        for i in range(start, end):
            w = first + i * stride
            put_number(to + i * number_bytes, number_at(row + w * x_w) if w >= 0 and w < W else real(0))

    @inlined
    def fill_columns(panel, row_bytes, phase_bytes, x, x_h, x_w, H, W, first_row, rows, first, count, stride):
        """Rows first_row, ... of one channel; of each, `count` columns for every remainder, from column `first` on.

        Zeros are written a vector at a time and run over what is written next; behind the last row there is room.
        """
        together = stride if x_w == item and stride <= 2 else 0  # columns that one step of the fast copies moves
        if masks_are_fast and together == 2:
            above = min(max(0, -first_row), rows)
            behind = max(above, min(rows, H - first_row))
            for i in range(rows):
                if i < above or i >= behind:
                    clear_row(panel + i * row_bytes, count)
                    clear_row(panel + i * row_bytes + phase_bytes, count)
            sort_rows(
                panel + above * row_bytes, row_bytes, phase_bytes, x + (first_row + above) * x_h, x_h, behind - above,
                first, W, count,
            )  # fmt: skip
            return
        start = min(max(0, -first) + stride - 1, count * stride) // stride if together else count
        end = max(start, min(count, (W - first) // stride)) if together else count
        for i in range(rows):
            h, to = first_row + i, panel + i * row_bytes
            if h < 0 or h >= H:
                for phase in range(stride):
                    clear_row(to + phase * phase_bytes, count)
                continue
            row = x + h * x_h
            if together == 1:
                clear_row(to, start)
                clear_row(to + end * number_bytes, count - end)
                move_row(to + start * number_bytes, row + (first + start) * x_w, end - start)
                continue
            for phase in range(stride):
                here = to + phase * phase_bytes
                clear_row(here, count)
                place_columns(here, row, x_w, first + phase, stride, max(0, start - 1), start, W)
                place_columns(here, row, x_w, first + phase, stride, end, min(end + 1, count), W)
            if together == 2:
                inside = first + stride * start
                sort_row(to + start * number_bytes, phase_bytes, row + inside * x_w, end - start)
            else:
                for phase in range(stride):
                    column = first + phase
                    begin = min(max(0, stride - 1 - column) // stride, count)
                    behind = min(max(0, W - column + stride - 1) // stride, count)
                    gather_row(
                        to + (phase * phase_bytes + begin * number_bytes), row + (column + begin * stride) * x_w,
                        stride * x_w, behind - begin,
                    )  # fmt: skip

    return fill_columns


def fill_pixels_function(dtype_name):
    """A Numba function: a panel of rows of pixels, a vector of channels each."""
    kind, L = stored_kind(dtype_name), lanes_for(dtype_name)
    item, number_bytes = Lanes(kind).item_bytes, real_of(dtype_name).bitwidth // 8
    number_at, put_number = number_functions(dtype_name)
    clear_row, move_vector = clear_row_function(dtype_name), moved(dtype_name, L)

    @traced(types.void)
    def move_first(to, address, count):
        """The first `count` of a vector, zero after them; no other memory is read."""
        stored = Lanes(kind, L)
        store(to, as_numbers(load_lanes(stored, address, first_lanes(stored, count)), dtype_name))

    @inlined
    def fill_pixels(panel, row_bytes, x, x_h, x_w, x_c, H, W, first_row, rows, first, count, channels):
        """Rows first_row, ... of `channels` (at most L) channels; of each row pixels first .. first+count-1."""
        start = min(max(0, -first), count)
        end = max(start, min(count, W - first))
        for i in range(rows):
            h, to = first_row + i, panel + i * row_bytes
            if h < 0 or h >= H:
                clear_row(to, count * L)
                continue
            clear_row(to, start * L)
            clear_row(to + end * L * number_bytes, (count - end) * L)
            row = x + h * x_h + first * x_w
            if x_c == item and channels == L:
                for j in range(start, end):
                    move_vector(to + j * L * number_bytes, row + j * x_w)
            elif x_c == item:
                for j in range(start, end):
                    move_first(to + j * L * number_bytes, row + j * x_w, channels)
            else:
                for j in range(start, end):
                    clear_row(to + j * L * number_bytes, L)
                    for c in range(channels):
                        put_number(to + (j * L + c) * number_bytes, number_at(row + j * x_w + c * x_c))

    return fill_pixels
