"""Input gradient of a strided convolution: all phases of the stride from one copy of grad_y, stored side by side.

    grad_x[c, i t + f] = sum over k and the taps r that phase f meets of  w[k, c, r] * grad_y[k, i + shift(f, r)]

(convlib/input_grad_phases.py derives it.) As forward problems of their own the phases copy grad_y into panels once
each and write every second number of each line, which is then read, changed and written once per phase. Here

    a task owns a few tiles of 48 pixels (3 vectors) of the coarse grid (n, i, j), i < H / t, and a block of channels
    for every block of filters k                          a panel, 48 pixels x about 192 filters, fits the L1 cache
        copy grad_y into one panel for each shift         3x3 with stride 2 has 9 taps but 4 shifts, 1x1 one
        for 64 channels: for every tile: for every phase: for every tap:
            the micro-kernel                              rows: channels; columns: pixels; depth: filters
    for every tile: the sums of phases that are neighbours in a row of grad_x, interleaved, and zeros where no tap
    meets a phase: whole lines, written once

The coarse grid runs on from image to image, so a batch of 7 x 7 maps fills its tiles. Where a group has few channels
(three, for the first layer of a network) those of all phases are the rows of one tile, and a shift takes the place of
a tap: 12 rows and 16 shifts of a 7x7 window with stride 2, some of whose weights are zero, instead of 8 rows and 49
taps.

A 1x1 of stride 1 has one phase and is a forward problem too; here its weights, which come with the filters of that
problem side by side, are packed as they lie, and whole tiles are stored by the micro-kernel.

Each sum is made by one task in the order of blocks, taps and filters, whatever the number of threads.

Measured on two Zen 5 cores with AVX-512, eight images of ResNet-50's layers, where two micro-kernels reach 530 GFLOP/s:
3x3 with stride 2 430 to 475, 1x1 with stride 2 350 to 440 (three of four numbers stored are zeros), 1x1 400 to 495. As
phases the former were 156 to 283. What taught most:
- Packing 9 MB of weights panel by panel, 32 bytes of each filter at a time, took 2.2 ms when no cache held them and 0.5
  when one did; filter by filter it takes 0.4 and 0.3. A benchmark that packs again and again does not see it.
- Copying grad_y filter by filter, 1 to 2 KB at a time, instead of a cache line of each filter in turn made all 1x1
  layers 5 to 12 % faster; fetching those lines ahead while multiplying did not.
- The 7x7 first layer: phases 24 ms, a panel for each of 16 shifts 11.8, a slab that all shifts read 6.9.
Source: the phases are the polyphase decomposition of Vaidyanathan, Multirate Systems and Filter Banks, 1993, section
4.3; loop order and blocking after Goto and van de Geijn 2008.
"""

import math
import struct
from dataclasses import replace
from functools import lru_cache
from math import gcd

import numba
import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .microkernel import (
    VECTORS,
    multiply_cycles,
    multiply_function,
    panel_rows,
    predicted,
    tile_function,
    tile_rows,
    vector_type,
)
from .short_floats import memory_functions
from .threads import LINE, run_tasks, two_round_loop, worker_span
from .tracing import (
    Lanes,
    constant,
    interleave,
    lanes_between,
    load,
    load_lanes,
    load_strided,
    loop,
    select,
    store,
    store_lanes,
    traced,
    when,
)
from .vectors import Vector, broadcast, lanes, record_at
from .weight_rows import padded_filters

passes = ("input_grad",)

CHANNEL_BLOCK = 64  # channels whose weights stay in the L2 cache while all tiles of a task are multiplied with them
TASKS_PER_THREAD = 8
PACKED = 16  # filters that one task packs
MASK_CYCLES = 600  # for each vector of pixels of a group: what it costs however few channels and filters there are
GROUP_BYTES = 1 << 17  # panels of a task, at most, if they are of more than one tile
SLAB_FILTERS = 128  # copied at a time, where phases are stacked
DEEPEST = {16: 128, 32: 512}  # filters multiplied at a time where one panel is all, by registers
DEEPEST_FAR = 128  # where weights are read in place and filters lie FAR bytes apart
PACKED_BYTES, PACKED_FAR_BYTES = 128 << 10, 2 << 20  # weights of 1x1 that are no more are packed: it costs little
FAR = 4096  # bytes from filter to filter, from which on they fall into few sets of the caches

CUTS = (
    "coarse_h", "coarse_w", "pitch", "plane", "low_h", "low_w", "shifts_h", "shifts_w", "step_h", "step_w", "stacked",
    "weight_rows", "weight_panels", "depth_block", "channel_block", "channel_tasks", "group", "sums_at", "zeros_at",
    "workers_at", "worker_bytes",
)  # fmt: skip
FOUND = ("weights_in_place",)  # by looking at the array
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS + FOUND]))


# Which taps a phase meets.


@inlined
def first_tap(phase, before, dilation, stride, window):
    """The first tap that meets the inputs of this phase; `window` where none does."""
    tap = 0
    while tap < window and (phase + before - tap * dilation) % stride != 0:
        tap += 1
    return tap


# Copying grad_y.


def copy_panels_function(dtype_name):
    """A Numba function: `count` filters of the pixels first .. end - 1, for every tile a panel for each shift."""
    real = np.dtype(dtype_name).type
    lanes_type, W, item = vector_type(real), lanes(real), np.dtype(real).itemsize
    width, panel_row, zero = VECTORS * W, VECTORS * W * item, real(0)
    V = Vector(numba.from_dtype(np.dtype(real)), W)
    read, write, _, write_vector = memory_functions(dtype_name)

    @traced(types.void)
    def copy_piece(to, step, grad, grad_step, count, first, end, merge):
        """Lanes first .. end - 1 of a vector, for each of `count` filters; the others are zero or, to merge, stay."""
        mask = lanes_between(lanes_type, constant(grad, 0), first, end)

        def put(k):
            store(to + k * step, load_lanes(lanes_type, grad + k * grad_step, mask))

        def add(k):
            numbers = load_lanes(lanes_type, grad + k * grad_step, mask)
            store(to + k * step, select(mask, numbers, load(lanes_type, to + k * step)))

        with when(merge.equals(0)):
            loop(count, put)
        with when(merge.differs(0)):
            loop(count, add)

    @inlined
    def copy_one_by_one(to, step, grad, grad_step, pixel_step, count, first, end, merge):
        for k in range(count):
            if not merge:
                write_vector(to + k * step, broadcast(V, zero))
            for lane in range(first, end):
                write(to + k * step + lane * item, read(grad + k * grad_step + lane * pixel_step))

    @inlined
    def copy_vector(call, to, step, grad, pixel, end, shift_h, shift_w, count):
        """The vector that begins with `pixel`: in pieces, each of one row of grad_y."""
        lane, wanted = 0, min(W, end - pixel)
        row, j = pixel // call.coarse_w, pixel % call.coarse_w
        while lane < wanted:
            n, p, q = row // call.coarse_h, row % call.coarse_h + shift_h, j + shift_w
            pixels = min(call.coarse_w - j, wanted - lane)
            first, behind = max(-q, 0), min(call.Q - q, pixels)
            if p < 0 or p >= call.P or behind < first:
                first, behind = 0, 0
            here = grad + n * call.x_n + p * call.x_h + (q - lane) * call.x_w
            if call.x_w == item:
                copy_piece(to, step, here, call.x_c, count, lane + first, lane + behind, 1 if lane > 0 else 0)
            else:
                copy_one_by_one(to, step, here, call.x_c, call.x_w, count, lane + first, lane + behind, lane > 0)
            lane, row, j = lane + pixels, row + 1, 0

    @traced(types.void)
    def copy_run(panels, first, end, grad, grad_step, count):
        """Neighbouring pixels of `count` filters into lanes first .. end - 1 of the panels; filter after filter, so
        that long pieces of grad_y are read at once. Of the vector with lane `first` the lanes before it stay.
        """
        start, behind = first // W, (end + W - 1) // W
        begins = lanes_between(lanes_type, start * W, first, end)
        ends = lanes_between(lanes_type, (behind - 1) * W, first, end)
        source = grad - first * item

        def place(vector):
            return panels + vector // VECTORS * (count * panel_row) + vector % VECTORS * lanes_type.bytes

        def filter_(k):
            here, row = source + k * grad_step, k * panel_row
            to = place(start) + row
            numbers = load_lanes(lanes_type, here + start * lanes_type.bytes, begins)
            store(to, select(begins, numbers, load(lanes_type, to)))

            def whole(i):
                vector = start + 1 + i
                store(place(vector) + row, load(lanes_type, here + vector * lanes_type.bytes))

            loop(behind - start - 2, whole)
            with when(start + 1 < behind):
                numbers = load_lanes(lanes_type, here + (behind - 1) * lanes_type.bytes, ends)
                store(place(behind - 1) + row, numbers)

        loop(count, filter_)

    @inlined
    def copy_flat(call, panels, grad, first, end, count):
        """Where the coarse grid is grad_y's, and each image's rows are one."""
        image = call.P * call.Q
        pixel = first
        while pixel < end:
            run = min(image - pixel % image, end - pixel)
            here = grad + pixel // image * call.x_n + pixel % image * item
            copy_run(panels, pixel - first, pixel - first + run, here, call.x_c, count)
            pixel += run

    @inlined
    def lies_flat(call):
        alone = call.shifts_h * call.shifts_w == 1 and call.low_h == 0 and call.low_w == 0
        alike = call.coarse_h == call.P and call.coarse_w == call.Q
        return alone and alike and call.x_w == item and call.x_h == call.Q * item

    @inlined
    def copy_panels(call, panels, grad, first, end, count):
        if lies_flat(call):
            copy_flat(call, panels, grad, first, end, count)
            return
        panel_bytes = count * panel_row
        for start in range(first, end, width):
            for shift_h in range(call.shifts_h):
                for shift_w in range(call.shifts_w):
                    for pixel in range(start, min(start + width, end), W):
                        copy_vector(
                            call, panels + (pixel - start) * item, panel_row, grad, pixel, end,
                            shift_h + call.low_h, shift_w + call.low_w, count,
                        )  # fmt: skip
                    panels += panel_bytes

    @inlined
    def copy_slab(call, slab, grad, first_row, rows, count):
        """The rows of grad_y that `rows` rows of the coarse grid read, with zeros around them."""
        n, i = first_row // call.coarse_h, first_row % call.coarse_h
        for row in range(rows + call.shifts_h - 1):
            p = i + row + call.low_h
            for j in range(0, call.pitch, W):
                q = j + call.low_w
                first, behind = max(-q, 0), min(call.Q - q, W)
                if p < 0 or p >= call.P or behind < first:
                    first, behind = 0, 0
                to, here = slab + (row * call.pitch + j) * item, grad + n * call.x_n + p * call.x_h + q * call.x_w
                if call.x_w == item:
                    copy_piece(to, call.plane * item, here, call.x_c, count, first, behind, 0)
                else:
                    copy_one_by_one(to, call.plane * item, here, call.x_c, call.x_w, count, first, behind, False)

    return copy_panels, copy_slab, lies_flat


# Storing the sums.


def finish_function(dtype_name):
    """A Numba function: the sums of one tile, of all phases, to grad_x."""
    real = np.dtype(dtype_name).type
    V, W, item = vector_type(real), lanes(real), np.dtype(real).itemsize
    panel_row = VECTORS * W * item
    read, write, _, _ = memory_functions(dtype_name)

    @traced(types.void)
    def store_one(to, to_step, sums, sums_step, count, first, end):
        mask = lanes_between(V, constant(to, 0), first, end)
        loop(count, lambda c: store_lanes(to + c * to_step, load(V, sums + c * sums_step), mask))

    @traced(types.void)
    def store_two(to, to_step, even, even_step, odd, odd_step, count, first, end):
        """Lanes first .. end - 1 of the two vectors interleaved."""
        masks = [lanes_between(V, constant(to, W * i), first, end) for i in (0, 1)]

        def channel(c):
            pairs = interleave([load(V, even + c * even_step), load(V, odd + c * odd_step)])
            for i, vector in enumerate(pairs):
                store_lanes(to + c * to_step + V.bytes * i, vector, masks[i])

        loop(count, channel)

    @traced(types.void)
    def store_two_whole(to, to_step, even, even_step, odd, odd_step, count):
        def channel(c):
            pairs = interleave([load(V, even + c * even_step), load(V, odd + c * odd_step)])
            for i, vector in enumerate(pairs):
                store(to + c * to_step + V.bytes * i, vector)

        loop(count, channel)

    @inlined
    def store_one_by_one(call, to, sums, sums_step, count, lane, pixels):
        for c in range(count):
            for i in range(pixels):
                write(to + c * call.y_k + i * call.stride_w * call.y_q, read(sums + c * sums_step + (lane + i) * item))

    @inlined
    def of_phase(call, sums, fh, fw):
        """Where the sums of a phase lie, and how far apart its channels': zeros, where it meets no tap."""
        meets = first_tap(fh, call.top, call.dilation_h, call.stride_h, call.R) < call.R
        meets &= first_tap(fw, call.left, call.dilation_w, call.stride_w, call.S) < call.S
        if meets:
            return sums + (fh * call.stride_w + fw) * call.channel_block * panel_row, panel_row
        return -1, 0

    @inlined
    def finish_row(call, to, sums, zeros, fh, j, lane, pixels, count):
        """One phase of the rows, of one piece of a row. to: element (fh, j stride) of the first channel's plane."""
        outputs, left = min(pixels * call.stride_w, call.W - j * call.stride_w), lane * call.stride_w
        fast = call.y_q == item and call.stride_w <= 2
        even, even_step = of_phase(call, sums, fh, 0)
        if fast and call.stride_w == 1:
            even = zeros if even < 0 else even
            store_one(to - left * item, call.y_k, even, even_step, count, left, left + outputs)
        elif fast:
            odd, odd_step = of_phase(call, sums, fh, 1)
            even, odd = zeros if even < 0 else even, zeros if odd < 0 else odd
            if outputs == 2 * W:  # with few channels masks take longer than the stores
                store_two_whole(to, call.y_k, even, even_step, odd, odd_step, count)
            else:
                store_two(to - left * item, call.y_k, even, even_step, odd, odd_step, count, left, left + outputs)
        else:
            for fw in range(min(call.stride_w, outputs)):
                here, step = of_phase(call, sums, fh, fw)
                here = zeros if here < 0 else here
                some = (outputs - fw + call.stride_w - 1) // call.stride_w
                store_one_by_one(call, to + fw * call.y_q, here, step, count, lane, some)

    @inlined
    def finish_tile(call, grad_x, sums, zeros, first, end, row0, count):
        """sums: of phase 0, channel 0. grad_x: of the task's first channel. row0: the row where pixel 0 lies."""
        for pixel in range(first, end, W):
            vector = sums + (pixel - first) * item
            lane, wanted = 0, min(W, end - pixel)
            row, j = row0 + pixel // call.pitch, pixel % call.pitch
            while lane < wanted:
                n, h = row // call.coarse_h, row % call.coarse_h * call.stride_h
                some, pixels = min(call.pitch - j, wanted - lane), min(call.coarse_w - j, wanted - lane)
                for fh in range(min(call.stride_h, call.H - h) if pixels > 0 else 0):
                    to = grad_x + n * call.y_n + (h + fh) * call.y_p + j * call.stride_w * call.y_q
                    finish_row(call, to, vector, zeros, fh, j, lane, pixels, count)
                lane, row, j = lane + some, row + 1, 0

    return finish_tile


# The product.


def build_tiled(dtype_name):
    """Task: a few tiles of pixels and a block of channels of one group. call.workspace: the packed weights."""
    real = np.dtype(dtype_name).type
    W, item, rows = lanes(real), np.dtype(real).itemsize, panel_rows()
    width, panel_row = VECTORS * W, VECTORS * W * item
    fetched = CHANNEL_BLOCK // rows * (LINE // 2)  # bytes of each channel, while a block is multiplied
    V, zero = Vector(numba.from_dtype(np.dtype(real)), W), real(0)
    _, _, _, write_vector = memory_functions(dtype_name)
    multiply = multiply_function(real, "row")
    copy_panels, _, lies_flat = copy_panels_function(dtype_name)
    finish_tile = finish_function(dtype_name)

    @inlined
    def multiply_phases(call, vectors, count, w, panels, panel_step, depth, sums, fresh, out, zeros, soon, soon_step):
        """w: of the first tap. panel_step: from filter to filter. out: where to put what is finished then, or 0.
        soon: what is needed next, soon_step bytes apart, or 0: this is then fetched instead of weights.
        """
        phase_bytes = call.channel_block * panel_row
        w_panel, w_step = rows * depth * item, rows * item
        ahead, ahead_step = 0, call.x_c
        if call.weights_in_place:
            w_panel, w_step = rows * item, call.w_k
            ahead, ahead_step = w + LINE, call.w_k
        for fh in range(call.stride_h):
            first_r = first_tap(fh, call.top, call.dilation_h, call.stride_h, call.R)
            for fw in range(call.stride_w):
                first_s, first = first_tap(fw, call.left, call.dilation_w, call.stride_w, call.S), fresh
                for r in range(first_r, call.R, call.step_h):
                    shift_h = (fh + call.top - r * call.dilation_h) // call.stride_h - call.low_h
                    for s in range(first_s, call.S, call.step_w):
                        shift_w = (fw + call.left - s * call.dilation_w) // call.stride_w - call.low_w
                        panel = panels + (shift_h * call.shifts_w + shift_w) * depth * panel_row
                        if soon != 0:
                            ahead = soon + (shift_h + call.low_h) * call.x_h if shift_w == 0 else 0
                            ahead_step = soon_step
                        multiply(
                            vectors, count, w, item, w_panel, w_step, panel, panel_step, depth, sums,
                            panel_row, first, out, call.y_k, zeros, 0, 0, -np.inf, np.inf, ahead, LINE // 2, ahead_step,
                        )  # fmt: skip
                        w += call.weight_rows * depth * item
                        first = False
                sums += phase_bytes

    @inlined
    def place(call, address, step_n, step_h, step_w, pixel):
        """Where a pixel of the coarse grid lies in an array of such strides."""
        row = pixel // call.coarse_w
        n, i = row // call.coarse_h, row % call.coarse_h
        return address + n * step_n + i * step_h + pixel % call.coarse_w * step_w

    @inlined
    def reads_in_place(call, start, end):
        """Whether the pixels of this tile are neighbours in grad_y: all of it, in one image."""
        image = call.coarse_h * call.coarse_w
        return lies_flat(call) and start + width <= end and start // image == (start + width - 1) // image

    @inlined
    def finishes_itself(call, start, end):
        """Whether the micro-kernel can store this tile: all of it, neighbours in memory, in one image."""
        dense = call.R * call.S * call.stride_h * call.stride_w == 1 and call.y_q == item and call.y_p == call.W * item
        image = call.coarse_h * call.coarse_w
        return dense and start + width <= end and start // image == (start + width - 1) // image

    @inlined
    def read_next(call, grad, start, first, end, k0, depth):
        """Where in grad_y the tile lies that is multiplied after this one: it, the next block's first, or the next
        task's.
        """
        then, k = start + width, k0
        if then >= end:
            last = k0 + depth == call.Kg
            then, k = (end, 0) if last else (first, k0 + depth)
        return place(call, grad + k * call.x_c, call.x_n, call.x_h, call.x_w, then)

    @inlined
    def stored_next(call, grad_x, start, f, k0, depth, channels):
        """Some lines of grad_x that all phases of this tile will be stored to, of `depth` channels; 0 if all have been
        fetched: for channels f of filters k0 other lines than for those before.
        """
        blocks, pieces = (channels - 1) // CHANNEL_BLOCK, (channels + depth - 1) // depth
        number = k0 // call.depth_block * blocks + f // CHANNEL_BLOCK - 1
        line, c = number // pieces * fetched, min(number % pieces * depth, channels - depth)
        if line >= call.stride_h * call.stride_w * panel_row:
            return 0
        here = place(call, grad_x, call.y_n, call.stride_h * call.y_p, call.stride_w * call.y_q, start)
        return here + line + c * call.y_k

    def task(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        channel_task, rest = index % call.channel_tasks, index // call.channel_tasks
        pixels = call.N * call.coarse_h * call.coarse_w
        groups_of_tiles = (pixels + call.group * width - 1) // (call.group * width)
        g, c0 = rest // groups_of_tiles, channel_task * call.channel_block
        first = rest % groups_of_tiles * call.group * width
        end, channels = min(first + call.group * width, pixels), min(call.channel_block, call.Cg - c0)
        shifts, phases = call.shifts_h * call.shifts_w, call.stride_h * call.stride_w

        own = call.workspace + call.workers_at + worker * call.worker_bytes
        sums, zeros = own + call.sums_at, own + call.zeros_at
        for i in range(0, CHANNEL_BLOCK, W):
            write_vector(zeros + i * item, broadcast(V, zero))
        tile_sums = phases * call.channel_block * panel_row
        grad = call.x + g * call.Kg * call.x_c
        w = call.workspace + g * call.weight_panels * call.weight_rows * call.Kg * item
        grad_x = call.y + (g * call.Cg + c0) * call.y_k
        for k0 in range(0, call.Kg, call.depth_block):
            depth = min(call.depth_block, call.Kg - k0)
            last = k0 + depth == call.Kg
            for start in range(first, end, width):
                if not reads_in_place(call, start, end):
                    panels = own + (start - first) // width * shifts * depth * panel_row
                    copy_panels(call, panels, grad + k0 * call.x_c, start, min(start + width, end), depth)
            w_block = w + (k0 * call.weight_panels * call.weight_rows + c0 * depth) * item
            for f in range(0, channels, CHANNEL_BLOCK):
                count = min(CHANNEL_BLOCK, channels - f)
                for start in range(first, end, width):
                    tile, vectors = (start - first) // width, (min(width, end - start) + W - 1) // W
                    panels, here = own + tile * shifts * depth * panel_row, sums + tile * tile_sums + f * panel_row
                    panel_step = panel_row
                    if reads_in_place(call, start, end):
                        panels = place(call, grad + k0 * call.x_c, call.x_n, call.x_h, call.x_w, start)
                        panel_step = call.x_c
                    out, soon, soon_step = 0, 0, 0
                    if last and finishes_itself(call, start, end):
                        out = place(call, grad_x + f * call.y_k, call.y_n, call.y_p, call.y_q, start)
                    if f == 0:
                        soon, soon_step = read_next(call, grad, start, first, end, k0, depth), call.x_c
                    elif phases > 1 and depth <= channels:
                        soon, soon_step = stored_next(call, grad_x, start, f, k0, depth, channels), call.y_k
                    weights = w_block + f * depth * item
                    if call.weights_in_place:
                        weights = call.w + (g * call.Kg + k0) * call.w_k + (c0 + f) * item
                    multiply_phases(
                        call, vectors, count, weights, panels, panel_step, depth, here, k0 == 0, out, zeros, soon,
                        soon_step,
                    )  # fmt: skip
        for start in range(first, end, width):
            if finishes_itself(call, start, end):
                continue
            here = sums + (start - first) // width * tile_sums
            finish_tile(call, grad_x, here, zeros, start, min(start + width, end), 0, channels)

    return two_round_loop(build_pack(dtype_name), task)


def build_stacked(dtype_name, twelve):
    """Task: a few rows of the coarse grid of one image and group, all its channels.

    twelve: channels times phases, as three channels and stride 2 have it, are one tile of 12 x 2 vectors with 32
    registers, where tiles of 8 rows would be half empty every second time.
    """
    real = np.dtype(dtype_name).type
    W, item, rows = lanes(real), np.dtype(real).itemsize, panel_rows()
    panel_row = VECTORS * W * item
    V, zero = Vector(numba.from_dtype(np.dtype(real)), W), real(0)
    _, _, _, write_vector = memory_functions(dtype_name)
    multiply = multiply_function(real, "row")
    tile_twelve = tile_function(real, 12, 2, "row")
    tile_vectors = 2 if twelve else VECTORS
    _, copy_slab, _ = copy_panels_function(dtype_name)
    finish_tile = finish_function(dtype_name)

    @inlined
    def multiply_shift(vectors, count, w, slab, slab_step, depth, sums, fresh, soon, soon_step):
        """soon: what is needed next, soon_step bytes apart for each filter: it is fetched."""
        if twelve:
            tile_twelve(
                w, item, rows * depth * item, rows * item, slab, slab_step, depth, soon, soon_step, sums, panel_row,
                fresh, 0, 0, 12, 0, 0, 0, 0.0, 0.0,
            )  # fmt: skip
        else:
            multiply(
                vectors, count, w, item, rows * depth * item, rows * item, slab, slab_step, depth, sums,
                panel_row, fresh, 0, 0, 0, 0, 0, 0.0, 0.0, soon, 0, soon_step,
            )  # fmt: skip

    @inlined
    def multiply_shifts(call, vectors, w, slab, depth, sums, fresh, soon, number, every):
        """The rows of all phases at once, shift by shift. slab: where the tile's first pixel lies. soon: a line of it
        is fetched in every so many shifts; number: of the tile's first shift.
        """
        count = call.stride_h * call.stride_w * call.Cg
        for shift_h in range(call.shifts_h):
            for shift_w in range(call.shifts_w):
                here = slab + (shift_h * call.pitch + shift_w) * item
                ahead, step = (soon + number // every * LINE, call.x_c) if number % every == 0 else (w, 0)
                multiply_shift(vectors, count, w, here, call.plane * item, depth, sums, fresh, ahead, step)
                w += call.weight_rows * depth * item
                fresh, number = False, number + 1

    @inlined
    def copied_next(call, grad, row0, count, k0, depth):
        """Where in grad_y the rows lie that are copied after these: the next filters', or the next task's."""
        if k0 + depth < call.Kg:
            k, row = k0 + depth, row0
        else:
            k, row = 0, row0 + count
        n, p = row // call.coarse_h, row % call.coarse_h
        if p > 0 and k == 0:
            p += call.shifts_h - 1 + call.low_h  # the rows before it have been copied just now
        return grad + k * call.x_c + n * call.x_n + p * call.x_h

    def task(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        parts = (call.coarse_h + call.group - 1) // call.group
        part, rest = index % parts, index // parts
        n, g = rest % call.N, rest // call.N
        count = min(call.group, call.coarse_h - part * call.group)
        row0, pixels = n * call.coarse_h + part * call.group, count * call.pitch
        shifts = call.shifts_h * call.shifts_w

        own = call.workspace + call.workers_at + worker * call.worker_bytes
        sums, zeros = own + call.sums_at, own + call.zeros_at
        write_vector(zeros, broadcast(V, zero))
        grad = call.x + g * call.Kg * call.x_c
        w = call.workspace + g * call.weight_panels * call.weight_rows * call.Kg * item
        grad_x = call.y + g * call.Cg * call.y_k
        width, tile_sums = tile_vectors * W, call.weight_rows * panel_row
        for k0 in range(0, call.Kg, call.depth_block):
            depth = min(call.depth_block, call.Kg - k0)
            copy_slab(call, own, grad + k0 * call.x_c, row0, count, depth)
            w_block = w + k0 * call.weight_panels * call.weight_rows * item
            soon = copied_next(call, grad, row0, count, k0, depth)
            every = max(1, (pixels + width - 1) // width * shifts * LINE // max(count * abs(call.x_h), 1))
            for first in range(0, pixels, width):
                vectors, here = (min(width, pixels - first) + W - 1) // W, sums + first // width * tile_sums
                number = first // width * shifts
                multiply_shifts(call, vectors, w_block, own + first * item, depth, here, k0 == 0, soon, number, every)
        for first in range(0, pixels, width):
            here = sums + first // width * tile_sums
            finish_tile(call, grad_x, here, zeros, first, min(first + width, pixels), row0, call.Cg)

    return two_round_loop(build_pack(dtype_name), task)


# The weights.


def build_pack(dtype_name):
    """Task: up to PACKED filters of one group, from the weights (K, Cg, R, S) to call.workspace.

    For every block of filters, for every tap, phase by phase (or every shift): panels of `rows` channels (or channels
    of phases), filter after filter. A filter's weights are read from end to end: in the order of the panels, from 32
    bytes of each filter to the next filter's, packing 9 MB that no cache held took 2.2 ms on two Zen 5 cores.
    """
    real = np.dtype(dtype_name).type
    item, rows = np.dtype(real).itemsize, panel_rows()
    some = Lanes(vector_type(real).kind, rows)
    read, write, _, _ = memory_functions(dtype_name)

    @traced(types.void)
    def copy_columns(to, w, w_k, count):
        """`rows` neighbouring numbers of each of `count` filters."""
        loop(count, lambda k: store(to + k * some.bytes, load(some, w + k * w_k)))

    @traced(types.void)
    def gather_columns(to, w, w_k, w_c, count):
        loop(count, lambda k: store(to + k * some.bytes, load_strided(some, w + k * w_k, w_c)))

    @inlined
    def pack_tap(to, w, w_k, w_c, channels, filters):
        """A panel of channels at one tap, with zeros where there are fewer than `rows`."""
        if channels == rows and w_c == item:
            copy_columns(to, w, w_k, filters)
        elif channels == rows:
            gather_columns(to, w, w_k, w_c, filters)
        else:
            for k in range(filters):
                for i in range(rows):
                    number = read(w + k * w_k + i * w_c) if i < channels else 0.0
                    write(to + (k * rows + i) * item, number)

    @inlined
    def pack_phases(call, to, w, channels, filters, tap_bytes):
        for fh in range(call.stride_h):
            first_r = first_tap(fh, call.top, call.dilation_h, call.stride_h, call.R)
            for fw in range(call.stride_w):
                first_s = first_tap(fw, call.left, call.dilation_w, call.stride_w, call.S)
                for r in range(first_r, call.R, call.step_h):
                    for s in range(first_s, call.S, call.step_w):
                        pack_tap(to, w + r * call.w_r + s * call.w_s, call.w_k, call.w_c, channels, filters)
                        to += tap_bytes

    @inlined
    def tap_at(phase, shift, before, dilation, stride, window):
        """The tap that joins a phase and a shift; -1 where none does."""
        distance = phase + before - shift * stride
        tap = distance // dilation
        return tap if tap * dilation == distance and tap >= 0 and tap < window else -1

    @inlined
    def pack_stacked(call, to, w, row0, filters, tap_bytes):
        """w: of the group's first channel. row0: the panel's first row."""
        for shift in range(call.shifts_h * call.shifts_w):
            shift_h, shift_w = shift // call.shifts_w + call.low_h, shift % call.shifts_w + call.low_w
            for i in range(rows):
                phase, c = (row0 + i) // call.Cg, (row0 + i) % call.Cg
                fh, fw = phase // call.stride_w, phase % call.stride_w
                r = tap_at(fh, shift_h, call.top, call.dilation_h, call.stride_h, call.R)
                s = tap_at(fw, shift_w, call.left, call.dilation_w, call.stride_w, call.S)
                meets = fh < call.stride_h and r >= 0 and s >= 0
                here = w + c * call.w_c + r * call.w_r + s * call.w_s
                for k in range(filters):
                    write(to + (k * rows + i) * item, read(here + k * call.w_k) if meets else 0.0)
            to += tap_bytes

    def pack(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        parts = (call.depth_block + PACKED - 1) // PACKED
        blocks = (call.Kg + call.depth_block - 1) // call.depth_block
        part, rest = index % parts, index // parts
        k0, g = rest % blocks * call.depth_block, rest // blocks
        depth = min(call.depth_block, call.Kg - k0)
        first, filters = part * PACKED, min(PACKED, depth - part * PACKED)
        w = call.w + (g * call.Kg + k0 + first) * call.w_k
        to = call.workspace + (g * call.Kg + k0) * call.weight_panels * call.weight_rows * item + first * rows * item
        for row0 in range(0, call.weight_rows, rows):
            tap_bytes = call.weight_rows * depth * item
            if call.stacked:
                pack_stacked(call, to, w, row0, filters, tap_bytes)
            else:
                pack_phases(call, to, w + row0 * call.w_c, min(rows, call.Cg - row0), filters, tap_bytes)
            to += rows * depth * item

    return pack


# How a problem is cut.


def shifts_of(problem, axis):
    """The least shift of grad_y along an axis, and how many there are up to the largest."""
    window, stride = (problem.R, problem.S)[axis], problem.stride[axis]
    before, dilation = problem.padding[axis][0], problem.dilation[axis]
    met = [
        (phase + before - tap * dilation) // stride
        for phase in range(stride)
        for tap in range(window)
        if (phase + before - tap * dilation) % stride == 0
    ]
    return min(met), max(met) - min(met) + 1


@lru_cache(maxsize=1024)
def rows_of(problem):
    """Whether the phases' rows are stacked, the rows of a packed tap or shift, and how many of these there are."""
    shifts = shifts_of(problem, 0)[1] * shifts_of(problem, 1)[1]
    taps, padded = problem.R * problem.S, padded_filters(problem.Cg)
    stacked_rows = padded_filters(problem.Cg * problem.stride[0] * problem.stride[1])
    if stacked_rows <= CHANNEL_BLOCK and stacked_rows * shifts < padded * taps:
        return True, stacked_rows, shifts
    return False, padded, taps


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, the number of tasks of both rounds, and the bytes of workspace."""
    coarse = [-(-size // stride) for size, stride in zip((problem.H, problem.W), problem.stride)]
    lows, shifts = zip(*(shifts_of(problem, axis) for axis in (0, 1)))
    steps = [stride // gcd(stride, dilation) for stride, dilation in zip(problem.stride, problem.dilation)]
    stacked, weight_rows, panels = rows_of(problem)
    cut = stacked_cut if stacked else tiled_cut
    pitch, plane, depth, channel_block, channel_tasks, group, copied, sums, tasks = cut(
        problem, threads, coarse, shifts
    )
    sums_at = up(copied * problem.dtype.itemsize, 64)
    zeros_at = sums_at + sums * problem.dtype.itemsize
    workers_at = worker_span(problem.groups * problem.Kg * weight_rows * panels * problem.dtype.itemsize)
    worker_bytes = worker_span(zeros_at + CHANNEL_BLOCK * problem.dtype.itemsize)
    numbers = (
        *coarse, pitch, plane, *lows, *shifts, *steps, stacked, weight_rows, panels, depth, channel_block,
        channel_tasks, group, sums_at, zeros_at, workers_at, worker_bytes,
    )  # fmt: skip
    pack_tasks = problem.groups * -(-problem.Kg // depth) * -(-depth // PACKED)
    return numbers, (pack_tasks, tasks), workers_at + threads * worker_bytes


def tiled_cut(problem, threads, coarse, shifts):
    """What a task of `build` does, how many numbers it copies and sums at a time, and how many tasks there are."""
    width = VECTORS * lanes(problem.dtype)
    tiles = -(-problem.N * coarse[0] * coarse[1] // width)
    most = target.cache_bytes(1) * 3 // 4 // (width * problem.dtype.itemsize)
    if shifts == (1, 1):
        far = wants_weights_in_place(problem) and lies_far(problem)
        most = min(DEEPEST[target.register_count()], DEEPEST_FAR if far else problem.Kg)
        if problem.stride != (1, 1):
            most = min(most, max(problem.Cg, CHANNEL_BLOCK))  # fetches no more channels ahead than there are
    depth = -(-problem.Kg // -(-problem.Kg // most))
    panels = shifts[0] * shifts[1] * depth * width
    wanted = TASKS_PER_THREAD * threads if threads > 1 else 1
    group = max(1, min(GROUP_BYTES // (panels * problem.dtype.itemsize), tiles // wanted))
    tasks = -(-tiles // group) * problem.groups
    channel_tasks = max(1, min(-(-wanted // tasks), -(-problem.Cg // CHANNEL_BLOCK)))
    channel_block = up(-(-problem.Cg // channel_tasks), padded_filters(1))
    channel_tasks = -(-problem.Cg // channel_block)
    sums = group * problem.stride[0] * problem.stride[1] * channel_block * width
    return coarse[1], 0, depth, channel_block, channel_tasks, group, group * panels, sums, tasks * channel_tasks


def stacked_cut(problem, threads, coarse, shifts):
    """The same for `build_stacked`: as many rows as let what is copied fit half of the L2 cache."""
    W = lanes(problem.dtype)
    pitch, depth = coarse[1] + shifts[1] - 1, min(problem.Kg, SLAB_FILTERS)
    row = depth * pitch * problem.dtype.itemsize
    wanted = -(-TASKS_PER_THREAD * threads // (problem.N * problem.groups)) if threads > 1 else 1
    group = max(1, min(target.cache_bytes(2) // 2 // row - shifts[0] + 1, coarse[0] // wanted))
    plane = up((group + shifts[0] - 1) * pitch + 2 * VECTORS * W, 2 * W) + W  # an odd number of lines
    sums = -(-group * pitch // W) * rows_of(problem)[1] * VECTORS * W
    tasks = problem.N * problem.groups * -(-coarse[0] // group)
    return pitch, plane, depth, problem.Cg, 1, group, depth * plane, sums, tasks


def up(count, step):
    return -(-count // step) * step


def wants_weights_in_place(problem) -> bool:
    """Whether the micro-kernel should read w (K, C/groups, R, S) itself: packing 8 MB takes longer than it saves."""
    whole = problem.Cg % max(tile_rows(width) for width in (1, 2, 3)) == 0
    most = PACKED_FAR_BYTES if lies_far(problem) else PACKED_BYTES
    return whole and problem.R * problem.S == 1 and math.prod(problem.w_shape) * problem.dtype.itemsize > most


def lies_far(problem) -> bool:
    """Whether the weights of two filters lie so far apart that they meet in the caches."""
    return problem.Cg * problem.dtype.itemsize >= FAR


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the packed sizes, the compiled loop, the numbers of tasks, and whether
    the weights are better read in place.
    """
    numbers, tasks, _ = cuts(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(CUTS)}q", *numbers)
    if rows_of(problem)[0]:
        twelve = problem.Cg * problem.stride[0] * problem.stride[1] == 12 and target.register_count() == 32
        return fields, compiled(build_stacked, problem.dtype.name, twelve), tasks, False
    return fields, compiled(build_tiled, problem.dtype.name), tasks, wants_weights_in_place(problem)


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]
    if problem.dtype != problem.accumulate:
        reasons.append(f"float32 and float64 only, got {problem.dtype}")
    if problem.stride == (1, 1) and problem.R * problem.S > 1:
        reasons.append("stride 1 has one phase only, a forward problem that Winograd serves better")
    if problem.has_bias or problem.has_residual or problem.activation:
        reasons.append("adds no bias or residual and applies no activation")
    return reasons


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[-1]


def predicted_seconds(problem, device):
    _, rows, panels = rows_of(problem)
    numbers, _, _ = cuts(problem, device.threads)
    cut = dict(zip(CUTS, numbers))
    pixels, alone = problem.N * cut["coarse_h"] * cut["coarse_w"], problem.R * problem.S == 1
    multiply = multiply_cycles(rows, pixels, problem.Kg * panels, problem.dtype)
    copies = 2 if cut["stacked"] else cut["shifts_h"] * cut["shifts_w"] * cut["channel_tasks"]
    copy = (0.2 if alone else 0.5) * pixels * problem.Kg * copies
    one_by_one = problem.layout == "NHWC" or problem.stride[1] > 2
    vectors = -(-pixels // lanes(problem.dtype))
    sums = 2.0 * rows * vectors * panels * -(-problem.Kg // cut["depth_block"])  # read and left again for each panel
    masks = 0 if problem.stride == (1, 1) else MASK_CYCLES * vectors
    store = 3.0 if one_by_one else 0.1 if problem.stride == (1, 1) else 0.5
    stores = store * problem.N * problem.C * problem.H * problem.W
    forward = replace(problem, pass_="forward")  # whose operands it shares
    pack = 5e-6 + 7e-11 * cut["workers_at"] / device.threads
    return pack + predicted(forward, device, problem.groups * (multiply + copy + sums + masks) + stores)


def run(problem, device, grad_y, w, grad_x, bias=None, residual=None, workspace=None, stream=None):
    """Write the input gradient into grad_x (N, C, H, W), from grad_y (N, K, P, Q) and w (K, C/groups, R, S)."""
    fields, compiled_loop, (before, tasks), wants_in_place = prepared(problem, device.threads)
    in_place = wants_in_place and w.strides[1] == problem.dtype.itemsize
    found = struct.pack(f"{len(FOUND)}q", in_place)
    call = pack_call(fields + found, grad_y, w, grad_x, None, None, workspace)
    run_tasks(compiled_loop, call, tasks, device.threads, 0 if in_place else before)
