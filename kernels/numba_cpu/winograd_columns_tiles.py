"""What winograd_columns.py does the same way in both layouts: transforms down the columns, and the end of a tile."""

import math
from typing import NamedTuple

import numpy as np
from numba import from_dtype
from numba.core import types

from .call import CALL_DTYPE
from .compilation import inlined
from .epilogue import CLAMP, activated
from .short_floats import as_numbers, as_stored, lanes_for, stored_kind, vector_of
from .tracing import (
    Lanes,
    broadcast,
    choose,
    constant,
    convert,
    extract,
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
from .winograd_matrices import Axis, filter_matrix, input_matrix, output_matrix
from .winograd_transforms import times_paired_columns, times_paired_rows

AXIS = Axis(4, 3)  # of a tile: 4 rows of outputs
OWN = 24 // AXIS.points  # filters of a tile, or pixels: sums of all their products are in registers
S = 3  # columns of a window

GEOMETRY = (
    "bands", "strip", "scratch_at", "panel_at", "v_at", "v_row", "u_at", "streaming", "worker_bytes",
)  # fmt: skip
CALL_COLUMNS = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


def filters_function(dtype_name, together, channels_inner=False):
    """transform(w, w_k, w_c, w_r, w_s, C, left, to): the columns of `together` filters, or of the `left` that there
    are, to numbers for the products, those of one depth and product side by side. A depth is a channel and a column,
    either of which may be the inner one.
    """
    stored, real, n = Lanes(stored_kind(dtype_name)), vector_of(dtype_name).scalar, AXIS.points

    @traced(types.void)
    def transform(w, w_k, w_c, w_r, w_s, C, left, to):
        def one(c, s, f):
            depth = s * C + c if channels_inner else c * S + s
            here, there = w + w_k * f + w_c * c + w_s * s, to + (depth * (n * together) + f) * real.item_bytes

            def read():
                return [as_numbers(load(stored, here + w_r * r), dtype_name) for r in range(AXIS.taps)]

            taps = choose(left > f, read, lambda: [zeros(real, w)] * AXIS.taps)
            for p, number in enumerate(times_paired_rows(filter_matrix(AXIS), taps)):
                store(there + together * real.item_bytes * p, number)

        columns, filters = constant(w, S), constant(w, together)
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


def copies(dtype_name):
    """Two functions: copy_number(call, x, row, column, to), of a padded x, and copy_bias(call, k, there, to): what
    `there` says is not there is 0.
    """
    stored, real = Lanes(stored_kind(dtype_name)), vector_of(dtype_name).scalar

    @traced(types.void)
    def copy(to, address, inside):
        store(to, choose(inside.differs(0), lambda: [load(stored, address)], lambda: [zeros(stored, to)])[0])

    @traced(types.void)
    def copy_real(to, address, inside):
        def read():
            return [as_numbers(load(stored, address), dtype_name)]

        store(to, choose(inside.differs(0), read, lambda: [zeros(real, to)])[0])

    @inlined
    def copy_number(call, x, row, column, to):
        inside = row >= 0 and row < call.H and column >= 0 and column < call.W
        copy(to, x + row * call.x_h + column * call.x_w, inside)

    @inlined
    def copy_bias(call, k, there, to):
        copy_real(to, call.bias + k * call.bias_k, call.has_bias and there)

    return copy_number, copy_bias


def outputs_of(sums, bias):
    """The rows of a tile's outputs, of the sums of its products: A^T. The first and last sums began with the bias."""
    return times_paired_columns(output_matrix(AXIS), sums, [None, *[bias] * (AXIS.m - 2), None])


class Place(NamedTuple):
    """Where a tile's outputs lie in y or in the residual: the first one, and bytes from each of the tile's own filters
    or pixels, row or lane to the next.
    """

    first: object
    own: object
    row: object
    lane: object

    def at(self, lane):
        return self._replace(first=self.first + self.lane * lane)


class Activation(NamedTuple):
    kind: object
    low: object
    high: object
    slope: object

    def is_least_alone(self):
        return self.kind.equals(CLAMP) & (self.high >= math.inf)


def put_outputs(dtype_name, sums, bias_of, y, residual, has_residual, left, at_once, past, scratch, activation):
    """Traced: make the sums of a tile outputs and store them. bias_of(f): of the tile's own filter or pixel f.

    left: how many of the tile's own, and rows, there are. at_once: whether all are there, and lanes are neighbours in
    y, and nothing but a lower limit follows; past: whether y then goes past the cache. Else by way of `scratch`.
    """
    V, stored, m = vector_of(dtype_name), Lanes(stored_kind(dtype_name), lanes_for(dtype_name)), AXIS.m
    least = broadcast(V, convert(activation.low, V.scalar))

    def put(how):
        for f, products in enumerate(sums):
            for r, outputs in enumerate(outputs_of(products, bias_of(f))):
                how(y.first + y.own * f + y.row * r, as_stored(maximum(least, outputs), dtype_name))

    def put_one_by_one():
        for f, products in enumerate(sums):
            for r, outputs in enumerate(outputs_of(products, bias_of(f))):
                store(scratch + V.bytes * (f * m + r), outputs)
        own, rows = minimum(left[0], len(sums)), minimum(left[1], m)
        loop(own, lambda f: loop(rows, lambda r: finish(f, r)))

    def finish(f, r):
        total, here = load(V, scratch + V.bytes * (f * m + r)), y.first + y.own * f + y.row * r
        totals = choose(has_residual.differs(0), lambda: [total + residual_at(f, r)], lambda: [total])
        outputs = as_stored(activated(totals, *activation)[0], dtype_name)
        choose(y.lane.equals(stored.item_bytes), lambda: store(here, outputs), lambda: store_apart(here, outputs))

    def residual_at(f, r):
        here, step = residual.first + residual.own * f + residual.row * r, residual.lane
        side_by_side = step.equals(stored.item_bytes)
        found = choose(side_by_side, lambda: [load(stored, here)], lambda: [load_strided(stored, here, step)])
        return as_numbers(found[0], dtype_name)

    def store_apart(here, outputs):
        for lane in range(V.count):
            store(here + y.lane * lane, extract(outputs, lane))

    def put_at_once():
        choose(past.differs(0), lambda: put(store_past_cache), lambda: put(store))

    choose(at_once, put_at_once, put_one_by_one)
