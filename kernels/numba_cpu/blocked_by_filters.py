"""Blocked convolution with filters across the vector lanes: for channels last, and for maps of few pixels.

The same product as blocked.py, y = w * x over d = (c, r, s), with the roles exchanged in the micro-kernel: a row of
its tile is a pixel, whose x values are broadcast, and its columns are 24 filters.

    for every block of pixels                         its panel, [4 pixels][depth][4], stays in the L2 cache
        for every block of channels
            copy the x values that these pixels read into the panel
            for every tile of 24 filters              its weights, 24 x about 256 depths, in the L1 cache, are read once
                for every 4 pixels: the micro-kernel

Why so: pixels are cut by 4, not by 24, so a 7 x 7 map wastes 6 % instead of 22 %; weights, which outweigh everything
on such maps (9 MB for 512 x 512 x 3 x 3), are read once. With channels last y is stored as it comes; in NCHW sums are
transposed in registers on their way out (column_stores.py).

With 32 registers a tile has 8 pixels, or 7 where that divides the map and 8 wastes much: 49 are 7 times 7.

Where a map has so few pixels that the threads must share it by filters, all of them need the same panels: each packs
them for itself, or a first round of tasks does it for all, whichever is predicted to be done sooner (filter_cuts.py).

Measured on two Zen 5 cores with AVX-512, N = 1, where two micro-kernels reach 530 GFLOP/s: ResNet-50's 1x1 layers of
14 x 14 and 7 x 7 390 to 490, its strided 3x3 layers 390 to 450, MobileNetV2's 1x1 layers of 7 x 7 280 to 410. In NCHW
blocked.py is now as fast or faster on nearly all of them, since it packs neither x nor w; with channels last this
kernel alone stores y as it comes.
Lesson: fetching ahead must stop at the end of what a thread reads. Behind it lies what its neighbour writes, and a
layer took 1.4 times as long in every other process, as addresses happened to fall; so did workspaces without a gap.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import from_dtype
from numba.core import types

from . import filter_columns, pixel_cuts, pixels_in_place, target, tracing
from .blocked import flat_rows
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, activate, store_one_function
from .filter_cuts import best_cut, filter_vectors, tile_pixels, up
from .job import Job, job_of
from .microkernel import (
    CALL_SECONDS,
    CLOCK,
    VECTORS,
    multiply_cycles,
    multiply_function,
    panel_rows,
    predicted,
    vector_type,
)
from .pixel_panels import copy_pixels_function
from .short_floats import memory_functions
from .threads import run_tasks, two_round_loop, worker_span
from .tracing import load, store, traced
from .vectors import lanes, record_at

passes = ("forward",)

CYCLES_PER_TAP = 20.0  # of a pixel, channels last, beside its channels

BLOCKING = (
    "pixels", "filters", "pixel_tasks", "filter_tasks", "channel_block", "shared", "panel_pixels",
    "worker_bytes", "partial_at", "bias_at", "workers_at",
)  # fmt: skip
CALL_BY_FILTERS = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


@inlined
def tile_vectors(left):
    """Of the next tile, where so many are left: 3, but 2 and 2 rather than 3 and 1."""
    if left == 4:
        return 2
    return min(left, VECTORS)


def finish_function(dtype_name):
    """A Numba function finish(call, n, k0, filters, first, count, partial, row, biases, square): bias, residual,
    activation and store for the sums in `partial`, wherever y lies. square: room for W x W of them.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    W, lanes_type = lanes(real), vector_type(real)
    _, _, read_vector, write_vector = memory_functions(dtype_name)
    read_sum, _, read_sums, _ = memory_functions(np.dtype(real).name)
    store_one = store_one_function(dtype_name)

    @traced(types.void)
    def transpose_square(to, sums, sums_row, biases):
        """W pixels of W filters, with their biases, as W filters of W pixels."""
        bias = load(lanes_type, biases)
        square = tracing.transpose([load(lanes_type, sums + sums_row * i) + bias for i in range(W)])
        for i, pixels in enumerate(square):
            store(to + i * lanes_type.bytes, pixels)

    @inlined
    def finish_transposed(call, n, k0, filters, first, count, partial, row, biases, square):
        """Sums to contiguous pixels of y, W x W at a time; returns how many pixels and how many filters it did."""
        for i in range(0, count - W + 1, W):
            for j in range(0, filters - W + 1, W):
                transpose_square(square, partial + i * row + j * item, row, biases + j * item)
                y = call.y + n * call.y_n + (k0 + j) * call.y_k + (first + i) * stored_item
                add = call.residual + n * call.residual_n + (k0 + j) * call.residual_k + (first + i) * stored_item
                for k in range(W):
                    total = read_sums(square + k * W * item)
                    if call.has_residual:
                        total += read_vector(add + k * call.residual_k)
                    total = activate(total, call.activation, call.low, call.high, call.slope)
                    write_vector(y + k * call.y_k, total)

    @inlined
    def finish_filters(call, n, k0, filters, pixel, sums, biases):
        """One pixel's sums to contiguous filters of y, in whole vectors."""
        p, q = pixel // call.Q, pixel % call.Q
        y = call.y + n * call.y_n + p * call.y_p + q * call.y_q + k0 * stored_item
        add = call.residual + n * call.residual_n + p * call.residual_p + q * call.residual_q + k0 * stored_item
        for j in range(0, filters - W + 1, W):
            total = read_sums(sums + j * item) + read_sums(biases + j * item)
            if call.has_residual:
                total += read_vector(add + j * stored_item)
            total = activate(total, call.activation, call.low, call.high, call.slope)
            write_vector(y + j * stored_item, total)

    @inlined
    def finish(call, n, k0, filters, first, count, partial, row, biases, square):
        flat = flat_rows(call.y_p, call.y_q, call.Q) and flat_rows(call.residual_p, call.residual_q, call.Q)
        by_pixel = flat and call.y_q == stored_item and (not call.has_residual or call.residual_q == stored_item)
        by_filter = call.y_k == stored_item and (not call.has_residual or call.residual_k == stored_item)
        whole_filters, whole_pixels = 0, 0
        if by_filter:
            whole_filters, whole_pixels = filters // W * W, count
            for i in range(count):
                finish_filters(call, n, k0, filters, first + i, partial + i * row, biases)
        elif by_pixel:
            whole_filters, whole_pixels = filters // W * W, count // W * W
            finish_transposed(call, n, k0, filters, first, count, partial, row, biases, square)
        for i in range(count):
            for j in range(whole_filters if i < whole_pixels else 0, filters):
                number = read_sum(partial + i * row + j * item) + read_sum(biases + j * item)
                store_one(call, n, k0 + j, first + i, number)

    return finish


def build(dtype_name, tile_pixels, layout):
    """tile_pixels: of the micro-kernel's tile, or 0 for as many as it has by itself. layout: of the outputs that the
    micro-kernel stores by itself, others go through memory.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item = np.dtype(real).itemsize
    stored_item = 2 if dtype_name.endswith("16") else item
    same, columns = item == stored_item, layout == "NCHW"
    W, rows = lanes(real), panel_rows()
    zero = real(0)
    read, _, _, _ = memory_functions(dtype_name)
    _, write_sum, _, _ = memory_functions(np.dtype(real).name)
    finish = finish_function(dtype_name)
    apart = tile_pixels or rows  # pixels from panel to panel
    copy_pixels = copy_pixels_function(dtype_name, apart)
    multiply = multiply_function(real, "column", tile_pixels or None, columns)

    @inlined
    def copy_biases(call, k0, filters, padded, biases):
        for i in range(padded):
            write_sum(
                biases + i * item, read(call.bias + (k0 + i) * call.bias_k) if call.has_bias and i < filters else zero
            )

    def pack_shared(call_address, index, worker):
        """First round: task = one block of pixels of one image and group, one of channels, into the shared panels."""
        call = record_at(CALL_BY_FILTERS, call_address)
        channel_tasks = (call.Cg + call.channel_block - 1) // call.channel_block
        c0, block = index % channel_tasks * call.channel_block, index // channel_tasks
        pixel_task, rest = block % call.pixel_tasks, block // call.pixel_tasks
        g, n = rest % call.groups, rest // call.groups
        first = pixel_task * call.pixels
        end = min(first + call.pixels, call.P * call.Q)
        panel = call.workspace + (block * call.Cg + c0) * call.R * call.S * call.panel_pixels * item
        x = call.x + n * call.x_n + (g * call.Cg + c0) * call.x_c
        copy_pixels(call, panel, x, first, end, min(call.channel_block, call.Cg - c0))

    def task(call_address, index, worker):
        """Second round, or the only one: task = one block of pixels and one of filters."""
        call = record_at(CALL_BY_FILTERS, call_address)
        filter_task, block = index % call.filter_tasks, index // call.filter_tasks
        pixel_task, rest = block % call.pixel_tasks, block // call.pixel_tasks
        g, n = rest % call.groups, rest // call.groups

        taps, first = call.R * call.S, pixel_task * call.pixels
        end = min(first + call.pixels, call.P * call.Q)
        vectors = (call.Kg + W - 1) // W
        filters_padded = vectors * W
        count, k = end - first, vectors * filter_task // call.filter_tasks * W
        behind = vectors * (filter_task + 1) // call.filter_tasks * W
        filters, k0 = min(behind, call.Kg) - k, g * call.Kg + k
        own = call.workspace + call.workers_at + worker * call.worker_bytes
        partial, biases = own + call.partial_at, own + call.bias_at
        row = (call.filters + W - 1) // W * W * item
        square = biases + row
        copy_biases(call, k0, filters, (filters + W - 1) // W * W, biases)

        x = call.x + n * call.x_n + g * call.Cg * call.x_c
        w = call.w + g * filters_padded * call.Cg * taps * item
        direct = call.activation == CLAMP and same and flat_rows(call.y_p, call.y_q, call.Q)
        direct = direct and (call.y_q if columns else call.y_k) == item
        if call.has_residual:
            direct = direct and flat_rows(call.residual_p, call.residual_q, call.Q)
            direct = direct and (call.residual_q if columns else call.residual_k) == item
        out_row, residual_row = (call.y_k, call.residual_k) if columns else (call.y_q, call.residual_q)
        y = call.y + n * call.y_n + first * call.y_q + k0 * call.y_k
        residual = call.residual + n * call.residual_n + first * call.residual_q + k0 * call.residual_k

        done = 0  # filters that the micro-kernel has finished
        for c0 in range(0, call.Cg, call.channel_block):
            channels = min(call.channel_block, call.Cg - c0)
            depth = channels * taps
            if call.shared:
                panel = call.workspace + (block * call.Cg + c0) * taps * call.panel_pixels * item
            else:
                panel = own
                copy_pixels(call, panel, x + c0 * call.x_c, first, end, channels)
            last = c0 + channels == call.Cg
            block_w = w + c0 * taps * filters_padded * item
            j = 0
            while j < filters:
                vectors = tile_vectors((behind - k - j) // W)
                tile_filters = vectors * W
                full = j + tile_filters <= filters
                out = y + j * call.y_k if direct and last and full else 0
                add = residual + j * call.residual_k if call.has_residual else 0
                tile_row = tile_filters * item
                here = block_w + (k + j) * depth * item
                # Each row of tiles fetches its share of the next tile's weights. Behind the last one may lie what other
                # threads are writing, and fetching that would stop both.
                share = tile_row * apart // count
                ahead = here if last and j + tile_filters >= filters else here + depth * tile_row
                multiply(
                    vectors, count, panel, item, rows * depth * item, rows * item,
                    here, W * item, depth,
                    partial + j * item, row, c0 == 0, out, out_row, biases + j * item, add, residual_row,
                    call.low, call.high, ahead, share * depth, share,
                )  # fmt: skip
                if direct and last and full:
                    done = j + tile_filters
                j += tile_filters
        if done < filters:
            sums, some = partial + done * item, filters - done
            finish(call, n, k0 + done, some, first, count, sums, row, biases + done * item, square)

    return two_round_loop(pack_shared, task)


# How a problem is cut.


def channel_block(problem) -> int:
    """Channels whose weights, for one tile of filters, fill about three quarters of the L1 cache; at least one."""
    if pixels_in_place.serves(problem):
        return problem.Cg
    depth = target.cache_bytes(1) * 3 // 4 // (VECTORS * target.vector_bytes())
    blocks = -(-problem.reduction // max(depth, problem.R * problem.S))
    return -(-problem.Cg // blocks)


@lru_cache(maxsize=1024)
def blocking(problem, threads):
    """The numbers of BLOCKING, the numbers of tasks of both rounds, and the bytes of workspace."""
    item, W = problem.accumulate.itemsize, lanes(problem.accumulate)
    cut, block = best_cut(problem, threads, copy_cycles(problem)), channel_block(problem)
    panels = problem.N * problem.groups * cut.pixel_tasks
    shared_bytes = up(panels * cut.panel_pixels * problem.reduction * item, 64)
    private = 0 if cut.shared else up(cut.panel_pixels * block * problem.R * problem.S * item, 64)
    filters = -(-filter_vectors(problem) // cut.filter_tasks) * W
    bias_at = private + up(cut.sum_pixels * filters * item, 64)
    worker_bytes = worker_span(bias_at + filters * item + target.vector_bytes() ** 2 // item)
    workers_at = shared_bytes if cut.shared else 0
    numbers = (
        cut.pixels, filters, cut.pixel_tasks, cut.filter_tasks, block, cut.shared, cut.panel_pixels,
        worker_bytes, private, bias_at, workers_at,
    )  # fmt: skip
    copies = panels * -(-problem.Cg // block) if cut.shared else 0
    return numbers, copies, panels * cut.filter_tasks, workers_at + threads * worker_bytes


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the packed sizes, the compiled loop and the tasks of both rounds."""
    numbers, copies, tasks, _ = blocking(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, tile_pixels(problem), problem.layout), copies, tasks


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    own = blocking(problem, device.threads)[-1]
    if not pixels_in_place.serves(problem):
        return own
    return max(own, pixels_in_place.workspace_bytes(problem, device.threads))


def one_call_bytes(problem, device):
    """For weights as they lie, which tasks pack for themselves; None where they are packed beforehand."""
    if not pixels_in_place.serves(problem):
        return None
    packed_before = up(packed_bytes(problem, device), 64) + blocking(problem, device.threads)[-1]
    return max(packed_before, pixels_in_place.workspace_bytes(problem, device.threads, packs=True))


def packed_bytes(problem, device):
    return filter_columns.packed_items(problem) * problem.accumulate.itemsize


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as columns of filters."""
    loop = compiled(filter_columns.build, problem.dtype.name, channel_block(problem))
    call = pack_call(problem_fields(problem), packed, w, packed, None, None, None)
    vectors = problem.groups * filter_columns.padded_filters(problem) // lanes(problem.accumulate)
    run_tasks(loop, call, vectors, device.threads)


def predicted_seconds(problem, device):
    if pixels_in_place.serves(problem):
        return predicted(problem, device, problem.N * pixel_cuts.cycles(problem), pixel_cuts.memory_bytes(problem))
    pixels, maps = problem.P * problem.Q, problem.N * problem.groups
    multiply = multiply_cycles(
        up(pixels, tile_pixels(problem) or panel_rows()), problem.Kg, problem.reduction, problem.accumulate
    )
    copy = pixels * problem.reduction * copy_cycles(problem)
    stores = problem.Kg * pixels * (0.4 if problem.dtype == problem.accumulate else 4.0)
    return predicted(problem, device, maps * (multiply + copy + stores))


def copy_cycles(problem) -> float:
    """Copying one number into a panel; of 16 bits as plans of 7 x 7 on a Zen 4 beside blocked.py's."""
    if problem.dtype != problem.accumulate:
        return 5.0
    if problem.layout == "NHWC":
        return 0.5 + CYCLES_PER_TAP / problem.Cg
    if problem.stride[1] > 2:
        return 5.0
    return 0.35 if problem.R * problem.S == 1 and problem.stride == (1, 1) else 1.3


def pack_seconds(problem, device):
    if pixels_in_place.serves(problem):
        return pixel_cuts.pack_cycles(problem, device.threads) / CLOCK / device.threads
    cycles = 1.2 if problem.dtype == problem.accumulate else 3.0  # contiguous weights are transposed in registers
    return CALL_SECONDS + cycles * problem.K * problem.reduction / CLOCK / device.threads


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    if pixels_in_place.serves(problem) and pixels_in_place.takes(x, y, residual, problem.layout):
        fields, loop, tasks = pixels_in_place.prepared(problem, device.threads, w.ndim > 1)
        return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)
    fields, loop, copies, tasks = prepared(problem, device.threads)
    packed = w if w.ndim == 1 else np.empty(0, np.uint8)
    multiply = job_of(fields, loop, tasks, device.threads, x, packed, y, bias, residual, before=copies)
    return multiply if w.ndim == 1 else PackingJob(problem, device, multiply)


@dataclass(slots=True)
class PackingJob:
    """A job whose weights are packed into its workspace first."""

    problem: Any
    device: Any
    multiply: Job

    def run(self, x, w, y, bias=None, residual=None, workspace=None):
        count = packed_bytes(self.problem, self.device)
        pack(self.problem, self.device, w, workspace[:count])
        self.multiply.run(x, workspace[:count], y, bias, residual, workspace[up(count, 64) :])


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w into y; x (N, C, H, W), y (N, K, P, Q) in logical order.

    w: packed, or as it is, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
