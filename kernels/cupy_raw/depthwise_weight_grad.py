"""Weight gradient of a depthwise convolution: x and grad_y each read once. depthwise_weight_grad.cu tells the idea.

This file cuts planes and images into tiles, and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from . import depthwise_tiles as forward
from .depthwise import DIVISOR, PITCHES, divisor, is_contiguous, pitches
from .depthwise_tiles import (
    ALIGNED,
    MOST_THREADS,
    SHARED_BYTES,
    THREAD_SLOTS,
    TILE_AT,
    alike,
    covers,
    few_or_halved,
    halved,
    possible_columns,
    shared_bytes,
    shared_words,
    sides,
    staged,
)
from .implicit_gemm import address_of
from .parameters import is_wide, problem_struct, size_reasons, type_constants, window_constants
from .weight_grad import THREADS
from .weight_grad_splits import splits_struct

WARP = 32
MOST_TURNS = 4  # of a thread: a tile of 256 columns and channels has a wide halo
ROWS = (2, 3, 4, 5, 7, 8)  # of grad_y that a thread takes, one below the other
SHARES = 257  # words to add up one tap, as in depthwise_weight_grad.cu
MOST_TAPS = 49  # sums that a thread keeps
MOST_READ = 64  # rows of x that a thread reads: what the unrolled loop over them may come to
BLOCKS_PER_SM = 4  # to have, if there are images and rows enough
MOST_SPLITS = 256
MOST_SUMS = 16  # times the bytes of a split's sums: what it reads at least, if there is so much
ADDING_SLOTS = 40  # issue slots per thread and tap, to add up

passes = ("weight_grad",)

SIZES = ("planes", "strips", "columns", "across_p", "across_q", "groups", "items", "each", "grad_at")
TILE = np.dtype(
    [*((name, "i4") for name in SIZES), ("by_columns", DIVISOR), ("by_strips", DIVISOR), ("x", PITCHES),
     ("grad", PITCHES)]
)  # fmt: skip


class Tile(NamedTuple):
    """How planes and images are cut into blocks; see depthwise_weight_grad.cu. words: of shared memory."""

    side: int
    rows: int
    planes: int
    strips: int
    columns: int
    taps_r: int
    taps_s: int
    across_p: int
    across_q: int
    groups: int
    items: int
    each: int
    width: int
    row_pitch: int
    plane_pitch: int
    grad_row_pitch: int
    grad_plane_pitch: int
    grad_at: int
    words: int

    jobs, turns, threads = forward.Tile.jobs, forward.Tile.turns, forward.Tile.threads

    @property
    def down(self):
        return self.strips * self.rows

    @property
    def splits(self):
        return ceil_div(self.items, self.each)

    def grid(self, problem):
        return self.groups * ceil_div(problem.R, self.taps_r) * ceil_div(problem.S, self.taps_s), self.splits


@lru_cache(maxsize=4096)
def tile_for(problem, device):
    """The tile that fits shared memory and is predicted to be the fastest; None where none fits."""
    possible = list(tiles(problem, device))
    tile = forward.best(problem, device, possible, block_bytes, seconds)
    tile = tile and forward.busier(problem, device, tile, possible, block_bytes, seconds, launches=2)
    return tile and without_conflicts(problem, device, tile)


def without_conflicts(problem, device, tile):
    """As depthwise_tiles.py has it, for x."""
    if tile.planes == 1:
        return tile
    step = 16 // problem.dtype.itemsize
    spaced = [
        tile_of(problem, device, tile.side, tile.rows, tile.planes, tile.strips, tile.columns,
                (tile.taps_r, tile.taps_s), further * step)
        for further in range(forward.BANKS)
    ]  # fmt: skip
    fitting = (spread for spread in spaced if shared_bytes(problem, spread) <= SHARED_BYTES)
    return min(fitting, key=lambda spread: forward.wavefronts(problem, spread))


def tiles(problem, device):
    taps = taps_at_once(problem)
    for side in sides(problem):
        columns_of_a_tile = possible_columns(problem, side)
        if in_turns(problem, side):
            columns_of_a_tile = sorted({*columns_of_a_tile, min(problem.Q, MOST_TURNS * MOST_THREADS // side)})
        for columns in columns_of_a_tile:
            for rows in ROWS:
                if rows > ROWS[0] and staged(rows, taps[0], problem.stride[0], problem.dilation[0]) > MOST_READ:
                    continue
                most = MOST_THREADS * (MOST_TURNS if in_turns(problem, side) else 1) // (columns * side)
                for strips in few_or_halved(min(ceil_div(problem.P, rows), most)):
                    whole = columns == problem.Q and strips * rows >= problem.P and side == 1
                    whole = whole and covers(problem, strips * rows, taps[0])
                    for planes in halved(min(MOST_THREADS // (strips * columns), problem.C) if whole else 1):
                        yield tile_of(problem, device, side, rows, planes, strips, columns, taps)


def in_turns(problem, side):
    """Whether threads may take several strips, and grad_y from where it lies: channels last, whole sectors of them."""
    return side != problem.C and side > 1 and WARP % side == 0


def taps_at_once(problem):
    """All of a small window, else columns of it, or a column in pieces."""
    if problem.R * problem.S <= MOST_TAPS:
        return problem.R, problem.S
    rows = ceil_div(problem.R, ceil_div(problem.R, MOST_TAPS))
    return rows, max(MOST_TAPS // rows, 1)


def tile_of(problem, device, side, rows, planes, strips, columns, taps, further=0):
    across_q = ceil_div(problem.Q, columns)
    height = staged(strips * rows, taps[0], problem.stride[0], problem.dilation[0])
    width, row_pitch, grad_row_pitch = problem.W, problem.W * side, problem.Q * side
    if across_q > 1:
        width = staged(columns, taps[1], problem.stride[1], problem.dilation[1])
        row_pitch, grad_row_pitch = (
            alike(problem, width * side, problem.W * side),
            alike(problem, columns * side, problem.Q * side),
        )
    plane_pitch = alike(problem, height * row_pitch, problem.H * problem.W * side) + further
    grad_plane_pitch = alike(problem, strips * rows * grad_row_pitch, problem.P * problem.Q * side)
    grad_at = TILE_AT + ALIGNED + ceil_div(planes * plane_pitch, ALIGNED) * ALIGNED
    grad_words = 0 if in_turns(problem, side) else ALIGNED + planes * grad_plane_pitch
    words = max(grad_at + grad_words, TILE_AT + SHARES)
    across_p, groups = ceil_div(problem.P, strips * rows), ceil_div(ceil_div(problem.C, side), planes)
    items = problem.N * across_p * across_q
    wanted = ceil_div(BLOCKS_PER_SM * cost.sm_count(device), groups)
    fewest = min(fewest_items(problem, device, across_p * across_q), items)
    each = max(ceil_div(items, min(wanted, MOST_SPLITS)), fewest)
    return Tile(
        side, rows, planes, strips, columns, *taps, across_p, across_q, groups, items, each, width, row_pitch,
        plane_pitch, grad_row_pitch, grad_plane_pitch, grad_at, words,
    )  # fmt: skip


def fewest_items(problem, device, across):
    """Of one split, so that its sums, written and read again, are few beside what it reads. across: tiles per plane."""
    if forward.lies_in_l2(problem, device):
        return 1
    item = (problem.H * problem.W + problem.P * problem.Q) * problem.dtype.itemsize / across
    return math.ceil(MOST_SUMS * 2 * problem.R * problem.S * problem.accumulate.itemsize / item)


def seconds(problem, device, tile):
    """The busiest SM's blocks: what they issue, or what they move, whichever takes longer; then the splits' sums."""
    slots = tile.threads * thread_slots(problem, device, tile)
    per_block = forward.block_seconds(problem, device, tile, slots, block_bytes(problem, tile))
    partial = 2 * tile.splits * problem.K * problem.R * problem.S * problem.accumulate.itemsize
    return per_block + partial / (cost.bytes_per_second(device) * cost.sm_count(device))


def thread_slots(problem, device, tile):
    """Issue slots of one thread, in all its tiles."""
    taps, read = tile.taps_r * tile.taps_s, staged(tile.rows, tile.taps_r, problem.stride[0], problem.dilation[0])
    multiply = taps * tile.rows * cost.multiply_slots(problem, device) + 2 * tile.taps_s * read + 2 * tile.rows
    words = item_elements(problem, tile)
    staging = forward.staging_slots(problem, tile) * words / tile.threads
    return tile.each * (tile.turns * multiply + staging + THREAD_SLOTS) + ADDING_SLOTS * taps


def item_elements(problem, tile):
    """What a block stages for one tile, of x and of grad_y."""
    x = forward.staged_elements(problem, tile, (tile.taps_r, tile.taps_s))
    return x + forward.outputs_of(problem, tile)


def block_bytes(problem, tile):
    """What a block moves, in whole sectors; a window taken in chunks of taps is read once for each."""
    apart = forward.torn_sectors(problem, tile, 3 * tile.strips * tile.rows)
    sums = 2 * tile.planes * tile.side * tile.taps_r * tile.taps_s * problem.accumulate.itemsize
    return tile.each * (item_elements(problem, tile) * problem.dtype.itemsize + apart * forward.SECTOR) + sums


def why_not(problem, device):
    if (problem.Cg, problem.Kg) != (1, 1):
        return [f"takes one channel and one filter per group, this problem has {problem.Cg} and {problem.Kg}"]
    reasons, tile = size_reasons(problem) + forward.plane_reasons(problem), tile_for(problem, device)
    if tile is None:
        return [*reasons, forward.too_large(problem)]
    blocks = tile.grid(problem)[0]
    for name, got in (("blocks", blocks), ("tiles of all images", tile.items)):
        if got > MAX_GRID[0]:
            reasons.append(f"at most {MAX_GRID[0]:,} {name}, this problem has {got:,}")
    return reasons


def workspace_bytes(problem, device):
    return tile_for(problem, device).splits * problem.K * problem.R * problem.S * problem.accumulate.itemsize


def predicted_seconds(problem, device):
    return (
        max(seconds(problem, device, tile_for(problem, device)), cost.memory_seconds(problem, device)) + 2 * cost.LAUNCH
    )


def sources(problem, device, wide=False):
    """The kernels, for arrays without gaps: multiply and sum, and add the splits."""
    tile = tile_for(problem, device)
    return sources_of(problem, tile, wide, forward.staging(problem, tile, True))


@lru_cache(maxsize=4096)
def sources_of(problem, tile, wide, staging):
    constants = type_constants(problem, wide) + window_constants(problem)
    own = (("STAGING", staging), ("SIDE", tile.side), ("SHARED_WORDS", shared_words(problem, tile)))
    own += (("ROWS", tile.rows), ("SEVERAL", int(tile.planes > 1)), ("TAPS_R", tile.taps_r), ("TAPS_S", tile.taps_s))
    own += (("TURNS", tile.turns), ("GRAD_STAGED", int(not in_turns(problem, tile.side))))
    multiply = CudaSource("depthwise_weight_grad.cu", "conv2d_depthwise_weight_grad", constants + own)
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", constants)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, 1, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    tile = tile_for(problem, device)
    contiguous = is_contiguous(problem, x) and is_contiguous(problem, grad_y)
    aligned = address_of(x) % 16 == address_of(grad_y) % 16 == 0
    how = forward.staging(problem, tile, contiguous, aligned)
    multiply, finish = sources_of(problem, tile, is_wide(problem, x, grad_w, grad_y, None), how)
    struct = problem_struct(problem, x, grad_w, grad_y, None, None)
    arguments = (x, grad_y, workspace, struct, tile_struct(problem, tile))
    launch(multiply, tile.grid(problem), tile.threads, arguments, stream=stream)
    cut = Cut(0, 1, problem.R * problem.S, tile.splits)
    weights = ceil_div(problem.K * problem.R * problem.S, THREADS)
    launch(finish, weights, THREADS, (workspace, grad_w, struct, splits_struct(problem, cut)), stream=stream)


class Cut(NamedTuple):
    """What finish_weight_grad.cu wants to know of the splits."""

    pixels: int
    filters: int
    columns: int
    splits: int


@lru_cache(maxsize=4096)
def tile_struct(problem, tile):
    """`struct Tile`."""
    struct = np.zeros((), TILE)
    for name in SIZES:
        struct[name] = getattr(tile, name)
    struct["by_columns"], struct["by_strips"] = divisor(tile.columns), divisor(tile.strips)
    struct["x"] = pitches(problem, tile, problem.H * problem.W, tile.width, tile.row_pitch, tile.plane_pitch)
    columns = problem.Q if tile.across_q == 1 else tile.columns
    struct["grad"] = pitches(problem, tile, problem.P * problem.Q, columns, tile.grad_row_pitch, tile.grad_plane_pitch)
    struct.flags.writeable = False
    return struct
