"""How a product of filters and pixels is cut into blocks, and which cut is taken: the host's side of cut.cuh.

implicit_gemm.py and tensor_core.py bring their tiles, the order of their reduction and what a cut is predicted to take.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import ceil_div
from . import waves

MOST_SPLITS = 32

DIVISOR = np.dtype([("multiplier", "u4"), ("shift", "i4")])
COUNTS = ("tiles_m", "filters", "depth", "channels", "stages", "whole", "split_tiles", "splits")
CUT = np.dtype([("pixels", "i8"), *((name, "i4") for name in COUNTS), ("by_q", DIVISOR), ("by_p", DIVISOR)], align=True)


class Reduction(NamedTuple):
    """The padded depth of a group's sums, in `stages`; its padded channels; and whether taps are inner."""

    depth: int
    stages: int
    channels: int
    taps_inner: bool


class Cut(NamedTuple):
    """How the product is cut into blocks: `whole` tiles, then `split_tiles` in `splits` parts of `stages` each.

    tile: with `filters`, `pixels` and `threads`. blocks_per_sm: for how many a multiprocessor has room at once; where
    their code takes few registers, for some more. tile_bytes: of a tile's sums. staying: so many blocks take one whole
    tile after the other; 0: a block takes one.
    """

    tile: Any
    blocks_per_sm: int
    tile_bytes: int
    taps_inner: bool
    tiles_m: int
    filters: int
    depth: int
    channels: int
    stages: int
    splits: int
    whole: int
    split_tiles: int
    packed_bytes: int
    staying: int = 0

    @property
    def parts(self):
        return self.split_tiles * self.splits

    @property
    def blocks(self):
        return self.staying or self.whole + self.parts

    @property
    def partial_bytes(self):
        return self.parts * self.tile_bytes


class Parts(NamedTuple):
    """Predicted seconds: the busiest multiprocessor's blocks, adding the splits, what memory moves, the launches."""

    multiply: float
    add: float
    memory: float
    launches: float

    @property
    def seconds(self):
        return max(self.multiply + self.add, self.memory) + self.launches


def whole_cut(problem, tile, blocks_per_sm, reduction, itemsize):
    """All tiles whole. itemsize: of a packed weight."""
    depth, stages, channels, taps_inner = reduction
    filters = round_up(problem.Kg, tile.filters)
    tiles_m = ceil_div(problem.N * problem.P * problem.Q, tile.pixels)
    tile_bytes = tile.filters * tile.pixels * problem.accumulate.itemsize
    packed = round_up(problem.groups * depth * filters * itemsize, 64)
    tiles = problem.groups * tiles_m * (filters // tile.filters)
    return Cut(
        tile, blocks_per_sm, tile_bytes, taps_inner, tiles_m, filters, depth, channels, stages, 1, tiles, 0, packed
    )


def split_cut(cut, splits, first=0):
    """Of a cut of whole tiles, all but the first in so many splits, or fewer, if these have no longer stages."""
    stages = ceil_div(cut.stages, splits)
    splits = ceil_div(cut.stages, stages)
    if splits == 1:
        return cut
    return cut._replace(stages=stages, splits=splits, whole=first, split_tiles=cut.whole - first)


def with_splits(device, cuts):
    """Of cuts of whole tiles: each, and with all of its tiles split, with those that fill no wave, and with those that
    the multiprocessors cannot share evenly.
    """
    for cut in cuts:
        yield cut
        rounds = {cut.whole // blocks * blocks for blocks in (slots(cut, device), cost.sm_count(device))}
        for stages in sorted({ceil_div(cut.stages, n) for n in range(2, min(cut.stages, MOST_SPLITS) + 1)}):
            for first in {0} | rounds - {cut.whole}:
                yield split_cut(cut, ceil_div(cut.stages, stages), first)


def with_staying(device, cuts):
    """Of cuts: those that nothing splits, of one stage, in as many blocks as there are slots, if these share the tiles
    evenly enough.
    """
    for cut in cuts:
        places = slots(cut, device)
        stays = cut.splits == cut.stages == 1 and cut.whole > places and waves.busy(cut.whole, places) >= waves.FULL
        yield cut._replace(staying=places) if stays else cut


def slots(cut, device):
    """How many of its blocks the GPU has room for at once."""
    return cost.sm_count(device) * cut.blocks_per_sm


def fills(cut, device):
    """Whether its last wave is full, or split."""
    return cut.splits > 1 or waves.last_wave(cut.blocks, slots(cut, device)) >= waves.FULL


def is_busy(cut, device):
    return cut.splits > 1 or waves.busy(cut.blocks, cost.sm_count(device)) >= waves.FULL


def predictions(problem, device, cuts, parts):
    """Seconds of each, by its Parts; those that multiply least come first, so that `chosen` takes them of equals.

    Where memory bounds, all are equals, whatever they pad.
    """
    found = {cut: parts(problem, device, cut) for cut in cuts}
    return {cut: found[cut].seconds for cut in sorted(found, key=lambda cut: found[cut].multiply + found[cut].add)}


def chosen(device, predicted, launch=0, dearer=waves.DEARER, close=0):
    """Of cuts, with their predicted seconds, the fastest that is split or fills its last wave; else, that keeps the GPU
    busy; else, of all. One that costs more than `dearer` times the fastest and `close` seconds is none of them; a split
    one may cost `launch` beside, the seconds of the launch that adds splits where one does.
    """
    allowed = dearer * min(predicted.values()) + close
    taken = [cut for cut, seconds in predicted.items() if seconds <= allowed + launch * (cut.splits > 1)]
    return min(taken, key=lambda cut: (not fills(cut, device), not is_busy(cut, device), predicted[cut]))


def round_up(size, multiple):
    return ceil_div(size, multiple) * multiple


@lru_cache(maxsize=4096)
def cut_struct(problem, cut):
    """`struct Cut`."""
    struct = np.zeros((), CUT)
    struct["pixels"] = problem.N * problem.P * problem.Q
    for name in COUNTS:
        struct[name] = getattr(cut, name)
    struct["by_q"], struct["by_p"] = divisor(problem.Q), divisor(problem.P)
    struct.flags.writeable = False
    return struct


def divisor(number):
    """`struct Divisor`: n // number == 2 * n * multiplier // 2**32 >> shift for every n below 2**31.

    Granlund and Montgomery, Division by invariant integers using multiplication, PLDI 1994. Twice n, so that 1 is no
    exception, whose multiplier would be 2**32.

    >>> [(2 * 1_000_000_007 * int(m) // 2**32 >> s, 1_000_000_007 // 56) for m, s in [divisor(56)]]
    [(17857142, 17857142)]
    """
    shift = (number - 1).bit_length()
    return -(-(2 ** (31 + shift)) // number), shift
