"""How a Winograd convolution is cut into strips of tiles, parts of filters and blocks of channels; what that costs."""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

from . import target
from .epilogue import PAST_CACHE_BYTES
from .microkernel import VECTORS, tile_rows
from .threads import worker_span
from .vectors import lanes
from .winograd_matrices import has_infinity, summed_at_a_time, tile_of
from .winograd_record import (
    FIELDS,
    PIECE_TILES,
    PLANE_KINDS,
    PLANE_PADDING,
    PLANE_WORDS,
    STRIP_VECTORS,
    Numbers,
    fewest_tiles,
    most_tiles,
    tile_list_words,
    units_of,
)

ALL_FILTERS = 5  # in sizes of the L2 cache: a thread's own filters up to this are transformed at once, not by chunks;
ALL_FILTERS_OF_A_STRIP = 1  # likewise, where no second strip reads them
FILTERS_IN_CACHE = 3 / 8  # U of a chunk, likewise: with V and M in L2, from where it is read soon after
FILTERS_IN_CACHE_IF_FEW = 3 / 4  # likewise with 16 registers
SUMS_IN_CACHE = 2  # M of a chunk of filters, in sizes of the L2 cache: reading V more often costs more
SUMS_IN_CACHE_IF_SLOWER = 3 / 8  # likewise of plans, where V has time to come while the plane before is multiplied
SUMS_IN_CACHE_IF_FEW = 2 / 3  # likewise with 16 registers: M is still in L2 when it is transformed
LEAST_CHUNK = VECTORS  # of filters: what the widest register tile takes
MOST_TILES_OF_A_LINE = 12  # whose pixels are turned, so that a lane is a channel; of more a line fills vectors
TURNED_BYTES = 24 << 10  # what stays in L1 of turned pixels
SPREAD_BYTES, MOST_SPREAD = 24 << 10, 4  # what stays in L1 of spread pixels, and channels at a time
MOST_SPARING = 10  # tiles in a line: of more, what those at its ends save is less than what lists of tiles take
MOST_WORKSPACE = 48 << 20  # of all threads, where a cut is possible that needs no more
PAST_CACHE_WEIGHTS = 16 << 20  # transformed weights this large are, where a plan packs them

# The cost model, in cycles of the Zen 3 that microkernel.CLOCK is of, where kernels compare as they do on the Zen 5
# that it was fitted to (two threads, AVX-512 and AVX2, 16 to 512 channels and filters, maps of 7 to 112), and with
# `slower` on Zen 4 (32 layers' plans and single calls: all but two within 1.06 of the fastest).
# F(5,3)'s and F(6,3)'s transforms are taken for more than they are, if not slower: they err more.
# 3 x 3, per channel and vector of 64 bytes of tiles; other windows by their products
INPUT_CYCLES = {2: 160, 3: 240, 4: 340, 5: 750, 6: 950}
TURNED, TURNED_LARGE = 0.8, 0.95  # times as long they take where a lane is a channel, of which none is empty; F(5,3)'s
# and F(6,3)'s; with 16 registers F(6,3)'s count as before: they took 1.07 of F(4)'s on 512 channels of 32 x 32
STRIDED = 0.8  # of what their products say, F(3)'s and F(4)'s inputs wait with a stride, of more than a few channels;
# less if slower
SLOWER_LARGE = 1.6  # times as long take F(5,3)'s and F(6,3)'s if slower; others' are taken for twice as long
# 3 x 3, per tile and vector of 64 bytes of filters; other windows by their planes
OUTPUT_CYCLES = {2: 80, 3: 140, 4: 220, 5: 500, 6: 650}
TAP_CYCLES, FILTER_CYCLES = 0.3, 0.25  # per filter and channel: of each tap to gather, each number to compute and store
STAGED_CYCLES = 0.6  # more for a tap of 16 bits, widened into a copy; over the multiply-adds that start per cycle
PACKED_FIRST = 3  # times as long takes what is stored for all threads and then read by them
EFFICIENCY = 0.88  # of the core's multiply-adds
INPUTS_IN_CACHE, BEYOND_CACHE = 2, 1.05  # where V is larger, in sizes of the L2 cache, it takes longer; not if slower:
# there it is fetched ahead; nor with 16 registers
FILTERS_KEPT, FILTERS_BEYOND_CACHE = 3, 1.08  # likewise U of a single call, all transformed at once, if slower
DEEP_CHANNELS, DEEP = 256, 0.08  # of F(5,3) and F(6,3): from so many on products wait; not if slower,
# with 16 registers F(5,3)'s alone: its 9 tiles of a map of 14 x 14 are three register tiles then
SHARED_CYCLES = 1_300  # of a filter whose outputs two threads write, if slower or with 16 registers: their lines move
WAITING_BYTES, BEYOND_ALL_CACHES = 16 << 20, 1.6  # and where V and M of all threads, waiting for other filters, are
# Of a group's strip beside the multiply-adds, which are few there; in NCHW with stride 1, if slower, they hide behind
# these (groups of 8 to 32 channels, maps of 7 to 112), and so do x and y from the L3 cache (96 channels of 112 x 112 in
# 8 groups: F(4) 1,060 microseconds, `blocked` 1,540; in 4 groups 1,370 to 1,460 and 2,850).
CYCLES_PER_PLANE, CYCLES_PER_UNIT = 150, 30
CYCLES_PER_STRIP = 60  # and of any strip's plane, where cuts are otherwise as good (single calls on two Zen 4 cores,
# held to AVX2: 16 -> 32 channels of 320 x 320 with stride 2 0.82 of the time, 24 -> 24 of 192 x 192 0.88)
LOADED = 0.5  # what loading a vector of weights costs, in its multiply-adds
CACHED_WEIGHTS = 19 << 20  # U up to this size comes from the L3 cache
STREAM_BYTES_PER_CYCLE, CACHE_BYTES_PER_CYCLE = 17.0, 400.0  # U, from memory and from L3, beside the multiply
MOST_BYTES_PER_CYCLE = 6.0  # U, from memory, whatever the multiply leaves time for;
KEPT_WEIGHTS, BEYOND_BYTES_PER_CYCLE = 24 << 20, 1.7  # likewise of F(5,3) and F(6,3), but for what the L3 cache keeps
CYCLES_PER_LINE = 7  # of F(5,3)'s U, at least, where it is not in L2 and not slower, and with 16 registers of any U; in
# others' fits it is contained
FIRST_BYTES_PER_CYCLE = 50.0  # U, when it is read first
TAPS_BYTES_PER_CYCLE = 4.0  # w in a single call with a stride, whose smaller y repays its transforms less, but more
# where products are slow
MEMORY_BYTES_PER_CYCLE = 3.2  # x and y, where no cache holds them
FEW_CHANNELS = 4  # up to so many, y is most of the work, and x and y count wherever they are


@dataclass(frozen=True)
class Cut:
    """How a problem is cut among threads and caches: the numbers of winograd_record.FIELDS."""

    m_h: int
    m_w: int
    span_h: int
    span_w: int
    points_h: int
    points_w: int
    numbers_h: int  # of a filter's column, where they are stored by phases; else 0
    phases_h: int
    phases_w: int
    long_phases_h: int
    long_phases_w: int
    images_h: int
    tile_rows: int
    line_columns: int
    line_tiles: int
    line_step: int
    tiles: int
    strips: int
    runs: int
    shift_h: int
    shift_w: int
    spared_h: int
    spared_w: int
    parts: int
    panel: int
    panels: int
    part: int
    chunk: int
    row_panels: int
    depth_block: int
    depth_step: int
    filter_plane: int
    filter_group: int
    output_plane: int
    output_vector: int
    input_slot: int
    output_slot: int
    worker_bytes: int
    inputs_at: int
    outputs_at: int
    filters_at: int
    tiles_at: int
    numbers_at: int
    planes_at: int
    soon_at: int
    fetched: int  # parts of a filter's taps, by the sums of products that fetch them
    input_pitch: int
    output_pitch: int
    input_staging: int
    spread_at: int
    spread_pitch: int
    spread_channels: int
    spread_lines: int  # of tiles, and tiles of a line, whose pixels are turned together
    spread_tiles: int
    piece: int
    streaming: int

    def packed(self) -> bytes:
        return struct.pack(f"{len(FIELDS)}q", *(getattr(self, name) for name in FIELDS))


def channels_at_a_time(tile):
    """How many channels are summed at a time: fewer where a plane's sum has several phases of each."""
    return summed_at_a_time(tile) // (1 if tile.by_phases else tile.phases)


def ceil_div(a, b):
    return -(-a // b)


def lines(count):
    """Bytes in whole cache lines."""
    return ceil_div(count, 64) * 64


@lru_cache(maxsize=1024)
def cut(m, problem, threads, packed=True) -> Cut:
    """The split into strips of tiles and parts of filters that the cost model finds fastest.

    packed: whether the filters have been transformed before.
    """

    def cost(cut):
        planes = tile_of(m, problem).products * ceil_div(cut.strips, cut.runs) * tasks_of_thread(problem, threads, cut)
        total = cycles(m, problem, threads, cut) + CYCLES_PER_STRIP * planes
        return max(MOST_WORKSPACE, threads * cut.worker_bytes), total

    return min(possible_cuts(m, problem, threads, packed), key=cost)


def possible_cuts(m, problem, threads, packed):
    tiles = count_of_tiles(m, problem)
    for width in range(1, STRIP_VECTORS + 1):
        fewest = ceil_div(tiles, width * lanes(problem.accumulate))
        for strips in {fewest, min(tiles, ceil_div(fewest, threads) * threads)}:
            for parts in part_counts(problem, threads):
                wanted = ceil_div(threads, parts * problem.groups)
                for runs in [None] if packed else run_counts(strips, wanted):
                    yield cut_into(m, problem, strips, parts, runs)


@dataclass(frozen=True)
class Line:
    """Tiles over one line of outputs. shift: outputs that the first tile has before the line, 0 or 1.

    spared: whether the last tile does without the products at infinity. products: of all tiles.
    """

    tiles: int
    shift: int
    spared: int
    products: int


@lru_cache(maxsize=1024)
def line_of_tiles(axis, outputs) -> Line:
    """As few tiles as cover the outputs. Those beyond save products, at both ends of the line one each."""
    tiles = ceil_div(outputs, axis.m)
    beyond = tiles * axis.m - outputs if tiles <= MOST_SPARING else 0
    shift = int(beyond > has_infinity(axis))
    spared = int(beyond > shift and has_infinity(axis))
    return Line(tiles, shift, spared, tiles * axis.products - shift * axis.long_phases - spared * axis.phases)


def lines_of_tiles(m, problem):
    """Down and across; of one of the images that a dilated problem is made of."""
    tile, (down, across) = tile_of(m, problem), problem.dilation
    return line_of_tiles(tile.rows, ceil_div(problem.P, down)), line_of_tiles(tile.columns, ceil_div(problem.Q, across))


def dilated_images(problem):
    """How many that are not empty a dilated problem is made of, down and across, or of how many it is to be made."""
    of_dilation = min(problem.dilation[0], problem.P), min(problem.dilation[1], problem.Q)
    return getattr(problem, "images", of_dilation)


def count_of_tiles(m, problem):
    down, across = lines_of_tiles(m, problem)
    images_down, images_across = dilated_images(problem)
    return problem.N * images_down * images_across * down.tiles * across.tiles


def run_counts(strips, wanted):
    """Runs of strips: as few as keep the threads busy, or more, which are shorter."""
    return sorted({min(strips, wanted * n) for n in (1, 2, 4)})


def part_counts(problem, threads):
    panels = ceil_div(problem.Kg, lanes(problem.accumulate))
    return sorted(
        {min(parts, panels) for parts in (1, 2, 3, threads // 4, threads // 2, threads) if 0 < parts <= threads}
    )


def cut_into(m, problem, strips, parts, runs=None) -> Cut:
    """runs: of strips, for each of which a thread transforms its filters itself; None where they come packed."""
    numbers, tile = Numbers(problem.dtype.name), tile_of(m, problem)
    rows, columns, depth_block, W = tile.rows, tile.columns, channels_at_a_time(tile), numbers.count
    down, across = lines_of_tiles(m, problem)
    tiles, panels = count_of_tiles(m, problem), ceil_div(problem.Kg, W)
    images_down, images_across = dilated_images(problem)
    beside = problem.dilation[1] > 1  # lanes are images, not tiles of one
    line_tiles, line_columns = (images_across, across.tiles) if beside else (across.tiles, 1)
    part = ceil_div(panels, parts)
    parts = ceil_div(panels, part)

    strip_tiles = ceil_div(tiles, strips)
    strip_vectors = ceil_div(strip_tiles, W)
    of_channels = lanes_are_channels(m, problem)
    channel_bytes = strip_tiles * numbers.item if of_channels else strip_vectors * numbers.bytes
    tiles_at = tile.products * (problem.Cg * channel_bytes + PLANE_PADDING)
    numbers_at = tiles_at + 8 * PLANE_KINDS**2 * tile_list_words(numbers)
    planes_at = numbers_at + 8 * tile.products
    soon_at = planes_at + 8 * (1 + PLANE_WORDS * (tile.planes + 1))
    input_slot = lines(soon_at + 8)
    output_vector = max(strip_tiles, fewest_tiles()) * numbers.bytes
    most_sums = SUMS_IN_CACHE if runs else most_sums_of_plans()
    chunk = min(part, max(LEAST_CHUNK, int(most_sums * target.cache_bytes(2)) // (tile.planes * output_vector)))
    depth_step, panel_bytes = problem.Cg, tile.numbers * problem.Cg * numbers.bytes
    most = ALL_FILTERS_OF_A_STRIP if runs == strips else ALL_FILTERS
    if runs and part * panel_bytes > most * target.cache_bytes(2):
        depth_step = min(depth_block, problem.Cg)
        block_bytes = tile.numbers * depth_step * numbers.bytes
        most = FILTERS_IN_CACHE_IF_FEW if few_registers() else FILTERS_IN_CACHE
        chunk = min(chunk, max(2, round(most * target.cache_bytes(2)) // block_bytes))
    chunk = rounded_chunk(chunk, part)
    output_plane = chunk * output_vector + PLANE_PADDING
    row_panels = chunk if runs else panels
    filter_plane = row_panels * depth_step * numbers.bytes + PLANE_PADDING

    in_a_row = min(line_tiles, strip_tiles)
    segments = min(strip_tiles, ceil_div(strip_tiles - 1, line_tiles) + 1)
    input_pitch = lines(((in_a_row - 1) * columns.step + columns.span + W) * numbers.item)
    piece = max(PIECE_TILES, W // (1 if beside else columns.m))  # a vector of outputs in a row, at least
    output_pitch = piece * columns.m * numbers.bytes
    input_staging = 0 if of_channels else segments * rows.span * input_pitch
    spread_at = lines(numbers.staging_at + max(W * input_staging, rows.m * output_pitch + numbers.bytes))
    spread_pitch, pixels = (strip_vectors + 1) * numbers.bytes, rows.span * columns.span
    spread_channels = max(1, min(MOST_SPREAD, SPREAD_BYTES // (pixels * spread_pitch)))
    spread_bytes, spread_lines, spread_tiles = spread_channels * pixels * spread_pitch, 0, 0
    if of_channels:
        spread_lines, spread_tiles = turned_together(tile, line_tiles, in_a_row, segments, numbers)
        spread_pitch = turned_pitch(tile, spread_tiles, numbers)
        spread_bytes = ((spread_lines - 1) * rows.step + rows.span) * spread_pitch

    run_strips = ceil_div(strips, runs) if runs else 1  # whose V waits for other filters, and M for other channels
    output_slots = run_strips if depth_step < problem.Cg else 1
    input_slots = run_strips if output_slots > 1 or chunk < part else 1
    output_slot, filter_group = tile.planes * output_plane, tile.numbers * filter_plane
    inputs_at = spread_at + spread_bytes
    outputs_at = inputs_at + input_slots * input_slot
    filters_at = lines(outputs_at + output_slots * output_slot)
    y_bytes = problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize
    return Cut(
        rows.m, columns.m, rows.span, columns.span, rows.points, columns.points, rows.numbers if tile.by_phases else 0,
        rows.phases, columns.phases, rows.long_phases, columns.long_phases,
        images_down, down.tiles, line_columns, line_tiles, 1 if beside else columns.m, tiles, strips, runs or strips,
        down.shift, across.shift, down.spared, across.spared, parts, W, panels, part, chunk,
        row_panels, depth_block, depth_step, filter_plane, filter_group, output_plane, output_vector,
        input_slot if input_slots > 1 else 0, output_slot if output_slots > 1 else 0,
        worker_span(filters_at + (filter_group if runs else 0)), inputs_at, outputs_at,
        filters_at if runs else 0, tiles_at, numbers_at, planes_at, soon_at,
        max(1, (tile.products if tile.by_phases else tile.planes) // W),
        input_pitch, output_pitch, input_staging, spread_at, spread_pitch, spread_channels,
        spread_lines, spread_tiles,
        piece,
        int(y_bytes >= PAST_CACHE_BYTES),
    )  # fmt: skip


def lanes_are_channels(m, problem) -> bool:
    """Whether a lane of V is a channel, not a tile: where these fill vectors, and lines of few tiles do not."""
    tile, W, tiles = tile_of(m, problem), lanes(problem.accumulate), lines_of_tiles(m, problem)[1].tiles
    in_place = problem.dtype == problem.accumulate and problem.dilation == (1, 1)
    few = tiles <= MOST_TILES_OF_A_LINE and tiles % (W // 2) != 0
    return in_place and few and problem.Cg % W == 0 and (tile.by_phases or tile.phases == 1)


def turned_pitch(tile, tiles, numbers) -> int:
    """Bytes of the pixels under so many tiles in a row, a vector each, in whole squares."""
    return ceil_div((tiles - 1) * tile.columns.step + tile.columns.span, numbers.count) * numbers.count * numbers.bytes


def turned_together(tile, line_tiles, in_a_row, segments, numbers):
    """(lines, tiles of each) whose pixels are turned at once: as few squares as possible of what stays in L1."""

    def bytes_in_all(tiles):
        return ceil_div(in_a_row, tiles) * turned_pitch(tile, tiles, numbers), -tiles

    fitting = [n for n in range(1, in_a_row + 1) if tile.rows.span * turned_pitch(tile, n, numbers) <= TURNED_BYTES]
    tiles = min(fitting or [1], key=bytes_in_all)
    rows = TURNED_BYTES // turned_pitch(tile, tiles, numbers)
    lines_fit = max(1, (rows - tile.rows.span) // tile.rows.step + 1)
    return (min(lines_fit, segments) if tiles >= line_tiles else 1), tiles


def few_registers() -> bool:
    """Do the registers hold 12 sums only, and so 4 tiles of the widest register tile?"""
    return target.register_count() == 16


def most_sums_of_plans() -> float:
    if few_registers():
        return SUMS_IN_CACHE_IF_FEW
    return SUMS_IN_CACHE_IF_SLOWER if slower() > 1 else SUMS_IN_CACHE


def rounded_chunk(chunk, part):
    """About so many vectors of filters, a part's shared out evenly; with few registers, where narrower register tiles
    wait for loads, such as the widest ones take.
    """
    even = ceil_div(part, ceil_div(part, chunk))
    return min(part, ceil_div(even, VECTORS) * VECTORS) if few_registers() and even < part else even


def cycles(m, problem, threads, cut) -> float:
    """Predicted cycles of the thread with the most work, with its share of the memory traffic."""
    tile, tiles = tile_of(m, problem), ceil_div(cut.tiles, cut.strips)
    units = units_of.py_func(tiles, tile_rows(VECTORS), most_tiles())
    vectors = problem.Cg * ceil_div(tiles, cut.panel)
    if lanes_are_channels(m, problem) and not (m == 6 and few_registers()):
        vectors = problem.Cg * tiles / cut.panel * (TURNED_LARGE if m in (5, 6) else TURNED)
    written = cut.part + problem.Kg % cut.panel / cut.panel  # a vector that is not full takes the long way
    inputs, outputs = (count / (m + 2) ** 2 for count in (tile.products, tile.planes))
    slowly = SLOWER_LARGE if m in (5, 6) and slower() > 1 else slower()
    waiting = STRIDED / slower() if m in (3, 4) and tile.phases > 1 and problem.Cg > FEW_CHANNELS else 0
    transforms = INPUT_CYCLES[m] * inputs * vectors * (slowly + waiting)
    transforms += OUTPUT_CYCLES[m] * outputs * tiles * stored_share(cut) * written * slowly
    weights = tile.products * problem.Cg * cut.part  # vectors
    multiply = (
        weights * (tiles * kept_share(m, problem) + units * LOADED) / target.multiply_adds_per_cycle() / EFFICIENCY
    )
    u_bytes = weights * target.vector_bytes()
    if slower() > 1:
        if cut.filters_at and cut.filter_group > FILTERS_KEPT * target.cache_bytes(2):
            multiply *= FILTERS_BEYOND_CACHE
    else:
        if not few_registers() and cut.outputs_at - cut.inputs_at > INPUTS_IN_CACHE * target.cache_bytes(2):
            multiply *= BEYOND_CACHE
        if (m == 5 or (m == 6 and not few_registers())) and problem.Cg >= DEEP_CHANNELS:
            multiply *= 1 + DEEP
        if (m == 5 or few_registers()) and u_bytes > target.cache_bytes(2):
            multiply = max(multiply, u_bytes / 64 * CYCLES_PER_LINE)
    if cut.filters_at and threads * (cut.filters_at - cut.inputs_at) > WAITING_BYTES:
        multiply *= BEYOND_ALL_CACHES
    if cut.filters_at:
        filters = filter_cycles(m, problem) * problem.Cg * cut.part * cut.panel
    else:
        filters = stream_cycles(m, problem, cut, weights, tile.products / tile.numbers, multiply)
    strips = ceil_div(cut.strips, cut.runs)
    tasks = tasks_of_thread(problem, threads, cut)
    if problem.groups > 1 and not hides(problem):
        multiply += tile.products * (CYCLES_PER_PLANE + CYCLES_PER_UNIT * units) * slower()
    memory = memory_cycles(problem, cut) / threads
    lines_move = (slower() > 1 or few_registers()) and shares_outputs(problem, threads, cut)
    shared = SHARED_CYCLES * cut.part * cut.panel if lines_move else 0
    return tasks * (strips * (transforms * vector_share(problem) + multiply) + filters) + memory + shared


def hides(problem) -> bool:
    """Do a strip's beginning, and x and y that come from the L3 cache, hide behind the multiply-adds?"""
    return slower() > 1 and problem.layout == "NCHW" and problem.stride == (1, 1)


def tasks_of_thread(problem, threads, cut) -> int:
    """Of the one with most."""
    return ceil_div(problem.groups * cut.runs * cut.parts, threads)


def shares_outputs(problem, threads, cut) -> bool:
    """Whether two threads have strips of one image and the same filters."""
    return bool(cut.runs > 1 and problem.groups * cut.parts % threads and problem.N % threads)


def slower() -> float:
    """How many times as long vector instructions take as where two multiply-adds start per cycle: additions, loads and
    stores too.
    """
    return 2 / target.multiply_adds_per_cycle()


def filter_cycles(m, problem) -> float:
    """Of transforming a filter's taps of one channel."""
    staged = 0 if problem.dtype == problem.accumulate else STAGED_CYCLES / target.multiply_adds_per_cycle()
    waiting_too, taps = (1 + slower()) / 2, problem.R * problem.S
    return waiting_too * (TAP_CYCLES * taps + FILTER_CYCLES * tile_of(m, problem).numbers) + staged * taps


def kept_share(m, problem) -> float:
    """Of the tiles' products, those that y needs."""
    down, across = lines_of_tiles(m, problem)
    return down.products * across.products / (tile_of(m, problem).products * down.tiles * across.tiles)


def vector_share(problem) -> float:
    """What transforming a vector takes, of what one of 64 bytes takes: of few channels, whose y is most of the work, no
    less (3 -> 64 channels of 224 x 224 held to AVX2: F(4) 840 to 990 microseconds, `blocked` 760).
    """
    return 1.0 if problem.Cg <= FEW_CHANNELS else (target.vector_bytes() + 12) / 76


def stored_share(cut) -> float:
    """Columns that are stored in vectors, of those that there are."""
    columns = cut.line_tiles * cut.line_step
    return ceil_div(columns, cut.panel) * cut.panel / columns


def stream_cycles(m, problem, cut, weights, times, multiply) -> float:
    """What packed weights, so many vectors, each of which is read so many times, add to a strip's multiplications,
    which take `multiply` cycles.

    Few tiles wait for the memory (512 channels of 7 x 7 on two Zen 4 cores with AVX-512: F(4) 1.2 to 1.7 ms, F(2) 0.7;
    held to AVX2 0.85 to 1.4 and 0.6 to 0.7, where an L3 cache that holds F(4)'s 38 MB had 0.34 and 0.55).
    """
    count = weights / times * target.vector_bytes()
    if problem.groups * cut.filter_group * times <= CACHED_WEIGHTS:
        return count / CACHE_BYTES_PER_CYCLE
    beyond = count * max(0, 1 - KEPT_WEIGHTS / (problem.groups * cut.filter_group)) if m in (5, 6) else 0
    waiting = max(count / MOST_BYTES_PER_CYCLE, beyond / BEYOND_BYTES_PER_CYCLE)
    return max(count / STREAM_BYTES_PER_CYCLE, waiting - multiply)


def memory_cycles(problem, cut) -> float:
    """Of all threads: reading weights for the first time; and x and writing y, where no cache holds them."""
    x_bytes, y_bytes = (math.prod(shape) * problem.dtype.itemsize for shape in (problem.x_shape, problem.y_shape))
    count, weights = x_bytes + y_bytes, problem.groups * cut.filter_group
    kept = max(target.cache_bytes(3) * 3 // 4, PAST_CACHE_BYTES) if hides(problem) else PAST_CACHE_BYTES
    counts = y_bytes >= PAST_CACHE_BYTES or count > kept or problem.Cg <= FEW_CHANNELS
    pixels = count / MEMORY_BYTES_PER_CYCLE if counts else 0.0
    taps = problem.K * problem.reduction * problem.dtype.itemsize if problem.stride != (1, 1) else 0
    return pixels + (taps / TAPS_BYTES_PER_CYCLE / slower() ** 2 if cut.filters_at else weights / FIRST_BYTES_PER_CYCLE)


def streams_weights(problem, cut) -> int:
    """Whether packed weights go past the caches."""
    return int(problem.groups * cut.filter_group >= PAST_CACHE_WEIGHTS)
