"""What one block knows of another's accesses to global memory: fences, atomics and barriers, as CUDA C combines them.

    a block that hands on                              one that takes over
    its threads write          phase 1
    __syncthreads()
    __threadfence()            phase 2, one thread     atomicInc(&count, last)     the same thread, the same counter
    atomicInc(&count, last)                            __threadfence()
                                                       __syncthreads()
                                                       its threads read what the others wrote

A fence makes what the block did before its last full barrier, and what it knew then, ready to be handed on; an atomic
behind it, by the same thread, before the next barrier, leaves that at its address. Whoever updates the address later
finds it there, and after a fence and a full barrier the whole block knows. Any of the five missing: nobody knows, and
accesses of both blocks race. Atomics without a fence pass on what was left there: they are one release sequence.

Only fences of the whole GPU count. What a thread did itself since its last barrier is not handed on, nor does it know
by itself, without a barrier, what it found: both stricter than CUDA is.
Source: NVIDIA, PTX ISA, "Memory consistency model" (release and acquire patterns, causality order); CUDA samples,
threadFenceReduction.
"""

from __future__ import annotations

import numpy as np


class Fences:
    """knows[slot, block]: the last phase of `block` whose accesses happened before those of the block in `slot` now."""

    def __init__(self, machine, used):
        self.machine, self.used = machine, used
        self.knows = np.zeros((machine.slots, machine.blocks) if used else (0, 0), np.int64)
        self.left = {}  # at each address: what atomics left there, by block
        self.start()

    def start(self):
        """The next batch: its blocks know nothing yet."""
        self.knows[:] = 0
        self.fenced = np.zeros(self.machine.lanes, np.int64)  # the phase in which each lane last met a fence
        self.found = {}  # of lanes, since their last fence
        self.taken = {}  # of slots, since their last barrier

    def fence(self, lanes):
        machine = self.machine
        self.fenced[lanes] = machine.phase[machine.slot[lanes]]
        for lane in [lane for lane in self.found if lanes[lane]]:
            slot = machine.slot[lane]
            self.taken[slot] = np.maximum(self.taken.get(slot, 0), self.found.pop(lane))

    def update(self, lanes, address):
        """An atomic of `lanes`, one after the other, at address[lane] of global memory."""
        machine = self.machine
        for lane in np.flatnonzero(lanes):
            slot, at = machine.slot[lane], int(address[lane])
            left = self.left.get(at)
            if left is not None:
                self.found[lane] = np.maximum(self.found.get(lane, 0), left)
            phase = machine.phase[slot]
            if self.fenced[lane] == phase:
                mine = self.knows[slot].copy()
                mine[machine.block_index[slot]] = phase - 1
                self.left[at] = mine if left is None else np.maximum(mine, left)

    def barrier(self, slots):
        """A full barrier of the blocks in `slots`: all their threads learn what one of them took."""
        for slot in slots:
            if slot in self.taken:
                np.maximum(self.knows[slot], self.taken.pop(slot), out=self.knows[slot])
        here = set(slots)
        self.found = {lane: left for lane, left in self.found.items() if self.machine.slot[lane] not in here}


def for_the_whole_gpu(instruction):
    """Whether it is a fence that orders more than a block's own threads see."""
    return instruction.root in ("membar", "fence") and not {"gl", "gpu", "sys"}.isdisjoint(instruction.modifiers)
