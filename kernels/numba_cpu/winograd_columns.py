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

import math
import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, PAST_CACHE_BYTES, activated
from .few_channels import STREAM_BYTES
from .job import job_of
from .microkernel import CLOCK, predicted
from .short_floats import as_numbers, as_stored, lanes_for, stored_kind, vector_of
from .threads import lines, run_tasks, two_round_loop, worker_span
from .tracing import (
    Lanes,
    broadcast,
    choose,
    constant,
    convert,
    extract,
    fma,
    hidden,
    lanes_between,
    load,
    load_lanes,
    load_strided,
    loop,
    maximum,
    minimum,
    select,
    store,
    store_past_cache,
    traced,
    zeros,
)
from .vectors import lanes, record_at
from .weight_rows import LINE
from .winograd_matrices import HALF, ONE, Axis, filter_matrix, input_matrix, output_matrix
from .winograd_transforms import combine, pairs, times_paired_rows

passes = ("forward",)

AXIS = Axis(4, 3)  # of a tile: 4 rows of outputs
FILTERS = 24 // AXIS.points  # of a tile: sums of all their products are in registers
S = 3  # columns of a window
LEAST_CHANNELS, MOST_CHANNELS = 2, 8
TASKS_PER_THREAD = 4

# Cycles: of a vector of a channel's transformed rows; of a column of a filter; of an output that is stored; and how
# often memory takes a line of a large y, however few the multiply-adds.
ROWS_CYCLES, FILTER_CYCLES, STORE_CYCLES, LINE_CYCLES = 40, 12, 0.25, 22
ROUNDING_CYCLES = 0.25  # of an output that becomes bfloat16

GEOMETRY = (
    "bands", "strip", "scratch_at", "panel_at", "v_at", "v_row", "u_at", "streaming", "worker_bytes",
)  # fmt: skip
CALL_COLUMNS = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


def filters_function(dtype_name):
    """transform(w, w_k, w_c, w_r, w_s, C, left, to): the columns of FILTERS filters, or of the `left` that there are,
    to numbers for the products, those of one depth and product side by side.
    """
    stored, real, n = Lanes(stored_kind(dtype_name)), vector_of(dtype_name).scalar, AXIS.points

    @traced(types.void)
    def transform(w, w_k, w_c, w_r, w_s, C, left, to):
        def one(c, s, f):
            here, there = w + w_k * f + w_c * c + w_s * s, to + ((c * S + s) * (n * FILTERS) + f) * real.item_bytes

            def read():
                return [as_numbers(load(stored, here + w_r * r), dtype_name) for r in range(AXIS.taps)]

            taps = choose(left > f, read, lambda: [zeros(real, w)] * AXIS.taps)
            for p, number in enumerate(times_paired_rows(filter_matrix(AXIS), taps)):
                store(there + FILTERS * real.item_bytes * p, number)

        columns, filters = constant(w, S), constant(w, FILTERS)
        loop(C, lambda c: loop(columns, lambda s: loop(filters, lambda f: one(c, s, f))))

    return transform


def rows_function(dtype_name):
    """transform(x, x_h, row, H, column, W, to, to_row, vectors): rows of x from `row` on, of each `vectors` vectors
    from `column` on, padded with zeros, to the rows that the products want.
    """
    V, stored = vector_of(dtype_name), Lanes(stored_kind(dtype_name), lanes_for(dtype_name))

    @traced(types.void)
    def transform(x, x_h, row, H, column, W, to, to_row, vectors):
        ends = [select((row + r >= 0) & (row + r < H), W, 0) for r in range(AXIS.points)]

        def one(i):
            at, pixels = column + i * V.count, []
            for r, end in enumerate(ends):
                here = x + x_h * (row + r) + at * stored.item_bytes
                pixels.append(as_numbers(load_lanes(stored, here, lanes_between(stored, at, 0, end)), dtype_name))
            for p, vector in enumerate(times_paired_rows(input_matrix(AXIS), pixels)):
                store(to + to_row * p + V.bytes * i, vector)

        loop(vectors, one)

    return transform


def outputs_of(sums, bias):
    """The rows of a tile's outputs, of the sums of its products: A^T. The first and last sums began with the bias."""
    matrix, values = [list(row) for row in output_matrix(AXIS)], list(sums)
    for plus, minus in pairs(len(values)):
        a, b = values[plus], values[minus]
        values[plus], values[minus] = a + b, a - b
        for row in matrix:
            c, d = row[plus], row[minus]
            row[plus], row[minus] = (c + d) * HALF, (c - d) * HALF
    inner = [combine([ONE, *row], [bias, *values]) for row in matrix[1:-1]]
    return [combine(matrix[0], values), *inner, combine(matrix[-1], values)]


def tiles_function(dtype_name):
    """The traced function for a strip of FILTERS filters, tile after tile, from sums to store."""
    V, stored = vector_of(dtype_name), Lanes(stored_kind(dtype_name), lanes_for(dtype_name))
    n, m = AXIS.points, AXIS.m

    @traced(types.void)
    def tiles(
        u, v, v_row, C, columns, y, y_k, y_p, y_q, residual, residual_k, residual_p, residual_q, has_residual,
        left, rows_left, bias, scratch, kind, low, high, slope, past,
    ):  # fmt: skip
        whole, neighbours = (left >= FILTERS) & (rows_left >= m), y_q.equals(stored.item_bytes)
        at_once = whole & neighbours & has_residual.equals(0) & kind.equals(CLAMP) & (high >= math.inf)
        least = convert(low, V.scalar)

        def bias_of(f):
            return broadcast(V, load(V.scalar, hidden(bias) + V.item_bytes * f))

        def tile(i):
            q = minimum(i * V.count, columns - V.count)
            to, more = y + y_q * q, residual + residual_q * q

            def step(c, carried):
                sums, u = carried
                here = v + q * V.item_bytes + v_row * n * c
                for s in range(S):
                    for p in range(n):
                        row = load(V, here + v_row * p + V.item_bytes * s)
                        for f in range(FILTERS):
                            weight = load(V.scalar, u + V.item_bytes * ((s * n + p) * FILTERS + f))
                            sums[f][p] = fma(broadcast(V, weight), row, sums[f][p])
                return [sums, u + V.item_bytes * (S * n * FILTERS)]

            biases = [bias_of(f) for f in range(FILTERS)]
            sums = loop(C, step, [[[number, *[zeros(V, u)] * (n - 2), number] for number in biases], u])[0]

            def put(how):
                for f in range(FILTERS):
                    for r, row in enumerate(outputs_of(sums[f], bias_of(f))):
                        how(to + y_k * f + y_p * r, as_stored(maximum(broadcast(V, least), row), dtype_name))

            def put_one_by_one():
                for f in range(FILTERS):
                    for r, row in enumerate(outputs_of(sums[f], bias_of(f))):
                        store(scratch + V.bytes * (f * m + r), row)
                filters, rows = minimum(left, FILTERS), minimum(rows_left, m)
                loop(filters, lambda f: loop(rows, lambda r: finish(f, r)))

            def finish(f, r):
                total, here = load(V, scratch + V.bytes * (f * m + r)), to + y_k * f + y_p * r
                totals = choose(has_residual.differs(0), lambda: [total + residual_at(f, r)], lambda: [total])
                row = as_stored(activated(totals, kind, low, high, slope)[0], dtype_name)
                choose(neighbours, lambda: store(here, row), lambda: store_apart(here, row))

            def residual_at(f, r):
                here, side_by_side = more + residual_k * f + residual_p * r, residual_q.equals(stored.item_bytes)
                row = choose(
                    side_by_side, lambda: [load(stored, here)], lambda: [load_strided(stored, here, residual_q)]
                )
                return as_numbers(row[0], dtype_name)

            def store_apart(here, row):
                for lane in range(V.count):
                    store(here + y_q * lane, extract(row, lane))

            def put_at_once():
                choose(past.differs(0), lambda: put(store_past_cache), lambda: put(store))

            choose(at_once, put_at_once, put_one_by_one)

        loop((columns + (V.count - 1)) // V.count, tile)

    return tiles


def build(dtype_name):
    W, n, m = lanes_for(dtype_name), AXIS.points, AXIS.m
    transform_filters, transform_rows = filters_function(dtype_name), rows_function(dtype_name)
    tiles = tiles_function(dtype_name)
    stored, real = Lanes(stored_kind(dtype_name)), vector_of(dtype_name).scalar
    item, stored_item = real.item_bytes, stored.item_bytes

    @traced(types.void)
    def copy_number(to, address, inside):
        store(to, choose(inside.differs(0), lambda: [load(stored, address)], lambda: [zeros(stored, to)])[0])

    @traced(types.void)
    def copy_bias(to, address, inside):
        def read():
            return [as_numbers(load(stored, address), dtype_name)]

        store(to, choose(inside.differs(0), read, lambda: [zeros(real, to)])[0])

    @inlined
    def transform_group(call, index, to):
        """The filters of tiles number `index`, of all groups'."""
        groups = (call.Kg + FILTERS - 1) // FILTERS
        k = index % groups * FILTERS
        w = call.w + (index // groups * call.Kg + k) * call.w_k
        here = to + index * (call.Cg * S * n * FILTERS * item)
        transform_filters(w, call.w_k, call.w_c, call.w_r, call.w_s, call.Cg, call.Kg - k, here)

    def packing(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        transform_group(call, index, call.y)

    def prepare(call_address, worker):
        """In a single call: each thread's own."""
        call = record_at(CALL_COLUMNS, call_address)
        if call.u_at:
            for index in range(call.groups * ((call.Kg + FILTERS - 1) // FILTERS)):
                transform_group(call, index, call.workspace + worker * call.worker_bytes + call.u_at)

    @inlined
    def gather_rows(call, x, row, column, panel, columns):
        """Rows of x, padded, whose numbers are no neighbours."""
        for i in range(n):
            for j in range(columns):
                h, w = row + i, column + j
                inside = h >= 0 and h < call.H and w >= 0 and w < call.W
                copy_number(panel + i * call.v_row + j * stored_item, x + h * call.x_h + w * call.x_w, inside)

    def task(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        band, rest = index % call.bands, index // call.bands
        g, image = rest % call.groups, rest // call.groups
        memory = call.workspace + worker * call.worker_bytes
        scratch, panel, v = memory + call.scratch_at, memory + call.panel_at, memory + call.v_at
        k0, groups = g * call.Kg, (call.Kg + FILTERS - 1) // FILTERS
        for i in range(groups * FILTERS):
            copy_bias(memory + i * item, call.bias + (k0 + i) * call.bias_k, call.has_bias and i < call.Kg)
        group_bytes = call.Cg * S * n * FILTERS * item
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
                for k in range(0, call.Kg, FILTERS):
                    tiles(
                        u + k // FILTERS * group_bytes, v, call.v_row, call.Cg, columns,
                        y + k * call.y_k + first * call.y_q, call.y_k, call.y_p, call.y_q,
                        residual + k * call.residual_k + first * call.residual_q,
                        call.residual_k, call.residual_p, call.residual_q, call.has_residual,
                        call.Kg - k, call.P - p, memory + k * item, scratch,
                        call.activation, call.low, call.high, call.slope, past,
                    )  # fmt: skip

    return two_round_loop(packing, task, prepare)


# How a problem is cut.


def filter_groups(problem):
    return problem.groups * -(-problem.Kg // FILTERS)


@lru_cache(maxsize=1024)
def geometry(problem, threads, packed):
    """The numbers of GEOMETRY, and how many tasks there are."""
    item, width = problem.accumulate.itemsize, lanes(problem.accumulate)
    rows = problem.Cg * AXIS.points
    vectors, most = -(-problem.Q // width), max(target.cache_bytes(1) * 5 // 8 // (rows * width * item) - 1, 1)
    strip = -(-vectors // -(-vectors // most))
    v_row = (strip + 1) * width * item
    v_row += LINE if v_row % 1024 == 0 else 0  # or rows would share few places of the L1 cache
    maps = problem.N * problem.groups
    bands = min(-(-problem.P // AXIS.m), -(-TASKS_PER_THREAD * threads // maps)) if threads > 1 else 1
    scratch_at = lines((problem.Kg + FILTERS) * item)  # behind the biases
    panel_at = scratch_at + FILTERS * AXIS.m * target.vector_bytes()
    v_at = panel_at + AXIS.points * v_row
    u_at = v_at + rows * v_row
    worker_bytes = worker_span(u_at if packed else u_at + packed_bytes(problem, None))
    numbers = (
        bands, strip * width, scratch_at, panel_at, v_at, v_row, 0 if packed else u_at, stores_past_cache(problem),
        worker_bytes,
    )  # fmt: skip
    return numbers, maps * bands


def stores_past_cache(problem) -> int:
    """Whether whole lines of a y that is large go past the cache."""
    whole = lanes(problem.accumulate) * problem.dtype.itemsize == LINE and problem.Q % lanes(problem.accumulate) == 0
    return int(whole and y_bytes(problem) >= PAST_CACHE_BYTES)


def y_bytes(problem):
    return problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize


def cycles(problem) -> float:
    """Of all tasks: loads, which are more than multiply-adds; ends of tiles; rows of x."""
    width = lanes(problem.accumulate)
    vectors = problem.N * problem.groups * -(-problem.P // AXIS.m) * -(-problem.Q // width)
    loads = problem.Cg * S * AXIS.points * (FILTERS + 1) / target.multiply_adds_per_cycle() / 0.9
    stores = STORE_CYCLES + (ROUNDING_CYCLES if problem.dtype.name == "bfloat16" else 0.0)
    tile = loads + stores * width * AXIS.m * FILTERS
    busy = vectors * (-(-problem.Kg // FILTERS) * tile + ROWS_CYCLES * problem.Cg)
    return max(busy, LINE_CYCLES * y_bytes(problem) / LINE) if y_bytes(problem) >= PAST_CACHE_BYTES else busy


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    if target.vector_bytes() < 64:
        return ["needs AVX-512, whose multiply-adds take a weight from memory to all lanes"]
    reasons, least = [], lanes(problem.accumulate)
    if problem.layout != "NCHW":
        reasons.append(f"NCHW only, got {problem.layout}")
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
    return filter_groups(problem) * FILTERS * problem.Cg * S * AXIS.points * problem.accumulate.itemsize


def pack(problem, device, w, packed):
    """Write the transformed weights w (K, C/groups, 3, 3) into `packed` (uint8, 64-byte aligned)."""
    fields, loop, _ = prepared(problem, device.threads, True)
    run_tasks(loop, pack_call(fields, w, w, packed, None, None, None), 0, device.threads, filter_groups(problem))


@lru_cache(maxsize=1024)
def prepared(problem, threads, packed):
    """The record's fixed part, the compiled loop and the number of tasks. packed: whether the weights are, before."""
    numbers, tasks = geometry(problem, threads, packed)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name), tasks


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
