"""Winograd's input stage where a lane is a tile: pixels under a strip, spread over the lanes and transformed.

Picture: winograd_stages.py. Where a lane is a channel: winograd_input_channels.py.
"""

from numba import types

from .compilation import inlined
from .short_floats import as_numbers, memory_functions, stored_kind
from .tracing import Lanes, load, store, traced, when
from .vectors import array_at, broadcast, record_at
from .winograd_record import (
    PLANE_PADDING,
    RECORD,
    STRIP_VECTORS,
    Numbers,
    call_leaf,
    first_pixel,
    steps,
    strip_functions,
)
from .winograd_transforms import (
    input_transform,
    spread_images,
    spread_rows,
    spread_short_rows,
    tiles_of_two_vectors,
    transposed_copy,
)


def short_row_function(dtype_name):
    """copy(target, source, count): fewer neighbours than there are lanes, widened, by two vectors that may overlap."""
    numbers = Numbers(dtype_name)

    @traced(types.void)
    def copy(target, source, count):
        def copy_one(at, width):
            some = Lanes(stored_kind(dtype_name), width)
            store(target + at * numbers.item, as_numbers(load(some, source + at * numbers.stored_item), dtype_name))

        width = numbers.count // 2
        while width > 1:
            with when((count >= width) & (count < 2 * width)):
                copy_one(0, width)
                copy_one(count - width, width)
            width //= 2
        with when((count > 0) & (count < 2)):
            copy_one(0, 0)

    return copy


def build_input_stage(dtype_name):
    """All channels of a strip, from x to their planes in its slot."""
    numbers = Numbers(dtype_name)
    real, lanes, item, stored_item = numbers.real, numbers.count, numbers.item, numbers.stored_item
    vector_bytes, V, pieces_at, staging_at = numbers.bytes, numbers.vector, numbers.segments_bytes, numbers.staging_at
    _, strip_width, find_segments = strip_functions(numbers)
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write, _, write_vector = memory_functions(real.name)
    copy_short_row = short_row_function(dtype_name)
    copy_square = transposed_copy(dtype_name, numbers.lanes)
    plain = item == stored_item

    @inlined
    def segment_width(call, tiles):
        return (tiles - 1) * call.line_step * call.stride_w + (call.span_w - 1) * call.dilation_w + 1

    @inlined
    def find_pieces(call, segments, count, pieces, in_place):
        """Write (lane, tiles, offset, top, bottom, left, right) of each segment, and no tiles behind the last.

        offset: of its first pixel, in x or in the staging area. Of its pixels those in the rows top .. bottom-1 and
        the columns left .. right-1 exist.
        """
        table = array_at(types.int64, segments, (STRIP_VECTORS * lanes, 4), (32, 8))
        places = array_at(types.int64, pieces, (STRIP_VECTORS * lanes + 1, 8), (64, 8))
        lane = 0
        for s in range(count):
            image, p, q, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
            h, v = first_pixel(call, p, q)
            width = segment_width(call, tiles)
            places[s, 0], places[s, 1] = lane, tiles
            if in_place:
                places[s, 2] = image * call.x_n + h * call.x_h + v * call.x_w
                places[s, 3] = max(0, min(call.span_h, steps(-h, call.dilation_h)))
                places[s, 4] = max(places[s, 3], min(call.span_h, steps(call.H - h, call.dilation_h)))
                places[s, 5], places[s, 6] = max(0, -v), min(width, call.W - v)
            else:
                places[s, 2], places[s, 3], places[s, 4] = s * call.span_h * call.input_pitch, 0, call.span_h
                places[s, 5], places[s, 6] = 0, width
            lane += tiles
        places[count, 1] = 0

    @inlined
    def copy_row(target, source, step, count):
        """`count` numbers, `step` bytes apart in memory."""
        if step == stored_item and count >= lanes:
            last = count - lanes
            for i in range(0, last, lanes):
                write_vector(target + i * item, read_vector(source + i * stored_item))
            write_vector(target + last * item, read_vector(source + last * stored_item))
        elif step == stored_item:
            copy_short_row(target, source, count)
        else:
            for i in range(count):
                write(target + i * item, read(source + i * step))

    @inlined
    def copy_pixels(target, plane, source, step, count):
        """`count` pixels of `lanes` channels that lie side by side; a plane of the staging area for each channel."""
        done = 0
        while done + lanes <= count:
            copy_square(source + done * step, step, target + done * item, plane)
            done += lanes
        for i in range(done, count):
            for c in range(lanes):
                write(target + c * plane + i * item, read(source + i * step + c * stored_item))

    @inlined
    def stage(call, x, segments, count, target, together):
        """The pixels under a strip of one channel, or of as many as there are lanes (`together`). x: the channel."""
        table = array_at(types.int64, segments, (STRIP_VECTORS * lanes, 4), (32, 8))
        for s in range(count):
            image, p, q, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
            h, v = first_pixel(call, p, q)
            left, right = max(0, -v), min(segment_width(call, tiles), call.W - v)
            source = x + image * call.x_n + h * call.x_h + (v + left) * call.x_w
            line = target + s * call.span_h * call.input_pitch + left * item
            if left < right:
                for i in range(max(0, -h), min(call.span_h, call.H - h)):
                    to, of = line + i * call.input_pitch, source + i * call.x_h
                    if together:
                        copy_pixels(to, call.input_staging, of, call.x_w, right - left)
                    else:
                        copy_row(to, of, call.x_w, right - left)

    @inlined
    def clear(address, count):
        zero = broadcast(V, real(0))
        for i in range(0, count, vector_bytes):
            write_vector(address + i, zero)

    def input_stage(call_address, scratch, group, strip, slot, unused, unused_2, unused_3):
        call = record_at(RECORD, call_address)
        width = strip_width(call, strip)
        segments, pieces, staged = scratch, scratch + pieces_at, scratch + staging_at
        spread, spread_bytes = scratch + call.spread_at, call.span_h * call.span_w * call.spread_pitch
        in_place, side_by_side = plain and call.x_w == item, call.x_c == stored_item
        count = find_segments(call, strip, segments)
        find_pieces(call, segments, count, pieces, in_place)
        clear(spread, call.spread_channels * spread_bytes)
        if not in_place:
            clear(staged, lanes * call.input_staging)
        plane = call.Cg * width * vector_bytes + PLANE_PADDING
        x, c = call.x + group * call.Cg * call.x_c, 0
        row = call.dilation_h * call.x_h if in_place else call.input_pitch
        while c < call.Cg:
            source, step, some = x + c * call.x_c, call.x_c, min(call.spread_channels, call.Cg - c)
            if not in_place:
                staged_at = c % lanes
                if side_by_side and c - staged_at + lanes <= call.Cg:
                    if staged_at == 0:
                        stage(call, source, segments, count, staged, 1)
                    source, step = staged + staged_at * call.input_staging, call.input_staging
                    some = min(some, lanes - staged_at)
                else:
                    stage(call, source, segments, count, staged, 0)
                    source, some = staged, 1
            call_leaf(call.spread_pixels, call_address, pieces, source, row, step, some, spread, 0)
            call_leaf(call.transform_input, call_address, spread, c, some, slot, plane, width, 0)
            c += some

    return input_stage


def build_spread(tile, real_name, dilated):
    numbers = Numbers(real_name)
    lanes, item, V = numbers.count, numbers.item, numbers.lanes
    if dilated:
        spread, spread_few = (spread_images(tile, lanes) for lanes in (V, Lanes(V.kind, V.count // 2)))
        few, step = V.count // 2, 1
    else:
        spread, spread_few = spread_rows(tile, V), spread_short_rows(tile, V)
        few, step = tiles_of_two_vectors(tile, V), tile.columns.step

    def spread_pixels(call_address, pieces, source, row, channel, channels, target, unused):
        """`channels` channels, `channel` bytes apart, each to a square of its own."""
        call = record_at(RECORD, call_address)
        places = array_at(types.int64, pieces, (STRIP_VECTORS * lanes + 1, 8), (64, 8))
        pitch, pixel, s = call.spread_pitch, call.dilation_w, 0
        while places[s, 1] > 0:
            here, to, top, bottom = source + places[s, 2], target + places[s, 0] * item, places[s, 3], places[s, 4]
            for t in range(0, places[s, 1], lanes):
                of, into = here + t * step * item, to + t * item
                left, right = places[s, 5] - t * step, places[s, 6] - t * step
                if places[s, 1] - t <= few:
                    spread_few(of, row, pixel, channel, channels, top, bottom, left, right, into, pitch)
                else:
                    spread(of, row, pixel, channel, channels, top, bottom, left, right, into, pitch)
            s += 1

    return spread_pixels


def build_input_transform(tile, real_name):
    numbers = Numbers(real_name)
    transform, vector_bytes = input_transform(tile, numbers.lanes), numbers.bytes
    pixel_rows, columns = tile.rows.span, tile.columns.span

    def transform_input(call_address, source, first, channels, target, plane, width, unused):
        call = record_at(RECORD, call_address)
        source_row, row = columns * call.spread_pitch, width * vector_bytes
        square = pixel_rows * source_row
        for c in range(channels):
            for at in range(0, row, vector_bytes):
                here = source + c * square + at
                transform(here, source_row, call.spread_pitch, target + at, plane, (first + c) * row, row)

    return transform_input
