"""Every access of memory: checked, counted, and carried out for the lanes that may."""

from __future__ import annotations

import numpy as np

from . import checks, counters
from .dtypes import BITS, DTYPES
from .faults import KINDS
from .memory import LOCAL_WINDOW, SHARED_WINDOW, WINDOW_SIZE, gather, scatter
from .syntax import SIZES


def access(machine, instruction, space, kind, size, address, lanes, traffic):
    """Check and count an access of `size` bytes per lane; return index and good lanes in `space`."""
    if machine.counting and space.name != "local":
        count_traffic(machine, traffic, address, lanes, size)
    return check(machine, instruction, space, kind, size, address, lanes)


def check(machine, instruction, space, kind, size, address, lanes):
    index = np.empty(machine.lanes, np.int64)
    good = np.empty(machine.lanes, bool)
    if not machine.checked:
        wrong = checks.check_bounds(address, lanes, size, space.base, space.limit, space.copy_starts, index, good)
        if wrong:
            lane = int(np.flatnonzero(lanes & ~good)[0])
            machine.fault("out of bounds", instruction, lane, where(machine, space, address[lane]), wrong)
    else:
        found = np.zeros((8, checks.FAULT_FIELDS), np.int64)
        unit_shift = min(size, 4).bit_length() - 1
        wrong = checks.check_access(
            address, lanes, size, kind, space.base, space.limit, space.copy_starts,
            space.flags.view(BITS[1 << unit_shift]), unit_shift, space.records, space.granule_shift,
            space.name == "global", machine.slot, machine.thread, machine.phase, machine.phase_block, machine.clock,
            machine.known, machine.fences.knows, instruction.line, index, good, found,
        )  # fmt: skip
        if wrong:
            record(machine, instruction, space, size, found[: min(wrong, 8)], wrong)
    return index, good


def record(machine, instruction, space, size, found, wrong):
    count = wrong - len(found) + 1  # those that are not in `found` count with the first
    for code, lane, address, phase, thread, line in found.tolist():
        message = f"{size} bytes at {where(machine, space, address)}"
        if code >= checks.WRITE_AFTER_READ:
            other = (
                machine.coordinates(machine.phase_block[phase], machine.grid),
                machine.coordinates(thread, machine.block),
            )
            message += f", with block {other[0]}, thread {other[1]} at PTX line {line}"
        machine.fault(KINDS[code], instruction, lane, message, count)
        count = 1


def where(machine, space, address):
    if space.name == "global":
        return machine.memory.describe(int(address))
    names = [
        (at, name) for name, at in machine.symbols.items()
        if at <= address and name in names_in(machine, space.name)
    ]  # fmt: skip
    if not names:
        return f"byte {int(address)} of {space.name} memory"
    at, name = max(names)
    return f"{name} + {int(address) - at}"


def names_in(machine, space):
    return {v.name for v in (*machine.module.variables, *machine.function.variables) if v.space == space}


def count_traffic(machine, traffic, address, lanes, size):
    count = counters.shared_wavefronts if traffic.space == "shared" else counters.global_sectors
    requests, cost = count(address, lanes, size)
    traffic.requests += requests
    traffic.cost += cost
    traffic.lanes += int(np.count_nonzero(lanes))


def load(machine, instruction, space, type_, targets, address, lanes, traffic, wanted):
    """wanted: which targets somebody reads. Compilers widen loads over padding, whose content does not matter."""
    dtype = BITS[SIZES[type_]]
    size = dtype.itemsize * len(targets)
    kind = checks.PEEKS if machine.checked and any(wanted) and not all(wanted) else checks.READS
    index, good = access(machine, instruction, space, kind, size, address, lanes, traffic)
    if kind == checks.PEEKS:
        for i in np.flatnonzero(wanted):
            part = address + i * dtype.itemsize
            check(machine, instruction, space, checks.READS, dtype.itemsize, part, good)
    memory, shift = space.as_type(dtype), dtype.itemsize.bit_length() - 1
    for i, out in enumerate(targets):
        if out.itemsize == dtype.itemsize:
            gather(memory, index + i * dtype.itemsize if i else index, good, shift, out.view(dtype))
        else:
            narrow = np.zeros(machine.lanes, dtype)
            gather(memory, index + i * dtype.itemsize if i else index, good, shift, narrow)
            np.copyto(out, narrow.view(DTYPES[type_]), where=good)


def store(machine, instruction, space, type_, values, address, lanes, traffic):
    dtype = BITS[SIZES[type_]]
    size = dtype.itemsize * len(values)
    index, good = access(machine, instruction, space, checks.WRITES, size, address, lanes, traffic)
    memory, shift = space.as_type(dtype), dtype.itemsize.bit_length() - 1
    for i, value in enumerate(values):
        scatter(memory, index + i * dtype.itemsize if i else index, good, shift, value)


def load_element(machine, instruction, size, address, lanes, out):
    """`size` bytes of shared memory per lane into `out`: checked as a read, not counted."""
    index, good = check(machine, instruction, machine.shared, checks.READS, size, address, lanes)
    gather(machine.shared.as_type(BITS[size]), index, good, size.bit_length() - 1, out)


def source_of_copy(machine, instruction, size, address, lanes, count, traffic):
    """Check and count the global side of a cp.async that takes count[lane] <= size bytes at address[lane].

    Returns where they lie, and how many can be taken. The address must be aligned even if none is taken.
    """
    space = machine.memory.space
    if machine.counting:
        count_traffic(machine, traffic, address, lanes & (count > 0), size)
    index, good = check(machine, instruction, space, checks.READS, size, address, lanes & (count == size))
    cut = lanes & (count < size)
    if cut.any():
        wrong = cut & (address % size != 0)
        if wrong.any():
            lane = int(np.flatnonzero(wrong)[0])
            message = f"{size} bytes at {where(machine, space, address[lane])}"
            machine.fault("misaligned", instruction, lane, message, int(np.count_nonzero(wrong)))
        np.copyto(index, address - space.base, where=cut)
        good |= cut & ~wrong
        for i in range(int(count[cut].max())):
            part = good & cut & (count > i)
            good &= ~part | check(machine, instruction, space, checks.READS, 1, address + i, part)[1]
    return index, np.where(good, count, 0)


def split_generic(machine, address, lanes):
    """Generic addresses by window: (space, lanes, addresses in that space)."""
    in_shared = lanes & (address >= SHARED_WINDOW) & (address < SHARED_WINDOW + WINDOW_SIZE)
    in_local = lanes & (address >= LOCAL_WINDOW) & (address < LOCAL_WINDOW + WINDOW_SIZE)
    if in_shared.any():
        yield machine.shared, in_shared, address - SHARED_WINDOW
    if in_local.any():
        yield machine.local, in_local, address - LOCAL_WINDOW
    rest = lanes & ~in_shared & ~in_local
    if rest.any():
        yield machine.memory.space, rest, address
