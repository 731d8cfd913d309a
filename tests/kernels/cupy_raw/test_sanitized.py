"""The CUDA C kernels run by g++ (on_cpu.py) under AddressSanitizer: no access outside an array, global or shared.

A second opinion on bounds that shares nothing with the emulator, not even the compiler. The tests run in a process of
their own, because the sanitizer has to be loaded before Python.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.cupy_raw import on_cpu

pytestmark = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

PAST_THE_END = """
import numpy as np
from tests.kernels.cupy_raw import on_cpu
from convlib.kernels import launching
class Source(launching.CudaSource):
    def text(self):
        return 'extern "C" __global__ void k(float* x) { x[(int)threadIdx.x + %d] = 1.f; }'
with on_cpu.kernels_on_cpu():
    launching.launch(Source("k.cu", "k"), 1, 64, (np.zeros(64, np.float32),))
"""


def sanitized(*arguments):
    """Run Python with AddressSanitizer in it, and in every kernel that on_cpu compiles."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "CONVLIB_ON_CPU_SANITIZERS": "-fsanitize=address -g",
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=root, capture_output=True, text=True, check=False
    )


def test_every_kernel_stays_inside_its_arrays():
    cases = "3x3_same or stride_3_by_2 or nhwc_ohwi_groups or nhwc_wide or slices or float16_wide"
    kept = f"(test_equals_the_reference or weight_gradients_equal) and ({cases})"
    files = [f"tests/kernels/cupy_raw/test_{name}.py" for name in ("values", "winograd_fused", "winograd_batched")]
    done = sanitized("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", kept)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(("offset", "clean"), [(0, True), (1, False), (-1, False)])
def test_an_access_past_the_end_ends_the_process(offset, clean):
    done = sanitized("-c", PAST_THE_END % offset)
    assert (done.returncode == 0) == clean, done.stderr[-2000:]
    assert ("heap-buffer-overflow" in done.stderr) != clean
