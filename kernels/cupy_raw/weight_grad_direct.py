"""Weight gradient by one block per filter, channel and few taps: for depthwise layers and others of small groups.

weight_grad_direct.cu tells the idea; this file splits the pixels and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div
from .parameters import is_wide, type_constants, window_constants
from .weight_grad import cut_reasons, launch_both

THREADS = 256
MOST_TAPS = 128  # times the bytes of a sum, at once
FEWEST_PIXELS = 8 * THREADS  # of one split: the pairwise sums must pay
MOST_SPLITS = 256
BLOCKS_PER_SM = 8  # to have, if the pixels are enough
WAITING = cost.waiting("cupy_raw.weight_grad_direct", like="cupy_raw.direct")

passes = ("weight_grad",)


class Cut(NamedTuple):
    """How pixels and taps are cut into blocks; filters and columns as `struct Splits` has them."""

    chunks: int
    filters: int
    columns: int
    pixels: int
    splits: int
    partial_bytes: int

    def grid(self, problem):
        return problem.K * problem.Cg * self.chunks, self.splits


class Slots(NamedTuple):
    """Issue slots beside the multiply-adds, counted in the machine code: of a tap, of a pixel, to pass a sum on."""

    tap: int
    pixel: int
    sum: int


SLOTS = Slots(tap=5, pixel=40, sum=3)


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    chunks = ceil_div(problem.R * problem.S, MOST_TAPS // problem.accumulate.itemsize)
    return cut_of(problem, device, chunks, FEWEST_PIXELS)


def cut_of(problem, device, chunks, fewest_pixels):
    """Taps in so many chunks, and as many splits as fill the GPU, none of fewer pixels."""
    wanted = ceil_div(BLOCKS_PER_SM * cost.sm_count(device), problem.K * problem.Cg * chunks)
    splits = max(1, min(wanted, problem.reduction // fewest_pixels, MOST_SPLITS))
    pixels = ceil_div(problem.reduction, splits)
    splits = ceil_div(problem.reduction, pixels)
    columns = problem.Cg * problem.R * problem.S
    return Cut(chunks, problem.Kg, columns, pixels, splits, splits * problem.K * columns * problem.accumulate.itemsize)


def why_not(problem, device):
    return cut_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    cut = cut_for(problem, device)
    taps = ceil_div(problem.R * problem.S, cut.chunks)
    return cut_seconds(problem, device, cut, taps, THREADS, SLOTS, WAITING)


def cut_seconds(problem, device, cut, taps, threads, slots, waiting):
    """Of blocks of `threads` with so many taps at once."""
    each = taps * (slots.tap + cost.multiply_slots(problem, device)) + slots.pixel
    of_block = cut.pixels * each + threads * taps * slots.sum
    multiply = waiting * cost.block_seconds(device, math.prod(cut.grid(problem)), threads, of_block)
    return max(multiply, cost.memory_seconds(problem, device, 2 * cut.partial_bytes)) + 2 * cost.LAUNCH


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
