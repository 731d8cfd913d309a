"""This machine and what is installed on it: what info tells, and what verification and measured times are kept by."""

from __future__ import annotations

import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from . import device
from .device import Device


def processor_name() -> str:
    """The processor's own name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def visible_gpus() -> list[Device]:
    """The CUDA devices that an installed GPU library can see; none where there is no driver."""
    if not device.has_driver():
        return []
    if installed("cupy"):
        import cupy

        try:
            return [device.gpu(i) for i in range(cupy.cuda.runtime.getDeviceCount())]
        except cupy.cuda.runtime.CUDARuntimeError:
            return []
    if not installed("numba") or device.simulating():
        return []
    from numba import cuda

    return [device.gpu(i) for i in range(len(cuda.gpus))] if cuda.is_available() else []


@cache
def installed(package: str) -> bool:
    return find_spec(package) is not None


def installed_version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms, which `import convlib` need not take

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def kernels_folder() -> Path:
    from . import kernels as package

    return Path(package.__path__[0])
