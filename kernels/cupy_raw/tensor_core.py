"""Tensor cores: the implicit product of pixels and filters, 16 x 8 x 16 multiply-adds to an instruction.

tensor_core.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .cut import (
    Parts,
    Reduction,
    chosen,
    cut_struct,
    predictions,
    round_up,
    split_cut,
    whole_cut,
    with_splits,
    with_staying,
)
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants
from .tensor_core_tile import (
    CHUNKS,
    MOST_FOUND,
    NO_ROW,
    Tile,
    aligned,
    block_of,
    blocks_per_sm,
    chunk_of,
    constants,
    depth_of,
    dtype_reasons,
    has_bits,
    stages_held,
    steps_struct,
    table_steps,
)

THREADS = 256  # of pack_filters

BUSY_TILES = (
    Tile(128, 128, 64, 64),
    Tile(128, 128, 64, 64, 2),
    Tile(128, 64, 64, 64),
    Tile(128, 64, 64, 64, 2),
    Tile(64, 128, 64, 64, 2),
    Tile(96, 96, 48, 96, 2),
)
# Shared memory keeps these under 85 % of the tensor cores' time, as tensor_core.cu says: for problems of few tiles, the
# first with a warp for each scheduler, and for few filters.
LOW_TILES = (Tile(64, 64, 32, 32), Tile(32, 64, 32, 64, 2), Tile(128, 32, 128, 32, 2))
TILES = BUSY_TILES + LOW_TILES
# Of reductions of so many stages, whose loop is little: more that fill waves.
SHORT = 4
WIDEST, NARROWEST = Tile(192, 48, 96, 48), Tile(144, 8, 16, 8)
SHORT_TILES = (
    Tile(128, 64, 64, 32),
    Tile(64, 128, 32, 64, 2),
    Tile(32, 96, 32, 48, 2),
    WIDEST,
    Tile(32, 32, 16, 16),
    Tile(96, 16, 16, 16, 2),
    Tile(80, 16, 16, 16, 2),
    Tile(176, 16, 16, 16),
    NARROWEST,
)
PRECISE_TILES = (
    Tile(128, 128, 64, 32),
    Tile(128, 64, 64, 32),
    Tile(64, 128, 32, 64),
    Tile(64, 64, 32, 32),
    Tile(128, 32, 32, 32),
    Tile(64, 32, 32, 32, 2),
    Tile(32, 64, 32, 32, 2),
)

COUNT_BYTES = 4  # of a tile, how many of its splits have come
# Instructions beside multiplying: of each thread and stage, for addresses, copies, ldmatrix and the barrier; of each
# element of x, where it is loaded by itself: from a stage of one tap, chunks of one, taps inner; there of each step
# too, which serves the pixels of a thread: found in a table, as whole chunks, alone with a bit for each tap of a
# window or without, or worked out. With those that multiply they are within a fifth of every tile's loop as it is
# compiled.
LOOP_SLOTS = 60
ONE_TAP_SLOTS, CHUNK_SLOTS = 2, 3
RUN_SLOTS, BITS_SLOTS, TABLE_SLOTS, TAPS_SLOTS = (2.6, 0), (3.2, 0.8), (3.8, 1), (4.5, 14)
MOST_PADDED = 0.1  # of a row of a window
WAITING = cost.waiting("cupy_raw.tensor_core", like="cupy_raw.implicit_gemm")

passes = ("forward",)


def tiles_of(problem):
    """Those for which a thread has registers enough: three products leave none for warps of 64 x 64, and several stages
    with taps inner none for warps of 96 x 48.
    """
    if problem.precision == "3xtf32":
        return PRECISE_TILES
    reduction = reduction_of(problem)
    is_short = reduction.stages <= (1 if reduction.taps_inner else SHORT)
    return TILES + SHORT_TILES * is_short


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return chosen(device, predictions(problem, device, cuts(problem, device), parts))


def cuts(problem, device):
    tiles = tiles_of(problem)
    if device.compute_capability < (8, 0) and reduction_of(problem).stages > 1:  # registers bring weights, too, there
        tiles = [tile for tile in tiles if tile != WIDEST]
    return with_staying(device, with_splits(device, [cut_of(problem, tile) for tile in tiles]))


def cut_of(problem, tile, splits=1, first=0):
    """All tiles whole, or all but the first in so many splits."""
    blocks = blocks_per_sm(tile, problem.precision)
    all_whole = whole_cut(problem, tile, blocks, reduction_of(problem), problem.dtype.itemsize)
    return split_cut(all_whole, splits, first)


def reduction_of(problem):
    """Channels inner where they fill a chunk: padding the last one costs less than the other order's divisions."""
    chunk = chunk_of(problem)
    taps_inner = problem.Cg < chunk
    channels = problem.Cg if taps_inner else round_up(problem.Cg, chunk)
    stage = depth_of(problem)
    depth = round_up(problem.R * (tap_row(problem) if taps_inner else problem.S) * channels, stage)
    return Reduction(depth, depth // stage, channels, taps_inner)


def tap_row(problem):
    """Taps inner: rows of windows that have no bits of taps are padded to whole chunks, if that is little."""
    row = round_up(problem.S, chunk_of(problem))
    little = row - problem.S <= MOST_PADDED * problem.S and not has_bits(problem, problem.S, chunk_of(problem))
    return row if little and fits_in_runs(problem, row) else problem.S


def fits_in_runs(problem, row):
    """Whether chunks are runs of taps of one row, and the table has room for them; chunks of floats are too short."""
    chunk = chunk_of(problem)
    runs = round_up(problem.Cg * problem.R * row, depth_of(problem)) // chunk
    fits = row <= 32 and problem.R <= NO_ROW and runs <= MOST_FOUND
    return problem.dtype.itemsize == 2 and row % chunk == 0 and fits


def found_steps(problem, cut, wide=False):
    """Taps inner: how many steps of the reduction lie in a table, and how many neighbours are found by each."""
    several = cut.taps_inner and cut.depth > depth_of(problem) and not wide
    if several and fits_in_runs(problem, tap_row(problem)) and not has_bits_of_taps(problem, cut):
        return cut.depth // chunk_of(problem), chunk_of(problem)
    return table_steps(problem, cut.depth, wide), 1


def parts(problem, device, cut):
    stages, beside = (cut.depth // depth_of(problem), cut.stages), beside_slots(problem, cut)
    blocks = [block_of(problem, device, cut.tile, count, beside) for count in stages]
    return Parts(
        WAITING * cost.wave_seconds(device, (cut.whole, cut.parts), cut.blocks_per_sm, blocks),
        cost.adding_seconds(device, cut.split_tiles, cut.splits, cut.tile_bytes),
        cost.memory_seconds(problem, device, 2 * cut.packed_bytes),
        2 * cost.LAUNCH,
    )


def beside_slots(problem, cut):
    """Of a block and a stage, beside multiplying."""
    gathering = 0 if vectors_of(problem) else gather_slots(problem, cut) * cut.tile.rows * depth_of(problem)
    return LOOP_SLOTS * cut.tile.threads + gathering


def gather_slots(problem, cut):
    if cut.taps_inner:
        count, run = found_steps(problem, cut)
        found = RUN_SLOTS if run > 1 else BITS_SLOTS if has_bits_of_taps(problem, cut) else TABLE_SLOTS
        element, step = found if count else TAPS_SLOTS
        return element + step * pixels_at_once(cut.tile) / cut.tile.rows
    return CHUNK_SLOTS if problem.Cg % depth_of(problem) else ONE_TAP_SLOTS


def has_bits_of_taps(problem, cut):
    """BITS_OF_TAPS of tensor_core_walks.cuh, where steps lie in a table."""
    steps = pixels_at_once(cut.tile) * CHUNKS // cut.tile.threads * chunk_of(problem)  # of a pixel, of one thread
    several = cut.depth > depth_of(problem)
    return problem.dtype.itemsize == 2 and several and has_bits(problem, problem.S, steps)


def pixels_at_once(tile):
    """How many pixels a block's threads gather beside each other, taps inner; AT_ONCE of tensor_core_walks.cuh."""
    fewest = max(32, tile.threads // CHUNKS)
    return fewest if fewest * CHUNKS % tile.threads == 0 else min(tile.rows, tile.threads)


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
    }
    return [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def packing_blocks(problem, cut):
    """A thread for every weight, and for every count."""
    return ceil_div(max(problem.groups * cut.depth * cut.filters, cut.split_tiles), THREADS)


def packed_bytes(problem, device):
    """Behind the weights, a count for each split tile: zero before a call, and zero again behind it."""
    cut = cut_for(problem, device)
    return cut.packed_bytes + round_up(COUNT_BYTES * cut.split_tiles, 64)


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
    """The kernels: pack the weights, and multiply; by default for arrays as the layout has them."""
    lying = lying or lying_as_planned(problem)
    cut = cut_for(problem, device)
    return sources_of(problem, cut, stages_held(cut.tile, device), wide, lying)


def lying_as_planned(problem):
    """As fresh arrays lie in the problem's layout."""
    chunk, last = chunk_of(problem), problem.layout == "NHWC"
    whole = problem.Kg % chunk == 0 if last else problem.P * problem.Q % chunk == 0
    return Lying(vectors_of(problem), last, chunk if whole else 1)


def apart_as_planned(problem):
    """How far channels of x lie apart; taps inner, neighbours of a row."""
    if problem.Cg < chunk_of(problem):
        return 1 if problem.layout == "NCHW" else problem.C
    return problem.H * problem.W if problem.layout == "NCHW" else 1


@lru_cache(maxsize=4096)
def sources_of(problem, cut, stages, wide, lying, apart=None):
    x_apart = 1 if lying.together else apart_as_planned(problem) if apart is None else apart
    shared = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    dropped, depth = 0 if cut.taps_inner else -problem.Cg % chunk_of(problem), depth_of(problem)
    own = (*shared, *constants(problem, cut.tile, stages), ("DROPPED", dropped))
    own += (("ONE_TAP", int(problem.Cg % depth == 0)), ("LONG_TAPS", int(cut.channels >= depth)))
    steps, run = found_steps(problem, cut, wide)
    gathers_runs = not cut.taps_inner or run > 1
    own += (("TOGETHER", int(lying.together)), ("X_APART", x_apart if gathers_runs else 0))
    own += (("TAPS_INNER", int(cut.taps_inner)),)
    own += (("SPLIT", int(cut.splits > 1)), ("STAYING", int(cut.staying > 0)), ("RUN", lying.run))
    own += (("ALONG_FILTERS", int(lying.along_filters)), ("ONE_STAGE", int(cut.depth == depth_of(problem))))
    row = tap_row(problem) if cut.taps_inner else problem.S
    own += (("TABLE_STEPS", steps), ("TAP_ROW", row), ("RUN_OF_TAPS", run))
    return tuple(CudaSource("tensor_core.cu", name, own) for name in ("pack_filters", "conv2d_tensor_core"))


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


def pack(problem, device, w, packed, stream=None):
    """Write w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), stage by stage."""
    cut, wide = cut_for(problem, device), is_wide(problem, w=w)
    kernel, _ = sources_of(problem, cut, stages_held(cut.tile, device), wide, lying_as_planned(problem))
    arguments = (w, packed, counts_in(packed, cut), problem_struct(problem, w=w), cut_struct(problem, cut))
    launch(kernel, packing_blocks(problem, cut), THREADS, arguments, stream=stream)


def counts_in(packed, cut):
    """How many splits of each split tile have come, behind the packed weights; None if there are none."""
    return packed[cut.packed_bytes :] if cut.splits > 1 else None


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. w: as `pack` leaves it, workspace: `workspace_bytes`, 64-byte aligned.

    Or with the weights as they are, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    cut, packed = cut_for(problem, device), w
    if w.ndim == 4:
        size = packed_bytes(problem, device)
        packed, workspace = workspace[:size], workspace[size:]
        pack(problem, device, w, packed, stream)
    struct, part = problem_struct(problem, x, None, y, bias, residual), cut_struct(problem, cut)
    partial = workspace if cut.splits > 1 else None
    wide, lying = is_wide(problem, x, None, y, residual), lying_of(problem, x, y, residual)
    apart, stages = x.strides[3 if cut.taps_inner else 1] // x.itemsize, stages_held(cut.tile, device)
    _, multiply = sources_of(problem, cut, stages, wide, lying, apart)

    count, run = found_steps(problem, cut, wide)
    steps = steps_struct(problem, x, count, run, tap_row(problem))
    arguments = (x, packed, y, bias, residual, partial, counts_in(packed, cut), struct, part, steps)
    launch(multiply, cut.blocks, cut.tile.threads, arguments, stream=stream)
