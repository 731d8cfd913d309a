"""Calls of cupy.cudnn's functions: arguments in one to three dimensions, and the definition of what they give."""

import numpy as np

FORWARD = {"auto_tune": False, "tensor_core": "auto"}
BACKWARD = FORWARD | {"deterministic": False}
SIZES, WINDOW = (7, 8, 6), (3, 2, 3)
CASES = [
    {"pad": 0, "stride": 1, "dilation": 1, "groups": 1},
    {"pad": 2, "stride": 1, "dilation": 2, "groups": 2},
    {"pad": 1, "stride": 2, "dilation": 1, "groups": 1},
    {"pad": 4, "stride": 3, "dilation": 1, "groups": 2},  # some slices meet padding only
]
IDS = ["plain", "dilated_groups", "stride", "wide_padding"]


def integers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def arguments(dimensions, pad, stride, dilation, groups):
    return (pad,) * dimensions, (stride,) * dimensions, (dilation,) * dimensions, groups


def windows(x_shape, W_shape, pad, stride, dilation, groups):
    """The shape of the result, and every weight with the part of the padded x that it meets."""
    K, Cg, *window = W_shape
    outputs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(x_shape[2:], pad, dilation, window, stride)
    ]
    taps = []
    for k, c, *tap in np.ndindex(*W_shape):
        parts = (slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, outputs, stride))
        taps.append(((k, c, *tap), k, (slice(None), k // (K // groups) * Cg + c, *parts)))
    return (x_shape[0], K, *outputs), taps


def padded(x, pad):
    return np.pad(x.astype(float), [(0, 0), (0, 0), *((p, p) for p in pad)])


def defined(x, W, *rest):
    """The definition of the forward pass, in any number of dimensions."""
    shape, taps = windows(x.shape, W.shape, *rest)
    y, x = np.zeros(shape), padded(x, rest[0])
    for tap, k, part in taps:
        y[:, k] += x[part] * W[tap]
    return y


def defined_data(gy, W, x_shape, *rest):
    _, taps = windows(x_shape, W.shape, *rest)
    gx = padded(np.zeros(x_shape), rest[0])
    for tap, k, part in taps:
        gx[part] += gy[:, k].astype(float) * W[tap]
    return gx[(slice(None), slice(None), *(slice(p, p + n) for p, n in zip(rest[0], x_shape[2:])))]


def defined_filter(x, gy, W_shape, *rest):
    _, taps = windows(x.shape, W_shape, *rest)
    gW, x = np.zeros(W_shape), padded(x, rest[0])
    for tap, k, part in taps:
        gW[tap] = (x[part] * gy[:, k]).sum()
    return gW


def problem(dimensions, case, dtype=np.float32):
    """x, W, gy and the arguments that they go with."""
    rest = arguments(dimensions, **case)
    x, W = (
        integers((2, 4, *SIZES[:dimensions]), dtype),
        integers((6, 4 // case["groups"], *WINDOW[:dimensions]), dtype, 1),
    )
    return x, W, integers(windows(x.shape, W.shape, *rest)[0], dtype, 2), rest


def filled(shape, dtype=np.float32):
    return np.full(shape, np.nan, dtype)
