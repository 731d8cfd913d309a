"""How planes are cut into tiles for the depthwise kernels, and which tile is predicted to be the fastest.

depthwise.cu tells what a tile is; depthwise.py and depthwise_input_grad.py launch them, and depthwise_weight_grad.py
cuts by the same rules.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, ceil_div
from . import waves

MOST_THREADS = 256  # as in depthwise.cu
MOST_TURNS = 2  # of a thread: where channels lie side by side, a tile of 256 columns and channels has a wide halo
SHARED_BYTES = 48 * 1024  # what every GPU gives a block that does not ask for more
SHARED_PER_SM, THREADS_PER_SM = 64 * 1024, 1024  # the least that an SM has, sm_75's
KILOBYTES = (2, 4, 6, 8, 12, 16, 24, 32, 48)  # of shared memory: each is a kernel of its own to compile
TILE_AT, ALIGNED = 8, 8  # words: as in staged_planes.cuh; elements, at most, in 16 bytes
BANKS = 32

ROWS = (2, 3, 4, 5, 7, 8, 14, 16)  # outputs of one thread, one below the other
TALL_ROWS = (2, 4, 8, 16)  # where the window is so tall that more share what is loaded
TALL = 9
SECTOR = 32  # bytes that memory moves at least
MOST_MOVED = 1.185  # times the bytes of x, w and y, as estimated: the bar is 1.2 as counted
MOST_DOWN = 16  # blocks down an image, where each takes several steps
SHORT = 0.25  # of a launch: see lies_in_l2
SLOWER = 1.2  # times the fastest: what a large window's tile may take to move less

# Issue slots, counted in the machine code: of a word staged in a stretch or pixel, or in pieces of rows; of a weight;
# of an output stored; of a thread.
STAGED_SLOTS, PIECES_SLOTS, WEIGHT_SLOTS, STORE_SLOTS, THREAD_SLOTS, MOVED_SLOTS = 6, 12, 20, 8, 200, 4
WARPS_TO_SATURATE = 16  # per SM: what hides the memory's latency
WAITING = cost.waiting("cupy_raw.depthwise", like="cupy_raw.tiled")  # the same staging and barriers


class Tile(NamedTuple):
    """How planes are cut into blocks; see depthwise.cu. side: channels side by side; words: of shared memory.

    steps: how often a block takes strips * rows rows of outputs, each time below those before.
    """

    side: int
    rows: int
    planes: int
    strips: int
    columns: int
    steps: int
    filters: int
    width: int
    row_pitch: int
    plane_pitch: int
    across_p: int
    across_q: int
    all_planes: int
    outputs_at: int
    weights_at: int
    words: int

    @property
    def jobs(self):
        return self.planes * self.strips * self.columns * self.side

    @property
    def down(self):
        return self.strips * self.rows * self.steps

    @property
    def turns(self):
        return ceil_div(self.jobs, MOST_THREADS)

    @property
    def threads(self):
        return ceil_div(ceil_div(self.jobs, self.turns), 32) * 32

    def grid(self, problem):
        groups = ceil_div(self.all_planes, self.planes)
        return groups * self.across_p, self.across_q, ceil_div(problem.Kg, self.filters)


@lru_cache(maxsize=4096)
def tile_for(problem, device):
    """The tile that fits shared memory and is predicted to be the fastest; None where none fits."""
    possible = [*tiles(problem), *descending(problem)]
    if problem.R >= TALL:
        possible = fast_enough(problem, device, possible)
    tile = best(problem, device, possible, block_bytes, seconds)
    tile = tile and busier(problem, device, tile, possible, block_bytes, seconds)
    return tile and without_conflicts(problem, tile)


def busier(problem, device, tile, tiles, bytes_of_a_block, seconds, launches=1):
    """`tile` if it is busy, or moves more than L2 holds; else, of the busy ones that a call waits for little longer,
    the one that moves least.
    """
    if is_busy(problem, device, tile) or not lies_in_l2(problem, device):
        return tile
    most = waves.DEARER * (seconds(problem, device, tile) + launches * cost.LAUNCH) - launches * cost.LAUNCH
    fitting = (other for other in tiles if shared_bytes(problem, other) <= SHARED_BYTES)
    taken = [other for other in fitting if is_busy(problem, device, other) and seconds(problem, device, other) <= most]

    def order(tile):
        return moved(problem, tile, bytes_of_a_block), seconds(problem, device, tile)

    return min(taken, key=order, default=tile)


def moved(problem, tile, bytes_of_a_block):
    """Bytes of all blocks."""
    return math.prod(tile.grid(problem)) * bytes_of_a_block(problem, tile)


def lies_in_l2(problem, device):
    """Whether memory moves the arrays in so little time that halos, and sums, come from L2 again."""
    return cost.memory_seconds(problem, device) < SHORT * cost.LAUNCH


def is_busy(problem, device, tile):
    return waves.busy(math.prod(tile.grid(problem)), cost.sm_count(device)) >= waves.FULL


def fast_enough(problem, device, tiles):
    """Those predicted to take little longer than the fastest: multiply-adds bound large windows, bytes do not."""
    predicted = {tile: seconds(problem, device, tile) for tile in tiles if shared_bytes(problem, tile) <= SHARED_BYTES}
    return [tile for tile, time in predicted.items() if time <= SLOWER * min(predicted.values())]


def best(problem, device, tiles, bytes_of_a_block, seconds, least_bytes=None):
    """The fastest predicted of the tiles that fit, but first of those that move little more than they must, and of
    those that keep the multiprocessors busy in every wave. least_bytes: of what is not x, w and y of `problem`."""
    least = least_bytes or least_bytes_of(problem)

    def order(tile):
        times = moved(problem, tile, bytes_of_a_block) / least
        too_many = max(math.ceil(10 * (times - MOST_MOVED)), 0)
        return too_many, not is_busy(problem, device, tile), seconds(problem, device, tile)

    return min((tile for tile in tiles if shared_bytes(problem, tile) <= SHARED_BYTES), key=order, default=None)


def least_bytes_of(problem):
    """Of x, w, y and residual, each once."""
    elements = sum(math.prod(shape) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    return (elements + problem.has_residual * math.prod(problem.y_shape)) * problem.dtype.itemsize


def without_conflicts(problem, tile):
    """`tile` with its planes as far apart as lets most lanes of a warp read different banks."""
    if tile.planes == 1:
        return tile
    spaced = [spread(problem, tile, further) for further in range(BANKS)]
    return min((t for t in spaced if shared_bytes(problem, t) <= SHARED_BYTES), key=lambda t: wavefronts(problem, t))


def spread(problem, tile, further):
    return tile_of(
        problem, tile.side, tile.rows, tile.planes, tile.strips, tile.columns, tile.filters,
        further * (16 // problem.dtype.itemsize),
    )  # fmt: skip


def wavefronts(problem, tile):
    """What the warps of a block take to read one word each of shared memory."""
    place, c = np.divmod(np.arange(tile.planes * tile.strips * tile.columns * tile.side), tile.side)
    row, column = np.divmod(place, tile.columns)
    own, strip = np.divmod(row, tile.strips)
    words = own * tile.plane_pitch + strip * tile.rows * problem.stride[0] * tile.row_pitch
    words += column * problem.stride[1] * tile.side + c
    return sum(np.bincount(words[i : i + 32] % BANKS).max() for i in range(0, len(words), 32))


def tiles(problem):
    for side in sides(problem):
        for columns in possible_columns(problem, side):
            for rows in ROWS if problem.R < TALL else TALL_ROWS:
                most = MOST_THREADS * (1 if side == 1 else MOST_TURNS)
                most_strips = min(ceil_div(problem.P, rows), most // (columns * side))
                for strips in few_or_halved(most_strips):
                    yield from tiles_of(problem, side, rows, strips, columns)


def descending(problem):
    """Tiles whose blocks go down several steps, staging each row once: for large windows, which have wide halos.

    A step must move a patch by whole 16-byte vectors, and leave rows to keep.
    """
    load = 16 // problem.dtype.itemsize
    if problem.R < TALL or problem.Kg > 1 or kept_rows(problem) < 1 or sides(problem) != (1,):
        return
    for columns in sorted({*possible_columns(problem, 1), *range(64, min(problem.Q, MOST_THREADS), 32)}):
        for rows in TALL_ROWS[-2:]:
            for strips in few_or_halved(min(ceil_div(problem.P, rows), MOST_THREADS // columns)):
                if strips * rows * problem.stride[0] % load:
                    continue
                most = ceil_div(problem.P, strips * rows)
                for steps in {ceil_div(most, blocks) for blocks in range(1, MOST_DOWN + 1)} - {1}:
                    yield tile_of(problem, 1, rows, 1, strips, columns, 1, steps=steps)


def sides(problem):
    """How many channels a block takes side by side: one where they lie apart, else whole sectors of them, or all."""
    if problem.layout == "NCHW" or problem.C == 1:
        return (1,)
    sector = SECTOR // problem.dtype.itemsize
    some = tuple(side for side in (sector, 2 * sector, 4 * sector) if side <= problem.C)
    return some if 2 * sector < problem.C else (problem.C,)


def possible_columns(problem, side):
    """All of them, if there are threads enough; or equal shares, of whole sectors where columns lie side by side."""
    most, step = MOST_THREADS // side, 8 if side in (1, problem.C) else 1
    shares = {ceil_div(ceil_div(problem.Q, n), step) * step for n in range(2, 9)} | {most // step * step, 32, 16, 8}
    return sorted({min(problem.Q, most), *(share for share in shares if share <= min(most, problem.Q))})


def few_or_halved(most):
    """1 to 8, and `most`, its half, its quarter ..."""
    return sorted({*halved(most), *range(1, min(most, 8) + 1)})


def halved(most):
    """`most`, its half, its quarter ..."""
    return sorted({max(most >> i, 1) for i in range(most.bit_length() + 1)})


def tiles_of(problem, side, rows, strips, columns):
    """Tiles of one plane and, where one block could take whole planes, of several."""
    whole = columns == problem.Q and strips * rows >= problem.P and side == 1
    whole = whole and covers(problem, strips * rows, problem.R)
    most = min(MOST_THREADS // (strips * columns * side), ceil_div(problem.C, side)) if whole else 1
    for planes in halved(most):
        for filters in halved(problem.Kg):
            yield tile_of(problem, side, rows, planes, strips, columns, filters)


def covers(problem, outputs, window):
    """Whether the rows under so many outputs, from the first on, are all that there are.

    Only then are the patches of several planes one stretch of memory: a stride may leave the last rows unread.
    """
    top = problem.padding[0][0]
    return top >= 0 and staged(outputs, window, problem.stride[0], problem.dilation[0]) >= top + problem.H


def planes_of(problem, side):
    return problem.N * ceil_div(problem.C, side)


def tile_of(problem, side, rows, planes, strips, columns, filters, further=0, steps=1):
    height = staged(strips * rows, problem.R, problem.stride[0], problem.dilation[0])
    across_q = ceil_div(problem.Q, columns)
    width = problem.W if across_q == 1 else staged(columns, problem.S, problem.stride[1], problem.dilation[1])
    row_pitch = problem.W * side
    if across_q > 1:
        row_pitch = alike(problem, width * side, problem.W * side)
    plane_pitch = alike(problem, height * row_pitch, problem.H * problem.W * side) + further
    outputs_at = TILE_AT + ALIGNED + ceil_div(planes * plane_pitch, ALIGNED) * ALIGNED
    outputs = planes * strips * rows * columns * side + ALIGNED if problem.Kg == 1 and across_q == 1 else 0
    weights_at = outputs_at + ceil_div(outputs, ALIGNED) * ALIGNED
    words = weights_at + problem.R * problem.S * (planes * side | 1)
    return Tile(
        side, rows, planes, strips, columns, steps, filters, width, row_pitch, plane_pitch,
        ceil_div(problem.P, strips * rows * steps), across_q, planes_of(problem, side), outputs_at, weights_at, words,
    )  # fmt: skip


def staged(outputs, window, stride, dilation):
    """Rows, or columns, of input under so many of output."""
    return (outputs - 1) * stride + (window - 1) * dilation + 1


def alike(problem, size, other):
    """At least `size`, and as far behind a multiple of 16 bytes as `other`: then vectors keep their alignment."""
    return size + (other - size) % (16 // problem.dtype.itemsize)


def shared_bytes(problem, tile):
    return tile.words * problem.accumulate.itemsize


def seconds(problem, device, tile):
    return block_seconds(
        problem, device, tile, tile.threads * thread_slots(problem, device, tile), block_bytes(problem, tile)
    )


def block_seconds(problem, device, tile, slots, moved):
    """The busiest SM's blocks, of so many issue slots and bytes each: whichever of the two takes longer."""
    busiest = ceil_div(math.prod(tile.grid(problem)), cost.sm_count(device))
    resident = max(min(busiest, SHARED_PER_SM // shared_bytes(problem, tile), THREADS_PER_SM // tile.threads), 1)
    warps = resident * tile.threads / 32
    issuing = WAITING * slots / (cost.SLOTS_PER_CYCLE * cost.clock(device)) / min(warps / cost.WARPS_TO_SATURATE, 1)
    moving = moved / cost.bytes_per_second(device) / min(warps / WARPS_TO_SATURATE, 1)
    return busiest * max(issuing, moving)


def thread_slots(problem, device, tile):
    """Issue slots of one thread."""
    staged_words = staged_elements(problem, tile)
    taps, read = problem.R * problem.S, staged(tile.rows, problem.R, problem.stride[0], problem.dilation[0])
    multiply = taps * tile.rows * cost.multiply_slots(problem, device) + 2 * problem.S * read + 2 * taps
    weights = WEIGHT_SLOTS * taps * tile.planes * tile.side / tile.threads
    staging = staging_slots(problem, tile) * staged_words / tile.threads
    at_a_time = tile.turns * (multiply + STORE_SLOTS * tile.rows)
    if tile.steps > 1:
        return staging + weights + tile.steps * (THREAD_SLOTS + moving_slots(problem, tile) + at_a_time)
    return THREAD_SLOTS + staging + tile.filters * (weights + at_a_time)


def moving_slots(problem, tile):
    """Issue slots of one thread, to move up the rows that the next step needs again."""
    return MOVED_SLOTS * kept_rows(problem) * ceil_div(tile.width * tile.side, tile.threads)


def kept_rows(problem):
    """How many rows of input two neighbouring rows of outputs share, counted from the stride on."""
    return (problem.R - 1) * problem.dilation[0] + 1 - problem.stride[0]


def staging_slots(problem, tile):
    """Of one word."""
    return PIECES_SLOTS if staging(problem, tile, True) == "PIECES" else STAGED_SLOTS


def staged_elements(problem, tile, window=None):
    """How many elements of x a block stages in the mean: all, and what neighbouring tiles both need."""
    R, S = window or (problem.R, problem.S)
    rows = shared_out(problem.H, tile.down, tile.across_p, R, problem.stride[0], problem.dilation[0])
    columns = shared_out(problem.W, tile.columns, tile.across_q, S, problem.stride[1], problem.dilation[1])
    return tile.planes * tile.side * rows * columns


def shared_out(size, outputs, tiles, window, stride, dilation):
    """Rows, or columns, that each of so many tiles reads in the mean."""
    reach = staged(outputs, window, stride, dilation)
    overlap = reach - outputs * stride
    return min(size + (tiles - 1) * overlap, tiles * reach) / tiles


def block_bytes(problem, tile):
    """What a block moves in the mean, in whole sectors."""
    outputs = outputs_of(problem, tile) * tile.filters * (2 if problem.has_residual else 1)
    rows = staged(tile.down, problem.R, problem.stride[0], problem.dilation[0])
    apart = torn_sectors(problem, tile, rows + tile.down)
    weights = tile.planes * tile.side * tile.filters * problem.R * problem.S
    return (staged_elements(problem, tile) + outputs + weights) * problem.dtype.itemsize + SECTOR * apart


def torn_sectors(problem, tile, rows):
    """How many sectors a block shares with others, where so many rows of it may begin and end amid one."""
    if tile.side not in (1, problem.C):
        return 0
    return tile.planes * rows if tile.across_q > 1 else 4


def outputs_of(problem, tile):
    """Outputs of one filter of each channel that a block has in the mean: the last ones have fewer."""
    return tile.planes * tile.side * problem.P * problem.Q / (tile.across_p * tile.across_q)


def too_large(problem):
    return (
        f"one tile must fit {SHARED_BYTES:,} bytes of shared memory; a {problem.R} x {problem.S} window with stride "
        f"{problem.stride} and dilation {problem.dilation} does not"
    )


def plane_reasons(problem):
    """Why the planes of all images cannot be numbered in 32 bits."""
    planes = problem.N * problem.C
    return [f"N * C: less than 2^31 needed, got {planes:,}"] if planes >= 2**31 else []


def grid_reasons(problem, tile):
    names = ("blocks down the planes", "blocks along a row", "groups of filters")
    grid = zip(names, tile.grid(problem), MAX_GRID, strict=True)
    too_many = [f"at most {most:,} {name}, this problem has {got:,}" for name, got, most in grid if got > most]
    return plane_reasons(problem) + too_many


def staging(problem, tile, contiguous, aligned=True):
    """How staged_planes.cuh is to load. contiguous: without gaps, in the problem's layout; aligned: on 16 bytes."""
    if not contiguous:
        return "ELEMENTS"
    if problem.layout == "NHWC" and tile.side != problem.C:
        whole = aligned and problem.C * problem.dtype.itemsize % 16 == 0
        return "PIXELS" if whole else "ELEMENTS"
    return "STRETCH" if tile.across_q == 1 else "PIECES"


def shared_words(problem, tile):
    """Enough words for the tile, in one of few sizes."""
    size = next(size for size in KILOBYTES if size * 1024 >= shared_bytes(problem, tile))
    return size * 1024 // problem.accumulate.itemsize


def whole_rows(problem, tile):
    """Whether a block has every column, and every one of the channels side by side."""
    return problem.Kg == 1 and tile.across_q == 1 and (problem.layout == "NCHW" or tile.side == problem.C)
