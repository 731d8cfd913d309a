"""Whose arrays are these, and where: zero-copy views on the way in, results in the caller's library on the way out.

Every supported library is one class below with the same five questions: is it mine, where is it, view it, allocate a
result, which stream. strided.py has what is done to views, device_arrays.py what is done with them where they lie.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TypeVar

import numpy as np

from .problem import COMPLEX_DTYPES, DTYPES, named_dtype
from .result_memory import result_array
from .strided import CudaView

Array = TypeVar("Array")  # the caller's kind of array, in which results come back


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
        y = result_array(shape, array.dtype if dtype is None else dtype)
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
                f"{name}: requires grad, and convlib.conv2d does not record gradients; pass {name}.detach(), call it "
                "under torch.no_grad(), or take convlib.torch.conv2d, which records them"
            )
        if Torch.has_tangent(array):
            raise TypeError(
                f"{name}: has a tangent, and convlib.conv2d takes none along; pass "
                f"torch.autograd.forward_ad.unpack_dual({name}).primal, or take convlib.torch.conv2d, which does"
            )
        if array.is_neg() or array.is_conj():
            resolve = "resolve_neg" if array.is_neg() else "resolve_conj"
            raise TypeError(f"{name}: a tensor in memory as it reads needed; pass {name}.{resolve}()")
        return Torch.memory(array.detach(), name)

    @staticmethod
    def has_tangent(array):
        """Whether forward derivatives are taken by it; not within a torch.autograd.Function, which has its own rule."""
        forward_ad = sys.modules["torch"].autograd.forward_ad
        if forward_ad._current_level < 0 or not sys.modules["torch"]._C._is_fwd_grad_enabled():
            return False
        return forward_ad.unpack_dual(array).tangent is not None

    @staticmethod
    def memory(array, name):
        import torch

        if array.is_cpu:
            if array.dtype is torch.bfloat16:
                return array.view(torch.int16).numpy().view(Torch.dtype(array, name))
            return array.numpy()
        strides = tuple(s * array.element_size() for s in array.stride())
        return CudaView(array.data_ptr(), tuple(array.shape), strides, Torch.dtype(array, name), array)

    @staticmethod
    def plain(array):
        """`view` of a tensor on the CPU that needs none of its checks; None of any other."""
        torch = sys.modules["torch"]
        if type(array) not in (torch.Tensor, torch.nn.Parameter) or torch.autograd.forward_ad._current_level >= 0:
            return None
        try:
            return array.numpy()
        except (RuntimeError, TypeError):
            return None

    @staticmethod
    def result(array, shape, channels_last, dtype=None):
        import torch

        order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        dtype = array.dtype if dtype is None else getattr(torch, dtype.name)
        y = torch.empty(shape, dtype=dtype, device=array.device, memory_format=order)
        return y, Torch.memory(y, "y")

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
            y = result_array(shape, dtype)
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


def as_numpy(operands: tuple) -> tuple:
    """Plain tensors on the CPU as NumPy arrays; the operands themselves where one is anything else."""
    if not Torch.owns(operands[0]):
        return operands
    views = tuple(None if array is None else Torch.plain(array) for array in operands)
    return views if all(view is not None or array is None for view, array in zip(views, operands)) else operands


def is_complex(library, array) -> bool:
    """Whether `array` is one of `library` and holds complex numbers; no dtype that NumPy does not know is complex."""
    try:
        return library.owns(array) and library.dtype(array, "").kind == "c"
    except TypeError:
        return False


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
    needed = f"{name}: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got {came}"
    if isinstance(array, (list, tuple, float, int, np.generic)):
        needed += f"; make it one, as numpy.asarray({name}, numpy.float32)"
    raise TypeError(needed)


@cache
def torch_dtypes():
    import torch

    return {getattr(torch, name): named_dtype(name) for name in (*DTYPES, *COMPLEX_DTYPES)}
