"""Pixels that are left behind the tiles of the CPU input gradient: each is multiplied along with a tile, its sums the
lanes of a vector of channels, which are neighbours in the weights (input_grad.py).
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .epilogue import activate
from .input_grad_stores import meets_taps
from .microkernel import AHEAD, VECTORS, accumulate, panel_rows, vector_type
from .short_floats import memory_functions
from .tracing import Lanes, choose, load, store, traced, when, zeros
from .vectors import lanes


def tile_with_lone_function(real):
    """The traced function for one tile of whole vectors of pixels and one pixel more: its sums are the lanes of a
    vector of channels, which are neighbours.
    """
    V, rows = vector_type(real), panel_rows()
    L = Lanes(V.kind, rows)

    @traced(types.void)
    def tile(
        a, a_row, a_step, b, b_step, depth, ahead, ahead_step, partial, partial_row, first, out, out_row, left, x,
        x_step, lone,
    ):  # fmt: skip
        """As microkernel.tile_function's. x, x_step: where the lone pixel's numbers lie; lone: where its sums wait."""

        def fresh():
            return [[zeros(V, a) for _ in range(VECTORS)] for _ in range(rows)] + [[zeros(L, a)]]

        def continued():
            waiting = [[load(V, partial + partial_row * i + V.bytes * j) for j in range(VECTORS)] for i in range(rows)]
            return [*waiting, [load(L, lone)]]

        *sums, (alone,) = choose(first, fresh, continued)
        sums, alone = accumulate(
            V, rows, VECTORS, a, a_row, 0, a_step, b, b_step, depth, sums, ahead, ahead_step,
            lone=(L, alone, x, x_step),
        )  # fmt: skip
        store(lone, alone)

        def finish():
            for i in range(rows):
                with when(left > i):
                    for j in range(VECTORS):
                        store(out + out_row * i + V.bytes * j, sums[i][j])

        def leave():
            for i in range(rows):
                for j in range(VECTORS):
                    store(partial + partial_row * i + V.bytes * j, sums[i][j])

        choose(out.differs(0), finish, leave)

    return tile


def lone_functions(dtype_name):
    """Numba functions: multiply_with_lone, of a block of channels; lone_place, where grad_y has what it multiplies;
    finish_lone, from its sums to grad_x.
    """
    real = np.dtype(dtype_name).type
    item, rows, zero = np.dtype(real).itemsize, panel_rows(), real(0)
    panel_row = VECTORS * lanes(real) * item
    read, write, _, _ = memory_functions(dtype_name)
    tile_with_lone = tile_with_lone_function(real)

    @inlined
    def multiply_with_lone(
        count, w, w_panel, w_step, panel, panel_step, depth, sums, first, out, out_row, ahead, ahead_panel, ahead_step,
        x, x_step, lone,
    ):  # fmt: skip
        if ahead == 0:
            ahead, ahead_panel, ahead_step = w + AHEAD, w_panel, w_step
        for i in range(0, count, rows):
            tile_with_lone(
                w + i // rows * w_panel, item, w_step, panel, panel_step, depth, ahead + i // rows * ahead_panel,
                ahead_step, sums + i * panel_row, panel_row, first, out + i * out_row if out != 0 else 0, out_row,
                count - i, x, x_step, lone + i * item,
            )  # fmt: skip

    @inlined
    def lone_place(call, grad, pixel, shift_h, shift_w, zeros):
        """Where grad_y has what a shift brings to a pixel of the coarse grid, and how far apart filters lie there."""
        row, q = pixel // call.coarse_w, pixel % call.coarse_w + shift_w
        n, p = row // call.coarse_h, row % call.coarse_h + shift_h
        if p < 0 or p >= call.P or q < 0 or q >= call.Q:
            return zeros, 0
        return grad + n * call.x_n + p * call.x_h + q * call.x_w, call.x_c

    @inlined
    def finish_lone(call, grad_x, sums, pixel, bias, count):
        """The sums of a lone pixel, of all phases, to grad_x. bias: of the first channel."""
        row, j = pixel // call.coarse_w, pixel % call.coarse_w * call.stride_w
        n, i = row // call.coarse_h, row % call.coarse_h * call.stride_h
        for fh in range(min(call.stride_h, call.H - i)):
            for fw in range(min(call.stride_w, call.W - j)):
                meets = meets_taps(call, fh, fw)
                here = sums + (fh * call.stride_w + fw) * call.channel_block * item
                to = grad_x + n * call.y_n + (i + fh) * call.y_p + (j + fw) * call.y_q
                for c in range(count):
                    number = read(here + c * item) if meets else zero
                    if call.has_bias:
                        number += read(bias + c * call.bias_k)
                    write(to + c * call.y_k, activate(number, call.activation, call.low, call.high, call.slope))

    return multiply_with_lone, lone_place, finish_lone
