"""Stand-ins for a GPU: `python -m benchmarks gpu --rehearse` goes through the whole visit with them on any CPU.

    the card       the PTX emulator's, as sm_80
    answers        emulated kernels, on layers shrunk to a few channels and pixels; cuDNN's and PyTorch's by the gate
    launches       recorded, when a call is to be timed
    the clock      a fake: so long for a launch, so long for each of its threads
    ncu            its CSV, filled with the emulator's counters

So every file comes out that a visit writes, and every number in it is marked as rehearsed.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from convlib import choosing, device
from convlib.device import Device
from convlib.emulator import profile
from convlib.kernels import launching
from convlib.problem import ConvProblem

from . import cases, gate, ours
from .bench import Bench
from .candidate import Candidate
from .counters import METRICS
from .ours import CONV2D, PLAN
from .results import REHEARSED

TARGET = 80
CHANNELS, PIXELS, SHRUNK = 8, 7, "shrunk from "
LAUNCH, THREAD = 3e-6, 2e-9  # seconds on the fake clock
PEER_SECONDS = 5e-6
PEERS = (
    *(f"cuDNN {layout} {kind}{tf32}" for tf32 in ("", " TF32") for layout in ("NCHW", "NHWC")
      for kind in ("heuristic", "best plan")),
    *(f"PyTorch {layout}{tf32}" for tf32 in ("", " TF32") for layout in ("NCHW", "channels_last")),
)  # fmt: skip
PEAKS = {"core_gflops": 2 * 64 * 108 * 1.5, "bandwidth_gbs": 1500.0}


def place() -> Device:
    return device.emulator_of(TARGET)


def as_the_model_sees_it() -> Device:
    """The card that the emulator stands for."""
    return replace(place(), kind="cuda")


def bench() -> Bench:
    """To measure layers with. Kernels are emulated from here on."""
    os.environ |= {"CONVLIB_EMULATE": "1", "CONVLIB_EMULATE_TARGET": str(TARGET)}
    return Bench(
        about=lambda: {"peaks": PEAKS, "driver": "none, a rehearsal", "card": {"name": place().name}},
        case=shrunk,
        makers=makers,
        block=block,
        clocks=lambda: {"clocks.sm": "none, a rehearsal"},
        status=REHEARSED,
    )


def shrunk(case: cases.Case) -> cases.Case:
    """The same kind of layer with so few channels and pixels that it can be emulated in a second."""
    return replace(case, name=SHRUNK + case.name, problem=shrunk_problem(case.problem))


def case_called(suite: str, name: str) -> cases.Case:
    """The case of a row that a rehearsal wrote."""
    return shrunk(next(case for case in cases.cases(suite) if SHRUNK + case.name == name))


def shrunk_problem(problem: ConvProblem) -> ConvProblem:
    depthwise = problem.groups == problem.C
    C = min(problem.C, CHANNELS)
    K = C * (problem.K // problem.C) if depthwise else min(problem.K, CHANNELS)
    size = {"H": min(problem.H, PIXELS + problem.R), "W": min(problem.W, PIXELS + problem.S)}
    return replace(problem, N=1, C=C, K=K, groups=C if depthwise else 1, **size)


def makers(case: cases.Case) -> dict[str, Callable]:
    """Ours and stand-ins for cuDNN and PyTorch, under the names they have on a GPU."""
    here = ours.Place(place(), np.array, np.asarray)
    chosen = choosing.choose(case.problem, here.device)
    mine = {PLAN: partial(ours.plan, place=here, name=PLAN, kernel=chosen), CONV2D: partial(conv2d, here, chosen)}
    return mine | ours.kernel_makers(case, here) | {name: partial(peer, name) for name in PEERS}


def conv2d(here, chosen, case, operands) -> Candidate:
    return replace(ours.conv2d(case, operands, here, kernel=chosen), name=CONV2D)


def peer(name, case, operands) -> Candidate:
    """The right answer, from nobody's kernel."""
    answer = gate.exact(case, operands).astype(np.float32)
    return Candidate(name, lambda: None, lambda: answer, gate.FAST_MAX_ERROR)


def block(call: Callable, calls: int) -> float:
    """What the fake clock says of a call: by the launches that it makes, of which none is executed."""
    with launching.recording() as launches:
        call()
    threads = sum(int(np.prod(launch.grid) * np.prod(launch.block)) for launch in launches)
    return LAUNCH * len(launches) + THREAD * threads if launches else PEER_SECONDS


def ncu(row, seconds: float) -> str:
    """What ncu would print, with the emulator's counters in it; other columns are empty."""
    reports = profile.profile(row.kernel, case_called(row.suite, row.case).problem, TARGET).reports
    file = io.StringIO()
    table = csv.DictWriter(file, ["ID", "Kernel Name", "Block Size", "Grid Size", *METRICS.values()], restval="")
    print("==PROF== a rehearsal, nothing was profiled", file=file)
    table.writeheader()
    table.writerow({"ID": ""})
    for number, report in enumerate(reports):
        table.writerow(counted(number, report))
    return file.getvalue().replace("ID,Kernel Name", '"ID",Kernel Name')


def counted(number: int, report) -> dict:
    counts = report.counters
    return {
        "ID": number,
        "Kernel Name": f"{profile.short(report.kernel)}(...)",
        "Block Size": str(report.block),
        "Grid Size": str(report.grid),
        METRICS["warp_instructions"]: counts.warp_instructions,
        METRICS["tensor_instructions"]: counts.warps["mma"],
        METRICS["sectors_per_load"]: counts.cost_per_request("global", kind="load"),
        METRICS["dram_bytes"]: counts.least_bytes,
    }
