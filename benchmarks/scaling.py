"""How much a second thread brings: plan on the compute-bound layers with one thread and with all, taking turns."""

from __future__ import annotations

from dataclasses import dataclass

import numba

from . import engine, gate, ours
from .candidate import Candidate
from .cases import Case, operands


@dataclass(frozen=True)
class Scaling:
    """Median seconds of one case with one thread and with `threads`; gain: the median of the rounds' ratios."""

    suite: str
    case: str
    threads: int
    one_s: float
    all_s: float
    gain: float


LEAST_MACS = 50_000_000  # of less work, waking the threads is a good part


def compute_bound(case: Case) -> bool:
    """A 3x3 layer of stride 1 with at least 64 channels and filters, and no tiny map."""
    problem = case.problem
    window = (problem.R, problem.S) == (3, 3) and problem.stride == (1, 1) and problem.groups == 1
    return window and min(problem.C, problem.K) >= 64 and problem.macs >= LEAST_MACS


def measure(case: Case, settings: engine.Settings, threads: int) -> Scaling:
    arrays = operands(case)
    wanted = gate.exact(case, arrays)
    candidates = [with_threads(case, arrays, count) for count in (1, threads)]
    for candidate in candidates:
        gate.check(candidate, wanted)
    timings = engine.measure(candidates, settings)
    one, many = (timings[candidate.name] for candidate in candidates)
    numba.set_num_threads(threads)
    return Scaling(case.suite, case.name, threads, one.median, many.median, engine.ratio(one, many))


def with_threads(case, arrays, count) -> Candidate:
    """A plan made and called with `count` threads."""
    numba.set_num_threads(count)
    plan = ours.plan(case, arrays, ours.host())

    def call():
        numba.set_num_threads(count)  # 2 microseconds
        plan.call()

    return Candidate(f"{count} threads", call, plan.output, plan.max_error, True, plan.kernel)
