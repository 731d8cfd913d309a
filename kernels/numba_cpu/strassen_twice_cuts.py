"""How strassen_twice.py cuts a problem: groups of four tiles, ranges of filters; and what that costs."""

from functools import lru_cache

import numpy as np
from numba import from_dtype

from . import blocked_cuts, target, weight_rows
from .blocked_cuts import BLOCKING
from .call import CALL_DTYPE
from .filter_cuts import until_all_done, up
from .microkernel import VECTORS, multiply_cycles, panel_rows
from .strassen_cuts import NOTHING_LEFT, SHARED_CYCLES, lone_pixels, shared_maps, spread, tile_columns, vector_pixels
from .strassen_sums import PRODUCTS
from .strassen_twice_sums import INNER, OUTER, row_bytes
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
# What a single call takes longer: for a weight; and, on two Zen 4 cores, where threads read what others have just
# written, for 256 KB of weights as for 1 MB.
PACK_CYCLES, EXCHANGE_SECONDS = 6.0, 0.5e-3

GROUPS = (
    "quads", "quad_tasks", "quad_filters", "quad_filter_tasks", "planes_bytes", "sums_at",
    "tiles_at", "quad_bias_at", "panels_at", "left_tasks",
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
    copy = blocked_cuts.copy_cycles(problem) / (problem.P * problem.Q) * group_pixels(problem)
    pace = lines_per_cycle()
    inner = INNER_CYCLES[pace] * PRODUCTS * INNER
    lines = VECTORS * target.vector_bytes() / LINE
    sums = lines * depth * (SUM_CYCLES * OUTER + inner)
    leave = LEAVE_CYCLES[pace] * PRODUCTS**2 * lines * filters
    return CYCLES_PER_TASK + products + copy + sums + leave


@lru_cache(maxsize=1024)
def best_cut(problem, threads) -> int:
    """Ranges of the filters, by which threads share few maps, where that costs little."""

    def cost(cut):
        return cut_cycles(problem, threads, cut) + SHARED_CYCLES * shared_maps(problem, groups(problem), cut, threads)

    return min(FILTER_CUTS, key=cost)


def best_cycles(problem, threads) -> float:
    """Without what sharing maps costs in some hours, and avoiding it."""
    return min(cut_cycles(problem, threads, cut) for cut in FILTER_CUTS)


def cut_cycles(problem, threads, filter_tasks) -> float:
    """Predicted cycles until the last thread is done."""
    quarter, rest = problem.Kg // 4, problem.P * problem.Q - grouped_pixels(problem)
    filters = up(-(-quarter // filter_tasks), panel_rows())
    parts = [group_cycles(problem, min(filters, quarter - begin)) for begin in range(0, quarter, filters)]
    tasks = [part for part in parts for _ in range(groups(problem) * problem.N)] * problem.groups
    if rest:
        left = problem.Kg * blocked_cuts.pixels_cycles(rest, problem.reduction, problem.accumulate) / threads
        tasks = spread(tasks, [left + CYCLES_PER_TASK] * (threads * problem.N * problem.groups))
    return until_all_done(tasks, threads)


@lru_cache(maxsize=1024)
def blocking(problem, threads):
    """The numbers of BLOCKING and of GROUPS, how many tasks there are, and the bytes of a worker."""
    W, rows, item = lanes(problem.accumulate), panel_rows(), problem.accumulate.itemsize
    maps, quarter, depth = problem.N * problem.groups, problem.Kg // 4, problem.Cg // 4
    count, first = groups(problem), grouped_pixels(problem)
    rest, left = blocked_cuts.blocking(problem, threads, first) if first < problem.P * problem.Q else (NOTHING_LEFT, 0)
    rest = list(rest)
    filters = up(-(-quarter // best_cut(problem, threads)), rows)
    filter_tasks = -(-quarter // filters)
    row, gap = VECTORS * W * item, lone(problem) * LINE
    tile_bytes = rows * (row + gap)
    planes_bytes = blocked_cuts.plane_bytes(problem, group_pixels(problem))
    sums_at = up(problem.Cg * planes_bytes, LINE)
    tiles_at = sums_at + depth * row_bytes(problem.accumulate, lone(problem))
    bias_at = tiles_at + (2 + TILES + filters // rows * 2 * TILES) * tile_bytes
    worker_bytes = max(rest[BLOCKING.index("worker_bytes")], bias_at + TILES * filters * item)
    rest[BLOCKING.index("worker_bytes")] = worker_span(worker_bytes)
    own = (
        count, count * maps * filter_tasks, filters, filter_tasks, planes_bytes, sums_at,
        tiles_at, bias_at, rows_bytes(problem), left,
    )  # fmt: skip
    return tuple(rest) + own, own[1] + left, worker_span(worker_bytes)


def panel_bytes(problem):
    return PRODUCTS**2 * problem.groups * (problem.Kg // 4) * (problem.Cg // 4) * problem.accumulate.itemsize


def rows_bytes(problem):
    """Of the weights in rows, which what is left over wants."""
    return weight_rows.packed_bytes(problem) if grouped_pixels(problem) < problem.P * problem.Q else 0
