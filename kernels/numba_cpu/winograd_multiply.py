"""Winograd's products: all planes of a strip times some filters."""

from numba import types

from . import tracing
from .compilation import inlined
from .microkernel import VECTORS, accumulate
from .tracing import choose, load, store, traced, zeros
from .vectors import record_at
from .winograd_record import PLANE_PADDING, RECORD, Numbers, plane_phases, strip_functions


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
