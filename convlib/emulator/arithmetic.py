"""What each instruction computes, lane by lane, with the GPU's rounding: plain functions on NumPy arrays.

NumPy's float32 and float64 addition, multiplication, division and square root round once, to nearest even, as the GPU
does; what this file adds is what NumPy has not:

    fused multiply-add     one rounding: the processor's own fma through LLVM (Numba), on any machine
    directed rounding      the exact value as a sum of two float64, then the neighbour on the right side
    .ftz                   denormals become zeros of their sign, on the way in and on the way out
    NaN                    every float32 result is the GPU's 0x7fffffff
    the approximations     ex2, lg2, rsqrt, sin, cos, tanh: computed in float64 and rounded once; a GPU may be off by
                           two units in the last place, so nothing may hang on those bits

Sources: NVIDIA, PTX ISA 9.0, section 9.7; Knuth, TAOCP volume 2, 4.2.2 (the exact error of an addition).
"""

from __future__ import annotations

import numpy as np
from numba import types, vectorize
from numba.extending import intrinsic

F32_NAN = np.uint32(0x7FFFFFFF).view(np.float32)
F16_NAN, BF16_NAN = np.uint16(0x7FFF), np.uint16(0x7FFF)
SMALLEST_NORMAL = {np.dtype(np.float32): np.float32(2.0**-126), np.dtype(np.float64): np.float64(2.0**-1022)}
DIRECTIONS = {"rm": -np.inf, "rp": np.inf}


# Fused multiply-add


@intrinsic
def fused(typing, a, b, c):
    return a(a, b, c), lambda context, builder, signature, arguments: builder.fma(*arguments)


@intrinsic
def nan_of_the_gpu(typing):
    def bits(context, builder, signature, arguments):
        word = context.get_constant(types.uint32, 0x7FFFFFFF)
        return builder.bitcast(word, context.get_value_type(types.float32))

    return types.float32(), bits


@vectorize(["float32(float32, float32, float32)"], cache=True)
def fma_f32(a, b, c):
    d = fused(a, b, c)
    return d if d == d else nan_of_the_gpu()


@vectorize(["float32(float32, float32, float32)"], cache=True)
def fma_ftz_f32(a, b, c):
    zero, least = np.float32(0), np.float32(2.0**-126)
    a = a * zero if abs(a) < least else a
    b = b * zero if abs(b) < least else b
    c = c * zero if abs(c) < least else c
    d = fused(a, b, c)
    d = d * zero if abs(d) < least else d
    return d if d == d else nan_of_the_gpu()


@vectorize(["float64(float64, float64, float64)"], cache=True)
def fma_f64(a, b, c):
    return fused(a, b, c)


def fma_directed(a, b, c, mode):
    """a * b + c of float32, rounded toward zero ("rz"), minus ("rm") or plus infinity ("rp")."""
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 24 + 24 bits
    addend = np.float64(c)
    total = product + addend
    rest = error_of_sum(product, addend, total)
    result = rounded_toward(total, rest, mode)
    if mode == "rm":  # an exact difference of zero is -0 there
        cancelled = (total == 0) & (rest == 0) & (np.signbit(product) != np.signbit(addend))
        result = np.where(cancelled, np.float32(-0.0), result)
    return result


def product_directed(a, b, mode):
    """a * b of float32, rounded in the direction `mode`."""
    return rounded_toward(a.astype(np.float64) * b.astype(np.float64), np.float64(0), mode)


def error_of_sum(a, b, total):
    """What rounding took from total = a + b, exactly; 0 where the sum is not finite."""
    b_part = total - a
    rest = (a - (total - b_part)) + (b - b_part)
    return np.where(np.isfinite(total), rest, 0.0)


def rounded_toward(total, rest, mode):
    """The float32 beside the exact value total + rest in direction `mode`."""
    nearest = total.astype(np.float32)
    distance = total - nearest
    above = np.where(distance != 0, distance, rest)  # the sign of (exact - nearest)
    if mode == "rz":
        aim = np.where(total < 0, np.inf, -np.inf).astype(np.float32)
    else:
        aim = np.float32(DIRECTIONS[mode])
    past = np.where(aim > 0, above > 0, above < 0)
    return np.where(past & np.isfinite(total), np.nextafter(nearest, aim), nearest)


# Denormals and NaN


def flush(a):
    """Denormals as zeros of their sign."""
    denormal = np.abs(a) < SMALLEST_NORMAL[a.dtype]
    return np.where(denormal, np.copysign(a.dtype.type(0), a), a) if denormal.any() else a


def canonical(a):
    """float32 NaNs as the one that the GPU makes."""
    if a.dtype != np.float32:
        return a
    unordered = a != a
    return np.where(unordered, F32_NAN, a) if unordered.any() else a


def saturate(a):
    """Clamped to [0, 1]; NaN becomes 0."""
    return np.where(a > 0, np.minimum(a, a.dtype.type(1)), a.dtype.type(0))


def floating(function, flushing=False, saturating=False):
    """`function` on floats with the modifiers .ftz and .sat around it."""

    def compute(*operands):
        if flushing:
            operands = [flush(np.asarray(a)) for a in operands]
        result = canonical(np.asarray(function(*operands)))
        if flushing:
            result = flush(result)
        return saturate(result) if saturating else result

    return compute


def in_float64(function):
    """`function` computed in float64 and rounded once to the type of its operands."""
    return lambda *operands: function(*(a.astype(np.float64) for a in operands)).astype(operands[0].dtype)


def minimum(a, b):
    """The smaller; a NaN gives way to a number, and -0 is smaller than +0."""
    smaller = np.fmin(a, b)
    return np.where((a == b) & np.signbit(a), a, np.where((a == b) & np.signbit(b), b, smaller))


def maximum(a, b):
    larger = np.fmax(a, b)
    return np.where((a == b) & ~np.signbit(a), a, np.where((a == b) & ~np.signbit(b), b, larger))


def nan_if_any(function):
    """min.NaN and max.NaN: a NaN operand makes the result NaN."""
    return lambda a, b: np.where((a != a) | (b != b), np.asarray(a).dtype.type(np.nan), function(a, b))


# Integers


def high_product(a, b):
    """The upper half of a * b; a, b: 16, 32 or 64 bits."""
    dtype = np.asarray(a).dtype
    if dtype.itemsize < 8:
        wide = wider(dtype)
        return (wide.type(1) * a.astype(wide) * b.astype(wide) >> wide.type(8 * dtype.itemsize)).astype(dtype)
    return high_product_64(a, b, signed=dtype.kind == "i")


def high_product_64(a, b, signed):
    """From four products of 32-bit halves, as on paper; a signed operand's negative weight is taken off at the end."""
    a, b = np.asarray(a).view(np.uint64), np.asarray(b).view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> half) + (other >> half)
    if not signed:
        return high
    high = high - np.where(a >> np.uint64(63), b, np.uint64(0)) - np.where(b >> np.uint64(63), a, np.uint64(0))
    return high.view(np.int64)


def wide_product(a, b):
    """The whole product, in a type of twice the width."""
    wide = wider(np.asarray(a).dtype)
    return a.astype(wide) * b.astype(wide)


def wider(dtype):
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


def quotient(a, b):
    """Toward zero, as in C; division by zero gives all ones, as GPUs do."""
    zero = b == 0
    divisor = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        result = a // divisor
    else:
        remainder = np.fmod(a, divisor)
        result = np.where(divisor == -1, -a, (a - remainder) // divisor)  # -a: the smallest integer has no opposite
    return np.where(zero, ~b.dtype.type(0), result)


def remainder(a, b):
    zero = b == 0
    return np.where(zero, a, np.fmod(a, np.where(zero, b.dtype.type(1), b)))


def shift_left(a, amount):
    return shifted(np.left_shift, a, amount, np.zeros_like(a))


def shift_right(a, amount):
    """Of signed values arithmetic: what comes in is the sign."""
    a = np.asarray(a)
    fill = a >> a.dtype.type(8 * a.dtype.itemsize - 1) if a.dtype.kind == "i" else np.zeros_like(a)
    return shifted(np.right_shift, a, amount, fill)


def shifted(function, a, amount, beyond):
    """Amounts are unsigned 32-bit; those past the width give `beyond`."""
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    within = amount < bits
    return np.where(within, function(a, np.where(within, amount, 0).astype(a.dtype)), beyond)


def funnel(low, high, amount, left, wrap):
    """shf: 32 bits out of the 64 of high:low, shifted left or right."""
    amount = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
    both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    if not left:
        return (both >> amount).astype(np.uint32)
    return ((both << amount) >> np.uint64(32)).astype(np.uint32)


def extract(a, position, length):
    """bfe: `length` bits of a from `position`; signed ones take the sign of the field's last bit, or of a's."""
    bits = 8 * np.asarray(a).dtype.itemsize
    wide = np.uint64
    position, length = (np.asarray(v & np.uint32(0xFF)).astype(np.int64) for v in (position, length))
    value = np.asarray(a).view(np.dtype(f"u{bits // 8}")).astype(wide)
    width = np.clip(bits - position, 0, length)
    field = shift_right(value, position.astype(np.uint32)) & (shift_left(wide(1) + 0 * value, width) - wide(1))
    if a.dtype.kind == "i":
        last = np.clip(position + length - 1, 0, bits - 1).astype(np.uint32)
        sign = (shift_right(value, last) & wide(1)).astype(bool) & (length > 0)
        field = np.where(sign, field | shift_left(~wide(0) + 0 * value, width), field)
    return field.astype(np.dtype(f"u{bits // 8}")).view(a.dtype)


def insert(a, b, position, length):
    """bfi: the low `length` bits of a put into b at `position`."""
    dtype = np.asarray(b).dtype
    position, length = position & np.uint32(0xFF), length & np.uint32(0xFF)
    ones = shift_left(dtype.type(1) + dtype.type(0) * b, length) - dtype.type(1)
    mask = shift_left(ones, position)
    return (b & ~mask) | (shift_left(a + dtype.type(0) * b, position) & mask)


def permute(a, b, selector):
    """prmt: four bytes chosen among the eight of b:a; bit 3 of a choice repeats the byte's sign."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(0xF)
        byte = ((both >> (np.uint64(8) * (choice & np.uint32(7)).astype(np.uint64))) & np.uint64(0xFF)).astype(
            np.uint32
        )
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        byte = np.where(choice & np.uint32(8), sign, byte)
        result |= byte << np.uint32(8 * i)
    return result


def logic(a, b, c, table):
    """lop3: the truth table's bit (4a + 2b + c), for each bit."""
    result = np.uint32(0) * (a | b | c)
    for index in range(8):
        if int(table) >> index & 1:
            result = result | ((a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c))
    return result


def leading_zeros(a):
    """In 32 or 64 bits, as uint32."""
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    count = np.full(a.shape, bits, np.uint32)
    for shift in (32, 16, 8, 4, 2, 1):
        if shift < bits:
            upper = a >> a.dtype.type(shift)
            count = np.where(upper != 0, count - np.uint32(shift), count)
            a = np.where(upper != 0, upper, a)
    return np.where(a != 0, count - np.uint32(1), count)


def reversed_bits(a):
    result, one = np.zeros_like(a), a.dtype.type(1)
    for _ in range(8 * a.dtype.itemsize):
        result = result << one | (a & one)
        a = a >> one
    return result


def highest_bit(a):
    """bfind: the position of the highest bit that differs from the sign; 0xffffffff where there is none."""
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":
        a = np.where(a < 0, ~a, a)
    return np.uint32(bits - 1) - leading_zeros(np.asarray(a).view(np.dtype(f"u{bits // 8}")))


# Conversions


def integers_of_floats(a, dtype, mode):
    """Rounded by `mode` and clamped to what dtype holds; NaN becomes 0."""
    whole = ROUND_TO_INTEGER[mode](a.astype(np.float64))
    info = np.iinfo(dtype)
    inside = (whole > float(info.min) - 1) & (whole < float(info.max) + 1)
    if dtype.itemsize == 8:
        inside = (whole >= float(info.min)) & (whole < float(info.max))  # float(2**63 - 1) is 2**63, already outside
    values = np.where(inside, whole, 0).astype(dtype)
    clamped = np.where(whole < 0, dtype.type(info.min), dtype.type(info.max))
    return np.where(inside, values, np.where(whole == whole, clamped, dtype.type(0)))


ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def floats_of_integers(a, dtype, mode):
    if mode == "rn" or a.dtype.itemsize <= 2:
        return a.astype(dtype)
    if dtype == np.float32 and a.dtype.itemsize == 4:
        return rounded_toward(a.astype(np.float64), np.float64(0), mode)
    raise NotImplementedError


def float16_bits(a):
    """float32 or float64 to the bits of float16, to nearest even, in one rounding."""
    bits = a.astype(np.float16).view(np.uint16)
    return np.where(a != a, F16_NAN, bits)


def bfloat16_bits(a):
    """float32 to the bits of bfloat16, to nearest even: add half of the last place kept, less one if it is even."""
    bits = a.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(a != a, BF16_NAN, rounded.astype(np.uint16))


def tf32_bits(a):
    """float32 to TF32, the 10 highest bits of its mantissa, the others zero; halves away from zero."""
    return rounded_to_tf32(a, np.uint32(0x1000))


def even_tf32_bits(a):
    """The same, halves to nearest even."""
    return rounded_to_tf32(a, np.uint32(0xFFF) + (a.view(np.uint32) >> np.uint32(13) & np.uint32(1)))


def rounded_to_tf32(a, added):
    bits = a.view(np.uint32)
    rounded = bits + added & np.uint32(0xFFFFE000)
    return np.where(a != a, F32_NAN.view(np.uint32), np.where(np.isinf(a), bits, rounded))


def floats_of_float16(bits):
    return canonical(bits.view(np.float16).astype(np.float32))


def floats_of_bfloat16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
