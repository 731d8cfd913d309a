"""The sums that strassen_twice.py multiplies: of pixels, the outer level's, by every task, and of weights, ahead."""

from functools import partial

import numpy as np
from numba.core import types

from . import tracing
from .call import CALL
from .microkernel import VECTORS, panel_rows, vector_type
from .strassen_sums import PRODUCTS, seven_of, sums_made
from .threads import LINE, lines, task_loop
from .tracing import interleave, load, loop, store, traced, when
from .vectors import record_at

QUARTERS = 4  # of the channels, and of the filters
OUTER = 4 * QUARTERS  # rows of sums: the quarters of the outer ones; behind them the inner of one outer product

MADE = 2  # vectors of channels whose sums are made at a time in a call: stores to one line of AVX2 behind each other


def row_bytes(real, lone):
    """Of a channel of each quarter, all sums: an odd number of lines, so that channels share no place of the caches."""
    V = vector_type(real)
    numbers = (OUTER + sums_made()) * VECTORS * V.bytes + lone * (OUTER * LINE + sums_made() * V.item_bytes)
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


def outer_operand(q, number):
    """The four quarters of what outer product q takes of the left operand. number(i, j): of the i-th quarter of the
    filters and the j-th of the channels.
    """

    def half_of(i, j):
        return [number(2 * i + k, 2 * j + c) for k in (0, 1) for c in (0, 1)]

    halves = [half_of(i, j) for i in (0, 1) for j in (0, 1)]
    four = [seven_of(*numbers)[q] for numbers in zip(*halves)]
    return [-number for number in four] if q == PRODUCTS - 1 else four


def make_rows_function(real):
    """A Numba function make_rows(q, to, row, w, w_k, quarter_filters, quarter_channels, count): what the seven products
    of outer product q take of `rows` filters, MADE * count vectors of their channels, in rows `row` bytes apart.
    """
    V, rows = vector_type(real), panel_rows()

    def make(q, to, row, w, w_k, quarter_filters, quarter_channels, count):
        def seven(here):
            four = outer_operand(q, lambda i, j: load(V, here + quarter_filters * i + quarter_channels * j))
            return seven_of(*four)

        def some(k, c):
            here, there = w + w_k * k + MADE * V.bytes * c, to + row * k + MADE * V.bytes * c
            vectors = [seven(here + V.bytes * v) for v in range(MADE)]
            for p, totals in enumerate(zip(*vectors)):
                for v, total in enumerate(totals):
                    store(there + row * rows * p + V.bytes * v, total)

        loop(tracing.constant(w, rows), lambda k: loop(count, partial(some, k)))

    @traced(types.void)
    def make_rows(q, to, row, w, w_k, quarter_filters, quarter_channels, count):
        for number in range(PRODUCTS):
            with when(q.equals(number)):
                make(number, to, row, w, w_k, quarter_filters, quarter_channels, count)

    return make_rows


def staged_bytes(dtype_name):
    """Of a worker: one vector's channels of all quarters of a panel."""
    return lines(QUARTERS**2 * panel_rows() * vector_type(dtype_name).bytes)


def pack_vectors_function(dtype_name):
    """A Numba function pack_vectors(to, panel, w, w_k, quarter_filters, quarter_channels, count, staged): all 49 panels
    of `rows` filters, count vectors of their channels, which are neighbours. staged: room for one of every quarter.
    """
    V, rows = vector_type(dtype_name), panel_rows()

    @traced(types.void)
    def pack_vectors(to, panel, w, w_k, quarter_filters, quarter_channels, count, staged):
        def some(channels):
            here, there = w + channels * V.bytes, to + channels * (rows * V.bytes)

            def stage(i):
                def quarter(j):
                    begin = here + i * quarter_filters + j * quarter_channels
                    for k, vector in enumerate(interleave([load(V, begin + w_k * k) for k in range(rows)])):
                        store(staged + ((i * QUARTERS + j) * rows + k) * V.bytes, vector)

                loop(tracing.constant(w, QUARTERS), quarter)

            loop(tracing.constant(w, QUARTERS), stage)

            def outer(q, j):
                vector = staged + j * V.bytes
                four = outer_operand(q, lambda i, k: load(V, vector + (i * QUARTERS + k) * rows * V.bytes))
                for p, total in enumerate(seven_of(*four)):
                    store(there + panel * (q * PRODUCTS + p) + j * V.bytes, total)

            for q in range(PRODUCTS):
                loop(tracing.constant(w, rows), partial(outer, q))

        loop(count, some)

    return pack_vectors


def build_pack(dtype_name):
    """Task: the panels of `rows` filters and of those a quarter, a half and three quarters of all further. call.w: the
    weights, call.y: the panels, call.workspace: staged_bytes of every worker.
    """
    rows, item = panel_rows(), np.dtype(dtype_name).itemsize
    V, step = vector_type(dtype_name), staged_bytes(dtype_name)
    W, pack_vectors = V.count, pack_vectors_function(dtype_name)

    @traced(types.void)
    def pack_number(to, panel, w, quarter_filters, quarter_channels):
        """All 49 of one filter and channel."""
        for q in range(PRODUCTS):
            four = outer_operand(q, lambda i, j: load(V.scalar, w + quarter_filters * i + quarter_channels * j))
            for p, number in enumerate(seven_of(*four)):
                store(to + panel * (q * PRODUCTS + p), number)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        depth, panels = call.Cg // 4, call.Kg // 4 // rows
        panel, quarter_filters, quarter_channels = depth * rows * item, call.Kg // 4 * call.w_k, depth * call.w_c
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        to, done = call.y + index * (PRODUCTS * PRODUCTS * panel), 0
        if call.w_c == item:
            staged = call.workspace + worker * step
            pack_vectors(to, panel, w, call.w_k, quarter_filters, quarter_channels, depth // W, staged)
            done = depth // W * W
        for c in range(done, depth):
            for k in range(rows):
                here, there = w + k * call.w_k + c * call.w_c, to + (c * rows + k) * item
                pack_number(there, panel, here, quarter_filters, quarter_channels)

    return task_loop(pack)
