"""A child of `verify` with one fault planted: python planted_child.py FAULT. Only float32 has it: other rows are right.

A fault named below is planted behind a right kernel: numba_cpu.direct, or, launched in the emulator, cupy_raw.direct.
A fault that is an edit, "OLD=>NEW", is made in direct.cu itself.
"""

import ctypes
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from convlib import device, dispatch
from convlib.kernels import launching
from convlib.verification import child

FLOAT32 = "sizeof(Element) == 4"
LAST = "index == (Index)problem.N * problem.K * problem.P * problem.Q - 1"
GPU_FAULTS = {  # edits of direct.cu, and what is planted behind its launch
    "a wrong value in one tile": (
        f"Accumulator sum = 0;=>Accumulator sum = {FLOAT32} && blockIdx.x == 1 ? 0.25f : 0.f;", r"a wrong value: y\["
    ),
    "a write past the output": (
        f"store(problem, {{y=>if ({FLOAT32} && {LAST}) y[index + 1] = x[0];\n store(problem, {{y",
        "out of bounds: 4 bytes",
    ),
    "a read past the input that is harmless": (
        f"Accumulator sum = 0;=>Accumulator sum = {FLOAT32} && index == 0 && widened(x[-1]) == 99 ? 1 : 0;",
        "out of bounds: 4 bytes",
    ),
    "writes its input": (
        f"Accumulator sum = 0;=>if ({FLOAT32} && index == 0) ((Element*)x)[0] = w[0];\n Accumulator sum = 0;",
        "race: |x was written",
    ),
    "right at N = 1 and wrong at N = 2": (
        f"image = x + offset(problem.x, at.n,=>image = x + offset(problem.x, {FLOAT32} ? 0 : at.n,",
        r"a wrong value: y\[1, ",
    ),
    "leaves outputs out": (
        f"store(problem, {{y=>if (!({FLOAT32}) || index % 7) store(problem, {{y", "never written"
    ),
    "kills its process": ("dies", "the process was killed by SIGSEGV"),
    "other bits the second time": ("other_bits", "other bits the second time"),
}  # fmt: skip
ENDLESS = f'Accumulator sum = 0;=>Accumulator sum = 0; while ({FLOAT32} && problem.N) asm volatile("" ::: "memory");'

calls = []


def planted_child(fault):
    """The command that starts this file with `fault`."""
    return sys.executable, __file__, fault


def wrong_tile(x, w, y):
    y[-1, -1, -2:, -2:] += 0.01


def past_the_end(x, w, y):
    last = np.lib.array_utils.byte_bounds(y)[1]
    ctypes.c_float.from_address(last).value = 0


def before_the_start(x, w, y):
    ctypes.c_float.from_address(np.lib.array_utils.byte_bounds(y)[0] - 4).value = 0


def never_returns(x, w, y):
    while True:
        time.sleep(1)


def dies(x, w, y):
    ctypes.string_at(0)


def leaves(x, w, y):
    print("bye", file=sys.stderr)
    os._exit(7)


def raises(x, w, y):
    raise RuntimeError("an illegal memory access was encountered")


def other_bits(x, w, y):
    calls.append(1)
    if len(calls) % 2 == 0:
        y[0, 0, 0, 0] = np.nextafter(y[0, 0, 0, 0], np.float32(9))


def writes_its_input(x, w, y):
    x[0, 0, 0, 0] = 1


def writes_its_weights(x, w, y):
    w[0, 0, 0, 0] = 1


def right_for_one_image(x, w, y):
    y[1:] = y[:1]


def leaves_one_out(x, w, y):
    y[0, 0, -1, -1] = np.nan


def accumulates(x, w, y):
    """What lay in y before: NaN, so the first filling shows it."""
    y += before[0]


def prints(x, w, y):
    """Not a fault: what a library prints must not be taken for an answer."""
    print('{"row": 0, "fault": "printed"}', flush=True)


before = []


def plant_behind_cpu_kernel(fault):
    kernel = dispatch.kernel("numba_cpu.direct")
    run = kernel.run

    def faulty(problem, place, x, w, y, *rest):
        before[:] = [y.copy()]
        run(problem, place, x, w, y, *rest)
        if problem.dtype == np.float32:
            fault(x, w, y)

    kernel.run = faulty


def plant_behind_launches(fault):
    def launch(kernel, grid, block, args, shared_bytes, stream):
        launching.on_emulator(kernel, grid, block, args, shared_bytes, stream)
        if ("ELEMENT", "float") in kernel.constants:
            fault(*args[:3])

    launching.executors.append(launch)


def plant_in_source(edit):
    old, new = edit.split("=>")
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(launching.CUPY_RAW, folder, dirs_exist_ok=True)
    source = folder / "direct.cu"
    text = source.read_text()
    assert text.count(old) == 1, old
    source.write_text(text.replace(old, new))
    launching.CUPY_RAW = folder


def main(fault):
    if fault == "on_the_cpu":  # in the place of a GPU
        child.device_called = lambda text: device.cpu()
    elif "=>" in fault:
        plant_in_source(fault)
    elif device.emulating():
        plant_behind_launches(globals()[fault])
    else:
        plant_behind_cpu_kernel(globals()[fault])
    child.main()


if __name__ == "__main__":
    main(sys.argv[1])
