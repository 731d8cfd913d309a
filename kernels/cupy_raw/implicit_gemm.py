"""Implicit GEMM: the matrix product of im2col, its matrix gathered tile by tile into shared memory, never written.

implicit_gemm.cu tells the idea; this file chooses the tile, the order of the reduction and the splits, and launches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .cut import Parts, chosen, cut_struct, predictions, slots, split_cut, whole_cut, with_splits
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants
from .register_tile import DEPTH, EACH, reduction_of, tile_of

CHUNK = 4  # channels side by side that one thread loads at once
THREADS = 64  # of a block of sum_splits
PACKING = 32  # threads of a block of pack_filters ...
PACKED_FILTERS, PACKED_NUMBERS = 16, 8  # ... and what it takes, in as many weights as have 16 bytes
TILES = ((16, 16), (16, 8), (8, 16), (8, 8), (4, 16), (4, 8))  # filters x pixels, in EACH
ALL_TILES = (*TILES, (4, 4))  # half a warp's pixels: a loop of more instructions, for few stages, to fill waves
SLICES = (2, 4)  # of a block: they share its stages evenly, and have no more threads than this together
MOST_THREADS = 256
FEW_STAGES = 32  # stages: of more, what a launch that adds splits takes is little beside them
WARPS_PER_SM = {256: 16}  # that register_tile.cuh asks the compiler for, by a slice's threads; FEWER otherwise
FEWER_WARPS = 12

# Instructions of a stage beside its multiply-adds, read from the machine code: loads from shared memory and the walk;
# for each vector of filters; for each element of a pixel, channels inner, taps inner.
STAGE_SLOTS, VECTOR_SLOTS, ELEMENT_SLOTS = 14, 3, (4.5, 30)
WAITING = cost.waiting("cupy_raw.implicit_gemm")
# Fitted to 31 simulated cuts (results/simulated-sm75-2026-11-28), whose product is off by a factor of 1.06 in the mean.
EDGE_CYCLES = 3500  # of a launch: until the first stage has come, and while the last sums leave
BRINGING = 0.5  # of the time in which stages come from L2: as much is not hidden by what is multiplied meanwhile
DEARER, CLOSE = 1.05, 5e-7  # instead of waves.DEARER: a full wave may cost so many times, and seconds, more

passes = ("forward",)


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return chosen(device, predictions(problem, device, cuts(problem, device), parts), cost.LAUNCH, DEARER, CLOSE)


def cuts(problem, device):
    stages = reduction_of(problem).stages
    tiles = ALL_TILES if stages <= FEW_STAGES else TILES
    yield from with_splits(device, [cut_of(problem, tile_of(problem, lanes)) for lanes in tiles])
    for slices in (slices for slices in SLICES if stages <= FEW_STAGES and stages % slices == 0):
        tiles = (tile_of(problem, lanes, slices) for lanes in ALL_TILES)
        yield from (cut_of(problem, tile) for tile in tiles if tile.threads <= MOST_THREADS)


def cut_of(problem, tile, splits=1, first=0):
    """All tiles whole, or all but the first in so many splits."""
    blocks_per_sm = WARPS_PER_SM.get(tile.threads // tile.slices, FEWER_WARPS) * 32 // tile.threads
    all_whole = whole_cut(problem, tile, blocks_per_sm, reduction_of(problem), problem.accumulate.itemsize)
    return split_cut(all_whole, splits, first)


def parts(problem, device, cut):
    stages = (cut.depth // DEPTH, cut.stages)
    blocks = [cost.Block(block_slots(problem, device, cut, count), enough(cut.tile)) for count in stages]
    multiply = WAITING * cost.wave_seconds(device, (cut.whole, cut.parts), cut.blocks_per_sm, blocks)
    return Parts(
        multiply + bringing_seconds(problem, device, cut) + edges_seconds(device, cut),
        cost.passing_seconds(device, cut.partial_bytes),
        cost.memory_seconds(problem, device, 2 * cut.packed_bytes),
        (3 if cut.splits > 1 else 2) * cost.LAUNCH,
    )


def enough(tile):
    """Blocks that keep a multiprocessor issuing."""
    return cost.WARPS_TO_SATURATE * 32 / tile.threads


def bringing_seconds(problem, device, cut):
    """In which the busiest multiprocessor's stages come from L2, as far as no multiplication hides it."""
    stages = ceil_div(cut.whole * (cut.depth // DEPTH) + cut.parts * cut.stages, cost.sm_count(device))
    stage_bytes = DEPTH * (cut.tile.filters + cut.tile.pixels) * problem.accumulate.itemsize
    return BRINGING * stages * stage_bytes / cost.passing_bytes_per_second(device)


def edges_seconds(device, cut):
    """In which nothing is multiplied: before the first stages have come, and while the last sums leave; between waves
    as well, where no other block of the multiprocessor has some.
    """
    between = ceil_div(cut.blocks, slots(cut, device)) - 1
    return EDGE_CYCLES / cost.clock(device) * (1 + between / cut.blocks_per_sm)


def seconds(problem, device, cut):
    return parts(problem, device, cut).seconds


def block_slots(problem, device, cut, stages):
    """Issue slots of a block of so many stages, over all its threads."""
    item = problem.accumulate.itemsize
    vectors = DEPTH * cut.tile.filters * item / 16
    elements = DEPTH * cut.tile.pixels
    of_slice = cut.tile.threads // cut.tile.slices
    beside = (STAGE_SLOTS + DEPTH * loads_of(problem, cut.tile)) * of_slice
    beside += VECTOR_SLOTS * vectors + ELEMENT_SLOTS[cut.taps_inner] * elements
    macs = DEPTH * cut.tile.filters * cut.tile.pixels
    return stages * (macs * cost.multiply_slots(problem, device) + beside)


def loads_of(problem, tile):
    """Of a thread from shared memory, in a step: two vectors of filters, and two of pixels, or one."""
    sums = tile.filters * tile.pixels * tile.slices // tile.threads
    return 4 if sums == EACH[problem.accumulate.itemsize] ** 2 else 3


def why_not(problem, device):
    reasons = size_reasons(problem)
    cut = cut_for(problem, device)
    _, filters, numbers = packing_grid(problem, cut)
    grids = (
        ("multiply", MAX_GRID[0], cut.blocks),
        ("pack the filters", MAX_GRID[1], filters),
        ("pack each filter", MAX_GRID[2], numbers),
        ("add the splits", MAX_GRID[0], summing_blocks(problem, cut)),
    )
    for name, most, blocks in grids:
        if blocks > most:
            reasons.append(f"at most {most:,} blocks to {name}, this problem has {blocks:,}")
    return reasons


def packed_bytes(problem, device):
    return cut_for(problem, device).packed_bytes


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def one_call_bytes(problem, device):
    """Weights that come as they lie are packed in front of the sums of splits."""
    return packed_bytes(problem, device) + workspace_bytes(problem, device)


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device))


def sources(problem, device, wide=False, together="NONE", stored="NONE", along="ROWS"):
    """The kernels of a plan: pack the weights, multiply, and add the splits."""
    cut = cut_for(problem, device)
    return (packing_source(problem, cut, wide, along), *sources_of(problem, cut, wide, together, stored))


@lru_cache(maxsize=4096)
def packing_source(problem, cut, wide, along, channels_inner=False):
    constants = (*type_constants(problem, wide), *window_constants(problem), ("ORDER", int(cut.taps_inner)))
    constants += (("ALONG", along), ("CHANNELS_INNER", int(channels_inner)))
    return CudaSource("pack_filters.cu", "pack_filters", constants)


@lru_cache(maxsize=4096)
def sources_of(problem, cut, wide, together, stored, weights="PACKED"):
    whole = problem.Cg % DEPTH == 0
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (("TILE_K", cut.tile.filters), ("TILE_M", cut.tile.pixels), ("ORDER", int(cut.taps_inner)))
    constants += (("TOGETHER", together), ("STORED", stored), ("WHOLE", int(whole)), ("SPLIT", int(cut.splits > 1)))
    constants += (("SLICES", cut.tile.slices), ("WEIGHTS", weights))
    functions = ("conv2d_implicit_gemm", "sum_splits")
    return tuple(CudaSource("implicit_gemm.cu", function, constants) for function in functions)


def loaded_together(problem, cut, x):
    """What one thread may load of x at once: side by side in memory, aligned, and none of it amid an edge."""
    item = x.itemsize
    if cut.taps_inner:
        return "NONE"
    enough = DEPTH * cut.tile.pixels * cut.tile.slices // cut.tile.threads % CHUNK == 0
    if enough and problem.Cg % CHUNK == 0 and x.strides[1] == item and aligned(x, min(CHUNK * item, 16), (0, 2, 3)):
        return "CHANNELS"
    vector = 16 // problem.accumulate.itemsize
    if is_pointwise(problem) and planes_of(x, problem.W) and problem.P * problem.Q % vector == 0:
        return "PIXELS" if aligned(x, vector * item, (0, 1)) else "NONE"
    return "NONE"


def weights_along(problem, cut, w):
    """How w lies, for pack_filters.cu, and whether its channels are numbered first."""
    item, vector = w.itemsize, 16 // problem.accumulate.itemsize
    if problem.Kg % vector == 0 and w.strides[0] == item and aligned(w, vector * item, (1, 2, 3)):
        return "FILTERS", False
    C, R, S = problem.w_shape[1:]
    if w.strides[1:] == (R * S * item, S * item, item):
        return "ROWS", False
    channels_inner = w.strides[1] == item and not cut.taps_inner
    rows = channels_inner and cut.channels == C and w.strides[2:] == (S * C * item, C * item)
    return "ROWS" if rows else "STRIDES", channels_inner


def weights_read(problem, cut, w):
    """How the product reads w, for implicit_filters.cuh: PACKED, or AS_THEY_LIE; None if it must be packed first."""
    if w.ndim != 4:
        return "PACKED"
    item = w.itemsize
    C, R, S = problem.w_shape[1:]
    as_walked = (R * S, S, 1) if cut.taps_inner else (1, S * C, C)
    in_order = cut.taps_inner or cut.channels == C or R * S == 1
    lying = in_order and all(n == 1 or s == a * item for n, s, a in zip((C, R, S), w.strides[1:], as_walked))
    whole = problem.reduction % CHUNK == 0 and aligned(w, min(CHUNK * item, 16), (0,))
    enough = DEPTH * cut.tile.filters * cut.tile.slices // cut.tile.threads % CHUNK == 0
    return "AS_THEY_LIE" if lying and whole and enough else None


def stored_together(problem, together, y, residual):
    """What one thread may store of y, and load of the residual, at once; CHANNEL: one, beside another thread's."""
    vector = 16 // problem.accumulate.itemsize
    images = [image for image in (y, residual) if image is not None]
    if y.strides[1] == y.itemsize:
        together = problem.Kg % vector == 0 and all(
            image.strides[1] == image.itemsize and aligned(image, vector * image.itemsize, (0, 2, 3))
            for image in images
        )
        return "CHANNELS" if together else "CHANNEL"
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


def pack(problem, device, w, packed, stream=None):
    """Write w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), in the order of the reduction."""
    cut = cut_for(problem, device)
    wide = packs_wide(problem, cut) or is_wide(problem, w=w)
    kernel = packing_source(problem, cut, wide, *weights_along(problem, cut, w))
    arguments = (w, packed, problem_struct(problem, w=w), cut_struct(problem, cut))
    launch(kernel, packing_grid(problem, cut), PACKING, arguments, stream=stream)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. w: as `pack` leaves it, workspace: `workspace_bytes`, 64-byte aligned.

    Or with the weights as they are, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    cut = cut_for(problem, device)
    if w.ndim == 4:
        packed, workspace = workspace[: cut.packed_bytes], workspace[cut.packed_bytes :]
    weights = weights_read(problem, cut, w)
    if weights is None:
        pack(problem, device, w, packed, stream)
        w, weights = packed, "PACKED"
    lying = w if weights == "AS_THEY_LIE" else None
    struct, part = problem_struct(problem, x, lying, y, bias, residual), cut_struct(problem, cut)
    partial = workspace if cut.splits > 1 else None
    together = loaded_together(problem, cut, x)
    stored = stored_together(problem, together, y, residual)
    wide = packs_wide(problem, cut) or is_wide(problem, x, lying, y, residual)
    multiply, add = sources_of(problem, cut, wide, together, stored, weights)

    arguments = (x, w, y, bias, residual, partial, struct, part)
    launch(multiply, cut.blocks, cut.tile.threads, arguments, stream=stream)
    if cut.splits > 1:
        arguments = (partial, y, bias, residual, struct, part, np.int32(cut.splits))
        launch(add, summing_blocks(problem, cut), THREADS, arguments, stream=stream)


def packs_wide(problem, cut):
    return cut.packed_bytes >= 2**31 * problem.accumulate.itemsize


def packing_grid(problem, cut):
    """Over the groups, the filters of each, and the numbers of each filter."""
    vector = 16 // problem.accumulate.itemsize
    filters, numbers = PACKED_FILTERS * vector, PACKED_NUMBERS * vector
    return problem.groups, ceil_div(cut.filters, filters), ceil_div(cut.depth, numbers)


def summing_blocks(problem, cut):
    """A thread for every vector of sums, those that pad a tile too."""
    return ceil_div(cut.partial_bytes // cut.splits, 16 * THREADS)
