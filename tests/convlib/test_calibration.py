"""calibrate: constants that made up measurements hide are found again; what is committed is what results ask for."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from convlib import calibration, device, dispatch, layers
from convlib.__main__ import main
from convlib.kernels import gpu_cost

CHECKOUT = Path(__file__).parents[2]
A100 = {"compute_capability": [8, 0], "sm_count": 108}
KERNEL = "cupy_raw.tiled"
PLACE = device.Device("cuda", 0, "A100", (8, 0), 108)


def made_up(folder, rows, **settings):
    """A results.json of a visit to an A100."""
    peaks = {"core_gflops": 2 * 64 * 108 * 1.4, "bandwidth_gbs": 108 * 13.0}
    settings = {"device": "cuda:0 (A100)", "date": "2026-12-01", "gpu": A100, "peaks": peaks} | settings
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"settings": settings, "rows": rows}))


def row(case, seconds, suite="resnet50", candidate=KERNEL, kernel=KERNEL):
    return {"suite": suite, "case": case, "candidate": candidate, "kernel": kernel, "median_s": seconds}


def true_rows(waiting, suite="resnet50", kernel=KERNEL):
    """What some layers would take if `waiting` were true, on a card with the limits of `made_up`."""
    limits = {"clock": {"8.0": 1.4e9}, "memory_per_sm": {"8.0": 13e9}}
    rows = []
    with calibration.using(limits), calibration.waiting_of(kernel, waiting):
        for layer in layers.layers(suite.partition("-")[0])[:6]:
            name = f"8x{layer.name}"
            problem = calibration.problem_of(suite, name)
            rows.append(row(name, dispatch.kernel(kernel).predicted_seconds(problem, PLACE), suite, kernel, kernel))
    return rows


def test_hidden_constants_are_found(tmp_path):
    made_up(tmp_path / "a100", true_rows(3.3))
    files = calibration.results_files(tmp_path)
    constants, (fit,) = calibration.constants_from(files)
    assert constants["clock"]["8.0"] == pytest.approx(1.4e9)
    assert constants["memory_per_sm"]["8.0"] == pytest.approx(13e9)
    assert constants["waiting"][KERNEL] == fit.waiting == pytest.approx(3.3, rel=0.02)
    assert fit.cases == 6
    assert fit.error < 1.02 < fit.error_before
    assert constants["waiting"]["cupy_raw.direct"] == gpu_cost.FITTED["waiting"]["cupy_raw.direct"]


def test_gradients_are_fitted_too(tmp_path):
    made_up(tmp_path / "a100", true_rows(2.2, "vgg16-weight-grad", "cupy_raw.weight_grad"))
    _, (fit,) = calibration.constants_from(calibration.results_files(tmp_path))
    assert (fit.kernel, fit.waiting) == ("cupy_raw.weight_grad", pytest.approx(2.2, rel=0.02))


def test_a_kernel_without_such_a_constant_is_left_as_it_is(tmp_path, monkeypatch):
    made_up(tmp_path / "a100", true_rows(3.3))
    monkeypatch.delattr(dispatch.kernel(KERNEL), "WAITING")
    monkeypatch.setattr(calibration, "predicted", lambda one: one.seconds)
    constants, fits = calibration.constants_from(calibration.results_files(tmp_path))
    assert fits == []
    assert constants["waiting"] == gpu_cost.FITTED["waiting"]


def test_fitting_leaves_the_model_as_it_was(tmp_path):
    problem, module = calibration.problem_of("vgg16", "64x224x224-64-3x3"), dispatch.kernel(KERNEL)
    before = module.predicted_seconds(problem, PLACE), module.WAITING, dict(gpu_cost.CLOCKS)
    made_up(tmp_path / "a100", true_rows(3.3))
    calibration.constants_from(calibration.results_files(tmp_path))
    assert (module.predicted_seconds(problem, PLACE), module.WAITING, dict(gpu_cost.CLOCKS)) == before


def test_only_kernels_by_themselves_on_layers_count():
    case = "32x3x224x224-64-7x7/2"
    rows = [
        row(case, 1e-3),
        row(case, 1e-3, candidate="convlib plan"),
        row(case, 1e-3, candidate="cuDNN NCHW heuristic", kernel=""),
        row(case, None),
        row("1080p-1-3x3", 1e-3, suite="filters"),
        row("no such layer", 1e-3),
    ]
    settings = {"device": "cuda:0 (A100)", "gpu": A100}
    (one,) = calibration.measurements_in({"settings": settings, "rows": rows})
    assert (one.kernel, one.problem.x_shape, one.place) == (KERNEL, (32, 3, 224, 224), PLACE)


@pytest.mark.parametrize(("case", "images", "layer"), [
    ("3x224x224-64-7x7/2", 1, "3x224x224-64-7x7/2"),
    ("32x3x224x224-64-7x7/2", 32, "3x224x224-64-7x7/2"),
    ("32x8x64x5x5-64-3x3", 32, "64x5x5-64-3x3"),
    ("1080p-1-3x3", 1, "1080p-1-3x3"),
])  # fmt: skip
def test_a_batch_stands_before_its_layer(case, images, layer):
    assert calibration.batch_and_layer(case) == (images, layer)


def test_what_was_measured_last_counts(tmp_path):
    for folder, day, seconds in (("a", "01", 2e-3), ("b", "03", 1e-3), ("c", "02", 3e-3)):
        made_up(tmp_path / folder, [row("3x224x224-64-7x7/2", seconds)], date=f"2026-12-{day}")
    (one,) = calibration.measurements(calibration.results_files(tmp_path))
    assert one.seconds == 1e-3


def test_a_case_that_another_kernel_does_faster_weighs_less(tmp_path):
    case = "3x224x224-64-7x7/2"
    rows = [row(case, 1e-3), row(case, 4e-3, candidate="cupy_raw.direct", kernel="cupy_raw.direct")]
    made_up(tmp_path / "a", rows)
    found = calibration.measurements(calibration.results_files(tmp_path))
    assert {one.kernel: one.weight for one in found} == {KERNEL: 1.0, "cupy_raw.direct": 1 / 16}


def test_rehearsals_and_cpus_are_never_read(tmp_path):
    made_up(tmp_path / "a", true_rows(3.3), rehearsal=True)
    made_up(tmp_path / "b", true_rows(3.3), device="cpu:0")
    assert calibration.results_files(tmp_path) == []
    said = CliRunner().invoke(main, ["calibrate", "--results", str(tmp_path)])
    assert said.exit_code == 0
    assert "no results of a GPU" in said.output
    assert "stays predicted" in said.output


def test_an_unknown_card_is_refused(tmp_path):
    made_up(tmp_path / "a", true_rows(3.3), gpu=None)
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    del content["settings"]["gpu"]
    (tmp_path / "a" / "results.json").write_text(json.dumps(content))
    said = CliRunner().invoke(main, ["calibrate", "--results", str(tmp_path)])
    assert said.exit_code == 2
    assert "settings.gpu needed, with compute_capability and sm_count of 'A100'" in said.output


def test_the_command_writes_constants_with_where_they_come_from(tmp_path, monkeypatch):
    file = Path(shutil.copy(calibration.constants_file(), tmp_path / "gpu_cost.json"))
    monkeypatch.setattr(calibration, "constants_file", lambda: file)
    before = file.read_text()
    made_up(tmp_path / "results" / "a100-2026-12-01", true_rows(3.3))
    arguments = ["calibrate", "--results", str(tmp_path / "results")]
    assert CliRunner().invoke(main, [*arguments, "--dry-run"]).exit_code == 0
    assert file.read_text() == before
    said = CliRunner().invoke(main, arguments, env={"COLUMNS": "120"})
    assert said.exit_code == 0, said.output
    content = json.loads(file.read_text())
    assert content["fitted_to"] == ["a100-2026-12-01"]
    assert content["off_by_a_factor_of"][KERNEL]["before"] > content["off_by_a_factor_of"][KERNEL]["after"]
    assert f"{KERNEL}" in said.output
    assert "compute capability 8.0: 1.4 GHz, 13 GB/s a multiprocessor" in said.output


def test_the_committed_constants_are_those_that_the_committed_results_ask_for():
    constants, _ = calibration.constants_from(calibration.results_files(CHECKOUT / "results"))
    for name in ("clock", "memory_per_sm", "waiting"):
        assert constants[name] == gpu_cost.FITTED[name], "run python -m convlib calibrate"


def test_a_kernel_that_nobody_measured_waits_as_one_with_the_same_loop():
    fitted = gpu_cost.FITTED["waiting"]
    assert gpu_cost.waiting("cupy_raw.tiled") == fitted["cupy_raw.tiled"]
    assert gpu_cost.waiting("cupy_raw.new", like="cupy_raw.direct") == fitted["cupy_raw.direct"]
    assert gpu_cost.waiting("cupy_raw.new") == gpu_cost.ASSUMED_WAITING
