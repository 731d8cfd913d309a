"""convlib's own candidates: conv2d, plan, plan at MNN's accuracy, every kernel by itself, both gradients; on the CPU or
on a GPU.

Each writes into a result of its own (`out=`), as the peers do whose interface has that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import convlib
from convlib import accuracy, choosing, dispatch, transposed
from convlib.device import Device, cpu
from convlib.input_grad_phases import phases

from .candidate import Candidate
from .cases import Case, Operands, gradient_of
from .gate import FAST_MAX_ERROR

CONV2D, PLAN, FAST_PLAN = "convlib conv2d", "convlib plan", "convlib plan, max_error 1e-3"
GRADIENTS = {"input_grad": "convlib conv2d_input_grad", "weight_grad": "convlib conv2d_weight_grad"}


@dataclass(frozen=True)
class Place:
    """Where arrays lie. put: a NumPy array as one of there; get: back again; once: marks what cannot be replayed."""

    device: Device
    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]
    once: Callable[[Callable], Callable] = lambda call: call


def host() -> Place:
    """NumPy arrays, with as many threads as Numba has now."""
    return Place(cpu(), np.asarray, np.asarray)


def makers(case: Case, place: Place) -> dict[str, Callable]:
    """conv2d and plan under `algorithm="auto"`, and plan where a larger error changes its choice; or the gradient."""
    if case.problem.pass_ != "forward":
        return {GRADIENTS[case.problem.pass_]: partial(gradient, place=place)}
    found = {CONV2D: partial(conv2d, place=place), PLAN: partial(plan, place=place)}
    if choice(case, place, FAST_MAX_ERROR) != choice(case, place, accuracy.DEFAULT_MAX_ERROR):
        found[FAST_PLAN] = partial(plan, place=place, max_error=FAST_MAX_ERROR, name=FAST_PLAN)
    return found


def kernel_makers(case: Case, place: Place) -> dict[str, Callable]:
    """Every kernel that can run the case there, forced by its two names: through conv2d, on a GPU through plan."""
    held = dispatch.candidates(case.problem, place.device, FAST_MAX_ERROR, None)
    possible = [candidate.name for candidate in held if candidate.possible]
    if case.problem.pass_ != "forward":
        return {n: partial(gradient, place=place, kernel=n) for n in possible}
    if place.device.is_gpu:
        return {n: partial(plan, place=place, max_error=FAST_MAX_ERROR, name=n, kernel=n) for n in possible}
    return {n: partial(conv2d, place=place, max_error=FAST_MAX_ERROR, kernel=n) for n in possible}


def shown(suite: str) -> str:
    """The candidate of ours whose kernel and share of the peak stand beside a suite's cases."""
    return GRADIENTS.get(gradient_of(suite), PLAN)


def choice(case: Case, place: Place, max_error: float) -> str:
    return choosing.choose(case.problem, place.device, "auto", "auto", max_error)


def conv2d(
    case: Case,
    operands: Operands,
    place: Place,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    kernel: str | None = None,
) -> Candidate:
    """conv2d, by the kernel it chooses or by `kernel`; the weights are packed in each call."""
    keywords = parameters(case) | forced(kernel) | {"max_error": max_error}
    x, w, bias, y = arrays(case, operands, place)
    call = place.once(partial(convlib.conv2d, x, w, bias, out=y, **keywords))
    used = kernel or choice(case, place, max_error)
    return Candidate(kernel or CONV2D, call, lambda: logical(case, place.get(y)), max_error, True, used)


def plan(
    case: Case,
    operands: Operands,
    place: Place,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    name: str = PLAN,
    kernel: str | None = None,
) -> Candidate:
    """A plan's call, by the kernel it chooses or by `kernel`: the weights have been packed beforehand."""
    x, w, bias, y = arrays(case, operands, place)
    planned = convlib.plan(x.shape, w, bias, max_error=max_error, **parameters(case), **forced(kernel))
    call = partial(planned, x, out=y)
    return Candidate(name, call, lambda: logical(case, place.get(y)), max_error, True, planned.name)


def gradient(case: Case, operands: Operands, place: Place, kernel: str | None = None) -> Candidate:
    """conv2d_input_grad or conv2d_weight_grad, by what it chooses or by `kernel`."""
    problem = case.problem
    grad_y, keywords = place.put(operands.grad_y), parameters(case) | forced(kernel)
    wanted = problem.operand_shapes[2]
    out = place.put(np.full(wanted, np.nan, problem.dtype))
    if problem.pass_ == "input_grad":
        call = partial(convlib.conv2d_input_grad, grad_y, place.put(operands.w), wanted, out=out, **keywords)
    else:
        call = partial(convlib.conv2d_weight_grad, place.put(operands.x), grad_y, wanted, out=out, **keywords)
    name, used = kernel or GRADIENTS[problem.pass_], kernel or ", ".join(kernels_of(problem, place))
    return Candidate(name, place.once(call), lambda: place.get(out), accuracy.DEFAULT_MAX_ERROR, True, used)


def kernels_of(problem, place: Place) -> list[str]:
    """What a gradient chooses: a kernel, or one for each phase of the stride, each named once."""
    if problem.pass_ != "input_grad":
        return [choosing.choose(problem, place.device)]
    choice = transposed.Choice("auto", "auto", accuracy.DEFAULT_MAX_ERROR, None)
    whole = transposed.chosen_for_all(problem, (problem.P, problem.Q), place.device, choice)
    if whole is not None:
        return [whole.name]
    parts = [phase.problem for phase in phases(problem)]
    names = (transposed.chosen_for_phase(choice, part, place.device).name for part in parts if part is not None)
    return list(dict.fromkeys(names))


def forced(kernel: str | None) -> dict:
    """The two arguments that leave no choice but `kernel`."""
    return {"backend": dispatch.family_of(kernel), "algorithm": dispatch.algorithm_of(kernel)} if kernel else {}


def parameters(case: Case) -> dict:
    problem = case.problem
    return {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "layout": problem.layout,
    }


def arrays(case: Case, operands: Operands, place: Place):
    """x, w, bias and an output full of NaN, so that an element never written is found by the gate."""
    empty = np.full(case.problem.y_shape, np.nan, case.problem.dtype)
    bias = None if operands.bias is None else place.put(operands.bias)
    return place.put(in_layout(case, operands.x)), place.put(operands.w), bias, place.put(in_layout(case, empty))


def in_layout(case: Case, array: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as the case's layout has it in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if case.problem.layout == "NHWC" else array


def logical(case: Case, array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if case.problem.layout == "NHWC" else array
