"""Arithmetic of floats: rounding directions, .ftz, .sat, and 16-bit operands beside float32 ones."""

from __future__ import annotations

import numpy as np

from .. import arithmetic as a
from ..syntax import Refused
from .converting import widened
from .elementwise import elementwise, one, same, ufunc_of_numba
from .parts import type_of, types_of


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
