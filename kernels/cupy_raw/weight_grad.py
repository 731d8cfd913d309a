"""Weight gradient as an implicit matrix product over the output pixels, in two steps without atomics.

weight_grad.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .parameters import is_wide, problem_struct, size_reasons, type_constants, window_constants

DEPTH = 8  # pixels per stage, as in gemm_layout.cuh
EACH = {4: 8, 8: 4}  # filters, and columns, per thread of register_tile.cuh, by the bytes of a sum
THREADS = 256  # of finish_weight_grad
TILES = ((16, 16), (16, 8), (8, 16), (8, 8))  # filters x columns, in EACH
FEWEST_STAGES = 32  # of one split: its prologue and its sums must pay
MOST_SPLITS = 256
PARTIAL_BYTES = 64 << 20  # of sums in the workspace, at most, unless one split has more

SPLITS = np.dtype(
    [("pixels", "i8"), ("all_pixels", "i8"), ("filters", "i4"), ("columns", "i4"), ("splits", "i4")], align=True
)

SLOTS_PER_MULTIPLY_ADD = 0.25  # beside the multiply-add itself, in the main loop
WAITING = cost.waiting("cupy_raw.weight_grad", like="cupy_raw.implicit_gemm")
THREAD_SLOTS = 600  # of each thread of a block beside: addresses, the first stage's wait, the store

passes = ("weight_grad",)


class Cut(NamedTuple):
    """How the product is cut into blocks; see weight_grad.cu. filters, columns: of one group, in whole tiles; pixels:
    of one split.
    """

    tile_k: int
    tile_m: int
    threads: int
    filters: int
    columns: int
    pixels: int
    splits: int
    partial_bytes: int

    def grid(self, problem):
        return problem.groups * (self.columns // self.tile_m) * (self.filters // self.tile_k), self.splits


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return fastest(problem, device, TILES, seconds)


def fastest(problem, device, tiles, seconds):
    """The cut into one of these tiles that is predicted to take the fewest `seconds(problem, device, cut)`."""
    each = EACH[problem.accumulate.itemsize]
    cuts = [
        cut_of(problem, tile_k * each, tile_m * each, splits)
        for tile_k, tile_m in tiles
        for splits in possible_splits(problem)
    ]
    affordable = [cut for cut in cuts if cut.partial_bytes <= PARTIAL_BYTES or cut.splits == 1]
    return min(affordable, key=lambda cut: seconds(problem, device, cut))


def possible_splits(problem):
    """1, and more by about a tenth each time, as long as each split has FEWEST_STAGES."""
    most = min(ceil_div(problem.reduction, DEPTH) // FEWEST_STAGES, MOST_SPLITS)
    return sorted({1, *(min(most, math.ceil(1.1**i)) for i in range(59) if most > 0)})


def cut_of(problem, tile_k, tile_m, splits):
    itemsize = problem.accumulate.itemsize
    stages = ceil_div(ceil_div(problem.reduction, DEPTH), splits)
    splits = ceil_div(ceil_div(problem.reduction, DEPTH), stages)
    filters = round_up(problem.Kg, tile_k)
    columns = round_up(problem.Cg * problem.R * problem.S, tile_m)
    partial = splits * problem.groups * filters * columns * itemsize
    threads = tile_k * tile_m // EACH[itemsize] ** 2
    return Cut(tile_k, tile_m, threads, filters, columns, stages * DEPTH, splits, partial)


def round_up(size, multiple):
    return ceil_div(size, multiple) * multiple


def seconds(problem, device, cut):
    """The busiest SM's blocks, then what the splits write and read again."""
    macs = cut.tile_k * cut.tile_m * cut.pixels
    slots = macs * (SLOTS_PER_MULTIPLY_ADD + cost.multiply_slots(problem, device)) + THREAD_SLOTS * cut.threads
    multiply = cost.block_seconds(device, math.prod(cut.grid(problem)), cut.threads, slots)
    return WAITING * multiply + cost.memory_seconds(problem, device, 2 * cut.partial_bytes)


def why_not(problem, device):
    return cut_reasons(problem, cut_for(problem, device))


def cut_reasons(problem, cut):
    """Why sizes do not fit the kernels' coordinates or a launch."""
    reasons, blocks = size_reasons(problem), cut.grid(problem)[0]
    if blocks > MAX_GRID[0]:
        reasons.append(f"at most {MAX_GRID[0]:,} blocks, this problem has {blocks:,}")
    return reasons


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device)) + 2 * cost.LAUNCH


def sources(problem, device, wide=False):
    """The kernels: multiply, and add the splits."""
    return sources_of(problem, cut_for(problem, device), wide)


@lru_cache(maxsize=4096)
def sources_of(problem, cut, wide):
    constants = type_constants(problem, wide) + window_constants(problem)
    tile = (("TILE_K", cut.tile_k), ("TILE_M", cut.tile_m))
    multiply = CudaSource("weight_grad.cu", "conv2d_weight_grad", constants + tile)
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", constants)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut = cut_for(problem, device)
    kernels = sources_of(problem, cut, is_wide(problem, x, grad_w, grad_y, None))
    launch_both(problem, cut, cut.threads, kernels, x, grad_y, grad_w, workspace, stream)


def launch_both(problem, cut, threads, kernels, x, grad_y, grad_w, workspace, stream):
    """The two steps: a split's sums into the workspace, by blocks of `threads`; then the splits added."""
    multiply, finish = kernels
    struct, part = problem_struct(problem, x, grad_w, grad_y, None, None), splits_struct(problem, cut)
    launch(multiply, cut.grid(problem), threads, (x, grad_y, workspace, struct, part), stream=stream)
    weights = problem.K * problem.Cg * problem.R * problem.S
    launch(finish, ceil_div(weights, THREADS), THREADS, (workspace, grad_w, struct, part), stream=stream)


@lru_cache(maxsize=4096)
def splits_struct(problem, cut):
    """`struct Splits`."""
    struct = np.zeros((), SPLITS)
    struct["all_pixels"] = problem.N * problem.P * problem.Q
    for name in ("pixels", "filters", "columns", "splits"):
        struct[name] = getattr(cut, name)
    struct.flags.writeable = False
    return struct
