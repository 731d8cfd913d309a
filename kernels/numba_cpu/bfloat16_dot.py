"""Blocked convolution of bfloat16 by dot products of channel pairs, where the processor has AVX-512 BF16.

    y[k, pixel] = sum over d = (pair, r, s) of  w[k, d] . x[d, pixel]        both are words of two channels' numbers

    for every group of tiles, 48 pixels (3 vectors) each
        for every block of channel pairs
            copy x into words       1x1, pixels side by side: panels, else flat planes         channel_pairs.py
            for every 64 filters: for every tile: for every 8 filters:
                the micro-kernel with one instruction changed, which multiplies and adds both halves of 16 words

Why so: with a pair of channels as one number this is blocked.py's problem with half the channels in float32. Tiles,
offsets, lone pixels, cuts and predictions are taken from there; the sums are float32, and are rounded to bfloat16 once,
as they leave the registers. Unlike there x is always copied, as its channels must be paired; a 1x1 layer's words are
put in the order in which the micro-kernel reads them. Weights of a 1x1 layer with an even number of channels are pairs
as they lie, and a single call packs none.

Measured on two Zen 5 cores, N = 1, where both do 1,060 GFLOP/s in registers alone: plans of ResNet-50's 1x1 layers and
its strided 3x3 layers do 780 to 890 (64 -> 64 channels 650), 1.5 to 1.85 times as fast as in float32, by Strassen's and
Winograd's algorithms too. 3x3 layers without a stride are 1.3 to 1.65 times as fast by Winograd in float32 on
maps of 28 x 28 and larger, as fast on 14 x 14, and slower on 7 x 7.
What was learned there:
- Panels of as many tiles as fill half the L2 cache took 10 to 30 % longer for 64 and 128 filters than those that stay
  in the L1 cache. Without any copying 256 -> 64 channels of 56 x 56 take 107 microseconds, with it 125 to 135. Fetching
  x ahead, and panels that do not lie a multiple of 4,096 bytes apart, changed nothing.
- Making 3x3 weights into words ahead of a single call took a quarter to three quarters as long as the rest on maps of
  28 x 28 to 7 x 7 (256 channels of 14 x 14: 24 microseconds by itself, 108 in the call), since each thread then reads
  what the other one wrote. Each task makes the words it needs, 64 filters at a time, of 3x3 windows by a shuffle of two
  loads for 16: 254 microseconds instead of 396 (28 x 28 272 for 406, 7 x 7 300 for 427, 56 x 56 272 for 312).
"""

import struct
from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np
from numba import from_dtype

from . import blocked_cuts, target, weight_rows
from .blocked import copy_biases_function, finish_tile_function, flat_rows
from .call import CALL_DTYPE, pack_call, problem_fields
from .channel_pairs import (
    PAIRED,
    PANEL_ROW,
    SHORT_BYTES,
    TAPS,
    WORD_BYTES,
    build_rows,
    copy_pair_planes_function,
    copy_panels_function,
    fill_panel_offsets,
    fill_row_function,
    multiplies_pairs,
)
from .compilation import compiled
from .epilogue import CLAMP
from .filter_cuts import up
from .flat_planes import clear_function, fill_offsets, row_phases
from .job import job_of
from .lone_pixels import MOST as MOST_LONE
from .lone_pixels import gather_function, lone_pixels_function
from .microkernel import CALL_SECONDS, CLOCK, VECTORS, multiply_function, panel_rows
from .threads import run_tasks, task_loop, worker_span
from .vectors import lanes, record_at

passes = ("forward",)
FILTER_BLOCK = 64
MORE_CYCLES = 1.07  # than the same number of float32's multiply-adds takes: 0.8 of the peak, where those reach 0.9
NEAR_BYTES = 48e9  # a second, of x, w and y
OFFSET_BYTES, LINE = 8, 64
# For a word of the weights: made in the task that needs it, of 3x3 windows and of others; made ahead by all threads, of
# which each then reads what the others wrote.
WORD_CYCLES, LONG_WORD_CYCLES, AHEAD_CYCLES = 0.25, 0.9, 1.5

BLOCKING = (
    "filters", "tile_tasks", "filter_tasks", "pair_block", "group", "packed_row", "panels", "phases", "plane_bytes",
    "worker_bytes", "partial_at", "bias_at", "gathered_at", "offsets_at", "words_at", "words_row",
)  # fmt: skip
CALL_DOT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in BLOCKING]))


def task_function():
    """The task(call, index, worker) of a CALL_DOT."""
    W, rows = lanes(np.float32), panel_rows()
    width = VECTORS * W
    finish_tile, copy_biases = finish_tile_function("bfloat16"), copy_biases_function("bfloat16")
    multiply = multiply_function(np.float32, "row", indirect=True, arithmetic=PAIRED)
    gather, lone_pixels = gather_function(np.float32), lone_pixels_function(np.float32, PAIRED)
    copy_planes, copy_lone_plane = copy_pair_planes_function(True), copy_pair_planes_function(False)
    copy_panels, copy_lone_panel = copy_panels_function(True), copy_panels_function(False)
    fill_row, clear = fill_row_function(), clear_function(np.float32)
    padding = weight_rows.padded_filters(1)

    def task(call_address, index, worker):
        call = record_at(CALL_DOT, call_address)
        filter_task, rest = index % call.filter_tasks, index // call.filter_tasks
        tile_task, rest = rest % call.tile_tasks, rest // call.tile_tasks
        g, n = rest % call.groups, rest // call.groups

        pixels, taps, pairs = call.P * call.Q, call.R * call.S, (call.Cg + 1) // 2
        k = filter_task * call.filters  # in its group
        filters = min(call.filters, call.Kg - k)
        filters_padded = (filters + padding - 1) // padding * padding
        k0 = g * call.Kg + k
        padded = (call.Kg + padding - 1) // padding * padding
        packed = call.w_k == 0
        w_row, w_pair = (call.packed_row, taps * WORD_BYTES) if packed else (call.w_k, 2 * call.w_c)
        planes = call.workspace + worker * call.worker_bytes
        partial, biases = planes + call.partial_at, planes + call.bias_at
        gathered, offsets = planes + call.gathered_at, planes + call.offsets_at
        copy_biases(call, k0, filters, biases)

        plane_bytes, tile_bytes = call.plane_bytes, PANEL_ROW
        if call.panels:
            tile_bytes = call.pair_block * PANEL_ROW
            fill_panel_offsets(offsets, call.pair_block)
        else:
            fill_offsets(call, offsets, plane_bytes, call.phases, call.pair_block, WORD_BYTES, 0)
        below = (call.R - 1) * call.dilation_h // call.stride_h
        direct = call.activation == CLAMP and call.y_q == SHORT_BYTES and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.residual_q == SHORT_BYTES
            direct = direct and flat_rows(call.residual_p, call.residual_q, call.Q)

        x_image = call.x + n * call.x_n + g * call.Cg * call.x_c
        w_task = call.w + (g * padded + k if packed else k0) * w_row
        y = call.y + n * call.y_n + k0 * call.y_k
        residual = call.residual + n * call.residual_n + k0 * call.residual_k
        all_tiles = (pixels + width - 1) // width
        begin = all_tiles * tile_task // call.tile_tasks * width
        end = min(all_tiles * (tile_task + 1) // call.tile_tasks * width, pixels)
        for start in range(begin, end, call.group * width):
            stop = min(start + call.group * width, end)
            rest = stop % width
            whole = stop - rest if rest <= MOST_LONE else stop  # behind these pixels come lone ones
            row0 = start // call.Q
            tiles = planes if call.panels else planes + (start - row0 * call.Q) * WORD_BYTES
            for p0 in range(0, pairs, call.pair_block):
                some_pairs = min(call.pair_block, pairs - p0)
                full_pairs = min(some_pairs, call.Cg // 2 - p0)  # one pair less where the last channel has no other
                depth, x = some_pairs * taps, x_image + 2 * p0 * call.x_c
                x_lone = x + 2 * full_pairs * call.x_c
                last = p0 + some_pairs == pairs
                if call.panels:
                    here, behind = start * SHORT_BYTES, planes + full_pairs * PANEL_ROW
                    copy_panels(planes, tile_bytes, x + here, call.x_c, stop - start, full_pairs)
                    copy_lone_panel(behind, tile_bytes, x_lone + here, 0, stop - start, some_pairs - full_pairs)
                else:
                    rows_read = (stop - 1) // call.Q - row0 + 1 + below
                    one_row = rows_read == 1 + below
                    column, behind = (start % call.Q, (stop - 1) % call.Q + 1) if one_row else (0, call.Q)
                    copy_planes(
                        call, planes, plane_bytes, x, row0, call.phases, full_pairs, rows_read, column, behind, 0
                    )
                    if full_pairs < some_pairs:
                        lone = planes + full_pairs * call.phases * call.S * plane_bytes
                        copy_lone_plane(
                            call, lone, plane_bytes, x_lone, row0, call.phases, 1, rows_read, column, behind, 0
                        )
                if whole < stop:
                    gather(gathered, stop - whole, tiles + (whole - start) // width * tile_bytes, offsets, depth)
                w = w_task + p0 * w_pair
                for f in range(0, filters, FILTER_BLOCK):
                    some, weights, bias = min(FILTER_BLOCK, filters - f), w + f * w_row, biases + f * WORD_BYTES
                    row = w_row
                    if call.words_at:
                        words, row = planes + call.words_at, call.words_row
                        for i in range(some):
                            fill_row(call, words + i * row, weights + i * w_row, full_pairs, some_pairs)
                        for i in range(some, (some + padding - 1) // padding * padding):
                            clear(words + i * row, depth)
                        weights = words
                    for first in range(start, stop, width):
                        columns, tile = min(width, stop - first), (first - start) // width
                        lone = first == whole
                        done = last and direct and (columns == width or lone)
                        sums = partial + (tile * filters_padded + f) * PANEL_ROW
                        out = y + f * call.y_k + first * SHORT_BYTES if done else 0
                        add = residual + f * call.residual_k + first * SHORT_BYTES if call.has_residual else 0
                        if lone:
                            lone_pixels(
                                columns, some, weights, row, gathered, depth, sums, PANEL_ROW, p0 == 0, out, call.y_k,
                                bias, add, call.residual_k, call.low, call.high,
                            )  # fmt: skip
                        else:
                            multiply(
                                (columns + W - 1) // W, some, weights, row, rows * row, WORD_BYTES,
                                tiles + tile * tile_bytes, offsets, depth, sums, PANEL_ROW, p0 == 0, out, call.y_k,
                                bias, add, call.residual_k, call.low, call.high,
                            )  # fmt: skip
                        if last and not done:
                            finish_tile(call, n, k0 + f, some, first, columns, sums, PANEL_ROW, bias)

    return task


def build():
    return task_loop(task_function())


# How a problem is cut.


@lru_cache(maxsize=1024)
def in_words(problem):
    """The same with a pair of channels as one float32 number."""
    return replace(problem, C=problem.groups * pairs_of(problem), dtype=np.dtype(np.float32))


def pairs_of(problem) -> int:
    return (problem.Cg + 1) // 2


@lru_cache(maxsize=1024)
def flattened(problem):
    """A point with all its pixels in one row."""
    return replace(problem, H=1, W=problem.H * problem.W)


def is_point(problem) -> bool:
    """Is it a 1x1 layer of stride 1?"""
    return problem.R * problem.S == 1 and problem.stride == (1, 1) and problem.padding == ((0, 0), (0, 0))


def pair_block(words, panels) -> int:
    """Pairs whose words, for one tile, fill half the L1 cache, all blocks about equal; of planes blocked.py's."""
    if not panels:
        return blocked_cuts.channel_block(words)
    blocks = -(-words.Cg // (target.cache_bytes(1) // 2 // PANEL_ROW))
    return -(-words.Cg // blocks)


def tiles_at_once(problem, panels, filters, tile_tasks) -> int:
    """The group: tiles of which x's words stay in the caches, and, if their sums must wait, these too."""
    words = in_words(problem)
    width, block = VECTORS * lanes(np.float32), pair_block(words, panels)
    group = -(-problem.P * problem.Q // (width * tile_tasks)) + 1
    fitting = target.cache_bytes(2) // 2 // (filters * PANEL_ROW)
    group = max(1, min(group, fitting) if block < words.Cg else group)
    most = target.cache_bytes(1) if panels else target.cache_bytes(2) // 2
    while group > 1 and copied_bytes(problem, panels, group) > most:
        group -= 1
    return group


def copied_bytes(problem, panels, group) -> int:
    """Of x's words for so many tiles."""
    words, width = in_words(problem), VECTORS * lanes(np.float32)
    block = pair_block(words, panels)
    if panels:
        return group * block * PANEL_ROW
    return block * row_phases(problem) * problem.S * blocked_cuts.plane_bytes(words, group * width) + PANEL_ROW


def filters_in_task(problem, filter_tasks) -> int:
    return up(-(-problem.Kg // filter_tasks), weight_rows.padded_filters(1))


def times_made(problem, tile_tasks, filter_tasks) -> int:
    """How often each weight's word is made, if tasks make the words they need."""
    group = tiles_at_once(problem, False, filters_in_task(problem, filter_tasks), tile_tasks)
    tiles = -(-problem.P * problem.Q // (VECTORS * lanes(np.float32)))
    return tile_tasks * -(-tiles // tile_tasks // group)


def making_cycles(problem, tile_tasks, filter_tasks) -> float:
    """For all words of a group's weights, as often as they are made."""
    a_word = WORD_CYCLES if problem.R * problem.S == TAPS else LONG_WORD_CYCLES
    made = weight_rows.padded_filters(problem.Kg) * in_words(problem).reduction
    return a_word * made * times_made(problem, tile_tasks, filter_tasks)


@lru_cache(maxsize=1024)
def cut(problem, threads, makes_words):
    """(runs of tiles, ranges of filters)"""
    words, pixels, maps = in_words(problem), problem.P * problem.Q, problem.N * problem.groups

    def cycles(cut):
        making = maps * making_cycles(problem, *cut) / threads if makes_words else 0
        return blocked_cuts.cut_cycles(words, threads, pixels, *cut) + making

    return min(blocked_cuts.possible_cuts(words, threads, pixels), key=cycles)


@lru_cache(maxsize=1024)
def blocking(problem, threads, panels, makes_words=False):
    """The numbers of BLOCKING, and the number of tasks. panels: x is copied into panels, not into planes. makes_words:
    whether tasks make their weights' words.
    """
    words, padding = in_words(problem), weight_rows.padded_filters(1)
    tile_tasks, filter_tasks = cut(problem, threads, makes_words)
    filters = filters_in_task(problem, filter_tasks)
    filter_tasks = -(-problem.Kg // filters)

    block, phases = pair_block(words, panels), row_phases(problem)
    depth, group = block * problem.R * problem.S, tiles_at_once(problem, panels, filters, tile_tasks)
    partial_at = up(copied_bytes(problem, panels, group), LINE)
    bias_at = partial_at + group * filters * PANEL_ROW
    gathered_at = up(bias_at + (filters + padding) * WORD_BYTES, LINE)
    offsets_at = gathered_at + up(MOST_LONE * depth * WORD_BYTES, LINE)
    words_at, words_row = up(offsets_at + depth * OFFSET_BYTES, LINE), up(depth * WORD_BYTES, LINE)
    words_row += 0 if words_row % 1024 else LINE  # or the rows of a tile would share a few places of the L1 cache
    worker_bytes = worker_span(words_at + (min(filters, FILTER_BLOCK) * words_row if makes_words else 0))
    numbers = (
        filters, tile_tasks, filter_tasks, block, group, weight_rows.row_bytes(words), panels, phases,
        blocked_cuts.plane_bytes(words, group * VECTORS * lanes(np.float32)), worker_bytes, partial_at, bias_at,
        gathered_at, offsets_at, words_at if makes_words else 0, words_row,
    )  # fmt: skip
    return numbers, problem.N * problem.groups * tile_tasks * filter_tasks


@lru_cache(maxsize=1024)
def prepared(problem, threads, panels, makes_words):
    """What every call for this problem shares: the packed sizes, the compiled loop and the number of tasks."""
    numbers, tasks = blocking(problem, threads, panels, makes_words)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING)}q", *numbers)
    return fields, compiled(build), tasks


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    reasons = []
    if problem.dtype.name != "bfloat16":
        reasons.append(f"multiplies bfloat16 only, x is {problem.dtype}")
    if not multiplies_pairs():
        reasons.append("needs a processor with AVX-512 BF16, which Numba does not compile for here")
    return reasons


def workspace_bytes(problem, device):
    ways = [(problem, False), (flattened(problem), True)] if is_point(problem) else [(problem, False)]
    at = BLOCKING.index("worker_bytes")
    return device.threads * max(blocking(one, device.threads, panels)[0][at] for one, panels in ways)


def one_call_bytes(problem, device):
    """Scratch memory of a `run` whose tasks make the words of their weights; None where these are made ahead, for all
    tasks, or are words as they lie.
    """
    if takes_rows(problem):
        return None
    ahead = AHEAD_CYCLES * weight_rows.padded_filters(problem.Kg) * in_words(problem).reduction
    if making_cycles(problem, *cut(problem, device.threads, True)) > ahead:
        return None
    numbers, _ = blocking(problem, device.threads, False, True)
    return device.threads * numbers[BLOCKING.index("worker_bytes")]


def reads_in_place(problem, w):
    """A 1x1 layer's contiguous weights whose pairs are words as they lie, whole tiles of filters."""
    flags = w.flags
    return flags.c_contiguous and flags.aligned and takes_rows(problem)


@lru_cache(maxsize=1024)
def takes_rows(problem) -> bool:
    whole = problem.Kg % weight_rows.padded_filters(1) == 0 and problem.Cg % 2 == 0
    return whole and problem.R * problem.S == 1


def packed_bytes(problem, device):
    return weight_rows.packed_bytes(in_words(problem))


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as rows of words."""
    rows = weight_rows.packed_rows(in_words(problem), packed)
    loop = compiled(build_rows, weight_rows.padded_filters(1))
    call = pack_call(problem_fields(problem), packed, w, rows, None, None, None)
    run_tasks(loop, call, rows.shape[1], device.threads)


def predicted_seconds(problem, device):
    """With weights packed or not: packing takes a third of a cycle a number, less than what predictions of the kernels
    it competes with leave out of theirs for 16-bit numbers.
    """
    words, maps = in_words(problem), problem.N * problem.groups
    filters = weight_rows.padded_filters(problem.Kg)
    multiply = filters * blocked_cuts.pixels_cycles(problem.P * problem.Q, words.reduction, np.float32) * MORE_CYCLES
    numbers, tasks = blocking(problem, device.threads, False)
    copy = numbers[BLOCKING.index("filter_tasks")] * copy_cycles(problem)  # each copies x for itself
    cycles = maps * (multiply + copy + store_cycles(problem)) + tasks * blocked_cuts.CYCLES_PER_TASK
    sizes = (prod(shape) for shape in problem.operand_shapes)
    return CALL_SECONDS + cycles / CLOCK / device.threads + sum(sizes) * SHORT_BYTES / NEAR_BYTES


def copy_cycles(problem) -> float:
    """Copying one group's x: panels, planes by vectors within a row, or by words."""
    words = in_words(problem)
    if problem.layout == "NCHW" and is_point(problem):
        return 0.15 * words.Cg * problem.P * problem.Q
    rows = words.Cg * problem.S * row_phases(problem) * problem.P
    if problem.layout != "NCHW" or problem.stride[1] > 2:
        return 2.0 * rows * problem.Q
    return 6.0 * rows * -(-problem.Q // lanes(np.float32))


def store_cycles(problem) -> float:
    return problem.Kg * problem.P * problem.Q * (0.25 if problem.layout == "NCHW" else 4.0)


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    arrays = (x, y) if residual is None else (x, y, residual)
    panels = is_point(problem) and x.strides[3] == SHORT_BYTES and all(map(is_one_row, arrays))
    if panels:
        problem = flattened(problem)
        x, y, residual = as_one_row(x), as_one_row(y), None if residual is None else as_one_row(residual)
    makes_words = w.ndim == 4 and not takes_rows(problem)
    fields, loop, tasks = prepared(problem, device.threads, panels, makes_words)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w into y; all in logical order. w: packed, as `reads_in_place` asks, or, where
    `one_call_bytes` says how large the workspace then is, any.
    """
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)


def is_one_row(array) -> bool:
    """Do an array's rows follow each other in memory?"""
    return array.strides[2] == array.shape[3] * array.strides[3]


def as_one_row(array):
    """The same memory as (N, C, 1, H * W)."""
    N, C, H, W = array.shape
    return array.reshape(N, C, 1, H * W)
