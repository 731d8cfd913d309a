"""Views: elements by address, shape and strides, turned, split and compared without a copy.

On the CPU a view is a numpy.ndarray, on a GPU a `CudaView`, from which each kernel family makes its own array type
(device_arrays.py). 16-bit floats are viewed as uint16 for the kernels.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace

import numpy as np


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


def empty_aligned(shape, dtype):
    """An uninitialised C-contiguous array whose first element lies on a 64-byte boundary, as vector stores like it."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        raw = np.empty(count + 63, np.uint8)
    except MemoryError:
        raise MemoryError(
            f"no room for {count:,} bytes, an array of shape {shape} and dtype {np.dtype(dtype)}"
        ) from None
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
