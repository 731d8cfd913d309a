"""Copying x into panels for the micro-kernel: for every depth d = (c, r, s), the 24 pixels of one tile side by side.

A vector of pixels is copied in the fastest way its place allows: it lies in one row and inside the image: a load
(stride 1), two loads and a shuffle (stride 2), or a gather; in a row of padding: zeros; across rows or the image's
edge: row by row (row_pieces.py), or one by one. What a vector needs is decided once per window row and then done for
all channels.
"""

import numba
import numpy as np

from .compilation import inlined
from .microkernel import VECTORS
from .row_pieces import copy_pieces_function
from .short_floats import memory_functions
from .vectors import Vector, broadcast, lanes, load_even, load_strided


def copy_tiles_function(dtype_name):
    """A Numba function copy_tiles(call, panel, start, stop, x, channels, flat): the panels of the tiles from pixel
    `start` to `stop`, one after the other. x: address of the image's first channel of this block. flat: the kernel is
    1x1 and the image's rows follow each other without a gap, so that all its pixels are one row.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    same = item == stored_item
    W = lanes(real)
    width, panel_row = VECTORS * W, VECTORS * W * item
    V = Vector(numba.from_dtype(np.dtype(real)), W)
    zero = real(0)
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write_sum, _, write_sums = memory_functions(np.dtype(real).name)
    copy_pieces = copy_pieces_function(real, W)

    @inlined
    def copy_vectors(to, step, x, x_step, x_pixel, count, taps, x_tap):
        """W pixels, x_pixel bytes apart, of `count` channels and `taps` window columns, all inside the image."""
        if x_pixel == stored_item:
            for s in range(taps):
                for c in range(count):
                    write_sums(to + s * panel_row + c * step, read_vector(x + s * x_tap + c * x_step))
        elif same and x_pixel == 2 * item:
            for s in range(taps):
                for c in range(count):
                    write_sums(to + s * panel_row + c * step, load_even(V, x + s * x_tap + c * x_step, 0))
        elif same and x_pixel % item == 0:
            for s in range(taps):
                for c in range(count):
                    gathered = load_strided(V, x + s * x_tap + c * x_step, 0, x_pixel // item)
                    write_sums(to + s * panel_row + c * step, gathered)
        else:
            for s in range(taps):
                for i in range(W):
                    copy_pixel(to + s * panel_row + i * item, step, x + s * x_tap + i * x_pixel, x_step, count)

    @inlined
    def copy_pixel(to, step, x, x_step, count):
        for c in range(count):
            write_sum(to + c * step, read(x + c * x_step))

    @inlined
    def clear_pixel(to, step, count):
        for c in range(count):
            write_sum(to + c * step, zero)

    @inlined
    def clear_vectors(to, step, count, taps):
        for s in range(taps):
            for c in range(count):
                write_sums(to + s * panel_row + c * step, broadcast(V, zero))

    @inlined
    def copy_scattered(call, to, step, x, pixel, r, s, channels):
        """W pixels that do not lie in one row, or not all inside the image: piece by piece, or one by one."""
        if same and call.x_w == item and call.stride_w <= 2:
            copy_pieces(call, to, step, x, pixel, call.P * call.Q, r, s, channels)
            return
        for i in range(W):
            p, q = (pixel + i) // call.Q, (pixel + i) % call.Q
            h = p * call.stride_h - call.top + r * call.dilation_h
            v = q * call.stride_w - call.left + s * call.dilation_w
            into = to + i * item
            if p < call.P and h >= 0 and h < call.H and v >= 0 and v < call.W:
                copy_pixel(into, step, x + h * call.x_h + v * call.x_w, call.x_c, channels)
            else:
                clear_pixel(into, step, channels)

    @inlined
    def copy_window_row(call, to, step, x, pixel, r, channels):
        """One vector of pixels at the window's row r."""
        p, q = pixel // call.Q, pixel % call.Q
        h = p * call.stride_h - call.top + r * call.dilation_h
        v = q * call.stride_w - call.left
        here, pitch, x_tap = x + h * call.x_h + v * call.x_w, call.stride_w * call.x_w, call.dilation_w * call.x_w
        one_row = q + W <= call.Q
        reach = (W - 1) * call.stride_w + (1 if call.stride_w == 2 else 0)  # load_even reads one more
        if one_row and (h < 0 or h >= call.H):
            clear_vectors(to, step, channels, call.S)
        elif one_row and v >= 0 and v + (call.S - 1) * call.dilation_w + reach < call.W:
            copy_vectors(to, step, here, call.x_c, pitch, channels, call.S, x_tap)
        else:
            for s in range(call.S):
                tap = v + s * call.dilation_w
                if one_row and tap >= 0 and tap + reach < call.W:
                    copy_vectors(to + s * panel_row, step, here + s * x_tap, call.x_c, pitch, channels, 1, x_tap)
                else:
                    copy_scattered(call, to + s * panel_row, step, x, pixel, r, s, channels)

    @inlined
    def copy_flat(panel, start, stop, x, x_step, channels):
        """Whole vectors of neighbouring pixels, channel after channel, so that long pieces of x are read at once."""
        tile_bytes = channels * panel_row
        for c in range(channels):
            here = x + c * x_step
            for pixel in range(start, stop, W):
                tile, column = (pixel - start) // width, (pixel - start) % width
                write_sums(
                    panel + tile * tile_bytes + c * panel_row + column * item, read_vector(here + pixel * stored_item)
                )

    @inlined
    def copy_tiles(call, panel, start, stop, x, channels, flat):
        taps = call.R * call.S
        whole = start
        if flat and call.x_w == stored_item:
            whole = start + (stop - start) // W * W
            copy_flat(panel, start, whole, x, call.x_c, channels)
        for pixel in range(whole, stop, W):
            tile, column = (pixel - start) // width, (pixel - start) % width
            to = panel + tile * channels * taps * panel_row + column * item
            for r in range(call.R):
                copy_window_row(call, to + r * call.S * panel_row, taps * panel_row, x, pixel, r, channels)

    return copy_tiles
