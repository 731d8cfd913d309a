"""How the CPU input gradient is cut into tasks and blocks, whether phases are stacked, and how weights are read."""

import math
from functools import lru_cache
from math import gcd

import numpy as np
from numba import from_dtype

from . import target
from .call import CALL_DTYPE
from .filter_cuts import up
from .lone_pixels import MOST, joins_a_tile
from .microkernel import VECTORS, tile_rows
from .threads import worker_span
from .vectors import lanes
from .weight_rows import padded_filters

CHANNEL_BLOCK = 64  # channels whose weights stay in the L2 cache while all tiles of a task are multiplied with them
TASKS_PER_THREAD = 8
PACKED = 16  # filters that one task packs
GROUP_BYTES = 1 << 17  # panels of a task, at most, if they are of more than one tile
SLAB_FILTERS = 128  # copied at a time, where phases are stacked
DEEPEST = {16: 128, 32: 512}  # filters multiplied at a time where one panel is all, by registers
DEEPEST_FAR = 128  # where weights are read in place and filters lie FAR bytes apart
FAR = 4096  # bytes from filter to filter, from which on they fall into few sets of the caches
# Weights of a 1x1 that are no more than this are packed: it costs little. By registers; where filters lie FAR apart.
PACKED_BYTES, PACKED_FAR_BYTES = {16: 2 << 20, 32: 128 << 10}, {16: math.inf, 32: 2 << 20}

CUTS = (
    "coarse_h", "coarse_w", "pitch", "plane", "low_h", "low_w", "shifts_h", "shifts_w", "step_h", "step_w", "stacked",
    "weight_rows", "weight_panels", "depth_block", "channel_block", "channel_tasks", "group", "sums_at", "zeros_at",
    "workers_at", "worker_bytes", "packs", "tiled", "lone_at",
)  # fmt: skip
FOUND = ("weights_in_place",)  # by looking at the array
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS + FOUND]))


def shifts_of(problem, axis):
    """The least shift of grad_y along an axis, and how many there are up to the largest."""
    window, stride = (problem.R, problem.S)[axis], problem.stride[axis]
    before, dilation = problem.padding[axis][0], problem.dilation[axis]
    met = [
        (phase + before - tap * dilation) // stride
        for phase in range(stride)
        for tap in range(window)
        if (phase + before - tap * dilation) % stride == 0
    ]
    return min(met), max(met) - min(met) + 1


@lru_cache(maxsize=1024)
def rows_of(problem):
    """Whether the phases' rows are stacked, the rows of a packed tap or shift, and how many of these there are."""
    shifts = shifts_of(problem, 0)[1] * shifts_of(problem, 1)[1]
    taps, padded = problem.R * problem.S, padded_filters(problem.Cg)
    stacked_rows = padded_filters(problem.Cg * problem.stride[0] * problem.stride[1])
    if stacked_rows <= CHANNEL_BLOCK and stacked_rows * shifts < padded * taps:
        return True, stacked_rows, shifts
    return False, padded, taps


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, the number of tasks of both rounds, and the bytes of workspace."""
    coarse = [-(-size // stride) for size, stride in zip((problem.H, problem.W), problem.stride)]
    lows, shifts = zip(*(shifts_of(problem, axis) for axis in (0, 1)))
    steps = [stride // gcd(stride, dilation) for stride, dilation in zip(problem.stride, problem.dilation)]
    stacked, weight_rows, panels = rows_of(problem)
    cut = stacked_cut if stacked else tiled_cut
    pitch, plane, depth, channel_block, channel_tasks, group, copied, sums, tasks = cut(
        problem, threads, coarse, shifts
    )
    sums_at = up(copied * problem.dtype.itemsize, 64)
    zeros_at = sums_at + sums * problem.dtype.itemsize
    item, packs = problem.dtype.itemsize, not stacked and packs_itself(problem, threads, coarse, shifts)
    workers_at = 0 if packs else worker_span(problem.groups * problem.Kg * weight_rows * panels * item)
    packed = CHANNEL_BLOCK * depth * panels if packs else 0
    tiled = tiles_of(problem, coarse)[1]
    lone_at = zeros_at + up((CHANNEL_BLOCK + packed) * item, 64)
    lone = group * math.prod(problem.stride) * channel_block if tiled < problem.N * math.prod(coarse) else 0
    worker_bytes = worker_span(lone_at + lone * item)
    numbers = (
        *coarse, pitch, plane, *lows, *shifts, *steps, stacked, weight_rows, panels, depth, channel_block,
        channel_tasks, group, sums_at, zeros_at, workers_at, worker_bytes, packs, tiled, lone_at,
    )  # fmt: skip
    pack_tasks = 0 if packs else channel_tasks * problem.groups * -(-problem.Kg // depth) * -(-depth // PACKED)
    return numbers, (pack_tasks, tasks), workers_at + threads * worker_bytes


def tiled_cut(problem, threads, coarse, shifts):
    """What a task of `build` does, how many numbers it copies and sums at a time, and how many tasks there are."""
    width = VECTORS * lanes(problem.dtype)
    tiles, _ = tiles_of(problem, coarse)
    most = target.cache_bytes(1) * 3 // 4 // (width * problem.dtype.itemsize)
    if shifts == (1, 1):
        far = wants_weights_in_place(problem) and lies_far(problem)
        most = min(DEEPEST[target.register_count()], DEEPEST_FAR if far else problem.Kg)
        if problem.stride != (1, 1):
            most = min(most, max(problem.Cg, CHANNEL_BLOCK))  # fetches no more channels ahead than there are
    depth = -(-problem.Kg // -(-problem.Kg // most))
    panels = shifts[0] * shifts[1] * depth * width
    wanted = TASKS_PER_THREAD * threads if threads > 1 else 1
    group = max(1, min(GROUP_BYTES // (panels * problem.dtype.itemsize), tiles // wanted))
    most_channels = -(-problem.Cg // CHANNEL_BLOCK)
    if packs_itself(problem, threads, coarse, shifts):
        group, wanted = tiles, most_channels * problem.groups
    tasks = -(-tiles // group) * problem.groups
    channel_tasks = max(1, min(-(-wanted // tasks), most_channels))
    channel_block = up(-(-problem.Cg // channel_tasks), padded_filters(1))
    channel_tasks = -(-problem.Cg // channel_block)
    sums = group * problem.stride[0] * problem.stride[1] * channel_block * width
    return coarse[1], 0, depth, channel_block, channel_tasks, group, group * panels, sums, tasks * channel_tasks


def tiles_of(problem, coarse):
    """How many tiles of pixels there are, and how many pixels are in them, where those that are left are added to tiles
    as lone ones; else all.
    """
    width, pixels = VECTORS * lanes(problem.dtype), problem.N * coarse[0] * coarse[1]
    multiplies = problem.stride[0] * problem.stride[1] <= problem.R * problem.S  # more than it stores zeros
    if joins_a_tile() and multiplies and 0 < pixels % width <= min(MOST, pixels // width):
        return pixels // width, pixels // width * width
    return -(-pixels // width), pixels


def packs_itself(problem, threads, coarse, shifts) -> bool:
    """Whether a task packs its weights: of a block of channels for all pixels, which are few, so that nobody else needs
    these; and all of them, panels, sums and weights, lie in the L2 cache.
    """
    depth = target.cache_bytes(1) * 3 // 4 // (VECTORS * lanes(problem.dtype) * problem.dtype.itemsize)
    tiles, _ = tiles_of(problem, coarse)
    phases, taps = problem.stride[0] * problem.stride[1], problem.R * problem.S
    a_tile = (shifts[0] * shifts[1] * depth + phases * CHANNEL_BLOCK) * VECTORS * lanes(problem.dtype)
    numbers = tiles * a_tile + CHANNEL_BLOCK * depth * taps
    enough = problem.groups * -(-problem.Cg // CHANNEL_BLOCK) >= 2 * threads
    return taps > 1 and enough and numbers * problem.dtype.itemsize <= target.cache_bytes(2) * 3 // 4


def stacked_cut(problem, threads, coarse, shifts):
    """The same for `build_stacked`: as many rows as let what is copied fit half of the L2 cache."""
    W = lanes(problem.dtype)
    pitch, depth = coarse[1] + shifts[1] - 1, min(problem.Kg, SLAB_FILTERS)
    row = depth * pitch * problem.dtype.itemsize
    wanted = -(-TASKS_PER_THREAD * threads // (problem.N * problem.groups)) if threads > 1 else 1
    group = max(1, min(target.cache_bytes(2) // 2 // row - shifts[0] + 1, coarse[0] // wanted))
    plane = up((group + shifts[0] - 1) * pitch + 2 * VECTORS * W, 2 * W) + W  # an odd number of lines
    sums = -(-group * pitch // W) * rows_of(problem)[1] * VECTORS * W
    tasks = problem.N * problem.groups * -(-coarse[0] // group)
    return pitch, plane, depth, problem.Cg, 1, group, depth * plane, sums, tasks


def wants_weights_in_place(problem) -> bool:
    """Whether the micro-kernel should read w (K, C/groups, R, S) itself: packing 8 MB takes longer than it saves."""
    whole = problem.Cg % max(tile_rows(width) for width in (1, 2, 3)) == 0
    most = (PACKED_FAR_BYTES if lies_far(problem) else PACKED_BYTES)[target.register_count()]
    return whole and problem.R * problem.S == 1 and math.prod(problem.w_shape) * problem.dtype.itemsize > most


def lies_far(problem) -> bool:
    """Whether the weights of two filters lie so far apart that they meet in the caches."""
    return problem.Cg * problem.dtype.itemsize >= FAR
