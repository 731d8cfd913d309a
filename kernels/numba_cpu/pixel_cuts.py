"""How pixels_in_place.py shares a problem out: tiles, bands of rows times ranges of filters, rows at a time; what it
takes.

A cut by filters packs and reads each weight once, but its threads store parts of the same pixels: where these are
short, lines of y go back and forth between the cores. 3 channels of 224 x 224 to 64 filters took 1.2 to 2.5 ms instead
of 0.4.
"""

from functools import lru_cache

from . import patches, target
from .few_channels import MOST_CHANNELS, STREAM_BYTES
from .filter_cuts import filter_vectors, until_all_done, up
from .microkernel import MEMORY_BYTES, VECTORS, multiply_cycles, tile_rows
from .threads import lines
from .vectors import lanes

BANDS_PER_THREAD, PARTS_PER_THREAD = (1, 2, 4), (1, 2)  # of rows, of filters: the cuts that are tried
CYCLES_PER_TASK, CYCLES_TO_WAKE = 1_000, 4_000
CYCLES_TO_COME = 0.04  # for each number of x and w, when a task reads it first
SHARED_CYCLES = 100  # a pixel whose filters several threads store, in lines that they take from each other
PACK_CYCLES = 0.3  # a weight, by every task that multiplies with it
COPY_CYCLES = 0.25  # a number
STORE_CYCLES = {"NHWC": 0.25, "NCHW": 0.35}  # an output


@lru_cache(maxsize=1024)
def heights(problem):
    """Pixels of tiles of one, two and three vectors: 7 where 8 would compute many of a row twice."""
    Q = problem.Q
    if target.register_count() == 32 and 1.02 * up(Q, 7) < up(Q, 8):
        return 7, 7, 7
    return tuple(tile_rows(vectors) for vectors in (1, 2, 3))


def copies(problem) -> bool:
    """Must rows be copied, or their ends: for padding, or since a tile would read beyond them?"""
    return max(heights(problem)) > problem.Q or any(map(any, problem.padding))


def row_numbers(problem):
    """Numbers of x that a row of outputs reads from each row of x."""
    return ((problem.Q - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1) * problem.C


def copied_numbers(problem):
    """Of a row of x inside the image: what tiles at its ends read."""
    ends = 2 * max(heights(problem)) * problem.stride[1] * problem.C
    return min(row_numbers(problem), ends) if copies(problem) else 0


def row_bytes(problem):
    return lines(row_numbers(problem) * problem.accumulate.itemsize) + 64


def rows_read(problem, rows):
    """By so many rows of outputs."""
    return (rows - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1


def fewest_bands(problem):
    """So many that their copied rows fit half the L2 cache."""
    if not copies(problem):
        return 1
    fitting = target.cache_bytes(2) // 2 // row_bytes(problem) - rows_read(problem, 1)
    return min(-(-problem.P // max(fitting // problem.stride[0], 1)), problem.P)


def possible_cuts(problem, threads):
    """(bands of rows, ranges of filters)"""
    fewest = fewest_bands(problem)
    if threads == 1:
        return [(fewest, 1)]
    bands = {min(max(fewest, threads * n), problem.P) for n in BANDS_PER_THREAD}
    parts = {min(threads * n, filter_vectors(problem)) for n in PARTS_PER_THREAD}
    return [(band, part) for band in sorted({fewest, *bands}) for part in sorted({1, *parts})]


def cut_cycles(problem, threads, packs, bands, filter_tasks) -> float:
    """Predicted cycles until the last thread is done."""
    W, vectors = lanes(problem.accumulate), filter_vectors(problem)
    rows = [problem.P * (band + 1) // bands - problem.P * band // bands for band in range(bands)]
    parts = [vectors * (part + 1) // filter_tasks - vectors * part // filter_tasks for part in range(filter_tasks)]
    tasks = [task_cycles(problem, row, part * W, packs) for part in parts for row in rows]
    return until_all_done(tasks * problem.N, threads, CYCLES_TO_WAKE)


def task_cycles(problem, rows, filters, packs) -> float:
    """Of so many rows of outputs: the multiply-adds, what comes from afar, copying rows and packing weights."""
    depth, weights = problem.reduction, problem.groups * filters * problem.reduction
    pixels = rows * up(problem.Q, heights(problem)[VECTORS - 1])
    multiply = multiply_cycles(pixels, filters, depth, problem.accumulate) * problem.groups
    numbers = rows_read(problem, rows) * row_numbers(problem)
    copy = COPY_CYCLES * rows_read(problem, rows) * copied_numbers(problem)
    pack = PACK_CYCLES * weights if packs else 0.0
    shared = SHARED_CYCLES * pixels if filters < problem.Kg and problem.layout == "NHWC" else 0.0
    return CYCLES_PER_TASK + multiply + copy + pack + shared + CYCLES_TO_COME * (numbers + weights)


def rows_at_once(problem, bands, filter_tasks) -> int:
    """So many rows of a task's outputs, with what they read, as half the L2 cache holds: all filters of some pixels are
    stored before their lines leave it. Of deep weights all rows: they come once.
    """
    item, most = problem.accumulate.itemsize, -(-problem.P // bands)
    vectors = problem.groups * -(-filter_vectors(problem) // filter_tasks)
    if vectors * target.vector_bytes() * problem.reduction > target.cache_bytes(2) // 2:
        return most
    numbers = problem.Q * problem.K // filter_tasks + problem.stride[0] * row_numbers(problem)
    return max(1, min(most, target.cache_bytes(2) // 2 // (numbers * item)))


@lru_cache(maxsize=1024)
def best_cut(problem, threads, packs):
    return min(possible_cuts(problem, threads), key=lambda cut: cut_cycles(problem, threads, packs, *cut))


def cycles(problem) -> float:
    """Of one image."""
    stores = STORE_CYCLES[problem.layout] * problem.K * problem.P * problem.Q
    filters = up(problem.Kg, lanes(problem.accumulate))
    return task_cycles(problem, problem.P, filters, False) + stores


def memory_bytes(problem) -> float:
    """A second: x and y of a first layer come and go as one stream each."""
    streams = problem.layout == "NHWC" and problem.Cg <= MOST_CHANNELS and not patches.apart(problem)
    return STREAM_BYTES if streams else MEMORY_BYTES


def pack_cycles(problem, threads) -> float:
    """Of a single call beside a plan's, by all threads together."""
    bands, _ = best_cut(problem, threads, True)
    return PACK_CYCLES * problem.N * bands * problem.K * problem.reduction
