"""How strassen_by_filters.py cuts a problem: tiles, blocks of channels, ranges of filters; and what that costs."""

from functools import lru_cache

import numpy as np
from numba import from_dtype

from . import blocked_cuts, patches, target
from .call import CALL_DTYPE
from .compilation import inlined
from .filter_cuts import until_all_done, up
from .microkernel import VECTORS, multiply_cycles
from .strassen_sums import PRODUCTS
from .threads import LINE, worker_span
from .vectors import lanes

HEIGHTS, WIDTHS = (4, 5), (5, 4, 3, 2)  # of a flat tile, in pixels and in vectors of filters
COPIED = 32  # channels of each half, in turn, of an x whose pixels do not lie side by side; of patches about so many
# Of the cycles of other products of as many multiply-adds. Where a channel's pixels fill several tiles, x comes slowly.
TALL_SHARE, SEVERAL_TILES_SHARE = 0.93, 1.1
MANY_MAPS = 4  # for a thread: their filters are not cut
CYCLES_PER_GROUP = 1_500
SUM_CYCLES = 1.0  # for each pixel of a half and channel of x
LEAVE_CYCLES, FAR_CYCLES = 1.5, 20.0  # for a vector of a product, where t and e of all pixels fit the L1 cache and not

BLOCKING = (
    "channels", "tiles", "second", "filter_groups", "filter_tasks", "worker_bytes", "planes_at", "own_at",
    "waiting_at", "bias_at", "plane_bytes",
)  # fmt: skip
CALL_STRASSEN = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


def holds(height, width) -> bool:
    """Are there registers for such a tile, a step's vectors, and a number of x?"""
    return (height + 1) * width + 1 <= target.register_count()


def loads_are_free() -> bool:
    """Can a number of x come from memory for each multiply-add, and no time be lost?"""
    return target.multiply_adds_per_cycle() == 1


def tall(tile, dtype) -> bool:
    """Is it one vector wide, and at least one high?"""
    height, width = tile
    return width == 1 and height >= lanes(dtype)


def possible_tiles(problem):
    """(pixels, vectors of filters): flat ones, and tall ones of which two do not reach beyond the map."""
    W, half = lanes(problem.accumulate), -(-problem.P * problem.Q // 2)
    flat = [(height, width) for width in WIDTHS for height in HEIGHTS if holds(height, width)]
    heights = [height for height in range(target.register_count(), W - 1, -1) if holds(height, 1)]
    fitting = [(height, 1) for height in heights if up(half, height) <= problem.P * problem.Q]
    return (fitting if loads_are_free() else []) + flat


@lru_cache(maxsize=1024)
def tile_of(problem):
    """Of the possible tiles the one that fills the registers and wastes few pixels; None if half the filters are no
    whole number of any.
    """
    vectors, rest = divmod(problem.Kg // 2, lanes(problem.accumulate))
    fitting = [tile for tile in possible_tiles(problem) if rest == 0 and vectors and vectors % tile[1] == 0]

    def cost(tile):
        height, width = tile
        loads = 0 if tall(tile, problem.accumulate) else 2 / (height * width)
        return up(-(-problem.P * problem.Q // 2), height) * (1 + loads)

    return min(fitting, key=cost, default=None)


def tiles_of(problem) -> int:
    """Tiles of half the pixels."""
    return -(-problem.P * problem.Q // (2 * tile_of(problem)[0]))


@inlined
def copied(S):
    """Channels, or depths of patches, of each half that are copied at a time: whole rows of windows."""
    return max(COPIED // S, 1) * S


@inlined
def spaced_tile(channels, row):
    """Bytes from tile to tile of x's sums, of so many channels: an odd number of lines, so that of a channel, whose
    sums are all stored together, no two tiles' lines want the same place of the L1 cache.
    """
    return (-(-channels * row // LINE) | 1) * LINE


def channel_block(problem) -> int:
    """Channels of a half whose weights, for one product, fill two thirds of the L1 cache, all blocks about equal; all
    where each weight is read once.
    """
    depth = problem.reduction // 2
    if tall(tile_of(problem), problem.accumulate) and tiles_of(problem) == 1:
        return depth
    most = max(target.cache_bytes(1) * 2 // 3 // (tile_of(problem)[1] * target.vector_bytes()), 1)
    return up(-(-depth // -(-depth // most)), problem.S)


def filter_groups(problem) -> int:
    """Of `width` vectors, in half the filters."""
    return problem.Kg // 2 // (tile_of(problem)[1] * lanes(problem.accumulate))


def filter_tasks(problem, threads) -> int:
    """Ranges of the filters, each of which makes x's sums for itself: no more than keep all threads at work."""
    few = problem.N * problem.groups < MANY_MAPS * threads
    return min(threads, filter_groups(problem)) if few else 1


@lru_cache(maxsize=1024)
def blocking(problem, threads):
    """The numbers of BLOCKING, and the number of tasks."""
    (height, width), tiles, channels = tile_of(problem), tiles_of(problem), channel_block(problem)
    tasks = filter_tasks(problem, threads)
    tile_bytes = height * width * target.vector_bytes()
    waiting_at = 2 * tiles * tile_bytes
    bias_at = waiting_at + 4 * tiles * tile_bytes
    plane = blocked_cuts.plane_bytes(problem, problem.P * problem.Q)
    half, item = tiles * height, problem.accumulate.itemsize
    if tall(tile_of(problem), problem.accumulate):  # planes of all channels, behind the sums that are made of them
        second, planes_at = problem.P * problem.Q - half, up(4 * (problem.reduction // 2) * half * item, LINE)
        own_at = up(planes_at + problem.reduction * plane + target.vector_bytes(), LINE)
        behind = own_at
    else:
        second = half
        blocks = -(-(problem.reduction // 2) // channels)
        own_at = planes_at = blocks * PRODUCTS * tiles * spaced_tile.py_func(channels, height * item)
        behind = planes_at + 2 * min(copied.py_func(problem.S), channels) * plane + target.vector_bytes()
    worker_bytes = worker_span(max(own_at + bias_at + 2 * width * target.vector_bytes(), behind))
    numbers = (
        channels, tiles, second, filter_groups(problem), tasks, worker_bytes, planes_at, own_at, waiting_at, bias_at,
        plane,
    )  # fmt: skip
    return numbers, problem.N * problem.groups * tasks


def cycles(problem, threads) -> float:
    """Predicted, of all threads until the last one is done."""
    (height, width), depth = tile_of(problem), problem.reduction // 2
    rows, maps, tasks = tiles_of(problem) * height, problem.N * problem.groups, filter_tasks(problem, threads)
    blocks = -(-depth // channel_block(problem))
    wide = VECTORS * lanes(problem.accumulate)
    product = multiply_cycles(rows, wide, depth, problem.accumulate) * width / VECTORS
    if tall(tile_of(problem), problem.accumulate):
        product *= TALL_SHARE if tiles_of(problem) <= 2 else SEVERAL_TILES_SHARE
    near = 2 * rows * width * target.vector_bytes() < target.cache_bytes(1) // 2
    leave = blocks * rows * width * (LEAVE_CYCLES if near else FAR_CYCLES)
    group = CYCLES_PER_GROUP + PRODUCTS * (product + leave)
    most = -(-filter_groups(problem) // tasks)
    sort = patches.SPLIT_CYCLES * problem.P * problem.Q if problem.S > 1 else 0.0
    task = most * group + problem.reduction * (rows * SUM_CYCLES + sort)
    return until_all_done([task] * (maps * tasks), threads) * threads
