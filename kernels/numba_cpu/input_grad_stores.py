"""Storing the CPU input gradient: the sums of one tile, of all phases, side by side into grad_x.

With stride 2 the vectors of two phases are interleaved in registers; where a phase meets no tap its sums are zeros.
A transposed convolution's bias and activation come before that, onto the sums where they wait in the caches.
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .epilogue import CLAMP, activated
from .input_grad_weights import first_tap
from .microkernel import VECTORS, vector_type
from .short_floats import memory_functions
from .tracing import (
    broadcast,
    choose,
    constant,
    interleave,
    lanes_between,
    load,
    loop,
    store,
    store_lanes,
    traced,
    zeros,
)
from .vectors import lanes


@inlined
def ends(call):
    """Is there a bias or an activation?"""
    return call.has_bias != 0 or call.activation != CLAMP or call.low > -np.inf or call.high < np.inf


@inlined
def meets_taps(call, fh, fw):
    """Whether any tap meets the phase."""
    meets = first_tap(fh, call.top, call.dilation_h, call.stride_h, call.R) < call.R
    return meets and first_tap(fw, call.left, call.dilation_w, call.stride_w, call.S) < call.S


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

    @traced(types.void)
    def end_row(row, meets, bias, kind, low, high, slope):
        """A channel's sums of one phase: bias and activation."""
        sums = choose(
            meets,
            lambda: [load(V, row + V.bytes * j) for j in range(VECTORS)],
            lambda: [zeros(V, row) for _ in range(VECTORS)],
        )
        number = broadcast(V, bias)
        for j, total in enumerate(activated([total + number for total in sums], kind, low, high, slope)):
            store(row + V.bytes * j, total)

    @inlined
    def end_sums(call, sums, bias, count):
        """All sums of a tile. bias: of its first channel."""
        for fh in range(call.stride_h):
            for fw in range(call.stride_w):
                meets = meets_taps(call, fh, fw)
                row = sums + (fh * call.stride_w + fw) * call.channel_block * panel_row
                for c in range(count):
                    number = read(bias + c * call.bias_k) if call.has_bias else real(0)
                    end_row(row + c * panel_row, meets, number, call.activation, call.low, call.high, call.slope)

    @inlined
    def of_phase(call, sums, fh, fw):
        """Where the sums of a phase lie, and how far apart its channels': zeros, where it meets no tap."""
        if meets_taps(call, fh, fw) or ends(call):
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
    def finish_tile(call, grad_x, sums, zeros, first, end, row0, c0, count):
        """sums: of phase 0, channel 0. grad_x: of the task's first channel, c0. row0: the row where pixel 0 lies."""
        if ends(call):
            end_sums(call, sums, call.bias + c0 * call.bias_k, count)
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
