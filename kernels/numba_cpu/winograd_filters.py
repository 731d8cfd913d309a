"""Winograd's filters: from w, wherever its taps lie, to where the products read them."""

from numba import types

from . import tracing
from .compilation import inlined
from .short_floats import as_numbers, memory_functions, stored_kind
from .tracing import Lanes, load, store, traced
from .vectors import array_at, record_at
from .winograd_record import RECORD, Numbers, call_leaf
from .winograd_transforms import QUAD, filter_gather, filter_transform, side_by_side_filter_transform


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
        while done < depth:
            here = block + done * vector_bytes
            transform(w + done * call.w_c, 0, scratch, target, call.filter_plane, here)
            done += 1
        return done

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
