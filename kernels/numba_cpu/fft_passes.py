"""Fourier transforms of columns, a column per lane: the passes that fft.py runs over its tiles.

A transform of length n = r1 r2 ... is one pass per factor. Forward (decimation in frequency), on a block of length b:

    elements j, j + b/r, j + 2 b/r, ...  --->  DFT of r numbers  --->  times w_b^(j k)  --->  back into the same places

and the next pass does the same to each of the r sub-blocks. What comes out is not in the order of the frequencies, and
need not be: the spectrum of the kernel comes out in the same order, and the inverse passes (decimation in time) undo
the forward ones from the last to the first. So nothing is ever reordered.

Numbers are pairs of vectors, real and imaginary parts, `apart` bytes from each other; element e of the column lies
`step` bytes behind element e - 1. A column of up to 512 float32 numbers in 16 lanes stays in the first-level cache for
all passes. Radix 8 keeps 16 vectors in registers, so it is for processors that have 32; others take radix 4.
The last pass forward and the first one back have no factors; between them lies the multiplication with the kernel's
spectrum. All three are one pass, `multiply_pass`, that stores nothing in between.

Source: Cooley and Tukey, 1965; in place and without reordering: Gentleman and Sande, Fast Fourier transforms for fun
and profit, 1966.
"""

from functools import lru_cache
from math import sqrt

import numpy as np
from numba.core import types

from . import target
from .compilation import inlined
from .tracing import Lanes, Value, broadcast, choose, constant, fma, load, loop, store, traced, transpose
from .vectors import array_at

PASS_FIELDS = ("radix", "part", "blocks", "factors")  # of a pass: r, b / r, n / b, and where its factors begin
PASS_BYTES = 8 * len(PASS_FIELDS)
HALF = sqrt(0.5)


# Which passes a length takes.


def radices(length):
    """The factors of a power of two, at least 8, in the order of the forward passes: 8 and 4, or 4 and 2.

    >>> radices(256) in ([4, 8, 8], [4, 4, 4, 4])
    True
    """
    found, large = [], 3 if target.register_count() == 32 else 2
    bits = length.bit_length() - 1
    while bits:
        found.append(1 << (large if bits % large == 0 else large - 1))
        bits -= found[-1].bit_length() - 1
    return found


@lru_cache(maxsize=64)
def tables(length, dtype_name):
    """(one row of PASS_FIELDS for each pass, the factors of all passes): what the passes read.

    Factors are computed in float64 and rounded once: (r - 1) complex numbers for each j.
    """
    rows, factors, block = [], [], length
    for radix in radices(length):
        part = block // radix
        rows.append((radix, part, length // block, sum(f.size for f in factors)))
        exponents = np.outer(np.arange(part), np.arange(1, radix))
        factors.append(np.exp(-2j * np.pi * exponents / block).ravel().view(np.float64))
        block = part
    return np.array(rows, np.int64), np.concatenate(factors).astype(dtype_name)


# One small transform in registers; numbers are pairs (real, imaginary).


def dft(numbers, sign):
    """The transform of 1, 2, 4 or 8 numbers with exponent `sign`, in the order of its frequencies."""
    n = len(numbers)
    if n == 1:
        return numbers
    even, odd = dft(numbers[0::2], sign), dft(numbers[1::2], sign)
    pairs = [sum_and_difference(even[k], odd[k], 8 * k // n, sign) for k in range(n // 2)]
    return [plus for plus, _ in pairs] + [minus for _, minus in pairs]


def sum_and_difference(a, b, eighths, sign):
    """a + t and a - t, where t is b turned by so many eighths of a circle, 0 to 3, in the direction of `sign`."""
    (ar, ai), (br, bi) = a, b
    if eighths == 0:
        return (ar + br, ai + bi), (ar - br, ai - bi)
    if eighths == 2:  # t = sign i b
        first, second = (ar - bi, ai + br), (ar + bi, ai - br)
        return (first, second) if sign > 0 else (second, first)
    together, apart = br + bi, br - bi
    # t = sqrt(1/2) (real, imaginary): the sums and differences that stay when b is multiplied by (+-1 +-i).
    if eighths == 1:
        (real, s), (imaginary, t) = (
            ((apart, HALF), (together, HALF)) if sign > 0 else ((together, HALF), (apart, -HALF))
        )
    else:
        (real, s), (imaginary, t) = (
            ((together, -HALF), (apart, HALF)) if sign > 0 else ((apart, -HALF), (together, -HALF))
        )
    plus = fma(real, constant(real, s), ar), fma(imaginary, constant(real, t), ai)
    minus = fma(real, constant(real, -s), ar), fma(imaginary, constant(real, -t), ai)
    return plus, minus


def negative(number):
    """-number, which an fma takes for nothing."""
    return Value(number.builder, number.builder.fneg(number.ir), number.type)


def times(a, b):
    (ar, ai), (br, bi) = a, b
    return fma(ar, br, negative(ai * bi)), fma(ar, bi, ai * br)


def times_conjugate(a, b):
    (ar, ai), (br, bi) = a, b
    return fma(ar, br, ai * bi), fma(ai, br, negative(ar * bi))


# The passes, as Numba functions.


def numbers_at(V, address, apart, distance, count):
    return [(load(V, address + distance * i), load(V, address + distance * i + apart)) for i in range(count)]


def put_numbers(address, apart, distance, numbers):
    for i, (real, imaginary) in enumerate(numbers):
        store(address + distance * i, real)
        store(address + distance * i + apart, imaginary)


def factor_pass(V, radix, sign):
    """A pass with factors: run(column, apart, step, part, blocks, factors). sign: -1 forward, 1 back."""
    pair = 2 * V.item_bytes

    def factors_at(address):
        halves = ((address + k * pair, address + (k * pair + V.item_bytes)) for k in range(radix - 1))
        return [tuple(broadcast(V, load(V.scalar, half)) for half in both) for both in halves]

    def turned(numbers, factors, multiply):
        return numbers[:1] + [multiply(number, factor) for number, factor in zip(numbers[1:], factors)]

    @traced(types.void)
    def run(column, apart, step, part, blocks, factors):
        distance = part * step

        def block(b):
            def element(j):
                here = column + distance * radix * b + step * j
                numbers, w = numbers_at(V, here, apart, distance, radix), factors_at(factors + j * (radix - 1) * pair)
                if sign < 0:
                    put_numbers(here, apart, distance, turned(dft(numbers, sign), w, times))
                else:
                    put_numbers(here, apart, distance, dft(turned(numbers, w, times_conjugate), sign))

            loop(part, element)

        loop(blocks, block)

    return run


def plain_pass(V, radix, sign):
    """The pass without factors, the last one forward and the first one back: run(column, apart, step, blocks)."""

    @traced(types.void)
    def run(column, apart, step, blocks):
        def block(b):
            here = column + step * radix * b
            put_numbers(here, apart, step, dft(numbers_at(V, here, apart, step, radix), sign))

        loop(blocks, block)

    return run


def multiply_pass(V, radix):
    """The last pass forward, the multiplication with the spectrum, and after the last term the first pass back."""
    step, apart = 2 * V.bytes, V.bytes

    @traced(types.void)
    def run(strip, spectrum, sums, blocks, is_first, is_last):
        """sums: what was added up so far; read but by the first term, written but by the last."""

        def block(b):
            at = b * (step * radix)
            distance = constant(at, step)
            numbers = dft(numbers_at(V, strip + at, apart, distance, radix), -1)
            products = list(map(times, numbers, numbers_at(V, spectrum + at, apart, distance, radix)))

            def with_sums():
                before = numbers_at(V, sums + at, apart, distance, radix)
                return [(r + more_r, i + more_i) for (r, i), (more_r, more_i) in zip(products, before)]

            total = choose(is_first.differs(0), lambda: products, with_sums)
            choose(
                is_last.differs(0),
                lambda: put_numbers(strip + at, apart, distance, dft([tuple(t) for t in total], 1)),
                lambda: put_numbers(sums + at, apart, distance, total),
            )

        loop(blocks, block)

    return run


def transform_functions(dtype_name):
    """Numba functions (forward, backward, convolve) on columns of float32 or float64.

    forward, backward(column, apart, step, passes, count, factors) run the first `count` passes of `tables`, or undo
    them; all but a transform's last one have factors. convolve(strip, ..., is_first, is_last): there and back.
    """
    V, item = (
        Lanes("f64" if dtype_name == "float64" else "f32", target.lanes(dtype_name)),
        np.dtype(dtype_name).itemsize,
    )
    large = 8 if target.register_count() == 32 else 4
    small = large // 2
    forward_large, forward_small = factor_pass(V, large, -1), factor_pass(V, small, -1)
    back_large, back_small = factor_pass(V, large, 1), factor_pass(V, small, 1)
    last_large, first_large = plain_pass(V, large, -1), plain_pass(V, large, 1)
    last_small, first_small = plain_pass(V, small, -1), plain_pass(V, small, 1)
    multiply_large, multiply_small = multiply_pass(V, large), multiply_pass(V, small)

    @inlined
    def forward(column, apart, step, passes, count, factors):
        table = array_at(types.int64, passes, (count, 4), (PASS_BYTES, 8))
        for i in range(count):
            radix, part, blocks, at = table[i, 0], table[i, 1], table[i, 2], factors + table[i, 3] * item
            if part > 1:
                if radix == large:
                    forward_large(column, apart, step, part, blocks, at)
                else:
                    forward_small(column, apart, step, part, blocks, at)
            elif radix == large:
                last_large(column, apart, step, blocks)
            else:
                last_small(column, apart, step, blocks)

    @inlined
    def backward(column, apart, step, passes, count, factors):
        table = array_at(types.int64, passes, (count, 4), (PASS_BYTES, 8))
        for i in range(count - 1, -1, -1):
            radix, part, blocks, at = table[i, 0], table[i, 1], table[i, 2], factors + table[i, 3] * item
            if part > 1:
                if radix == large:
                    back_large(column, apart, step, part, blocks, at)
                else:
                    back_small(column, apart, step, part, blocks, at)
            elif radix == large:
                first_large(column, apart, step, blocks)
            else:
                first_small(column, apart, step, blocks)

    @inlined
    def convolve(strip, spectrum, sums, passes, count, factors, is_first, is_last):
        table = array_at(types.int64, passes, (count, 4), (PASS_BYTES, 8))
        forward(strip, V_bytes, 2 * V_bytes, passes, count - 1, factors)
        if table[count - 1, 0] == large:
            multiply_large(strip, spectrum, sums, table[count - 1, 2], is_first, is_last)
        else:
            multiply_small(strip, spectrum, sums, table[count - 1, 2], is_first, is_last)
        if is_last:
            backward(strip, V_bytes, 2 * V_bytes, passes, count - 1, factors)

    V_bytes = V.bytes
    return forward, backward, convolve


def strip_functions(V):
    """Numba functions that turn rows into columns: (load_strip, store_strip), on V.count rows of two planes.

    A strip has an element for each column of the rows: a vector of real parts, one per row, and one of imaginary parts.
    """
    count = V.count

    @traced(types.void)
    def load_strip(strip, rows, row_bytes, plane_bytes, vectors):
        def columns(v):
            for half, plane in enumerate((rows, rows + plane_bytes)):
                squares = transpose([load(V, plane + v * V.bytes + row_bytes * i) for i in range(count)])
                for i, column in enumerate(squares):
                    store(strip + v * (2 * V.bytes * count) + (2 * i + half) * V.bytes, column)

        loop(vectors, columns)

    @traced(types.void)
    def store_strip(strip, rows, row_bytes, plane_bytes, vectors):
        def columns(v):
            for half, plane in enumerate((rows, rows + plane_bytes)):
                at = strip + v * (2 * V.bytes * count)
                squares = transpose([load(V, at + (2 * i + half) * V.bytes) for i in range(count)])
                for i, row in enumerate(squares):
                    store(plane + v * V.bytes + row_bytes * i, row)

        loop(vectors, columns)

    return load_strip, store_strip
