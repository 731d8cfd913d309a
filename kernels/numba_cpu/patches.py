"""Windows as wide as their stride and without padding: the patches of vision transformers, downsampling by 2 x 2.

    a row of x, S = 4       a0 a1 a2 a3  b0 b1 b2 b3  c0 c1 c2 c3 ...      every number is read by one pixel alone
    rows of the matrix      a0 b0 c0 ...   a1 b1 c1 ...   a2 b2 c2 ...     one for each depth d = (c, r, s)

So x holds the matrix's numbers, each once, in another order, and the convolution is a 1x1 of C R S channels on P x Q
pixels. What has to be done is to sort each row by s, in registers: vectors of neighbouring numbers are split
into even and odd ones until each holds one s, or, where S is no small power of two, W pixels by W taps are transposed.

Measured on two Zen 5 cores with AVX-512: PLACEHOLDER
"""

from functools import lru_cache

import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import vector_type
from .short_floats import memory_functions
from .tracing import constant, first_lanes, load, load_lanes, loop, minimum, split, store, traced, transpose, when

SPLIT_CYCLES = 0.3  # a number


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Does every pixel read a patch of its own, of rows that lie in x?"""
    window, no_padding = (problem.R, problem.S), ((0, 0), (0, 0))
    apart = window == problem.stride and problem.S > 1 and problem.dilation == (1, 1)
    return apart and problem.padding == no_padding and problem.layout == "NCHW" and problem.dtype == problem.accumulate


@inlined
def are_patches(call):
    """`serves`, but for the layout, of a running call."""
    apart = call.R == call.stride_h and call.S == call.stride_w and call.dilation_h == 1 and call.dilation_w == 1
    return apart and call.S > 1 and call.top == 0 and call.left == 0 and call.P * call.R <= call.H and call.Q * call.S <= call.W


def sort_row_function(real):
    """A Numba function sort_row(to, to_tap, x, S, count): of each tap s the numbers of `count` neighbouring pixels, to
    to + s * to_tap; more may be written behind them, up to a vector. x: address of the first pixel's first number.
    """
    V = vector_type(real)
    W, item = V.count, V.item_bytes

    def by_splitting(S):
        """S: a power of two."""

        @traced(types.void)
        def sort(to, to_tap, x, count):
            def put(i, read):
                vectors = split([read(x + (i * S + j) * V.bytes, j) for j in range(S)])
                for s, pixels in enumerate(vectors):
                    store(to + to_tap * s + i * V.bytes, pixels)

            whole = count // W
            rest = count - whole * W
            loop(whole, lambda i: put(i, lambda here, j: load(V, here)))
            with when(rest > 0):
                put(whole, lambda here, j: load_lanes(V, here, first_lanes(V, rest * S - j * W)))

        return sort

    @traced(types.void)
    def sort_square(to, to_tap, x, x_pixel, count, taps):
        """Up to W pixels and up to W taps of each."""
        inside = first_lanes(V, taps)
        last = count - 1
        rows = [load_lanes(V, x + x_pixel * minimum(constant(count, i), last), inside) for i in range(W)]
        for s, pixels in enumerate(transpose(rows)):
            with when(taps > s):
                store(to + to_tap * s, pixels)

    by_two, by_four, by_eight = (by_splitting(S) for S in (2, 4, 8))

    @inlined
    def sort_row(to, to_tap, x, S, count):
        if S == 2:
            by_two(to, to_tap, x, count)
        elif S == 4:
            by_four(to, to_tap, x, count)
        elif S == 8:
            by_eight(to, to_tap, x, count)
        else:
            for q in range(0, count, W):
                for s in range(0, S, W):
                    here = x + (q * S + s) * item
                    sort_square(to + s * to_tap + q * item, to_tap, here, S * item, min(W, count - q), min(W, S - s))

    return sort_row


def copy_patches_function(real):
    """A Numba function copy_patches(call, to, to_depth, x, line, lines, p0, rows, first, last): rows of the matrix,
    to_depth bytes apart, of the channels' rows `line` to line + lines - 1, R to a channel, for `rows` rows of pixels
    from p0 on; of their columns those from `first` to `last`, and up to a vector more behind the last row's. x: address
    of channel 0.
    """
    item, sort_row = np.dtype(real).itemsize, sort_row_function(real)
    read, write, _, _ = memory_functions(np.dtype(real).name)

    @inlined
    def sort_numbers(to, to_tap, x, x_w, S, count):
        for s in range(S):
            for q in range(count):
                write(to + s * to_tap + q * item, read(x + (q * S + s) * x_w))

    @inlined
    def copy_patches(call, to, to_depth, x, line, lines, p0, rows, first, last):
        for i in range(lines):
            c, r = (line + i) // call.R, (line + i) % call.R
            here = x + c * call.x_c + (p0 * call.R + r) * call.x_h + first * call.S * call.x_w
            there = to + i * call.S * to_depth + first * item
            for _ in range(rows):
                if call.x_w == item:
                    sort_row(there, to_depth, here, call.S, last - first)
                else:
                    sort_numbers(there, to_depth, here, call.x_w, call.S, last - first)
                there, here = there + call.Q * item, here + call.R * call.x_h

    return copy_patches
