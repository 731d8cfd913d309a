"""Asynchronous copies (cp.async): bytes on their way from global to shared memory.

    issue     from here on the destination's bytes are nobody's: they hold 0xff (a NaN in every float format), and their
              race records say that they are in flight, so any access to them, by the issuing thread too, is a fault
    commit    what a thread has issued since its last commit becomes a group; groups are counted thread by thread
    wait      the bytes of the groups waited for arrive: they are read from global memory now, and written as if by an
              ordinary store of the waiting thread now; so another thread may read them behind a barrier after that

A wait that is missing, or that leaves one group too many in flight, makes the reader fault; so does a barrier that is
missing between the wait and the other threads' reads, or between their reads and the next issue into the same bytes. A
GPU moves the bytes at some time between issue and wait: the source is checked at the issue and read at the wait, the
latest time, so a kernel that overwrites it in between computes with the wrong bytes.
Source: NVIDIA, PTX ISA 9.0, "Data movement and conversion instructions: asynchronous copy", cp.async.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from .checks import W_ATOMIC, W_CLOCK, W_LINE, W_PHASE, W_THREAD


@dataclass(frozen=True, slots=True)
class Copy:
    """One cp.async of many lanes. lanes: those whose bytes are still in flight; group: each lane's.

    into, source: where a lane's bytes go in shared, and come from in global memory; count: how many of its `size`
    bytes come from there, the others become zero.
    """

    line: int
    size: int
    lanes: np.ndarray
    group: np.ndarray
    into: np.ndarray
    source: np.ndarray
    count: np.ndarray


class Copies:
    """The copies of a batch that nobody has waited for, in the order of their issue."""

    def __init__(self, machine):
        self.machine = machine
        self.groups = np.zeros(machine.lanes, np.int32)  # how many each lane has committed
        self.in_flight: list[Copy] = []

    def clear(self):
        """For the next batch: nobody waits for copies of a block that has ended."""
        self.in_flight.clear()

    def issue(self, line, size, lanes, into, source, count):
        shared = self.machine.shared
        take_off(lanes, into, size, shared.bytes, shared.records, shared.granule_shift)
        self.in_flight.append(Copy(line, size, lanes, self.groups.copy(), into, source, count))

    def commit(self, lanes):
        self.groups[lanes] += 1

    def wait(self, lanes, most):
        """Let all groups of `lanes` arrive but the `most` youngest."""
        machine, shared = self.machine, self.machine.shared
        still = []
        for copy in self.in_flight:
            left = land(
                lanes, self.groups - np.int32(most), copy.lanes, copy.group, copy.into, copy.source, copy.count,
                copy.size, copy.line, shared.bytes, machine.memory.space.bytes, shared.records, shared.granule_shift,
                machine.slot, machine.thread, machine.phase, machine.clock,
            )  # fmt: skip
            if left:
                still.append(copy)
        self.in_flight = still


@njit(cache=True, _nrt=False)
def take_off(lanes, into, size, shared, records, granule_shift):
    """Mark the bytes of every lane as in flight: their last write is of the negative of its phase."""
    for lane in range(lanes.shape[0]):
        if not lanes[lane]:
            continue
        at = into[lane]
        shared[at : at + size] = 0xFF
        if records.shape[0] > 0:
            for g in range(at >> granule_shift, (at + size - 1 >> granule_shift) + 1):
                records[g, W_PHASE] = -abs(records[g, W_PHASE])


@njit(cache=True, _nrt=False)
def land(
    waiting, until, lanes, group, into, source, count, size, line, shared, memory, records, granule_shift, slots,
    threads, phase, clock,
):  # fmt: skip
    """Bring in the bytes of those waiting lanes whose group is older than `until`. Returns the lanes left in flight."""
    left = 0
    for lane in range(lanes.shape[0]):
        if not lanes[lane]:
            continue
        if not waiting[lane] or group[lane] >= until[lane]:
            left += 1
            continue
        lanes[lane] = False
        at, start, given = into[lane], source[lane], count[lane]
        for i in range(given):
            shared[at + i] = memory[start + i]
        for i in range(given, size):
            shared[at + i] = 0
        if records.shape[0] > 0:
            for g in range(at >> granule_shift, (at + size - 1 >> granule_shift) + 1):
                records[g, W_PHASE], records[g, W_THREAD], records[g, W_LINE] = phase[slots[lane]], threads[lane], line
                records[g, W_CLOCK], records[g, W_ATOMIC] = clock[lane], False
    return left
