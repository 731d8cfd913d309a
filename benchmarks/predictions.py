"""Predicted against measured time, for every kernel and layer: the visit's fourth stage.

It says how far off the cost model is as it stands, how far it would be if it were fitted to these measurements
(`python -m convlib calibrate` does that once they are committed), and what the choices cost that rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from statistics import fmean

from convlib import calibration
from convlib.calibration import Measurement
from convlib.device import Device

from .results import Results, Row


def compared(results: Results, place: Device, problem_of: Callable) -> tuple[list[dict], dict]:
    """A dictionary for each kernel on each case, and what they say of the model.

    problem_of: the problem of a row. place: the card as the model is to see it.
    """
    rows = [row for row in results.rows if row.timed and row.kernel and row.candidate == row.kernel]
    found = calibration.weighed([Measurement(row.kernel, problem_of(row), place, row.median_s) for row in rows])
    if not found:
        return [], {"fits": [], "choices": None}
    lines = [line(row, calibration.predicted(one)) for row, one in zip(rows, found)]
    limits = calibration.limits_of(place, results.settings["peaks"])
    _, fits = calibration.fitted_to(found, limits)
    return lines, {"fits": [asdict(fit) for fit in fits], "choices": choices(found)}


def line(row: Row, predicted: float) -> dict:
    return {
        "kernel": row.kernel,
        "suite": row.suite,
        "case": row.case,
        "measured_s": row.median_s,
        "predicted_s": predicted,
        "predicted_over_measured": predicted / row.median_s,
    }


def choices(found: list[Measurement]) -> dict:
    """How often the kernel predicted to be the fastest is it, and how many times as long it takes where it is not."""
    by_problem: dict = {}
    for one in found:
        by_problem.setdefault(one.problem, []).append(one)
    lost = [lost_by_choice(ones) for ones in by_problem.values()]
    return {
        "cases": len(lost),
        "fastest_chosen": sum(factor == 1 for factor in lost),
        "mean_factor": math.exp(fmean(map(math.log, lost))),
        "worst_factor": max(lost),
    }


def lost_by_choice(ones: list[Measurement]) -> float:
    return min(ones, key=calibration.predicted).seconds / min(one.seconds for one in ones)
