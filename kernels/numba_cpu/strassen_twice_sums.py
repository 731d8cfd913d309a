"""The sums that strassen_twice.py multiplies: of pixels, the outer level's, by every task, and of weights, ahead."""

import numpy as np
from numba.core import types

from . import tracing
from .call import CALL
from .microkernel import VECTORS, panel_rows, vector_type
from .strassen_sums import PRODUCTS, seven_of
from .threads import LINE, task_loop
from .tracing import load, loop, store, traced
from .vectors import record_at

OUTER, INNER = 4 * 4, 4  # rows of sums: of the outer sums the quarters; and the inner of one outer product


def row_bytes(real, lone):
    """Of a channel of each quarter, all sums: an odd number of lines, so that channels share no place of the caches."""
    V = vector_type(real)
    numbers = (OUTER + INNER) * VECTORS * V.bytes + lone * (OUTER * LINE + INNER * V.item_bytes)
    return (-(-numbers // LINE) | 1) * LINE


def sums_twice_function(real, lone):
    """A Numba function add_pixels(to, x, x_tile, x_half, x_step, count): the quarters of T2, of T1, of T3 and of T4 of
    the outer halves, for `count` channels of each quarter. x_half: to the second half of the channels.
    """
    V, tile = vector_type(real), VECTORS * vector_type(real).bytes
    row = row_bytes(real, lone)

    @traced(types.void)
    def add_pixels(to, x, x_tile, x_half, x_step, count):
        def sums(type_, here, there):
            halves = (here, here + 2 * x_tile, here + x_half, here + x_half + 2 * x_tile)
            for quarter, offset in enumerate((0, x_tile, x_half // 2, x_half // 2 + x_tile)):
                b11, b12, b21, b22 = (load(type_, half + offset) for half in halves)
                t1 = b12 - b11
                t2 = b22 - t1
                for i, total in enumerate((t2, t1, b22 - b12, t2 - b21)):
                    store(there + (tile + lone * LINE) * (4 * i + quarter), total)

        def channel(c):
            here, there = x + c * x_step, to + c * row
            for j in range(VECTORS):
                sums(V, here + V.bytes * j, there + V.bytes * j)
            if lone:
                sums(V.scalar, here + tile, there + tile)

        loop(count, channel)

    return add_pixels


def build_pack(dtype_name):
    """Task: the panels of `rows` filters and of those a quarter, a half and three quarters of all further. call.w: the
    weights, call.y: the panels.
    """
    rows, item = panel_rows(), np.dtype(dtype_name).itemsize
    V = vector_type(dtype_name)

    @traced(types.void)
    def put(to, panel, w, quarter_filters, quarter_channels):
        """All 49 of one filter and channel."""

        def quarters(outer_filters, outer_channels):
            return [
                load(
                    V.scalar,
                    w + (2 * outer_filters + i) * quarter_filters + (2 * outer_channels + j) * quarter_channels,
                )
                for i in (0, 1)
                for j in (0, 1)
            ]

        a11, a12, a21, a22 = (quarters(i, j) for i in (0, 1) for j in (0, 1))
        outer = list(zip(*(seven_of(*four) for four in zip(a11, a12, a21, a22))))
        zero = tracing.zeros(V.scalar, w)
        outer[PRODUCTS - 1] = [zero - number for number in outer[PRODUCTS - 1]]
        for q, four in enumerate(outer):
            for p, number in enumerate(seven_of(*four)):
                store(to + panel * (q * PRODUCTS + p), number)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        depth, panels = call.Cg // 4, call.Kg // 4 // rows
        panel = depth * rows * item
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        to = call.y + index * (PRODUCTS * PRODUCTS * panel)
        for c in range(depth):
            for k in range(rows):
                here, there = w + k * call.w_k + c * call.w_c, to + (c * rows + k) * item
                put(there, panel, here, call.Kg // 4 * call.w_k, depth * call.w_c)

    return task_loop(pack)
