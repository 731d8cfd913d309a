"""bra, brx, ret, trap, bar: where lanes go on, and where they wait for their block."""

from __future__ import annotations

import numpy as np

from .. import registers
from ..syntax import Immediate
from .parts import index_of


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


def indexed_branch(machine, instruction):
    """brx.idx: to the label that a table gives for each lane's index."""
    register, table = instruction.operands
    index = registers.source(machine, instruction, register, "u32")
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
    return jump(machine, instruction, lambda lanes: machine.barriers.wait(instruction, number, count, lanes, after))
