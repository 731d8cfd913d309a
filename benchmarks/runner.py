"""Runs cases: makes the candidates, lets the gate check each, times those that passed, gives rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from convlib import accuracy, dispatch

from . import engine, gate
from .candidate import Candidate, CannotRun
from .cases import Case, operands
from .results import Row

OURS = ("convlib", *dispatch.FAMILIES)

# name -> how the candidate is made from (case, operands)
Makers = dict[str, Callable]


def run(
    cases: Iterable[Case],
    makers_for: Callable[[Case], Makers],
    settings: engine.Settings,
    block: Callable = engine.host_block,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Yield a row for every candidate of every case. `note` hears what is being done."""
    for case in cases:
        yield from run_case(case, makers_for(case), settings, block, note)


def run_case(case, makers, settings, block, note, exact=gate.exact) -> list[Row]:
    note(f"{case}: float64 reference")
    arrays = operands(case)
    wanted, rounding = exact(case, arrays), accuracy.of_store(case.problem)
    passed: list[tuple[Candidate, float]] = []
    rows = []
    for name, make in makers.items():
        note(f"{case}: {name} through the gate")
        try:
            candidate = make(case, arrays)
            passed.append((candidate, passed_gate(candidate, wanted, settings.most_seconds, rounding)))
        except Exception as reason:  # whatever it is, it stands in the table and the others go on
            rows.append(row(case, name, status=said(reason), ours=name.startswith(OURS)))
    note(f"{case}: timing")
    timings = engine.measure([candidate for candidate, _ in passed], settings, block)
    return [measured_row(case, candidate, error, timings[candidate.name]) for candidate, error in passed] + rows


def passed_gate(candidate, wanted, most_seconds, rounding) -> float:
    """The candidate's error; raises CannotRun if its one call there already took longer than all its rounds may."""
    start = time.perf_counter()
    error = gate.check(candidate, wanted, rounding)
    seconds = time.perf_counter() - start
    if seconds > most_seconds and not candidate.ours:
        raise CannotRun(f"right, but slow: one call took over {most_seconds:g} s")
    return error


def said(reason: Exception) -> str:
    """The first line of what went wrong; the kind of error too where it is nobody's refusal."""
    text = str(reason).partition("\n")[0]
    return text if isinstance(reason, (CannotRun, gate.GateError)) else f"{type(reason).__name__}: {text}"


def measured_row(case: Case, candidate: Candidate, error: float, timing: engine.Timing) -> Row:
    return row(
        case,
        candidate.name,
        ours=candidate.ours,
        kernel=candidate.kernel,
        error=error,
        error_class=gate.error_class(error, accuracy.of_store(case.problem)),
        median_s=timing.median,
        p20_s=timing.percentile(20),
        p80_s=timing.percentile(80),
        gflops=2 * case.problem.macs / timing.median / 1e9,
        calls=timing.calls,
        rounds_s=timing.seconds,
    )


def row(case: Case, candidate: str, **columns) -> Row:
    problem = case.problem
    return Row(case.suite, case.name, case.count, problem.macs, least_bytes(problem), candidate, **columns)


def least_bytes(problem) -> int:
    """What must cross the memory bus at least: x, w and y once each."""
    elements = sum(size_of(shape) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
    return elements * problem.dtype.itemsize


def size_of(shape) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
