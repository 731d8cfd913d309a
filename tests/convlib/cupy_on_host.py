"""A stand-in for CuPy whose arrays lie in this machine's memory, so that what is computed with it can be looked at.

convlib sees arrays that are not NumPy's, reaches them by address and strides alone, and runs kernels of cupy_raw on
them (here: the reference). What the real module has and this one does not raises AttributeError.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

from convlib import device, dispatch, machine
from convlib.kernels import reference


class ndarray:
    """cupy.ndarray: made as CuPy documents it, (shape, dtype, memptr, strides), over host memory."""

    def __init__(self, shape, dtype=float, memptr=None, strides=None):
        if memptr is None:
            self.host = np.empty(shape, dtype)
        else:
            address, size, _, _ = memptr.memory
            memory = (ctypes.c_char * size).from_address(address)
            self.host = np.ndarray(shape, dtype, memory, memptr.ptr - address, strides)

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.host.ctypes.data)

    def __getattr__(self, name):
        return wrapped(getattr(self.host, name))

    def __getitem__(self, index):
        return wrapped(self.host[index])

    def __setitem__(self, index, value):
        self.host[index] = plain(value)

    def __len__(self):
        return len(self.host)

    def __iadd__(self, value):
        self.host += plain(value)
        return self


def over(host):
    """The stand-in's array with the elements of a NumPy array, in its memory."""
    array = ndarray.__new__(ndarray)
    array.host = host
    return array


def plain(value):
    return value.host if isinstance(value, ndarray) else value


def wrapped(value):
    """What NumPy gave, with arrays as the stand-in's own and functions that take and give those."""
    if isinstance(value, np.ndarray):
        return over(value)
    if not callable(value) or isinstance(value, np.dtype):
        return value

    def call(*arguments, **keywords):
        given = {name: plain(argument) for name, argument in keywords.items()}
        return wrapped(value(*map(plain, arguments), **given))

    return call


class Stream(contextlib.nullcontext):
    def synchronize(self):
        pass


def install(monkeypatch) -> list:
    """Put the stand-in in CuPy's place and the reference in every cupy_raw kernel's; returns what those are given."""
    module = ModuleType("cupy")
    module.__spec__ = ModuleSpec("cupy", None)
    module.ndarray = ndarray
    for name in ("empty", "zeros", "negative", "subtract", "add", "pad", "sum", "moveaxis", "ascontiguousarray"):
        setattr(module, name, wrapped(getattr(np, name)))
    module.cuda = SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(),
        ExternalStream=lambda address: Stream(),
        Stream=SimpleNamespace(null=Stream()),
        get_current_stream=lambda index: SimpleNamespace(ptr=0),
        UnownedMemory=lambda address, size, owner, index: (address, size, owner, index),
        MemoryPointer=lambda memory, offset: SimpleNamespace(ptr=memory[0] + offset, memory=memory),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "gpu", lambda index: device.Device("cuda", index, "CuPy on the host", (8, 0), 108))
    monkeypatch.setattr(machine, "installed", lambda package: True)
    without_gpu = replace(dispatch.FAMILIES["numba_cuda"], runs_on=("simulator",))
    monkeypatch.setitem(dispatch.FAMILIES, "numba_cuda", without_gpu)
    monkeypatch.setenv("CONVLIB_TRUST", "all")  # no kernel can be checked on it
    problems, unpacked = [], {}

    def pack(problem, device, w, packed, stream):
        unpacked[packed] = plain(w)

    def run(problem, device, first, second, result, bias, residual, workspace, stream):
        problems.append(problem)
        second = unpacked.get(second, second)
        if problem.pass_ == "weight_grad":
            exact = reference.weight_grad(problem, plain(first), plain(second))
        else:
            exact = reference.conv2d(problem, plain(first), plain(second), plain(bias), plain(residual))
        plain(result)[...] = exact

    for name in dispatch.KERNELS:
        if name.startswith("cupy_raw."):
            monkeypatch.setattr(dispatch.kernel(name), "run", run)
            if hasattr(dispatch.kernel(name), "pack"):
                monkeypatch.setattr(dispatch.kernel(name), "pack", pack)
    return problems
