"""Blocked convolution (implicit GEMM): matrix multiplication that reads both matrices where they lie, or nearly so.

    y[k, pixel] = sum over d = (c, r, s) of  w[k, d] * x[d, pixel]       filters times pixels, as im2col has it

    for every group of tiles, 24 pixels (3 vectors) each
        for every block of channels
            copy x into flat planes, unless the layer is 1x1 with stride 1     flat_planes.py
            for every 64 filters: for every tile: for every 4 filters:
                the micro-kernel, at step d:      x is loaded from  tile + offsets[d],  w from  filter + d

Why so: the micro-kernel wants 24 neighbouring pixels at every step, and a table of offsets may say where. In a 1x1
layer of stride 1 a pixel's channels lie H W numbers apart in x itself, and nothing is copied. Otherwise x becomes
planes in which output rows follow each other without a gap, once for all rows of the window; stride, dilation and
padding matter only there. No patch matrix is made, not even in the cache. Contiguous weights are taken where they lie
as well, so a single call packs none; a plan aligns them (weight_rows.py). The one to four pixels that are left of a map
of 7 x 7 or 14 x 14 are dot products (lone_pixels.py), and so are all of a map of up to nine (few_pixels.py). Up to 4
channels with long rows are few_channels.py's. Channels last go by way of NCHW (turned.py).

Measured on two Zen 5 cores with AVX-512, N = 1, where two micro-kernels reach 530 GFLOP/s: ResNet-50's 1x1 layers 430
to 500, strided 430 to 460, its strided 3x3 layers 390 to 420.
What was learned there:
- Copying pixels into panels first, however well, costs more than reading x in place saves, for any number of filters:
  256 -> 64 channels of 56 x 56 take 212 microseconds instead of 272. That a tile's rows do not fit the L1 cache hardly
  matters. Held to AVX2 the same layers take 0.7 to 0.95 of the time.
- With AVX2 it does matter: a tile of 4 filters reads x twice as often as one of 8. Blocks of channels that fill half
  the L1 cache, not 614 channels, take 0.80 to 0.94 of the time with 128 channels and more (two Zen 4 cores held to
  AVX2, 14 x 14 and 7 x 7), and where a channel is about a page or more, 28 x 28 and 56 x 56, those of 48 pages 0.78 to
  0.92, down to 64 channels: a core knows the places of 64 pages or so at once. With AVX-512 such blocks take 1.04.
  Blocks of three eighths of the L1 cache, not six, take 0.83 of the time under 7 x 7, 0.85 under dilated 3 x 3, and
  0.93 to 1.02 under other windows; with AVX-512 up to 1.07.
  Where channels lie whole pages apart, 32 x 32, 64 x 64, 96 x 96 or 160 x 160, all rows of a tile share one place of
  the L1 cache, 8 lines, of 48 x 48, 80 x 80 and 112 x 112 four places. Copied, those take 0.56 to 0.75 of the time and
  these 0.76 to 0.96; outputs that leave 64 filters at a time, not 8, for then a tile's x stays in the L1 cache. With
  AVX-512 copying took 1.1 to 1.5.
- Fetching the next tile of x while three panels of filters meet this one changes nothing where x lies in the L2 cache.
  From L3, eight images on two Zen 4 cores, 144 -> 24 channels of 56 x 56 take 0.70 to 0.86 of the time, held to AVX2
  0.52 to 0.83, 96 -> 24 there 0.57 to 0.90, 192 -> 32 of 28 x 28 0.92. The next group's runs, fetched while copied ones
  are multiplied, or lines of y before they are written: 1.0 to 1.4.
- Of 1x1 layers whose x and y come from memory outputs go past the cache. Where a vector is a line, as it is; two Zen 4
  cores with AVX-512: 64 -> 32 channels of 360 x 360 in 0.88 of the time, 64 -> 64 of 256 x 256 0.89, eight images of
  16 -> 96 of 112 x 112 0.70. Else they wait as runs in the L1 cache and leave by whole lines: held to AVX2 360 x 360
  takes 0.77 to 0.91 of the time, eight images of 32 -> 64 of 112 x 112 0.82 to 0.91, 64 -> 64 of 80 x 80 0.87. Outputs
  of 8 MB that the L3 cache holds: 0.53 to 0.76 of the time of a layer by itself with AVX-512, but 0.96 to 1.4 of the
  time of two layers, one after the other.
- The next runs of x, fetched while these are multiplied, held to AVX2: 64 -> 32 of 360 x 360 and eight images of
  32 -> 64 of 112 x 112 in 0.84 and 0.9 of the time, others in 0.99 to 1.1; of x from the L3 cache up to 1.4.
- Interleaved panels of weights are 0 to 2 % faster than rows, and packing them took 10 to 40 % of a call.
- Plans whose tiles had a lone pixel in them, one more multiply-add after 24, took 0.96 to 0.99 of the time on 7 x 7
  and 1.03 to 1.05 on 14 x 14, and their bits were not a single call's.
- On one core, plans run at 246 to 249 GFLOP/s of 272, ONNX Runtime at 246 to 252, the micro-kernel alone, in place, at
  264; two threads do 1.96 times that. A call that reads weights as they lie takes 2 to 4 % more than a plan, 5 to 8 %
  on 7 x 7, and 4 microseconds more of Python.
- Fetching the next tile's rows of weights, a line a step: 1.0 to 1.07 of the time, and once 1.9, since rows that lie a
  multiple of 2,048 bytes apart, 16 of them now, share a few places of the L1 cache. On two Zen 4 cores nothing.
- Where one tile has the map, each weight comes from L3 once, and short pieces of 8 rows come slowly: blocks of 512 to
  1,024 channels instead of 171 to 342 take 0.96 to 0.98 of the time on 7 x 7 (two Zen 4 cores, AVX-512).
- Tasks of 5 tiles, 14 of them, left one thread idle for 7 % of the time: runs of tiles must be cut evenly, and every
  possible cut is played through (blocked_cuts.py).
- Of maps of 128 x 128 or 256 x 256 all channels fall on the same places of a cache: of the lines of one tile the L2
  cache holds 16, and a tile's x was fetched from L3 again for every 8 filters, and its outputs left half written. From
  memory, 192 bytes of each of 64 channels come slowly too, whatever the map's size. In both cases x is copied, long
  runs of each channel, and 8 filters after the other are stored, long runs too: 64 -> 32 channels of 256 x 256 760 to
  900 instead of 1,050 microseconds, 32 -> 64 of 300 x 300 1,020 instead of 1,830, 32 images of 24 -> 144 of 56 x 56
  2,020 instead of 3,000 to 3,200, 1x1 of stride 2 to 128 x 128 725 to 770 instead of 830 to 1,290. Asking for the next
  channel's run while one is copied gave a sixth of that; an eighth of the L2 cache is enough for copies, half of it no
  better. Copying the next runs between the products of these was no faster. From the L3 cache x is better read in place
  (64 -> 32 of 208 x 208 420 instead of 500). What is left: 0.75 to 0.95 of PyTorch's speed with channels last, where a
  pixel's channels lie side by side.

Sums of one output are always made in the same order (blocks of channels, then c, r, s), so the split into tasks does
not change a bit. Tasks are runs of pixel tiles times ranges of filters.
Source: implicit GEMM as in Chetlur et al., cuDNN, 2014; loop order and blocking after Goto and van de Geijn 2008; the
table of offsets as in Dukhan, The Indirect Convolution Algorithm, 2019.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import from_dtype

from . import few_channels, few_pixels, target, turned, weight_rows
from .blocked_cuts import BLOCKING, LAST_CYCLES, LINE, OFFSET_BYTES, blocking, copies_runs, copy_cycles, pixels_cycles
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, activate, store_one_function
from .flat_planes import copy_planes_function, copy_runs_function, fill_offsets, put_word
from .job import job_of
from .lone_pixels import MOST as MOST_LONE
from .lone_pixels import gather_function, joins_a_tile, lone_pixels_function, tile_with_lone_function
from .microkernel import (
    CLOCK,
    VECTORS,
    multiplied_rows,
    multiply_function,
    panel_rows,
    past_cache_arithmetic,
    predicted,
    vector_type,
)
from .short_floats import memory_functions
from .threads import run_tasks, task_loop
from .vectors import Vector, broadcast, lanes, record_at, store_past_cache

passes = ("forward",)

FEW_WEIGHTS = 4_096  # which one thread packs while others would be called
CALL_BLOCKED = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


@inlined
def flat_rows(row, pixel, Q):
    """Do rows follow each other without a gap, so that all pixels are one row?"""
    return row == Q * pixel


def finish_tile_function(dtype_name):
    """A Numba function finish_tile(call, n, k0, filters, first, columns, partial, panel_row, biases): bias, residual,
    activation and store for sums that wait in `partial`, rows of panel_row bytes, wherever y lies.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    W = lanes(real)
    V = Vector(numba.from_dtype(np.dtype(real)), W)
    _, _, read_vector, write_vector = memory_functions(dtype_name)
    read_sum, _, read_sums, _ = memory_functions(np.dtype(real).name)
    store_one = store_one_function(dtype_name)

    @inlined
    def finish_tile(call, n, k0, filters, first, columns, partial, panel_row, biases):
        flat = flat_rows(call.y_p, call.y_q, call.Q) and flat_rows(call.residual_p, call.residual_q, call.Q)
        contiguous = flat and call.y_q == stored_item and (not call.has_residual or call.residual_q == stored_item)
        for i in range(filters):
            sums, k = partial + i * panel_row, k0 + i
            y, add = call.y + n * call.y_n + k * call.y_k, call.residual + n * call.residual_n + k * call.residual_k
            bias = read_sum(biases + i * item)
            done = 0
            if contiguous:
                done = columns // W * W
                for j in range(0, done, W):
                    total = read_sums(sums + j * item) + broadcast(V, bias)
                    if call.has_residual:
                        total += read_vector(add + (first + j) * stored_item)
                    total = activate(total, call.activation, call.low, call.high, call.slope)
                    write_vector(y + (first + j) * stored_item, total)
            for j in range(done, columns):
                store_one(call, n, k, first + j, read_sum(sums + j * item) + bias)

    return finish_tile


def copy_biases_function(dtype_name):
    """A Numba function copy_biases(call, k0, filters, biases): `filters` biases from filter k0 on, or zeros."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, zero = np.dtype(real).itemsize, real(0)
    read, _, _, _ = memory_functions(dtype_name)
    _, write_sum, _, _ = memory_functions(np.dtype(real).name)

    @inlined
    def copy_biases(call, k0, filters, biases):
        for i in range(filters):
            write_sum(biases + i * item, read(call.bias + (k0 + i) * call.bias_k) if call.has_bias else zero)

    return copy_biases


def copy_rows_function(dtype_name):
    """A Numba function copy_rows(to, to_row, x, x_row, rows, count): of each row, `count` neighbouring numbers."""
    read, write, _, _ = memory_functions("float64" if dtype_name == "float64" else "float32")
    item = 8 if dtype_name == "float64" else 4

    @inlined
    def copy_rows(to, to_row, x, x_row, rows, count):
        for i in range(rows):
            for j in range(count):
                write(to + i * to_row + j * item, read(x + i * x_row + j * item))

    return copy_rows


def copy_past_cache_function(real):
    """A Numba function copy_past_cache(to, to_row, x, x_row, rows, count): of each row `count` neighbouring numbers,
    whole lines of them past the cache.
    """
    name, item, W = np.dtype(real).name, np.dtype(real).itemsize, lanes(real)
    _, _, read_vector, _ = memory_functions(name)
    copy_rows = copy_rows_function(name)

    @inlined
    def copy_past_cache(to, to_row, x, x_row, rows, count):
        for i in range(rows):
            there, here = to + i * to_row, x + i * x_row
            before = min(-there % LINE // item, count)
            whole = before + (count - before) * item // LINE * LINE // item
            copy_rows(there, 0, here, 0, 1, before)
            for j in range(before, whole, W):
                store_past_cache(there, j, read_vector(here + j * item))
            copy_rows(there + whole * item, 0, here + whole * item, 0, 1, count - whole)

    return copy_past_cache


def task_function(dtype_name):
    """The task(call, index, worker) of a CALL_BLOCKED."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    same = item == stored_item
    W, rows = lanes(real), panel_rows()
    width, panel_row = VECTORS * W, VECTORS * W * item
    finish_tile, copy_biases = finish_tile_function(dtype_name), copy_biases_function(dtype_name)
    copy_rows = copy_rows_function(dtype_name)
    multiply = multiply_function(real, "row", indirect=True, halves=True)
    lines, arithmetic = target.vector_bytes() == LINE, past_cache_arithmetic(vector_type(real))
    multiply_past_cache = multiply_function(real, "row", indirect=True, arithmetic=arithmetic, halves=True)
    copy_past_cache = copy_past_cache_function(real)
    copy_planes, copy_runs = copy_planes_function(dtype_name), copy_runs_function(real)
    gather, lone_pixels = gather_function(real), lone_pixels_function(real)
    multiply_with_lone, joins = tile_with_lone_function(real), joins_a_tile()
    padding = weight_rows.padded_filters(1)

    def task(call_address, index, worker):
        call = record_at(CALL_BLOCKED, call_address)
        filter_task, rest = index % call.filter_tasks, index // call.filter_tasks
        tile_task, rest = rest % call.tile_tasks, rest // call.tile_tasks
        g, n = rest % call.groups, rest // call.groups

        pixels, taps = call.P * call.Q, call.R * call.S
        k = filter_task * call.filters  # in its group
        filters = min(call.filters, call.Kg - k)
        filters_padded = (filters + padding - 1) // padding * padding
        k0 = g * call.Kg + k
        padded = (call.Kg + padding - 1) // padding * padding
        packed = call.w_k == 0
        w_row = call.packed_row if packed else call.w_k
        planes = call.workspace + worker * call.worker_bytes
        partial, biases = planes + call.partial_at, planes + call.bias_at
        gathered, offsets, tail = planes + call.gathered_at, planes + call.offsets_at, planes + call.tail_at
        dots = planes + call.dots_at
        copy_biases(call, k0, filters, biases)

        point = taps == 1 and call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
        flat = point and same and call.x_w == item and flat_rows(call.x_h, call.x_w, call.W)
        by_runs = flat and call.by_runs
        in_place = flat and not by_runs
        plane_bytes = call.plane_bytes
        places = offsets + call.channel_block * taps * OFFSET_BYTES
        if not in_place or (pixels - call.first_pixel) % W:
            fill_offsets(call, offsets, plane_bytes, call.phases, call.channel_block, item, call.row_planes)
        if in_place:
            for c in range(call.channel_block):
                put_word(places, c, c * call.x_c)
        below = (call.R - 1) * call.dilation_h // call.stride_h
        direct = call.activation == CLAMP and same and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.residual_q == item and flat_rows(call.residual_p, call.residual_q, call.Q)

        where = call.y | call.y_n | call.y_k | call.first_pixel * item
        past_cache = call.streaming and direct and lines and where % LINE == 0
        by_way = call.streaming and direct and by_runs and not past_cache and where % item == 0
        runs, runs_row = planes + call.runs_at, call.plane_bytes

        x_image = call.x + n * call.x_n + g * call.Cg * call.x_c
        w_task = call.w + (g * padded + k if packed else k0) * w_row
        y = call.y + n * call.y_n + k0 * call.y_k
        residual = call.residual + n * call.residual_n + k0 * call.residual_k
        all_tiles = (pixels - call.first_pixel + width - 1) // width
        begin = call.first_pixel + all_tiles * tile_task // call.tile_tasks * width
        end = min(call.first_pixel + all_tiles * (tile_task + 1) // call.tile_tasks * width, pixels)
        for start in range(begin, end, call.group * width):
            stop = min(start + call.group * width, end)
            rest = (stop - start) % width
            whole = stop - rest if rest <= MOST_LONE else stop  # behind these pixels come lone ones
            joined = joins and whole + 1 == stop and whole > start  # the lone pixel to the tile before it
            there = start  # from this pixel on, x is copied; what lies before is read in place
            if in_place:  # but for a narrow tile whose last vector would end outside x
                there = whole if (whole - start) % W == 0 else start + (whole - start) // width * width
            row0 = there // call.Q
            copied = planes - (start if by_runs or call.row_planes else row0 * call.Q) * item  # where pixel 0 would lie
            for c0 in range(0, call.Cg, call.channel_block):
                channels = min(call.channel_block, call.Cg - c0)
                depth, x = channels * taps, x_image + c0 * call.x_c
                last = c0 + channels == call.Cg
                if by_runs:
                    copy_runs(planes, plane_bytes, x + start * item, call.x_c, channels, stop - start)
                elif not in_place or there < whole:
                    rows_read = (stop - 1) // call.Q - row0 + 1 + below
                    one_row = rows_read == 1 + below
                    column, behind = (there % call.Q, (stop - 1) % call.Q + 1) if one_row else (0, call.Q)
                    copy_planes(
                        call, copied + row0 * call.Q * item, plane_bytes, x, row0, call.phases, channels, rows_read,
                        column, behind, call.row_planes,
                    )  # fmt: skip
                if whole < stop and in_place:
                    gather(gathered, stop - whole, x + whole * item, places, depth)
                elif whole < stop:
                    gather(gathered, stop - whole, copied + whole * item, offsets, depth)
                x_next, next_lines = x_image + (c0 + channels) * call.x_c + start * item, stop - start
                if last:
                    x_next, next_lines = x_image + stop * item, min(call.group * width, end - stop)
                next_lines = next_lines * item // LINE + 1 if by_runs and call.streaming and next_lines > 0 else 0
                tiles = (stop - start + width - 1) // width
                w = w_task + c0 * taps * item
                f, some = 0, 0
                while f < filters:
                    weights, from_row_to_row, bias = w + f * w_row, w_row, biases + f * item
                    some = min(call.filter_block, filters - f)
                    if not packed and some > padding:
                        some -= some % padding
                    elif not packed and some < padding:  # behind them no whole tile of rows may be read
                        copy_rows(tail, depth * item, weights, w_row, some, depth)
                        weights, from_row_to_row = tail, depth * item
                    waiting = start  # pixels before it are outputs that wait at `runs`
                    for first in range(start, stop, width):
                        columns, tile = min(width, stop - first), (first - start) // width
                        lone = first == whole
                        done = last and direct and (columns == width or lone)
                        sums = partial + (tile * filters_padded + f) * panel_row
                        out, out_row = y + f * call.y_k + first * item if done else 0, call.y_k
                        if done and by_way:
                            out, out_row, waiting = runs + (first - start) * item, runs_row, first + columns
                        add = residual + f * call.residual_k + first * item if call.has_residual else 0
                        b, steps, rows_ahead = copied + first * item, offsets, 0
                        if first < there:
                            b, steps = x + first * item, places
                            rows_ahead = VECTORS * rows if f == 0 else 0  # with them comes the next tile of x
                        soon = b + panel_row
                        if by_runs:
                            line = f // padding * tiles + tile
                            soon, rows_ahead = x_next + line * LINE, rows if line < next_lines else 0
                        if joined and first + width == whole:
                            x_sums, x_add = sums + filters_padded * panel_row, add + width * item
                            multiply_with_lone(
                                some, weights, from_row_to_row, b, steps, depth, sums, panel_row, c0 == 0, out,
                                out_row, bias, add, call.residual_k, call.low, call.high, gathered, dots, x_sums,
                                out + width * item, x_add,
                            )  # fmt: skip
                        elif lone and not joined:
                            lone_pixels(
                                columns, some, weights, from_row_to_row, gathered, depth, sums, panel_row, c0 == 0,
                                out, out_row, bias, add, call.residual_k, call.low, call.high,
                            )  # fmt: skip
                        elif past_cache and done and not lone:
                            multiply_past_cache(
                                VECTORS, some, weights, from_row_to_row, rows * from_row_to_row, item, b, steps, depth,
                                sums, panel_row, c0 == 0, out, out_row, bias if call.has_bias else 0, add,
                                call.residual_k, call.low, call.high, soon, W * item, call.x_c, rows_ahead,
                            )  # fmt: skip
                        elif not lone:
                            multiply(
                                (columns + W - 1) // W, some, weights, from_row_to_row, rows * from_row_to_row, item,
                                b, steps, depth, sums, panel_row, c0 == 0, out, out_row, bias if call.has_bias else 0,
                                add, call.residual_k, call.low, call.high, soon, W * item, call.x_c,
                                rows_ahead,
                            )  # fmt: skip
                        if last and not done:
                            finish_tile(call, n, k0 + f, some, first, columns, sums, panel_row, bias)
                    if waiting > start:
                        to = y + f * call.y_k + start * item
                        copy_past_cache(to, call.y_k, runs, runs_row, some, waiting - start)
                    f += some

    return task


def build(dtype_name):
    return task_loop(task_function(dtype_name))


# The kernel.


@lru_cache(maxsize=1024)
def prepared(problem, threads, by_runs):
    """What every call for this problem shares: the packed sizes, the compiled loop and the number of tasks."""
    numbers, tasks = blocking(problem, threads, by_runs=by_runs)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING)}q", *numbers)
    return fields, compiled(build, problem.dtype.name), tasks


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    blockings = [blocking(problem, device.threads, by_runs=by_runs)[0] for by_runs in {False, copies_runs(problem)}]
    most = device.threads * max(numbers[BLOCKING.index("worker_bytes")] for numbers in blockings)
    if few_channels.serves(problem):
        most = max(most, few_channels.workspace_bytes(problem, device.threads))
    if few_pixels.serves(problem):
        most = max(most, few_pixels.workspace_bytes(problem, device.threads))
    if turned.serves(problem):
        most = max(most, turned.places(problem)[-1] + workspace_bytes(turned.in_nchw(problem), device))
    return most


def reads_in_place(problem, w):
    """Weights that the micro-kernel takes as they lie: contiguous, float32 or float64.

    Copying them for one call would cost more than it saves.
    """
    flags = w.flags
    return flags.c_contiguous and flags.aligned and takes_rows(problem)


@lru_cache(maxsize=1024)
def takes_rows(problem) -> bool:
    """Could contiguous weights of this problem be read as they lie?"""
    whole = problem.Kg % weight_rows.padded_filters(1) == 0
    return problem.dtype == problem.accumulate and (whole or not few_channels.serves(problem))


def packed_bytes(problem, device):
    return weight_rows.packed_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as rows of filters."""
    loop, call = compiled(weight_rows.build, problem.dtype.name), pack_call(problem_fields(problem), w, w, packed)
    threads = 1 if problem.K * problem.reduction <= FEW_WEIGHTS else device.threads
    run_tasks(loop, call, weight_rows.pack_tasks(problem), threads)


def predicted_seconds(problem, device):
    if few_pixels.serves(problem):
        return few_pixels.predicted_seconds(problem, device.threads)
    if turned.serves(problem):
        return predicted_seconds(turned.in_nchw(problem), device) + turned.seconds(problem, device)
    pixels, maps = problem.P * problem.Q, problem.N * problem.groups
    if few_channels.serves(problem):
        return few_channels.predicted_seconds(problem, device)
    multiply = multiplied_rows(problem.Kg) * pixels_cycles(pixels, problem.reduction, problem.accumulate)
    numbers, _ = blocking(problem, device.threads)
    repeated = numbers[BLOCKING.index("filter_tasks")]  # each copies x for itself
    copy = repeated * copy_cycles(problem)
    return predicted(problem, device, maps * (multiply + copy + store_cycles(problem)))


def pack_seconds(problem, device):
    """Weights that lie as `reads_in_place` asks are not packed for a single call; most are contiguous."""
    return 0.0 if takes_rows(problem) else seconds_to_pack(problem, device)


def seconds_to_pack(problem, device):
    """Weights of 16 bits cost little where each thread reads those that it packed (7 x 7 outputs in float16, two Zen 4
    cores: 0.08 nanoseconds a weight, of larger maps 1.4).
    """
    numbers, _ = blocking(problem, device.threads)
    own = problem.dtype != problem.accumulate and numbers[BLOCKING.index("tile_tasks")] == 1
    return (0.6 if own else 3.0) * problem.K * problem.reduction / CLOCK / device.threads


def store_cycles(problem) -> float:
    """What storing one group's outputs costs beyond the micro-kernel's own stores."""
    cycles = 0.25 if problem.dtype == problem.accumulate else 4.0
    return problem.Kg * problem.P * problem.Q * (cycles if problem.layout == "NCHW" else LAST_CYCLES)


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    if few_pixels.serves(problem) and few_pixels.takes(x, w, y, bias, residual):
        fields, loop, tasks = few_pixels.prepared(problem, device.threads)
        return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)
    if turned.serves(problem) and turned.takes(x, y, residual):
        return TurnedJob(problem, device)
    if few_channels.serves(problem) and few_channels.takes(y, residual):
        fields, loop, tasks = few_channels.prepared(problem, device.threads)
    else:
        by_runs = copies_runs(problem) and x.strides[2] == problem.W * x.itemsize and x.strides[3] == x.itemsize
        fields, loop, tasks = prepared(problem, device.threads, by_runs)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


@dataclass(slots=True)
class TurnedJob:
    """`run` in NCHW, between turning what comes and what leaves."""

    problem: Any
    device: Any

    def run(self, x, w, y, bias=None, residual=None, workspace=None):
        def in_nchw(problem, x, y, residual, workspace):
            run(problem, self.device, x, w, y, bias, residual, workspace)

        turned.run(self.problem, self.device, x, y, residual, workspace, in_nchw)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as `reads_in_place` asks, into y; all in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
