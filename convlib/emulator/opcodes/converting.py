"""mov, cvt, cvta: moving, packing and converting."""

from __future__ import annotations

import numpy as np

from .. import arithmetic as a
from .. import registers
from ..dtypes import BITS, DTYPES
from ..memory import LOCAL_WINDOW, SHARED_WINDOW
from ..syntax import SIZES, Refused, Vector
from .elementwise import elementwise, one
from .parts import STATE_SPACES, type_of, types_of


def move(machine, instruction):
    """mov: registers, constants, addresses; {..} on either side packs and unpacks, low part first."""
    type_ = type_of(instruction)
    into, value = instruction.operands
    if isinstance(value, Vector):
        return pack(machine, instruction, into, value.items, type_)
    if isinstance(into, Vector):
        return unpack(machine, instruction, into.items, value, type_)
    return one(np.asarray)(machine, instruction)


def pack(machine, instruction, into, items, type_):
    size = SIZES[type_] // len(items)
    part, whole = f"b{8 * size}", BITS[SIZES[type_]]
    sources = [registers.source(machine, instruction, item, part) for item in items]
    out = registers.target(machine, instruction, into, DTYPES[type_])

    def run(mask):
        value = whole.type(0)
        for i, source in enumerate(sources):
            value = value | (source.astype(whole) << whole.type(8 * size * i))
        np.copyto(out, np.asarray(value).view(out.dtype), where=True if mask is None else mask)

    return run


def unpack(machine, instruction, items, value, type_):
    size = SIZES[type_] // len(items)
    part, whole = BITS[size], BITS[SIZES[type_]]
    source = registers.source(machine, instruction, value, f"b{8 * SIZES[type_]}")
    outs = [registers.target(machine, instruction, item, part) for item in items]

    def run(mask):
        parts = [(source >> whole.type(8 * size * i)).astype(part) for i in range(len(outs))]  # read before writing
        for out, bits in zip(outs, parts, strict=True):
            np.copyto(out, bits, where=True if mask is None else mask)

    return run


FLOATS = {"f16", "bf16", "f32", "f64"}


def convert(machine, instruction):
    """cvt.d.a: every pairing of integers and floats that the table's modifiers allow."""
    result, given = types_of(instruction)
    flags = instruction.modifiers
    function = conversion(machine, instruction, result, given, flags)
    if result in ("f16x2", "bf16x2"):
        return elementwise(machine, instruction, function, [given, given], result)
    return elementwise(machine, instruction, function, [given], result)


def conversion(machine, instruction, result, given, flags):
    if (result == "tf32" or "rna" in flags) and flags not in (("rna", "tf32", "f32"), ("rn", "tf32", "f32")):
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    if result == "tf32":
        return a.tf32_bits if "rna" in flags else a.even_tf32_bits
    dtype = DTYPES[result]
    mode = next((m for m in flags if m in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")), None)
    ftz, sat = "ftz" in flags, "sat" in flags
    if result in ("f16x2", "bf16x2"):
        if mode != "rn" or given != "f32" or sat:
            raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
        narrow = a.float16_bits if result == "f16x2" else a.bfloat16_bits
        return lambda high, low: narrow(high).astype(np.uint32) << np.uint32(16) | narrow(low)
    if given not in FLOATS and result not in FLOATS:
        return (lambda x: clamp_integers(x, dtype)) if sat else (lambda x: x.astype(dtype))
    if given in FLOATS and result not in FLOATS:
        return lambda x: a.integers_of_floats(a.flush(widened(x, given)) if ftz else widened(x, given), dtype, mode)
    if given not in FLOATS:
        return float_of_integer(instruction, result, given, mode, sat)
    return float_of_float(instruction, result, given, mode, ftz, sat)


def clamp_integers(x, dtype):
    ours, theirs = np.iinfo(x.dtype), np.iinfo(dtype)
    low, high = max(ours.min, theirs.min), min(ours.max, theirs.max)
    return np.clip(x, x.dtype.type(low), x.dtype.type(high)).astype(dtype)


def widened(x, type_):
    """16-bit floats as float32; others as they are."""
    x = np.asarray(x)
    if type_ == "f16":
        return a.floats_of_float16(x)
    return a.floats_of_bfloat16(x) if type_ == "bf16" else x


def float_of_integer(instruction, result, given, mode, sat):
    if sat or (mode != "rn" and not (result == "f32" and SIZES[given] <= 4)) or result == "bf16":
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    if result == "f16":
        return lambda x: a.float16_bits(x.astype(np.float64))
    return lambda x: a.floats_of_integers(np.asarray(x), DTYPES[result], mode)


def float_of_float(instruction, result, given, mode, ftz, sat):
    rounding = a.ROUND_TO_INTEGER.get(mode)
    if result in ("f16", "bf16"):
        if mode != "rn" or sat or (given == "f64" and result == "bf16") or given in ("f16", "bf16"):
            raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
        narrow = a.float16_bits if result == "f16" else a.bfloat16_bits
        return lambda x: narrow(a.flush(x) if ftz else x)
    dtype = DTYPES[result]

    def function(x):
        x = widened(x, given)
        if x.dtype == dtype:
            return rounding(x) if rounding else x
        if mode in ("rz", "rm", "rp"):
            return a.rounded_toward(x, np.float64(0), mode)
        return x.astype(dtype)

    return (
        a.floating(function, ftz and "f32" in (result, given), sat)
        if dtype == np.float32
        else flushed_input(function, ftz and given == "f32", sat)
    )


def flushed_input(function, ftz, sat):
    def compute(x):
        value = function(a.flush(np.asarray(x)) if ftz else x)
        return a.saturate(value) if sat else value

    return compute


def address_conversion(machine, instruction):
    """cvta: between a space's own addresses and generic ones."""
    flags = instruction.modifiers
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(
        next((m for m in flags if m in STATE_SPACES), None), 0
    )
    window = np.uint64(window)
    type_ = type_of(instruction)
    return elementwise(
        machine, instruction, (lambda x: x - window) if "to" in flags else (lambda x: x + window), [type_], type_
    )
