"""Results survive writing and reading, and the bars are judged on whole suites only."""

import csv
import dataclasses

import pytest

from benchmarks import cases, gate, results
from benchmarks.ours import CONV2D, FAST_PLAN, PLAN, shown


def row(case, candidate, seconds, error=1e-7, **columns):
    return results.Row(
        case.suite, case.name, case.count, case.problem.macs, 1, candidate, candidate.startswith("convlib"),
        error=error, error_class=gate.error_class(error), median_s=seconds, rounds_s=(seconds,), calls=1, **columns,
    )  # fmt: skip


def results_of(*rows):
    return results.Results({"processor": "one"}, {"threads": 2}, list(rows))


@pytest.fixture
def vgg():
    """Every layer of VGG-16: conv2d 1 s, plan 0.5 s, PyTorch 2 s, ncnn 1.5 s, MNN 0.4 s at a large error."""
    times = {CONV2D: 1.0, PLAN: 0.5, "PyTorch NCHW": 2.0, "PyTorch channels_last": 3.0, "ncnn": 1.5}
    rows = [row(case, name, seconds) for case in cases.cases("vgg16") for name, seconds in times.items()]
    return results_of(*rows, *(row(case, "MNN", 0.4, error=1e-4) for case in cases.cases("vgg16")))


def test_written_results_are_read_again(tmp_path, vgg):
    results.write(vgg, tmp_path)
    again = results.read(tmp_path / "results.json")
    assert [r.rounds_s for r in again.rows] == [list(r.rounds_s) for r in vgg.rows]
    assert again.machine == vgg.machine
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(vgg.rows)
    assert float(lines[0]["median_s"]) == 1.0


def test_bars_compare_each_with_its_own_peers(vgg):
    found = {(v.bar.candidate, v.bar.against): v for v in results.verdicts(vgg)}
    assert found[CONV2D, "PyTorch"].mean == pytest.approx(2.0)
    assert found[PLAN, "accurate peers"].mean == pytest.approx(3.0)  # ncnn, not the faster and inaccurate MNN
    assert found[FAST_PLAN, "MNN"].mean == pytest.approx(0.8)  # the plan itself, where no other kernel is chosen
    assert [v.met for v in found.values()] == [True, True, False]


def test_the_ceiling_of_a_classical_product_leaves_out_who_saves_multiplications():
    first, second, third, fourth = cases.cases("vgg16")[:4]
    at_peak = [2 * case.problem.macs / 200e9 for case in (first, second, third, fourth)]
    found = results_of(
        row(first, PLAN, 1.0, kernel="numba_cpu.blocked"), row(first, "ncnn", 2 * at_peak[0]),
        row(second, PLAN, 1.0, kernel="numba_cpu.strassen"), row(second, "ncnn", 8 * at_peak[1]),
        row(third, PLAN, 1.0, kernel="numba_cpu.winograd_f4"), row(third, "ncnn", 5 * at_peak[2]),
        row(fourth, PLAN, 1.0, kernel="numba_cpu.blocked"), row(fourth, "ncnn", 0.5 * at_peak[3]),
    )  # fmt: skip
    assert results.classical_ceiling(found, "vgg16") is None  # without a measured peak
    found.settings["peaks"] = {"core_gflops": 100.0}
    assert results.classical_ceiling(found, "vgg16") == (pytest.approx(4.0), 2)


def test_one_slow_layer_fails_a_bar_and_is_named(vgg):
    slow = cases.cases("vgg16")[4]
    rows = [r for r in vgg.rows if (r.case, r.candidate) != (slow.name, PLAN)]
    found = {v.bar.against: v for v in results.verdicts(results_of(*rows, row(slow, PLAN, 2.0)))}
    assert not found["accurate peers"].met
    assert found["accurate peers"].worst_case == slow.name


@pytest.mark.parametrize("suite", cases.gradient_suites())
def test_the_gradients_have_bars_of_their_own(suite):
    times = {shown(suite): 1.0, "PyTorch NCHW": 1.5, "PyTorch channels_last": 1.15}
    chosen = cases.cases(suite)
    (found,) = results.verdicts(results_of(*(row(case, n, t) for case in chosen for n, t in times.items())))
    assert (found.mean, found.cases) == (pytest.approx(1.15), len(chosen))
    assert found.met == (suite.endswith("weight-grad"))


def test_no_bar_is_judged_on_a_selection(vgg):
    some = [r for r in vgg.rows if r.case != cases.cases("vgg16")[0].name]
    assert results.verdicts(results_of(*some)) == []


def test_a_candidate_that_failed_counts_for_nothing(vgg):
    failed = [dataclasses.replace(r, status="error 1 against float64", median_s=None) for r in vgg.rows]
    assert results.verdicts(results_of(*failed)) == []


MACHINE = {"processor": "one", "numba_target": "any", "packages": {}, "environment": {}}


@pytest.mark.parametrize("output", [["--output", "/home/someone/out"], ["--output=/home/someone/out"], []])
def test_a_command_is_kept_without_the_folder_that_its_results_went_to(output):
    command = results.command_of(["cpu", *output, "--suite", "vgg16"])
    assert command == "python -m benchmarks cpu --suite vgg16"


def test_other_suites_are_kept_and_the_same_suite_is_replaced():
    vgg, resnet = cases.cases("vgg16")[0], cases.cases("resnet50")[0]
    before = results.Results(MACHINE, {"command": "first"}, [row(vgg, PLAN, 1.0), row(resnet, PLAN, 1.0)])
    now = results.Results(MACHINE, {"command": "second"}, [row(vgg, PLAN, 2.0)])
    both = results.added(before, now)
    assert [(r.suite, r.median_s) for r in both.rows] == [("resnet50", 1.0), ("vgg16", 2.0)]
    assert both.settings["command"] == "first; second"


def test_results_of_two_machines_are_never_mixed():
    before = results.Results(MACHINE | {"processor": "another"}, {"command": ""}, [])
    with pytest.raises(ValueError, match="results before: the same processor needed, got another, now one"):
        results.added(before, results.Results(MACHINE, {"command": ""}, []))


def test_results_of_two_dtypes_are_never_mixed():
    before = results.Results(MACHINE, {"command": ""}, [])
    with pytest.raises(ValueError, match="results before: bfloat16 needed, as now, got float32"):
        results.added(before, results.Results(MACHINE, {"command": "", "dtype": "bfloat16"}, []))


def test_bars_are_of_float32(vgg):
    other = results.Results(vgg.machine, vgg.settings | {"dtype": "bfloat16"}, vgg.rows)
    assert results.verdicts(vgg)
    assert not results.verdicts(other)


def test_the_share_of_peak_counts_what_winograd_really_multiplies():
    settings = {"threads": 2, "peaks": {"core_gflops": 100.0}}
    case = cases.cases("vgg16")[1]
    direct = row(case, PLAN, 1.0, kernel="numba_cpu.blocked", gflops=100.0)
    winograd = row(case, PLAN, 1.0, kernel="numba_cpu.winograd_f4", gflops=400.0)
    assert results.share_of_peak(direct, settings) == results.share_of_peak(winograd, settings) == 0.5
    (strided,) = (case for case in cases.cases("resnet50") if case.name == "128x56x56-128-3x3/2")
    winograd = row(strided, PLAN, 1.0, kernel="numba_cpu.winograd_f4", gflops=100.0 * 144 / 81)
    assert results.share_of_peak(winograd, settings) == pytest.approx(0.5)
    assert results.share_of_peak(direct, {"threads": 2, "peaks": None}) is None
    assert results.share_of_peak(row(case, PLAN, 1.0, kernel="numba_cpu.fft", gflops=9.0), settings) is None
