"""PyTorch's operators torch.ops.convlib.*: what each computes, its shapes, its derivatives, its batches, its autocast.

Four operators, each other's derivatives, so gradients of any order exist:

    operator             by its first argument    by its second
    conv2d(x, w)         input_grad(g, w)         weight_grad(x, g)
    input_grad(g, w)     conv2d(gg, w)            weight_grad(gg, g)
    weight_grad(x, g)    input_grad(g, gg)        conv2d(x, gg)
    conv_transpose2d     conv2d(g, w)             weight_grad(g, x)

They take complex tensors as convlib.conv2d does, real ones beside them included. input_grad conjugates w, weight_grad
conjugates x, and so the table holds; only conv_transpose2d conjugates nothing, and has w and x conjugated in its row.
Each has a fake kernel (torch.compile, torch.export, meta tensors), a rule for torch.func.vmap, and follows autocast.
CPU tensors share their memory with the kernels, which run on PyTorch's threads (torch_threads.py); CUDA tensors are
used where they lie, on PyTorch's current stream.

Where nothing but autograd watches, calls go past the operators: an operator's way through the dispatcher and Python and
back costs 30 microseconds with a gradient. `watched` says when.

Transforms of torch.func do not go through operators that are defined in Python: of PyTorch 2.13 grad is an error, and
jvp finds tangents of zero. Under one, and for forward derivatives, `operator` takes a torch.autograd.Function of the
operator instead, which has the same rules, and one for tangents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import gradients, operations
from .problem import check_channels, check_window, output_size

LIBRARY = torch.library.Library("convlib", "DEF")
PARAMETERS = "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups, str? precision=None"
LIBRARY.define(f"conv2d(Tensor x, Tensor w, Tensor? bias, {PARAMETERS}) -> Tensor")
LIBRARY.define(f"input_grad(Tensor grad_y, Tensor w, SymInt[4] input_shape, {PARAMETERS}) -> Tensor")
LIBRARY.define(f"weight_grad(Tensor x, Tensor grad_y, SymInt[4] weight_shape, {PARAMETERS}) -> Tensor")
LIBRARY.define(f"conv_transpose2d(Tensor x, Tensor w, Tensor? bias, SymInt[4] output_shape, {PARAMETERS}) -> Tensor")
OPS = torch.ops.convlib
NAMES = ("conv2d", "input_grad", "weight_grad", "conv_transpose2d")


def pairs(padding):
    top, bottom, left, right = padding
    return (top, bottom), (left, right)


def keywords(stride, padding, dilation, groups, precision=None) -> dict[str, Any]:
    return {
        "stride": tuple(stride), "padding": pairs(padding), "dilation": tuple(dilation), "groups": groups,
        "precision": precision,
    }  # fmt: skip


# The kernels: what the operators do on real tensors. The dispatcher leaves a precision of None out.


def run_conv2d(x, w, bias, *parameters):
    share_threads(x)
    return operations.conv2d(detached(x), detached(w), detached(bias), **keywords(*parameters))


def run_input_grad(grad_y, w, input_shape, *parameters):
    share_threads(grad_y)
    return gradients.conv2d_input_grad(grad_y.detach(), w.detach(), tuple(input_shape), **keywords(*parameters))


def run_weight_grad(x, grad_y, weight_shape, *parameters):
    share_threads(x)
    return gradients.conv2d_weight_grad(x.detach(), grad_y.detach(), tuple(weight_shape), **keywords(*parameters))


def run_conv_transpose2d(x, w, bias, output_shape, stride, padding, dilation, groups, precision=None):
    share_threads(x)
    if lies_in_blocks(x, w, output_shape, stride, padding, dilation, groups):
        return in_blocks(x.detach(), w.detach(), detached(bias), precision)
    spare = [
        wanted - ((size - 1) * step - sum(pad) + spread * (window - 1) + 1)
        for wanted, size, step, pad, spread, window in zip(
            output_shape[2:], x.shape[2:], stride, pairs(padding), dilation, w.shape[2:], strict=True
        )
    ]
    return gradients.conv_transpose2d(
        x.detach(),
        w.detach(),
        detached(bias),
        output_padding=tuple(spare),
        **keywords(stride, padding, dilation, groups, precision),
    )


def lies_in_blocks(x, w, output_shape, stride, padding, dilation, groups):
    """Whether the windows of a transposed convolution lie side by side, with nothing over them or between, and are
    wider than two columns, which the kernel of all phases stores as whole lines.
    """
    N, _, H, W = x.shape
    R, S = w.shape[2:]
    return (
        x.is_cpu and memory_format(x) is torch.contiguous_format and N > 0 and groups == 1
        and S > 2 and list(stride) == [R, S] and list(dilation) == [1, 1] and not any(padding)
        and list(output_shape[2:]) == [H * R, W * S]
    )  # fmt: skip


def in_blocks(x, w, bias, precision):
    """One 1 x 1 convolution to all elements of all windows, which are then put in their places.

    Row by row in NCHW the phases of input_grad_phases.py would write every second element or fewer: four times as slow.
    """
    _, K, R, S = w.shape
    w = w.flatten(1).t()[:, :, None, None]
    y = operations.conv2d(x, w, None if bias is None else bias.repeat_interleave(R * S), precision=precision)
    N, _, H, W = y.shape
    return y.view(N, K, R, S, H, W).permute(0, 1, 4, 2, 5, 3).reshape(N, K, H * R, W * S)


def share_threads(tensor):
    if tensor.is_cpu:
        from . import torch_threads  # loads the kernels, which who imports this module may not need

        torch_threads.share()


def detached(tensor):
    return tensor.detach() if tensor is not None and tensor.requires_grad else tensor


# The fake kernels: shapes and memory formats alone.


def memory_format(like):
    """torch.channels_last where `like` is stored so, as convlib's results are."""
    if like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def fake_conv2d(x, w, bias, stride, padding, dilation, groups, precision=None):
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # a quarter of a second, for tracers only

    if not free_unbacked_symbols((x, w)):  # sizes that are known no sooner than the operator runs, which checks them
        check_channels(x.shape[1], w.shape[0], w.shape[1], groups, "weight")
        check_window(x.shape[2:], w.shape[2:], pairs(padding), dilation, "input", "weight")
    sizes = [output_size(x.shape[2 + a], w.shape[2 + a], stride[a], pairs(padding)[a], dilation[a]) for a in (0, 1)]
    return empty_product(x, w, (x.shape[0], w.shape[0], *sizes)).to(memory_format=memory_format(x))


def fake_input_grad(grad_y, w, input_shape, *parameters):
    return empty_product(grad_y, w, input_shape).to(memory_format=memory_format(grad_y))


def fake_weight_grad(x, grad_y, weight_shape, *parameters):
    return empty_product(x, grad_y, weight_shape)


def fake_conv_transpose2d(x, w, bias, output_shape, *parameters):
    return empty_product(x, w, output_shape).to(memory_format=memory_format(x))


def empty_product(first, second, shape):
    """A new tensor for products of the two, of which one may be real and the other complex."""
    return first.new_empty(shape, dtype=torch.promote_types(first.dtype, second.dtype))


# The derivatives.

NONE = [None] * 5  # by the parameters


def keep(ctx, inputs, output):
    """Save what a backward pass reads: the two operands, the shapes and the parameters."""
    first, second, *rest = inputs
    ctx.save_for_backward(first, second)
    ctx.bias_dtype = rest[0].dtype if isinstance(rest[0], Tensor) else None
    ctx.parameters = rest[-5:]


def as_operand(grad, dtype):
    """A gradient in its operand's dtype: what is imaginary in it, a real operand cannot follow."""
    if grad.dtype == dtype:
        return grad
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


def backward_conv2d(context, grad):
    x, w = context.saved_tensors
    needs_x, needs_w, needs_bias = context.needs_input_grad[:3]
    if needs_x and needs_w and not (watched(x, w, grad) or to_record(x, w, grad)):
        share_threads(x)
        both = detached(x), detached(w), detached(grad)
        by_x, by_w = gradients.conv2d_grads(*both, **keywords(*context.parameters))
    else:
        by_x = input_grad(grad, w, x.shape, *context.parameters) if needs_x else None
        by_w = weight_grad(x, grad, w.shape, *context.parameters) if needs_w else None
    by_x = as_operand(by_x, x.dtype) if needs_x else None
    by_w = as_operand(by_w, w.dtype) if needs_w else None
    by_bias = as_operand(grad.sum((0, 2, 3)), context.bias_dtype) if needs_bias else None
    return by_x, by_w, by_bias, *NONE


def backward_input_grad(context, grad):
    grad_y, w = context.saved_tensors
    needs_grad_y, needs_w = context.needs_input_grad[:2]
    by_grad_y = as_operand(conv2d(grad, w, None, *context.parameters), grad_y.dtype) if needs_grad_y else None
    by_w = as_operand(weight_grad(grad, grad_y, w.shape, *context.parameters), w.dtype) if needs_w else None
    return by_grad_y, by_w, None, *NONE


def backward_weight_grad(context, grad):
    x, grad_y = context.saved_tensors
    needs_x, needs_grad_y = context.needs_input_grad[:2]
    by_x = as_operand(input_grad(grad_y, grad, x.shape, *context.parameters), x.dtype) if needs_x else None
    by_grad_y = as_operand(conv2d(x, grad, None, *context.parameters), grad_y.dtype) if needs_grad_y else None
    return by_x, by_grad_y, None, *NONE


def backward_conv_transpose2d(context, grad):
    x, w = context.saved_tensors
    needs_x, needs_w, needs_bias = context.needs_input_grad[:3]
    H, W = x.shape[2:]
    by_x, by_w, by_bias = None, None, None
    if needs_x:
        # Narrowed, not indexed: PyTorch 2.13 has no batches (is_grads_batched) of an index that takes everything.
        by_x = conv2d(grad, w.conj(), None, *context.parameters).narrow(2, 0, H).narrow(3, 0, W)
        by_x = as_operand(by_x, x.dtype)
    if needs_w:
        of_all = as_many(x, grad, w, *context.parameters[:3])
        by_w = as_operand(weight_grad(grad.conj(), of_all.conj(), w.shape, *context.parameters), w.dtype)
    if needs_bias:
        by_bias = as_operand(grad.sum((0, 2, 3)), context.bias_dtype)
    return by_x, by_w, by_bias, None, *NONE


def as_many(x, y, w, stride, padding, dilation):
    """x with zeros after it where the convolution of y has more outputs: output_padding may exceed the stride."""
    P, Q = (output_size(y.shape[2 + a], w.shape[2 + a], stride[a], pairs(padding)[a], dilation[a]) for a in (0, 1))
    H, W = x.shape[2:]
    return x if (P, Q) == (H, W) else nn.functional.pad(x, (0, Q - W, 0, P - H))


# Past the dispatcher.


class Convolution(torch.autograd.Function):
    """conv2d as autograd records it, without the dispatcher."""

    @staticmethod
    def forward(context, *arguments):
        keep(context, arguments, None)
        return run_conv2d(*arguments)

    @staticmethod
    def backward(context, grad):
        return backward_conv2d(context, grad)


class Transposed(torch.autograd.Function):
    """conv_transpose2d likewise."""

    @staticmethod
    def forward(context, *arguments):
        keep(context, arguments, None)
        return run_conv_transpose2d(*arguments)

    @staticmethod
    def backward(context, grad):
        return backward_conv_transpose2d(context, grad)


# Function.apply's own work, 4 microseconds of Python, is for transforms of torch.func, under which none of this runs.
record_convolution = super(torch.autograd.Function, Convolution).apply
record_transposed = super(torch.autograd.Function, Transposed).apply
RECORDED = {"conv2d": record_convolution, "conv_transpose2d": record_transposed}


def watched(first, second, third) -> bool:
    """Whether something beside autograd must see the operator itself, or works through it.

    A compiler or tracer, a transform of torch.func, a mode, the profiler, autocast, a tensor subclass, forward
    derivatives, a view that the dispatcher conjugates or negates first, or a device that has no kernels.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.autograd.forward_ad._current_level >= 0
        or not (is_plain(first) and is_plain(second) and (third is None or is_plain(third)))
    )


wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by a transform, which may be over
batched_gradient = torch._C._functorch.is_legacy_batchedtensor  # of autograd's is_grads_batched


def is_plain(tensor) -> bool:
    known = type(tensor) in (Tensor, nn.Parameter) and (tensor.is_cpu or tensor.is_cuda)
    return known and not (tensor.is_conj() or tensor.is_neg() or wrapped(tensor) or batched_gradient(tensor))


def to_record(first, second, third) -> bool:
    """Whether autograd has to remember the call."""
    wanted = first.requires_grad or second.requires_grad or (third is not None and third.requires_grad)
    return wanted and torch.is_grad_enabled()


# Through transforms of torch.func, and with forward derivatives.


def transforming() -> bool:
    """Whether a derivative or batch is taken that only a torch.autograd.Function knows of."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    if isinstance(interpreter, torch._C._functorch.CInterpreter):
        return interpreter.key() != torch._C._functorch.TransformType.Functionalize
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def operator(name):
    """The operator `name`, or what it ends in, or a Function of it where a transform asks."""
    run, record = globals()[f"run_{name}"], RECORDED.get(name, getattr(OPS, name))

    def call(*arguments):
        first, second, third = arguments[:3]
        bias = third if isinstance(third, Tensor) else None  # the gradients have a shape there
        if watched(first, second, bias):
            return (FUNCTIONS[name].apply if transforming() else getattr(OPS, name))(*arguments)
        return (record if to_record(first, second, bias) else run)(*arguments)

    return call


conv2d, input_grad, weight_grad, conv_transpose2d = map(operator, NAMES)


def function_of(name):
    """The operator as a Function, with the derivatives above, the batches below, and tangents."""

    def setup_context(context, inputs, output):
        keep(context, inputs, output)
        context.save_for_forward(*inputs[:2])
        context.others = [None if isinstance(other, Tensor) else other for other in inputs[2:]]  # without bias
        context.shape = output.shape

    def tangent(context, by_first, by_second, *by_others):
        """Every operator is linear in each of its two operands, and a bias is added."""
        first, second = context.saved_tensors
        parts = []
        if by_first is not None:
            parts.append(globals()[name](by_first, second, *context.others))
        if by_second is not None:
            parts.append(globals()[name](first, by_second, *context.others))
        if isinstance(by_others[0], Tensor):
            parts.append(by_others[0][:, None, None].expand(context.shape))
        return sum(parts[1:], parts[0])

    rules = {
        "forward": lambda *arguments: getattr(OPS, name)(*arguments),
        "setup_context": setup_context,
        "backward": globals()[f"backward_{name}"],
        "jvp": tangent,
        "vmap": globals()[f"vmap_{name}"],
    }
    return type(name, (torch.autograd.Function,), {rule: staticmethod(do) for rule, do in rules.items()})


# Batching over a further axis (torch.func.vmap): images are stacked; weights become groups.


def vmap_conv2d(info, in_dims, x, w, bias, *parameters):
    x_dim, w_dim, bias_dim, *_ = in_dims
    B = info.batch_size
    if w_dim is None and bias_dim is None:
        x = x.movedim(x_dim, 0)
        y = conv2d(x.flatten(0, 1), w, bias, *parameters)
        return y.unflatten(0, (B, -1)), 0
    x, w = batched(x, x_dim, B), batched(w, w_dim, B)
    bias = None if bias is None else batched(bias, bias_dim, B).flatten()
    x = x.movedim(0, 1).flatten(1, 2)
    y = conv2d(x, w.flatten(0, 1), bias, *for_groups(B, *parameters))
    return y.unflatten(1, (B, -1)), 1


def vmap_input_grad(info, in_dims, grad_y, w, shape, *parameters):
    B = info.batch_size
    N, C, H, W = shape
    if in_dims[1] is None:
        grad_y = grad_y.movedim(in_dims[0], 0)
        grad_x = input_grad(grad_y.flatten(0, 1), w, [B * N, C, H, W], *parameters)
        return grad_x.unflatten(0, (B, -1)), 0
    grad_y, w = batched(grad_y, in_dims[0], B), batched(w, in_dims[1], B)
    stacked = grad_y.movedim(0, 1).flatten(1, 2)
    grad_x = input_grad(stacked, w.flatten(0, 1), [N, B * C, H, W], *for_groups(B, *parameters))
    return grad_x.unflatten(1, (B, -1)), 1


def vmap_weight_grad(info, in_dims, x, grad_y, shape, *parameters):
    B = info.batch_size
    x, grad_y = (batched(t, d, B).movedim(0, 1).flatten(1, 2) for t, d in zip((x, grad_y), in_dims[:2], strict=True))
    K, *rest = shape
    grad_w = weight_grad(x, grad_y, [B * K, *rest], *for_groups(B, *parameters))
    return grad_w.unflatten(0, (B, -1)), 0


def vmap_conv_transpose2d(info, in_dims, x, w, bias, shape, *parameters):
    B = info.batch_size
    N, K, P, Q = shape
    if in_dims[1] is None and in_dims[2] is None:
        x = x.movedim(in_dims[0], 0)
        y = conv_transpose2d(x.flatten(0, 1), w, bias, [B * N, K, P, Q], *parameters)
        return y.unflatten(0, (B, -1)), 0
    x, w = batched(x, in_dims[0], B), batched(w, in_dims[1], B)
    bias = None if bias is None else batched(bias, in_dims[2], B).flatten()
    x = x.movedim(0, 1).flatten(1, 2)
    y = conv_transpose2d(x, w.flatten(0, 1), bias, [N, B * K, P, Q], *for_groups(B, *parameters))
    return y.unflatten(1, (B, -1)), 1


def for_groups(B, stride, padding, dilation, groups, precision=None):
    """The parameters of B convolutions that are made the groups of one."""
    return stride, padding, dilation, groups * B, precision


def batched(tensor, dim, B):
    """`tensor` with its vmapped axis first, repeated where it has none."""
    return tensor.expand(B, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


# Autocast: floating tensors but float64, as PyTorch's own convolutions do, in the dtype that the user chose for the
# device; none beside complex ones.


def under_autocast(name, device_type, key):
    operator = getattr(OPS, name)
    excluded = torch._C.DispatchKeySet(key)

    def cast(*arguments):
        if not any(isinstance(a, Tensor) and a.is_complex() for a in arguments):
            dtype = torch.get_autocast_dtype(device_type)
            arguments = [a.to(dtype) if is_castable(a, device_type) else a for a in arguments]
            if dtype != torch.float32:  # then float32's precision, the one string among them, has nothing to say
                arguments = [None if isinstance(a, str) else a for a in arguments]
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return operator(*arguments)

    return cast


def is_castable(value, device_type):
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return floating and value.device.type == device_type


def register():
    for name in NAMES:
        for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA")):
            LIBRARY.impl(name, globals()[f"run_{name}"], key)
            autocast = getattr(torch._C.DispatchKey, f"Autocast{key}")
            LIBRARY.impl(name, under_autocast(name, device_type, autocast), f"Autocast{key}")
        full_name = f"convlib::{name}"
        torch.library.register_fake(full_name, globals()[f"fake_{name}"], lib=LIBRARY)
        torch.library.register_autograd(full_name, globals()[f"backward_{name}"], setup_context=keep, lib=LIBRARY)
        torch.library.register_vmap(full_name, globals()[f"vmap_{name}"], lib=LIBRARY)


register()
FUNCTIONS = {name: function_of(name) for name in NAMES}
