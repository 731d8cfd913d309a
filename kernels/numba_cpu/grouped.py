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
weights stays in registers for all outputs of a tile.
"""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL, CALL_DTYPE, pack_call, problem_fields
from .column_stores import store_columns
from .compilation import compiled, inlined
from .epilogue import CLAMP, activated, store_one_function
from .filter_columns import pack_vector_function
from .microkernel import CLOCK, predicted, vector_type
from .sliding_window import store_some
from .threads import lines, run_tasks, task_loop, worker_span
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
    maximum,
    minimum,
    select,
    shuffle,
    store,
    store_lanes,
    traced,
    transpose,
    zeros,
)
from .vectors import lanes, record_at

passes = ("forward",)

MOST_VECTORS = 3  # of filters that share a channel's load
MOST_COLUMNS = 16  # of outputs at once, which a transposed store takes together
TASKS_PER_THREAD = 2

GEOMETRY = (
    "bands", "block_tasks", "blocks", "parts", "filters", "channels", "pitch", "columns", "row_bytes", "bias_at",
    "scratch_at", "panel_at", "worker_bytes",
)  # fmt: skip
CALL_GROUPED = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


@dataclass(frozen=True)
class Tile:
    """What is compiled for: rows x columns outputs times `vectors` vectors of filters.

    groups: side by side in a vector, each of Cg channels and Kg filters; 1 where a group fills vectors by itself, and
    Cg and Kg are known only when running. step, apart: columns of the panel from output to output and tap to tap.
    whole: no lane is left empty.
    """

    rows: int
    columns: int
    vectors: int
    groups: int
    Cg: int
    Kg: int
    S: int
    step: int
    apart: int
    whole: bool
    layout: str


# ---- one tile ----


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

        def clamped(total):
            least, most = (broadcast(V, convert(limit, V.scalar)) for limit in (low, high))
            return maximum(least, minimum(most, total))

        def pixels_apart():
            for (t, q), vectors in zip(places, sums):
                for v, total in enumerate(vectors):
                    to, kept = y + y_p * t + y_q * q + V.bytes * v, left - v * V.count
                    if tile.whole:
                        store(to, clamped(total))
                    else:
                        store_some(to, clamped(total), select(kept < V.count, kept, V.count))

        def filters_apart():
            for t in range(tile.rows):
                row = sums[t * tile.columns : (t + 1) * tile.columns]
                for v in range(tile.vectors):
                    to = y + y_p * t + y_k * (v * V.count)
                    none = constant(x, 0)
                    store_columns(
                        [vectors[v] for vectors in row], constant(x, tile.columns), to, y_k, none, none, clamped
                    )

        stored = pixels_apart if tile.layout == "NHWC" else filters_apart
        if tile.layout == "NCHW" and not tile.whole:
            to_scratch()
        else:
            choose(y.differs(0), stored, to_scratch)

    return multiply


# ---- filling the panel ----


def fill_function(dtype_name):
    """A Numba function fill(call, panel, x, first_row, rows): the panel of one image and block, padding included.

    x: address of the block's first channel. What is written runs over the end of a row, and so over the last one's.
    """
    V = vector_type(dtype_name)
    item, W = V.item_bytes, V.count

    @traced(types.void)
    def clear(to, count):
        loop((count + (W - 1)) // W, lambda i: store(to + i * V.bytes, zeros(V, to)))

    @traced(types.void)
    def copy_pixels(to, pitch, x, x_w, count, channels):
        """Pixels whose channels are neighbours."""
        whole = channels // W
        some = first_lanes(V, channels - whole * W)

        def pixel(i):
            here, there = x + x_w * i, to + pitch * i
            loop(whole, lambda j: store(there + j * V.bytes, load(V, here + j * V.bytes)))
            last = whole * V.bytes
            choose(
                channels > whole * W,
                lambda: store(there + last, load_lanes(V, here + last, some)),
                lambda: None,
            )

        loop(count, pixel)

    @traced(types.void)
    def turn_pixels(to, pitch, x, x_c, count, channels):
        """Pixels that are neighbours, W of them and of their channels at a time."""

        def square(i):
            some = first_lanes(V, count - i * W)

            def part(j):
                here = x + i * V.bytes
                rows = [load_lanes(V, here + x_c * minimum(j * W + k, channels - 1), some) for k in range(W)]
                for k, pixel in enumerate(transpose(rows)):
                    store(to + pitch * (i * W + k) + j * V.bytes, pixel)

            loop((channels + (W - 1)) // W, part)

        loop((count + (W - 1)) // W, square)

    @traced(types.void)
    def copy_number(to, x):
        store(to, load(V.scalar, x))

    @inlined
    def copy_row(call, to, x, count):
        """`count` pixels of a row, wherever they lie."""
        if call.x_c == item or call.channels == 1:
            copy_pixels(to, call.pitch, x, call.x_w, count, call.channels)
        elif call.x_w == item:
            turn_pixels(to, call.pitch, x, call.x_c, count, call.channels)
        else:
            for i in range(count):
                for c in range(call.channels):
                    copy_number(to + i * call.pitch + c * item, x + i * call.x_w + c * call.x_c)

    @inlined
    def fill(call, panel, x, first_row, rows):
        pitch = call.pitch
        start = min(call.left, call.columns)
        end = max(start, min(call.columns, call.W + call.left))
        for i in range(rows):
            h, to = first_row + i, panel + i * call.row_bytes
            if h < 0 or h >= call.H:
                clear(to, call.columns * pitch // item)
                continue
            clear(to, start * pitch // item)
            copy_row(call, to + start * pitch, x + h * call.x_h, end - start)
            clear(to + end * pitch, (call.columns - end) * pitch // item)

    return fill


# ---- what one call does ----


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

    @traced(types.float64)
    def number_at(address):
        return convert(load(V.scalar, address), vector_type("float64").scalar)

    @traced(types.void)
    def copy_bias(to, address, present):
        value = choose(
            present.differs(0), lambda: [load(V.scalar, address)], lambda: [constant(to, 0.0, V.scalar)]
        )[0]
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

    def task(call_address, index, worker):
        call = record_at(CALL_GROUPED, call_address)
        block_task, rest = index % call.block_tasks, index // call.block_tasks
        band, n = rest % call.bands, rest // call.bands
        p0, p1 = call.P * band // call.bands, call.P * (band + 1) // call.bands
        own = call.workspace + worker * call.worker_bytes
        biases, scratch, panel = own + call.bias_at, own + call.scratch_at, own + call.panel_at
        neighbours = call.y_k == item if last else call.y_q == item
        if call.has_residual:
            neighbours = neighbours and (call.residual_k if last else call.residual_q) == item
        direct = neighbours and storable
        plain = call.activation == CLAMP and not call.has_residual
        low, high = (call.low, call.high) if plain else (-math.inf, math.inf)
        first_row = p0 * call.stride_h - call.top
        panel_rows = (p1 - p0 - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
        depth = call.Cg * call.R * call.S
        begin = call.blocks * block_task // call.block_tasks
        for block in range(begin, call.blocks * (block_task + 1) // call.block_tasks):
            g = min(block * side_by_side, call.groups - side_by_side)
            k0 = g * call.Kg
            x = call.x + n * call.x_n + g * call.Cg * call.x_c
            fill(call, panel, x, first_row, panel_rows)
            for k in range(call.parts * vectors * W):
                here = call.bias + (k0 + k) * call.bias_k
                copy_bias(biases + k * item, here, call.has_bias and k < call.filters)
            for part in range(call.parts):
                k = part * vectors * W
                w = call.w + (block * call.parts + part) * vectors * depth * vector_bytes
                for i in range(p0, p1, rows):
                    p = min(i, p1 - rows)
                    for j in range(0, call.Q, columns):
                        q = min(j, call.Q - columns)
                        y = call.y + n * call.y_n + (k0 + k) * call.y_k + p * call.y_p + q * call.y_q
                        multiply(
                            panel + (p - p0) * call.stride_h * call.row_bytes + q * step_w * call.pitch,
                            call.stride_h * call.row_bytes, call.dilation_h * call.row_bytes, call.pitch, call.R,
                            call.Cg, w, depth * vector_bytes, biases + k * item, y if direct else 0, call.y_p, call.y_q,
                            call.y_k, call.filters - k, low, high, scratch,
                        )  # fmt: skip
                        if not direct:
                            store_numbers(call, n, k0 + k, p, q, call.filters - k, scratch)
            if direct and not plain:
                finish_rows(call, n, k0, p0, p1)

    return task_loop(task)


def build_pack(dtype_name, side_by_side, vectors, parts):
    """Task: one block of groups. call.w: the weights, call.y: where they go."""
    W, row = lanes(dtype_name), vector_type(dtype_name).bytes
    pack_vector = pack_vector_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        g = min(index * side_by_side, call.groups - side_by_side)
        filters, depth = side_by_side * call.Kg, call.Cg * call.R * call.S
        for v in range(parts * vectors):
            to = call.y + (index * parts * vectors + v) * depth * row
            w = call.w + (g * call.Kg + v * W) * call.w_k
            pack_vector(call, to, w, max(0, min(W, filters - v * W)), 0, call.Cg)

    return task_loop(pack)


# ---- how a problem is cut ----


def groups_side_by_side(problem) -> int:
    """How many groups' filters, and channels, one vector holds."""
    W = lanes(problem.accumulate)
    return max(1, min(W // max(problem.Kg, problem.Cg), problem.groups))


def vectors_and_parts(problem):
    """Vectors of filters of a tile, and how many such parts a block has."""
    total = -(-groups_side_by_side(problem) * problem.Kg // lanes(problem.accumulate))
    parts = -(-total // MOST_VECTORS)
    return -(-total // parts), parts


@lru_cache(maxsize=1024)
def tile_of(problem, threads) -> Tile:
    side_by_side, (vectors, parts) = groups_side_by_side(problem), vectors_and_parts(problem)
    several = side_by_side > 1
    whole = parts * vectors * lanes(problem.accumulate) == side_by_side * problem.Kg
    rows, columns = min(possible_sizes(problem, threads), key=lambda size: tiles_cycles(problem, *size))
    return Tile(
        rows, columns, vectors, side_by_side, problem.Cg if several else 0, problem.Kg if several else 0, problem.S,
        problem.stride[1], problem.dilation[1], whole, problem.layout,
    )  # fmt: skip


def possible_sizes(problem, threads):
    """(rows, columns) of outputs whose sums fit the registers, beside a row of weights if there are enough."""
    vectors, _ = vectors_and_parts(problem)
    weights = min(problem.S * vectors, target.register_count() // 4)
    most = max(1, (target.register_count() - weights - 2) // vectors)
    for rows in (1, 2):
        if rows == 1 or problem.P // band_count(problem, threads) >= rows:
            for columns in range(1, min(MOST_COLUMNS, problem.Q, most // rows) + 1):
                yield rows, columns


def tiles_cycles(problem, rows, columns) -> float:
    """Predicted, of one block's outputs."""
    vectors, parts = vectors_and_parts(problem)
    multiply_adds = rows * columns * vectors * problem.S
    read = min(columns * problem.S, (columns - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1)
    loads = rows * read + problem.S * vectors
    waiting = 4.0 * problem.S  # each sum's chain of multiply-adds
    step = max(multiply_adds / target.multiply_adds_per_cycle() + 0.1 * loads, waiting)
    tiles = -(-problem.P // rows) * -(-problem.Q // columns) * parts
    return tiles * (step * problem.R * problem.Cg + 25.0 + 2.0 * rows * columns * vectors)


def block_count(problem) -> int:
    return -(-problem.groups // groups_side_by_side(problem))


def band_count(problem, threads) -> int:
    """Bands of rows: enough for the threads where blocks alone are not, and panels that stay in the L2 cache."""
    wanted = -(-threads // (problem.N * block_count(problem)))
    halo = (problem.R - 1) * problem.dilation[0] + 1
    fitting = max(1, (target.cache_bytes(2) // 2 // row_bytes(problem) - halo) // problem.stride[0])
    return max(1, min(max(wanted, -(-problem.P // fitting)), problem.P))


def pitch(problem) -> int:
    """Bytes from pixel to pixel of a panel: whole vectors, where channels fill more than one."""
    W, channels = lanes(problem.accumulate), groups_side_by_side(problem) * problem.Cg
    return (channels if channels <= W else -(-channels // W) * W) * problem.accumulate.itemsize


def panel_columns(problem) -> int:
    return (problem.Q - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1


def row_bytes(problem) -> int:
    """With a line between rows, which would share lines of the L1 cache if they lay a power of two apart."""
    return lines(panel_columns(problem) * pitch(problem)) + 64


@lru_cache(maxsize=1024)
def geometry(problem, threads):
    """The numbers of GEOMETRY, and how many tasks there are."""
    W, item, tile = lanes(problem.accumulate), problem.accumulate.itemsize, tile_of(problem, threads)
    vectors, parts = vectors_and_parts(problem)
    bands, blocks = band_count(problem, threads), block_count(problem)
    wanted = -(-TASKS_PER_THREAD * threads // (problem.N * bands)) if threads > 1 else 1
    block_tasks = min(blocks, wanted)
    panel_rows = (-(-problem.P // bands) - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1
    scratch_at = lines(parts * vectors * W * item)
    panel_at = scratch_at + lines(tile.rows * tile.columns * vectors * W * item)
    beyond = (W + 1) * pitch(problem) + target.vector_bytes()  # what filling the last row, and loading, runs over
    worker_bytes = worker_span(panel_at + panel_rows * row_bytes(problem) + beyond)
    side_by_side = groups_side_by_side(problem)
    numbers = (
        bands, block_tasks, blocks, parts, side_by_side * problem.Kg, side_by_side * problem.Cg, pitch(problem),
        panel_columns(problem), row_bytes(problem), 0, scratch_at, panel_at, worker_bytes,
    )  # fmt: skip
    return numbers, problem.N * bands * block_tasks


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads)
    tile = tile_of(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, *vars(tile).values()), tasks


# ---- the kernel ----


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    reasons = []
    if problem.groups == 1:
        reasons.append("several groups needed, got groups = 1")
    if problem.dtype != problem.accumulate:
        reasons.append(f"float32 or float64 needed, got {problem.dtype}")
    return reasons


def workspace_bytes(problem, device):
    numbers, _ = geometry(problem, device.threads)
    return device.threads * numbers[-1]


def packed_bytes(problem, device):
    vectors, parts = vectors_and_parts(problem)
    return block_count(problem) * parts * vectors * problem.reduction * target.vector_bytes()


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as vectors of filters."""
    loop_ = compiled(build_pack, problem.dtype.name, groups_side_by_side(problem), *vectors_and_parts(problem))
    call = pack_call(problem_fields(problem), packed, w, packed, None, None, None)
    run_tasks(loop_, call, block_count(problem), device.threads)


def predicted_seconds(problem, device):
    return predicted(problem, device, problem.N * block_count(problem) * block_cycles(problem, device.threads))


def block_cycles(problem, threads) -> float:
    tile = tile_of(problem, threads)
    channels, filters = tile.groups * problem.Cg, tile.groups * problem.Kg
    copied, stored = problem.H * problem.W * channels, problem.P * problem.Q * filters
    moved = 0.2 * copied if problem.layout == "NHWC" else 0.4 * copied + 0.3 * stored
    if problem.layout == "NCHW" and not tile.whole:
        moved += 8.0 * stored
    return tiles_cycles(problem, tile.rows, tile.columns) / 0.9 + moved


def pack_seconds(problem, device):
    return 8e-6 + 0.7 * problem.K * problem.reduction / CLOCK / device.threads


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical
    order.
    """
    fields, loop_, tasks = prepared(problem, device.threads)
    run_tasks(loop_, pack_call(fields, x, w, y, bias, residual, workspace), tasks, device.threads)
