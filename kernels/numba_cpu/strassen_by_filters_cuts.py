"""How strassen_by_filters.py cuts a problem: tiles, blocks of channels, ranges of filters; and what that costs."""

from functools import lru_cache

import numpy as np
from numba import from_dtype

from . import blocked_cuts, target
from .call import CALL_DTYPE
from .filter_cuts import until_all_done, up
from .microkernel import VECTORS, multiply_cycles
from .strassen_sums import PRODUCTS
from .threads import LINE, worker_span
from .vectors import lanes

HEIGHTS, WIDTHS = (4, 5), (5, 4, 3, 2)  # of a tile, in pixels and in vectors of filters
COPIED = 32  # channels of each half, in turn, of an x whose pixels do not lie side by side
MANY_MAPS = 4  # for a thread: their filters are not cut
CYCLES_PER_GROUP = 1_500
SUM_CYCLES = 1.0  # for each pixel of a half and channel of x
LEAVE_CYCLES, FAR_CYCLES = 1.5, 20.0  # for a vector of a product, where t and e of all pixels fit the L1 cache and not

BLOCKING = (
    "channels", "tiles", "filter_groups", "filter_tasks", "worker_bytes", "own_at", "waiting_at", "bias_at",
    "plane_bytes",
)  # fmt: skip
CALL_STRASSEN = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


@lru_cache(maxsize=1024)
def tile_of(problem):
    """(pixels, vectors of filters) of a tile: those that fill the registers and waste few pixels; None if half the
    filters are no whole number of any.
    """
    vectors, rest = divmod(problem.Kg // 2, lanes(problem.accumulate))
    fitting = [
        (height, width)
        for width in WIDTHS
        for height in HEIGHTS
        if rest == 0 and vectors % width == 0 and (height + 1) * width + 1 <= target.register_count()
    ]

    def cost(tile):
        height, width = tile
        return up(-(-problem.P * problem.Q // 2), height) * (1 + 2 / (height * width))

    return min(fitting, key=cost, default=None)


def tiles_of(problem) -> int:
    """Tiles of half the pixels."""
    return -(-problem.P * problem.Q // (2 * tile_of(problem)[0]))


def channel_block(problem) -> int:
    """Channels of a half whose weights, for one product, fill two thirds of the L1 cache, all blocks about equal."""
    depth = problem.Cg // 2
    most = max(target.cache_bytes(1) * 2 // 3 // (tile_of(problem)[1] * target.vector_bytes()), 1)
    return -(-depth // -(-depth // most))


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
    planes = 2 * min(COPIED, channels) * plane + target.vector_bytes()
    own_at = up(problem.Cg // 2 * PRODUCTS * tiles * height * problem.accumulate.itemsize, LINE)
    worker_bytes = worker_span(own_at + max(bias_at + 2 * width * target.vector_bytes(), planes))
    numbers = (
        channels, tiles, filter_groups(problem), tasks, worker_bytes, own_at, waiting_at, bias_at, plane,
    )  # fmt: skip
    return numbers, problem.N * problem.groups * tasks


def cycles(problem, threads) -> float:
    """Predicted, of all threads until the last one is done."""
    (height, width), depth = tile_of(problem), problem.Cg // 2
    rows, maps, tasks = tiles_of(problem) * height, problem.N * problem.groups, filter_tasks(problem, threads)
    blocks = -(-depth // channel_block(problem))
    wide = VECTORS * lanes(problem.accumulate)
    product = multiply_cycles(rows, wide, depth, problem.accumulate) * width / VECTORS
    near = 2 * rows * width * target.vector_bytes() < target.cache_bytes(1) // 2
    leave = blocks * rows * width * (LEAVE_CYCLES if near else FAR_CYCLES)
    group = CYCLES_PER_GROUP + PRODUCTS * (product + leave)
    most = -(-filter_groups(problem) // tasks)
    task = most * group + rows * problem.Cg * SUM_CYCLES
    return until_all_done([task] * (maps * tasks), threads) * threads
