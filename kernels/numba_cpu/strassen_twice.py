"""Strassen's algorithm, two levels of it, for large 1x1 layers: 49 products of quarters, not 64.

    for every group of four neighbouring tiles of pixels, 3 vectors each and perhaps a lone one
        T1 .. T4 of the outer halves of all channels, their quarters                                into the L2 cache
        for every outer product, in this order: for every 8 filters and those a quarter, a half and three quarters of
        all further
            t  = A11 B11      Y11 = t + A12 B21      t += S2 T2      e = t + S1 T1
            Y12 = e + S4 B22  Y22 = e + S3 T3        t += S3 T3      Y21 = t - A22 T4

Each of these products is of two halves of filters, channels and pixels, and is what strassen.py does with a pair of
tiles, seven times the micro-kernel, the first of which make the inner sums: only that what it finishes are the tiles of
t or e, four each, which lie in the L1 and L2 cache, that t or e is what that has as a residual, and that S3 T3 is added
to t besides.

Why so: a level more saves an eighth of the multiply-adds, and costs sums: of pixels, 2.5 times as many, and of
products, each of which is added twice. Where a core starts one multiply-add of 64 bytes a cycle, or two of 32, that
pays from 64 channels and 128 filters on; where it starts two of 64, by the same account, hardly. All sums of the
weights, 49/16 of them, are made ahead. A single call makes them first, which pays for the largest layers only; or, with
16 registers, each task makes what 8 or 4 filters and an outer product want when it comes to them, for several groups of
tiles at once. The error grows by less than twice once more (accuracy.py).

Measured on two Zen 4 cores with AVX-512, plans of ResNet-50's 1x1 layers at N = 1, as times of strassen.py over these:
1024 -> 512 channels of 14 x 14 1.09, 1024 -> 256 1.04, 256 -> 1024 1.02 to 1.18, with a residual 1.10, 512 -> 1024 and
256 -> 512 with stride 2 1.07 and 1.05, 512 -> 256 of 28 x 28 1.02 to 1.05, 256 -> 128 of 56 x 56 1.03; 128 -> 512 of
28 x 28, 128 -> 128 and 64 -> 256 of 56 x 56 1.03, 96 -> 576 of 14 x 14 1.02, 64 -> 64 of 56 x 56 1.0, 256 -> 64 0.99,
384 -> 64 of 14 x 14 0.86, 576 -> 96 0.75. 1024 -> 1024 of 14 x 14 1.16,
with 12 MB of sums of weights, which stay in the L3 cache; 2048 -> 2048 of 28 x 28, whose 49 MB do not, 1.05. Held to
AVX2, in the same order, 1.17, 1.12, 1.07, 1.05 and 1.13, 1.09, 1.10; 1.02 and 0.99; 0.86 to 1.01.
What was learned there:
- Sums of pixels take 4.4 cycles a vector where they leave the L1 cache. With those of a channel `depth` rows apart it
  was twice that, as all began at the same places of the L1 cache: so a channel's lie side by side.
- Filters for every outer product, and not all outer products for every 8 filters: the inner sums of one of them then
  suffice at a time, 20 rows a channel and not 40, which with 512 channels were more than the L2 cache. That, and inner
  sums made by products, takes 0.89 to 0.94 of the time with 256 channels and more, and 0.96 to 1.03 where there are few
  filters or channels.
- Since products begin with their first step's (strassen.py) and those of S3 T3 are added to t and to Y22 as they are
  finished, not afterwards, plans take 0.93 (64 -> 256 channels of 56 x 56), 0.96 (128 -> 512 of 28 x 28) and 0.98 of
  the time (14 x 14); the two were not measured apart.
- Where the time of plans goes, besides multiply-adds (two Zen 4 cores, several outputs in turn, as shares): stores to y
  where it is larger than the L2 caches 0.2 (64 -> 256 channels of 56 x 56), 0.05 for 128 -> 512 of 28 x 28; adding
  outer products up in the L2 cache 0.05 with 64 and 128 channels, 0.03 with 256, 0.01 with 512 and 1024; outer sums of
  pixels 0.01 to 0.04; Python and starting threads 0.015. A thread waits for the other 0.02 to 0.08 of the time in a
  quiet hour, 0.03 to 0.11 in another; but where the last outer product's filters go to whoever is free, so that both
  end together, plans take 0.98 to 1.0 of the time with one group of tiles, and 0.99 to 1.03 with several.
- y's lines are fetched ahead (strassen.py): 0.88 to 0.92 of the time for 64 -> 256 channels of 56 x 56, 0.90 to 0.94
  for 256 -> 128, 0.95 to 1.0 for others. S3 T3 kept in registers, A22 T4 subtracted from it there, and both added to
  t, so that t is stored once less: 1.0 to 1.02, and 1.06 times the error.
- On 14 x 14 pixels, one group of tiles, each thread makes all sums for itself and takes half the filters.
- Sums of weights in vectors, all quarters' channels first interleaved in the L1 cache, take 0.05 to 0.16 of the time
  that one number at a time took (AVX2: 0.15 to 0.35): on two Zen 4 cores 0.1 ms for 256 -> 1024 channels, 0.19 for
  1024 -> 512, again and again into the same memory. In a single call they cost 0.15 to 0.47 ms more than a plan where
  each thread reads what it made, and 0.4 to 1.1, whatever their size, where it reads what the other has just written.
- Single calls whose tasks make a panel's sums as they come to it, those of 8 filters and one outer product, in the L2
  cache, from weights as they lie: 70 microseconds over a plan for 256 -> 1024 channels of 14 x 14, 120 for 1024 -> 256,
  310 for 1024 -> 512, 130 for 512 -> 1024 with stride 2: 1.05, 1.09, 1.05 to 1.09 and 0.91 to 1.0 times strassen.py's,
  and 1.1 where there is more than one group of tiles. Each outer product reads the weights again, 3.5 times in all,
  from the L3 cache; without fetching them ahead during the products before it is 90, 150, 310 and 140.
- With 16 registers no pixel is lone, and products may read weights one by one from anywhere: so sums need not be turned
  into panels, and a call makes rows of them, [7][filters][channels], by loads, additions and stores alone, in 0.9
  cycles a weight from the L2 cache for all 49; two vectors at a time, or stores to seven rows in turn take 1.05. On two
  Zen 4 cores held to AVX2, calls take 0.86 of the time of strassen.py or blocked.py, whichever is faster, for 512 ->
  1024 and 256 -> 512 channels with stride 2, 0.93 for 128 -> 512 of 28 x 28, 0.95 for 256 -> 1024 of 14 x 14, medians
  of six processes; 0.97 to 0.99 for 512 -> 256, 512 -> 128, 1024 -> 256 and 1024 -> 512, between 0.91 and 1.06, and
  1.01 for 256 -> 128 of 56 x 56: these are left alone. Fetching the next filters' weights ahead costs up to 8 % with
  1024 channels, ranges of filters whose weights stay in the L2 cache for all outer products 4 to 8 %, since inner sums
  of pixels are then made for each; groups of whose sums of pixels not all fit there up to 25 %. With 32 registers lone
  pixels want panels: shuffles for each outer product would cost what the second level gains.
- Single calls that make them beside products, rows of the outer sums beside products 3 and 7 and panels of these beside
  5 and 6, 280 lines that are not here: of strassen.py's time, medians of the quotients of calls in turn, 0.94 to 1.0 on
  ten layers of ResNet-50 in a quiet hour, 1.0 to 1.15 in one in which the host's other machines wanted its caches.
Source: Strassen, Gaussian elimination is not optimal, 1969, in the form of Winograd 1971; two levels at once as in
Huang et al., Strassen's Algorithm Reloaded, SC 2016.
"""

import struct
from functools import lru_cache

import numpy as np

from . import blocked, strassen
from .blocked import copy_biases_function, finish_tile_function
from .blocked_cuts import BLOCKING
from .call import pack_call, problem_fields
from .compilation import compiled, inlined
from .flat_planes import copy_planes_function
from .job import job_of
from .microkernel import CLOCK, VECTORS, panel_rows, predicted
from .strassen import reads_flat, writes_flat
from .strassen_cuts import fetch_seconds
from .strassen_products import next_weights, pair_function
from .strassen_sums import PRODUCTS, sums_made
from .strassen_twice_cuts import (
    CALL_TWICE,
    EXCHANGE_SECONDS,
    GROUPS,
    PACK_CYCLES,
    TILES,
    best_cycles,
    blocking,
    groups,
    lone,
    makes_rows,
    panel_bytes,
    rows_bytes,
)
from .strassen_twice_sums import (
    MADE,
    OUTER,
    build_pack,
    make_rows_function,
    row_bytes,
    staged_bytes,
    sums_twice_function,
)
from .threads import LINE, aligned_words, run_tasks, task_loop
from .vectors import lanes, record_at

passes = ("forward",)


def build(dtype_name, lone, planned):
    real = np.dtype(dtype_name).type
    item, rows, width = np.dtype(real).itemsize, panel_rows(), VECTORS * lanes(real) + lone
    x_tile, row = width * item, VECTORS * lanes(real) * item
    wait_row, sums_row = row + lone * LINE, row_bytes(real, lone)
    tile_bytes, group_width = rows * wait_row, TILES * width
    wait_half, wait_tile = 2 * tile_bytes, tile_bytes
    copy_planes, multiply_pair = copy_planes_function(dtype_name), pair_function(real, lone, not planned)
    sums_made_bytes = sums_made() * row
    add_pixels, make_rows, W = sums_twice_function(real, lone), make_rows_function(real), lanes(real)
    finish_tile, copy_biases = finish_tile_function(dtype_name), copy_biases_function(dtype_name)
    left_over = inlined(blocked.task_function(dtype_name))

    @inlined
    def operand(q, x, x_step, x_half, totals):
        """Of the outer product number q the right operand: where it begins, its channels, their other half, the right
        tile.
        """
        if q == 0:
            return x, x_step, x_half // 2, x_tile
        if q == 1:
            return x + x_half, x_step, x_half // 2, x_tile
        if q == 4:
            return x + x_half + 2 * x_tile, x_step, x_half // 2, x_tile
        number = q - 2 if q < 4 else q - 3
        return totals + number * 4 * wait_row, sums_row, 2 * wait_row, wait_row

    @inlined
    def neighbours(call, index, worker):
        """Some neighbouring groups of tiles; one, or in a call as many as a weight's sums are made for at once."""
        ranges = -(-call.quads // call.task_quads)
        number, rest = index % ranges, index // ranges
        n, rest = rest % call.N, rest // call.N
        filter_task, g = rest % call.quad_filter_tasks, rest // call.quad_filter_tasks
        first, depth, quarter = number * call.task_quads * group_width, call.Cg // 4, call.Kg // 4
        count = min(call.task_quads, call.quads - number * call.task_quads)
        begin = filter_task * call.quad_filters
        end = min(begin + call.quad_filters, quarter)
        planes = call.workspace + worker * call.worker_bytes
        totals, totals_bytes = planes + call.sums_at, depth * sums_row
        pair_tiles = planes + call.tiles_at
        waiting = pair_tiles + 2 * tile_bytes
        tiles, biases = waiting + 4 * tile_bytes, planes + call.quad_bias_at
        for i in range(4):
            copy_biases(call, g * call.Kg + i * quarter + begin, end - begin, biases + i * call.quad_filters * item)

        x, x_step = call.x + n * call.x_n + g * call.Cg * call.x_c, call.x_c
        if reads_flat(call, item):
            x += first * item
        else:
            row0, behind = first // call.Q, first + count * group_width
            x_rows = (behind - 1) // call.Q - row0 + 1
            column, stop = (first % call.Q, (behind - 1) % call.Q + 1) if x_rows == 1 else (0, call.Q)
            copy_planes(call, planes, call.planes_bytes, x, row0, 1, call.Cg, x_rows, column, stop, 0)
            x, x_step = planes + first % call.Q * item, call.planes_bytes
        x_half = 2 * depth * x_step
        for j in range(count):
            add_pixels(totals + j * totals_bytes, x + j * group_width * item, x_tile, x_half, x_step, depth)

        direct = writes_flat(call, item) and not call.has_residual
        product_bytes, bias_half = rows * (depth * item if planned else call.made_row), call.quad_filters * item
        w = call.w + g * call.Kg * call.w_k
        panels = call.w + call.panels_at + g * (quarter // rows * PRODUCTS * PRODUCTS * product_bytes)
        y = call.y + n * call.y_n + g * call.Kg * call.y_k + first * item
        for q in range(PRODUCTS):
            finishes, lower, to_right = q == 1 or q >= 4, int(q >= 5), int(q == 4 or q == 5)
            for k in range(begin, end, rows):
                a = panels + (k // rows * PRODUCTS + q) * (PRODUCTS * product_bytes)
                if not planned:
                    a, here = planes + call.made_at, w + k * call.w_k
                    make_rows(
                        q, a, call.made_row, here, call.w_k, quarter * call.w_k, depth * item, depth // (MADE * W)
                    )
                for j in range(count):
                    sums, pixel = totals + j * totals_bytes, j * group_width
                    b, step, half, right = operand(q, x + pixel * item, x_step, x_half, sums)
                    inner = sums + OUTER * wait_row
                    t = tiles + ((k - begin) // rows * count + j) * (8 * tile_bytes)
                    e, bias = t + 4 * tile_bytes, biases + (k - begin) * item + 2 * lower * bias_half
                    out, out_row, out_half, out_tile = e if q == 3 else t, wait_row, wait_half, wait_tile
                    above, below, low, high = 0, 0, -np.inf, np.inf
                    if finishes and direct:
                        out, out_row, out_half, out_tile = y + k * call.y_k, call.y_k, quarter * call.y_k, x_tile
                        out += pixel * item + 2 * lower * out_half + 2 * to_right * x_tile
                        low, high = call.low, call.high
                        if call.has_bias:
                            above, below = bias, bias + bias_half
                    elif finishes:
                        out = waiting
                    source, also = e if q == 4 or q == 5 else t, t if q == 5 else 0
                    if q == 0:
                        source = 0
                    soon, soon_step = next_weights(a, product_bytes), rows * item
                    multiply_pair(
                        k == begin, False, (0, 0, 0, 0), a, product_bytes, b, step, half, right, inner, row, sums_row,
                        inner + sums_made_bytes, item, sums_row, depth, pair_tiles, out, out_row, out_half, out_tile,
                        above, below, source, also, wait_row, wait_half, wait_tile, low, high, soon, soon_step,
                    )  # fmt: skip
                    if finishes and not direct:
                        for i in range(4):
                            k0 = g * call.Kg + k + (2 * lower + i // 2) * quarter
                            column, number = first + pixel + (2 * to_right + i % 2) * width, bias + i // 2 * bias_half
                            finish_tile(call, n, k0, rows, column, width, waiting + i * tile_bytes, wait_row, number)

    def task(call_address, index, worker):
        call = record_at(CALL_TWICE, call_address)
        all_tasks = call.quad_tasks + call.left_tasks  # what is left over evenly among the groups
        before = index * call.left_tasks // all_tasks
        if (index + 1) * call.left_tasks // all_tasks == before:
            neighbours(call, index - before, worker)
        else:
            left_over(call_address, before, worker)

    return task_loop(task)


@lru_cache(maxsize=1024)
def prepared(problem, threads, planned):
    numbers, tasks, _ = blocking(problem, threads, planned)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING + GROUPS)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, lone(problem), planned), tasks


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    filters, reasons = TILES * panel_rows(), []
    if problem.dtype != problem.accumulate:
        reasons.append(f"takes float32 and float64, not {problem.dtype}")
    if problem.R * problem.S != 1 or problem.padding != ((0, 0), (0, 0)):
        reasons.append(
            f"made for 1x1 without padding, the window is {problem.R}x{problem.S}, padding {problem.padding}"
        )
    if problem.Cg % 4 or problem.Kg % filters:
        reasons.append(
            f"quarters channels and filters: multiples of 4 channels and of {filters} filters per group needed, got "
            f"{problem.Cg} and {problem.Kg}"
        )
    if groups(problem) == 0:
        reasons.append(f"four tiles of output pixels needed, got {problem.P} x {problem.Q}")
    return reasons


def workspace_bytes(problem, device):
    kinds = {True, not makes_rows(problem)}  # planned or not
    return device.threads * max(blocking(problem, device.threads, planned)[-1] for planned in kinds)


def reads_in_place(problem, w):
    """Weights of which a call makes the sums by itself."""
    return makes_rows(problem) and strassen.reads_in_place(problem, w)


def packed_bytes(problem, device):
    return rows_bytes(problem) + panel_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, 1, 1) into `packed` (uint8, 64-byte aligned): rows of filters, and panels."""
    if rows_bytes(problem):
        blocked.pack(problem, device, w, packed)
    panels = packed[rows_bytes(problem) :]
    staged = aligned_words(device.threads * staged_bytes(problem.dtype.name) // 8)
    call = pack_call(problem_fields(problem), panels, w, panels, None, None, staged)
    tasks = problem.groups * problem.Kg // TILES // panel_rows()
    run_tasks(compiled(build_pack, problem.dtype.name), call, tasks, device.threads)


def predicted_seconds(problem, device):
    cycles = best_cycles(problem, device.threads, planned=True) * device.threads
    seconds = predicted(problem, device, cycles + problem.N * problem.groups * blocked.store_cycles(problem))
    return seconds + fetch_seconds(panel_bytes(problem), cycles, device.threads)


def pack_seconds(problem, device):
    """Making the weights' sums, and then fetching what has just been written, or making them by tasks."""
    if makes_rows(problem):
        alone, planned = (best_cycles(problem, device.threads, planned) for planned in (False, True))
        return (alone - planned) / CLOCK
    exchange = EXCHANGE_SECONDS if device.threads > 1 else 0.0
    return PACK_CYCLES * problem.K * problem.reduction / CLOCK / device.threads + exchange


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    fields, loop_, tasks = prepared(problem, device.threads, w.ndim == 1)
    return job_of(fields, loop_, tasks, device.threads, x, w, y, bias, residual)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as `reads_in_place` asks, into y; all in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
