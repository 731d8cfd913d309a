"""conv2d: from the caller's arrays to one kernel and back.

arrays --> views (arrays.py) --> ConvProblem (problem.py) --> a kernel (dispatch.py) --> result, in the caller's library
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from . import accuracy, arrays, device, device_arrays, dispatch, strided, workspace
from .device import Device
from .errors import UnsupportedError
from .problem import (
    LARGEST_ARRAY,
    PADDING_MODES,
    ConvProblem,
    batched_shape,
    check_choice,
    checked_dtype,
    integer,
    make_problem,
    one_spelling,
    shortened,
)

NUMPY_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
OPTIONAL = ("bias", "residual", "out")
FROM_LAYOUT = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}
FROM_WEIGHT_LAYOUT = {"OIHW": (0, 1, 2, 3), "OHWI": (0, 3, 1, 2), "HWIO": (3, 2, 0, 1)}


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | str | tuple = 0,
    dilation: int | tuple[int, int] = 1,
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
) -> Any:
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
    results are rounded; plain sums of products, than which nothing is more accurate, are always allowed. float16 and
    bfloat16 are summed in float32 and rounded once, to the nearest; where a processor multiplies bfloat16 by itself
    ("bfloat16_dot") numbers below 2^-126 count as zero.
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
    library = arrays.library_of(x, "x")
    if arrays.is_complex(library, x) or arrays.is_complex(library, w):
        from . import complex_numbers  # which needs this module

        return complex_numbers.conv2d(
            x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
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
        batched, order = settled.batched, settled.order
        call = Call(
            settled.problem,
            settled.device,
            library.stream(x),
            logical(x_view, batched, order),
            strided.as_storage(weights_view(w_view, weight_layout, flip_kernel)),
            logical(y_view, batched, order),
            strided.as_storage(bias_view),
            logical(residual_view, batched, order),
        )
        if settled.padding is not None:
            mode = NUMPY_PAD[padding_mode]
            call.x = device_arrays.pad(call.x, settled.padding, mode, call.problem.layout, call.device, call.stream)
        run_kernel(settled.chosen, call)
    return library.finished(out)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call's shapes, dtype and keywords decide, and its values do not.

    padding: what x is to be padded with beforehand; None where the kernel does it, as it does with zeros.
    order: the axes of x, residual and y that are N, C, H and W.
    """

    problem: ConvProblem
    device: Device
    chosen: dispatch.Chosen
    y_shape: tuple[int, ...]
    batched: bool
    order: tuple[int, int, int, int]
    channels_last: bool
    padding: tuple[tuple[int, int], tuple[int, int]] | None


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
    if channels_last:
        problem = replace(problem, layout="NHWC")
    padding = None
    if padding_mode != "zeros" and problem.padding != ((0, 0), (0, 0)):
        check_padding_mode(problem, padding_mode)
        padding = problem.padding
        problem = with_padding_inside(problem)
        padded = math.prod(problem.x_shape) * problem.dtype.itemsize
        workspace_limit = limit_after(workspace_limit, padded, "the padded input")
    chosen = dispatch.chosen(problem, device, backend, algorithm, max_error, workspace_limit, tune=tune)
    return Settled(problem, device, chosen, y_shape, batched, FROM_LAYOUT[layout], channels_last, padding)


@dataclass(slots=True)
class Call:
    """What a kernel is run with: views in logical order, as every kernel takes them."""

    problem: ConvProblem
    device: Device
    stream: int | None
    x: Any
    w: Any
    y: Any
    bias: Any
    residual: Any


def check_operands(library, x, dtype, x_name="x", /, **operands):
    """Every array of the call is of x's library, dtype and device. x_name: what the caller calls x.

    dtype: None where the arrays may differ in it.
    """
    place = library.device(x, x_name)
    for name, array in operands.items():
        if array is None and name in OPTIONAL:
            continue
        if not library.owns(array):
            came = arrays.library_of(array, name).name
            raise TypeError(f"{name}: an array of {library.name} needed, like {x_name}, got one of {came}")
        came = library.dtype(array, name)
        if dtype is not None and came != dtype:
            raise TypeError(
                f"{name}: {spelled(dtype)} needed, like {x_name}, got {spelled(came)}; convlib never converts inputs"
            )
        came = library.device(array, name)
        if came != place:
            raise ValueError(f"{name}: an array on {on(place)} needed, like {x_name}, got one on {on(came)}")


def spelled(dtype):
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order"


def on(place):
    kind, index = place
    return kind if kind == "cpu" else f"{kind}:{index}"


def check_flag(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name}: True or False needed, got {shortened(value)}")


def check_shape(name, array, shape):
    if array is not None and tuple(array.shape) != shape:
        raise ValueError(f"{name}: shape {shape} needed, got {tuple(array.shape)}")


def view_of_out(library, out, inputs, name="out"):
    """A view of the caller's `out`: writeable, no element of it in the same place as another or as an input's."""
    library.check_out(out, name)
    y = library.view(out, name)
    if not strided.lies_apart(y):
        raise ValueError(f"{name}: elements that lie apart in memory needed, got strides {y.strides}")
    check_no_overlap(y, inputs, name)
    return y


def check_no_overlap(y, views, y_name="out"):
    for name, view in views.items():
        if view is not None and view.size and y.size and strided.memory_overlaps(y, view):
            raise ValueError(f"{y_name}: memory apart from every input needed, but it overlaps {name}")


def result_shape(problem, batched):
    return callers_shape(problem.y_shape, problem.layout, batched)


def callers_shape(shape, layout, batched):
    """(N, C, H, W) as the caller has it: in `layout`'s order, without N for a single image."""
    N, C, H, W = shape
    image = (C, H, W) if layout == "NCHW" else (H, W, C)
    return (N, *image) if batched else image


def logical(view, batched, order):
    """A view of x, y or residual as (N, C, H, W), 16-bit floats as uint16."""
    if view is None:
        return None
    view = strided.as_storage(view if batched else strided.with_batch(view))
    return view if order == FROM_LAYOUT["NCHW"] else view.transpose(order)


def weights_view(view, weight_layout, flip_kernel):
    """A view of w as (K, C / groups, R, S), each window turned by 180 degrees for `flip_kernel`."""
    if weight_layout != "OIHW":
        view = view.transpose(FROM_WEIGHT_LAYOUT[weight_layout])
    return strided.flipped(view, (2, 3)) if flip_kernel else view


def device_for(library, x, backend) -> Device:
    """Where the call runs. Host arrays reach GPU kernels only when those are simulated or emulated, and asked for."""
    check_choice("backend", backend, dispatch.BACKENDS)
    kind, index = library.device(x, "x")
    if kind == "cuda":
        return device.gpu(index)
    if kind == "simulator" or (backend == "numba_cuda" and device.simulating()):
        return device.simulator()
    if backend in ("numba_cuda", "cupy_raw") and device.emulating():
        return device.emulator()
    return device.cpu()


def with_padding_inside(problem):
    """The same problem on an input that holds its padding already, since kernels pad with zeros only."""
    (top, bottom), (left, right) = problem.padding
    return replace(problem, H=problem.H + top + bottom, W=problem.W + left + right, padding=((0, 0), (0, 0)))


def check_padding_mode(problem, padding_mode):
    """Reflection needs more rows than padding, wrapping at least as many; replication always works."""
    beyond = {"reflect": 1, "circular": 0}.get(padding_mode)
    if beyond is None:
        return
    for name, size, padding in (("H", problem.H, problem.padding[0]), ("W", problem.W, problem.padding[1])):
        if max(padding) + beyond > size:
            raise ValueError(
                f"padding: at most {size - beyond} needed for padding_mode={padding_mode!r} with {name} = {size}, "
                f"got {max(padding)}"
            )


def limit_after(workspace_limit, count, what):
    """What is left of `workspace_limit` for a kernel once `count` bytes for `what` are taken."""
    if workspace_limit is None:
        return None
    left = integer("workspace_limit", workspace_limit, least=0, most=LARGEST_ARRAY) - count
    if left < 0:
        raise UnsupportedError(f"workspace_limit: {count:,} bytes needed for {what} alone, got {workspace_limit:,}")
    return left


def run_kernel(chosen, call):
    """Give the kernel its weights, packed if it wants them so, and its workspace, and run it."""
    if call.device.kind == "cpu":
        return run_on_cpu(chosen, call)
    family, device = chosen.family, call.device
    with device_arrays.current(family, device):
        x, w, y, bias, residual = (
            device_arrays.for_family(view, family, device)
            for view in (call.x, call.w, call.y, call.bias, call.residual)
        )
        count = chosen.workspace_bytes
        memory = device_arrays.device_bytes(count, family, device, call.stream) if count else None
        chosen.kernel.run(call.problem, device, x, w, y, bias, residual, memory, call.stream)


def reads_in_place(kernel, problem, w):
    """Whether packing these weights for one call would cost more than it saves."""
    return hasattr(kernel, "reads_in_place") and kernel.reads_in_place(problem, w)


def run_on_cpu(chosen, call):
    problem, device, w, packed = call.problem, call.device, call.w, chosen.packed_bytes
    memory = workspace.take(packed + chosen.workspace_bytes)
    try:
        if packed and not reads_in_place(chosen.kernel, problem, w):
            chosen.kernel.pack(problem, device, w, memory[:packed])
            w = memory[:packed]
        chosen.kernel.run(problem, device, call.x, w, call.y, call.bias, call.residual, memory[packed:])
    finally:
        workspace.keep(memory)
