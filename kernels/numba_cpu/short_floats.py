"""float16 and bfloat16 as numbers: Numba has neither on the CPU, so both arrive as 16-bit integers and are widened
here.

bfloat16 is the upper half of a float32. float16 converts in hardware (F16C, AVX-512, NEON) or, without, through
integers. Narrowing rounds once, to nearest even. Everything works alike on one number and on vectors.
Source: the float16 integer conversion follows IEEE 754-2008's definition: a float32 multiply shifts the exponent,
and an addition of a power of two lets the float adder round.
"""

import numpy as np
from numba.core import types

from . import target
from .tracing import (
    Lanes,
    bits,
    broadcast,
    call,
    convert,
    extract,
    lane_numbers,
    lanes_between,
    load,
    load_lanes,
    load_strided,
    maximum,
    minimum,
    select,
    shuffle,
    store,
    traced,
    zero_extend,
)
from .vectors import Vector, lanes

NO_OCTET = -128  # in place of a byte's number: zero


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


def part_of_row(V, column, W):
    """read(here): a vector of 16-bit integers, those from `column` on of a row of W numbers; `here`: where they lie.
    Lanes outside the row are zero and their memory is not touched.

    AVX2 masks words of 32 and 64 bits only, so there its halves are read where they lie inside the row, and their bytes
    moved to their lanes: W must not be less than half of V.count then.
    """
    if target.vector_bytes() == 64:
        mask = lanes_between(V, column, 0, W)
        return lambda here: load_lanes(V, here, mask)
    count = V.count // 2
    octets, half = Lanes("i8", V.bytes), Lanes("i8", V.bytes // 2)
    columns = [column + count * i for i in (0, 1)]
    inside = [minimum(maximum(c, 0), W - count) for c in columns]
    moved = [minimum(maximum(c - i, -count), count) * V.item_bytes for c, i in zip(columns, inside)]

    def places_of(moved, first):
        """For each byte of a half of the lanes the byte read that belongs there; the half's first one is `first`."""
        places = lane_numbers(half, column)
        places = places + broadcast(places.type, convert(moved, places.type.scalar))
        return convert(select((places >= 0) & (places < half.count), places + first, NO_OCTET), half)

    order = joined_halves(*(places_of(m, half.count * i) for i, m in enumerate(moved)))

    def read(here):
        halves = (load(half, here + (i - column) * V.item_bytes) for i in inside)
        return bits(call(order, "llvm.x86.ssse3.pshuf.b.128", octets, [joined_halves(*halves), order]), V)

    return read


def joined_halves(low, high):
    return shuffle(low, high, range(2 * low.type.count))


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


def memory_functions(dtype_name):
    """Four Numba functions: read(address), write(address, number), read_vector(address), write_vector(address,
    vector).

    What lies in memory is of that dtype; the number or vector in registers is float32 (float64 for float64). Vectors
    have as many lanes as fit a register in that type, and need no alignment.
    """
    real = types.float64 if dtype_name == "float64" else types.float32
    scalar = Lanes("f64" if real == types.float64 else "f32")
    V = Vector(real, lanes(np.float64 if real == types.float64 else np.float32))
    short = dtype_name in ("float16", "bfloat16")

    def read_from(address, numbers):
        return widen(load(numbers.of("i16"), address), dtype_name) if short else load(numbers, address)

    def write_to(address, numbers):
        store(address, narrow(numbers, dtype_name) if short else numbers)

    @traced(real)
    def read(address):
        return read_from(address, scalar)

    @traced(types.void)
    def write(address, number):
        write_to(address, convert(number, scalar))

    @traced(V)
    def read_vector(address):
        return read_from(address, V.lanes)

    @traced(types.void)
    def write_vector(address, vector):
        write_to(address, vector)

    return read, write, read_vector, write_vector


def strided_functions(dtype_name):
    """Two Numba functions like memory_functions' for vectors whose numbers lie `step` bytes apart: read(address, step)
    and write(address, step, vector).
    """
    real = types.float64 if dtype_name == "float64" else types.float32
    V = Vector(real, lanes(np.float64 if real == types.float64 else np.float32))
    short = dtype_name in ("float16", "bfloat16")

    @traced(V)
    def read(address, step):
        raw = load_strided(V.lanes.of("i16") if short else V.lanes, address, step)
        return widen(raw, dtype_name) if short else raw

    @traced(types.void)
    def write(address, step, vector):
        stored = narrow(vector, dtype_name) if short else vector
        for i in range(V.lanes.count):
            store(address + step * i, extract(stored, i))

    return read, write


# By the name of a dtype: what lies in memory, and the sums in registers.


def real_of(dtype_name):
    """The Numba type that sums are kept in."""
    return types.float64 if dtype_name == "float64" else types.float32


def lanes_for(dtype_name):
    """How many sums one vector register holds."""
    return target.lanes("float64" if dtype_name == "float64" else "float32")


def vector_of(dtype_name):
    return Lanes("f64" if dtype_name == "float64" else "f32", lanes_for(dtype_name))


def stored_kind(dtype_name):
    """What an element is in memory; 16-bit floats come as integers."""
    return {"float32": "f32", "float64": "f64"}.get(dtype_name, "i16")


def as_numbers(raw, dtype_name):
    return widen(raw, dtype_name) if raw.type.kind == "i16" else raw


def as_stored(numbers, dtype_name):
    return narrow(numbers, dtype_name) if stored_kind(dtype_name) == "i16" else numbers
