"""Where lanes wait for others: at barriers of a block, at instructions that name lanes or take whole warps.

Lanes at bar.sync leave the machine's `pending` until every thread of their block has come to that barrier. When nothing
is pending and lanes still wait, some threads can never come: that is reported, with the barrier's line. Shuffles, votes
and bar.warp.sync wait in the same way for the lanes that their mask names. Instructions that are .aligned (mma,
ldmatrix) want whole warps: lanes wait before the segment of such an instruction until their warp is all there, and
if it never is, that is reported.
"""

from __future__ import annotations

import numpy as np

from . import checks


class Barriers:
    """Who of a batch waits where.

    at_block: by barrier number and the segment after it, the lanes that stand there and their instruction; at_warp, by
    segment: lanes whose mask names others that have not come; parted, by segment: lanes whose warp is not all there.
    """

    def __init__(self, machine):
        self.machine = machine
        self.start()

    def start(self):
        """The next batch: nobody waits yet."""
        self.at_block, self.at_warp, self.parted = {}, {}, {}

    # Of a block

    def wait(self, instruction, number, count, lanes, after):
        """Lanes come to barrier `number` of their block; those complete go on to segment `after`.

        count: the threads it waits for, or None for all of the block.
        """
        machine = self.machine
        waiting = self.at_block.setdefault(number, {})
        before = waiting.get(after)
        waiting[after] = (lanes if before is None else before[0] | lanes, instruction)
        come = np.zeros(machine.lanes, bool)
        for standing, _ in waiting.values():
            come |= standing
        per_block = come.reshape(machine.slots, machine.width).sum(axis=1)
        needed = machine.threads if count is None else count
        complete = per_block == needed
        if not complete.any():
            return
        whole = machine.checked and needed == machine.threads
        if whole:
            self.report_several(waiting, complete)
            machine.fences.barrier(np.flatnonzero(complete))
            machine.new_phase(np.flatnonzero(complete))
        released = complete[machine.slot]
        if machine.checked and not whole:
            checks.learn(come & released, machine.clock, machine.known, machine.width, machine.width)
        for segment, (standing, _) in list(waiting.items()):
            free, still = standing & released, standing & ~released
            if free.any():
                machine.go(segment, free)
            if still.any():
                waiting[segment] = (still, waiting[segment][1])
            else:
                del waiting[segment]

    def report_several(self, waiting, complete):
        """Threads of one block that meet at different barrier instructions: undefined in CUDA C, so a fault."""
        if len(waiting) < 2:
            return
        machine = self.machine
        places = [(standing & complete[machine.slot], instruction) for standing, instruction in waiting.values()]
        places = [(lanes, i) for lanes, i in places if lanes.any()]
        for slot in np.flatnonzero(complete):
            here = [(lanes, i) for lanes, i in places if lanes.reshape(machine.slots, -1)[slot].any()]
            if len(here) > 1:
                lanes, instruction = here[0]
                lane = int(np.flatnonzero(lanes & (machine.slot == slot))[0])
                others = ", ".join(str(i.line) for _, i in here[1:])
                message = f"other threads of the block wait at line {others}"
                machine.fault("divergent barrier", instruction, lane, message)
                return

    # Of a warp

    def gather_warp(self, at, lanes, named):
        """Lanes come to a warp-level instruction whose mask names lanes. Returns those that may go on together.

        named: each lane's mask. A lane goes on when all lanes it names, of those that have not exited, are here.
        """
        if at in self.at_warp:
            lanes = lanes | self.at_warp.pop(at)
        missing = named & bits_of_warps(self.machine.alive) & ~bits_of_warps(lanes)
        stuck = (lanes & (missing != 0)).reshape(-1, 32).any(axis=1).repeat(32)
        held = lanes & stuck
        if held.any():
            self.at_warp[at] = held
        return lanes & ~stuck

    def learn_in_warps(self, lanes):
        """A warp-level barrier or shuffle orders the accesses of the lanes that took part."""
        machine = self.machine
        checks.learn(lanes, machine.clock, machine.known, machine.width, 32)

    def whole_warps(self, at, lanes):
        """Those of the lanes before segment `at` whose warp is all there; the others wait for the rest of theirs."""
        if at in self.parted:
            lanes = lanes | self.parted.pop(at)
        whole = lanes.reshape(-1, 32).all(axis=1).repeat(32)
        parted = lanes & ~whole
        if parted.any():
            self.parted[at] = parted
        return lanes & whole

    def report_divergence(self, instruction, lanes):
        """A fault if a warp of `lanes` is not whole, at an instruction that takes whole warps."""
        here = lanes.reshape(-1, 32).sum(axis=1).repeat(32)
        parted = lanes & (here < 32)
        if parted.any():
            lane = int(np.flatnonzero(parted)[0])
            message = f"{here[lane]} of a warp's 32 threads come to an instruction that takes them all at once"
            self.machine.fault("divergent warp", instruction, lane, message, int(np.count_nonzero(parted)))

    # Whoever waits for lanes that never come

    def resolve(self):
        """Nothing is pending: done, or lanes wait for others that will never come. Returns whether to go on."""
        machine = self.machine
        for at in list(self.parted):
            machine.execute(at, self.parted.pop(at), together=False)
            return True
        for number, waiting in self.at_block.items():
            for segment, (lanes, instruction) in list(waiting.items()):
                self.report_unreachable(number, instruction, lanes)
                del waiting[segment]
                machine.leave(lanes)
                return True
        for at, lanes in list(self.at_warp.items()):
            instruction = machine.function.instructions[machine.segments[at].first]
            lane = int(np.flatnonzero(lanes)[0])
            message = "lanes that the mask names never come here"
            machine.fault("missing threads at a warp barrier", instruction, lane, message, int(np.count_nonzero(lanes)))
            del self.at_warp[at]
            machine.go(at + 1, lanes)
            return True
        return False

    def report_unreachable(self, number, instruction, lanes):
        machine = self.machine
        lane = int(np.flatnonzero(lanes)[0])
        block = machine.slot == machine.slot[lane]
        come = int(np.count_nonzero(lanes & block))
        gone = int(np.count_nonzero(machine.exists & block & ~machine.alive))
        message = f"{come} of {machine.threads} threads wait at barrier {number}; {gone} have exited and never come"
        machine.fault("divergent barrier", instruction, lane, message, int(np.count_nonzero(lanes)))


def bits_of_warps(lanes):
    """For every lane, its warp's lanes as 32 bits."""
    packed = np.packbits(lanes.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)
    return packed.repeat(32)
