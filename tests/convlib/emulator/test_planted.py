"""Kernels with one known fault each must be reported, with the right line; right kernels must be clean.

planted/*.cu: the first line names the fault, `// here` marks the line. Each runs on one or more blocks of 64 threads
with x (128 values) and y (64 per block), for the oldest and the newest compiler front end.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from convlib import compiling, emulator
from convlib.emulator.memory import Tracked

KERNELS = sorted((Path(__file__).parent / "planted").glob("*.cu"))
OUTPUT_FAULTS = ("never written", "written twice")


def setting(text, name, default):
    found = re.search(rf"^// {name}: (.*)$", text, re.MULTILINE)
    return found.group(1) if found else default


def ptx(path, target):
    pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
    options = ("--std=c++17", "-ftz=true", f"-arch=compute_{target}", "-lineinfo")
    return compiling.through_nvrtc(path.read_text(), path.name, options)[0]


def run(path, target):
    text = path.read_text()
    blocks, shared = int(setting(text, "blocks", "1")), int(setting(text, "shared", "0"))
    x = np.arange(1, 129, dtype=np.float32)
    if "const int* x" in text:
        x = (np.arange(128) % 8).astype(np.int32)
    if setting(text, "fault", "") == "trap":
        x[:] = 2e30
    y = np.full(64 * blocks, np.nan, np.float32)
    output = Tracked("y", y)
    report = emulator.launch(ptx(path, target), "planted", blocks, 64, (x, y), shared, tracked=(output,))
    faults = report.faults + emulator.Watch(outputs=(output,)).output_faults()
    return x, y, faults


@pytest.mark.parametrize("target", [75, 120])
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_reports_the_fault_and_nothing_else(path, target):
    text = path.read_text()
    wanted = setting(text, "fault", None)
    x, y, faults = run(path, target)
    if wanted == "none":
        assert not faults, "\n".join(map(str, faults))
        np.testing.assert_allclose(y, EXPECTED[path.stem](x), rtol=1e-6)
        return
    found = [fault for fault in faults if fault.kind == wanted]
    assert found, f"{wanted} was not reported; reported were: {faults}"
    if wanted in OUTPUT_FAULTS:
        return
    here = next(i for i, line in enumerate(text.splitlines(), 1) if "// here" in line)
    assert here in {fault.source[1] for fault in found}, f"reported at {[str(f) for f in found]}, is at line {here}"
    assert all(fault.text and fault.line and fault.thread is not None for fault in found)


def warp_sums(x):
    return np.repeat(x[:64].reshape(2, 32).sum(axis=1), 32)


def switched(x):
    t, y = np.arange(64), x[:64].copy()
    kinds = (y + 1, y * 2, y - 3, y * y, -y, y + 0.5 * t, y, y)
    return np.choose(t % 8, kinds)


EXPECTED = {
    "right_tile": lambda x: (x[:64] + x[64:])[::-1],
    "right_warp_tree": warp_sums,
    "right_shuffles": lambda x: warp_sums(x) + 32,
    "right_atomics": lambda x: x[:64] + 1,
    "right_named_barrier": lambda x: x[:64][::-1],
    "right_local_array": lambda x: np.zeros(64),
    "right_switch": switched,
    "right_own_element": lambda x: x[:64] + x[64:],
    "right_widened_load": lambda x: x[:64],
    "right_fences": lambda x: x.reshape(2, 64)[:, ::-1].ravel(),
}


def test_a_racy_kernel_still_gives_right_values():
    """Which is why values prove nothing about races."""
    path = next(path for path in KERNELS if path.stem == "barrier_missing")
    x, y, faults = run(path, 80)
    np.testing.assert_array_equal(y, x[:64][::-1])
    assert faults


def test_a_clean_run_without_checks_gives_the_same_values():
    path = next(path for path in KERNELS if path.stem == "right_tile")
    x, y = np.arange(1, 129, dtype=np.float32), np.zeros(64, np.float32)
    emulator.launch(ptx(path, 80), "planted", 1, 64, (x, y), checks=False)
    np.testing.assert_array_equal(y, EXPECTED["right_tile"](x))
