"""The sums of weights that strassen.py multiplies, made ahead or beside products; those of pixels products make."""

from functools import partial

import numpy as np
from numba.core import types

from . import target
from .call import CALL
from .compilation import inlined
from .microkernel import panel_rows, vector_type
from .short_floats import memory_functions
from .threads import LINE, task_loop
from .tracing import Lanes, load, loop, shuffle, store, traced
from .vectors import record_at

PRODUCTS = 7
CHANNELS, PACKING_STEPS = 4, 5  # packed at a time, and in how many steps


def sums_made() -> int:
    """Of the four of pixels: all, or T2 alone if products make the others, differences of it and x, again and again
    beside their multiply-adds: where a core has units for that, and 8 rows of a tile share each.
    """
    return 1 if target.adds_beside() and panel_rows() == 8 else 4


@inlined
def half_depth(call):
    return call.Cg * call.R * call.S // 2


def spaced_row(depth, item):
    """Bytes from filter to filter of sums of weights that lie in rows: with a line between, for the caches' sake."""
    return depth * item + LINE


def seven_of(a11, a12, a21, a22):
    """What the seven products take of the left operand, in their order."""
    s1 = a21 + a22
    s2 = s1 - a11
    return a11, a12, s2, s1, a12 - s2, a11 - a21, a22


def few_of_rows(V, w, w_k):
    """Traced: four channels of `rows` filters, of each channel one vector: the filters."""
    four = Lanes(V.kind, CHANNELS)
    parts = [[load(four, w + w_k * (i + j)) for i in range(4)] for j in range(0, panel_rows(), 4)]
    rows = parts[0] if len(parts) == 1 else [shuffle(a, b, range(2 * CHANNELS)) for a, b in zip(*parts)]
    count = rows[0].type.count

    def picked(a, b, order):
        return shuffle(a, b, [g + i % 4 + i // 4 * count for g in range(0, count, 4) for i in order])

    low, high, first, last = (0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7)
    pairs = [[picked(rows[i], rows[i + 1], order) for i in (0, 2)] for order in (low, high)]
    return [picked(*pair, order) for pair in pairs for order in (first, last)]


def pack_few(V, step, to, panel_bytes, w, w_k, half_filters, half_channels):
    """Traced: one of PACKING_STEPS towards what the seven products take of four channels of each half.

    What a step makes the later ones read again, so that each weight is turned once; and a step needs few registers.
    """
    L = Lanes(V.kind, panel_rows())

    def kept(p, c):
        return load(L, to + panel_bytes * p + L.bytes * c)

    def keep(p, c, vector):
        store(to + panel_bytes * p + L.bytes * c, vector)

    def quarter(i):
        return enumerate(few_of_rows(V, w + (0, half_channels, half_filters, half_filters + half_channels)[i], w_k))

    if step < 3:
        for c, vector in quarter((0, 1, 3)[step]):
            keep((0, 1, 6)[step], c, vector)
    elif step == 3:
        for c, a21 in quarter(2):
            keep(3, c, a21 + kept(6, c))
            keep(5, c, kept(0, c) - a21)
    else:
        for c in range(CHANNELS):
            s2 = kept(3, c) - kept(0, c)
            keep(2, c, s2)
            keep(4, c, kept(1, c) - s2)


def pack_panel_function(dtype_name):
    """A Numba function pack_panel(call, to, w, c0, channels): the seven products' weights for `rows` filters,
    [7][depth][rows], of these channels of each half.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, V, rows = np.dtype(real).itemsize, vector_type(real), panel_rows()
    contiguous, pack_numbers = dtype_name == np.dtype(real).name, pack_numbers_function(dtype_name)

    @traced(types.void)
    def pack_all(to, panel_bytes, w, w_k, half_filters, half_channels, count):
        def few(step, i):
            there, here = to + i * (CHANNELS * rows * V.item_bytes), w + i * (CHANNELS * V.item_bytes)
            pack_few(V, step, there, panel_bytes, here, w_k, half_filters, half_channels)

        # Step after step for all channels: rows a multiple of 4,096 bytes apart share few places of the L1 cache, and
        # the lines of four quarters would put out each other (two Zen 4 cores: 1024 -> 512 channels in 66, not 90 us).
        for step in range(PACKING_STEPS):
            loop(count, partial(few, step))

    @inlined
    def pack_panel(call, to, w, c0, channels):
        depth, first = half_depth(call), c0
        panel_bytes, half_filters, half_channels = depth * rows * item, call.Kg // 2 * call.w_k, depth * call.w_c
        if contiguous and call.w_c == item:
            there, here = to + c0 * rows * item, w + c0 * item
            pack_all(there, panel_bytes, here, call.w_k, half_filters, half_channels, channels // CHANNELS)
            first += channels // CHANNELS * CHANNELS
        pack_numbers(call, to, w, first, c0 + channels)

    return pack_panel


def pack_numbers_function(dtype_name):
    """A Numba function pack_numbers(call, to, w, first, end): as pack_panel, one by one."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, rows = np.dtype(real).itemsize, panel_rows()
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)

    @inlined
    def pack_numbers(call, to, w, first, end):
        depth = half_depth(call)
        panel_bytes, half_filters, half_channels = depth * rows * item, call.Kg // 2 * call.w_k, depth * call.w_c
        for c in range(first, end):
            for j in range(rows):
                here, there = w + j * call.w_k + c * call.w_c, to + (c * rows + j) * item
                a11, a12 = read(here), read(here + half_channels)
                a21, a22 = read(here + half_filters), read(here + half_filters + half_channels)
                s1 = a21 + a22
                s2 = s1 - a11
                write(there, a11)
                write(there + panel_bytes, a12)
                write(there + 2 * panel_bytes, s2)
                write(there + 3 * panel_bytes, s1)
                write(there + 4 * panel_bytes, a12 - s2)
                write(there + 5 * panel_bytes, a11 - a21)
                write(there + 6 * panel_bytes, a22)

    return pack_numbers


def build_pack(dtype_name):
    """Task: the panel of `rows` filters and of those half of all further. call.w: the weights, call.y: the panels."""
    rows, item = panel_rows(), 8 if dtype_name == "float64" else 4
    pack_panel = pack_panel_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        panels = call.Kg // 2 // rows
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        pack_panel(call, call.y + index * (PRODUCTS * half_depth(call) * rows * item), w, 0, half_depth(call))

    return task_loop(pack)
