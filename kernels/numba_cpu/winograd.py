"""Winograd convolution F(m x m, 3 x 3): fewer multiplications, as (m+2)^2 matrix products per block of tiles.

The output is cut into tiles of m x m; each reads (m+2) x (m+2) inputs, overlapping its neighbours by 2. Transformed
(winograd_matrices.py), a tile's convolution with a filter is (m+2)^2 products, number by number, summed over
channels. For many tiles and filters each of these is a matrix product, a "plane":

    M[plane][k, tile] = sum over c of  U[plane][k, c] * V[plane][c, tile]     k: filters; tiles: a lane each

    9 m^2 multiplications of the direct way become (m+2)^2:  F(2,3) 36 -> 16,  F(4,3) 144 -> 36,  F(6,3) 324 -> 64

What a thread does with its strips (1 to 3 vectors of tiles, winograd_stages.py), one block of them at a time:

          x                V: a slot per strip          M: a slot per strip               y
     +---------+          +------------------+         +------------------+         +---------+
     | strip 0 |  B^T d B | 36 planes, all C | U of 64 | 36 planes of     | A^T M A | strip 0 |
     | strip 1 |  ------> | 36 planes, all C | ------> | 64 filters       | ------> | strip 1 |
     | ...     |          | ...              | filters | ...              |  then   | ...     |
     +---------+          +------------------+         +------------------+   the   +---------+
                     stays in L2, or a core's L3      stays in L1 and L2     next 64

U is transformed and packed ahead (`pack`) and streams by once per block. V and M never hold more than a block, so
nothing of the size of the image is written but y.

Lessons, all measured on two Zen 3 cores with AVX2:
- Threads share nothing but x and U. A stage shared by all threads, with V and M in common, cost 1.2 to 1.75 times as
  much: a line written by one core and read by another is an order of magnitude slower than one from its own L2.
- Where there are fewer strips than would keep the threads busy, or U is larger than a cache, the filters are split
  too (`parts`): every part transforms the input again, 3 % on 512 -> 512 at 28 x 28, and streams its own share of U
  only.
- Sums over channels are cut every 128: a panel of V then fills a third of L1, and rounding errors stop growing with C.
- Blocks that leave L2 although they could stay cost a third on 64 -> 64 at 112 x 112 (3.1 to 4.3 ms).
- Fetching U ahead by prefetch instructions gained nothing.
- Points 0, +-sqrt(1/2), +-sqrt(2) halve F(4,3)'s error against 0, +-1, +-2.
- Past-cache stores pay when y is larger than the caches (64 x 224 x 224) and hurt when the next layer would find it
  there.

NaN and infinity in x reach every output of the tiles that read them, not only those whose window does: zero times NaN
is NaN in the transforms. Who needs them to stay in place asks for a direct algorithm (algorithm="blocked", or a
max_error under 1e-7).

Sources: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016; the blocking is that of Jia et
al., Optimizing N-dimensional, Winograd-based Convolution for Manycore CPUs, PPoPP 2018, with tiles instead of
channels as lanes.
"""

import struct
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from . import target
from .call import pack_call, problem_fields
from .compilation import compiled
from .microkernel import VECTORS, tile_rows, vector_type
from .vectors import lanes as lanes_of
from .threads import run_tasks, task_loop, worker_span
from .winograd_stages import (
    FIELDS,
    LEAVES,
    PLANE_PADDING,
    PIECE_TILES,
    STRIP_VECTORS,
    Numbers,
    build,
    build_input_stage,
    build_input_transform,
    build_multiply_stage,
    build_output_stage,
    build_output_transform,
    build_pack,
)  # fmt: skip

passes = ("forward",)


DEPTH_BLOCK = 128  # channels summed at a time: 128 x 24 floats of V are 12 KB of L1
# A block's V and M take as much as U, within these limits: smaller blocks read U more often, larger ones leave L2.
LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES = 1 << 20, 8 << 20
CHUNK_FILTERS = 64  # multiplied before their outputs are transformed: their M, 36 x 64 x 24 floats, stays in L2
LONG_CHUNK_FILTERS = 128  # the same where V comes from L3, to read it less often
PAST_CACHE_BYTES = 8 << 20  # outputs this large are stored past the cache

PAST_CACHE_WEIGHTS = 1 << 20  # transformed weights this large are: 512 x 512 take 1.6 ms instead of 4.8

# The cost model, in cycles of one core; fitted to medians on Zen 3 (two threads, 64 to 512 channels, maps of 7 to 224).
CYCLES_PER_SECOND = 3.1e9
TRANSFORM_CYCLES = {2: 150, 4: 280, 6: 800}  # per vector of tiles and channel or filter, staging included
TILE_EFFICIENCY = {1: 0.45, 2: 0.68, 3: 0.72}  # of the core's multiply-adds, by the vectors of a tile; caches included
PACK_CYCLES = 1.05  # per plane, filter and channel: 1.6 ms for F(4,3) of 512 x 512 by two threads
STREAM_BYTES_PER_CYCLE = 3.0  # U, from L3 or memory
MEMORY_BYTES_PER_CYCLE = 3.0  # x and y, per thread
PARTS_COST = 1.06  # each further part reads all of x


@dataclass(frozen=True)
class Cut:
    """How a problem is cut among threads and caches: the numbers of winograd_stages.FIELDS."""

    m: int
    tile_rows: int
    tile_columns: int
    tiles: int
    unit: int
    units: int
    strips: int
    ranges: int
    strips_per_block: int
    parts: int
    panel: int
    panels: int
    part: int
    chunk: int
    depth_block: int
    filter_plane: int
    filter_group: int
    input_slot: int
    output_slot: int
    output_plane: int
    output_vector: int
    worker_bytes: int
    slots_at: int
    input_pitch: int
    output_pitch: int
    input_staging: int
    streaming: int

    def packed(self) -> bytes:
        values = asdict(self)
        return struct.pack(f"{len(FIELDS)}q", *(values[name] for name in FIELDS))


def ceil_div(a, b):
    return -(-a // b)


def lines(count):
    """Bytes in whole cache lines."""
    return ceil_div(count, 64) * 64


# ---- how a problem is cut ----


@lru_cache(maxsize=1024)
def cut(m, problem, threads) -> Cut:
    """The split into ranges of strips and parts of filters that the cost model finds fastest."""
    cuts = [
        cut_into(m, problem, threads, parts, unit)
        for parts in (part_counts(problem, threads) if not __import__("os").environ.get("WG_PARTS") else [int(__import__("os").environ["WG_PARTS"])])
        for unit in tile_units(problem)
    ]
    return min(cuts, key=lambda cut: cycles(problem, threads, cut))


def part_counts(problem, threads):
    panels = ceil_div(problem.Kg, lanes_of(problem.accumulate))
    return sorted({min(parts, panels) for parts in range(1, threads + 1)})


def tile_units(problem):
    """How many tiles the micro-kernel may take at a time."""
    return (8, 7) if tile_rows(VECTORS) == 8 and lanes_of(problem.accumulate) >= 8 else (4,)


def cut_into(m, problem, threads, parts, unit) -> Cut:
    numbers, planes = Numbers(problem.dtype.name), (m + 2) ** 2
    panel = numbers.count
    tile_rows, tile_columns = ceil_div(problem.P, m), ceil_div(problem.Q, m)
    tiles = problem.N * tile_rows * tile_columns
    units = ceil_div(tiles, unit)
    panels = ceil_div(problem.Kg, panel)
    part = ceil_div(panels, parts)
    parts = ceil_div(panels, part)

    strip_bytes = STRIP_VECTORS * numbers.bytes
    input_slot = planes * (problem.Cg * strip_bytes + PLANE_PADDING)
    in_cache = input_slot <= target.cache_bytes(2)
    chunk = min(part, max(1, (CHUNK_FILTERS if in_cache else LONG_CHUNK_FILTERS) // panel))
    output_vector = STRIP_VECTORS * numbers.count * numbers.bytes
    output_plane = chunk * output_vector + PLANE_PADDING
    output_slot = planes * output_plane
    shares = max(1, ceil_div(threads, parts * problem.groups))  # ranges that keep every thread busy
    strips = min(units, ceil_div(ceil_div(units, STRIP_VECTORS * numbers.count // unit), shares) * shares)
    weights = planes * problem.Cg * problem.Kg * numbers.item
    block_bytes = min(MOST_BLOCK_BYTES, max(LEAST_BLOCK_BYTES, weights))
    fitting = max(1, block_bytes // (input_slot + output_slot))
    per_range = fitting if parts == 1 else strips  # a thread that keeps its part keeps its share of U in its caches
    ranges = min(strips, ceil_div(ceil_div(strips, per_range), shares) * shares)
    per_block = min(fitting, ceil_div(strips, ranges))

    filter_plane = PLANE_PADDING + panels * problem.Cg * numbers.bytes
    columns, lanes = min(tile_columns, STRIP_VECTORS * numbers.count), numbers.count
    segments = min(STRIP_VECTORS * lanes, ceil_div(STRIP_VECTORS * lanes - 1, tile_columns) + 1)
    input_pitch = lines((columns * m + 2 + lanes) * numbers.item)
    output_pitch = PIECE_TILES * m * numbers.bytes
    input_staging = segments * (m + 2) * input_pitch
    slots_at = lines(numbers.staging_at + max(lanes * input_staging, m * output_pitch) + numbers.bytes)
    y_bytes = problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize
    return Cut(
        m, tile_rows, tile_columns, tiles, unit, units, strips, ranges, per_block, parts, panel, panels, part, chunk, DEPTH_BLOCK,
        filter_plane, planes * filter_plane, input_slot, output_slot, output_plane, output_vector,
        worker_span(slots_at + per_block * (input_slot + output_slot)), slots_at,
        input_pitch, output_pitch, input_staging, int(y_bytes >= PAST_CACHE_BYTES),
    )  # fmt: skip


def cycles(problem, threads, cut) -> float:
    """Predicted cycles: those of the thread with the most work, and the memory traffic that all share."""
    numbers, planes = Numbers(problem.dtype.name), (cut.m + 2) ** 2
    filters = cut.part * cut.panel
    transform, multiply = TRANSFORM_CYCLES[cut.m] * (problem.Cg + filters), planes * problem.Cg * filters
    multiply /= target.multiply_adds_per_cycle()
    stream = planes * problem.Cg * filters * numbers.item / STREAM_BYTES_PER_CYCLE

    def strip_cycles(strip):
        units = (strip + 1) * cut.units // cut.strips - strip * cut.units // cut.strips
        width = ceil_div(units * cut.unit, cut.panel)
        return width * transform + units * cut.unit / cut.panel * multiply / 0.9

    def range_cycles(index):
        first, end = index * cut.strips // cut.ranges, (index + 1) * cut.strips // cut.ranges
        blocks = ceil_div(end - first, cut.strips_per_block)
        return max(sum(map(strip_cycles, range(first, end))), blocks * stream)

    longest = max(map(range_cycles, range(min(cut.ranges, 64))))
    rounds = ceil_div(problem.groups * cut.ranges * cut.parts, threads)
    pixels = problem.N * (problem.C * problem.H * problem.W + problem.K * problem.P * problem.Q)
    memory = pixels * problem.dtype.itemsize / MEMORY_BYTES_PER_CYCLE / threads
    return rounds * longest * (PARTS_COST if cut.parts > 1 else 1.0) + memory


# ---- the kernel; winograd_f2.py, winograd_f4.py and winograd_f6.py give m ----


def build_loop():
    return task_loop(build())


def build_pack_loop(m, dtype_name):
    return task_loop(build_pack(m, dtype_name))


def why_not(m, problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = []
    if device.kind != "cpu":
        reasons.append(f"runs on the CPU only, x is on {device}")
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    if problem.dilation != (1, 1):
        reasons.append(f"dilation 1 only, got {problem.dilation}")
    if vector_type(problem.accumulate).count < 4:
        held = target.vector_bytes() // problem.accumulate.itemsize
        reasons.append(f"{problem.dtype} needs vectors of 4 numbers, this processor's hold {held}")
    return reasons


def workspace_bytes(m, problem, device):
    return device.threads * cut(m, problem, device.threads).worker_bytes


def packed_bytes(m, problem, device):
    """The transformed weights, and what each thread needs to make them."""
    return weight_bytes(m, problem, device) + device.threads * pack_scratch_bytes(problem)


def weight_bytes(m, problem, device):
    return problem.groups * cut(m, problem, device.threads).filter_group


def pack_scratch_bytes(problem):
    numbers = Numbers(problem.dtype.name)
    return worker_span(numbers.staging_at + 12 * numbers.count * numbers.item)


def pack(m, problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, 3, 3) into `packed` (uint8, 64-byte aligned)."""
    chosen = cut(m, problem, device.threads)
    streaming = int(weight_bytes(m, problem, device) >= PAST_CACHE_WEIGHTS)
    own = replace(chosen, worker_bytes=pack_scratch_bytes(problem), streaming=streaming)
    fields = problem_fields(problem) + own.packed()
    scratch = packed[weight_bytes(m, problem, device) :]
    call = pack_call(fields, packed, w, packed, None, None, scratch)
    loop = compiled(build_pack_loop, m, problem.dtype.name)
    run_tasks(loop, call, problem.groups * chosen.panels, device.threads)


def predicted_seconds(m, problem, device):
    chosen = cut(m, problem, device.threads)
    return 10e-6 + cycles(problem, device.threads, chosen) / CYCLES_PER_SECOND


def pack_seconds(m, problem, device):
    return PACK_CYCLES * (m + 2) ** 2 * problem.K * problem.Cg / CYCLES_PER_SECOND / device.threads


@lru_cache(maxsize=1024)
def prepared(m, problem, threads):
    """What every call for this problem shares: the record's fields, the compiled loop and the number of tasks."""
    chosen = cut(m, problem, threads)
    name, real = problem.dtype.name, problem.accumulate.name
    leaves = (
        compiled(build_input_stage, name),
        compiled(build_multiply_stage, real, chosen.unit),
        compiled(build_output_stage, name),
        compiled(build_input_transform, m, real),
        compiled(build_output_transform, m, real),
    )
    addresses = struct.pack(f"{len(LEAVES)}q", *(leaf.address for leaf in leaves))
    fields = problem_fields(problem) + chosen.packed() + addresses
    return fields, compiled(build_loop), problem.groups * chosen.ranges * chosen.parts


def run(m, problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical order."""
    fields, loop, tasks = prepared(m, problem, device.threads)
    run_tasks(loop, pack_call(fields, x, w, y, bias, residual, workspace), tasks, device.threads)
