"""How blocked_by_filters shares a problem out among threads: blocks of pixels times ranges of filter vectors.

On maps of few pixels a bad cut costs more than any other part: 320 filters in tiles of 48 are 7 tiles, of which two
threads do 4 and 3, an eighth of the time lost. So every cut worth a thought is played through: tasks in their order,
each taken by the thread that takes it in threads.py, and the one done soonest is taken.
"""

import heapq
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from .microkernel import multiply_cycles, panel_rows, tile_rows
from .vectors import lanes

TASKS_PER_THREAD = 10
BLOCK_PIXELS = 128  # at most: their panel stays in the L2 cache
SHARED_BYTES = 4 << 20  # panels of the whole problem, where threads share them
CYCLES_PER_TASK = 400
SHARED_CYCLES = 0.5  # for a number of a panel that another core has written
MOST_PLAYED = 400  # tasks; so many leave no thread idle for long


@dataclass(frozen=True)
class Cut:
    """pixels: of a block. shared: panels are packed once, in a first round, for all ranges of filters; or else by every
    task for itself. panel_pixels: a block's and those that fill its last tile, as a panel holds them. sum_pixels: as
    their sums are held.
    """

    pixels: int
    pixel_tasks: int
    filter_tasks: int
    shared: bool
    panel_pixels: int
    sum_pixels: int


def tile_pixels(problem) -> int:
    """Pixels of a tile: 7 where 8 waste much of the map; 0 for the micro-kernel's own number."""
    if panel_rows() != 8 or tile_rows(1) != 8:
        return 0
    pixels = problem.P * problem.Q
    return 7 if 1.05 * up(pixels, 7) < up(pixels, 8) else 0


@lru_cache(maxsize=1024)
def best_cut(problem, threads, copy_cycles) -> Cut:
    """copy_cycles: for one number of a panel."""
    return min(possible_cuts(problem, threads), key=lambda cut: cut_cycles(problem, threads, copy_cycles, cut))


def possible_cuts(problem, threads):
    """Panels are shared only where those of all pixels can be kept."""
    apart = tile_pixels(problem) or panel_rows()
    pixels, vectors = problem.P * problem.Q, filter_vectors(problem)
    fewest = -(-pixels // BLOCK_PIXELS)
    for blocks in range(fewest, fewest + threads + 1):
        block = up(-(-pixels // blocks), apart)
        pixel_tasks = -(-pixels // block)
        sum_pixels = up(block, tile_pixels(problem) or tile_rows(1))
        panel_pixels = sum_pixels // apart * panel_rows()
        tasks = problem.N * problem.groups * pixel_tasks
        kept = tasks * panel_pixels * problem.reduction * problem.accumulate.itemsize <= SHARED_BYTES
        most = min(vectors, -(-TASKS_PER_THREAD * threads // tasks)) if threads > 1 else 1
        for filter_tasks in range(1, most + 1):
            for shared in (False, True) if kept and filter_tasks > 1 else (False,):
                yield Cut(block, pixel_tasks, filter_tasks, shared, panel_pixels, sum_pixels)


def cut_cycles(problem, threads, copy_cycles, cut) -> float:
    """Predicted cycles until the last thread is done."""
    W, pixels, vectors = lanes(problem.accumulate), problem.P * problem.Q, filter_vectors(problem)
    bounds = [vectors * i // cut.filter_tasks * W for i in range(cut.filter_tasks + 1)]
    ranges = [behind - first for first, behind in pairwise(bounds)]
    blocks = [min(cut.pixels, pixels - first) for first in range(0, pixels, cut.pixels)]
    tile = tile_pixels(problem) or panel_rows()

    def task(block, filters):
        product = multiply_cycles(up(block, tile), filters, problem.reduction, problem.accumulate)
        copy = SHARED_CYCLES if cut.shared else copy_cycles
        return CYCLES_PER_TASK + product + block * problem.reduction * copy

    maps = problem.N * problem.groups
    first_round = maps * pixels * problem.reduction * copy_cycles / threads if cut.shared else 0
    return first_round + until_all_done(
        [task(block, filters) for block in blocks for filters in ranges] * maps, threads
    )


def until_all_done(tasks, threads, late=0.0) -> float:
    """When the last thread is done: each has a range of the tasks, and when these are done helps with the others', as
    threads.py does. late: when all but the first thread are there.
    """
    if len(tasks) > MOST_PLAYED:
        return sum(tasks) / threads + max(tasks)
    bounds = [len(tasks) * i // threads for i in range(threads + 1)]
    ranges = [deque(tasks[first:end]) for first, end in pairwise(bounds)]
    free = [(late if worker else 0.0, worker) for worker in range(threads)]
    done = 0.0
    while free:
        now, worker = heapq.heappop(free)
        own = next((r for r in ranges[worker:] + ranges[:worker] if r), None)
        if own:
            heapq.heappush(free, (now + own.popleft(), worker))
        else:
            done = max(done, now)
    return done


def filter_vectors(problem) -> int:
    return -(-problem.Kg // lanes(problem.accumulate))


def up(count, step):
    return -(-count // step) * step
