"""What is done where a call's device computes: a family's array type, scratch memory, padding, zeros, sums.

On the CPU, in the simulator and in the emulator by NumPy; on a GPU by CuPy, on the caller's stream.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from . import arrays
from .errors import UnsupportedError
from .strided import CudaView, empty_aligned, extent


def current(family, device):
    """A context in which `device` is the one that allocations and launches of `family` go to."""
    if device.kind != "cuda":
        return contextlib.nullcontext()
    if family == "numba_cuda":
        from numba import cuda

        return cuda.gpus[device.index]
    import cupy

    return cupy.cuda.Device(device.index)


def for_family(view, family, device):
    """`view` as the array type that the kernels of `family` take on `device`."""
    if view is None or isinstance(view, np.ndarray):
        return view
    if family == "numba_cuda":
        from numba import cuda

        return cuda.as_cuda_array(view, sync=False)
    import cupy

    if is_whole(view, cupy.ndarray):
        return view.owner
    first, last = extent(view)
    memory = cupy.cuda.UnownedMemory(first, last - first, view.owner, device.index)
    pointer = cupy.cuda.MemoryPointer(memory, view.address - first)
    return cupy.ndarray(view.shape, view.dtype, pointer, view.strides)


def is_whole(view, kind):
    """Whether a view's owner is an array of `kind` that has its address, shape and strides: then it serves as it is."""
    owner = view.owner
    return (
        type(owner) is kind
        and owner.data.ptr == view.address
        and owner.strides == view.strides
        and owner.shape == view.shape
        and owner.dtype.itemsize == view.dtype.itemsize
    )


def device_bytes(count, family, device, stream):
    """`count` uninitialised bytes on the current device, from the pool that `family` launches through."""
    if device.kind in ("simulator", "emulator"):
        return empty_aligned((count,), np.uint8)
    if family == "numba_cuda":
        from numba import cuda

        return cuda.device_array(count, np.uint8)
    import cupy

    from .kernels.launching import cupy_stream

    with cupy_stream(stream):
        return cupy.empty(count, np.uint8)


def wait_for(stream, device):
    """Return when `stream` has done what it was given."""
    if device.kind == "cuda":
        import cupy

        (cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null).synchronize()


def pad(view, padding, mode, layout, device, stream):
    """A copy of x (N, C, H, W) with `padding` rows and columns added, `mode` being one of numpy.pad's.

    Its memory order is `layout`'s.
    """
    widths = ((0, 0), (0, 0), *padding)
    in_memory, back = ((0, 1, 2, 3), (0, 1, 2, 3)) if layout == "NCHW" else ((0, 2, 3, 1), (0, 3, 1, 2))
    with array_module(device, stream, "padding_mode") as (module, array):
        padded = module.pad(array(view.transpose(in_memory)), [widths[axis] for axis in in_memory], mode)
    return (padded if module is np else arrays.CuPy.view(padded, "x")).transpose(back)


def fold(target, padded, padding, mode, dtype, device, stream):
    """Write the adjoint of `pad`: the middle of `padded`, and each padded row and column added to what it copied.

    Sums of 16-bit floats are kept in float32. target, padded: (N, C, H, W) as `as_storage` has them; dtype: theirs.
    """
    with array_module(device, stream, "padding_mode") as (module, array):
        total = array(padded).view(dtype).astype(np.float64 if dtype == np.float64 else np.float32)
        for axis, widths in ((2, padding[0]), (3, padding[1])):
            total = folded_axis(module, total, axis, widths, mode)
        array(target).view(dtype)[...] = total.astype(dtype)


def folded_axis(module, padded, axis, widths, mode):
    """`padded` without its padding along `axis`, the padding's values added to where numpy.pad took them from."""
    size = padded.shape[axis] - sum(widths)
    sources = np.pad(np.arange(size), widths, mode)
    at_front = module.moveaxis(padded, axis, 0)
    result = at_front[widths[0] : widths[0] + size].copy()
    for row in (*range(widths[0]), *range(widths[0] + size, sum(widths) + size)):
        result[sources[row]] += at_front[row]
    return module.moveaxis(result, 0, axis)


def sum_into(target, view, axes, device, stream):
    """Write the sum of `view` over `axes`, kept in float64 or complex128, into `target`."""
    accumulate = np.complex128 if view.dtype.kind == "c" else np.float64
    with array_module(device, stream, "grad_y") as (module, array):
        array(target)[...] = module.sum(array(view).astype(accumulate), axis=axes).astype(target.dtype)


def zero(dtype, device, stream):
    """One element that is 0, where `device` computes."""
    view = empty_on((1,), dtype, device, stream)
    fill_zeros(view, device, stream)
    return view


def fill_zeros(view, device, stream):
    with array_module(device, stream, "backend") as (_, array):
        array(view)[...] = 0


def empty_on(shape, dtype, device, stream):
    """A new array where `device` computes, as a view."""
    if device.kind != "cuda":
        return empty_aligned(shape, dtype)
    with array_module(device, stream, "backend") as (module, _):
        return arrays.CuPy.view(module.empty(shape, dtype), "new")


def joined_first_axes(view, device):
    """The first two axes as one: a view where strides allow, a copy where not."""
    a, b, *rest = view.shape
    outer, inner, *strides = view.strides
    shape = (a * b, *rest)
    if b == 1 or a == 1 or outer == b * inner:
        strides = (outer if b == 1 else inner, *strides)
        if isinstance(view, CudaView):
            return replace(view, shape=shape, strides=strides)
        return np.lib.stride_tricks.as_strided(view, shape, strides)
    if isinstance(view, np.ndarray):
        return view.reshape(shape)
    with array_module(device, None, "groups") as (module, array):
        return arrays.CuPy.view(module.ascontiguousarray(array(view)).reshape(shape), "w")


@contextlib.contextmanager
def array_module(device, stream, argument):
    """NumPy, or CuPy on the caller's stream, and the function that makes a view its array; `argument` needs it.

    NumPy warns of no overflow, infinity or NaN here, as no kernel does.
    """
    if device.kind != "cuda":
        with np.errstate(all="ignore"):
            yield np, lambda array: array
        return
    if find_spec("cupy") is None:
        raise UnsupportedError(f"{argument}: on a GPU it needs CuPy, which is not installed: pip install cupy-cuda13x")
    import cupy

    from .kernels.launching import cupy_stream

    with cupy.cuda.Device(device.index), cupy_stream(stream):
        yield cupy, lambda array: for_family(array, "cupy_raw", device)
