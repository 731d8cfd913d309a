"""The definition of every operation, in plain NumPy loops in float64: slow, and obviously right.

Every kernel is tested against this file, and this file against SciPy's correlate2d, its gradients against finite
differences, which are exact for a bilinear function (tests/kernels/test_reference.py).
Arrays come in logical order: x (N, C, H, W), w (K, C/groups, R, S), y and residual (N, K, P, Q), bias (K,).
Any of them may be complex: then sums are kept in complex128, and the gradients are the adjoints, with the operand that
they multiply conjugated.
"""

import numpy as np


def conv2d(problem, x, w, bias=None, residual=None, flush_denormals=False):
    """y = activation(conv(x, w) + bias + residual), in float64, not yet rounded to the problem's dtype.

    flush_denormals: read denormal inputs as zero, as kernels compiled with -ftz=true do in float32.
    """
    x, w, bias, residual = (as_float64(problem, a, flush_denormals) for a in (x, w, bias, residual))
    padded = np.pad(x, ((0, 0), (0, 0), *problem.padding))
    y = np.zeros(problem.y_shape, np.result_type(x, w))
    for k, c, r, s, channel, rows, columns in taps(problem):
        y[:, k] += padded[:, channel, rows, columns] * w[k, c, r, s]
    if bias is not None:
        y += bias[:, None, None]
    if residual is not None:
        y += residual
    return activated(problem, y)


def input_grad(problem, grad_y, w):
    """The gradient of sum(conv(x, w) * grad_y) by x, (N, C, H, W), in float64."""
    grad_y, w = as_float64(problem, grad_y), as_float64(problem, w).conj()
    (top, bottom), (left, right) = problem.padding
    shape = (problem.N, problem.C, top + problem.H + bottom, left + problem.W + right)
    padded = np.zeros(shape, np.result_type(grad_y, w))
    for k, c, r, s, channel, rows, columns in taps(problem):
        padded[:, channel, rows, columns] += grad_y[:, k] * w[k, c, r, s]
    return padded[:, :, top : top + problem.H, left : left + problem.W]


def weight_grad(problem, x, grad_y):
    """The gradient of sum(conv(x, w) * grad_y) by w, (K, C/groups, R, S), in float64."""
    x, grad_y = as_float64(problem, x).conj(), as_float64(problem, grad_y)
    padded = np.pad(x, ((0, 0), (0, 0), *problem.padding))
    grad_w = np.zeros(problem.w_shape, np.result_type(x, grad_y))
    for k, c, r, s, channel, rows, columns in taps(problem):
        grad_w[k, c, r, s] = np.sum(padded[:, channel, rows, columns] * grad_y[:, k])
    return grad_w


def taps(problem):
    """Every weight k, c, r, s with the channel it reads and, in the padded input, the rows and columns it meets."""
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    for k, c, r, s in np.ndindex(problem.w_shape):
        rows = slice(r * dilation_h, r * dilation_h + (problem.P - 1) * stride_h + 1, stride_h)
        columns = slice(s * dilation_w, s * dilation_w + (problem.Q - 1) * stride_w + 1, stride_w)
        yield k, c, r, s, k // problem.Kg * problem.Cg + c, rows, columns


def activated(problem, y):
    if problem.activation is None:
        return y
    if problem.activation == "relu":
        return np.maximum(y, 0)
    if problem.activation == "relu6":
        return np.clip(y, 0, 6)
    if problem.activation == "silu":
        with np.errstate(over="ignore"):
            return y / (1 + np.exp(-y))
    return np.where(y >= 0, y, problem.slope * y)


def as_float64(problem, array, flush_denormals=False):
    """`array` in float64, or complex128 if it is complex; 16-bit types may come viewed as uint16."""
    if array is None:
        return None
    array = np.asarray(array)
    if array.dtype == np.uint16:
        array = array.view(problem.dtype)
    values = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if flush_denormals and problem.accumulate == np.float32:
        values[np.abs(values) < np.finfo(np.float32).tiny] = 0
    return values
