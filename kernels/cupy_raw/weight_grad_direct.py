"""Weight gradient by one block per filter, channel and few taps: for depthwise layers and others of small groups.

weight_grad_direct.cu tells the idea; this file splits the pixels and launches.
"""

from __future__ import annotations

from functools import lru_cache

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div
from .parameters import is_wide, type_constants, window_constants
from .weight_grad import launch_both
from .weight_grad_splits import Slots, cut_reasons, direct_cut, direct_seconds

THREADS = 256
MOST_TAPS = 128  # times the bytes of a sum, at once
FEWEST_PIXELS = 8 * THREADS  # of one split: the pairwise sums must pay
SLOTS = Slots(tap=5, pixel=40, sum=3)
WAITING = cost.waiting("cupy_raw.weight_grad_direct", like="cupy_raw.direct")

passes = ("weight_grad",)


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    chunks = ceil_div(problem.R * problem.S, MOST_TAPS // problem.accumulate.itemsize)
    return direct_cut(problem, device, chunks, FEWEST_PIXELS)


def why_not(problem, device):
    return cut_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    cut = cut_for(problem, device)
    taps = ceil_div(problem.R * problem.S, cut.chunks)
    return direct_seconds(problem, device, cut, taps, THREADS, SLOTS, WAITING)


@lru_cache(maxsize=4096)
def sources(problem, device, wide=False):
    """The kernels: multiply and sum, and add the splits."""
    constants = type_constants(problem, wide) + window_constants(problem)
    multiply = CudaSource("weight_grad_direct.cu", "conv2d_weight_grad_direct", constants)
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", constants)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    kernels = sources(problem, device, is_wide(problem, x, grad_w, grad_y, None))
    launch_both(problem, cut_for(problem, device), THREADS, kernels, x, grad_y, grad_w, workspace, stream)
