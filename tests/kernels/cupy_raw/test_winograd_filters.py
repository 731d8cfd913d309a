"""How both Winograd kernels transform their filters: values however weights lie, sectors and banks, machine code."""

import numpy as np
import pytest

from convlib import accuracy, device, operands, strided
from convlib.compiling import TARGETS
from convlib.kernels.cupy_raw import winograd_batched, winograd_fused
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import Case, arrays_of, expected
from tests.kernels.cupy_raw import on_cpu

GPU = device.emulator_of(80)
KERNELS = {"winograd_fused": winograd_fused, "winograd_batched": winograd_batched}
WEIGHTS = {"OIHW": "ROWS", "OHWI": "CHANNELS", "HWIO": "NONE"}


def laid(w, weight_layout):
    """w with its axes in memory in that order."""
    order = ["OIHW".index(axis) for axis in weight_layout]
    stored = strided.empty_aligned(tuple(w.shape[axis] for axis in order), w.dtype)
    stored[...] = w.transpose(order)
    return stored.transpose(np.argsort(order))


@pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_layout", WEIGHTS)
@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_reference_however_weights_lie(name, weight_layout, dtype):
    """19 channels are three chunks and no whole number of stages; 35 filters of each group fill no block."""
    case = Case("weights", (2, 38, 9, 10), (70, 19, 3, 3), {"padding": 1, "groups": 2}, dtype=dtype)
    problem, kernel = case.problem(), KERNELS[name]
    x, w, *_ = arrays_of(case)
    w = laid(w, weight_layout)
    assert winograd_fused.weights_in(w) == WEIGHTS[weight_layout]
    y = np.full(problem.y_shape, np.nan, dtype)
    workspace = strided.empty_aligned((kernel.workspace_bytes(problem, GPU),), np.uint8)
    workspace.fill(0xFF)
    with on_cpu.kernels_on_cpu():
        kernel.run(problem, GPU, x, w, y, workspace=workspace)
    exact, magnitude = expected(case, x, w, None, None)
    assert (np.abs(y - exact) <= accuracy.elementwise(problem, name, magnitude, exact)).all()


def packing(name, weight_layout, dtype, in_emulator):
    """The report of the transform of 40 filters of 2 x 24 channels."""
    problem = make_problem((1, 48, 5, 5), (40, 24, 3, 3), named_dtype(dtype), groups=2)
    x, y = (strided.empty_aligned(shape, dtype) for shape in (problem.x_shape, operands.result_shape(problem, True)))
    x[...] = 1
    reports = in_emulator.watched(KERNELS[name], problem, x, laid(np.ones(problem.w_shape, dtype), weight_layout), y)
    assert reports[0].kernel == "transform_filters"
    return reports[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI"])
@pytest.mark.parametrize("name", KERNELS)
def test_filters_are_read_and_written_by_whole_sectors_without_bank_conflicts(name, weight_layout, dtype, in_emulator):
    report = packing(name, weight_layout, dtype, in_emulator)
    for kind in ("load", "store"):
        moved = in_emulator.accesses(report, "global", kind)
        assert sum(access.lanes for access in moved) > 0
        for access in moved:
            assert access.cost == access.lanes * access.size / 32, access
        for access in in_emulator.accesses(report, "shared", kind):
            assert access.cost == access.requests * access.size / 4, access


@pytest.mark.parametrize("weights", WEIGHTS.values())
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills_however_weights_lie(target, weights, through_nvrtc):
    for dtype in ("float32", "float64"):
        problem = through_nvrtc.problem_of("3x3", dtype)
        lying = winograd_batched.ALIGNED._replace(weights=weights)
        through_nvrtc.check(winograd_batched.sources(problem, GPU, lying=lying)[0], target, dtype)
        through_nvrtc.check(winograd_fused.sources_of(problem, False, "PIXELS", False, 2, weights)[0], target, dtype)
