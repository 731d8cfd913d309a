"""Where a kernel runs: what dispatch and the kernels' `why_not` need to know of a machine, and no more."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Device:
    """A processor. kind: "cpu", "cuda", "simulator" (Numba's), or "emulator" (ours, of PTX)."""

    kind: str
    index: int = 0
    name: str = ""
    compute_capability: tuple[int, int] = (0, 0)
    sm_count: int = 0
    shared_bytes_per_block: int = 49_152
    threads: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.kind != "cpu"

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" + (f" ({self.name})" if self.name else "")


def cpu() -> Device:
    """This machine's processor, with as many threads as Numba may use now."""
    return cpu_with(thread_count())


def thread_count() -> int:
    """NUMBA_NUM_THREADS, or what numba.set_num_threads said since; asking starts no threads."""
    numba, parallel = numba_and_its_threads()
    return numba.get_num_threads() if parallel._is_initialized else numba.config.NUMBA_NUM_THREADS


@cache
def numba_and_its_threads():
    import numba
    from numba.np.ufunc import parallel

    return numba, parallel


@cache
def cpu_with(threads: int) -> Device:
    return Device("cpu", threads=threads)


@cache
def simulator() -> Device:
    """Numba's own simulator of CUDA; it claims the abilities of the oldest target we compile for."""
    return Device("simulator", name="Numba's CUDA simulator", compute_capability=(7, 5), sm_count=1)


def emulator() -> Device:
    """Our PTX emulator, as the target that CONVLIB_EMULATE_TARGET names (80 if it is not set)."""
    target = os.environ.get("CONVLIB_EMULATE_TARGET", "80")
    if f"sm_{target}" not in TARGETS:
        known = ", ".join(name.removeprefix("sm_") for name in TARGETS)
        raise ValueError(f"CONVLIB_EMULATE_TARGET: one of {known} needed, got {target!r}")
    return emulator_of(int(target))


@cache
def emulator_of(target: int) -> Device:
    return Device("emulator", name=f"PTX emulator, sm_{target}", compute_capability=divmod(target, 10), sm_count=108)


# Data sheets: name, multiprocessors. The card of each architecture that a prediction without a GPU is made for.
TARGETS = {
    "sm_75": ("Tesla T4", 40),
    "sm_80": ("A100", 108),
    "sm_86": ("GeForce RTX 3090", 82),
    "sm_89": ("GeForce RTX 4090", 128),
    "sm_90": ("H100 SXM", 132),
    "sm_100": ("B200", 148),
    "sm_120": ("GeForce RTX 5090", 170),
}


def named(text: str, name: str = "device") -> Device:
    """The device that a user names: "cpu", "cuda:0", or a target, "sm_80", which stands for one card and needs none.

    name: what the user calls it.

    >>> named("sm_90").sm_count
    132
    """
    if text == "cpu":
        return cpu()
    if text in TARGETS:
        card, sm_count = TARGETS[text]
        return Device("cuda", 0, card, divmod(int(text.removeprefix("sm_")), 10), sm_count)
    kind, _, index = text.partition(":")
    if kind == "cuda" and (index or "0").isdecimal():
        return visible_gpu(int(index or 0), name)
    raise ValueError(f"{name}: one of cpu, cuda:0, {', '.join(TARGETS)} needed, got {text!r}")


def visible_gpu(index, name):
    try:
        return gpu(index)
    except Exception as error:  # each library has its own for "no driver"
        raise ValueError(f"{name}: no GPU {index} is visible here ({type(error).__name__})") from error


def simulating() -> bool:
    """Whether Numba simulates CUDA in this process: NUMBA_ENABLE_CUDASIM is 1."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"


def emulating() -> bool:
    """Whether GPU kernels run in the emulator: CONVLIB_EMULATE is 1."""
    return os.environ.get("CONVLIB_EMULATE", "0") == "1"


@cache
def gpu(index: int) -> Device:
    """The properties of CUDA device `index`, asked through whichever GPU library is installed."""
    try:
        import cupy
    except ImportError:
        return gpu_through_numba(index)
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    return Device(
        "cuda",
        index,
        properties["name"].decode(),
        (properties["major"], properties["minor"]),
        properties["multiProcessorCount"],
        properties["sharedMemPerBlock"],
    )


def gpu_through_numba(index):
    from numba import cuda

    device = cuda.list_devices()[index]
    return Device(
        "cuda",
        index,
        device.name.decode() if isinstance(device.name, bytes) else device.name,
        tuple(device.compute_capability),
        device.MULTIPROCESSOR_COUNT,
        device.MAX_SHARED_MEMORY_PER_BLOCK,
    )


@cache
def has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded: asked before a GPU library, which takes longer to import."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


DRIVER = Path("/proc/driver/nvidia/version")


@cache
def driver() -> str:
    """The version of NVIDIA's driver, as "580.82.07"; where the system does not say, of the CUDA that it supports."""
    found = re.search(r"\d+\.\d+(\.\d+)*", DRIVER.read_text()) if DRIVER.is_file() else None
    return found.group() if found else f"CUDA {supported_cuda()}"


def supported_cuda():
    try:
        import cupy
    except ImportError:
        from numba import cuda

        return ".".join(map(str, cuda.cudadrv.driver.driver.get_version()))
    version = cupy.cuda.runtime.driverGetVersion()
    return f"{version // 1000}.{version % 1000 // 10}"
