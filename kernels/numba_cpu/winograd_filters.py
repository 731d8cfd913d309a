"""Winograd's filters: from w, wherever its taps lie, to where the products read them."""

from functools import partial

from numba import types

from . import target, tracing
from .compilation import inlined
from .short_floats import as_numbers, memory_functions, stored_kind
from .tracing import Lanes, load, loop, minimum, settled, store, traced
from .vectors import array_at, record_at
from .winograd_record import RECORD, Numbers, call_leaf
from .winograd_transforms import QUAD, filter_planes, load_quads, load_rows, tile_addresses

MOST_TAPS_AHEAD = 9
FEW_NUMBERS = 25  # F(2), and F(3) with a stride; with F(4)'s 36 four channels take 1.1 times as long as one (Zen 4)

# One lane is one filter.


def filter_transform(tile, V, vectors=1, store_vector=store):
    """transform(base, step, table, target, plane, channel): the taps at base + table[lane] to their planes.

    And so on for `vectors` vectors that begin `step` bytes apart; all of a plane's are stored together. Planes and
    channels are larger by the number of their phases, as in input_transform.
    """

    @traced(types.void)
    def transform(base, step, table, target, plane, channel):
        addresses = tile_addresses(V, base, table)
        taps = [taps_at(tile, V, [a + step * i for a in addresses]) for i in range(vectors)]
        for values in zip(*(filter_planes(tile, one) for one in taps), strict=True):
            phases = len(values[0])
            for i, value in enumerate(value for vector in values for value in vector):
                store_vector(target + channel * phases + V.bytes * i, value)
            target = target + plane * phases

    return transform


def loads_ahead(tile):
    """Whether the registers hold a channel's taps and the next one's."""
    return target.register_count() == 32 and QUAD <= tile.rows.taps * tile.columns.taps <= MOST_TAPS_AHEAD


def channels_at_once(tile):
    """Of how many neighbouring channels the taps are loaded together: quads of four have no tap in common, which pays
    where a channel has few numbers to store, so that loads take longer.
    """
    return QUAD if tile.numbers <= FEW_NUMBERS else 1


def channels_transform(tile, V, together):
    """transform(base, step, groups, table, target, plane, channel): the same of `groups` times `together` channels,
    `step` bytes from group to group; taps of a group are neighbours.

    The taps of the next channel are loaded between the stores of this one's numbers. All of one after all of the
    other would not overlap: no more stores can wait than one channel has.
    """
    count = tile.rows.taps * tile.columns.taps

    def quads_of(i):
        """Where in the group those quads begin that hold the taps of channel i."""
        if together == 1:
            return sorted({*range(0, count - QUAD + 1, QUAD), count - QUAD})
        return range(i * count // QUAD * QUAD, (i + 1) * count, QUAD)

    def load_missing(taps, addresses, quad):
        for i, tap in enumerate(load_quads(V, addresses, quad), start=quad):
            if i not in taps:
                taps[i] = settled(tap)

    def store_numbers(taps, target, plane, channel, loads):
        """And call the `loads` in between."""
        done = 0
        for i, values in enumerate(filter_planes(tile, taps), start=1):
            for phase, value in enumerate(values):
                store(target + channel * len(values) + V.bytes * phase, value)
            target = target + plane * len(values)
            due = i * (len(loads) + 1) // tile.numbers
            for load_some in loads[done:due]:
                load_some()
            done = max(done, due)
        for load_some in loads[done:]:
            load_some()

    @traced(types.void)
    def transform(base, step, groups, table, target, plane, channel):
        addresses, first = tile_addresses(V, base, table), {}
        for quad in quads_of(0):
            load_missing(first, addresses, quad)
        places = sorted(first)

        def group(g, carried):
            taps, following = dict(zip(places, carried, strict=True)), {}
            here, then = ([a + step * number for a in addresses] for number in (g, minimum(g + 1, groups - 1)))
            for i in range(together):
                last = i + 1 == together
                of, where, quads = (following, then, quads_of(0)) if last else (taps, here, quads_of(i + 1))
                loads = [partial(load_missing, of, where, quad) for quad in quads if last or quad not in taps]
                number = channel + (g * together + i) * V.bytes
                store_numbers([taps[i * count + t] for t in range(count)], target, plane, number, loads)
            return [following[place] for place in places]

        loop(groups, group, [first[place] for place in places])

    return transform


def taps_at(tile, V, addresses):
    """A vector for each tap, of the filters at these addresses."""
    count = tile.rows.taps * tile.columns.taps
    return load_rows(V, addresses, max(count, QUAD))[:count]


def filter_gather(tile, V):
    """gather(base, table, target): the taps at base + table[lane], a vector for each."""

    @traced(types.void)
    def gather(base, table, target):
        for i, tap in enumerate(taps_at(tile, V, tile_addresses(V, base, table))):
            store(target + V.bytes * i, tap)

    return gather


def side_by_side_filter_transform(tile, V):
    """transform(base, row, column, target, plane, channel): the same of filters that lie side by side; tap (r, s) of
    them at base + r * row + s * column.
    """
    R, S = tile.rows.taps, tile.columns.taps

    @traced(types.void)
    def transform(base, row, column, target, plane, channel):
        taps = [load(V, base + row * r + column * s) for r in range(R) for s in range(S)]
        for values in filter_planes(tile, taps):
            for i, value in enumerate(values):
                store(target + channel * len(values) + V.bytes * i, value)
            target = target + plane * len(values)

    return transform


# Panels of filters.


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


def stage_neighbours_function(taps, dtype_name):
    """stage(w, target): taps that lie side by side, as numbers; by vectors, since one at a time they take as long as
    their transform.
    """
    numbers = Numbers(dtype_name)

    @traced(types.void)
    def stage(w, target):
        done = 0
        while done < taps:
            count = min(1 << (taps - done).bit_length() - 1, numbers.count)
            some = Lanes(stored_kind(dtype_name), count if count > 1 else 0)
            taken = as_numbers(load(some, w + numbers.stored_item * done), dtype_name)
            store(target + numbers.item * done, taken)
            done += count

    return stage


def build_filter_stage(tile, dtype_name):
    """Some channels of some filters, from w to where multiply_stage reads them.

    Packed weights larger than the caches are stored past them, a cache line of each plane at a time: half lines to 36
    places at once would each be read first.
    """
    numbers = Numbers(dtype_name)
    lanes, item, stored_item, vector_bytes = numbers.count, numbers.item, numbers.stored_item, numbers.bytes
    real, plain = numbers.real, item == stored_item
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(real.name)
    line = max(1, 64 // vector_bytes)
    transform = filter_transform(tile, numbers.lanes)
    transform_line_past = filter_transform(tile, numbers.lanes, line, tracing.store_past_cache)
    together, ahead = channels_at_once(tile), loads_ahead(tile)
    transform_channels = channels_transform(tile, numbers.lanes, together)
    gather = filter_gather(tile, numbers.lanes)
    transform_side_by_side = side_by_side_filter_transform(tile, numbers.lanes)
    staging_at, R, S = numbers.staging_at, tile.rows.taps, tile.columns.taps
    taps_bytes, loaded = numbers.taps_bytes(R * S), R * S >= QUAD

    stage_neighbours = stage_neighbours_function(R * S, dtype_name)

    @inlined
    def stage_taps(call, w, target):
        """The taps at w, wherever they lie."""
        if call.w_s == stored_item and call.w_r == S * call.w_s:
            stage_neighbours(w, target)
            return
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
            transform(staged, 0, scratch, target, call.filter_plane, block + c * vector_bytes)

    @inlined
    def note_filters(call, offsets):
        table = array_at(types.int64, offsets, (lanes,), (8,))
        for lane in range(lanes):
            table[lane] = lane * call.w_k

    @inlined
    def pack_in_place(call, w, depth, scratch, target, block):
        """All channels of a whole panel whose taps lie side by side; returns how many were done."""
        note_filters(call, scratch)
        done = 0
        if call.streaming and call.filters_at == 0:
            while done + line <= depth:
                here = block + done * vector_bytes
                transform_line_past(w + done * call.w_c, call.w_c, scratch, target, call.filter_plane, here)
                done += line
        groups = (depth - done) // together if together == 1 or call.w_c == R * S * item else 0
        if ahead and groups > 0:
            here, first = block + done * vector_bytes, w + done * call.w_c
            transform_channels(first, together * call.w_c, groups, scratch, target, call.filter_plane, here)
            done += groups * together
        while done < depth:
            here = block + done * vector_bytes
            transform(w + done * call.w_c, 0, scratch, target, call.filter_plane, here)
            done += 1
        return depth

    @inlined
    def pack_turned(call, w, depth, scratch, target, block):
        """The same of taps that lie there last first, as input gradients have them. w: the first ones' last one."""
        note_filters(call, scratch)
        staged, last = scratch + staging_at, scratch + staging_at + (R * S - 1) * vector_bytes
        for c in range(depth):
            gather(w + c * call.w_c, scratch, staged)
            here = block + c * vector_bytes
            transform_side_by_side(last, -S * vector_bytes, -vector_bytes, target, call.filter_plane, here)
        return depth

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
            if in_place and some == lanes and turned:
                first = here + (R - 1) * call.w_r + (S - 1) * call.w_s
                done = pack_turned(call, first, depth, scratch, target, to)
            elif in_place and some == lanes:
                done = pack_in_place(call, here, depth, scratch, target, to)
            elif side_by_side and some == lanes:
                done = pack_side_by_side(call, here, depth, target, to)
            if done < depth:
                pack_staged(call, here, done, depth, some, scratch, target, to)

    return filter_stage
