"""conv2d: from the caller's arrays to one kernel and back.

arrays --> views (operands.py) --> ConvProblem (problem.py) --> a kernel (choosing.py) --> run (running.py) --> result
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from . import accuracy, arrays, choosing, complex_numbers, device, device_arrays, dispatch, repeated, running, strided
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
from .padding_modes import NO_PADDING, NUMPY_PAD, padded_before
from .padding_taps import without_padding_taps
from .problem import (
    PADDING_MODES,
    ConvProblem,
    Padding,
    Pair,
    batched_shape,
    check_choice,
    checked_dtype,
    make_problem,
    one_spelling,
)


def conv2d(
    x: Array,
    w: Array,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
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
    """Two-dimensional convolution: y = activation(x * w + bias + residual).

    x: (N, C, H, W), or (C, H, W) for one image; w: (K, C / groups, R, S); bias: (K,); residual, out and the result:
    (N, K, P, Q) with P = (H + top + bottom - dilation (R - 1) - 1) // stride + 1, and Q likewise. All of one library
    (NumPy, CuPy, Numba, PyTorch, JAX), one device and one dtype (float16, bfloat16, float32, float64); 16-bit types
    are summed in float32 and rounded once. x, w or both may be complex64 or complex128: then dtypes may differ, the
    result has the one that NumPy's rule gives, activation is None, and a real operand takes half the work of a complex.

    stride, dilation: an int or (rows, columns). padding: an int, (rows, columns), ((top, bottom), (left, right)),
    "valid" or "same" (ceil(size / stride) outputs, the odd element at the end). layout: "NCHW" or "NHWC", of x,
    residual, out and the result; weight_layout: "OIHW", "OHWI" or "HWIO". padding_mode: "zeros", "reflect",
    "replicate" or "circular". flip_kernel: False gives the cross-correlation of deep learning, True the convolution
    of the mathematical definition. activation: None, "relu", "relu6", "silu" or ("leaky_relu", slope).

    algorithm, backend: force a kernel by its two names (see `convlib.kernels()`); what cannot run says why.
    precision: None multiplies float32 as it is. "tf32" lets a GPU's tensor cores do it, on x and w rounded to 11
    significant bits, an error of about 5e-4 that max_error has no say in; "3xtf32" too, in three such products that
    keep the bits of float32 (an infinity becomes NaN). Kernels that know neither are as exact as ever, and slower.
    max_error: the largest norm-relative error against float64 that an algorithm's contract may allow, before 16-bit
    results are rounded; plain sums of products, than which nothing is more accurate, are always allowed, and one below
    all contracts, as 1e-30, leaves only them. float16 and bfloat16 are summed in float32 and rounded once, to the
    nearest; where a processor multiplies bfloat16 by itself ("bfloat16_dot") numbers below 2^-126 count as zero.
    NaN and infinities, in x or in w over x, reach the outputs that read them, and by plain sums no others; transforms
    (Winograd, Fourier, Strassen) spoil more. Padding is no data: where a weight that is infinite or NaN meets it, its
    product is left out or gives NaN, as suits the kernel.
    workspace_limit: the most scratch memory in bytes. tune: run what was measured to be the fastest on this machine
    instead of what is predicted to be; see `convlib.tune`. out: where to write; it must not overlap an input.

    Work goes to the caller's current stream and is not waited for. Inputs are never written. The same call gives the
    same bits. Raises ValueError for a wrong shape or value, TypeError for a wrong dtype or a mixture of libraries,
    UnsupportedError when no kernel serves a valid call.

    >>> import numpy as np
    >>> image = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> kernel = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 2, 2)
    >>> conv2d(image, kernel)[0, 0]
    array([[37., 47.],
           [67., 77.]], dtype=float32)
    >>> conv2d(image, kernel, flip_kernel=True)[0, 0]
    array([[23., 33.],
           [53., 63.]], dtype=float32)
    >>> conv2d(1j * image, kernel)[0, 0, 0]
    array([0.+37.j, 0.+47.j], dtype=complex64)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    operands = (x, w, bias, residual, out)
    keywords = (
        stride, padding, dilation, groups, layout, weight_layout, padding_mode, flip_kernel, activation, algorithm,
        backend, precision, max_error, workspace_limit, tune,
    )  # fmt: skip
    views = operands if type(x) is np.ndarray else arrays.as_numpy(operands)
    signature = repeated.signature(views, (*keywords, views is operands))
    known = known_calls.find(signature)
    if known is not None and known.settled.device is device.cpu():  # which has as many threads as Numba may use now
        return again(known, operands, *views)

    library = arrays.library_of(x, "x")
    if arrays.is_complex(library, x) or arrays.is_complex(library, w):
        return complex_numbers.conv2d(
            conv2d, x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
            weight_layout=weight_layout, padding_mode=padding_mode, flip_kernel=flip_kernel, activation=activation,
            residual=residual, algorithm=algorithm, backend=backend, precision=precision, max_error=max_error,
            workspace_limit=workspace_limit, tune=tune, out=out,
        )  # fmt: skip
    dtype = checked_dtype(library.dtype(x, "x"))
    check_operands(library, x, dtype, w=w, bias=bias, residual=residual, out=out)
    settled = settle(
        tuple(x.shape), tuple(w.shape), dtype, bias is not None, residual is not None,
        (stride, padding, dilation, groups, activation), layout, weight_layout, padding_mode, flip_kernel,
        library.channels_last(x), device_for(library, x, backend), backend, algorithm, precision, max_error,
        workspace_limit, tune,
    )  # fmt: skip
    check_shape("bias", bias, (settled.problem.K,))
    check_shape("residual", residual, settled.y_shape)
    check_shape("out", out, settled.y_shape)

    x_view, w_view = library.view(x, "x"), library.view(w, "w")
    bias_view = None if bias is None else library.view(bias, "bias")
    residual_view = None if residual is None else library.view(residual, "residual")
    if out is None:
        out, y_view = library.result(x, settled.y_shape, settled.channels_last)
    else:
        y_view = view_of_out(library, out, {"x": x_view, "w": w_view, "bias": bias_view, "residual": residual_view})
    if settled.problem.N > 0:
        call = as_call(settled, x_view, w_view, y_view, bias_view, residual_view, library.stream(x))
        running.run_kernel(settled.chosen, call)
        if signature is not None and settled.device.kind == "cpu" and not tune:
            known_calls.keep(signature, Known(settled, library, running.cpu_launch(settled.chosen, call)))
    return library.finished(out)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a call that came before."""

    settled: Settled
    library: Any
    launch: running.CpuLaunch


known_calls = repeated.Repeated()


def again(known, operands, x, w, bias, residual, out):
    """conv2d of operands that are like those of an earlier call, and of NumPy's views of them."""
    settled, y = known.settled, operands[-1]
    if out is None:
        y, out = known.library.result(operands[0], settled.y_shape, settled.channels_last)
    elif any_may_overlap(out, x, w, bias, residual):
        check_no_overlap(out, {"x": x, "w": w, "bias": bias, "residual": residual})
    known.launch.run(as_call(settled, x, w, out, bias, residual, None))
    return y


def any_may_overlap(out, x, w, bias, residual) -> bool:
    """Whether the bounds of `out` overlap those of an input: in half the time of `check_no_overlap`."""
    may = np.may_share_memory
    return (
        may(out, x)
        or may(out, w)
        or (bias is not None and may(out, bias))
        or (residual is not None and may(out, residual))
    )


def as_call(settled, x, w, y, bias, residual, stream):
    """The call of the kernel for views in the caller's order."""
    problem = settled.problem
    if not settled.as_they_lie:
        batched, order = settled.batched, settled.order
        x, y, residual = (logical(view, batched, order) for view in (x, y, residual))
        w = strided.as_storage(weights_view(w, settled.weight_layout, settled.flip_kernel))
        bias = strided.as_storage(bias)
    if settled.taps is not None:
        w = w[settled.taps]
    if settled.padding is not None:
        x = device_arrays.pad(x, settled.padding, settled.pad_mode, problem.layout, settled.device, stream)
    return running.Call(problem, settled.device, stream, x, w, y, bias, residual)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call's shapes, dtype and keywords decide, and its values do not.

    padding: what x is to be padded with beforehand, in NumPy's pad_mode; None where the kernel does it, as it does with
    zeros. taps: the part of w that meets more than padding; None where all of it does. order: the axes of x, residual
    and y that are N, C, H and W. as_they_lie: whether kernels take the caller's arrays as they are, in logical order.
    """

    problem: ConvProblem
    device: Device
    chosen: dispatch.Chosen
    y_shape: tuple[int, ...]
    batched: bool
    order: tuple[int, int, int, int]
    channels_last: bool
    padding: tuple[tuple[int, int], tuple[int, int]] | None
    pad_mode: str | None
    taps: tuple[slice, ...] | None
    weight_layout: str
    flip_kernel: bool
    as_they_lie: bool


def settle(x_shape, w_shape, dtype, has_bias, has_residual, parameters, *rest) -> Settled:
    """Check everything about a call but its arrays, and choose its kernel; from a cache where it came before."""
    parameters = one_spelling(*parameters)
    try:
        return settled_before(x_shape, w_shape, dtype, has_bias, has_residual, parameters, *rest)
    except TypeError:
        # Something in `rest` cannot be a key, so it is wrong: the check that it fails names it.
        return settled_before.__wrapped__(x_shape, w_shape, dtype, has_bias, has_residual, parameters, *rest)


@lru_cache(maxsize=4096, typed=True)
def settled_before(
    x_shape, w_shape, dtype, has_bias, has_residual, parameters, layout, weight_layout, padding_mode, flip_kernel,
    channels_last, device, backend, algorithm, precision, max_error, workspace_limit, tune,
):  # fmt: skip
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_flag("flip_kernel", flip_kernel)
    check_flag("tune", tune)
    x_shape, batched = batched_shape(x_shape)
    stride, padding, dilation, groups, activation = parameters
    problem = make_problem(
        x_shape, w_shape, dtype, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
        weight_layout=weight_layout, activation=activation, has_bias=has_bias, has_residual=has_residual,
        precision=precision,
    )  # fmt: skip
    y_shape = result_shape(problem, batched)
    channels_last = channels_last and layout == "NCHW"
    problem = replace(problem, layout="NHWC") if channels_last else problem
    padding = None if padding_mode == "zeros" or problem.padding == NO_PADDING else problem.padding
    problem, workspace_limit = padded_before(problem, padding_mode, workspace_limit)
    problem, taps = without_padding_taps(problem, algorithm)
    chosen = choosing.chosen(problem, device, backend, algorithm, max_error, workspace_limit, tune=tune)
    as_they_lie = (
        batched and layout == "NCHW" and weight_layout == "OIHW" and not flip_kernel and problem.dtype.itemsize > 2
    )
    return Settled(
        problem, device, chosen, y_shape, batched, FROM_LAYOUT[layout], channels_last, padding,
        NUMPY_PAD.get(padding_mode), taps, weight_layout, flip_kernel, as_they_lie,
    )  # fmt: skip
