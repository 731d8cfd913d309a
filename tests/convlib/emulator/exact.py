"""Exact arithmetic for the opcode tests: floats as fractions, rounded once, in Python integers only."""

from __future__ import annotations

from fractions import Fraction

# precision in bits, exponent of the smallest normal number, bits of the exponent field
FORMATS = {
    "f16": (11, -14, 5),
    "bf16": (8, -126, 8),
    "tf32": (11, -126, 8),
    "f32": (24, -126, 8),
    "f64": (53, -1022, 11),
}
NAN, INF, MINUS_INF = "nan", "inf", "-inf"
CANONICAL_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def decoded(bits, format_):
    """(value, negative): a Fraction, or NAN, INF, MINUS_INF; negative tells -0 from +0."""
    precision, least, width = FORMATS[format_]
    negative = bool(bits >> (precision - 1 + width) & 1)
    exponent = bits >> (precision - 1) & ((1 << width) - 1)
    mantissa = bits & ((1 << (precision - 1)) - 1)
    if exponent == (1 << width) - 1:
        return (NAN if mantissa else MINUS_INF if negative else INF), negative
    if exponent:
        mantissa |= 1 << (precision - 1)
    value = Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - 1 + least - (precision - 1))
    return (-value if negative else value), negative


def flushed(value):
    """A decoded f32 with denormals as zeros."""
    number, negative = value
    return (Fraction(0), negative) if isinstance(number, Fraction) and abs(number) < Fraction(2) ** -126 else value


def encoded(number, format_, mode="rn", negative_zero=False):
    """The bits of an exact number (or NAN, INF, MINUS_INF) rounded once: rn, rna, rz, rm or rp."""
    precision, least, width = FORMATS[format_]
    sign, infinity = 1 << (precision - 1 + width), ((1 << width) - 1) << (precision - 1)
    if number == NAN:
        return CANONICAL_NAN.get(format_)
    if number in (INF, MINUS_INF):
        return infinity | (sign if number == MINUS_INF else 0)
    if number == 0:
        return sign if negative_zero else 0
    size = abs(number)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - (precision - 1))
    units = integer(number / step, mode)
    bits = encoded_units(abs(units), max(exponent, least), format_)
    directed = mode not in ("rn", "rna")
    if bits >= infinity and directed and not ((mode == "rp" and number > 0) or (mode == "rm" and number < 0)):
        bits = infinity - 1
    return bits | (sign if number < 0 else 0)


def encoded_units(units, exponent, format_):
    precision, least, width = FORMATS[format_]
    infinity = ((1 << width) - 1) << (precision - 1)
    if units < 1 << (precision - 1):  # denormal, or zero
        return units
    # adding the units, hidden bit included, to the exponent field carries by itself when they reach the next power
    return min(((exponent - least) << (precision - 1)) + units, infinity)


def integer(number, mode):
    """A fraction to an integer: rn to nearest even, rna halves away from zero, rz toward zero, rm down, rp up."""
    floor = number.numerator // number.denominator
    if floor == number:
        return floor
    if mode in ("rn", "rna"):
        twice, up = 2 * (number - floor), floor % 2 == 1 if mode == "rn" else number > 0
        return floor + (twice > 1 or (twice == 1 and up))
    return floor + (mode == "rp" or (mode == "rz" and number < 0))


def total(a, b, mode="rn"):
    """The exact sum of two decoded values: (number, negative), with IEEE's rules for zeros, infinities and NaN."""
    (x, x_negative), (y, y_negative) = a, b
    if NAN in (x, y) or (INF in (x, y) and MINUS_INF in (x, y)):
        return NAN, False
    for special in (INF, MINUS_INF):
        if special in (x, y):
            return special, special == MINUS_INF
    number = x + y
    if number == 0:
        negative = x_negative and y_negative if x_negative == y_negative else mode == "rm"
        if (x, y) != (0, 0):
            negative = mode == "rm"
        return number, negative
    return number, number < 0


def product(a, b):
    (x, x_negative), (y, y_negative) = a, b
    negative = x_negative != y_negative
    if NAN in (x, y):
        return NAN, False
    if x in (INF, MINUS_INF) or y in (INF, MINUS_INF):
        return (NAN, False) if 0 in (x, y) else (MINUS_INF if negative else INF, negative)
    return x * y, negative


def quotient(a, b):
    (x, x_negative), (y, y_negative) = a, b
    negative, infinities = x_negative != y_negative, (INF, MINUS_INF)
    if NAN in (x, y) or (x in infinities and y in infinities) or (x == 0 and y == 0):
        return NAN, False
    if x in infinities or y == 0:
        return (MINUS_INF if negative else INF), negative
    if y in infinities or x == 0:
        return Fraction(0), negative
    return x / y, negative


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
