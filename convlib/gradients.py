"""The gradients of conv2d, and conv_transpose2d, which is the input gradient with a name and a bias of its own.

input gradient    a kernel of the pass "input_grad", or forward problems, one per phase of the stride (transposed.py)
weight gradient   kernels of the pass "weight_grad": a reduction over all images and outputs
bias gradient     the sum over images and outputs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import accuracy, arrays, choosing, complex_numbers, device, device_arrays, repeated, running, strided
from .arrays import Array
from .device import Device
from .operands import (
    FROM_LAYOUT,
    check_flag,
    check_no_overlap,
    check_operands,
    check_shape,
    device_for,
    logical,
    result_shape,
    view_of_out,
    weights_view,
)
from .padding_modes import NUMPY_PAD, padded_before
from .problem import (
    COMPLEX_DTYPES,
    PADDING_MODES,
    Padding,
    Pair,
    batched_shape,
    check_choice,
    checked_dtype,
    checked_padding,
    four_sizes,
    make_problem,
)
from .transposed import Transposed, checked, launched, run_folded, run_transposed
from .transposed_shapes import transposed_shape


def conv2d_input_grad(
    grad_y: Array,
    w: Array,
    input_shape: Sequence[int],
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    tune: bool = False,
    out: Any = None,
) -> Array:
    """The gradient by x of conv2d(x, w, ...): what grad_y, the gradient by its result, becomes at its input.

    grad_y: (N, K, P, Q), or (K, P, Q); w: (K, C / groups, R, S); input_shape: that of x, (N, C, H, W) or (C, H, W) in
    `layout`'s order; the result has it. The other arguments and the errors are conv2d's. Any forward kernel may be
    forced: the gradient runs through those, one phase of the stride at a time; so may one of the pass "input_grad",
    which takes all phases at once. Of complex numbers it is the adjoint: w is conjugated, as in PyTorch.

    >>> import numpy as np
    >>> conv2d_input_grad(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32), (1, 1, 3, 3))[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, chapter 4.
    """
    operands = {"grad_y": grad_y, "w": w, "out": out}
    keywords = (
        "input_grad", stride, padding, dilation, groups, layout, weight_layout, padding_mode, flip_kernel, algorithm,
        backend, precision, max_error, workspace_limit, tune,
    )  # fmt: skip
    signature, known, views = came_before(operands, input_shape, keywords)
    if known is not None:
        return again_into(known, operands, views)

    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("flip_kernel", flip_kernel)
    check_flag("tune", tune)
    library = arrays.library_of(grad_y, "grad_y")
    if arrays.is_complex(library, grad_y) or arrays.is_complex(library, w):
        return complex_numbers.conv2d_input_grad(
            conv2d_input_grad, grad_y, w, input_shape,
            stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
            weight_layout=weight_layout, padding_mode=padding_mode, flip_kernel=flip_kernel, algorithm=algorithm,
            backend=backend, precision=precision, max_error=max_error, workspace_limit=workspace_limit,
            tune=tune, out=out,
        )  # fmt: skip
    dtype = checked_dtype(library.dtype(grad_y, "grad_y"), "grad_y")
    check_operands(library, grad_y, dtype, "grad_y", w=w, out=out)
    shape, batched = batched_shape(input_shape, "input_shape")
    problem = make_problem(
        shape, tuple(w.shape), dtype, layout=layout, weight_layout=weight_layout, pass_="input_grad",
        stride=stride, padding=padding, dilation=dilation, groups=groups, precision=precision,
    )  # fmt: skip
    check_shape("grad_y", grad_y, result_shape(problem, batched))
    check_shape("out", out, tuple(input_shape))
    channels_last = layout == "NCHW" and library.channels_last(grad_y)
    problem = replace(problem, layout="NHWC") if channels_last else problem
    views = {"grad_y": library.view(grad_y, "grad_y"), "w": library.view(w, "w")}
    result, grad_x = result_and_view(library, grad_y, tuple(input_shape), out, views, channels_last)
    place, stream = device_for(library, grad_y, backend), library.stream(grad_y)
    choice = checked(problem, place, backend, algorithm, max_error, workspace_limit, tune)
    spelling = Spelling(batched, layout, weight_layout, flip_kernel)

    def call_of(grad_y, w, grad_x):
        operands = spelling.images(grad_y), spelling.weights(w), spelling.images(grad_x)
        return Transposed(problem, place, stream, *operands)

    call = call_of(*views.values(), grad_x)
    if padding_mode != "zeros":
        run_folded(call, padding_mode, choice)
        return library.finished(result)
    parts = run_transposed(call, choice)
    if may_come_again(signature, place, problem, tune):
        launch = launched(parts, call)
        known_calls.keep(signature, Known(place, library, tuple(input_shape), channels_last, call_of, launch))
    return library.finished(result)


def conv2d_weight_grad(
    x: Array,
    grad_y: Array,
    weight_shape: Sequence[int],
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    tune: bool = False,
    out: Any = None,
) -> Array:
    """The gradient by w of conv2d(x, w, ...): each tap's products of input and grad_y, summed over images and outputs.

    x: (N, C, H, W), or (C, H, W); grad_y: (N, K, P, Q), or (K, P, Q); weight_shape: that of w, (K, C / groups, R, S) in
    `weight_layout`'s order; the result has it. A kernel gives the same bits, however many threads or blocks work on it,
    but their number may change which one "auto" takes. Of complex numbers it is the adjoint: x is conjugated, as in
    PyTorch. The other arguments and the errors are conv2d's.

    >>> import numpy as np
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> conv2d_weight_grad(x, np.ones((1, 1, 2, 2), np.float32), (1, 1, 2, 2))[0, 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    operands = {"x": x, "grad_y": grad_y, "out": out}
    keywords = (
        "weight_grad", stride, padding, dilation, groups, layout, weight_layout, padding_mode, flip_kernel, algorithm,
        backend, precision, max_error, workspace_limit, tune,
    )  # fmt: skip
    signature, known, views = came_before(operands, weight_shape, keywords)
    if known is not None:
        return again_into(known, operands, views)

    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("flip_kernel", flip_kernel)
    check_flag("tune", tune)
    library = arrays.library_of(x, "x")
    if arrays.is_complex(library, x) or arrays.is_complex(library, grad_y):
        return complex_numbers.conv2d_weight_grad(
            conv2d_weight_grad, x, grad_y, weight_shape,
            stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
            weight_layout=weight_layout, padding_mode=padding_mode, flip_kernel=flip_kernel, algorithm=algorithm,
            backend=backend, precision=precision, max_error=max_error, workspace_limit=workspace_limit,
            tune=tune, out=out,
        )  # fmt: skip
    dtype = checked_dtype(library.dtype(x, "x"))
    check_operands(library, x, dtype, grad_y=grad_y, out=out)
    shape, batched = batched_shape(tuple(x.shape))
    problem = make_problem(
        shape, four_sizes("weight_shape", weight_shape, weight_layout), dtype, layout=layout,
        weight_layout=weight_layout, pass_="weight_grad",
        stride=stride, padding=padding, dilation=dilation, groups=groups, precision=precision,
    )  # fmt: skip
    check_shape("grad_y", grad_y, result_shape(problem, batched))
    check_shape("out", out, tuple(weight_shape))
    views = {"x": library.view(x, "x"), "grad_y": library.view(grad_y, "grad_y")}
    result, grad_w = result_and_view(library, x, tuple(weight_shape), out, views)
    place, stream = device_for(library, x, backend), library.stream(x)
    padding = problem.padding
    problem, workspace_limit = padded_before(problem, padding_mode, workspace_limit)
    chosen = choosing.chosen(problem, place, backend, algorithm, max_error, workspace_limit, tune=tune)
    spelling = Spelling(batched, layout, weight_layout, flip_kernel)

    def call_of(x, grad_y, grad_w):
        x, grad_y, grad_w = spelling.images(x), spelling.images(grad_y), spelling.weights(grad_w)
        if problem.padding != padding:
            x = device_arrays.pad(x, padding, NUMPY_PAD[padding_mode], layout, place, stream)
        return running.Call(problem, place, stream, x, grad_y, grad_w, None, None)

    if problem.N == 0:
        device_arrays.fill_zeros(spelling.weights(grad_w), place, stream)
        return library.finished(result)
    call = call_of(*views.values(), grad_w)
    running.run_kernel(chosen, call)
    if may_come_again(signature, place, problem, tune):
        launch = running.cpu_launch(chosen, call).run
        known_calls.keep(signature, Known(place, library, tuple(weight_shape), False, call_of, launch))
    return library.finished(result)


def conv2d_grads(x: Array, w: Array, grad_y: Array, **keywords) -> tuple[Array, Array]:
    """conv2d_input_grad and conv2d_weight_grad of one convolution, which looks at the arrays of calls that come again
    once for both: for operators with derivatives. keywords: stride, padding, dilation, groups and precision.
    """
    operands = (x, w, grad_y)
    views = arrays.as_numpy(operands)
    signature = repeated.signature(views, ("both", *keywords.items(), views is operands))
    both = known_calls.find(signature)
    if both is None or both[0].device is not device.cpu():
        by_x = conv2d_input_grad(grad_y, w, tuple(x.shape), **keywords)
        by_w = conv2d_weight_grad(x, grad_y, tuple(w.shape), **keywords)
        both = (
            known_of(conv2d_input_grad, x.shape, keywords, grad_y=grad_y, w=w, out=None),
            known_of(conv2d_weight_grad, w.shape, keywords, x=x, grad_y=grad_y, out=None),
        )
        known_calls.keep(signature if all(both) else None, both)
        return by_x, by_w
    x_view, w_view, grad_view = views
    return again(both[0], grad_y, (grad_view, w_view)), again(both[1], x, (x_view, grad_view))


def known_of(function, shape, keywords, **operands):
    """What is known of a call of one of the two gradients, made with these keywords."""
    keywords = {**function.__kwdefaults__, **keywords}
    del keywords["out"]
    return came_before(operands, tuple(shape), (function.__name__.removeprefix("conv2d_"), *keywords.values()))[1]


def conv2d_bias_grad(grad_y: Array, *, layout: str = "NCHW") -> Array:
    """The gradient by bias of conv2d: grad_y (N, K, P, Q), or (K, P, Q), summed over all but K. Returns (K,).

    Sums are kept in float64 and rounded once.

    >>> import numpy as np
    >>> conv2d_bias_grad(np.ones((2, 3, 4, 5), np.float32))
    array([40., 40., 40.], dtype=float32)
    """
    check_choice("layout", layout, tuple(FROM_LAYOUT))
    library = arrays.library_of(grad_y, "grad_y")
    dtype = library.dtype(grad_y, "grad_y")
    if dtype.name not in COMPLEX_DTYPES:
        checked_dtype(dtype, "grad_y")
    if len(grad_y.shape) not in (3, 4):
        raise ValueError(f"grad_y: 3 or 4 dimensions needed ({layout}), got {len(grad_y.shape)}")
    channels = len(grad_y.shape) - (3 if layout == "NCHW" else 1)
    axes = tuple(a for a in range(len(grad_y.shape)) if a != channels)
    result, view = library.result(grad_y, (grad_y.shape[channels],), False)
    place, stream = device_for(library, grad_y, "auto"), library.stream(grad_y)
    device_arrays.sum_into(view, library.view(grad_y, "grad_y"), axes, place, stream)
    return library.finished(result)


def conv_transpose2d(
    x: Array,
    w: Array,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    residual: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    tune: bool = False,
    out: Any = None,
) -> Array:
    """Transposed convolution: y = activation(adjoint of conv2d(., w) at x + bias + residual).

    x: (N, C, H, W), or (C, H, W); w: (C, K / groups, R, S), as PyTorch has it, that is the weights of the convolution
    from K to C channels that this one transposes ("O" of weight_layout is C, "I" is K / groups); bias: (K,). The result
    is (N, K, P, Q) with P = (H - 1) stride - top - bottom + dilation (R - 1) + output_padding + 1, and Q likewise;
    padding="same" makes it H times stride. output_padding: rows and columns added at the end, fewer than the stride
    or the dilation. The other arguments and the errors are conv2d's. Complex w are not conjugated, as in PyTorch.

    >>> import numpy as np
    >>> conv_transpose2d(np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32), stride=2)[0, 0]
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.],
           [1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, chapter 4.
    """
    operands = {"x": x, "w": w, "bias": bias, "residual": residual, "out": out}
    keywords = (
        "transposed", stride, padding, output_padding, dilation, groups, layout, weight_layout, flip_kernel, activation,
        algorithm, backend, precision, max_error, workspace_limit, tune,
    )  # fmt: skip
    signature, known, views = came_before(operands, (), keywords)
    if known is not None:
        return again_into(known, operands, views)

    check_flag("flip_kernel", flip_kernel)
    check_flag("tune", tune)
    library = arrays.library_of(x, "x")
    if arrays.is_complex(library, x) or arrays.is_complex(library, w):
        return complex_numbers.conv_transpose2d(
            conv_transpose2d, x, w, bias,
            stride=stride, padding=padding, output_padding=output_padding, dilation=dilation,
            groups=groups, layout=layout, weight_layout=weight_layout, flip_kernel=flip_kernel, activation=activation,
            residual=residual, algorithm=algorithm, backend=backend, precision=precision, max_error=max_error,
            workspace_limit=workspace_limit, tune=tune, out=out,
        )  # fmt: skip
    dtype = checked_dtype(library.dtype(x, "x"))
    check_operands(library, x, dtype, w=w, bias=bias, residual=residual, out=out)
    shape, batched = batched_shape(tuple(x.shape))
    shape, padding = transposed_shape(
        shape, w.shape, layout, weight_layout, stride, checked_padding(padding),
        output_padding, dilation, groups,
    )  # fmt: skip
    problem = make_problem(
        shape, tuple(w.shape), dtype, layout=layout, weight_layout=weight_layout, pass_="input_grad", stride=stride,
        padding=padding, dilation=dilation, groups=groups, activation=activation, has_bias=bias is not None,
        has_residual=residual is not None, precision=precision,
    )  # fmt: skip
    shape = shape if batched else shape[1:]
    check_shape("bias", bias, (problem.C,))
    check_shape("residual", residual, shape)
    check_shape("out", out, shape)
    views = {"x": library.view(x, "x"), "w": library.view(w, "w")}
    for name, array in (("bias", bias), ("residual", residual)):
        views[name] = None if array is None else library.view(array, name)
    channels_last = library.channels_last(x)
    result, y = result_and_view(library, x, shape, out, views, channels_last)
    place, stream = device_for(library, x, backend), library.stream(x)
    choice = checked(problem, place, backend, algorithm, max_error, workspace_limit, tune)
    spelling = Spelling(batched, layout, weight_layout, flip_kernel)

    def call_of(x, w, bias, residual, y):
        operands = spelling.images(x), spelling.weights(w), spelling.images(y)
        return Transposed(problem, place, stream, *operands, strided.as_storage(bias), spelling.images(residual))

    call = call_of(*views.values(), y)
    parts = run_transposed(call, choice)
    if may_come_again(signature, place, problem, tune):
        known_calls.keep(signature, Known(place, library, shape, channels_last, call_of, launched(parts, call)))
    return library.finished(result)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How the caller's arrays lie: `layout` of images, one or a batch, and `weight_layout`."""

    batched: bool
    layout: str
    weight_layout: str
    flip_kernel: bool

    def images(self, view):
        return logical(view, self.batched, FROM_LAYOUT[self.layout])

    def weights(self, view):
        return strided.as_storage(weights_view(view, self.weight_layout, self.flip_kernel))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a call that came before: the result's shape, and how it runs on views of the caller's arrays.

    call_of: makes of the inputs' and the result's views what `launch` takes.
    """

    device: Device
    library: Any
    shape: tuple[int, ...]
    channels_last: bool
    call_of: Callable
    launch: Callable


known_calls = repeated.Repeated()


def came_before(operands, shape, keywords):
    """The signature of a call, what is known of it, and NumPy's views of its operands. shape: of the result, if given.

    What is known holds for as many threads as Numba may use now.
    """
    arrays_given = tuple(operands.values())
    views = arrays_given if type(arrays_given[0]) is np.ndarray else arrays.as_numpy(arrays_given)
    if not isinstance(shape, (tuple, list)):
        return None, None, views
    signature = repeated.signature(views, (tuple(shape), *keywords, views is arrays_given))
    known = known_calls.find(signature)
    return signature, known if known is not None and known.device is device.cpu() else None, views


def may_come_again(signature, place, problem, tune) -> bool:
    """Whether a call is worth remembering: one on the CPU whose kernel does not hang on what is measured later."""
    return signature is not None and place.kind == "cpu" and problem.N > 0 and not tune


def again_into(known, operands, views):
    """A call whose operands are like those of an earlier one, into the caller's `out` or new memory."""
    *inputs, y = views
    out = operands["out"]
    if out is None:
        return again(known, next(iter(operands.values())), inputs)
    check_no_overlap(y, dict(zip(operands, inputs)))
    known.launch(known.call_of(*inputs, y))
    return out


def again(known, like, inputs):
    result, y = known.library.result(like, known.shape, known.channels_last)
    known.launch(known.call_of(*inputs, y))
    return result


def result_and_view(library, like, shape, out, inputs, channels_last=False):
    """Where the result goes, the caller's `out`, apart from the views of all inputs, or new memory; and its view."""
    if out is None:
        return library.result(like, shape, channels_last)
    return out, view_of_out(library, out, inputs)
