"""grouped.py's panels: x as [row][column][channel], padding included, whichever way it lies."""

from numba.core import types

from .compilation import inlined
from .microkernel import vector_type
from .tracing import first_lanes, load, load_lanes, loop, minimum, store, traced, transpose, when, zeros


def fill_function(dtype_name):
    """A Numba function fill(call, panel, x, first_row, rows, blocks, last): the panels of some blocks, with padding.

    x: address of the first block's first channel. last: how many channels behind it the last block begins, which may
    overlap the one before. What is written runs over the end of a row, and so over the last one's.
    """
    V = vector_type(dtype_name)
    item, W = V.item_bytes, V.count

    @traced(types.void)
    def clear(to, count):
        loop((count + (W - 1)) // W, lambda i: store(to + i * V.bytes, zeros(V, to)))

    @traced(types.void)
    def copy_pixels(to, to_block, pitch, x, x_w, count, channels, blocks, last):
        """Pixels whose channels are neighbours, of all blocks in turn. last: how far behind the first the last is."""
        whole = channels // W
        some = first_lanes(V, channels - whole * W)

        def pixel(i):
            def block(b):
                here = x + x_w * i + minimum(b * channels * item, last)
                there = to + pitch * i + to_block * b
                loop(whole, lambda j: store(there + j * V.bytes, load(V, here + j * V.bytes)))
                with when(channels > whole * W):
                    store(there + whole * V.bytes, load_lanes(V, here + whole * V.bytes, some))

            loop(blocks, block)

        loop(count, pixel)

    @traced(types.void)
    def turn_pixels(to, pitch, x, x_c, count, channels):
        """Pixels that are neighbours, W of them and of their channels at a time."""

        def square(i):
            some = first_lanes(V, count - i * W)

            def part(j):
                here = x + i * V.bytes
                rows = [load_lanes(V, here + x_c * minimum(j * W + k, channels - 1), some) for k in range(W)]
                for k, pixel in enumerate(transpose(rows)):
                    store(to + pitch * (i * W + k) + j * V.bytes, pixel)

            loop((channels + (W - 1)) // W, part)

        loop((count + (W - 1)) // W, square)

    @traced(types.void)
    def copy_number(to, x):
        store(to, load(V.scalar, x))

    @inlined
    def copy_row(call, to, x, count, blocks, last):
        """`count` pixels of a row, wherever they lie."""
        if call.x_c == item:
            copy_pixels(to, call.block_bytes, call.pitch, x, call.x_w, count, call.channels, blocks, last * item)
            return
        for b in range(blocks):
            here, there = x + min(b * call.channels, last) * call.x_c, to + b * call.block_bytes
            if call.x_w == item:
                turn_pixels(there, call.pitch, here, call.x_c, count, call.channels)
                continue
            for i in range(count):
                for c in range(call.channels):
                    copy_number(there + i * call.pitch + c * item, here + i * call.x_w + c * call.x_c)

    @inlined
    def clear_row(call, to, blocks, count):
        for b in range(blocks):
            clear(to + b * call.block_bytes, count * call.pitch // item)

    @inlined
    def fill(call, panel, x, first_row, rows, blocks, last):
        start = min(call.left, call.columns)
        end = max(start, min(call.columns, call.W + call.left))
        for i in range(rows):
            h, to = first_row + i, panel + i * call.row_bytes
            if h < 0 or h >= call.H:
                clear_row(call, to, blocks, call.columns)
                continue
            clear_row(call, to, blocks, start)
            copy_row(call, to + start * call.pitch, x + h * call.x_h, end - start, blocks, last)
            clear_row(call, to + end * call.pitch, blocks, call.columns - end)

    return fill
