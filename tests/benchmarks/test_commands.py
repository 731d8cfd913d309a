"""The easy door, on one small case: what it prints, writes and refuses."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import cases, ours, peers, startup
from benchmarks.__main__ import main

SMALL = ["--suite", "article_mnist_cnn", "--case", "5x5", "--no-peers", "--rounds", "2"]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_run_prints_its_table_and_writes_everything(tmp_path):
    done = run("cpu", *SMALL, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert "64x5x5-64-3x3" in done.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert {r["candidate"] for r in found["rows"]} >= {ours.CONV2D, ours.PLAN}
    assert all(r["error"] < 5e-6 for r in found["rows"] if r["candidate"] in (ours.CONV2D, ours.PLAN))
    assert found["settings"]["threads"] >= 1
    assert found["settings"]["peaks"]["core_gflops"] > 0
    assert found["settings"]["peaks"]["tile_gflops"] > 0
    assert (tmp_path / "results.csv").stat().st_size > 0


def test_a_wrong_kernel_gets_no_time_and_fails_the_run(tmp_path, monkeypatch):
    honest = ours.convlib.conv2d

    def off_by_one(x, w, *arguments, out, **keywords):
        honest(x, w, *arguments, out=out, **keywords)
        out[..., -1] = 0

    monkeypatch.setattr(ours.convlib, "conv2d", off_by_one)
    done = run("cpu", *SMALL, "--output", tmp_path)
    assert done.exit_code != 0
    row = next(r for r in json.loads((tmp_path / "results.json").read_text())["rows"] if r["candidate"] == ours.CONV2D)
    assert row["median_s"] is None
    assert "against float64" in row["status"]


def test_every_kernel_can_be_measured_by_itself(tmp_path):
    done = run("cpu", *SMALL, "--kernels", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    alone = {row["candidate"] for row in rows} - {ours.CONV2D, ours.PLAN, ours.FAST_PLAN}
    assert alone >= {"numba_cpu.direct", "numba_cpu.blocked"}
    assert all(row["kernel"] == row["candidate"] for row in rows if row["candidate"] in alone)


def test_another_dtype_is_measured_beside_pytorchs(tmp_path):
    pytest.importorskip("torch")
    dtype, layer = "bfloat16", "576x7x7-160-1x1"
    done = run(
        "cpu", "--suite", "mobilenet_v2", "--case", layer, "--rounds", "1", "--dtype", dtype, "--output", tmp_path
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["settings"]["dtype"] == dtype
    assert {r["candidate"] for r in found["rows"]} == {ours.CONV2D, ours.PLAN, *peers.PYTORCH}
    assert all(r["error_class"] == "accurate" and r["error"] > 1e-4 for r in found["rows"])


def test_channels_last_are_measured_on_arrays_of_that_layout(tmp_path, monkeypatch):
    honest, shapes = ours.convlib.conv2d, set()

    def noted(x, w, *arguments, out, **keywords):
        shapes.add((x.shape, out.shape, keywords["layout"]))
        return honest(x, w, *arguments, out=out, **keywords)

    monkeypatch.setattr(ours.convlib, "conv2d", noted)
    done = run("cpu", *SMALL, "--layout", "NHWC", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    assert shapes == {((1, 5, 5, 64), (1, 3, 3, 64), "NHWC")}
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["case"] for row in found["rows"]} == {"64x5x5-64-3x3-NHWC"}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_case_that_is_there_in_both_layouts_is_measured_once(layout):
    both = [case for case in cases.cases("other_networks") if "3x224x224-32-3x3/2" in case.name]
    assert len(both) == 2
    (one,) = {cases.in_layout(case, layout) for case in both}
    assert one.problem.layout == layout
    assert one in both


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_gradients_are_measured_beside_pytorchs(gradient, tmp_path):
    pytest.importorskip("torch")
    suite, layer = f"resnet50-{gradient}", "8x2048x7x7-512-1x1"
    done = run("cpu", "--backward", "--suite", suite, "--case", layer, "--rounds", "1", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    rows = {r["candidate"]: r for r in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows.keys() == {ours.shown(suite), "PyTorch NCHW", "PyTorch channels_last"}
    assert all(row["error"] < 5e-6 and row["median_s"] > 0 for row in rows.values())
    assert rows[ours.shown(suite)]["kernel"].startswith("numba_cpu.")
    assert "geometric mean" in done.output
    assert f"{suite}-advantage" in (tmp_path / "report.html").read_text()


def test_a_wrong_gradient_gets_no_time_and_fails_the_run(tmp_path, monkeypatch):
    honest = ours.convlib.conv2d_weight_grad

    def off_by_one(x, grad_y, shape, *, out, **keywords):
        honest(x, grad_y, shape, out=out, **keywords)
        out[..., -1] = 0

    monkeypatch.setattr(ours.convlib, "conv2d_weight_grad", off_by_one)
    small = ["--suite", "resnet50-weight-grad", "--case", "8x2048x7x7-512-1x1", "--no-peers", "--rounds", "1"]
    done = run("cpu", *small, "--output", tmp_path)
    assert done.exit_code != 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["median_s"] is None
    assert "against float64" in row["status"]


def test_further_measurements_join_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "measure", lambda: {"import numpy": 0.1})
    run("cpu", *SMALL, "--output", tmp_path)
    done = run("startup", "--output", tmp_path)
    assert "import numpy" in done.output
    assert "Before and around a call" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "no such layer"], "--case: no case has no such layer in its name"),
        (["--threads", "100000"], "--threads: at most"),
        (["--backward", "--layout", "NHWC"], "--layout: forward passes needed, got gradients"),
        (["--suite", "alexnet"], "'alexnet' is not one of"),
    ],
)
def test_wrong_options_are_explained(arguments, message):
    done = run("cpu", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_quick_has_every_suite_and_each_case_exists():
    chosen = {(case.suite, case.name) for case in cases.quick_cases()}
    assert chosen == {(suite, name) for suite, names in cases.QUICK.items() for name in names}
    gradients = cases.quick_cases(cases.gradient_suites())
    assert {case.suite for case in gradients} == set(cases.gradient_suites())
    assert len(gradients) == 2 * sum(len(cases.QUICK[network]) for network in cases.GRADIENT_NETWORKS)
