"""The report: one HTML file with everything in it, and its pictures as PNGs beside it."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from convlib.kernels import gpu_cost
from convlib.report import read_csv

from . import plots
from .cases import FILTERS
from .ours import shown
from .results import REHEARSED, Results, Row, classical_ceiling, fastest, measured, refusals, share_of_peak, verdicts
from .startup import CEILINGS
from .tables import duration, milliseconds

TEMPLATE = "report.html.j2"
FURTHER = ("startup", "memory", "scaling", "stages")
ABOUT = ("kernel", "suite", "case", "function", "grid", "block", "rehearsal")
MACHINE_CODE = "machine_code.csv"  # python -m convlib report --csv FOLDER/machine_code.csv


def write(results: Results, folder: Path) -> None:
    """report.html and picture-WIDTH.png files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rehearsed = results.settings.get("rehearsal", False)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        machine=results.machine,
        settings={"peaks": None, "driver": None, "card": None} | results.settings,
        rehearsed=rehearsed,
        visit=visit(folder),
        fitted=gpu_cost.FITTED if results.settings.get("driver") else None,
        subject=subject(results),
        verdicts=verdicts(results),
        roofline=("roofline", plots.roofline(results)) if results.settings.get("peaks") else None,
        suites=[suite_of(results, name) for name in results.suites()],
        further={name: further(folder, name) for name in FURTHER},
        code=machine_code(folder),
        duration=duration,
        ceilings=CEILINGS,
        refused=refusals(results),
        picture=partial(picture, folder, mark=REHEARSED if rehearsed else None),
    )
    (folder / "report.html").write_text(page)


def further(folder: Path, name: str):
    """What another command measured into the same folder, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def visit(folder: Path) -> dict | None:
    """What `python -m benchmarks gpu` found beside its layer tables, if it wrote the folder: see visit.py."""
    state = further(folder, "visit")
    if state is None:
        return None
    found = {name: further(folder, name) or [] for name in ("verified", "counters", "clocks", "predictions")}
    lines = found["predictions"]
    drawn = [("predictions", plots.predictions(lines))] if lines else []
    names = {"counter_names": numeric(found["counters"]), "clock_names": columns(found["clocks"])}
    return state | found | names | {"model": further(folder, "model") or {"fits": []}, "pictures": drawn}


def columns(rows: list[dict]) -> list[str]:
    """The rows' columns beside those that say what a row is about."""
    return [name for name in rows[0] if name not in ABOUT] if rows else []


def numeric(rows: list[dict]) -> list[str]:
    return [name for name in columns(rows) if any(isinstance(row[name], (int, float)) for row in rows)]


def machine_code(folder: Path) -> dict | None:
    """The static report of the GPU kernels that lies in the folder: its rows, and pictures of them; or None."""
    path = folder / MACHINE_CODE
    if not path.exists():
        return None
    rows = read_csv(path)
    drawn = [("machine-code-occupancy", plots.occupancy(rows)), ("machine-code-share", plots.multiply_share(rows))]
    return {"pictures": drawn, "rows": [row for row in rows if row.dtype == plots.DRAWN_DTYPE]}


def subject(results: Results) -> str:
    """The processor that was measured."""
    device = results.settings.get("device", "cpu:0")
    return results.machine["processor"] if device.startswith("cpu") else device.partition("(")[2].rstrip(")")


def picture(folder: Path, drawn, mark: str | None = None) -> Markup:
    """Write a picture in both widths and return the element that shows the fitting one, its bytes inside.

    mark: what to write across it.
    """
    name, draw = drawn
    sources = {}
    for width in (plots.WIDE, plots.NARROW):
        content = plots.png(draw, width, mark)
        (folder / f"{name}-{width}.png").write_bytes(content)
        sources[width] = "data:image/png;base64," + base64.b64encode(content).decode()
    return Markup('<picture><source media="(max-width: 700px)" srcset="{}"><img src="{}" alt="{}"></picture>').format(
        sources[plots.NARROW], sources[plots.WIDE], name
    )


def suite_of(results: Results, suite: str) -> dict:
    candidates = results.candidates(suite)
    drawn = [(f"{suite}-speed", plots.speed(results, suite)), (f"{suite}-advantage", plots.advantages(results, suite))]
    if suite == FILTERS:
        drawn[0] = ("filters-time", plots.filters(results))
    return {
        "name": suite,
        "candidates": candidates,
        "pictures": drawn,
        "ceiling": classical_ceiling(results, suite),
        "cases": [case_of(results, suite, case, candidates) for case in results.cases(suite)],
    }


def case_of(results: Results, suite: str, case: str, candidates: list[str]) -> dict:
    rows = results.of_case(suite, case)
    passed = measured(rows)
    best, ours = fastest(row for row in passed.values() if row.error_class == "accurate"), passed.get(shown(suite))
    share = share_of_peak(ours, results.settings) if ours else None
    return {
        "name": case,
        "share": "" if share is None else f"{share:.0%}",
        "count": next(iter(rows.values())).count,
        "kernel": ours.kernel.replace("numba_cpu.", "") if ours else "",
        "cells": [cell(rows.get(name), best) for name in candidates],
    }


def cell(row: Row | None, best: Row | None) -> dict:
    if row is None or not row.timed:
        return {"text": "" if row is None else "not timed", "error": "", "ours": False, "best": False, "title": ""}
    return {
        "text": milliseconds(row),
        "error": f"{row.error:.0e}",
        "ours": row.ours,
        "best": row is best,
        "title": f"p20 {row.p20_s * 1e3:.3f} ms, p80 {row.p80_s * 1e3:.3f} ms, {row.gflops:.1f} GFLOP/s",
    }
