"""Maps of up to nine pixels, as in fully connected layers, squeeze-and-excitation and small networks' last layers: dot
products, with the vectors along the depth d = (c, r, s).

    y[k, pixel] = sum over d of w[k, d] * column[pixel, d]       3 filters x 9 pixels in registers, or 8 x 1 to 8 x 3

    each thread: every window of x copied side by side, a column     not where one window sees all of x, as it lies
    each task: tiles of filters times all pixels; at last the lanes of each sum are added, and leave as vectors

Why: nine pixels fill little more than half of a vector, and one pixel a sixteenth; along the depth vectors are full.
Weights are read once, as they lie, so a single call packs none. Columns of larger maps cost more to copy than that
saves.

Depths come in blocks whose columns stay in the L1 cache, or, of one pixel, in the L2 cache; the sums, as vectors, wait
for the next one.

Measured on two Zen 5 cores, a plan's call in microseconds, beside pixels in the lanes or Winograd: 1152 channels to 48
of one pixel 4.7 instead of 8.6, 2048 to 1000 50 instead of 60; 128 to 256 under 3 x 3 on nine pixels 18 instead of 31,
on four with AVX2 15 instead of 28. 2.2 to 3 of that are saved in Python (job.py).
What was learned there:
- A load whose mask is empty is dear where no memory lies at its address: without biases, looked for at 0, 16 -> 1,000
  channels of one pixel took 51 microseconds on two Zen 4 cores, 7 since they are not, 2,048 -> 1,000 81 and now 60.
- With one pixel reading the weights is the limit, in a core's own caches too: 36 bytes a cycle from L2. Fetching ahead
  and 16 filters at once change nothing. A second thread takes a microsecond to join: it comes for `CYCLES_PER_THREAD`.
- Weights beyond the caches, 16 to 400 MB of them, come at the memory's pace; rows read from end to end rather than in
  blocks of 12 KB are 2 to 7 % faster.
- Nine columns loaded before they are used three times each spill sums: 39 instead of 22 microseconds. All depths at
  once, columns coming from L2 for each tile: 22 instead of 19.
- Columns copied once for both threads were fetched by each from the other, on two Zen 4 cores slowly: 128 -> 256 under
  3 x 3 took 92 microseconds on nine pixels and 42 on four, 45 and 22 since each copies them all.
- Windows that meet padding, copied number by number, took twice as long as their products. Channels with their padding
  around them are made first, by whole vectors, and windows copied from there, row by row with 4 numbers at once: 256 ->
  16 under 3 x 3 on nine padded pixels takes 22 microseconds on two Zen 4 cores instead of 36.
- In batches Winograd wins (nine pixels, eight images: 19 instead of 29), which `OTHERS` tells dispatch.
Source: gemv, as in Goto and van de Geijn, High-Performance Implementation of the Level-3 BLAS, ACM TOMS 2008.
"""

import struct
from functools import lru_cache
from itertools import chain

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target, weight_rows
from .call import CALL_DTYPE, problem_fields
from .compilation import compiled, inlined
from .epilogue import activated
from .lone_pixels import lane_sums
from .microkernel import CALL_SECONDS, CLOCK, multiply_cycles, vector_type
from .short_floats import memory_functions
from .threads import lines, two_round_loop, worker_span
from .tracing import Lanes, choose, first_lanes, fma, load, load_lanes, loop, minimum, store, store_lanes, traced, zeros
from .vectors import lanes, record_at

# Filters at once, by pixels: as many sums as registers hold, and at least 8, which wait for nothing.
ROWS = {32: (8, 8, 8, 6, 5, 4, 3, 3, 3), 16: (8, 6, 4, 3)}
CYCLES_PER_THREAD = 6_000
BYTES_PER_CYCLE = 36  # of weights, from the L2 cache
NARROW = 4  # numbers: rows of windows up to so wide are copied by vectors of so many
COPY_ROW, COPY_NUMBER = 2.0, 4.0  # cycles to copy a row of a window by a vector, or a number of it by itself
WAITING = 3.0  # cycles to store and load a sum between two blocks of depths, where a multiply-add takes one
OTHERS = 1.6  # other kernels' predictions, fitted on a Zen 3, are so many times what they take where this was fitted

CUT = (
    "parts", "packed_row", "columns", "column_bytes", "depth_block", "partial_at", "planes_at", "padded_h", "padded_w",
    "worker_bytes",
)  # fmt: skip
CALL_FEW_PIXELS = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUT]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Are these so few pixels, in one group, and are sums made in the type of the arrays?

    With channels last only where x and y have one pixel and lie as in NCHW.
    """
    most = len(ROWS[target.register_count()])
    pixels = problem.P * problem.Q
    alike = problem.layout == "NCHW" or pixels == problem.H * problem.W == 1
    return pixels <= most and alike and problem.groups == 1 and problem.dtype == problem.accumulate


def takes(x, w, y, bias, residual) -> bool:
    """Are all arrays without gaps? Packed weights, of one dimension, are."""
    return all(array is None or array.flags.c_contiguous for array in (x, w, y, bias, residual))


def reads_in_place(problem) -> bool:
    """Does one window see all of x?"""
    whole = (problem.R, problem.S) == (problem.H, problem.W)
    return whole and problem.padding == ((0, 0), (0, 0))


def rows_of(problem) -> int:
    return ROWS[target.register_count()][problem.P * problem.Q - 1]


def dot_function(dtype_name, rows, pixels):
    """The traced function for the products of one image with up to `rows` filters, from weights to store."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def dot_tile(
        a, a_row, left, x, x_row, depth, partial, first, last, y, bias, has_bias, residual, has_residual, kind, low,
        high, slope,
    ):  # fmt: skip
        numbers = [minimum(left - 1, i) for i in range(rows)]  # beyond the last filter the last one again
        filters = [a + a_row * number for number in numbers]

        def multiplied(read, at, sums):
            weights, added = [read(filter_ + at) for filter_ in filters], []
            for j, totals in enumerate(zip(*sums)):
                column = read(x + x_row * j + at)
                added.append([fma(weight, column, total) for weight, total in zip(weights, totals)])
            return [list(row) for row in zip(*added)]

        def fresh():
            only_first = first_lanes(V, has_bias)
            starts = [load_lanes(V, bias + V.item_bytes * number, only_first) for number in numbers]
            return [[start] * pixels for start in starts]

        def places():
            return [[partial + V.bytes * (pixels * i + j) for j in range(pixels)] for i in range(rows)]

        def continued():
            return [[load(V, place) for place in row] for row in places()]

        def leave():
            for total, place in zip(chain(*sums), chain(*places()), strict=True):
                store(place, total)

        whole = depth // V.count
        some = first_lanes(V, depth - whole * V.count)
        sums = choose(first, fresh, continued)
        sums = loop(whole, lambda d, sums: multiplied(lambda at: load(V, at), d * V.bytes, sums), sums)

        def with_rest():
            return multiplied(lambda at: load_lanes(V, at, some), whole * V.bytes, sums)

        sums = choose(depth > whole * V.count, with_rest, lambda: sums)

        def finish():
            left_here = minimum(left, rows) * pixels
            finished(list(chain(*sums)), left_here, y, residual, has_residual, kind, low, high, slope)

        choose(last, finish, leave)

    def finished(sums, count, y, residual, has_residual, kind, low, high, slope):
        for i, totals in enumerate(lane_sums(filled_up(sums))):
            first = totals.type.count * i
            there, here = first_lanes(totals.type, count - first), V.item_bytes * first
            totals = with_residual(totals, has_residual, residual + here, there)
            store_lanes(y + here, activated([totals], kind, low, high, slope)[0], there)

    def filled_up(vectors):
        """With zeros, so that they can be added in pairs."""
        even = min(V.count, 1 << (len(vectors) - 1).bit_length())
        return vectors + [zeros(V, vectors[0]) for _ in range(-len(vectors) % even)]

    def with_residual(totals, has_residual, residual, there):
        def added():
            return [totals + load_lanes(totals.type, residual, there)]

        return choose(has_residual.differs(0), added, lambda: [totals])[0]

    return dot_tile


def copy_function(dtype_name):
    """A Numba function copy_column(to, call, x, H, W, top, left, end, p, q): the window of one pixel, side by side, in
    order (c, r, s). x: all channels of its image, or their planes; behind `end` nothing may be read.

    A row of a window is written as a whole vector where x goes on behind it, and what is too much by the next row.
    """
    V, item = vector_type(dtype_name), np.dtype(dtype_name).itemsize
    widest, zero = V.count, np.dtype(dtype_name).type(0)
    narrow = min(NARROW, widest)
    read, write, _, _ = memory_functions(dtype_name)

    def vectors_of(count):
        @traced(types.void)
        def copy_rows(to, to_row, x, x_row, rows):
            loop(rows, lambda r: store(to + to_row * r, load(Lanes(V.kind, count), x + x_row * r)))

        return copy_rows

    copy_narrow, copy_wide = vectors_of(narrow), vectors_of(widest)

    @inlined
    def copy_column(to, call, x, H, W, top, left, end, p, q):
        h0, w0 = p * call.stride_h - top, q * call.stride_w - left
        inside = h0 >= 0 and w0 >= 0 and h0 + call.R <= H and w0 + call.S <= W
        plain = inside and call.dilation_h == 1 and call.dilation_w == 1 and widest >= call.S
        row, count = call.S * item, narrow if narrow >= call.S else widest
        for c in range(call.C):
            plane = x + c * H * W * item
            if plain and plane + (H * W + count) * item <= end:
                here = plane + (h0 * W + w0) * item
                if count == narrow:
                    copy_narrow(to, row, here, W * item, call.R)
                else:
                    copy_wide(to, row, here, W * item, call.R)
                to += call.R * row
                continue
            for r in range(call.R):
                for s in range(call.S):
                    h, w = h0 + r * call.dilation_h, w0 + s * call.dilation_w
                    there = 0 <= h < H and 0 <= w < W
                    write(to, read(plane + (h * W + w) * item) if there else zero)
                    to += item

    return copy_column


def planes_function(dtype_name):
    """A Numba function copy_planes(call, to, x): all channels of one image with their padding around them, which has
    no more columns than a vector. A row is written as a whole vector, and what is too much by the next row.
    """
    V = vector_type(dtype_name)

    @traced(types.void)
    def copy(to, x, channels, H, W, row, above, below):
        """row: numbers of a padded row. above, below: numbers from a plane's begin to its first number, and behind."""
        some, nothing = first_lanes(V, W), zeros(V, to)

        def channel(_, places):
            to, x = places

            def clear(first, count):
                loop((count + V.count - 1) // V.count, lambda i: store(first + V.bytes * i, nothing))

            clear(to, above)
            first = to + above * V.item_bytes
            loop(H, lambda h: store(first + row * h * V.item_bytes, load_lanes(V, x + W * h * V.item_bytes, some)))
            behind = first + row * H * V.item_bytes
            clear(behind, below)
            return [behind + below * V.item_bytes, x + H * W * V.item_bytes]

        loop(channels, channel, [to, x])

    @inlined
    def copy_planes(call, to, x, H, W):
        above = call.top * W + call.left
        copy(to, x, call.C, call.H, call.W, W, above, (H - call.H) * W - above)

    return copy_planes


def build(dtype_name, rows, pixels):
    item, tile_bytes = np.dtype(dtype_name).itemsize, rows * pixels * vector_type(dtype_name).bytes
    dot_tile, copy_column = dot_function(dtype_name, rows, pixels), copy_function(dtype_name)
    copy_planes = planes_function(dtype_name)

    def no_task(call_address, index, worker):
        pass

    def copy(call_address, worker):
        call = record_at(CALL_FEW_PIXELS, call_address)
        own, image = call.workspace + worker * call.worker_bytes, call.C * call.H * call.W * item
        for index in range(call.columns):
            n, pixel = index // pixels, index % pixels
            x, H, W, top, left, end = call.x + n * image, call.H, call.W, call.top, call.left, call.x + call.N * image
            if call.padded_w:
                x, H, W, top, left, end = (
                    own + call.planes_at,
                    call.padded_h,
                    call.padded_w,
                    0,
                    0,
                    own + call.worker_bytes,
                )
                if pixel == 0:
                    copy_planes(call, x, call.x + n * image, H, W)
            to = own + index * call.column_bytes
            copy_column(to, call, x, H, W, top, left, end, pixel // call.Q, pixel % call.Q)

    def multiply(call_address, index, worker):
        call = record_at(CALL_FEW_PIXELS, call_address)
        all_depths = call.C * call.R * call.S
        own = call.workspace + worker * call.worker_bytes
        x = own if call.columns else call.x
        w_row = call.packed_row if call.w_k == 0 else call.w_k
        tiles = (call.K + rows - 1) // rows
        biases = call.bias if call.has_bias else call.w  # of which nothing is taken; but address 0 takes 200 cycles
        begin, end = tiles * index // call.parts, tiles * (index + 1) // call.parts
        for d in range(0, all_depths, call.depth_block):
            depth = min(call.depth_block, all_depths - d)
            for tile in range(begin, end):
                k = tile * rows
                for n in range(call.N):
                    here = (n * call.K + k) * pixels * item
                    dot_tile(
                        call.w + k * w_row + d * item, w_row, call.K - k, x + n * pixels * call.column_bytes + d * item,
                        call.column_bytes, depth, own + call.partial_at + ((tile - begin) * call.N + n) * tile_bytes,
                        d == 0, d + depth == all_depths, call.y + here, biases + k * item, call.has_bias,
                        call.residual + here, call.has_residual, call.activation, call.low, call.high, call.slope,
                    )  # fmt: skip

    return two_round_loop(no_task, multiply, copy)


# How a problem is cut.


def part_count(problem, threads) -> int:
    """Ranges of filters, one for a thread."""
    return max(1, min(threads, int(cycles(problem) / CYCLES_PER_THREAD), -(-problem.K // rows_of(problem))))


def column_bytes(problem) -> int:
    """From column to column: with a vector behind each, unless x itself is the column."""
    count = problem.reduction * problem.dtype.itemsize
    return count if reads_in_place(problem) else lines(count + target.vector_bytes())


def columns_bytes(problem) -> int:
    return 0 if reads_in_place(problem) else problem.N * problem.P * problem.Q * column_bytes(problem)


def depth_block(problem) -> int:
    """Depths of which the columns fill less than a third of the L1 cache, or, of one column that several filters share,
    of the L2 cache; in whole vectors, all blocks about equal.
    """
    depth, W, pixels = problem.reduction, lanes(problem.dtype), problem.P * problem.Q
    most = target.cache_bytes(1 if pixels > 1 else 2) * 3 // 10 // (pixels * problem.dtype.itemsize)
    return -(-depth // -(-depth // most) // W) * W


def padded_shape(problem) -> tuple[int, int]:
    """Rows and columns of a channel with its padding, where windows that meet it are copied from there; else zeros."""
    (top, bottom), (left, right) = problem.padding
    rows, columns = problem.H + top + bottom, problem.W + left + right
    pads = (rows, columns) != (problem.H, problem.W) and problem.dilation == (1, 1)
    return (rows, columns) if pads and columns <= lanes(problem.dtype) else (0, 0)


def planes_bytes(problem) -> int:
    """Of padded channels, behind which vectors are written, and read."""
    rows, columns = padded_shape(problem)
    return problem.C * rows * columns * problem.dtype.itemsize + 2 * target.vector_bytes() if rows else 0


def waiting_bytes(problem, threads) -> int:
    """Of the sums that wait for other depths."""
    tiles = 0 if depth_block(problem) >= problem.reduction else -(-problem.K // rows_of(problem))
    waiting = problem.N * -(-tiles // part_count(problem, threads)) * rows_of(problem) * problem.P * problem.Q
    return waiting * target.vector_bytes()


def worker_bytes(problem, threads) -> int:
    """Columns, sums that wait, padded channels."""
    count = columns_bytes(problem) + waiting_bytes(problem, threads) + planes_bytes(problem)
    return worker_span(count) if count else 0


def workspace_bytes(problem, threads) -> int:
    return part_count(problem, threads) * worker_bytes(problem, threads)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """The record's fixed part, the compiled loop and the number of tasks."""
    parts, pixels = part_count(problem, threads), problem.P * problem.Q
    copies = 0 if reads_in_place(problem) else problem.N * pixels
    numbers = (
        parts, weight_rows.row_bytes(problem), copies, column_bytes(problem), depth_block(problem),
        columns_bytes(problem), columns_bytes(problem) + waiting_bytes(problem, threads), *padded_shape(problem),
        worker_bytes(problem, threads),
    )  # fmt: skip
    fields = problem_fields(problem) + struct.pack(f"{len(CUT)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, rows_of(problem), pixels), parts


def predicted_seconds(problem, threads) -> float:
    return CALL_SECONDS + OTHERS * cycles(problem) / CLOCK / part_count(problem, threads)


def cycles(problem) -> float:
    """Of one core: multiply-adds, their lanes added, sums that wait, or reading the weights; and copying columns."""
    sums, W = problem.K * problem.P * problem.Q, lanes(problem.dtype)
    multiply = multiply_cycles(sums, W, -(-problem.reduction // W), problem.dtype) / 1.2 + 3 * sums
    waiting = -(-problem.reduction // depth_block(problem)) - 1
    multiply += WAITING * waiting * sums / target.multiply_adds_per_cycle()
    reading = problem.K * problem.reduction * problem.dtype.itemsize / BYTES_PER_CYCLE
    return max(problem.N * multiply, reading) + problem.N * copy_cycles(problem)


def copy_cycles(problem) -> float:
    """Of one image's columns: by rows of windows, or by numbers."""
    if reads_in_place(problem):
        return 0.0
    pixels, (rows, _) = problem.P * problem.Q, padded_shape(problem)
    padded = any(map(any, problem.padding)) and not rows
    if padded or problem.dilation != (1, 1) or lanes(problem.dtype) < problem.S:
        return COPY_NUMBER * pixels * problem.reduction
    return COPY_ROW * problem.C * (pixels * problem.R + rows)
