"""Comparing and choosing against Python's own comparisons."""

from __future__ import annotations

import math

import pytest

from convlib.emulator import opcodes
from tests.convlib.emulator import exact
from tests.convlib.emulator.exact import decoded, signed
from tests.convlib.emulator.operand_values import RANDOM, WIDTHS, agree, floats, integers, of, pairs
from tests.convlib.emulator.test_integers import BITWISE

ORDER = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def ordered(name, a, b):
    less, equal = a < b, a == b
    return {"eq": equal, "ne": not equal, "lt": less, "le": less or equal, "gt": not less and not equal,
            "ge": not less}[name]  # fmt: skip


INTEGER_COMPARISONS = [(name, type_) for type_ in ("u16", "u32", "u64") for name in (*ORDER, *UNSIGNED)]
INTEGER_COMPARISONS += [(name, type_) for type_ in ("s16", "s32", "s64", "b16", "b32", "b64") for name in ORDER]


@pytest.mark.parametrize(("name", "type_"), INTEGER_COMPARISONS)
def test_compares_integers(name, type_):
    x, y = pairs(integers(WIDTHS[type_]))
    agree(f"setp.{name}.{type_} D, A, B", "pred", [(type_, x), (type_, y)],
          lambda a, b: int(ordered(UNSIGNED.get(name, name), of(type_, a), of(type_, b))))  # fmt: skip


def compared_floats(name, a, b):
    """a, b decoded. Names ending in u are true of NaN, the others false."""
    as_number = {exact.INF: math.inf, exact.MINUS_INF: -math.inf}
    a, b = (as_number.get(v[0], v[0]) for v in (a, b))
    unordered = exact.NAN in (a, b)
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if unordered:
        return len(name) == 3
    return ordered(name[:2], a, b)


@pytest.mark.parametrize("type_", ["f32", "f64"])
@pytest.mark.parametrize("name", [*ORDER, *(f"{o}u" for o in ORDER), "num", "nan"])
def test_compares_floats(name, type_):
    x, y = pairs(floats(type_))
    agree(f"setp.{name}.{type_} D, A, B", "pred", [(type_, x), (type_, y)],
          lambda a, b: int(compared_floats(name, decoded(a, type_), decoded(b, type_))))  # fmt: skip


def test_compares_denormals_as_zeros_with_ftz():
    x, y = pairs(floats("f32"))

    def expected(a, b):
        return int(compared_floats("lt", *(exact.flushed(decoded(v, "f32")) for v in (a, b))))

    agree("setp.lt.ftz.f32 D, A, B", "pred", [("f32", x), ("f32", y)], expected)


@pytest.mark.parametrize("combination", BITWISE)
@pytest.mark.parametrize("negated", ["", "!"])
def test_combines_a_comparison_with_a_predicate(combination, negated):
    x, y = pairs(integers(32, 2))
    z = [RANDOM.getrandbits(1) for _ in x]
    agree(f"setp.lt.{combination}.s32 D, A, B, {negated}C", "pred", [("s32", x), ("s32", y), ("pred", z)],
          lambda a, b, c: BITWISE[combination](int(signed(a, 32) < signed(b, 32)), c ^ (negated == "!")))  # fmt: skip


def test_a_second_predicate_takes_the_opposite():
    x, y = pairs(integers(32, 2))
    agree("setp.lt.s32 %p7|D, A, B", "pred", [("s32", x), ("s32", y)], lambda a, b: int(signed(a, 32) >= signed(b, 32)))


@pytest.mark.parametrize("type_", ["b16", "b32", "u64", "s64", "f32", "f64"])
def test_chooses(type_):
    bits = 8 * opcodes.SIZES[type_]
    x, y = pairs(integers(bits))
    z = [RANDOM.getrandbits(1) for _ in x]
    agree(f"selp.{type_} D, A, B, C", type_, [(type_, x), (type_, y), ("pred", z)], lambda a, b, c: a if c else b)
