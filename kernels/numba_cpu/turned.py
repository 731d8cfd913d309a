"""Channels last by way of NCHW: x turned before, y after, squares of W x W numbers transposed in registers.

    x   [pixel][channel]   ->   [channel][pixel]   ->   the kernel in NCHW   ->   [filter][pixel]   ->   [pixel][filter]

For blocked.py's single calls: it reads weights as they lie, and where a map has few pixels these are most of what is
read. With channels last it would gather x number by number and store y so, which took 0.4 to 0.9 of its time on maps
of 7 x 7, and to pack the weights for blocked_by_filters.py takes longer than to turn x and y.

The last square of a row or column overlaps the one before, so nothing is masked: maps and channels fill a vector.
Smaller maps are not turned: by NumPy that took longer than blocked_by_filters.py or Winograd as they lie (two Zen 4
cores: 256 channels of 3 x 3 to 256 filters under 1 x 1 42 and 26 microseconds, 128 of 5 x 5 under 3 x 3 81 and 66).
"""

import math
import struct
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numba import from_dtype
from numba.core import types

from .call import address
from .compilation import compiled
from .microkernel import CLOCK, vector_type
from .threads import lines, run_tasks, task_loop
from .tracing import load, loop, minimum, store, traced, transpose
from .vectors import lanes, record_at

# As 14 x 14 and 7 x 7 with 512 to 2048 channels take, whose rows are 2 KB apart and more: 3, and 8 in hours in which
# what one core writes comes slowly to the other (two Zen 4 cores).
CYCLES_PER_NUMBER = 7.0
JOB_SECONDS = 3e-6

FIELDS = ("source", "source_image", "source_row", "to", "to_image", "to_row", "rows", "columns", "blocks")
TURN = from_dtype(np.dtype([(name, "i8") for name in FIELDS]))


@lru_cache(maxsize=1024)
def serves(problem) -> bool:
    """Could arrays of this problem be turned?"""
    if problem.layout != "NHWC" or problem.dtype != problem.accumulate:
        return False
    shortest = min(problem.Cg, problem.Kg, problem.H * problem.W, problem.P * problem.Q)
    return shortest >= lanes(problem.dtype)


def takes(x, y, residual) -> bool:
    """Are channels neighbours in these arrays, and rows without a gap?"""
    return all(array is None or is_matrix(array) for array in (x, y, residual))


def is_matrix(array) -> bool:
    _, channel, row, pixel = array.strides
    return channel == array.itemsize and row == array.shape[3] * pixel


def build(dtype_name):
    """Task: W columns of one image's matrix, which become W rows."""
    V = vector_type(dtype_name)
    W, item = V.count, V.item_bytes

    @traced(types.void)
    def turn(source, source_row, to, to_row, rows):
        def square(i):
            first = minimum(i * W, rows - W)
            numbers = [load(V, source + source_row * (first + k)) for k in range(W)]
            for k, vector in enumerate(transpose(numbers)):
                store(to + to_row * k + first * item, vector)

        loop((rows + (W - 1)) // W, square)

    def task(call_address, index, worker):
        call = record_at(TURN, call_address)
        n, column = index // call.blocks, min(index % call.blocks * W, call.columns - W)
        source = call.source + n * call.source_image + column * item
        turn(source, call.source_row, call.to + n * call.to_image + column * call.to_row, call.to_row, call.rows)

    return task_loop(task)


@lru_cache(maxsize=1024)
def in_nchw(problem):
    return replace(problem, layout="NCHW")


@lru_cache(maxsize=1024)
def places(problem):
    """Where in the workspace x, y and residual lie in NCHW, and where they end; each begins on a cache line."""
    item = problem.dtype.itemsize
    x_bytes, y_bytes = (lines(item * math.prod(shape)) for shape in (problem.x_shape, problem.y_shape))
    return 0, x_bytes, x_bytes + y_bytes, x_bytes + y_bytes * (2 if problem.has_residual else 1)


def seconds(problem, device) -> float:
    """Predicted, of turning x, y and residual."""
    numbers = places(problem)[-1] / problem.dtype.itemsize
    jobs = 3 if problem.has_residual else 2
    return jobs * JOB_SECONDS + CYCLES_PER_NUMBER * numbers / CLOCK / device.threads


def run(problem, device, x, y, residual, workspace, run_in_nchw):
    """Turn what comes, call run_in_nchw(problem, x, y, residual, workspace) in NCHW, turn what it wrote."""
    x_at, y_at, residual_at, end = places(problem)
    own_x = np.ndarray(problem.x_shape, problem.dtype, workspace, x_at)
    own_y = np.ndarray(problem.y_shape, problem.dtype, workspace, y_at)
    own_residual = None
    to_nchw(x, own_x, device)
    if residual is not None:
        own_residual = np.ndarray(problem.y_shape, problem.dtype, workspace, residual_at)
        to_nchw(residual, own_residual, device)
    run_in_nchw(in_nchw(problem), own_x, own_y, own_residual, workspace[end:])
    from_nchw(own_y, y, device)


def to_nchw(array, turned, device):
    N, C, H, W = array.shape
    turn(array, array.strides[3], turned, H * W * array.itemsize, (N, H * W, C), device)


def from_nchw(turned, array, device):
    N, C, H, W = array.shape
    turn(turned, H * W * array.itemsize, array, array.strides[3], (N, C, H * W), device)


def turn(source, source_row, to, to_row, shape, device):
    N, rows, columns = shape
    blocks = -(-columns // lanes(source.dtype))
    fields = (
        address(source), source.strides[0], source_row, address(to), to.strides[0], to_row, rows, columns, blocks,
    )  # fmt: skip
    run_tasks(compiled(build, source.dtype.name), struct.pack("9q", *fields), N * blocks, device.threads)
