"""Instructions on integers and bits against Python's own integers."""

from __future__ import annotations

import pytest

from tests.convlib.emulator.exact import signed
from tests.convlib.emulator.operand_values import RANDOM, WIDTHS, agree, integers, of, pairs


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
