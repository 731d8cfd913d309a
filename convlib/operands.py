"""A call's arrays: held against one another, and seen as kernels take them.

Every operation checks its operands here and has its views of them from here: images as (N, C, H, W), weights as
(K, C / groups, R, S), whatever the caller's layouts.
"""

from __future__ import annotations

from . import arrays, device, dispatch, strided
from .device import Device
from .problem import check_choice, shortened

OPTIONAL = ("bias", "residual", "out")
FROM_LAYOUT = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}
FROM_WEIGHT_LAYOUT = {"OIHW": (0, 1, 2, 3), "OHWI": (0, 3, 1, 2), "HWIO": (3, 2, 0, 1)}


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
        if view is not None and strided.memory_overlaps(y, view) and view.size and y.size:
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
