"""Depthwise convolution under windows so large that every row of outputs reads every row of x: 27 x 27 on 14 x 14.

    sums     P rows of y, all of them in registers          of the window's R rows those that meet x move up by one
    for every row h of x                                    from row to row of y:
        for every tap column s: its vector of x, once       row h of x, row p of y: tap row h + top - p
            multiplied into every row of sums

RepLKNet's windows are twice as high as the map: through a panel half of the tap rows multiplied zeros. Here no row of
padding is read or multiplied; tap columns still are, lanes of padding masked. A vector of x serves all rows of y, a
weight is read from memory by the multiply-add itself, and 14 sums hide its latency.

Measured on two Zen 5 cores beside sliding_window.py's tile: 512 channels of 14 x 14 under 27 x 27 205 microseconds
instead of 550, under 31 x 31 205 instead of 700; 1,024 of 7 x 7 under 13 x 13 60 instead of 190.
It wants masked loads, so it serves processors with AVX2 and more (16-bit types with AVX-512); NCHW, rows contiguous.
Source: as direct_rows.py, Zhang, Franchetti and Low 2018; the windows are from Ding et al., RepLKNet, CVPR 2022.
"""

from functools import lru_cache

from . import target
from .compilation import compiled
from .direct_rows import takes  # noqa: F401  (the same arrays)
from .epilogue import activated, finished_before_rounding
from .planes import fields, masks, most_tasks, planes_loop
from .short_floats import as_numbers, as_stored, stored_kind, vector_of
from .threads import worker_span
from .tracing import (
    broadcast,
    choose,
    constant,
    constant_mask,
    fma,
    hidden,
    load,
    load_lanes,
    loop,
    maximum,
    minimum,
    select,
    store,
    store_lanes,
    when,
    zeros,
)
from .vectors import lanes

MOST_MULTIPLY_ADDS = 1000  # of one row of x: they are written out
CYCLES_PER_PLANE = 40.0


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Does every row of outputs read every row of x, by some row of taps?"""
    if not masks(problem) or problem.layout != "NCHW":
        return False
    if problem.stride != (1, 1) or problem.dilation != (1, 1) or row_vectors(problem) > 2 or problem.R < 9:
        return False
    top = problem.padding[0][0]
    every_row = top >= problem.P - 1 and problem.H - 1 + top < problem.R
    return every_row and problem.S * tile_rows(problem) * row_vectors(problem) <= MOST_MULTIPLY_ADDS


def row_vectors(problem) -> int:
    return -(-problem.Q // lanes(problem.accumulate))


def tile_rows(problem) -> int:
    """How many rows of outputs are computed at once: their sums, a row of x and two limits fill the registers."""
    vectors = row_vectors(problem)
    most = max(1, (target.register_count() - vectors - 2) // vectors)
    return -(-problem.P // -(-problem.P // most))


def build(dtype_name, R, S, rows, H, W, P, Q, left, finishes_first):
    """finishes_first: whether the result is finished before it is stored, which takes registers, and not afterwards."""
    V = vector_of(dtype_name)
    stored = V.of(stored_kind(dtype_name))
    L, item = V.count, stored.item_bytes
    vectors = -(-Q // L)

    def inside(s, v):
        """Which lanes of a row's vector v are outputs that read a column of x under tap column s."""
        return [wanted and 0 <= v * L + lane + s - left < W for lane, wanted in enumerate(outputs(v))]

    def take(address, wanted):
        if all(wanted):
            return as_numbers(load(stored, address), dtype_name)
        return as_numbers(load_lanes(stored, address, constant_mask(V, address, wanted)), dtype_name)

    def put(address, v, total):
        number, kept = as_stored(total, dtype_name), outputs(v)
        if all(kept):
            store(address, number)
        else:
            store_lanes(address, number, constant_mask(V, address, kept))

    def outputs(v):
        return [v * L + lane < Q for lane in range(L)]

    def number_at(address):
        return as_numbers(load(stored.scalar, address), dtype_name)

    def begin(shared):
        """In shared.scratch: room for a zero, and for the weights."""
        no_bias, taps = shared.scratch, shared.scratch + V.bytes
        store(no_bias, zeros(V.scalar, shared.scratch))
        plain, (least, most) = shared.plain, shared.limits(V)
        in_order = shared.w_s.equals(item) & shared.w_r.equals(S * item)
        in_place = in_order if stored == V else constant(in_order, False)

        def place_weights(w):
            def one(r):
                for s in range(S):
                    store(taps + (r * S + s) * V.item_bytes, number_at(w + shared.w_r * r + shared.w_s * s))

            loop(constant(w, R), one)

        def plane(x, w, y, residual, bias):
            with when(in_place.equals(False)):
                place_weights(w)
            table = select(in_place, w, taps)
            start = broadcast(V, number_at(select(shared.has_bias.differs(0), bias, no_bias)))

            def tile(i):
                p = minimum(i * rows, constant(i, P - rows))

                def one_row(h, sums):
                    weights = hidden(table + (h + shared.top - p) * (S * V.item_bytes))
                    for s in range(S):
                        reading = [v for v in range(vectors) if any(inside(s, v))]
                        row = x + shared.x_h * h
                        columns = {v: take(row + (v * L + s - left) * item, inside(s, v)) for v in reading}
                        for t in range(rows if reading else 0):
                            weight = broadcast(V, load(V.scalar, weights + (s - t * S) * V.item_bytes))
                            for v, column in columns.items():
                                sums[t][v] = fma(column, weight, sums[t][v])
                    return sums

                sums = loop(constant(i, H), one_row, [[start] * vectors for _ in range(rows)])
                for t, totals in enumerate(sums):
                    for v, total in enumerate(totals):
                        finish(y, residual, p + t, v, total)

            loop(constant(x, -(-P // rows)), tile)
            if not finishes_first:
                with when(plain.equals(False)):
                    loop(constant(x, P), lambda p: others(y, residual, p))

        def finish(y, residual, p, v, total):
            limited = maximum(least, minimum(most, total))
            put(y + shared.y_p * p + v * stored.bytes, v, other(total, residual, p, v) if finishes_first else limited)

        def others(y, residual, p):
            for v in range(vectors):
                there = y + shared.y_p * p + v * stored.bytes
                put(there, v, other(take(there, outputs(v)), residual, p, v))

        def other(total, residual, p, v):
            """What is not a clamp of the sums."""
            more = residual + shared.residual_p * p + v * stored.bytes
            total = choose(shared.has_residual.differs(0), lambda: [total + take(more, outputs(v))], lambda: [total])
            return activated(total, shared.kind, shared.low, shared.high, shared.slope)[0]

        return plane

    return planes_loop(begin)


def worker_bytes(problem) -> int:
    """A vector with a zero in it, and the weights of a window."""
    return worker_span(target.vector_bytes() + problem.R * problem.S * problem.accumulate.itemsize)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    tasks = min(problem.N * problem.K, most_tasks(threads))
    loop = compiled(
        build, problem.dtype.name, problem.R, problem.S, tile_rows(problem), problem.H, problem.W, problem.P,
        problem.Q, problem.padding[1][0], finished_before_rounding(problem),
    )  # fmt: skip
    return fields(problem, tasks, 1, worker_bytes(problem)), loop, tasks


def cycles(problem) -> float:
    """Of all planes."""
    tiles, rows = -(-problem.P // tile_rows(problem)), tile_rows(problem)
    multiply_adds = tiles * problem.H * problem.S * rows * row_vectors(problem)
    return problem.N * problem.K * (CYCLES_PER_PLANE + multiply_adds / target.multiply_adds_per_cycle())
