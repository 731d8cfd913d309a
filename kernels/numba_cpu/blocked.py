"""Blocked convolution (implicit GEMM): matrix multiplication whose right-hand matrix exists one cache-sized piece at
a time.

    y[k, pixel] = sum over d = (c, r, s) of  w[k, d] * x[d, pixel]       filters times pixels, as im2col has it

    for every group of tiles, 24 pixels (3 vectors) each
        for every block of channels
            copy the x values that these pixels read into panels               a panel, 24 x about 256 depths, fits
            for every 64 filters: for every tile: for every 4 filters:         the L1 cache; the weights of 64 filters
                the micro-kernel                                               stay in the L2 cache for all tiles

Why so: a panel costs a load and a store per number and serves 2 K flops each; no patch matrix goes through memory.
Stride, dilation and padding matter while copying only (pixel_panels.py). With at most 32 filters a contiguous 1x1
layer of stride 1 copies nothing but its last, incomplete tile: the micro-kernel reads x where it lies. It also takes
contiguous weights where they lie, so a single call packs none; a plan packs them (weight_panels.py).
Up to 4 channels with long rows are few_channels.py's.

Measured on two Zen 5 cores with AVX-512, N = 1, where two micro-kernels reach 530 GFLOP/s: ResNet-50's 1x1 layers of
56 x 56 370 to 450, of 28 x 28 360 to 420. On 7 x 7 maps the second tile of 48 has one pixel.
Copying beat reading x in place from 64 filters up (Zen 3): rows of 24 pixels touch 3 cache lines instead of 1.5 and do
not fit the L1 cache.

Sums of one output are always made in the same order (blocks of channels, then c, r, s), so the split into tasks does
not change a bit. Tasks are runs of pixel tiles; where a map has few pixels, the filters are split as well.
Source: implicit GEMM as in Chetlur et al., cuDNN, 2014; loop order and blocking after Goto and van de Geijn 2008.
"""

import struct
from functools import lru_cache

import numba
import numpy as np
from numba import from_dtype

from . import few_channels, target, weight_panels
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, activate, store_one_function
from .microkernel import CLOCK, VECTORS, multiply_cycles, multiply_function, panel_rows, predicted
from .pixel_panels import copy_tiles_function
from .short_floats import memory_functions
from .threads import run_tasks, task_loop, worker_span
from .vectors import Vector, broadcast, lanes, record_at

passes = ("forward",)
TASKS_PER_THREAD = 6  # so that the last ones to finish do not leave the others idle for long

IN_PLACE_FILTERS = 32  # with so few filters, copying x into a panel costs more than reading it from where it lies
SHARING_TILES = 4  # of one task, so that each weight that comes from afar is used for all of them
FILTER_BLOCK = 64  # whose weights stay in the L2 cache while a group of tiles is multiplied with them
GROUP_BYTES = 1 << 17  # panels copied at a time: long rows of x per page, and still in the L2 cache when multiplied

BLOCKING = (
    "tiles", "filters", "tile_tasks", "filter_tasks", "channel_block", "group", "in_place",
    "worker_bytes", "partial_at", "bias_at",
)  # fmt: skip
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
    read_sum, write_sum, read_sums, _ = memory_functions(np.dtype(real).name)
    store_one = store_one_function(dtype_name)
    multiply = multiply_function(real, "row")
    copy_tiles = copy_tiles_function(dtype_name)
    padding = weight_panels.padded_filters(1)

    @inlined
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

    @inlined
    def flat_rows(row, pixel, Q):
        """Do rows follow each other without a gap, so that all pixels are one row?"""
        return row == Q * pixel

    @inlined
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
        filters_padded = (filters + padding - 1) // padding * padding
        k0 = g * call.Kg + k
        padded = (call.Kg + padding - 1) // padding * padding
        packed = call.w_k == 0
        panel = call.workspace + worker * call.worker_bytes
        partial, biases = panel + call.partial_at, panel + call.bias_at
        copy_biases(call, k0, filters, biases)

        point = taps == 1 and call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
        flat = point and flat_rows(call.x_h, call.x_w, call.W)
        in_place = call.in_place and flat and same and call.x_w == item
        direct = call.activation == CLAMP and same and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.residual_q == item and flat_rows(call.residual_p, call.residual_q, call.Q)

        x_image = call.x + n * call.x_n + g * call.Cg * call.x_c
        w_group = call.w + g * padded * call.Cg * taps * item if packed else call.w + k0 * call.w_k
        y = call.y + n * call.y_n + k0 * call.y_k
        residual = call.residual + n * call.residual_n + k0 * call.residual_k
        begin = tile_task * call.tiles * width
        end = min(begin + call.tiles * width, pixels)
        for start in range(begin, end, call.group * width):
            stop = min(start + call.group * width, end)
            for c0 in range(0, call.Cg, call.channel_block):
                channels = min(call.channel_block, call.Cg - c0)
                depth, x = channels * taps, x_image + c0 * call.x_c
                last = c0 + channels == call.Cg
                if not in_place or stop % width:
                    copy_tiles(call, panel, start, stop, x, channels, flat)
                if packed:
                    w, w_row, w_panel, w_step = (
                        w_group + (c0 * taps * padded + k * depth) * item, item, rows * depth * item, rows * item,
                    )  # fmt: skip
                else:
                    w, w_row, w_panel, w_step = w_group + c0 * taps * item, call.w_k, rows * call.w_k, item
                for f in range(0, filters, FILTER_BLOCK):
                    some = min(FILTER_BLOCK, filters - f)
                    weights = w + f // rows * w_panel
                    for first in range(start, stop, width):
                        columns = min(width, stop - first)
                        full, tile = columns == width, (first - start) // width
                        b, b_step = panel + tile * depth * panel_row, panel_row
                        if in_place and full:
                            b, b_step = x + first * item, call.x_c
                        out = y + f * call.y_k + first * item if direct and full and last else 0
                        add = residual + f * call.residual_k + first * item if call.has_residual else 0
                        sums = partial + (tile * filters_padded + f) * panel_row
                        multiply(
                            (columns + W - 1) // W, some, weights, w_row, w_panel, w_step, b, b_step, depth,
                            sums, panel_row, c0 == 0, out, call.y_k, biases + f * item, add, call.residual_k,
                            call.low, call.high,
                        )  # fmt: skip
                        if last and not (direct and full):
                            finish_tile(call, n, k0 + f, some, first, columns, sums, biases + f * item)

    return task_loop(task)


# ---- how a problem is cut ----


def real_bytes(problem):
    return problem.accumulate.itemsize


def channel_block(problem) -> int:
    """Channels whose panel fills about three quarters of the L1 cache, all blocks about equal; at least one.

    Twice as many where there are few pixels: their panels are read from the L2 cache anyhow, and sums wait less
    often.
    """
    depth = target.cache_bytes(1) * 3 // 4 // (VECTORS * target.vector_bytes())
    if SHARING_TILES * VECTORS * lanes(problem.accumulate) >= problem.P * problem.Q:
        depth *= 2
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
    if threads > 1 and problem.R * problem.S == 1 and problem.stride == (1, 1):
        tiles = max(tiles, min(SHARING_TILES, all_tiles))  # copying x again for other filters costs little here
    tile_tasks = -(-all_tiles // tiles)
    if tile_tasks == 1:
        wanted = 2 * threads  # equal tasks; each copies all of x
    filter_tasks = max(1, min(-(-wanted // tile_tasks), problem.Kg // 32)) if tile_tasks < wanted else 1
    filters = -(-problem.Kg // (filter_tasks * rows)) * rows
    filter_tasks = -(-problem.Kg // filters)

    block = channel_block(problem)
    row_bytes = VECTORS * target.vector_bytes()
    panel_bytes = block * problem.R * problem.S * row_bytes
    sums_bytes = up(filters, rows) * row_bytes
    group = max(1, min(tiles, GROUP_BYTES // panel_bytes))
    partial_at = up(group * panel_bytes, 64)
    bias_at = partial_at + up(group * sums_bytes, 64)
    worker_bytes = worker_span(bias_at + (filters + rows) * real_bytes(problem))
    in_place = problem.Kg <= IN_PLACE_FILTERS
    numbers = (
        tiles, filters, tile_tasks, filter_tasks, block, group, in_place, worker_bytes, partial_at, bias_at,
    )  # fmt: skip
    return numbers, problem.N * problem.groups * tile_tasks * filter_tasks


def up(count, step):
    return -(-count // step) * step


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
    own = device.threads * numbers[BLOCKING.index("worker_bytes")]
    return max(own, few_channels.workspace_bytes(problem, device.threads)) if by_few_channels(problem) else own


def by_few_channels(problem) -> bool:
    """Weights have to be packed as one block, as few_channels.py reads them."""
    return few_channels.serves(problem) and channel_block(problem) == problem.Cg


def reads_in_place(problem, w):
    """Weights that the micro-kernel takes as they lie: contiguous, float32 or float64, whole tiles of filters.

    Packed they are up to a tenth faster, but packing them for one call costs more.
    """
    whole = problem.Kg % weight_panels.padded_filters(1) == 0
    return whole and problem.dtype == problem.accumulate and w.flags.c_contiguous and w.flags.aligned


def packed_bytes(problem, device):
    return weight_panels.packed_items(problem) * real_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as panels of filters."""
    loop = compiled(weight_panels.build, problem.dtype.name, channel_block(problem))
    call = pack_call(problem_fields(problem), packed, w, packed, None, None, None)
    panels = problem.groups * weight_panels.padded_filters(problem.Kg) // panel_rows()
    run_tasks(loop, call, panels, device.threads)


def predicted_seconds(problem, device):
    pixels, maps = problem.P * problem.Q, problem.N * problem.groups
    if by_few_channels(problem):
        return predicted(problem, device, maps * few_channels.cycles(problem))
    rows = weight_panels.padded_filters(problem.Kg)
    multiply = multiply_cycles(rows, pixels, problem.reduction, problem.accumulate)
    numbers, _ = blocking(problem, device.threads)
    repeated = numbers[BLOCKING.index("filter_tasks")]  # each copies the panels for itself
    return predicted(problem, device, maps * (multiply + repeated * copy_cycles(problem) + store_cycles(problem)))


def pack_seconds(problem, device):
    """Weights that lie as `reads_in_place` asks are not packed for a single call; most are contiguous."""
    if problem.dtype == problem.accumulate and problem.Kg % weight_panels.padded_filters(1) == 0:
        return 0.0
    return 3.0 * problem.K * problem.reduction / CLOCK / device.threads


def copy_cycles(problem) -> float:
    """Copying one group's panels: vectors where rows are long, pieces of them where they are short, or one by one."""
    numbers = problem.P * problem.Q * problem.reduction
    if problem.layout != "NCHW" or problem.dtype != problem.accumulate or problem.stride[1] > 2:
        return 2.0 * numbers
    point = problem.R * problem.S == 1 and problem.stride == (1, 1)
    return numbers * (0.4 if point or 2 * lanes(problem.accumulate) <= problem.Q else 0.7)


def store_cycles(problem) -> float:
    """What storing one group's outputs costs beyond the micro-kernel's own stores."""
    direct = problem.layout == "NCHW" and problem.dtype == problem.accumulate
    return problem.Kg * problem.P * problem.Q * (0.25 if direct else 4.0)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as `reads_in_place` asks, into y; all in logical order."""
    few = by_few_channels(problem) and few_channels.takes(y, residual)
    fields, loop, tasks = few_channels.prepared(problem, device.threads) if few else prepared(problem, device.threads)
    run_tasks(loop, pack_call(fields, x, w, y, bias, residual, workspace), tasks, device.threads)
