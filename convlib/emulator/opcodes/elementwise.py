"""Instructions that compute each lane's result from its own operands: bound as one NumPy call over all lanes."""

from __future__ import annotations

import numpy as np

from .. import registers
from ..dtypes import DTYPES
from .parts import type_of


def elementwise(machine, instruction, function, types, result):
    """Bind `function` of the operands after the first, read as `types`; its result goes to the first, as `result`."""
    operands = instruction.operands[1:]
    if len(operands) != len(types):
        raise machine.error(instruction, f"{len(types)} operands needed, got {len(operands)}")
    sources = [registers.source(machine, instruction, o, t) for o, t in zip(operands, types, strict=True)]
    out = registers.target(machine, instruction, instruction.operands[0], DTYPES[result])
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
    sources = [registers.source(machine, instruction, o, type_) for o in instruction.operands[1:]]
    out = registers.target(machine, instruction, instruction.operands[0], DTYPES[type_])

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
