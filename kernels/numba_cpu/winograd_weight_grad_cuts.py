"""How the CPU weight gradient by Winograd is cut into parts, blocks and strips, and what that costs;
winograd_weight_grad.py has the picture.
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
from .winograd_weight_grad_chains import SIDE, TILE, chains_of, longest_chain, tiles_of

MOST_TASKS = 32  # what a problem's chains are cut into parts for, whatever the threads
PIECE = 14  # tiles of a row whose pixels are transposed at a time: 58 pixels of 6 rows and a vector stay in L1
STRIP = 64  # tiles, at most
SUMS = 2.4  # of a block, in sizes of the L2 cache: larger ones are fetched from L3 for too few products
MOST_WORKSPACE = 48 << 20  # of all threads, where a cut is possible that needs no more
PLANE_PADDING = 64  # bytes: without, the planes of a tile fall into the same cache sets

CUTS = (
    "tile_rows", "tile_columns", "tiles", "chains", "parts", "strip", "piece", "row_block", "row_tasks",
    "vectors", "vector_block", "vector_tasks", "taps", "pitch", "input_plane", "grad_plane", "sum_plane",
    "inputs_at", "grads_at", "sums_at", "worker_bytes", "totals_at", "totals_bytes",
)  # fmt: skip
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS]))

# What a task does, in cycles: fitted to blocks of 32 to 128 channels and filters, from 64 to 512 of 224 x 224 to 7 x 7,
# on a Zen 5 with AVX-512.
INPUT_CYCLES, GRAD_CYCLES = 430, 360  # a tile of a vector of channels, or filters: copied and transformed
SUM_CYCLES = 200  # the sums of a channel and a vector of filters, transformed back
EFFICIENCY = 0.97  # of the core's multiply-adds
LOADED = 5.0  # what loading and storing a tile of sums adds to a strip, in its steps
UNEVEN = 0.1  # of a task: what the threads wait for the last one


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, and the bytes of workspace in all."""

    def cost(cut):
        (_, count), blocks = cut
        return max(MOST_WORKSPACE, count), cycles(problem, threads, *blocks)

    possible = ((cut_into(problem, threads, *blocks), blocks) for blocks in possible_blocks(problem))
    return min(possible, key=cost)[0]


def possible_blocks(problem):
    """Channels, and vectors of filters, of a task."""
    W, item = lanes(problem.accumulate), problem.accumulate.itemsize
    unit = max(W, *(tile_rows(width) for width in (1, 2, 3)))  # whole vectors, and whole tiles of the micro-kernel
    blocks = product(sizes(ceil(problem.Cg / unit), unit), sizes(ceil(problem.Kg / W), 1))
    room = SUMS * target.cache_bytes(2) / (TILE.planes * W * item)
    return [(rows, vectors) for rows, vectors in blocks if rows * vectors <= room] or [(unit, 1)]


def sizes(count, unit):
    """Every size of block that makes another number of them."""
    return sorted({ceil(count / parts) * unit for parts in range(1, count + 1)})


def parts_of(problem) -> int:
    """Parts of the chains, whose sums are kept apart and then added: of the problem alone, since that decides about
    bits.
    """
    blocks = problem.groups * ceil(problem.Cg / 64) * ceil(problem.Kg / 64)
    return max(1, min(chains_of(problem), MOST_TASKS // blocks))


def cycles(problem, threads, row_block, vector_block):
    """Predicted for the thread with the most work."""
    W, parts, chains = lanes(problem.accumulate), parts_of(problem), chains_of(problem)
    tiles = ceil(chains / parts) / chains * tiles_of(problem)[2]
    share = (target.vector_bytes() + 12) / 76  # what a vector takes, of one of 64 bytes
    products = TILE.planes * row_block * vector_block / target.multiply_adds_per_cycle() / EFFICIENCY
    multiplied = tiles * products * (1 + LOADED / min(STRIP, longest_chain(problem)))
    transformed = tiles * share * (INPUT_CYCLES * row_block / W + GRAD_CYCLES * vector_block)
    summed = ceil(chains / parts) * share * SUM_CYCLES * row_block * vector_block
    tasks = parts * problem.groups * ceil(problem.Cg / row_block) * ceil(problem.Kg / W / vector_block)
    return (ceil(tasks / threads) + UNEVEN) * (multiplied + transformed + summed)


def cut_into(problem, threads, row_block, vector_block, strip=STRIP):
    """The numbers of CUTS for blocks of so many channels and vectors of filters, and the bytes of workspace in all."""
    W, item = lanes(problem.accumulate), problem.accumulate.itemsize
    vector, vectors = W * item, ceil(problem.Kg / W)
    (rows, columns, tiles), chains, parts = tiles_of(problem), chains_of(problem), parts_of(problem)
    row_tasks, vector_tasks = ceil(problem.Cg / row_block), ceil(vectors / vector_block)
    strip = ceil(longest_chain(problem) / ceil(longest_chain(problem) / strip))
    piece = min(ceil(columns / ceil(columns / PIECE)), strip)
    pitch = (piece * SIDE + TILE.columns.span - SIDE) * vector
    input_plane = strip * row_block * item + PLANE_PADDING
    grad_plane = strip * vector_block * vector + PLANE_PADDING
    sum_plane = row_block * vector_block * vector + PLANE_PADDING
    inputs_at = lines(max(TILE.rows.span * pitch, W * vector))
    grads_at = lines(inputs_at + TILE.planes * input_plane)
    sums_at = lines(grads_at + TILE.planes * grad_plane)
    worker_bytes = worker_span(sums_at + TILE.planes * sum_plane)
    totals_at = max(threads, 1) * worker_bytes
    totals_bytes = lines(problem.R * problem.S * row_block * vector_block * vector)
    kept = parts * problem.groups * row_tasks * vector_tasks if parts > 1 else max(threads, 1)
    numbers = (
        rows, columns, tiles, chains, parts, strip, piece, row_block, row_tasks, vectors, vector_block, vector_tasks,
        problem.R * problem.S, pitch, input_plane, grad_plane, sum_plane, inputs_at, grads_at, sums_at, worker_bytes,
        totals_at, totals_bytes,
    )  # fmt: skip
    return numbers, totals_at + kept * totals_bytes + 64
