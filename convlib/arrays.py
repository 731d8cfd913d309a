"""Whose arrays are these, and where: zero-copy views on the way in, results in the caller's library on the way out.

Every supported library is one class below with the same five questions: is it mine, where is it, view it, allocate a
result, which stream. On the CPU a view is a numpy.ndarray; on a GPU it is a `CudaView`, an address with shape and
strides, from which each kernel family makes its own array type. 16-bit floats are viewed as uint16 for the kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import numpy as np

from .errors import UnsupportedError
from .problem import COMPLEX_DTYPES, DTYPES, named_dtype


@dataclass(frozen=True, slots=True)
class CudaView:
    """An array in GPU memory: what `__cuda_array_interface__` says, bfloat16 included, and who keeps it alive."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    owner: object
    readonly: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def __cuda_array_interface__(self):
        return {
            "data": (self.address, self.readonly),
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "version": 3,
            "stream": None,
        }

    def transpose(self, axes):
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def view(self, dtype):
        return replace(self, dtype=np.dtype(dtype))

    def with_batch(self):
        return replace(self, shape=(1, *self.shape), strides=(0, *self.strides))

    def __getitem__(self, slices):
        """The part that slices with positive steps cut out, one slice for each axis."""
        parts = [range(size)[part] for size, part in zip(self.shape, slices, strict=True)]
        address = self.address + sum(part.start * stride for part, stride in zip(parts, self.strides, strict=True))
        strides = tuple(part.step * stride for part, stride in zip(parts, self.strides, strict=True))
        return replace(self, address=address, shape=tuple(map(len, parts)), strides=strides)

    def flipped(self, axes):
        """The same elements in reversed order along `axes`."""
        address = self.address + sum((self.shape[a] - 1) * self.strides[a] for a in axes)
        strides = tuple(-s if a in axes else s for a, s in enumerate(self.strides))
        return replace(self, address=address, strides=strides)


def never(array):
    return False


def unchanged(result):
    return result


def always_writeable(out, name="out"):
    """These libraries have no read-only arrays."""


class NumPy:
    """numpy.ndarray, memory maps included; ml_dtypes.bfloat16 is a NumPy dtype."""

    name = "numpy"

    @staticmethod
    def owns(array):
        return isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)

    @staticmethod
    def device(array, name):
        return "cpu", 0

    @staticmethod
    def dtype(array, name):
        return array.dtype

    @staticmethod
    def view(array, name):
        if not array.flags.aligned:
            raise ValueError(
                f"{name}: an address and strides that are multiples of its {array.itemsize}-byte elements needed, "
                f"got strides {array.strides}; pass {name}.copy()"
            )
        return array.view(np.ndarray) if type(array) is not np.ndarray else array

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        """An uninitialised array of `shape` like `array`, of `dtype` if that is another, and its view."""
        y = empty_aligned(shape, array.dtype if dtype is None else dtype)
        return y, y

    @staticmethod
    def check_out(out, name="out"):
        if not out.flags.writeable:
            raise ValueError(f"{name}: a writeable array needed, got a read-only one")

    channels_last = staticmethod(never)
    finished = staticmethod(unchanged)

    @staticmethod
    def stream(array):
        return None


class CuPy:
    """cupy.ndarray; work goes to CuPy's current stream."""

    name = "cupy"

    @staticmethod
    def owns(array):
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, getattr(cupy, "ndarray", ()))

    @staticmethod
    def device(array, name):
        return "cuda", array.device.id

    @staticmethod
    def dtype(array, name):
        return np.dtype(array.dtype)

    @staticmethod
    def view(array, name):
        return CudaView(array.data.ptr, array.shape, array.strides, np.dtype(array.dtype), array)

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        import cupy

        with cupy.cuda.Device(array.device.id):
            y = cupy.empty(shape, array.dtype if dtype is None else dtype)
        return y, CuPy.view(y, "y")

    check_out = staticmethod(always_writeable)
    finished = staticmethod(unchanged)
    channels_last = staticmethod(never)

    @staticmethod
    def stream(array):
        import cupy

        return cupy.cuda.get_current_stream(array.device.id).ptr


class Numba:
    """Numba CUDA device arrays; work goes to Numba's default stream. In the simulator their memory is the host's."""

    name = "numba"

    @staticmethod
    def owns(array):
        root = type(array).__module__.partition(".")[0]
        return root in ("numba", "numba_cuda") and hasattr(array, "copy_to_host")

    @staticmethod
    def device(array, name):
        if hasattr(array, "_ary"):
            return "simulator", 0
        return "cuda", array.gpu_data.context.device.id

    @staticmethod
    def dtype(array, name):
        return np.dtype(array.dtype)

    @staticmethod
    def view(array, name):
        if hasattr(array, "_ary"):
            return np.asarray(array._ary)
        interface = array.__cuda_array_interface__
        address, readonly = interface["data"]
        return CudaView(address, array.shape, array.strides, np.dtype(array.dtype), array, readonly)

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        from numba import cuda

        dtype = array.dtype if dtype is None else dtype
        if hasattr(array, "_ary"):
            y = cuda.device_array(shape, dtype)
        else:
            with cuda.gpus[Numba.device(array, "x")[1]]:
                y = cuda.device_array(shape, dtype)
        return y, Numba.view(y, "y")

    check_out = staticmethod(always_writeable)
    finished = staticmethod(unchanged)
    channels_last = staticmethod(never)
    stream = staticmethod(lambda array: None)


class Torch:
    """torch.Tensor on the CPU (memory shared with NumPy both ways) or on CUDA (PyTorch's current stream).

    A tensor in torch.channels_last gives a result in torch.channels_last.
    """

    name = "torch"

    @staticmethod
    def owns(array):
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(array, getattr(torch, "Tensor", ()))

    @staticmethod
    def device(array, name):
        place = array.device
        if place.type not in ("cpu", "cuda"):
            raise TypeError(f"{name}: a tensor on the CPU or on CUDA needed, got one on {place}")
        return place.type, place.index or 0

    @staticmethod
    def dtype(array, name):
        return torch_dtypes().get(array.dtype) or named_dtype(str(array.dtype).removeprefix("torch."), name)

    @staticmethod
    def view(array, name):
        import torch

        if array.layout is not torch.strided:
            raise TypeError(f"{name}: a dense tensor needed, got layout {array.layout}")
        if array.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{name}: requires grad, and convlib.conv2d does not record gradients; "
                f"pass {name}.detach() or call it under torch.no_grad()"
            )
        if array.is_neg() or array.is_conj():
            resolve = "resolve_neg" if array.is_neg() else "resolve_conj"
            raise TypeError(f"{name}: a tensor in memory as it reads needed; pass {name}.{resolve}()")
        array = array.detach()
        if array.device.type == "cpu":
            if array.dtype is torch.bfloat16:
                return array.view(torch.int16).numpy().view(Torch.dtype(array, name))
            return array.numpy()
        strides = tuple(s * array.element_size() for s in array.stride())
        return CudaView(array.data_ptr(), tuple(array.shape), strides, Torch.dtype(array, name), array)

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        import torch

        order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        dtype = array.dtype if dtype is None else getattr(torch, dtype.name)
        y = torch.empty(shape, dtype=dtype, device=array.device, memory_format=order)
        return y, Torch.view(y, "y")

    check_out = staticmethod(always_writeable)
    finished = staticmethod(unchanged)

    @staticmethod
    def channels_last(array):
        import torch

        if array.dim() != 4 or array.is_contiguous():
            return False
        return array.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def stream(array):
        if array.device.type == "cpu":
            return None
        import torch

        return torch.cuda.current_stream(array.device).cuda_stream


class Jax:
    """jax.Array, read only: on the CPU by its buffer, on a GPU by DLPack through CuPy. Results come back by DLPack."""

    name = "jax"

    @staticmethod
    def owns(array):
        jax = sys.modules.get("jax")
        return jax is not None and isinstance(array, getattr(jax, "Array", ()))

    @staticmethod
    def device(array, name):
        import jax

        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{name}: a concrete array needed, got a JAX tracer; convlib.conv2d cannot run inside jit, grad or "
                "vmap, convlib.jax.conv2d can"
            )
        devices = array.devices()
        if len(devices) != 1:
            raise ValueError(f"{name}: an array on one device needed, got one over {len(devices)}")
        (device,) = devices
        kind = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(device.platform)
        if kind is None:
            raise TypeError(f"{name}: an array on the CPU or on CUDA needed, got one on {device.platform}")
        return kind, device.id if kind == "cuda" else 0

    @staticmethod
    def dtype(array, name):
        return np.dtype(array.dtype)

    @staticmethod
    def view(array, name):
        if Jax.device(array, name)[0] == "cpu":
            return np.asarray(array)
        import cupy

        return CuPy.view(cupy.from_dlpack(array), name)

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        kind, index = Jax.device(array, "x")
        dtype = array.dtype if dtype is None else dtype
        if kind == "cpu":
            y = empty_aligned(shape, dtype)
            return y, y
        import cupy

        with cupy.cuda.Device(index):
            y = cupy.empty(shape, dtype)
        return y, CuPy.view(y, "y")

    @staticmethod
    def finished(y):
        """The result as a jax.Array, over the same memory where DLPack has the dtype."""
        import jax

        if isinstance(y, np.ndarray) and y.dtype.name == "bfloat16":
            return jax.numpy.asarray(y)  # NumPy's DLPack has no bfloat16
        return jax.dlpack.from_dlpack(y)

    @staticmethod
    def check_out(out, name="out"):
        raise TypeError(f"{name}: JAX arrays are immutable, so none can be written into; leave it out")

    channels_last = staticmethod(never)

    @staticmethod
    def stream(array):
        kind, index = Jax.device(array, "x")
        if kind == "cpu":
            return None
        import cupy

        return cupy.cuda.get_current_stream(index).ptr


LIBRARIES = (NumPy, CuPy, Torch, Jax, Numba)


def is_complex(library, array) -> bool:
    """Whether `array` is one of `library` and holds complex numbers."""
    return library.owns(array) and library.dtype(array, "").kind == "c"


def library_of(array, name):
    """The class above that `array` belongs to."""
    for library in LIBRARIES:
        if library.owns(array):
            return library
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: a NumPy array without a mask needed, got numpy.ma.MaskedArray; fill it first, as {name}.filled(0)"
        )
    came = f"{type(array).__module__}.{type(array).__name__}"
    raise TypeError(f"{name}: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got {came}")


@cache
def torch_dtypes():
    import torch

    return {getattr(torch, name): named_dtype(name) for name in (*DTYPES, *COMPLEX_DTYPES)}


def empty_aligned(shape, dtype):
    """An uninitialised C-contiguous array whose first element lies on a 64-byte boundary, as vector stores like it."""
    raw = np.empty(math.prod(shape) * np.dtype(dtype).itemsize + 63, np.uint8)
    address = ctypes.addressof(ctypes.c_char.from_buffer(raw))  # raw.ctypes.data takes five times as long
    return np.ndarray(shape, dtype, raw, -address % 64)


def flipped(view, axes):
    """`view` in reversed order along `axes`, without a copy."""
    if isinstance(view, CudaView):
        return view.flipped(axes)
    return view[tuple(slice(None, None, -1) if a in axes else slice(None) for a in range(view.ndim))]


def with_batch(view):
    """`view` with a leading axis of length one."""
    return view.with_batch() if isinstance(view, CudaView) else view[None]


def as_storage(view):
    """16-bit floats viewed as uint16; anything else as it is."""
    return view.view(np.uint16) if view is not None and view.dtype.itemsize == 2 else view


def memory_overlaps(a, b) -> bool:
    """Whether two views share memory; when that is too hard to tell (interleaved slices), by their outer bounds."""
    if isinstance(a, np.ndarray):
        try:
            return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=10_000)
        except np.exceptions.TooHardError:
            return True
    (a_first, a_last), (b_first, b_last) = extent(a), extent(b)
    return a_first < b_last and b_first < a_last


def extent(view):
    """First byte and one past the last byte of a CudaView."""
    spans = [(n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)]
    first = view.address + sum(span for span in spans if span < 0)
    last = view.address + sum(span for span in spans if span > 0) + view.dtype.itemsize
    return first, last


def lies_apart(view) -> bool:
    """Whether no two elements of a view share memory: each stride steps over everything that varies inside it."""
    if view.size == 0 or (isinstance(view, np.ndarray) and view.flags.c_contiguous):
        return True
    reached = view.dtype.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(view.strides, view.shape) if size > 1):
        if stride < reached:
            return False
        reached += stride * (size - 1)
    return True


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


def pad(view, padding, mode, layout, device, stream):
    """A copy of x (N, C, H, W) with `padding` rows and columns added, `mode` being one of numpy.pad's.

    Its memory order is `layout`'s.
    """
    widths = ((0, 0), (0, 0), *padding)
    in_memory, back = ((0, 1, 2, 3), (0, 1, 2, 3)) if layout == "NCHW" else ((0, 2, 3, 1), (0, 3, 1, 2))
    with array_module(device, stream, "padding_mode") as (module, array):
        padded = module.pad(array(view.transpose(in_memory)), [widths[axis] for axis in in_memory], mode)
    return (padded if module is np else CuPy.view(padded, "x")).transpose(back)


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
        return CuPy.view(module.empty(shape, dtype), "new")


def broadcast(one, shape):
    """A view of `shape` whose every element is the single one of `one`."""
    if isinstance(one, CudaView):
        return replace(one, shape=tuple(shape), strides=(0,) * len(shape))
    return np.broadcast_to(one, shape)


def split_first_axis(view, parts):
    """A view with the first axis split in `parts`."""
    first, *rest = view.shape
    stride, *strides = view.strides
    shape = (parts, first // parts, *rest)
    strides = (first // parts * stride, stride, *strides)
    if isinstance(view, CudaView):
        return replace(view, shape=shape, strides=strides)
    return np.lib.stride_tricks.as_strided(view, shape, strides)


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
        return CuPy.view(module.ascontiguousarray(array(view)).reshape(shape), "w")


@contextlib.contextmanager
def array_module(device, stream, argument):
    """NumPy, or CuPy on the caller's stream, and the function that makes a view its array; `argument` needs it."""
    if device.kind != "cuda":
        yield np, lambda array: array
        return
    if find_spec("cupy") is None:
        raise UnsupportedError(f"{argument}: on a GPU it needs CuPy, which is not installed: pip install cupy-cuda13x")
    import cupy

    from .kernels.launching import cupy_stream

    with cupy.cuda.Device(device.index), cupy_stream(stream):
        yield cupy, lambda array: for_family(array, "cupy_raw", device)
