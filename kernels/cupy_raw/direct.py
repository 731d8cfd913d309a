"""Direct convolution: one thread, one output, straight from global memory. direct.cu tells the idea."""

from __future__ import annotations

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .parameters import layout_constants, problem_struct, size_reasons, store_constants, window_constants

THREADS = 256  # as in direct.cu

passes = ("forward",)


def why_not(problem, device):
    return size_reasons(problem)


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    """Bound by the load units: two loads per multiply-add, LOADS_PER_CYCLE lanes of them per SM."""
    cycles = 2 * problem.macs / (cost.LOADS_PER_CYCLE * cost.sm_count(device))
    return max(cycles / cost.CLOCK, cost.memory_seconds(problem, device)) + cost.LAUNCH


def source(problem):
    constants = window_constants(problem) + store_constants(problem) + layout_constants(problem)
    return CudaSource("direct.cu", "conv2d_direct", constants)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y."""
    outputs = problem.N * problem.K * problem.P * problem.Q
    struct = problem_struct(problem, x, w, y, bias, residual)
    launch(source(problem), ceil_div(outputs, THREADS), THREADS, (x, w, y, bias, residual, struct), stream=stream)
