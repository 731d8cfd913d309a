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
from .tracing import I64, choose, load, loop, maximum, select, store, traced, when
from .vectors import array_at, record_at
from .winograd_record import (
    LIST_HEAD,
    PLANE_KINDS,
    PLANE_PADDING,
    PLANE_WORDS,
    RECORD,
    Numbers,
    fewest_tiles,
    filter_place,
    input_row_function,
    most_tiles,
    strip_functions,
    sums_of_plane,
    tile_list_words,
    units_of,
)


def strip_function(V, vectors, listed, of_channels):
    """product(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart): the
    tiles of a plane x `vectors` of filters, set in c or added to it, as many tiles at a time as the registers hold.

    tiles: the plane's list of them. Where they are `listed`, their numbers are; else they are all and follow each
    other. a: tile 0 of a channel, a_step bytes from channel to channel; of_channels: where a lane is a channel, a
    vector for each tile, a_step bytes for each of its channels. a_ahead: how far behind lie the same tiles of the
    plane that is read next. b: a vector of filters for every channel. b_vector, c_vector: from one vector of
    filters to the next. ahead_step: bytes that all register tiles fetch ahead at a step, a share of them each. Each
    block of channels is summed from zero: shorter sums, smaller rounding errors.
    """
    tile_bytes = V.bytes if of_channels else V.item_bytes
    fetches_inputs = target.register_count() == 32  # steps of fewer multiply-adds have no time for it

    def multiply(rows, here, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart):
        step = tracing.constant(a, V.bytes)
        if listed:
            numbers = [load(I64, here + I64.bytes * i) for i in range(rows)]
        else:  # constants: with few channels, what precedes the sums counts
            numbers = [tracing.constant(a, i) for i in range(rows)]
            a, c = a + here * tile_bytes, c + here * V.bytes

        def multiplied(a, b, depth, sums, ahead, a_step, soon):
            return accumulate(
                V, rows, vectors, a, [number * tile_bytes for number in numbers], None, a_step, b, step, depth, sums,
                ahead, ahead_step, b_vector, fetched=vectors, apart=apart, also=soon,
            )  # fmt: skip

        def block(i, sums):
            """A vector of channels; the tiles' next one, which lies behind other tiles', is fetched meanwhile."""
            here, step = a + a_step * V.count * i, rows * V.bytes // V.count
            soon = (here + numbers[0] * tile_bytes, step, [(a_step * V.count, 1), (a_ahead, 2)])
            return multiplied(
                here, b + V.count * V.bytes * i, tracing.constant(a, V.count), sums, ahead + ahead_step * V.count * i,
                tracing.constant(a, V.item_bytes), soon if fetches_inputs else None,
            )  # fmt: skip

        if of_channels:
            sums = block(tracing.constant(a, 0), None)
            sums = loop(depth // V.count - 1, lambda i, sums: block(i + 1, sums), sums)
        else:
            soon = (a + numbers[0] * tile_bytes, a_step, [(a_ahead, 2)]) if fetches_inputs else None
            sums = multiplied(a, b, depth, None, ahead, a_step, soon)
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
    def product(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart):
        units, some, more, share = (load(I64, tiles + I64.bytes * i) for i in range(LIST_HEAD))
        ahead_step = (share * ahead_step + (V.bytes - 1)) // V.bytes

        def unit(number, carried):
            here, soon = carried
            rows = some + select(number < more, tracing.constant(a, 1), 0)
            taken = maximum(rows, fewest_tiles())
            for count in range(most_tiles(), fewest_tiles() - 1, -1):
                with when(taken.equals(count)):
                    multiply(
                        count, here, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, soon, ahead_step,
                        apart,
                    )  # fmt: skip
            return [here + rows * (I64.bytes if listed else 1), soon + ahead_step * depth]

        loop(units, unit, [tiles + I64.bytes * LIST_HEAD if listed else tracing.constant(a, 0), ahead])

    return product


def build_tile_lists(real_name):
    """The tiles of a strip that each kind of plane has: in how many register tiles, of how many tiles each, how many of
    these have one more, how many bytes of a vector of weights each fetches ahead; then the tiles' numbers in the strip.

    A list ends with its last tile again, as often as the smallest register tile may need. Behind the lists: for every
    sum of products, which of the stored filters' planes it takes.
    """
    numbers = Numbers(real_name)
    first_tile, _, _ = strip_functions(numbers)
    words, vector_bytes = tile_list_words(numbers), numbers.bytes
    fewest, whole, most = fewest_tiles(), tile_rows(VECTORS), most_tiles()

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

    @inlined
    def plane_kind(point, points, shift, spared):
        return 1 if shift and point == 0 else 2 if spared and point == points - 1 else 0

    @inlined
    def note_planes(call, lists, address):
        planes = call.points_h * call.points_w
        count = array_at(types.int64, address, (1,), (8,))
        table = array_at(types.int64, address + 8, (planes + 1, PLANE_WORDS), (8 * PLANE_WORDS, 8))
        found = at = before = 0
        for plane in range(planes):
            down = plane_kind(plane % call.points_h, call.points_h, call.shift_h, call.spared_h)
            across = plane_kind(plane // call.points_h, call.points_w, call.shift_w, call.spared_w)
            sums, phases = sums_of_plane(call, plane)
            tiles = lists + (across * PLANE_KINDS + down) * 8 * words
            if array_at(types.int64, tiles, (1,), (8,))[0] > 0:
                table[found, 0], table[found, 1], table[found, 2] = tiles, sums, phases
                table[found, 3], table[found, 4], table[found, 5] = at, before, plane
                found += 1
            at, before = at + sums, before + sums * phases
        count[0] = found
        for word in range(PLANE_WORDS):
            table[found, word] = table[0, word]

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
            units = units_of(count, whole, most)
            lists[kind, 0], lists[kind, 1], lists[kind, 2] = units, count // max(units, 1), count % max(units, 1)
            lists[kind, 3] = vector_bytes // max(units, 1)
            for i in range(count, fewest):
                lists[kind, LIST_HEAD + i] = lists[kind, LIST_HEAD + count - 1]
        note_filters(call, address + call.numbers_at - call.tiles_at)
        note_planes(call, address, address + call.planes_at - call.tiles_at)

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


def build_multiply_stage(real_name, of_channels):
    """All planes of a strip times some filters, up to 3 vectors of these at a time."""
    numbers = Numbers(real_name)
    vector_bytes, lanes = numbers.bytes, numbers.count
    input_row = input_row_function(numbers, of_channels)
    all_3, all_2, all_1 = (strip_function(numbers.lanes, vectors, False, of_channels) for vectors in (3, 2, 1))
    listed_3, listed_2, listed_1 = (strip_function(numbers.lanes, vectors, True, of_channels) for vectors in (3, 2, 1))

    @inlined
    def tile_vectors(left):
        """Of the next tile, where so many are left: 3, but 2 and 2 rather than 3 and 1."""
        return 2 if left == 4 else min(left, VECTORS)

    @inlined
    def multiply_strip(
        vectors, tiles, all_tiles, a, a_step, a_ahead, b, depth, c, c_vector, continued, ahead, ahead_step, apart
    ):
        b_vector = depth * vector_bytes
        if all_tiles:
            if vectors == 3:
                all_3(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)
            elif vectors == 2:
                all_2(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)
            else:
                all_1(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)
        elif vectors == 3:
            listed_3(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)
        elif vectors == 2:
            listed_2(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)
        else:
            listed_1(tiles, a, a_step, a_ahead, b, b_vector, depth, c, c_vector, continued, ahead, ahead_step, apart)

    @inlined
    def filters_of(call, weights, numbers, at, phases, c, first, j):
        """Where the filters of one of all sums are, from channel c and vector j on."""
        channels = min(call.depth_block, call.Cg - c)
        block = phases * ((c - first) * call.row_panels + j * channels)
        return weights + numbers[at] * call.filter_plane + block * vector_bytes

    def multiply_stage(call_address, weights, panel, end, strip, inputs, outputs, first):
        """The next depth_step channels, from `first` on, times the vectors of filters panel .. end-1 of `weights`.

        outputs: where the sums of the first of these vectors are, or shall be. The weights or taps that are needed
        next are fetched meanwhile, and while the last filters are multiplied the next plane.
        """
        call = record_at(RECORD, call_address)
        row = input_row(call, strip)
        soon = array_at(types.int64, inputs + call.soon_at, (1,), (8,))[0]
        behind, plane_bytes = min(first + call.depth_step, call.Cg), call.Cg * row + PLANE_PADDING
        numbers = array_at(types.int64, inputs + call.numbers_at, (1,), (8,))
        planes = array_at(types.int64, inputs + call.planes_at, (1,), (8,))[0]
        table = array_at(types.int64, inputs + call.planes_at + 8, (planes + 1, PLANE_WORDS), (8 * PLANE_WORDS, 8))
        b = filters_of(call, weights, numbers, table[0, 3], table[0, 2], first, first, panel)
        for i in range(planes):
            tiles, sums, phases, at = table[i, 0], table[i, 1], table[i, 2], table[i, 3]
            a, next_a = inputs + table[i, 4] * plane_bytes, inputs + table[i + 1, 4] * plane_bytes
            all_tiles, to, j = tiles == inputs + call.tiles_at, outputs + table[i, 5] * call.output_plane, panel
            while j < end:
                vectors = tile_vectors(end - j)
                then = j + vectors
                a_ahead = 0 if then < end else next_a - a
                for c in range(first, behind, call.depth_block):
                    depth = phases * min(call.depth_block, call.Cg - c)
                    for number in range(sums):
                        pixels = a + number * plane_bytes + phases * c * row
                        after = min(c + call.depth_block, call.Cg)  # what follows: the next sum, or channels,
                        if number + 1 < sums:
                            ahead = filters_of(call, weights, numbers, at + number + 1, phases, c, first, j)
                        elif after < behind:
                            ahead = filters_of(call, weights, numbers, at, phases, after, first, j)
                        elif then < end:  # or filters,
                            ahead = filters_of(call, weights, numbers, at, phases, first, first, then)
                        else:  # or the next plane, or the first one's next filters
                            ahead = filters_of(
                                call, weights, numbers, table[i + 1, 3], table[i + 1, 2], first, first,
                                panel if i + 1 < planes else end,
                            )  # fmt: skip
                        soon_here, ahead_step, apart = ahead, vector_bytes, depth * vector_bytes
                        if soon and at + number < lanes * call.fetched:
                            soon_here, ahead_step = taps_to_fetch(call, soon, at + number, phases, c, j - panel, lanes)
                            apart = lanes * call.w_k
                        multiply_strip(
                            vectors, tiles, all_tiles, pixels, row, a_ahead, b, depth, to, call.output_vector,
                            c + number, soon_here, ahead_step, apart,
                        )  # fmt: skip
                        b = ahead
                j, to = then, to + vectors * call.output_vector

    return multiply_stage
