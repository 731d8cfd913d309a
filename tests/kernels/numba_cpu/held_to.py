"""Tests run as for a processor with other registers, in a process of its own: nothing else would see that code.

python -m tests.kernels.numba_cpu.held_to SSE COMMAND ...    runs any command so
"""

import os
import subprocess
import sys
from pathlib import Path

AVX2 = ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt")
INTELS_AVX512 = ("skylake-avx512", AVX2[1] + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl")
SSE = ("nehalem", "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt")


def lowered(processor) -> dict[str, str]:
    """The environment of a process that compiles for such a processor."""
    name, features = processor
    return os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}


def run_held_to(processor, files, tests, **variables):
    """Run the tests that pytest's -k `tests` names in these files, and pass if they do."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files), "-k", tests]
    environment, root = lowered(processor) | variables, Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    processor, *command = sys.argv[1:]
    os.execvpe(command[0], command, lowered({"AVX2": AVX2, "INTELS_AVX512": INTELS_AVX512, "SSE": SSE}[processor]))
