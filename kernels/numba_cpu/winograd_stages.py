"""What one thread of a Winograd convolution runs: spread, transform, multiply, transform, store. winograd.py has the
picture.

A strip is some tiles in the order image, row, column, at most STRIP_VECTORS vectors of them; it may begin and end
anywhere in a row of tiles. Its part of one row of tiles is a segment:

    x, one channel               spread over the lanes, a tile per lane (L1)       V: planes of the strip
    . . . . . . . .    masked    pixel 0,0 of each tile: segment 0 | segment 1     plane 0: channel 0: tiles 0 .. 48
    . a b c d e f .    loads,    pixel 0,1                       ...                        channel 1: ...
    . g h i j k l .   shuffles   ...                                               plane 1
    . . . . . . . .              the last pixel                                    ...

A plane of V holds, for a stride, a channel of each phase after another: their products are one sum.

The masks make padding, odd sizes and ends of rows a matter of lanes that stay zero. What does not lie side by side in x
as float32 or float64 (NHWC, 16-bit numbers, odd strides) is copied to a staging area first, with zeros around it.

    M: sums of a strip           outputs of up to 8 tiles in a row (L1)            y, NCHW
    plane 0: filters 0 .. 15:    row 0: pixel 0: filters 0 .. 15, pixel 1, ...     filter 0: row 0: pixel 0, 1, ...
      tile 0, tile 1, ...        ...                                   transposed           ...
    plane 1 ...                  row m-1                                           filter 1: ...

Channels are spread several at a time and then transformed: a load of what was stored just before, by stores of another
place, would wait for them.
"""

import numpy as np
from numba import from_dtype, types

from . import tracing
from .call import CALL_DTYPE
from .column_stores import store_columns
from .compilation import inlined
from .epilogue import CLAMP, activate
from .microkernel import VECTORS, accumulate, vector_type
from .short_floats import memory_functions
from .tracing import Lanes, choose, convert, load, loop, maximum, minimum, select, store, traced, zeros
from .vectors import Vector, array_at, broadcast, record_at
from .winograd_transforms import (
    QUAD,
    filter_transform,
    input_transform,
    output_transform,
    side_by_side_filter_transform,
    spread_rows,
    transposed_copy,
)

FIELDS = (
    "m_h", "m_w", "step_h", "step_w", "span_h", "span_w",  # of a tile: outputs, inputs to the next one, inputs
    "points_h", "points_w", "phases_h", "phases_w", "long_phases_h", "long_phases_w",  # of its planes
    "tile_rows", "tile_columns", "tiles", "unit", "units", "strips", "runs",  # of the whole problem
    "parts", "panel", "panels", "part", "chunk", "row_panels", "depth_block", "depth_step",  # of filters, channels
    "filter_plane", "filter_group", "output_plane", "output_vector", "input_slot", "output_slot",  # bytes
    "worker_bytes", "inputs_at", "outputs_at", "filters_at",
    "input_pitch", "output_pitch", "input_staging", "spread_at", "spread_pitch", "spread_channels", "piece",
    "streaming",
)  # fmt: skip
LEAVES = (  # addresses of machine code
    "input_stage", "filter_stage", "multiply_stage", "output_stage",
    "spread_pixels", "transform_input", "transform_output",
)  # fmt: skip
RECORD_DTYPE = np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in FIELDS + LEAVES])
RECORD = from_dtype(RECORD_DTYPE)
STRIP_VECTORS = 4  # at most
PIECE_TILES = 8  # in a row, that are transformed and then stored: their outputs stay in L1
PLANE_PADDING = 64  # bytes: without, the planes of a tile fall into the same cache sets


@traced(types.void)
def call_leaf(address, a, b, c, d, e, f, g, h):
    """Call the C function void f(int64 x 8) at `address`."""
    tracing.call_address(address, a, b, c, d, e, f, g, h)


class Numbers:
    """The types of one dtype: in memory and in registers, and the addresses that follow from them."""

    def __init__(self, dtype_name):
        self.real = types.float64 if dtype_name == "float64" else types.float32
        self.lanes = vector_type(self.real.name)  # as tracing has it
        self.vector = Vector(self.real, self.lanes.count)  # as Numba has it
        self.count, self.item, self.bytes = self.lanes.count, self.lanes.item_bytes, self.lanes.bytes
        self.stored_item = 2 if dtype_name.endswith("16") else self.item
        self.segments_bytes = 32 * STRIP_VECTORS * self.count
        self.pieces_bytes = 64 * (STRIP_VECTORS * self.count + 1)
        self.staging_at = self.segments_bytes + self.pieces_bytes + self.bytes * self.count

    def taps_bytes(self, taps):
        """Of a filter's copy: whole quads, which is how they are loaded."""
        return self.item * QUAD * -(-taps // QUAD)


def strip_functions(numbers):
    """Numba functions for where a strip's tiles are: (first_tile, strip_width, find_segments)."""
    lanes = numbers.count

    @inlined
    def first_tile(call, strip):
        return min(strip * call.units // call.strips * call.unit, call.tiles)

    @inlined
    def strip_width(call, strip):
        """In vectors."""
        return (first_tile(call, strip + 1) - first_tile(call, strip) + lanes - 1) // lanes

    @inlined
    def find_segments(call, strip, segments):
        """Write (image, row, column, tiles) of each of the strip's segments; returns how many there are."""
        tile, end = first_tile(call, strip), first_tile(call, strip + 1)
        table = array_at(types.int64, segments, (STRIP_VECTORS * lanes, 4), (32, 8))
        line, column, count = tile // call.tile_columns, tile % call.tile_columns, 0
        image, row = line // call.tile_rows, line % call.tile_rows
        while tile < end:
            tiles = min(call.tile_columns - column, end - tile)
            table[count, 0], table[count, 1], table[count, 2], table[count, 3] = image, row, column, tiles
            tile += tiles
            count += 1
            column, row = 0, row + 1
            if row == call.tile_rows:
                image, row = image + 1, 0
        return count

    return first_tile, strip_width, find_segments


@inlined
def plane_phases(call, plane):
    """How many phases a plane's products are summed over: at the point 0 there are only the long ones."""
    down = call.long_phases_h if plane % call.points_h == 0 else call.phases_h
    return down * (call.long_phases_w if plane < call.points_h else call.phases_w)


def finish_columns_function(V, store_vector):
    """finish_columns(y, y_row, y_filter, residual, residual_row, residual_filter, source, rows, columns, biases, low,
    high): a vector of filters' outputs, from a vector for each pixel to a row for each filter, in blocks of V.count
    columns; the last two may overlap.
    """

    @traced(types.void)
    def finish_columns(
        y, y_row, y_filter, residual, residual_row, residual_filter, source, source_row, rows, columns, biases,
        low, high,
    ):  # fmt: skip
        add = load(V, biases)
        least, most = (tracing.broadcast(V, convert(limit, V.scalar)) for limit in (low, high))

        def clamp(total):
            return select(total < least, least, select(total > most, most, total))

        def block(row, number):
            at = maximum(minimum(number * V.count, columns - V.count), 0)
            here = source + source_row * row + V.bytes * at
            pixels = [load(V, here + V.bytes * i) + add for i in range(V.count)]
            other = residual + residual_row * row + V.item_bytes * at
            store_columns(
                pixels, columns - at, y + y_row * row + V.item_bytes * at, y_filter,
                select(residual.differs(0), other, 0), residual_filter, clamp, store_vector,
            )  # fmt: skip

        blocks = (columns + (V.count - 1)) // V.count
        loop(rows, lambda row: loop(blocks, lambda number: block(row, number)))

    return finish_columns


def build_input_stage(dtype_name):
    """All channels of a strip, from x to their planes in its slot."""
    numbers = Numbers(dtype_name)
    real, lanes, item, stored_item = numbers.real, numbers.count, numbers.item, numbers.stored_item
    vector_bytes, V, pieces_at, staging_at = numbers.bytes, numbers.vector, numbers.segments_bytes, numbers.staging_at
    _, strip_width, find_segments = strip_functions(numbers)
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write, _, write_vector = memory_functions(real.name)
    copy_square = transposed_copy(dtype_name, numbers.lanes)
    plain = item == stored_item

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
            image, row, column, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
            h, v = row * call.step_h - call.top, column * call.step_w - call.left
            width = tiles * call.step_w + call.span_w - call.step_w
            places[s, 0], places[s, 1] = lane, tiles
            if in_place:
                places[s, 2] = image * call.x_n + h * call.x_h + v * call.x_w
                places[s, 3] = max(0, min(call.span_h, -h))
                places[s, 4] = max(places[s, 3], min(call.span_h, call.H - h))
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
            image, row, column, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
            h, v = row * call.step_h - call.top, column * call.step_w - call.left
            left, right = max(0, -v), min(tiles * call.step_w + call.span_w - call.step_w, call.W - v)
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
        x, row, c = call.x + group * call.Cg * call.x_c, call.x_h if in_place else call.input_pitch, 0
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


def tile_function(V, rows, vectors):
    """tile(a, a_step, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step): `rows` tiles x `vectors` of
    filters, set in c or added to it.

    a: the first tile's number of a channel, a_step bytes from channel to channel. b: a vector of filters for every
    channel. b_vector, c_vector: from one vector of filters to the next. Each block of channels is summed from zero:
    shorter sums, smaller rounding errors.
    """

    @traced(types.void)
    def tile(a, a_step, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step):
        item, step = tracing.constant(a, V.item_bytes), tracing.constant(a, V.bytes)
        nothing = [[zeros(V, a) for _ in range(vectors)] for _ in range(rows)]
        sums = accumulate(
            V, rows, vectors, a, item, item, a_step, b, step, depth, nothing, ahead, ahead_step, b_vector,
            fetched=vectors,
        )  # fmt: skip

        def address(i, j):
            return c + c_vector * j + V.bytes * i

        def added():
            return [[load(V, address(i, j)) + sums[i][j] for j in range(vectors)] for i in range(rows)]

        for i, row in enumerate(choose(continued > 0, added, lambda: sums)):
            for j, total in enumerate(row):
                store(address(i, j), total)

    return tile


# ---- the leaves: machine code of its own, since each caller that Numba inlines it into would compile it again ----


def build_spread(tile, real_name):
    numbers = Numbers(real_name)
    lanes, item, half = numbers.count, numbers.item, numbers.count // 2
    spread, spread_few = (spread_rows(tile, V) for V in (numbers.lanes, Lanes(numbers.lanes.kind, half)))
    step = tile.columns.step

    def spread_pixels(call_address, pieces, source, row, channel, channels, target, unused):
        """`channels` channels, `channel` bytes apart, each to a square of its own."""
        call = record_at(RECORD, call_address)
        places = array_at(types.int64, pieces, (STRIP_VECTORS * lanes + 1, 8), (64, 8))
        pitch, s = call.spread_pitch, 0
        while places[s, 1] > 0:
            here, to, top, bottom = source + places[s, 2], target + places[s, 0] * item, places[s, 3], places[s, 4]
            for t in range(0, places[s, 1], lanes):
                of, into = here + t * step * item, to + t * item
                left, right = places[s, 5] - t * step, places[s, 6] - t * step
                if places[s, 1] - t <= half:
                    spread_few(of, row, channel, channels, top, bottom, left, right, into, pitch)
                else:
                    spread(of, row, channel, channels, top, bottom, left, right, into, pitch)
            s += 1

    return spread_pixels


def build_input_transform(tile, real_name):
    numbers = Numbers(real_name)
    transform, vector_bytes = input_transform(tile, numbers.lanes), numbers.bytes
    pixels = tile.rows.span * tile.columns.span

    def transform_input(call_address, source, first, channels, target, plane, width, unused):
        call = record_at(RECORD, call_address)
        square, row = pixels * call.spread_pitch, width * vector_bytes
        for c in range(channels):
            for at in range(0, row, vector_bytes):
                here = source + c * square + at
                transform(here, call.spread_pitch, target + at, plane, (first + c) * row, row)

    return transform_input


def build_output_transform(tile, real_name):
    numbers = Numbers(real_name)
    transform, vector_bytes, m_w = output_transform(tile, numbers.lanes), numbers.bytes, tile.columns.m

    def transform_output(source, plane, staged, pitch, tiles, unused, unused_2, unused_3):
        for i in range(tiles):
            transform(source + i * vector_bytes, plane, staged + i * m_w * vector_bytes, pitch)

    return transform_output


def build_multiply_stage(real_name, unit):
    """All planes of a strip: its tiles, `unit` at a time, times some filters, up to 3 vectors at a time."""
    numbers = Numbers(real_name)
    item, vector_bytes = numbers.item, numbers.bytes
    first_tile, strip_width, _ = strip_functions(numbers)
    tile_3, tile_2, tile_1 = (tile_function(numbers.lanes, unit, vectors) for vectors in (3, 2, 1))

    @inlined
    def tile_vectors(left):
        """Of the next tile, where so many are left: 3, but 2 and 2 rather than 3 and 1."""
        return 2 if left == 4 else min(left, VECTORS)

    @inlined
    def multiply_strip(vectors, tiles, a, a_step, b, depth, c, c_vector, continued, ahead, share):
        """share: bytes of each vector of the weights at `ahead` that every unit fetches at every step."""
        b_vector = depth * vector_bytes
        for t in range(0, tiles, unit):
            here, to, soon = a + t * item, c + t * vector_bytes, ahead + t // unit * share * depth
            if vectors == 3:
                tile_3(here, a_step, b, b_vector, depth, to, c_vector, continued, soon, share)
            elif vectors == 2:
                tile_2(here, a_step, b, b_vector, depth, to, c_vector, continued, soon, share)
            else:
                tile_1(here, a_step, b, b_vector, depth, to, c_vector, continued, soon, share)

    @inlined
    def following(call, plane, filters, c, first, behind, j, vectors, panel, end):
        """Where the weights begin that are needed next: of channel c, or of the next filters, or of the next plane."""
        phases = plane_phases(call, plane)
        if c == behind:
            c, j = first, j + vectors
        if j == end:
            filters, j = filters + phases * call.filter_plane, panel
            phases = plane_phases(call, plane + 1)
        channels = min(call.depth_block, call.Cg - c)
        return filters + phases * ((c - first) * call.row_panels + j * channels) * vector_bytes

    def multiply_stage(call_address, weights, panel, end, strip, inputs, outputs, first):
        """The next depth_step channels, from `first` on, times the vectors of filters panel .. end-1 of `weights`.

        outputs: where the sums of the first of these vectors are, or shall be.
        """
        call = record_at(RECORD, call_address)
        tiles, row = first_tile(call, strip + 1) - first_tile(call, strip), strip_width(call, strip) * vector_bytes
        filters, a, share = weights, inputs, vector_bytes // ((tiles + unit - 1) // unit)
        behind = min(first + call.depth_step, call.Cg)
        for plane in range(call.points_h * call.points_w):
            phases, j = plane_phases(call, plane), panel
            while j < end:
                vectors = tile_vectors(end - j)
                to = outputs + plane * call.output_plane + (j - panel) * call.output_vector
                for c in range(first, behind, call.depth_block):
                    channels = min(call.depth_block, call.Cg - c)
                    depth, pixels = phases * channels, a + phases * c * row
                    b = filters + (phases * (c - first) * call.row_panels + j * depth) * vector_bytes
                    ahead = following(call, plane, filters, c + channels, first, behind, j, vectors, panel, end)
                    multiply_strip(vectors, tiles, pixels, row, b, depth, to, call.output_vector, c, ahead, share)
                j += vectors
            a, filters = a + phases * (call.Cg * row + PLANE_PADDING), filters + phases * call.filter_plane

    return multiply_stage


def build_output_stage(dtype_name):
    """Some filters of a strip, from their planes in its slot to y."""
    numbers = Numbers(dtype_name)
    real, V, lanes, item, stored_item = numbers.real, numbers.vector, numbers.count, numbers.item, numbers.stored_item
    vector_bytes, plain = numbers.bytes, numbers.item == numbers.stored_item
    staging_at, square_at = numbers.staging_at, numbers.segments_bytes + numbers.pieces_bytes
    _, _, find_segments = strip_functions(numbers)
    read, write, read_vector, write_vector = memory_functions(dtype_name)
    read_sum, write_bias, read_sums, _ = memory_functions(real.name)
    copy_square = transposed_copy(real.name, numbers.lanes)
    finish_columns, finish_columns_past = (
        finish_columns_function(numbers.lanes, how) for how in (store, tracing.store_past_cache)
    )

    @inlined
    def finish_vector(call, sums, y, residual):
        if call.has_residual:
            sums = sums + read_vector(residual)
        write_vector(y, activate(sums, call.activation, call.low, call.high, call.slope))

    @inlined
    def finish_row(call, source, y, residual, count, bias):
        """y = activation(sums + bias + residual) for `count` outputs of a filter in a row, `lanes` at most."""
        together = call.y_q == stored_item and (call.has_residual == 0 or call.residual_q == stored_item)
        if together and count == lanes:
            finish_vector(call, read_sums(source) + broadcast(V, bias), y, residual)
            return
        for i in range(count):
            total = read_sum(source + i * item) + bias
            if call.has_residual:
                total += read(residual + i * call.residual_q)
            write(y + i * call.y_q, activate(total, call.activation, call.low, call.high, call.slope))

    @inlined
    def finish_pixels(call, staged, y, residual, rows, columns, biases):
        """A vector of filters that lie side by side in y and residual (NHWC)."""
        bias = read_sums(biases)
        for i in range(rows):
            for j in range(columns):
                sums = read_sums(staged + i * call.output_pitch + j * vector_bytes) + bias
                to, other = y + i * call.y_p + j * call.y_q, residual + i * call.residual_p + j * call.residual_q
                finish_vector(call, sums, to, other)

    @inlined
    def finish_filters(call, staged, y, residual, rows, columns, filters, biases, square):
        """Any filters, wherever their outputs lie."""
        for i in range(rows):
            for j in range(0, columns, lanes):
                at = max(0, min(j, columns - lanes))
                copy_square(staged + i * call.output_pitch + at * vector_bytes, vector_bytes, square, vector_bytes)
                to, other = y + i * call.y_p + at * call.y_q, residual + i * call.residual_p + at * call.residual_q
                for k in range(filters):
                    bias, count = read_sum(biases + k * item), min(lanes, columns - at)
                    there = other + k * call.residual_k
                    finish_row(call, square + k * vector_bytes, to + k * call.y_k, there, count, bias)

    @inlined
    def finish(call, staged, image, k, p, q, columns, filters, biases, square):
        """The staged outputs of some tiles in a row, from row p and column q on, to y."""
        y = call.y + image * call.y_n + k * call.y_k + p * call.y_p + q * call.y_q
        residual = call.residual + image * call.residual_n + k * call.residual_k
        residual += p * call.residual_p + q * call.residual_q
        rows, columns = min(call.m_h, call.P - p), min(columns, call.Q - q)
        alone, whole = call.has_residual == 0, filters == lanes
        if whole and call.y_k == stored_item and (alone or call.residual_k == stored_item):
            finish_pixels(call, staged, y, residual, rows, columns, biases)
        elif whole and plain and call.activation == CLAMP and call.y_q == item and (alone or call.residual_q == item):
            other, pitch = 0 if alone else residual, call.output_pitch
            if call.streaming and (y | call.y_p | call.y_k) % vector_bytes == 0 and columns % lanes == 0:
                finish_columns_past(
                    y, call.y_p, call.y_k, other, call.residual_p, call.residual_k, staged, pitch, rows, columns,
                    biases, call.low, call.high,
                )  # fmt: skip
            else:
                finish_columns(
                    y, call.y_p, call.y_k, other, call.residual_p, call.residual_k, staged, pitch, rows, columns,
                    biases, call.low, call.high,
                )  # fmt: skip
        else:
            finish_filters(call, staged, y, residual, rows, columns, filters, biases, square)

    def output_stage(call_address, scratch, strip, k, filters, slot, unused, unused_2):
        """k: the first filter, counted through all groups; slot: its planes."""
        call = record_at(RECORD, call_address)
        segments, square, staged = scratch, scratch + square_at, scratch + staging_at
        biases = staged + call.m_h * call.output_pitch
        count = find_segments(call, strip, segments)
        table = array_at(types.int64, segments, (STRIP_VECTORS * lanes, 4), (32, 8))
        for done in range(0, filters, lanes):
            source, here = slot + done // lanes * call.output_vector, min(lanes, filters - done)
            for i in range(here):
                write_bias(biases + i * item, read(call.bias + (k + done + i) * call.bias_k) if call.has_bias else 0.0)
            for s in range(count):
                image, row, column, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
                for t in range(0, tiles, call.piece):
                    some = min(call.piece, tiles - t)
                    call_leaf(
                        call.transform_output, source, call.output_plane, staged, call.output_pitch, some, 0, 0, 0
                    )
                    source += some * vector_bytes
                    p, q = row * call.m_h, (column + t) * call.m_w
                    finish(call, staged, image, k + done, p, q, some * call.m_w, here, biases, square)

    return output_stage


def transform_filters_function(real_name):
    """transform_filters(call_address, scratch, k, filters, first, target, panel): the next depth_step channels, from
    `first` on, of the filters from k on, counted through all groups, to panel `panel` of `target` and the next ones.

    In memory: plane, block of channels, panel, channel, phase, filter of the panel.
    """
    vector_bytes = Numbers(real_name).bytes

    @inlined
    def transform_filters(call_address, scratch, k, filters, first, target, panel):
        call = record_at(RECORD, call_address)
        for c in range(first, min(first + call.depth_step, call.Cg), call.depth_block):
            w, depth = call.w + k * call.w_k + c * call.w_c, min(call.depth_block, call.Cg - c)
            block = ((c - first) * call.row_panels + panel * depth) * vector_bytes
            call_leaf(call.filter_stage, call_address, scratch, w, filters, depth, target, block, 0)

    return transform_filters


def build(real_name):
    """The task: a run of strips and a part of the filters of one group, from x to y.

    Filters that are packed come with all their channels; a run is one strip then. Others are transformed here, as many
    filters and channels at a time as stay in the cache, for all strips of the run.
    """
    transform_filters = transform_filters_function(real_name)

    def winograd(call_address, index, worker):
        call = record_at(RECORD, call_address)
        scratch = call.workspace + worker * call.worker_bytes
        run, rest = index % call.runs, index // call.runs
        part, group = rest % call.parts, rest // call.parts
        begin, end = part * call.part, min((part + 1) * call.part, call.panels)
        first, behind = run * call.strips // call.runs, (run + 1) * call.strips // call.runs
        for panel in range(begin, end, call.chunk):
            count, k = min(call.chunk, end - panel), group * call.Kg + panel * call.panel
            filters = min(count * call.panel, call.Kg - panel * call.panel)
            for c in range(0, call.Cg, call.depth_step):
                weights, at = call.w + group * call.filter_group, panel
                if call.filters_at:
                    weights, at = scratch + call.filters_at, 0
                    transform_filters(call_address, scratch, k, filters, c, weights, 0)
                for strip in range(first, behind):
                    inputs = scratch + call.inputs_at + (strip - first) * call.input_slot
                    outputs = scratch + call.outputs_at + (strip - first) * call.output_slot
                    if panel == begin and c == 0:
                        call_leaf(call.input_stage, call_address, scratch, group, strip, inputs, 0, 0, 0)
                    call_leaf(call.multiply_stage, call_address, weights, at, at + count, strip, inputs, outputs, c)
                    if c + call.depth_step >= call.Cg:
                        call_leaf(call.output_stage, call_address, scratch, strip, k, filters, outputs, 0, 0)

    return winograd


def build_pack(real_name):
    """The task that transforms one panel of filters of one group ahead, for many calls."""
    transform_filters = transform_filters_function(real_name)

    def pack(call_address, index, worker):
        call = record_at(RECORD, call_address)
        group, panel = index // call.panels, index % call.panels
        scratch, target = call.workspace + worker * call.worker_bytes, call.y + group * call.filter_group
        first = panel * call.panel
        filters = min(call.panel, call.Kg - first)
        transform_filters(call_address, scratch, group * call.Kg + first, filters, 0, target, panel)

    return pack


def build_filter_stage(tile, dtype_name):
    """Some channels of some filters, from w to where multiply_stage reads them.

    Packed weights larger than the caches are stored past them, a cache line of each plane at a time: half lines to 36
    places at once would each be read first.
    """
    numbers = Numbers(dtype_name)
    lanes, item, vector_bytes = numbers.count, numbers.item, numbers.bytes
    real, plain = numbers.real, numbers.item == numbers.stored_item
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(real.name)
    line = max(1, 64 // vector_bytes)
    transform = filter_transform(tile, numbers.lanes)
    transform_line_past = filter_transform(tile, numbers.lanes, line, tracing.store_past_cache)
    transform_side_by_side = side_by_side_filter_transform(tile, numbers.lanes)
    staging_at, R, S = numbers.staging_at, tile.rows.taps, tile.columns.taps
    taps_bytes, loaded = numbers.taps_bytes(R * S), R * S >= QUAD

    @inlined
    def stage_taps(call, w, target):
        """The taps at w, wherever they lie."""
        for r in range(R):
            for s in range(S):
                write(target + (S * r + s) * item, read(w + r * call.w_r + s * call.w_s))

    @inlined
    def clear_taps(target):
        for i in range(0, taps_bytes, item):
            write(target + i, real(0))

    @inlined
    def pack_staged(call, w, first, depth, filters, scratch, target, block):
        """Channels first .. depth-1 of a panel, through a copy of their taps; zeros for missing filters."""
        offsets, staged = array_at(types.int64, scratch, (lanes,), (8,)), scratch + staging_at
        for lane in range(lanes):
            offsets[lane] = lane * taps_bytes
            clear_taps(staged + lane * taps_bytes)
        for c in range(first, depth):
            for lane in range(filters):
                stage_taps(call, w + lane * call.w_k + c * call.w_c, staged + lane * taps_bytes)
            transform(staged, 0, scratch, target, call.filter_plane, block + c * vector_bytes, False)

    @inlined
    def pack_in_place(call, w, depth, scratch, target, block, turned):
        """All channels of a whole panel whose taps lie side by side; returns how many were done.

        w: the tap that comes first in memory; turned: whether that is the last one, as input gradients have it.
        """
        offsets = array_at(types.int64, scratch, (lanes,), (8,))
        for lane in range(lanes):
            offsets[lane] = lane * call.w_k
        done = 0
        if call.streaming and call.filters_at == 0:
            while done + line <= depth:
                here = block + done * vector_bytes
                transform_line_past(w + done * call.w_c, call.w_c, scratch, target, call.filter_plane, here, turned)
                done += line
        while done < depth:
            here = block + done * vector_bytes
            transform(w + done * call.w_c, 0, scratch, target, call.filter_plane, here, turned)
            done += 1
        return done

    @inlined
    def pack_side_by_side(call, w, depth, target, block):
        """All channels of a whole panel whose filters lie side by side; returns how many were done."""
        for c in range(depth):
            here = block + c * vector_bytes
            transform_side_by_side(w + c * call.w_c, call.w_r, call.w_s, target, call.filter_plane, here)
        return depth

    def filter_stage(call_address, scratch, w, filters, depth, target, block, unused):
        """`depth` channels, which begin at w, of so many filters, to `block` in each of the planes at `target`.

        block: in bytes of a plane of one phase; those of several have so many times as many.
        """
        call = record_at(RECORD, call_address)
        turned = call.w_s == -item
        in_place = loaded and plain and abs(call.w_s) == item and call.w_r == S * call.w_s
        side_by_side = plain and call.w_k == item
        for k in range(0, filters, lanes):
            some, here, to, done = min(lanes, filters - k), w + k * call.w_k, block + k * depth * item, 0
            if in_place and some == lanes:
                first = here + (R - 1) * call.w_r + (S - 1) * call.w_s if turned else here
                done = pack_in_place(call, first, depth, scratch, target, to, turned)
            elif side_by_side and some == lanes:
                done = pack_side_by_side(call, here, depth, target, to)
            pack_staged(call, here, done, depth, some, scratch, target, to)

    return filter_stage
