"""The values that the emulator's instructions are tried with, and how a result is held against the exact one.

They are those where implementations go wrong: the ends of every type, halfway cases, denormals, infinities, NaN, both
zeros; and random ones.
"""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

from tests.convlib.emulator import exact
from tests.convlib.emulator.exact import decoded, encoded, signed
from tests.convlib.emulator.ptx import run_opcode

RANDOM = random.Random(0)


def integers(bits, some=12):
    edges = [0, 1, 2, 3, 7, (1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1, 1 << (bits // 2)]
    return edges + [RANDOM.getrandbits(bits) for _ in range(some)]


F32_EDGES = [
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x3F800000, 0xBF800000,
    0x3F800001, 0x3F7FFFFF, 0x40490FDB, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345,
    0x4B000001, 0x34000000, 0x33800000, 0x00400000, 0x5F000000, 0xDF000000,
]  # fmt: skip
F64_EDGES = [
    0, 1 << 63, 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000000, 0xBFF0000000000000, 0x3FF0000000000001,
    0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x3CA0000000000000,
    0x3FE0000000000000, 0x43E0000000000000, 0xC3E0000000000000, 0x41EFFFFFFFF00000, 0x47EFFFFFF0000000,
    0x36A0000000000000, 0x3690000000000001, 0x3810000010000000, 0x3FF0000010000000, 0x3FF0000030000000,
]  # fmt: skip


def floats(format_, some=12):
    if format_ == "f32":
        return F32_EDGES + [RANDOM.getrandbits(32) for _ in range(some)] + [
            RANDOM.randint(0x3F000000, 0x41000000) for _ in range(some)
        ]  # fmt: skip
    return F64_EDGES + [RANDOM.getrandbits(64) for _ in range(some)]


def pairs(values, other=None):
    return [list(v) for v in zip(*itertools.product(values, other or values), strict=True)]


def agree(instruction, result, inputs, expected, same_nan=None):
    """Run and compare bit by bit; where `expected` says None (a NaN of any payload), any NaN will do."""
    got = run_opcode(instruction, result, *inputs)
    for i, bits in enumerate(got):
        operands = [hex(v[i]) for _, v in inputs]
        wanted = expected(*(v[i] for _, v in inputs))
        if wanted is None:
            assert decoded(bits, same_nan or result)[0] == exact.NAN, f"{instruction} {operands}: {bits:#x}, not a NaN"
        else:
            assert bits == wanted, f"{instruction} of {operands}: got {bits:#x}, exactly {wanted:#x}"


WIDTHS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "b16": 16, "b32": 32, "b64": 64}


def of(type_, bits):
    return signed(bits, WIDTHS[type_]) if type_[0] == "s" else bits


def exactly(function, format_, mode="rn", ftz=False, sat=False):
    """A function of bits, from one of decoded values that gives (number, negative)."""

    def expected(*bits):
        values = [decoded(b, format_) for b in bits]
        values = [exact.flushed(v) for v in values] if ftz else values
        number, negative = function(*values)
        if sat:
            if number in (exact.NAN, exact.MINUS_INF) or (number != exact.INF and number <= 0):
                return 0
            number = Fraction(1) if number == exact.INF else min(number, Fraction(1))
        result = encoded(number, format_, mode, negative)
        if ftz and result is not None:
            number, negative = exact.flushed(decoded(result, format_))
            result = encoded(number, format_, "rn", negative)
        return result

    return expected
