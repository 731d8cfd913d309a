"""The Numba CUDA kernels in Numba's simulator, in processes of their own: it is chosen when Numba is imported.

Each on one processor: of the simulator's threads one runs at a time, and handing the turn from one processor to another
costs more than most turns. Four problems through three kernels took 15.7 s of processor time on two Zen 4 cores, on one
of them 8.3.
"""

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


def stay_on_one_processor():
    """Another for each worker of pytest-xdist."""
    processors = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {processors[worker % len(processors)]})


@pytest.mark.parametrize("suite", SUITES)
def test_passes_in_the_simulator(suite):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{FOLDER / suite}.py"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    root = FOLDER.parents[2]
    first = stay_on_one_processor if hasattr(os, "sched_setaffinity") else None
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, preexec_fn=first)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_suite_is_run():
    assert sorted(path.stem for path in FOLDER.glob("simulated_*.py")) == sorted(SUITES)
