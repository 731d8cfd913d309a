"""Convolution of 1 to 4 input channels, as in first layers, or of many channels to 1 to 4 filters, as in last ones and
the input gradient of first ones: the micro-kernel reads padded rows, no panels are made.

    x rows, all channels ---copy, padded, columns sorted by stride---> rows in cache
                                                                        |  one load for each depth d = (c, r, s),
    8 filters x 3 vectors of neighbouring pixels in registers  <--------+  from row start + offset[d]

Why beside blocked.py: there a number of x is copied into a panel once for every tap that reads it, 49 times for 7 x 7,
and with so few channels each tap's setting-up is repaid by 3 numbers. Here it is copied once, or a little oftener
where bands of rows overlap. The price is one more load a step, of the offset, where loads are not the limit.

The last tile of a row starts early enough to end with the row: some outputs are computed twice, alike.

1 to 4 filters, to which blocked.py gives tiles of 8, have tiles of their own with 32 registers: 3 filters x 8 vectors,
or x 7 where a row is 14 vectors. Rows of all channels are copied, which the few filters hardly repay, but copying each
number once for every tap is worse. With 16 registers, where blocked.py's tile has 4 filters, it was slower.

Measured on two Zen 5 cores with AVX-512, beside panels: 3 channels of 224 x 224 under 7 x 7 with stride 2 507
GFLOP/s, 1.27 times as fast; 3 x 3 with stride 2 1.32, with stride 1 1.13 (12.8 MB of outputs); 1 channel of 512 x 512
under 5 x 5 2.2. 64 channels of 224 x 224 to 3 filters under 3 x 3, eight images: 9 ms instead of 17, of which copying
rows is 5.5. Of MobileNetV2's first layer, 3 x 3 with stride 2 and 32 filters, copying rows is an eighth.
On two Zen 4 cores that layer takes 120 to 140 microseconds, by Winograd 165; of 299 x 299 230 and 310, 16 filters of
640 x 640 530 and 950, VGG-16's first layer 930 and 1,180 to 1,470, down the columns alone (winograd_columns.py) 490.
Lesson: filters' planes are often a multiple of 4,096 bytes apart, so that what 64 filters store of one tile shares a
few places of the caches, and lines that one tile ends in are thrown out before the next one fills them. So 8 filters
store a strip of a row before the next 8 begin: 3 channels of 224 x 224 to 64 filters under 3 x 3 take 385 to 400
microseconds wherever y lies, not 410 to 520; of 256 x 256, 510 to 580 instead of 600 to 630, under 1 x 1 160 to 190
instead of 480 to 680.
Stores past the cache, measured on two Zen 4 cores with AVX-512: 3 channels of 224 x 224 to 64 filters under 3 x 3 take
0.88 of the time (870 microseconds), of 256 x 256 0.87, of 640 x 640 to 32 with stride 2 0.79; under 1 x 1, whose
products do not outlast the stores, 1.8. Held to AVX2, where a vector is half a line, 0.84 to 1.06: there none do so.
Rows of a window that meet only padding are left out where there is one channel, whose other depths follow each other:
DeepSpeech's 41 x 11 with padding (20, 5), 1 -> 32 channels of 161 x 200 with stride 2, 1,110 microseconds on two Zen 4
cores (earlier 1,160). Threads share the filters of a single row: there 1 -> 512 of 1 x 16,000 under 1 x 10 take 190
instead of 385.
Source: indirect offsets as in Dukhan, The Indirect Convolution Algorithm, 2019.
"""

import struct
from functools import lru_cache
from math import ceil

import numpy as np
from numba import from_dtype
from numba.core import types

from . import patches, target, weight_rows
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled, inlined
from .depthwise import panel_row
from .epilogue import PAST_CACHE_BYTES
from .microkernel import MEMORY_BYTES, VECTORS, multiply_cycles, panel_rows, predicted, tile_rows
from .panel import panel_filling
from .short_floats import as_numbers, as_stored, lanes_for, real_of, stored_kind, vector_of
from .threads import lines, task_loop, worker_span
from .tile_end import finish_rows
from .tracing import Lanes, broadcast, choose, fma, load, loop, store, store_past_cache, traced
from .vectors import lanes, record_at
from .weight_rows import LINE, padded_filters

MOST_CHANNELS = 4
WIDEST = {16: {}, 32: {1: 12, 2: 10, 3: 8, 4: 6}}  # vectors of a tile of few filters, by registers
TASKS_PER_THREAD = 8
STRIP = 24  # vectors of a row: a panel of filters stores them one after another, while their x is in the L1 cache
CYCLES_PER_TASK = 6_000  # at least, or setting up takes longer
STREAM_BYTES = 30e9  # a second, of x row by row and of y in strips of a row (Zen 4, Zen 5: 30 to 50)
LINE_CYCLES = 20  # memory takes a line of y so often, past the cache

GEOMETRY = (
    "bands", "filter_parts", "row_bytes", "phase_bytes", "channel_bytes", "bias_at", "scratch_at", "panel_at",
    "packed_row", "streaming", "worker_bytes",
)  # fmt: skip
CALL_FEW = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for outputs whose rows are contiguous?"""
    few = problem.Cg <= MOST_CHANNELS or has_few_filters(problem)
    return few and problem.layout == "NCHW" and lanes(problem.accumulate) <= problem.Q and not patches.serves(problem)


@lru_cache(maxsize=1024)
def has_few_filters(problem) -> bool:
    """Would tiles of 8 filters be half empty, and do the rows that some rows of outputs read fit the L2 cache?"""
    few = problem.Kg in WIDEST[target.register_count()] and problem.Cg > MOST_CHANNELS and problem.R * problem.S > 1
    return few and rows_that_fit(problem) >= halo_of(problem)


def tile_of(problem):
    """Filters and vectors of a tile that all filters share, whatever their number; (0, 0) where there are enough.

    Of the widths that keep enough sums in registers that one whose tiles, the last of which ends with the row,
    compute the least twice.
    """
    if not has_few_filters(problem):
        return 0, 0
    vectors, most = -(-problem.Q // lanes(problem.accumulate)), WIDEST[target.register_count()][problem.Kg]
    most = min(most, problem.Q // lanes(problem.accumulate))
    return problem.Kg, min(range(most, (most + 1) // 2 - 1, -1), key=lambda width: -(-vectors // width) * width)


def takes(y, residual) -> bool:
    """Do these arrays' rows lie in memory without gaps between their numbers?"""
    return all(array is None or array.strides[3] == array.itemsize for array in (y, residual))


def tile_function(dtype_name, rows, vectors):
    """The traced function for `rows` filters times `vectors` vectors of one row's pixels, from bias to store."""
    V, stored = vector_of(dtype_name), Lanes(stored_kind(dtype_name), lanes_for(dtype_name))

    @traced(types.void)
    def tile(
        a, a_row, a_step, offsets, depth, x, y, y_k, residual, residual_k, has_residual, left, bias, scratch,
        kind, low, high, slope, past,
    ):  # fmt: skip
        def step(d, carried):
            sums, a = carried
            here = x + load(d.type, offsets + d * d.type.bytes)
            columns = [load(V, here + V.bytes * j) for j in range(vectors)]
            added = []
            for i, row in enumerate(sums):
                weight = broadcast(V, load(V.scalar, a + a_row * i))
                added.append([fma(weight, column, total) for column, total in zip(columns, row)])
            return [added, a + a_step]

        start = [broadcast(V, load(V.scalar, bias + V.item_bytes * i)) for i in range(rows)]
        sums = loop(depth, step, [[[total] * vectors for total in start], a])[0]

        def with_residual(totals, i):
            def added():
                more = [load(stored, residual + residual_k * i + stored.bytes * j) for j in range(vectors)]
                return [total + as_numbers(number, dtype_name) for total, number in zip(totals, more)]

            return choose(has_residual.differs(0), added, lambda: totals)

        def put(totals, i):
            def write(how):
                for j, total in enumerate(totals):
                    how(y + y_k * i + stored.bytes * j, as_stored(total, dtype_name))

            choose(past.differs(0), lambda: write(store_past_cache), lambda: write(store))

        finish_rows(sums, left, (kind, low, high, slope), scratch, with_residual, put)

    return tile


def build(dtype_name, rows, width):
    """rows, width: tile_of(problem)."""
    W, padding = lanes_for(dtype_name), padded_filters(1)
    one_rows, two_rows, three_rows = (rows or tile_rows(vectors) for vectors in (1, 2, 3))
    one, two, three = (tile_function(dtype_name, rows or tile_rows(v), width or v) for v in (1, 2, 3))
    is_few = width > 0
    fill_columns, _, number_at, put_number = panel_filling(dtype_name)
    real = real_of(dtype_name)
    item, stored_item = real.bitwidth // 8, Lanes(stored_kind(dtype_name)).item_bytes

    @traced(types.void)
    def put_offset(address, number):
        store(address, number)

    @inlined
    def fill_offsets(call, to):
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    column = s * call.dilation_w
                    place = column % call.stride_w * call.phase_bytes + column // call.stride_w * item
                    put_offset(to, c * call.channel_bytes + r * call.dilation_h * call.row_bytes + place)
                    to += 8

    @inlined
    def fill_biases(call, k0, biases):
        for i in range((call.Kg + padding - 1) // padding * padding):
            inside = call.has_bias and i < call.Kg
            put_number(biases + i * item, number_at(call.bias + (k0 + i) * call.bias_k) if inside else real(0))

    @inlined
    def tile_vectors(first, count, Q):
        """Of the next tile: 3, but 2 and 2 rather than 3 and 1, and no more than a row holds."""
        if is_few:
            return width
        left = count - first
        vectors = 2 if left == 4 else min(left, VECTORS)
        return min(vectors, Q // W)

    @inlined
    def depths_inside(call, h):
        """Of one channel, a window whose first row is x's row h: the depths before those rows of it that meet x, which
        has none of the others' numbers, and how many theirs are.
        """
        first = min(max((call.dilation_h - 1 - h) // call.dilation_h, 0), call.R)
        behind = min(max((call.H - h + call.dilation_h - 1) // call.dilation_h, first), call.R)
        return first * call.S, (behind - first) * call.S

    def task(call_address, index, worker):
        call = record_at(CALL_FEW, call_address)
        part, rest = index % call.filter_parts, index // call.filter_parts
        band, rest = rest % call.bands, rest // call.bands
        g, n = rest % call.groups, rest // call.groups
        p0, p1 = call.P * band // call.bands, call.P * (band + 1) // call.bands
        offsets = call.workspace + worker * call.worker_bytes
        biases, scratch, panel = offsets + call.bias_at, offsets + call.scratch_at, offsets + call.panel_at
        k0 = g * call.Kg
        fill_offsets(call, offsets)
        fill_biases(call, k0, biases)
        row_count = (p1 - p0 - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
        columns = call.Q + (call.S - 1) * call.dilation_w // call.stride_w
        for c in range(call.Cg):
            fill_columns(
                panel + c * call.channel_bytes, call.row_bytes, call.phase_bytes,
                call.x + n * call.x_n + (g * call.Cg + c) * call.x_c, call.x_h, call.x_w, call.H, call.W,
                p0 * call.stride_h - call.top, row_count, -call.left, columns, call.stride_w,
            )  # fmt: skip

        all_depths, kind = call.Cg * call.R * call.S, call.activation
        w, w_row = call.w + k0 * call.w_k, call.w_k
        if call.w_k == 0:
            padded = (call.Kg + padding - 1) // padding * padding
            w, w_row = call.w + g * padded * call.packed_row, call.packed_row
        aligned = (call.y | call.y_n | call.y_k | call.y_p) % LINE == 0
        panels = (call.Kg + one_rows - 1) // one_rows
        f0 = panels * part // call.filter_parts * one_rows
        f1 = min(panels * (part + 1) // call.filter_parts * one_rows, call.Kg)
        past, vectors_a_row = call.streaming if aligned else 0, (call.Q + W - 1) // W
        for p in range(p0, p1):
            x = panel + (p - p0) * call.stride_h * call.row_bytes
            skipped, depth = (0, all_depths) if call.Cg > 1 else depths_inside(call, p * call.stride_h - call.top)
            w_here, offsets_here = w + skipped * item, offsets + skipped * 8
            y = call.y + n * call.y_n + k0 * call.y_k + p * call.y_p
            residual = call.residual + n * call.residual_n + k0 * call.residual_k + p * call.residual_p
            begin = 0
            while begin < vectors_a_row:
                end = begin + STRIP if begin + 2 * STRIP <= vectors_a_row else vectors_a_row
                for panel_f in range(f0, f1, one_rows):
                    done = begin
                    while done < end:
                        vectors = tile_vectors(done, end, call.Q)
                        q = min(done * W, call.Q - vectors * W)
                        done += vectors
                        height = three_rows if vectors == 3 else two_rows if vectors == 2 else one_rows
                        for f in range(panel_f, min(panel_f + one_rows, f1), height):
                            a, to = w_here + f * w_row, y + f * call.y_k + q * stored_item
                            more = residual + f * call.residual_k + q * stored_item
                            here, left, bias = x + q * item, call.Kg - f, biases + f * item
                            if is_few or vectors == 3:
                                three(
                                    a, w_row, item, offsets_here, depth, here, to, call.y_k, more, call.residual_k,
                                    call.has_residual, left, bias, scratch, kind, call.low, call.high, call.slope,
                                    past,
                                )  # fmt: skip
                            elif vectors == 2:
                                two(
                                    a, w_row, item, offsets_here, depth, here, to, call.y_k, more, call.residual_k,
                                    call.has_residual, left, bias, scratch, kind, call.low, call.high, call.slope,
                                    past,
                                )  # fmt: skip
                            else:
                                one(
                                    a, w_row, item, offsets_here, depth, here, to, call.y_k, more, call.residual_k,
                                    call.has_residual, left, bias, scratch, kind, call.low, call.high, call.slope,
                                    past,
                                )  # fmt: skip
                begin = end

    return task_loop(task)


# How a problem is cut.


def halo_of(problem):
    """How many rows of x a row of outputs reads, from the first to the last."""
    return (problem.R - 1) * problem.dilation[0] + 1


def rows_that_fit(problem):
    """How many rows of outputs read no more of x than half of the L2 cache holds, or more where channels are many."""
    _, row_bytes = panel_row(problem, problem.Q, False)
    room = target.cache_bytes(2) // 2 if problem.Cg <= MOST_CHANNELS else target.cache_bytes(2) * 3 // 4
    return (room // (row_bytes * problem.Cg) - halo_of(problem)) // problem.stride[0]


@lru_cache(maxsize=1024)
def geometry(problem, threads):
    """The numbers of GEOMETRY, and how many tasks there are."""
    item, maps = problem.accumulate.itemsize, problem.N * problem.groups
    phase_bytes, row_bytes = panel_row(problem, problem.Q, False)
    halo = halo_of(problem)
    most = max(rows_that_fit(problem), 1)
    wanted = -(-TASKS_PER_THREAD * threads // maps) if threads > 1 else 1
    bands = min(max(-(-problem.P // most), min(wanted, ceil(cycles(problem) / CYCLES_PER_TASK))), problem.P)
    channel_bytes = ((-(-problem.P // bands) - 1) * problem.stride[0] + halo) * row_bytes
    bias_at = lines(8 * problem.reduction)
    scratch_at = bias_at + lines((problem.Kg + 8) * item)
    panel_at = scratch_at + 8 * VECTORS * target.vector_bytes()
    worker_bytes = worker_span(panel_at + problem.Cg * channel_bytes + row_bytes)
    parts = filter_parts(problem, threads, maps * bands)
    numbers = (
        bands, parts, row_bytes, phase_bytes, channel_bytes, bias_at, scratch_at, panel_at,
        weight_rows.row_bytes(problem), stores_past_cache(problem), worker_bytes,
    )  # fmt: skip
    return numbers, maps * bands * parts


def filter_parts(problem, threads, tasks) -> int:
    """Ranges of filters, for which maps of a row or two leave threads without a task; each copies the rows of x."""
    panels = -(-problem.Kg // (tile_of(problem)[0] or tile_rows(1)))
    return min(-(-threads // tasks), panels) if cycles(problem) > CYCLES_PER_TASK else 1


def stores_past_cache(problem) -> int:
    """Whether whole lines of a y that is large go past the cache: only as fast as memory takes them."""
    y_bytes = problem.N * problem.K * problem.P * problem.Q * problem.dtype.itemsize
    whole = lanes(problem.accumulate) * problem.dtype.itemsize == LINE and problem.Q % lanes(problem.accumulate) == 0
    slow = problem.reduction >= LINE_CYCLES * target.multiply_adds_per_cycle()
    return int(y_bytes >= PAST_CACHE_BYTES and whole and slow)


def workspace_bytes(problem, threads):
    numbers, _ = geometry(problem, threads)
    return threads * numbers[-1]


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, *tile_of(problem)), tasks


def predicted_seconds(problem, device) -> float:
    work = problem.N * problem.groups * cycles(problem)
    return predicted(problem, device, work, MEMORY_BYTES if has_few_filters(problem) else STREAM_BYTES)


def cycles(problem) -> float:
    """Of one group's product: the multiply-adds, copying rows, and a tile's beginning and end."""
    pixels = problem.P * problem.Q
    filters = problem.Kg if has_few_filters(problem) else -(-problem.Kg // panel_rows()) * panel_rows()
    W = lanes(problem.accumulate)
    columns = -(-problem.Q // W) * W
    multiply = multiply_cycles(filters, columns, problem.reduction, problem.accumulate) * problem.P
    multiply *= share_inside(problem) if problem.Cg == 1 else 1.0
    copy = 1.5 if has_few_filters(problem) else 1.0  # of many channels each row comes from another place
    return multiply + copy * problem.Cg * problem.H * problem.W + 0.25 * problem.Kg * pixels


@lru_cache(maxsize=1024)
def share_inside(problem) -> float:
    """Of all rows of windows, those that meet x: others are left out where there is one channel."""
    (top, _), stride, dilation = problem.padding[0], problem.stride[0], problem.dilation[0]
    rows = (p * stride - top + r * dilation for p in range(problem.P) for r in range(problem.R))
    return sum(0 <= row < problem.H for row in rows) / (problem.P * problem.R)
