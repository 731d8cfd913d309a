"""Winograd's input stage where a lane is a channel: pixels under some lines of tiles, turned and transformed.

    x, 16 channels                  turned (L1): a vector for a pixel             V: planes of the strip
    c0:  . a b c d e ...            row 0: pixel 0: c0 .. c15, pixel 1, ...       plane 0: c0 .. c15:  tile 0, 1, ...
    c1:  . a b c d e ...   16 x 16  row 1: ...                                             c16 .. c31: tile 0, 1, ...
    ...                             ...                                           plane 1 ...

Every tile reads its pixels where they are, its neighbours' among them, and no lane is empty. Tiles across the lanes
(winograd_input.py) take a shuffle and a store for each pixel of a line's tiles, which are 3 to 10 on most maps, of 16
lanes; a square of 16 channels x 16 pixels 64 shuffles and 16 stores.

Measured on two Zen 4 cores with AVX-512, in microseconds of all channels, before and so: 128 channels of 28 x 28 by
F(6) 65 and 45, 256 of 14 x 14 by F(5) 51 and 26, by F(4) 36 and 24, 512 of 7 x 7 by F(2) 32 and 12; with stride 2, 128
of 56 x 56 by F(4) 107 and 86, 256 of 28 x 28 by F(3) 87 and 60. Plans take 0.94, 0.92, 0.96, 0.97, 0.96 and 0.96 of the
time; held to AVX2 by F(6), F(5) and F(3) 0.94, 0.90 and 0.96. Lines that fill vectors of tiles, or are long, took 1.01
to 1.08.
The multiply reads 8 lines of V for 16 channels at once, where tiles across the lanes are a line for each channel, which
processors fetch ahead themselves: not fetched ahead, plans of 512 channels of 14 x 14 with stride 2 took 1.12 of the
time. Where the next 16 channels begin, found at each step, led the compiler to spill registers, which a loop around 16
steps does not: 1.03.
"""

from numba import types

from .compilation import inlined
from .short_floats import memory_functions
from .tracing import lanes_between, load_lanes, loop, prefetch, select, store, traced, transpose, zeros
from .vectors import array_at, broadcast, record_at
from .winograd_record import (
    PLANE_PADDING,
    RECORD,
    STRIP_VECTORS,
    Numbers,
    call_leaf,
    first_pixel,
    input_row_function,
    strip_functions,
)
from .winograd_transforms import input_transform


def turn_function(V):
    """turn(source, source_row, source_channel, top, bottom, rows, left, right, squares, target, pitch): V.count
    channels' pixels to a vector for each, `squares` times V.count of them in a row.

    Zeros stand for rows outside top .. bottom-1 and columns outside left .. right-1, which are not read.
    """

    @traced(types.void)
    def turn(source, source_row, source_channel, top, bottom, rows, left, right, squares, target, pitch):
        def square(k):
            first, to = k * V.count, target + k * (V.count * V.bytes)
            mask, here = lanes_between(V, first, left, right), source + first * V.item_bytes
            end = select((left < first + V.count) & (right > first), bottom, top)

            def copy(i):
                row = here + source_row * (i + top)
                channels = [load_lanes(V, row + source_channel * c, mask) for c in range(V.count)]
                for j, pixel in enumerate(transpose(channels)):
                    store(to + pitch * (i + top) + V.bytes * j, pixel)
                for c in range(V.count):
                    prefetch(row + source_channel * (V.count + c))

            def blank(i):
                for j in range(V.count):
                    store(to + pitch * i + V.bytes * j, zeros(V, source))

            loop(top, blank)
            loop(end - top, copy)
            loop(rows - end, lambda i: blank(i + end))

        loop(squares, square)

    return turn


def build_input_stage_of_channels(real_name):
    """All channels of a strip, from x to their planes in its slot."""
    numbers = Numbers(real_name)
    real, lanes, item, vector_bytes, V = numbers.real, numbers.count, numbers.item, numbers.bytes, numbers.vector
    _, _, find_segments = strip_functions(numbers)
    input_row, turn = input_row_function(numbers, True), turn_function(numbers.lanes)
    read, write, read_vector, write_vector = memory_functions(real_name)

    @inlined
    def copy_pixels(call, source, top, bottom, rows, left, right, columns, target):
        """The same of pixels that do not lie side by side, one by one."""
        for i in range(rows):
            for j in range(columns):
                here, to = source + i * call.x_h + j * call.x_w, target + i * call.spread_pitch + j * vector_bytes
                if not (top <= i < bottom and left <= j < right):
                    write_vector(to, broadcast(V, real(0)))
                elif call.x_c == item:
                    write_vector(to, read_vector(here))
                else:
                    for lane in range(lanes):
                        write(to + lane * item, read(here + lane * call.x_c))

    @inlined
    def lines_together(call, table, s, count):
        """How many segments from s on are the same tiles of lines below each other, and fit."""
        end = s + 1
        while end < min(count, s + call.spread_lines):
            if table[end, 0] != table[s, 0] or table[end, 2] != table[s, 2] or table[end, 3] != table[s, 3]:
                break
            end += 1
        return end - s

    def input_stage(call_address, scratch, group, strip, slot, unused, unused_2, unused_3):
        call = record_at(RECORD, call_address)
        row, spread = input_row(call, strip), scratch + call.spread_at
        plane, block = call.Cg * row + PLANE_PADDING, lanes * row
        count = find_segments(call, strip, scratch)
        table = array_at(types.int64, scratch, (STRIP_VECTORS * lanes, 4), (32, 8))
        line, step = call.m_h * call.stride_h, call.m_w * call.stride_w
        for c in range(0, call.Cg, lanes):
            x, to, s = call.x + (group * call.Cg + c) * call.x_c, slot + c // lanes * block, 0
            while s < count:
                lines, image, tiles = lines_together(call, table, s, count), table[s, 0], table[s, 3]
                h, v = first_pixel(call, table[s, 1], table[s, 2])
                rows = (lines - 1) * line + call.span_h
                top, bottom = max(0, min(rows, -h)), max(0, min(rows, call.H - h))
                for t in range(0, tiles, call.spread_tiles):
                    some, at = min(call.spread_tiles, tiles - t), v + t * step
                    columns = (some - 1) * step + call.span_w
                    left, right = max(0, -at), min(columns, call.W - at)
                    source = x + image * call.x_n + h * call.x_h + at * call.x_w
                    if call.x_w == item:
                        squares = (columns + lanes - 1) // lanes
                        turn(
                            source, call.x_h, call.x_c, top, max(top, bottom), rows, left, right, squares, spread,
                            call.spread_pitch,
                        )  # fmt: skip
                    else:
                        copy_pixels(call, source, top, bottom, rows, left, right, columns, spread)
                    for i in range(lines):
                        call_leaf(
                            call.transform_input, spread + i * line * call.spread_pitch, call.spread_pitch, step,
                            to + (i * tiles + t) * vector_bytes, plane, some, 0, 0,
                        )  # fmt: skip
                to += lines * tiles * vector_bytes
                s += lines

    return input_stage


def build_input_transform_of_channels(tile, real_name):
    numbers = Numbers(real_name)
    transform, vector_bytes = input_transform(tile, numbers.lanes), numbers.bytes

    def transform_input(source, source_row, step, target, plane, tiles, unused, unused_2):
        """Some tiles in a row, `step` pixels apart."""
        for i in range(tiles):
            here = source + i * step * vector_bytes
            transform(here, source_row, vector_bytes, target + i * vector_bytes, plane, 0, 0)

    return transform_input
