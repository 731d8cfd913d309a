"""The definition of every operation, in plain NumPy loops in float64: slow, and obviously right.

Every kernel is tested against this file, and this file against SciPy's correlate2d (tests/kernels/test_reference.py).
Arrays come in logical order: x (N, C, H, W), w (K, C/groups, R, S), y and residual (N, K, P, Q), bias (K,).
"""

import numpy as np


def conv2d(problem, x, w, bias=None, residual=None, flush_denormals=False):
    """y = activation(conv(x, w) + bias + residual), in float64, not yet rounded to the problem's dtype.

    flush_denormals: read denormal inputs as zero, as kernels compiled with -ftz=true do in float32.
    """
    x, w, bias, residual = (as_float64(problem, a, flush_denormals) for a in (x, w, bias, residual))
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    P, Q = problem.P, problem.Q
    padded = np.pad(x, ((0, 0), (0, 0), *problem.padding))
    y = np.zeros(problem.y_shape)
    for k in range(problem.K):
        first_channel = k // problem.Kg * problem.Cg
        for c in range(problem.Cg):
            for r in range(problem.R):
                for s in range(problem.S):
                    rows = slice(r * dilation_h, r * dilation_h + (P - 1) * stride_h + 1, stride_h)
                    columns = slice(s * dilation_w, s * dilation_w + (Q - 1) * stride_w + 1, stride_w)
                    y[:, k] += padded[:, first_channel + c, rows, columns] * w[k, c, r, s]
    if bias is not None:
        y += bias[:, None, None]
    if residual is not None:
        y += residual
    return activated(problem, y)


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
    """`array` in float64; 16-bit types may come viewed as uint16."""
    if array is None:
        return None
    array = np.asarray(array)
    if array.dtype == np.uint16:
        array = array.view(problem.dtype)
    values = array.astype(np.float64)
    if flush_denormals and problem.accumulate == np.float32:
        values[np.abs(values) < np.finfo(np.float32).tiny] = 0
    return values
