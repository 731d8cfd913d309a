"""Winograd F(2 x 2, 3 x 3) in one kernel: a tile is transformed, multiplied and finished without leaving its block.

winograd_fused.cu tells the idea; this file cuts the outputs into tiles, hands the matrices over, and launches.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from ..numba_cpu import winograd_matrices
from .implicit_gemm import aligned
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

MINIMAL = 2  # outputs of a tile each way
PRODUCTS = (MINIMAL + 2) ** 2  # of a tile, a filter and a channel
THREADS = 256  # of a block that multiplies
SMALL = 64  # of one that adds splits
# Of one that transforms filters, a window each, as in winograd_filters.cuh. Multiprocessors share small ones evenly.
WINDOWS, CHUNK = 16, 8
FILTER_THREADS = WINDOWS * CHUNK
DEPTH = 4  # channels of a stage, as in winograd_fused.cu
FILTERS = {4: 64, 8: 32}  # of a block, by the bytes of a sum
TILES = {4: 32, 8: 16}  # of a block
FEWEST_STAGES = 8  # of one split: its prologue and its sums must pay
MOST_SPLITS = 16

TILING = np.dtype(
    [
        ("tiles", "i8"),
        ("down", "i4"),
        ("across", "i4"),
        ("tile_blocks", "i4"),
        ("filter_blocks", "i4"),
        ("stages", "i4"),
        ("split", "i4"),
    ],
    align=True,
)

SLOTS_PER_MULTIPLY_ADD = 0.22  # beside the multiply-add itself, in the main loop
WAITING = cost.waiting("cupy_raw.winograd_fused")  # assumed until it is measured, see `seconds`
THREAD_SLOTS = 1400  # of each thread of a block beside: addresses, the first stage's wait, the sums' way to y

passes = ("forward",)
declined = {
    "weight_grad": "F(3 x 3, 2 x 2) is predicted to take 1.3 times less than cupy_raw.weight_grad for VGG-16, 1.04 to "
    "1.07 times less for ResNet-50, if this kernel's loop waits as long as assumed, which nobody has measured"
}


class Tiling(NamedTuple):
    """How the outputs are cut into tiles, these into blocks, and the channels into splits; see winograd_fused.cu."""

    tiles: int
    down: int
    across: int
    tile_blocks: int
    filter_blocks: int
    stages: int
    split: int
    packed_bytes: int
    partial_bytes: int

    @property
    def splits(self):
        return ceil_div(self.stages, self.split)

    def grid(self, problem):
        return problem.groups * self.tile_blocks * self.filter_blocks, self.splits


@lru_cache(maxsize=4096)
def tiling_for(problem, device):
    """The tiling that is predicted to be the fastest."""
    most = min(stages_of(problem) // FEWEST_STAGES, MOST_SPLITS)
    tilings = [tiling_of(problem, splits) for splits in range(1, max(most, 1) + 1)]
    return min(tilings, key=lambda tiling: seconds(problem, device, tiling))


def tiling_of(problem, splits):
    item = problem.accumulate.itemsize
    down, across = ceil_div(problem.P, MINIMAL), ceil_div(problem.Q, MINIMAL)
    tiles, filter_blocks, stages = problem.N * down * across, ceil_div(problem.Kg, FILTERS[item]), stages_of(problem)
    split = ceil_div(ceil_div(stages, splits), phases_of(problem)) * phases_of(problem)
    packed = problem.groups * filter_blocks * stages * PRODUCTS * DEPTH * FILTERS[item] * item
    splits = ceil_div(stages, split)
    partial = splits * problem.N * problem.K * problem.P * problem.Q * item if splits > 1 else 0
    tile_blocks = ceil_div(tiles, TILES[item])
    return Tiling(tiles, down, across, tile_blocks, filter_blocks, stages, split, packed, partial)


def phases_of(problem):
    """In how many stages each thread has one patch to transform."""
    return THREADS // (DEPTH * TILES[problem.accumulate.itemsize])


def stages_of(problem):
    phases = phases_of(problem)
    return ceil_div(problem.Cg, DEPTH * phases) * phases


def seconds(problem, device, tiling):
    """The busiest SM's blocks, then what splits write and read again.

    Predicted, on an assumption: the implicit product took 1.5 times its issue slots on an H200. Here an SM's one block
    has no other to fill its barriers, and with 128 lanes it wants 20 bytes a cycle from L2, where the implicit product
    wants 8: so another third, until somebody measures it.
    """
    item = problem.accumulate.itemsize
    macs = PRODUCTS * FILTERS[item] * TILES[item] * tiling.split * DEPTH
    slots = macs * (SLOTS_PER_MULTIPLY_ADD + cost.multiply_slots(problem, device)) + THREAD_SLOTS * THREADS
    multiply = cost.block_seconds(device, math.prod(tiling.grid(problem)), THREADS, slots)
    splitting = cost.LAUNCH + cost.passing_seconds(device, tiling.partial_bytes) if tiling.splits > 1 else 0
    return WAITING * multiply + splitting


def why_not(problem, device):
    return window_reasons(problem) + size_reasons(problem) + grid_reasons(problem, tiling_for(problem, device))


def window_reasons(problem):
    """Why its window is none of Winograd's."""
    reasons = []
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    for name in ("stride", "dilation"):
        if getattr(problem, name) != (1, 1):
            reasons.append(f"{name} 1 only, got {getattr(problem, name)}")
    return reasons


def grid_reasons(problem, tiling):
    grids = {
        "multiply": tiling.grid(problem)[0],
        "transform the filters": packing_blocks(problem, tiling),
        "add the splits": summing_blocks(problem),
    }
    return [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def packing_blocks(problem, tiling):
    """A thread for every filter and channel, those that pad a block or a stage too."""
    return tiling.packed_bytes // (PRODUCTS * problem.accumulate.itemsize) // FILTER_THREADS


def summing_blocks(problem):
    return ceil_div(problem.N * problem.K * problem.P * problem.Q, SMALL)


def workspace_bytes(problem, device):
    tiling = tiling_for(problem, device)
    return tiling.packed_bytes + tiling.partial_bytes


def predicted_seconds(problem, device):
    """The filters' transform, and behind it the product: as long as it multiplies, or moves."""
    tiling, weights = tiling_for(problem, device), math.prod(problem.w_shape) * problem.dtype.itemsize
    transform = cost.moving_seconds(device, weights + tiling.packed_bytes)
    moved = cost.memory_seconds(problem, device, tiling.packed_bytes - weights)
    return transform + max(seconds(problem, device, tiling), moved) + 2 * cost.LAUNCH


@lru_cache(maxsize=4096)
def sources_of(problem, wide, adjacent, split, stored, weights="ROWS", in_pairs=False):
    """The kernels: transform the filters, everything else, and add the splits."""
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (*matrix_constants(MINIMAL), ("ADJACENT", adjacent), ("SPLIT", int(split)), ("STORED", stored))
    constants += (("WEIGHTS", weights), ("IN_PAIRS", int(in_pairs)))
    functions = ("transform_filters", "conv2d_winograd", "sum_splits")
    return tuple(CudaSource("winograd_fused.cu", function, constants) for function in functions)


@cache
def matrix_constants(minimal):
    """-D constants of winograd.cuh."""
    axis = winograd_matrices.Axis(minimal, 3)
    matrices = {
        "INPUT_MATRIX": winograd_matrices.input_matrix(axis),
        "FILTER_MATRIX": winograd_matrices.filter_matrix(axis),
        "OUTPUT_MATRIX": winograd_matrices.output_matrix(axis),
    }
    return ("MINIMAL", minimal), *((name, in_braces(matrix)) for name, matrix in matrices.items())


def in_braces(matrix):
    rows = (",".join(repr(float(number)) for number in row) for row in matrix)
    return ",".join(f"{{{row}}}" for row in rows)


def adjacent_in(x):
    """What lies side by side in memory: the channels of a pixel, the pixels of a row, or neither."""
    if x.strides[1] == x.itemsize:
        return "CHANNELS"
    return "PIXELS" if x.strides[3] == x.itemsize else "NONE"


def in_pairs(problem, x):
    """Whether a lane loads its tile's own pixels of a row at once, and has more from the lanes beside."""
    padded_by_one = adjacent_in(x) == "PIXELS" and problem.padding[1][0] == 1 and x.itemsize == 4
    return padded_by_one and pixels_at_once(problem.W, x, (2,)) == 2


def weights_in(w):
    """What lies side by side in a filter: all its numbers, or channels."""
    if w.strides[1:] == (9 * w.itemsize, 3 * w.itemsize, w.itemsize):
        return "ROWS"
    return "CHANNELS" if w.strides[1] == w.itemsize else "NONE"


def stored_at_once(problem, adjacent, split, images):
    """How many pixels of a tile's row leave as one store: to y, or among the sums of splits."""
    if split:
        return 2 if problem.Q % 2 == 0 and adjacent != "CHANNELS" else 1
    return min(pixels_at_once(problem.Q, image, (2,)) for image in images if image is not None)


def pixels_at_once(width, image, counts):
    """How many pixels of a row one load or store may take, of these counts or one; none amid the row's end."""
    item = image.itemsize
    for count in counts if image.strides[3] == item else ():
        if width % count == 0 and aligned(image, min(count * item, 16), (0, 1, 2)):
            return count
    return 1


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    tiling = tiling_for(problem, device)
    struct, part = problem_struct(problem, x, w, y, bias, residual), tiling_struct(tiling)
    packed = workspace[: tiling.packed_bytes]
    partial = workspace[tiling.packed_bytes :] if tiling.partial_bytes else None
    split, wide = tiling.splits > 1, is_wide(problem, x, w, y, residual)
    adjacent = adjacent_in(x)
    stored = stored_at_once(problem, adjacent, split, (y, residual))
    pack, multiply, add = sources_of(problem, wide, adjacent, split, stored, weights_in(w), in_pairs(problem, x))

    launch(pack, packing_blocks(problem, tiling), FILTER_THREADS, (w, packed, struct, part), stream=stream)
    arguments = (x, packed, y, bias, residual, partial, struct, part)
    launch(multiply, tiling.grid(problem), THREADS, arguments, stream=stream)
    if split:
        arguments = (partial, y, bias, residual, struct, np.int32(tiling.splits))
        launch(add, summing_blocks(problem), SMALL, arguments, stream=stream)


@lru_cache(maxsize=4096)
def tiling_struct(tiling):
    """`struct Tiling`."""
    struct = np.zeros((), TILING)
    for name in TILING.names:
        struct[name] = getattr(tiling, name)
    struct.flags.writeable = False
    return struct
