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
from numba import njit

from . import arithmetic as a
from . import checks, tensor_cores
from .counters import Traffic
from .memory import LOCAL_WINDOW, SHARED_WINDOW
from .parser import SIZES, Immediate, Instruction, Negated, Pair, PtxError, Register, Symbol, Vector

# Units, as the counters name them
FMA, FLOAT, DOUBLE, HALF, INTEGER, SPECIAL = "fma", "float", "double", "half", "integer", "special function"
CONVERT, COMPARE, MOVE, CONTROL, BARRIER, WARP = "convert", "compare", "move", "control", "barrier", "warp"
GLOBAL, SHARED, LOCAL, PARAMETER, ATOMIC = "global", "shared", "local", "parameter", "atomic"
MMA, LDMATRIX, COPY = "mma", "ldmatrix", "copy"

INTEGERS = "u16 s16 u32 s32 u64 s64"
BITWISE = "b16 b32 b64"
ANY = "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"
ROUNDINGS = "rn rz rm rp"
CACHING = (
    "volatile relaxed acquire release weak cta gpu sys cluster ca cg cs lu cv wb wt nc L1::evict_normal "
    "L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate L2::64B L2::128B L2::256B L2::evict_last "
    "L2::evict_first L2::evict_normal"
)
STATE_SPACES = {"global", "shared", "local", "param", "const"}


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


class Refused(PtxError):
    """An instruction, a modifier or a type that the table does not have."""


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


def types_of(instruction):
    return [m for m in instruction.modifiers if m in SIZES or m == "pred"]


def type_of(instruction):
    return types_of(instruction)[-1]


def orders_warps(instruction, threads):
    """Whether it is a barrier of less than a whole block of `threads`, so that the race check needs vector clocks."""
    if instruction.root in ("shfl", "vote", "match", "redux", "activemask"):
        return True
    if instruction.root in ("bar", "barrier"):
        return "warp" in instruction.modifiers or len(instruction.operands) > 1
    return False


# Element by element


def elementwise(machine, instruction, function, types, result):
    """Bind `function` of the operands after the first, read as `types`; its result goes to the first, as `result`."""
    from .machine import DTYPES

    operands = instruction.operands[1:]
    if len(operands) != len(types):
        raise machine.error(instruction, f"{len(types)} operands needed, got {len(operands)}")
    sources = [machine.source(instruction, o, t) for o, t in zip(operands, types, strict=True)]
    out = machine.target(instruction, instruction.operands[0], DTYPES[result])
    if isinstance(function, np.ufunc) and out.dtype == DTYPES[result] and any(np.ndim(s) for s in sources):
        return lambda mask: function(*sources, out=out, where=True if mask is None else mask)

    def run(mask):
        if mask is None:
            out[...] = function(*sources)
        else:
            np.copyto(out, function(*sources), where=mask)

    return run


def ufunc_of_numba(machine, instruction, function, type_):
    """The same for a function compiled by Numba, which takes `out` but not `where`."""
    from .machine import DTYPES

    sources = [machine.source(instruction, o, type_) for o in instruction.operands[1:]]
    out = machine.target(instruction, instruction.operands[0], DTYPES[type_])

    def run(mask):
        if mask is None:
            function(*sources, out=out)
        else:
            np.copyto(out, function(*sources), where=mask)

    return run


def same(function, count):
    """`count` operands and a result of the opcode's type."""

    def bind(machine, instruction):
        type_ = type_of(instruction)
        return elementwise(machine, instruction, function, [type_] * count, type_)

    return bind


def one(function):
    return same(function, 1)


def two(function):
    return same(function, 2)


def giving(function, count, result):
    """`count` operands of the opcode's type and a result of type `result`."""
    return lambda machine, i: elementwise(machine, i, function, [type_of(i)] * count, result)


def with_types(function, *types):
    """Operand types given; None stands for the opcode's own type."""

    def bind(machine, instruction):
        own = type_of(instruction)
        return elementwise(machine, instruction, function, [t or own for t in types], own)

    return bind


def float_operation(function, count):
    """A float operation that rounds to nearest, with .ftz and .sat."""

    def bind(machine, instruction):
        flags = instruction.modifiers
        return same(a.floating(function, "ftz" in flags, "sat" in flags), count)(machine, instruction)

    return bind


def direction(instruction):
    """ "rz", "rm" or "rp" if the opcode carries it."""
    return next((m for m in instruction.modifiers if m in ("rz", "rm", "rp")), None)


def float_sum(sign):
    nearest = np.add if sign > 0 else np.subtract

    def bind(machine, instruction):
        mode = direction(instruction)
        if mode is None:
            return float_operation(nearest, 2)(machine, instruction)
        one_ = np.float32(1)
        return float_operation(lambda x, y: a.fma_directed(x, one_, np.float32(sign) * y, mode), 2)(
            machine, instruction
        )

    return bind


def float_product(machine, instruction):
    mode = direction(instruction)
    if mode is None:
        return float_operation(np.multiply, 2)(machine, instruction)
    return float_operation(lambda x, y: a.product_directed(x, y, mode), 2)(machine, instruction)


def fused_multiply_add(machine, instruction):
    flags, mode = instruction.modifiers, direction(instruction)
    if mode is not None:
        return float_operation(lambda x, y, z: a.fma_directed(x, y, z, mode), 3)(machine, instruction)
    if type_of(instruction) == "f64":
        return ufunc_of_numba(machine, instruction, a.fma_f64, "f64")
    function = a.fma_ftz_f32 if "ftz" in flags else a.fma_f32
    if "sat" in flags:
        return same(lambda x, y, z: a.saturate(function(x, y, z)), 3)(machine, instruction)
    return ufunc_of_numba(machine, instruction, function, "f32")


def mixed(function, halves):
    """add, sub and fma of float32 whose first operands are 16-bit floats: widened exactly, then one rounding."""

    def bind(machine, instruction):
        result, half = (types_of(instruction) * 2)[:2]
        if result != "f32":
            raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
        mode, saturating = direction(instruction), "sat" in instruction.modifiers

        def compute(*operands):
            widened_ones = [widened(o, half) for o in operands[:halves]]
            return function(mode, *widened_ones, *operands[halves:])

        types = [half] * halves + ["f32"]
        return elementwise(machine, instruction, a.floating(compute, saturating=saturating), types, "f32")

    return bind


def mixed_sum(sign):
    return lambda mode, x, y: a.fma_directed(x, np.float32(1), np.float32(sign) * y, mode) if mode else x + sign * y


def mixed_fma(mode, x, y, z):
    return a.fma_directed(x, y, z, mode) if mode else a.fma_f32(x, y, z)


def extreme(function):
    """min or max of floats."""

    def bind(machine, instruction):
        chosen = a.nan_if_any(function) if "NaN" in instruction.modifiers else function
        return float_operation(chosen, 2)(machine, instruction)

    return bind


def sign_only(bits_operation):
    """neg and abs of floats: the sign bit alone, so a NaN keeps its bits; .ftz flushes."""

    def bind(machine, instruction):
        flush = "ftz" in instruction.modifiers
        return one(lambda x: bits_operation(a.flush(x) if flush else x))(machine, instruction)

    return bind


# Integers


def product(machine, instruction):
    """mul.lo, mul.hi, mul.wide of integers."""
    type_, flags = type_of(instruction), instruction.modifiers
    if "wide" in flags:
        return elementwise(machine, instruction, a.wide_product, [type_, type_], wide_type(type_))
    return two(a.high_product if "hi" in flags else np.multiply)(machine, instruction)


def product_and_sum(machine, instruction):
    """mad.lo, mad.hi, mad.wide of integers."""
    type_, flags = type_of(instruction), instruction.modifiers
    if "wide" in flags:
        types = [type_, type_, wide_type(type_)]
        return elementwise(machine, instruction, lambda x, y, z: a.wide_product(x, y) + z, types, types[-1])
    times = a.high_product if "hi" in flags else np.multiply
    return same(lambda x, y, z: times(x, y) + z, 3)(machine, instruction)


def wide_type(type_):
    return f"{type_[0]}{2 * int(type_[1:])}"


def saturating_sum(sign):
    """add.sat.s32 and sub.sat.s32: clamped instead of wrapped."""

    def clamped(x, y):
        total = x.astype(np.int64) + sign * y.astype(np.int64)
        return np.clip(total, -(2**31), 2**31 - 1).astype(np.int32)

    return two(clamped)


def funnel_shift(left):
    def bind(machine, instruction):
        wrap = "wrap" in instruction.modifiers
        return same(lambda low, high, amount: a.funnel(low, high, amount, left, wrap), 3)(machine, instruction)

    return bind


def logic_of_three(machine, instruction):
    table = instruction.operands[4].bits
    shorter = Instruction(instruction.opcode, instruction.operands[:4], instruction.line, instruction.source)
    return same(lambda x, y, z: a.logic(x, y, z, table), 3)(machine, shorter)


def set_bits(x):
    return np.bitwise_count(x).astype(np.uint32)


# Comparing and choosing

COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
ORDERED_NOT_EQUAL = {"ne"}
COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(modifiers, is_float):
    """The comparison an opcode names. Of floats, "ne" is false for NaN, and those ending in u are true for it."""
    name = next(m for m in modifiers if m in COMPARISONS or m[:-1] in COMPARISONS or m in ("num", "nan"))
    if not is_float:
        return COMPARISONS[name]
    if name == "num":
        return lambda x, y: (x == x) & (y == y)
    if name == "nan":
        return lambda x, y: (x != x) | (y != y)
    if name == "ne":
        return lambda x, y: (x != y) & (x == x) & (y == y)
    if name in COMPARISONS:
        return COMPARISONS[name]
    if name == "neu":
        return np.not_equal
    ordered = COMPARISONS[name[:-1]]
    return lambda x, y: ordered(x, y) | (x != x) | (y != y)


def compare(machine, instruction):
    """setp: p = a ? b, combined with c if there is one; p|q: q takes the opposite comparison."""
    type_, flags = type_of(instruction), instruction.modifiers
    compared = comparison(flags, type_[0] == "f")
    first, *operands = instruction.operands
    negated = isinstance(operands[-1], Negated)
    operands = [o.register if isinstance(o, Negated) else o for o in operands]
    sources = [machine.source(instruction, o, t) for o, t in zip(operands, [type_, type_, "pred"], strict=False)]
    if "ftz" in flags:
        plain = compared
        compared = lambda x, y: plain(a.flush(np.asarray(x)), a.flush(np.asarray(y)))  # noqa: E731
    combine = next((COMBINATIONS[m] for m in flags if m in COMBINATIONS), None)
    if (combine is None) != (len(sources) == 2):
        raise machine.error(instruction, "its operands do not go with its modifiers")
    if isinstance(first, Register) and combine is None and isinstance(compared, np.ufunc):
        return elementwise(machine, instruction, compared, [type_, type_], "pred")
    p, q = (first.first, first.second) if isinstance(first, Pair) else (first, None)
    outs = [machine.target(instruction, p, np.dtype(bool))]
    outs += [machine.target(instruction, q, np.dtype(bool))] if q is not None else []

    def run(mask):
        result = compared(*sources[:2])
        results = [result, ~np.asarray(result)][: len(outs)]
        if combine is not None:
            third = np.logical_not(sources[2]) if negated else sources[2]
            results = [combine(r, third) for r in results]
        for out, value in zip(outs, results, strict=True):
            np.copyto(out, value, where=True if mask is None else mask)

    return run


def choose(machine, instruction):
    """selp: a where p, else b."""
    type_ = type_of(instruction)
    return elementwise(machine, instruction, lambda x, y, p: np.where(p, x, y), [type_, type_, "pred"], type_)


FLOAT_TESTS = {
    "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: x == x, "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= a.SMALLEST_NORMAL[x.dtype]),
    "subnormal": lambda x: (x != 0) & (np.abs(x) < a.SMALLEST_NORMAL[x.dtype]),
}  # fmt: skip


def test_property(machine, instruction):
    test = next(FLOAT_TESTS[m] for m in instruction.modifiers if m in FLOAT_TESTS)
    return giving(test, 1, "pred")(machine, instruction)


# Moving and converting


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
    from .machine import BITS, DTYPES

    size = SIZES[type_] // len(items)
    part, whole = f"b{8 * size}", BITS[SIZES[type_]]
    sources = [machine.source(instruction, item, part) for item in items]
    out = machine.target(instruction, into, DTYPES[type_])

    def run(mask):
        value = whole.type(0)
        for i, source in enumerate(sources):
            value = value | (source.astype(whole) << whole.type(8 * size * i))
        np.copyto(out, np.asarray(value).view(out.dtype), where=True if mask is None else mask)

    return run


def unpack(machine, instruction, items, value, type_):
    from .machine import BITS

    size = SIZES[type_] // len(items)
    part, whole = BITS[size], BITS[SIZES[type_]]
    source = machine.source(instruction, value, f"b{8 * SIZES[type_]}")
    outs = [machine.target(instruction, item, part) for item in items]

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
    from .machine import DTYPES

    if (result == "tf32" or "rna" in flags) and flags != ("rna", "tf32", "f32"):
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    if result == "tf32":
        return a.tf32_bits
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
    from .machine import DTYPES

    if sat or (mode != "rn" and not (result == "f32" and SIZES[given] <= 4)) or result == "bf16":
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    if result == "f16":
        return lambda x: a.float16_bits(x.astype(np.float64))
    return lambda x: a.floats_of_integers(np.asarray(x), DTYPES[result], mode)


def float_of_float(instruction, result, given, mode, ftz, sat):
    from .machine import DTYPES

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


# Memory


def space_name(instruction):
    for modifier in instruction.modifiers:
        name = modifier.partition("::")[0]
        if name in STATE_SPACES:
            return name
    return "generic"


def elements(instruction, operand):
    """The registers of a load or the values of a store: one, or as many as .v2, .v4 or .v8 says."""
    items = operand.items if isinstance(operand, Vector) else (operand,)
    width = next((int(m[1]) for m in instruction.modifiers if m in ("v2", "v4", "v8")), 1)
    if len(items) != width:
        raise Refused(f"PTX line {instruction.line}: {width} registers needed, got {len(items)}")
    return items


def load(machine, instruction):
    from .machine import DTYPES

    type_, name = type_of(instruction), space_name(instruction)
    into, where = instruction.operands
    targets = [machine.target(instruction, item, DTYPES[type_]) for item in elements(instruction, into)]
    if name == "param":
        return load_parameter(machine, instruction, targets, where, DTYPES[type_])
    wanted = [machine.is_read(item) for item in elements(instruction, into)]
    address = machine.address(instruction, where)
    traffic = new_traffic(machine, instruction, name, "load", type_, len(targets))
    if name == "generic":

        def run_generic(mask):
            for space, lanes, at in machine.split_generic(address(), machine.here if mask is None else mask):
                machine.load(instruction, space, type_, targets, at, lanes, traffic[space.name], wanted)

        return run_generic
    space = machine.spaces["global" if name == "const" else name]

    def run(mask):
        lanes = machine.here if mask is None else mask
        machine.load(instruction, space, type_, targets, address(), lanes, traffic, wanted)

    return run


def load_parameter(machine, instruction, targets, where, dtype):
    """Parameters are the same for all lanes; only an address in a register makes their offsets differ."""
    if isinstance(where.base, Symbol):
        at = machine.address_of(instruction, where.base) + where.offset
        values = machine.parameters[at : at + dtype.itemsize * len(targets)].view(dtype)

        def run(mask):
            for out, value in zip(targets, values, strict=True):
                np.copyto(out, value, where=True if mask is None else mask)

        return run
    address = machine.address(instruction, where)

    def run_at(mask):
        lanes = machine.here if mask is None else mask
        for i, out in enumerate(targets):
            offsets = address()[:, None] + np.arange(i * dtype.itemsize, (i + 1) * dtype.itemsize)
            offsets = np.where(lanes[:, None], offsets, 0)
            if offsets.max() >= len(machine.parameters):
                raise machine.error(instruction, "reads past the kernel's parameters")
            np.copyto(out, machine.parameters[offsets].view(dtype)[:, 0], where=lanes)

    return run_at


def store(machine, instruction):
    from .machine import BITS

    type_, name = type_of(instruction), space_name(instruction)
    where, given = instruction.operands
    bits = BITS[SIZES[type_]]
    values = []
    for item in elements(instruction, given):
        value = np.asarray(machine.source(instruction, item, type_))
        values.append(value.view(bits) if value.ndim else np.full(machine.lanes, value.view(bits)))
    address = machine.address(instruction, where)
    traffic = new_traffic(machine, instruction, name, "store", type_, len(values))
    if name == "generic":

        def run_generic(mask):
            for space, lanes, at in machine.split_generic(address(), machine.here if mask is None else mask):
                machine.store(instruction, space, type_, values, at, lanes, traffic[space.name])

        return run_generic
    space = machine.spaces[name]

    def run(mask):
        machine.store(instruction, space, type_, values, address(), machine.here if mask is None else mask, traffic)

    return run


def new_traffic(machine, instruction, name, kind, type_, count):
    def one_space(space):
        traffic = Traffic(space, kind, SIZES[type_] * count, instruction.line, instruction.source)
        machine.traffic.append(traffic)
        return traffic

    if name == "generic":
        return {space: one_space(space) for space in ("global", "shared", "local")}
    return one_space("global" if name == "const" else name)


ADD, MIN, MAX, AND, OR, XOR, EXCH, CAS, INC, DEC = range(10)
ATOMICS = dict(zip(["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"], range(10), strict=True))


@njit(cache=True)
def atomic_update(memory, index, good, shift, operation, value, other, old):
    """One lane after the other: old[lane] takes what was there."""
    for lane in range(index.shape[0]):
        if not good[lane]:
            continue
        at = index[lane] >> shift
        before, operand = memory[at], value[lane]
        old[lane] = before
        if operation == ADD:
            memory[at] = before + operand
        elif operation == MIN:
            memory[at] = min(before, operand)
        elif operation == MAX:
            memory[at] = max(before, operand)
        elif operation == EXCH:
            memory[at] = operand
        elif operation == CAS:
            memory[at] = other[lane] if before == operand else before


@njit(cache=True)
def atomic_bits(memory, index, good, shift, operation, value, old):
    for lane in range(index.shape[0]):
        if not good[lane]:
            continue
        at = index[lane] >> shift
        before, operand = memory[at], value[lane]
        old[lane] = before
        if operation == AND:
            memory[at] = before & operand
        elif operation == OR:
            memory[at] = before | operand
        elif operation == XOR:
            memory[at] = before ^ operand
        elif operation == INC:
            memory[at] = 0 if before >= operand else before + 1
        elif operation == DEC:
            memory[at] = operand if before == 0 or before > operand else before - 1


def atomic(machine, instruction):
    """atom and red: an update of memory; atom also gives what was there before."""
    from .machine import DTYPES

    type_, name = type_of(instruction), space_name(instruction)
    operation = next(ATOMICS[m] for m in instruction.modifiers if m in ATOMICS)
    dtype = DTYPES[type_]
    operands = list(instruction.operands)
    out = machine.target(instruction, operands.pop(0), dtype) if instruction.root == "atom" else None
    where, *given = operands
    values = [np.broadcast_to(machine.source(instruction, o, type_), machine.lanes) for o in given]
    address = machine.address(instruction, where)
    traffic = new_traffic(machine, instruction, name, "atomic", type_, 1)
    shift = dtype.itemsize.bit_length() - 1

    def update(space, lanes, at, traffic):
        index, good = machine.access(instruction, space, checks.UPDATES, dtype.itemsize, at, lanes, traffic)
        old = np.zeros(machine.lanes, dtype)
        memory = space.as_type(dtype)
        if operation in (AND, OR, XOR, INC, DEC):
            atomic_bits(memory, index, good, shift, operation, np.ascontiguousarray(values[0]), old)
        else:
            value, other = np.ascontiguousarray(values[0]), np.ascontiguousarray(values[-1])
            atomic_update(memory, index, good, shift, operation, value, other, old)
        if out is not None:
            np.copyto(out, old, where=good)

    def run(mask):
        lanes = machine.here if mask is None else mask
        if name != "generic":
            return update(machine.spaces[name], lanes, address(), traffic)
        for space, part, at in machine.split_generic(address(), lanes):
            update(space, part, at, traffic[space.name])

    return run


def nothing(machine, instruction):
    """Fences, prefetches, naps: they change no value here, and order nothing in the race check."""
    return lambda mask: None


# Control flow


def branch(machine, instruction):
    """bra: lanes whose guard holds go to the label, the others go on."""
    label = instruction.operands[0].name
    if label not in machine.function.labels:
        raise machine.error(instruction, f"label {label} does not exist")
    target = machine.segment_at.get(machine.function.labels[label], len(machine.segments))
    return jump(machine, instruction, lambda lanes: machine.go(target, lanes))


def leave(machine, instruction):
    return jump(machine, instruction, machine.leave)


def trap(machine, instruction):
    def trapped(lanes):
        machine.fault("trap", instruction, int(np.flatnonzero(lanes)[0]), "the kernel stopped itself")
        machine.leave(lanes)

    return jump(machine, instruction, trapped)


def jump(machine, instruction, act):
    """`act` on the lanes whose guard holds; the others go on to the next segment."""
    after = machine.segment_at.get(index_of(machine, instruction) + 1, len(machine.segments))
    guard = machine.registers[instruction.guard.name] if instruction.guard else None
    negated = instruction.guard_negated

    def run(mask):
        lanes = machine.here if mask is None else mask
        if guard is None:
            act(lanes)
            return True
        taken = lanes & (~guard if negated else guard)
        if not taken.any():
            machine.go(after, lanes)
            return True
        act(taken)
        rest = lanes & ~taken
        if rest.any():
            machine.go(after, rest)
        return True

    return run


def index_of(machine, instruction):
    return machine.index_of[id(instruction)]


def indexed_branch(machine, instruction):
    """brx.idx: to the label that a table gives for each lane's index."""
    register, table = instruction.operands
    index = machine.source(instruction, register, "u32")
    labels = machine.function.branch_targets[table.name]
    targets = [machine.segment_at.get(machine.function.labels[label], len(machine.segments)) for label in labels]

    def act(lanes):
        for i, target in enumerate(targets):
            chosen = lanes & (index == i)
            if chosen.any():
                machine.go(target, chosen)

    return jump(machine, instruction, act)


def block_barrier(machine, instruction):
    """bar.sync number, count: the threads of a block (or count of them, a multiple of 32) meet."""
    constants = [o for o in instruction.operands if isinstance(o, Immediate)]
    if len(constants) != len(instruction.operands):
        raise machine.error(instruction, "a barrier whose number or count is in a register is not known")
    number = constants[0].bits if constants else 0
    count = constants[1].bits if len(constants) > 1 else None
    count = None if count == machine.width == machine.threads else count
    after = machine.segment_at.get(index_of(machine, instruction) + 1, len(machine.segments))
    return jump(machine, instruction, lambda lanes: machine.wait_at_barrier(instruction, number, count, lanes, after))


# Warps


def together(machine, instruction, named, act):
    """Run `act` for the lanes of warps whose named lanes have all come; the others wait."""
    at = next(k for k, s in enumerate(machine.segments) if s.first == index_of(machine, instruction))
    guard = machine.registers[instruction.guard.name] if instruction.guard else None

    def run(mask):
        lanes = machine.here if mask is None else mask
        rest = np.zeros(machine.lanes, bool)
        if guard is not None:
            taken = lanes & (~guard if instruction.guard_negated else guard)
            lanes, rest = taken, lanes & ~taken
        lanes = machine.gather_warp(at, lanes, named())
        if lanes.any():
            act(lanes)
            if machine.checked:
                machine.learn_in_warps(lanes)
        if (lanes | rest).any():
            machine.go(at + 1, lanes | rest)
        return True

    return run


def lanes_named(machine, instruction, operand):
    value = machine.source(instruction, operand, "b32")
    return lambda: np.broadcast_to(value, machine.lanes)


def warp_barrier(machine, instruction):
    named = lanes_named(machine, instruction, instruction.operands[0])
    return together(machine, instruction, named, lambda lanes: None)


def shuffle(machine, instruction):
    """shfl.sync: each lane reads another lane's value; p says whether that lane was in range."""
    into, value, shift, clamp, mask = instruction.operands
    out, predicate = (into.first, into.second) if isinstance(into, Pair) else (into, None)
    out = machine.target(instruction, out, np.dtype(np.uint32))
    predicate = machine.target(instruction, predicate, np.dtype(bool)) if predicate is not None else None
    value = machine.source(instruction, value, "b32")
    shift, clamp = (np.asarray(machine.source(instruction, o, "b32")) for o in (shift, clamp))
    mode = next(m for m in instruction.modifiers if m in ("up", "down", "bfly", "idx"))
    lane = np.arange(machine.lanes) % 32
    first = np.arange(machine.lanes) - lane

    def act(lanes):
        source, inside = shuffle_source(mode, lane, shift.astype(np.int64), clamp.astype(np.int64))
        result = np.broadcast_to(value, machine.lanes)[first + source]
        np.copyto(out, result, where=lanes)
        if predicate is not None:
            np.copyto(predicate, inside, where=lanes)

    return together(machine, instruction, lanes_named(machine, instruction, mask), act)


def shuffle_source(mode, lane, shift, clamp):
    """The lane that each lane reads, and whether it is in range; section 9.7.9.6 of the PTX ISA, line by line."""
    b, c, segment = shift & 31, clamp & 31, clamp >> 8 & 31
    most = (lane & segment) | (c & ~segment)
    least = lane & segment
    if mode == "up":
        source = lane - b
        inside = source >= most
    elif mode == "down":
        source = lane + b
        inside = source <= most
    elif mode == "bfly":
        source = lane ^ b
        inside = source <= most
    else:
        source = least | (b & ~segment)
        inside = source <= most
    return np.where(inside, source, lane), inside


def vote(machine, instruction):
    """vote.sync: all, any, uni give a predicate, ballot the lanes whose predicate holds."""
    into, predicate, mask = instruction.operands
    kind = next(m for m in instruction.modifiers if m in ("all", "any", "uni", "ballot"))
    out = machine.target(instruction, into, np.dtype(np.uint32 if kind == "ballot" else bool))
    value = machine.source(instruction, predicate, "pred")

    def act(lanes):
        yes = machine.bits_of_warps(lanes & value)
        everyone = machine.bits_of_warps(lanes)
        result = {"ballot": yes, "any": yes != 0, "all": yes == everyone, "uni": (yes == 0) | (yes == everyone)}[kind]
        np.copyto(out, result, where=lanes)

    return together(machine, instruction, lanes_named(machine, instruction, mask), act)


def active_mask(machine, instruction):
    out = machine.target(instruction, instruction.operands[0], np.dtype(np.uint32))

    def run(mask):
        lanes = machine.here if mask is None else mask
        np.copyto(out, machine.bits_of_warps(lanes), where=lanes)

    return run


REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}  # fmt: skip


def reduce_warp(machine, instruction):
    """redux.sync: one integer over the lanes that the mask names."""
    from .machine import DTYPES

    into, value, mask = instruction.operands
    dtype = DTYPES[type_of(instruction)]
    function = next(REDUCTIONS[m] for m in instruction.modifiers if m in REDUCTIONS)
    out = machine.target(instruction, into, dtype)
    value = machine.source(instruction, value, type_of(instruction))

    def act(lanes):
        for first in range(0, machine.lanes, 32):
            part = lanes[first : first + 32]
            if part.any():
                values = np.broadcast_to(value, machine.lanes)[first : first + 32][part]
                out[first : first + 32][part] = function.reduce(values, dtype=dtype)

    return together(machine, instruction, lanes_named(machine, instruction, mask), act)


# Asynchronous copies


def copied_bytes(instruction):
    """The size of a cp.async that moves bytes; None for any other instruction."""
    if instruction.root != "cp" or len(instruction.operands) < 3:
        return None
    size = instruction.operands[2]
    return size.bits if isinstance(size, Immediate) else None


def asynchronous_copy(machine, instruction):
    """cp.async [shared], [global], size, source size or predicate: the bytes arrive when they are waited for."""
    size, sizes = copied_bytes(instruction), (16,) if "cg" in instruction.modifiers else (4, 8, 16)
    if size not in sizes or len(instruction.operands) > 4:
        raise machine.error(instruction, f"a constant size in {sizes} and at most one operand after it needed")
    into, source, _, *given = instruction.operands
    into, source = machine.address(instruction, into), machine.address(instruction, source)
    source_size = bytes_given(machine, instruction, size, given)
    written, read = (Traffic(space, "copy", size, instruction.line, instruction.source) for space in (SHARED, GLOBAL))
    machine.traffic += [written, read]

    def run(mask):
        lanes = machine.here if mask is None else mask
        count = source_size(lanes)
        index, good = machine.access(instruction, machine.shared, checks.WRITES, size, into(), lanes, written)
        start, count = machine.source_of_copy(instruction, size, source(), lanes, count, read)
        machine.copies.issue(instruction.line, size, good, index, start, count)

    return run


def bytes_given(machine, instruction, size, given):
    """A function of the lanes: how many of a copy's bytes come from its source. A predicate that holds means none."""
    if not given:
        whole = np.full(machine.lanes, size, np.int64)
        return lambda lanes: whole
    if isinstance(given[0], Register) and machine.function.registers.get(given[0].name) == "pred":
        ignored = machine.source(instruction, given[0], "pred")
        return lambda lanes: np.where(ignored, 0, size)
    number = machine.source(instruction, given[0], "u32")

    def checked(lanes):
        count = np.broadcast_to(number, machine.lanes).astype(np.int64)
        wrong = lanes & (count > size)
        if wrong.any():
            lane = int(np.flatnonzero(wrong)[0])
            message = f"{count[lane]} bytes of source for a copy of {size}"
            machine.fault("source size", instruction, lane, message, int(np.count_nonzero(wrong)))
        return np.minimum(count, size)

    return checked


def commit_group(machine, instruction):
    return lambda mask: machine.copies.commit(machine.here if mask is None else mask)


def wait_group(machine, instruction):
    """cp.async.wait_group n: until at most n groups of the thread are in flight."""
    if len(instruction.operands) != 1 or not isinstance(instruction.operands[0], Immediate):
        raise machine.error(instruction, "one constant needed")
    most = instruction.operands[0].bits
    return lambda mask: machine.copies.wait(machine.here if mask is None else mask, most)


def wait_all(machine, instruction):
    """cp.async.wait_all: a commit, and a wait for all groups."""

    def run(mask):
        lanes = machine.here if mask is None else mask
        machine.copies.commit(lanes)
        machine.copies.wait(lanes, 0)

    return run


# Tensor cores


def of_whole_warps(machine, instruction, run):
    """`run`, and a fault if a warp does not come as a whole."""
    last_is_cut = machine.threads % 32 != 0

    def checked(mask):
        if mask is not None or last_is_cut:
            machine.report_divergence(instruction, machine.here if mask is None else mask)
        run(mask)

    return checked


def registers_of(operand):
    return operand.items if isinstance(operand, Vector) else (operand,)


def load_matrices(machine, instruction):
    """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r (16 bytes) of matrix i.

    Lane 4 g + t gets elements 2 t and 2 t + 1 of row g, transposed those of column g. For the checks each lane reads
    what it gets: the bytes that another thread wrote must be ordered before.
    """
    into, where = instruction.operands
    into = registers_of(into)
    transposed = "trans" in instruction.modifiers
    if f"x{len(into)}" not in instruction.modifiers or space_name(instruction) != "shared":
        raise machine.error(instruction, "as many registers as .x1, .x2 or .x4 says and .shared needed")
    targets = [machine.target(instruction, item, np.dtype(np.uint32)) for item in into]
    address = machine.address(instruction, where)
    traffic = Traffic(SHARED, "ldmatrix", 4 * len(into), instruction.line, instruction.source)
    machine.traffic.append(traffic)
    lane = np.arange(machine.lanes) % 32
    first, g, t = np.arange(machine.lanes) - lane, lane >> 2, lane & 3
    gives_address, halves = lane < 8 * len(into), np.zeros((2, machine.lanes), np.uint16)
    all_must_be_valid = machine.module.target == "sm_75"  # the addresses of lanes that give no row too

    def run(mask):
        lanes, at = machine.here if mask is None else mask, address()
        rows = lanes & gives_address
        if machine.counting:
            machine.count_traffic(traffic, at, rows, 16)
        needed = lanes if all_must_be_valid else rows
        _, good = machine.check(instruction, machine.shared, checks.PEEKS, 16, at, needed)
        for i, target in enumerate(targets):
            if not transposed:
                row = first + 8 * i + g
                machine.load_element(instruction, 4, at[row] + 4 * t, lanes & good[row], target)
                continue
            for half, part in enumerate(halves):
                row = first + 8 * i + 2 * t + half
                machine.load_element(instruction, 2, at[row] + 2 * g, lanes & good[row], part)
            np.copyto(target, halves[1].astype(np.uint32) << np.uint32(16) | halves[0], where=lanes)

    return of_whole_warps(machine, instruction, run)


def shape_of(instruction):
    """m16n8k16 and its like."""
    return next((m for m in instruction.modifiers if m[0] == "m" and m[1].isdigit()), None)


def multiply_matrices(machine, instruction):
    """mma: D = A B + C of one warp, see tensor_cores.py."""
    into, left, right, addend = (registers_of(o) for o in instruction.operands)
    types, order = types_of(instruction), [m for m in instruction.modifiers if m in ("row", "col")]
    depth = tensor_cores.DEPTHS.get((shape_of(instruction), types[1]))
    if depth is None or types != ["f32", types[1], types[1], "f32"] or order != ["row", "col"]:
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    held = 32 * tensor_cores.VALUES_PER_REGISTER[types[1]]
    if (len(left), len(right), len(addend), len(into)) != (16 * depth // held, 8 * depth // held, 4, 4):
        raise machine.error(instruction, "as many registers as its shape has needed")
    outs = tuple(machine.target(instruction, item, np.dtype(np.float32)) for item in into)
    left, right = (tuple(every_lane(machine, instruction, item, "b32") for item in items) for items in (left, right))
    addend = tuple(every_lane(machine, instruction, item, "f32") for item in addend)
    warp, widened = tensor_cores.Warp(depth), tensor_cores.WIDENED[types[1]]

    def run(mask):
        lanes = machine.here if mask is None else mask
        tensor_cores.multiply(left, right, addend, outs, lanes, widened, a.F32_NAN, *warp.matrices)

    return of_whole_warps(machine, instruction, run)


def every_lane(machine, instruction, operand, type_):
    """An operand as an array of all lanes, a constant too."""
    value = machine.source(instruction, operand, type_)
    return value if np.ndim(value) else np.full(machine.lanes, value)


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
    row("membar", "", "cta gl sys", CONTROL, nothing),
    row("fence", "", "sc acq_rel acquire release cta gpu sys cluster", CONTROL, nothing),
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
