"""Input gradient of a strided depthwise convolution, all phases in one launch. depthwise_input_grad.cu tells the idea.

This file cuts grad_x into tiles and launches. To depthwise_tiles.py the gradient is a convolution over grad_y: of
stride 1, with the rows and columns that one u or v meets as its window, and stride x stride outputs at each place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from .. import gpu_cost as cost
from ..launching import CudaSource, ceil_div, launch
from . import depthwise_tiles as forward
from .depthwise import is_contiguous, tile_struct
from .depthwise_tiles import ALIGNED, shared_words
from .implicit_gemm import address_of
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants, window_constants

MOST_TAPS = 121  # what the unrolled loops over a window may come to
MOST_SUMS = 32  # of a thread
MOST_PRODUCTS = 600  # of a thread, unrolled
MOST_FROM_L2 = 1.45  # times the bytes of the arrays, as estimated: a small tile of a wide window reads more halos
STORE_SLOTS = 12  # issue slots of one output: to shared memory and out of it

passes = ("input_grad",)


@lru_cache(maxsize=4096)
def over_grad_y(problem):
    """The gradient as a convolution of stride 1 over grad_y, an output for each u and v."""
    down = axis(problem.H, problem.P, problem.R, problem.stride[0], problem.padding[0][0], problem.dilation[0])
    across = axis(problem.W, problem.Q, problem.S, problem.stride[1], problem.padding[1][0], problem.dilation[1])
    return replace(
        problem, H=problem.P, W=problem.Q, R=down[0], S=across[0], stride=(1, 1), padding=(down[1], across[1]),
        dilation=(1, 1), pass_="forward",
    )  # fmt: skip


def axis(size, outputs, window, stride, padding, dilation):
    """How many of grad_y's rows a u meets, and the padding that makes their number; below 0 where some meet none."""
    first, last = padding // stride, (padding + size - 1) // stride
    reach = (window - 1) * dilation // stride
    return reach + 1, (reach - first, last + 1 - outputs)


@lru_cache(maxsize=4096)
def tile_for(problem, device):
    """The tile that fits shared memory and is predicted to be the fastest; None where none fits."""
    places, least, possible = over_grad_y(problem), forward.least_bytes_of(problem), list(tiles(problem))
    of = (lambda _, tile: block_bytes(problem, tile)), (lambda _, device, tile: seconds(problem, places, device, tile))
    tile = forward.best(places, device, possible, *of, least_bytes=least)
    busy = [other for other in possible if forward.moved(places, other, of[0]) <= MOST_FROM_L2 * least]
    return tile and forward.busier(problem, device, tile, busy, *of)


def tiles(problem):
    cut = forward.tiles(over_grad_y(problem))
    return (with_outputs(problem, tile) for tile in cut if few_enough(problem, tile))


def few_enough(problem, tile):
    """Whether a thread's sums fit its registers, and its unrolled products the cache of instructions."""
    sums, products = tile.rows * phases(problem), tile.rows * problem.R * problem.S
    return tile.rows == forward.ROWS[0] or (sums <= MOST_SUMS and products <= MOST_PRODUCTS)


def phases(problem):
    return problem.stride[0] * problem.stride[1]


def with_outputs(problem, tile):
    """`tile` with room for its part of grad_x and for the whole window."""
    outputs = tile.planes * tile.strips * tile.rows * tile.columns * tile.side * phases(problem)
    weights_at = tile.outputs_at + ceil_div(outputs + ALIGNED, ALIGNED) * ALIGNED
    words = weights_at + problem.R * problem.S * (tile.planes * tile.side | 1)
    return tile._replace(weights_at=weights_at, words=words)


def block_bytes(problem, tile):
    """What a block moves in the mean, in whole sectors."""
    places = over_grad_y(problem)
    grad_y, outputs = forward.staged_elements(places, tile), forward.outputs_of(places, tile) * phases(problem)
    rows = tile.strips * tile.rows
    apart = forward.torn_sectors(places, tile, rows + places.R - 1 + rows * problem.stride[0])
    weights = tile.planes * tile.side * problem.R * problem.S
    return (grad_y + outputs + weights) * problem.dtype.itemsize + forward.SECTOR * apart


def seconds(problem, places, device, tile):
    slots = tile.threads * thread_slots(problem, device, tile)
    return forward.block_seconds(places, device, tile, slots, block_bytes(problem, tile))


def thread_slots(problem, device, tile):
    """Issue slots of one thread."""
    places, taps = over_grad_y(problem), problem.R * problem.S
    multiply = taps * tile.rows * cost.multiply_slots(problem, device) + 2 * problem.S * (tile.rows + places.R) + taps
    words = forward.staged_elements(places, tile)
    loading = forward.staging_slots(places, tile) * words + forward.WEIGHT_SLOTS * taps * tile.planes * tile.side
    each = multiply + STORE_SLOTS * tile.rows * phases(problem)
    return forward.THREAD_SLOTS + loading / tile.threads + tile.turns * each


def why_not(problem, device):
    if (problem.Cg, problem.Kg) != (1, 1):
        return [f"takes one channel and one filter per group, this problem has {problem.Cg} and {problem.Kg}"]
    reasons = size_reasons(problem)
    if problem.R * problem.S > MOST_TAPS:
        reasons.append(f"windows of at most {MOST_TAPS} taps, got {problem.R} x {problem.S}")
    if problem.activation or problem.has_bias or problem.has_residual:
        reasons.append("adds no bias or residual and applies no activation")
    if reasons:
        return reasons
    tile = tile_for(problem, device)
    return [forward.too_large(problem)] if tile is None else forward.grid_reasons(over_grad_y(problem), tile)


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    tile = tile_for(problem, device)
    return max(seconds(problem, over_grad_y(problem), device, tile), cost.memory_seconds(problem, device)) + cost.LAUNCH


def source(problem, device, wide=False):
    """The kernel for arrays without gaps."""
    tile, places = tile_for(problem, device), over_grad_y(problem)
    together = forward.whole_rows(places, tile)
    return source_of(problem, tile, wide, forward.staging(places, tile, True), together)


@lru_cache(maxsize=4096)
def source_of(problem, tile, wide, staging, side_by_side):
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (("STAGING", staging), ("SIDE", tile.side), ("SHARED_WORDS", shared_words(problem, tile)))
    constants += (("ROWS", tile.rows), ("SEVERAL", int(tile.planes > 1)), ("TURNS", tile.turns))
    constants += (("SIDE_BY_SIDE", int(side_by_side)),)
    return CudaSource("depthwise_input_grad.cu", "conv2d_depthwise_input_grad", constants)


def run(problem, device, grad_y, w, grad_x, bias=None, residual=None, workspace=None, stream=None):
    """Write the input gradient into grad_x (N, C, H, W), from grad_y (N, K, P, Q) and w (K, 1, R, S)."""
    tile, places = tile_for(problem, device), over_grad_y(problem)
    how = forward.staging(places, tile, is_contiguous(problem, grad_y), address_of(grad_y) % 16 == 0)
    together = is_contiguous(problem, grad_x) and forward.whole_rows(places, tile)
    kernel = source_of(problem, tile, is_wide(problem, grad_x, w, grad_y, None), how, together)
    struct = problem_struct(problem, grad_x, w, grad_y, None, None)
    launch(kernel, tile.grid(places), tile.threads, (grad_y, w, grad_x, struct, tile_struct(places, tile)),
           stream=stream)  # fmt: skip
