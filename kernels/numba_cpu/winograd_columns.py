"""Winograd in one direction, down the columns, for first layers: F(4, 3) for windows of 3 x 3 and few channels.

    6 rows of x, of each channel                the same for each of 64 filters
    . . . . . . . . .                           6 products x 4 filters, sums in 24 registers
    . . . . . . . . .  --B^T down a column-->   6 rows  --loads for each depth d = (c, s), weights from memory-->  A^T
    . . . . . . . . .     once, padded          in L1                                                          down
    . . . . . . . . .                                                                                   4 rows of y

Tiles both ways (winograd.py) need a quarter of the multiply-adds, but few channels do not repay what 36 planes of sums
take to transform. Down the columns alone half of the multiply-adds are left, 13.5 an output of 3 channels instead of
27, lanes are neighbouring pixels as they lie in x and y, and all else is small: the rows of x are transformed for all
filters, and the sums in registers become outputs by some 3 additions each. Weights are transformed down their columns
and lie as they are read: each is an operand that AVX-512 broadcasts from memory.

A strip of 4 rows, cut so that its transformed rows stay in L1, is multiplied with 4 filters after the other. Loads are
the limit, 30 for 24 multiply-adds; nothing is stored but y, and that at the end of each tile, so that memory is busy
all the time. The last vector of a row starts early enough to end with the row; rows beyond y are not stored.

Measured on two Zen 4 cores, AVX-512, N = 1, single calls and plans, in brackets `blocked` (few_channels.py): 3 -> 64
channels of 224 x 224 490 and 480 microseconds (870), of which storing 12.8 MB alone would take 455; of 256 x 256 660
and 640 (1,140), of 112 x 112 155 and 150 (230); 3 -> 32 of 299 x 299 510 and 490 (810), of 640 x 640 6.2 and 5.7 ms
(7.1 to 8); 2 -> 64 of 224 x 224 370 and 350 (630); 3 -> 3 of 256 x 256 79 and 74 (165 and 145), of 1080 x 1080 1.5 ms
(2.7). float16 490 (860), bfloat16 600 (960, by pairs 650). 6 -> 32 of 224 x 224 480 and 460 (F(4 x 4) 590), 8 -> 16
325 (F(6 x 6) 385), 8 -> 32 of 112 x 112 160 (F(4 x 4) 165 to 190); of 12 and more channels tiles both ways won. In
32 groups 128 channels of 56 x 56 135 and 128, 256 of 28 x 28 122 and 105 (`grouped` 180 and 165).
One channel, which `depthwise` computes as it stores, gained nothing.
Channels last, where lanes are filters and a tile has 4 pixels (winograd_columns_last.py), in brackets the next best,
`blocked_by_filters` or, of 6 and 8 channels, F(4 x 4): 3 -> 64 of 224 x 224 550 and 540 (830), of 256 x 256 720 and
700 (1,120), of 112 x 112 143 and 137 (215), 3 -> 32 of 299 x 299 510 (750), of 64 x 64 33 and 30 (44 and 40), 6 -> 32
of 224 x 224 500 (670), 8 -> 32 of 112 x 112 170 and 160 (190).
What was learned there:
- A load of 64 bytes that lies across two lines costs no more than another: copies of the rows, one for each column of
  the window, made a strip no faster.
- Tiles of 2 filters x 2 vectors, which want 24 loads instead of 30, took 1.1 to 1.2 times as long, of 1 x 4 1.6; F(6,
  3), 8 products x 3 filters, 1.0; F(2, 3), 4 products x 2 filters x 3 vectors, 1.6.
- Sums of all filters made outputs, clamped from both sides and then stored took 1.2 times as long as filter by filter,
  with the lower limit only; so the rest of what a layer may end in is done in memory, row by row.
- Of a single call each thread transforms all filters. Shared out between two, 3 -> 64 of 112 x 112 took 168, not 155:
  lines that the other core has written come slowly.
- Held to AVX2, 2 filters a tile and weights that are loaded apart, it took 1.15 to 1.2 times as long as `blocked`.

NaN and infinity in x reach the 4 rows of a tile, in the columns whose window reads them.
Source: Winograd, Arithmetic Complexity of Computations, SIAM 1980; Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016.
"""

import struct
from functools import lru_cache

from numba.core import types

from . import target, winograd_columns_last
from .call import pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import PAST_CACHE_BYTES
from .few_channels import STREAM_BYTES
from .job import job_of
from .microkernel import CLOCK, predicted
from .short_floats import lanes_for, stored_kind, vector_of
from .threads import lines, run_tasks, two_round_loop, worker_span
from .tracing import Lanes, broadcast, fma, hidden, load, loop, minimum, traced, zeros
from .vectors import lanes, record_at
from .weight_rows import LINE
from .winograd_columns_tiles import (
    AXIS,
    CALL_COLUMNS,
    GEOMETRY,
    OWN,
    Activation,
    Place,
    S,
    copies,
    filters_function,
    put_outputs,
    rows_function,
)

passes = ("forward",)

LEAST_CHANNELS, MOST_CHANNELS = 2, 8
TASKS_PER_THREAD = 4

# Cycles: of a vector of a channel's transformed rows; of a column of a filter; of an output that is stored; and how
# often memory takes a line of a large y, however few the multiply-adds.
ROWS_CYCLES, FILTER_CYCLES, STORE_CYCLES, LINE_CYCLES = 40, 12, 0.25, 22
ROUNDING_CYCLES = 0.25  # of an output that becomes bfloat16


def tiles_function(dtype_name):
    """The traced function for a strip of OWN filters, pixels after pixels, from sums to store."""
    V, stored, n, m = vector_of(dtype_name), Lanes(stored_kind(dtype_name)), AXIS.points, AXIS.m

    @traced(types.void)
    def tiles(
        u, v, v_row, C, columns, y, y_k, y_p, y_q, residual, residual_k, residual_p, residual_q, has_residual,
        left, rows_left, bias, scratch, kind, low, high, slope, past,
    ):  # fmt: skip
        activation = Activation(kind, low, high, slope)
        to, more = Place(y, y_k, y_p, y_q), Place(residual, residual_k, residual_p, residual_q)
        at_once = (left >= OWN) & (rows_left >= m) & y_q.equals(stored.item_bytes) & has_residual.equals(0)
        at_once = at_once & activation.is_least_alone()

        def bias_of(f):
            return broadcast(V, load(V.scalar, hidden(bias) + V.item_bytes * f))

        def tile(i):
            q = minimum(i * V.count, columns - V.count)

            def step(c, carried):
                sums, u = carried
                here = v + q * V.item_bytes + v_row * n * c
                for s in range(S):
                    for p in range(n):
                        row = load(V, here + v_row * p + V.item_bytes * s)
                        for f in range(OWN):
                            weight = load(V.scalar, u + V.item_bytes * ((s * n + p) * OWN + f))
                            sums[f][p] = fma(broadcast(V, weight), row, sums[f][p])
                return [sums, u + V.item_bytes * (S * n * OWN)]

            biases = [bias_of(f) for f in range(OWN)]
            sums = loop(C, step, [[[number, *[zeros(V, u)] * (n - 2), number] for number in biases], u])[0]
            put_outputs(
                dtype_name, sums, bias_of, to.at(q), more.at(q), has_residual, (left, rows_left), at_once, past,
                scratch, activation,
            )  # fmt: skip

        loop((columns + (V.count - 1)) // V.count, tile)

    return tiles


def build(dtype_name):
    W, n, m = lanes_for(dtype_name), AXIS.points, AXIS.m
    transform_filters, transform_rows = filters_function(dtype_name, OWN), rows_function(dtype_name)
    tiles, (copy_number, copy_bias) = tiles_function(dtype_name), copies(dtype_name)
    item, stored_item = vector_of(dtype_name).item_bytes, Lanes(stored_kind(dtype_name)).item_bytes

    @inlined
    def transform_group(call, index, to):
        """The filters of tiles number `index`, of all groups'."""
        groups = (call.Kg + OWN - 1) // OWN
        k = index % groups * OWN
        w = call.w + (index // groups * call.Kg + k) * call.w_k
        here = to + index * (call.Cg * S * n * OWN * item)
        transform_filters(w, call.w_k, call.w_c, call.w_r, call.w_s, call.Cg, call.Kg - k, here)

    def packing(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        transform_group(call, index, call.y)

    def prepare(call_address, worker):
        """In a single call: each thread's own."""
        call = record_at(CALL_COLUMNS, call_address)
        if call.u_at:
            for index in range(call.groups * ((call.Kg + OWN - 1) // OWN)):
                transform_group(call, index, call.workspace + worker * call.worker_bytes + call.u_at)

    @inlined
    def gather_rows(call, x, row, column, panel, columns):
        """Rows of x, padded, whose numbers are no neighbours."""
        for i in range(n):
            for j in range(columns):
                copy_number(call, x, row + i, column + j, panel + i * call.v_row + j * stored_item)

    def task(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        band, rest = index % call.bands, index // call.bands
        g, image = rest % call.groups, rest // call.groups
        memory = call.workspace + worker * call.worker_bytes
        scratch, panel, v = memory + call.scratch_at, memory + call.panel_at, memory + call.v_at
        k0, groups = g * call.Kg, (call.Kg + OWN - 1) // OWN
        for i in range(groups * OWN):
            copy_bias(call, k0 + i, i < call.Kg, memory + i * item)
        group_bytes = call.Cg * S * n * OWN * item
        u = (memory + call.u_at if call.u_at else call.w) + g * groups * group_bytes
        aligned = (call.y | call.y_n | call.y_k | call.y_p) % LINE == 0
        past, strips = call.streaming if aligned else 0, (call.P + m - 1) // m
        for p in range(strips * band // call.bands * m, min(strips * (band + 1) // call.bands * m, call.P), m):
            y = call.y + image * call.y_n + k0 * call.y_k + p * call.y_p
            residual = call.residual + image * call.residual_n + k0 * call.residual_k + p * call.residual_p
            for begin in range(0, call.Q, call.strip):
                first = min(begin, call.Q - W)
                columns = min(begin + call.strip, call.Q) - first
                read = columns + S - 1
                vectors = (read + W - 1) // W
                for c in range(call.Cg):
                    x, to = call.x + image * call.x_n + (g * call.Cg + c) * call.x_c, v + c * n * call.v_row
                    row, column = p - call.top, first - call.left
                    if call.x_w == stored_item:
                        transform_rows(x, call.x_h, row, call.H, column, call.W, to, call.v_row, vectors)
                    else:
                        gather_rows(call, x, row, column, panel, read)
                        transform_rows(panel, call.v_row, 0, n, 0, read, to, call.v_row, vectors)
                for k in range(0, call.Kg, OWN):
                    tiles(
                        u + k // OWN * group_bytes, v, call.v_row, call.Cg, columns,
                        y + k * call.y_k + first * call.y_q, call.y_k, call.y_p, call.y_q,
                        residual + k * call.residual_k + first * call.residual_q,
                        call.residual_k, call.residual_p, call.residual_q, call.has_residual,
                        call.Kg - k, call.P - p, memory + k * item, scratch,
                        call.activation, call.low, call.high, call.slope, past,
                    )  # fmt: skip

    return two_round_loop(packing, task, prepare)


# How a problem is cut.


def is_last(problem) -> bool:
    """Whether channels come last: lanes are filters then, and a tile has OWN pixels; else the other way round."""
    return problem.layout == "NHWC"


def filters_together(problem):
    return lanes(problem.accumulate) if is_last(problem) else OWN


def columns_together(problem):
    return OWN if is_last(problem) else lanes(problem.accumulate)


def filter_groups(problem):
    return problem.groups * -(-problem.Kg // filters_together(problem))


@lru_cache(maxsize=1024)
def geometry(problem, threads, packed):
    """The numbers of GEOMETRY, and how many tasks there are."""
    item, width, columns = problem.accumulate.itemsize, lanes(problem.accumulate), columns_together(problem)
    side_by_side = problem.C if is_last(problem) else 1  # channels in a row of x
    rows, room = AXIS.points * problem.Cg // side_by_side, target.cache_bytes(1) * 5 // 8
    if is_last(problem):  # whose tiles go by all filters
        room -= min(packed_bytes(problem, None), room * 3 // 4)
    tiles, most = -(-problem.Q // columns), max(room // (problem.Cg * AXIS.points * columns * item) - 1, 1)
    strip = -(-tiles // -(-tiles // most)) * columns
    v_row = -(-(strip + S - 1) * side_by_side // width) * width * item
    v_row += LINE if v_row % 1024 == 0 else 0  # or rows would share few places of the L1 cache
    maps = problem.N * problem.groups
    bands = min(-(-problem.P // AXIS.m), -(-TASKS_PER_THREAD * threads // maps)) if threads > 1 else 1
    scratch_at = lines((problem.Kg + OWN) * item)  # behind the biases
    panel_at = scratch_at + OWN * AXIS.m * target.vector_bytes()
    v_at = panel_at + AXIS.points * v_row
    u_at = v_at + rows * v_row
    worker_bytes = worker_span(u_at if packed else u_at + packed_bytes(problem, None))
    numbers = (
        bands, strip, scratch_at, panel_at, v_at, v_row, 0 if packed else u_at, stores_past_cache(problem), worker_bytes
    )  # fmt: skip
    return numbers, maps * bands


def stores_past_cache(problem) -> int:
    """Whether whole lines of a y that is large go past the cache."""
    neighbours, width = problem.K if is_last(problem) else problem.Q, lanes(problem.accumulate)
    whole = width * problem.dtype.itemsize == LINE and neighbours % width == 0
    return int(whole and y_bytes(problem) >= PAST_CACHE_BYTES)


def y_bytes(problem):
    return problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize


def cycles(problem) -> float:
    """Of all tasks: loads, which are more than multiply-adds; ends of tiles; rows of x."""
    strips = problem.N * problem.groups * -(-problem.P // AXIS.m)
    tiles = -(-problem.Q // columns_together(problem)) * -(-problem.Kg // filters_together(problem))
    vectors = -(-problem.Q * problem.Cg // lanes(problem.accumulate))
    loads = problem.Cg * S * AXIS.points * (OWN + 1) / target.multiply_adds_per_cycle() / 0.9
    stores = STORE_CYCLES + (ROUNDING_CYCLES if problem.dtype.name == "bfloat16" else 0.0)
    tile = loads + stores * lanes(problem.accumulate) * AXIS.m * OWN
    busy = strips * (tiles * tile + ROWS_CYCLES * vectors)
    return max(busy, LINE_CYCLES * y_bytes(problem) / LINE) if y_bytes(problem) >= PAST_CACHE_BYTES else busy


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    if target.vector_bytes() < 64:
        return ["needs AVX-512, whose multiply-adds take a weight from memory to all lanes"]
    reasons, least, width = [], columns_together(problem), lanes(problem.accumulate)
    if is_last(problem) and problem.groups > 1:
        reasons.append(f"one group only in NHWC, got {problem.groups}")
    if is_last(problem) and problem.K % width:
        reasons.append(f"a multiple of {width} filters in NHWC, got {problem.K}")
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    if problem.dilation != (1, 1):
        reasons.append(f"dilation 1 only, got {problem.dilation}")
    if problem.Cg < LEAST_CHANNELS or problem.Cg > MOST_CHANNELS:
        reasons.append(f"{LEAST_CHANNELS} to {MOST_CHANNELS} input channels a group, got {problem.Cg}")
    if least > problem.Q:
        reasons.append(f"rows of at least {least} outputs, got {problem.Q}")
    return reasons


def workspace_bytes(problem, device):
    return device.threads * geometry(problem, device.threads, True)[0][-1]


def one_call_bytes(problem, device):
    return device.threads * geometry(problem, device.threads, False)[0][-1]


def packed_bytes(problem, device):
    filters = filter_groups(problem) * filters_together(problem)
    return filters * problem.Cg * S * AXIS.points * problem.accumulate.itemsize


def pack(problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, 3, 3) into `packed` (uint8, 64-byte aligned)."""
    fields, loop, _ = prepared(problem, device.threads, True)
    run_tasks(loop, pack_call(fields, w, w, packed, None, None, None), 0, device.threads, filter_groups(problem))


@lru_cache(maxsize=1024)
def prepared(problem, threads, packed):
    """The record's fixed part, the compiled loop and the number of tasks. packed: whether the weights are, before."""
    numbers, tasks = geometry(problem, threads, packed)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    builder = winograd_columns_last.build if is_last(problem) else build
    return fields, compiled(builder, problem.dtype.name), tasks


def predicted_seconds(problem, device):
    return predicted(problem, device, cycles(problem), STREAM_BYTES)


def pack_seconds(problem, device):
    """What a single call takes longer, each of whose threads transforms all filters."""
    return FILTER_CYCLES * problem.K * problem.Cg * S / CLOCK


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    fields, loop, tasks = prepared(problem, device.threads, w.ndim == 1)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as it is, into y; all in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
