"""Options and cases of `pytest benchmarks`: our kernels through pytest-benchmark, from commit to commit.

pytest benchmarks --benchmark-save=before         then, after a change,
pytest benchmarks --benchmark-compare             --suite=vgg16 for a whole network, -k winograd for one kernel
"""

from __future__ import annotations

import pytest

from . import cases, gpu, ours


def pytest_addoption(parser):
    parser.addoption(
        "--suite", action="append", choices=cases.suites(), help="All cases of this suite (may be repeated)."
    )


def pytest_generate_tests(metafunc):
    """A test for each candidate of ours on each case: conv2d, plan, and every kernel that can run it."""
    if "make" not in metafunc.fixturenames:
        return
    place = ours.host() if gpu.unavailable() else gpu.place()
    chosen = metafunc.config.getoption("--suite")
    selected = [case for suite in chosen for case in cases.cases(suite)] if chosen else cases.quick_cases()
    parameters = [
        pytest.param(case, make, id=f"{case}-{name.removeprefix('convlib ')}")
        for case in selected
        for name, make in (ours.makers(case, place) | ours.kernel_makers(case, place)).items()
    ]
    metafunc.parametrize(("case", "make"), parameters)
