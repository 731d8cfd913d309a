"""Where a plan's time goes: packing the weights, the stages of a Winograd convolution, and what the multiply-adds alone
would take.

A stage's time is what is missing when it is left out: Winograd's stages are called by address, and a stage left out is
the address of a function that does nothing, so that all else stays as it is. Whole and parts take turns in the engine.
What other kernels do between reading x and storing y is woven together and cannot be taken apart so: they have one
number for all of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from convlib import choosing, device, dispatch, strided
from convlib.kernels.numba_cpu import dilated_parts, winograd, winograd_record
from convlib.kernels.numba_cpu.call import pack_call
from convlib.kernels.numba_cpu.compilation import compiled
from convlib.kernels.numba_cpu.threads import run_tasks

from . import engine, ours
from .candidate import Candidate
from .cases import Case, operands
from .results import WINOGRAD_TILES, multiplications_saved

WINOGRAD_STAGES = {"input": "input_stage", "multiply": "multiply_stage", "output": "output_stage"}
POINTER = 8  # bytes


@dataclass(frozen=True)
class Stages:
    """Median seconds: of packing, which a plan does once, of a run, and of the run's stages.

    limit_s: what all threads take for the kernel's multiply-adds at the measured peak; None for Fourier transforms.
    """

    suite: str
    case: str
    kernel: str
    pack_s: float
    run_s: float
    limit_s: float | None
    stages_s: dict[str, float] = field(default_factory=dict)


def build_nothing():
    def nothing(a, b, c, d, e, f, g, h):
        pass

    return nothing


def measure(case: Case, settings: engine.Settings, peak_gflops: float) -> Stages:
    """The stages of the kernel that plan chooses for the case. peak_gflops: of all threads."""
    name = choosing.chosen(case.problem, ours.host().device, planned=True).name
    calls = kernel_calls(case, name)
    timings = engine.measure([Candidate(part, call, None, 0.0) for part, call in calls.items()], settings)
    stages = {part: missing_seconds(timings["run"], timings[part]) for part in WINOGRAD_STAGES if part in timings}
    pack = timings["pack"].median if "pack" in timings else 0.0
    saved = multiplications_saved(name, case.suite, case.name)
    limit = 2 * case.problem.macs / saved / (peak_gflops * 1e9) if saved else None
    return Stages(case.suite, case.name, name, pack, timings["run"].median, limit, stages)


def missing_seconds(whole: engine.Timing, without_part: engine.Timing) -> float:
    """The median of the rounds' differences."""
    return float(np.median(np.array(whole.seconds) - np.array(without_part.seconds)))


def kernel_calls(case: Case, name: str) -> dict:
    """run, pack if there is such a step, and for Winograd the run without each stage."""
    problem, place, kernel = case.problem, device.cpu(), dispatch.kernel(name)
    x, w, bias, y = ours.arrays(case, operands(case), ours.host())
    x, y = ours.logical(case, x), ours.logical(case, y)
    workspace = empty_bytes(kernel.workspace_bytes(problem, place))
    calls, weights = {}, w
    if hasattr(kernel, "pack"):
        weights = empty_bytes(kernel.packed_bytes(problem, place))
        calls["pack"] = partial(kernel.pack, problem, place, w, weights)
        calls["pack"]()
    calls["run"] = partial(kernel.run, problem, place, x, weights, y, bias, workspace=workspace)
    if problem.dilation != (1, 1) and len(dilated_parts.parts(problem, place)) > 1:
        return calls
    if name in WINOGRAD_TILES:
        dilated = problem.dilation != (1, 1)
        m = dilated_parts.tile_side(problem, place) if dilated else WINOGRAD_TILES[name]
        fields, loop, tasks = winograd.prepared(m, problem, place.threads)
        for part, leaf in WINOGRAD_STAGES.items():
            record = pack_call(without(fields, leaf), x, weights, y, bias, None, workspace)
            calls[part] = partial(run_tasks, loop, record, tasks, place.threads)
    return calls


def empty_bytes(count: int):
    return strided.empty_aligned((count,), "uint8")


def without(fields: bytes, leaf: str) -> bytes:
    """A Winograd call's fields with one leaf's address replaced; the leaves' addresses come last in the record."""
    at = len(fields) - POINTER * (len(winograd_record.LEAVES) - winograd_record.LEAVES.index(leaf))
    return fields[:at] + struct.pack("q", compiled(build_nothing).address) + fields[at + POINTER :]
