"""A run: the cases that were asked for, measured at one place beside their peers, written and shown."""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, engine, gate, gpu, machine, ours, peaks, peers, results, runner, tables
from .cores import Cores

QUICK = engine.Settings(rounds=5, block_seconds=0.010, most_seconds=1.0)
GPU = engine.Settings(rounds=5, block_seconds=0.005, most_seconds=1.0, settle=engine.at_once)


def run_cpu(threads, with_peers, **chosen):
    threads, place = set_threads(threads), ours.host()
    if with_peers:
        tell_missing(chosen["suites"] or default_suites(chosen["backward"]))
    run_on(
        place,
        lambda case: peers.makers(case.suite, threads, case.problem.dtype.name) if with_peers else {},
        engine.host_block,
        {"threads": threads, "peaks": peaks.measure(threads)},
        cores=Cores(threads),
        **chosen,
    )


def run_gpu(threads, with_peers, **chosen):
    reason = gpu.unavailable()
    if reason:
        raise click.ClickException(f"no GPU to measure on: {reason}")
    found = gpu.makers() if with_peers else {}
    with gpu.stream():
        about = {"threads": 1, "peaks": gpu.peaks(), "driver": gpu.driver()}
        run_on(gpu.place(), lambda case: found, gpu.event_block, about, exact=gpu.exact, settings=GPU, **chosen)


def run_on(
    place, peers_of: Callable, block: Callable, about_run, *, quick, suites, backward, names, each_kernel, rounds, add,
    output, minutes, batch, dtype, layout, exact=gate.exact, settings=None, cores=None,
):  # fmt: skip
    """Measure the chosen cases with ours and their peers at one place, and write and show the results."""
    console = tables.console()
    suites = suites or (default_suites(backward) if backward else ())
    chosen = [case for case in chosen_cases(quick, suites) if not names or any(name in case.name for name in names)]
    if layout and any(case.problem.pass_ != "forward" for case in chosen):
        raise click.UsageError("--layout: forward passes needed, got gradients")
    chosen = [cases.in_dtype(cases.batch_of(cases.in_layout(case, layout), batch), dtype) for case in chosen]
    chosen = list(dict.fromkeys(chosen))  # a case that was there in both layouts is now there twice
    if not chosen:
        raise click.UsageError(f"--case: no case has {' or '.join(names)} in its name")
    settings = engine_settings(QUICK if quick else settings or engine.Settings(), rounds, cores)
    about = machine.describe()
    console.print(f"{about['processor']}, {', '.join(about['instruction_sets'])}; on {place.device}", highlight=False)

    def makers(case):
        kernels = ours.kernel_makers(case, place) if each_kernel else {}
        return ours.makers(case, place) | kernels | peers_of(case)

    rows = measure(chosen, makers, settings, block, console, exact, minutes)
    about_run |= run_settings(settings) | {"device": str(place.device), "batch": batch, "dtype": dtype}
    about_run |= {"cores_found_slow": cores.share_slow} if cores else {}
    measured = results.Results(about, about_run, rows)
    if add and (output / "results.json").exists():
        measured = results.added(results.read(output / "results.json"), measured)
    finish(measured, output, console)


def chosen_cases(quick, suites) -> list[cases.Case]:
    if quick:
        return cases.quick_cases(suites or cases.QUICK)
    return [case for suite in suites or cases.suites() for case in cases.cases(suite)]


def default_suites(backward: bool) -> tuple[str, ...]:
    return cases.gradient_suites() if backward else cases.suites()


def set_threads(threads: int | None) -> int:
    """Give Numba so many threads and return their number; the peers are told one by one."""
    import numba

    if threads is None:
        return numba.get_num_threads()
    if threads > numba.config.NUMBA_NUM_THREADS:
        raise click.UsageError(f"--threads: at most {numba.config.NUMBA_NUM_THREADS} needed here, got {threads}")
    numba.set_num_threads(threads)
    return threads


def engine_settings(base: engine.Settings, rounds: int | None, cores: Cores | None) -> engine.Settings:
    return replace(base, rounds=rounds or base.rounds, settle=cores.settle if cores else base.settle)


def run_settings(settings: engine.Settings) -> dict:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": results.command_of(sys.argv[1:]),
        "rounds": settings.rounds,
        "block_seconds": settings.block_seconds,
        "sleep_seconds": engine.SLEEP_SECONDS,
        "load_after": os.getloadavg()[0],
    }


def tell_missing(suites) -> None:
    lacking = {name: package for suite in suites for name, package in peers.missing(suite).items()}
    for name, package in lacking.items():
        click.echo(f"{name} is not measured: {package} is not installed")
    if lacking:
        click.echo('all peers: python -m pip install -e ".[peers]"')


def measure(
    chosen, makers: Callable, settings: engine.Settings, block: Callable, console: Console, exact: Callable, minutes
) -> list[results.Row]:
    """Every row of the chosen cases, with a progress bar that says what is being done; none begins after `minutes`."""
    end = time.monotonic() + 60 * (minutes or math.inf)
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(chosen))
        rows = []
        for case in chosen:
            if time.monotonic() > end:
                console.print(f"{minutes:g} minutes are over; not measured: {case} and what comes after it")
                break
            rows += runner.run_case(
                case, makers(case), settings, block, lambda text: progress.update(task, description=text), exact
            )
            progress.advance(task)
    return rows


def progress_bar(console: Console | None = None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def keep(output: Path, name: str, content) -> None:
    """Write one of the report's further measurements, and draw the report again if there is one."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    if (output / "results.json").exists():
        from . import report

        report.write(results.read(output / "results.json"), output)


def finish(measured: results.Results, output: Path, console: Console) -> None:
    """Write everything, print the tables, and fail if one of ours did not pass."""
    from . import report

    results.write(measured, output)
    report.write(measured, output)
    tables.show(measured, console)
    console.print(f"written: {output}/results.csv, results.json, report.html", highlight=False)
    failed = [row for row in measured.rows if row.ours and not row.timed]
    if failed:
        raise SystemExit(f"{len(failed)} of convlib's own candidates failed; the first: {failed[0]}")
