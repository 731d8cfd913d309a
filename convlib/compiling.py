"""Compiling GPU kernels without a GPU or a driver, with the options that a user's GPU would see. All options live here.

    CudaSource --> NVRTC, options as cupy.RawKernel passes them --------------> PTX, cubin
    Numba kernel --> Numba, NVVM --> LTO-IR --> nvJitLink, as a first call does --> PTX, cubin
    cubin --> cuobjdump --> registers, stack, shared and local bytes;   --> nvdisasm --> SASS

Everything comes from PyPI wheels (the extra `emulate` brings them all); an installed CUDA toolkit is not needed.
A target is an int: 80 is sm_80.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .kernels import launching

TARGETS = (75, 80, 86, 89, 90, 100, 120)
"""The compute capabilities every GPU kernel is compiled for in the tests: Turing to Blackwell."""


class CompileError(RuntimeError):
    """The compiler refused a kernel; the message is its log."""


# CUDA C


def raw_kernel_options(source: launching.CudaSource) -> tuple[str, ...]:
    """The options that `source` gives cupy.RawKernel: where its headers are, and its constants.

    CuPy's cache on disk knows a kernel by its text and options, not by the headers it includes. The digest makes a
    changed header a changed option, so that nobody runs yesterday's kernel.
    """
    return (f"-I{launching.CUPY_RAW}", f"-DHEADERS={headers_digest()}", *source.defines())


def headers_digest() -> str:
    texts = b"".join(path.read_bytes() for path in sorted(launching.CUPY_RAW.glob("*.cuh")))
    return "0x" + hashlib.sha256(texts).hexdigest()[:8]


def nvrtc_options(source: launching.CudaSource, target: int) -> tuple[str, ...]:
    """Every option NVRTC gets for `source` when cupy.RawKernel compiles it on a GPU of compute capability `target`.

    tests/convlib/test_compiling.py compares them with what the installed CuPy hands its compiler.
    """
    options = cupy_options(raw_kernel_options(source))
    return (*options, "-ftz=true", f"-arch=sm_{target}", "--device-as-default-execution-space")


def cupy_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """`options` with the language standard and the include folders that CuPy adds, asked of CuPy where installed."""
    if find_spec("cupy"):
        return import_module("cupy._core.core").assemble_cupy_compiler_options(options)
    return (*options, "--std=c++17")


def cuda_source_ptx(source: launching.CudaSource, target: int, lines: bool = False) -> str:
    """The PTX of `source` for sm_`target`. lines: with .loc directives that point into the .cu files.

    Asked for without machine code NVRTC writes the same text in a third of the time: it runs no assembler.
    """
    options = [f"-arch=compute_{target}" if o.startswith("-arch=") else o for o in nvrtc_options(source, target)]
    return through_nvrtc(source.text(), source.file, (*options, *(["-lineinfo"] if lines else [])))[0]


def cuda_source_cubin(source: launching.CudaSource, target: int) -> bytes:
    """The machine code of `source` for sm_`target`, as cupy.RawKernel would load it."""
    return through_nvrtc(source.text(), source.file, nvrtc_options(source, target))[1]


@cache
def through_nvrtc(text: str, name: str, options: tuple[str, ...]) -> tuple[str, bytes]:
    """PTX and cubin of CUDA C."""
    nvrtc = needed("cuda.bindings.nvrtc", "nvidia-cuda-nvrtc", "cuda13")
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    check_nvrtc(nvrtc, status)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = nvrtc_bytes(nvrtc, program, "ProgramLog").decode().rstrip("\0")
            raise CompileError(f"{name}: NVRTC refused it with {' '.join(options)}\n{log}")
        return nvrtc_bytes(nvrtc, program, "PTX").decode().rstrip("\0"), nvrtc_bytes(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def nvrtc_bytes(nvrtc, program, what) -> bytes:
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    check_nvrtc(nvrtc, status)
    data = b" " * size
    (status,) = getattr(nvrtc, f"nvrtcGet{what}")(program, data)
    check_nvrtc(nvrtc, status)
    return data


def check_nvrtc(nvrtc, status):
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")


# Numba


def numba_ptx(kernel, signature, target: int) -> str:
    """The PTX of a Numba CUDA kernel for argument types `signature`, after link-time optimisation, for sm_`target`.

    kernel: a dispatcher (what @cuda.jit gives). signature: a tuple of Numba types, as in numba.void(...) or (...).
    """
    return linked(kernel, signature, target, as_ptx=True).decode().rstrip("\0")


def numba_cubin(kernel, signature, target: int) -> bytes:
    """The machine code of a Numba CUDA kernel for argument types `signature`, as on a GPU of sm_`target`."""
    return linked(kernel, signature, target, as_ptx=False)


def linked(kernel, signature, target, as_ptx):
    """What a first call on a GPU does: Numba's LTO-IR, given to nvJitLink with the options that Numba gives it."""
    nvjitlink = needed("cuda.bindings.nvjitlink", "nvidia-nvjitlink", "cuda13")
    registers = kernel.targetoptions.get("max_registers")
    options = [f"-arch=sm_{target}", "-lto"]
    options += [f"-maxrregcount={registers}"] if registers else []
    options += ["-ptx"] if as_ptx else []
    code = numba_ltoir(kernel, signature, target)
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(handle)
        return nvjitlink_bytes(nvjitlink, handle, "ptx" if as_ptx else "cubin")
    except nvjitlink.nvJitLinkError as error:
        log = nvjitlink_bytes(nvjitlink, handle, "error_log", getter="get_").decode().rstrip("\0")
        name = kernel.py_func.__name__
        raise CompileError(f"{name}: nvJitLink refused it with {' '.join(options)}\n{log}") from error
    finally:
        nvjitlink.destroy(handle)


def nvjitlink_bytes(nvjitlink, handle, what, getter="get_linked_") -> bytes:
    data = bytearray(getattr(nvjitlink, f"{getter}{what}_size")(handle))
    getattr(nvjitlink, f"{getter}{what}")(handle, data)
    return bytes(data)


@cache  # PTX and machine code are linked from the same
def numba_ltoir(kernel, signature, target) -> bytes:
    cuda = needed("numba.cuda", "numba-cuda", "cuda13")
    options = kernel.targetoptions
    code, _ = cuda.compile(
        kernel.py_func,
        signature,
        device=False,
        abi="numba",
        cc=divmod(target, 10),
        output="ltoir",
        fastmath=options.get("fastmath", False),
        launch_bounds=options.get("launch_bounds"),
    )
    return code


# PTX

PTX_INSTRUCTION = re.compile(r"\s*(@!?%\w+\s+)?[a-z][\w.]*\s[^;]*;\s*$|\s*(@!?%\w+\s+)?(ret|exit|trap);\s*$")


def cubin_with_ptx_lines(ptx: str, target: int) -> bytes:
    """The machine code of `ptx`, a text without .loc directives, whose line numbers are the lines of that text.

    The assembler schedules a little differently where there are line numbers: within a hundredth of the instructions.
    """
    nvjitlink = needed("cuda.bindings.nvjitlink", "nvidia-nvjitlink", "cuda13")
    text = with_lines(ptx).encode()
    options = [f"-arch=sm_{target}", "-lineinfo"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), "kernel")
        nvjitlink.complete(handle)
        return nvjitlink_bytes(nvjitlink, handle, "cubin")
    except nvjitlink.nvJitLinkError as error:
        log = nvjitlink_bytes(nvjitlink, handle, "error_log", getter="get_").decode().rstrip("\0")
        raise CompileError(f"nvJitLink refused PTX with {' '.join(options)}\n{log}") from error
    finally:
        nvjitlink.destroy(handle)


def with_lines(ptx):
    lines = []
    for number, line in enumerate(ptx.splitlines(), 1):
        if PTX_INSTRUCTION.match(line):
            lines.append(f".loc 1 {number} 0")
        lines.append(line)
        if line.startswith(".address_size"):
            lines.append('.file 1 "kernel.ptx"')
    return "\n".join(lines) + "\n"


# What came out


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes of a GPU. stack: bytes per thread, spilled registers included; local: other such bytes."""

    registers: int
    stack: int
    shared: int
    local: int


def resources(cubin: bytes) -> dict[str, Resources]:
    """The resources of every kernel in `cubin`, by name."""
    text = disassembled(cubin, "cuobjdump", "--dump-resource-usage")
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {name: Resources(*map(int, sizes)) for name, *sizes in re.findall(pattern, text)}


def sass(cubin: bytes, lines: bool = False) -> str:
    """The machine instructions of `cubin` as nvdisasm prints them. lines: with the source line before each."""
    return disassembled(cubin, "nvdisasm", *(["-g"] if lines else []), "-c")


def disassembled(cubin, program, *options):
    path = cuda_program(program)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{program}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@cache
def cuda_program(name: str) -> str:
    """Where the wheel nvidia-cuda-`name` put its program."""
    wheel = f"nvidia-cuda-{name}"
    for root in needed("nvidia", wheel, "emulate").__path__:
        for program in Path(root).glob(f"*/bin/{name}"):
            return str(program)
    raise missing(name, wheel, "emulate")


def needed(module: str, wheel: str, extra: str):
    try:
        return import_module(module)
    except ImportError as error:
        raise missing(module, wheel, extra) from error


def missing(what, wheel, extra):
    return ImportError(f'{what}: needed here, comes with {wheel}: pip install "convlib-kernels[{extra}]"')
