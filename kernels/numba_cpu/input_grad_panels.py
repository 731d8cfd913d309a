"""Copying grad_y for the CPU input gradient: into panels, one for each shift, or into a slab that all shifts read.

    panel   for a tile of 3 vectors of pixels and one shift: filter after filter, 3 vectors each, zeros outside grad_y
    slab    some rows of grad_y with zeros around them: a plane for each filter, in which a shift is an offset

Pixels run on from row to row and image to image, so a vector may be made of several pieces; each is a masked copy.
"""

import numba
import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import VECTORS, vector_type
from .short_floats import memory_functions
from .tracing import constant, lanes_between, load, load_lanes, loop, select, store, traced, when
from .vectors import Vector, broadcast, lanes


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
