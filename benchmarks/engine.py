"""The one timing engine: candidates take turns, so that whatever disturbs the machine disturbs them all.

    round 1:  C  sleep, warm up, timed block   A  sleep, warm up, timed block   B ...
    round 2:  A  ...                           (a new order each round)

Why the sleep: thread pools spin after their last call and take the cores from whoever is measured next; OpenMP's for
about 10 ms, ONNX Runtime's for about 40 (measured as the process's own time during a sleep). So it lasts until this
process uses no processor any more, at least 10 ms and at most 200; it listens for several ticks of the scheduler, since
that is when time is put down to whoever is running: listening for less heard nothing of a spinning thread every other
time, and whoever came after ONNX Runtime took twice as long. The order goes on from one case to the next, so that no
candidate has the same neighbour in all of them. Why the warm-up: after it the candidate's own
threads must be awake again. A block's time is the median of its calls, a candidate's the median of its blocks, with
p20 and p80. A ratio is the median of the rounds' ratios, since the two were neighbours there.

A block before or after which the machine was not itself (Settings.settle says so, see cores.py) is measured again,
twice at most.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

SLEEP_SECONDS = 0.010
MOST_SLEEP_SECONDS = 0.200
LISTEN_SECONDS = 0.012  # three ticks of a kernel at 250 Hz
WARM_UP_SECONDS = 0.003
LONG_SECONDS = 0.050  # a call as long as this needs no warm-up: waking threads costs less than 1 % of it
BLOCK_SECONDS = 0.030
MOST_CALLS = 2_000
TRIES = 3
ORDER = random.Random(0)


def settle() -> bool:
    """Sleep until no thread of this process is spinning any more. True: nothing else is looked at."""
    give_up = time.perf_counter() + MOST_SLEEP_SECONDS
    time.sleep(SLEEP_SECONDS)
    while time.perf_counter() < give_up:
        before = time.process_time()
        time.sleep(LISTEN_SECONDS)
        if time.process_time() - before < LISTEN_SECONDS / 4:
            break
    return True


def at_once() -> bool:
    """No wait: spinning threads take nothing from a GPU."""
    return True


@dataclass(frozen=True)
class Settings:
    """How long to measure: rounds, the length of a timed block, and after how long a slow candidate gets no more.

    settle: waits until the next block may begin and says whether the machine is as it should be.
    """

    rounds: int = 9
    block_seconds: float = BLOCK_SECONDS
    most_seconds: float = 6.0
    settle: Callable[[], bool] = settle


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one number for each round."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))


def host_block(call: Callable[[], object], calls: int) -> float:
    """Seconds per call: the median of `calls` calls, each of which has finished when it returns."""
    marks = [time.perf_counter()]
    for _ in range(calls):
        call()
        marks.append(time.perf_counter())
    return float(np.median(np.diff(marks)))


def measure(
    candidates: Iterable, settings: Settings, block: Callable[[Callable, int], float] = host_block
) -> dict[str, Timing]:
    """Time every candidate (a `name` and a `call`) and return a Timing for each name. `block` is how one is timed."""
    candidates = list(candidates)
    roughly = {c.name: call_seconds(c.call, block) for c in candidates}
    calls = {name: min(max(round(settings.block_seconds / s), 1), MOST_CALLS) for name, s in roughly.items()}
    seconds: dict[str, list[float]] = {c.name: [] for c in candidates}
    gc.collect()
    gc.disable()
    try:
        steady = settings.settle()
        for _ in range(settings.rounds):
            for candidate in ORDER.sample(candidates, len(candidates)):
                name, so_far = candidate.name, seconds[candidate.name]
                if sum(so_far) * calls[name] < settings.most_seconds:
                    turn = partial(timed, candidate.call, calls[name], block, roughly[name] > LONG_SECONDS)
                    value, steady = steadily(turn, steady, settings.settle)
                    so_far.append(value)
    finally:
        gc.enable()
    return {name: Timing(tuple(values), calls[name]) for name, values in seconds.items()}


def call_seconds(call, block) -> float:
    """Roughly how long a call takes: the best of three, or the first if it is long."""
    seconds = block(call, 1)
    return seconds if seconds > LONG_SECONDS else min(seconds, block(call, 1), block(call, 1))


def timed(call, calls: int, block, long: bool) -> float:
    """Seconds per call, after a warm-up."""
    end = time.perf_counter() + WARM_UP_SECONDS
    while not long and time.perf_counter() < end:
        block(call, 1)
    return block(call, calls)


def steadily(turn, steady: bool, settle) -> tuple[float, bool]:
    """What `turn` measures between two moments at which the machine was as it should be, and whether it was after it.

    steady: whether it is now. The last of three tries counts in any case.
    """
    for _ in range(TRIES):
        before, value, steady = steady, turn(), settle()
        if before and steady:
            break
    return value, steady


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times as long `slower` takes: the median over the rounds that both were timed in."""
    rounds = min(len(slower.seconds), len(faster.seconds))
    return float(np.median(np.array(slower.seconds[:rounds]) / np.array(faster.seconds[:rounds])))
