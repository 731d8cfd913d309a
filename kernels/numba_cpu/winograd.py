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

Where a line has few tiles, which would leave lanes empty, a lane of V is a channel (winograd_input_channels.py).

The multiply takes the tiles one number at a time, up to 8 (with 16 registers 4) at once, or all of 9, and filters by
vectors: so 49 tiles are 7 times 7, where lanes of tiles would make them 64. Tiles that stick out of y leave out the
products of outputs that nobody wants (winograd_multiply.py). A plan has U transformed and packed ahead (`pack`), and it
streams by once per strip. V and M never hold more than a strip, so nothing of the size of the image is written but y.

A single call transforms the filters where they are multiplied, and never stores the whole of U: each thread has a run
of strips and a part of the filters, and in a buffer of its own

    all U of its part, if that is small             then strip after strip, as above
    or a block of channels of some filters          multiplied with all strips of the run, whose V and M wait

Lessons, measured on two Zen 5 cores with AVX-512 unless it says otherwise:
- Packed for one call, U went through L3 or memory and from core to core: 256 -> 256 at 14 x 14 took 410 microseconds,
  265 when that was tried, with U at hand 190; 512 -> 512 at 28 x 28 3.7 ms, and then 2.7.
- Transforming 16 filters of a channel takes 110 cycles for F(4,3), 55 to 75 for F(2,3), as it does in C. A line stored
  to L2 takes 2 cycles, so 36 are 72 (40 where U stays in L1); the taps, gathered by quads, 30 to 37, the arithmetic
  27; loads and stores hardly overlap. What did not help, in times as long: whole vectors of 16 channels' taps
  transposed, 1.03, and in turns with the transforms 1.18; fetching the lines to be stored, for writing, 1.1 to 1.25, or
  the taps ahead, 1.0 to 1.05. Nor does it matter in which order the lines are stored, or whether loads and stores
  agree in their low 12 bits.
- Two Zen 4 cores with AVX-512, where one multiply-add of 64 bytes starts per cycle: the multiply takes 1.05 to 1.15
  times its products at the peak, both transforms take twice as much of the rest as on Zen 5. Transformed by chunks, U
  that one strip reads alone takes less (single calls of 256 channels of 14 x 14 0.89 of the time, of F(4) with stride 2
  0.86 to 0.91), U that several strips read takes more (128 of 112 x 112 1.07 to 1.2: their V wait). What changed
  nothing there: sums of 32 to 128 channels, strips of 1 to 4 vectors, V, U and M in huge pages, and fetching lines of M
  before they are read or of V before they are stored.
- The taps of the next chunk are fetched while this one is multiplied, a part of a filter's by each sum of products:
  waiting for them took half as long as the transforms of 512 filters. On Zen 4 single calls of 512 -> 512 take 0.89 of
  the time at 14 x 14 and by F(6) 0.87 at 28 x 28, 256 -> 512 there 0.88, 1024 -> 1024 at 16 x 16 0.92, of 256 -> 256 at
  14 x 14 and by F(2) 0.99.
- A store of 64 bytes takes 2 cycles on Zen 4, also where its line comes from L2. All taps of a channel loaded, and then
  all its numbers stored, hardly overlapped: 150 cycles for 16 filters of a channel by F(4), 255 by F(6), 85 by F(2).
  With each number made when it is stored, and the next channel's taps loaded in between, 130, 206 and 76 (by F(2) four
  channels at a time: 9 quads instead of 12): single calls of 256 -> 256 at 14 x 14 take 0.96 of the time, of
  512 -> 512 at 14 x 14 0.97, at 7 x 7 and with stride 2 0.98. Left to itself the compiler moves all shuffles behind the
  stores (`settled` in tracing.py). Where taps lie in L1, by F(4) and F(2) these are 100 and 50:
  with 512 channels the taps of 16 filters share two sets of it, 8 lines each. Fetching them to L1 ahead took 0.94 to
  1.07 as long, two quads at a time 1.03, 32 bytes at a time 0.97, through a copy in L1 1.2. Transposed while the chunk
  before is multiplied, 4 filters' quads at each step, they would take 1.07 of the multiply, as much as that would save.
- There too V of a strip that is larger than L2 came from L3 when it was read, a tenth of the multiply. The next plane
  is now fetched into L2 while the last filters of this one are multiplied: plans of 512 -> 512 at 32 x 32 take 0.93 of
  the time, of 1,024 -> 512 0.90, of 256 at 64 x 64 by F(6) 0.93. Held to AVX2, whose steps are 12 multiply-adds, the
  fetching itself took 1.03. Reading V again then costs little, and M of so few filters (3 vectors, mostly) that it is
  still in L2 when it is transformed more: 256 at 56 x 56 by F(6) 0.90 to 0.95, 128 -> 256 0.90, 256 -> 512 at 28 x 28
  by F(4) 0.92 of the time.
- There two threads that write strips of one map write the same cache lines, and the output stage of 128 channels of
  28 x 28 takes 82 microseconds on both, 33 on one alone; of 256 -> 512 220 and 104. In another order of filters no
  less. With filters split between threads instead (57 and 24), each transforms all of the input, which costs less.
- Strassen over the products there, seven of half the tiles, channels and filters each: they alone took 5.7 ms of 5.7
  (512 -> 512 at 32 x 32), 10.9 of 11.4 (1,024 -> 512), 4.4 of 4.3 (256 at 56 x 56), before any sum is made: its 7/4 of
  U come from memory.
- Held to AVX2 there, whose register tiles of 1 and 2 vectors of filters wait for loads, chunks are whole threes of
  vectors: single calls of 256 -> 512 at 28 x 28 by F(4) take 0.86 of the time (6 vectors, before 2), of 512 -> 512 at
  14 x 14 0.92, of 128 at 56 x 56 with stride 2 0.95; plans, whose M now stays in L2, of 512 -> 512 at 28 x 28 by F(6)
  0.94, of 256 -> 512 0.95, of 256 at 56 x 56 0.85 to 1.0. Filters split between threads: plans of 128 at 28 x 28 0.92,
  of 256 at 28 x 28 with stride 2 0.91, of 512 at 7 x 7 by F(2) 0.6. What changed nothing: a third of the fetches ahead
  (where U comes from L3, 1.5). Four steps of the micro-kernel in one round of its loop took 1.3 to 1.7.
- U of a chunk of 3/8 of L2, instead of all of it, leaves room for V and M: single calls of 512 -> 512 take 0.93 of the
  time at 7 x 7, 0.98 at 14 x 14, 0.95 by F(6) at 28 x 28. 256 -> 256 at 14 x 14 does not care.
- All U of a single call, where it is larger than 3 MB, comes from L3 for every strip there; by chunks for one strip
  each, although every strip transforms it again, 128 -> 256 takes 0.85 of the time at 64 x 64 by F(6), 0.82 to 0.96 at
  56 x 56, 128 -> 128 0.95 at 112 x 112. Of 1 to 2 MB it took 1.01 to 1.17.
- There sums that begin with their first products, instead of zeros, save some 40 of the 60 cycles that a register tile
  loses with its stores; with the places of planes looked up once for a strip, the multiply takes 0.98 of the time
  where 64 channels are summed, 0.99 for 128. That is still 1.08 to 1.11 of its products at the peak, and of 512
  channels 1.15 to 1.25, whose U comes from memory: fetched to L2, two sums ahead, past L2 or as one stream of three
  vectors it does not come faster (0.93 to 1.2).
- F(5), whose 9 tiles cover 14 x 14 and are one register tile (of other numbers up to 9 at once, instead of 8, took
  1.00 to 1.03), takes 0.91 of F(4)'s time there in plans of 256 channels
  (307 microseconds; its products at the peak are 222, 244 with what they wait), 0.91 at 20 x 20, 0.92 at 40 x 40, and
  0.95 of F(6)'s on 80 channels of 80 x 80. Single calls transform 49 numbers for it instead of 36, and gain nothing at
  14 x 14. Its U of 512 -> 512 is 51 MB, of which L3 keeps some 24: 1.9 ms, F(4) 1.5. F(3) of 3 x 3 / 2 takes 0.93 of
  F(2)'s time on 256 x 28 x 28, 0.85 on 128 -> 512 at 17 x 17; of stride 1 it won nowhere by more than 5 %. F(7) would
  need 18 products for 14 outputs instead of 20, and err 2.4 times as much as F(6) (best points 0.45, 0.9, 1.5, 4.25;
  128 channels 7.8e-6). F(7) down and F(6) across would err 5.2e-6; F(7) and F(5), as much as F(6), have no fewer
  products: of 28 x 28 1,476 where F(6) has 1,444, of 56 x 56 6,048 and 6,084.
- Rows of several segments joined before their pixels are put into lanes, by two loads with masks for each vector:
  spreading takes 0.6 to 0.7 of the time on maps of 14 x 14, where a segment has 4 tiles, 1.0 to 1.6 on larger ones, and
  whole plans 1.0. Nor does it pay to load the taps of 4 channels as quads of which no tap is loaded twice (0.89 to 1.09
  of the transforms of filters): their stores are the limit.
- Of 3 x 3 / 2, what is the same at several points stored once: single calls of 128 x 56 x 56 (F4) 0.92, 256 x 28 x 28
  (F2) 0.95, 512 x 14 x 14 (F2) 0.90 of the time; plans 0.94 to 1.0. The channels of a phase must follow each other in
  V: with other phases between them they fall into few sets of L1, and plans took 1.05. So they did where the place of
  a sum's filters was computed, with its divisions, for every run of the micro-kernel.
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
- Products left out at the ends of y, 22 of 24 each way on maps of 14 x 14 and 15 of 16 on 7 x 7: plans of 256 channels
  of 14 x 14 take 0.91 of the time, of 512 of 7 x 7 0.93, of 512 of 14 x 14 with stride 2 0.88 (18 of 20 each way: with
  the points 0, 1 and infinity; 0 and +-1 leave out one product, not two).
- What these are above their multiplications at the micro-kernel's peak (117, 218 and 315 microseconds of 165, 272 and
  412) is the input, 24, 20 and 30, which both threads transform, and the multiply, 20, 30 and 55: the
  weights of so few tiles are due every 6 to 8 cycles a line, about what one core can fetch from L3.
- Strips of any number of tiles, 25 and 24 of 49 instead of 28 and 21: each thread then transforms half of the input and
  has half of the products: 128 channels of 28 x 28 0.92, 128 of 56 x 56 with stride 2 0.93, 256 of 28 x 28 with
  stride 2 0.96 of the time, of plans. A single call would transform the filters twice.
- Tiles by a list of their numbers, where all are multiplied anyhow, cost 3 % on 64 channels and 20 % of the multiply of
  7 x 7 / 2 with 3 channels, whose sums are of 12; half of it were divisions for every run of the micro-kernel.
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
- Single calls of 3 x 3 / 2 on maps of 14 x 14, 64 to 512 channels, take as long as `blocked`, of 1,024 1.16 times.
- Of 3 channels, 3 x 3 / 2 on 224 x 224 took 1.4 times as long as `blocked`, 3 x 3 with 32 filters 1.35: the transforms
  of outputs, which so few channels do not repay, while larger windows do.
- Sums over the phases in one loop, not a loop for each: 3 channels of 7 x 7 / 2 are sums of 12.
- F(6) of 3 x 3 / 2 (169 products for 36 outputs against 81 for 16) lost to F(4) everywhere: 0.51 against 0.43 ms on
  128 x 56 x 56, its tiles stick out of maps of 28, and the error trebles.
- U of 3 x 3 / 2 with 512 channels: F(4)'s 38 MB take 1.0 ms where F(2)'s 17 MB take 0.43. Of 256 channels of 28 x 28
  F(4) takes 1.15 times as long as F(2): 4 tiles of 4 for 14 outputs have as many products as 7 of 2.
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
from dataclasses import replace
from functools import lru_cache

from . import target
from .call import pack_call, problem_fields
from .compilation import compiled
from .job import job_of
from .microkernel import CLOCK, vector_type
from .threads import run_tasks, task_loop, worker_span
from .winograd_cuts import MOST_WORKSPACE, PACKED_FIRST, cut, cycles, filter_cycles, lanes_are_channels, streams_weights
from .winograd_filters import build_filter_stage, build_pack
from .winograd_input import build_input_stage, build_input_transform, build_spread
from .winograd_input_channels import build_input_stage_of_channels, build_input_transform_of_channels
from .winograd_matrices import tile_of
from .winograd_multiply import build_multiply_stage, build_tile_lists
from .winograd_output import build_output_stage, build_output_transform
from .winograd_record import LEAVES, Numbers
from .winograd_stages import build

passes = ("forward",)

MOST_POINTS, MOST_POINTS_OF_A_LINE = 8, 10  # more would err more than F(6,3); a window of one row or column errs once
MOST_TAPS, MOST_STRIDE = 11, 4  # the transforms are straight code: that of 11 x 11 with stride 4 compiles in 9 s

CALL_CYCLES = 26_000  # of the cost model of winograd_cuts.py


# The kernel; winograd_f2.py, winograd_f4.py and winograd_f6.py give m.


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
    if m == 3 and stride == (1, 1):
        reasons.append("strides only, got (1, 1)")
    if m in (5, 6) and stride != (1, 1):
        reasons.append(f"stride 1 only, got {stride}")
    if reasons:
        return reasons
    if window == (1, 1) or any(step >= taps > 1 or step > taps for taps, step in zip(window, stride, strict=True)):
        return [f"windows that overlap only, got {got}"]
    if max(window) > MOST_TAPS or max(stride) > MOST_STRIDE:
        return [f"at most {MOST_TAPS} taps and a stride of {MOST_STRIDE} each way, got {got}"]
    tile = tile_of(m, problem)
    points = tile.rows.points, tile.columns.points
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
    own = replace(chosen, worker_bytes=pack_scratch_bytes(problem), streaming=streams_weights(problem, chosen))
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
    each = PACKED_FIRST * filter_cycles(m, problem)
    return 10e-6 + each * problem.K * problem.Cg / CLOCK / device.threads


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
    name, real, dilated = problem.dtype.name, problem.accumulate.name, problem.dilation[1] > 1
    of_channels = lanes_are_channels(m, problem)
    leaves = {
        "multiply_stage": compiled(build_multiply_stage, real, of_channels),
        "tile_lists": compiled(build_tile_lists, real),
        "output_stage": compiled(build_output_stage, name),
        "transform_output": compiled(build_output_transform, tile, real, dilated),
    }
    if of_channels:
        leaves["input_stage"] = compiled(build_input_stage_of_channels, real)
        leaves["transform_input"] = compiled(build_input_transform_of_channels, tile, real)
    else:
        leaves["input_stage"] = compiled(build_input_stage, name)
        leaves["spread_pixels"] = compiled(build_spread, tile, real, dilated)
        leaves["transform_input"] = compiled(build_input_transform, tile, real)
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
