"""Winograd convolution F(m x m, R x S): fewer multiplications, as matrix products over strips of tiles.

The output is cut into tiles of m x m; each reads the inputs under it, overlapping its neighbours. Transformed
(winograd_matrices.py), a tile's convolution with a filter is a few products, number by number, summed over
channels. For many tiles and filters each of these is a matrix product, a "plane":

    M[plane][tile, k] = sum over c of  V[plane][c, tile] * U[plane][c, k]     k: filters, a lane each

    9 m^2 multiplications of 3 x 3 the direct way become (m+2)^2:  F(2,3) 36 -> 16,  F(4,3) 144 -> 36,  F(6,3) 324 -> 64

    F(4): 5 x 5  400 -> 64     1 x 7  28 -> 10      with a stride: 3 x 3 / 2  144 -> 81      7 x 7 / 2    784 -> 169
          4 x 4  256 -> 49     1 x 3  12 -> 6                      5 x 5 / 2  400 -> 121     11 x 11 / 4  1936 -> 529

With a stride of 2, every other row and column of inputs and taps make four convolutions of stride 1, the phases. They
share planes: the sum runs over the channels of all phases, and there is one M and one output transform for all.

What a thread does with a strip, some 7 to 64 tiles in a row (winograd_stages.py):

          x                     V                       M                          y
     +---------+          +-------------+         +----------------+          +---------+
     |  strip  |  B^T d B | the planes, |    U    | the planes,    | A^T M A  |  strip  |
     |         |  ------> | all C       | ------> | some filters   | -------> |         |
     +---------+          | lane = tile |         | lane = filter  |   then   +---------+
                          +-------------+         +----------------+   the next filters
                           stays in L2, or a core's L3

The multiply takes the tiles one number at a time, 7 or 8 (with 16 registers 4) at once, and filters by vectors: so 49
tiles are 7 times 7, where lanes of tiles would make them 64. A plan has U transformed and packed ahead (`pack`), and it
streams by once per strip. V and M never hold more than a strip, so nothing of the size of the image is written but y.

A single call transforms the filters where they are multiplied, and never stores the whole of U: each thread has a run
of strips and a part of the filters, and in a buffer of its own

    all U of its part, if that is small             then strip after strip, as above
    or a block of channels of some filters          multiplied with all strips of the run, whose V and M wait

Lessons, measured on two Zen 5 cores with AVX-512 unless it says otherwise:
- Packed for one call, U went through L3 or memory and from core to core: 256 -> 256 at 14 x 14 took 410 microseconds,
  265 now, with U at hand 190; 512 -> 512 at 28 x 28 3.7 ms, now 2.7. Of what is left, the arithmetic of G g G^T is
  half, gathering the taps a quarter, stores to L2 the rest; in which order they are stored does not matter.
- V that waits for other filters must stay in the L3 cache: 512 -> 256 at 64 x 64 took 11 ms where 18 MB of it waited, 6
  in shorter runs, though each transforms the filters again.
- Stores of U past the cache pay only where U is larger than L3: at 2 to 9 MB packing takes 3 times as long so.
- With tiles across the lanes in the multiply as well, layers of 28 x 28 and 14 x 14 took 1.3 to 1.6 times as long.
- The weights that are needed next are fetched while these are multiplied, a line of each vector and step: 1.2 to 1.9
  times as fast where U comes from L3 or memory. They lie where no prefetcher of the processor looks for them.
- Sums as they leave the registers, a vector of filters for each tile, and transposed after the output transform:
  against transposing them on their way into M, 2 % to 8 % on 64 and 128 channels.
- Pixels are put into lanes by whole vectors of a row (`every` in winograd_transforms.py), four channels at a time, and
  the next four are fetched meanwhile: the input stage takes 0.65 to 0.85 of what single tiles' rows took.
- How wide a strip is hardly matters, several strips for one pass over U never paid.
- Threads share nothing but x and U. V made by all for all, in a round before, cost up to 1.5 times as much: a line
  written by one core and read by another is far slower than one from its own L2. So it was with AVX2 on Zen 3.
- Where there are fewer strips than would keep the threads busy, or U is larger than a cache, the filters are split
  too (`parts`): every part transforms the input again, 4 % on 512 -> 512 at 28 x 28, and streams its own share of U.
- Sums over channels (times phases) are cut every 128: the weights of a step then fill half of L1, and rounding errors
  stop growing with C. F(6,3) and F(4,5) cut every 64; F(6,3) so keeps under 5e-6 up to 2,048 channels.
- Points 0, +-sqrt(1/2), +-sqrt(2) halve F(4,3)'s error against 0, +-1, +-2.
- A stride costs nothing but more planes of inputs: a row of pixels is put into lanes by whole vectors as well, 8
  columns of them instead of 4, and each phase takes its own. Against `blocked`, both planned: 3 x 3 / 2 on 128 x 56 x
  56 1.4 times as fast, 256 x 28 x 28 (F2) 1.35, 512 x 14 x 14 (F2) 1.1; 7 x 7 / 2 on 3 x 224 x 224 1.8; 11 x 11 / 4
  there 2.5; 5 x 5 / 2 2.7; 5 x 5 3.5 to 4; 4 x 4 3; 1 x 7 and 7 x 1 1.7 to 1.9; 3 x 1 and 1 x 3 1.5; 2 x 2 1.3.
  With AVX2 the same within a tenth.
- Single calls of 3 x 3 / 2 on maps of 14 x 14, 64 to 1,024 channels, took 1.1 to 1.3 times as long as `blocked`.
- Of 3 channels, 3 x 3 / 2 on 224 x 224 took 1.4 times as long as `blocked`, 3 x 3 with 32 filters 1.35: the transforms
  of outputs, which so few channels do not repay, while larger windows do.
- Sums over the phases in one loop, not a loop for each: 3 channels of 7 x 7 / 2 are sums of 12.
- F(6) of 3 x 3 / 2 (169 products for 36 outputs against 81 for 16) lost to F(4) everywhere: 0.51 against 0.43 ms on
  128 x 56 x 56, its tiles stick out of maps of 28, and the error trebles.
- U of 3 x 3 / 2 with 512 channels: F(4)'s 85 MB stream from memory, 1.6 ms where F(2)'s 26 MB take 0.51.
  Held to AVX2 F(2) is 0.94 of `blocked` there, and for 256 channels of 28 x 28 F(4)'s 20 MB make it 1.1 times F(2).
- Past-cache stores pay when y is larger than the caches (64 x 224 x 224: 10 %) and hurt when the next layer would find
  it there. They want y on a cache line, where NumPy's large arrays are not; taking tiles so that most lines can be
  stored whole nevertheless gained 2 %.

NaN and infinity in x reach every output of the tiles that read them, not only those whose window does: zero times NaN
is NaN in the transforms. Who needs them to stay in place asks for a direct algorithm (algorithm="blocked", or a
max_error under 1e-7).

Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016; the blocking is that of Jia et
al., Optimizing N-dimensional, Winograd-based Convolution for Manycore CPUs, PPoPP 2018, with tiles and
filters instead of channels as lanes; strides as in Huang et al., DWM: A Decomposable Winograd Method for Convolution
Acceleration, AAAI 2020, but with one domain for all parts.
"""

import struct
from dataclasses import dataclass, replace
from functools import lru_cache

from . import target
from .call import pack_call, problem_fields
from .compilation import compiled
from .job import job_of
from .microkernel import CLOCK, VECTORS, tile_rows, vector_type
from .threads import run_tasks, task_loop, worker_span
from .vectors import lanes
from .winograd_matrices import summed_at_a_time, tile_of
from .winograd_stages import (
    FIELDS,
    LEAVES,
    PIECE_TILES,
    PLANE_PADDING,
    STRIP_VECTORS,
    Numbers,
    build,
    build_filter_stage,
    build_input_stage,
    build_input_transform,
    build_multiply_stage,
    build_output_stage,
    build_output_transform,
    build_pack,
    build_spread,
)  # fmt: skip

passes = ("forward",)

MOST_POINTS, MOST_POINTS_OF_A_LINE = 8, 10  # more would err more than F(6,3); a window of one row or column errs once
MOST_TAPS, MOST_STRIDE = 11, 4  # the transforms are straight code: that of 11 x 11 with stride 4 compiles in 9 s
ALL_FILTERS = 5  # in sizes of the L2 cache: a thread's own filters up to this are transformed at once, not by chunks
SUMS_IN_CACHE = 2  # M of a chunk of filters, in sizes of the L2 cache: reading V more often costs more
SPREAD_BYTES, MOST_SPREAD = 24 << 10, 4  # what stays in L1 of spread pixels, and channels at a time
MOST_WORKSPACE = 48 << 20  # of all threads, where a cut is possible that needs no more
PAST_CACHE_BYTES = 8 << 20  # outputs this large are stored past the cache
PAST_CACHE_WEIGHTS = 16 << 20  # transformed weights this large are, where a plan packs them

# The cost model, in cycles of the Zen 3 that microkernel.CLOCK is of, where kernels compare as they do on the Zen 5
# that it was fitted to (two threads, AVX-512 and AVX2, 16 to 512 channels and filters, maps of 7 to 112).
# F(6,3)'s transforms are taken for more than they are: it errs more.
CALL_CYCLES = 26_000
INPUT_CYCLES = {2: 160, 4: 340, 6: 950}  # 3 x 3, per channel and vector of 64 bytes of tiles; others by their products
OUTPUT_CYCLES = {2: 80, 4: 220, 6: 650}  # 3 x 3, per tile and vector of 64 bytes of filters; others by their planes
FILTER_CYCLES = 0.35  # per product, filter and channel
PACK_CYCLES = 1.05  # likewise, of filters that are stored for all threads and then read by them
EFFICIENCY = 0.88  # of the core's multiply-adds
INPUTS_IN_CACHE, BEYOND_CACHE = 2, 1.05  # where V is larger, in sizes of the L2 cache, it takes longer
WAITING_BYTES, BEYOND_ALL_CACHES = 16 << 20, 1.6  # and where V and M of all threads, waiting for other filters, are
CYCLES_PER_PLANE, CYCLES_PER_UNIT = 150, 30  # of a group's strip beside the multiply-adds, which are few there
LOADED = 0.5  # what loading a vector of weights costs, in its multiply-adds
CACHED_WEIGHTS = 19 << 20  # U up to this size comes from the L3 cache
STREAM_BYTES_PER_CYCLE, CACHE_BYTES_PER_CYCLE = 17.0, 400.0  # U, from memory and from L3, beside the multiply
FIRST_BYTES_PER_CYCLE = 50.0  # U, when it is read first
TAPS_BYTES_PER_CYCLE = 4.0  # w in a single call with a stride, whose smaller y repays its transforms less
MEMORY_BYTES_PER_CYCLE = 2.5  # x and y, where no cache holds them
FEW_CHANNELS = 4  # up to so many, y is most of the work, and x and y count wherever they are


@dataclass(frozen=True)
class Cut:
    """How a problem is cut among threads and caches: the numbers of winograd_stages.FIELDS."""

    m_h: int
    m_w: int
    step_h: int
    step_w: int
    span_h: int
    span_w: int
    points_h: int
    points_w: int
    phases_h: int
    phases_w: int
    long_phases_h: int
    long_phases_w: int
    tile_rows: int
    tile_columns: int
    tiles: int
    unit: int
    units: int
    strips: int
    runs: int
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
    input_pitch: int
    output_pitch: int
    input_staging: int
    spread_at: int
    spread_pitch: int
    spread_channels: int
    piece: int
    streaming: int

    def packed(self) -> bytes:
        return struct.pack(f"{len(FIELDS)}q", *(getattr(self, name) for name in FIELDS))


def channels_at_a_time(tile):
    """How many channels are summed at a time: fewer where a plane's sum has several phases of each."""
    return summed_at_a_time(tile) // tile.phases


def ceil_div(a, b):
    return -(-a // b)


def lines(count):
    """Bytes in whole cache lines."""
    return ceil_div(count, 64) * 64


# ---- how a problem is cut ----


@lru_cache(maxsize=1024)
def cut(m, problem, threads, packed=True) -> Cut:
    """The split into strips of tiles and parts of filters that the cost model finds fastest.

    packed: whether the filters have been transformed before.
    """

    def cost(cut):
        return max(MOST_WORKSPACE, threads * cut.worker_bytes), cycles(m, problem, threads, cut)

    return min(possible_cuts(m, problem, threads, packed), key=cost)


def possible_cuts(m, problem, threads, packed):
    tile = tile_of(m, problem)
    tiles = problem.N * ceil_div(problem.P, tile.rows.m) * ceil_div(problem.Q, tile.columns.m)
    for unit in tile_units():
        units = ceil_div(tiles, unit)
        for width in range(1, STRIP_VECTORS + 1):
            fewest = ceil_div(units, max(1, width * lanes(problem.accumulate) // unit))
            for strips in {fewest, min(units, ceil_div(fewest, threads) * threads)}:
                for parts in part_counts(problem, threads):
                    wanted = ceil_div(threads, parts * problem.groups)
                    for runs in [None] if packed else run_counts(strips, wanted):
                        yield cut_into(tile, problem, unit, strips, parts, runs)


def run_counts(strips, wanted):
    """Runs of strips: as few as keep the threads busy, or more, which are shorter."""
    return sorted({min(strips, wanted * n) for n in (1, 2, 4)})


def part_counts(problem, threads):
    panels = ceil_div(problem.Kg, lanes(problem.accumulate))
    return sorted(
        {min(parts, panels) for parts in (1, 2, 3, threads // 4, threads // 2, threads) if 0 < parts <= threads}
    )


def tile_units():
    """How many tiles the micro-kernel may take at a time: as many as its registers hold, or of 8 one less."""
    rows = tile_rows(VECTORS)
    return (8, 7) if rows == 8 else (rows,)


def cut_into(tile, problem, unit, strips, parts, runs=None) -> Cut:
    """runs: of strips, for each of which a thread transforms its filters itself; None where they come packed."""
    numbers, (rows, columns), depth_block = Numbers(problem.dtype.name), tile, channels_at_a_time(tile)
    W = numbers.count
    tile_rows, tile_columns = ceil_div(problem.P, rows.m), ceil_div(problem.Q, columns.m)
    tiles = problem.N * tile_rows * tile_columns
    units, panels = ceil_div(tiles, unit), ceil_div(problem.Kg, W)
    part = ceil_div(panels, parts)
    parts = ceil_div(panels, part)

    strip_tiles = min(tiles, ceil_div(units, strips) * unit)
    strip_vectors = ceil_div(strip_tiles, W)
    input_slot = tile.products * (problem.Cg * strip_vectors * numbers.bytes + PLANE_PADDING)
    output_vector = ceil_div(strip_tiles, unit) * unit * numbers.bytes
    chunk = min(part, max(1, SUMS_IN_CACHE * target.cache_bytes(2) // (tile.planes * output_vector)))
    depth_step, panel_bytes = problem.Cg, tile.products * problem.Cg * numbers.bytes
    if runs and part * panel_bytes > ALL_FILTERS * target.cache_bytes(2):
        depth_step = min(depth_block, problem.Cg)
        chunk = min(chunk, max(2, target.cache_bytes(2) * problem.Cg // depth_step // panel_bytes))
    chunk = ceil_div(part, ceil_div(part, chunk))
    output_plane = chunk * output_vector + PLANE_PADDING
    row_panels = chunk if runs else panels
    filter_plane = row_panels * depth_step * numbers.bytes + PLANE_PADDING

    in_a_row = min(tile_columns, strip_tiles)
    segments = min(strip_tiles, ceil_div(strip_tiles - 1, tile_columns) + 1)
    input_pitch = lines(((in_a_row - 1) * columns.step + columns.span + W) * numbers.item)
    piece = max(PIECE_TILES, W // columns.m)  # a vector of outputs in a row, at least
    output_pitch = piece * columns.m * numbers.bytes
    input_staging = segments * rows.span * input_pitch
    spread_at = lines(numbers.staging_at + max(W * input_staging, rows.m * output_pitch + numbers.bytes))
    spread_pitch, pixels = (strip_vectors + 1) * numbers.bytes, rows.span * columns.span
    spread_channels = max(1, min(MOST_SPREAD, SPREAD_BYTES // (pixels * spread_pitch)))

    run_strips = ceil_div(strips, runs) if runs else 1  # whose V waits for other filters, and M for other channels
    output_slots = run_strips if depth_step < problem.Cg else 1
    input_slots = run_strips if output_slots > 1 or chunk < part else 1
    output_slot, filter_group = tile.planes * output_plane, tile.products * filter_plane
    inputs_at = spread_at + spread_channels * pixels * spread_pitch
    outputs_at = inputs_at + input_slots * input_slot
    filters_at = lines(outputs_at + output_slots * output_slot)
    y_bytes = problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize
    return Cut(
        rows.m, columns.m, rows.step, columns.step, rows.span, columns.span, rows.points, columns.points,
        rows.phases, columns.phases, rows.long_phases, columns.long_phases,
        tile_rows, tile_columns, tiles, unit, units, strips, runs or strips, parts, W, panels, part, chunk,
        row_panels, depth_block, depth_step, filter_plane, filter_group, output_plane, output_vector,
        input_slot if input_slots > 1 else 0, output_slot if output_slots > 1 else 0,
        worker_span(filters_at + (filter_group if runs else 0)), inputs_at, outputs_at,
        filters_at if runs else 0, input_pitch, output_pitch, input_staging, spread_at, spread_pitch, spread_channels,
        piece,
        int(y_bytes >= PAST_CACHE_BYTES),
    )  # fmt: skip


def cycles(m, problem, threads, cut) -> float:
    """Predicted cycles of the thread with the most work, with its share of the memory traffic."""
    tile, units = tile_of(m, problem), ceil_div(cut.units, cut.strips)
    tiles = min(cut.tiles, units * cut.unit)
    vectors = problem.Cg * ceil_div(tiles, cut.panel)
    stored = cut.part + problem.Kg % cut.panel / cut.panel  # a vector that is not full takes the long way
    inputs, outputs = (count / (m + 2) ** 2 for count in (tile.products, tile.planes))
    transforms = INPUT_CYCLES[m] * inputs * vectors + OUTPUT_CYCLES[m] * outputs * tiles * stored_share(cut) * stored
    weights = tile.products * problem.Cg * cut.part  # vectors
    multiply = weights * units * (cut.unit + LOADED) / target.multiply_adds_per_cycle() / EFFICIENCY
    if cut.outputs_at - cut.inputs_at > INPUTS_IN_CACHE * target.cache_bytes(2):
        multiply *= BEYOND_CACHE
    if cut.filters_at and threads * (cut.filters_at - cut.inputs_at) > WAITING_BYTES:
        multiply *= BEYOND_ALL_CACHES
    filters = FILTER_CYCLES * weights * cut.panel if cut.filters_at else stream_cycles(problem, cut, weights)
    strips = ceil_div(cut.strips, cut.runs)
    tasks = ceil_div(problem.groups * cut.runs * cut.parts, threads)
    if problem.groups > 1:
        multiply += tile.products * (CYCLES_PER_PLANE + CYCLES_PER_UNIT * units)
    memory = memory_cycles(problem, cut) / threads
    return tasks * (strips * (transforms * vector_share() + multiply) + filters) + memory


def vector_share() -> float:
    """What transforming a vector takes, of what one of 64 bytes takes."""
    return (target.vector_bytes() + 12) / 76


def stored_share(cut) -> float:
    """Columns that are stored in vectors, of those that there are."""
    columns = cut.tile_columns * cut.m_w
    return ceil_div(columns, cut.panel) * cut.panel / columns


def stream_cycles(problem, cut, weights) -> float:
    """What packed weights, so many vectors, add to a strip's multiplications."""
    cached = problem.groups * cut.filter_group <= CACHED_WEIGHTS
    return weights * target.vector_bytes() / (CACHE_BYTES_PER_CYCLE if cached else STREAM_BYTES_PER_CYCLE)


def memory_cycles(problem, cut) -> float:
    """Of all threads: reading weights for the first time; and x and writing y, where no cache holds them."""
    numbers = problem.N * (problem.C * problem.H * problem.W + problem.K * problem.P * problem.Q)
    count, weights = numbers * problem.dtype.itemsize, problem.groups * cut.filter_group
    counts = count > PAST_CACHE_BYTES or problem.Cg <= FEW_CHANNELS
    pixels = count / MEMORY_BYTES_PER_CYCLE if counts else 0.0
    taps = problem.K * problem.reduction * problem.dtype.itemsize if problem.stride != (1, 1) else 0
    return pixels + (taps / TAPS_BYTES_PER_CYCLE if cut.filters_at else weights / FIRST_BYTES_PER_CYCLE)


# ---- the kernel; winograd_f2.py, winograd_f4.py and winograd_f6.py give m ----


def build_loop(real_name):
    return task_loop(build(real_name))


def build_pack_loop(real_name):
    return task_loop(build_pack(real_name))


def why_not(m, problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = []
    if device.kind != "cpu":
        reasons.append(f"runs on the CPU only, x is on {device}")
    reasons += window_reasons(m, problem)
    if problem.dilation != (1, 1):
        reasons.append(f"dilation 1 only, got {problem.dilation}")
    if vector_type(problem.accumulate).count < 4:
        held = target.vector_bytes() // problem.accumulate.itemsize
        reasons.append(f"{problem.dtype} needs vectors of 4 numbers, this processor's hold {held}")
    return reasons


def window_reasons(m, problem):
    """Why F(m x m) gains nothing on this window and stride, errs too much, or was never worth its code."""
    window, stride = (problem.R, problem.S), problem.stride
    got = f"{problem.R} x {problem.S} with stride {stride}"
    reasons = []
    if m != 4 and window != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    if m == 6 and stride != (1, 1):
        reasons.append(f"stride 1 only, got {stride}")
    if reasons:
        return reasons
    if window == (1, 1) or any(step >= taps > 1 or step > taps for taps, step in zip(window, stride, strict=True)):
        return [f"windows that overlap only, got {got}"]
    if max(window) > MOST_TAPS or max(stride) > MOST_STRIDE:
        return [f"at most {MOST_TAPS} taps and a stride of {MOST_STRIDE} each way, got {got}"]
    points = [axis.points for axis in tile_of(m, problem)]
    most = MOST_POINTS_OF_A_LINE if 1 in window else MOST_POINTS
    if max(points) > most:
        return [f"at most {most} products of a phase each way, {got} needs {points[0]} x {points[1]}"]
    return []


def workspace_bytes(m, problem, device):
    return device.threads * cut(m, problem, device.threads).worker_bytes


def one_call_bytes(m, problem, device):
    """The workspace of a `run` with weights as they are; None where a single call had better pack them first."""
    return None if packs_first(m, problem, device) else bytes_to_transform(m, problem, device)


def packed_bytes(m, problem, device):
    """The transformed weights, and what each thread needs to make them."""
    return weight_bytes(m, problem, device) + device.threads * pack_scratch_bytes(problem)


def weight_bytes(m, problem, device):
    return problem.groups * cut(m, problem, device.threads).filter_group


def pack_scratch_bytes(problem):
    numbers = Numbers(problem.dtype.name)
    return worker_span(numbers.staging_at + numbers.count * numbers.taps_bytes(problem.R * problem.S))


def pack(m, problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned)."""
    fields, loop, tasks = prepared_pack(m, problem, device)
    scratch = packed[weight_bytes(m, problem, device) :]
    run_tasks(loop, pack_call(fields, packed, w, packed, None, None, scratch), tasks, device.threads)


@lru_cache(maxsize=1024)
def prepared_pack(m, problem, device):
    """What every packing for this problem shares: the record's fields, the compiled loop and the number of tasks."""
    chosen = cut(m, problem, device.threads)
    streaming = int(weight_bytes(m, problem, device) >= PAST_CACHE_WEIGHTS)
    own = replace(chosen, worker_bytes=pack_scratch_bytes(problem), streaming=streaming)
    addresses = leaf_addresses(filter_stage=compiled(build_filter_stage, tile_of(m, problem), problem.dtype.name))
    fields = problem_fields(problem) + own.packed() + addresses
    return fields, compiled(build_pack_loop, problem.accumulate.name), problem.groups * chosen.panels


def leaf_addresses(**leaves) -> bytes:
    """The record's last words; of leaves that are not given, 0."""
    return struct.pack(f"{len(LEAVES)}q", *(leaves[name].address if name in leaves else 0 for name in LEAVES))


def predicted_seconds(m, problem, device):
    chosen = cut(m, problem, device.threads)
    return (CALL_CYCLES + cycles(m, problem, device.threads, chosen)) / CLOCK


def pack_seconds(m, problem, device):
    """What a single call takes longer than one with packed weights."""
    first = packs_first(m, problem, device)
    return seconds_to_pack(m, problem, device) if first else seconds_to_transform(m, problem, device)


def packs_first(m, problem, device) -> bool:
    """Had a single call better pack the weights, which many threads would transform over and over?"""
    if seconds_to_pack(m, problem, device) < seconds_to_transform(m, problem, device):
        return True
    packed = packed_bytes(m, problem, device) + workspace_bytes(m, problem, device)
    return bytes_to_transform(m, problem, device) > max(MOST_WORKSPACE, packed)


def seconds_to_pack(m, problem, device):
    """What packing first adds, its own round of threads included."""
    return 10e-6 + PACK_CYCLES * tile_of(m, problem).products * problem.K * problem.Cg / CLOCK / device.threads


def seconds_to_transform(m, problem, device):
    """What a run takes longer in which the threads transform the filters that they need."""
    alone, planned = (cycles(m, problem, device.threads, cut(m, problem, device.threads, how)) for how in (False, True))
    return (alone - planned) / CLOCK


def bytes_to_transform(m, problem, device):
    """The workspace of such a run."""
    return device.threads * cut(m, problem, device.threads, packed=False).worker_bytes


@lru_cache(maxsize=1024)
def prepared(m, problem, threads, packed=True):
    """What every call for this problem shares: the record's fields, the compiled loop and the number of tasks.

    packed: whether the weights have been transformed before.
    """
    chosen, tile = cut(m, problem, threads, packed), tile_of(m, problem)
    name, real = problem.dtype.name, problem.accumulate.name
    leaves = {
        "input_stage": compiled(build_input_stage, name),
        "multiply_stage": compiled(build_multiply_stage, real, chosen.unit),
        "output_stage": compiled(build_output_stage, name),
        "spread_pixels": compiled(build_spread, tile, real),
        "transform_input": compiled(build_input_transform, tile, real),
        "transform_output": compiled(build_output_transform, tile, real),
    }
    if not packed:
        leaves["filter_stage"] = compiled(build_filter_stage, tile, name)
    fields = problem_fields(problem) + chosen.packed() + leaf_addresses(**leaves)
    return fields, compiled(build_loop, real), problem.groups * chosen.runs * chosen.parts


def job(m, problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    fields, loop, tasks = prepared(m, problem, device.threads, w.ndim == 1)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


def run(m, problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical order.

    Or with the weights as they are, (K, C/groups, R, S): then `workspace` has one_call_bytes.
    """
    job(m, problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
