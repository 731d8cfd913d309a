"""Strassen's algorithm, one level of it, for 1x1 layers and patches (patches.py): seven products of half the
filters, channels and pixels, not eight.

    halves of   filters x channels     channels x pixels     filters x pixels
                   [ A11 A12 ]            [ B11 B12 ]           [ Y11 Y12 ]
                   [ A21 A22 ]            [ B21 B22 ]           [ Y21 Y22 ]

    S1 = A21 + A22    S2 = S1 - A11    S3 = A11 - A21    S4 = A12 - S2        of the weights, ahead in a plan
    T1 = B12 - B11    T2 = B22 - T1    T3 = B22 - B12    T4 = T2 - B21        of two tiles of pixels, by every task

    for every pair of neighbouring tiles of pixels, 3 vectors each and perhaps a lone one: the left is B's first half
        T1 .. T4, of all channels, into the L2 cache
        for every 8 filters and the 8 half of all filters further: seven times the micro-kernel, in this order
            t  = A11 B11      Y11 = t + A12 B21      t += S2 T2      e = t + S1 T1
            Y12 = e + S4 B22      Y22 = e + S3 T3      t += S3 T3      Y21 = t - A22 T4

Why so: this is Winograd's form, with the fewest sums, and in this order two tiles of sums suffice, t and e, which stay
in the L1 cache: each of the four results is written once, finished. A product's weights lie in the order in which
they are read, 7/4 of the layer's in all. Sums of weights are made once, those of pixels cost 4 stores for 7/2 K
multiply-adds.
What pairs of tiles leave over is blocked.py's. The error grows by less than twice (accuracy.py).

With 32 registers a tile may be a pixel wider than its vectors. Its sums, filters in the lanes, take one more register,
and one more multiply-add after 24. With vectors of 16, pairs are then 98 pixels, of which maps of 14 x 14 and 28 x 28
are a whole number, and nothing is left over for which all weights would be fetched again.

Measured on two Zen 5 cores, plans of ResNet-50's 1x1 layers at N = 1, as times of blocked.py over these: with AVX-512
1.01 to 1.10 from 64 channels and 256 filters on, 1.13 for 256 -> 512 with stride 2, 0.9 to 1.0 for 64 filters; held
to AVX2 1.06 to 1.11, and more where x's rows lie so that blocked.py reads them slowly. Seven products instead of eight
would be 1.14: sums of pixels cost 2 to 9 %, most where there are few filters, and what is left over 2 to 5 %.
What was learned there:
- A single call has to make the weights' sums, and threads then read what the other wrote: with what that costs later,
  9 microseconds for 65,536 weights, 19 for 131,072, 28 for 262,144, of layers that all take 200 to 400; and 150 for
  262,144 in hours in which what one core writes comes slowly to the other. So a call takes this kernel up to about
  131,072 weights: 0.92 to 0.97 of blocked.py's time.
- Products that begin with t or e in their registers, instead of being added to them, two at a time without a store
  between: 0.99 to 1.00 of the time, and 1.17 times the error, since each step is rounded at the sum's size.
- Two threads had a pair each of a map of 14 x 14, and one of them the last four pixels as well: 12 % of the time. In
  tiles with a lone pixel such layers take 0.92 to 0.97 of that, of 28 x 28 0.98 to 1.02; 56 x 56, of which 64 pixels
  are left over, gains nothing.
- The micro-kernel is at 0.97 of its best speed wherever the operands lie (L1, L2 or L3 cache, rows of x any number of
  bytes apart), at 0.96 of that with 64 channels a product and sums to finish, and sums of pixels take 4 cycles a
  vector. A second level, 49 products for 64, would so take 3 % (512 -> 256 channels of 28 x 28) to 7 % off (256 -> 1024
  of 14 x 14) where channels and filters are many, nothing below 256 channels or 256 filters, and would cost 3 %
  for 1024 -> 256 of 14 x 14, where both threads need the sums of the same pixels: by this account, which nobody has
  measured, 1 % on the mean of ResNet-50, for weights 49/16 as large. It was not written.
- Tasks of what is left over lie evenly among the pairs'. Behind them all they were one thread's, and 512 -> 384
  channels of 16 x 16 took 259 microseconds instead of 203.
- Fetching x ahead for the sums, and walking a pair's filters in another order than the neighbour's, change nothing.
- Raw halves of x are read where they lie; copying them beside T1 .. T4 gains 1 % at best and costs 3 % for few filters.
Source: Strassen, Gaussian elimination is not optimal, 1969, in the form of Winograd 1971; sums made while packing and
results added on leaving as in Huang et al., Strassen's Algorithm Reloaded, SC 2016.
"""

import struct
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numba import from_dtype
from numba.core import types

from . import blocked, blocked_cuts, patches, target, tracing, weight_rows
from .blocked import copy_biases_function, finish_tile_function, flat_rows
from .blocked_cuts import BLOCKING
from .call import CALL, CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP
from .filter_cuts import until_all_done, up
from .flat_planes import copy_planes_function
from .job import job_of
from .microkernel import (
    CLOCK,
    MEMORY_BYTES,
    VECTORS,
    accumulate,
    holds_lone,
    multiply_cycles,
    panel_rows,
    predicted,
    vector_type,
)
from .short_floats import memory_functions
from .threads import run_tasks, task_loop, two_round_loop, worker_span
from .tracing import Lanes, choose, convert, extract, interleave, load, loop, maximum, minimum, store, traced, zeros
from .vectors import lanes, record_at

passes = ("forward",)
PRODUCTS = 7
SUMS = 4  # T1 .. T4
LINE = 64  # bytes
LARGE_PANELS = 8 << 20  # bytes: larger ones come from memory
CYCLES_PER_TASK = 1_500
LEFT_PIXELS, LEFT_COSTS = 10, 2.6  # in pixels of a pair: beginning with what is left over, and each pixel of it
LONE_COSTS = 1.02  # times what multiply-adds say: tiles with a lone pixel begin anywhere in a cache line
FILTER_CUTS = (1, 2, 3, 4)
NOTHING_LEFT = (0,) * len(BLOCKING)
SUM_CYCLES = 2.2  # for a vector of each T
LEAVE_CYCLES = 1.5  # for a vector of a product that is added to others

PAIRS = (
    "pairs", "pair_tasks", "pair_filters", "pair_filter_tasks", "pair_channels", "waiting_step", "planes_bytes",
    "sums_at", "alone_at", "tiles_at", "pair_bias_at", "panels_at", "shared_at", "left_tasks",
)  # fmt: skip
CALL_STRASSEN = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING + PAIRS]))


def product_function(real, lone, becomes):
    """A Numba function for one product of half the channels; becomes: of it, t and e, what is stored to t, e or y.

    Tiles are lists of rows; where there is a lone pixel, its filters are one more row, of one vector.
    """
    V, rows = vector_type(real), panel_rows()
    L = Lanes(V.kind, rows)

    @traced(types.void)
    def product(a, b, b_step, x, x_step, depth, t, e, y, y_row, bias, residual, residual_row, low, high):
        row = VECTORS * V.bytes

        def tile(where):
            sums = [[load(V, where + row * i + V.bytes * j) for j in range(VECTORS)] for i in range(rows)]
            return [*sums, [load(L, where + row * rows)]] if lone else sums

        def keep(where, sums):
            for i, vectors in enumerate(sums):
                for j, vector in enumerate(vectors):
                    store(where + row * i + V.bytes * j, vector)

        def finish(sums):
            least, most = (tracing.broadcast(V, convert(limit, V.scalar)) for limit in (low, high))
            for i in range(rows):
                number = tracing.broadcast(V, load(V.scalar, bias + V.item_bytes * i))
                for j, total in enumerate(with_residual([total + number for total in sums[i]], i)):
                    store(y + y_row * i + V.bytes * j, maximum(least, minimum(most, total)))
            if lone:
                finish_lone(sums[rows][0] + load(L, bias))

        def finish_lone(sums):
            least, most = (convert(limit, V.scalar) for limit in (low, high))
            totals = [extract(sums, i) for i in range(rows)]

            def added():
                return [total + load(V.scalar, residual + residual_row * i + row) for i, total in enumerate(totals)]

            for i, total in enumerate(choose(residual.differs(0), added, lambda: totals)):
                store(y + y_row * i + row, maximum(least, minimum(most, total)))

        def with_residual(totals, i):
            def added():
                return [total + load(V, residual + residual_row * i + V.bytes * j) for j, total in enumerate(totals)]

            return choose(residual.differs(0), added, lambda: totals)

        fresh = [[zeros(V, a) for _ in range(VECTORS)] for _ in range(rows)]
        step = rows * V.item_bytes
        column = (L, zeros(L, a), x, x_step) if lone else None
        sums = accumulate(V, rows, VECTORS, a, V.item_bytes, 0, step, b, b_step, depth, fresh, lone=column)
        becomes([*sums[0], [sums[1]]] if lone else sums, Tiles(tile, keep, finish, t, e))

    return product


class Tiles:
    """What a product may be added to and become: the tiles t and e, and the finished y."""

    def __init__(self, tile, keep, finish, t, e):
        self.tile, self.keep, self.finish, self.t, self.e = tile, keep, finish, t, e

    def added(self, where, sums, sign=1):
        return [
            [a + b if sign > 0 else a - b for a, b in zip(*rows, strict=True)]
            for rows in zip(self.tile(where), sums, strict=True)
        ]


def sums_function(real, lone):
    """A Numba function add_pixels(to, panel, alone, x, x_tile, x_half, x_step, count): T1 .. T4 of `count` channels,
    `panel` bytes apart, and those of the lone pixels.
    """
    V = vector_type(real)

    @traced(types.void)
    def add_pixels(to, panel, alone, x, x_tile, x_half, x_step, count):
        def sums(type_, here, there, apart):
            b11, b12 = load(type_, here), load(type_, here + x_tile)
            b21, b22 = load(type_, here + x_half), load(type_, here + x_half + x_tile)
            t1 = b12 - b11
            t2 = b22 - t1
            for i, total in enumerate((t1, t2, b22 - b12, t2 - b21)):
                store(there + apart * i, total)

        def channel(c):
            for j in range(VECTORS):
                sums(V, x + c * x_step + V.bytes * j, to + (c * VECTORS + j) * V.bytes, panel)
            if lone:
                sums(V.scalar, x + c * x_step + V.bytes * VECTORS, alone + c * V.item_bytes, count * V.item_bytes)

        loop(count, channel)

    return add_pixels


@inlined
def half_depth(call):
    return call.Cg * call.R * call.S // 2


def weight_sums(a11, a12, a21, a22):
    """The weights of the seven products, in their order."""
    s1 = a21 + a22
    s2 = s1 - a11
    return a11, a12, s2, s1, a12 - s2, a11 - a21, a22


def pack_panel_function(dtype_name):
    """A Numba function pack_panel(call, to, w): the seven products' weights for `rows` filters, [7][depth][rows]."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, V, rows = np.dtype(real).itemsize, vector_type(real), panel_rows()
    W, contiguous = V.count, dtype_name == np.dtype(real).name
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)

    @traced(types.void)
    def pack_vectors(to, panel_bytes, w, w_k, half_filters, half_channels, count):
        def some(i):
            here, there = w + i * V.bytes, to + i * (rows * V.bytes)
            quarters = [[load(V, here + w_k * j + q) for j in range(rows)] for q in (0, half_channels, half_filters)]
            quarters.append([load(V, here + w_k * j + half_filters + half_channels) for j in range(rows)])
            for p, product in enumerate(zip(*(weight_sums(*each) for each in zip(*quarters)))):
                for j, vector in enumerate(interleave(list(product))):
                    store(there + panel_bytes * p + V.bytes * j, vector)

        loop(count, some)

    @inlined
    def pack_panel(call, to, w):
        depth = half_depth(call)
        panel_bytes, half_filters, half_channels = depth * rows * item, call.Kg // 2 * call.w_k, depth * call.w_c
        done = 0
        if contiguous and call.w_c == item:
            pack_vectors(to, panel_bytes, w, call.w_k, half_filters, half_channels, depth // W)
            done = depth // W * W
        for c in range(done, depth):
            for j in range(rows):
                here, there = w + j * call.w_k + c * call.w_c, to + (c * rows + j) * item
                a11, a12 = read(here), read(here + half_channels)
                a21, a22 = read(here + half_filters), read(here + half_filters + half_channels)
                s1 = a21 + a22
                s2 = s1 - a11
                write(there, a11)
                write(there + panel_bytes, a12)
                write(there + 2 * panel_bytes, s2)
                write(there + 3 * panel_bytes, s1)
                write(there + 4 * panel_bytes, a12 - s2)
                write(there + 5 * panel_bytes, a11 - a21)
                write(there + 6 * panel_bytes, a22)

    return pack_panel


def build_pack(dtype_name):
    """Task: the panel of `rows` filters and of those half of all further. call.w: the weights, call.y: the panels."""
    rows, item = panel_rows(), 8 if dtype_name == "float64" else 4
    pack_panel = pack_panel_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        panels = call.Kg // 2 // rows
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        pack_panel(call, call.y + index * (PRODUCTS * half_depth(call) * rows * item), w)

    return task_loop(pack)


def build(dtype_name, lone):
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    same = item == stored_item
    rows, width = panel_rows(), VECTORS * lanes(real) + lone
    x_tile, row = width * item, VECTORS * lanes(real) * item
    gap = lone * LINE
    tile_bytes, wait_row = rows * row + gap, row + gap
    wait_tile = rows * wait_row
    copy_planes, add_pixels = copy_planes_function(dtype_name), sums_function(real, lone)
    copy_patches = patches.copy_patches_function(real)
    finish_tile, copy_biases = finish_tile_function(dtype_name), copy_biases_function(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)
    pack_panel, left_over = pack_panel_function(dtype_name), inlined(blocked.task_function(dtype_name))

    product_1 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.t, p))
    product_2 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.t, p)))
    product_6 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.t, tiles.added(tiles.t, p)))
    product_5 = product_function(real, lone, lambda p, tiles: tiles.keep(tiles.e, tiles.added(tiles.t, p)))
    product_3 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.e, p)))
    product_4 = product_function(real, lone, lambda p, tiles: tiles.finish(tiles.added(tiles.t, p, -1)))

    def both(p, tiles):
        tiles.keep(tiles.t, tiles.added(tiles.t, p))
        tiles.finish(tiles.added(tiles.e, p))

    product_7 = product_function(real, lone, both)

    @inlined
    def panels_of(call):
        """Where the weights' sums begin: behind the packed rows, or in the workspace where there are none."""
        return call.w + call.panels_at if call.w_k == 0 else call.workspace + call.shared_at

    def pack_round(call_address, index, worker):
        call = record_at(CALL_STRASSEN, call_address)
        panels = call.Kg // 2 // rows
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        pack_panel(call, panels_of(call) + index * (PRODUCTS * half_depth(call) * rows * item), w)

    @inlined
    def copy_halves(call, planes, x, first, c0, channels):
        """Of `channels` channels from c0 on and those half of all further: the rows of x in which the pair's pixels
        lie. Of patches, of so many depths: whole rows of windows.
        """
        row0, end = first // call.Q, first + 2 * width
        count = (end - 1) // call.Q - row0 + 1
        column, behind = (first % call.Q, (end - 1) % call.Q + 1) if count == 1 else (0, call.Q)
        for half in range(2):
            to, begin = planes + half * channels * call.planes_bytes, c0 + half * half_depth(call)
            if call.S > 1:
                line, lines = begin // call.S, channels // call.S
                copy_patches(call, to, call.planes_bytes, x, line, lines, row0, count, column, behind)
            else:
                here = x + begin * call.x_c
                copy_planes(call, to, call.planes_bytes, here, row0, 1, channels, count, column, behind)

    @inlined
    def multiply_pair(
        a, a_product, x, x_step, x_half, totals, panel, alone, depth, t, y, y_row, y_half, y_tile, above, below,
        residual, residual_row, r_half, r_tile, low, high,
    ):  # fmt: skip
        """The four tiles of `rows` filters and of those half of all further."""
        e, lone_panel = t + tile_bytes, depth * item
        x_lone = x + row
        r12, r21, r22 = 0, 0, 0
        if residual != 0:
            r12, r21, r22 = residual + r_tile, residual + r_half, residual + r_half + r_tile
        product_1(a, x, x_step, x_lone, x_step, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        product_2(
            a, x + x_half, x_step, x_lone + x_half, x_step, depth, t, e, y, y_row, above, residual, residual_row, low,
            high,
        )  # fmt: skip
        a += a_product
        product_6(a, totals + panel, row, alone + lone_panel, item, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        product_5(a, totals, row, alone, item, depth, t, e, 0, 0, 0, 0, 0, low, high)
        a += a_product
        x += x_half + x_tile
        product_3(a, x, x_step, x + row, x_step, depth, t, e, y + y_tile, y_row, above, r12, residual_row, low, high)
        a += a_product
        y += y_half
        totals += 2 * panel
        alone += 2 * lone_panel
        product_7(a, totals, row, alone, item, depth, t, e, y + y_tile, y_row, below, r22, residual_row, low, high)
        a += a_product
        totals += panel
        alone += lone_panel
        product_4(a, totals, row, alone, item, depth, t, e, y, y_row, below, r21, residual_row, low, high)

    @inlined
    def pair(call, index, worker):
        filter_task, rest = index % call.pair_filter_tasks, index // call.pair_filter_tasks
        number, rest = rest % call.pairs, rest // call.pairs
        g, n = rest % call.groups, rest // call.groups
        first, depth, half = number * 2 * width, half_depth(call), call.Kg // 2
        begin = filter_task * call.pair_filters
        end = min(begin + call.pair_filters, half)
        planes = call.workspace + worker * call.worker_bytes
        totals, alone = planes + call.sums_at, planes + call.alone_at
        t, biases = planes + call.tiles_at, planes + call.pair_bias_at
        waiting, nothing = t + 2 * tile_bytes, biases + 2 * call.pair_filters * item
        copy_biases(call, g * call.Kg + begin, end - begin, biases)
        copy_biases(call, g * call.Kg + half + begin, end - begin, biases + call.pair_filters * item)
        for i in range(rows):
            write(nothing + i * item, 0.0)

        x = call.x + n * call.x_n + g * call.Cg * call.x_c
        in_place = same and call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
        in_place = in_place and call.x_w == item and flat_rows(call.x_h, call.x_w, call.W)
        direct = call.activation == CLAMP and same and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.pair_channels == depth
            direct = direct and call.residual_q == item and flat_rows(call.residual_p, call.residual_q, call.Q)
        y_half, r_half = half * call.y_k, half * call.residual_k if call.has_residual else 0
        product_bytes = depth * rows * item
        panels = panels_of(call) + g * (half // rows * PRODUCTS * product_bytes)
        y = call.y + n * call.y_n + g * call.Kg * call.y_k + first * item
        residual = call.residual + n * call.residual_n + g * call.Kg * call.residual_k + first * item
        for c0 in range(0, depth, call.pair_channels):
            channels = min(call.pair_channels, depth - c0)
            panel = channels * row
            if in_place:
                b, b_step, b_half = x + c0 * call.x_c + first * item, call.x_c, depth * call.x_c
            else:
                copy_halves(call, planes, x, first, c0, channels)
                b, b_step, b_half = planes + first % call.Q * item, call.planes_bytes, channels * call.planes_bytes
            add_pixels(totals, panel, alone, b, x_tile, b_half, b_step, channels)
            last = c0 + channels == depth
            for k in range(begin, end, rows):
                a = panels + k // rows * (PRODUCTS * product_bytes) + c0 * rows * item
                wait = waiting + (k - begin) // rows * call.waiting_step
                bias = biases + (k - begin) * item
                if last and direct:
                    out, out_row, out_half, out_tile = y + k * call.y_k, call.y_k, y_half, x_tile
                    above, below, low, high = bias, bias + call.pair_filters * item, call.low, call.high
                else:
                    out, out_row, out_half, out_tile = wait, wait_row, 2 * wait_tile, wait_tile
                    above, below, low, high = nothing, nothing, -np.inf, np.inf
                add, add_row, add_half, add_tile = 0, call.residual_k, r_half, x_tile
                if c0 > 0:
                    add, add_row, add_half, add_tile = wait, wait_row, 2 * wait_tile, wait_tile
                elif last and direct and call.has_residual:
                    add = residual + k * call.residual_k
                multiply_pair(
                    a, product_bytes, b, b_step, b_half, totals, panel, alone, channels, t, out, out_row, out_half,
                    out_tile, above, below, add, add_row, add_half, add_tile, low, high,
                )  # fmt: skip
                if last and not direct:
                    for i in range(4):
                        k0, number = g * call.Kg + k + i // 2 * half, bias + i // 2 * call.pair_filters * item
                        column = first + i % 2 * width
                        finish_tile(call, n, k0, rows, column, width, wait + i * wait_tile, wait_row, number)

    def task(call_address, index, worker):
        call = record_at(CALL_STRASSEN, call_address)
        all_tasks = call.pair_tasks + call.left_tasks  # what is left over evenly among the pairs, as are the threads'
        before = index * call.left_tasks // all_tasks
        if (index + 1) * call.left_tasks // all_tasks == before:
            pair(call, index - before, worker)
        else:
            left_over(call_address, before, worker)

    return two_round_loop(pack_round, task)


# How a problem is cut.


def vector_pixels(problem) -> int:
    """Of a tile, without its lone one."""
    return VECTORS * lanes(problem.accumulate)


@lru_cache(maxsize=1024)
def lone_pixels(problem) -> int:
    """Of each tile: none, or one where the registers hold its sums too and less is then left over.

    It costs a step one more multiply-add, as W / rows pixels do; what is left over fetches all weights again.
    """
    if not holds_lone(problem.accumulate):
        return 0
    pixels = problem.P * problem.Q

    def cost(lone):
        left = pixels % (2 * (vector_pixels(problem) + lone))
        paired = (pixels - left) * tile_columns(problem, lone) / (vector_pixels(problem) + lone)
        return (LONE_COSTS if lone else 1.0) * paired + (LEFT_COSTS * left + LEFT_PIXELS if left else 0.0)

    return min((0, 1), key=cost)


def tile_columns(problem, lone) -> float:
    """Pixels in vectors that take as long as a tile."""
    return vector_pixels(problem) + lone * lanes(problem.accumulate) / panel_rows()


def tile_pixels(problem) -> int:
    return vector_pixels(problem) + lone_pixels(problem)


def pairs(problem) -> int:
    """Pairs of tiles in a map."""
    return problem.P * problem.Q // (2 * tile_pixels(problem))


def paired_pixels(problem) -> int:
    return pairs(problem) * 2 * tile_pixels(problem)


def pair_cycles(problem, filters) -> float:
    """Of one pair of tiles and so many filters of the first half and of the second."""
    W, depth = lanes(problem.accumulate), problem.reduction // 2
    columns = tile_columns(problem, lone_pixels(problem))
    products = PRODUCTS * multiply_cycles(filters, VECTORS * W, depth, problem.accumulate) * columns / (VECTORS * W)
    copy = blocked_cuts.copy_cycles(problem) / (problem.P * problem.Q) * 2 * tile_pixels(problem)
    sums = SUMS * VECTORS * depth * SUM_CYCLES
    return CYCLES_PER_TASK + products + copy + sums + PRODUCTS * VECTORS * filters * LEAVE_CYCLES


def cut_cycles(problem, threads, filter_tasks) -> float:
    """Predicted cycles until the last thread is done."""
    half, rest = problem.Kg // 2, problem.P * problem.Q - paired_pixels(problem)
    filters = up(-(-half // filter_tasks), panel_rows())
    parts = [pair_cycles(problem, min(filters, half - begin)) for begin in range(0, half, filters)]
    left = problem.Kg * blocked_cuts.pixels_cycles(rest, problem.reduction, problem.accumulate) / threads
    maps = problem.N * problem.groups
    tasks = spread(parts * (pairs(problem) * maps), [left] * (threads * maps))
    return until_all_done(tasks, threads)


def spread(tasks, others):
    """Both in their order, the others evenly among the tasks, as `task` has them."""
    count, all_tasks = len(others), len(tasks) + len(others)
    before = [index * count // all_tasks for index in range(all_tasks + 1)]
    return [others[b] if after > b else tasks[i - b] for i, (b, after) in enumerate(pairwise(before))]


def channel_block(problem) -> int:
    """Channels of a half whose T's and x fill less than half the L2 cache, all blocks about equal."""
    depth, row_bytes = problem.reduction // 2, VECTORS * target.vector_bytes()
    x_bytes = 4 * (row_bytes + LINE)
    if not blocked_cuts.reads_x_in_place(problem):
        x_bytes = 2 * blocked_cuts.plane_bytes(problem, 2 * tile_pixels(problem))
    most = max(target.cache_bytes(2) // 2 // (SUMS * row_bytes + x_bytes), 1)
    return up(-(-depth // -(-depth // most)), problem.S)


@lru_cache(maxsize=1024)
def blocking(problem, threads):
    """The numbers of BLOCKING and of PAIRS, and how many tasks there are: of packing, of pairs, of what is left."""
    W, rows, item = lanes(problem.accumulate), panel_rows(), problem.accumulate.itemsize
    maps, half, depth = problem.N * problem.groups, problem.Kg // 2, problem.reduction // 2
    count, first = pairs(problem), paired_pixels(problem)
    rest, left = blocked_cuts.blocking(problem, threads, first) if first < problem.P * problem.Q else (NOTHING_LEFT, 0)
    rest = list(rest)
    filter_tasks = min(FILTER_CUTS, key=lambda tasks: cut_cycles(problem, threads, tasks))
    filters = up(-(-half // filter_tasks), rows)
    filter_tasks = -(-half // filters)
    gap = lone_pixels(problem) * LINE
    tile_bytes, wait_bytes = rows * VECTORS * W * item + gap, rows * (VECTORS * W * item + gap)
    planes_bytes, channels = blocked_cuts.plane_bytes(problem, 2 * tile_pixels(problem)), channel_block(problem)
    sums_at = up(2 * channels * planes_bytes, 64)
    waiting_step = 4 * wait_bytes if channels < depth else 0
    alone_at = sums_at + SUMS * channels * VECTORS * W * item
    tiles_at = alone_at + up(SUMS * channels * item, LINE)
    bias_at = tiles_at + 2 * tile_bytes + 4 * wait_bytes + (filters // rows - 1) * waiting_step
    worker_bytes = worker_span(max(rest[BLOCKING.index("worker_bytes")], bias_at + (2 * filters + rows) * item))
    rest[BLOCKING.index("worker_bytes")] = worker_bytes
    own = (
        count, count * maps * filter_tasks, filters, filter_tasks, channels, waiting_step, planes_bytes, sums_at,
        alone_at, tiles_at, bias_at,
        rows_bytes(problem), threads * worker_bytes, left,
    )  # fmt: skip
    return tuple(rest) + own, problem.groups * half // rows, own[1] + left


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    numbers, packs, tasks = blocking(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING + PAIRS)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, lone_pixels(problem)), packs, tasks


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    filters, pixels = 2 * panel_rows(), 2 * tile_pixels(problem)
    reasons = []
    if problem.dtype != problem.accumulate:
        reasons.append(f"takes float32 and float64, not {problem.dtype}")
    point = problem.R * problem.S == 1 and problem.padding == ((0, 0), (0, 0))
    if not point and not patches.serves(problem):
        reasons.append(
            "made for windows of 1x1, or in NCHW as wide as their stride, without padding; the window is "
            f"{problem.R}x{problem.S}, stride {problem.stride}, padding {problem.padding}"
        )
    if problem.Cg * problem.R % 2 or problem.Kg % filters:
        reasons.append(
            f"halves channels and filters: an even number of channels, or of their windows' rows, and a multiple of "
            f"{filters} filters per group needed, got {problem.Cg * problem.R} and {problem.Kg}"
        )
    if pairs(problem) == 0:
        reasons.append(f"at least {pixels} output pixels needed, got {problem.P} x {problem.Q}")
    return reasons


def panel_bytes(problem):
    return PRODUCTS * problem.groups * problem.Kg // 2 * (problem.reduction // 2) * problem.accumulate.itemsize


def workspace_bytes(problem, device):
    numbers, _, _ = blocking(problem, device.threads)
    return numbers[(BLOCKING + PAIRS).index("shared_at")] + panel_bytes(problem)


def reads_in_place(problem, w):
    """Weights of which a call makes the sums by itself, in a first round."""
    return problem.Kg % weight_rows.padded_filters(1) == 0 and blocked.reads_in_place(problem, w)


def rows_bytes(problem):
    """Of the weights in rows, which what is left over wants."""
    return weight_rows.packed_bytes(problem) if paired_pixels(problem) < problem.P * problem.Q else 0


def packed_bytes(problem, device):
    return rows_bytes(problem) + panel_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned): rows of filters, and panels."""
    if rows_bytes(problem):
        blocked.pack(problem, device, w, packed)
    panels = packed[rows_bytes(problem) :]
    call = pack_call(problem_fields(problem), panels, by_depth(problem, w), panels, None, None, None)
    run_tasks(
        compiled(build_pack, problem.dtype.name), call, problem.groups * problem.Kg // 2 // panel_rows(), device.threads
    )


def by_depth(problem, w):
    """The weights of each filter in a row; without a copy where they are contiguous."""
    return w.reshape(problem.K, problem.reduction, 1, 1)


def predicted_seconds(problem, device):
    cycles = min(cut_cycles(problem, device.threads, tasks) for tasks in FILTER_CUTS) * device.threads
    seconds = predicted(problem, device, cycles + problem.N * problem.groups * blocked.store_cycles(problem))
    return seconds + (panel_bytes(problem) / MEMORY_BYTES if panel_bytes(problem) > LARGE_PANELS else 0.0)


def pack_seconds(problem, device):
    """Making the weights' sums, and reading what another thread has just written of them."""
    return problem.K * problem.reduction / CLOCK / device.threads


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    fields, loop, packs, tasks = prepared(problem, device.threads)
    if w.ndim == 1:
        return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)
    return job_of(fields, loop, tasks, device.threads, x, by_depth(problem, w), y, bias, residual, before=packs)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as `reads_in_place` asks, into y; all in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
