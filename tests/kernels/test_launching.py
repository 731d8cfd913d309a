"""The seam: what reaches a GPU library is what its documentation says, and nothing it would take in silence."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from convlib.kernels import launching
from convlib.kernels.launching import CudaSource, Launch, launch, recording
from tests.kernels import stand_in_cupy

KERNEL = 'extern "C" __global__ void __launch_bounds__(32)\nfill(float* y, const float* x, int n, Size size)\n{\n}\n'
SIZE = np.dtype([("rows", "i4"), ("columns", "i4")])


@pytest.fixture
def fill(tmp_path, monkeypatch):
    (tmp_path / "fill.cu").write_text(KERNEL)
    monkeypatch.setattr(launching, "CUPY_RAW", tmp_path)
    launching.raw_kernel.cache_clear()
    yield CudaSource("fill.cu", "fill", (("N", 4),))
    launching.raw_kernel.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    cupy = stand_in_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delenv("CONVLIB_EMULATE", raising=False)
    return cupy


def arguments():
    return np.zeros(4, np.float32), None, np.int32(4), np.zeros((), SIZE)


def test_a_cuda_source_goes_to_a_raw_kernel_with_its_text_and_options(fill, cupy):
    args = arguments()
    launch(fill, (2, 3), 32, args, shared_bytes=128)
    (kernel,) = cupy.RawKernel.made
    assert (kernel.code, kernel.name, kernel.backend) == (KERNEL, "fill", "nvrtc")
    assert kernel.options[0] == f"-I{launching.CUPY_RAW}"
    assert "-DN=4" in kernel.options
    (call,) = kernel.calls
    passed = (args[0], np.uint64(0), args[2], args[3].view("V8"))
    assert call == ((2, 3, 1), (32, 1, 1), passed, 128, None)


def test_a_raw_kernel_is_made_once_for_each_device_and_each_set_of_constants(fill, cupy):
    for source in (fill, fill, CudaSource("fill.cu", "fill", (("N", 5),))):
        launch(source, 1, 32, arguments())
    assert len(cupy.RawKernel.made) == 2
    cupy.cuda.Device = stand_in_cupy.module(device_id=1).cuda.Device
    launch(fill, 1, 32, arguments())
    assert len(cupy.RawKernel.made) == 3


def test_a_raw_kernel_is_started_on_the_callers_stream(fill, cupy):
    for stream in (None, 0, 0xABC0):
        launch(fill, 1, 32, arguments(), stream=stream)
    (kernel,) = cupy.RawKernel.made
    assert [call[-1] for call in kernel.calls] == [None, 0, 0xABC0]
    assert cupy.RawKernel.streams == []


@pytest.mark.parametrize("number", [4, True, 4.0, 4j])
def test_python_numbers_are_refused_before_they_reach_a_kernel(fill, cupy, number):
    args = (*arguments()[:2], number, np.zeros((), SIZE))
    with pytest.raises(TypeError, match=r"fill: argument 2 is the Python number .*; a NumPy scalar of the parameter's"):
        launch(fill, 1, 32, args)
    assert cupy.RawKernel.made == []


def test_the_stand_in_refuses_what_cupy_would_take_in_silence(fill, cupy):
    kernel = cupy.RawKernel(KERNEL, "fill")
    passed = launching.with_null_pointers(arguments())
    with pytest.raises(TypeError, match="stream"):
        kernel((1,), (32,), passed, stream=3)
    with pytest.raises(TypeError, match="got NoneType"):
        kernel((1,), (32,), arguments())
    with pytest.raises(TypeError, match="4 arguments declared, got 3"):
        kernel((1,), (32,), passed[:3])
    with pytest.raises(TypeError, match="int n: a NumPy scalar needed, got the Python number 4"):
        kernel((1,), (32,), (*passed[:2], 4, np.zeros((), SIZE)))
    with pytest.raises(TypeError, match="int n: got ndarray"):
        kernel((1,), (32,), (*passed[:2], np.zeros(4), np.zeros((), SIZE)))
    with pytest.raises(TypeError, match=r"float\* y: got int32"):
        kernel((1,), (32,), (np.int32(4), *passed[1:]))


def test_the_stand_in_has_the_signature_that_the_installed_cupy_documents():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    documented = cupy.RawKernel.__call__.__doc__.replace("\\", "")
    assert stand_in_cupy.CALL_SIGNATURE in documented
    assert "str code, str name, tuple options=(), str backend='nvrtc'" in cupy.RawKernel.__doc__


def test_the_installed_cupy_takes_structs_and_null_pointers_by_value():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    assert converted_by_cupy(cupy, launching.as_cupy_passes_them(arguments()[1:]))
    with pytest.raises(TypeError, match=r"Only numpy.ndarrays of size one can be passed by value"):
        converted_by_cupy(cupy, (np.zeros(2, np.int32),))
    with pytest.raises(TypeError, match="Unsupported type"):
        converted_by_cupy(cupy, (object(),))


def converted_by_cupy(cupy, args):
    """Let CuPy convert `args` for the launch of no kernel, which fails only after that."""
    function = cupy.cuda.function.Function.__new__(cupy.cuda.function.Function)
    with pytest.raises((cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)):
        function((1,), (1,), args, 0, SimpleNamespace(ptr=0))
    return True


class Dispatcher:
    """A Numba dispatcher as `launch` uses it: kernel[grid, block, stream, shared](*args)."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, configuration):
        return lambda *args: self.calls.append((configuration, args))


def test_a_numba_kernel_gets_its_configuration_and_arguments(cupy):
    kernel = Dispatcher()
    launch(kernel, (2, 3), (8, 4), (1, 2.5), shared_bytes=64)
    assert kernel.calls == [(((2, 3, 1), (8, 4, 1), 0, 64), (1, 2.5))]
    assert cupy.RawKernel.made == []


def test_a_numba_kernel_is_started_on_the_callers_stream(cupy, monkeypatch):
    monkeypatch.setattr("numba.cuda", SimpleNamespace(external_stream="stream at {:x}".format), raising=False)
    kernel = Dispatcher()
    for stream in (None, 0, 0xABC0):
        launch(kernel, 1, 32, (), stream=stream)
    assert [configuration[2] for configuration, _ in kernel.calls] == [0, 0, "stream at abc0"]


def test_a_numba_kernel_runs_in_numbas_simulator():
    code = """
import numpy as np
from numba import cuda
from convlib.kernels.launching import launch

@cuda.jit
def number(y):
    y[cuda.blockIdx.y, cuda.threadIdx.x] = 10 * cuda.blockIdx.y + cuda.threadIdx.x

y = np.zeros((2, 6), np.int32)[:, ::2]  # which the simulator would refuse
launch(number, (1, 2), 3, (y,))
print(y.tolist())
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "CONVLIB_EMULATE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[[0, 1, 2], [10, 11, 12]]"


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0,), 32, "grid: sizes from 1 to"),
        ((1, 65_536), 32, "grid: sizes from 1 to"),
        ((2**31,), 32, "grid: sizes from 1 to"),
        ((1,), 1_025, "block: sizes from 1 to"),
        ((1,), (1, 1, 65), "block: sizes from 1 to"),
        ((1,), (64, 32), "block: at most 1024 threads"),
        ((1,), (16, 16, 5), "block: at most 1024 threads"),
    ],
)
def test_sizes_that_no_gpu_takes_are_refused(fill, cupy, grid, block, message):
    with pytest.raises(ValueError, match=message):
        launch(fill, grid, block, arguments())
    assert cupy.RawKernel.made == []


def test_recording_collects_launches_and_runs_none(fill, cupy):
    args = arguments()
    with recording() as launches:
        launch(fill, 5, 32, args, stream=7)
    assert launches == [Launch(fill, (5, 1, 1), (32, 1, 1), args, 0, 7)]
    launch(fill, 1, 32, args)
    assert len(launches) == 1
    assert len(cupy.RawKernel.made) == 1


def test_the_innermost_executor_takes_a_launch(fill, cupy):
    with recording() as outer:
        with recording() as inner:
            launch(fill, 1, (64, 16), (np.float64(2.5),))  # as many threads as there may be; a Python float, too
        assert (len(outer), len(inner)) == (0, 1)
        launch(fill, 1, 32, ())
    assert (len(outer), len(inner)) == (1, 1)


def test_launches_go_to_the_emulator_where_it_is_asked_for(monkeypatch):
    for asked, executor in (("1", launching.on_emulator), ("0", launching.on_gpu)):
        monkeypatch.setenv("CONVLIB_EMULATE", asked)
        assert launching.default_executor() is executor


def test_a_whole_number_of_blocks_is_no_block_more():
    assert [launching.ceil_div(count, 4) for count in (1, 4, 5)] == [1, 1, 2]
