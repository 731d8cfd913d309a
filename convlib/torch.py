"""PyTorch: conv2d and conv_transpose2d with gradients, modules, and a swap for existing models.

    import convlib.torch
    convlib.torch.replace_convolutions(model)        # every nn.Conv2d and nn.ConvTranspose2d now runs on convlib
    convlib.torch.restore_convolutions(model)        # and back

The functions end in the operators torch.ops.convlib.*, which torch_operators.py describes, or go past them to the same
kernels and the same derivatives.
"""

from __future__ import annotations

import functools
import re

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError('convlib.torch: needs PyTorch, which is not installed: pip install "torch>=2.6"') from error

from . import torch_operators
from .errors import UnsupportedError
from .problem import PRECISIONS, Padding, Pair, check_choice, checked_padding, pair, resolved_padding, shortened
from .torch_operators import pairs
from .transposed_shapes import transposed_shape

NAMES = {"x": "input", "w": "weight"}  # what the functions here call the arguments of convlib's own


def errors_name_input_and_weight(function):
    """Let errors from deeper, where the two are x and w, call them as `function` does; a size, as 1 x 1, stays one, and
    what is quoted, as the caller's own keyword, what it is.
    """

    @functools.wraps(function)
    def renamed(*arguments, **keywords):
        try:
            return function(*arguments, **keywords)
        except (ValueError, TypeError, UnsupportedError) as error:
            error.args = (re.sub(r"(?<!\d )(?<!')\b[xw]\b", lambda found: NAMES[found.group()], str(error)),)
            raise

    return renamed


@errors_name_input_and_weight
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv2d by convlib's kernels, with gradients.

    input: (N, C, H, W) or (C, H, W); weight: (K, C / groups, R, S); bias: (K,). All float16, bfloat16, float32 or
    float64, of one dtype, or any of them complex; on the CPU or on one CUDA device. padding may also be ((top, bottom),
    (left, right)); one number in a tuple holds for rows and columns, as PyTorch has it and convlib.conv2d does not.
    precision: what float32 may be multiplied in, forward and backward, as convlib.conv2d has it: None, "tf32" or
    "3xtf32"; PyTorch's own switches for TF32 are not asked. Raises convlib.conv2d's errors.

    >>> import torch
    >>> conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)).flatten()
    tensor([4., 4., 4., 4.])
    """
    check_axes(input, weight, bias)
    if input.dim() == 3:
        return conv2d(input[None], weight, bias, stride, padding, dilation, groups, precision=precision)[0]
    stride, dilation = two("stride", stride), two("dilation", dilation)
    padding = four(padding, input.shape[2:], weight.shape[2:], stride, dilation)
    return torch_operators.conv2d(input, weight, bias, stride, padding, dilation, groups, precision)


@errors_name_input_and_weight
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv_transpose2d by convlib's kernels, with gradients; shapes and errors as conv2d here.

    weight: (C, K / groups, R, S).

    >>> import torch
    >>> conv_transpose2d(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)).flatten()
    tensor([1., 2., 1.])
    """
    check_axes(input, weight, bias)
    if input.dim() == 3:
        parameters = stride, padding, output_padding, groups, dilation
        return conv_transpose2d(input[None], weight, bias, *parameters, precision=precision)[0]
    stride, dilation = two("stride", stride), two("dilation", dilation)
    padding = four(padding, input.shape[2:], weight.shape[2:], stride, dilation)
    shape, _ = transposed_shape(
        as_ints(input.shape), as_ints(weight.shape), "NCHW", "OIHW", stride, pairs(padding),
        two("output_padding", output_padding), dilation, groups,
    )  # fmt: skip
    return torch_operators.conv_transpose2d(input, weight, bias, shape, stride, padding, dilation, groups, precision)


torch.fx.wrap("conv2d")  # a node of its own where a model is traced symbolically
torch.fx.wrap("conv_transpose2d")


class Conv2d(nn.Conv2d):
    """nn.Conv2d, with its constructor and state_dict, computed by convlib.

    precision: an attribute, None at first, that goes to every `conv2d`.

    >>> import torch
    >>> Conv2d(3, 8, 3, padding=1)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    precision: str | None = None

    def _conv_forward(self, input, weight, bias):
        padding = self.padding
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        parameters = self.stride, padding, self.dilation, self.groups
        return conv2d(input, weight, bias, *parameters, precision=self.precision)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d, with its constructor and state_dict, computed by convlib.

    precision: an attribute, None at first, that goes to every `conv_transpose2d`.

    >>> import torch
    >>> ConvTranspose2d(3, 8, 2, stride=2)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 10, 10])
    """

    precision: str | None = None

    def forward(self, input, output_size=None):
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        parameters = self.stride, self.padding, output_padding, self.groups, self.dilation
        return conv_transpose2d(input, self.weight, self.bias, *parameters, precision=self.precision)


REPLACEMENTS = {nn.Conv2d: Conv2d, nn.ConvTranspose2d: ConvTranspose2d}


def replace_convolutions(model: nn.Module, *, precision: str | None = None) -> nn.Module:
    """Let every nn.Conv2d and nn.ConvTranspose2d of `model` compute with convlib, in place; returns `model`.

    precision: what they may multiply float32 in, as `conv2d` has it. Parameters, hooks, names and state_dict stay as
    they are; subclasses of the two are left alone.

    >>> from torch import nn
    >>> type(replace_convolutions(nn.Sequential(nn.Conv2d(1, 1, 1)))[0]).__module__
    'convlib.torch'
    """
    check_choice("precision", precision, PRECISIONS)
    return swapped(model, REPLACEMENTS, precision)


def restore_convolutions(model: nn.Module) -> nn.Module:
    """Undo `replace_convolutions`: every convolution of `model` is PyTorch's own again.

    >>> from torch import nn
    >>> type(restore_convolutions(replace_convolutions(nn.Conv2d(1, 1, 1)))) is nn.Conv2d
    True
    """
    return swapped(model, {ours: theirs for theirs, ours in REPLACEMENTS.items()}, None)


def swapped(model, classes, precision):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module needed, got {shortened(model)}")
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
            vars(module).pop("precision", None)
            if precision is not None:
                module.precision = precision
    return model


def check_axes(input, weight, bias):
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) and (name != "bias" or tensor is not None):
            raise TypeError(f"{name}: a tensor needed, got {shortened(tensor)}")
    if input.dim() not in (3, 4):
        raise ValueError(f"input: 4 axes needed, or 3 for a single image, got the shape {tuple(input.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"weight: 4 axes needed, got the shape {tuple(weight.shape)}")


def two(name, value) -> list[int]:
    if isinstance(value, int):  # PyTorch's symbolic ones too
        return [value, value]
    if isinstance(value, (tuple, list)):
        return list(value) * 2 if len(value) == 1 else list(value)
    return list(pair(name, value, least=0))


def four(padding, size, window, stride, dilation) -> list[int]:
    """Padding in any of conv2d's spellings, or a tuple of one, as top, bottom, left, right."""
    if isinstance(padding, (tuple, list)) and len(padding) == 1:
        (padding,) = padding
    if isinstance(padding, int):
        return [padding] * 4
    if isinstance(padding, (tuple, list)) and all(isinstance(p, int) for p in padding) and len(padding) == 2:
        return [padding[0], padding[0], padding[1], padding[1]]
    padding = checked_padding(padding)
    if padding == "same":
        size, window = as_ints(size), as_ints(window)
    (top, bottom), (left, right) = resolved_padding(padding, size, window, stride, dilation)
    return [top, bottom, left, right]


def as_ints(shape) -> tuple[int, ...]:
    """A shape; where torch.jit traces, and sizes are tensors, as ints: it warns that they stay what they are now."""
    return tuple(shape) if torch._C._get_tracing_state() is None else tuple(map(int, shape))
