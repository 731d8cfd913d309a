"""A stand-in for the part of CuPy that launching.py uses, as strict as CuPy's documentation and stricter than CuPy.

The real RawKernel takes any keyword and any number of arguments without a word, and passes a Python int as 64 bits,
whatever the kernel's parameter is. This one records each call and refuses all three.
"""

from __future__ import annotations

import re
import types

import numpy as np

from tests.convlib import cupy_on_host

CALL_SIGNATURE = "__call__(self, grid, block, args, *, shared_mem=0)"


class RawKernel:
    """cupy.RawKernel as documented: (code, name, options=(), backend='nvrtc', ...), then (grid, block, args)."""

    made: list[RawKernel]
    streams: list

    def __init__(self, code, name, options=(), backend="nvrtc"):
        assert isinstance(code, str)
        assert isinstance(options, tuple)
        assert all(isinstance(option, str) for option in options)
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.parameters = declared_parameters(code, name)
        self.calls = []
        self.made.append(self)

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert isinstance(grid, tuple)
        assert isinstance(block, tuple)
        assert isinstance(args, tuple)
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: {len(self.parameters)} arguments declared, got {len(args)}")
        for parameter, value in zip(self.parameters, args, strict=True):
            check_argument(parameter, value)
        stream = self.streams[-1] if self.streams else None
        self.calls.append((grid, block, args, shared_mem, stream))


def declared_parameters(code, name):
    """The parameters of the extern "C" function `name`, as written."""
    match = re.search(rf'extern "C" __global__ void[^;{{]*?\b{name}\s*\((.*?)\)\s*\{{', code, re.S)
    assert match, f"no kernel {name} in the source"
    return [" ".join(parameter.split()) for parameter in match[1].split(",")]


def check_argument(parameter, value):
    """A pointer takes an array or a 64-bit zero; anything else a NumPy scalar or a 0-dimensional struct, by value."""
    if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
        raise TypeError(f"{parameter}: a NumPy scalar needed, got the Python number {value!r}")
    is_array = (isinstance(value, np.ndarray) and value.ndim > 0) or isinstance(value, cupy_on_host.ndarray)
    is_null = isinstance(value, np.uint64) and value == 0
    if ("*" in parameter) != (is_array or is_null):
        raise TypeError(f"{parameter}: got {type(value).__name__}")


def module(device_id=0):
    """A module to put in sys.modules as `cupy`, with a RawKernel that keeps its own records."""
    streams = []
    kernel = type("RawKernel", (RawKernel,), {"made": [], "streams": streams})

    class ExternalStream:
        def __init__(self, address):
            self.address = address

        def __enter__(self):
            streams.append(self.address)

        def __exit__(self, *_):
            streams.pop()

        def synchronize(self):
            pass

    cuda = types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(id=device_id),
        ExternalStream=ExternalStream,
        Stream=types.SimpleNamespace(null=ExternalStream(0)),
    )
    cupy = types.ModuleType("cupy")
    cupy.RawKernel, cupy.cuda = kernel, cuda
    return cupy
