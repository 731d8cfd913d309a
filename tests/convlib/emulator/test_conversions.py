"""Conversions and moves against fractions and Python's integers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from convlib.emulator import Refused, opcodes
from tests.convlib.emulator import exact
from tests.convlib.emulator.exact import decoded, encoded, signed
from tests.convlib.emulator.operand_values import RANDOM, agree, exactly, floats, integers, pairs
from tests.convlib.emulator.ptx import run_opcode

INTEGER_TYPES = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]
BITS = {t: 8 * opcodes.SIZES[t] for t in [*INTEGER_TYPES, "f16", "bf16", "f32", "f64"]}


def value_of(type_, bits):
    bits &= (1 << BITS[type_]) - 1
    return signed(bits, BITS[type_]) if type_[0] == "s" else bits


def limits(type_):
    if type_[0] == "u":
        return 0, (1 << BITS[type_]) - 1
    return -(1 << BITS[type_] - 1), (1 << BITS[type_] - 1) - 1


def stored(type_, value):
    """An integer result as its register holds it: 8-bit ones extended to 16 bits."""
    return value & (1 << max(BITS[type_], 16)) - 1


def wide_register(type_):
    return {"u8": "u16", "s8": "s16"}.get(type_, type_)


@pytest.mark.parametrize("sat", ["", ".sat"])
@pytest.mark.parametrize("given", INTEGER_TYPES)
@pytest.mark.parametrize("result", INTEGER_TYPES)
def test_converts_integers(result, given, sat):
    low, high = (
        (-(1 << BITS[result] - 1), (1 << BITS[result] - 1) - 1) if result[0] == "s" else (0, (1 << BITS[result]) - 1)
    )

    def expected(a):
        value = value_of(given, a)
        return stored(result, min(max(value, low), high) if sat else value_of(result, value))

    agree(f"cvt{sat}.{result}.{given} D, A", wide_register(result),
          [(wide_register(given), integers(max(BITS[given], 16), 40))], expected)  # fmt: skip


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("given", INTEGER_TYPES)
@pytest.mark.parametrize("result", ["f16", "f32", "f64"])
def test_converts_integers_to_floats(result, given, mode):
    opcode = f"cvt.{mode}.{result}.{given}"
    if mode != "rn" and (result != "f32" or BITS[given] == 64):
        with pytest.raises(Refused, match=opcode):
            run_opcode(f"{opcode} D, A", result, (wide_register(given), [0]))
        return
    agree(f"{opcode} D, A", result, [(wide_register(given), integers(max(BITS[given], 16), 100))],
          lambda a: encoded(Fraction(value_of(given, a)), result, mode))  # fmt: skip


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("given", ["f32", "f64"])
@pytest.mark.parametrize("result", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_converts_floats_to_integers(result, given, mode):
    low, high = (
        (-(1 << BITS[result] - 1), (1 << BITS[result] - 1) - 1) if result[0] == "s" else (0, (1 << BITS[result]) - 1)
    )

    def expected(a):
        number, _ = decoded(a, given)
        if isinstance(number, str):
            return stored(result, {exact.NAN: 0, exact.INF: high, exact.MINUS_INF: low}[number])
        return stored(result, min(max(exact.integer(number, mode[:2]), low), high))

    near = [encoded(Fraction(v) + f, given) for v in (low, high, 0, 1, -1, 127, 32767)
            for f in (Fraction(-1, 2), Fraction(0), Fraction(1, 2), Fraction(3, 4), Fraction(-1))]  # fmt: skip
    agree(f"cvt.{mode}.{result}.{given} D, A", wide_register(result), [(given, floats(given, 60) + near)], expected)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_rounds_to_whole_floats(type_, mode):
    def expected(a):
        number, negative = decoded(a, type_)
        if isinstance(number, str):
            return encoded(number, type_)
        return encoded(Fraction(exact.integer(number, mode[:2])), type_, "rn", negative)

    near = [encoded(Fraction(v, 4), type_, "rn") for v in range(-12, 13) if v]
    agree(f"cvt.{mode}.{type_}.{type_} D, A", type_, [(type_, floats(type_, 60) + near)], expected)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_narrows_float64_to_float32(mode, ftz):
    def expected(a):
        number, negative = decoded(a, "f64")
        result = encoded(number, "f32", mode, negative)
        if ftz:
            number, negative = exact.flushed(decoded(result, "f32"))
            result = encoded(number, "f32", "rn", negative)
        return result

    near = [RANDOM.randint(0x3690000000000000, 0x3820000000000000) for _ in range(200)]  # around float32's denormals
    near += [RANDOM.randint(0x3FF0000000000000, 0x4000000000000000) & ~0xFFFFFFF | RANDOM.choice([0, 1, 0x10000000])
             for _ in range(200)]  # fmt: skip
    agree(f"cvt.{mode}{ftz}.f32.f64 D, A", "f32", [("f64", floats("f64", 60) + near)], expected)


def widened(given, result):
    def expected(a):
        number, negative = decoded(a, given)
        return encoded(number, result, "rn", negative)

    return expected


def test_widens_float32_to_float64():
    agree("cvt.f64.f32 D, A", "f64", [("f32", floats("f32", 60))], widened("f32", "f64"))


def test_widens_every_float16():
    agree("cvt.f32.f16 D, A", "f32", [("f16", list(range(1 << 16)))], widened("f16", "f32"))
    agree("cvt.f64.f16 D, A", "f64", [("f16", list(range(0, 1 << 16, 7)))], widened("f16", "f64"))


def test_widens_every_bfloat16():
    def expected(a):
        return a << 16 if decoded(a, "bf16")[0] != exact.NAN else None

    agree("cvt.f32.bf16 D, A", "f32", [("bf16", list(range(1 << 16)))], expected, same_nan="f32")


@pytest.mark.parametrize("result", ["f16", "bf16"])
def test_narrows_float32_to_16_bits(result):
    halfway = []
    for bits in [RANDOM.getrandbits(16) & 0x7FFF for _ in range(300)] + [0, 1, 2, 0x3FF, 0x400, 0x7BFF, 0x7F7F]:
        number, _ = decoded(bits, result)
        after, _ = decoded(bits + 1, result)
        if not isinstance(number, str) and not isinstance(after, str):
            middle = encoded((number + after) / 2, "f32", "rz")
            halfway += [middle, middle + 1, max(middle - 1, 0), middle | 0x80000000]
    agree(f"cvt.rn.{result}.f32 D, A", result, [("f32", floats("f32", 100) + halfway)], lambda a: narrow(a, result))


def narrow(bits, result):
    number, negative = decoded(bits, "f32")
    return encoded(number, result, "rn", negative)


@pytest.mark.parametrize("result", ["f16x2", "bf16x2"])
def test_packs_two_16_bit_floats(result):
    x, y = pairs(floats("f32"))
    agree(f"cvt.rn.{result}.f32 D, A, B", "b32", [("f32", x), ("f32", y)],
          lambda a, b: narrow(a, result[:-2]) << 16 | narrow(b, result[:-2]))  # fmt: skip


@pytest.mark.parametrize("mode", ["rn", "rna"])
def test_rounds_float32_to_tf32(mode):
    def expected(a):
        number, negative = decoded(a, "f32")
        return None if number == exact.NAN else encoded(number, "tf32", mode, negative) << 13

    near = [
        RANDOM.getrandbits(32) & 0xFFFFE000 | low for low in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF) for _ in range(9)
    ]
    agree(f"cvt.{mode}.tf32.f32 D, A", "b32", [("f32", floats("f32", 60) + near)], expected, same_nan="f32")


def test_saturates_in_a_conversion():
    agree("cvt.ftz.sat.f32.f32 D, A", "f32", [("f32", floats("f32", 60))],
          exactly(lambda a: a, "f32", ftz=True, sat=True))  # fmt: skip


def test_moves_pack_and_unpack():
    values = integers(64, 20)
    agree("mov.b64 {%r7, D}, A", "b32", [("b64", values)], lambda a: a >> 32)
    agree("mov.b64 {D, %r7}, A", "b32", [("b64", values)], lambda a: a & 0xFFFFFFFF)
    x, y = pairs(integers(32))
    agree("mov.b64 D, {A, B}", "b64", [("b32", x), ("b32", y)], lambda a, b: b << 32 | a)
    x, y = pairs(integers(16))
    agree("mov.b32 D, {A, B}", "b32", [("b16", x), ("b16", y)], lambda a, b: b << 16 | a)
    agree("mov.b32 D, {0, B}", "b32", [("b16", x), ("b16", y)], lambda a, b: b << 16)


@pytest.mark.parametrize("type_", ["b16", "b32", "b64", "u32", "s64", "f32", "f64"])
def test_moves(type_):
    agree(f"mov.{type_} D, A", type_, [(type_, integers(8 * opcodes.SIZES[type_]))], lambda a: a)
