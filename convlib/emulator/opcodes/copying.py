"""cp.async: the copies that a thread issues, commits in groups and waits for."""

from __future__ import annotations

import numpy as np

from .. import accesses, checks, registers
from ..counters import GLOBAL, SHARED, Traffic
from ..syntax import Immediate, Register
from .parts import copied_bytes


def asynchronous_copy(machine, instruction):
    """cp.async [shared], [global], size, source size or predicate: the bytes arrive when they are waited for."""
    size, sizes = copied_bytes(instruction), (16,) if "cg" in instruction.modifiers else (4, 8, 16)
    if size not in sizes or len(instruction.operands) > 4:
        raise machine.error(instruction, f"a constant size in {sizes} and at most one operand after it needed")
    into, source, _, *given = instruction.operands
    into, source = registers.address(machine, instruction, into), registers.address(machine, instruction, source)
    source_size = bytes_given(machine, instruction, size, given)
    written, read = (Traffic(space, "copy", size, instruction.line, instruction.source) for space in (SHARED, GLOBAL))
    machine.traffic += [written, read]

    def run(mask):
        lanes = machine.here if mask is None else mask
        count = source_size(lanes)
        index, good = accesses.access(machine, instruction, machine.shared, checks.WRITES, size, into(), lanes, written)
        start, count = accesses.source_of_copy(machine, instruction, size, source(), lanes, count, read)
        machine.copies.issue(instruction.line, size, good, index, start, count)

    return run


def bytes_given(machine, instruction, size, given):
    """A function of the lanes: how many of a copy's bytes come from its source. A predicate that holds means none."""
    if not given:
        whole = np.full(machine.lanes, size, np.int64)
        return lambda lanes: whole
    if isinstance(given[0], Register) and machine.function.registers.get(given[0].name) == "pred":
        ignored = registers.source(machine, instruction, given[0], "pred")
        return lambda lanes: np.where(ignored, 0, size)
    number = registers.source(machine, instruction, given[0], "u32")

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
