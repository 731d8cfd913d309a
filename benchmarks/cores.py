"""Whether all cores run at their full speed at once. Those of a virtual machine may not: its host can put two virtual
cores on one of its own, and nothing inside says so.

Measured on two virtual cores of a Zen 4: in 1 to 10 % of all blocks, for 50 to 500 ms at a time, everything on two
threads took 1.98 times as long, though by Linux's account both ran all the time (60 of 60 ms), on different processors,
with none of it stolen. A block in such a time says nothing; in one run two of a layer's three were, and no peer's.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from . import engine

ROUNDS = 100_000  # about 0.3 ms: threads begin some 50 microseconds apart
FIRST_LOOKS = 20
SLOWER = 1.4  # half the speed shows as 1.9, a core shared with others' work for a moment as 1.1


class Cores:
    """The machine's cores, as `threads` threads find them that multiply and add in registers, all at once."""

    def __init__(self, threads: int):
        from convlib.kernels.numba_cpu.core_peak import multiply_adds

        self.runs = [multiply_adds("float32", ROUNDS) for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads, initializer=stay_on, initargs=(processors(threads),))
        self.best = min(self.seconds() for _ in range(FIRST_LOOKS))
        self.looks = self.slow = 0

    def settle(self) -> bool:
        """Sleep until no thread of this process spins; whether the cores then run at full speed."""
        engine.settle()
        seconds = self.seconds()
        self.best = min(self.best, seconds)
        full = seconds < SLOWER * self.best
        self.looks += 1
        self.slow += not full
        return full

    @property
    def share_slow(self) -> float:
        """In how many of all looks the cores were slow: 0.0 .. 1.0."""
        return self.slow / max(self.looks, 1)

    def seconds(self) -> float:
        """How long the slowest takes."""
        return max(self.pool.map(timed, self.runs))


def processors(count) -> list[int]:
    """One for each of `count` threads; none where there are fewer, or where only the system says who runs where."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return allowed[:count] if len(allowed) >= count else []


def stay_on(left):
    """Keep this thread on the next of these processors: Linux 6.18 woke both on the same one in a quarter of looks."""
    if left:
        os.sched_setaffinity(0, {left.pop()})


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
