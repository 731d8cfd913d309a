"""Kernels that are a column times a row: R + S multiply-adds for an output instead of R * S.

Whether a kernel is one is settled in two steps. First a test that costs as much as reading it: the row and the column
through its largest number, multiplied, must give the kernel. Then the singular value decomposition, which finds the
column and the row whose product comes closest, and how close: what is left over is an error of the result, relative
to its norm (for standard normal images, as accuracy.py has it), and may be no larger than the dtype's own rounding.

Source: Treitel and Shanks, The design of multistage separable planar filters, 1971.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from . import accuracy, arrays, device, dispatch

LARGEST = 1 << 16  # numbers in all kernels: decomposing more would take longer than it saves
ROUNDINGS = 8  # of the dtype: the kernels' own, both factors' and the decomposition's; half as many were measured


def factors(library, problem, w, options):
    """(columns (K, 1, R, 1), rows (K, 1, 1, S)) in w's library where two passes are exact enough and faster, else None.

    w (K, 1, R, S). On a GPU always None: looking at w there would wait for the device.
    """
    if min(problem.R, problem.S) == 1 or w.shape[0] * problem.R * problem.S > LARGEST or problem.N == 0:
        return None
    on_this_cpu = library.device(w, "in2")[0] == "cpu" and options["backend"] in ("auto", "numba_cpu")
    if not on_this_cpu or options["algorithm"] != "auto":
        return None
    if not worthwhile(problem, device.cpu(), options["max_error"], options["workspace_limit"]):
        return None
    found = decomposed(library.view(w, "in2")[:, 0], problem.dtype)
    if found is None:
        return None
    columns, rows = (as_array(library, part) for part in found)
    return columns[:, None, :, None], rows[:, None, None, :]


def two_passes(problem):
    """The problem by columns, and then by rows."""
    by_columns = replace(problem, S=1, padding=(problem.padding[0], (0, 0)))
    by_rows = replace(
        problem, C=problem.K, groups=problem.K, H=by_columns.P, R=1, padding=((0, 0), problem.padding[1])
    )  # fmt: skip
    return by_columns, by_rows


@lru_cache(maxsize=1024)
def worthwhile(problem, place, max_error, workspace_limit):
    """Whether two passes are allowed, what the decomposition may leave over included, and predicted to be faster."""
    passes, left_over = two_passes(problem), ROUNDINGS * accuracy.UNIT_ROUNDOFF[problem.dtype.name]
    if sum(accuracy.norm_relative(one, "depthwise") for one in passes) + left_over > max_error:
        return False
    whole, *parts = (predicted_seconds(one, place, max_error, workspace_limit) for one in (problem, *passes))
    return sum(parts) < whole


def predicted_seconds(problem, place, max_error, workspace_limit):
    """The time of the fastest kernel; infinite where none can run."""
    held = dispatch.candidates(problem, place, max_error, workspace_limit)
    return min((candidate.seconds for candidate in held if candidate.possible), default=float("inf"))


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


def as_array(library, array):
    if library is arrays.NumPy:
        return array
    import torch

    return torch.from_numpy(array)
