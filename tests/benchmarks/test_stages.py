"""Stages are measured by leaving them out: the whole run is right, and each part left out is really missed."""

import numpy as np
import pytest

from benchmarks import cases, engine, gate, results, stages
from convlib import choosing, device, strided
from convlib.problem import make_problem

PROBLEM = make_problem((1, 8, 12, 12), (8, 8, 3, 3), "float32", padding=1, has_bias=True)
CASE = cases.Case("any", "small", PROBLEM)


def zeros(count):
    memory = strided.empty_aligned((count,), np.uint8)
    memory[:] = 0
    return memory


def result_of(monkeypatch, name, part):
    """What the output, full of NaN before, holds after a run without `part`, in a workspace of zeros."""
    seen = []
    honest = stages.ours.arrays
    monkeypatch.setattr(stages.ours, "arrays", lambda *arguments: seen.append(honest(*arguments)) or seen[-1])
    monkeypatch.setattr(stages, "empty_bytes", zeros)
    calls = stages.kernel_calls(CASE, name)
    y = seen[0][3]
    calls[part]()
    return y


@pytest.mark.parametrize("name", stages.WINOGRAD_TILES)
def test_the_whole_run_is_the_convolution(monkeypatch, name):
    wanted = gate.exact(CASE, cases.operands(CASE))
    assert gate.norm_relative_error(result_of(monkeypatch, name, "run"), wanted) < 5e-6


@pytest.mark.parametrize("part", ["input", "multiply"])
@pytest.mark.parametrize("name", stages.WINOGRAD_TILES)
def test_without_a_stage_before_the_last_only_the_bias_is_left(monkeypatch, name, part):
    bias = cases.operands(CASE).bias[:, None, None]
    np.testing.assert_array_equal(result_of(monkeypatch, name, part), np.broadcast_to(bias, PROBLEM.y_shape))


@pytest.mark.parametrize("name", stages.WINOGRAD_TILES)
def test_without_the_last_stage_nothing_is_written(monkeypatch, name):
    assert np.isnan(result_of(monkeypatch, name, "output")).all()


def test_a_stage_takes_what_its_absence_saves():
    assert stages.missing_seconds(engine.Timing((5.0, 9.0, 6.0), 1), engine.Timing((3.0, 4.0, 5.0), 1)) == 2.0


def test_kernels_without_stages_have_one_number():
    case = cases.Case("any", "1x1", make_problem((1, 8, 6, 6), (8, 8, 1, 1), "float32"))
    found = stages.measure(case, engine.Settings(rounds=1, block_seconds=1e-4), peak_gflops=1.0)
    assert found.stages_s == {}
    assert found.run_s > 0


def test_they_are_of_the_kernel_that_a_plan_chooses_and_beside_what_it_multiplies():
    problem = make_problem((1, 1024, 14, 14), (256, 1024, 1, 1), "float32")
    found = stages.measure(cases.Case("any", "1x1", problem), engine.Settings(rounds=1, block_seconds=1e-4), 200.0)
    assert found.kernel == choosing.chosen(problem, device.cpu(), planned=True).name
    saved = results.MULTIPLICATIONS_SAVED[found.kernel.removeprefix("numba_cpu.")]
    assert found.limit_s == pytest.approx(2 * problem.macs / saved / 200e9)
