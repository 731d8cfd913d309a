"""Arithmetic and bits of integers, as far as it is more than one NumPy function."""

from __future__ import annotations

import numpy as np

from .. import arithmetic as a
from ..syntax import Instruction
from .elementwise import elementwise, same, two
from .parts import type_of


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
