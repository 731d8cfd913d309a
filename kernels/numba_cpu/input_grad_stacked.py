"""The product of the CPU input gradient where a group has few channels: those of all phases are the rows of one tile,
and a task is some rows of one image, multiplied shift by shift.
"""

import numba
import numpy as np

from .compilation import inlined
from .input_grad_cuts import CALL_CUT
from .input_grad_panels import copy_panels_function
from .input_grad_stores import finish_function
from .input_grad_weights import pack_functions
from .microkernel import VECTORS, multiply_function, panel_rows, tile_function
from .short_floats import memory_functions
from .threads import LINE, two_round_loop
from .vectors import Vector, broadcast, lanes, record_at


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
            finish_tile(call, grad_x, here, zeros, first, min(first + width, pixels), row0, g * call.Cg, call.Cg)

    pack, _ = pack_functions(dtype_name)
    return two_round_loop(pack, task)
