"""Depthwise convolution of small windows, channels last: a vector is as many channels of a pixel, read where they lie.

    for every band of rows, for every vector of channels          its weights: a vector for each tap, in registers
        for every few rows of outputs
            for every column of x, from left to right
                for every row that these outputs read: load the pixel, multiply it into the sums that it belongs to
                the sums of the oldest column of outputs are done: clamp and store; the others move on

         x column:    w - 1   w   w + 1          with 3 x 3 a pixel belongs to 3 columns of outputs and to up to 3 of
         sums of:     q - 1   q   q + 1          their rows: 6 loads for 36 multiply-adds of 4 rows

Every load is aligned as the pixel is and none is masked, but of the last channels where they fill no vector. Pixels of
padding are left out. What is more than a clamp, other activations and residuals, is done to y afterwards.

Why beside sliding_window.py's tile: there every pixel is copied into a panel first, and where that came from the L3
cache 112 x 112 took 1.3 to 1.4 times as long as PyTorch's. Measured on two Zen 5 cores, N = 1: MobileNetV2's layers of
56 x 56 and more in a third to two thirds of the panels' time, smaller ones in 0.6 to 0.9. There two threads are hardly
faster than one, however they share the work: by channels or, which places all weights twice, by rows.
Source: direct_rows.py's, turned by 90 degrees.
"""

import math
import struct
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .direct_rows import live_rows
from .epilogue import CLAMP, activated
from .microkernel import vector_type
from .threads import task_loop, worker_span
from .tracing import (
    broadcast,
    choose,
    constant,
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
    store_lanes,
    traced,
    when,
    zeros,
)
from .vectors import lanes, record_at

MOST_ROWS = 4  # of outputs at once
FEWEST_ROWS = 14  # of a band: each places all weights for itself, and rows above and below it are read twice
TASKS_PER_THREAD = 2

CALL_PIXELS = from_dtype(np.dtype(CALL_DTYPE.descr + [(n, "i8") for n in ("tasks", "bands", "worker_bytes")]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays whose channels are neighbours?"""
    if target.vector_bytes() < 32 or problem.layout != "NHWC" or problem.dtype != problem.accumulate:
        return False
    small = problem.R * problem.S <= 25 and live_rows(problem.S, problem.stride[1]) <= problem.Q
    plain = problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2)) and problem.Kg == 1
    return small and plain and lanes(problem.dtype) <= problem.C


def takes(x, y, residual) -> bool:
    """Are the channels of these arrays neighbours in memory?"""
    item = x.itemsize
    return x.strides[1] == y.strides[1] == item and (residual is None or residual.strides[1] == item)


def band_count(problem, threads) -> int:
    return max(1, min(task_count(threads), problem.P // FEWEST_ROWS))


def task_count(threads) -> int:
    return TASKS_PER_THREAD * threads if threads > 1 else 1


def tile_rows(problem, bands) -> int:
    """How many rows of outputs are computed at once: their sums, two vectors and three for the end fill registers."""
    columns = live_rows(problem.S, problem.stride[1])
    return max(1, min(MOST_ROWS, problem.P // bands, (target.register_count() - 5) // columns))


def build(dtype_name, R, S, stride, rows):
    V = vector_type(dtype_name)
    L, item = V.count, V.item_bytes
    live = live_rows(S, stride)
    in_registers = R * S + rows * live + 5 <= target.register_count()

    @traced(types.void)
    def one_band(
        x, x_h, x_w, w, w_k, w_r, w_s, y, y_p, y_q, residual, residual_p, residual_q, has_residual, bias, bias_k,
        has_bias, H, W, P, Q, top, left, taps, kind, low, high, slope, channels, p0, p1,
    ):  # fmt: skip
        """Rows p0 .. p1 - 1 of up to L channels. taps: room for the vectors of bias and weights."""
        plain = kind.equals(CLAMP) & has_residual.equals(0)
        least, most = (
            broadcast(V, convert(select(plain, limit, infinity), V.scalar))
            for limit, infinity in ((low, -math.inf), (high, math.inf))
        )

        for tap in range(1 + R * S):
            store(taps + tap * V.bytes, zeros(V, x))

        def place_weights(lane):
            for r in range(R):
                for s in range(S):
                    number = load(V.scalar, w + w_k * lane + w_r * r + w_s * s)
                    store(taps + lane * item + (1 + r * S + s) * V.bytes, number)
            with when(has_bias.differs(0)):
                store(taps + lane * item, load(V.scalar, bias + bias_k * lane))

        loop(channels, place_weights)
        start = load(V, taps)
        weights = [[load(V, taps + (1 + r * S + s) * V.bytes) for s in range(S)] for r in range(R)]

        def weight(r, s):
            return weights[r][s] if in_registers else load(V, taps + (1 + r * S + s) * V.bytes)

        def tile(p, read, write):
            def add_columns(j, sums):
                """Add to the sums of columns q, q - 1, ... the taps of the x columns that q = j reads first."""
                for a in range(stride):
                    if any(total and a + stride * m < S for m, total in enumerate(sums)):
                        column = j * stride - left + a
                        sums = where((column >= 0) & (column < W), sums, lambda s, a=a, c=column: add_column(a, c, s))
                return sums

            def add_column(a, column, sums):
                for i in range((rows - 1) * stride + R):
                    h = p * stride - top + i
                    at = x + x_h * h + x_w * column
                    sums = where((h >= 0) & (h < H), sums, lambda s, at=at, i=i: add_pixel(a, i, read(at), s))
                return sums

            def add_pixel(a, i, pixel, sums):
                sums = [total and list(total) for total in sums]
                for m, total in enumerate(sums):
                    s = a + stride * m
                    for t in range(rows if total and s < S else 0):
                        if 0 <= i - t * stride < R:
                            total[t] = fma(pixel, weight(i - t * stride, s), total[t])
                return sums

            def where(condition, sums, add):
                """add(sums) where the condition holds. Sums that are not there are None, which cannot be chosen."""
                present = [total for total in sums if total]
                missing = [None] * (len(sums) - len(present))
                return missing + choose(condition, lambda: add(sums)[len(missing) :], lambda: present)

            def finish(q, totals):
                for t, total in enumerate(totals):
                    write(y + y_p * (p + t) + y_q * q, maximum(least, minimum(most, total)))

            def one_column(j, carried):
                *carried, done = add_columns(j, [[start] * rows, *carried])
                finish(j - (live - 1), done)
                return carried

            carried = []
            for j in range(live - 1):
                carried = add_columns(constant(p, j), [[start] * rows, *carried])
            carried = loop(Q - (live - 1), lambda j, carried: one_column(j + (live - 1), carried), carried)
            for j in range(live - 1):
                *carried, done = add_columns(Q + j, [None] * (j + 1) + carried)[j + 1 :]
                finish(Q + j - (live - 1), done)

        def others(p, read, write):
            """What is not a clamp of the sums, from memory."""

            def other(q):
                at, more = y + y_p * p + y_q * q, residual + residual_p * p + residual_q * q
                total = read(at)
                total = choose(has_residual.differs(0), lambda: [total + read(more)], lambda: [total])[0]
                write(at, activated([total], kind, low, high, slope)[0])

            loop(Q, other)

        def all_rows(read, write):
            """The last tile ends with the band: of its rows some were computed before, and are the same again."""
            loop((p1 - p0 + (rows - 1)) // rows, lambda i: tile(minimum(p0 + i * rows, p1 - rows), read, write))
            with when(plain.equals(False)):
                loop(p1 - p0, lambda i: others(p0 + i, read, write))

        some = first_lanes(V, channels)
        choose(
            channels.equals(L),
            lambda: all_rows(lambda at: load(V, at), store),
            lambda: all_rows(lambda at: load_lanes(V, at, some), lambda at, vector: store_lanes(at, vector, some)),
        )

    def task(call_address, index, worker):
        call = record_at(CALL_PIXELS, call_address)
        blocks = (call.C + (L - 1)) // L
        total = call.N * call.bands * blocks
        for place in range(total * index // call.tasks, total * (index + 1) // call.tasks):
            k, band, n = place % blocks * L, place // blocks % call.bands, place // blocks // call.bands
            one_band(
                call.x + n * call.x_n + k * call.x_c, call.x_h, call.x_w, call.w + k * call.w_k, call.w_k, call.w_r,
                call.w_s, call.y + n * call.y_n + k * call.y_k, call.y_p, call.y_q,
                call.residual + n * call.residual_n + k * call.residual_k, call.residual_p, call.residual_q,
                call.has_residual, call.bias + k * call.bias_k, call.bias_k, call.has_bias, call.H, call.W, call.P,
                call.Q, call.top, call.left, call.workspace + worker * call.worker_bytes, call.activation, call.low,
                call.high, call.slope, min(L, call.C - k), call.P * band // call.bands,
                call.P * (band + 1) // call.bands,
            )  # fmt: skip

    return task_loop(task)


def worker_bytes(problem) -> int:
    return worker_span((1 + problem.R * problem.S) * target.vector_bytes())


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    bands = band_count(problem, threads)
    tasks = min(task_count(threads), problem.N * bands * -(-problem.C // lanes(problem.dtype)))
    loop = compiled(build, problem.dtype.name, problem.R, problem.S, problem.stride[0], tile_rows(problem, bands))
    return problem_fields(problem) + struct.pack("3q", tasks, bands, worker_bytes(problem)), loop, tasks
