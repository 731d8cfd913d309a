"""Implicit GEMM: the matrix product of im2col, its matrix gathered tile by tile into shared memory, never written.

implicit_gemm.cu tells the idea; this file chooses the tile, the order of the reduction and the splits, and launches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from . import waves
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

DEPTH = 8  # reduction steps per stage, as in gemm_layout.cuh
EACH = {4: 8, 8: 4}  # filters, and pixels, per thread of register_tile.cuh, by the bytes of a sum
CHUNK = 4  # channels side by side that one thread loads at once
THREADS = 256  # of pack_filters and sum_splits
SQUARE = 32  # filters, and steps of each, that a block of pack_filters takes
TILES = ((16, 16), (16, 8), (8, 16), (8, 8), (4, 16), (4, 8))  # filters x pixels, in EACH
FEWEST_CHANNELS = 16  # from here on a stage of 8 channels of one tap wastes less than the other order's divisions cost
FEWEST_STAGES = 2  # of one split
MOST_SPLITS = 32
WARPS_PER_SM = {256: 16}  # that register_tile.cuh asks the compiler for, by a block's threads; FEWER otherwise
FEWER_WARPS = 12

DIVISOR = np.dtype([("multiplier", "u4"), ("shift", "i4")])
COUNTS = ("tiles_m", "filters", "depth", "channels", "stages", "whole", "split_tiles")
CUT = np.dtype([("pixels", "i8"), *((name, "i4") for name in COUNTS), ("by_q", DIVISOR), ("by_p", DIVISOR)], align=True)

# Instructions of a stage beside its multiply-adds, read from the machine code: loads from shared memory and the walk;
# for each vector of filters; for each element of a pixel, channels inner, taps inner.
STAGE_SLOTS, VECTOR_SLOTS, ELEMENT_SLOTS = 4 * DEPTH + 14, 3, (4.5, 30)
WAITING = cost.waiting("cupy_raw.implicit_gemm")
THREAD_SLOTS = 600  # of each thread of a block beside: addresses, the first stage's wait, the store

passes = ("forward",)


class Cut(NamedTuple):
    """How the product is cut into blocks: `whole` tiles, then `split_tiles` in `splits` parts of `stages` each."""

    tile_k: int
    tile_m: int
    threads: int
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
    partial_bytes: int

    @property
    def tile(self):
        return self.tile_k, self.tile_m

    @property
    def parts(self):
        return self.split_tiles * self.splits

    @property
    def blocks(self):
        return self.whole + self.parts


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    """The fastest predicted of the cuts that are split or fill their waves, unless these cost too much."""
    predicted = {cut: seconds(problem, device, cut) for cut in cuts(problem, device)}
    return waves.choose(predicted, lambda cut: fills(problem, device, cut), lambda cut: is_busy(device, cut))


def cuts(problem, device):
    """For every tile: all tiles whole, all split, and those split that fill no wave."""
    each = EACH[problem.accumulate.itemsize]
    for tile in TILES:
        tile_k, tile_m = (each * lanes for lanes in tile)
        all_whole = cut_of(problem, tile_k, tile_m)
        full_waves = waves.whole_tiles(all_whole.whole, slots(problem, device, all_whole.tile))
        yield all_whole
        for splits in possible_splits(problem):
            for whole in {0, full_waves} - {all_whole.whole}:
                yield cut_of(problem, tile_k, tile_m, splits, whole)


def slots(problem, device, tile):
    """How many blocks the GPU has room for at once; where their code takes few registers, for some more."""
    threads = tile[0] * tile[1] // EACH[problem.accumulate.itemsize] ** 2
    return cost.sm_count(device) * (WARPS_PER_SM.get(threads, FEWER_WARPS) * 32 // threads)


def fills(problem, device, cut):
    return cut.splits > 1 or waves.last_wave(cut.blocks, slots(problem, device, cut.tile)) >= waves.FULL


def is_busy(device, cut):
    return cut.splits > 1 or waves.busy(cut.blocks, cost.sm_count(device)) >= waves.FULL


def possible_splits(problem):
    """Every number of splits that leaves each FEWEST_STAGES."""
    return range(2, min(depth_of(problem)[0] // DEPTH // FEWEST_STAGES, MOST_SPLITS) + 1)


def depth_of(problem):
    """The padded depth, the padded channels of a group, and whether taps are inner."""
    taps = problem.R * problem.S
    if problem.Cg < FEWEST_CHANNELS and problem.Cg % DEPTH:
        return round_up(problem.reduction, DEPTH), problem.Cg, True
    channels = round_up(problem.Cg, DEPTH)
    return taps * channels, channels, False


def cut_of(problem, tile_k, tile_m, splits=1, whole=0):
    """All tiles whole, or all but the first `whole` in so many splits, or one less, if that has no longer stages."""
    itemsize = problem.accumulate.itemsize
    depth, channels, taps_inner = depth_of(problem)
    stages = ceil_div(depth // DEPTH, splits)
    splits = ceil_div(depth // DEPTH, stages)
    pixels, filters = problem.N * problem.P * problem.Q, round_up(problem.Kg, tile_k)
    packed = round_up(problem.groups * depth * filters * itemsize, 64)
    threads = tile_k * tile_m // EACH[itemsize] ** 2
    tiles_m = ceil_div(pixels, tile_m)
    tiles = problem.groups * tiles_m * (filters // tile_k)
    split_tiles = tiles - whole if splits > 1 else 0
    partial = splits * split_tiles * tile_k * tile_m * itemsize
    return Cut(
        tile_k, tile_m, threads, taps_inner, tiles_m, filters, depth, channels, stages, splits,
        tiles - split_tiles, split_tiles, packed, partial,
    )  # fmt: skip


def round_up(size, multiple):
    return ceil_div(size, multiple) * multiple


class Parts(NamedTuple):
    """Predicted seconds: the busiest multiprocessor's blocks, adding the splits, what memory moves, the launches."""

    multiply: float
    add: float
    memory: float
    launches: float


def parts(problem, device, cut):
    def multiplying(blocks, stages):
        return cost.block_seconds(device, blocks, cut.threads, block_slots(problem, device, cut, stages))

    return Parts(
        WAITING * (multiplying(cut.whole, cut.depth // DEPTH) + multiplying(cut.parts, cut.stages)),
        cost.moving_seconds(device, 2 * cut.partial_bytes),
        cost.memory_seconds(problem, device, 2 * cut.packed_bytes),
        (3 if cut.splits > 1 else 2) * cost.LAUNCH,
    )


def seconds(problem, device, cut):
    multiply, add, memory, launches = parts(problem, device, cut)
    return max(multiply + add, memory) + launches


def block_slots(problem, device, cut, stages):
    """Issue slots of a block of so many stages, over all its threads."""
    item = problem.accumulate.itemsize
    vectors = DEPTH * cut.tile_k * item / 16
    elements = DEPTH * cut.tile_m
    beside = STAGE_SLOTS * cut.threads + VECTOR_SLOTS * vectors + ELEMENT_SLOTS[cut.taps_inner] * elements
    macs = DEPTH * cut.tile_k * cut.tile_m
    return stages * (macs * cost.multiply_slots(problem, device) + beside) + THREAD_SLOTS * cut.threads


def why_not(problem, device):
    reasons = size_reasons(problem)
    cut = cut_for(problem, device)
    grids = {
        "multiply": cut.blocks,
        "pack the weights": packing_blocks(problem, cut),
        "add the splits": summing_blocks(problem, cut),
    }
    for name, blocks in grids.items():
        if blocks > MAX_GRID[0]:
            reasons.append(f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}")
    return reasons


def workspace_bytes(problem, device):
    cut = cut_for(problem, device)
    return cut.packed_bytes + cut.partial_bytes


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device))


def sources(problem, device, wide=False, together="NONE", stored="NONE"):
    """The kernels: pack the weights, multiply, and add the splits."""
    return sources_of(problem, cut_for(problem, device), wide, together, stored)


@lru_cache(maxsize=4096)
def sources_of(problem, cut, wide, together, stored):
    whole = problem.Cg % DEPTH == 0
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (("TILE_K", cut.tile_k), ("TILE_M", cut.tile_m), ("ORDER", int(cut.taps_inner)))
    constants += (("TOGETHER", together), ("STORED", stored), ("WHOLE", int(whole)), ("SPLIT", int(cut.splits > 1)))
    functions = ("pack_filters", "conv2d_implicit_gemm", "sum_splits")
    return tuple(CudaSource("implicit_gemm.cu", function, constants) for function in functions)


def loaded_together(problem, cut, x):
    """What one thread may load of x at once: side by side in memory, aligned, and none of it amid an edge."""
    item = x.itemsize
    if cut.taps_inner:
        return "NONE"
    enough = DEPTH * cut.tile_m // cut.threads % CHUNK == 0
    if enough and problem.Cg % CHUNK == 0 and x.strides[1] == item and aligned(x, min(CHUNK * item, 16), (0, 2, 3)):
        return "CHANNELS"
    vector = 16 // problem.accumulate.itemsize
    if is_pointwise(problem) and planes_of(x, problem.W) and problem.P * problem.Q % vector == 0:
        return "PIXELS" if aligned(x, vector * item, (0, 1)) else "NONE"
    return "NONE"


def stored_together(problem, together, y, residual):
    """What one thread may store of y, and load of the residual, at once."""
    vector = 16 // problem.accumulate.itemsize
    images = [image for image in (y, residual) if image is not None]
    if problem.Kg % vector == 0 and all(
        image.strides[1] == image.itemsize and aligned(image, vector * image.itemsize, (0, 2, 3)) for image in images
    ):
        return "CHANNELS"
    if together == "PIXELS" and all(
        planes_of(image, problem.Q) and aligned(image, vector * image.itemsize, (0, 1)) for image in images
    ):
        return "PIXELS"
    return "NONE"


def is_pointwise(problem):
    """Whether output pixel m of an image is computed from its pixel m and nothing else."""
    window = (problem.R, problem.S, *problem.stride)
    return window == (1, 1, 1, 1) and problem.padding == ((0, 0), (0, 0))


def planes_of(image, width):
    """Whether the pixels of a channel lie side by side, row after row."""
    return image.strides[3] == image.itemsize and image.strides[2] == width * image.itemsize


def aligned(image, size, axes):
    """Whether `image` begins at a multiple of `size` bytes, and again with every step along `axes`."""
    return address_of(image) % size == 0 and all(image.strides[axis] % size == 0 for axis in axes)


def address_of(array):
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    cut = cut_for(problem, device)
    struct, part = problem_struct(problem, x, w, y, bias, residual), cut_struct(problem, cut)
    packed, partial = workspace[: cut.packed_bytes], workspace[cut.packed_bytes :] if cut.partial_bytes else None
    together = loaded_together(problem, cut, x)
    stored = stored_together(problem, together, y, residual)
    wide = is_wide(problem, x, w, y, residual) or cut.packed_bytes >= 2**31 * problem.accumulate.itemsize
    pack, multiply, add = sources_of(problem, cut, wide, together, stored)

    launch(pack, packing_blocks(problem, cut), THREADS, (w, packed, struct, part), stream=stream)
    arguments = (x, packed, y, bias, residual, partial, struct, part)
    launch(multiply, cut.blocks, cut.threads, arguments, stream=stream)
    if cut.splits > 1:
        arguments = (partial, y, bias, residual, struct, part, np.int32(cut.splits))
        launch(add, summing_blocks(problem, cut), THREADS, arguments, stream=stream)


def packing_blocks(problem, cut):
    """Each packs SQUARE steps of as many filters."""
    return problem.groups * ceil_div(cut.depth, SQUARE) * ceil_div(cut.filters, SQUARE)


def summing_blocks(problem, cut):
    """A thread for every vector of sums, those that pad a tile too."""
    return ceil_div(cut.partial_bytes // cut.splits, 16 * THREADS)


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
    """`struct Divisor`: n // number == n * multiplier // 2**32 >> shift for every n below 2**31.

    Granlund and Montgomery, Division by invariant integers using multiplication, PLDI 1994. Not for 1: there the kernel
    takes n itself.

    >>> [(1_000_000_007 * int(m) // 2**32 >> s, 1_000_000_007 // 56) for m, s in [divisor(56)]]
    [(17857142, 17857142)]
    """
    bits = max((number - 1).bit_length(), 1)
    return -(-(2 ** (31 + bits)) // number) % 2**32, bits - 1
