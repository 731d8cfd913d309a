"""What a user waits for before and around a convolution: the import, the first call, and the cost of each call.

import       new processes in turn, with NumPy alone and with convlib: the difference of the medians
first call   new processes; seconds from after `import numba` to the first answer, with our code kept on disk from
             before, and with an empty folder for it
overhead     1x8x8x8, 3x3: conv2d, plan and the kernel's own run taking turns in one process; and, where PyTorch is
             installed, convlib.torch.conv2d, with weights that want a gradient and without, beside conv2d on tensors
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import convlib
from convlib import device, dispatch
from convlib.problem import make_problem

from . import engine
from .candidate import Candidate
from .stages import empty_bytes

CHECKOUT = Path(__file__).parents[1]
PROCESSES = 9
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
IMPORTS = {"numpy": "import numpy", "convlib": "import convlib"}
FIRST_CALL = """
import numba, time
start = time.perf_counter()
import numpy as np, convlib
convlib.conv2d(np.ones((1, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32), padding=1)
print(time.perf_counter() - start)
"""


def measure() -> dict[str, float]:
    """Seconds by name; see this file's account."""
    imports = import_seconds()
    overheads = call_seconds()
    return {
        "import numpy": imports["numpy"],
        "import convlib, beyond numpy": imports["convlib"] - imports["numpy"],
        "first conv2d, code on disk": float(np.median([run(FIRST_CALL) for _ in range(PROCESSES)])),
        "first conv2d, nothing on disk": cold_first_call(),
        "kernel alone, 1x8x8x8": overheads["kernel"],
        "plan, beyond the kernel": overheads["plan"] - overheads["kernel"],
        "conv2d, beyond the kernel": overheads["conv2d"] - overheads["kernel"],
    } | torch_overheads()


# The most that each should take, in seconds.
CEILINGS = {
    "import convlib, beyond numpy": 30e-3,
    "first conv2d, code on disk": 0.5,
    "first conv2d, nothing on disk": 15.0,
    "plan, beyond the kernel": 10e-6,
    "conv2d, beyond the kernel": 30e-6,
    "convlib.torch.conv2d, beyond conv2d": 15e-6,
    "convlib.torch.conv2d with gradient, beyond conv2d": 15e-6,
}


def import_seconds() -> dict[str, float]:
    """Medians over processes that take turns, after one turn that writes bytecode and fills the page cache."""
    seconds = {name: [] for name in IMPORTS}
    for turn in range(PROCESSES + 1):
        for name, statement in IMPORTS.items():
            value = run(TIMED.format(statement))
            if turn:
                seconds[name].append(value)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def cold_first_call() -> float:
    with tempfile.TemporaryDirectory() as folder:
        return run(FIRST_CALL, NUMBA_CACHE_DIR=folder)


def run(code: str, **environment: str) -> float:
    """The number that `code` prints in a new process, which keeps and finds bytecode as an installed package does."""
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)} | environment
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def call_seconds() -> dict[str, float]:
    """Medians of conv2d, plan and the kernel that both choose, on one tiny problem."""
    x, w = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 3, 3), np.float32)
    y = np.empty((1, 8, 8, 8), np.float32)
    plan = convlib.plan(x.shape, w, padding=1)
    calls = {
        "kernel": kernel_call(plan.name, x, w, y),
        "plan": partial(plan, x, out=y),
        "conv2d": partial(convlib.conv2d, x, w, padding=1, out=y),
    }
    return medians(calls)


def torch_overheads() -> dict[str, float]:
    """What the PyTorch adapter takes beyond conv2d on the same tensors; nothing where PyTorch is not installed."""
    if find_spec("torch") is None:
        return {}
    import torch

    from convlib.torch import conv2d

    x, w = torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3)
    calls = {
        "conv2d": partial(convlib.conv2d, x, w, padding=1),
        "convlib.torch.conv2d, beyond conv2d": partial(conv2d, x, w, padding=1),
        "convlib.torch.conv2d with gradient, beyond conv2d": partial(conv2d, x, w.clone().requires_grad_(), padding=1),
    }
    found = medians(calls)
    without = found.pop("conv2d")
    return {name: seconds - without for name, seconds in found.items()}


def medians(calls) -> dict[str, float]:
    for call in calls.values():
        call()
    candidates = [Candidate(name, call, lambda: None, 0.0) for name, call in calls.items()]
    timings = engine.measure(candidates, engine.Settings(rounds=15, block_seconds=0.02))
    return {name: timing.median for name, timing in timings.items()}


def kernel_call(name, x, w, y):
    """The kernel's own run, with weights packed and workspace at hand."""
    problem, place = make_problem(x.shape, w.shape, "float32", padding=1), device.cpu()
    kernel = dispatch.kernel(name)
    weights = w
    if hasattr(kernel, "pack"):
        weights = empty_bytes(kernel.packed_bytes(problem, place))
        kernel.pack(problem, place, w, weights)
    workspace = empty_bytes(kernel.workspace_bytes(problem, place))
    return partial(kernel.run, problem, place, x, weights, y, workspace=workspace)
