"""Winograd's output stage: sums of a strip transformed, and finished on their way into y."""

from numba import types

from . import tracing
from .column_stores import store_columns
from .compilation import inlined
from .epilogue import CLAMP, activate, clamped, limits
from .short_floats import memory_functions
from .tracing import load, loop, maximum, minimum, select, store, traced
from .vectors import array_at, broadcast, record_at
from .winograd_record import RECORD, STRIP_VECTORS, Numbers, call_leaf, steps, strip_functions
from .winograd_transforms import output_transform, transposed_copy


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
        ends = limits(V, low, high)

        def block(row, number):
            at = maximum(minimum(number * V.count, columns - V.count), 0)
            here = source + source_row * row + V.bytes * at
            pixels = [load(V, here + V.bytes * i) + add for i in range(V.count)]
            other = residual + residual_row * row + V.item_bytes * at
            store_columns(
                pixels, columns - at, y + y_row * row + V.item_bytes * at, y_filter,
                select(residual.differs(0), other, 0), residual_filter,
                lambda total: clamped(total, ends), store_vector,
            )  # fmt: skip

        blocks = (columns + (V.count - 1)) // V.count
        loop(rows, lambda row: loop(blocks, lambda number: block(row, number)))

    return finish_columns


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
    def finish_pixels(call, staged, pitch, y, y_row, residual, residual_row, rows, columns, biases):
        """A vector of filters that lie side by side in y and residual (NHWC)."""
        bias = read_sums(biases)
        for i in range(rows):
            for j in range(columns):
                sums = read_sums(staged + i * pitch + j * vector_bytes) + bias
                to, other = y + i * y_row + j * call.y_q, residual + i * residual_row + j * call.residual_q
                finish_vector(call, sums, to, other)

    @inlined
    def finish_filters(
        call, staged, pitch, y, y_row, residual, residual_row, rows, columns, filters, biases, square
    ):  # fmt: skip
        """Any filters, wherever their outputs lie."""
        for i in range(rows):
            for j in range(0, columns, lanes):
                at = max(0, min(j, columns - lanes))
                copy_square(staged + i * pitch + at * vector_bytes, vector_bytes, square, vector_bytes)
                to, other = y + i * y_row + at * call.y_q, residual + i * residual_row + at * call.residual_q
                for k in range(filters):
                    bias, count = read_sum(biases + k * item), min(lanes, columns - at)
                    there = other + k * call.residual_k
                    finish_row(call, square + k * vector_bytes, to + k * call.y_k, there, count, bias)

    @inlined
    def finish(call, staged, pitch, image, k, p, q, columns, filters, biases, square):
        """The staged outputs of some tiles in a row, from row p and column q on, to y; rows as far apart as images are.

        Those before the first row and column are left out, as are those behind the last.
        """
        above, before = max(0, steps(-p, call.dilation_h)), max(0, -q)
        rows, columns = min(call.m_h, steps(call.P - p, call.dilation_h)) - above, min(columns, call.Q - q) - before
        staged += above * pitch + before * vector_bytes
        p, q = p + above * call.dilation_h, q + before
        y = call.y + image * call.y_n + k * call.y_k + p * call.y_p + q * call.y_q
        residual = call.residual + image * call.residual_n + k * call.residual_k
        residual += p * call.residual_p + q * call.residual_q
        y_row, residual_row = call.dilation_h * call.y_p, call.dilation_h * call.residual_p
        alone, whole = call.has_residual == 0, filters == lanes
        if whole and call.y_k == stored_item and (alone or call.residual_k == stored_item):
            finish_pixels(call, staged, pitch, y, y_row, residual, residual_row, rows, columns, biases)
        elif whole and plain and call.activation == CLAMP and call.y_q == item and (alone or call.residual_q == item):
            other = 0 if alone else residual
            if call.streaming and (y | y_row | call.y_k) % vector_bytes == 0 and columns % lanes == 0:
                finish_columns_past(
                    y, y_row, call.y_k, other, residual_row, call.residual_k, staged, pitch, rows, columns,
                    biases, call.low, call.high,
                )  # fmt: skip
            else:
                finish_columns(
                    y, y_row, call.y_k, other, residual_row, call.residual_k, staged, pitch, rows, columns,
                    biases, call.low, call.high,
                )  # fmt: skip
        else:
            finish_filters(
                call, staged, pitch, y, y_row, residual, residual_row, rows, columns, filters, biases, square
            )  # fmt: skip

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
                image, p, q, tiles = table[s, 0], table[s, 1], table[s, 2], table[s, 3]
                together = call.dilation_w == tiles and tiles <= call.piece  # all images: outputs lie side by side
                beside = tiles if together else call.piece
                for t in range(0, tiles, call.piece):
                    some = min(call.piece, tiles - t)
                    if call.dilation_w == 1:
                        pitch, column = call.output_pitch, vector_bytes
                    else:
                        pitch, column = call.m_w * beside * vector_bytes, beside * vector_bytes
                    call_leaf(call.transform_output, source, call.output_plane, staged, pitch, some, column, 0, 0)
                    source += some * vector_bytes
                    if call.dilation_w == 1 or together:
                        first, columns = q + t * call.line_step, some * call.m_w
                        finish(call, staged, pitch, image, k + done, p, first, columns, here, biases, square)
                    else:
                        for j in range(call.m_w):
                            first = q + t + j * call.dilation_w
                            finish(
                                call, staged + j * column, pitch, image, k + done, p, first, some, here, biases, square
                            )

    return output_stage


def build_output_transform(tile, real_name, dilated):
    """The outputs of some tiles; those of dilated images between each other, `column` bytes from one to its next."""
    numbers = Numbers(real_name)
    transform, vector_bytes = output_transform(tile, numbers.lanes), numbers.bytes
    beside = 1 if dilated else tile.columns.m

    def transform_output(source, plane, staged, pitch, tiles, column, unused, unused_2):
        for i in range(tiles):
            to = staged + i * beside * vector_bytes
            transform(source + i * vector_bytes, plane, to, pitch, column if dilated else vector_bytes)

    return transform_output
