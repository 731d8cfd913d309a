"""Weight gradient on tensor cores: an implicit product over the output pixels, in two steps without atomics.

tensor_core_weight_grad.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .cut import DIVISOR, chosen, divisor, round_up
from .parameters import is_wide, problem_struct, type_constants, window_constants
from .tensor_core_tile import (
    CHUNKS,
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
from .weight_grad import THREADS
from .weight_grad_splits import MOST_SPLITS, affordable, blocks, cut_reasons, grid, splits_struct

TILES = (
    Tile(128, 128, 64, 64),
    Tile(128, 128, 64, 64, 2),
    Tile(128, 64, 64, 64, 2),
    Tile(64, 128, 64, 64, 2),
    Tile(64, 64, 64, 64, 2),
    Tile(64, 64, 32, 32, 2),  # eight warps, for few tiles
)
# Taps inner: a thread that gathers more has what it finds of a pixel for more. The last has four warps, for few tiles.
TAPS_TILES = (
    Tile(128, 128, 64, 64),
    Tile(128, 128, 64, 64, 2),
    Tile(128, 64, 64, 64),
    Tile(64, 128, 64, 64, 2),
    Tile(64, 64, 64, 64),
    Tile(64, 64, 32, 32),
)
PRECISE_TILES = (  # three products and 64-bit offsets leave too few registers for larger warps
    Tile(128, 128, 64, 32),
    Tile(64, 128, 32, 64),
    Tile(64, 64, 32, 32),
)

RUN_OF_TAPS = 4  # taps inner: neighbours in a row of a window, of which one is found
# Instructions beside multiplying, but of three products within a fifth of every tile's loop as compiled: of each thread
# and stage, and more taps inner, for the bits of a window; of each chunk; of each element gathered by itself; of that,
# taps inner, where steps lie in a table, in runs or alone, and where a stage finds them.
LOOP_SLOTS, WINDOW_SLOTS, CHUNK_SLOTS = 40, 20, {"CHANNELS": 10, "PIXELS": 5, "NONE": 10}
GATHER_SLOTS, TABLE_SLOTS, TAPS_SLOTS = 1.5, {RUN_OF_TAPS: 2.2, 1: 3.3}, 22
WAITING = cost.waiting("cupy_raw.tensor_core_weight_grad", like="cupy_raw.implicit_gemm")

passes = ("weight_grad",)


class Cut(NamedTuple):
    """How the product is cut into blocks; filters, columns and pixels of a split as `struct Splits` has them; tap_row:
    how many taps of a window's row, with those that pad it.
    """

    tile: Tile
    blocks_per_sm: int
    taps_inner: bool
    tap_row: int
    filters: int
    columns: int
    pixels: int
    splits: int
    partial_bytes: int
    tiles: int

    grid, blocks = grid, property(blocks)


class Lying(NamedTuple):
    """Of which 16 bytes lie side by side in memory, of x and of grad_y: CHANNELS, PIXELS or NONE; y_even: of CHANNELS,
    whether all pixels lie equally far from the next.
    """

    x_together: str
    y_together: str
    y_even: bool = False


def tiles_of(problem):
    """Those for which a thread has registers enough."""
    if problem.precision == "3xtf32":
        return PRECISE_TILES
    return TAPS_TILES if problem.Cg < chunk_of(problem) else TILES


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    """Of those that cut.py would choose from."""
    return chosen(device, {cut: seconds(problem, device, cut) + 2 * cost.LAUNCH for cut in cuts(problem, device)})


def cuts(problem, device):
    return affordable(cut_of(problem, tile, n) for tile in tiles_of(problem) for n in possible_splits(problem))


def possible_splits(problem):
    """1, and more by about a tenth each time, up to a stage for each."""
    most = min(ceil_div(problem.reduction, depth_of(problem)), MOST_SPLITS)
    return sorted({min(most, math.ceil(1.1**i)) for i in range(59)})


def cut_of(problem, tile, splits):
    depth, taps_inner = depth_of(problem), problem.Cg < chunk_of(problem)
    all_stages = ceil_div(problem.reduction, depth)
    stages = ceil_div(all_stages, splits)
    splits = ceil_div(all_stages, stages)
    channels = problem.Cg if taps_inner else round_up(problem.Cg, chunk_of(problem))
    row = tap_row(problem, tile) if taps_inner else problem.S
    filters, columns = round_up(problem.Kg, tile.filters), round_up(problem.R * row * channels, tile.rows)
    partial = splits * problem.groups * filters * columns * problem.accumulate.itemsize
    resident = blocks_per_sm(tile, problem.precision)
    tiles = problem.groups * (filters // tile.filters) * (columns // tile.rows)
    return Cut(tile, resident, taps_inner, row, filters, columns, stages * depth, splits, partial, tiles)


def tap_row(problem, tile):
    """Taps inner: rows of a window are padded to whole runs where it has bits enough, and that takes no more tiles."""
    padded = round_up(problem.S, RUN_OF_TAPS)
    tiles = [ceil_div(problem.Cg * problem.R * row, tile.rows) for row in (problem.S, padded)]
    return padded if tiles[0] == tiles[1] and has_bits(problem, padded, chunk_of(problem)) else problem.S


def found_steps(problem, cut, wide=False):
    """Taps inner: how many steps of the reduction lie in a table, and how many neighbours are found by each."""
    runs = cut.tap_row % RUN_OF_TAPS == 0 and has_bits(problem, cut.tap_row, chunk_of(problem))
    in_runs = table_steps(problem, cut.columns // RUN_OF_TAPS, wide) if runs else 0
    return (in_runs, RUN_OF_TAPS) if in_runs else (table_steps(problem, cut.columns, wide), 1)


def seconds(problem, device, cut):
    """The busiest SM's blocks, or x and grad_y out of memory, then what splits write and read again."""
    block = block_of(problem, device, cut.tile, cut.pixels / depth_of(problem), beside_slots(problem, device, cut))
    multiply = WAITING * cost.seconds_of(device, cut.blocks, block)
    least = cost.memory_seconds(problem, device)
    return max(multiply, least) + cost.passing_seconds(device, cut.partial_bytes)


def beside_slots(problem, device, cut):
    """Of a block and a stage, beside multiplying."""
    tile, depth, lying = cut.tile, depth_of(problem), lying_as_planned(problem)
    slots = (LOOP_SLOTS + WINDOW_SLOTS * cut.taps_inner) * tile.threads
    slots += round_slots(problem, device) * tile.matrix_bytes / 4
    slots += CHUNK_SLOTS[lying.x_together] * tile.rows * CHUNKS + CHUNK_SLOTS[lying.y_together] * tile.filters * CHUNKS
    if lying.x_together == "NONE":
        slots += (taps_slots(problem, cut) if cut.taps_inner else GATHER_SLOTS) * tile.rows * depth
    if lying.y_together == "NONE":
        slots += GATHER_SLOTS * tile.filters * depth
    return slots


def round_slots(problem, device):
    """To round a word that a warp loads to TF32."""
    return {None: 0, "tf32": 1 if device.compute_capability >= (9, 0) else 2, "3xtf32": 3}[problem.precision]


def taps_slots(problem, cut):
    count, run = found_steps(problem, cut)
    return TABLE_SLOTS[run] if count else TAPS_SLOTS


def why_not(problem, device):
    return dtype_reasons(problem, device) or cut_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device)) + 2 * cost.LAUNCH


def lying_as_planned(problem):
    """As fresh arrays lie in the problem's layout."""
    chunk = chunk_of(problem)
    if problem.layout == "NHWC":
        x, y = ("NONE" if channels % chunk else "CHANNELS" for channels in (problem.Cg, problem.Kg))
        return Lying(x, y, y == "CHANNELS")
    y = "NONE" if problem.P * problem.Q % chunk else "PIXELS"
    return Lying(y if reads_every_pixel(problem) else "NONE", y)


def reads_every_pixel(problem):
    """Whether columns are channels: no window, stride or padding comes between pixels of x that lie side by side."""
    plain = problem.stride == (1, 1) and (problem.P, problem.Q) == (problem.H, problem.W)
    return problem.R == problem.S == 1 and plain and problem.Cg >= chunk_of(problem)


def lying_of(problem, x, grad_y):
    """How these arrays lie."""
    y = together(problem, grad_y, problem.Kg)
    of_x = together(problem, x, problem.Cg)
    x_together = "NONE" if of_x == "PIXELS" and not reads_every_pixel(problem) else of_x
    return Lying(x_together, y, y == "CHANNELS" and is_even(grad_y))


def is_even(array):
    (images, _, rows, columns), (n, _, h, w) = array.shape, array.strides
    return h == columns * w and (images == 1 or n == rows * h)


def together(problem, array, channels):
    chunk, item = chunk_of(problem), array.itemsize
    if channels % chunk == 0 and array.strides[1] == item and aligned(array, (0, 2, 3)):
        return "CHANNELS"
    planes = array.strides[2:] == (array.shape[3] * item, item) and array.shape[2] * array.shape[3] % chunk == 0
    return "PIXELS" if planes and aligned(array, (0, 1)) else "NONE"


def sources(problem, device, wide=False, lying=None):
    """The kernels: multiply, and add the splits; by default for arrays as the layout has them."""
    cut = cut_for(problem, device)
    return sources_of(problem, cut, stages_held(cut.tile, device), wide, lying or lying_as_planned(problem))


def apart_as_planned(problem):
    """How far channels of x lie apart, taps inner, neighbours of a row, and channels of grad_y."""
    taps_inner = problem.Cg < chunk_of(problem)
    if problem.layout == "NCHW":
        return 1 if taps_inner else problem.H * problem.W, problem.P * problem.Q
    return problem.C if taps_inner else 1, 1


@lru_cache(maxsize=4096)
def sources_of(problem, cut, stages, wide, lying, apart=None):
    x_apart, y_apart = apart or apart_as_planned(problem)
    chunk = chunk_of(problem)
    shared = type_constants(problem, wide) + window_constants(problem)
    own = (*shared, *constants(problem, cut.tile, stages), ("TAPS_INNER", int(cut.taps_inner)))
    own += (("X_TOGETHER", lying.x_together), ("Y_TOGETHER", lying.y_together))
    own += (("X_APART", x_apart * (lying.x_together == "NONE")), ("Y_APART", y_apart))
    gathers_x = lying.x_together == "NONE" and not cut.taps_inner
    gathers_y = lying.y_together == "NONE" and problem.Kg >= chunk
    ends = (("X_DROPPED", -problem.Cg % chunk * gathers_x), ("Y_DROPPED", -problem.Kg % chunk * gathers_y))
    own += (("Y_EVEN", int(lying.y_even)), ("Y_WHOLE", int(problem.Kg % cut.tile.filters == 0)))
    own += (*ends, ("Y_COUNT", min(problem.Kg, chunk)))
    steps, run = found_steps(problem, cut, wide)
    own += (("TABLE_STEPS", steps), ("RUN_OF_TAPS", run), ("TAP_ROW", cut.tap_row))
    multiply = CudaSource("tensor_core_weight_grad.cu", "conv2d_tensor_core_weight_grad", own)
    shared += (*ends, ("TAP_ROW", cut.tap_row) if cut.taps_inner else ("CHANNELS_INNER", chunk))
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", shared)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut, wide = cut_for(problem, device), is_wide(problem, x, grad_w, grad_y, None)
    apart = x.strides[3 if cut.taps_inner else 1] // x.itemsize, grad_y.strides[1] // grad_y.itemsize
    lying, stages = lying_of(problem, x, grad_y), stages_held(cut.tile, device)
    multiply, finish = sources_of(problem, cut, stages, wide, lying, apart)
    struct, part = problem_struct(problem, x, grad_w, grad_y, None, None), splits_struct(problem, cut)
    divisors = divisor_struct(problem.Q), divisor_struct(problem.P)
    steps = steps_struct(problem, x, *found_steps(problem, cut, wide), cut.tap_row)
    arguments = (x, grad_y, workspace, struct, part, *divisors, steps)
    launch(multiply, cut.grid(problem), cut.tile.threads, arguments, stream=stream)
    weights = problem.K * problem.Cg * problem.R * problem.S
    launch(finish, ceil_div(weights, THREADS), THREADS, (workspace, grad_w, struct, part), stream=stream)


@lru_cache(maxsize=4096)
def divisor_struct(number):
    """`struct Divisor`."""
    struct = np.array(divisor(number), DIVISOR)
    struct.flags.writeable = False
    return struct
