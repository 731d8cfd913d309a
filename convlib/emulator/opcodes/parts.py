"""What an instruction's modifiers and operands say, for those who bind it."""

from __future__ import annotations

from ..syntax import SIZES, Immediate, Refused, Vector

STATE_SPACES = {"global", "shared", "local", "param", "const"}


def types_of(instruction):
    return [m for m in instruction.modifiers if m in SIZES or m == "pred"]


def type_of(instruction):
    return types_of(instruction)[-1]


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


def index_of(machine, instruction):
    return machine.index_of[id(instruction)]


def copied_bytes(instruction):
    """The size of a cp.async that moves bytes; None for any other instruction."""
    if instruction.root != "cp" or len(instruction.operands) < 3:
        return None
    size = instruction.operands[2]
    return size.bits if isinstance(size, Immediate) else None


def registers_of(operand):
    return operand.items if isinstance(operand, Vector) else (operand,)


def shape_of(instruction):
    """m16n8k16 and its like."""
    return next((m for m in instruction.modifiers if m[0] == "m" and m[1].isdigit()), None)
