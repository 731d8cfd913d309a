"""Panels of pixels, [tile][depth][pixel], for the micro-kernel of blocked_by_filters.py, whose rows are pixels.

    of a tile's pixels    x[d = 0] of them all, x[1] of them all, ...      depths d = (c, r, s), each tap's channels

Of NCHW neighbouring pixels are a vector as they lie, or pieces of some rows (row_pieces.py); of channels last, pixels
are interleaved in registers; what is neither is copied number by number.
"""

import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import panel_rows, vector_type
from .row_pieces import copy_pieces_function
from .short_floats import memory_functions
from .tracing import Lanes, first_lanes, interleave, load, load_lanes, loop, shuffle, store, traced, when


def copy_pixels_function(dtype_name, tile_pixels):
    """A Numba function copy_pixels(call, panel, x, first, end, channels): panels of the pixels first .. end-1, one for
    every `tile_pixels` of them. x: address of the image's first channel of this block.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    item = np.dtype(real).itemsize
    stored_item = 2 if dtype_name.endswith("16") else item
    same = item == stored_item
    rows = panel_rows()
    V = vector_type(real)
    group = Lanes(V.kind, rows)
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)
    copy_pieces = copy_pieces_function(real, rows)

    @traced(types.void)
    def copy_group(to, step, x, x_step, count):
        """`rows` pixels that lie side by side, of `count` channels."""
        loop(count, lambda c: store(to + c * step, load(group, x + c * x_step)))

    @traced(types.void)
    def copy_flat(panel, x, x_step, count, pixels):
        """Panels of neighbouring pixels; channel after channel, so that the processor fetches x ahead. No memory but
        theirs is read.
        """
        panels = (pixels - rows + tile_pixels) // tile_pixels  # that may be read whole
        panel_bytes, step = count * group.bytes, tile_pixels * item
        rest = pixels - panels * tile_pixels
        some = first_lanes(group, rest)

        def channel(c):
            here, to = x + c * x_step, panel + c * group.bytes
            loop(panels, lambda i: store(to + i * panel_bytes, load(group, here + i * step)))
            with when(rest > 0):
                store(to + panels * panel_bytes, load_lanes(group, here + panels * step, some))

        loop(count, channel)

    @traced(types.int64)
    def interleave_group(to, step, x, x_pixel, count):
        """`rows` pixels of contiguous channels, x_pixel bytes apart; returns how many channels it did."""

        def some(i):
            vectors = interleave([load(V, x + x_pixel * j + i * V.bytes) for j in range(rows)])
            for j, vector in enumerate(vectors):
                for part in range(V.count // rows):
                    piece = shuffle(vector, vector, range(part * rows, (part + 1) * rows))
                    store(to + (i * V.count + j * (V.count // rows) + part) * step, piece)

        loop(count // V.count, some)
        return count // V.count * V.count

    can_interleave = same and V.count >= rows

    @inlined
    def copy_pixel(to, step, x, x_step, count):
        for c in range(count):
            write(to + c * step, read(x + c * x_step))

    @inlined
    def clear_pixel(to, step, count):
        for c in range(count):
            write(to + c * step, 0.0)

    @inlined
    def copy_tap(call, to, step, x, pixel, end, r, s, channels):
        """One group of pixels at one tap of the window."""
        p, q = pixel // call.Q, pixel % call.Q
        h = p * call.stride_h - call.top + r * call.dilation_h
        v = q * call.stride_w - call.left + s * call.dilation_w
        pitch = call.stride_w * call.x_w
        one_row = q + rows <= call.Q and pixel + rows <= end
        inside = h >= 0 and h < call.H and v >= 0 and v + (rows - 1) * call.stride_w < call.W
        here = x + h * call.x_h + v * call.x_w
        if one_row and inside and same and pitch == item:
            copy_group(to, step, here, call.x_c, channels)
            return
        if same and call.x_w == item and call.stride_w <= 2:
            copy_pieces(call, to, step, x, pixel, end, r, s, channels)
            return
        done = 0
        if one_row and inside and can_interleave and call.x_c == item:
            done = interleave_group(to, step, here, pitch, channels)
        for i in range(rows):
            p, q = (pixel + i) // call.Q, (pixel + i) % call.Q
            h = p * call.stride_h - call.top + r * call.dilation_h
            v = q * call.stride_w - call.left + s * call.dilation_w
            into = to + done * step + i * item
            if pixel + i < end and h >= 0 and h < call.H and v >= 0 and v < call.W:
                here = x + h * call.x_h + v * call.x_w + done * call.x_c
                copy_pixel(into, step, here, call.x_c, channels - done)
            else:
                clear_pixel(into, step, channels - done)

    @inlined
    def copy_pixels(call, panel, x, first, end, channels):
        taps = call.R * call.S
        point = taps == 1 and call.P == call.H and call.Q == call.W and call.stride_h == 1 and call.stride_w == 1
        flat = point and same and call.x_w == item and call.x_h == call.W * item
        if flat:
            copy_flat(panel, x + first * item, call.x_c, channels, end - first)
            return
        for pixel in range(first, end, tile_pixels):
            to = panel + (pixel - first) // tile_pixels * rows * channels * taps * item
            for r in range(call.R):
                for s in range(call.S):
                    tap = to + (r * call.S + s) * rows * item
                    copy_tap(call, tap, taps * rows * item, x, pixel, end, r, s, channels)

    return copy_pixels
