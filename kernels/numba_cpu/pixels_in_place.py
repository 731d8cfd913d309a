"""Filters in the lanes, pixels read where they lie: channels last, and patches in either layout.

    a row of x    . . . r g b r g b r g b r g b . . .      pixels are as far apart as the stride says, so every number
                        [--- 8 pixels, stride apart        of every tap lies at  pixel + offset[d],  d = (c, r, s)
    at step d:  24 filters in 3 vectors, loaded once, times 8 numbers of x, each in every lane

Why beside blocked_by_filters.py's panels: a number of x is read by itself here, so it need not lie beside its
neighbour's, and no copy is made but of rows' ends, for their padding. The panels cost about 20 cycles for every pixel
and tap, which took most of the time where channels are few, and every range of filters made them again. All groups
share the copied rows.

What is served: channels last, where the weights of 3 vectors fit the L1 cache, and of any depth where nothing is
copied: 1x1 layers, and patches, windows as wide as their stride. Deep weights stream from the L2 cache, 16 bytes a
cycle, which costs nothing measurable: filters are the outer loop, rows of pixels the inner one, as many rows at a time
as the L2 cache holds with their outputs. Patches in NCHW too: sums are then transposed in registers on their way out
(column_stores.py).

Of padded rows only the ends are copied, for the tiles whose windows leave x there, and whole rows at the top and the
bottom. The last tile of a row starts early enough to end with it: some outputs are computed twice, alike. With 32
registers tiles have 7 pixels where 8 would waste more: rows of 7, 14, 28 pixels (pixel_cuts.py).

Measured on two Zen 5 cores with AVX-512, N = 1, where two micro-kernels reach 530 GFLOP/s. Beside panels, plans of 3
channels of 224 x 224: 3 x 3 with stride 2 57 instead of 429 microseconds, with stride 1 and 64 filters 0.6 instead of
1.9 ms, 16 x 16 with stride 16 and 768 filters 454 instead of 775; 32 groups of 4 channels of 56 x 56 0.36 instead of
4.3 ms, a quarter of the lanes filled (0.09 in grouped.py). 1x1 layers, channels last, 1024 -> 512 of 14 x 14 408
instead of 465, 512 -> 2048 of 7 x 7 as before. Patches in NCHW, beside blocked.py: 32 x 32, 768 filters 470 instead of
525, 2 x 2 on 384 channels of 14 x 14 240 instead of 276, 4 x 4 with 96 filters, where storing costs more, the same.
What was learned there:
- Tiles of 8 on rows of 14 took 1.14 times as long, just what they compute twice.
- Tiles of one vector of filters times 16 pixels took 0.92 of the time of 8 on 3 channels of 640 x 640, 3 x 3, stride
  2, 1.08 on 32 channels of 112 x 112, 1x1; of two vectors times 12 the same.
- Weights packed by a round of their own went through the L3 cache: 1024 -> 256 channels of 14 x 14 took 100
  microseconds more than a plan's 208, 576 -> 160 of 7 x 7 33 more by way of NCHW (turned.py). Packed by the task that
  wants them, a tile's at a time in its own L2 cache, they cost 14 and 6.
- Copying whole rows for a column of padding took 80 of 565 microseconds for 16 channels of 320 x 320, 3 x 3 with
  stride 2, 40 of 295 for 3 channels of 640 x 640.
- All rows of y for one tile of filters after the other: lines of y left the cache half written, and 25 taps of one
  channel of 256 x 256, 64 filters, took 630 microseconds instead of 470.
- One channel is channels last however its array says so: NumPy's stride of an axis of length one may be anything.

Weights are packed as filter_columns.py has them, all depths in one block.
Source: the table of offsets as in Dukhan, The Indirect Convolution Algorithm, 2019.
"""

import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import patches, target
from .call import CALL_DTYPE, problem_fields
from .column_stores import store_columns
from .compilation import compiled, inlined
from .epilogue import CLAMP, activation_fields, clamped, limits
from .filter_columns import pack_vector_function
from .filter_cuts import filter_vectors, up
from .microkernel import VECTORS, vector_type
from .panel import panel_filling
from .pixel_cuts import best_cut, copies, heights, row_bytes, row_numbers, rows_at_once, rows_read
from .sliding_window import store_some
from .threads import lines, task_loop, worker_span
from .tile_end import finish_rows
from .tracing import (
    I64,
    broadcast,
    choose,
    first_lanes,
    fma,
    load,
    load_lanes,
    loop,
    select,
    store,
    traced,
)
from .vectors import lanes, record_at

GEOMETRY = (
    "bands", "filter_tasks", "rows", "copied", "columns", "row_bytes", "bias_at", "scratch_at", "panel_at",
    "weights_at", "worker_bytes",
)  # fmt: skip
CALL_LAST = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays that `takes`?"""
    if problem.dtype != problem.accumulate:
        return False
    if problem.layout == "NHWC":
        point = problem.R * problem.S == 1 and not any(map(any, problem.padding))
        shallow = problem.reduction * VECTORS * target.vector_bytes() <= target.cache_bytes(1)
        return point or shallow or patches.apart(problem)
    whole = problem.Kg % lanes(problem.accumulate) == 0 and max(heights(problem)) <= problem.Q
    return patches.apart(problem) and whole and activation_fields(problem)[0] == CLAMP


def takes(x, y, residual, layout) -> bool:
    """Do channels lie side by side in these arrays, and pixels in x? In NCHW: the pixels of a row, in all of them?"""
    item, axis = x.itemsize, 1 if layout == "NHWC" else 3
    side_by_side = all(array is None or apart(array, axis, item) for array in (x, y, residual))
    return side_by_side and (layout == "NCHW" or apart(x, 3, x.shape[1] * item))


def apart(array, axis, step) -> bool:
    """Do numbers along the axis lie so many bytes apart? Where there is one only, its stride says nothing."""
    return array.shape[axis] == 1 or array.strides[axis] == step


def tile_function(dtype_name, rows, vectors, layout):
    """The traced function for `rows` pixels of a row times `vectors` vectors of filters, from bias to store."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def tile(
        x, pixel_bytes, offsets, depth, w, w_vector, y, y_q, residual, residual_q, has_residual, left, kept, bias,
        scratch, kind, low, high, slope,
    ):  # fmt: skip
        """left: pixels that are outputs. kept: lanes of the last vector that are. y_q, residual_q: from pixel to pixel;
        in NCHW from filter to filter.
        """

        def step(d, carried):
            sums, w = carried
            here = x + load(I64, offsets + d * I64.bytes)
            filters = [load(V, w + w_vector * j) for j in range(vectors)]
            added = []
            for i, row in enumerate(sums):
                number = broadcast(V, load(V.scalar, here + pixel_bytes * i))
                added.append([fma(number, some, total) for some, total in zip(filters, row)])
            return [added, w + V.bytes]

        start = [load(V, bias + V.bytes * j) for j in range(vectors)]
        sums = loop(depth, step, [[start] * rows, w])[0]

        def with_residual(totals, i):
            def added():
                here = [residual + residual_q * i + V.bytes * j for j in range(vectors)]
                more = [load(V, at) for at in here[:-1]] + [load_lanes(V, here[-1], first_lanes(V, kept))]
                return [total + number for total, number in zip(totals, more)]

            return choose(has_residual.differs(0), added, lambda: totals)

        def put(totals, i):
            for j, total in enumerate(totals[:-1]):
                store(y + y_q * i + V.bytes * j, total)
            store_some(y + y_q * i + V.bytes * (vectors - 1), totals[-1], kept)

        def in_columns():
            ends = limits(V, low, high)
            for j in range(vectors):
                store_columns(
                    [row[j] for row in sums], left, y + y_q * (V.count * j), y_q,
                    select(has_residual.differs(0), residual + residual_q * (V.count * j), 0), residual_q,
                    lambda total: clamped(total, ends),
                )  # fmt: skip

        if layout == "NCHW":
            in_columns()
        else:
            finish_rows(sums, left, (kind, low, high, slope), scratch, with_residual, put)

    return tile


@inlined
def inside(size, reach, before, stride, count):
    """(first, end) of the outputs of a row or column of x whose windows do not leave it."""
    return (before + stride - 1) // stride, max(min((size - 1 - reach + before) // stride + 1, count), 0)


@inlined
def rows_inside(call):
    return inside(call.H, (call.R - 1) * call.dilation_h, call.top, call.stride_h, call.P)


@inlined
def pixels_inside(call):
    return inside(call.W, (call.S - 1) * call.dilation_w, call.left, call.stride_w, call.Q)


def fill_offsets_function(layout, item):
    """A Numba function fill_offsets(call, to, x_row): where a window's numbers lie, of one group, from its first."""
    last = layout == "NHWC"

    @traced(types.void)
    def put_offset(address, number):
        store(address, number)

    @inlined
    def fill_offsets(call, to, x_row):
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    pixel = r * call.dilation_h * x_row + s * call.dilation_w * (call.C * item if last else item)
                    put_offset(to, pixel + c * (item if last else call.x_c))
                    to += 8

    return fill_offsets


def fill_biases_function(dtype_name):
    """A Numba function fill_biases(call, biases, padded): for each group so many of them, or zeros."""
    _, _, number_at, put_number = panel_filling(dtype_name)
    item, zero = np.dtype(dtype_name).itemsize, np.dtype(dtype_name).type(0)

    @inlined
    def fill_biases(call, biases, padded):
        for g in range(call.groups):
            for i in range(padded):
                given = call.has_bias and i < call.Kg
                number = number_at(call.bias + (g * call.Kg + i) * call.bias_k) if given else zero
                put_number(biases + (g * padded + i) * item, number)

    return fill_biases


def copy_edges_function(dtype_name, tallest):
    """A Numba function copy_edges(call, panel, x, p0, p1); tallest: pixels of the tallest tile."""
    fill_columns, _, _, _ = panel_filling(dtype_name)
    item = np.dtype(dtype_name).itemsize

    @inlined
    def copy_some(call, panel, x, p0, first_row, end_row, first, end):
        """Rows and numbers of a panel. Whole vectors are written, over numbers behind them that come later."""
        if first_row < end_row and first < end:
            fill_columns(
                panel + first_row * call.row_bytes + first * item, call.row_bytes, 0, x, call.x_h, item, call.H,
                call.W * call.C, p0 * call.stride_h - call.top + first_row, end_row - first_row,
                first - call.left * call.C, end - first, 1,
            )  # fmt: skip

    @inlined
    def copy_edges(call, panel, x, p0, p1):
        """Of what rows p0 .. p1 - 1 of outputs read: whole rows where windows leave x above or below, and else what
        those tiles read, of any height, that leave it at a side.
        """
        above, below = rows_inside(call)
        before, behind = pixels_inside(call)
        count = (p1 - p0 - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
        upper = (min(above, p1) - 1 - p0) * call.stride_h + (call.R - 1) * call.dilation_h + 1 if p0 < above else 0
        lower = (max(below, p0) - p0) * call.stride_h if below < p1 else count
        left = 0
        if before > 0:
            left = ((before + tallest - 2) * call.stride_w + (call.S - 1) * call.dilation_w + 1) * call.C
        right = max(behind - tallest + 1, 0) * call.stride_w * call.C if behind < call.Q else call.columns
        if behind < tallest or upper >= lower or left >= right:
            copy_some(call, panel, x, p0, 0, count, 0, call.columns)
            return
        copy_some(call, panel, x, p0, 0, upper, 0, call.columns)
        copy_some(call, panel, x, p0, upper, lower, 0, left)
        copy_some(call, panel, x, p0, upper, lower, right, call.columns)
        copy_some(call, panel, x, p0, lower, count, 0, call.columns)

    return copy_edges


def multiply_rows_function(dtype_name, rows, layout):
    """A Numba function multiply_rows(call, x, panel, w, bias, scratch, offsets, g, done, vectors, y_image, more_image,
    p0, first, end).
    """
    W, item, last = lanes(dtype_name), np.dtype(dtype_name).itemsize, layout == "NHWC"
    one_rows, two_rows, three_rows = rows
    one, two, three = (tile_function(dtype_name, rows[vectors - 1], vectors, layout) for vectors in (1, 2, 3))

    @inlined
    def multiply_rows(call, x, panel, w, bias, scratch, offsets, g, done, vectors, y_image, more_image, p0, first, end):
        """Rows first .. end - 1 of the outputs of `vectors` vectors of group g's filters; p0 is the first of the panel.

        x, y_image, more_image: of one image. offsets: for windows in x, and behind them for those in the panel.
        """
        above, below = rows_inside(call)
        before, behind = pixels_inside(call)
        depth, k0 = call.Cg * call.R * call.S, g * call.Kg + done * W
        height = three_rows if vectors == 3 else two_rows if vectors == 2 else one_rows
        kept = min(W, call.Kg - (done + vectors - 1) * W)
        pixel = call.C * item if last else item
        pixel_bytes = call.stride_w * pixel
        y_q, residual_q = (call.y_q, call.residual_q) if last else (call.y_k, call.residual_k)
        for p in range(first, end):
            row = x + (p * call.stride_h - call.top) * call.x_h - call.left * pixel
            panel_row = panel + (p - p0) * call.stride_h * call.row_bytes
            y = y_image + p * call.y_p + k0 * call.y_k
            residual = more_image + p * call.residual_p + k0 * call.residual_k
            for i in range(0, call.Q, height):
                q = max(min(i, call.Q - height), 0)
                here, taps = row, offsets
                if call.copied and (p < above or p >= below or q < before or q + height > behind):
                    here, taps = panel_row, offsets + depth * 8
                here += q * pixel_bytes + g * call.Cg * (item if last else call.x_c)
                to, more = y + q * call.y_q, residual + q * call.residual_q
                if vectors == 3:
                    three(
                        here, pixel_bytes, taps, depth, w, depth * W * item, to, y_q, more, residual_q,
                        call.has_residual, call.Q - q, kept, bias, scratch, call.activation, call.low, call.high,
                        call.slope,
                    )  # fmt: skip
                elif vectors == 2:
                    two(
                        here, pixel_bytes, taps, depth, w, depth * W * item, to, y_q, more, residual_q,
                        call.has_residual, call.Q - q, kept, bias, scratch, call.activation, call.low, call.high,
                        call.slope,
                    )  # fmt: skip
                else:
                    one(
                        here, pixel_bytes, taps, depth, w, depth * W * item, to, y_q, more, residual_q,
                        call.has_residual, call.Q - q, kept, bias, scratch, call.activation, call.low, call.high,
                        call.slope,
                    )  # fmt: skip

    return multiply_rows


def build(dtype_name, rows, layout):
    """rows: pixels of a tile, as `heights` says."""
    W, item = lanes(dtype_name), np.dtype(dtype_name).itemsize
    fill_offsets, fill_biases = fill_offsets_function(layout, item), fill_biases_function(dtype_name)
    pack_vector = pack_vector_function(dtype_name)
    copy_edges = copy_edges_function(dtype_name, max(rows))
    multiply_rows = multiply_rows_function(dtype_name, rows, layout)

    @inlined
    def pack_tile(call, to, g, first, vectors):
        """So many vectors of group g's filters from `first` on, as packed ones lie."""
        for i in range(first, first + vectors):
            w = call.w + (g * call.Kg + i * W) * call.w_k
            pack_vector(call, to, w, min(W, call.Kg - i * W), 0, call.Cg)
            to += call.Cg * call.R * call.S * W * item

    def task(call_address, index, worker):
        call = record_at(CALL_LAST, call_address)
        band, rest = index % call.bands, index // call.bands
        filter_task, n = rest % call.filter_tasks, rest // call.filter_tasks
        p0, p1 = call.P * band // call.bands, call.P * (band + 1) // call.bands
        offsets = call.workspace + worker * call.worker_bytes
        biases, scratch, panel = offsets + call.bias_at, offsets + call.scratch_at, offsets + call.panel_at
        x, y = call.x + n * call.x_n, call.y + n * call.y_n
        more = call.residual + n * call.residual_n
        if call.copied:
            copy_edges(call, panel, x, p0, p1)
        vectors_padded = (call.Kg + W - 1) // W
        begin = vectors_padded * filter_task // call.filter_tasks
        end = vectors_padded * (filter_task + 1) // call.filter_tasks
        padded, depth = vectors_padded * W, call.Cg * call.R * call.S
        fill_offsets(call, offsets, call.x_h)
        fill_offsets(call, offsets + depth * 8, call.row_bytes)
        fill_biases(call, biases, padded)
        for first in range(p0, p1, call.rows):
            for g in range(call.groups):
                done = begin
                while done < end:
                    vectors = 2 if end - done == 4 else min(end - done, VECTORS)
                    w = call.w + (g * padded + done * W) * depth * item
                    if call.w_k != 0:
                        w = offsets + call.weights_at
                        if call.rows < p1 - p0:  # each tile comes again
                            w += (g * (end - begin) + done - begin) * depth * W * item
                        if first == p0:
                            pack_tile(call, w, g, done, vectors)
                    bias = biases + (g * padded + done * W) * item
                    behind = min(first + call.rows, p1)
                    multiply_rows(
                        call, x, panel, w, bias, scratch, offsets, g, done, vectors, y, more, p0, first, behind
                    )
                    done += vectors

    return task_loop(task)


# How a problem is cut.


@lru_cache(maxsize=1024)
def geometry(problem, threads, packs):
    """The numbers of GEOMETRY, and how many tasks there are. packs: tasks pack the weights."""
    item, W = problem.accumulate.itemsize, lanes(problem.accumulate)
    bands, filter_tasks = best_cut(problem, threads, packs)
    rows = rows_read(problem, -(-problem.P // bands)) if copies(problem) else 0
    bias_at = lines(16 * problem.reduction)
    scratch_at = bias_at + lines(problem.groups * up(problem.Kg, W) * item)
    panel_at = scratch_at + 8 * VECTORS * target.vector_bytes()
    beyond = 8 * problem.stride[1] * problem.C * item + 64  # what a tile wider than a row reads
    weights_at = panel_at + lines(rows * row_bytes(problem) + beyond)
    at_once = rows_at_once(problem, bands, filter_tasks)
    vectors = VECTORS
    if at_once < -(-problem.P // bands):  # all weights of the task are kept
        vectors = problem.groups * -(-filter_vectors(problem) // filter_tasks)
    weights = vectors * target.vector_bytes() * problem.reduction if packs else 0
    worker_bytes = worker_span(weights_at + weights)
    numbers = (
        bands, filter_tasks, at_once, int(copies(problem)), row_numbers(problem), row_bytes(problem), bias_at,
        scratch_at, panel_at, weights_at, worker_bytes,
    )  # fmt: skip
    return numbers, problem.N * bands * filter_tasks


def workspace_bytes(problem, threads, packs=False):
    numbers, _ = geometry(problem, threads, packs)
    return threads * numbers[-1]


@lru_cache(maxsize=1024)
def prepared(problem, threads, packs):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads, packs)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, heights(problem), problem.layout), tasks
