"""The checks of one memory access: one pass over its lanes, bounds, alignment, initialisation and races.

Shadow state. Each byte of memory has a byte of flags: OWNED (it belongs to a variable or to an argument's elements),
READY (it has been written), READ and WRITTEN in this launch, AGAIN (written more than once). All other bytes are red
zones. Each granule (as wide as the kernel's narrowest access) has a record of its last write and of its readers.

Races. A block's life is cut into phases by its full barriers; every phase of every block has a number of its own.

    same phase          the same block, no barrier in between: two accesses of different threads, one of them a
                        write, race, unless a warp-level barrier orders them: `known`
    another phase       of the same block: ordered by the barrier; of another block: a race, in global memory, unless
                        fences and atomics order them: `knows`, which fences.py fills

Inside a phase, `clock[t]` counts the warp-level and partial barriers that thread t took part in, and known[t, u] is
the clock of u that t has learnt there (a vector clock). An access of u at clock c happens before t's if
known[t, u] >= c. Of readers only the last warp is kept lane by lane; readers in several warps or blocks are
remembered as such, and then any write in the same phase (or from any block) races.

Bytes of an asynchronous copy that nobody has waited for (copies.py) carry the negative phase of its issue as their last
write: every access to them is a fault.

The lanes run in lock step, so a racy kernel still gives the right values here: only these records see it.
Source: Flanagan and Freund, FastTrack: efficient and precise dynamic race detection, PLDI 2009.
"""

from __future__ import annotations

import numpy as np
from numba import njit

OWNED, READY, READ, WRITTEN, AGAIN = 1, 2, 4, 8, 16
READS, WRITES, UPDATES = 0, 1, 2  # UPDATES: atomics, which do not race with each other
PEEKS = 3  # reads of which a part goes into registers that nobody reads: only their bounds are checked

OUT_OF_BOUNDS, MISALIGNED, UNINITIALISED, WRITE_AFTER_READ, READ_AFTER_WRITE, WRITE_AFTER_WRITE, IN_FLIGHT = range(7)

W_PHASE, W_THREAD, W_LINE, W_CLOCK, W_ATOMIC, R_PHASE, R_THREAD, R_LINE, R_CLOCK, R_WARP, R_MASK = range(11)
RECORD = 12
SEVERAL_WARPS, SEVERAL_BLOCKS = -1, -2
FAULT_FIELDS = 6  # code, lane, address, the other access's phase, thread and line

# Counting references of the arrays that are handed down took 20 times as long as the checks themselves.
inlined = njit(_nrt=False, inline="always")


@inlined
def every_byte(flag, unit_shift):
    """`flag` in each byte of a word of 1, 2 or 4 bytes."""
    return flag if unit_shift == 0 else (flag * 0x0101 if unit_shift == 1 else flag * 0x01010101)


@njit(cache=True, _nrt=False)
def check_access(
    address, active, size, kind, base, limit, copy_starts, flags, unit_shift, records, granule_shift,
    between_blocks, slots, threads, phase, phase_block, clock, known, knows, line, index, good, faults,
):  # fmt: skip
    """Check `kind` of access to `size` bytes at address[lane] for every active lane; return the number of faults.

    index[lane]: where the lane's bytes lie in the space; good[lane]: whether the access may be done. The space is seen
    at addresses from `base` on, `limit` bytes long, and a lane's own copy of it starts at copy_starts[lane]. flags:
    one per byte, seen as words of 1 << unit_shift bytes. slots, threads: each lane's block in the batch, and thread in
    the block. The first faults are written into `faults`, all are counted.
    """
    owned, ready = every_byte(OWNED, unit_shift), every_byte(READY, unit_shift)
    read, written = every_byte(READ, unit_shift), every_byte(WRITTEN, unit_shift)
    words = size >> unit_shift
    races = records.shape[0] > 0
    count = 0
    for lane in range(address.shape[0]):
        good[lane] = False
        if not active[lane]:
            continue
        offset = address[lane] - base
        if address[lane] & (size - 1):
            count = note(faults, count, MISALIGNED, lane, address[lane], 0, 0, 0)
            continue
        if offset < 0 or offset > limit - size:
            count = note(faults, count, OUT_OF_BOUNDS, lane, address[lane], 0, 0, 0)
            continue
        at = offset + copy_starts[lane]
        first = at >> unit_shift
        common = owned | ready
        for word in range(first, first + words):
            common &= flags[word]
        if common & owned != owned:
            count = note(faults, count, OUT_OF_BOUNDS, lane, address[lane], 0, 0, 0)
            continue
        index[lane], good[lane] = at, True
        if kind == PEEKS:
            for word in range(first, first + words):
                flags[word] |= read
            continue
        if kind != WRITES and common & ready != ready:
            count = note(faults, count, UNINITIALISED, lane, address[lane], 0, 0, 0)
        for word in range(first, first + words):
            if kind != WRITES:
                flags[word] |= read
            if kind != READS:
                flags[word] |= (flags[word] & written) << 1 | written | ready
        if races:
            first, last = at >> granule_shift, (at + size - 1) >> granule_shift
            thread, slot = threads[lane], slots[lane]
            now = phase[slot]
            code = -1
            for g in range(first, last + 1):
                found = race(records, g, kind, between_blocks, now, phase_block, lane, thread, known, knows, slot)
                if found >= 0 and code < 0:
                    code = found
                    to = R_PHASE if code == WRITE_AFTER_READ else W_PHASE
                    before = abs(records[g, to])  # negative: in flight
                    count = note(
                        faults, count, code, lane, address[lane], before, records[g, to + 1], records[g, to + 2]
                    )
                remember(records, g, kind, between_blocks, now, phase_block, lane, thread, clock[lane], known, line)
    return count


@inlined
def note(faults, count, code, lane, address, phase, thread, line):
    if count < faults.shape[0]:
        faults[count, 0], faults[count, 1], faults[count, 2] = code, lane, address
        faults[count, 3], faults[count, 4], faults[count, 5] = phase, thread, line
    return count + 1


@inlined
def race(records, g, kind, between_blocks, phase, phase_block, lane, thread, known, knows, slot):
    """The code of the race between this access and those recorded for granule g, or -1."""
    if write_races(records, g, kind, between_blocks, phase, phase_block, lane, thread, known, knows, slot):
        if records[g, W_PHASE] < 0:
            return IN_FLIGHT
        return READ_AFTER_WRITE if kind == READS else WRITE_AFTER_WRITE
    if kind != READS and readers_race(records, g, between_blocks, phase, phase_block, lane, thread, known, knows, slot):
        return WRITE_AFTER_READ
    return -1


@inlined
def write_races(records, g, kind, between_blocks, phase, phase_block, lane, thread, known, knows, slot):
    before = records[g, W_PHASE]
    if before == 0 or (kind == UPDATES and records[g, W_ATOMIC]):
        return False
    if before == phase:
        writer = records[g, W_THREAD]
        return writer != thread and not happened_before(known, lane, writer, records[g, W_CLOCK])
    if before < 0:
        return True
    return between_blocks and unordered(phase_block, before, phase, knows, slot)


@inlined
def readers_race(records, g, between_blocks, phase, phase_block, lane, thread, known, knows, slot):
    before = records[g, R_PHASE]
    if before == 0:
        return False
    if before != phase:
        if not between_blocks:
            return False
        return records[g, R_WARP] == SEVERAL_BLOCKS or unordered(phase_block, before, phase, knows, slot)
    if records[g, R_WARP] < 0:
        return True
    return not readers_known(records, g, lane, thread, known)


@inlined
def unordered(phase_block, before, phase, knows, slot):
    """Whether phase `before` is of another block, and nothing says that it came before this one."""
    block = phase_block[before]
    return block != phase_block[phase] and (knows.shape[0] == 0 or knows[slot, block] < before)


@inlined
def readers_known(records, g, lane, thread, known):
    """Whether every recorded reader but `thread` itself happened before this access."""
    first, mask = records[g, R_WARP] << 5, records[g, R_MASK] & 0xFFFFFFFF  # lane 31 is its sign
    if thread >> 5 == records[g, R_WARP]:
        mask &= ~(1 << (thread & 31))
    if known.shape[0] == 0:
        return mask == 0
    unknown = 0
    for bit in range(32):
        unknown += mask >> bit & 1 and known[lane, first + bit] < records[g, R_CLOCK]
    return unknown == 0


@inlined
def happened_before(known, lane, other, clock):
    return known.shape[0] > 0 and known[lane, other] >= clock


@inlined
def remember(records, g, kind, between_blocks, phase, phase_block, lane, thread, clock, known, line):
    """Enter this access into the record of granule g."""
    if kind != READS:
        records[g, W_PHASE], records[g, W_THREAD], records[g, W_LINE] = phase, thread, line
        records[g, W_CLOCK], records[g, W_ATOMIC] = clock, kind == UPDATES
        return
    before, warp, bit = records[g, R_PHASE], thread >> 5, 1 << (thread & 31)
    if records[g, R_WARP] == SEVERAL_BLOCKS and before != 0:
        return
    if before == phase:
        if records[g, R_WARP] != warp:
            records[g, R_WARP] = SEVERAL_WARPS
            return
        if not readers_known(records, g, lane, thread, known):
            records[g, R_MASK] |= bit
            records[g, R_CLOCK] = max(records[g, R_CLOCK], clock)
            return
    elif between_blocks and before != 0 and phase_block[before] != phase_block[phase]:
        records[g, R_WARP] = SEVERAL_BLOCKS
        return
    records[g, R_PHASE], records[g, R_THREAD], records[g, R_LINE] = phase, thread, line
    records[g, R_CLOCK], records[g, R_WARP], records[g, R_MASK] = clock, warp, bit


@njit(cache=True, _nrt=False)
def check_bounds(address, active, size, base, limit, copy_starts, index, good):
    """What is left of check_access when checks are off: no access outside the space's own memory. Counts faults."""
    count = 0
    for lane in range(address.shape[0]):
        offset = address[lane] - base
        inside = offset >= 0 and offset <= limit - size and address[lane] & (size - 1) == 0
        good[lane] = active[lane] and inside
        index[lane] = offset + copy_starts[lane]
        count += active[lane] and not inside
    return count


@njit(cache=True)
def learn(members, clock, known, lanes_per_block, lanes_per_group):
    """A barrier among the lanes `members` of each group (a block, or a warp).

    Each learns what any of them knew, and their clocks tick.
    """
    for first in range(0, members.shape[0], lanes_per_group):
        learnt = np.zeros(lanes_per_block, known.dtype)
        for lane in range(first, first + lanes_per_group):
            if members[lane]:
                learnt = np.maximum(learnt, known[lane])
                learnt[lane % lanes_per_block] = clock[lane]
        for lane in range(first, first + lanes_per_group):
            if members[lane]:
                known[lane, :] = learnt
                clock[lane] += 1
