"""Every instruction of the emulator's table against results computed exactly, in Python integers and fractions.

The values are the ones where implementations go wrong: the ends of every type, halfway cases, denormals, infinities,
NaN, both zeros; and random ones.
"""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest

from convlib.emulator import Refused, launch, opcodes
from tests.convlib.emulator import exact
from tests.convlib.emulator.exact import decoded, encoded, signed
from tests.convlib.emulator.ptx import kernel, run_opcode

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


# Integers

WIDTHS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "b16": 16, "b32": 32, "b64": 64}


def of(type_, bits):
    return signed(bits, WIDTHS[type_]) if type_[0] == "s" else bits


def c_quotient(a, b):
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def c_remainder(a, b):
    return a if b == 0 else a - b * c_quotient(a, b)


INTEGER_PAIRS = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "div": lambda a, b, n: c_quotient(a, b),
    "rem": lambda a, b, n: c_remainder(a, b),
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
}


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("operation", INTEGER_PAIRS)
def test_integer_pairs(operation, type_):
    n, (x, y) = WIDTHS[type_], pairs(integers(WIDTHS[type_]))
    function, mask = INTEGER_PAIRS[operation], (1 << WIDTHS[type_]) - 1
    agree(f"{operation}.{type_} D, A, B", type_, [(type_, x), (type_, y)],
          lambda a, b: function(of(type_, a), of(type_, b), n) & mask)  # fmt: skip


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32"])
def test_wide_products(type_):
    n, (x, y) = WIDTHS[type_], pairs(integers(WIDTHS[type_]))
    wide, mask = f"{type_[0]}{2 * n}", (1 << 2 * n) - 1
    agree(f"mul.wide.{type_} D, A, B", wide, [(type_, x), (type_, y)], lambda a, b: of(type_, a) * of(type_, b) & mask)
    z = [RANDOM.getrandbits(2 * n) for _ in x]
    agree(f"mad.wide.{type_} D, A, B, C", wide, [(type_, x), (type_, y), (wide, z)],
          lambda a, b, c: of(type_, a) * of(type_, b) + c & mask)  # fmt: skip


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_product_and_sum(type_, half):
    n, (x, y) = WIDTHS[type_], pairs(integers(WIDTHS[type_]))
    z, mask = [RANDOM.getrandbits(n) for _ in x], (1 << n) - 1
    agree(f"mad.{half}.{type_} D, A, B, C", type_, [(type_, x), (type_, y), (type_, z)],
          lambda a, b, c: (of(type_, a) * of(type_, b) >> (n if half == "hi" else 0)) + c & mask)  # fmt: skip


@pytest.mark.parametrize(("operation", "function"), [("add", int.__add__), ("sub", int.__sub__)])
def test_saturating_sums(operation, function):
    x, y = pairs(integers(32))
    agree(f"{operation}.sat.s32 D, A, B", "s32", [("s32", x), ("s32", y)],
          lambda a, b: min(max(function(signed(a, 32), signed(b, 32)), -(2**31)), 2**31 - 1) & 0xFFFFFFFF)  # fmt: skip


BITWISE = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}


@pytest.mark.parametrize("type_", ["b16", "b32", "b64"])
@pytest.mark.parametrize("operation", BITWISE)
def test_bitwise_pairs(operation, type_):
    x, y = pairs(integers(WIDTHS[type_]))
    agree(f"{operation}.{type_} D, A, B", type_, [(type_, x), (type_, y)], BITWISE[operation])


@pytest.mark.parametrize("operation", BITWISE)
def test_bitwise_predicates(operation):
    agree(f"{operation}.pred D, A, B", "pred", [("pred", [0, 0, 1, 1]), ("pred", [0, 1, 0, 1])], BITWISE[operation])


def test_not_of_a_predicate():
    agree("not.pred D, A", "pred", [("pred", [0, 1])], lambda a: 1 - a)


UNARY = {
    "not": ("b16 b32 b64", lambda a, n: ~a),
    "cnot": ("b16 b32 b64", lambda a, n: int(a == 0)),
    "neg": ("s16 s32 s64", lambda a, n: -a),
    "abs": ("s16 s32 s64", lambda a, n: abs(a)),
    "brev": ("b32 b64", lambda a, n: int(f"{a:0{n}b}"[::-1], 2)),
}


@pytest.mark.parametrize(("operation", "type_"), [(o, t) for o, (types, _) in UNARY.items() for t in types.split()])
def test_unary_integers(operation, type_):
    n, function = WIDTHS[type_], UNARY[operation][1]
    agree(f"{operation}.{type_} D, A", type_, [(type_, integers(n, 40))],
          lambda a: function(of(type_, a), n) & (1 << n) - 1)  # fmt: skip


@pytest.mark.parametrize("type_", ["b32", "b64"])
def test_counts_of_bits(type_):
    values = integers(WIDTHS[type_], 40)
    agree(f"popc.{type_} D, A", "u32", [(type_, values)], int.bit_count)
    agree(f"clz.{type_} D, A", "u32", [(type_, values)], lambda a: WIDTHS[type_] - a.bit_length())


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64"])
def test_highest_bit(type_):
    def expected(a):
        value = of(type_, a)
        return ((~value if value < 0 else value).bit_length() - 1) & 0xFFFFFFFF

    agree(f"bfind.{type_} D, A", "u32", [(type_, integers(WIDTHS[type_], 40))], expected)


@pytest.mark.parametrize("type_", ["b16", "b32", "b64"])
def test_shift_left(type_):
    n = WIDTHS[type_]
    x, y = pairs(integers(n), [0, 1, 5, n - 1, n, n + 1, 100, 0x80000000, 0xFFFFFFFF])
    agree(f"shl.{type_} D, A, B", type_, [(type_, x), ("u32", y)], lambda a, b: a << min(b, n) & (1 << n) - 1)


@pytest.mark.parametrize("type_", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_shift_right(type_):
    n = WIDTHS[type_]
    x, y = pairs(integers(n), [0, 1, 5, n - 1, n, n + 1, 100, 0x80000000, 0xFFFFFFFF])
    agree(
        f"shr.{type_} D, A, B", type_, [(type_, x), ("u32", y)], lambda a, b: of(type_, a) >> min(b, n) & (1 << n) - 1
    )


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(side, mode):
    x, y = pairs(integers(32))
    z = [RANDOM.choice([0, 1, 13, 31, 32, 33, 63, 64, 0xFFFFFFFF]) for _ in x]

    def expected(low, high, amount):
        both, amount = high << 32 | low, amount % 32 if mode == "wrap" else min(amount, 32)
        return (both << amount >> 32 if side == "l" else both >> amount) & 0xFFFFFFFF

    agree(f"shf.{side}.{mode}.b32 D, A, B, C", "b32", [("b32", x), ("b32", y), ("b32", z)], expected)


FIELDS = [(0, 0), (0, 1), (0, 32), (5, 7), (31, 1), (31, 5), (16, 40), (32, 3), (63, 1), (40, 20), (0, 64), (7, 255)]


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_extracts_a_field(type_, field):
    n, (position, length) = WIDTHS[type_], field

    def expected(a):
        """The loop of the PTX ISA, section 9.7.1.18."""
        top = n - 1
        if type_[0] == "u" or length == 0:
            sign = 0
        else:
            sign = a >> min(position + length - 1, top) & 1
        return sum((a >> position + i & 1 if i < length and position + i <= top else sign) << i for i in range(n))

    agree(f"bfe.{type_} D, A, {position}, {length}", type_, [(type_, integers(n))], expected)


@pytest.mark.parametrize("type_", ["b32", "b64"])
@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_inserts_a_field(type_, field):
    n, (position, length) = WIDTHS[type_], field
    x, y = pairs(integers(n))

    def expected(a, b):
        for i in range(length):
            if position + i < n:
                b = b & ~(1 << position + i) | (a >> i & 1) << position + i
        return b

    agree(f"bfi.{type_} D, A, B, {position}, {length}", type_, [(type_, x), (type_, y)], expected)


def test_permutes_bytes():
    x, y = pairs(integers(32))
    z = [RANDOM.getrandbits(32) for _ in x]

    def expected(a, b, c):
        source, result = (b << 32 | a).to_bytes(8, "little"), 0
        for i in range(4):
            byte = source[c >> 4 * i & 7]
            result |= (0xFF * (byte >> 7) if c >> 4 * i & 8 else byte) << 8 * i
        return result

    agree("prmt.b32 D, A, B, C", "b32", [("b32", x), ("b32", y), ("b32", z)], expected)


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0xCA, 0x1B, 0xFF])
def test_logic_of_three(table):
    x, y = pairs(integers(32))
    z = [RANDOM.getrandbits(32) for _ in x]

    def expected(a, b, c):
        bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1 for i in range(32))
        return sum((table >> bit & 1) << i for i, bit in enumerate(bits))

    agree(f"lop3.b32 D, A, B, C, {table}", "b32", [("b32", x), ("b32", y), ("b32", z)], expected)


# Comparing and choosing

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


# Floats


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


# Conversions

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


def test_rounds_float32_to_tf32():
    def expected(a):
        number, negative = decoded(a, "f32")
        return None if number == exact.NAN else encoded(number, "tf32", "rna", negative) << 13

    near = [
        RANDOM.getrandbits(32) & 0xFFFFE000 | low for low in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF) for _ in range(9)
    ]
    agree("cvt.rna.tf32.f32 D, A", "b32", [("f32", floats("f32", 60) + near)], expected, same_nan="f32")


def test_saturates_in_a_conversion():
    agree("cvt.ftz.sat.f32.f32 D, A", "f32", [("f32", floats("f32", 60))],
          exactly(lambda a: a, "f32", ftz=True, sat=True))  # fmt: skip


# Moving


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


# What is refused


@pytest.mark.parametrize(("instruction", "named"), [
    ("frobnicate.s32 %r1, %r2", "frobnicate"),
    ("add.rn.s32 %r1, %r2, %r3", "rn"),
    ("add.cc.u32 %r1, %r2, %r3", "cc"),
    ("fma.rn.relu.f32 %f1, %f2, %f3, %f4", "relu"),
    ("fma.rz.f64 %g1, %g2, %g3, %g4", "rz"),
    ("mul.wide.u64 %d1, %d2, %d3", "wide"),
    ("add.f16 %h1, %h2, %h3", "f16"),
    ("ld.global.v16.f32 %f1, [%d1]", "v16"),
    ("atom.global.add.noftz.f16 %h1, [%d1], %h2", "f16"),
    ("cvt.rs.f32.f64 %f1, %g1", "rs"),
    ("cvt.rn.tf32.f32 %r1, %f1", "tf32"),
    ("cvt.rna.f16.f32 %h1, %f1", "rna"),
    ("setp.lt.f16 %p1, %h1, %h2", "f16"),
])  # fmt: skip
def test_refuses_by_name_what_it_does_not_know(instruction, named):
    with pytest.raises(Refused, match=named):
        launch(kernel(f"{instruction};", 0), "k", 1, 32, ())


# Executed by the kernels of planted/ and, cvta, ld.param and such, by the kernel that every test here runs.
ELSEWHERE = {"bar", "barrier", "shfl", "vote", "activemask", "atom", "red", "trap", "bra", "cvta", "ret"}


def test_every_opcode_of_the_table_is_used_by_a_test():
    """An opcode nobody tests would be an opcode nobody can trust."""
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    untested = {row.root for row in opcodes.TABLE if f"{row.root}." not in texts and f"{row.root};" not in texts}
    untested -= set(INTEGER_PAIRS) | set(FLOAT_PAIRS) | set(BITWISE) | set(UNARY) | set(APPROXIMATIONS) | ELSEWHERE
    assert not untested
