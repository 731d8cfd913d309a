"""How strassen.py cuts a problem: pairs of tiles, ranges of filters, blocks of channels; and what that costs."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numba import from_dtype

from . import blocked_cuts, target, weight_rows
from .blocked_cuts import BLOCKING
from .call import CALL_DTYPE
from .filter_cuts import until_all_done, up
from .microkernel import CLOCK, MEMORY_BYTES, VECTORS, holds_lone, multiply_cycles, panel_rows
from .strassen_sums import PRODUCTS, sums_made
from .threads import LINE, worker_span
from .vectors import lanes

SUMS = 4  # T1 .. T4; predicted as if all were made, which takes 1.0 to 1.04 times as long
CYCLES_PER_TASK = 1_500
LEFT_PIXELS, LEFT_COSTS = 10, 2.6  # in pixels of a pair: beginning with what is left over, and each pixel of it
LONE_COSTS = 1.02  # times what multiply-adds say: tiles with a lone pixel begin anywhere in a cache line
FILTER_CUTS = (1, 2, 3, 4)
NOTHING_LEFT = (0,) * len(BLOCKING)
SUM_CYCLES = 2.2  # for a vector of each T
LEAVE_CYCLES = 1.5  # for a line of a product that is added to others
# For a weight whose sums a call makes by itself, and where these leave the L2 cache: by so many multiply-adds a cycle.
PACK_CYCLES = {1: (0.25, 0.25), 2: (0.45, 0.7)}
# What it may take besides, where they are not made beside products: two Zen 4 cores held to AVX2 0 to 3, by the hour.
ALONE_CYCLES = 1.05
# For a number of the weights' sums, where a thread's are so many times the L2 cache and there are 16 registers: tiles
# of 4 filters want them faster than they come from the L3 cache (two Zen 4 cores held to AVX2).
FAR_CYCLES, FAR_SHARE = 0.35, 5
SHARED_CYCLES = 120  # for a filter's map that two threads write: on two Zen 4 cores 0 to 250, by the hour
MOST_MADE = 16 << 20  # bytes of weights' sums that all threads make at a time

PAIRS = (
    "pairs", "pair_tasks", "pair_filters", "pair_filter_tasks", "pair_channels", "waiting_step", "planes_bytes",
    "sums_at", "alone_at", "tiles_at", "pair_bias_at", "panels_at", "left_tasks", "made_at",
)  # fmt: skip
CALL_STRASSEN = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING + PAIRS]))


def vector_pixels(problem) -> int:
    """Of a tile, without its lone one."""
    return VECTORS * lanes(problem.accumulate)


@lru_cache(maxsize=1024)
def lone_pixels(problem, tiles=2) -> int:
    """Of each of so many tiles: none, or one where the registers hold its sums too and less is then left over.

    It costs a step one more multiply-add, as W / rows pixels do; what is left over fetches all weights again.
    """
    if not holds_lone(problem.accumulate):
        return 0
    pixels = problem.P * problem.Q

    def cost(lone):
        left = pixels % (tiles * (vector_pixels(problem) + lone))
        paired = (pixels - left) * tile_columns(problem, lone) / (vector_pixels(problem) + lone)
        return (LONE_COSTS if lone else 1.0) * paired + (LEFT_COSTS * left + LEFT_PIXELS if left else 0.0)

    return min((0, 1), key=cost)


def tile_columns(problem, lone) -> float:
    """Pixels in vectors that take as long as a tile."""
    return vector_pixels(problem) + lone * lanes(problem.accumulate) / panel_rows()


def tile_pixels(problem) -> int:
    return vector_pixels(problem) + lone_pixels(problem)


def pairs(problem) -> int:
    """Pairs of tiles in a map."""
    return problem.P * problem.Q // (2 * tile_pixels(problem))


def paired_pixels(problem) -> int:
    return pairs(problem) * 2 * tile_pixels(problem)


def pair_cycles(problem, filters) -> float:
    """Of one pair of tiles and so many filters of the first half and of the second."""
    W, depth = lanes(problem.accumulate), problem.reduction // 2
    columns = tile_columns(problem, lone_pixels(problem))
    products = PRODUCTS * multiply_cycles(filters, VECTORS * W, depth, problem.accumulate) * columns / (VECTORS * W)
    copy = blocked_cuts.copy_cycles(problem) / (problem.P * problem.Q) * 2 * tile_pixels(problem)
    sums = SUMS * VECTORS * depth * SUM_CYCLES
    leave = PRODUCTS * filters * VECTORS * target.vector_bytes() / LINE * LEAVE_CYCLES
    return CYCLES_PER_TASK + products + copy + sums + leave


@lru_cache(maxsize=1024)
def best_cut(problem, threads, planned) -> int:
    """Ranges of the filters, by which threads share few maps, where that costs little."""

    def cost(cut):
        shared = shared_maps(problem, pairs(problem), cut, threads)
        return cut_cycles(problem, threads, cut, planned) + SHARED_CYCLES * shared

    return min(possible_cuts(problem, threads, planned), key=cost)


def shared_maps(problem, tasks_of_map, filter_tasks, threads) -> int:
    """Filters of which two threads write one map: where a thread's range of the tasks ends within the map's."""
    tasks = tasks_of_map * problem.N * problem.groups * filter_tasks
    ends = {tasks * i // threads for i in range(threads)}
    return sum(end % tasks_of_map > 0 for end in ends) * problem.Kg // filter_tasks


def best_cycles(problem, threads, planned) -> float:
    """Without what sharing maps costs in some hours, and avoiding it."""
    return min(cut_cycles(problem, threads, cut, planned) for cut in possible_cuts(problem, threads, planned))


def possible_cuts(problem, threads, planned):
    """In a call each thread makes the sums of weights that it wants itself, of one range of the filters at a time: what
    another has just written takes longer to come than to make.
    """
    if planned:
        return FILTER_CUTS
    ranges = [*FILTER_CUTS, *(threads * tasks for tasks in FILTER_CUTS)]
    return [tasks for tasks in ranges if threads * made_bytes(problem, tasks) <= MOST_MADE] or ranges[-1:]


def cut_cycles(problem, threads, filter_tasks, planned) -> float:
    """Predicted cycles until the last thread is done."""
    half, rest = problem.Kg // 2, problem.P * problem.Q - paired_pixels(problem)
    filters = range_filters(problem, filter_tasks)
    parts = [pair_cycles(problem, min(filters, half - begin)) for begin in range(0, half, filters)]
    left = problem.Kg * blocked_cuts.pixels_cycles(rest, problem.reduction, problem.accumulate) / threads
    if fetches_from_l3(problem, threads):
        fetched = FAR_CYCLES * PRODUCTS * (problem.reduction // 2)
        parts = [part + fetched * min(filters, half - i * filters) for i, part in enumerate(parts)]
    each = pairs(problem) * problem.N
    tasks = [part for part in parts for _ in range(each)] * problem.groups
    tasks = spread(tasks, [left] * (threads * problem.N * problem.groups))
    pack = 0.0 if planned else pack_cycles(problem, most_made(problem, threads, len(parts)))
    return pack + until_all_done(tasks, threads)


def fetches_from_l3(problem, threads) -> bool:
    """Do products wait for sums of weights that do not stay in the L2 cache?"""
    return target.register_count() == 16 and panel_bytes(problem) > FAR_SHARE * threads * target.cache_bytes(2)


def pack_cycles(problem, filters) -> float:
    """Of a thread that makes the sums of so many filters. Where to it writes them has to come from L3 first, unless
    that and the sums of x stay in the L2 cache from one call to the next.
    """
    sums_of_x = sums_made() * channel_block(problem) * VECTORS * target.vector_bytes()
    made = panel_bytes(problem) * filters / problem.K
    near, far = PACK_CYCLES[target.multiply_adds_per_cycle()]
    return (far if made + sums_of_x > target.cache_bytes(2) else near) * filters * problem.reduction


def range_filters(problem, filter_tasks) -> int:
    """Of half the filters, those of one range."""
    return up(-(-(problem.Kg // 2) // filter_tasks), panel_rows())


def most_made(problem, threads, filter_tasks) -> int:
    """Filters whose sums one thread makes, in a call, for the tasks of its range."""
    each = pairs(problem) * problem.N
    ends = [each * problem.groups * filter_tasks * i // threads for i in range(threads + 1)]
    ranges = max(-(-end // each) - begin // each for begin, end in pairwise(ends))
    return ranges * 2 * range_filters(problem, filter_tasks)


def spread(tasks, others):
    """Both in their order, the others evenly among the tasks, as `task` has them."""
    count, all_tasks = len(others), len(tasks) + len(others)
    before = [index * count // all_tasks for index in range(all_tasks + 1)]
    return [others[b] if after > b else tasks[i - b] for i, (b, after) in enumerate(pairwise(before))]


def channel_block(problem) -> int:
    """Channels of a half whose T's and x fill less than half the L2 cache, all blocks about equal."""
    depth, row_bytes = problem.reduction // 2, VECTORS * target.vector_bytes()
    x_bytes = 4 * (row_bytes + LINE)
    if not blocked_cuts.reads_x_in_place(problem):
        x_bytes = 2 * blocked_cuts.plane_bytes(problem, 2 * tile_pixels(problem))
    most = max(target.cache_bytes(2) // 2 // (sums_made() * row_bytes + x_bytes), 1)
    return up(-(-depth // -(-depth // most)), problem.S)


@lru_cache(maxsize=1024)
def blocking(problem, threads, planned):
    """The numbers of BLOCKING and of PAIRS, how many tasks there are, of packing and of all else, and the bytes of
    workspace.
    """
    W, rows, item = lanes(problem.accumulate), panel_rows(), problem.accumulate.itemsize
    maps, half, depth = problem.N * problem.groups, problem.Kg // 2, problem.reduction // 2
    count, first = pairs(problem), paired_pixels(problem)
    rest, left = blocked_cuts.blocking(problem, threads, first) if first < problem.P * problem.Q else (NOTHING_LEFT, 0)
    rest = list(rest)
    cut = best_cut(problem, threads, planned)
    filters = range_filters(problem, cut)
    filter_tasks = -(-half // filters)
    gap = lone_pixels(problem) * LINE
    tile_bytes, wait_bytes = rows * VECTORS * W * item + gap, rows * (VECTORS * W * item + gap)
    planes_bytes, channels = blocked_cuts.plane_bytes(problem, 2 * tile_pixels(problem)), channel_block(problem)
    sums_at = up(2 * channels * planes_bytes, 64)
    waiting_step = 4 * wait_bytes if channels < depth else 0
    alone_at = sums_at + sums_made() * channels * VECTORS * W * item
    tiles_at = alone_at + up(sums_made() * channels * item, LINE)
    bias_at = tiles_at + 2 * tile_bytes + 4 * wait_bytes + (filters // rows - 1) * waiting_step
    # Sums of weights stay from task to task, also of what is left over.
    made_at = up(max(rest[BLOCKING.index("worker_bytes")], bias_at + 2 * filters * item), LINE)
    worker_bytes = worker_span(made_at if planned else made_at + LINE + made_bytes(problem, cut))
    rest[BLOCKING.index("worker_bytes")] = worker_bytes
    own = (
        count, count * maps * filter_tasks, filters, filter_tasks, channels, waiting_step, planes_bytes, sums_at,
        alone_at, tiles_at, bias_at, rows_bytes(problem), left, made_at,
    )  # fmt: skip
    return tuple(rest) + own, own[1] + left, threads * worker_bytes


def made_bytes(problem, filter_tasks) -> int:
    """Of the sums of one range of the filters' weights."""
    return PRODUCTS * range_filters(problem, filter_tasks) * (problem.reduction // 2) * problem.accumulate.itemsize


def panel_bytes(problem):
    return PRODUCTS * problem.groups * problem.Kg // 2 * (problem.reduction // 2) * problem.accumulate.itemsize


def fetch_seconds(panels, cycles, threads):
    """Of so many bytes of weights, where they are too many to stay in the L3 cache from one call to the next: what is
    not hidden behind the products, which take so many cycles of all threads.
    """
    if panels <= target.cache_bytes(3) * 3 // 4:
        return 0.0
    return max(0.0, panels / MEMORY_BYTES / 2 - cycles / CLOCK / threads)


def rows_bytes(problem):
    """Of the weights in rows, which what is left over wants."""
    return weight_rows.packed_bytes(problem) if paired_pixels(problem) < problem.P * problem.Q else 0
