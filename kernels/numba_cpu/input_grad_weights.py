"""The weights of the CPU input gradient: which taps a phase of the stride meets, and their order in memory.

    for every group, block of filters, and tap of each phase (or shift, where phases are stacked)
        panels of 8 channels (4 with 16 registers), or of channels of phases: filter after filter, 8 numbers each

Packed by the first round of the kernel's tasks. 1x1 layers with many weights read them where they lie
(input_grad_cuts.wants_weights_in_place).
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .input_grad_cuts import CALL_CUT, CHANNEL_BLOCK, PACKED
from .microkernel import panel_rows, vector_type
from .short_floats import memory_functions
from .tracing import Lanes, load, load_strided, loop, store, traced
from .vectors import record_at
from .weight_rows import padded_filters


@inlined
def first_tap(phase, before, dilation, stride, window):
    """The first tap that meets the inputs of this phase; `window` where none does."""
    tap = 0
    while tap < window and (phase + before - tap * dilation) % stride != 0:
        tap += 1
    return tap


def pack_functions(dtype_name):
    """A task: up to PACKED filters of one group, of the channels of one multiplying task, from w (K, Cg, R, S) to
    call.workspace; and a Numba function that does the same for one block, in a multiplying task.

    For every block of filters, for every tap, phase by phase (or every shift): panels of `rows` channels (or channels
    of phases), filter after filter. A filter's weights are read from end to end: in the order of the panels, from 32
    bytes of each filter to the next filter's, packing 9 MB that no cache held took 2.2 ms on two Zen 5 cores.
    """
    real = np.dtype(dtype_name).type
    item, rows, unit = np.dtype(real).itemsize, panel_rows(), padded_filters(1)
    some = Lanes(vector_type(real).kind, rows)
    read, write, _, _ = memory_functions(dtype_name)

    @traced(types.void)
    def copy_columns(to, w, w_k, count):
        """`rows` neighbouring numbers of each of `count` filters."""
        loop(count, lambda k: store(to + k * some.bytes, load(some, w + k * w_k)))

    @traced(types.void)
    def gather_columns(to, w, w_k, w_c, count):
        loop(count, lambda k: store(to + k * some.bytes, load_strided(some, w + k * w_k, w_c)))

    @inlined
    def pack_tap(to, w, w_k, w_c, channels, filters):
        """A panel of channels at one tap, with zeros where there are fewer than `rows`."""
        if channels == rows and w_c == item:
            copy_columns(to, w, w_k, filters)
        elif channels == rows:
            gather_columns(to, w, w_k, w_c, filters)
        else:
            for k in range(filters):
                for i in range(rows):
                    number = read(w + k * w_k + i * w_c) if i < channels else 0.0
                    write(to + (k * rows + i) * item, number)

    @inlined
    def pack_phases(call, to, w, channels, filters, tap_bytes):
        for fh in range(call.stride_h):
            first_r = first_tap(fh, call.top, call.dilation_h, call.stride_h, call.R)
            for fw in range(call.stride_w):
                first_s = first_tap(fw, call.left, call.dilation_w, call.stride_w, call.S)
                for r in range(first_r, call.R, call.step_h):
                    for s in range(first_s, call.S, call.step_w):
                        pack_tap(to, w + r * call.w_r + s * call.w_s, call.w_k, call.w_c, channels, filters)
                        to += tap_bytes

    @inlined
    def tap_at(phase, shift, before, dilation, stride, window):
        """The tap that joins a phase and a shift; -1 where none does."""
        distance = phase + before - shift * stride
        tap = distance // dilation
        return tap if tap * dilation == distance and tap >= 0 and tap < window else -1

    @inlined
    def pack_stacked(call, to, w, row0, filters, tap_bytes):
        """w: of the group's first channel. row0: the panel's first row."""
        for shift in range(call.shifts_h * call.shifts_w):
            shift_h, shift_w = shift // call.shifts_w + call.low_h, shift % call.shifts_w + call.low_w
            for i in range(rows):
                phase, c = (row0 + i) // call.Cg, (row0 + i) % call.Cg
                fh, fw = phase // call.stride_w, phase % call.stride_w
                r = tap_at(fh, shift_h, call.top, call.dilation_h, call.stride_h, call.R)
                s = tap_at(fw, shift_w, call.left, call.dilation_w, call.stride_w, call.S)
                meets = fh < call.stride_h and r >= 0 and s >= 0
                here = w + c * call.w_c + r * call.w_r + s * call.w_s
                for k in range(filters):
                    write(to + (k * rows + i) * item, read(here + k * call.w_k) if meets else 0.0)
            to += tap_bytes

    def pack(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        parts = (call.depth_block + PACKED - 1) // PACKED
        blocks = (call.Kg + call.depth_block - 1) // call.depth_block
        part, rest = index % parts, index // parts
        block, rest = rest % blocks, rest // blocks
        k0, g, channel_task = block * call.depth_block, rest % call.groups, rest // call.groups
        depth = min(call.depth_block, call.Kg - k0)
        first, filters = part * PACKED, min(PACKED, depth - part * PACKED)
        w = call.w + (g * call.Kg + k0 + first) * call.w_k
        to = call.workspace + (g * call.Kg + k0) * call.weight_panels * call.weight_rows * item + first * rows * item
        first_row, end_row = channel_task * call.channel_block, (channel_task + 1) * call.channel_block
        if channel_task == call.channel_tasks - 1:
            end_row = call.weight_rows
        to += first_row * depth * item
        for row0 in range(first_row, end_row, rows):
            tap_bytes = call.weight_rows * depth * item
            if call.stacked:
                pack_stacked(call, to, w, row0, filters, tap_bytes)
            else:
                pack_phases(call, to, w + row0 * call.w_c, min(rows, call.Cg - row0), filters, tap_bytes)
            to += rows * depth * item

    @inlined
    def pack_block(call, to, w, channels, depth):
        """Up to CHANNEL_BLOCK channels of `depth` filters; w: of the first ones."""
        for k in range(0, depth, PACKED):
            filters = min(PACKED, depth - k)
            for row0 in range(0, (channels + unit - 1) // unit * unit, rows):
                pack_phases(
                    call, to + (row0 * depth + k * rows) * item, w + k * call.w_k + row0 * call.w_c,
                    min(rows, channels - row0), filters, CHANNEL_BLOCK * depth * item,
                )  # fmt: skip

    return pack, pack_block
