"""Blocked convolution (implicit GEMM): matrix multiplication whose right-hand matrix exists one cache-sized piece at
a time.

    y[k, pixel] = sum over d = (c, r, s) of  w[k, d] * x[d, pixel]       filters times pixels, as im2col has it

    for every tile of 24 pixels (3 vectors)          its panel, 24 x about 256 depths, stays in the L1 cache
        for every block of channels
            copy the x values that these pixels read into the panel            once, K filters use it
            for every 4 filters: the micro-kernel                              packed weights stream past, from L2 or L3

Why so: a panel costs a load and a store per number and serves 2 K flops each; no patch matrix goes through memory.
Stride, dilation and padding matter while copying only: a vector of pixels is a plain load for stride 1, two loads
and a shuffle for stride 2, zeros or single numbers where the window leaves the image. A 1x1 kernel with stride 1
copies nothing: the micro-kernel reads x where it lies, and only the last, incomplete tile is copied.

Sums of one output are always made in the same order (blocks of channels, then c, r, s), so the split into tasks does
not change a bit. Tasks are runs of pixel tiles; where a map has few pixels, the filters are split as well.
Source: implicit GEMM as in Chetlur et al., cuDNN, 2014; loop order and blocking after Goto and van de Geijn 2008.
"""

import struct
from functools import lru_cache

import numba
import numpy as np
from numba import from_dtype

from . import target, weight_panels
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled
from .epilogue import CLAMP, activate, store_one_function
from .microkernel import VECTORS, multiply_function, panel_rows
from .short_floats import memory_functions
from .threads import run_tasks, task_loop
from .vectors import Vector, broadcast, lanes, load_even, load_strided, record_at

passes = ("forward",)
TASKS_PER_THREAD = 6  # so that the last ones to finish do not leave the others idle for long

BLOCKING = ("tiles", "filters", "tile_tasks", "filter_tasks", "channel_block", "worker_bytes", "partial_at", "bias_at")
CALL_BLOCKED = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


def build(dtype_name):
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    same = item == stored_item
    W, rows = lanes(real), panel_rows()
    width, panel_row = VECTORS * W, VECTORS * W * item
    V = Vector(numba.from_dtype(np.dtype(real)), W)
    zero = real(0)
    read, _, read_vector, write_vector = memory_functions(dtype_name)
    read_sum, write_sum, read_sums, write_sums = memory_functions(np.dtype(real).name)
    store_one = store_one_function(dtype_name)
    multiply = multiply_function(real, "row")
    padding = weight_panels.padded_filters(1)

    @numba.njit(error_model="numpy")
    def copy_vector(panel, step, x, x_step, x_pixel, room, count):
        """W pixels, x_pixel bytes apart, of `count` channels. room: elements that may be read from x on."""
        if x_pixel == stored_item:
            for c in range(count):
                write_sums(panel + c * step, read_vector(x + c * x_step))
        elif same and x_pixel == 2 * item and room >= 2 * W:
            for c in range(count):
                write_sums(panel + c * step, load_even(V, x + c * x_step, 0))
        elif same and x_pixel % item == 0:
            for c in range(count):
                write_sums(panel + c * step, load_strided(V, x + c * x_step, 0, x_pixel // item))
        else:
            for i in range(W):
                copy_pixel(panel + i * item, step, x + i * x_pixel, x_step, count)

    @numba.njit(error_model="numpy")
    def copy_pixel(panel, step, x, x_step, count):
        for c in range(count):
            write_sum(panel + c * step, read(x + c * x_step))

    @numba.njit(error_model="numpy")
    def clear_vector(panel, step, count):
        for c in range(count):
            write_sums(panel + c * step, broadcast(V, zero))

    @numba.njit(error_model="numpy")
    def clear_pixel(panel, step, count):
        for c in range(count):
            write_sum(panel + c * step, zero)

    @numba.njit(error_model="numpy")
    def copy_scattered(call, panel, step, x, pixel, r, s, channels, Q, pixels):
        """W pixels that do not lie in one row, or not all inside the image: one after the other."""
        for i in range(W):
            p, q = (pixel + i) // Q, (pixel + i) % Q
            h = p * call.stride_h - call.top + r * call.dilation_h
            v = q * call.stride_w - call.left + s * call.dilation_w
            if pixel + i < pixels and h >= 0 and h < call.H and v >= 0 and v < call.W:
                copy_pixel(panel + i * item, step, x + h * call.x_h + v * call.x_w, call.x_c, channels)
            else:
                clear_pixel(panel + i * item, step, channels)

    @numba.njit(error_model="numpy")
    def copy_tile(call, panel, x, first, channels, flat):
        """The panel of the tile at pixel `first`: row (c, r, s), column pixel. x: the image's first channel of this
        block.
        """
        pixels = call.P * call.Q
        Q, width_of_x = (pixels, pixels) if flat else (call.Q, call.W)
        step = call.R * call.S * panel_row
        for j in range(0, min(width, pixels - first), W):
            pixel = first + j
            p, q = pixel // Q, pixel % Q
            one_row = q + W <= Q
            for r in range(call.R):
                h = p * call.stride_h - call.top + r * call.dilation_h
                in_rows = h >= 0 and h < call.H
                for s in range(call.S):
                    v = q * call.stride_w - call.left + s * call.dilation_w
                    to = panel + (r * call.S + s) * panel_row + j * item
                    if one_row and not in_rows:
                        clear_vector(to, step, channels)
                    elif one_row and v >= 0 and v + (W - 1) * call.stride_w < width_of_x:
                        here = x + h * call.x_h + v * call.x_w
                        copy_vector(to, step, here, call.x_c, call.stride_w * call.x_w, width_of_x - v, channels)
                    else:
                        copy_scattered(call, to, step, x, pixel, r, s, channels, call.Q, pixels)

    @numba.njit(error_model="numpy")
    def finish_tile(call, n, k0, filters, first, columns, partial, biases):
        """Bias, residual, activation and store for sums that wait in `partial`, wherever y lies."""
        flat = flat_rows(call.y_p, call.y_q, call.Q) and flat_rows(call.residual_p, call.residual_q, call.Q)
        contiguous = flat and call.y_q == stored_item and (not call.has_residual or call.residual_q == stored_item)
        for i in range(filters):
            sums, k = partial + i * panel_row, k0 + i
            y, add = call.y + n * call.y_n + k * call.y_k, call.residual + n * call.residual_n + k * call.residual_k
            bias = read_sum(biases + i * item)
            done = 0
            if contiguous:
                done = columns // W * W
                for j in range(0, done, W):
                    total = read_sums(sums + j * item) + broadcast(V, bias)
                    if call.has_residual:
                        total += read_vector(add + (first + j) * stored_item)
                    total = activate(total, call.activation, call.low, call.high, call.slope)
                    write_vector(y + (first + j) * stored_item, total)
            for j in range(done, columns):
                store_one(call, n, k, first + j, read_sum(sums + j * item) + bias)

    @numba.njit(error_model="numpy")
    def flat_rows(row, pixel, Q):
        """Do rows follow each other without a gap, so that all pixels are one row?"""
        return row == Q * pixel

    @numba.njit(error_model="numpy")
    def copy_biases(call, k0, filters, biases):
        for i in range(filters):
            write_sum(biases + i * item, read(call.bias + (k0 + i) * call.bias_k) if call.has_bias else zero)

    def task(call_address, index, worker):
        call = record_at(CALL_BLOCKED, call_address)
        filter_task, rest = index % call.filter_tasks, index // call.filter_tasks
        tile_task, rest = rest % call.tile_tasks, rest // call.tile_tasks
        g, n = rest % call.groups, rest // call.groups

        pixels, taps = call.P * call.Q, call.R * call.S
        k = filter_task * call.filters  # in its group
        filters = min(call.filters, call.Kg - k)
        k0 = g * call.Kg + k
        padded = (call.Kg + padding - 1) // padding * padding
        panel = call.workspace + worker * call.worker_bytes
        partial, biases = panel + call.partial_at, panel + call.bias_at
        copy_biases(call, k0, filters, biases)

        point = taps == 1 and call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
        flat = point and flat_rows(call.x_h, call.x_w, call.W)
        in_place = False
        direct = call.activation == CLAMP and same and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.residual_q == item and flat_rows(call.residual_p, call.residual_q, call.Q)

        x_image = call.x + n * call.x_n + g * call.Cg * call.x_c
        w_group = call.w + g * padded * call.Cg * taps * item
        y = call.y + n * call.y_n + k0 * call.y_k
        residual = call.residual + n * call.residual_n + k0 * call.residual_k
        begin = tile_task * call.tiles * width
        for first in range(begin, min(begin + call.tiles * width, pixels), width):
            columns = min(width, pixels - first)
            full = columns == width
            for c0 in range(0, call.Cg, call.channel_block):
                channels = min(call.channel_block, call.Cg - c0)
                depth, x = channels * taps, x_image + c0 * call.x_c
                b, b_step = panel, panel_row
                if in_place and full:
                    b, b_step = x + first * item, call.x_c
                else:
                    copy_tile(call, panel, x, first, channels, flat)
                w = w_group + (c0 * taps * padded + k * depth) * item
                last = c0 + channels == call.Cg
                out = y + first * item if direct and full and last else 0
                add = residual + first * item if call.has_residual else 0
                multiply(
                    (columns + W - 1) // W, filters, w, item, rows * depth * item, rows * item, b, b_step, depth,
                    partial, panel_row, c0 == 0, out, call.y_k, biases, add, call.residual_k, call.low, call.high,
                )  # fmt: skip
            if not (direct and full):
                finish_tile(call, n, k0, filters, first, columns, partial, biases)

    return task_loop(task)


# ---- how a problem is cut ----


def real_bytes(problem):
    return problem.accumulate.itemsize


def channel_block(problem) -> int:
    """Channels whose panel fills about three quarters of the L1 cache, all blocks about equal; at least one."""
    depth = target.cache_bytes(1) * 3 // 4 // (VECTORS * target.vector_bytes())
    blocks = -(-problem.reduction // max(depth, problem.R * problem.S))
    return -(-problem.Cg // blocks)


@lru_cache(maxsize=1024)
def blocking(problem, threads):
    """The numbers of BLOCKING, and the number of tasks."""
    width = VECTORS * lanes(problem.accumulate)
    rows = weight_panels.padded_filters(1)
    all_tiles = -(-problem.P * problem.Q // width)
    wanted = -(-TASKS_PER_THREAD * threads // (problem.N * problem.groups)) if threads > 1 else 1
    tiles = max(1, all_tiles // wanted)
    tile_tasks = -(-all_tiles // tiles)
    filter_tasks = max(1, min(-(-wanted // tile_tasks), problem.Kg // 32)) if tile_tasks < wanted else 1
    filters = -(-problem.Kg // (filter_tasks * rows)) * rows
    filter_tasks = -(-problem.Kg // filters)

    block = channel_block(problem)
    row_bytes = VECTORS * target.vector_bytes()
    partial_at = lines(block * problem.R * problem.S * row_bytes)
    bias_at = partial_at + lines(-(-filters // rows) * rows * row_bytes)
    worker_bytes = bias_at + lines((filters + rows) * real_bytes(problem)) + 64
    numbers = (tiles, filters, tile_tasks, filter_tasks, block, worker_bytes, partial_at, bias_at)
    return numbers, problem.N * problem.groups * tile_tasks * filter_tasks


def lines(count):
    """Bytes in whole cache lines."""
    return -(-count // 64) * 64


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the packed sizes, the compiled loop and the number of tasks."""
    numbers, tasks = blocking(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING)}q", *numbers)
    return fields, compiled(build, problem.dtype.name), tasks


# ---- the kernel ----


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    numbers, _ = blocking(problem, device.threads)
    return device.threads * numbers[BLOCKING.index("worker_bytes")]


def packed_bytes(problem, device):
    return weight_panels.packed_items(problem) * real_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as panels of filters."""
    loop = compiled(weight_panels.build, problem.dtype.name, channel_block(problem))
    call = pack_call(problem_fields(problem), packed, w, packed, None, None, None)
    panels = problem.groups * weight_panels.padded_filters(problem.Kg) // panel_rows()
    run_tasks(loop, call, panels, device.threads)


def predicted_seconds(problem, device):
    speed = 70e9 if problem.layout == "NCHW" else 30e9  # other memory orders are read and written number by number
    return 10e-6 + 2 * problem.macs / (speed * device.threads)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical
    order.
    """
    fields, loop, tasks = prepared(problem, device.threads)
    run_tasks(loop, pack_call(fields, x, w, y, bias, residual, workspace), tasks, device.threads)
