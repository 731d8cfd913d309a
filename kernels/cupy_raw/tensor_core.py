"""Tensor cores: the implicit product of pixels and filters, 16 x 8 x 16 multiply-adds to an instruction.

tensor_core.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .cut import Parts, Reduction, chosen, cut_struct, round_up, split_cut, whole_cut, with_splits
from .implicit_gemm import address_of
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

VECTOR = 16  # bytes that a thread copies, loads or stores at once
CHUNKS = 4  # of them in a stage of one pixel or filter, as in tensor_core.cu
THREADS = 256  # of pack_filters and sum_splits
SHARED_BYTES = 49_152  # of a block, without asking the driver for more
SHARED_PER_SM = 160 * 1024  # of sm_80, for its blocks' stages
MOST_STAGES = 4
WARPS_PER_SM = ((16, 8), (8, 12), (0, 16))  # above so many blocks of 16 x 8 sums of a warp, as in tensor_core.cu
DTYPES = {"float16": (7, 5), "bfloat16": (8, 0), "float32": (8, 0)}  # since which compute capability they are taken


class Tile(NamedTuple):
    """Pixels and filters of a block, and of each of its warps."""

    pixels: int
    filters: int
    warp_pixels: int
    warp_filters: int

    @property
    def threads(self):
        return self.pixels // self.warp_pixels * (self.filters // self.warp_filters) * 32

    @property
    def stage_bytes(self):
        return (self.pixels + self.filters) * CHUNKS * VECTOR

    @property
    def matrix_bytes(self):
        """What its warps load of a stage: each the rows of its own pixels and filters."""
        return self.threads // 32 * (self.warp_pixels + self.warp_filters) * CHUNKS * VECTOR


TILES = (
    Tile(128, 128, 64, 64),
    Tile(128, 128, 64, 32),
    Tile(128, 64, 64, 64),
    Tile(64, 128, 64, 64),
    Tile(128, 64, 64, 32),
    Tile(64, 128, 32, 64),
    Tile(64, 64, 32, 32),
    Tile(128, 32, 32, 32),
    Tile(64, 32, 32, 16),
    Tile(32, 64, 16, 32),
)

LOOP_SLOTS = 90  # of each thread and stage, beside multiplying: addresses, copies, ldmatrix, the barrier
GATHER_SLOTS = (6, 22)  # of each element of x, where it is loaded by itself: channels inner, taps inner
THREAD_SLOTS = 900  # of each thread of a block beside: addresses, the first stage's wait, the store
SHARED_BYTES_PER_CYCLE = 128  # of one SM: all banks
WAITING = cost.waiting("cupy_raw.tensor_core", like="cupy_raw.implicit_gemm")

passes = ("forward",)


def chunk_of(problem):
    """Elements of VECTOR bytes."""
    return VECTOR // problem.dtype.itemsize


def tiles_of(problem):
    """Those for which a thread has registers enough: three products leave none for warps of 64 x 64."""
    if problem.precision != "3xtf32":
        return TILES
    return tuple(tile for tile in TILES if tile.warp_pixels * tile.warp_filters < 64 * 64)


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return chosen(device, {cut: seconds(problem, device, cut) for cut in cuts(problem, device)})


def cuts(problem, device):
    return with_splits(device, [cut_of(problem, tile) for tile in tiles_of(problem)])


def cut_of(problem, tile, splits=1, first=0):
    """All tiles whole, or all but the first in so many splits."""
    blocks = blocks_per_sm(tile, problem.precision)
    all_whole = whole_cut(problem, tile, blocks, reduction_of(problem), problem.dtype.itemsize)
    return split_cut(all_whole, splits, first)


def blocks_per_sm(tile, precision=None):
    """For how many tensor_core.cu asks the compiler to leave registers."""
    of_warp = tile[0] * tile[1] * 32 // tile.threads
    need = of_warp // (16 * 8) * (2 if precision == "3xtf32" else 1)
    warps = next(warps for least, warps in WARPS_PER_SM if need > least)
    return warps * 32 // tile.threads


def reduction_of(problem):
    """Channels inner where they fill a chunk: padding the last one costs less than the other order's divisions."""
    chunk = chunk_of(problem)
    taps_inner = problem.Cg < chunk
    channels = problem.Cg if taps_inner else round_up(problem.Cg, chunk)
    depth = round_up(problem.R * problem.S * channels, CHUNKS * chunk)
    return Reduction(depth, depth // (CHUNKS * chunk), channels, taps_inner)


def stages_held(tile, device):
    """How many stages lie in shared memory: two where registers bring them, else as many as fit beside other blocks."""
    if device.compute_capability < (8, 0):
        return 2
    return min(min(SHARED_BYTES, SHARED_PER_SM // blocks_per_sm(tile)) // tile.stage_bytes, MOST_STAGES)


def parts(problem, device, cut):
    """A stage takes what its slowest part does: multiplying, bringing it from L2, storing it and loading matrices of
    it, or issuing its instructions.
    """
    tile, chunk = cut.tile, chunk_of(problem)
    macs = tile.pixels * tile.filters * CHUNKS * chunk
    multiplying = macs / cost.tensor_multiply_adds(problem, device)
    bringing = tile.stage_bytes / cost.L2_BYTES_PER_CYCLE
    sharing = (tile.stage_bytes + tile.matrix_bytes) / SHARED_BYTES_PER_CYCLE
    multiplies = macs / (16 * 8 * (32 // problem.dtype.itemsize)) * (3 if problem.precision == "3xtf32" else 1)
    issuing = multiplies * 32 + LOOP_SLOTS * tile.threads
    if not vectors_of(problem):
        issuing += GATHER_SLOTS[cut.taps_inner] * tile.pixels * CHUNKS * chunk
    stage = max(multiplying, bringing, sharing, issuing / cost.SLOTS_PER_CYCLE) * cost.SLOTS_PER_CYCLE

    def of_blocks(blocks, stages):
        return cost.block_seconds(device, blocks, tile.threads, stages * stage + THREAD_SLOTS * tile.threads)

    all_stages = cut.depth // (CHUNKS * chunk)
    return Parts(
        WAITING * (of_blocks(cut.whole, all_stages) + of_blocks(cut.parts, cut.stages)),
        cost.passing_seconds(device, cut.partial_bytes),
        cost.memory_seconds(problem, device, 2 * cut.packed_bytes),
        (3 if cut.splits > 1 else 2) * cost.LAUNCH,
    )


def seconds(problem, device, cut):
    return parts(problem, device, cut).seconds


def vectors_of(problem):
    """Whether x's channels lie side by side in whole vectors, as far as the problem tells."""
    return problem.layout == "NHWC" and problem.Cg % chunk_of(problem) == 0


def why_not(problem, device):
    reasons = dtype_reasons(problem, device) + size_reasons(problem)
    if reasons:
        return reasons
    cut = cut_for(problem, device)
    grids = {
        "multiply": cut.blocks,
        "pack the weights": packing_blocks(problem, cut),
        "add the splits": summing_blocks(problem, cut),
    }
    return [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def packing_blocks(problem, cut):
    return ceil_div(problem.groups * cut.depth * cut.filters, THREADS)


def summing_blocks(problem, cut):
    """A thread for every sum, those that pad a tile too."""
    return cut.partial_bytes // (cut.splits * problem.accumulate.itemsize * THREADS)


def dtype_reasons(problem, device):
    """Why the tensor cores do not take these numbers."""
    name = problem.dtype.name
    if name == "float32" and problem.precision is None:
        return ['float32 only with precision "tf32" or "3xtf32"']
    if name not in DTYPES:
        return [f"{', '.join(DTYPES)} only, got {name}"]
    if device.compute_capability < DTYPES[name]:
        needed, has = (".".join(map(str, version)) for version in (DTYPES[name], device.compute_capability))
        return [f"{name} from compute capability {needed} on, {device} has {has}"]
    return []


def packed_bytes(problem, device):
    return cut_for(problem, device).packed_bytes


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def one_call_bytes(problem, device):
    """Weights that come as they lie are packed in front of the sums of splits."""
    return packed_bytes(problem, device) + workspace_bytes(problem, device)


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device))


class Lying(NamedTuple):
    """How the arrays lie in memory. together: x's channels, in whole vectors. along_filters: y's filters lie side by
    side, not its pixels. run: how many of them one thread stores at once.
    """

    together: bool
    along_filters: bool
    run: int


def sources(problem, device, wide=False, lying=None):
    """The kernels: pack the weights, multiply, and add the splits; by default for arrays as the layout has them."""
    lying = lying or lying_as_planned(problem)
    cut = cut_for(problem, device)
    return sources_of(problem, cut, stages_held(cut.tile, device), wide, lying)


def lying_as_planned(problem):
    """As fresh arrays lie in the problem's layout."""
    chunk, last = chunk_of(problem), problem.layout == "NHWC"
    whole = problem.Kg % chunk == 0 if last else problem.P * problem.Q % chunk == 0
    return Lying(vectors_of(problem), last, chunk if whole else 1)


@lru_cache(maxsize=4096)
def sources_of(problem, cut, stages, wide, lying):
    tile = cut.tile
    shared = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    shared += (("TILE_M", tile.pixels), ("TILE_K", tile.filters), ("SPLIT", int(cut.splits > 1)))
    shared += (("ALONG_FILTERS", int(lying.along_filters)),)
    constants = (*shared, ("WARP_M", tile.warp_pixels), ("WARP_K", tile.warp_filters))
    constants += (("STAGES", stages), ("TOGETHER", int(lying.together)), ("TAPS_INNER", int(cut.taps_inner)))
    constants += (("WHOLE", int(problem.Cg % chunk_of(problem) == 0)),)
    constants += (("RUN", lying.run), ("PRECISE", int(problem.precision == "3xtf32")))
    multiplying = (CudaSource("tensor_core.cu", name, constants) for name in ("pack_filters", "conv2d_tensor_core"))
    return (*multiplying, CudaSource("sum_splits.cu", "sum_splits", shared))


def lying_of(problem, x, y, residual):
    """How these arrays lie."""
    chunk = chunk_of(problem)
    together = problem.Cg % chunk == 0 and x.strides[1] == x.itemsize and aligned(x, (0, 2, 3))
    outputs = [y] if residual is None else [y, residual]
    if y.strides[1] == y.itemsize:
        runs = problem.Kg % chunk == 0 and all(a.strides[1] == a.itemsize and aligned(a, (0, 2, 3)) for a in outputs)
        return Lying(together, True, chunk if runs else 1)
    runs = problem.P * problem.Q % chunk == 0 and all(
        a.strides[2:] == (problem.Q * a.itemsize, a.itemsize) and aligned(a, (0, 1)) for a in outputs
    )
    return Lying(together, False, chunk if runs else 1)


def aligned(array, axes):
    """Whether vectors begin where the array does, and a step along any of `axes` further."""
    return address_of(array) % VECTOR == 0 and all(array.strides[axis] % VECTOR == 0 for axis in axes)


def pack(problem, device, w, packed, stream=None):
    """Write w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), stage by stage."""
    cut, wide = cut_for(problem, device), is_wide(problem, w=w)
    kernel, *_ = sources_of(problem, cut, stages_held(cut.tile, device), wide, lying_as_planned(problem))
    arguments = (w, packed, problem_struct(problem, w=w), cut_struct(problem, cut))
    launch(kernel, packing_blocks(problem, cut), THREADS, arguments, stream=stream)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. w: as `pack` leaves it, workspace: `workspace_bytes`, 64-byte aligned.

    Or with the weights as they are, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    cut, packed = cut_for(problem, device), w
    if w.ndim == 4:
        packed, workspace = workspace[: cut.packed_bytes], workspace[cut.packed_bytes :]
        pack(problem, device, w, packed, stream)
    struct, part = problem_struct(problem, x, None, y, bias, residual), cut_struct(problem, cut)
    partial = workspace if cut.splits > 1 else None
    wide, lying = is_wide(problem, x, None, y, residual), lying_of(problem, x, y, residual)
    _, multiply, add = sources_of(problem, cut, stages_held(cut.tile, device), wide, lying)

    arguments = (x, packed, y, bias, residual, partial, struct, part)
    launch(multiply, cut.blocks, cut.tile.threads, arguments, stream=stream)
    if cut.splits > 1:
        arguments = (partial, y, bias, residual, struct, part, np.int32(cut.splits))
        launch(add, summing_blocks(problem, cut), THREADS, arguments, stream=stream)
