"""im2col: every window becomes a column of a matrix, then one register-tiled, double-buffered matrix product.

im2col.cu and gemm.cu tell the idea; this file slices the outputs and launches them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .cut import round_up
from .implicit_gemm import aligned
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants
from .register_tile import DEPTH, EACH, tile_of

TILES = ((16, 16), (8, 16), (4, 16))  # filters x pixels of gemm.cu, in the 8 (float64: 4) that a thread has of each
THREADS, CHANNELS_PER_THREAD = 256, 8  # as in im2col.cu
COLUMNS_BYTES = 64 << 20  # enough pixels for every SM of the largest cards at 576 rows of reduction
WAITING = cost.waiting("cupy_raw.im2col")
# Beside the multiply-add itself, in the GEMM's main loop: see gemm.cu; in a tile of half a warp's pixels.
SLOTS_PER_MULTIPLY_ADD, NARROW_SLOTS = 0.1, 0.22

SLICE = np.dtype([("first", "i8"), ("pixels", "i4"), ("padded", "i4"), ("depth", "i4"), ("filters", "i4")], align=True)

passes = ("forward",)


class Matrices(NamedTuple):
    """The padded sizes of both matrices, and how the outputs are sliced; see gemm_layout.cuh."""

    depth: int
    filters: int
    tile_k: int
    tile_m: int
    threads: int  # of a tile
    pixels: int  # most in one slice, a multiple of tile_m
    packed_bytes: int
    columns_bytes: int


@lru_cache(maxsize=1024)
def matrices(problem, device):
    return min(possible_matrices(problem, TILES), key=lambda sizes: gemm_seconds(problem, device, sizes))


def possible_matrices(problem, tiles):
    return [matrices_of(problem, tile_of(problem, lanes)) for lanes in tiles]


def matrices_of(problem, tile):
    itemsize = problem.accumulate.itemsize
    depth, filters = round_up(problem.reduction, DEPTH), round_up(problem.Kg, tile.filters)
    pixel_bytes = problem.groups * depth * itemsize
    wanted = round_up(problem.N * problem.P * problem.Q, tile.pixels)
    affordable = max(COLUMNS_BYTES // pixel_bytes // tile.pixels, 1) * tile.pixels
    pixels = min(wanted, affordable)
    packed = round_up(problem.groups * depth * filters * itemsize, 64)
    columns = pixels * pixel_bytes
    return Matrices(depth, filters, tile.filters, tile.pixels, tile.threads, pixels, packed, columns)


def gemm_seconds(problem, device, sizes):
    """All slices together: the matrix product of every output."""
    blocks = gemm_blocks(problem, sizes, round_up(problem.N * problem.P * problem.Q, sizes.tile_m))
    return cost.block_seconds(device, blocks, sizes.threads, block_slots(problem, device, sizes))


def block_slots(problem, device, sizes):
    """Issue slots of a block of the matrix product, over all its threads, in its loop."""
    macs = sizes.tile_k * sizes.tile_m
    is_narrow = macs < sizes.threads * EACH[problem.accumulate.itemsize] ** 2
    beside = NARROW_SLOTS if is_narrow else SLOTS_PER_MULTIPLY_ADD
    return macs * sizes.depth * (beside + cost.multiply_slots(problem, device))


def why_not(problem, device):
    reasons = size_reasons(problem)
    sizes = matrices(problem, device)
    packing = ceil_div(problem.groups * sizes.depth * sizes.filters, THREADS)
    for name, blocks in (("multiply", gemm_blocks(problem, sizes, sizes.pixels)), ("pack the weights", packing)):
        if blocks > MAX_GRID[0]:
            reasons.append(f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}")
    return reasons


def gemm_blocks(problem, sizes, padded):
    return problem.groups * (padded // sizes.tile_m) * (sizes.filters // sizes.tile_k)


def workspace_bytes(problem, device):
    sizes = matrices(problem, device)
    return sizes.packed_bytes + sizes.columns_bytes


def predicted_seconds(problem, device):
    """Packing, then per slice: writing and reading the columns, and whole waves of the GEMM's blocks."""
    sizes = matrices(problem, device)
    total = problem.N * problem.P * problem.Q
    slices = ceil_div(total, sizes.pixels)
    columns = round_up(total, sizes.tile_m) * problem.groups * sizes.depth * problem.accumulate.itemsize
    moved = cost.memory_seconds(problem, device, 2 * columns + 2 * sizes.packed_bytes)
    return WAITING * gemm_seconds(problem, device, sizes) + moved + (1 + 2 * slices) * cost.LAUNCH


def sources(problem, device, wide=False, run=1):
    """The three kernels: pack the weights, gather the columns, multiply."""
    return sources_of(problem, matrices(problem, device), wide, run)


@lru_cache(maxsize=4096)
def sources_of(problem, sizes, wide, run):
    types = (*type_constants(problem, wide), ("FILTER_RUN", run))
    copying = types + window_constants(problem)
    multiplying = (*types, *store_constants(problem), ("TILE_K", sizes.tile_k), ("TILE_M", sizes.tile_m))
    return (
        CudaSource("im2col.cu", "pack_weights", copying),
        CudaSource("im2col.cu", "gather_columns", copying),
        CudaSource("gemm.cu", "conv2d_gemm", multiplying),
    )


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    sizes = matrices(problem, device)
    struct = problem_struct(problem, x, w, y, bias, residual)
    packed, columns = workspace[: sizes.packed_bytes], workspace[sizes.packed_bytes :]
    filters = filters_at_once(problem, y, residual)
    pack, gather, gemm = sources(problem, device, is_wide(problem, x, w, y, residual), filters)

    total = problem.N * problem.P * problem.Q
    blocks = ceil_div(problem.groups * sizes.depth * sizes.filters, THREADS)
    launch(pack, blocks, THREADS, (w, packed, struct, slice_struct(sizes, 0, total)), stream=stream)
    for first in range(0, total, sizes.pixels):
        part = slice_struct(sizes, first, total)
        padded = int(part["padded"])
        chunks = min(ceil_div(problem.C, CHANNELS_PER_THREAD), MAX_GRID[1])
        launch(gather, (ceil_div(padded, THREADS), chunks), THREADS, (x, columns, struct, part), stream=stream)
        arguments = (packed, columns, y, bias, residual, struct, part)
        launch(gemm, gemm_blocks(problem, sizes, padded), sizes.threads, arguments, stream=stream)


def filters_at_once(problem, *images):
    """How many filters of a pixel leave as one store: a vector of sums where they lie side by side, or one."""
    count = 16 // problem.accumulate.itemsize
    together = problem.Kg % count == 0 and all(
        image.strides[1] == image.itemsize and aligned(image, count * image.itemsize, (0, 2, 3))
        for image in images
        if image is not None
    )
    return count if together else 1


@lru_cache(maxsize=4096)
def slice_struct(sizes, first, total):
    """`struct Slice` for the outputs from `first` on."""
    part = np.zeros((), SLICE)
    part["first"], part["pixels"] = first, min(sizes.pixels, total - first)
    part["padded"] = round_up(int(part["pixels"]), sizes.tile_m)
    part["depth"], part["filters"] = sizes.depth, sizes.filters
    part.flags.writeable = False
    return part
