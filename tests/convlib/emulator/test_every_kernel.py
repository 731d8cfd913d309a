"""The proof suite: every GPU kernel in the list, compiled and executed by the emulator, values and all checks.

For each kernel: every shared problem (for sm_80 and sm_120 in turn, the two compiler front ends), every dtype for every
target (for Numba's kernels, which take a second to compile, one dtype for each), and larger problems that stick out of
every tile. Values are held against the reference as on a CPU; every output element must be written exactly once, by
threads that do not race, from memory that somebody filled: the workspace counts as unwritten until a kernel writes it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import device, device_arrays, dispatch, emulator, operands, strided
from convlib.compiling import TARGETS
from convlib.kernels import reference
from convlib.verification.problems import SMALL, TINY, arrays_of
from tests.kernels.test_every_kernel import assert_close, forced

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
pytest.importorskip("numba.cuda", reason="numba-cuda is not installed (extra cuda13)")
pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")

GPU_KERNELS = [n for n in dispatch.KERNELS if "emulator" in dispatch.FAMILIES[dispatch.family_of(n)].runs_on]
BY_NAME = {case.name: case for case in TINY + SMALL}
DTYPE_CASES = [BY_NAME[name] for name in ("3x3_same", "float64", "float16", "bfloat16")]
PAST_EVERY_TILE = [BY_NAME[name] for name in ("many_channels", "nhwc_wide", "groups_wide", "depthwise_wide")]


def served(name, case, target, pass_="forward"):
    problem = case.problem(pass_)
    module = dispatch.kernel(name)
    return problem.pass_ in module.passes and not module.why_not(problem, device.emulator_of(target))


def alternating():
    for name in GPU_KERNELS:
        for i, case in enumerate(case for case in TINY if case not in DTYPE_CASES):
            yield name, case, (80, 120)[i % 2]


EVERY_PROBLEM = [row for row in alternating() if served(*row)]


def targets_for(name, i):
    """Whose code runs DTYPE_CASES[i]; the other dtypes of Numba's kernels, test_compiled.py compiles."""
    one_each = dispatch.family_of(name) == "numba_cuda"
    return [target for j, target in enumerate(TARGETS) if not one_each or (i + j) % len(DTYPE_CASES) == 0]


EVERY_DTYPE = [
    (name, case, target)
    for name in GPU_KERNELS
    for i, case in enumerate(DTYPE_CASES)
    for target in targets_for(name, i)
    if served(name, case, target)
]
LARGER = [(n, c, t) for n in GPU_KERNELS for c, t in zip(PAST_EVERY_TILE, (80, 120, 90, 86), strict=True)
          if served(n, c, t)]  # fmt: skip


@pytest.fixture(autouse=True)
def emulate(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


@pytest.fixture
def workspace(monkeypatch):
    """The memory from which every kernel gets its workspace; to be watched, since nothing in it has been written."""
    memory = strided.empty_aligned((8 << 20,), np.uint8)
    memory.fill(0xFF)

    def device_bytes(count, *_):
        assert count <= memory.size
        return memory[:count]

    monkeypatch.setattr(device_arrays, "device_bytes", device_bytes)
    return memory


def check(name, case, target, workspace, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
    x, w, bias, residual, out = arrays_of(case)
    with emulator.watching(outputs=[out], scratch=[workspace]) as watch:
        y = convlib.conv2d(x, w, bias, residual=residual, out=out, **case.keywords, **forced(name))
    assert watch.reports, "no kernel was launched"
    assert {report.target for report in watch.reports} == {f"sm_{target}"}
    watch.raise_if_faulty()
    assert_close(case, dispatch.algorithm_of(name), y, x, w, bias, residual)


@pytest.mark.parametrize(("name", "case", "target"), EVERY_PROBLEM, ids=str)
def test_every_problem(name, case, target, workspace, monkeypatch):
    check(name, case, target, workspace, monkeypatch)


@pytest.mark.parametrize(("name", "case", "target"), EVERY_DTYPE, ids=str)
def test_every_dtype_for_every_target(name, case, target, workspace, monkeypatch):
    check(name, case, target, workspace, monkeypatch)


@pytest.mark.parametrize(("name", "case", "target"), LARGER, ids=str)
def test_problems_past_every_tile(name, case, target, workspace, monkeypatch):
    check(name, case, target, workspace, monkeypatch)


WEIGHT_GRADS = [
    (name, case, target)
    for name in GPU_KERNELS
    for cases, targets in ((TINY, (80, 120)), (DTYPE_CASES, ()), (PAST_EVERY_TILE, (80, 120)))
    for i, case in enumerate(case for case in cases if not case.residual)
    for target in (targets_for(name, i) if cases is DTYPE_CASES else targets[i % 2 :][:1])
    if served(name, case, target, "weight_grad")
]


@pytest.mark.parametrize(("name", "case", "target"), WEIGHT_GRADS, ids=str)
def test_weight_gradients(name, case, target, workspace, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
    problem, (x, w, *_) = case.problem(), arrays_of(case)
    keywords = {key: value for key, value in case.keywords.items() if key != "activation"}
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    out = np.full(w.shape, np.nan).astype(x.dtype)
    with emulator.watching(outputs=[out], scratch=[workspace]) as watch:
        convlib.conv2d_weight_grad(x, grad_y, w.shape, out=out, **keywords, **forced(name))
    assert watch.reports or problem.N == 0, "no kernel was launched"
    watch.raise_if_faulty()
    order = operands.FROM_LAYOUT[problem.layout]
    exact = reference.weight_grad(problem, x.transpose(order), grad_y.transpose(order))
    got = operands.weights_view(out, keywords.get("weight_layout", "OIHW"), keywords.get("flip_kernel", False))
    np.testing.assert_array_equal(got.astype(float), exact.astype(x.dtype).astype(float))


INPUT_GRADS = [
    (name, case, target)
    for name in GPU_KERNELS
    for cases, targets in ((TINY, (80, 120)), (DTYPE_CASES, ()), (PAST_EVERY_TILE, (80, 120)))
    for i, case in enumerate(case for case in cases if not case.residual)
    for target in (targets_for(name, i) if cases is DTYPE_CASES else targets[i % 2 :][:1])
    if served(name, replace(case, bias=False), target, "input_grad")
]


@pytest.mark.parametrize(("name", "case", "target"), INPUT_GRADS, ids=str)
def test_input_gradients(name, case, target, workspace, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
    problem, (x, w, *_) = case.problem("input_grad"), arrays_of(case)
    keywords = {key: value for key, value in case.keywords.items() if key != "activation"}
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    out = np.full(x.shape, np.nan).astype(x.dtype)
    with emulator.watching(outputs=[out], scratch=[workspace]) as watch:
        convlib.conv2d_input_grad(grad_y, w, x.shape, out=out, **keywords, **forced(name))
    assert watch.reports, "no kernel was launched"
    watch.raise_if_faulty()
    order = operands.FROM_LAYOUT[problem.layout]
    w = operands.weights_view(w, keywords.get("weight_layout", "OIHW"), keywords.get("flip_kernel", False))
    exact = reference.input_grad(problem, grad_y.transpose(order), w)
    np.testing.assert_array_equal(out.transpose(order).astype(float), exact.astype(x.dtype).astype(float))
