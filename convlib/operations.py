"""conv2d: from the caller's arrays to one kernel and back.

arrays --> views (arrays.py) --> ConvProblem (problem.py) --> a kernel (dispatch.py) --> result, in the caller's library
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import accuracy, arrays, device, dispatch
from .device import Device
from .errors import UnsupportedError
from .problem import PADDING_MODES, ConvProblem, check_choice, make_problem
from .workspace import aligned, scratch

NUMPY_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
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
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    out: Any = None,
) -> Any:
    """Two-dimensional convolution: y = activation(x * w + bias + residual).

    x: (N, C, H, W), or (C, H, W) for one image; w: (K, C / groups, R, S); bias: (K,); residual, out and the result:
    (N, K, P, Q) with P = (H + top + bottom - dilation (R - 1) - 1) // stride + 1, and Q likewise. All of one library
    (NumPy, CuPy, Numba, PyTorch, JAX), one device and one dtype (float16, bfloat16, float32, float64); 16-bit types
    are summed in float32 and rounded once.

    stride, dilation: an int or (rows, columns). padding: an int, (rows, columns), ((top, bottom), (left, right)),
    "valid" or "same" (ceil(size / stride) outputs, the odd element at the end). layout: "NCHW" or "NHWC", of x,
    residual, out and the result; weight_layout: "OIHW", "OHWI" or "HWIO". padding_mode: "zeros", "reflect",
    "replicate" or "circular". flip_kernel: False gives the cross-correlation of deep learning, True the convolution
    of the mathematical definition. activation: None, "relu", "relu6", "silu" or ("leaky_relu", slope).

    algorithm, backend: force a kernel by its two names (see `convlib.kernels()`); what cannot run says why.
    max_error: the largest norm-relative error against float64 that an algorithm's contract may allow.
    workspace_limit: the most scratch memory in bytes. out: where to write; it must not overlap an input.

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

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    call = prepare(
        x, w, bias, residual, out, layout, weight_layout, padding_mode, flip_kernel, backend,
        stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation,
    )  # fmt: skip
    name = dispatch.choose(
        call.problem, call.device, backend, algorithm, max_error, limit_after_padding(workspace_limit, call)
    )
    if call.problem.N > 0:
        run_kernel(dispatch.kernel(name), dispatch.family_of(name), call)
    return call.library.finished(call.result)


@dataclass(slots=True)
class Call:
    """One call with its arguments checked: views in logical order, as every kernel takes them."""

    problem: ConvProblem
    device: Device
    stream: int | None
    x: Any
    w: Any
    y: Any
    bias: Any
    residual: Any
    library: Any = None
    result: Any = None
    padding_bytes: int = 0


def prepare(x, w, bias, residual, out, layout, weight_layout, padding_mode, flip_kernel, backend, **parameters):
    """Check every argument of a forward call, allocate its result, and gather views of all of them."""
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    library = arrays.library_of(x, "x")
    dtype = library.dtype(x)
    check_operands(library, x, dtype, w=w, bias=bias, residual=residual, out=out)
    batched = len(x.shape) == 4
    problem = make_problem(
        tuple(x.shape) if batched else (1, *x.shape), tuple(w.shape), dtype, layout=layout,
        weight_layout=weight_layout, has_bias=bias is not None, has_residual=residual is not None,
        **{name: hashable(value) for name, value in parameters.items()},
    )  # fmt: skip
    shape = result_shape(problem, batched)
    check_shape("bias", bias, (problem.K,))
    check_shape("residual", residual, shape)
    check_shape("out", out, shape)

    channels_last = library.channels_last(x)
    result, y_view = (out, library.view(out, "out")) if out is not None else library.result(x, shape, channels_last)
    views = {"x": library.view(x, "x"), "w": library.view(w, "w")}
    if bias is not None:
        views["bias"] = library.view(bias, "bias")
    if residual is not None:
        views["residual"] = library.view(residual, "residual")
    if out is not None:
        library.check_out(out)
        check_no_overlap(y_view, views)

    order = FROM_LAYOUT[layout]
    call = Call(
        replace(problem, layout="NHWC") if channels_last else problem,
        device_for(library, x, backend),
        library.stream(x),
        logical(views["x"], batched, order),
        arrays.as_storage(weights_view(views["w"], weight_layout, flip_kernel)),
        logical(y_view, batched, order),
        arrays.as_storage(views.get("bias")),
        logical(views.get("residual"), batched, order),
        library,
        result,
    )
    return call if padding_mode == "zeros" else with_padded_input(call, padding_mode)


def check_operands(library, x, dtype, x_name="x", **operands):
    """Every array of the call is of x's library, dtype and device. x_name: what the caller calls x."""
    place = library.device(x)
    for name, array in operands.items():
        if array is None:
            continue
        if not library.owns(array):
            came = arrays.library_of(array, name).name
            raise TypeError(f"{name}: an array of {library.name} needed, like {x_name}, got one of {came}")
        if library.dtype(array) != dtype:
            raise TypeError(
                f"{name}: {dtype} needed, like {x_name}, got {library.dtype(array)}; convlib never converts inputs"
            )
        if library.device(array) != place:
            came = on(library.device(array))
            raise ValueError(f"{name}: an array on {on(place)} needed, like {x_name}, got one on {came}")


def on(place):
    kind, index = place
    return kind if kind == "cpu" else f"{kind}:{index}"


def check_shape(name, array, shape):
    if array is not None and tuple(array.shape) != shape:
        raise ValueError(f"{name}: shape {shape} needed, got {tuple(array.shape)}")


def check_no_overlap(y, views):
    for name, view in views.items():
        if view is not None and view.size and y.size and arrays.memory_overlaps(y, view):
            raise ValueError(f"out: memory apart from every input needed, but it overlaps {name}")


def hashable(value):
    return tuple(hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


def result_shape(problem, batched):
    N, K, P, Q = problem.y_shape
    shape = (K, P, Q) if problem.layout == "NCHW" else (P, Q, K)
    return (N, *shape) if batched else shape


def logical(view, batched, order):
    """A view of x, y or residual as (N, C, H, W), 16-bit floats as uint16."""
    if view is None:
        return None
    view = arrays.as_storage(view if batched else arrays.with_batch(view))
    return view if order == FROM_LAYOUT["NCHW"] else view.transpose(order)


def weights_view(view, weight_layout, flip_kernel):
    """A view of w as (K, C / groups, R, S), each window turned by 180 degrees for `flip_kernel`."""
    if weight_layout != "OIHW":
        view = view.transpose(FROM_WEIGHT_LAYOUT[weight_layout])
    return arrays.flipped(view, (2, 3)) if flip_kernel else view


def device_for(library, x, backend) -> Device:
    """Where the call runs. Host arrays reach GPU kernels only when those are simulated or emulated, and asked for."""
    kind, index = library.device(x)
    if kind == "cuda":
        return device.gpu(index)
    if kind == "simulator" or (backend == "numba_cuda" and device.simulating()):
        return device.simulator()
    if backend in ("numba_cuda", "cupy_raw") and device.emulating():
        return device.emulator()
    return device.cpu()


def with_padded_input(call, padding_mode):
    """The same call on an input that is padded beforehand, as the kernels know zeros only."""
    problem = call.problem
    check_padding_mode(problem, padding_mode)
    (top, bottom), (left, right) = problem.padding
    padded = arrays.pad(call.x, problem.padding, NUMPY_PAD[padding_mode], call.device, call.stream)
    H, W = problem.H + top + bottom, problem.W + left + right
    return replace(
        call,
        problem=replace(problem, H=H, W=W, padding=((0, 0), (0, 0))),
        x=padded,
        padding_bytes=problem.N * problem.C * H * W * problem.dtype.itemsize,
    )


def check_padding_mode(problem, padding_mode):
    """Reflection needs more rows than padding, wrapping at least as many; replication always works."""
    least = {"reflect": 1, "circular": 0}.get(padding_mode)
    if least is None:
        return
    for name, size, padding in (("H", problem.H, problem.padding[0]), ("W", problem.W, problem.padding[1])):
        if max(padding) + least > size:
            raise ValueError(
                f"padding: at most {size - least} needed for padding_mode={padding_mode!r} with {name} = {size}, "
                f"got {max(padding)}"
            )


def limit_after_padding(workspace_limit, call):
    """What is left of `workspace_limit` for a kernel once the padded input is counted."""
    if workspace_limit is None:
        return None
    left = workspace_limit - call.padding_bytes
    if left < 0:
        raise UnsupportedError(
            f"workspace_limit: {call.padding_bytes:,} bytes needed for the padded input alone, got {workspace_limit:,}"
        )
    return left


def run_kernel(kernel, family, call):
    """Pack the weights if the kernel wants them so, give it its workspace, and run it."""
    problem, device = call.problem, call.device
    if device.kind == "cpu":
        return run_on_cpu(kernel, call)
    x, w, y, bias, residual = (
        arrays.for_family(view, family, device) for view in (call.x, call.w, call.y, call.bias, call.residual)
    )
    count = kernel.workspace_bytes(problem, device)
    workspace = arrays.device_bytes(count, family, device, call.stream) if count else None
    kernel.run(problem, device, x, w, y, bias, residual, workspace, call.stream)


def run_on_cpu(kernel, call):
    problem, device, w = call.problem, call.device, call.w
    packed = aligned(kernel.packed_bytes(problem, device)) if hasattr(kernel, "pack") else 0
    count = kernel.workspace_bytes(problem, device)
    with scratch(packed + count) as memory:
        if packed:
            kernel.pack(problem, device, w, memory[:packed])
            w = memory[:packed]
        kernel.run(problem, device, call.x, w, call.y, call.bias, call.residual, memory[packed:])
