"""CUDA C kernels compiled by g++ and run on the CPU, in the place of a GPU behind the seam. See cuda_on_cpu.h.

It gives values, and shows missing barriers and launches with too few arguments. What the compilers of a GPU make of the
source it cannot show: that is the emulator's part, which runs the compiled PTX.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from convlib.kernels import launching

HERE = Path(__file__).parent
SANITIZERS = os.environ.get("CONVLIB_ON_CPU_SANITIZERS", "").split()  # tests/kernels/cupy_raw/test_sanitized.py
ERRORS = {1: "another number of arguments needed", 2: "a barrier that some threads did not reach"}

# The only instructions written in PTX.
INLINE_PTX = {
    r'asm\("cvt\.f32\.f16 .*\);': "result = half_to_float(value.bits);",
    r'asm volatile\("mov\.u32 %0, %%ctaid\.x;" : "=r"\(x\)\);': "x = blockIdx.x;",
    r'asm volatile\("ld\.global\.nc\.v4[^;]*;"[^;]*\);': "memcpy(part, from, 16);",
    r'asm\("cvt\.rn\.f16\.f32 .*\);': "result.bits = float_to_half(value);",
}


def available() -> bool:
    return shutil.which("g++") is not None


@contextlib.contextmanager
def kernels_on_cpu():
    """Inside, launching.launch runs CudaSources here, on NumPy arrays."""
    launching.executors.append(run_on_cpu)
    try:
        yield
    finally:
        launching.executors.pop()


def run_on_cpu(kernel, grid, block, args, shared_bytes, stream):
    values = [by_value(argument) for argument in args]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    sizes = ((ctypes.c_uint * 3)(*three) for three in (grid, block))
    status = library(kernel, kernel.text(), headers()).start(*sizes, pointers, len(values))
    if status:
        raise RuntimeError(f"{kernel.function}: {ERRORS[status]}")


def by_value(argument):
    """What the kernel's parameter holds: the address of an array, or a copy of a scalar or struct."""
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, np.generic) or argument.ndim == 0:
        return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)
    return ctypes.c_void_p(argument.ctypes.data)


def write_sources(folder, sources):
    """Names and texts as files, with C++ in the place of PTX."""
    for name, content in sources:
        for pattern, replacement in INLINE_PTX.items():
            content = re.sub(pattern, replacement, content)
        (folder / name).write_text(content)


def headers():
    return tuple((path.name, path.read_text()) for path in sorted(launching.CUPY_RAW.glob("*.cuh")))


@cache
def library(kernel, text, headers):
    """The kernel as a shared library; compiled once for each text and constants."""
    defines = "".join(f"#define {name} {value}\n" for name, value in kernel.constants)
    start = f"return launch({kernel.function}, grid, block, arguments, count);"
    with tempfile.TemporaryDirectory(prefix="convlib-on-cpu-") as folder:
        write_sources(Path(folder), (*headers, (kernel.file, text)))
        (Path(folder) / "start.cpp").write_text(
            f'#include "cuda_on_cpu.h"\n{defines}#include "{kernel.file}"\n'
            f'extern "C" int start(unsigned* grid, unsigned* block, void** arguments, int count) {{ {start} }}\n'
        )
        compile_with_gcc(folder, "-shared", f"-I{precompiled_header().name}", "start.cpp", "-o", "kernel.so")
        return ctypes.CDLL(f"{folder}/kernel.so")


@cache
def precompiled_header():
    """A folder with cuda_on_cpu.h, which takes g++ as long to read as a kernel takes to compile, read already."""
    folder = tempfile.TemporaryDirectory(prefix="convlib-on-cpu-")
    shutil.copy(HERE / "cuda_on_cpu.h", folder.name)
    compile_with_gcc(folder.name, "cuda_on_cpu.h")
    return folder


def compile_with_gcc(folder, *arguments):
    command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-fno-strict-aliasing", *SANITIZERS, *arguments]
    without = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # g++ need not be sanitized
    compiled = subprocess.run(command, cwd=folder, env=without, capture_output=True, text=True, check=False)
    if compiled.returncode:
        raise RuntimeError(f"g++ refused {' '.join(arguments)}\n{compiled.stderr}")
