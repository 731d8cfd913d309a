"""`python -m benchmarks gpu`: a visit to a GPU, the whole of it within so many minutes, the most valuable first.

    stage          until    what                                                       writes
    verified        30 %    every kernel held against the reference, in brief          verified
    layers          70 %    layer tables beside cuDNN and PyTorch, the card's clocks   results, clocks
    counters        80 %    ncu's counters of the kernels that matter                  counters
    predictions             predicted against measured time, the model's error         predictions, model
    all verified   100 %    every kernel held against every problem                    verified

Each writes CSV and JSON. A stage that is done sooner leaves its time to the next. What is found is written at once, and
report.html with its pictures at the end; the same command, into the same folder, goes on where an earlier one stopped.
visit.json says which stages are done, and what was missing here.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from convlib.device import Device
from convlib.verification.children import OutOfTime

from . import counted, counters, layer_tables, machine, nvidia_card, predictions, results, verified

DRAWING = 10.0  # seconds kept for the report
DONE, TOO_LATE = "done", "no time was left"
NEEDED = {  # package -> what is lacking without it
    "cupy": "the layer tables and counters, and every cupy_raw kernel",
    "numba.cuda": "every numba_cuda kernel",
    "torch": "PyTorch in the layer tables",
    "cudnn": "cuDNN in the layer tables (nvidia-cudnn-frontend)",
    "matplotlib": "report.html and its pictures",
    "jinja2": "report.html and its pictures",
}


@dataclass
class Visit:
    """One visit: where it is, what it may measure, and what is known so far.

    minutes: for all of it. kernels, cases: those to visit. rehearse: with stand-ins in a GPU's place.
    """

    folder: Path
    place: Device
    minutes: float
    kernels: list[str]
    cases: list
    rehearse: bool = False
    note: Callable[[str], None] = lambda text: None
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = {"date": now(), "rehearsal": self.rehearse, "gpu": gpu_facts(self.place)}
        self.state |= {"stages": {}, "layers_done": []}
        before = self.read("visit", {})
        if before and (before["gpu"], before["rehearsal"]) != (self.state["gpu"], self.rehearse):
            raise ValueError(f"--output: {self.folder} has a visit to {before['gpu']['name']}; another folder needed")
        self.state |= before
        self.state["missing"] = missing(self.rehearse)
        self.save()

    def deadline(self, share: float) -> float:
        """When a stage must end that may go on until this share of the minutes."""
        return self.start + share * (60 * self.minutes - DRAWING)

    def run(self, stage: Stage) -> str:
        """Its new state: done, out of time, or why it cannot be."""
        try:
            stage.run(self, self.deadline(stage.until))
            state = DONE
        except OutOfTime:
            state = TOO_LATE
        except (layer_tables.Broken, counters.Refused, Lacking) as reason:
            state = str(reason)
        self.state["stages"][stage.name] = state
        self.save()
        return state

    def save(self) -> None:
        (self.folder / "visit.json").write_text(json.dumps(self.state, indent=1) + "\n")

    def read(self, name: str, otherwise):
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else otherwise

    def keep(self, name: str, rows: list[dict]) -> None:
        """Write rows as NAME.json and NAME.csv, each marked where it was only rehearsed."""
        rows = [row | {"rehearsal": self.rehearse} for row in rows]
        (self.folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        with (self.folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else ["rehearsal"])
            table.writeheader()
            table.writerows(rows)

    def results(self) -> results.Results:
        """What the layer tables have so far."""
        path = self.folder / "results.json"
        return results.read(path) if path.exists() else results.Results(machine.describe(), run_settings(self), [])


class Lacking(Exception):
    """What a stage needs and this machine has not."""


@dataclass(frozen=True)
class Stage:
    """until: the share of the minutes after which it must have ended. run(visit, deadline)."""

    name: str
    until: float
    run: Callable[[Visit, float], None]


# The stages


def verify_in_brief(visit: Visit, deadline: float) -> None:
    verify(visit, "quick", deadline)


def verify_all(visit: Visit, deadline: float) -> None:
    verify(visit, "full", deadline)


def verify(visit, extent, deadline):
    rows = visit.read("verified", [])
    for found in verified.found(visit.kernels, visit.place, extent, deadline, visit.note):
        rows = verified.merged(rows, found)
        visit.keep("verified", rows)


def measure_layers(visit: Visit, deadline: float) -> None:
    if not visit.rehearse and find_spec("cupy") is None:
        raise Lacking("CuPy is not installed")
    left = [[c.suite, c.name] for c in visit.cases if [c.suite, c.name] not in visit.state["layers_done"]]
    for answer in layer_tables.measured(left, visit.rehearse, deadline, visit.note):
        if "about" in answer:
            found = visit.results()
            found.settings.update(answer["about"])
            results.write(found, visit.folder)
        else:
            keep_case(visit, answer)


def keep_case(visit, answer):
    suite, name = answer["case"]
    rows = [results.Row(**row) for row in answer.get("rows", ())]
    if "failed" in answer:
        rows = [layer_tables.failed_row(suite, name, answer["failed"])]
    before = visit.results()
    settings = before.settings | {"load_after": os.getloadavg()[0]}
    results.write(results.Results(before.machine, settings, before.rows + rows), visit.folder)
    clocks = {"suite": suite, "case": name} | dict.fromkeys(nvidia_card.CLOCKS, "") | answer.get("clocks", {})
    visit.keep("clocks", visit.read("clocks", []) + [clocks])
    visit.state["layers_done"].append([suite, name])
    visit.save()


def count(visit: Visit, deadline: float) -> None:
    from . import rehearsal

    if not visit.rehearse and counters.unavailable():
        raise Lacking(counters.unavailable())
    run = rehearsal.ncu if visit.rehearse else counters.ncu
    found = visit.read("counters", [])
    known = {one["kernel"] for one in found}
    for row in counters.worth_counting(visit.results().rows):
        if row.kernel not in known:
            visit.note(f"counters of {row.kernel} on {row.suite}:{row.case}")
            found += counters.counted(row, deadline, run)
            visit.keep("counters", found)


def predict(visit: Visit, deadline: float) -> None:
    from . import rehearsal

    found = visit.results()
    if not found.rows:
        raise Lacking("no layer was measured")
    called = rehearsal.case_called if visit.rehearse else counted.case_called
    place = rehearsal.as_the_model_sees_it() if visit.rehearse else visit.place
    lines, model = predictions.compared(found, place, lambda row: called(row.suite, row.case).problem)
    visit.keep("predictions", lines)
    (visit.folder / "model.json").write_text(json.dumps(model | {"rehearsal": visit.rehearse}, indent=1) + "\n")


STAGES = (
    Stage("verified", 0.3, verify_in_brief),
    Stage("layers", 0.7, measure_layers),
    Stage("counters", 0.8, count),
    Stage("predictions", 1.0, predict),
    Stage("all verified", 1.0, verify_all),
)
ALWAYS = ("counters", "predictions")  # of whatever layers there are by then


def stages(visit: Visit) -> Iterator[tuple[str, str]]:
    """Go through the stages that are not done yet; each one's name and what became of it."""
    for stage in STAGES:
        if visit.state["stages"].get(stage.name) != DONE or stage.name in ALWAYS:
            yield stage.name, visit.run(stage)
    with suppress(ImportError):  # `missing` has said so
        from . import report

        report.write(visit.results(), visit.folder)


# What it is about


def gpu_facts(place: Device) -> dict:
    return {
        "name": place.name,
        "compute_capability": list(place.compute_capability),
        "sm_count": place.sm_count,
        "shared_bytes_per_block": place.shared_bytes_per_block,
    }


def run_settings(visit: Visit) -> dict:
    """The settings of results.json, before the child has said what the card can do."""
    kind = "rehearsal:0" if visit.rehearse else f"cuda:{visit.place.index}"
    return {
        "date": now(),
        "command": "python -m benchmarks gpu" + (" --rehearse" if visit.rehearse else ""),
        "rehearsal": visit.rehearse,
        "device": f"{kind} ({visit.place.name})",
        "gpu": gpu_facts(visit.place),
        "batch": "1 to 32",
        "threads": 1,
        "rounds": 5,
        "sleep_seconds": 0.0,
        "load_after": 0.0,
        "peaks": None,
        "driver": "unknown",
    }


def missing(rehearse: bool) -> dict[str, str]:
    """What is not here, and what is not done without it."""
    lacking = {package: what for package, what in NEEDED.items() if not installed(package)}
    programs = {"ncu": (counters.unavailable(), "the counters"), "nvidia-smi": (nvidia_card.unavailable(), "clocks")}
    if not rehearse:
        lacking |= {name: what for name, (reason, what) in programs.items() if reason}
    return lacking


def installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def folder_name(place: Device, rehearse: bool) -> str:
    """nvidia-h200-2026-12-01, or rehearsal-2026-12-01."""
    slug = "rehearsal" if rehearse else re.sub(r"\W+", "-", place.name.lower()).strip("-")
    return f"{slug}-{now()[:10]}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
