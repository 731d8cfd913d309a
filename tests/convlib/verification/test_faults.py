"""verify: planted faults are each one red row, everything else stays green."""

import re
import time
from dataclasses import replace

import pytest

from convlib import device
from convlib.verification import children, problems, rows, runs
from convlib.verification.children import Settings
from convlib.verification.rows import Row
from tests.convlib.planted_child import ENDLESS, GPU_FAULTS
from tests.convlib.verification.verified_rows import CPU_ROWS, run, with_fault

GPU_ROWS = [Row("cupy_raw.direct", "forward", dtype) for dtype in ("float32", "float64")]


def results_of(todo, place, settings):
    """The first row's result, after the second was found right."""
    faulty, right = children.checked(todo, place, settings)
    assert (faulty.row, right.row) == tuple(todo)
    assert right.passed, right.fault
    assert right.problems == len(rows.served(right.row.kernel, "forward", right.row.dtype, place, "quick"))
    return faulty


CPU_FAULTS = {
    "wrong_tile": "a wrong value: y[",
    "past_the_end": "written beside the result: 0 bytes past its end",
    "before_the_start": "written beside the result: 4 bytes before its first element",
    "dies": "the process was killed by SIGSEGV",
    "leaves": "the process ended with exit code 7: bye",
    "raises": "RuntimeError: an illegal memory access was encountered",
    "other_bits": "other bits the second time: y[0, 0, 0, 0]",
    "writes_its_input": "x was written",
    "writes_its_weights": "w was written",
    "right_for_one_image": "a wrong value: y[1, ",
    "leaves_one_out": "never written, or from memory that nobody wrote: y[",
    "accumulates": "never written, or from memory that nobody wrote: y[",
}


@pytest.mark.parametrize("fault", CPU_FAULTS)
def test_a_planted_fault_is_one_red_row(fault):
    found = results_of(CPU_ROWS, device.cpu(), with_fault(fault))
    assert not found.passed
    assert found.fault.startswith(CPU_FAULTS[fault])
    assert found.problem in {case.name for case in problems.cases_for("cpu", "float32", "quick")}


def test_a_kernel_that_never_returns_is_one_red_row_and_is_ended():
    started = time.monotonic()
    found = results_of(CPU_ROWS, device.cpu(), with_fault("never_returns", limit=10))
    assert found.fault == "did not return within 10 s"
    assert time.monotonic() - started < 60


def test_at_the_deadline_a_run_ends_and_the_next_goes_on():
    going = runs.verified({device.cpu(): CPU_ROWS[::-1]}, Settings("quick"))
    next(going)
    going.close()
    started = time.monotonic()
    settings = replace(with_fault("never_returns", limit=60), deadline=started + 5)
    with pytest.raises(children.OutOfTime, match="numba_cpu.direct forward float32: "):
        run(CPU_ROWS[::-1], settings)
    assert time.monotonic() - started < 30
    assert [result.before for result in run(CPU_ROWS[::-1])] == [True, False]


def test_right_for_one_image_is_found_by_a_problem_of_several():
    found = results_of(CPU_ROWS, device.cpu(), with_fault("right_for_one_image"))
    case = next(case for case in problems.TINY + problems.SMALL if case.name == found.problem)
    assert case.problem().N > 1


def test_a_child_ends_with_its_parent(tmp_path):
    child = children.Child(CPU_ROWS, device.cpu(), with_fault("never_returns"), tmp_path)
    assert child.answers.get(timeout=60)["problem"]
    child.process.stdin.close()  # as the system does when the parent dies
    assert child.process.wait(60) == 1


def test_what_a_kernel_prints_is_no_answer():
    assert results_of(CPU_ROWS, device.cpu(), with_fault("prints")).passed


@pytest.mark.parametrize("name", GPU_FAULTS)
def test_a_fault_planted_in_a_gpu_kernel_is_one_red_row(name, compilers):
    fault, words = GPU_FAULTS[name]
    found = results_of(GPU_ROWS, device.emulator_of(80), with_fault(fault))
    assert not found.passed
    assert re.match(words, found.fault), found.fault


def test_a_gpu_kernel_that_never_returns_is_one_red_row(compilers):
    found = results_of(GPU_ROWS, device.emulator_of(80), with_fault(ENDLESS, limit=30))
    assert found.fault == "did not return within 30 s"


def test_the_kernel_without_a_fault_is_right(compilers):
    assert results_of(GPU_ROWS, device.emulator_of(80), Settings("quick")).passed
