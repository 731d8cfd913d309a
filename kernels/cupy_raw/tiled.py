"""Tiled convolution: input with its halo and weights in shared memory, several outputs per thread in registers.

tiled.cu tells the idea; this file chooses the tile and launches it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .parameters import (
    is_wide,
    layout_constants,
    problem_struct,
    size_reasons,
    store_constants,
    type_constants,
    window_constants,
)

SHARED_BYTES = 48 * 1024  # what every GPU gives a block that does not ask for more

WAITING = cost.waiting("cupy_raw.tiled")

passes = ("forward",)


class Tile(NamedTuple):
    """The constants of tiled.cu. A warp's lanes span COLUMNS outputs; each has ROWS x FILTERS outputs."""

    columns: int
    rows: int
    filters: int
    warps_p: int
    warps_k: int
    channels: int

    @property
    def shape(self):
        """Filters, output rows and output columns of one block."""
        return self.warps_k * self.filters, self.warps_p * (32 // self.columns) * self.rows, self.columns

    @property
    def threads(self):
        return 32 * self.warps_p * self.warps_k


# Warps across the filters and rows per lane: many filters share a staged pixel, many rows a staged weight.
SHAPES = (
    (8, 4, 4, 2),
    (8, 4, 2, 4),
    (8, 4, 2, 2),
    (8, 4, 2, 1),
    (8, 2, 1, 2),
    (1, 8, 4, 1),
    (1, 4, 4, 1),
    (1, 4, 1, 1),
    (1, 2, 1, 1),
)
STAGING = 30  # instructions to stage one word, counted in the machine code
BARRIERS = 100  # slots that a thread idles at the two barriers of a stage


@lru_cache(maxsize=1024)
def tile_for(problem, device):
    """The tile that fits shared memory and is predicted to be the fastest; None where none fits."""
    halved = problem.accumulate.itemsize // 4  # a float64 takes two registers
    tiles = [
        Tile(columns, rows, max(filters // halved, 1), warps_p, warps_k, channels)
        for filters, rows, warps_p, warps_k in SHAPES
        for columns in (32, 16, 8)
        for channels in sorted({min(problem.Cg, most) for most in (8, 4, 2, 1)}, reverse=True)
    ]
    fitting = [tile for tile in tiles if shared_bytes(problem, tile) <= SHARED_BYTES]
    return min(fitting, key=lambda tile: compute_seconds(problem, device, tile), default=None)


def compute_seconds(problem, device, tile):
    """Multiply-adds, shared loads and staging of every block, and two barriers for each stage of channels."""
    taps = problem.R * problem.S
    k = tile.shape[0]
    height, width = staged_shape(problem, tile)
    unrolls = problem.R * tile.rows * tile.filters <= 512  # as in tiled.cu: then rows share what they read
    pixel_loads = (staged_rows(problem, tile.rows) if unrolls else tile.rows * problem.R) * problem.S
    weight_loads = taps * ceil_div(tile.filters * problem.accumulate.itemsize, 16)
    multiply_adds = taps * tile.rows * tile.filters * cost.multiply_slots(problem, device)
    staging = STAGING * (height * width + taps * k) / tile.threads
    per_channel = multiply_adds + pixel_loads + weight_loads + staging
    per_thread = problem.Cg * per_channel + ceil_div(problem.Cg, tile.channels) * BARRIERS
    return cost.block_seconds(device, block_count(problem, tile), tile.threads, tile.threads * per_thread)


def staged_rows(problem, rows):
    """Rows of input that one lane reads for `rows` rows of output."""
    return (rows - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1


def staged_shape(problem, tile):
    _, p, q = tile.shape
    height = (p - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1
    width = (q - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1
    return height, width


def shared_bytes(problem, tile):
    """At most what tiled.cu declares, with its pitches: the compiler says how much exactly."""
    k = tile.shape[0]
    height, width = staged_shape(problem, tile)
    phase = ceil_div(width, problem.stride[1]) * problem.stride[1]
    pitch = row_pitch(problem, tile, phase)
    plane = height * pitch
    if problem.layout == "NHWC":
        plane += (36 - plane % 32) % 32
    vector = 16 // problem.accumulate.itemsize
    filter_pitch = k if k % (2 * vector) else k + vector
    words = tile.channels * (plane + problem.R * problem.S * filter_pitch)
    return words * problem.accumulate.itemsize + 16


def row_pitch(problem, tile, width):
    """As row_pitch in tiled.cu: the first pitch that sends the lanes of the next rows to other banks."""
    banks = 128 // problem.accumulate.itemsize
    step = tile.rows * problem.stride[0]

    def free(pitch):
        shifts = [apart * step * pitch % banks for apart in range(1, banks // tile.columns)]
        return all(tile.columns <= shift <= banks - tile.columns for shift in shifts)

    return next((pitch for pitch in range(width, width + banks) if free(pitch)), width)


def block_count(problem, tile):
    k, p, q = tile.shape
    tiles = ceil_div(problem.P, p) * ceil_div(problem.Q, q) * ceil_div(problem.Kg, k)
    return problem.N * problem.groups * tiles


def why_not(problem, device):
    reasons = size_reasons(problem)
    tile = tile_for(problem, device)
    if tile is None:
        reasons.append(
            f"input and weights of one tile must fit {SHARED_BYTES:,} bytes of shared memory; a {problem.R} x "
            f"{problem.S} window with stride {problem.stride} and dilation {problem.dilation} does not"
        )
    elif block_count(problem, tile) > MAX_GRID[0]:
        reasons.append(f"at most {MAX_GRID[0]:,} blocks, this problem has {block_count(problem, tile):,}")
    return reasons


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    compute = compute_seconds(problem, device, tile_for(problem, device))
    return max(WAITING * compute, cost.memory_seconds(problem, device)) + cost.LAUNCH


def source(problem, device, wide=False):
    return source_of(problem, tile_for(problem, device), wide)


@lru_cache(maxsize=4096)
def source_of(problem, tile, wide):
    names = ("COLUMNS", "ROWS", "FILTERS", "WARPS_P", "WARPS_K", "CHANNELS")
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += layout_constants(problem) + tuple(zip(names, tile, strict=True))
    return CudaSource("tiled.cu", "conv2d_tiled", constants)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y."""
    tile = tile_for(problem, device)
    struct = problem_struct(problem, x, w, y, bias, residual)
    arguments = (x, w, y, bias, residual, struct)
    kernel = source(problem, device, is_wide(problem, x, w, y, residual))
    launch(kernel, block_count(problem, tile), tile.threads, arguments, stream=stream)
