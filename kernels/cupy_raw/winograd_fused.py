"""Winograd F(2 x 2, 3 x 3) in one kernel: a tile is transformed, multiplied and finished without leaving its block.

winograd_fused.cu tells the idea; this file cuts the outputs into tiles, hands the matrices over, and launches.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from ..numba_cpu import winograd_matrices
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

MINIMAL = 2  # outputs of a tile each way
PRODUCTS = (MINIMAL + 2) ** 2  # of a tile, a filter and a channel
THREADS = 256  # of every block
DEPTH = 4  # channels of a stage
FILTERS = {4: 64, 8: 32}  # of a block, by the bytes of a sum
TILES = {4: 32, 8: 16}  # of a block

TILING = np.dtype(
    [
        ("tiles", "i8"),
        ("down", "i4"),
        ("across", "i4"),
        ("tile_blocks", "i4"),
        ("filter_blocks", "i4"),
        ("stages", "i4"),
    ],
    align=True,
)

SLOTS_PER_MULTIPLY_ADD = 0.2  # beside the multiply-add itself, in the main loop
WAITING = 2.0  # times as long as its issue slots: assumed
THREAD_SLOTS = 2000  # of each thread of a block beside: addresses, the first stage's wait, the sums' way to y

passes = ("forward",)


class Tiling(NamedTuple):
    """How the outputs are cut into tiles, and these into blocks; see winograd_fused.cu."""

    tiles: int
    down: int
    across: int
    tile_blocks: int
    filter_blocks: int
    stages: int
    packed_bytes: int

    def blocks(self, problem):
        return problem.groups * self.tile_blocks * self.filter_blocks


@lru_cache(maxsize=4096)
def tiling_of(problem):
    item = problem.accumulate.itemsize
    down, across = ceil_div(problem.P, MINIMAL), ceil_div(problem.Q, MINIMAL)
    tiles = problem.N * down * across
    filter_blocks = ceil_div(problem.Kg, FILTERS[item])
    phases = THREADS // (DEPTH * TILES[item])
    stages = ceil_div(problem.Cg, DEPTH * phases) * phases
    packed = problem.groups * filter_blocks * stages * PRODUCTS * DEPTH * FILTERS[item] * item
    return Tiling(tiles, down, across, ceil_div(tiles, TILES[item]), filter_blocks, stages, packed)


def why_not(problem, device):
    reasons = []
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    for name in ("stride", "dilation"):
        if getattr(problem, name) != (1, 1):
            reasons.append(f"{name} 1 only, got {getattr(problem, name)}")
    return reasons + size_reasons(problem) + grid_reasons(problem, tiling_of(problem))


def grid_reasons(problem, tiling):
    grids = {"multiply": tiling.blocks(problem), "transform the filters": packing_blocks(problem, tiling)}
    return [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def packing_blocks(problem, tiling):
    """A thread for every filter and channel, those that pad a block or a stage too."""
    return ceil_div(tiling.packed_bytes // (PRODUCTS * problem.accumulate.itemsize), THREADS)


def workspace_bytes(problem, device):
    return tiling_of(problem).packed_bytes


def predicted_seconds(problem, device):
    """The busiest SM's blocks, and the filters' way to the workspace and back."""
    tiling, item = tiling_of(problem), problem.accumulate.itemsize
    macs = PRODUCTS * FILTERS[item] * TILES[item] * tiling.stages * DEPTH
    slots = macs * (SLOTS_PER_MULTIPLY_ADD + cost.multiply_slots(problem, device)) + THREAD_SLOTS * THREADS
    multiply = WAITING * cost.block_seconds(device, tiling.blocks(problem), THREADS, slots)
    return max(multiply, cost.memory_seconds(problem, device, 2 * tiling.packed_bytes)) + 2 * cost.LAUNCH


def sources(problem, device, wide=False, adjacent="NONE"):
    """The two kernels: transform the filters, and everything else."""
    return sources_of(problem, wide, adjacent)


@lru_cache(maxsize=4096)
def sources_of(problem, wide, adjacent):
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (*matrix_constants(MINIMAL), ("ADJACENT", adjacent))
    return tuple(
        CudaSource("winograd_fused.cu", function, constants) for function in ("transform_filters", "conv2d_winograd")
    )


@cache
def matrix_constants(minimal):
    """-D constants of winograd.cuh."""
    matrices = {
        "INPUT_MATRIX": winograd_matrices.input_matrix(minimal),
        "FILTER_MATRIX": winograd_matrices.filter_matrix(minimal),
        "OUTPUT_MATRIX": winograd_matrices.output_matrix(minimal),
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


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    tiling = tiling_of(problem)
    struct, part = problem_struct(problem, x, w, y, bias, residual), tiling_struct(tiling)
    pack, multiply = sources_of(problem, is_wide(problem, x, w, y, residual), adjacent_in(x))
    launch(pack, packing_blocks(problem, tiling), THREADS, (w, workspace, struct, part), stream=stream)
    arguments = (x, workspace, y, bias, residual, struct, part)
    launch(multiply, tiling.blocks(problem), THREADS, arguments, stream=stream)


@lru_cache(maxsize=4096)
def tiling_struct(tiling):
    """`struct Tiling`."""
    struct = np.zeros((), TILING)
    for name in TILING.names:
        struct[name] = getattr(tiling, name)
    struct.flags.writeable = False
    return struct
