"""Weight gradient as an implicit matrix product over the output pixels, in two steps without atomics.

weight_grad.cu tells the idea; this file chooses the tile and the splits, and launches.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from .implicit_gemm import aligned
from .parameters import element_strides, is_wide, problem_struct, type_constants, window_constants
from .weight_grad_splits import DEPTH, cut_reasons, fastest, possible_cuts, splits_struct

OFFSETS = "filter", "filter_image", "column", "column_row", "column_image"
COUNTS = "place", "places", "h", "w", "height", "width"
STEPS = np.dtype([*((name, "i8") for name in OFFSETS), *((name, "i4") for name in COUNTS)], align=True)
NO_STEPS = np.zeros((), STEPS)

THREADS = 256  # of finish_weight_grad
FEWEST_STAGES = 2  # of one split
TILES = ((16, 16), (16, 8), (8, 16), (8, 8))  # filters x columns, in EACH

# Beside the multiply-add itself, in the loop as compiled: by the bytes of a sum, of blocks of 256, 128 and 64 threads.
SLOTS_PER_MULTIPLY_ADD = {
    4: {"NONE": (0.36, 0.45, 0.48), "PIXELS": (0.19, 0.21, 0.23), "CHANNELS": (0.18, 0.29, 0.29)},
    8: {"NONE": (0.92, 1.1, 1.25), "PIXELS": (0.67, 0.72, 0.77), "CHANNELS": (0.7, 1.1, 1.1)},
}
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
    beside = slots_beside(problem, cut, together_as_planned(problem))
    slots = macs * (beside + cost.multiply_slots(problem, device)) + THREAD_SLOTS * cut.threads
    multiply = cost.block_seconds(device, math.prod(cut.grid(problem)), cut.threads, slots)
    return WAITING * multiply + cost.memory_seconds(problem, device) + cost.passing_seconds(device, cut.partial_bytes)


def slots_beside(problem, cut, together):
    """Of SLOTS_PER_MULTIPLY_ADD."""
    return SLOTS_PER_MULTIPLY_ADD[problem.accumulate.itemsize][together][(256, 128, 64).index(cut.threads)]


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
    inner = (("CHANNELS_INNER", 1),) if together != "NONE" else ()
    return multiply, CudaSource("finish_weight_grad.cu", "finish_weight_grad", constants + inner)


def together_in(problem, x, grad_y):
    """CHANNELS where those of x, and filters of grad_y, are vectors; PIXELS where a thread can take several channels of
    each, and grad_y's rows follow one another as its pixels do; or NONE.
    """
    size = vector_of(problem) * x.itemsize
    side_by_side = x.strides[1] == grad_y.strides[1] == x.itemsize
    vectors = all(aligned(image, size, (0, 2, 3)) for image in (x, grad_y))
    if side_by_side and vectors and in_multiples(problem, vector_of(problem)):
        return "CHANNELS"
    rows_join = grad_y.strides[2] == problem.Q * grad_y.strides[3]
    return "PIXELS" if rows_join and has_runs(problem) else "NONE"


def together_as_planned(problem):
    """The same of fresh arrays in the problem's layout."""
    if problem.layout == "NHWC" and in_multiples(problem, vector_of(problem)):
        return "CHANNELS"
    return "PIXELS" if has_runs(problem) else "NONE"


def has_runs(problem):
    """Whether a thread's channels are of one tap, and what PixelWalk counts, up to twice an image, fits 32 bits."""
    (stride_h, stride_w), (down, right) = problem.stride, problem.dilation
    height, width = problem.P * stride_h + problem.R * down, problem.Q * stride_w + problem.S * right
    return in_multiples(problem, 2 * vector_of(problem)) and max(height, width, problem.P * problem.Q) < 2**30


def in_multiples(problem, count):
    """Whether the channels and filters of a group are whole multiples of `count`."""
    return problem.Cg % count == problem.Kg % count == 0


def vector_of(problem):
    """VECTOR of storage.cuh."""
    return 16 // problem.accumulate.itemsize


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut, together = cut_for(problem, device), together_in(problem, x, grad_y)
    kernels = sources_of(problem, cut, is_wide(problem, x, grad_w, grad_y, None), together)
    steps = steps_struct(problem, x.strides, grad_y.strides) if together == "PIXELS" else NO_STEPS
    launch_both(problem, cut, cut.threads, kernels, x, grad_y, grad_w, workspace, stream, (steps,))


@lru_cache(maxsize=4096)
def steps_struct(problem, x_strides, y_strides):
    """`struct Steps`."""
    item, (stride_h, stride_w) = problem.dtype.itemsize, problem.stride
    x_n, _, x_h, x_w = element_strides("x", x_strides, item)
    y_n, _, _, y_w = element_strides("grad_y", y_strides, item)
    rows, pixels = divmod(DEPTH, problem.Q)
    images, rows = divmod(rows, problem.P)
    h, w, height, width = rows * stride_h, pixels * stride_w, problem.P * stride_h, problem.Q * stride_w
    place, places = rows * problem.Q + pixels, problem.P * problem.Q
    fields = {
        "filter": images * y_n + place * y_w, "filter_image": y_n - places * y_w,
        "column": images * x_n + h * x_h + w * x_w, "column_row": stride_h * x_h - width * x_w,
        "column_image": x_n - height * x_h,
        "place": place, "places": places, "h": h, "w": w, "height": height, "width": width,
    }  # fmt: skip
    struct = np.zeros((), STEPS)
    for name, value in fields.items():
        struct[name] = value
    struct.flags.writeable = False
    return struct


def launch_both(problem, cut, threads, kernels, x, grad_y, grad_w, workspace, stream, more=()):
    """The two steps: a split's sums into the workspace, by blocks of `threads`; then the splits added. more: further
    arguments of the first.
    """
    multiply, finish = kernels
    struct, part = problem_struct(problem, x, grad_w, grad_y, None, None), splits_struct(problem, cut)
    launch(multiply, cut.grid(problem), threads, (x, grad_y, workspace, struct, part, *more), stream=stream)
    weights = problem.K * problem.Cg * problem.R * problem.S
    launch(finish, ceil_div(weights, THREADS), THREADS, (workspace, grad_w, struct, part), stream=stream)
