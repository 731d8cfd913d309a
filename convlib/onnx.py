"""Run ONNX models with their convolutions on convlib: operators for onnx.reference.ReferenceEvaluator.

    from onnx.reference import ReferenceEvaluator
    from convlib.onnx import fused, operators
    session = ReferenceEvaluator(fused(onnx.load("model.onnx")), new_ops=operators)

Conv and ConvTranspose over one or two axes go to the kernels, with every attribute. The weights of a node are constants
of the graph as a rule, so each Conv plans once for a shape of its input, and packs its weights then (convlib.plan).
`fused` lets them take in what follows them, BatchNormalization, Add and activations; the model as it is runs too.
BatchNormalization is here because the evaluator's own, in models before opset 14, takes the statistics of the batch
wherever a momentum is written down. Needs the package onnx.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

try:
    from onnx.reference.op_run import OpRun
except ImportError as error:
    raise ImportError('convlib.onnx: needs onnx, which is not installed: pip install "onnx>=1.17"') from error

from .errors import UnsupportedError
from .gradients import conv_transpose2d
from .onnx_fusion import DOMAIN
from .onnx_fusion import fused as fused
from .operations import conv2d
from .plan import plan

PLANS = 8  # that a node keeps: shapes of its input


def conv(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> np.ndarray:
    """ONNX's Conv: x (N, C, H, W) or (N, C, L), w (K, C / group, R, S) or (K, C / group, S), bias (K,).

    Attributes as ONNX has them; kernel_shape is w's own. Raises UnsupportedError for three axes or more.

    >>> conv(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32), auto_pad="SAME_UPPER")[0, 0]
    array([[4., 4., 2.],
           [4., 4., 2.],
           [2., 2., 1.]], dtype=float32)

    Source: the operator Conv of the ONNX specification.
    """
    attributes = {"auto_pad": auto_pad, "dilations": dilations, "group": group, "pads": pads, "strides": strides}
    return convolved(conv2d, x, w, bias, kernel_shape=kernel_shape, **attributes)


def convolved(
    operation, x, w, bias, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None,
):  # fmt: skip
    """`operation`, which is conv2d or does what it does, with ONNX's attributes."""
    axes = checked_axes("Conv", x, w, kernel_shape)
    stride, dilation = per_axis(strides, axes), per_axis(dilations, axes)
    windows = windows_of(w.shape[2:], dilation)
    wanted = [-(-size // step) for size, step in zip(x.shape[2:], stride)]
    extra = [
        max((outputs - 1) * step + window - size, 0)
        for outputs, step, window, size in zip(wanted, stride, windows, x.shape[2:])
    ]
    padding = explicit_pads(auto_pad, pads, extra, axes)
    return without_axis(
        axes, operation, x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=group
    )  # fmt: skip


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    output_padding: Any = None,
    output_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> np.ndarray:
    """ONNX's ConvTranspose: x (N, C, H, W) or (N, C, L), w (C, K / group, R, S) or (C, K / group, S), bias (K,).

    Attributes as ONNX has them: output_shape, or auto_pad's SAME, settles the padding. Raises UnsupportedError for
    three axes or more, and ValueError for an output_shape that no padding gives.

    >>> conv_transpose(np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32), strides=[1, 2])[0, 0]
    array([[1., 1., 1., 1.]], dtype=float32)

    Source: the operator ConvTranspose of the ONNX specification.
    """
    axes = checked_axes("ConvTranspose", x, w, kernel_shape)
    stride, dilation = per_axis(strides, axes), per_axis(dilations, axes)
    added = list(output_padding or [0] * axes)
    windows = windows_of(w.shape[2:], dilation)
    full = [(s - 1) * step + window for s, step, window in zip(x.shape[2:], stride, windows)]
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [size * step for size, step in zip(x.shape[2:], stride)]
    if output_shape is not None:
        extra = [f + a - size for f, a, size in zip(full, added, output_shape[-axes:])]
        added = [a + max(-e, 0) for a, e in zip(added, extra)]  # larger than all there is: rows of zeros at the end
        padding = explicit_pads(
            auto_pad if auto_pad != "NOTSET" else "SAME_LOWER", None, [max(e, 0) for e in extra], axes
        )
    else:
        padding = explicit_pads(auto_pad, pads, [0] * axes, axes)
    return without_axis(
        axes, conv_transpose2d, x, w, bias, stride=stride, padding=padding, output_padding=tuple(added),
        dilation=dilation, groups=group,
    )  # fmt: skip


def checked_axes(operator, x, w, kernel_shape):
    axes = x.ndim - 2
    if axes not in (1, 2):
        raise UnsupportedError(f"{operator}: one or two axes besides N and C needed, got x of shape {x.shape}")
    if w.ndim != x.ndim:
        raise ValueError(f"{operator}: w with as many axes as x needed ({x.ndim}), got {w.ndim}")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ValueError(f"{operator}: kernel_shape {w.shape[2:]} needed, as w has it, got {tuple(kernel_shape)}")
    return axes


def per_axis(values, axes):
    return tuple(int(value) for value in values) if values else (1,) * axes


def windows_of(sizes, dilation):
    return [(size - 1) * step + 1 for size, step in zip(sizes, dilation)]


def explicit_pads(auto_pad, pads, extra, axes):
    """((before, after), ...) for each axis; SAME_UPPER puts the odd row of `extra` behind, SAME_LOWER in front."""
    if auto_pad == "NOTSET":
        pads = list(pads or [0] * (2 * axes))
        return tuple(zip(pads[:axes], pads[axes:]))
    if auto_pad == "VALID":
        return ((0, 0),) * axes
    if auto_pad == "SAME_UPPER":
        return tuple((rows // 2, rows - rows // 2) for rows in extra)
    if auto_pad == "SAME_LOWER":
        return tuple((rows - rows // 2, rows // 2) for rows in extra)
    raise ValueError(f"auto_pad: one of NOTSET, VALID, SAME_UPPER, SAME_LOWER needed, got {auto_pad!r}")


def without_axis(axes, operation, x, w, bias, **parameters):
    """`operation` over two axes; a single one becomes the second of two."""
    if axes == 2:
        return operation(x, w, bias, **parameters)
    first = {"padding": (0, 0), "output_padding": 0}
    parameters = {
        name: value if name == "groups" else (first.get(name, 1), *value) for name, value in parameters.items()
    }
    return operation(x[:, :, None], w[:, :, None], bias, **parameters)[:, :, 0]


class Planned:
    """conv2d for one node of a graph: a plan for each shape of x, made anew should the weights be others."""

    def __init__(self):
        self.weights = None, None, {}

    def __call__(self, x, w, bias, *, residual=None, **parameters):
        kept_w, kept_bias, plans = self.weights
        if not (same(kept_w, w) and same(kept_bias, bias)):
            plans = {}
            self.weights = kept(w), kept(bias), plans
        parameters["residual"] = residual is not None
        key = (x.shape, w.dtype, *parameters.values())
        planned = plans.get(key)
        if planned is None:
            if len(plans) == PLANS:
                plans.pop(next(iter(plans)), None)
            planned = plans[key] = plan(x.shape, w, bias, **parameters)
        return planned(x, residual=in_shape(residual, planned.y_shape))


def in_shape(residual, shape):
    """What Add would add to a result of this shape."""
    if residual is None or residual.shape == shape:
        return residual
    if residual.ndim > len(shape) or np.broadcast_shapes(residual.shape, shape) != shape:
        raise UnsupportedError(
            f"FusedConv: a residual that fits the convolution's {shape} needed, got {residual.shape}; "
            "run the model without convlib.onnx.fused"
        )
    return np.ascontiguousarray(np.broadcast_to(residual, shape))


def same(before, now):
    return before is now or (before is not None and now is not None and np.array_equal(before, now))


def kept(array):
    """What `array` holds now, to compare with: itself where nobody can write to it, and a copy otherwise."""
    return array if array is None or immutable(array) else array.copy()


def immutable(array):
    """Whether these are the bytes of a Python object, as most initializers are."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, bytes)


class Conv(OpRun):
    op_domain = ""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.planned = Planned()

    def _run(self, x, w, bias=None, **attributes):
        return (convolved(self.planned, x, w, bias, **attributes),)


class FusedConv(OpRun):
    """activation(Conv(x, w, bias) + residual), as `fused` puts it into a graph. slope: leaky_relu's."""

    op_domain = DOMAIN

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.planned = Planned()

    def _run(self, x, w, bias=None, residual=None, activation=None, slope=0.0, **attributes):
        if activation == "leaky_relu":
            activation = activation, slope
        if residual is not None and residual.ndim and x.ndim == 3:
            residual = residual[..., None, :]
        operation = partial(self.planned, residual=residual, activation=activation)
        return (convolved(operation, x, w, bias, **attributes),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x, w, bias=None, **attributes):
        return (conv_transpose(x, w, bias, **attributes),)


class BatchNormalization(OpRun):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, by the running statistics; training mode is refused."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, var, epsilon=1e-5, training_mode=0, **_):
        if training_mode:
            raise UnsupportedError("BatchNormalization: training_mode=0 needed, got 1")
        shape = (1, -1, *[1] * (x.ndim - 2))
        factor = scale / np.sqrt(var + np.asarray(epsilon, var.dtype))
        return ((x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)).astype(x.dtype),)


operators = [Conv, FusedConv, ConvTranspose, BatchNormalization]
