"""The tile that register_tile.cuh multiplies, and the reduction it is fed with, stage by stage: the host's side.

cupy_raw/implicit_gemm.py and numba_cuda/implicit_gemm.py cut their products so.
"""

from __future__ import annotations

from typing import NamedTuple

from .cut import Reduction, round_up

DEPTH = 8  # reduction steps per stage, as in gemm_layout.cuh
EACH = {4: 8, 8: 4}  # filters, and pixels, per thread, by the bytes of a sum
WARP_PIXELS = 8  # lanes of a warp along the pixels
FEWEST_CHANNELS = 16  # from here on a stage of 8 channels of one tap wastes less than the other order's divisions cost


class Tile(NamedTuple):
    """Filters and pixels of a block, and its threads; these in slices, each with its part of the reduction."""

    filters: int
    pixels: int
    threads: int
    slices: int = 1


def tile_of(problem, lanes, slices=1):
    """The tile of so many lanes along the filters, and along the pixels; half as many as a warp has: of half as many
    pixels each.
    """
    each = EACH[problem.accumulate.itemsize]
    threads = lanes[0] * max(lanes[1], WARP_PIXELS) * slices
    return Tile(lanes[0] * each, lanes[1] * each, threads, slices)


def reduction_of(problem):
    """Channels inner, unless they are so few that padding them costs more than the other order's divisions."""
    taps_inner = problem.Cg < FEWEST_CHANNELS and problem.Cg % DEPTH > 0
    channels = problem.Cg if taps_inner else round_up(problem.Cg, DEPTH)
    depth = round_up(problem.R * problem.S * channels, DEPTH)
    return Reduction(depth, depth // DEPTH, channels, taps_inner)
