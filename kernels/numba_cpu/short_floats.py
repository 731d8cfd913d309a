"""float16 and bfloat16 as numbers: Numba has neither on the CPU, so both arrive as 16-bit integers and are widened
here.

bfloat16 is the upper half of a float32. float16 converts in hardware (F16C, AVX-512, NEON) or, without, through
integers. Narrowing rounds once, to nearest even. Everything works alike on one number and on vectors.
Source: the float16 integer conversion follows IEEE 754-2008's definition: a float32 multiply shifts the exponent,
and an addition of a power of two lets the float adder round.
"""

from numba.core import types

from . import target
from .tracing import Lanes, bits, convert, select, traced, zero_extend


def widen(raw, name):
    """16-bit integers as float32. name: "float16" or "bfloat16"."""
    integers, floats = raw.type.of("i32"), raw.type.of("f32")
    if name == "bfloat16":
        return bits(zero_extend(raw, integers) << 16, floats)
    if target.converts_float16():
        return convert(bits(raw, raw.type.of("f16")), floats)
    word = zero_extend(raw, integers)
    sign, magnitude = (word & 0x8000) << 16, (word & 0x7FFF) << 13
    scaled = bits(magnitude, floats) * 2.0**112  # exponent bias 15 -> 127; subnormals become normal
    special = bits(magnitude | 0x7F800000, integers)  # infinity and NaN
    return bits(select(magnitude >= 0x0F800000, special, bits(scaled, integers)) | sign, floats)


def narrow(number, name):
    """float32 as 16-bit integers of float16 or bfloat16, rounded to nearest even."""
    integers, short = number.type.of("i32"), number.type.of("i16")
    word = bits(number, integers)
    if name == "bfloat16":
        rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        return convert(select(number.differs(number), (word >> 16) | 0x40, rounded), short)
    if target.converts_float16():
        return bits(convert(number, number.type.of("f16")), short)
    sign, magnitude = (word >> 16) & 0x8000, word & 0x7FFFFFFF
    normal = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    tiny = bits(bits(magnitude, number.type) + 0.5, integers) - 0x3F000000  # the adder rounds to multiples of 2^-24
    result = select(magnitude < 0x38800000, tiny, normal)
    result = select(magnitude >= 0x477FF000, 0x7C00, result)
    result = select(magnitude > 0x7F800000, ((magnitude >> 13) & 0x3FF) | 0x7E00, result)
    return convert(result | sign, short)


def number_functions(dtype_name):
    """Two Numba functions for one element of an array of that dtype: what is stored as a number, and a number as
    stored.
    """
    if dtype_name in ("float32", "float64"):
        real = types.float32 if dtype_name == "float32" else types.float64
        return traced(real)(lambda item: item), traced(real)(lambda number: number)

    @traced(types.float32)
    def as_number(item):
        return widen(convert(item, Lanes("i16")), dtype_name)

    @traced(types.uint16)
    def as_stored(number):
        return narrow(number, dtype_name)

    return as_number, as_stored
