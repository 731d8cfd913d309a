"""ld, st, atom, red, fence: loads, stores and atomics, and what they count as traffic; what fences order."""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import accesses, checks, registers
from ..counters import Traffic
from ..dtypes import BITS, DTYPES
from ..fences import for_the_whole_gpu
from ..syntax import SIZES, Symbol
from .parts import elements, space_name, type_of


def load(machine, instruction):
    type_, name = type_of(instruction), space_name(instruction)
    into, where = instruction.operands
    targets = [registers.target(machine, instruction, item, DTYPES[type_]) for item in elements(instruction, into)]
    if name == "param":
        return load_parameter(machine, instruction, targets, where, DTYPES[type_])
    wanted = [machine.is_read(item) for item in elements(instruction, into)]
    address = registers.address(machine, instruction, where)
    traffic = new_traffic(machine, instruction, name, "load", type_, len(targets))
    if name == "generic":

        def run_generic(mask):
            for space, lanes, at in accesses.split_generic(machine, address(), machine.here if mask is None else mask):
                accesses.load(machine, instruction, space, type_, targets, at, lanes, traffic[space.name], wanted)

        return run_generic
    space = machine.spaces["global" if name == "const" else name]

    def run(mask):
        lanes = machine.here if mask is None else mask
        accesses.load(machine, instruction, space, type_, targets, address(), lanes, traffic, wanted)

    return run


def load_parameter(machine, instruction, targets, where, dtype):
    """Parameters are the same for all lanes; only an address in a register makes their offsets differ."""
    if isinstance(where.base, Symbol):
        at = registers.address_of(machine, instruction, where.base) + where.offset
        values = machine.parameters[at : at + dtype.itemsize * len(targets)].view(dtype)

        def run(mask):
            for out, value in zip(targets, values, strict=True):
                np.copyto(out, value, where=True if mask is None else mask)

        return run
    address = registers.address(machine, instruction, where)

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
    type_, name = type_of(instruction), space_name(instruction)
    where, given = instruction.operands
    bits = BITS[SIZES[type_]]
    values = []
    for item in elements(instruction, given):
        value = np.asarray(registers.source(machine, instruction, item, type_))
        values.append(value.view(bits) if value.ndim else np.full(machine.lanes, value.view(bits)))
    address = registers.address(machine, instruction, where)
    traffic = new_traffic(machine, instruction, name, "store", type_, len(values))
    if name == "generic":

        def run_generic(mask):
            for space, lanes, at in accesses.split_generic(machine, address(), machine.here if mask is None else mask):
                accesses.store(machine, instruction, space, type_, values, at, lanes, traffic[space.name])

        return run_generic
    space = machine.spaces[name]

    def run(mask):
        accesses.store(
            machine, instruction, space, type_, values, address(), machine.here if mask is None else mask, traffic
        )

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
    type_, name = type_of(instruction), space_name(instruction)
    operation = next(ATOMICS[m] for m in instruction.modifiers if m in ATOMICS)
    dtype = DTYPES[type_]
    operands = list(instruction.operands)
    out = registers.target(machine, instruction, operands.pop(0), dtype) if instruction.root == "atom" else None
    where, *given = operands
    values = [np.broadcast_to(registers.source(machine, instruction, o, type_), machine.lanes) for o in given]
    address = registers.address(machine, instruction, where)
    traffic = new_traffic(machine, instruction, name, "atomic", type_, 1)
    shift = dtype.itemsize.bit_length() - 1

    def update(space, lanes, at, traffic):
        index, good = accesses.access(machine, instruction, space, checks.UPDATES, dtype.itemsize, at, lanes, traffic)
        old = np.zeros(machine.lanes, dtype)
        memory = space.as_type(dtype)
        if operation in (AND, OR, XOR, INC, DEC):
            atomic_bits(memory, index, good, shift, operation, np.ascontiguousarray(values[0]), old)
        else:
            value, other = np.ascontiguousarray(values[0]), np.ascontiguousarray(values[-1])
            atomic_update(memory, index, good, shift, operation, value, other, old)
        if out is not None:
            np.copyto(out, old, where=good)
        if machine.fences.used and space.name == "global":
            machine.fences.update(good, at)

    def run(mask):
        lanes = machine.here if mask is None else mask
        if name != "generic":
            return update(machine.spaces[name], lanes, address(), traffic)
        for space, part, at in accesses.split_generic(machine, address(), lanes):
            update(space, part, at, traffic[space.name])

    return run


def fence(machine, instruction):
    """It changes no value here; what it orders among blocks, fences.py tells."""
    if not (machine.checked and for_the_whole_gpu(instruction)):
        return lambda mask: None
    return lambda mask: machine.fences.fence(machine.here if mask is None else mask)


def nothing(machine, instruction):
    """Prefetches, naps: they change no value here, and order nothing in the race check."""
    return lambda mask: None
