"""What the GPU's own counters say of the kernels that matter, through ncu: the visit's third stage.

Those that matter: of every kernel that a plan chose, the case that took most of a network's time. Clocks are left as
they are (--clock-control none), as in the tables.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from convlib.verification.children import OutOfTime

from .layer_tables import environment
from .ours import PLAN
from .results import Row

METRICS = {  # ours -> ncu's
    "seconds": "gpu__time_duration.sum",
    "cycles": "sm__cycles_elapsed.max",
    "sm_clock_hz": "sm__cycles_elapsed.avg.per_second",
    "warp_instructions": "smsp__inst_executed.sum",
    "multiply_adds": "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
    "tensor_instructions": "sm__inst_executed_pipe_tensor.sum",
    "dram_bytes": "dram__bytes.sum",
    "shared_bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "sectors_per_load": "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio",
    "warps_active_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
UNITS = {
    "ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3,
    "cycle/nsecond": 1e9, "cycle/usecond": 1e6, "Ghz": 1e9, "Mhz": 1e6, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
}  # fmt: skip
LIMIT = 120.0  # seconds for one kernel: ncu replays it for every group of counters


class Refused(Exception):
    """Why ncu counted nothing."""


def unavailable() -> str | None:
    return None if shutil.which("ncu") else "ncu (Nsight Compute) is not on the path"


def worth_counting(rows: list[Row]) -> list[Row]:
    """For each kernel that a plan chose, the row on which a network spends most time; the longest first."""
    chosen = sorted(
        (row for row in rows if row.timed and row.candidate == PLAN), key=lambda row: -row.median_s * row.count
    )
    first: dict[str, Row] = {}
    for row in chosen:
        first.setdefault(row.kernel, row)
    return list(first.values())


def counted(row: Row, deadline: float, run: Callable[[Row, float], str]) -> list[dict]:
    """A dictionary for every launch of the row's kernel. run: gives ncu's output for a row within some seconds."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime(row.kernel)
    launches = launches_in(run(row, min(LIMIT, left)))
    return [{"kernel": row.kernel, "suite": row.suite, "case": row.case} | launch for launch in launches]


def ncu(row: Row, seconds: float) -> str:
    """What ncu prints about one call of the row's kernel."""
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command += ["--print-units", "base", "--metrics", ",".join(METRICS.values())]
    command += [sys.executable, "-m", "benchmarks.counted", row.kernel, row.suite, row.case]
    trusting = environment() | {"CONVLIB_TRUST": "all"}  # it was verified before, and its check is not to be counted
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=trusting, cwd=os.curdir, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"ncu did not return within {seconds:.0f} s") from error
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line or "Error" in line]
        raise Refused(
            f"ncu ended with exit code {done.returncode}: {(errors or said or ['without a word'])[-1].strip()}"
        )
    return done.stdout


def launches_in(text: str) -> list[dict]:
    """From ncu's CSV: a line of names that begins with "ID", one of units, one for each launch.

    Raises Refused where there is no launch.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    units, *rows = [{}] if start is None else csv.DictReader(lines[start:])
    if not rows:
        raise Refused("ncu counted nothing" + (f": {lines[-1].strip()}" if lines else ""))
    return [
        {"function": row["Kernel Name"].partition("(")[0], "grid": row["Grid Size"], "block": row["Block Size"]}
        | {ours: number(row.get(theirs), units.get(theirs)) for ours, theirs in METRICS.items()}
        for row in rows
    ]


def number(text: str | None, unit: str | None) -> float | None:
    """In seconds, bytes and hertz; None for what this ncu or this card does not count."""
    try:
        return float((text or "").replace(",", "")) * UNITS.get(unit, 1)
    except ValueError:
        return None
