"""A CUDA C kernel in the PTX emulator with all checks; small layers, and what the emulator's account says of each."""

import numpy as np
import pytest

from convlib import accuracy, device, dispatch, emulator, operands, strided
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import arrays_of, expected, in_memory, logical_arrays

# Whoever imports this file is skipped with it.
pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")


def watched(kernel, problem, x, w, y, bias=None, residual=None):
    """Run `kernel` in the emulator; every output must be written once, and the workspace before it is read."""
    gpu = device.emulator()
    assert kernel.why_not(problem, gpu) == []
    x, w, y, bias, residual = (strided.as_storage(view) for view in (x, w, y, bias, residual))
    workspace = strided.empty_aligned((dispatch.one_call_bytes(kernel, problem, gpu),), np.uint8)
    scratch = [workspace] if workspace.size else []
    with emulator.watching(outputs=[y], scratch=scratch) as watch:
        kernel.run(problem, gpu, x, w, y, bias, residual, workspace)
    watch.raise_if_faulty()
    return watch.reports


def check(kernel, name, case):
    problem = case.problem()
    x, w, bias, residual, out = arrays_of(case)
    bias = None if bias is None else in_memory(bias, case.result_memory)
    views = logical_arrays(case, x, w, bias, residual)
    y = out.transpose(operands.FROM_LAYOUT[problem.layout])
    watched(kernel, problem, *views[:2], y, *views[2:])
    exact, magnitude = expected(case, x, w, bias, residual)
    error = np.abs(y.astype(np.float64) - exact)
    assert (error <= accuracy.elementwise(problem, name, magnitude, exact)).all()


LAYERS = {
    "wide": ((1, 16, 12, 64), (64, 16, 3, 3), {"padding": 1}),
    "narrow": ((1, 8, 7, 7), (64, 8, 3, 3), {"padding": 1}),
    "stride_2": ((1, 8, 41, 70), (32, 8, 3, 3), {"padding": 1, "stride": 2}),
    "stride_3": ((1, 4, 41, 70), (32, 4, 3, 3), {"stride": 3}),
    "dilated": ((1, 8, 20, 40), (32, 8, 3, 3), {"padding": 2, "dilation": 2}),
    "first_layer": ((1, 3, 40, 60), (32, 3, 7, 7), {"padding": 3, "stride": 2}),
    "depthwise": ((1, 16, 14, 14), (16, 1, 3, 3), {"padding": 1, "groups": 16}),
    "image_filter": ((1, 1, 40, 70), (1, 1, 15, 15), {"padding": 7}),
    "channels_last": ((1, 12, 40, 16), (32, 16, 3, 3), {"padding": 1, "layout": "NHWC"}),
    "pointwise": ((1, 32, 16, 32), (64, 32, 1, 1), {}),
}


def reports_of(kernel, layer, dtype="float32"):
    x_shape, w_shape, keywords = LAYERS[layer]
    problem = make_problem(x_shape, w_shape, named_dtype(dtype), **keywords)
    order = operands.FROM_LAYOUT[problem.layout]
    x, w = (strided.empty_aligned(shape, problem.dtype) for shape in (x_shape, w_shape))
    x[...] = w[...] = 1
    y = strided.empty_aligned(operands.result_shape(problem, batched=True), problem.dtype)
    return watched(kernel, problem, x.transpose(order), w, y.transpose(order))


def accesses(report, space, kind):
    return [access for access in report.counters.traffic if (access.space, access.kind) == (space, kind)]
