"""Faults planted in the Winograd kernels, one at a time: each must turn one of their checks red.

A mutant is a line of a .cu or .cuh file written otherwise; its PTX is executed as the right kernel's is, with all checks
of the emulator: races, bounds, uninitialised reads, every output written once, the values, and the bank conflicts. Left
out are changes that change nothing: of tiles that do not exist only zeros are read, for instance.
"""

from dataclasses import replace

import pytest

from convlib import compiling, device
from convlib.emulator.profile import profile
from convlib.kernels import launching
from convlib.kernels.cupy_raw import im2col, winograd_batched, winograd_fused
from convlib.problem import make_problem
from convlib.verification.problems import Case
from tests.kernels.cupy_raw import test_emulated
from tests.kernels.cupy_raw.test_winograd_fused import split_into

emulator = pytest.importorskip("convlib.emulator", reason="the emulator is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")

CASES = {
    "pixels": Case("pixels", (1, 9, 5, 7), (5, 9, 3, 3), {"padding": 1}, bias=True),
    "channels": Case("channels", (1, 7, 9, 26), (66, 13, 3, 3), {"groups": 2, "layout": "NHWC"}),
    "many": Case("many", (2, 9, 15, 9), (66, 9, 3, 3), {"padding": 1}),
    "slices": Case("slices", (2, 9, 18, 31), (35, 9, 3, 3), {"padding": ((2, 0), (0, 3))}),
}


def check_case(kernel, name):
    test_emulated.check(kernel, kernel.__name__.rpartition(".")[2], CASES[name])


def check_banks(kernel, layout):
    """No access of shared memory takes more wavefronts than it must."""
    x = (1, 8, 9, 9) if layout == "NCHW" else (1, 9, 9, 8)
    problem = make_problem(x, (64, 8, 3, 3), "float32", padding=1, layout=layout)
    counted = profile(f"cupy_raw.{kernel.__name__.rpartition('.')[2]}", problem)
    traffic = [access for report in counted.reports for access in report.counters.traffic if access.space == "shared"]
    assert traffic
    for access in traffic:
        assert access.cost == access.requests * max(access.size // 4, 1), access


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


@pytest.fixture
def plant(monkeypatch):
    """A function that writes `new` for the one `old` in a file of kernels/cupy_raw, for the emulator alone."""

    def planted(file, old, new):
        right = (launching.CUPY_RAW / file).read_text()
        assert right.count(old) == 1, f"{file} has {right.count(old)} of {old!r}"
        wrong = right.replace(old, new)
        text_of = launching.CudaSource.text

        def text(source):
            include = f'#include "{file}"'
            return wrong if source.file == file else text_of(source).replace(include, wrong)

        monkeypatch.setattr(launching.CudaSource, "text", text)
        monkeypatch.setattr(emulator, "ptx_of_source", lambda source, target: compiling.cuda_source_ptx(source, target))

    return planted


CHECKS = {
    "pixels": lambda kernel, _: check_case(kernel, "pixels"),
    "channels": lambda kernel, _: check_case(kernel, "channels"),
    "many": lambda kernel, _: check_case(kernel, "many"),
    "slices": lambda kernel, _: check_case(kernel, "slices"),
    "banks": lambda kernel, _: check_banks(kernel, "NCHW"),
    "banks, channels last": lambda kernel, _: check_banks(kernel, "NHWC"),
}
