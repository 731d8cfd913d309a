"""Arithmetic of floats against fractions, rounded once."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest

from convlib.emulator import opcodes
from tests.convlib.emulator import exact
from tests.convlib.emulator.exact import decoded, encoded
from tests.convlib.emulator.operand_values import F64_EDGES, RANDOM, agree, exactly, floats, integers, pairs
from tests.convlib.emulator.ptx import run_opcode


def fused(mode):
    return lambda a, b, c: exact.total(exact.product(a, b), c, mode)


def opposite(value):
    number, negative = value
    swapped = {exact.NAN: exact.NAN, exact.INF: exact.MINUS_INF, exact.MINUS_INF: exact.INF}
    return swapped[number] if isinstance(number, str) else -number, not negative


FLOAT_PAIRS = {
    "add": lambda mode: lambda a, b: exact.total(a, b, mode),
    "sub": lambda mode: lambda a, b: exact.total(a, opposite(b), mode),
    "mul": lambda mode: exact.product,
}
VARIANTS = ["", ".rn", ".ftz", ".sat", ".rn.ftz.sat", ".rz", ".rm", ".rp", ".rm.ftz"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("operation", FLOAT_PAIRS)
def test_float32_pairs(operation, variant):
    mode = next((m for m in ("rz", "rm", "rp") if m in variant), "rn")
    x, y = pairs(floats("f32"))
    expected = exactly(FLOAT_PAIRS[operation](mode), "f32", mode, "ftz" in variant, "sat" in variant)
    agree(f"{operation}{variant}.f32 D, A, B", "f32", [("f32", x), ("f32", y)], expected)


@pytest.mark.parametrize("operation", FLOAT_PAIRS)
def test_float64_pairs(operation):
    x, y = pairs(floats("f64"))
    agree(f"{operation}.rn.f64 D, A, B", "f64", [("f64", x), ("f64", y)], exactly(FLOAT_PAIRS[operation]("rn"), "f64"))


@pytest.mark.parametrize("variant", ["rn", "rn.ftz", "rn.sat", "rn.ftz.sat", "rz", "rm", "rp", "rm.ftz", "rz.ftz.sat"])
def test_fused_multiply_add_rounds_once(variant):
    mode = variant[:2]
    triples = [list(v) for v in zip(*itertools.product(floats("f32", 0)[:20], repeat=3), strict=True)]
    near = near_halfway()
    x, y, z = (a + b for a, b in zip(triples, near, strict=True))
    expected = exactly(fused(mode), "f32", mode, "ftz" in variant, "sat" in variant)
    agree(f"fma.{variant}.f32 D, A, B, C", "f32", [("f32", x), ("f32", y), ("f32", z)], expected)


@pytest.mark.parametrize("half", ["f16", "bf16"])
@pytest.mark.parametrize("variant", ["rn", "rz", "rm", "rp.sat"])
def test_mixed_precision_widens_and_rounds_once(variant, half):
    """Of sm_100 and later: fma.f32 with 16-bit factors, add and sub with a 16-bit first operand."""
    x, y = pairs(integers(16, 20))
    z = [RANDOM.choice(floats("f32")) for _ in x]
    mode = variant[:2]

    def expected(function, *formats):
        def of_bits(*bits):
            number, negative = function(*(decoded(b, f) for b, f in zip(bits, formats, strict=True)))
            if "sat" in variant:
                return exactly(lambda: (number, negative), "f32", mode, sat=True)()
            return encoded(number, "f32", mode, negative)

        return of_bits

    agree(f"fma.{variant}.f32.{half} D, A, B, C", "f32", [(half, x), (half, y), ("f32", z)],
          expected(fused(mode), half, half, "f32"))  # fmt: skip
    for name in ("add", "sub"):
        agree(f"{name}.{variant}.f32.{half} D, A, B", "f32", [(half, x), ("f32", z)],
              expected(FLOAT_PAIRS[name](mode), half, "f32"))  # fmt: skip


def near_halfway():
    """Products that fall almost, or exactly, between two float32, where rounding twice goes wrong."""
    found = [[], [], []]
    for _ in range(1500):
        a, b = (RANDOM.randint(0x3F800000, 0x3FFFFFFF) for _ in range(2))
        c = RANDOM.choice([0x33000001, 0x33000000, 0xB3000000, 0x0B000000, 0x8B000000, 0x00000001, 0x80000001,
                           RANDOM.randint(0x3F800000, 0x4BFFFFFF), RANDOM.randint(0xBF800000, 0xCBFFFFFF)])  # fmt: skip
        if RANDOM.random() < 0.5:  # 12-bit factors: their product has 24 or 25 bits, so it ties exactly
            a, b = (v & ~0xFFF | 0x800 for v in (a, b))
        for values, v in zip(found, (a, b, c), strict=True):
            values.append(v)
    return found


def test_float64_fused_multiply_add_rounds_once():
    triples = [list(v) for v in zip(*itertools.product(F64_EDGES[:14], repeat=3), strict=True)]
    more = [[RANDOM.randint(0x3FE0000000000000, 0x4010000000000000) for _ in range(500)] for _ in range(3)]
    x, y, z = (a + b for a, b in zip(triples, more, strict=True))
    agree("fma.rn.f64 D, A, B, C", "f64", [("f64", x), ("f64", y), ("f64", z)], exactly(fused("rn"), "f64"))


@pytest.mark.parametrize("variant", ["div.rn", "div.rn.ftz", "div.full", "div.approx.ftz"])
def test_float32_division(variant):
    x, y = pairs(floats("f32"))
    agree(f"{variant}.f32 D, A, B", "f32", [("f32", x), ("f32", y)],
          exactly(exact.quotient, "f32", ftz="ftz" in variant))  # fmt: skip


def test_float64_division_and_reciprocal():
    x, y = pairs(floats("f64"))
    agree("div.rn.f64 D, A, B", "f64", [("f64", x), ("f64", y)], exactly(exact.quotient, "f64"))
    one = decoded(0x3FF0000000000000, "f64")
    agree("rcp.rn.f64 D, A", "f64", [("f64", floats("f64"))], exactly(lambda a: exact.quotient(one, a), "f64"))


@pytest.mark.parametrize("variant", ["rn", "rn.ftz", "approx.ftz"])
def test_float32_reciprocal(variant):
    one = decoded(0x3F800000, "f32")
    agree(f"rcp.{variant}.f32 D, A", "f32", [("f32", floats("f32", 100))],
          exactly(lambda a: exact.quotient(one, a), "f32", ftz="ftz" in variant))  # fmt: skip


def root(value):
    """The square root to 200 bits, which decides the rounding of any float64."""
    number, negative = value
    if number in (exact.NAN, exact.MINUS_INF) or (number != exact.INF and number < 0):
        return exact.NAN, False
    if number == exact.INF or number == 0:
        return number, negative
    scaled = number * Fraction(4) ** 1300
    floor = math.isqrt(int(scaled))
    exactly_ = floor * floor == scaled
    return (Fraction(floor) if exactly_ else Fraction(2 * floor + 1, 2)) / Fraction(2) ** 1300, False


@pytest.mark.parametrize("variant", ["rn.f32", "rn.ftz.f32", "approx.ftz.f32", "rn.f64"])
def test_square_root(variant):
    type_ = variant[-3:]
    agree(f"sqrt.{variant} D, A", type_, [(type_, floats(type_, 100))], exactly(root, type_, ftz="ftz" in variant))


APPROXIMATIONS = {
    "rsqrt": lambda x: 1 / math.sqrt(x) if x > 0 else math.copysign(math.inf, x) if x == 0 else math.nan,
    "ex2": lambda x: math.inf if x > 1000 else 2.0**x,
    "lg2": lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
    "sin": math.sin, "cos": math.cos, "tanh": math.tanh,
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_within_two_units(name):
    values = [v for v in floats("f32", 200) if abs(struct_float(v)) < 1e6 or not math.isfinite(struct_float(v))]
    if name in ("sin", "cos"):
        values = [v for v in values if math.isfinite(struct_float(v))]
    got = run_opcode(f"{name}.approx.f32 D, A", "f32", ("f32", values))
    for bits, result in zip(values, got, strict=True):
        x = struct_float(bits)
        wanted = math.nan if math.isnan(x) else APPROXIMATIONS[name](x)
        if math.isnan(wanted):
            assert result == 0x7FFFFFFF
        elif math.isinf(wanted) or abs(wanted) > 3.4028235e38:
            assert struct_float(result) == math.copysign(math.inf, wanted)
        else:
            assert abs(struct_float(result) - wanted) <= 2 * max(abs(wanted) * 2**-23, 2**-149)


def struct_float(bits):
    number, negative = decoded(bits, "f32")
    if isinstance(number, str):
        return float(number)
    return -0.0 if number == 0 and negative else float(number)


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_signs(type_):
    sign, values = 1 << (8 * opcodes.SIZES[type_] - 1), floats(type_)
    agree(f"neg.{type_} D, A", type_, [(type_, values)], lambda a: a ^ sign)
    agree(f"abs.{type_} D, A", type_, [(type_, values)], lambda a: a & ~sign)
    x, y = pairs(values)
    agree(f"copysign.{type_} D, A, B", type_, [(type_, x), (type_, y)], lambda a, b: b & ~sign | a & sign)


def test_signs_with_ftz():
    def flush(a):
        return a & 0x80000000 if a & 0x7F800000 == 0 else a

    agree("neg.ftz.f32 D, A", "f32", [("f32", floats("f32"))], lambda a: flush(a) ^ 0x80000000)
    agree("abs.ftz.f32 D, A", "f32", [("f32", floats("f32"))], lambda a: flush(a) & 0x7FFFFFFF)


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize(("type_", "variant"), [("f32", ""), ("f32", ".ftz"), ("f32", ".NaN"), ("f64", "")])
def test_float_extremes(type_, variant, name):
    x, y = pairs(floats(type_))

    def expected(a, b):
        values = [decoded(v, type_) for v in (a, b)]
        values = [exact.flushed(v) for v in values] if variant == ".ftz" else values
        numbers = [v for v in values if v[0] != exact.NAN]
        if not numbers or (variant == ".NaN" and len(numbers) < 2):
            return encoded(exact.NAN, type_)
        size = {exact.INF: math.inf, exact.MINUS_INF: -math.inf}
        chosen = (min if name == "min" else max)(numbers, key=lambda v: (size.get(v[0], v[0]), not v[1]))
        return encoded(chosen[0], type_, "rn", chosen[1])

    agree(f"{name}{variant}.{type_} D, A, B", type_, [(type_, x), (type_, y)], expected)


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_properties_of_floats(type_):
    least = Fraction(2) ** exact.FORMATS[type_][1]
    tests = {
        "finite": lambda v: isinstance(v, Fraction), "infinite": lambda v: v in (exact.INF, exact.MINUS_INF),
        "number": lambda v: v != exact.NAN, "notanumber": lambda v: v == exact.NAN,
        "normal": lambda v: isinstance(v, Fraction) and abs(v) >= least,
        "subnormal": lambda v: isinstance(v, Fraction) and 0 < abs(v) < least,
    }  # fmt: skip
    for name, test in tests.items():
        agree(f"testp.{name}.{type_} D, A", "pred", [(type_, floats(type_))],
              lambda a, test=test: int(test(decoded(a, type_)[0])))  # fmt: skip
