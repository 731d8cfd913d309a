"""im2col: every window becomes a column of a matrix, then one register-tiled, double-buffered matrix product.

im2col.cu and gemm.cu tell the idea; this file slices the outputs and launches them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .parameters import problem_struct, size_reasons, store_constants, window_constants

DEPTH, EACH = 8, 8  # as in gemm.cu: reduction steps per stage; filters, and pixels, per thread
THREADS, CHANNELS_PER_THREAD = 256, 8  # as in im2col.cu
TILE_M = 128
COLUMNS_BYTES = 64 << 20  # enough pixels for every SM of the largest cards at 576 rows of reduction
MULTIPLY_SHARE = 0.9  # of the GEMM's main loop, see gemm.cu

SLICE = np.dtype([("first", "i8"), ("pixels", "i4"), ("padded", "i4"), ("depth", "i4"), ("filters", "i4")], align=True)

passes = ("forward",)


class Matrices(NamedTuple):
    """The padded sizes of both matrices, and how the outputs are sliced; see gemm_layout.cuh."""

    depth: int
    filters: int
    tile_k: int
    pixels: int  # most in one slice, a multiple of TILE_M
    packed_bytes: int
    columns_bytes: int


def matrices(problem):
    itemsize = problem.accumulate.itemsize
    tile_k = next((tile for tile in (32, 64) if problem.Kg <= tile), 128)
    depth, filters = round_up(problem.reduction, DEPTH), round_up(problem.Kg, tile_k)
    pixel_bytes = problem.groups * depth * itemsize
    wanted = round_up(problem.N * problem.P * problem.Q, TILE_M)
    affordable = max(COLUMNS_BYTES // pixel_bytes // TILE_M, 1) * TILE_M
    pixels = min(wanted, affordable)
    packed = round_up(problem.groups * depth * filters * itemsize, 64)
    return Matrices(depth, filters, tile_k, pixels, packed, pixels * pixel_bytes)


def round_up(size, multiple):
    return ceil_div(size, multiple) * multiple


def why_not(problem, device):
    reasons = size_reasons(problem)
    sizes = matrices(problem)
    packing = ceil_div(problem.groups * sizes.depth * sizes.filters, THREADS)
    for name, blocks in (("multiply", gemm_blocks(problem, sizes, sizes.pixels)), ("pack the weights", packing)):
        if blocks > MAX_GRID[0]:
            reasons.append(f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}")
    return reasons


def gemm_blocks(problem, sizes, padded):
    return problem.groups * (padded // TILE_M) * (sizes.filters // sizes.tile_k)


def workspace_bytes(problem, device):
    sizes = matrices(problem)
    return sizes.packed_bytes + sizes.columns_bytes


def predicted_seconds(problem, device):
    """Packing, then per slice: writing and reading the columns, and whole waves of the GEMM's blocks."""
    sizes = matrices(problem)
    total = problem.N * problem.P * problem.Q
    slices = ceil_div(total, sizes.pixels)
    columns = round_up(total, TILE_M) * problem.groups * sizes.depth * problem.accumulate.itemsize
    macs = sizes.tile_k * TILE_M * sizes.depth
    blocks = gemm_blocks(problem, sizes, min(sizes.pixels, round_up(total, TILE_M)))
    multiply = cost.multiply_seconds(problem, device, blocks, macs, 2, MULTIPLY_SHARE)
    moved = cost.memory_seconds(problem, device, 2 * columns + 2 * sizes.packed_bytes)
    return slices * multiply + moved + (1 + 2 * slices) * cost.LAUNCH


def copy_source(problem, function):
    return CudaSource("im2col.cu", function, window_constants(problem))


def gemm_source(problem, sizes):
    names = ("ELEMENT", "INDEX")
    constants = tuple(pair for pair in window_constants(problem) if pair[0] in names) + store_constants(problem)
    return CudaSource("gemm.cu", "conv2d_gemm", (*constants, ("TILE_K", sizes.tile_k), ("TILE_M", TILE_M)))


def sources(problem):
    copies = (copy_source(problem, "pack_weights"), copy_source(problem, "gather_columns"))
    return (*copies, gemm_source(problem, matrices(problem)))


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    sizes = matrices(problem)
    struct = problem_struct(problem, x, w, y, bias, residual)
    packed, columns = workspace[: sizes.packed_bytes], workspace[sizes.packed_bytes :]
    pack, gather, gemm = sources(problem)

    total = problem.N * problem.P * problem.Q
    blocks = ceil_div(problem.groups * sizes.depth * sizes.filters, THREADS)
    launch(pack, blocks, THREADS, (w, packed, struct, slice_struct(sizes, 0, total)), stream=stream)
    for first in range(0, total, sizes.pixels):
        part = slice_struct(sizes, first, total)
        padded = int(part["padded"])
        chunks = min(ceil_div(problem.C, CHANNELS_PER_THREAD), MAX_GRID[1])
        launch(gather, (ceil_div(padded, THREADS), chunks), THREADS, (x, columns, struct, part), stream=stream)
        arguments = (packed, columns, y, bias, residual, struct, part)
        threads = sizes.tile_k // EACH * (TILE_M // EACH)
        launch(gemm, gemm_blocks(problem, sizes, padded), threads, arguments, stream=stream)


def slice_struct(sizes, first, total):
    """`struct Slice` for the outputs from `first` on."""
    part = np.zeros((), SLICE)
    part["first"], part["pixels"] = first, min(sizes.pixels, total - first)
    part["padded"] = round_up(int(part["pixels"]), TILE_M)
    part["depth"], part["filters"] = sizes.depth, sizes.filters
    return part
