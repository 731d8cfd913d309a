"""Convolution of few channels a group, channels last: filters in the lanes, pixels read where they lie.

    a padded row of x    . . . r g b r g b r g b r g b . . .      pixels are C numbers apart, so every number of every
                               [--- 8 pixels, stride apart        tap lies at  pixel + offset[d],  d = (c, r, s)
    at step d:  24 filters in 3 vectors, loaded once, times 8 numbers of x, each in every lane

Why beside blocked_by_filters.py's panels: there the few channels of a pixel are copied once for every tap that reads
them, about 20 cycles each time, which took most of the time: 3 channels under 3 x 3 with stride 2 five times as long as
PyTorch. Here a row is copied once, for its padding, and not even that without padding. All groups share the copy.

Measured on two Zen 5 cores with AVX-512, plans, beside those panels: 3 channels of 224 x 224 under 3 x 3 with stride 2
57 instead of 429 microseconds, with stride 1 and 64 filters 0.6 instead of 1.9 ms, under 4 x 4 with stride 4 70 instead
of 226. Groups of fewer filters than a vector has lanes are grouped.py's: 32 groups of 4 channels of 56 x 56 took 4.3 ms
there, 0.36 here, where they fill a quarter of the lanes, and 0.09 in grouped.py.

The last tile of a row starts early enough to end with it: some outputs are computed twice, alike. Weights are packed
as blocked_by_filters.py has them, all depths of 3 vectors in the first-level cache.
Source: the table of offsets as in Dukhan, The Indirect Convolution Algorithm, 2019.
"""

import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, activated
from .microkernel import VECTORS, multiply_cycles, tile_rows, vector_type
from .sliding_window import panel_filling, store_some
from .threads import lines, task_loop, worker_span
from .tracing import (
    I64,
    broadcast,
    choose,
    convert,
    first_lanes,
    fma,
    load,
    load_lanes,
    loop,
    maximum,
    minimum,
    select,
    store,
    traced,
    when,
)
from .vectors import lanes, record_at

TASKS_PER_THREAD = 4
CYCLES_PER_TASK = 6_000  # at least, or setting up takes longer

GEOMETRY = ("bands", "copied", "columns", "row_bytes", "bias_at", "scratch_at", "panel_at", "worker_bytes")
CALL_LAST = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays whose channels and pixels are neighbours?"""
    if problem.layout != "NHWC" or problem.dtype != problem.accumulate:
        return False
    return problem.reduction * VECTORS * target.vector_bytes() <= target.cache_bytes(1)


def takes(x, y, residual) -> bool:
    """Do channels lie side by side in these arrays, and pixels in x?"""
    item = x.itemsize
    side_by_side = all(array is None or array.strides[1] == item for array in (x, y, residual))
    return side_by_side and x.strides[3] == x.shape[1] * item


def tile_function(dtype_name, rows, vectors):
    """The traced function for `rows` pixels of a row times `vectors` vectors of filters, from bias to store."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def tile(
        x, pixel_bytes, offsets, depth, w, w_vector, y, y_q, residual, residual_q, has_residual, left, kept, bias,
        scratch, kind, low, high, slope,
    ):  # fmt: skip
        """left: pixels that are outputs. kept: lanes of the last vector that are."""

        def step(d, carried):
            sums, w = carried
            here = x + load(I64, offsets + d * I64.bytes)
            filters = [load(V, w + w_vector * j) for j in range(vectors)]
            added = []
            for i, row in enumerate(sums):
                number = broadcast(V, load(V.scalar, here + pixel_bytes * i))
                added.append([fma(number, some, total) for some, total in zip(filters, row)])
            return [added, w + V.bytes]

        start = [load(V, bias + V.bytes * j) for j in range(vectors)]
        sums = loop(depth, step, [[start] * rows, w])[0]

        def with_residual(totals, i):
            def added():
                here = [residual + residual_q * i + V.bytes * j for j in range(vectors)]
                more = [load(V, at) for at in here[:-1]] + [load_lanes(V, here[-1], first_lanes(V, kept))]
                return [total + number for total, number in zip(totals, more)]

            return choose(has_residual.differs(0), added, lambda: totals)

        def put(totals, i):
            for j, total in enumerate(totals[:-1]):
                store(y + y_q * i + V.bytes * j, total)
            store_some(y + y_q * i + V.bytes * (vectors - 1), totals[-1], kept)

        def clamped():
            least, most = (broadcast(V, convert(limit, V.scalar)) for limit in (low, high))
            for i in range(rows):
                with when(left > i):
                    put([maximum(least, minimum(most, total)) for total in with_residual(sums[i], i)], i)

        def others():
            """Pixel after pixel from memory, so that the activation is written out once only."""
            for i in range(rows):
                for j in range(vectors):
                    store(scratch + V.bytes * (vectors * i + j), sums[i][j])

            def row(i):
                totals = [load(V, scratch + V.bytes * (i * vectors + j)) for j in range(vectors)]
                put(activated(with_residual(totals, i), kind, low, high, slope), i)

            loop(select(left < rows, left, rows), row)

        choose(kind.equals(CLAMP), clamped, others)

    return tile


def build(dtype_name):
    W = lanes(dtype_name)
    one_rows, two_rows, three_rows = (tile_rows(vectors) for vectors in (1, 2, 3))
    one, two, three = (tile_function(dtype_name, tile_rows(vectors), vectors) for vectors in (1, 2, 3))
    fill_columns, _, number_at, put_number = panel_filling(dtype_name)
    real = np.float64 if dtype_name == "float64" else np.float32
    item, zero = np.dtype(real).itemsize, real(0)

    @traced(types.void)
    def put_offset(address, number):
        store(address, number)

    @inlined
    def fill_offsets(call, to, x_row):
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    pixel = r * call.dilation_h * x_row + s * call.dilation_w * call.C * item
                    put_offset(to, pixel + c * item)
                    to += 8

    @inlined
    def fill_biases(call, biases, padded):
        for g in range(call.groups):
            for i in range(padded):
                inside = call.has_bias and i < call.Kg
                number = number_at(call.bias + (g * call.Kg + i) * call.bias_k) if inside else zero
                put_number(biases + (g * padded + i) * item, number)

    def task(call_address, index, worker):
        call = record_at(CALL_LAST, call_address)
        band, n = index % call.bands, index // call.bands
        p0, p1 = call.P * band // call.bands, call.P * (band + 1) // call.bands
        offsets = call.workspace + worker * call.worker_bytes
        biases, scratch, panel = offsets + call.bias_at, offsets + call.scratch_at, offsets + call.panel_at
        first_row = p0 * call.stride_h - call.top
        x, x_row = call.x + n * call.x_n, call.x_h
        if call.copied:
            row_count = (p1 - p0 - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
            fill_columns(
                panel, call.row_bytes, 0, x, call.x_h, item, call.H, call.W * call.C, first_row, row_count,
                -call.left * call.C, call.columns, 1,
            )  # fmt: skip
            x, x_row = panel, call.row_bytes
        else:
            x += first_row * x_row
        vectors_padded = (call.Kg + W - 1) // W
        padded, depth = vectors_padded * W, call.Cg * call.R * call.S
        fill_offsets(call, offsets, x_row)
        fill_biases(call, biases, padded)
        pixel_bytes = call.stride_w * call.C * item

        for p in range(p0, p1):
            row = x + (p - p0) * call.stride_h * x_row
            for g in range(call.groups):
                y = call.y + n * call.y_n + p * call.y_p + g * call.Kg * item
                residual = call.residual + n * call.residual_n + p * call.residual_p + g * call.Kg * item
                done = 0
                while done < vectors_padded:
                    left = vectors_padded - done
                    vectors = 2 if left == 4 else min(left, VECTORS)
                    height = three_rows if vectors == 3 else two_rows if vectors == 2 else one_rows
                    kept = min(W, call.Kg - (done + vectors - 1) * W)
                    w = call.w + (g * padded + done * W) * depth * item
                    bias, column = biases + (g * padded + done * W) * item, done * W * item
                    for i in range(0, call.Q, height):
                        q = max(min(i, call.Q - height), 0)
                        here = row + q * pixel_bytes + g * call.Cg * item
                        to, more = y + q * call.y_q + column, residual + q * call.residual_q + column
                        if vectors == 3:
                            three(
                                here, pixel_bytes, offsets, depth, w, depth * W * item, to, call.y_q, more,
                                call.residual_q, call.has_residual, call.Q - q, kept, bias, scratch, call.activation,
                                call.low, call.high, call.slope,
                            )  # fmt: skip
                        elif vectors == 2:
                            two(
                                here, pixel_bytes, offsets, depth, w, depth * W * item, to, call.y_q, more,
                                call.residual_q, call.has_residual, call.Q - q, kept, bias, scratch, call.activation,
                                call.low, call.high, call.slope,
                            )  # fmt: skip
                        else:
                            one(
                                here, pixel_bytes, offsets, depth, w, depth * W * item, to, call.y_q, more,
                                call.residual_q, call.has_residual, call.Q - q, kept, bias, scratch, call.activation,
                                call.low, call.high, call.slope,
                            )  # fmt: skip
                    done += vectors

    return task_loop(task)


# ---- how a problem is cut ----


def copies(problem) -> bool:
    """Must rows be copied: for padding, or since a tile would read beyond their end?"""
    highest = max(tile_rows(vectors) for vectors in range(1, VECTORS + 1))
    return highest > problem.Q or any(map(any, problem.padding))


@lru_cache(maxsize=1024)
def geometry(problem, threads):
    """The numbers of GEOMETRY, and how many tasks there are."""
    item, W, C = problem.accumulate.itemsize, lanes(problem.accumulate), problem.C
    columns = ((problem.Q - 1) * problem.stride[1] + (problem.S - 1) * problem.dilation[1] + 1) * C
    row_bytes = lines(columns * item) + 64
    halo = (problem.R - 1) * problem.dilation[0] + 1
    most = (
        max((target.cache_bytes(2) // 2 // row_bytes - halo) // problem.stride[0], 1) if copies(problem) else problem.P
    )
    wanted = -(-TASKS_PER_THREAD * threads // problem.N) if threads > 1 else 1
    enough = max(1, int(cycles(problem) / CYCLES_PER_TASK))
    bands = min(max(-(-problem.P // most), min(wanted, enough)), problem.P)
    rows = (-(-problem.P // bands) - 1) * problem.stride[0] + halo if copies(problem) else 0
    bias_at = lines(8 * problem.reduction)
    scratch_at = bias_at + lines(problem.groups * -(-problem.Kg // W) * W * item)
    panel_at = scratch_at + 8 * VECTORS * target.vector_bytes()
    beyond = 8 * problem.stride[1] * C * item + 64  # what a tile wider than a row reads
    worker_bytes = worker_span(panel_at + rows * row_bytes + beyond)
    numbers = bands, int(copies(problem)), columns, row_bytes, bias_at, scratch_at, panel_at, worker_bytes
    return numbers, problem.N * bands


def workspace_bytes(problem, threads):
    numbers, _ = geometry(problem, threads)
    return threads * numbers[-1]


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name), tasks


def cycles(problem) -> float:
    """Of one image: the multiply-adds, and copying rows."""
    W, rows = lanes(problem.accumulate), tile_rows(VECTORS)
    pixels, filters = -(-problem.Q // rows) * rows * problem.P, -(-problem.Kg // W) * W
    multiply = multiply_cycles(pixels, filters, problem.reduction, problem.accumulate) * problem.groups
    return multiply + 0.25 * problem.C * problem.H * problem.W + 2.0 * problem.P * problem.Q * problem.groups
