"""The Numba CUDA kernels in Numba's simulator, in processes of their own: it is chosen when Numba is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITES = (
    "simulated_direct",
    "simulated_tiled",
    "simulated_im2col",
    "simulated_implicit_gemm",
    "simulated_storage",
    "simulated_weight_grad",
)
FOLDER = Path(__file__).parent


@pytest.mark.parametrize("suite", SUITES)
def test_passes_in_the_simulator(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{FOLDER / suite}.py"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    root = FOLDER.parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_suite_is_run():
    assert sorted(path.stem for path in FOLDER.glob("simulated_*.py")) == sorted(SUITES)
