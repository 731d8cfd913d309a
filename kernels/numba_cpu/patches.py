"""Windows as wide as their stride and without padding: the patches of vision transformers, downsampling by 2 x 2.

    a row of x, S = 4       a0 a1 a2 a3  b0 b1 b2 b3  c0 c1 c2 c3 ...      every number is read by one pixel alone
    rows of the matrix      a0 b0 c0 ...   a1 b1 c1 ...   a2 b2 c2 ...     one for each depth d = (c, r, s)

So x holds the matrix's numbers, each once, in another order, and the convolution is a 1x1 of C R S channels on P x Q
pixels. What has to be done is to sort each row by s, in registers: vectors of neighbouring numbers are split
into even and odd ones until each holds one s, or, where S is no small power of two, W pixels by W taps are transposed.

Measured on two Zen 5 cores with AVX-512: sorting takes 0.3 to 0.6 cycles a number, number by number it took 2. Plans
by blocked.py of 3 channels of 224 x 224: 4 x 4 with 96 filters 75 instead of 105 microseconds, 16 x 16 with 768 filters
510 instead of 556; 192 channels of 28 x 28 to 384 filters under 2 x 2 269 instead of 279, by strassen.py 232.
What was learned there:
- A matrix sorted by a job of its own, for strassen.py to read as it reads a 1x1 layer, took 20 to 50 microseconds more
  than sorting each pair's part in its task: half of it lay, changed, in the other core's cache.
- Rows of 7 pixels of 32 x 32, as 16 pixels of which nine were thrown away, took 1.2 cycles a number; 8 pixels 0.5.
"""

from functools import lru_cache

import numpy as np
from numba.core import types

from .compilation import inlined
from .microkernel import vector_type
from .short_floats import memory_functions
from .tracing import (
    constant,
    first_lanes,
    interleave,
    load,
    load_lanes,
    loop,
    minimum,
    shuffle,
    split,
    store,
    traced,
    when,
)

SPLIT_CYCLES = 0.45  # a number


@lru_cache(maxsize=1024)
def apart(problem) -> bool:
    """Does every pixel read a patch of its own, that lies in x?"""
    window, no_padding = (problem.R, problem.S), ((0, 0), (0, 0))
    return window == problem.stride and problem.S > 1 and problem.dilation == (1, 1) and problem.padding == no_padding


def serves(problem) -> bool:
    """Are there patches whose rows can be sorted in registers?"""
    return apart(problem) and problem.layout == "NCHW" and problem.dtype == problem.accumulate


WHICH = "windows of two columns or more, as large as their stride"  # in words, for who is refused


def in_words(problem) -> str:
    return (
        f"the window is {problem.R}x{problem.S}, stride {problem.stride}, dilation {problem.dilation}, "
        f"padding {problem.padding}"
    )


@inlined
def are_patches(call):
    """`serves`, but for the layout, of a running call."""
    wide = call.stride_h == call.R and call.stride_w == call.S and call.S > 1
    inside = call.top == 0 and call.left == 0 and call.P * call.R <= call.H and call.Q * call.S <= call.W
    return wide and inside and call.dilation_h == 1 and call.dilation_w == 1


def sort_rows_function(real):
    """A Numba function sort_rows(to, to_tap, to_row, x, x_row, rows, S, count): of each row of x and each tap s the
    numbers of `count` neighbouring pixels, to to + s * to_tap; up to a vector more is written behind a row, before the
    next one is. x: address of the first pixel's first number.
    """
    V = vector_type(real)
    W, item = V.count, V.item_bytes

    def by_splitting(S):
        """S: a power of two."""

        @traced(types.void)
        def sort(to, to_tap, to_row, x, x_row, rows, count):
            whole = count // W
            rest = count - whole * W
            masks = [first_lanes(V, rest * S - j * W) for j in range(S)]

            def put(there, here, read):
                for s, pixels in enumerate(split([read(here + j * V.bytes, j) for j in range(S)])):
                    store(there + to_tap * s, pixels)

            def row(p):
                there, here = to + to_row * p, x + x_row * p
                loop(whole, lambda i: put(there + i * V.bytes, here + i * (S * V.bytes), lambda at, j: load(V, at)))
                with when(rest > 0):
                    last, last_x = there + whole * V.bytes, here + whole * (S * V.bytes)
                    put(last, last_x, lambda at, j: load_lanes(V, at, masks[j]))

            loop(rows, row)

        return sort

    def by_transposing(pixels):
        """Up to so many pixels, and up to W taps of each, of every row."""

        @traced(types.void)
        def sort(to, to_tap, to_row, x, x_row, x_pixel, rows, count, taps):
            inside, last = first_lanes(V, taps), count - 1
            apart = [x_pixel * minimum(constant(count, i), last) for i in range(pixels)]

            def row(p):
                there, here = to + to_row * p, x + x_row * p
                vectors = interleave([load_lanes(V, here + offset, inside) for offset in apart])
                for s in range(W):
                    begin = s * pixels % W
                    vector = vectors[s * pixels // W]
                    with when(taps > s):
                        store(there + to_tap * s, shuffle(vector, vector, range(begin, begin + pixels)))

            loop(rows, row)

        return sort

    by_two, by_four, by_eight = (by_splitting(S) for S in (2, 4, 8))
    many, few = by_transposing(W), by_transposing(W // 2)

    @inlined
    def sort_rows(to, to_tap, to_row, x, x_row, rows, S, count):
        if S == 2:
            by_two(to, to_tap, to_row, x, x_row, rows, count)
        elif S == 4:
            by_four(to, to_tap, to_row, x, x_row, rows, count)
        elif S == 8:
            by_eight(to, to_tap, to_row, x, x_row, rows, count)
        else:
            for q in range((count - 1) // W * W, -1, -W):  # what is written behind a row comes before that row's own
                for s in range(0, S, W):
                    here, there = x + (q * S + s) * item, to + s * to_tap + q * item
                    if count - q > W // 2:
                        many(there, to_tap, to_row, here, x_row, S * item, rows, min(W, count - q), min(W, S - s))
                    else:
                        few(there, to_tap, to_row, here, x_row, S * item, rows, count - q, min(W, S - s))

    return sort_rows


def copy_patches_function(real):
    """A Numba function copy_patches(call, to, to_depth, x, line, lines, p0, rows, first, last): rows of the matrix,
    to_depth bytes apart, of the channels' rows `line` to line + lines - 1, R to a channel, for `rows` rows of pixels
    from p0 on; of their columns those from `first` to `last`, and up to a vector more behind the last row's. x: address
    of channel 0.
    """
    item, sort_rows = np.dtype(real).itemsize, sort_rows_function(real)
    read, write, _, _ = memory_functions(np.dtype(real).name)

    @inlined
    def sort_numbers(to, to_tap, to_row, x, x_row, x_w, rows, S, count):
        for p in range(rows):
            for s in range(S):
                for q in range(count):
                    write(to + p * to_row + s * to_tap + q * item, read(x + p * x_row + (q * S + s) * x_w))

    @inlined
    def copy_patches(call, to, to_depth, x, line, lines, p0, rows, first, last):
        to_row, x_row, count = call.Q * item, call.R * call.x_h, last - first
        for i in range(lines):
            c, r = (line + i) // call.R, (line + i) % call.R
            here = x + c * call.x_c + (p0 * call.R + r) * call.x_h + first * call.S * call.x_w
            there = to + i * call.S * to_depth + first * item
            if call.x_w == item:
                sort_rows(there, to_depth, to_row, here, x_row, rows, call.S, count)
            else:
                sort_numbers(there, to_depth, to_row, here, x_row, call.x_w, rows, call.S, count)

    return copy_patches
