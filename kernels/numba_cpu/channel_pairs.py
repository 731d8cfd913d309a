"""Pairs of channels as 32-bit words, and the two instructions of AVX-512 BF16 that take them.

    channel c        a0 a1 a2 a3 ...    16 bits each         word q     [ a_q | b_q ]      a in the lower half
    channel c + 1    b0 b1 b2 b3 ...           ->            a vector   [ a0 b0 | a1 b1 | a2 b2 | ... | a15 b15 ]

    vdpbf16ps        sums[q] += w_b * b_q, then += w_a * a_q      for 16 words with one word of weights in every lane

One instruction does 32 multiply-adds, and as many of them start in a cycle as of float32's 16: measured on a Zen 5, 532
GFLOP/s of 267 for float32, with 12 sums in flight or more (it takes 6 cycles), and on a Zen 4, 236 of 118. Both
products are exact, each is added with one rounding to nearest even; numbers and sums below 2^-126 count as zero. Of an
odd number of channels the last is a pair with zeros.

Pairing costs little: two loads that widen, a shift and an or make 16 words. With stride 2 it costs no more, since a
word of a channel's row holds the wanted number and the one to leave out.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VDPBF16PS and VCVTNEPS2BF16.
"""

import numpy as np
from llvmlite import ir
from numba.core import types

from . import target, tracing
from .call import CALL
from .compilation import inlined
from .flat_planes import clear_function, planes_function, put_word
from .microkernel import VECTORS, Arithmetic
from .short_floats import narrow, widen
from .threads import task_loop
from .tracing import (
    Lanes,
    Value,
    bits,
    convert,
    first_lanes,
    lanes_between,
    load,
    load_lanes,
    loop,
    shuffle,
    store,
    store_lanes,
    traced,
    zero_extend,
)
from .vectors import record_at

LANES = 16  # of a vector of words or of sums
SHORTS, WORDS, SUMS = Lanes("i16", LANES), Lanes("i32", LANES), Lanes("f32", LANES)
PAIRS = Lanes("i16", 2 * LANES)
SHORT_BYTES, WORD_BYTES = 2, 4
PANEL_ROW = VECTORS * SUMS.bytes


def multiplies_pairs() -> bool:
    """Does compiled code have the instructions, on the vectors that everything else is made for?"""
    return "avx512bf16" in target.features() and target.vector_bytes() == SUMS.bytes


# The two instructions.


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


def as_pairs(words):
    vector = Lanes("bf16", 2 * LANES)
    return Value(words.builder, words.builder.bitcast(words.ir, ir.VectorType(BFloat(), 2 * LANES)), vector)


def dot_pairs(a, b, sums):
    """sums + both products of each word of a and b. Words may come as float32 vectors: only their bits matter."""
    return tracing.call(sums, "llvm.x86.avx512bf16.dpbf16ps.512", SUMS, [sums, as_pairs(a), as_pairs(b)])


class Rounded:
    """The result's type of `round_sums`, for the call."""

    ir = ir.VectorType(BFloat(), LANES)


def round_sums(sums):
    """Sums as bfloat16, rounded to nearest even; NaN stays NaN."""
    return bits(tracing.call(sums, "llvm.x86.avx512bf16.cvtneps2bf16.512", Rounded, [sums]), SHORTS)


def read_results(V, address):
    return widen(load(V.of("i16"), address), "bfloat16")


def write_results(address, sums):
    """A vector of sums, or one."""
    store(address, round_sums(sums) if sums.type.count else narrow(sums, "bfloat16"))


PAIRED = Arithmetic(dot_pairs, read_results, write_results, SHORT_BYTES)


# Words of two channels' numbers.


def joined(low, high):
    """16-bit numbers as the halves of words; high may be None, for zeros."""
    words = low.type.of("i32")
    low = zero_extend(low, words)
    return low if high is None else low | (zero_extend(high, words) << 16)


def neighbours(first, end, like):
    """read(address): the 16 numbers there, of which first .. end-1 are read and the others are zero."""
    mask = lanes_between(SHORTS, tracing.constant(like, 0), first, end)
    return lambda here: load_lanes(SHORTS, here, mask)


def every_second(first, end, like):
    """As neighbours, but of the numbers there every second one: the lower halves of words."""
    mask = lanes_between(PAIRS, tracing.constant(like, 0), first * 2, end * 2 - 1)
    return lambda here: convert(bits(load_lanes(PAIRS, here, mask), WORDS), SHORTS)


def rows_of(reader, paired):
    @traced(types.void)
    def copy(to, to_pair, to_row, x, x_channel, x_row, pairs, rows, first, end):
        """A vector of words for each row of each pair; those of lanes first .. end-1 are read, the others are zero."""
        read = reader(first, end, x)

        def pair(c):
            here, there = x + c * 2 * x_channel, to + c * to_pair

            def row(i):
                low = here + i * x_row
                store(there + i * to_row, joined(read(low), read(low + x_channel) if paired else None))

            loop(rows, row)

        loop(pairs, pair)

    return copy


def copy_word_function(paired):
    """A Numba function copy_word(to, x, x_channel): one pixel's word."""

    @traced(types.void)
    def copy_word(to, x, x_channel):
        short = Lanes("i16")
        store(to, joined(load(short, x), load(short, x + x_channel) if paired else None))

    return copy_word


# x as planes and as panels of words.


def copy_pair_planes_function(paired):
    """flat_planes.planes_function for words of channel pairs; not `paired`: of one channel each, and zeros."""
    return planes_function(copy_pairs_inside_function(paired), np.float32, apart=2)


def copy_pairs_inside_function(paired):
    """What flat_planes.copy_inside_function is for numbers."""
    copy_neighbours, copy_every_second = rows_of(neighbours, paired), rows_of(every_second, paired)
    copy_word, clear = copy_word_function(paired), clear_function(np.float32)

    @inlined
    def copy_inside(call, to, to_pair, x, x_row, pairs, rows, inside, outside, first, last):
        row, pitch = call.Q * WORD_BYTES, call.stride_w * call.x_w
        if call.x_w == SHORT_BYTES and call.stride_w <= 2:
            # From right to left, since what a vector writes beyond its row, the first of the next row puts right.
            for q in range(first + (last - 1 - first) // LANES * LANES, first - 1, -LANES):
                here, there, begin, end = x + q * pitch, to + q * WORD_BYTES, inside - q, outside - q
                if call.stride_w == 1:
                    copy_neighbours(there, to_pair, row, here, call.x_c, x_row, pairs, rows, begin, end)
                else:
                    copy_every_second(there, to_pair, row, here, call.x_c, x_row, pairs, rows, begin, end)
            return
        begin, end = min(max(inside, first), last), min(max(outside, first), last)
        for c in range(pairs):
            for i in range(rows):
                here, there = x + c * 2 * call.x_c + i * x_row, to + c * to_pair + i * row
                clear(there + first * WORD_BYTES, begin - first)
                for q in range(begin, end):
                    copy_word(there + q * WORD_BYTES, here + q * pitch, call.x_c)
                clear(there + end * WORD_BYTES, last - end)

    return copy_inside


def copy_panels_function(paired):
    """A Numba function copy_panels(to, tile_bytes, x, x_channel, pixels, pairs): neighbouring pixels of x as panels,
    one tile of them after the other, in each of which a pair's words of a tile's pixels are neighbours.
    """

    @traced(types.void)
    def copy_panels(to, tile_bytes, x, x_channel, pixels, pairs):
        width = VECTORS * LANES
        tiles = pixels // width
        rest = pixels - tiles * width
        masks = [first_lanes(SHORTS, rest - LANES * j) for j in range(VECTORS)]

        def copy_tile(to, low, read):
            for j in range(VECTORS):
                here = low + SHORTS.bytes * j
                high = read(here + x_channel, j) if paired else None
                store(to + WORDS.bytes * j, joined(read(here, j), high))

        def pair(c):
            low, there = x + c * 2 * x_channel, to + PANEL_ROW * c

            def whole(tile):
                copy_tile(there + tile * tile_bytes, low + tile * (width * SHORT_BYTES), lambda at, j: load(SHORTS, at))

            loop(tiles, whole)
            with tracing.when(rest > 0):
                last = low + tiles * (width * SHORT_BYTES)
                copy_tile(there + tiles * tile_bytes, last, lambda at, j: load_lanes(SHORTS, at, masks[j]))

        loop(pairs, pair)

    return copy_panels


@inlined
def fill_panel_offsets(to, pairs):
    """The table of how far behind a tile's panel each pair's words lie, in bytes."""
    for c in range(pairs):
        put_word(to, c, c * PANEL_ROW)


# Weights as rows of words.

TAPS, TURN = 9, LANES  # of 3x3 windows so many pairs in a turn: whole vectors of words


def nine_taps():
    """For each vector of a turn's words: where two vectors of numbers begin that hold both halves of all of them, and
    which of these numbers are wanted.
    """
    most = 2 * TURN * TAPS - PAIRS.count
    for first in range(0, TURN * TAPS, LANES):
        halves = [
            pair * 2 * TAPS + half * TAPS + tap
            for pair, tap in (divmod(word, TAPS) for word in range(first, first + LANES))
            for half in (0, 1)
        ]
        begins = min(halves[0], most), min(halves[0] + PAIRS.count, most)
        yield begins, [h - begins[0] if h - begins[0] < PAIRS.count else h - begins[1] + PAIRS.count for h in halves]


def fill_row_function():
    """A Numba function fill_row(call, to, w, full_pairs, pairs): the words of one filter's `full_pairs` pairs, and of
    a lone channel behind them if these are not all `pairs`. w: address of the first channel's weights.
    """
    copy_word, copy_lone_word = copy_word_function(True), copy_word_function(False)

    @traced(types.void)
    def copy_turns(to, w, turns):
        """Contiguous weights of 3x3 windows, a turn after the other: a shuffle of two loads for 16 words."""

        def turn(i):
            here, there = w + i * (2 * TURN * TAPS * SHORT_BYTES), to + i * (TURN * TAPS * WORD_BYTES)
            for v, (begins, order) in enumerate(nine_taps()):
                a, b = (load(PAIRS, here + begin * SHORT_BYTES) for begin in begins)
                store(there + v * WORDS.bytes, shuffle(a, b, order))

        loop(turns, turn)

    @traced(types.void)
    def copy_contiguous(to, w, pairs, taps):
        """Rows of `taps` words, of weights whose channels follow each other."""
        channel = taps * SHORT_BYTES

        def pair(c):
            low, there = w + c * 2 * channel, to + c * taps * WORD_BYTES

            def vector(i):
                mask, here = first_lanes(SHORTS, taps - LANES * i), low + SHORTS.bytes * i
                words = joined(load_lanes(SHORTS, here, mask), load_lanes(SHORTS, here + channel, mask))
                store_lanes(there + WORDS.bytes * i, words, mask)

            loop((taps + LANES - 1) // LANES, vector)

        loop(pairs, pair)

    @traced(types.void)
    def copy_words(to, w, count):
        """As they lie: a 1x1 window's pairs."""
        whole = count // LANES
        loop(whole, lambda i: store(to + i * WORDS.bytes, load(WORDS, w + i * WORDS.bytes)))
        loop(count - whole * LANES, lambda i: copy_one(to, w, whole * LANES + i))

    def copy_one(to, w, i):
        store(to + i * WORD_BYTES, load(WORDS.scalar, w + i * WORD_BYTES))

    @inlined
    def copy_tap_by_tap(call, to, w, pairs, paired):
        for pair in range(pairs):
            for r in range(call.R):
                for s in range(call.S):
                    here = w + 2 * pair * call.w_c + r * call.w_r + s * call.w_s
                    if paired:
                        copy_word(to, here, call.w_c)
                    else:
                        copy_lone_word(to, here, call.w_c)
                    to += WORD_BYTES

    @inlined
    def fill_row(call, to, w, full_pairs, pairs):
        taps = call.R * call.S
        by_row = call.S == 1 or call.w_s == SHORT_BYTES
        by_channel = by_row and (call.R == 1 or call.w_r == call.S * SHORT_BYTES) and call.w_c == taps * SHORT_BYTES
        if by_channel and taps == 1:
            copy_words(to, w, full_pairs)
        elif by_channel:
            turned = full_pairs // TURN * TURN if taps == TAPS else 0
            copy_turns(to, w, turned // TURN)
            done = turned * taps
            copy_contiguous(to + done * WORD_BYTES, w + 2 * done * SHORT_BYTES, full_pairs - turned, taps)
        else:
            copy_tap_by_tap(call, to, w, full_pairs, True)
        lone = to + full_pairs * taps * WORD_BYTES
        copy_tap_by_tap(call, lone, w + 2 * full_pairs * call.w_c, pairs - full_pairs, False)

    return fill_row


def build_rows(padding):
    """Task: one filter, or one row of zeros. call.w: the weights, call.y: an array (1, filters, 1, words) of rows.
    padding: filters of a group are a multiple of it.
    """
    fill_row, clear = fill_row_function(), clear_function(np.float32)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        padded, pairs = (call.Kg + padding - 1) // padding * padding, (call.Cg + 1) // 2
        g, k = index // padded, index % padded
        to = call.y + index * call.y_k
        if k < call.Kg:
            fill_row(call, to, call.w + (g * call.Kg + k) * call.w_k, call.Cg // 2, pairs)
        else:
            clear(to, pairs * call.R * call.S)

    return task_loop(pack)
