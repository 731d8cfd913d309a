"""Depthwise convolution: one window for each channel, image filters too. depthwise.cu tells the idea.

depthwise_tiles.py cuts the planes into tiles; this file launches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .depthwise_tiles import grid_reasons, seconds, shared_words, staging, tile_for, too_large, whole_rows
from .implicit_gemm import address_of
from .parameters import (
    is_wide,
    problem_struct,
    size_reasons,
    store_constants,
    type_constants,
    window_constants,
)

passes = ("forward",)

DIVISOR = np.dtype([("divisor", "u4"), ("multiplier", "u4")])
PITCHES = np.dtype([("pieces", DIVISOR), ("plane_size", DIVISOR), ("width", "i4"), ("row", "i4"), ("plane", "i4")])
SIZES = ("planes", "strips", "columns", "steps", "across_p", "all_planes", "outputs_at", "weights_at")
TILE = np.dtype(
    [*((name, "i4") for name in SIZES), ("by_columns", DIVISOR), ("by_strips", DIVISOR), ("pitches", PITCHES)]
)


def why_not(problem, device):
    if problem.Cg != 1:
        return [f"takes one channel per group (groups = C); this problem has {problem.Cg}"]
    reasons, tile = size_reasons(problem), tile_for(problem, device)
    if tile is None:
        return [*reasons, too_large(problem)]
    return reasons + grid_reasons(problem, tile)


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    return max(seconds(problem, device, tile_for(problem, device)), cost.memory_seconds(problem, device)) + cost.LAUNCH


def source(problem, device, wide=False):
    """The kernel for arrays without gaps."""
    tile = tile_for(problem, device)
    return source_of(problem, tile, wide, staging(problem, tile, True), whole_rows(problem, tile))


@lru_cache(maxsize=4096)
def source_of(problem, tile, wide, staging, side_by_side):
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (("STAGING", staging), ("SIDE", tile.side), ("SHARED_WORDS", shared_words(problem, tile)))
    constants += (("ROWS", tile.rows), ("SEVERAL", int(tile.planes > 1)), ("FILTERS", tile.filters))
    constants += (("TURNS", tile.turns),)
    constants += (("SIDE_BY_SIDE", int(side_by_side)), ("DESCENDS", int(tile.steps > 1)))
    return CudaSource("depthwise.cu", "conv2d_depthwise", constants)


def outputs_side_by_side(problem, tile, y, residual):
    """Whether a block's outputs lie side by side in y, and in residual."""
    together = is_contiguous(problem, y) and (residual is None or is_contiguous(problem, residual))
    return together and whole_rows(problem, tile)


def is_contiguous(problem, array):
    """Whether `array`, N C H W whatever its memory order, lies in memory without gaps, in the problem's layout."""
    expected = array.itemsize
    for axis in (3, 2, 1, 0) if problem.layout == "NCHW" else (1, 3, 2, 0):
        if array.shape[axis] > 1 and array.strides[axis] != expected:
            return False
        expected *= array.shape[axis]
    return True


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y."""
    tile = tile_for(problem, device)
    how = staging(problem, tile, is_contiguous(problem, x), address_of(x) % 16 == 0)
    together = outputs_side_by_side(problem, tile, y, residual)
    kernel = source_of(problem, tile, is_wide(problem, x, w, y, residual), how, together)
    struct = problem_struct(problem, x, w, y, bias, residual)
    arguments = (x, w, y, bias, residual, struct, tile_struct(problem, tile))
    launch(kernel, tile.grid(problem), tile.threads, arguments, stream=stream)


@lru_cache(maxsize=4096)
def tile_struct(problem, tile):
    """`struct Tile`."""
    struct = np.zeros((), TILE)
    for name in SIZES:
        struct[name] = getattr(tile, name)
    struct["by_columns"], struct["by_strips"] = divisor(tile.columns), divisor(tile.strips)
    struct["pitches"] = pitches(problem, tile, problem.H * problem.W, tile.width, tile.row_pitch, tile.plane_pitch)
    struct.flags.writeable = False
    return struct


def pitches(problem, tile, pixels, width, row, plane):
    """`struct Pitches` of an array whose planes have so many pixels; width, row and plane are of its staged patch."""
    of_pixels = problem.layout == "NHWC" and tile.side != problem.C
    pieces = width if of_pixels else vectors(width * tile.side, 16 // problem.dtype.itemsize)
    return divisor(pieces), divisor(pixels * tile.side if tile.planes > 1 else 1), width, row, plane


def vectors(length, load):
    """How many 16-byte vectors a piece of a row can touch."""
    return ceil_div(load - 1 + length, load)


def divisor(number):
    """`struct Divisor`."""
    return number, (ceil_div(2**32, number) if number > 1 else 0)
