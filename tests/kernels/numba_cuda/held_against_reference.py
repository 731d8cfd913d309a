"""One case through a Numba CUDA kernel and its launcher, against the float64 reference; for the simulated suites."""

import numpy as np

import convlib
from convlib import device, operands, strided
from convlib.verification.problems import arrays_of, logical_arrays
from tests.kernels.test_every_kernel import assert_close

SIMULATOR = device.simulator()


def check(kernel, algorithm, case, on=SIMULATOR):
    """Run `case` with a NaN-filled output and workspace; every output must be right, and exactly so for integers."""
    problem = case.problem()
    assert kernel.why_not(problem, on) == []
    x, w, bias, residual, out = arrays_of(case)
    views = [strided.as_storage(view) for view in logical_arrays(case, x, w, bias, residual)]
    y = strided.as_storage(out.transpose(operands.FROM_LAYOUT[problem.layout]))
    workspace = np.full(kernel.workspace_bytes(problem, on), 0xFF, np.uint8)  # NaN in every floating-point type

    kernel.run(problem, on, *views[:2], y, *views[2:], workspace=workspace)

    assert_close(case, algorithm, out, x, w, bias, residual)


def check_through_conv2d(algorithm, case):
    """The same through the public function, which finds the kernel, its views and its workspace itself."""
    x, w, bias, residual, out = arrays_of(case)
    call = {**case.keywords, "backend": "numba_cuda", "algorithm": algorithm}
    y = convlib.conv2d(x, w, bias, residual=residual, out=out, **call)
    assert y is out
    assert_close(case, algorithm, y, x, w, bias, residual)
