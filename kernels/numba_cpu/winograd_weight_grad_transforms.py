"""The transforms of the CPU weight gradient by Winograd, and the copying before them: a lane is a channel or filter.

    x, NCHW                 pixels of a vector of channels, zeros around (L1)          a tile's planes
    channel 0: a b c ...    a: channels 0 .. 15 | b: channels 0 .. 15 | c ...          plane 0: channels 0 .. 15
    channel 1: a b c ...    the next row of pixels                          B^T d B    plane 1: channels 0 .. 15
    ...          transposed ...                                             ------->   ...

So neighbouring tiles take any number of columns, no lane is lost where a row of tiles ends, and what lies channels
last needs no transposition. The planes hold what the micro-kernel reads: of a tile, all channels.
"""

from numba.core import types

from . import tracing
from .compilation import inlined
from .microkernel import vector_type
from .tracing import first_lanes, load, load_lanes, select, store, traced
from .vectors import broadcast, prefetch
from .weight_grad_types import Types
from .winograd_matrices import lean_output_matrix
from .winograd_transforms import (
    filter_planes,
    planes_of,
    times_paired_columns,
    transformed_inputs,
    transposed_copy,
)


def copy_rows_function(dtype_name):
    """A Numba function: the rows of pixels under a piece of a row of tiles, for a vector of channels, zeros around."""
    t = Types(dtype_name)
    W, V, item, stored_item, zero = t.W, t.V, t.item, t.stored_item, t.real(0)
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums
    lanes_type, vector_bytes, plain = vector_type(t.real), t.W * t.item, t.item == t.stored_item
    copy_square = transposed_copy(dtype_name, lanes_type)

    @traced(types.void)
    def copy_some(source, source_step, target, channels, pixels):
        """As copy_square, of fewer channels or pixels, the others zero."""
        rows = []
        for i in range(W):
            mask = first_lanes(lanes_type, select(channels > i, pixels, 0))
            rows.append(load_lanes(lanes_type, source + source_step * i, mask))
        for i, column in enumerate(tracing.transpose(rows)):
            with tracing.when(pixels > i):
                store(target + vector_bytes * i, column)

    @inlined
    def clear(target, pixels):
        for i in range(pixels):
            write_sums(target + i * vector_bytes, broadcast(V, zero))

    @inlined
    def fetch(address, channel_step):
        for c in range(W):
            prefetch(address + c * channel_step)

    @inlined
    def copy_line(target, source, channel_step, pixel_step, channels, pixels):
        """`pixels` neighbouring pixels of up to W channels."""
        if channels == W and channel_step == stored_item:
            for i in range(pixels):
                write_sums(target + i * vector_bytes, read_vector(source + i * pixel_step))
        elif channels == W and pixel_step == stored_item and pixels >= W:
            last, ahead = pixels - W, source + pixels * stored_item
            for i in range(0, last, W):
                fetch(ahead + i * stored_item, channel_step)
                copy_square(source + i * stored_item, channel_step, target + i * vector_bytes, vector_bytes)
            fetch(ahead + last * stored_item, channel_step)
            copy_square(source + last * stored_item, channel_step, target + last * vector_bytes, vector_bytes)
        elif plain and pixel_step == item:
            for i in range(0, pixels, W):
                copy_some(source + i * item, channel_step, target + i * vector_bytes, channels, min(W, pixels - i))
        else:
            for i in range(pixels):
                for c in range(W):
                    number = read(source + i * pixel_step + c * channel_step) if c < channels else zero
                    write_sum(target + i * vector_bytes + c * item, number)

    @inlined
    def copy_rows(target, pitch, source, steps, channels, first_row, rows, row_end, first_column, columns, column_end):
        """Rows first_row .. first_row + rows - 1 and as many columns from first_column on, of a map of row_end rows and
        column_end columns that begins at `source`; steps: from channel to channel, row to row and column to column.
        """
        channel_step, row_step, column_step = steps
        left, right = max(0, -first_column), max(0, min(columns, column_end - first_column))
        for i in range(rows):
            line, row = target + i * pitch, first_row + i
            if row < 0 or row >= row_end or left >= right:
                clear(line, columns)
                continue
            clear(line, left)
            here = source + row * row_step + (first_column + left) * column_step
            copy_line(line + left * vector_bytes, here, channel_step, column_step, channels, right - left)
            clear(line + right * vector_bytes, columns - right)

    return copy_rows


def transform_functions(tile, real):
    """Two Numba functions transform(source, pitch, target, plane): pixels of x, or of grad_y, to a vector of a tile in
    each plane.
    """
    V = vector_type(real)

    def pixels(source, pitch, height, width):
        return [[load(V, source + pitch * i + V.bytes * j) for j in range(width)] for i in range(height)]

    def store_planes(target, plane, planes):
        for (value,) in planes:
            store(target, value)
            target = target + plane

    @traced(types.void)
    def transform_input(source, pitch, target, plane):
        grid = pixels(source, pitch, tile.rows.span, tile.columns.span)
        store_planes(target, plane, planes_of(tile, transformed_inputs, lambda: grid))

    @traced(types.void)
    def transform_grad(source, pitch, target, plane):
        grid = pixels(source, pitch, tile.rows.taps, tile.columns.taps)
        store_planes(target, plane, filter_planes(tile, [value for row in grid for value in row]))

    return transform_input, transform_grad


def transform_back_function(tile, real):
    """A Numba function transform_back(source, plane, target, tap, continued): the sums of a channel and a vector of
    filters, one in each plane, to the gradients of all taps, which lie `tap` apart; set, or added.
    """
    V = vector_type(real)
    down, across = lean_output_matrix(tile.rows), lean_output_matrix(tile.columns)

    def taps_of(source, plane):
        columns = []
        for j in range(tile.columns.points):
            sums = [load(V, source + plane * (j * tile.rows.points + i)) for i in range(tile.rows.points)]
            columns.append(times_paired_columns(down, sums))
        for i in range(tile.rows.m):
            yield from times_paired_columns(across, [column[i] for column in columns])

    @traced(types.void)
    def transform_back(source, plane, target, tap, continued):
        gradients = list(taps_of(source, plane))

        def added():
            return [load(V, target + tap * i) + g for i, g in enumerate(gradients)]

        for i, total in enumerate(tracing.choose(continued.differs(0), added, lambda: gradients)):
            store(target + tap * i, total)

    return transform_back
