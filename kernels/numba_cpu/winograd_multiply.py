"""Winograd's products: all planes of a strip times some filters.

Tiles at the edge of y may have outputs beyond it. The first output of a tile alone needs the products at the point 0,
the last one alone those at infinity. So where tiles of 4 x 4 cover 14 rows, the first ones begin a row above them and
neither these nor the last ones have those products:

    14 rows of y:   . 0 1 2 | 3 4 5 6 | 7 8 9 10 | 11 12 13 .        6 + 6 - 1 + 6 + 6 - 1 = 22 of 24 products,
                                                                    484 instead of 576 both ways

Each plane so has a list of its tiles (tiles_of_planes): all, or those without the first or last row or column of
tiles. The lists are divided among as few register tiles as hold them, all alike to one tile.
"""

from numba import types

from . import target, tracing
from .compilation import inlined
from .microkernel import VECTORS, accumulate, tile_rows
from .tracing import I64, choose, load, store, traced, when, zeros
from .vectors import array_at, record_at
from .winograd_record import (
    LIST_HEAD,
    PLANE_KINDS,
    PLANE_PADDING,
    RECORD,
    Numbers,
    fewest_tiles,
    filter_place,
    strip_functions,
    sums_of_plane,
    tile_list_words,
)


def tile_function(V, vectors, listed):
    """tile(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart): so
    many tiles x `vectors` of filters, set in c or added to it.

    tiles: the first one's number, which the others follow; or, where they are `listed`, the address of their numbers,
    which may repeat. a: tile 0 of a channel, a_step bytes from channel to channel. a_ahead: how far behind lie the same
    tiles of the plane that is read next. b: a vector of filters for every channel. b_vector, c_vector: from one vector
    of filters to the next. Each block of channels is summed from zero: shorter sums, smaller rounding errors.
    """
    fetches_inputs = target.register_count() == 32  # steps of fewer multiply-adds have no time for it

    def multiply(
        rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart
    ):  # fmt: skip
        step = tracing.constant(a, V.bytes)
        if listed:
            numbers = [load(I64, tiles + I64.bytes * i) for i in range(rows)]
        else:  # constants: with few channels, what precedes the sums counts
            numbers = [tracing.constant(a, i) for i in range(rows)]
            a, c = a + tiles * V.item_bytes, c + tiles * V.bytes
        nothing = [[zeros(V, a) for _ in range(vectors)] for _ in range(rows)]
        sums = accumulate(
            V, rows, vectors, a, [number * V.item_bytes for number in numbers], None, a_step, b, step, depth, nothing,
            ahead, ahead_step, b_vector, fetched=vectors, apart=apart,
            a_ahead=a_ahead + numbers[0] * V.item_bytes if fetches_inputs else None,
        )  # fmt: skip
        places = [[c + number * V.bytes + c_vector * j for j in range(vectors)] for number in numbers]

        def added():
            return [
                [load(V, place) + total for place, total in zip(*both, strict=True)]
                for both in zip(places, sums, strict=True)
            ]

        for row, totals in zip(places, choose(continued > 0, added, lambda: sums), strict=True):
            for place, total in zip(row, totals, strict=True):
                store(place, total)

    @traced(types.void)
    def tile(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart):
        for count in range(tile_rows(VECTORS), fewest_tiles() - 1, -1):
            with when(rows.equals(count)):
                multiply(
                    count, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step,
                    apart,
                )  # fmt: skip

    return tile


def build_tile_lists(real_name):
    """The tiles of a strip that each kind of plane has: in how many register tiles, of how many tiles each, how many of
    these have one more, how many bytes of a vector of weights each fetches ahead; then the tiles' numbers in the strip.

    A list ends with its last tile again, as often as the smallest register tile may need. Behind the lists: for every
    sum of products, which of the stored filters' planes it takes.
    """
    numbers = Numbers(real_name)
    first_tile, _, _ = strip_functions(numbers)
    words, fewest, most, vector_bytes = tile_list_words(numbers), fewest_tiles(), tile_rows(VECTORS), numbers.bytes

    @inlined
    def is_missing(kind, tile, behind):
        """Of a row or column of tiles: whether this kind of plane has no products there."""
        return (kind == 1 and tile == 0) or (kind == 2 and tile == behind - 1)

    @inlined
    def note_filters(call, address):
        at = number = 0
        for plane in range(call.points_h * call.points_w):
            sums, phases = sums_of_plane(call, plane)
            for phase in range(sums):
                place = array_at(types.int64, address + 8 * at, (1,), (8,))
                place[0] = filter_place(call, plane, phase) if call.numbers_h else number
                at, number = at + 1, number + phases

    def tile_lists(call_address, strip, address, unused, unused_2, unused_3, unused_4, unused_5):
        call = record_at(RECORD, call_address)
        lists = array_at(types.int64, address, (PLANE_KINDS * PLANE_KINDS, words), (8 * words, 8))
        begin, end = first_tile(call, strip), first_tile(call, strip + 1)
        for kind in range(PLANE_KINDS * PLANE_KINDS):
            down, across, count = kind % PLANE_KINDS, kind // PLANE_KINDS, 0
            if (down == 1 and not call.shift_h) or (down == 2 and not call.spared_h):
                continue
            if (across == 1 and not call.shift_w) or (across == 2 and not call.spared_w):
                continue
            line, at = begin // call.line_tiles, begin % call.line_tiles
            row, column = line // call.line_columns % call.tile_rows, line % call.line_columns
            for number in range(end - begin):
                place, places = (column, call.line_columns) if call.dilation_w > 1 else (at, call.line_tiles)
                if not (is_missing(down, row, call.tile_rows) or is_missing(across, place, places)):
                    lists[kind, LIST_HEAD + count] = number
                    count += 1
                at += 1
                if at == call.line_tiles:
                    at, column = 0, column + 1
                if column == call.line_columns:
                    column, row = 0, row + 1
                if row == call.tile_rows:
                    row = 0
            units = (count + most - 1) // most
            lists[kind, 0], lists[kind, 1], lists[kind, 2] = units, count // max(units, 1), count % max(units, 1)
            lists[kind, 3] = vector_bytes // max(units, 1)
            for i in range(count, fewest):
                lists[kind, LIST_HEAD + i] = lists[kind, LIST_HEAD + count - 1]
        note_filters(call, address + 8 * words * PLANE_KINDS * PLANE_KINDS)

    return tile_lists


@inlined
def taps_to_fetch(call, soon, number, phases, c, vector, lanes):
    """What the sum `number` of all fetches for a vector of filters, of the taps at `soon`: (where, bytes at a step).

    A part of one of their filters' taps, over the steps of its products.
    """
    filter_, part = number // call.fetched, number % call.fetched
    step = (call.w_c + call.fetched * phases - 1) // (call.fetched * phases)
    depth = phases * min(call.depth_block, call.Cg - c)
    return soon + (vector * lanes + filter_) * call.w_k + part * depth * step, step


def build_multiply_stage(real_name):
    """All planes of a strip: their tiles, as many at a time as the registers hold, times some filters, up to 3
    vectors at a time.
    """
    numbers = Numbers(real_name)
    vector_bytes, lanes = numbers.bytes, numbers.count
    _, strip_width, _ = strip_functions(numbers)
    words, fewest = tile_list_words(numbers), fewest_tiles()
    tile_3, tile_2, tile_1 = (tile_function(numbers.lanes, vectors, listed=False) for vectors in (3, 2, 1))
    listed_3, listed_2, listed_1 = (tile_function(numbers.lanes, vectors, listed=True) for vectors in (3, 2, 1))

    @inlined
    def tile_vectors(left):
        """Of the next tile, where so many are left: 3, but 2 and 2 rather than 3 and 1."""
        return 2 if left == 4 else min(left, VECTORS)

    @inlined
    def plane_kind(point, points, shift, spared):
        return 1 if shift and point == 0 else 2 if spared and point == points - 1 else 0

    @inlined
    def tiles_of_plane(call, inputs, plane):
        """Where the plane's list of tiles is."""
        down = plane_kind(plane % call.points_h, call.points_h, call.shift_h, call.spared_h)
        across = plane_kind(plane // call.points_h, call.points_w, call.shift_w, call.spared_w)
        return inputs + call.tiles_at + (across * PLANE_KINDS + down) * 8 * words

    @inlined
    def units_of(tiles):
        """The head of a list."""
        head = array_at(types.int64, tiles, (LIST_HEAD,), (8,))
        return head[0], head[1], head[2], head[3]

    @inlined
    def multiply_tiles(
        vectors, rows, tiles, all_tiles, a, a_step, a_ahead, b, depth, c, c_vector, continued, ahead, share, apart
    ):
        b_vector = depth * vector_bytes
        if all_tiles:
            if vectors == 3:
                tile_3(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)
            elif vectors == 2:
                tile_2(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)
            else:
                tile_1(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)
        elif vectors == 3:
            listed_3(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)
        elif vectors == 2:
            listed_2(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)
        else:
            listed_1(rows, tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, share, apart)

    @inlined
    def multiply_strip(
        vectors, tiles, all_tiles, a, a_step, a_ahead, b, depth, c, c_vector, continued, ahead, ahead_step, apart
    ):
        """ahead_step: bytes that all register tiles fetch ahead at a step, a share of them each."""
        units, some, more, share = units_of(tiles)
        share = (share * ahead_step + vector_bytes - 1) // vector_bytes
        here, size = (0, 1) if all_tiles else (tiles + 8 * LIST_HEAD, 8)
        for unit in range(units):
            rows, soon = some + (unit < more), ahead + unit * share * depth
            multiply_tiles(
                vectors, max(rows, fewest), here, all_tiles, a, a_step, a_ahead, b, depth, c, c_vector, continued, soon,
                share, apart,
            )  # fmt: skip
            here += size * rows

    @inlined
    def next_plane(call, inputs, plane, at):
        """The next one that has tiles, and which of all sums its first is."""
        planes = call.points_h * call.points_w
        at, plane = at + sums_of_plane(call, plane)[0], plane + 1
        while plane < planes and units_of(tiles_of_plane(call, inputs, plane))[0] == 0:
            at, plane = at + sums_of_plane(call, plane)[0], plane + 1
        return plane, at

    @inlined
    def filters_of(call, weights, inputs, at, phases, c, first, j):
        """Where the filters of one of all sums are, from channel c and vector j on."""
        numbers = array_at(types.int64, inputs + call.numbers_at, (at + 1,), (8,))
        channels = min(call.depth_block, call.Cg - c)
        block = phases * ((c - first) * call.row_panels + j * channels)
        return weights + numbers[at] * call.filter_plane + block * vector_bytes

    @inlined
    def following(
        call, weights, inputs, at, sums, phases, then, then_phases, number, c, first, behind, j, vectors, panel, end
    ):
        """Where the weights begin that are needed after a plane's sum `number`: of its next sum, or the next channels,
        or the next filters, or the next plane.

        then, then_phases: of the next plane, as `at` and phases of this one.
        """
        number += 1
        if number == sums:
            number, c = 0, min(c + call.depth_block, call.Cg)
        if c == behind:
            c, j = first, j + vectors
        if j == end:
            at, phases, j = then, then_phases, panel
        return filters_of(call, weights, inputs, at + number, phases, c, first, j)

    def multiply_stage(call_address, weights, panel, end, strip, inputs, outputs, first):
        """The next depth_step channels, from `first` on, times the vectors of filters panel .. end-1 of `weights`.

        outputs: where the sums of the first of these vectors are, or shall be. The weights or taps that are needed
        next are fetched meanwhile, and while the last filters are multiplied the next plane.
        """
        call = record_at(RECORD, call_address)
        row, at, a = strip_width(call, strip) * vector_bytes, 0, inputs
        soon = array_at(types.int64, inputs + call.soon_at, (1,), (8,))[0]
        behind, plane_bytes = min(first + call.depth_step, call.Cg), call.Cg * row + PLANE_PADDING
        planes = call.points_h * call.points_w
        for plane in range(planes):
            (sums, phases), tiles = sums_of_plane(call, plane), tiles_of_plane(call, inputs, plane)
            j, all_tiles = panel if units_of(tiles)[0] else end, tiles == inputs + call.tiles_at
            after, then = next_plane(call, inputs, plane, at)
            _, then_phases = sums_of_plane(call, after)
            next_a = a + sums * phases * plane_bytes
            while j < end:
                vectors = tile_vectors(end - j)
                a_ahead = 0 if j + vectors < end else (next_a if plane + 1 < planes else inputs) - a
                to = outputs + plane * call.output_plane + (j - panel) * call.output_vector
                for c in range(first, behind, call.depth_block):
                    depth = phases * min(call.depth_block, call.Cg - c)
                    for number in range(sums):
                        pixels = a + number * plane_bytes + phases * c * row
                        b = filters_of(call, weights, inputs, at + number, phases, c, first, j)
                        ahead = following(
                            call, weights, inputs, at, sums, phases, then, then_phases, number, c, first, behind, j,
                            vectors, panel, end,
                        )  # fmt: skip
                        ahead_step, apart = vector_bytes, depth * vector_bytes
                        if soon and at + number < lanes * call.fetched:
                            ahead, ahead_step = taps_to_fetch(call, soon, at + number, phases, c, j - panel, lanes)
                            apart = lanes * call.w_k
                        multiply_strip(
                            vectors, tiles, all_tiles, pixels, row, a_ahead, b, depth, to, call.output_vector,
                            c + number, ahead, ahead_step, apart,
                        )  # fmt: skip
                j += vectors
            a, at = next_a, at + sums

    return multiply_stage
