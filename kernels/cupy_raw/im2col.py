"""im2col: every window becomes a column of a matrix, then one register-tiled, double-buffered matrix product.

im2col.cu and gemm.cu tell the idea; this file slices the outputs and launches them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

DEPTH = 8  # reduction steps per stage, as in gemm_layout.cuh
EACH = {4: 8, 8: 4}  # filters, and pixels, per thread of gemm.cu, by the bytes of a sum
THREADS, CHANNELS_PER_THREAD = 256, 8  # as in im2col.cu
COLUMNS_BYTES = 64 << 20  # enough pixels for every SM of the largest cards at 576 rows of reduction
WAITING = cost.waiting("cupy_raw.im2col")
SLOTS_PER_MULTIPLY_ADD = 0.1  # beside the multiply-add itself, in the GEMM's main loop: see gemm.cu

SLICE = np.dtype([("first", "i8"), ("pixels", "i4"), ("padded", "i4"), ("depth", "i4"), ("filters", "i4")], align=True)

passes = ("forward",)


class Matrices(NamedTuple):
    """The padded sizes of both matrices, and how the outputs are sliced; see gemm_layout.cuh."""

    depth: int
    filters: int
    tile_k: int
    tile_m: int
    each: int
    pixels: int  # most in one slice, a multiple of tile_m
    packed_bytes: int
    columns_bytes: int


@lru_cache(maxsize=1024)
def matrices(problem, device):
    return min(possible_matrices(problem), key=lambda sizes: gemm_seconds(problem, device, sizes.tile_k, sizes.tile_m))


def possible_matrices(problem):
    """For tiles of each size."""
    each = EACH[problem.accumulate.itemsize]
    return [matrices_of(problem, each, lanes * each) for lanes in (16, 8, 4)]


def matrices_of(problem, each, tile_k):
    itemsize, tile_m = problem.accumulate.itemsize, 16 * each
    depth, filters = round_up(problem.reduction, DEPTH), round_up(problem.Kg, tile_k)
    pixel_bytes = problem.groups * depth * itemsize
    wanted = round_up(problem.N * problem.P * problem.Q, tile_m)
    affordable = max(COLUMNS_BYTES // pixel_bytes // tile_m, 1) * tile_m
    pixels = min(wanted, affordable)
    packed = round_up(problem.groups * depth * filters * itemsize, 64)
    return Matrices(depth, filters, tile_k, tile_m, each, pixels, packed, pixels * pixel_bytes)


def gemm_seconds(problem, device, tile_k, tile_m):
    """All slices together: the matrix product of every output."""
    pixels = ceil_div(problem.N * problem.P * problem.Q, tile_m)
    blocks = problem.groups * pixels * ceil_div(problem.Kg, tile_k)
    threads = tile_k * tile_m // EACH[problem.accumulate.itemsize] ** 2
    each = SLOTS_PER_MULTIPLY_ADD + cost.multiply_slots(problem, device)
    return cost.block_seconds(device, blocks, threads, tile_k * tile_m * round_up(problem.reduction, DEPTH) * each)


def round_up(size, multiple):
    return ceil_div(size, multiple) * multiple


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
    return WAITING * gemm_seconds(problem, device, sizes.tile_k, sizes.tile_m) + moved + (1 + 2 * slices) * cost.LAUNCH


def sources(problem, device, wide=False):
    """The three kernels: pack the weights, gather the columns, multiply."""
    return sources_of(problem, matrices(problem, device), wide)


@lru_cache(maxsize=4096)
def sources_of(problem, sizes, wide):
    types = type_constants(problem, wide)
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
    pack, gather, gemm = sources(problem, device, is_wide(problem, x, w, y, residual))

    total = problem.N * problem.P * problem.Q
    blocks = ceil_div(problem.groups * sizes.depth * sizes.filters, THREADS)
    launch(pack, blocks, THREADS, (w, packed, struct, slice_struct(sizes, 0, total)), stream=stream)
    for first in range(0, total, sizes.pixels):
        part = slice_struct(sizes, first, total)
        padded = int(part["padded"])
        chunks = min(ceil_div(problem.C, CHANNELS_PER_THREAD), MAX_GRID[1])
        launch(gather, (ceil_div(padded, THREADS), chunks), THREADS, (x, columns, struct, part), stream=stream)
        arguments = (packed, columns, y, bias, residual, struct, part)
        threads = sizes.tile_k // sizes.each * (sizes.tile_m // sizes.each)
        launch(gemm, gemm_blocks(problem, sizes, padded), threads, arguments, stream=stream)


@lru_cache(maxsize=4096)
def slice_struct(sizes, first, total):
    """`struct Slice` for the outputs from `first` on."""
    part = np.zeros((), SLICE)
    part["first"], part["pixels"] = first, min(sizes.pixels, total - first)
    part["padded"] = round_up(int(part["pixels"]), sizes.tile_m)
    part["depth"], part["filters"] = sizes.depth, sizes.filters
    part.flags.writeable = False
    return part
