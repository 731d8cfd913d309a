"""The tables that a run prints. They say what was measured and how; nothing is in them that is not in the CSV."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cases import gradient_of
from .ours import CONV2D, PLAN, shown
from .results import (
    PEERS,
    Results,
    Row,
    accurate_peers,
    advantage,
    classical_ceiling,
    fastest,
    geometric_mean,
    measured,
    refusals,
    share_of_peak,
    verdicts,
)
from .startup import CEILINGS

WIDTH = 132  # where there is no terminal
CAPTION = (
    "Times are medians in ms. x PyTorch: its faster form's time / conv2d's. x peer: the fastest accurate peer's time / "
    "plan's. GFLOP/s count a direct convolution's operations, of which Winograd does fewer; % peak counts those it "
    "does and divides by the measured peak of all threads. error: norm-relative."
)


def console() -> Console:
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def show(results: Results, console: Console) -> None:
    """Every suite's table, the bars, and what was refused."""
    for suite in results.suites():
        console.print(suite_table(results, suite))
        if 2 < len(results.candidates(suite)) <= (console.width - 36) // 14:
            console.print(every_candidate_table(results, suite))
    for suite in results.suites():
        ceiling = classical_ceiling(results, suite)
        if ceiling and ceiling[1] > 1:
            console.print(f"ceiling of a classical product, {suite}: {ceiling[0]:.2f} x peer ({ceiling[1]} cases)")
    console.print(CAPTION + "\n", style="dim", highlight=False)
    found = verdicts(results)
    if found:
        console.print(bars_table(found))
    for candidate, reason, cases in refusals(results):
        where = cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
        console.print(f"[yellow]{candidate} on {where}: {reason}", highlight=False)


def new_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def suite_table(results: Results, suite: str) -> Table:
    """A line per case: ours, and how many times as long the fastest peers take."""
    if gradient_of(suite):
        return gradient_table(results, suite)
    table = new_table(suite)
    table.add_column("case")
    for heading in ("conv2d", "plan", "GFLOP/s", "% peak", "x PyTorch", "x peer"):
        table.add_column(heading, justify="right")
    for heading in ("that peer", "kernel", "error"):
        table.add_column(heading)
    ratios = []
    for case in results.cases(suite):
        rows = results.of_case(suite, case)
        pair = advantage(rows, CONV2D, PEERS["PyTorch"](rows)), advantage(rows, PLAN, accurate_peers(rows))
        ratios.append(pair)
        table.add_row(case, *ours_cells(rows, results.settings), *map(times, pair), *rest_cells(rows))
    table.add_section()
    table.add_row("geometric mean", "", "", "", "", *(times(mean_of(column)) for column in zip(*ratios, strict=True)))
    return table


def gradient_table(results: Results, suite: str) -> Table:
    """A line per case: ours beside the faster form of PyTorch's own backward pass."""
    table, ours = new_table(suite), shown(suite)
    table.add_column("case")
    for heading in (ours.removeprefix("convlib "), "GFLOP/s", "% peak", "x PyTorch"):
        table.add_column(heading, justify="right")
    for heading in ("that form", "kernel", "error"):
        table.add_column(heading)
    ratios = []
    for case in results.cases(suite):
        rows = results.of_case(suite, case)
        ratios.append(advantage(rows, ours, PEERS["PyTorch"](rows)))
        rest = rest_cells(rows, ours)
        table.add_row(
            case, milliseconds(rows.get(ours)), *speed_cells(rows, ours, results.settings), times(ratios[-1]), *rest
        )
    table.add_section()
    table.add_row("geometric mean", "", "", "", times(mean_of(ratios)))
    return table


def ours_cells(rows: dict[str, Row], settings: dict):
    for name in (CONV2D, PLAN):
        yield milliseconds(rows.get(name))
    yield from speed_cells(rows, PLAN, settings)


def speed_cells(rows: dict[str, Row], ours: str, settings: dict):
    row = measured(rows).get(ours)
    share = share_of_peak(row, settings) if row else None
    yield f"{row.gflops:.1f}" if row else ""
    yield "" if share is None else f"{share:.0%}"


def rest_cells(rows: dict[str, Row], ours: str = PLAN):
    best, row = fastest(accurate_peers(rows)), measured(rows).get(ours)
    yield best.candidate if best else ""
    yield row.kernel.replace("numba_cpu.", "") if row else ""
    yield f"{row.error:.0e}" if row else ""


def every_candidate_table(results: Results, suite: str) -> Table:
    """A line per case, a column per candidate: milliseconds and error."""
    names = results.candidates(suite)
    table = new_table(f"{suite}: every candidate, ms and error")
    table.add_column("case")
    for name in names:
        table.add_column(name, justify="right")
    for case in results.cases(suite):
        rows = results.of_case(suite, case)
        table.add_row(case, *(cell(rows.get(name)) for name in names))
    return table


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{milliseconds(row)} {row.error:.0e}" if row.timed else "-"


def bars_table(found) -> Table:
    table = new_table("Bars: geometric means of peer time / our time over a whole suite, and its worst case")
    for heading in ("suite", "ours", "against"):
        table.add_column(heading)
    for heading in ("cases", "mean", "floor", "worst", "floor"):
        table.add_column(heading, justify="right")
    table.add_column("worst case")
    for v in found:
        table.add_row(
            v.bar.suite,
            v.bar.candidate.removeprefix("convlib "),
            v.bar.against,
            str(v.cases),
            judged(v.mean, v.bar.mean_floor),
            f"{v.bar.mean_floor:.1f}",
            judged(v.worst, v.bar.single_floor),
            f"{v.bar.single_floor:.1f}",
            v.worst_case,
        )
    return table


def startup_table(seconds: dict[str, float]) -> Table:
    table = new_table("Before and around a call (medians)")
    for heading in ("what", "measured", "at most"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, value in seconds.items():
        ceiling = CEILINGS.get(name)
        style = "" if ceiling is None else "green" if value <= ceiling else "red"
        table.add_row(name, Text(duration(value), style=style), "" if ceiling is None else duration(ceiling))
    return table


def memory_table(found: dict[str, dict[str, int]]) -> Table:
    table = new_table("Peak resident memory of conv2d beyond arguments and result")
    for heading in ("suite", "largest, MB", "case"):
        table.add_column(heading, justify="right" if "MB" in heading else "left")
    for suite, extra in found.items():
        case = max(extra, key=extra.get)
        table.add_row(suite, f"{extra[case] / 1e6:.1f}", case)
    return table


def scaling_table(found: list[dict]) -> Table:
    table = new_table("One thread against all, plan")
    for heading in ("suite", "case", "threads", "one, ms", "all, ms", "gain"):
        table.add_column(heading, justify="left" if heading in ("suite", "case") else "right")
    for one in found:
        times = (f"{one['one_s'] * 1e3:.2f}", f"{one['all_s'] * 1e3:.2f}", f"{one['gain']:.2f}")
        table.add_row(one["suite"], one["case"], str(one["threads"]), *times)
    table.add_section()
    table.add_row("geometric mean", "", "", "", "", f"{geometric_mean(one['gain'] for one in found):.2f}")
    return table


def stages_table(found: list[dict]) -> Table:
    table = new_table(
        "Where the time goes, ms: a plan packs once; at peak: multiply-adds alone; a stage: what its absence saves"
    )
    for heading in ("suite", "case", "kernel"):
        table.add_column(heading)
    parts = ("input", "multiply", "output")
    for heading in ("pack", "run", "at peak", *parts):
        table.add_column(heading, justify="right")
    for one in found:
        times = [one["pack_s"], one["run_s"], one["limit_s"], *(one["stages_s"].get(part) for part in parts)]
        cells = ["" if seconds is None else f"{seconds * 1e3:.3f}" for seconds in times]
        table.add_row(one["suite"], one["case"], one["kernel"].removeprefix("numba_cpu."), *cells)
    return table


def signal_tables(found: list, bars: list) -> list[Table]:
    """Times, with their ratios to ours, and what was asked for. found: signal.Measured; bars: signal.Bar."""
    times = new_table("convlib.signal beside its peers")
    for heading in ("work", "candidate", "ms", "x ours", "error"):
        times.add_column(heading, justify="left" if heading in ("work", "candidate") else "right")
    before = None
    for one in found:
        cells = (f"{one.median_s * 1e3:.2f}", f"{one.ratio:.2f}", f"{one.error:.1e}")
        times.add_row("" if one.work == before else one.work, one.candidate, *cells)
        before = one.work
    asked = new_table("Asked for")
    for heading in ("", "at least", "found"):
        asked.add_column(heading, justify="right" if heading else "left")
    for bar in bars:
        asked.add_row(bar.text, f"{bar.floor:g}", judged(bar.value, bar.floor))
    return [times, asked]


def networks_table(found: dict) -> Table:
    """found: by the work's name, its fields as inference.py and training.py have them."""
    table = new_table("Whole networks, both from the same weights")
    for heading in ("", "PyTorch, ms", "convlib, ms", "x PyTorch", "they differ by"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in found.items():
        seconds = one["torch_s"], one["convlib_s"]
        table.add_row(name, *(f"{s * 1e3:.1f}" for s in seconds), judged(one["ratio"], 1.0), f"{one['error']:.0e}")
    return table


def duration(seconds: float) -> str:
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"


def judged(value: float, floor: float) -> Text:
    return Text(f"{value:.2f}", style="green" if value >= floor else "red")


def milliseconds(row: Row | None) -> str:
    """Three significant digits, at most three after the point."""
    if row is None or not row.timed:
        return ""
    value = row.median_s * 1e3
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def mean_of(column) -> float | None:
    values = [value for value in column if value is not None]
    return geometric_mean(values) if values else None
