"""How strassen_twice.py cuts a problem: groups of four tiles, ranges of filters; and what that costs."""

from functools import lru_cache
from itertools import product

import numpy as np
from numba import from_dtype

from . import blocked_cuts, target, weight_rows
from .blocked_cuts import BLOCKING
from .call import CALL_DTYPE
from .filter_cuts import until_all_done, up
from .microkernel import CLOCK, VECTORS, multiply_cycles, panel_rows
from .strassen_cuts import (
    NOTHING_LEFT,
    SHARED_CYCLES,
    SUMS,
    lone_pixels,
    shared_maps,
    spread,
    tile_columns,
    vector_pixels,
)
from .strassen_sums import PRODUCTS, spaced_row
from .strassen_twice_sums import MADE, OUTER, row_bytes
from .threads import LINE, worker_span
from .vectors import lanes

TILES = 4  # of a group: two to the left, two to the right
FILTER_CUTS = (1, 2, 3, 4, 6, 8)
CYCLES_PER_TASK = 1_500
SUM_CYCLES = 5.5  # for a line of each outer sum of pixels: to make it, and what products then wait for the L2 cache
# For a line of each inner one, which products make: by so many lines multiplied and added a cycle, one of 64 bytes or
# two of 32, or two of 64. With these (not measured), as if the multipliers waited for it.
INNER_CYCLES = {1: 3.0, 2: 5.0}
# For a line of a product that is added to others, half of which lie in the L2 cache: by the same.
LEAVE_CYCLES = {1: 2.0, 2: 6.5}
# For a product besides, by registers: held to AVX2, 64 -> 256 channels take two Zen 4 cores 1.05 to 1.1 of one level's
# time.
START_CYCLES = {16: 10.0, 32: 0.0}
# What a single call takes longer: for a weight; and, on two Zen 4 cores, where threads read what others have just
# written, for 256 KB of weights as for 1 MB.
PACK_CYCLES, EXCHANGE_SECONDS = 6.0, 0.5e-3
# For a vector of weights whose sums a call's task makes by itself, in rows: 7 from the L2 cache, and what else then
# waits for it, on two Zen 4 cores held to AVX2.
MAKE_CYCLES = 13.0

GROUPS = (
    "quads", "task_quads", "quad_tasks", "quad_filters", "quad_filter_tasks", "planes_bytes", "sums_at",
    "tiles_at", "quad_bias_at", "panels_at", "left_tasks",
    "made_at", "made_row",
)  # fmt: skip
CALL_TWICE = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING + GROUPS]))


def lone(problem) -> int:
    return lone_pixels(problem, TILES)


def group_pixels(problem) -> int:
    return TILES * (vector_pixels(problem) + lone(problem))


def groups(problem) -> int:
    """Groups of tiles in a map."""
    return problem.P * problem.Q // group_pixels(problem)


def grouped_pixels(problem) -> int:
    return groups(problem) * group_pixels(problem)


def lines_per_cycle() -> int:
    """That a core multiplies and adds; 1 of less."""
    return max(target.multiply_adds_per_cycle() * target.vector_bytes() // LINE, 1)


def group_cycles(problem, filters) -> float:
    """Of one group of tiles and so many filters of each quarter."""
    W, depth = lanes(problem.accumulate), problem.Cg // 4
    share = tile_columns(problem, lone(problem)) / (VECTORS * W)
    products = PRODUCTS**2 * multiply_cycles(filters, VECTORS * W, depth, problem.accumulate) * share
    products += PRODUCTS**2 * START_CYCLES[target.register_count()] * filters / panel_rows()
    copy = blocked_cuts.copy_cycles(problem) / (problem.P * problem.Q) * group_pixels(problem)
    pace = lines_per_cycle()
    inner = INNER_CYCLES[pace] * PRODUCTS * SUMS
    lines = VECTORS * target.vector_bytes() / LINE
    sums = lines * depth * (SUM_CYCLES * OUTER + inner)
    leave = LEAVE_CYCLES[pace] * PRODUCTS**2 * lines * filters
    return CYCLES_PER_TASK + products + copy + sums + leave


@lru_cache(maxsize=1024)
def best_cut(problem, threads, planned):
    """Ranges of the filters, by which threads share few maps, where that costs little, and groups of a task."""

    def cost(cut):
        filter_tasks, at_once = cut
        shared = shared_maps(problem, -(-groups(problem) // at_once), filter_tasks, threads)
        return cut_cycles(problem, threads, cut, planned) + SHARED_CYCLES * shared

    return min(possible_cuts(problem, planned), key=cost)


def best_cycles(problem, threads, planned) -> float:
    """Without what sharing maps costs in some hours, and avoiding it."""
    return min(cut_cycles(problem, threads, cut, planned) for cut in possible_cuts(problem, planned))


def possible_cuts(problem, planned):
    """In a call each weight's sums are made once for all groups of a task, whose sums of pixels and tiles fit in the
    L2 cache.
    """
    if planned:
        return [(filter_tasks, 1) for filter_tasks in FILTER_CUTS]
    counts = sorted({-(-groups(problem) // tasks) for tasks in range(1, groups(problem) + 1)})

    def fits(filter_tasks, at_once):
        sums = problem.Cg // 4 * row_bytes(problem.accumulate, lone(problem))
        tiles = task_filters(problem, filter_tasks) // panel_rows() * 2 * TILES * tile_bytes(problem)
        return at_once == 1 or at_once * (sums + tiles) <= target.cache_bytes(2)

    return [cut for cut in product(FILTER_CUTS, counts) if fits(*cut)]


@lru_cache(maxsize=1024)
def makes_rows(problem) -> bool:
    """Whether a single call's tasks make the sums of weights, in rows: with 16 registers, as a lone pixel's filters
    would have to lie side by side; and where that takes less than to pack them once for all tasks.
    """
    if target.register_count() != 16 or problem.Cg // 4 % (MADE * lanes(problem.accumulate)):
        return False
    at_once = max(count for _, count in possible_cuts(problem, planned=False))
    times = problem.N * -(-groups(problem) // at_once)
    return make_cycles(problem) * times <= PACK_CYCLES + EXCHANGE_SECONDS * CLOCK / (problem.K * problem.Cg)


def make_cycles(problem) -> float:
    """For a weight."""
    return MAKE_CYCLES / lanes(problem.accumulate)


def task_filters(problem, filter_tasks) -> int:
    """Of each quarter of the filters, those of one range."""
    return up(-(-(problem.Kg // 4) // filter_tasks), panel_rows())


def tile_bytes(problem) -> int:
    return panel_rows() * (VECTORS * target.vector_bytes() + lone(problem) * LINE)


def cut_cycles(problem, threads, cut, planned) -> float:
    """Predicted cycles until the last thread is done."""
    filter_tasks, at_once = cut
    quarter, rest = problem.Kg // 4, problem.P * problem.Q - grouped_pixels(problem)
    filters = task_filters(problem, filter_tasks)
    counts = [min(at_once, groups(problem) - begin) for begin in range(0, groups(problem), at_once)]

    def task(filters, count):
        make = 0.0 if planned else make_cycles(problem) * TILES * filters * problem.Cg
        return make + count * group_cycles(problem, filters)

    sizes = [min(filters, quarter - begin) for begin in range(0, quarter, filters)]
    cycles = {of: task(*of) for of in product(set(sizes), set(counts))}
    tasks = [cycles[size, count] for size in sizes for _ in range(problem.N) for count in counts] * problem.groups
    if rest:
        left = problem.Kg * blocked_cuts.pixels_cycles(rest, problem.reduction, problem.accumulate) / threads
        tasks = spread(tasks, [left + CYCLES_PER_TASK] * (threads * problem.N * problem.groups))
    return until_all_done(tasks, threads)


@lru_cache(maxsize=1024)
def blocking(problem, threads, planned):
    """The numbers of BLOCKING and of GROUPS, how many tasks there are, and the bytes of a worker."""
    rows, item = panel_rows(), problem.accumulate.itemsize
    maps, quarter, depth = problem.N * problem.groups, problem.Kg // 4, problem.Cg // 4
    count, first = groups(problem), grouped_pixels(problem)
    rest, left = blocked_cuts.blocking(problem, threads, first) if first < problem.P * problem.Q else (NOTHING_LEFT, 0)
    rest = list(rest)
    filter_tasks, at_once = best_cut(problem, threads, planned)
    filters = task_filters(problem, filter_tasks)
    filter_tasks = -(-quarter // filters)
    tasks = -(-count // at_once) * maps * filter_tasks
    planes_bytes = blocked_cuts.plane_bytes(problem, at_once * group_pixels(problem))
    sums_at = up(problem.Cg * planes_bytes, LINE)
    tiles_at = sums_at + at_once * depth * row_bytes(problem.accumulate, lone(problem))
    bias_at = tiles_at + (2 + TILES + filters // rows * at_once * 2 * TILES) * tile_bytes(problem)
    made_at, made_row = up(bias_at + TILES * filters * item, LINE), spaced_row(depth, item)
    made_bytes = 0 if planned else PRODUCTS * rows * made_row
    worker_bytes = max(rest[BLOCKING.index("worker_bytes")], made_at + made_bytes)
    rest[BLOCKING.index("worker_bytes")] = worker_span(worker_bytes)
    own = (
        count, at_once, tasks, filters, filter_tasks, planes_bytes, sums_at,
        tiles_at, bias_at, rows_bytes(problem), left, made_at, made_row,
    )  # fmt: skip
    return tuple(rest) + own, tasks + left, worker_span(worker_bytes)


def panel_bytes(problem):
    return PRODUCTS**2 * problem.groups * (problem.Kg // 4) * (problem.Cg // 4) * problem.accumulate.itemsize


def rows_bytes(problem):
    """Of the weights in rows, which what is left over wants."""
    return weight_rows.packed_bytes(problem) if grouped_pixels(problem) < problem.P * problem.Q else 0
