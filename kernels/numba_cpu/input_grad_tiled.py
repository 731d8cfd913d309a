"""The product of the CPU input gradient where a group has many channels: a task is some tiles of pixels and a block of
channels, for which it goes through blocks of filters and all phases and taps.
"""

import numba
import numpy as np

from .compilation import inlined
from .input_grad_cuts import CALL_CUT, CHANNEL_BLOCK
from .input_grad_lone import lone_functions
from .input_grad_panels import copy_panels_function
from .input_grad_stores import ends, finish_function
from .input_grad_weights import first_tap, pack_functions
from .microkernel import VECTORS, multiply_function, panel_rows
from .short_floats import memory_functions
from .threads import LINE, two_round_loop
from .vectors import Vector, broadcast, lanes, record_at


def multiply_phases_function(dtype_name):
    """A Numba function: a tile of pixels and a block of channels, all phases and their taps, of a block of filters."""
    real = np.dtype(dtype_name).type
    item, rows = np.dtype(real).itemsize, panel_rows()
    panel_row = VECTORS * lanes(real) * item
    multiply = multiply_function(real, "row")
    multiply_with_lone, lone_place, _ = lone_functions(dtype_name)

    @inlined
    def multiply_phases(
        call, vectors, count, w, tap_rows, panels, panel_step, depth, sums, fresh, out, zeros, soon, soon_step, grad,
        pixel, lone,
    ):  # fmt: skip
        """w: of the first tap, which has tap_rows rows. panel_step: from filter to filter. out: where to put what is
        finished then, or 0. pixel: the tile's lone one, or -1; lone: where its sums are; grad: grad_y of the filters.
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
                        if pixel < 0:
                            multiply(
                                vectors, count, w, item, w_panel, w_step, panel, panel_step, depth, sums, panel_row,
                                first, out, call.y_k, zeros, 0, 0, -np.inf, np.inf, ahead, LINE // 2, ahead_step,
                            )  # fmt: skip
                        else:
                            x, x_step = lone_place(call, grad, pixel, shift_h + call.low_h, shift_w + call.low_w, zeros)
                            multiply_with_lone(
                                count, w, w_panel, w_step, panel, panel_step, depth, sums, first, out, call.y_k, ahead,
                                LINE // 2, ahead_step, x, x_step, lone,
                            )  # fmt: skip
                        w += tap_rows * depth * item
                        first = False
                sums += phase_bytes
                lone += call.channel_block * item

    return multiply_phases


def place_functions(dtype_name):
    """Numba functions: place, reads_in_place and finishes_itself, where a tile's numbers lie in grad_y and grad_x;
    read_next and stored_next, what is fetched while it is multiplied.
    """
    item, rows = np.dtype(dtype_name).itemsize, panel_rows()
    width = VECTORS * lanes(np.dtype(dtype_name).type)
    fetched = CHANNEL_BLOCK // rows * (LINE // 2)  # bytes of each channel, while a block is multiplied
    _, _, lies_flat = copy_panels_function(dtype_name)

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
        dense = dense and not ends(call)
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
        if line >= call.stride_h * call.stride_w * width * item:
            return 0
        here = place(call, grad_x, call.y_n, call.stride_h * call.y_p, call.stride_w * call.y_q, start)
        return here + line + c * call.y_k

    return place, reads_in_place, finishes_itself, read_next, stored_next


def build_tiled(dtype_name):
    """Task: a few tiles of pixels and a block of channels of one group. call.workspace: the packed weights."""
    real = np.dtype(dtype_name).type
    W, item = lanes(real), np.dtype(real).itemsize
    width, panel_row = VECTORS * W, VECTORS * W * item
    V, zero = Vector(numba.from_dtype(np.dtype(real)), W), real(0)
    _, _, _, write_vector = memory_functions(dtype_name)
    multiply_phases = multiply_phases_function(dtype_name)
    place, reads_in_place, finishes_itself, read_next, stored_next = place_functions(dtype_name)
    _, _, finish_lone = lone_functions(dtype_name)
    copy_panels, _, _ = copy_panels_function(dtype_name)
    finish_tile = finish_function(dtype_name)
    pack, pack_block = pack_functions(dtype_name)

    def task(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        pixels, all_pixels = call.tiled, call.N * call.coarse_h * call.coarse_w
        groups_of_tiles = (pixels + call.group * width - 1) // (call.group * width)
        channel_task, rest = index // (call.groups * groups_of_tiles), index % (call.groups * groups_of_tiles)
        g, c0 = rest // groups_of_tiles, channel_task * call.channel_block
        first = rest % groups_of_tiles * call.group * width
        end, channels = min(first + call.group * width, pixels), min(call.channel_block, call.Cg - c0)
        shifts, phases = call.shifts_h * call.shifts_w, call.stride_h * call.stride_w

        own = call.workspace + call.workers_at + worker * call.worker_bytes
        sums, zeros = own + call.sums_at, own + call.zeros_at
        for i in range(0, CHANNEL_BLOCK, W):
            write_vector(zeros + i * item, broadcast(V, zero))
        tile_sums, tile_lone = phases * call.channel_block * panel_row, phases * call.channel_block * item
        grad = call.x + g * call.Kg * call.x_c
        w = call.workspace + g * call.weight_panels * call.weight_rows * call.Kg * item
        channel = g * call.Cg + c0
        grad_x, bias = call.y + channel * call.y_k, call.bias + channel * call.bias_k
        for k0 in range(0, call.Kg, call.depth_block):
            depth = min(call.depth_block, call.Kg - k0)
            last = k0 + depth == call.Kg
            for start in range(first, end, width):
                if not reads_in_place(call, start, end):
                    panels = own + (start - first) // width * shifts * depth * panel_row
                    copy_panels(call, panels, grad + k0 * call.x_c, start, min(start + width, end), depth)
            w_block = w + (k0 * call.weight_panels * call.weight_rows + c0 * depth) * item
            for f in range(0, channels, CHANNEL_BLOCK):
                count, tap_rows = min(CHANNEL_BLOCK, channels - f), call.weight_rows
                weights = w_block + f * depth * item
                lying = call.w + (g * call.Kg + k0) * call.w_k + (c0 + f) * call.w_c
                if call.weights_in_place:
                    weights = lying
                elif call.packs:
                    weights, tap_rows = zeros + CHANNEL_BLOCK * item, CHANNEL_BLOCK
                    pack_block(call, weights, lying, count, depth)
                for start in range(first, end, width):
                    tile, vectors = (start - first) // width, (min(width, end - start) + W - 1) // W
                    panels, here = own + tile * shifts * depth * panel_row, sums + tile * tile_sums + f * panel_row
                    panel_step = panel_row
                    if reads_in_place(call, start, end):
                        panels = place(call, grad + k0 * call.x_c, call.x_n, call.x_h, call.x_w, start)
                        panel_step = call.x_c
                    lone = own + call.lone_at + tile * tile_lone + f * item
                    pixel = pixels + start // width
                    pixel = pixel if pixel < all_pixels else -1
                    out, soon, soon_step = 0, 0, 0
                    if last and finishes_itself(call, start, end):
                        out = place(call, grad_x + f * call.y_k, call.y_n, call.y_p, call.y_q, start)
                    if f == 0:
                        soon, soon_step = read_next(call, grad, start, first, end, k0, depth), call.x_c
                    elif phases > 1 and depth <= channels:
                        soon, soon_step = stored_next(call, grad_x, start, f, k0, depth, channels), call.y_k
                    multiply_phases(
                        call, vectors, count, weights, tap_rows, panels, panel_step, depth, here, k0 == 0, out, zeros,
                        soon, soon_step, grad + k0 * call.x_c, pixel, lone,
                    )  # fmt: skip
        for start in range(first, end, width):
            tile, pixel = (start - first) // width, pixels + start // width
            if pixel < all_pixels:
                finish_lone(call, grad_x, own + call.lone_at + tile * tile_lone, pixel, bias, channels)
            if finishes_itself(call, start, end):
                continue
            here = sums + tile * tile_sums
            finish_tile(call, grad_x, here, zeros, start, min(start + width, end), 0, channel, channels)

    return two_round_loop(pack, task)
