"""What a call on a GPU asks of CuPy: from a planned call only launches, so that a CUDA graph can hold it.

CuPy is a stand-in here: its arrays lie on the host, its RawKernels note their launches and run nothing. That a graph
was captured and replayed on a GPU is for tests/kernels/test_on_gpu.py.
"""

import sys
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import convlib
from convlib import device, dispatch
from convlib.kernels import launching
from convlib.problem import make_problem
from tests.convlib import cupy_on_host
from tests.kernels import stand_in_cupy

ALL = [name for name in dispatch.KERNELS if name.startswith("cupy_raw.")]
FORWARD = [name for name in ALL if "forward" in dispatch.kernel(name).passes]
STREAM = 0xABC0


class Current(SimpleNamespace):
    """Which device is current, and the stream that work on it goes to."""


class Taken(NamedTuple):
    """Memory from the pool, whose blocks are a device's and a stream's; None: of the current one."""

    device: int
    stream: int | None
    shape: tuple
    dtype: np.dtype


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, with `current` for its devices and streams and `pool` for what was taken from its memory pool."""
    own = [(module, part, getattr(module, part)) for module in map(dispatch.kernel, ALL) for part in ("run", "pack")
           if hasattr(module, part)]  # fmt: skip
    cupy_on_host.install(monkeypatch)
    for module, part, function in own:
        monkeypatch.setattr(module, part, function)
    cupy, kernels = sys.modules["cupy"], stand_in_cupy.module()
    cupy.current, cupy.pool = Current(device=0, stream=STREAM), []

    class Device:
        def __init__(self, index=None):
            self.id = cupy.current.device if index is None else index

        def __enter__(self):
            self.before, cupy.current.device = cupy.current.device, self.id

        def __exit__(self, *_):
            cupy.current.device = self.before

    empty = cupy.empty

    def from_pool(shape, dtype):
        stream = kernels.RawKernel.streams[-1] if kernels.RawKernel.streams else None
        cupy.pool.append(Taken(cupy.current.device, stream, tuple(np.atleast_1d(shape)), np.dtype(dtype)))
        return empty(shape, dtype)

    cupy.RawKernel, cupy.empty = kernels.RawKernel, from_pool
    cupy.cuda.Device, cupy.cuda.Stream = Device, kernels.cuda.Stream
    cupy.cuda.ExternalStream = kernels.cuda.ExternalStream
    cupy.cuda.get_current_stream = lambda index: SimpleNamespace(ptr=cupy.current.stream)
    launching.raw_kernel.cache_clear()
    yield cupy
    launching.raw_kernel.cache_clear()


def layer(name):
    groups = 16 if "depthwise" in name or name == "cupy_raw.fft" else 1
    x = cupy_on_host.over(np.ones((1, 16, 12, 12), np.float32))
    w = cupy_on_host.over(np.ones((16, 16 // groups, 3, 3), np.float32))
    bias = cupy_on_host.over(np.ones(16, np.float32))
    precision = "tf32" if "tensor_core" in name else None
    keywords = {"padding": 1, "groups": groups, "precision": precision}
    return x, w, bias, keywords | {"backend": "cupy_raw", "algorithm": name.partition(".")[2]}


def call(name, place=0):
    """A call of the kernel in its pass, on arrays of device `place`; returns the problem that it runs."""
    x, w, bias, keywords = layer(name)
    (pass_,) = dispatch.kernel(name).passes
    keywords |= {"stride": 2} if pass_ == "input_grad" else {}
    grad_y = cupy_on_host.over(np.ones((1, 16, 12 // keywords.get("stride", 1), 12 // keywords.get("stride", 1)), "f4"))
    for array in (x, w, bias, grad_y):
        array.device = SimpleNamespace(id=place)
    if pass_ == "forward":
        convlib.conv2d(x, w, bias, **keywords)
        return convlib.explain(x, w, bias, **keywords).problem
    if pass_ == "input_grad":
        convlib.conv2d_input_grad(grad_y, w, x.shape, **keywords)
    else:
        convlib.conv2d_weight_grad(x, grad_y, w.shape, **keywords)
    of_problem = {key: keywords[key] for key in ("padding", "groups", "precision", "stride") if key in keywords}
    return make_problem(x.shape, w.shape, np.float32, pass_=pass_, **of_problem)


def launches(cupy):
    return [call for kernel in cupy.RawKernel.made for call in kernel.calls]


@pytest.mark.parametrize("name", FORWARD)
def test_a_planned_call_launches_and_does_nothing_else(name, cupy, monkeypatch):
    """Then the stand-in knows neither synchronize nor memory any more: whoever asks for them fails."""
    x, w, bias, keywords = layer(name)
    plan = convlib.plan(x.shape, w, bias, **keywords)
    packing = len(launches(cupy))
    assert packing == (1 if hasattr(dispatch.kernel(name), "pack") else 0)
    monkeypatch.delattr(cupy.cuda.ExternalStream, "synchronize")
    y = plan(x)  # compiles
    first, made = len(launches(cupy)) - packing, len(cupy.RawKernel.made)
    assert first >= 1
    for taking in ("empty", "zeros", "ascontiguousarray", "add", "pad", "sum"):
        monkeypatch.delattr(cupy, taking)
    assert plan(x, out=y) is y
    again = launches(cupy)
    assert len(again) == packing + 2 * first
    assert len(cupy.RawKernel.made) == made
    assert {stream for *_, stream in again} == {STREAM}


@pytest.mark.parametrize("name", ALL)
def test_a_calls_memory_comes_from_cupys_pool_on_the_arrays_device_and_stream(name, cupy):
    """What one call gives back, the next of that stream takes while the first one's kernels still run: so a workspace
    is of the stream that they are launched on, which of other libraries' arrays is not CuPy's current one.
    """
    problem = call(name, place=1)
    needed = dispatch.one_call_bytes(dispatch.kernel(name), problem, device.gpu(1))
    taken = {(memory.shape, memory.dtype): memory.stream for memory in cupy.pool}
    result = {"forward": problem.y_shape, "input_grad": problem.x_shape, "weight_grad": problem.w_shape}
    assert (tuple(result[problem.pass_]), np.dtype(np.float32)) in taken
    assert not needed or taken[(needed,), np.dtype(np.uint8)] == STREAM
    assert {memory.device for memory in cupy.pool} == {1}
    assert cupy.current.device == 0, "left as it was"


@pytest.mark.parametrize("name", ALL)
def test_each_call_goes_to_its_own_stream(name, cupy):
    for stream in STREAMS:
        cupy.current.stream = stream
        call(name)
    assert_shared_evenly(launches(cupy))


def test_each_call_of_a_plan_goes_to_its_own_stream(cupy):
    x, w, bias, keywords = layer("cupy_raw.direct")  # which packs nothing in one
    plan = convlib.plan(x.shape, w, bias, **keywords)
    for stream in STREAMS:
        cupy.current.stream = stream
        plan(x)
    assert_shared_evenly(launches(cupy))


STREAMS = (0, 0x10, 0x20)


def assert_shared_evenly(found):
    per_stream = Counter(stream for *_, stream in found)
    assert set(per_stream) == set(STREAMS)
    assert len(set(per_stream.values())) == 1


def test_a_kernel_is_compiled_for_each_device_that_it_is_called_on(cupy):
    x, w, bias, keywords = layer("cupy_raw.direct")
    for index in (0, 1, 1, 0):
        for array in (x, w, bias):
            array.device = SimpleNamespace(id=index)
        convlib.conv2d(x, w, bias, **keywords)
    assert len(cupy.RawKernel.made) == 2


def test_a_gpus_properties_are_asked_of_its_driver(monkeypatch):
    asked = {
        "name": b"A card", "major": 8, "minor": 9, "multiProcessorCount": 76, "sharedMemPerBlock": 49_152,
    }  # fmt: skip
    runtime = SimpleNamespace(getDeviceProperties=lambda index: asked if index == 3 else None)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    device.gpu.cache_clear()
    found = device.gpu(3)
    device.gpu.cache_clear()
    assert (found.index, found.name, found.compute_capability, found.sm_count) == (3, "A card", (8, 9), 76)
