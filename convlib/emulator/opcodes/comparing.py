"""setp, selp, testp: comparing and choosing."""

from __future__ import annotations

import numpy as np

from .. import arithmetic as a
from .. import registers
from ..syntax import Negated, Pair, Register
from .elementwise import elementwise, giving
from .parts import type_of

COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
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
    sources = [
        registers.source(machine, instruction, o, t) for o, t in zip(operands, [type_, type_, "pred"], strict=False)
    ]
    if "ftz" in flags:
        plain = compared
        compared = lambda x, y: plain(a.flush(np.asarray(x)), a.flush(np.asarray(y)))  # noqa: E731
    combine = next((COMBINATIONS[m] for m in flags if m in COMBINATIONS), None)
    if (combine is None) != (len(sources) == 2):
        raise machine.error(instruction, "its operands do not go with its modifiers")
    if isinstance(first, Register) and combine is None and isinstance(compared, np.ufunc):
        return elementwise(machine, instruction, compared, [type_, type_], "pred")
    p, q = (first.first, first.second) if isinstance(first, Pair) else (first, None)
    outs = [registers.target(machine, instruction, p, np.dtype(bool))]
    outs += [registers.target(machine, instruction, q, np.dtype(bool))] if q is not None else []

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
