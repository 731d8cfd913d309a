"""convlib's own candidates: conv2d, plan, plan at MNN's accuracy, and every kernel by itself.

Each writes into a result of its own (`out=`), as the peers do whose interface has that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import convlib
from convlib import accuracy, device, dispatch

from .candidate import Candidate
from .cases import Case, Operands
from .gate import FAST_MAX_ERROR

CONV2D, PLAN, FAST_PLAN = "convlib conv2d", "convlib plan", "convlib plan, max_error 1e-3"


def makers(case: Case, max_error: float = accuracy.DEFAULT_MAX_ERROR) -> dict[str, Callable]:
    """conv2d and plan under `algorithm="auto"`; plan once more where a larger error changes its choice."""
    found = {CONV2D: partial(conv2d, max_error=max_error), PLAN: partial(plan, max_error=max_error)}
    if choice(case, FAST_MAX_ERROR) != choice(case, max_error):
        found[FAST_PLAN] = partial(plan, max_error=FAST_MAX_ERROR, name=FAST_PLAN)
    return found


def kernel_makers(case: Case) -> dict[str, Callable]:
    """Every kernel for this CPU that can run the case, forced by name, through conv2d."""
    held = dispatch.candidates(case.problem, device.cpu(), FAST_MAX_ERROR, None)
    return {
        candidate.name: partial(conv2d, max_error=FAST_MAX_ERROR, algorithm=dispatch.algorithm_of(candidate.name))
        for candidate in held
        if candidate.possible
    }


def choice(case: Case, max_error: float, algorithm: str = "auto") -> str:
    return dispatch.choose(case.problem, device.cpu(), "auto", algorithm, max_error)


def conv2d(
    case: Case, operands: Operands, max_error: float = accuracy.DEFAULT_MAX_ERROR, algorithm: str = "auto"
) -> Candidate:
    """conv2d on NumPy arrays: the weights are packed in each call."""
    keywords = {**parameters(case), "max_error": max_error, "algorithm": algorithm}
    x, y = in_layout(case, operands.x), new_result(case)
    call = partial(convlib.conv2d, x, operands.w, operands.bias, out=y, **keywords)
    kernel = choice(case, max_error, algorithm)
    name = CONV2D if algorithm == "auto" else kernel
    return Candidate(name, call, partial(logical, case, y), max_error, True, kernel)


def plan(case: Case, operands: Operands, max_error: float = accuracy.DEFAULT_MAX_ERROR, name: str = PLAN) -> Candidate:
    """A plan's call: the weights have been packed beforehand."""
    x, y = in_layout(case, operands.x), new_result(case)
    planned = convlib.plan(x.shape, operands.w, operands.bias, max_error=max_error, **parameters(case))
    return Candidate(name, partial(planned, x, out=y), partial(logical, case, y), max_error, True, planned.name)


def parameters(case: Case) -> dict:
    problem = case.problem
    return {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "layout": problem.layout,
    }


def in_layout(case: Case, array: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as the case's layout has it in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if case.problem.layout == "NHWC" else array


def logical(case: Case, array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if case.problem.layout == "NHWC" else array


def new_result(case: Case) -> np.ndarray:
    """An output of the case filled with NaN, so that an element never written is found by the gate."""
    return np.full(
        in_layout(case, np.empty(case.problem.y_shape, case.problem.dtype)).shape, np.nan, case.problem.dtype
    )
