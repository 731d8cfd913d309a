"""How elements lie in memory and which numbers they are: 16-bit floats are stored as uint16, computed with as float32.

    memory      float16 or bfloat16 as uint16        float32        float64
                  |  widen        ^  narrow             |              |
    registers   float32                              float32        float64

Numba has no bfloat16 on the GPU and its simulator no float16 arithmetic, so both types travel as bits and are
converted here: one PTX instruction for float16 (cvt.f32.f16, cvt.rn.f16.f32), integer arithmetic for bfloat16, which
is the upper half of a float32 (sm_75 has no instruction for it). Narrowing rounds to nearest, ties to even, once;
infinities, denormals and NaN stay what they are.
"""

from functools import cache

import numpy as np
from numba import cuda, float32, float64, uint16, uint32, uint64

from ...device import simulating

at = int if simulating() else uint64
"""An index known not to be negative: x[at(n), at(c)]. Numba takes -1 for the last element and tests every signed index
for it, which is 4 instructions an axis; uint64 goes untested (and is slow in the simulator)."""

small = int if simulating() else uint32
"""A number known to be from 0 to 2^32 - 1: its division by such a constant is one multiplication, without the five
instructions that Python's rounding of negative quotients takes."""


def register_type(dtype_name):
    """The Numba type that sums are kept in: float64 for float64, float32 for everything shorter."""
    return float64 if dtype_name == "float64" else float32


def run_length(dtype_name):
    """Numbers in a 16-byte load from shared memory."""
    return 2 if dtype_name == "float64" else 4


@cache
def widen(dtype_name):
    """The device function that turns an element of an array of `dtype_name` into a number."""
    if dtype_name == "float16":
        return device_function(float16_to_float32())
    if dtype_name == "bfloat16":
        return device_function(bfloat16_to_float32())
    return device_function(lambda element: element)


@cache
def narrow(dtype_name):
    """The device function that rounds a number to an element of an array of `dtype_name`."""
    if dtype_name == "float16":
        return device_function(float32_to_float16())
    if dtype_name == "bfloat16":
        return device_function(float32_to_bfloat16())
    return device_function(lambda number: number)


def device_function(function):
    """`function` for kernels to call. Inlined by Numba itself, so that compiling it asks no driver for a device."""
    return cuda.jit(device=True, inline="always")(function)


def float16_to_float32():
    as_float = conversion("float32_of_float16", uint16, float32)
    return lambda element: as_float(element)


def float32_to_float16():
    as_half = conversion("float16_of_float32", float32, uint16)
    return lambda number: as_half(number)


def bfloat16_to_float32():
    as_float = conversion("float32_of_bits", uint32, float32)
    return lambda element: as_float(uint32(uint32(element) << uint32(16)))


def float32_to_bfloat16():
    as_bits = conversion("bits_of_float32", float32, uint32)

    def to_bfloat16(number):
        bits = as_bits(number)
        upper = uint32(bits >> uint32(16))
        if number != number:
            return uint16(upper | uint32(0x40))  # quiet: a payload in the lower half alone would turn into infinity
        return uint16(uint32(bits + uint32(0x7FFF) + (upper & uint32(1))) >> uint32(16))

    return to_bfloat16


def conversion(name, source, target):
    """A change of type that Numba's Python cannot spell: NumPy in the simulator, LLVM instructions on a GPU."""
    return simulated_conversion(name) if simulating() else compiled_conversion(name, source, target)


def simulated_conversion(name):
    return {
        "float32_of_bits": lambda bits: np.uint32(bits).view(np.float32),
        "bits_of_float32": lambda number: np.float32(number).view(np.uint32),
        "float32_of_float16": lambda bits: np.float32(np.uint16(bits).view(np.float16)),
        "float16_of_float32": rounded_to_float16,
    }[name]


def rounded_to_float16(number):
    with np.errstate(over="ignore"):  # 65,520 and more become infinity, as on a GPU
        return np.float16(np.float32(number)).view(np.uint16)


def compiled_conversion(name, source, target):
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    word, short, single, half = ir.IntType(32), ir.IntType(16), ir.FloatType(), ir.HalfType()
    build = {
        "float32_of_bits": lambda builder, bits: builder.bitcast(bits, single),
        "bits_of_float32": lambda builder, number: builder.bitcast(number, word),
        "float32_of_float16": lambda builder, bits: builder.fpext(builder.bitcast(bits, half), single),
        "float16_of_float32": lambda builder, number: builder.bitcast(builder.fptrunc(number, half), short),
    }[name]

    def convert(typing_context, value):
        return target(source), lambda context, builder, signature, args: build(builder, args[0])

    convert.__name__ = name
    return intrinsic(convert)
