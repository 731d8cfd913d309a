"""How a weight gradient is cut into tiles, and its pixels into splits: the host's side of weight_grad_splits.cuh.

weight_grad.py and weight_grad_direct.py cut so, here and in numba_cuda.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, ceil_div
from .cut import chosen, round_up
from .parameters import size_reasons

DEPTH = 8  # pixels per stage, as in gemm_layout.cuh
EACH = {4: 8, 8: 4}  # filters, and columns, per thread of register_tile.cuh, by the bytes of a sum
WARPS_PER_SM = {256: 16}  # that register_tile.cuh asks the compiler for, by a block's threads; FEWER otherwise
FEWER_WARPS = 12
MOST_SPLITS = 256
PARTIAL_BYTES = 64 << 20  # of sums in the workspace, at most, unless one split has more
DIRECT_BLOCKS_PER_SM = 8  # to have, if the pixels are enough

SPLITS = np.dtype(
    [("pixels", "i8"), ("all_pixels", "i8"), ("filters", "i4"), ("columns", "i4"), ("splits", "i4")], align=True
)


def grid(cut, problem):
    return cut.tiles, cut.splits


def blocks(cut):
    return cut.tiles * cut.splits


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
    tiles: int

    grid, blocks = grid, property(blocks)

    @property
    def blocks_per_sm(self):
        return WARPS_PER_SM.get(self.threads, FEWER_WARPS) * 32 // self.threads


def affordable(cuts):
    """Those whose sums stay within PARTIAL_BYTES, and those that are not split."""
    return [cut for cut in cuts if cut.partial_bytes <= PARTIAL_BYTES or cut.splits == 1]


def fastest(problem, device, tiles, fewest_stages, seconds):
    """Of possible_cuts, what cut.py would choose, by `seconds(problem, device, cut)` and two launches."""
    cuts = possible_cuts(problem, tiles, fewest_stages)
    return chosen(device, {cut: seconds(problem, device, cut) + 2 * cost.LAUNCH for cut in cuts})


def possible_cuts(problem, tiles, fewest_stages):
    """Into one of these tiles, of splits of so many stages and more."""
    each = EACH[problem.accumulate.itemsize]
    return affordable(
        cut_of(problem, tile_k * each, tile_m * each, splits)
        for tile_k, tile_m in tiles
        for splits in possible_splits(problem, fewest_stages)
    )


def possible_splits(problem, fewest_stages):
    """1, and more by about a tenth each time, as long as each split has so many stages."""
    most = min(ceil_div(problem.reduction, DEPTH) // fewest_stages, MOST_SPLITS)
    return sorted({1, *(min(most, math.ceil(1.1**i)) for i in range(59) if most > 0)})


def cut_of(problem, tile_k, tile_m, splits):
    itemsize = problem.accumulate.itemsize
    stages = ceil_div(ceil_div(problem.reduction, DEPTH), splits)
    splits = ceil_div(ceil_div(problem.reduction, DEPTH), stages)
    filters = round_up(problem.Kg, tile_k)
    columns = round_up(problem.Cg * problem.R * problem.S, tile_m)
    partial = splits * problem.groups * filters * columns * itemsize
    threads = tile_k * tile_m // EACH[itemsize] ** 2
    tiles = problem.groups * (columns // tile_m) * (filters // tile_k)
    return Cut(tile_k, tile_m, threads, filters, columns, stages * DEPTH, splits, partial, tiles)


class DirectCut(NamedTuple):
    """How pixels and taps are cut into blocks of one filter and channel; filters, columns: as in `struct Splits`."""

    chunks: int
    filters: int
    columns: int
    pixels: int
    splits: int
    partial_bytes: int

    def grid(self, problem):
        return problem.K * problem.Cg * self.chunks, self.splits


def direct_cut(problem, device, chunks, fewest_pixels):
    """Taps in so many chunks, and as many splits as fill the GPU, none of fewer pixels."""
    wanted = ceil_div(DIRECT_BLOCKS_PER_SM * cost.sm_count(device), problem.K * problem.Cg * chunks)
    splits = max(1, min(wanted, problem.reduction // fewest_pixels, MOST_SPLITS))
    pixels = ceil_div(problem.reduction, splits)
    splits = ceil_div(problem.reduction, pixels)
    columns = problem.Cg * problem.R * problem.S
    partial = splits * problem.K * columns * problem.accumulate.itemsize
    return DirectCut(chunks, problem.Kg, columns, pixels, splits, partial)


class Slots(NamedTuple):
    """Issue slots beside the multiply-adds, counted in the machine code: of a tap, of a pixel, to pass a sum on."""

    tap: int
    pixel: int
    sum: int


def direct_seconds(problem, device, cut, taps, threads, slots, waiting):
    """Of blocks of `threads` with so many taps at once."""
    each = taps * (slots.tap + cost.multiply_slots(problem, device)) + slots.pixel
    of_block = cut.pixels * each + threads * taps * slots.sum
    multiply = waiting * cost.block_seconds(device, math.prod(cut.grid(problem)), threads, of_block)
    return max(multiply, cost.memory_seconds(problem, device, 2 * cut.partial_bytes)) + 2 * cost.LAUNCH


def cut_reasons(problem, cut):
    """Why sizes do not fit the coordinates of the kernels in CUDA C, or a launch."""
    return size_reasons(problem) + launch_reasons(problem, cut)


def launch_reasons(problem, cut):
    blocks = cut.grid(problem)[0]
    return [f"at most {MAX_GRID[0]:,} blocks, this problem has {blocks:,}"] if blocks > MAX_GRID[0] else []


@lru_cache(maxsize=4096)
def splits_struct(problem, cut):
    """`struct Splits`."""
    struct = np.zeros((), SPLITS)
    struct["all_pixels"] = problem.N * problem.P * problem.Q
    for name in ("pixels", "filters", "columns", "splits"):
        struct[name] = getattr(cut, name)
    struct.flags.writeable = False
    return struct
