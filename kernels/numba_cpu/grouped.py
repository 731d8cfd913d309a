"""Grouped convolution: the filters of several groups side by side in a vector, each with its own group's channel.

    4 groups of 4 channels and 4 filters: 16 lanes, 4 vectors of which every one is multiplied into the same sums
    a pixel of x     [ a0 a1 a2 a3 | b0 b1 b2 b3 | c0 c1 c2 c3 | d0 d1 d2 d3 ]
    channel 0        [ a0 a0 a0 a0 | b0 b0 b0 b0 | c0 c0 c0 c0 | d0 d0 d0 d0 ]    one shuffle, S multiply-adds
    channel 1        [ a1 a1 a1 a1 | b1 b1 b1 b1 | ...                            (groups of a vector and more: a load
    weights          [ filters of a | of b | of c | of d ]                         that fills all lanes, no shuffle)

    for every block of groups that fill a vector, for every band of rows
        copy their channels of x, with padding, into a panel: [row][column][channel], whichever way x lies
        for every few outputs of a row
            for every row of the window, every channel of a group
                for every column of the panel that these outputs read: its vector, into the outputs that it belongs to
            store: as sums lie with channels last, transposed in registers in NCHW (column_stores.py)

Why: blocked.py and blocked_by_filters.py make one matrix product per group, and of groups of 4 filters most of a tile,
or of a vector, is empty. Here no lane is, a column of x serves all taps of a window's row, and a window's row of
weights stays in registers for all outputs of a tile. In a panel pixels lie close together: where they lie in x with
channels last, 4 KB apart for 1,024 channels, a tile's would all want the same few lines of the L1 cache.

Measured on two Zen 5 cores with AVX-512, N = 1, plans, microseconds, the best other kernel of ours in brackets; each of
ResNeXt-50's 3x3 layers would take 54 at the peak of the multiply-adds:

    x            128 x 56 x 56   256 x 56 x 56   256 x 28 x 28   512 x 28 x 28   1024 x 14 x 14   1024 x 7 x 7
    stride             1               2               1               2               2                1
    NCHW           90 (155)       120 (154)        76 (100)        80 (118)        73 (108)         67 (73)
    NHWC           89 (353)       145 (226)        87 (366)        95 (184)        78 (150)         67 (98)

What was learned there:
- With channels last, panels of one block after the other read every line of x for itself, and 128 x 56 x 56 took 102
  to 105 microseconds; panels of all blocks at once, a strip of rows after the other, read x as it lies. NCHW wants the
  opposite: a block's planes are neighbours.
- Panels of 4 blocks of 64 bytes at once are enough, and with AVX2 of 2 of 32: with 8 and 16, as many streams of stores,
  256 x 56 x 56 took 229 instead of 164 microseconds, 1024 x 14 x 14 103 instead of 71.
- A round of packing for a single call cost 20 to 40 microseconds; tasks that pack what they need 6 to 20.
- Groups that leave lanes empty cannot be stored in whole columns: RegNet's groups of 24 take three times as long in
  NCHW as Winograd does, and with channels last, where a mask does, 0.9 to 1.2 times.
- Groups of 48 and more are Winograd's: 96 channels in two take 2.5 times as long here.
- Windows of one tap gain nothing over blocked_by_filters.py, since what is copied is used once.
- Held to AVX2 two thirds of the peak are reached: with channels last 0.4 to 0.9 of PyTorch's time, in NCHW 0.95 to 1.2
  of blocked.py's.
Source: filters as the lanes of a register tile, as in Zhang, Franchetti and Low, High Performance Zero-Memory Overhead
Direct Convolutions, ICML 2018.
"""

import math
import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from .call import CALL_DTYPE, pack_call, problem_fields
from .column_stores import store_columns
from .compilation import compiled, inlined
from .epilogue import CLAMP, activated, clamped, limits, store_one_function
from .filter_columns import pack_vector_function
from .grouped_cuts import Tile, block_count, geometry, groups_side_by_side, seconds, tile_of, vector_filters
from .grouped_panels import fill_function
from .microkernel import vector_type
from .sliding_window import store_some
from .threads import run_tasks, task_loop
from .tracing import (
    broadcast,
    choose,
    constant,
    convert,
    first_lanes,
    fma,
    hidden,
    load,
    load_lanes,
    loop,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
)
from .vectors import lanes, record_at

passes = ("forward",)

GEOMETRY = (
    "packed", "bands", "strips", "block_tasks", "blocks", "at_once", "parts", "filters", "channels", "pitch", "columns",
    "row_bytes", "block_bytes", "scratch_at", "weights_at", "panel_at", "worker_bytes",
)  # fmt: skip
CALL_GROUPED = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))
CALL_PACK = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in ("side_by_side", "vectors")]))


# One tile.


def tile_function(dtype_name, tile):
    """The traced function for one tile, from bias to store."""
    V = vector_type(dtype_name)
    item, places = V.item_bytes, [(t, q) for t in range(tile.rows) for q in range(tile.columns)]
    columns = sorted({q * tile.step + s * tile.apart for q in range(tile.columns) for s in range(tile.S)})
    of_lanes = [min(lane // max(tile.Kg, 1), tile.groups - 1) * tile.Cg for lane in range(V.count)]

    def channel_vector(at, c):
        """A pixel's channel c of each lane's group; c is known while compiling where there are several groups."""
        if tile.groups == 1:
            return broadcast(V, load(V.scalar, at))
        pixel = load(V, at)
        return shuffle(pixel, pixel, [first + c for first in of_lanes])

    def add_row(sums, x, x_row, pitch, w, w_vector, c):
        """One channel's pixels of one row of the window, into all outputs. w: address of their weights."""
        weights = [[load(V, w + w_vector * v + V.bytes * s) for v in range(tile.vectors)] for s in range(tile.S)]
        sums = dict(zip(places, sums))
        for t in range(tile.rows):
            for column in columns:
                vector = channel_vector(x + x_row * t + pitch * column, c)
                for s in range(tile.S):
                    q, rest = divmod(column - s * tile.apart, tile.step)
                    if rest == 0 and (t, q) in sums:
                        sums[t, q] = [fma(vector, a, total) for a, total in zip(weights[s], sums[t, q])]
        return list(sums.values())

    @traced(types.void)
    def multiply(
        x, x_row, x_tap_row, pitch, R, Cg, w, w_vector, bias, y, y_p, y_q, y_k, left, low, high, scratch,
    ):  # fmt: skip
        """x_row, x_tap_row: from row to row of the outputs and of the window. left: filters that there are.

        y: where outputs go, of which vectors of filters (channels last) or pixels (NCHW) are neighbours; or 0: sums
        go to `scratch`, without a limit.
        """
        step = tile.S * V.bytes  # from row to row of a channel's weights

        def window_row(r, sums):
            here, weights = x + x_tap_row * r, w + step * r
            if tile.groups == 1:
                pixel = constant(x, pitch)
                return loop(
                    Cg,
                    lambda c, sums: add_row(
                        sums, here + c * item, x_row, pixel, weights + R * step * c, w_vector, None
                    ),
                    sums,
                )
            for c in range(tile.Cg):
                sums = add_row(sums, hidden(here), x_row, tile_pitch, weights + R * step * c, w_vector, c)
            return sums

        tile_pitch = tile.groups * tile.Cg * item
        start = [load(V, bias + V.bytes * v) for v in range(tile.vectors)]
        sums = loop(R, window_row, [start] * len(places))

        def to_scratch():
            for i, vectors in enumerate(sums):
                for v, total in enumerate(vectors):
                    store(scratch + V.bytes * (i * tile.vectors + v), total)

        def clamp(total):
            return clamped(total, limits(V, low, high))

        def pixels_apart():
            for (t, q), vectors in zip(places, sums):
                for v, total in enumerate(vectors):
                    to, kept = y + y_p * t + y_q * q + V.bytes * v, left - v * V.count
                    if tile.whole:
                        store(to, clamp(total))
                    else:
                        store_some(to, clamp(total), select(kept < V.count, kept, V.count))

        def filters_apart():
            for t in range(tile.rows):
                row = sums[t * tile.columns : (t + 1) * tile.columns]
                for v in range(tile.vectors):
                    to = y + y_p * t + y_k * (v * V.count)
                    none = constant(x, 0)
                    store_columns(
                        [vectors[v] for vectors in row], constant(x, tile.columns), to, y_k, none, none, clamp
                    )

        stored = pixels_apart if tile.layout == "NHWC" else filters_apart
        if tile.layout == "NCHW" and not tile.whole:
            to_scratch()
        else:
            choose(y.differs(0), stored, to_scratch)

    return multiply


# What one call does.


def finish_function(dtype_name):
    """The traced function that adds a residual to sums in y and activates them: `count` neighbours."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def finish_line(y, residual, has_residual, count, kind, low, high, slope):
        def vector(i):
            here, some = y + i * V.bytes, first_lanes(V, count - i * V.count)
            total = load_lanes(V, here, some)

            def added():
                return [total + load_lanes(V, residual + i * V.bytes, some)]

            total_of_both = choose(has_residual.differs(0), added, lambda: [total])
            store_lanes(here, activated(total_of_both, kind, low, high, slope)[0], some)

        loop((count + (V.count - 1)) // V.count, vector)

    return finish_line


def build(dtype_name, *numbers):
    tile = Tile(*numbers)
    V = vector_type(dtype_name)
    item, W, vector_bytes = V.item_bytes, V.count, V.bytes
    rows, columns, vectors, side_by_side = tile.rows, tile.columns, tile.vectors, tile.groups
    step_w, last, storable = tile.step, tile.layout == "NHWC", tile.layout == "NHWC" or tile.whole
    multiply, fill = tile_function(dtype_name, tile), fill_function(dtype_name)
    finish_line, store_one = finish_function(dtype_name), store_one_function(dtype_name)
    pack_vector = pack_vector_function(dtype_name)

    @traced(types.float64)
    def number_at(address):
        return convert(load(V.scalar, address), vector_type("float64").scalar)

    @traced(types.void)
    def copy_bias(to, address, present):
        value = choose(present.differs(0), lambda: [load(V.scalar, address)], lambda: [constant(to, 0.0, V.scalar)])[0]
        store(to, value)

    @inlined
    def finish_rows(call, n, k0, p0, p1):
        """What is more than a clamp of the sums, done to y."""
        for p in range(p0, p1):
            y = call.y + n * call.y_n + k0 * call.y_k + p * call.y_p
            more = call.residual + n * call.residual_n + k0 * call.residual_k + p * call.residual_p
            for i in range(call.Q if last else call.filters):
                to = y + i * (call.y_q if last else call.y_k)
                add = more + i * (call.residual_q if last else call.residual_k)
                finish_line(
                    to, add, call.has_residual, call.filters if last else call.Q, call.activation, call.low,
                    call.high, call.slope,
                )  # fmt: skip

    @inlined
    def store_numbers(call, n, k0, p, q, left, scratch):
        """A tile's sums, one by one."""
        for t in range(rows):
            for j in range(columns):
                for k in range(min(left, vectors * W)):
                    number = number_at(scratch + ((t * columns + j) * vectors * W + k) * item)
                    store_one(call, n, k0 + k, (p + t) * call.Q + q + j, number)

    @inlined
    def first_group(call, block):
        return min(block * side_by_side, call.groups - side_by_side)

    @inlined
    def pack_block(call, to, block):
        depth = call.Cg * call.R * call.S
        for v in range(call.parts * vectors):
            w = call.w + (first_group(call, block) * call.Kg + v * W) * call.w_k
            filters = max(0, min(W, call.filters - v * W))
            pack_vector(call, to + v * depth * vector_bytes, w, filters, 0, call.Cg)

    @inlined
    def one_block(call, n, k0, p0, p1, panel, weights, biases, scratch, direct, low, high):
        """Rows p0 .. p1 - 1 of a block's outputs."""
        part_bytes = vectors * call.Cg * call.R * call.S * vector_bytes
        for k in range(call.parts * vectors * W):
            copy_bias(biases + k * item, call.bias + (k0 + k) * call.bias_k, call.has_bias and k < call.filters)
        for part in range(call.parts):
            k = part * vectors * W
            for i in range(p0, p1, rows):
                p = min(i, p1 - rows)
                for j in range(0, call.Q, columns):
                    q = min(j, call.Q - columns)
                    y = call.y + n * call.y_n + (k0 + k) * call.y_k + p * call.y_p + q * call.y_q
                    multiply(
                        panel + (p - p0) * call.stride_h * call.row_bytes + q * step_w * call.pitch,
                        call.stride_h * call.row_bytes, call.dilation_h * call.row_bytes, call.pitch, call.R, call.Cg,
                        weights + part * part_bytes, part_bytes // vectors, biases + k * item, y if direct else 0,
                        call.y_p, call.y_q, call.y_k, call.filters - k, low, high, scratch,
                    )  # fmt: skip
                    if not direct:
                        store_numbers(call, n, k0 + k, p, q, call.filters - k, scratch)

    def task(call_address, index, worker):
        call = record_at(CALL_GROUPED, call_address)
        block_task, rest = index % call.block_tasks, index // call.block_tasks
        band, n = rest % call.bands, rest // call.bands
        p0, p1 = call.P * band // call.bands, call.P * (band + 1) // call.bands
        b0, b1 = call.blocks * block_task // call.block_tasks, call.blocks * (block_task + 1) // call.block_tasks
        biases = call.workspace + worker * call.worker_bytes
        scratch, panel = biases + call.scratch_at, biases + call.panel_at
        neighbours = call.y_k == item if last else call.y_q == item
        if call.has_residual:
            neighbours = neighbours and (call.residual_k if last else call.residual_q) == item
        direct = neighbours and storable
        plain = call.activation == CLAMP and not call.has_residual
        low, high = (call.low, call.high) if plain else (-math.inf, math.inf)

        block_weights = call.parts * vectors * call.Cg * call.R * call.S * vector_bytes
        weights = call.w + b0 * block_weights
        if not call.packed:
            weights = biases + call.weights_at
            for b in range(b0, b1):
                pack_block(call, weights + (b - b0) * block_weights, b)
        for b in range(b0, b1, call.at_once):
            g, blocks = first_group(call, b), min(call.at_once, b1 - b)
            x = call.x + n * call.x_n + g * call.Cg * call.x_c
            behind = (first_group(call, b + blocks - 1) - g) * call.Cg
            for i in range(call.strips):
                first, end = p0 + (p1 - p0) * i // call.strips, p0 + (p1 - p0) * (i + 1) // call.strips
                some = (end - first - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
                fill(call, panel, x, first * call.stride_h - call.top, some, blocks, behind)
                for j in range(blocks):
                    k0 = first_group(call, b + j) * call.Kg
                    one_block(
                        call, n, k0, first, end, panel + j * call.block_bytes,
                        weights + (b + j - b0) * block_weights, biases, scratch, direct, low, high,
                    )  # fmt: skip
                    if direct and not plain:
                        finish_rows(call, n, k0, first, end)

    return task_loop(task)


def build_pack(dtype_name):
    """Task: one block of groups. call.w: the weights, call.y: where they go."""
    W, row = lanes(dtype_name), vector_type(dtype_name).bytes
    pack_vector = pack_vector_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL_PACK, call_address)
        g = min(index * call.side_by_side, call.groups - call.side_by_side)
        filters, depth = call.side_by_side * call.Kg, call.Cg * call.R * call.S
        for v in range(call.vectors):
            to = call.y + (index * call.vectors + v) * depth * row
            w = call.w + (g * call.Kg + v * W) * call.w_k
            pack_vector(call, to, w, max(0, min(W, filters - v * W)), 0, call.Cg)

    return task_loop(pack)


# The kernel.


@lru_cache(maxsize=1024)
def prepared(problem, threads, packed):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads, packed)
    tile = tile_of(problem, threads, packed)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, *vars(tile).values()), tasks


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    reasons = []
    if problem.groups == 1:
        reasons.append("several groups needed, got groups = 1")
    elif problem.Cg == problem.Kg == 1:
        reasons.append("several channels or filters per group needed, got one of each")
    if problem.R * problem.S == 1:
        reasons.append("windows larger than 1 x 1 needed, whose taps share what is copied")
    if problem.dtype != problem.accumulate:
        reasons.append(f"float32 or float64 needed, got {problem.dtype}")
    return reasons


def workspace_bytes(problem, device):
    numbers, _ = geometry(problem, device.threads, packed=True)
    return device.threads * numbers[-1]


def one_call_bytes(problem, device):
    """The workspace of a `run` whose tasks pack the weights that they need."""
    numbers, _ = geometry(problem, device.threads, packed=False)
    return device.threads * numbers[-1]


def packed_bytes(problem, device):
    return block_count(problem) * vector_filters(problem) * problem.reduction * problem.accumulate.itemsize


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as vectors of filters."""
    vectors = vector_filters(problem) // lanes(problem.accumulate)
    fields = problem_fields(problem) + struct.pack("2q", groups_side_by_side(problem), vectors)
    call = pack_call(fields, packed, w, packed, None, None, None)
    run_tasks(compiled(build_pack, problem.dtype.name), call, block_count(problem), device.threads)


def predicted_seconds(problem, device):
    return seconds(problem, device, packed=True)


def pack_seconds(problem, device):
    """What a single call takes longer, whose tasks pack their weights."""
    return seconds(problem, device, packed=False) - seconds(problem, device, packed=True)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w into y; x (N, C, H, W), y (N, K, P, Q) in logical order.

    w: packed, or as it is, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    fields, tasks_loop, tasks = prepared(problem, device.threads, w.ndim == 1)
    run_tasks(tasks_loop, pack_call(fields, x, w, y, bias, residual, workspace), tasks, device.threads)
