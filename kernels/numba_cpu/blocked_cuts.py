"""How blocked.py shares a problem out: runs of pixel tiles times ranges of filters, and blocks of channels.

Every cut worth a thought is played through (filter_cuts.py): tasks of 5 tiles, 14 of them, left one thread idle for 7 %
of the time.

Where outputs of two threads meet, each thread's processor fetches ahead, past its own, lines that the other is writing.
Filters' ranges meet at all pixels of a map, runs of pixels at one place of each filter: two Zen 4 cores, in hours in
which what one core wrote came slowly to the other, took 205 instead of 114 microseconds for 24 -> 144 channels of
56 x 56 in ranges of filters, 80 instead of 60 for 32 -> 192 of 28 x 28, 44 instead of 26 for 16 -> 96; held to AVX2 270
instead of 150 for 64 -> 64 of 56 x 56. In other hours, and with 144 channels and more, the two are within 5 %.

Where the lines of one tile share too few places of the L2 cache, as in maps of 128 x 128 or 256 x 256, or where y goes
to memory, x is copied although a 1x1 layer could read it in place, runs of each channel, and the outputs leave filter
after filter, long runs of each. With 16 registers x is copied too where such lines share too few places of the L1
cache. Why, and what it gained, stands in blocked.py.
"""

from collections import Counter
from functools import lru_cache
from math import gcd

from . import patches, target, weight_rows
from .filter_cuts import until_all_done, up
from .flat_planes import MOST_APART, row_phases, rows_below, shared_planes
from .lone_pixels import MOST as MOST_LONE
from .microkernel import VECTORS, multiplied_rows, multiply_cycles
from .threads import worker_span
from .vectors import lanes

RUNS_PER_THREAD = (1, 2, 4, 6)  # of tiles: the cuts that are tried
MANY_MAPS = 16  # for a thread: no cut is needed
CYCLES_PER_TASK, CYCLES_TO_WAKE = 1_500, 4_000
CYCLES_TO_COME = 0.04  # for each number of x and w, when a task reads it first
BORDER_CYCLES, BORDER_DEPTH = 80.0, 256  # for a pixel, or a filter, where two threads' outputs meet; 0 from so deep on
LAST_CYCLES = 12.0  # a number of x or y with channels last, read or stored by itself: 7 to 16 on two Zen 4 cores
LONE_CYCLES = 0.6  # for a vector of a lone pixel's depths

# Of what copying takes otherwise: every second column of x, with groups of 2 to 32 channels, where one multiply-add
# starts per cycle (two Zen 4 cores).
COPIED_BY_STRIDES = 0.75

FILTER_BLOCK = 64  # whose weights stay in the L2 cache while a group of tiles is multiplied with them
FEWEST_ROWS = 4  # of outputs, for which a block's planes fit half the L2 cache: each row of x is copied for few others
FEWEST_DEPTHS = 64  # but of these no fewer, or sums wait too often
FEW_TILES = 5  # of a map: their planes are read from the L2 cache anyhow
OFFSET_BYTES, LINE = 8, 64
PAGE, NEAR_PAGES = 4_096, 48  # bytes; of the 64 whose places a core knows at once, what x may take
RUN_CYCLES, NEAR_RUN_CYCLES = 0.4, 0.1  # a number that is copied; where that saves waiting for the L1 cache
RUNS_SHARE, PLANES_SHARE, ONE_TILE_SHARE = 8, 2, 4  # of the L2 cache, for copied x, is one part in so many

BLOCKING = (
    "first_pixel", "filters", "tile_tasks", "filter_tasks", "channel_block", "group", "packed_row", "phases",
    "plane_bytes", "worker_bytes", "partial_at", "bias_at", "gathered_at", "offsets_at",
    "tail_at", "filter_block", "by_runs", "row_planes", "dots_at", "runs_at", "streaming",
)  # fmt: skip


def real_bytes(problem):
    return problem.accumulate.itemsize


def reads_x_in_place(problem) -> bool:
    """May the micro-kernel read x where it lies, if its rows follow each other in memory? (Conditions as in `task`.)"""
    point = problem.R * problem.S == 1 and problem.stride == (1, 1) and problem.padding == ((0, 0), (0, 0))
    return point and problem.layout == "NCHW" and problem.dtype == problem.accumulate


def one_tile(problem) -> bool:
    """Are a map's pixels one tile, but for lone ones?"""
    rest = problem.P * problem.Q - VECTORS * lanes(problem.accumulate)
    return -lanes(problem.accumulate) < rest <= MOST_LONE


def channel_block(problem, first=0) -> int:
    """Channels whose x, for one tile, fills about three quarters of the L1 cache, all blocks about equal; at least one.

    Twice or four times as many where x comes from the L2 cache anyhow: sums then wait less often. With 16 registers,
    whose tiles read x for every 4 filters, a 1x1 layer's fill half the L1 cache, and few pages, a window's three
    eighths: the rows of a plane that its taps read are longer than a tile. Where one tile has
    all pixels of a 1x1 layer, so that each weight is read once, as many as fit a quarter of the L2 cache: rows come
    faster in long pieces.
    """
    if problem.R * problem.S == 1 and one_tile(problem):
        most = max(target.cache_bytes(2) // ONE_TILE_SHARE // plane_bytes(problem, problem.P * problem.Q), 1)
        return -(-problem.Cg // -(-problem.Cg // most))
    row_bytes, depth = tile_row_bytes(), tile_depth()
    lone = problem.P * problem.Q - first <= MOST_LONE  # whose weights come once, and faster in long pieces
    if target.register_count() == 16 and problem.R * problem.S == 1 and not lone:
        depth = target.cache_bytes(1) // 2 // row_bytes
        if reads_x_in_place(problem) and not copies_runs(problem):
            depth = min(depth, NEAR_PAGES * PAGE // min(map_bytes(problem), PAGE))
    elif reads_x_in_place(problem):
        depth *= 4
    elif shares_planes(problem) or FEW_TILES * VECTORS * lanes(problem.accumulate) >= problem.P * problem.Q:
        depth *= 2
    else:
        if target.register_count() == 16:
            depth //= 2
        rows = FEWEST_ROWS + rows_below(problem)
        channel_bytes = row_phases(problem) * problem.S * rows * problem.Q * real_bytes(problem)
        fitting = target.cache_bytes(2) // 2 // channel_bytes * problem.R * problem.S
        depth = min(depth, max(fitting, FEWEST_DEPTHS))
    return equal_block(problem, depth)


def tile_row_bytes() -> int:
    """Of the cache lines that a tile's pixels touch."""
    return VECTORS * target.vector_bytes() + LINE


def tile_depth() -> int:
    """Depths whose x, for one tile, fills three quarters of the L1 cache."""
    return target.cache_bytes(1) * 3 // 4 // tile_row_bytes()


def equal_block(problem, depth) -> int:
    """Channels of up to so many depths, all blocks about equal; at least one."""
    blocks = -(-problem.reduction // max(depth, problem.R * problem.S))
    return -(-problem.Cg // blocks)


def shares_planes(problem) -> bool:
    """Do taps of a lone row share planes, so that the L1 cache holds more depths? Of 16 registers: one plane."""
    planes = row_planes(problem)
    return planes == 1 or (planes > 1 and target.register_count() > 16)


@lru_cache(maxsize=1024)
def row_planes(problem) -> int:
    """Planes that taps of a lone row share; 0 where a group's, which the L2 cache holds, reach so far beyond its pixels
    that a plane for each tap is less to copy.

    On a Zen 4 core 64 -> 64 channels of 1 x 16,000 under 1 x 3 take 0.84 of the time so with dilation 682, but 2.3 with
    1,024 and, with stride 2, 2.5 with 1,023.
    """
    planes, reach = shared_planes(problem), taps_reach(problem)
    if not planes:
        return 0
    room = target.cache_bytes(2) // PLANES_SHARE // (planes * equal_block(problem, 2 * tile_depth()))
    pixels = min(problem.Q, room // real_bytes(problem) - reach)
    return planes if planes * (pixels + reach) <= problem.S * pixels else 0


def taps_reach(problem) -> int:
    """From a lone row's first tap to its last, in pixels."""
    return (problem.S - 1) * problem.dilation[1] // problem.stride[1]


def possible_cuts(problem, threads, pixels):
    """(runs of tiles, ranges of filters)"""
    if threads == 1 or problem.N * problem.groups >= MANY_MAPS * threads:
        return [(1, 1)]
    all_tiles = -(-pixels // (VECTORS * lanes(problem.accumulate)))
    panels = weight_rows.padded_filters(problem.Kg) // weight_rows.padded_filters(1)
    runs = [1, *(threads * n for n in RUNS_PER_THREAD)]
    return [(t, f) for t in runs if t <= all_tiles for f in (1, threads, 2 * threads) if f <= panels]


def cut_cycles(problem, threads, pixels, tile_tasks, filter_tasks) -> float:
    """Predicted cycles until the last thread is done."""
    width, rows = VECTORS * lanes(problem.accumulate), weight_rows.padded_filters(1)
    all_tiles, depth = -(-pixels // width), problem.reduction
    filters = up(-(-problem.Kg // filter_tasks), rows)
    copy = copy_cycles(problem) / (problem.P * problem.Q)

    def task(run, part):
        columns = min(all_tiles * (run + 1) // tile_tasks * width, pixels) - all_tiles * run // tile_tasks * width
        some = max(0, min(filters, multiplied_rows(problem.Kg) - part * filters))
        product = some * pixels_cycles(columns, depth, problem.accumulate)
        return CYCLES_PER_TASK + product + columns * copy + CYCLES_TO_COME * depth * (some + columns)

    tasks = [task(run, part) for run in range(tile_tasks) for part in range(filter_tasks)]
    cycles = until_all_done(tasks * (problem.N * problem.groups), threads, CYCLES_TO_WAKE)
    border = problem.Kg if tile_tasks > 1 else pixels if filter_tasks > 1 else 0
    return cycles + BORDER_CYCLES * border * max(0.0, 1 - depth / BORDER_DEPTH)


def copy_cycles(problem) -> float:
    """Copying one group's x into planes: by vectors, each within a row, or by numbers."""
    if reads_x_in_place(problem):
        return run_cycles(problem) * problem.Cg * problem.P * problem.Q
    if patches.serves(problem):
        return patches.SPLIT_CYCLES * problem.reduction * problem.P * problem.Q
    rows = problem.Cg * planes_of(problem) * problem.P
    if problem.layout != "NCHW":
        return LAST_CYCLES * rows * problem.Q
    if problem.dtype != problem.accumulate or problem.stride[1] > MOST_APART:
        return 2.0 * rows * problem.Q
    strided = problem.groups > 1 and problem.stride[1] == 2 and target.multiply_adds_per_cycle() == 1
    vector = max(4.0, 2.0 * problem.stride[1])
    cycles = rows * (vector * -(-problem.Q // lanes(problem.accumulate)) + 0.375 * problem.Q)
    return cycles * (COPIED_BY_STRIDES if strided else 1.0)


def pixels_cycles(columns, depth, dtype) -> float:
    """Of one filter and so many pixels: tiles, and what is left, as lone pixels or a narrow tile."""
    rest = columns % (VECTORS * lanes(dtype))
    lone = rest if rest <= MOST_LONE else 0
    return multiply_cycles(1, columns - lone, depth, dtype) + lone * LONE_CYCLES * depth / lanes(dtype)


def collide(pixels, maps, item) -> bool:
    """Do so many maps lie so that the lines of one tile of pixels share too few places of the L2 cache?"""
    ways = target.cache_ways(2)
    period = target.cache_bytes(2) // ways
    return maps > ways * (period // gcd(pixels * item, period))


def map_bytes(problem) -> int:
    """Of a channel of x."""
    return problem.H * problem.W * real_bytes(problem)


@lru_cache(maxsize=1024)
def collide_near(problem) -> bool:
    """Do the lines of one tile of x, of as many channels as its pages allow, share too few places of the L1 cache?

    Tiles of 8 filters, which take each number for twice as many, do not wait for that.
    """
    if target.register_count() > 16 or map_bytes(problem) < PAGE:
        return False
    sets, tile_bytes = target.cache_bytes(1) // target.cache_ways(1) // LINE, VECTORS * target.vector_bytes()
    channels = (c * map_bytes(problem) for c in range(min(problem.Cg, NEAR_PAGES)))
    lines = (line % sets for at in channels for line in range(at // LINE, (at + tile_bytes - 1) // LINE + 1))
    return max(Counter(lines).values()) > target.cache_ways(1)


def from_memory(problem) -> bool:
    """Do x and y together come from memory, and not from the L3 cache?"""
    numbers = problem.N * (problem.C * problem.H * problem.W + problem.K * problem.P * problem.Q)
    return numbers * problem.dtype.itemsize > target.cache_bytes(3) * 3 // 4


def stores_runs(problem) -> bool:
    """Are long runs of few filters to be stored one after another, and not a tile of each?"""
    filters = min(problem.Kg, FILTER_BLOCK)
    return goes_to_memory(problem) or collide(problem.P * problem.Q, filters, real_bytes(problem))


def stores_past_cache(problem) -> bool:
    """Is y to go to memory past the cache?"""
    return reads_x_in_place(problem) and goes_to_memory(problem)


def goes_to_memory(problem) -> bool:
    """Is y too large to be kept for whoever reads it?

    Maps of whole lines of 1x1 layers from half of the L3 cache on: each line would be read before it is stored to. Two
    layers in turn, the second of which reads this one's outputs, on two Zen 4 cores with 32 MB of it, take 0.88 to 1.05
    of the time past the cache where these have 17 to 26 MB, but 1.07 to 1.28 of 13 to 15 MB and 1.3 to 1.9 of 7 to 10;
    the first alone, over and over, takes 0.7 of 19 MB, 0.9 to 1.0 of 14 and 1.2 of 7 to 10.
    """
    map_bytes = problem.P * problem.Q * problem.dtype.itemsize
    whole = reads_x_in_place(problem) and target.vector_bytes() == LINE and map_bytes % LINE == 0
    return from_memory(problem) or (whole and problem.N * problem.K * map_bytes >= target.cache_bytes(3) // 2)


def copies_runs(problem) -> bool:
    """Is x to be copied although it could be read in place?"""
    return reads_x_in_place(problem) and run_cycles(problem) > 0


def run_cycles(problem) -> float:
    """Of copying a number of x that could be read in place, if it is to be copied; else 0."""
    if stores_runs(problem) or collide(problem.H * problem.W, problem.Cg, real_bytes(problem)):
        return RUN_CYCLES
    return NEAR_RUN_CYCLES if collide_near(problem) else 0.0


def run_bytes(problem, pixels) -> int:
    """From channel to channel of copied runs: an odd number of lines, so that they share no place of the caches."""
    return (up(pixels * real_bytes(problem) + target.vector_bytes(), LINE) // LINE | 1) * LINE


def planes_of(problem) -> int:
    """How many there are for a channel."""
    return row_planes(problem) or problem.S * row_phases(problem)


def plane_bytes(problem, pixels) -> int:
    """Of a plane from which `pixels` neighbouring pixels, wherever they begin, are read."""
    rows = min((pixels - 2) // problem.Q + 2, problem.P) + rows_below(problem)
    return rows * problem.Q * real_bytes(problem) + target.vector_bytes()


def lone_row_bytes(problem, pixels) -> int:
    """Of a plane for so many pixels of a lone row and all taps that read it."""
    return run_bytes(problem, pixels + taps_reach(problem))


@lru_cache(maxsize=1024)
def blocking(problem, threads, first=0, by_runs=False):
    """The numbers of BLOCKING, and the number of tasks. first: the first pixel. by_runs: x is copied as `copies_runs`
    asks, and its rows follow each other in memory.
    """
    plane_of = run_bytes if by_runs else lone_row_bytes if row_planes(problem) else plane_bytes
    copies = not reads_x_in_place(problem)
    width, pixels = VECTORS * lanes(problem.accumulate), problem.P * problem.Q - first
    rows = weight_rows.padded_filters(1)
    cuts = possible_cuts(problem, threads, pixels)
    tile_tasks, filter_tasks = min(cuts, key=lambda cut: cut_cycles(problem, threads, pixels, *cut))
    filters = up(-(-problem.Kg // filter_tasks), rows)
    filter_tasks = -(-problem.Kg // filters)

    item, block = real_bytes(problem), channel_block(problem, first)
    depth, sums_row = block * problem.R * problem.S, VECTORS * target.vector_bytes()
    group = -(-pixels // (width * tile_tasks)) + 1
    fitting = target.cache_bytes(2) // 2 // (filters * sums_row)
    group = max(1, min(group, fitting) if block < problem.Cg else group)
    block_rows = rows if (by_runs or copies) and stores_runs(problem) else FILTER_BLOCK
    streaming = stores_past_cache(problem)
    planes = block * planes_of(problem)
    room = target.cache_bytes(2) // (RUNS_SHARE if by_runs else PLANES_SHARE)
    while group > 1 and planes * plane_of(problem, group * width) > room:
        group -= 1
    partial_at = up(planes * plane_of(problem, group * width) + sums_row, LINE)  # a tile may read past their end
    bias_at = partial_at + group * filters * sums_row
    gathered_at = up(bias_at + (filters + rows) * item, 64)
    offsets_at = gathered_at + up(MOST_LONE * depth * item, 64)
    tail_at = up(offsets_at + 2 * depth * OFFSET_BYTES, LINE)
    dots_at = up(tail_at + rows * depth * item, LINE)
    runs_at = up(dots_at + rows * target.vector_bytes(), LINE)
    runs = min(block_rows, up(filters, rows)) * plane_of(problem, group * width)
    worker_bytes = worker_span(runs_at + (runs if by_runs and streaming else 0))
    numbers = (
        first, filters, tile_tasks, filter_tasks, block, group, weight_rows.row_bytes(problem), row_phases(problem),
        plane_of(problem, group * width), worker_bytes, partial_at, bias_at, gathered_at, offsets_at,
        tail_at, block_rows, by_runs, row_planes(problem), dots_at, runs_at, streaming,
    )  # fmt: skip
    return numbers, problem.N * problem.groups * tile_tasks * filter_tasks
