"""The sums that strassen_twice.py multiplies: of pixels, both levels at once, by every task, and of weights, ahead."""

import numpy as np
from numba.core import types

from . import tracing
from .call import CALL
from .microkernel import VECTORS, panel_rows, vector_type
from .strassen_sums import PRODUCTS, four_of, seven_of
from .threads import LINE, task_loop
from .tracing import load, loop, store, traced
from .vectors import record_at

OUTER, INNER = 4 * 3, PRODUCTS * 4  # rows of sums: of the outer sums the quarters that are multiplied; and all inner


def row_bytes(real, lone):
    """Of a channel of each quarter, all sums: an odd number of lines, so that channels share no place of the caches."""
    V = vector_type(real)
    lines = (VECTORS * V.bytes // LINE + lone) * OUTER + VECTORS * V.bytes // LINE * INNER
    return (lines + -(-lone * INNER * V.item_bytes // LINE) | 1) * LINE


def sums_twice_function(real, lone):
    """A Numba function add_pixels(to, x, x_tile, x_half, x_step, count): for `count` channels of each quarter a row

        three quarters of T2, T1, T3, T4 of the outer halves | T1 .. T4 of each outer product's right operand | the lone

    x_half: to the second half of the channels.
    """
    V, tile = vector_type(real), VECTORS * vector_type(real).bytes
    row = row_bytes(real, lone)

    @traced(types.void)
    def add_pixels(to, x, x_tile, x_half, x_step, count):
        x_quarter = x_half // 2

        def sums(type_, here, outer, inner, apart):
            def quarter(half, right, i, j):
                return load(type_, here + x_half * half + x_quarter * i + x_tile * (2 * right + j))

            quarters = [(0, 0), (0, 1), (1, 0), (1, 1)]
            b11, b12, b21, b22 = ([quarter(half, right, i, j) for i, j in quarters] for half, right in quarters)
            t1, t2, t3, t4 = zip(*(four_of(*four) for four in zip(b11, b12, b21, b22)))
            for number, (first, _, third, fourth) in enumerate((t2, t1, t3, t4)):
                for i, one in enumerate((first, third, fourth)):
                    store(outer + (tile + lone * LINE) * (3 * number + i), one)
            for q, four in enumerate((b11, b21, t2, t1, b22, t3, t4)):
                for i, total in enumerate(four_of(*four)):
                    store(inner + apart * (4 * q + i), total)

        def channel(c):
            here, outer = x + c * x_step, to + c * row
            inner = outer + OUTER * (tile + lone * LINE)
            for j in range(VECTORS):
                sums(V, here + V.bytes * j, outer + V.bytes * j, inner + V.bytes * j, tile)
            if lone:
                sums(V.scalar, here + tile, outer + tile, inner + INNER * tile, V.item_bytes)

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
