"""Keras 3: its Conv2D, DepthwiseConv2D and Conv2DTranspose, computed by convlib on the torch and JAX back ends.

    from convlib.keras import Conv2D                # in place of: from keras.layers import Conv2D

Constructors, weights, shapes and configurations are Keras' own, since the classes are subclasses: weights go from one
to the other, and a saved model loads wherever convlib.keras has been imported. Inputs in channels_last are convolved as
they lie, without a transpose. Constructors take one argument more, precision: what a layer may multiply float32 in, as
convlib.conv2d has it; a layer that computes in another dtype does not ask.
"""

from __future__ import annotations

from typing import Any

try:
    import keras
    from keras import ops
except ImportError as error:
    raise ImportError(
        'convlib.keras: needs Keras 3 and the package of its back end: pip install "keras>=3.7", and torch or jax'
    ) from error

from .problem import PRECISIONS, check_choice

BACKEND = keras.config.backend()
if BACKEND == "torch":
    from . import torch as framework
elif BACKEND == "jax":
    from . import jax as framework
else:
    raise ImportError(f"convlib.keras: Keras' back end must be torch or jax (KERAS_BACKEND), got {BACKEND}")

LAYOUTS = {"channels_first": "NCHW", "channels_last": "NHWC"}


class WithPrecision:
    """What the layers below have beyond Keras': the argument precision, part of their configuration where it is set."""

    def __init__(self, *arguments: Any, precision: str | None = None, **parameters: Any):
        super().__init__(*arguments, **parameters)
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | ({"precision": self.precision} if self.precision else {})


@keras.saving.register_keras_serializable("convlib")
class Conv2D(WithPrecision, keras.layers.Conv2D):
    """keras.layers.Conv2D, with its constructor and weights, computed by convlib.

    >>> Conv2D(8, 3, padding="same")(keras.ops.zeros((1, 5, 5, 3))).shape == (1, 5, 5, 8)
    True
    """

    def convolution_op(self, inputs: Any, kernel: Any, bias: Any = None) -> Any:
        return self.convolved(inputs, kernel, bias, None)

    def call(self, inputs: Any) -> Any:
        if type(self).convolution_op is not Conv2D.convolution_op:
            return super().call(inputs)  # as Keras documents it: whoever overrides it gets no bias
        return self.convolved(inputs, self.kernel, self.bias, self.activation)

    def convolved(self, inputs, kernel, bias, activation):
        return applied("conv2d", self, inputs, kernel, bias, activation, padding=self.padding, groups=self.groups)


@keras.saving.register_keras_serializable("convlib")
class DepthwiseConv2D(WithPrecision, keras.layers.DepthwiseConv2D):
    """keras.layers.DepthwiseConv2D, with its constructor and weights, computed by convlib.

    >>> DepthwiseConv2D(3, depth_multiplier=2)(keras.ops.zeros((1, 5, 5, 3))).shape == (1, 3, 3, 6)
    True
    """

    def call(self, inputs: Any) -> Any:
        *window, channels, multiplier = self.kernel.shape
        kernel = ops.reshape(self.kernel, (*window, 1, channels * multiplier))
        parameters = {"padding": self.padding, "groups": channels}
        return applied("conv2d", self, inputs, kernel, self.bias, self.activation, **parameters)


@keras.saving.register_keras_serializable("convlib")
class Conv2DTranspose(WithPrecision, keras.layers.Conv2DTranspose):
    """keras.layers.Conv2DTranspose, with its constructor and weights, computed by convlib.

    >>> Conv2DTranspose(8, 2, strides=2)(keras.ops.zeros((1, 5, 5, 3))).shape == (1, 10, 10, 8)
    True
    """

    def call(self, inputs: Any) -> Any:
        added = self.output_padding or (None, None)
        axes = zip(self.kernel_size, self.strides, self.dilation_rate, added)
        padding, added = zip(*(transposed_axis(self.padding, *axis) for axis in axes))
        parameters = {"padding": padding, "output_padding": added}
        return applied("conv_transpose2d", self, inputs, self.kernel, self.bias, self.activation, **parameters)


def transposed_axis(padding, window, stride, dilation, output_padding):
    """What Keras cuts off a transposed convolution along one axis, before and after, and what it adds after.

    Without output_padding the result is as long as input times stride for "same", and for "valid" at least so.
    """
    extent = dilation * (window - 1) + 1
    if padding == "valid":
        return (0, 0), max(stride - extent, 0) if output_padding is None else output_padding
    cut = extent - stride if output_padding is None else extent - extent % 2 - output_padding
    before = max(cut // 2, 0)
    after = cut - before
    return (before, max(after, 0)), max(-after, 0)


def applied(name, layer, x, w, bias, activation, **parameters):
    """The operation `name` of the back end's adapter on x in the layer's data_format and w in HWIO, and activation."""
    x, w = (ops.convert_to_tensor(array, dtype=layer.compute_dtype) for array in (x, w))
    bias = None if bias is None else ops.convert_to_tensor(bias, dtype=layer.compute_dtype)
    function = by_torch if BACKEND == "torch" else by_jax
    parameters |= {"stride": layer.strides, "dilation": layer.dilation_rate}
    if layer.compute_dtype == "float32":
        parameters["precision"] = layer.precision
    return function(getattr(framework, name), LAYOUTS[layer.data_format], x, w, bias, activation, parameters)


def by_jax(function, layout, x, w, bias, activation, parameters):
    y = function(x, w, bias, layout=layout, weight_layout="HWIO", **parameters)
    return y if activation is None else activation(y)


def by_torch(function, layout, x, w, bias, activation, parameters):
    # A permuted NHWC tensor is one in torch.channels_last, and so is what comes back: neither is copied.
    y = function(x.permute(0, 3, 1, 2) if layout == "NHWC" else x, w.permute(3, 2, 0, 1), bias, **parameters)
    if activation is keras.activations.relu:
        y.relu_()  # nobody else has y, and fresh memory would cost more than the comparison
        activation = None
    y = y.permute(0, 2, 3, 1) if layout == "NHWC" else y
    return y if activation is None else activation(y)
