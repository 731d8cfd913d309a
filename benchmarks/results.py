"""Rows of results: what each is, how they are written, and what they say against the bars.

One row is one candidate on one case. The same columns everywhere: CSV for people and spreadsheets, JSON with the
machine, the settings and every round's number, from which report.py draws.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from convlib import layers
from convlib.kernels.numba_cpu.winograd_matrices import tile_of

from . import cases, engine
from .ours import CONV2D, FAST_PLAN, PLAN, shown

MEASURED = "measured"
REHEARSED = "rehearsal, nothing was measured"


@dataclass(frozen=True)
class Row:
    """One candidate on one case. status: "measured", or why there is no time; of a rehearsal, that it is one."""

    suite: str
    case: str
    count: int
    macs: int
    bytes: int
    candidate: str
    ours: bool
    kernel: str = ""
    status: str = MEASURED
    error: float | None = None
    error_class: str = ""
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    gflops: float | None = None
    calls: int = 0
    rounds_s: tuple[float, ...] = ()

    @property
    def timed(self) -> bool:
        return self.status in (MEASURED, REHEARSED)

    @property
    def timing(self) -> engine.Timing:
        return engine.Timing(tuple(self.rounds_s), self.calls)


@dataclass(frozen=True)
class Results:
    """Everything one run measured. machine: see machine.describe; settings: rounds, threads, peaks."""

    machine: dict
    settings: dict
    rows: list[Row]

    def suites(self) -> list[str]:
        return list(dict.fromkeys(row.suite for row in self.rows))

    def cases(self, suite: str) -> list[str]:
        return list(dict.fromkeys(row.case for row in self.rows if row.suite == suite))

    def candidates(self, suite: str) -> list[str]:
        return list(dict.fromkeys(row.candidate for row in self.rows if row.suite == suite))

    def of_case(self, suite: str, case: str) -> dict[str, Row]:
        return {row.candidate: row for row in self.rows if (row.suite, row.case) == (suite, case)}


def write(results: Results, folder: Path) -> None:
    """results.json and results.csv in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    columns = [field.name for field in fields(Row) if field.name != "rounds_s"]
    with (folder / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(asdict(row) for row in results.rows)


def read(path: Path) -> Results:
    """The Results that `write` left in a results.json."""
    content = json.loads(path.read_text())
    rows = [Row(**row) for row in content["rows"]]
    return Results(content["machine"], content["settings"], rows)


def command_of(arguments: list[str]) -> str:
    """The command as anybody can give it again: without --output, a folder of whoever gave it."""
    kept, left = [], iter(arguments)
    for argument in left:
        if argument == "--output":
            next(left, None)
        elif not argument.startswith("--output="):
            kept.append(argument)
    return " ".join(["python -m benchmarks", *kept])


def added(before: Results, now: Results) -> Results:
    """`now` with those suites of `before` that it has not measured itself. Raises ValueError for another machine's and
    for those of another dtype.
    """
    if dtype_of(before) != dtype_of(now):
        raise ValueError(f"results before: {dtype_of(now)} needed, as now, got {dtype_of(before)}")
    for name in ("processor", "numba_target", "packages", "environment"):
        if before.machine[name] != now.machine[name]:
            raise ValueError(
                f"results before: the same {name} needed, got {before.machine[name]}, now {now.machine[name]}"
            )
    rows = [row for row in before.rows if row.suite not in now.suites()] + now.rows
    commands = dict.fromkeys([*before.settings["command"].split("; "), now.settings["command"]])
    return Results(now.machine, now.settings | {"command": "; ".join(commands)}, rows)


def dtype_of(results: Results) -> str:
    return results.settings.get("dtype", "float32")


def geometric_mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


WINOGRAD_TILES = {
    "numba_cpu.winograd_f2": 2, "numba_cpu.winograd_f3": 3, "numba_cpu.winograd_f4": 4, "numba_cpu.winograd_dilated": 4,
    "numba_cpu.winograd_f5": 5, "numba_cpu.winograd_f6": 6,
}  # fmt: skip
# How many multiplications of a direct convolution one of an algorithm's stands for, in 3x3 layers without a stride.
MULTIPLICATIONS_SAVED = {
    "winograd_f2": 2.25,
    "winograd_fused": 2.25,
    "winograd_f3": 3.24,
    "winograd_f4": 4.0,
    "winograd_batched": 4.0,
    "winograd_columns": 2.0,
    "winograd_weight_grad": 4.0,
    "winograd_f5": 225 / 49,
    "winograd_f6": 5.0625,
    "strassen": 8 / 7,
    "strassen_by_filters": 8 / 7,
    "strassen_twice": 64 / 49,
    "bfloat16_dot": 2.0,  # in one of float32's, by which the peak is measured
}


def multiplications_saved(kernel: str, suite: str, case: str) -> float | None:
    """How many multiplications of a direct convolution one of the kernel's stands for; None for Fourier transforms,
    whose operations have no fixed share in a direct convolution's.
    """
    algorithm = kernel.partition(".")[2]
    if algorithm == "fft":
        return None
    known = layers.layers(suite) if suite in layers.networks() else ()
    problem = next((layer.problem for layer in known if layer.name == case), None)
    if problem is None or kernel not in WINOGRAD_TILES:
        return MULTIPLICATIONS_SAVED.get(algorithm, 1.0)
    tile = tile_of(WINOGRAD_TILES[kernel], problem)
    return tile.rows.m * tile.columns.m * problem.R * problem.S / tile.products


def share_of_peak(row: Row, settings: dict) -> float | None:
    """What a row's kernel really multiplied per second, over what all threads could at the measured peak of a core.

    None where `multiplications_saved` is.
    """
    peaks, saved = settings.get("peaks"), multiplications_saved(row.kernel, row.suite, row.case)
    if not peaks or row.gflops is None or saved is None:
        return None
    return row.gflops / saved / (peaks["core_gflops"] * settings["threads"])


def classical_ceiling(results: Results, suite: str) -> tuple[float, int] | None:
    """What a plan could reach at most against its accurate peers if nobody saved multiplications: the geometric mean of
    the fastest peer's time over that of the layer's own operations at the measured peak, and of how many cases.

    Cases where anybody is faster than that peak, or our plan saves more than one level of Strassen, are left out.
    """
    if not results.settings.get("peaks"):
        return None
    peak, room = results.settings["peaks"]["core_gflops"] * results.settings["threads"], []
    for case in results.cases(suite):
        rows = results.of_case(suite, case)
        best, plan = fastest(accurate_peers(rows)), measured(rows).get(PLAN)
        if best is None or plan is None:
            continue
        times_peak = best.median_s * peak * 1e9 / (2 * best.macs)
        saved = multiplications_saved(plan.kernel, suite, case)
        if times_peak >= 1 and saved is not None and saved <= MULTIPLICATIONS_SAVED["strassen"]:
            room.append(times_peak)
    return (geometric_mean(room), len(room)) if room else None


def refusals(results: Results) -> list[tuple[str, str, list[str]]]:
    """What was not timed: candidate, reason, and the cases."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        if not row.timed:
            found.setdefault((row.candidate, row.status), []).append(f"{row.suite} {row.case}")
    return [(candidate, reason, cases) for (candidate, reason), cases in found.items()]


def measured(rows: dict[str, Row]) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if row.timed}


def fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median_s, default=None)


def accurate_peers(rows: dict[str, Row]) -> list[Row]:
    return [row for row in measured(rows).values() if not row.ours and row.error_class == "accurate"]


def advantage(rows: dict[str, Row], ours: str, peers: Iterable[Row]) -> float | None:
    """How many times as long the fastest of `peers` takes as ours, on one case; None where one is missing."""
    best, row = fastest(peers), measured(rows).get(ours)
    if best is None or row is None:
        return None
    return engine.ratio(best.timing, row.timing)


@dataclass(frozen=True)
class Bar:
    """One claim to be held: our `candidate` against some peers, as a geometric mean over a suite and for each case."""

    suite: str
    candidate: str
    against: str
    mean_floor: float
    single_floor: float


GRADIENT_FLOORS = {"input_grad": 1.2, "weight_grad": 1.1}
BARS = (
    *(
        Bar(suite, CONV2D, "PyTorch", floor, 0.9)
        for suite, floor in {"vgg16": 1.8, "unet_same_256": 1.8, "resnet50": 1.5, "mobilenet_v2": 1.5}.items()
    ),
    *(
        Bar(suite, PLAN, "accurate peers", floor, 0.9)
        for suite, floor in {"vgg16": 1.5, "unet_same_256": 1.5, "resnet50": 1.3, "mobilenet_v2": 1.3}.items()
    ),
    Bar("other_networks", CONV2D, "PyTorch", 1.0, 0.9),
    Bar("other_networks", PLAN, "accurate peers", 1.0, 0.9),
    *(
        Bar(suite, shown(suite), "PyTorch", GRADIENT_FLOORS[cases.gradient_of(suite)], 0.8)
        for suite in cases.gradient_suites()
    ),
    Bar("filters", CONV2D, "OpenCV and SciPy", 1.3, 0.8),
    Bar("vgg16", FAST_PLAN, "MNN", 1.0, 0.0),
    Bar("unet_same_256", FAST_PLAN, "MNN", 1.0, 0.0),
)

PEERS = {
    "PyTorch": lambda rows: [row for row in accurate_peers(rows) if row.candidate.startswith("PyTorch")],
    "accurate peers": accurate_peers,
    "OpenCV and SciPy": lambda rows: [r for r in accurate_peers(rows) if r.candidate.startswith(("OpenCV", "SciPy"))],
    "MNN": lambda rows: [row for row in measured(rows).values() if row.candidate == "MNN"],
}


@dataclass(frozen=True)
class Verdict:
    """A bar held against results: the geometric mean over `cases` cases, and the worst of them."""

    bar: Bar
    mean: float
    worst: float
    worst_case: str
    cases: int

    @property
    def met(self) -> bool:
        return self.mean >= self.bar.mean_floor and self.worst >= self.bar.single_floor


def verdicts(results: Results) -> list[Verdict]:
    """Every bar whose whole suite was measured: a bar says nothing about a selection, and nothing about a GPU or about
    another dtype than float32.
    """
    if not results.settings.get("device", "cpu").startswith("cpu") or dtype_of(results) != "float32":
        return []
    found = (verdict(bar, results) for bar in BARS if is_whole(results, bar.suite))
    return [v for v in found if v is not None]


def is_whole(results: Results, suite: str) -> bool:
    return {case.name for case in cases.cases(suite)} == set(results.cases(suite))


def verdict(bar: Bar, results: Results) -> Verdict | None:
    advantages = {}
    for case in results.cases(bar.suite):
        rows = results.of_case(bar.suite, case)
        value = advantage(rows, ours_in(rows, bar.candidate), PEERS[bar.against](rows))
        if value is not None:
            advantages[case] = value
    if not advantages:
        return None
    worst = min(advantages, key=advantages.get)
    return Verdict(bar, geometric_mean(advantages.values()), advantages[worst], worst, len(advantages))


def ours_in(rows: dict[str, Row], candidate: str) -> str:
    """A plan at max_error 1e-3 is measured by itself only where it chooses another kernel than the accurate plan."""
    return PLAN if candidate == FAST_PLAN and FAST_PLAN not in rows else candidate
