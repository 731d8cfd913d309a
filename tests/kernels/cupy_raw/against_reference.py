"""A CUDA C kernel, launched through the seam and run on the CPU by g++ (on_cpu.py), held against the reference."""

from dataclasses import replace

import numpy as np

from convlib import accuracy, device, dispatch, operands, strided
from convlib.kernels import reference
from convlib.verification.problems import UNWRITTEN, arrays_of, expected, logical_arrays, placed
from tests.kernels.cupy_raw import on_cpu

GPU = device.emulator_of(80)


def served(kernels, cases, pass_="forward"):
    """The pairs of a kernel's name and a case that it takes: all, except that depthwise kernels take only such."""

    def takes(name, problem):
        filters = problem.Kg == 1 or pass_ == "forward"
        return not name.startswith("depthwise") or (problem.Cg == 1 and filters)

    return [(name, case) for name in kernels for case in cases if takes(name, case.problem(pass_))]


def convolved(kernel, case, x, w, bias, residual, out):
    """What `kernel` writes into `out` for `case`; its workspace starts as NaNs."""
    problem = case.problem()
    assert kernel.why_not(problem, GPU) == []
    views = logical_arrays(case, x, w, bias, residual)
    y = out.transpose(operands.FROM_LAYOUT[problem.layout])
    x, w, bias, residual, y = (strided.as_storage(view) for view in (*views, y))
    workspace = strided.empty_aligned((dispatch.one_call_bytes(kernel, problem, GPU),), np.uint8)
    workspace.fill(0xFF)
    with on_cpu.kernels_on_cpu():
        kernel.run(problem, GPU, x, w, y, bias, residual, workspace)
    return y.view(problem.dtype) if y.dtype == np.uint16 else y


def check_weight_grad(kernel, case):
    """The kernel's grad_w, in a slice of a larger array; its workspace starts as NaNs."""
    problem = replace(case.problem(), pass_="weight_grad", activation=None, has_bias=False)
    assert kernel.why_not(problem, GPU) == []
    x, w, *_ = arrays_of(case)
    x = logical_arrays(case, x, w, None, None)[0]
    grad_y = np.random.default_rng(1).integers(-3, 4, problem.y_shape).astype(problem.dtype)
    out = placed(np.full(problem.w_shape, np.nan).astype(problem.dtype), "slices")
    grad_w, beside = out.view, out.beside()
    workspace = strided.empty_aligned((kernel.workspace_bytes(problem, GPU),), np.uint8)
    workspace.fill(0xFF)
    with on_cpu.kernels_on_cpu():
        kernel.run(problem, GPU, *map(strided.as_storage, (x, grad_y, grad_w)), workspace=workspace)
    exact = reference.weight_grad(problem, x, grad_y)
    np.testing.assert_array_equal(grad_w.astype(float), exact.astype(problem.dtype).astype(float))
    assert (out.flat[beside] == UNWRITTEN).all(), "a byte beside the output was written"


def check(kernel, name, case, exactly=True):
    x, w, bias, residual, out = arrays_of(case)
    out = placed(out, case.result_memory)
    beside = out.beside()
    y = convolved(kernel, case, x, w, bias, residual, out.view).astype(np.float64)
    exact, magnitude = expected(case, x, w, bias, residual)
    assert not np.isnan(y).any(), "an output was not written, or read something that was not"
    assert (out.flat[beside] == UNWRITTEN).all(), "a byte beside the output was written"
    if not exactly or case.keywords.get("activation") == "silu" or case.problem().dtype.itemsize == 2:
        assert (np.abs(y - exact) <= accuracy.elementwise(case.problem(), name, magnitude, exact)).all()
    else:
        np.testing.assert_array_equal(y, exact)
