"""Weight gradient as an implicit matrix product over the output pixels, in two steps without atomics.

weight_grad.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .implicit_gemm import aligned
from .parameters import is_wide, problem_struct, type_constants, window_constants
from .weight_grad_splits import cut_reasons, fastest, possible_cuts, splits_struct

THREADS = 256  # of finish_weight_grad
FEWEST_STAGES = 2  # of one split
TILES = ((16, 16), (16, 8), (8, 16), (8, 8))  # filters x columns, in EACH

# Beside the multiply-add itself, in the main loop, as compiled for floats: of blocks of 256 threads, of smaller ones.
SLOTS_PER_MULTIPLY_ADD = {"NONE": (0.35, 0.45), "CHANNELS": (0.18, 0.28)}
WAITING = cost.waiting("cupy_raw.weight_grad", like="cupy_raw.implicit_gemm")
THREAD_SLOTS = 600  # of each thread of a block beside: addresses, the first stage's wait, the store

passes = ("weight_grad",)


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return fastest(problem, device, TILES, FEWEST_STAGES, seconds)


def cuts(problem, device):
    return possible_cuts(problem, TILES, FEWEST_STAGES)


def seconds(problem, device, cut):
    """The busiest SM's blocks, then what the splits write and read again."""
    macs = cut.tile_k * cut.tile_m * cut.pixels
    beside = SLOTS_PER_MULTIPLY_ADD[together_as_planned(problem)][cut.threads < 256]
    slots = macs * (beside + cost.multiply_slots(problem, device)) + THREAD_SLOTS * cut.threads
    multiply = cost.block_seconds(device, math.prod(cut.grid(problem)), cut.threads, slots)
    return WAITING * multiply + cost.memory_seconds(problem, device) + cost.passing_seconds(device, cut.partial_bytes)


def why_not(problem, device):
    return cut_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device)) + 2 * cost.LAUNCH


def sources(problem, device, wide=False):
    """The kernels, for arrays as the layout has them: multiply, and add the splits."""
    return sources_of(problem, cut_for(problem, device), wide, together_as_planned(problem))


@lru_cache(maxsize=4096)
def sources_of(problem, cut, wide, together):
    constants = type_constants(problem, wide) + window_constants(problem)
    own = (("TILE_K", cut.tile_k), ("TILE_M", cut.tile_m), ("TOGETHER", together))
    multiply = CudaSource("weight_grad.cu", "conv2d_weight_grad", constants + own)
    inner = (("CHANNELS_INNER", 1),) if together == "CHANNELS" else ()
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", constants + inner)


def together_in(problem, x, grad_y):
    """Whether a thread may load several at once: CHANNELS where those of x, and grad_y's filters, lie so; or NONE."""
    size = vector_of(problem) * x.itemsize
    side_by_side = x.strides[1] == grad_y.strides[1] == x.itemsize
    vectors = all(aligned(image, size, (0, 2, 3)) for image in (x, grad_y))
    return "CHANNELS" if in_vectors(problem) and side_by_side and vectors else "NONE"


def together_as_planned(problem):
    """The same of fresh arrays in the problem's layout."""
    return "CHANNELS" if problem.layout == "NHWC" and in_vectors(problem) else "NONE"


def in_vectors(problem):
    """Whether the channels and filters of a group are whole vectors."""
    return problem.Cg % vector_of(problem) == problem.Kg % vector_of(problem) == 0


def vector_of(problem):
    """VECTOR of storage.cuh."""
    return 16 // problem.accumulate.itemsize


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut = cut_for(problem, device)
    kernels = sources_of(problem, cut, is_wide(problem, x, grad_w, grad_y, None), together_in(problem, x, grad_y))
    launch_both(problem, cut, cut.threads, kernels, x, grad_y, grad_w, workspace, stream)


def launch_both(problem, cut, threads, kernels, x, grad_y, grad_w, workspace, stream):
    """The two steps: a split's sums into the workspace, by blocks of `threads`; then the splits added."""
    multiply, finish = kernels
    struct, part = problem_struct(problem, x, grad_w, grad_y, None, None), splits_struct(problem, cut)
    launch(multiply, cut.grid(problem), threads, (x, grad_y, workspace, struct, part), stream=stream)
    weights = problem.K * problem.Cg * problem.R * problem.S
    launch(finish, ceil_div(weights, THREADS), THREADS, (workspace, grad_w, struct, part), stream=stream)
