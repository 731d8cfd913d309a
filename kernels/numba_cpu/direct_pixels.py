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
faster than one, however they share the work: by channels or, which places all weights twice, by rows. In bfloat16,
widened on loading, those layers take 0.5 to 0.9 of the panels' time. 7 x 7, whose weights come from the L1 cache, took
as long on 56 x 56 as through a panel; on two Zen 4 cores, plans, 56 x 56 178 microseconds instead of 188, 14 x 14 50
instead of 56, 7 x 7 40 instead of 49. 9 x 9 took as long, and longer with more than two rows at once.
Source: direct_rows.py's, turned by 90 degrees.
"""

import math
import struct
from functools import lru_cache, partial

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled
from .direct_rows import live_rows
from .epilogue import CLAMP, activated, clamped, finished_before_rounding, limits
from .short_floats import as_numbers, as_stored, stored_kind, vector_of
from .threads import task_loop, worker_span
from .tracing import (
    choose,
    constant,
    first_lanes,
    fma,
    load,
    load_lanes,
    loop,
    minimum,
    select,
    store,
    store_lanes,
    traced,
    when,
    zeros,
)
from .vectors import lanes, record_at

MOST_TAPS = {16: 25, 32: 49}  # of a window, with so many registers
MOST_ROWS = 4  # of outputs at once
FEWEST_ROWS = 14  # of a band: each places all weights for itself, and rows above and below it are read twice
TASKS_PER_THREAD = 2

CALL_PIXELS = from_dtype(np.dtype(CALL_DTYPE.descr + [(n, "i8") for n in ("tasks", "bands", "worker_bytes")]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for arrays whose channels are neighbours?"""
    if target.vector_bytes() < 32 or problem.layout != "NHWC":
        return False
    L = lanes(problem.accumulate)
    if problem.dtype != problem.accumulate and target.vector_bytes() < 64 and problem.C % L:
        return False  # AVX2 masks words of 32 and 64 bits only
    taps = problem.R * problem.S
    small = taps <= MOST_TAPS[target.register_count()] and live_rows(problem.S, problem.stride[1]) <= problem.Q
    plain = problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2)) and problem.Kg == 1
    return small and plain and L <= problem.C


def takes(x, y, residual) -> bool:
    """Are the channels of these arrays neighbours in memory?"""
    item = x.itemsize
    return x.strides[1] == y.strides[1] == item and (residual is None or residual.strides[1] == item)


def band_count(problem, threads) -> int:
    return max(1, min(task_count(threads), problem.P // FEWEST_ROWS))


def task_count(threads) -> int:
    return TASKS_PER_THREAD * threads if threads > 1 else 1


def tile_rows(problem, bands) -> int:
    """How many rows of outputs are computed at once: their sums, two vectors and three for the end fill registers.

    Of large windows so many that the last tile computes few rows again.
    """
    R, taps, columns = problem.R, problem.R * problem.S, live_rows(problem.S, problem.stride[1])
    band = problem.P // bands
    most = max(1, min(MOST_ROWS, band, (target.register_count() - 5) // columns))
    if taps <= MOST_TAPS[16] or most <= 2:
        return most
    return min(range(most, 1, -1), key=lambda rows: -(-band // rows) * (rows * taps + rows + R - 1))


def build(dtype_name, R, S, stride, rows, finishes_first):
    """finishes_first: whether the result is finished before it is stored, which takes registers, and not afterwards."""
    V = vector_of(dtype_name)
    stored = V.of(stored_kind(dtype_name))
    L = V.count
    live = live_rows(S, stride)
    in_registers = R * S + rows * live + 5 <= target.register_count()

    @traced(types.void)
    def one_band(
        x, x_h, x_w, w, w_k, w_r, w_s, y, y_p, y_q, residual, residual_p, residual_q, has_residual, bias, bias_k,
        has_bias, H, W, P, Q, top, left, taps, kind, low, high, slope, channels, p0, p1,
    ):  # fmt: skip
        """Rows p0 .. p1 - 1 of up to L channels. taps: room for the vectors of bias and weights."""
        plain = kind.equals(CLAMP) & has_residual.equals(0)
        ends = limits(V, select(plain, low, -math.inf), select(plain, high, math.inf))

        for tap in range(1 + R * S):
            store(taps + tap * V.bytes, zeros(V, x))

        def place_weights(lane):
            for r in range(R):
                for s in range(S):
                    number = number_at(w + w_k * lane + w_r * r + w_s * s)
                    store(taps + lane * V.item_bytes + (1 + r * S + s) * V.bytes, number)
            with when(has_bias.differs(0)):
                store(taps + lane * V.item_bytes, number_at(bias + bias_k * lane))

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
                        inside = (column >= 0) & (column < W)
                        sums = choose(inside, partial(add_column, a, column, sums), partial(list, sums))
                return sums

            def add_column(a, column, sums):
                for i in range((rows - 1) * stride + R):
                    h = p * stride - top + i
                    at = x + x_h * h + x_w * column
                    sums = choose((h >= 0) & (h < H), partial(add_pixel, a, i, at, sums), partial(list, sums))
                return sums

            def add_pixel(a, i, at, sums):
                pixel, sums = read(at), [total and list(total) for total in sums]
                for m, total in enumerate(sums):
                    s = a + stride * m
                    for t in range(rows if total and s < S else 0):
                        if 0 <= i - t * stride < R:
                            total[t] = fma(pixel, weight(i - t * stride, s), total[t])
                return sums

            def finish(q, totals):
                for t, total in enumerate(totals):
                    limited = clamped(total, ends)
                    done = other(total, p + t, q, read) if finishes_first else limited
                    write(y + y_p * (p + t) + y_q * q, done)

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

            def one(q):
                at = y + y_p * p + y_q * q
                write(at, other(read(at), p, q, read))

            loop(Q, one)

        def other(total, p, q, read):
            more = residual + residual_p * p + residual_q * q
            total = choose(has_residual.differs(0), lambda: [total + read(more)], lambda: [total])
            return activated(total, kind, low, high, slope)[0]

        def all_rows(read, write):
            """The last tile ends with the band: of its rows some were computed before, and are the same again."""
            loop((p1 - p0 + (rows - 1)) // rows, lambda i: tile(minimum(p0 + i * rows, p1 - rows), read, write))
            if not finishes_first:
                with when(plain.equals(False)):
                    loop(p1 - p0, lambda i: others(p0 + i, read, write))

        def whole_vectors():
            all_rows(
                lambda at: as_numbers(load(stored, at), dtype_name),
                lambda at, total: store(at, as_stored(total, dtype_name)),
            )

        def cut_vectors():
            some = first_lanes(V, channels)
            all_rows(
                lambda at: as_numbers(load_lanes(stored, at, some), dtype_name),
                lambda at, total: store_lanes(at, as_stored(total, dtype_name), some),
            )

        choose(channels.equals(L), whole_vectors, cut_vectors)

    def number_at(address):
        return as_numbers(load(stored.scalar, address), dtype_name)

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
    tasks = min(task_count(threads), problem.N * bands * -(-problem.C // lanes(problem.accumulate)))
    loop = compiled(
        build, problem.dtype.name, problem.R, problem.S, problem.stride[0], tile_rows(problem, bands),
        finished_before_rounding(problem),
    )  # fmt: skip
    return problem_fields(problem) + struct.pack("3q", tasks, bands, worker_bytes(problem)), loop, tasks
