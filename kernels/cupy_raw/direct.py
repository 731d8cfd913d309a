"""Direct convolution: one thread, one output, straight from global memory. direct.cu tells the idea."""

from __future__ import annotations

from functools import lru_cache

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .parameters import (
    is_wide,
    layout_constants,
    problem_struct,
    size_reasons,
    store_constants,
    type_constants,
    window_constants,
)

THREADS = 256  # as in direct.cu

WAITING = cost.waiting("cupy_raw.direct")

passes = ("forward",)


def why_not(problem, device):
    return size_reasons(problem)


def workspace_bytes(problem, device):
    return 0


SLOTS_PER_MULTIPLY_ADD = 8  # two loads, their offsets and the edge's test beside it; the load units take as long


def predicted_seconds(problem, device):
    slots = problem.macs * (SLOTS_PER_MULTIPLY_ADD - 1 + cost.multiply_slots(problem, device))
    outputs = problem.N * problem.K * problem.P * problem.Q
    blocks = ceil_div(outputs, THREADS)
    compute = cost.block_seconds(device, blocks, THREADS, slots / blocks)
    return max(WAITING * compute, cost.memory_seconds(problem, device)) + cost.LAUNCH


@lru_cache(maxsize=4096)
def source(problem, device, wide=False):
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    return CudaSource("direct.cu", "conv2d_direct", constants + layout_constants(problem))


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y."""
    outputs = problem.N * problem.K * problem.P * problem.Q
    struct = problem_struct(problem, x, w, y, bias, residual)
    kernel = source(problem, device, is_wide(problem, x, w, y, residual))
    launch(kernel, ceil_div(outputs, THREADS), THREADS, (x, w, y, bias, residual, struct), stream=stream)
