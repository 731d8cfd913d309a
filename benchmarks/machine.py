"""What the numbers were measured on: processor, instruction set, caches, threads, versions."""

from __future__ import annotations

import os
import platform

import convlib
from convlib.kernels.numba_cpu import target
from convlib.machine import installed_version, processor_name

PACKAGES = (
    "convlib-kernels", "numpy", "numba", "llvmlite", "torch", "onnxruntime", "openvino", "ncnn", "MNN",
    "opencv-python-headless", "scipy", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cudnn-frontend",
)  # fmt: skip
INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
SETTINGS = (
    "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY", "OPENBLAS_CORETYPE",
)  # fmt: skip


def describe() -> dict:
    """This machine and its software, for the results' header; py-cpuinfo and psutil know more where they are there."""
    cpu = cpu_info()
    flags = set(cpu.get("flags", ()))
    return {
        "processor": cpu.get("brand_raw", processor_name()),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "numba_target": numba_target(),
        "cores": physical_cores(),
        "logical_processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "l2_cache_bytes": target.cache_bytes(2),  # of one core
        "l3_cache_bytes": target.cache_bytes(3),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := installed_version(name))},
        "environment": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "gpus": convlib.info()["gpus"],
    }


def cpu_info() -> dict:
    try:
        import cpuinfo
    except ImportError:
        return {}
    return cpuinfo.get_cpu_info()


def physical_cores() -> int | None:
    try:
        import psutil
    except ImportError:
        return os.cpu_count()
    return psutil.cpu_count(logical=False)


def numba_target() -> str:
    """The processor that Numba compiles for, which the user may have lowered."""
    import llvmlite.binding as llvm
    from numba import config

    return config.CPU_NAME or llvm.get_host_cpu_name()
