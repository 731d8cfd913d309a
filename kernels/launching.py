"""The one seam through which every GPU kernel starts: a real GPU, Numba's simulator, a recorder or the emulator.

A launcher computes grid, block and arguments and calls `launch`. What then runs the kernel is decided here and nowhere
else, so the simulator, the recorder and the emulator see exactly the launch that a user's GPU would see.

    launcher --> launch --+-- CudaSource -------> cupy.RawKernel, compiled once per device     a GPU
                          +-- Numba dispatcher -> kernel[grid, block, stream, shared](*args)   a GPU, or the simulator
                          +-- either -----------> convlib.emulator, under CONVLIB_EMULATE=1    any CPU
                          +-- either -----------> a list, inside `recording()`                 tests
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..device import emulating, simulating

CUPY_RAW = Path(__file__).parent / "cupy_raw"
MAX_GRID = (2**31 - 1, 65_535, 65_535)
MAX_THREADS = 1_024


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class CudaSource:
    """A kernel in CUDA C: a file of kernels/cupy_raw, an extern "C" function in it, and the constants it is built with.

    constants: pairs (NAME, value), each given to the compiler as -DNAME=value.
    """

    file: str
    function: str
    constants: tuple[tuple[str, int | str], ...] = ()

    def text(self) -> str:
        return (CUPY_RAW / self.file).read_text()

    def defines(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in self.constants)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch as `recording` saw it."""

    kernel: object
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple
    shared_bytes: int
    stream: int | None


def launch(kernel, grid, block, args, shared_bytes=0, stream=None) -> None:
    """Start `kernel` on `stream` and return at once.

    kernel: a CudaSource or a Numba CUDA dispatcher. grid, block: 1 to 3 sizes, x first. args: arrays, and for a
    CudaSource also None (a null pointer), NumPy scalars and structs as 0-dimensional arrays (never Python numbers,
    whose width the compiler would not check).
    shared_bytes: dynamic shared memory. stream: the address of a CUDA stream (0 or None is the default one).
    """
    grid, block = three("grid", grid, MAX_GRID), three("block", block, (MAX_THREADS, MAX_THREADS, 64))
    if block[0] * block[1] * block[2] > MAX_THREADS:
        raise ValueError(f"block: at most {MAX_THREADS} threads, got {block}")
    if isinstance(kernel, CudaSource):
        refuse_python_numbers(kernel, args)
    executor = executors[-1] if executors else default_executor()
    executor(kernel, grid, block, tuple(args), int(shared_bytes), stream)


def three(name, sizes, most):
    sizes = (sizes,) if isinstance(sizes, int) else tuple(int(size) for size in sizes)
    sizes += (1,) * (3 - len(sizes))
    if any(not 1 <= size <= limit for size, limit in zip(sizes, most, strict=True)):
        raise ValueError(f"{name}: sizes from 1 to {most} needed, got {sizes}")
    return sizes


def refuse_python_numbers(kernel, args):
    for position, value in enumerate(args):
        if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
            raise TypeError(
                f"{kernel.function}: argument {position} is the Python number {value!r}; "
                "a NumPy scalar of the parameter's exact type is needed"
            )


def default_executor():
    return on_emulator if emulating() else on_gpu


def on_gpu(kernel, grid, block, args, shared_bytes, stream):
    """On a real GPU; or, where Numba simulates CUDA, in its simulator."""
    if isinstance(kernel, CudaSource):
        import cupy

        function = raw_kernel(kernel, cupy.cuda.Device().id)
        with cupy_stream(stream):
            function(grid, block, as_cupy_passes_them(args), shared_mem=shared_bytes)
    else:
        args = in_simulator(args) if simulating() else args
        kernel[grid, block, numba_stream(stream), shared_bytes](*args)


def in_simulator(args):
    """NumPy arrays as the simulator's device arrays: it would copy them there and back, and refuses strided ones."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return [FakeCUDAArray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]


def on_emulator(kernel, grid, block, args, shared_bytes, stream):
    from ..emulator import launch_kernel

    if isinstance(kernel, CudaSource):
        args = with_null_pointers(args)
    launch_kernel(kernel, grid, block, args, shared_bytes)


def as_cupy_passes_them(args):
    """Structs as bytes without fields: CuPy asks NumPy to describe each field, which takes 70 microseconds a call."""
    return tuple(opaque(a) if isinstance(a, np.ndarray) and a.ndim == 0 else a for a in with_null_pointers(args))


def opaque(struct):
    return struct.view(f"V{struct.itemsize}")


def with_null_pointers(args):
    """None as the 64-bit zero that the driver copies: CuPy's own None would be no argument at all."""
    return tuple(np.uint64(0) if argument is None else argument for argument in args)


@cache
def raw_kernel(source: CudaSource, device_id: int):
    """The compiled kernel of `source` for one device, compiled at its first use there."""
    import cupy

    from ..compiling import raw_kernel_options

    return cupy.RawKernel(source.text(), source.function, options=raw_kernel_options(source), backend="nvrtc")


def cupy_stream(stream):
    """A context in which CuPy works on `stream`: its address, 0 for the default stream, None for CuPy's current one."""
    import cupy

    if stream is None:
        return contextlib.nullcontext()
    return cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null


def numba_stream(stream):
    if not stream:
        return 0
    from numba import cuda

    return cuda.external_stream(stream)


executors: list = []


@contextlib.contextmanager
def recording():
    """Collect launches in a list instead of running them.

    >>> with recording() as launches:
    ...     launch(CudaSource("direct.cu", "conv2d_direct"), (2, 1), (128,), (np.int32(7),))
    >>> launches[0].grid
    (2, 1, 1)
    """
    launches: list[Launch] = []
    with through(lambda *parts: launches.append(Launch(*parts))):
        yield launches


@contextlib.contextmanager
def through(executor):
    """Hand every launch inside to `executor(kernel, grid, block, args, shared_bytes, stream)`."""
    executors.append(executor)
    try:
        yield
    finally:
        executors.pop()
