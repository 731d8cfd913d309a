"""The record that a Winograd convolution is called with; what all its stages know of strips and planes."""

import numpy as np
from numba import from_dtype, types

from . import target, tracing
from .call import CALL_DTYPE
from .compilation import inlined
from .microkernel import VECTORS, tile_rows, vector_type
from .tracing import traced
from .vectors import Vector, array_at
from .winograd_transforms import QUAD

FIELDS = (
    "m_h", "m_w", "span_h", "span_w",  # of a tile: outputs, inputs
    "points_h", "points_w", "numbers_h", "phases_h", "phases_w", "long_phases_h", "long_phases_w",  # of its planes
    "images_h", "tile_rows", "line_columns", "line_tiles", "line_step", "tiles", "strips", "runs",  # of all
    "shift_h", "shift_w", "spared_h", "spared_w",  # outputs before y; no products at infinity in the last tiles
    "parts", "panel", "panels", "part", "chunk", "row_panels", "depth_block", "depth_step",  # of filters, channels
    "filter_plane", "filter_group", "output_plane", "output_vector", "input_slot", "output_slot",  # bytes
    "worker_bytes", "inputs_at", "outputs_at", "filters_at", "tiles_at", "numbers_at", "planes_at", "soon_at",
    "fetched",
    "input_pitch", "output_pitch", "input_staging", "spread_at", "spread_pitch", "spread_channels",
    "spread_lines", "spread_tiles", "piece", "streaming",
)  # fmt: skip
LEAVES = (  # addresses of machine code
    "input_stage", "tile_lists", "filter_stage", "multiply_stage", "output_stage",
    "spread_pixels", "transform_input", "transform_output",
)  # fmt: skip
RECORD_DTYPE = np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in FIELDS + LEAVES])
RECORD = from_dtype(RECORD_DTYPE)
STRIP_VECTORS = 4  # at most
PIECE_TILES = 8  # in a row, that are transformed and then stored: their outputs stay in L1
PLANE_KINDS = 3  # each way: with all tiles, without the first, without the last
LIST_HEAD = 4  # words before the numbers in a list of tiles
PLANE_WORDS = 6  # that the multiply stage has of every plane
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


def most_tiles():
    """Of a register tile: 9, F(5)'s of a map of 14 x 14, x 3 sums and 3 vectors of filters are 30 of 32 registers."""
    return 9 if target.register_count() == 32 else tile_rows(VECTORS)


@inlined
def units_of(tiles, whole, most):
    """How many register tiles hold them: of `whole` tiles each, or one of `most`."""
    return 1 if 0 < tiles <= most else (tiles + whole - 1) // whole


def fewest_tiles():
    """Of a register tile: what is left of any two whole ones and one tile more, shared."""
    return most_tiles() // 2


def tile_list_words(numbers):
    """Of one list of a strip's tiles."""
    return LIST_HEAD + max(STRIP_VECTORS * numbers.count, fewest_tiles())


@inlined
def first_pixel(call, p, q):
    """Where in x the pixels of the tile of output (p, q) begin."""
    return p * call.stride_h - call.top, q * call.stride_w - call.left


def input_row_function(numbers, of_channels):
    """input_row(call, strip): bytes of a channel in a plane of V. of_channels: is a lane one, or a tile?"""
    first_tile, strip_width, _ = strip_functions(numbers)
    item, vector_bytes = numbers.item, numbers.bytes

    @inlined
    def input_row(call, strip):
        if of_channels:
            return (first_tile(call, strip + 1) - first_tile(call, strip)) * item
        return strip_width(call, strip) * vector_bytes

    return input_row


def strip_functions(numbers):
    """Numba functions for where a strip's tiles are: (first_tile, strip_width, find_segments)."""
    lanes = numbers.count

    @inlined
    def first_tile(call, strip):
        return strip * call.tiles // call.strips

    @inlined
    def strip_width(call, strip):
        """In vectors."""
        return (first_tile(call, strip + 1) - first_tile(call, strip) + lanes - 1) // lanes

    @inlined
    def find_segments(call, strip, segments):
        """Write (image, p, q, tiles) of each segment, (p, q) its first output; returns how many there are."""
        tile, end = first_tile(call, strip), first_tile(call, strip + 1)
        table = array_at(types.int64, segments, (STRIP_VECTORS * lanes, 4), (32, 8))
        line, at, count = tile // call.line_tiles, tile % call.line_tiles, 0
        line, column = line // call.line_columns, line % call.line_columns
        line, row = line // call.tile_rows, line % call.tile_rows
        image, above = line // call.images_h, line % call.images_h
        while tile < end:
            tiles = min(call.line_tiles - at, end - tile)
            table[count, 0], table[count, 3] = image, tiles
            table[count, 1] = (row * call.m_h - call.shift_h) * call.dilation_h + above
            table[count, 2] = (column * call.m_w - call.shift_w) * call.dilation_w + at * call.line_step
            tile += tiles
            count += 1
            at, column = 0, column + 1
            if column == call.line_columns:
                column, row = 0, row + 1
            if row == call.tile_rows:
                row, above = 0, above + 1
            if above == call.images_h:
                above, image = 0, image + 1
        return count

    return first_tile, strip_width, find_segments


@inlined
def steps(distance, step):
    """How many steps lead so far, or beyond."""
    return distance if step == 1 else -(-distance // step)


@inlined
def plane_phases(call, plane):
    """How many phases a plane's products are summed over."""
    return phases_down(call, plane) * (call.long_phases_w if plane < call.points_h else call.phases_w)


@inlined
def sums_of_plane(call, plane):
    """How many sums a plane's products are, by the places of their filters, and over how many phases each."""
    phases = plane_phases(call, plane)
    return (phases, 1) if call.numbers_h else (1, phases)


@inlined
def phases_down(call, plane):
    """At the point 0 there are only the long ones."""
    return call.long_phases_h if plane % call.points_h == 0 else call.phases_h


@inlined
def number_of(points, long_phases, point, phase):
    """Of the different numbers of a filter, one way, the one of a phase at a point: a short phase has one for all."""
    return phase * points + point if phase < long_phases else long_phases * (points - 1) + phase


@inlined
def filter_place(call, plane, phase):
    """Which of the stored numbers of filters a plane's product of that phase takes, where they are stored by phases."""
    down = phases_down(call, plane)
    row = number_of(call.points_h, call.long_phases_h, plane % call.points_h, phase % down)
    return row + call.numbers_h * number_of(call.points_w, call.long_phases_w, plane // call.points_h, phase // down)
