"""Padding that is no zeros: it is put around x before a kernel, and its gradient is folded back onto x.

Kernels pad with zeros only, so they are given a problem whose input holds its padding already; device_arrays.py has the
copies.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .errors import UnsupportedError
from .problem import LARGEST_ARRAY, integer

NUMPY_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
NO_PADDING = ((0, 0), (0, 0))


def padded_before(problem, padding_mode, workspace_limit):
    """What is left to a kernel, which pads with zeros only: the problem, and the bytes beside a padded input."""
    if padding_mode == "zeros" or problem.padding == NO_PADDING:
        return problem, workspace_limit
    check_padding_mode(problem, padding_mode)
    problem = with_padding_inside(problem)
    return problem, limit_after(workspace_limit, input_bytes(problem), "the padded input")


def input_bytes(problem) -> int:
    """What x takes in memory."""
    return math.prod(problem.x_shape) * problem.dtype.itemsize


def with_padding_inside(problem):
    """The same problem on an input that holds its padding already, since kernels pad with zeros only."""
    (top, bottom), (left, right) = problem.padding
    return replace(problem, H=problem.H + top + bottom, W=problem.W + left + right, padding=NO_PADDING)


def check_padding_mode(problem, padding_mode):
    """Reflection needs more rows than padding, wrapping at least as many; replication always works."""
    beyond = {"reflect": 1, "circular": 0}.get(padding_mode)
    if beyond is None:
        return
    for name, size, padding in (("H", problem.H, problem.padding[0]), ("W", problem.W, problem.padding[1])):
        if max(padding) + beyond > size:
            raise ValueError(
                f"padding: at most {size - beyond} needed for padding_mode={padding_mode!r} with {name} = {size}, "
                f"got {max(padding)}"
            )


def limit_after(workspace_limit, count, what):
    """What is left of `workspace_limit` for a kernel once `count` bytes for `what` are taken."""
    if workspace_limit is None:
        return None
    left = integer("workspace_limit", workspace_limit, least=0, most=LARGEST_ARRAY) - count
    if left < 0:
        raise UnsupportedError(f"workspace_limit: {count:,} bytes needed for {what} alone, got {workspace_limit:,}")
    return left
