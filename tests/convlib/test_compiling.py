"""Kernels compiled without a GPU get the options that a user's GPU would see, and come out for the target asked for."""

import re
import subprocess
import sys

import pytest

from convlib import compiling
from convlib.compiling import TARGETS
from convlib.kernels import launching

SCALE = """
#include "half.cuh"
extern "C" __global__ void scale(float* x, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= FACTOR * HALF;
}
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "scale.cu").write_text(SCALE)
    (tmp_path / "half.cuh").write_text("constexpr float HALF = 0.5f;\n")
    monkeypatch.setattr(launching, "CUPY_RAW", tmp_path)
    return launching.CudaSource("scale.cu", "scale", (("FACTOR", 3),))


@pytest.fixture
def nvrtc():
    return pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")


@pytest.fixture
def scale():
    cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed (extra cuda13)")
    pytest.importorskip("cuda.bindings.nvjitlink", reason="nvJitLink is not installed (extra cuda13)")

    @cuda.jit(max_registers=40)
    def scale(x):
        i = cuda.grid(1)
        if i < x.size:
            x[i] *= 1.5

    return scale


def float32_array():
    from numba import types

    return (types.float32[::1],)


def test_raw_kernels_get_their_headers_folder_and_their_constants(source):
    folder, headers, factor = compiling.raw_kernel_options(source)
    assert folder == f"-I{launching.CUPY_RAW}"
    assert re.fullmatch(r"-DHEADERS=0x[0-9a-f]{8}", headers)
    assert factor == "-DFACTOR=3"


def test_a_changed_header_changes_the_options_and_so_misses_cupys_cache(source):
    before = compiling.raw_kernel_options(source)
    (launching.CUPY_RAW / "half.cuh").write_text("constexpr float HALF = 0.25f;\n")
    assert compiling.raw_kernel_options(source) != before


@pytest.mark.parametrize("target", TARGETS)
def test_nvrtc_gets_the_options_that_cupy_gives_it(source, target, monkeypatch, nvrtc):
    """CuPy's own compile function runs here, up to the moment where it would call NVRTC."""
    pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    from cupy._core import core
    from cupy.cuda import compiler

    class Recorded(Exception):
        pass

    class Program:
        def __init__(self, *_, **__):
            pass

        def compile(self, options, log_stream):
            raise Recorded(options)

    monkeypatch.setattr(compiler, "_preprocess", lambda *_: "")
    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    per_device = compiler._get_arch_for_options_for_nvrtc  # remembers its answer per device, and so asks for one
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", per_device.__wrapped__)
    given = core.assemble_cupy_compiler_options(compiling.raw_kernel_options(source))
    with pytest.raises(Recorded) as recorded:
        compiler._compile_with_cache_cuda(source.text(), given, str(target), cache_in_memory=True)
    assert compiling.nvrtc_options(source, target) == recorded.value.args[0]


@pytest.mark.parametrize("target", TARGETS)
def test_cuda_c_comes_out_for_its_target(source, target, nvrtc):
    ptx = compiling.cuda_source_ptx(source, target)
    assert re.search(rf"^\.target sm_{target}$", ptx, re.M)
    assert ".entry scale(" in ptx
    assert ".ftz" in ptx, "CuPy's kernels flush denormals"
    assert compiling.cuda_source_cubin(source, target)[:4] == b"\x7fELF"
    both = compiling.through_nvrtc(source.text(), source.file, compiling.nvrtc_options(source, target))
    assert both[0] == ptx, "the same text with machine code as without"


@pytest.mark.parametrize("target", TARGETS)
def test_numba_comes_out_for_its_target(scale, target):
    ptx = compiling.numba_ptx(scale, float32_array(), target)
    assert re.search(rf"^\.target sm_{target}$", ptx, re.M)
    assert ptx.count(".entry ") == 1
    assert ".ftz" not in ptx, "Numba's kernels keep denormals"
    assert compiling.numba_cubin(scale, float32_array(), target)[:4] == b"\x7fELF"


def test_resources_and_instructions_are_read_from_the_machine_code(source, nvrtc):
    pytest.importorskip("nvidia", reason="cuobjdump and nvdisasm are not installed (extra emulate)")
    cubin = compiling.cuda_source_cubin(source, 80)
    (used,) = compiling.resources(cubin).values()
    assert 0 < used.registers < 32
    assert (used.stack, used.shared, used.local) == (0, 0, 0)
    assert "FMUL" in compiling.sass(cubin)


def test_lines_point_into_the_source(source, nvrtc):
    assert ".loc" in compiling.cuda_source_ptx(source, 80, lines=True)
    assert ".loc" not in compiling.cuda_source_ptx(source, 80)


def test_a_refusal_shows_the_compilers_log(source, nvrtc):
    (launching.CUPY_RAW / "scale.cu").write_text("nonsense")
    with pytest.raises(compiling.CompileError, match=r"scale.cu: NVRTC refused it with .*\n(.*\n)*.*nonsense"):
        compiling.cuda_source_ptx(source, 80)


def test_a_missing_wheel_is_named_with_the_extra_that_brings_it():
    words = r'comes with nvidia-some: pip install "convlib-kernels\[cuda13\]"'
    with pytest.raises(ImportError, match=words):
        compiling.needed("no_such_module_of_ours", "nvidia-some", "cuda13")


def test_importing_it_loads_no_gpu_library():
    code = "import sys, convlib.compiling; print([m for m in ('numba', 'cupy', 'cuda', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
