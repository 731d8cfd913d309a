"""Kernels that are a column times a row: R + S multiply-adds for an output instead of R * S.

Whether a kernel is one is settled in two steps. First a test that costs as much as reading it: the row and the column
through its largest number, multiplied, must give the kernel. Then the singular value decomposition, which finds the
column and the row whose product comes closest, and how close: what is left over is an error of the result, relative
to its norm (for standard normal images, as accuracy.py has it), and may be no larger than the dtype's own rounding.

plan.py and signal.py ask `chosen` first, and dispatch.py's list if it has none.

Source: Treitel and Shanks, The design of multistage separable planar filters, 1971.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from . import accuracy, choosing, dispatch, strided
from .problem import ConvProblem
from .workspace import aligned

LARGEST = 1 << 16  # numbers in all kernels: decomposing more would take longer than it saves
ROUNDINGS = 8  # of the dtype: the kernels' own, both factors' and the decomposition's; half as many were measured


@dataclass(frozen=True, slots=True)
class Pass:
    """One of the two convolutions: its problem, kernel and weights."""

    problem: ConvProblem
    chosen: dispatch.Chosen
    w: Any

    def pack(self, place, memory):
        """Write the weights as its kernel takes them, if it wants them packed."""
        if self.chosen.packed_bytes:
            self.chosen.kernel.pack(self.problem, place, self.w, memory)

    def run(self, place, x, packed, y, bias, residual, workspace):
        w = packed if self.chosen.packed_bytes else self.w
        self.chosen.kernel.run(self.problem, place, x, w, y, bias, residual, workspace)


@dataclass(frozen=True, slots=True)
class TwoPasses:
    """In the place of a kernel: a convolution by columns into the workspace, and from there one by rows."""

    by_columns: Pass
    by_rows: Pass

    @property
    def between_bytes(self):
        return aligned(math.prod(self.by_columns.problem.y_shape) * self.by_columns.problem.dtype.itemsize)

    def pack(self, problem, place, w, packed):
        for one, memory in zip((self.by_columns, self.by_rows), self.parts(packed)):
            one.pack(place, memory)

    def parts(self, packed):
        first = self.by_columns.chosen.packed_bytes
        return packed[:first], packed[first:]

    def run(self, problem, place, x, packed, y, bias=None, residual=None, workspace=None, stream=None):
        first, second = self.parts(packed)
        between = between_array(self.by_columns.problem, workspace[: self.between_bytes], x.dtype)
        rest = workspace[self.between_bytes :]
        self.by_columns.run(place, x, first, between, None, None, rest)
        self.by_rows.run(place, between, second, y, bias, residual, rest)


def between_array(problem, memory, dtype):
    """(N, K, P, Q) in the problem's layout."""
    N, K, P, Q = problem.y_shape
    numbers = memory.view(dtype)[: N * K * P * Q]
    if problem.layout == "NHWC":
        return numbers.reshape(N, P, Q, K).transpose(0, 3, 1, 2)
    return numbers.reshape(N, K, P, Q)


def chosen(problem, place, w, backend, algorithm, max_error, workspace_limit, planned=False, tune=False):
    """Two passes as dispatch.Chosen, where they are exact enough and predicted to be faster; else None.

    w (K, 1, R, S), on the host: on a GPU looking at w would wait for it.
    """
    if problem.Cg != 1 or min(problem.R, problem.S) == 1 or problem.N == 0 or math.prod(problem.w_shape) > LARGEST:
        return None
    if place.kind != "cpu" or algorithm != "auto" or backend not in ("auto", "numba_cpu"):
        return None
    if not worthwhile(problem, place, max_error, workspace_limit, planned):
        return None
    found = decomposed(w[:, 0], problem.dtype)
    return found and settled(problem, place, found, max_error, workspace_limit, planned, tune)


def settled(problem, place, factors, *asked):
    columns, rows = (strided.as_storage(part) for part in factors)
    weights = columns[:, None, :, None], rows[:, None, None, :]
    by_columns, by_rows = (
        Pass(one, choosing.chosen(one, place, "auto", "auto", *asked), w)
        for one, w in zip(two_passes(problem), weights)
    )
    both = TwoPasses(by_columns, by_rows)
    packed = by_columns.chosen.packed_bytes + by_rows.chosen.packed_bytes
    workspace = both.between_bytes + max(one.chosen.workspace_bytes for one in (by_columns, by_rows))
    _, workspace_limit, *_ = asked
    if workspace_limit is not None and packed + workspace > workspace_limit:
        return None
    name = " + ".join(one.chosen.name for one in (by_columns, by_rows))
    return dispatch.Chosen(name, by_rows.chosen.family, both, packed, workspace)


def two_passes(problem):
    """The problem by columns, and then by rows, which does what there is to do at the store."""
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    by_columns = replace(
        problem, S=1, stride=(stride_h, 1), dilation=(dilation_h, 1), padding=(problem.padding[0], (0, 0)),
        activation=None, slope=0.0, has_bias=False, has_residual=False,
    )  # fmt: skip
    by_rows = replace(
        problem, C=problem.K, groups=problem.K, H=by_columns.P, R=1, stride=(1, stride_w), dilation=(1, dilation_w),
        padding=((0, 0), problem.padding[1]),
    )  # fmt: skip
    return by_columns, by_rows


@lru_cache(maxsize=1024)
def worthwhile(problem, place, max_error, workspace_limit, planned=False):
    """Whether two passes are allowed, what the decomposition may leave over included, and predicted to be faster."""
    whole, *passes = (
        fastest(one, place, max_error, workspace_limit, planned) for one in (problem, *two_passes(problem))
    )
    if None in passes:
        return False
    left_over = ROUNDINGS * accuracy.UNIT_ROUNDOFF[problem.dtype.name]
    if sum(one.error for one in passes) + left_over > max_error:
        return False
    return whole is None or sum(one.seconds for one in passes) < whole.seconds


def fastest(problem, place, max_error, workspace_limit, planned):
    """The fastest predicted of the kernels that can run, None where none can."""
    held = dispatch.candidates(problem, place, max_error, workspace_limit, planned)
    return min((one for one in held if one.possible), key=lambda one: one.seconds, default=None)


def decomposed(kernels, dtype):
    """(columns (K, R), rows (K, S)) of kernels (K, R, S) that are all products; None if one is not."""
    rounding = accuracy.UNIT_ROUNDOFF[np.dtype(dtype).name]
    kernels = kernels.astype(np.float64)
    if not all(crosses(kernel, 16 * rounding) for kernel in kernels):
        return None
    left, values, right = np.linalg.svd(kernels, full_matrices=False)
    if (np.linalg.norm(values[:, 1:], axis=1) > ROUNDINGS / 2 * rounding * values[:, 0]).any():
        return None
    scale = np.sqrt(values[:, :1])
    return (left[:, :, 0] * scale).astype(dtype), (right[:, 0] * scale).astype(dtype)


def crosses(kernel, tolerance):
    """Whether the row and the column through the largest number, multiplied, give the kernel."""
    r, s = np.unravel_index(np.argmax(np.abs(kernel)), kernel.shape)
    with np.errstate(invalid="ignore"):  # infinities and NaN: no
        return bool(
            np.all(np.abs(kernel * kernel[r, s] - np.outer(kernel[:, s], kernel[r])) <= tolerance * kernel[r, s] ** 2)
        )
