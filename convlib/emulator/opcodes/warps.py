"""shfl, vote, redux, bar.warp: instructions for which a warp's lanes come together."""

from __future__ import annotations

import numpy as np

from .. import registers
from ..barriers import bits_of_warps
from ..dtypes import DTYPES
from ..syntax import Pair
from .parts import index_of, type_of


def orders_warps(instruction, threads):
    """Whether it is a barrier of less than a whole block of `threads`, so that the race check needs vector clocks."""
    if instruction.root in ("shfl", "vote", "match", "redux", "activemask"):
        return True
    if instruction.root in ("bar", "barrier"):
        return "warp" in instruction.modifiers or len(instruction.operands) > 1
    return False


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
        lanes = machine.barriers.gather_warp(at, lanes, named())
        if lanes.any():
            act(lanes)
            if machine.checked:
                machine.barriers.learn_in_warps(lanes)
        if (lanes | rest).any():
            machine.go(at + 1, lanes | rest)
        return True

    return run


def lanes_named(machine, instruction, operand):
    value = registers.source(machine, instruction, operand, "b32")
    return lambda: np.broadcast_to(value, machine.lanes)


def warp_barrier(machine, instruction):
    named = lanes_named(machine, instruction, instruction.operands[0])
    return together(machine, instruction, named, lambda lanes: None)


def shuffle(machine, instruction):
    """shfl.sync: each lane reads another lane's value; p says whether that lane was in range."""
    into, value, shift, clamp, mask = instruction.operands
    out, predicate = (into.first, into.second) if isinstance(into, Pair) else (into, None)
    out = registers.target(machine, instruction, out, np.dtype(np.uint32))
    predicate = registers.target(machine, instruction, predicate, np.dtype(bool)) if predicate is not None else None
    value = registers.source(machine, instruction, value, "b32")
    shift, clamp = (np.asarray(registers.source(machine, instruction, o, "b32")) for o in (shift, clamp))
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
    out = registers.target(machine, instruction, into, np.dtype(np.uint32 if kind == "ballot" else bool))
    value = registers.source(machine, instruction, predicate, "pred")

    def act(lanes):
        yes = bits_of_warps(lanes & value)
        everyone = bits_of_warps(lanes)
        result = {"ballot": yes, "any": yes != 0, "all": yes == everyone, "uni": (yes == 0) | (yes == everyone)}[kind]
        np.copyto(out, result, where=lanes)

    return together(machine, instruction, lanes_named(machine, instruction, mask), act)


def active_mask(machine, instruction):
    out = registers.target(machine, instruction, instruction.operands[0], np.dtype(np.uint32))

    def run(mask):
        lanes = machine.here if mask is None else mask
        np.copyto(out, bits_of_warps(lanes), where=lanes)

    return run


REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}  # fmt: skip


def reduce_warp(machine, instruction):
    """redux.sync: one integer over the lanes that the mask names."""
    into, value, mask = instruction.operands
    dtype = DTYPES[type_of(instruction)]
    function = next(REDUCTIONS[m] for m in instruction.modifiers if m in REDUCTIONS)
    out = registers.target(machine, instruction, into, dtype)
    value = registers.source(machine, instruction, value, type_of(instruction))

    def act(lanes):
        for first in range(0, machine.lanes, 32):
            part = lanes[first : first + 32]
            if part.any():
                values = np.broadcast_to(value, machine.lanes)[first : first + 32][part]
                out[first : first + 32][part] = function.reduce(values, dtype=dtype)

    return together(machine, instruction, lanes_named(machine, instruction, mask), act)
