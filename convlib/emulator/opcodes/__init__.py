"""The table of PTX instructions: one row per opcode and kind of operand, and nothing executes that has no row.

    Row("add", "u16 s16 u32 s32 u64 s64", "", INTEGER, two(np.add))
         |      |                         |   |        how it is bound: from operands to a function of the mask
         |      |                         |   the unit it is counted under
         |      |                         the modifiers it may carry; any other is refused by name
         |      the types it may carry (the first one named in the opcode decides which row)

The row's `bind(machine, instruction)` looks the operands up once; what it returns runs for every batch and mask.
Source: NVIDIA, PTX ISA 9.0, chapter 9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from .. import arithmetic as a
from ..counters import (
    ATOMIC,
    BARRIER,
    COMPARE,
    CONTROL,
    CONVERT,
    COPY,
    DOUBLE,
    FLOAT,
    FMA,
    GLOBAL,
    INTEGER,
    LDMATRIX,
    LOCAL,
    MMA,
    MOVE,
    PARAMETER,
    SHARED,
    SPECIAL,
    WARP,
)
from ..syntax import SIZES, Instruction, Refused
from .comparing import COMPARISONS, FLOAT_TESTS, choose, compare, test_property
from .converting import address_conversion, convert, move
from .copying import asynchronous_copy, commit_group, wait_all, wait_group
from .elementwise import giving, one, same, two, with_types
from .floats import (
    extreme,
    float_operation,
    float_product,
    float_sum,
    fused_multiply_add,
    mixed,
    mixed_fma,
    mixed_sum,
    sign_only,
)
from .flow import block_barrier, branch, indexed_branch, leave, trap
from .integers import funnel_shift, logic_of_three, product, product_and_sum, saturating_sum, set_bits
from .loads_and_stores import atomic, fence, load, nothing, store
from .matrices import load_matrices, multiply_matrices
from .warps import active_mask, reduce_warp, shuffle, vote, warp_barrier

INTEGERS = "u16 s16 u32 s32 u64 s64"
BITWISE = "b16 b32 b64"
ANY = "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"
ROUNDINGS = "rn rz rm rp"
CACHING = (
    "volatile relaxed acquire release weak cta gpu sys cluster ca cg cs lu cv wb wt nc L1::evict_normal "
    "L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate L2::64B L2::128B L2::256B L2::evict_last "
    "L2::evict_first L2::evict_normal"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    ends_segment, starts_segment: whether lanes may part after it, or have to come together before it. aligned:
    whether it takes whole warps only.
    """

    root: str
    types: frozenset
    modifiers: frozenset
    unit: str
    bind: Callable
    ends_segment: bool = False
    starts_segment: bool = False
    handles_guard: bool = False
    aligned: bool = False


def row(root, types, modifiers, unit, bind, **control):
    return Row(root, frozenset(types.split()), frozenset(modifiers.split()), unit, bind, **control)


@cache
def row_for(opcode: str) -> Row:
    """The row of an opcode; raises Refused, naming what is not known."""
    root, *rest = opcode.split(".")
    rows = BY_ROOT.get(root)
    if rows is None:
        raise Refused(f"opcode {opcode}: {root} is not known to the emulator")
    types = [m for m in rest if m in SIZES or m == "pred"]
    modifiers = [m for m in rest if m not in types]
    fitting = [r for r in rows if not types or r.types >= set(types[-1:]) or not r.types]
    if not fitting:
        raise Refused(f"opcode {opcode}: {root} of .{types[-1]} is not known to the emulator")
    unknown = [m for m in modifiers if not any(m in r.modifiers for r in fitting)]
    if unknown:
        raise Refused(f"opcode {opcode}: modifier .{unknown[0]} of {root} is not known to the emulator")
    for r in fitting:
        if r.modifiers >= set(modifiers):
            return r
    raise Refused(f"opcode {opcode}: these modifiers together are not known to the emulator")


def row_of(instruction: Instruction) -> Row:
    try:
        return row_for(instruction.opcode)
    except Refused as refusal:
        raise Refused(f"PTX line {instruction.line}: {refusal}") from None


COMPARED = " ".join([*COMPARISONS, "and", "or", "xor"])
COMPARED_FLOATS = COMPARED + " equ neu ltu leu gtu geu num nan ftz"
SPACES = "global shared shared::cta local"
SCOPES = "relaxed acquire release acq_rel cta gpu sys cluster sync aligned"
TABLE = (
    row("add", INTEGERS, "", INTEGER, two(np.add)),
    row("add", "s32", "sat", INTEGER, saturating_sum(1)),
    row("add", "f32", f"{ROUNDINGS} ftz sat", FLOAT, float_sum(1)),
    row("add", "f64", "rn", DOUBLE, two(np.add)),
    row("add", "f16 bf16", f"{ROUNDINGS} sat", FLOAT, mixed(mixed_sum(1), 1)),
    row("sub", INTEGERS, "", INTEGER, two(np.subtract)),
    row("sub", "s32", "sat", INTEGER, saturating_sum(-1)),
    row("sub", "f32", f"{ROUNDINGS} ftz sat", FLOAT, float_sum(-1)),
    row("sub", "f64", "rn", DOUBLE, two(np.subtract)),
    row("sub", "f16 bf16", f"{ROUNDINGS} sat", FLOAT, mixed(mixed_sum(-1), 1)),
    row("mul", "u64 s64 u32 s32 u16 s16", "lo hi", INTEGER, product),
    row("mul", "u32 s32 u16 s16", "wide", INTEGER, product),
    row("mul", "f32", f"{ROUNDINGS} ftz sat", FLOAT, float_product),
    row("mul", "f64", "rn", DOUBLE, two(np.multiply)),
    row("mad", "u64 s64 u32 s32 u16 s16", "lo hi", INTEGER, product_and_sum),
    row("mad", "u32 s32 u16 s16", "wide", INTEGER, product_and_sum),
    row("fma", "f32", f"{ROUNDINGS} ftz sat", FMA, fused_multiply_add),
    row("fma", "f64", "rn", DOUBLE, fused_multiply_add),
    row("fma", "f16 bf16", f"{ROUNDINGS} sat", FMA, mixed(mixed_fma, 2)),
    row("div", INTEGERS, "", INTEGER, two(a.quotient)),
    row("div", "f32", "rn approx full ftz", SPECIAL, float_operation(np.divide, 2)),
    row("div", "f64", "rn", DOUBLE, two(np.divide)),
    row("rem", INTEGERS, "", INTEGER, two(a.remainder)),
    row("rcp", "f32", "rn approx ftz", SPECIAL, float_operation(np.reciprocal, 1)),
    row("rcp", "f64", "rn", DOUBLE, one(np.reciprocal)),
    row("sqrt", "f32", "rn approx ftz", SPECIAL, float_operation(np.sqrt, 1)),
    row("sqrt", "f64", "rn", DOUBLE, one(np.sqrt)),
    row("rsqrt", "f32", "approx ftz", SPECIAL, float_operation(a.in_float64(lambda x: 1 / np.sqrt(x)), 1)),
    row("ex2", "f32", "approx ftz", SPECIAL, float_operation(a.in_float64(np.exp2), 1)),
    row("lg2", "f32", "approx ftz", SPECIAL, float_operation(a.in_float64(np.log2), 1)),
    row("sin", "f32", "approx ftz", SPECIAL, float_operation(a.in_float64(np.sin), 1)),
    row("cos", "f32", "approx ftz", SPECIAL, float_operation(a.in_float64(np.cos), 1)),
    row("tanh", "f32", "approx", SPECIAL, float_operation(a.in_float64(np.tanh), 1)),
    row("neg", "s16 s32 s64", "", INTEGER, one(np.negative)),
    row("neg", "f32 f64", "ftz", FLOAT, sign_only(np.negative)),
    row("abs", "s16 s32 s64", "", INTEGER, one(np.abs)),
    row("abs", "f32 f64", "ftz", FLOAT, sign_only(np.abs)),
    row("copysign", "f32 f64", "", FLOAT, two(lambda sign, size: np.copysign(size, sign))),
    row("testp", "f32 f64", " ".join(FLOAT_TESTS), COMPARE, test_property),
    row("min", INTEGERS, "", INTEGER, two(np.minimum)),
    row("min", "f32 f64", "ftz NaN", FLOAT, extreme(a.minimum)),
    row("max", INTEGERS, "", INTEGER, two(np.maximum)),
    row("max", "f32 f64", "ftz NaN", FLOAT, extreme(a.maximum)),
    row("and", BITWISE, "", INTEGER, two(np.bitwise_and)),
    row("and", "pred", "", COMPARE, two(np.logical_and)),
    row("or", BITWISE, "", INTEGER, two(np.bitwise_or)),
    row("or", "pred", "", COMPARE, two(np.logical_or)),
    row("xor", BITWISE, "", INTEGER, two(np.bitwise_xor)),
    row("xor", "pred", "", COMPARE, two(np.logical_xor)),
    row("not", BITWISE, "", INTEGER, one(np.invert)),
    row("not", "pred", "", COMPARE, one(np.logical_not)),
    row("cnot", BITWISE, "", INTEGER, one(lambda x: (x == 0).astype(x.dtype))),
    row("lop3", "b32", "", INTEGER, logic_of_three),
    row("shl", BITWISE, "", INTEGER, with_types(a.shift_left, None, "u32")),
    row("shr", f"{BITWISE} {INTEGERS}", "", INTEGER, with_types(a.shift_right, None, "u32")),
    row("shf", "b32", "l wrap clamp", INTEGER, funnel_shift(left=True)),
    row("shf", "b32", "r wrap clamp", INTEGER, funnel_shift(left=False)),
    row("bfe", "u32 s32 u64 s64", "", INTEGER, with_types(a.extract, None, "u32", "u32")),
    row("bfi", "b32 b64", "", INTEGER, with_types(a.insert, None, None, "u32", "u32")),
    row("prmt", "b32", "", INTEGER, same(a.permute, 3)),
    row("popc", "b32 b64", "", INTEGER, giving(set_bits, 1, "u32")),
    row("clz", "b32 b64", "", INTEGER, giving(a.leading_zeros, 1, "u32")),
    row("brev", "b32 b64", "", INTEGER, one(a.reversed_bits)),
    row("bfind", "u32 s32 u64 s64", "", INTEGER, giving(a.highest_bit, 1, "u32")),
    row("setp", INTEGERS + " " + BITWISE, COMPARED, COMPARE, compare),
    row("setp", "f32 f64", COMPARED_FLOATS, COMPARE, compare),
    row("selp", ANY, "", MOVE, choose),
    row("mov", ANY + " pred", "", MOVE, move),
    row("cvta", "u64", "to global shared local const param", MOVE, address_conversion),
    row("cvt", "u8 s8 u16 s16 u32 s32 u64 s64", "sat", CONVERT, convert),
    row("cvt", "f16 bf16 f32 f64", "rn rz rm rp rni rzi rmi rpi rna ftz sat", CONVERT, convert),
    row("cvt", "u8 s8 u16 s16 u32 s32 u64 s64", "rn rz rm rp", CONVERT, convert),
    row("ld", ANY + " u8 s8 b8", f"global const {CACHING} v2 v4 v8", GLOBAL, load),
    row("ld", ANY + " u8 s8 b8", f"param {CACHING} v2 v4", PARAMETER, load),
    row("ld", ANY + " u8 s8 b8", f"shared shared::cta {CACHING} v2 v4", SHARED, load),
    row("ld", ANY + " u8 s8 b8", f"local {CACHING} v2 v4", LOCAL, load),
    row("ldu", ANY + " u8 s8 b8", "global v2 v4", GLOBAL, load),
    row("st", ANY + " u8 s8 b8", f"global {CACHING} v2 v4 v8", GLOBAL, store),
    row("st", ANY + " u8 s8 b8", f"shared shared::cta {CACHING} v2 v4", SHARED, store),
    row("st", ANY + " u8 s8 b8", f"local {CACHING} v2 v4", LOCAL, store),
    row("atom", "u32 s32 u64 s64 f32 f64", f"add min max exch {SPACES} {SCOPES}", ATOMIC, atomic),
    row("atom", "b32 b64 u32 s32 u64", f"and or xor exch cas inc dec {SPACES} {SCOPES}", ATOMIC, atomic),
    row("red", "u32 s32 u64 s64 f32 f64", f"add min max {SPACES} {SCOPES}", ATOMIC, atomic),
    row("red", "b32 b64 u32", f"and or xor inc dec {SPACES} {SCOPES}", ATOMIC, atomic),
    row("cp", "", "async ca cg shared shared::cta global L2::64B L2::128B L2::256B", COPY, asynchronous_copy),
    row("cp", "", "async commit_group", CONTROL, commit_group),
    row("cp", "", "async wait_group", CONTROL, wait_group),
    row("cp", "", "async wait_all", CONTROL, wait_all),
    row("ldmatrix", "b16", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta", LDMATRIX, load_matrices,
        aligned=True),
    row("mma", "f32", "sync aligned m16n8k16 m16n8k8 m16n8k4 row col", MMA, multiply_matrices, aligned=True),
    row("membar", "", "cta gl sys", CONTROL, fence),
    row("fence", "", "sc acq_rel acquire release cta gpu sys cluster", CONTROL, fence),
    row("prefetch", "", "global local L1 L2", CONTROL, nothing),
    row("nanosleep", "u32", "", CONTROL, nothing),
    row("bra", "", "uni", CONTROL, branch, ends_segment=True, handles_guard=True),
    row("brx", "", "idx uni", CONTROL, indexed_branch, ends_segment=True, handles_guard=True),
    row("ret", "", "uni", CONTROL, leave, ends_segment=True, handles_guard=True),
    row("exit", "", "", CONTROL, leave, ends_segment=True, handles_guard=True),
    row("trap", "", "", CONTROL, trap, ends_segment=True, handles_guard=True),
    row("bar", "", "sync cta", BARRIER, block_barrier, ends_segment=True, handles_guard=True),
    row("barrier", "", "sync cta aligned", BARRIER, block_barrier, ends_segment=True, handles_guard=True),
    row("bar", "", "warp sync", WARP, warp_barrier, starts_segment=True, ends_segment=True, handles_guard=True),
    row("shfl", "b32", "sync up down bfly idx", WARP, shuffle, starts_segment=True, ends_segment=True,
        handles_guard=True),
    row("vote", "pred b32", "sync all any uni ballot", WARP, vote, starts_segment=True, ends_segment=True,
        handles_guard=True),
    row("redux", "u32 s32 b32", "sync add min max and or xor", WARP, reduce_warp, starts_segment=True,
        ends_segment=True, handles_guard=True),
    row("activemask", "b32", "", WARP, active_mask),
)  # fmt: skip
BY_ROOT = {root: [r for r in TABLE if r.root == root] for root in {r.root for r in TABLE}}
