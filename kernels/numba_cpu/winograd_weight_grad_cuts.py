"""How the CPU weight gradient by Winograd is cut into parts, blocks, chains and strips; winograd_weight_grad.py has the
picture.
"""

from functools import lru_cache
from itertools import product
from math import ceil

import numpy as np
from numba import from_dtype

from . import target
from .call import CALL_DTYPE
from .microkernel import tile_rows
from .threads import lines, worker_span
from .vectors import lanes
from .winograd_matrices import Axis, Tile

TILE = Tile(Axis(3, 4), Axis(3, 4))  # 3 x 3 results, the gradients, of windows of 4 x 4 numbers of grad_y
SIDE = 4  # of a tile of grad_y

CHAIN = 512  # tiles, about, whose products are added one after the other
MOST_TASKS = 32  # what a problem's chains are cut into parts for, whatever the threads
PIECE = 14  # tiles of a row whose pixels are transposed at a time: 58 pixels of 6 rows and a vector stay in L1
STRIP, SHORT_STRIP = 64, 24  # tiles at most, and at least where the sums leave no room in the L2 cache
SUMS_IN_CACHE = 0.6  # of the L2 cache: sums of a block
PLANE_PADDING = 64  # bytes: without, the planes of a tile fall into the same cache sets

CUTS = (
    "tile_rows", "tile_columns", "tiles", "chains", "parts", "strip", "piece", "row_block", "row_tasks",
    "vectors", "vector_block", "vector_tasks", "taps", "pitch", "input_plane", "grad_plane", "sum_plane",
    "inputs_at", "grads_at", "sums_at", "worker_bytes", "totals_at", "totals_bytes",
)  # fmt: skip
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS]))

# What a task does, in cycles: to be weighed against each other, not to be believed.
INPUT_CYCLES, GRAD_CYCLES = 260, 200  # a tile of a vector of channels, or filters: copied and transformed
SUM_CYCLES = 120  # the sums of a channel and a vector of filters, transformed back
EFFICIENCY = 0.85  # of the core's multiply-adds
LOADED = 5.0  # what loading and storing a tile of sums adds to a strip, in its steps
UNEVEN = 0.1  # of a task: what the threads wait for the last one


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, and the bytes of workspace in all."""
    blocks = min(possible_blocks(problem, threads), key=lambda sizes: cycles(problem, threads, *sizes))
    return cut_into(problem, threads, *blocks, strip_of(problem, *blocks))


def tiles_of(problem):
    rows, columns = ceil(problem.P / SIDE), ceil(problem.Q / SIDE)
    return rows, columns, problem.N * rows * columns


def rows_unit(problem) -> int:
    """Channels that a block has a multiple of: whole vectors, and whole tiles of the micro-kernel."""
    return max(lanes(problem.accumulate), *(tile_rows(width) for width in (1, 2, 3)))


def chains_of(problem):
    """Chains, and the parts that their sums are kept in: of the problem alone, since they decide about bits."""
    chains = max(1, round(tiles_of(problem)[2] / CHAIN))
    blocks = problem.groups * ceil(problem.Cg / 64) * ceil(problem.Kg / 64)
    return chains, max(1, min(chains, MOST_TASKS // blocks))


def possible_blocks(problem, threads):
    """Channels and vectors of filters of a task, whose sums stay in the L2 cache."""
    unit, W, item = rows_unit(problem), lanes(problem.accumulate), problem.accumulate.itemsize
    rows = sizes(ceil(problem.Cg / unit), unit)
    vectors = sizes(ceil(problem.Kg / W), 1)
    room = SUMS_IN_CACHE * target.cache_bytes(2) / (TILE.planes * W * item)
    fitting = [(r, v) for r, v in product(rows, vectors) if r * v <= room]
    return fitting or [(unit, 1)]


def sizes(count, unit):
    """Every size of block that makes another number of them."""
    return sorted({ceil(count / parts) * unit for parts in range(1, count + 1)})


def strip_of(problem, row_block, vector_block):
    """Tiles of a strip: what leaves its planes, and the sums, in the L2 cache, within limits."""
    W, item = lanes(problem.accumulate), problem.accumulate.itemsize
    left = target.cache_bytes(2) - TILE.planes * row_block * vector_block * W * item
    fit = left // (TILE.planes * (row_block + vector_block * W) * item)
    return min(STRIP, max(SHORT_STRIP, fit), longest_chain(problem))


def longest_chain(problem):
    return ceil(tiles_of(problem)[2] / chains_of(problem)[0])


def cycles(problem, threads, row_block, vector_block):
    """Predicted for the thread with the most work."""
    W, (chains, parts) = lanes(problem.accumulate), chains_of(problem)
    tiles, strip = tiles_of(problem)[2] / parts, strip_of(problem, row_block, vector_block)
    share = (target.vector_bytes() + 12) / 76  # what a vector takes, of one of 64 bytes
    products = TILE.planes * row_block * vector_block / target.multiply_adds_per_cycle() / EFFICIENCY
    multiplied = tiles * products * (1 + LOADED / min(strip, tiles))
    transformed = tiles * share * (INPUT_CYCLES * row_block / W + GRAD_CYCLES * vector_block)
    summed = chains / parts * share * SUM_CYCLES * row_block * vector_block
    tasks = parts * problem.groups * ceil(problem.Cg / row_block) * ceil(problem.Kg / W / vector_block)
    return (ceil(tasks / threads) + UNEVEN) * (multiplied + transformed + summed)


def cut_into(problem, threads, row_block, vector_block, strip):
    """The numbers of CUTS for that cut, and the bytes of workspace in all."""
    W, item = lanes(problem.accumulate), problem.accumulate.itemsize
    vector, vectors = W * item, ceil(problem.Kg / W)
    (rows, columns, tiles), (chains, parts) = tiles_of(problem), chains_of(problem)
    row_tasks, vector_tasks = ceil(problem.Cg / row_block), ceil(vectors / vector_block)
    strip = ceil(longest_chain(problem) / ceil(longest_chain(problem) / strip))
    piece = min(ceil(columns / ceil(columns / PIECE)), strip)
    pitch = (piece * SIDE + TILE.columns.span - SIDE) * vector
    inputs_at = lines(max(TILE.rows.span * pitch, W * vector))
    input_plane = strip * row_block * item + PLANE_PADDING
    grad_plane = strip * vector_block * vector + PLANE_PADDING
    sum_plane = row_block * vector_block * vector + PLANE_PADDING
    grads_at = inputs_at + TILE.planes * input_plane
    sums_at = grads_at + TILE.planes * grad_plane
    worker_bytes = worker_span(sums_at + TILE.planes * sum_plane)
    totals_bytes = lines(problem.R * problem.S * row_block * vector_block * vector)
    totals_at = max(threads, 1) * worker_bytes
    kept = parts * problem.groups * row_tasks * vector_tasks if parts > 1 else max(threads, 1)
    numbers = (
        rows, columns, tiles, chains, parts, strip, piece, row_block, row_tasks, vectors, vector_block, vector_tasks,
        problem.R * problem.S, pitch, input_plane, grad_plane, sum_plane, inputs_at, grads_at, sums_at, worker_bytes,
        totals_at, totals_bytes,
    )  # fmt: skip
    return numbers, totals_at + kept * totals_bytes + 64
