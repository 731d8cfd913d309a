"""The gate: nothing is timed before its answer has been compared with float64.

Errors are norm-relative, ||y - exact|| / ||exact||, and sort the candidates into two classes that are never mixed:
"accurate" (at most 5e-6, convlib's default contract) and "fast" (at most 1e-3). Anything worse is "wrong". Results
of 16 bits may have the rounding of their type beside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convlib import accuracy
from convlib.kernels import reference

from .cases import Case, Operands

FAST_MAX_ERROR = 1e-3


class GateError(Exception):
    """A candidate's answer is not the convolution; it is named in the table and gets no time."""


def exact(case: Case, operands: Operands, put: Callable = np.asarray) -> np.ndarray:
    """The result in float64, of the pass that the case has: reference.py's definition, by faster ways than its loops.

    put: into the library whose matrix products are taken and whose array comes back, NumPy or CuPy.
    tests/benchmarks/test_gate.py holds both ways against reference.py, which would take minutes on a large layer.
    """
    problem = case.problem
    if problem.pass_ != "forward":
        return exact_gradient(problem, operands, put)
    x, w = operands.x.astype(np.float64), operands.w.astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 0), *problem.padding))
    y = put(by_fourier(problem, x, w)) if is_large_filter(problem) else by_matmul(problem, put(x), put(w))
    if operands.bias is not None:
        y += put(operands.bias.astype(np.float64))[:, None, None]
    return reference.activated(problem, y)


def is_large_filter(problem) -> bool:
    """Whether transforms beat R * S passes over the image, in seconds instead of minutes for 31 x 31 on 2160p."""
    plain = problem.stride == problem.dilation == (1, 1) and problem.groups == problem.C == problem.K
    return plain and problem.R * problem.S >= 64


def by_fourier(problem, x, w):
    """Filters by the correlation theorem; exact to about 1e-15 of the result's norm."""
    shape = x.shape[2:]
    product = np.fft.rfft2(x) * np.conj(np.fft.rfft2(w[:, 0], shape))
    return np.fft.irfft2(product, shape)[:, :, : problem.P, : problem.Q]


def by_matmul(problem, x, w):
    """The sum over channels as a matrix product, for each tap of the window."""
    N, G, P, Q = problem.N, problem.groups, problem.P, problem.Q
    w = w.reshape(G, problem.Kg, problem.Cg, problem.R, problem.S)
    y = 0.0
    for r in range(problem.R):
        for s in range(problem.S):
            window = x[:, :, span(r, 0, problem, P), span(s, 1, problem, Q)].reshape(N, G, problem.Cg, P * Q)
            y = y + w[:, :, :, r, s] @ window
    return y.reshape(problem.y_shape)


def exact_gradient(problem, operands, put):
    """The gradient in float64 by a matrix product for each tap."""
    x, w, grad_y = (put(a.astype(np.float64)) for a in (operands.x, operands.w, operands.grad_y))
    by_group = (problem.N, problem.groups, problem.Kg, problem.P * problem.Q)
    if problem.pass_ == "input_grad":
        return input_grad_by_matmul(problem, grad_y.reshape(by_group), w, put)
    return weight_grad_by_matmul(problem, x, grad_y.reshape(by_group), put)


def padded_zeros(problem, put):
    (top, bottom), (left, right) = problem.padding
    return put(np.zeros((problem.N, problem.C, problem.H + top + bottom, problem.W + left + right)))


def inside_padding(problem):
    """The part of the padded input that is the input."""
    (top, _), (left, _) = problem.padding
    return slice(None), slice(None), slice(top, top + problem.H), slice(left, left + problem.W)


def input_grad_by_matmul(problem, grad_y, w, put):
    N, G, P, Q = problem.N, problem.groups, problem.P, problem.Q
    w = w.reshape(G, problem.Kg, problem.Cg, problem.R, problem.S)
    padded = padded_zeros(problem, put)
    for r in range(problem.R):
        for s in range(problem.S):
            tap = w[:, :, :, r, s].transpose(0, 2, 1) @ grad_y
            padded[:, :, span(r, 0, problem, P), span(s, 1, problem, Q)] += tap.reshape(N, problem.C, P, Q)
    return padded[inside_padding(problem)]


def weight_grad_by_matmul(problem, x, grad_y, put):
    N, G, P, Q = problem.N, problem.groups, problem.P, problem.Q
    padded = padded_zeros(problem, put)
    padded[inside_padding(problem)] = x
    grad_w = put(np.zeros((G, problem.Kg, problem.Cg, problem.R, problem.S)))
    for r in range(problem.R):
        for s in range(problem.S):
            window = padded[:, :, span(r, 0, problem, P), span(s, 1, problem, Q)].reshape(N, G, problem.Cg, P * Q)
            grad_w[:, :, :, r, s] = (grad_y @ window.transpose(0, 1, 3, 2)).sum(0)
    return grad_w.reshape(problem.w_shape)


def span(tap: int, axis: int, problem, count: int) -> slice:
    """The rows (or columns) of x that meet one tap of the window, for every output."""
    start, step = tap * problem.dilation[axis], problem.stride[axis]
    return slice(start, start + (count - 1) * step + 1, step)


def norm_relative_error(y: np.ndarray, wanted: np.ndarray) -> float:
    """||y - wanted|| / ||wanted||; infinite if any element is not a number or the shapes differ."""
    if y.shape != wanted.shape or not np.isfinite(y).all():
        return float("inf")
    return float(np.linalg.norm((y - wanted).ravel()) / np.linalg.norm(wanted.ravel()))


def error_class(error: float, rounding: float = 0.0) -> str:
    """rounding: accuracy.of_store, what results of 16 bits may have beside."""
    if error <= accuracy.DEFAULT_MAX_ERROR + rounding:
        return "accurate"
    return "fast" if error <= FAST_MAX_ERROR + rounding else "wrong"


def check(candidate, wanted: np.ndarray, rounding: float = 0.0) -> float:
    """Run the candidate once and return its error. Raises GateError if it is above what the candidate may have, and the
    rounding of its results.
    """
    candidate.call()
    error = norm_relative_error(candidate.output(), wanted)
    most = candidate.max_error + rounding
    if error > most:
        raise GateError(f"error {error:.1e} against float64, at most {most:.0e} allowed")
    return error
