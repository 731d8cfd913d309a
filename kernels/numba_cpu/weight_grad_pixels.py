"""Weight gradient with pixels in the lanes, for groups of 1 to 4 channels, as first layers and depthwise ones have.

    grad_w[k, d] = sum of all lanes of  sum over vectors m of pixels  grad_y[k, m] * x[m + offset[d]]    d = (c, r, s)

    x rows, all channels ---copy, padded, columns sorted by stride---> rows in cache
                                                                        |  6 loads: a vector for each d
    4 filters x 6 taps, a vector of sums each, in registers  <----------+
      |  4 loads: a vector of each filter's row of grad_y

Why beside weight_grad_tasks.py: there filters are in the lanes and channels in the rows of a tile, so grad_y must be
transposed, a number for every few multiply-adds where the taps of all channels are 27, and a group of one filter wastes
all lanes but one. Here nothing is transposed, and 10 loads serve 24 multiply-adds (7 serve 12 with 16 registers); the
price is that each sum is a vector, whose lanes are added at last.

A task owns a block of filters of one group. For every band of rows the rows of x are copied once; then, for every 4
filters, all taps, while their rows of grad_y, some 16 KB, stay in the L1 cache and the next filters' are fetched. The
first tile of taps leaves what it reads of grad_y in one piece, by vectors, for the others. Sums wait in the workspace
between bands; after every 32,768 pixels or so their lanes are added to totals.

Depthwise layers come here where weight_grad_depthwise.py does not serve them: large windows, strides of 3 and more.

Each element's sum is made by one task in the order of images and pixels, whatever the number of threads or tasks. The
last tile of filters ends with the group: what it has in common with the one before is dropped.

Measured on two Zen 5 cores, 8 images, with AVX-512: 3 channels of 224 x 224 to 64 filters under 3 x 3 3.8 ms (before
7.4; reading 103 MB of grad_y takes 1.4, multiplying 2.6), under 7 x 7 with stride 2 4.7 (before 6.4); a depthwise layer
of 64 channels of 56 x 56 0.34 (before 4.6). With AVX2 5.9 and 7.9, before 10.8 and 10.6. What taught most:
- Loads that cross a cache line are what limits: NumPy's arrays begin 16 bytes behind a line's beginning, and with
  grad_y read in place by all tiles both layers took 12 to 20 % longer than with aligned arrays, with the copy 2 to 5 %.
- Copying x once for each s, so that its loads cross no lines either, took 10 to 30 % longer: the copies left the L1
  cache. So did bands of more rows.
- Fetching the next filters' rows: 9.5 ms without it, 6.2 with, on one core, for 3 x 3.
- Depthwise layers of maps of 7 x 7, half of whose lanes stay empty, have 15 of 16 empty with filters in the lanes: 960
  channels, 8 images, 0.56 instead of 3.6 ms on two Zen 4 cores, 256 channels of 4 x 4 0.13 instead of 0.56.
- 5 x 5 sums instead of 4 x 6 are 8 % faster for 7 x 7, but 64 filters are not 5 times anything.
Source: indirect offsets as in Dukhan, The Indirect Convolution Algorithm, 2019; the blocking of Goto and van de Geijn,
Anatomy of High-Performance Matrix Multiplication, ACM TOMS 2008.
"""

import struct
from functools import lru_cache
from math import ceil

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled, inlined
from .depthwise import panel_row
from .few_channels import MOST_CHANNELS
from .panel import panel_filling
from .short_floats import as_numbers, lanes_for, stored_kind, vector_of
from .threads import LINE, lines, task_loop, worker_span
from .tracing import (
    I64,
    Lanes,
    choose,
    first_lanes,
    fma,
    load,
    load_lanes,
    loop,
    prefetch,
    store,
    traced,
    zeros,
)
from .vectors import record_at, sum_lanes
from .weight_grad_types import Types

TILES = {16: (3, 4), 32: (4, 6)}  # filters and taps of a tile, by registers
LONE_TILE = (1, 9)  # where a group has fewer filters than a tile
CHAIN = 32_768  # pixels, about, whose products are added in lanes before these are added up
UNEVEN = 0.1  # of a task: what the threads wait for the last one
GRAD_SHARE, PANEL_SHARE = 1 / 3, 1 / 4  # of the L1 cache for rows of grad_y, of the L2 cache for x
COPY_CYCLES = 0.25  # for each number of x

GEOMETRY = (
    "filter_block", "filter_tasks", "band_rows", "bands", "chain_images", "chain_bands", "row_bytes", "phase_bytes",
    "channel_bytes", "sums_at", "totals_at", "packed_at", "panel_at", "worker_bytes",
)  # fmt: skip
CALL_PIXELS = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Is this the faster way, for a grad_y whose rows are contiguous? Rows that fill less than half a vector still fill
    more of it than so few filters would.
    """
    few_lanes_empty = lanes_for(problem.dtype.name) <= 2 * problem.Q
    return problem.Cg <= MOST_CHANNELS and (few_lanes_empty or problem.Kg < problem.Q)


def takes(grad_y) -> bool:
    """Do this array's rows lie in memory without gaps between their numbers?"""
    return grad_y.strides[3] == grad_y.itemsize


def tile_of(problem):
    tile = TILES[target.register_count()]
    return tile if tile[0] <= problem.Kg else LONE_TILE


def tile_function(dtype_name, filters, taps, first):
    """The traced function for `filters` rows of grad_y times `taps` offsets, over some rows of pixels.

    first: it reads grad_y and leaves what it read in `packed`, where others find it: rows of vectors, of each those of
    all filters side by side, with zeros behind the last pixel.
    """
    V, stored = vector_of(dtype_name), Lanes(stored_kind(dtype_name), lanes_for(dtype_name))

    @traced(types.void)
    def tile(grad, grad_k, grad_p, packed, x, x_p, offsets, rows, Q, sums, fresh, soon):
        """soon: what is needed next, rows as far apart as grad_y's: it is fetched."""
        origins = [x + load(I64, offsets + I64.bytes * d) for d in range(taps)]
        vectors = (Q + V.count - 1) // V.count
        packed_row = vectors * (filters * V.bytes)
        mask = first_lanes(stored, Q - (vectors - 1) * V.count)

        def read(row, j, is_last):
            here = grad + row * grad_p + j * stored.bytes
            if is_last:
                return [load_lanes(stored, here + grad_k * i, mask) for i in range(filters)]
            return [load(stored, here + grad_k * i) for i in range(filters)]

        def add(sums, row, j, is_last=False):
            there = packed + row * packed_row + j * (filters * V.bytes)
            if first:
                factors = [as_numbers(raw, dtype_name) for raw in read(row, j, is_last)]
                for i, factor in enumerate(factors):
                    store(there + V.bytes * i, factor)
            else:
                factors = [load(V, there + V.bytes * i) for i in range(filters)]
            added = []
            for origin, totals in zip(origins, sums):
                column = load(V, origin + (row * x_p + j * V.bytes))
                added.append([fma(factor, column, total) for factor, total in zip(factors, totals)])
            prefetch(soon + (row * grad_p + j * stored.bytes))
            return added

        def one_row(row, sums):
            sums = loop(vectors - 1 if first else vectors, lambda j, sums: add(sums, row, j), sums)
            return add(sums, row, vectors - 1, is_last=True) if first else sums

        def begun():
            return [[load(V, sums + V.bytes * (d * filters + i)) for i in range(filters)] for d in range(taps)]

        start = choose(fresh.differs(0), lambda: [[zeros(V, grad)] * filters] * taps, begun)
        for d, totals in enumerate(loop(rows, one_row, start)):
            for i, total in enumerate(totals):
                store(sums + V.bytes * (d * filters + i), total)

    return tile


def build(dtype_name, filters, taps):
    t = Types(dtype_name)
    first_wide, first_narrow = (tile_function(dtype_name, filters, n, True) for n in (taps, taps - 1))
    wide, narrow = (tile_function(dtype_name, filters, n, False) for n in (taps, taps - 1))
    fill_columns, _, _, put_number = panel_filling(dtype_name)
    item, L, vector = t.item, t.W, t.W * t.item
    read_sum, write, read_sums = t.read_sum, t.write, t.read_sums

    @traced(types.void)
    def put_offset(address, number):
        store(address, number)

    @traced(types.void)
    def fetch(address, count):
        loop(count, lambda i: prefetch(address + i * LINE))

    @inlined
    def fill_offsets(call, to):
        """For every tap, and some more that repeat the first one, to fill the last tile."""
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    column = s * call.dilation_w
                    place = column % call.stride_w * call.phase_bytes + column // call.stride_w * item
                    put_offset(to, c * call.channel_bytes + r * call.dilation_h * call.row_bytes + place)
                    to += 8
        for i in range(2 * taps):
            put_offset(to + i * 8, 0)

    @inlined
    def copy_band(call, panel, x, p0, rows):
        columns = (call.Q + L - 1) // L * L + (call.S - 1) * call.dilation_w // call.stride_w
        height = (rows - 1) * call.stride_h + (call.R - 1) * call.dilation_h + 1
        for c in range(call.Cg):
            fill_columns(
                panel + c * call.channel_bytes, call.row_bytes, call.phase_bytes, x + c * call.x_c, call.x_h, call.x_w,
                call.H, call.W, p0 * call.stride_h - call.top, height, -call.left, columns, call.stride_w,
            )  # fmt: skip

    @inlined
    def fetch_share(call, x, part, parts):
        """Some of what the next band adds to the rows of x that this one has read."""
        count = call.band_rows * call.stride_h * min(abs(call.x_h), call.W * abs(call.x_w)) // LINE
        first, end = count * part // parts, count * (part + 1) // parts
        for c in range(call.Cg):
            fetch(x + c * call.x_c + first * LINE, end - first)

    @inlined
    def tile_taps(left):
        """Taps of the next tile: the wide ones come first, and narrow ones where these fill up better."""
        tiles = (left + taps - 1) // taps
        return taps if left > tiles * (taps - 1) else taps - 1

    @inlined
    def multiply_band(call, offsets, grad, rows, k0, count, sums, fresh, following, x):
        """grad: the band's first row of filter k0, the task's first. following: as far behind it the next band begins.
        x: what it adds.
        """
        depth, x_p = call.Cg * call.R * call.S, call.stride_h * call.row_bytes
        panel, packed = offsets + call.panel_at, offsets + call.packed_at
        for k in range(0, count, filters):
            here = grad + first_filter(call, k0, k) * call.residual_k
            soon = grad + (k + filters) * call.residual_k if k + filters < count else grad + following
            fetch_share(call, x, k // filters, (count + filters - 1) // filters)
            d, number = 0, 0
            while d < depth:
                width, ahead = tile_taps(depth - d), soon + number % filters * call.residual_k
                if d == 0 and width == taps:
                    first_wide(
                        here, call.residual_k, call.residual_p, packed, panel, x_p, offsets + d * 8, rows, call.Q, sums,
                        fresh, ahead,
                    )  # fmt: skip
                elif d == 0:
                    first_narrow(
                        here, call.residual_k, call.residual_p, packed, panel, x_p, offsets + d * 8, rows, call.Q, sums,
                        fresh, ahead,
                    )  # fmt: skip
                elif width == taps:
                    wide(
                        here, call.residual_k, call.residual_p, packed, panel, x_p, offsets + d * 8, rows, call.Q, sums,
                        fresh, ahead,
                    )  # fmt: skip
                else:
                    narrow(
                        here, call.residual_k, call.residual_p, packed, panel, x_p, offsets + d * 8, rows, call.Q, sums,
                        fresh, ahead,
                    )  # fmt: skip
                sums += width * filters * vector
                d, number = d + width, number + 1

    @inlined
    def first_filter(call, k0, k):
        """Of the tile for filter k0 + k, counted from k0: the last tile ends with the group."""
        return min(k, call.Kg - filters - k0)

    @inlined
    def add_lanes(call, sums, totals, k0, count, first):
        depth = call.Cg * call.R * call.S
        for k in range(0, count, filters):
            begin, d = first_filter(call, k0, k), 0
            while d < depth:
                width = tile_taps(depth - d)
                for i in range(min(width, depth - d)):
                    for f in range(k, min(k + filters, count)):
                        to = totals + (f * depth + d + i) * item
                        total = sum_lanes(read_sums(sums + (i * filters + f - begin) * vector))
                        put_number(to, total if first else read_sum(to) + total)
                sums += width * filters * vector
                d += width

    @inlined
    def behind_band(call, p):
        """The first row of x that outputs before row p do not read."""
        return (p - 1) * call.stride_h - call.top + (call.R - 1) * call.dilation_h + 1

    @inlined
    def ends_a_chain(call, n, band):
        if band + 1 < call.bands:
            return (band + 1) % call.chain_bands == 0
        return (n + 1) % call.chain_images == 0 or n == call.N - 1

    @inlined
    def store_totals(call, totals, grad_w, count):
        for k in range(count):
            for c in range(call.Cg):
                for r in range(call.R):
                    for s in range(call.S):
                        write(grad_w + k * call.w_k + c * call.w_c + r * call.w_r + s * call.w_s, read_sum(totals))
                        totals += item

    def task(call_address, index, worker):
        call = record_at(CALL_PIXELS, call_address)
        part, g = index % call.filter_tasks, index // call.filter_tasks
        k0 = part * call.filter_block
        count = min(call.filter_block, call.Kg - k0)
        offsets = call.workspace + worker * call.worker_bytes
        sums, totals, panel = offsets + call.sums_at, offsets + call.totals_at, offsets + call.panel_at
        fill_offsets(call, offsets)
        fresh, first = True, True
        for n in range(call.N):
            x = call.x + n * call.x_n + g * call.Cg * call.x_c
            grad = call.residual + n * call.residual_n + (g * call.Kg + k0) * call.residual_k
            for band in range(call.bands):
                p0 = band * call.band_rows
                rows = min(call.band_rows, call.P - p0)
                copy_band(call, panel, x, p0, rows)
                following, more = rows * call.residual_p, behind_band(call, p0 + rows) * call.x_h
                if band + 1 == call.bands:
                    following, more = call.residual_n - p0 * call.residual_p, call.x_n
                here = grad + p0 * call.residual_p
                multiply_band(call, offsets, here, rows, k0, count, sums, fresh, following, x + more)
                fresh = ends_a_chain(call, n, band)
                if fresh:
                    add_lanes(call, sums, totals, k0, count, first)
                    first = False
        store_totals(call, totals, call.w + (g * call.Kg + k0) * call.w_k, count)

    return task_loop(task)


# How a problem is cut.


@lru_cache(maxsize=1024)
def geometry(problem, threads):
    """The numbers of GEOMETRY, and how many tasks there are."""
    item, L = problem.accumulate.itemsize, lanes_for(problem.dtype.name)
    filters, taps = tile_of(problem)
    depth = problem.Cg * problem.R * problem.S
    filter_block = filters * tiles_of_a_task(problem, threads)
    filter_tasks = ceil(problem.Kg / filter_block)

    phase_bytes, row_bytes = panel_row(problem, ceil(problem.Q / L) * L, False)
    rows = rows_of_a_band(problem, filters, row_bytes)
    bands = ceil(problem.P / rows)
    chain_images, chain_bands = chain_of(problem, rows, bands)
    channel_bytes = rows_read(problem, rows) * row_bytes
    sums_at = lines(8 * (depth + 2 * taps))
    totals_at = sums_at + (filter_block + filters) * (depth + taps) * L * item
    packed_at = totals_at + lines(filter_block * depth * item)
    panel_at = packed_at + filters * rows * ceil(problem.Q / L) * L * item
    worker_bytes = worker_span(panel_at + problem.Cg * channel_bytes + row_bytes)
    numbers = (
        filter_block, filter_tasks, rows, bands, chain_images, chain_bands, row_bytes, phase_bytes, channel_bytes,
        sums_at, totals_at, packed_at, panel_at, worker_bytes,
    )  # fmt: skip
    return numbers, problem.groups * filter_tasks


def rows_read(problem, rows):
    """How many rows of x that many rows of outputs read."""
    return (rows - 1) * problem.stride[0] + (problem.R - 1) * problem.dilation[0] + 1


def rows_of_a_band(problem, filters, row_bytes):
    """As many as let a tile's rows of grad_y fit the L1 cache, and the rows of x a part of the L2 cache."""
    rows = int(target.cache_bytes(1) * GRAD_SHARE) // (filters * problem.Q * problem.dtype.itemsize)
    rows = max(1, min(rows, problem.P))
    while rows > 1 and rows_read(problem, rows) * row_bytes * problem.Cg > target.cache_bytes(2) * PANEL_SHARE:
        rows -= 1
    return ceil(problem.P / ceil(problem.P / rows))


def tiles_of_a_task(problem, threads):
    """As many tiles of filters as are predicted to be done first: each task copies x for itself."""
    filters, _ = tile_of(problem)
    tiles, L = ceil(problem.Kg / filters), lanes_for(problem.dtype.name)
    multiplied = filters * problem.Cg * problem.R * problem.S * problem.P * ceil(problem.Q / L) / 2
    copied = COPY_CYCLES * problem.Cg * problem.H * problem.W

    def cycles(block):
        tasks = problem.groups * ceil(tiles / block)
        return (ceil(tasks / threads) + UNEVEN) * (block * multiplied + copied)

    return min({ceil(tiles / parts) for parts in range(1, min(tiles, 4 * threads) + 1)}, key=cycles)


def chain_of(problem, band_rows, bands):
    """How many images, or how many bands of one, are added up in lanes; whatever the threads."""
    pixels = problem.P * problem.Q
    if pixels <= CHAIN:
        return CHAIN // pixels, bands
    return 1, ceil(CHAIN / (band_rows * problem.Q))


def filled(problem) -> float:
    """How many lanes, of how many filters, are multiplied for each that is wanted."""
    filters, _ = tile_of(problem)
    L = lanes_for(problem.dtype.name)
    return ceil(problem.Q / L) * L / problem.Q * ceil(problem.Kg / filters) * filters / problem.Kg


def workspace_bytes(problem, threads):
    numbers, _ = geometry(problem, threads)
    return threads * numbers[-1]


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    numbers, tasks = geometry(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(GEOMETRY)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, *tile_of(problem)), tasks
