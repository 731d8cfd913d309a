"""How the CPU weight gradient is cut into tasks, slabs and chunks, and in which of four ways x is copied."""

from functools import lru_cache
from itertools import product
from math import ceil

import numpy as np
from numba import from_dtype

from . import target
from .call import CALL_DTYPE
from .microkernel import VECTORS, panel_rows, tile_rows
from .threads import lines, worker_span
from .vectors import lanes

SHIFTED, COLUMNS, WINDOWS, BATCHED = range(4)  # how x is copied

# What a task does for one output pixel, in cycles: to be weighed against each other, not to be believed.
TRANSPOSED = 1.0  # for each number of grad_y: moved to pixel-major
READ, COPIED, COPIED_ROW = 0.5, 0.5, 20  # for each number of x, each one copied, and each row of those
COPIED_ROW_OF_ALL = 3  # a row, where it is copied for all channels at once
NARROW = (0, 1.3, 1.05, 1.0)  # times as long as its multiply-adds, by the vectors of a panel
UNEVEN = 0.1  # of a task: what the threads wait for the last one

SHORT = 8  # vectors of a row: such rows are copied for all channels at once
CHUNK_PIXELS = 128  # after which sums may wait
FEW_PIXELS = 64  # of a map; with so few, several images are multiplied at a time
CHAIN = 8_192  # pixels, about, whose products are added one after the other

CUTS = (
    "mode", "copies_h", "copies_w", "taps", "rows", "row_block", "row_tasks", "vectors", "vector_block",
    "vector_tasks", "pitch", "slab", "slab_rows", "plane", "chunk", "chain_images", "chain_rows", "batch",
    "grad_at", "sums_at", "totals_at", "worker_bytes",
)  # fmt: skip
FOUND = ("in_place", "run_q", "run_pitch", "run_rows")  # by looking at the arrays
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS + FOUND]))
SLACK = 16  # numbers, or pixels, behind what is copied: the last vector, or block of a transposition, may reach there


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, and the bytes of workspace in all."""
    item, mode = problem.accumulate.itemsize, mode_of(problem)
    vectors = ceil(problem.Kg / lanes(problem.accumulate))
    tallest = max(tile_rows(width) for width in (1, 2, 3))
    copies_h, copies_w, met, rows, taps = copies_of(problem, mode)
    row_block, vector_block = blocks_of(problem, threads, mode, met, rows, taps, vectors, tallest)

    pitch = problem.Q + (reach(problem, 1) if mode == SHIFTED else 0)
    below = 0 if mode in (WINDOWS, BATCHED) else reach(problem, 0)
    slab = target.cache_bytes(2) // 2 // (row_block * met * pitch * item) - below
    slab = ceil(problem.P / ceil(problem.P / max(1, min(problem.P, slab))))
    batch = 1
    if mode == BATCHED:
        slab, batch = problem.P, images_at_a_time(problem, row_block)
    plane = batch * (slab + below) * pitch + lanes(problem.accumulate)  # its last vector may reach that far
    vector = lanes(problem.accumulate) * item
    chunk = target.cache_bytes(1) * 3 // 4 // vector
    grad_at = lines(
        (1 if mode in (WINDOWS, BATCHED) else copies_h * copies_w) * row_block * plane * item + SLACK * item
    )
    sums_at = grad_at + lines((chunk + SLACK * VECTORS) * vector)
    totals_at = sums_at + lines(vector_block * row_block * taps * vector)
    worker_bytes = worker_span(2 * totals_at - sums_at)
    numbers = (
        mode, copies_h, copies_w, taps, rows, row_block, ceil(rows / row_block), vectors, vector_block,
        ceil(vectors / vector_block), pitch, slab, slab + below, plane, chunk, *chain_of(problem), batch,
        grad_at, sums_at, totals_at, worker_bytes,
    )  # fmt: skip
    return numbers, max(threads, 1) * worker_bytes + 64


def images_at_a_time(problem, row_block):
    """As many as let what is copied fit half of the L2 cache."""
    image = row_block * problem.P * problem.Q * problem.accumulate.itemsize
    return max(1, min(problem.N, target.cache_bytes(2) // 2 // image))


def chain_of(problem):
    """How many images, or how many rows of one, are added up before the sums are begun anew; whatever the threads."""
    pixels = problem.P * problem.Q
    if pixels <= CHAIN:
        return CHAIN // pixels, problem.P
    return 1, ceil(problem.P / round(pixels / CHAIN))


def mode_of(problem) -> int:
    """How x is copied."""
    if problem.Cg < panel_rows():
        return WINDOWS
    dense = problem.R * problem.S == 1 and problem.stride == (1, 1)  # x is read in place
    if problem.N > 1 and problem.P * problem.Q <= FEW_PIXELS and not dense:
        return BATCHED
    return COLUMNS if reach(problem, 1) > 0.08 * problem.Q and problem.Kg >= 64 else SHIFTED


def copies_of(problem, mode):
    """Copies of a channel by row and by column, those of them that a tap reads, rows of tiles in all, and taps."""
    R, S, (stride_h, stride_w) = problem.R, problem.S, problem.stride
    if mode in (WINDOWS, BATCHED):
        return R, S, 1, problem.Cg * R * S, 1
    met_h = len({r * problem.dilation[0] % stride_h for r in range(R)})
    if mode == COLUMNS:
        return stride_h, S, met_h * S, problem.Cg, R * S
    met_w = len({s * problem.dilation[1] % stride_w for s in range(S)})
    return stride_h, stride_w, met_h * met_w, problem.Cg, R * S


def blocks_of(problem, threads, mode, met, rows, taps, vectors, tallest):
    """Rows and vectors of a task: the split that is predicted to be the fastest."""

    def blocks(count, least):
        """Every size of block that makes another number of them, up to several for each thread."""
        units = ceil(count / least)
        return sorted({ceil(units / parts) * least for parts in range(1, min(units, 4 * threads) + 1)}, reverse=True)

    def cycles(row_block, vector_block):
        panels = ceil(vector_block / VECTORS)
        narrow = NARROW[ceil(vector_block / panels)]
        multiplied = row_block * taps * vector_block / 2 * narrow
        read = 1 if mode in (WINDOWS, BATCHED) else problem.stride[0] * problem.stride[1]
        a_row = COPIED_ROW_OF_ALL if mode == BATCHED else COPIED_ROW
        copied = vector_block * lanes(problem.accumulate) * TRANSPOSED
        if not may_lie_in_place(problem, mode):
            copied += row_block * (read * READ + met * (COPIED + a_row / problem.Q))
        tasks = problem.groups * ceil(rows / row_block) * ceil(vectors / vector_block)
        return (ceil(tasks / threads) + UNEVEN) * (multiplied + copied)

    row_blocks = blocks(rows, tallest)
    if mode == BATCHED:  # enough pixels at a time for a chunk, with what is copied in half of the L2 cache
        enough = min(problem.N, ceil(CHUNK_PIXELS / (problem.P * problem.Q)))
        row_blocks = [block for block in row_blocks if images_at_a_time(problem, block) >= enough] or row_blocks[-1:]
    return min(product(row_blocks, blocks(vectors, 1)), key=lambda sizes: cycles(*sizes))


def reach(problem, axis) -> int:
    """How many whole strides the last tap lies from the first."""
    window = (problem.R, problem.S)[axis]
    return (window - 1) * problem.dilation[axis] // problem.stride[axis]


def may_lie_in_place(problem, mode) -> bool:
    """Whether x needs no copy, if its pixels lie one after the other: the rows that fill up the last tile included."""
    plain = problem.stride == (1, 1) and problem.padding == ((0, 0), (0, 0)) and mode == SHIFTED
    plain = plain and problem.layout == "NCHW" and problem.dtype == problem.accumulate
    return plain and problem.Cg % max(tile_rows(width) for width in (1, 2, 3)) == 0


def lies_in_place(problem, mode, x) -> bool:
    """Whether x can be read as if it were its own copy."""
    item = problem.accumulate.itemsize
    dense = x.strides[2:] == (problem.W * item, item)
    return dense and may_lie_in_place(problem, mode)
