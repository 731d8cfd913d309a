"""A visit to a GPU, rehearsed from start to end on stand-ins; its time, its resumption, and what it does without."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import cases, layer_child, layer_tables, results, verified, visit
from benchmarks.__main__ import main
from convlib import calibration
from convlib.device import Device
from convlib.verification import records
from convlib.verification.children import OutOfTime

GPU = Device("cuda", 0, "NVIDIA H200", (9, 0), 132)
SMALL = [
    "gpu",
    "--rehearse",
    "--minutes",
    "5",
    "--kernel",
    "cupy_raw.direct",
    "--suite",
    "article_mnist_cnn",
    "--case",
    "5x5",
]
TABLES = ("results", "verified", "clocks", "counters", "predictions")


def rehearsed(folder):
    """A rehearsal of one kernel and one layer, for whose last stage no time is left; what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "user_state_path", lambda name: folder / "state" / name)
        patch.setattr(visit, "STAGES", (*visit.STAGES[:-1], replace(visit.STAGES[-1], until=0.0)))
        done = CliRunner().invoke(main, [*SMALL, "--output", str(folder)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Its folder, and what it printed."""
    for module in ("cuda.bindings.nvrtc", "cupy"):
        pytest.importorskip(module, reason="the CUDA compilers are not installed (extra cuda13)")
    folder = tmp_path_factory.mktemp("rehearsal")
    return folder, rehearsed(folder)


def lines_of(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_rehearsal_goes_through_every_stage_and_writes_the_whole_folder(rehearsal):
    folder, said = rehearsal
    state = json.loads((folder / "visit.json").read_text())
    assert state["stages"] == dict.fromkeys(["verified", "layers", "counters", "predictions"], "done") | {
        "all verified": visit.TOO_LATE
    }
    assert "layers: done" in said
    for name in TABLES:
        assert lines_of(folder, name), name
        assert (folder / f"{name}.json").exists()
    page = (folder / "report.html").read_text()
    for heading in ("The visit", "Right or wrong", "article_mnist_cnn", "Predicted against measured", "Counters"):
        assert f"<h2>{heading}" in page
    assert {path.name for path in folder.glob("*-1280.png")} == {
        "article_mnist_cnn-speed-1280.png", "article_mnist_cnn-advantage-1280.png", "predictions-1280.png",
        "roofline-1280.png",
    }  # fmt: skip


def test_every_number_is_marked_as_rehearsed(rehearsal):
    folder, said = rehearsal
    for line in lines_of(folder, "results"):
        assert line["status"] == results.REHEARSED
    for name in TABLES[1:]:
        assert {line["rehearsal"] for line in lines_of(folder, name)} == {"True"}
        assert all(row["rehearsal"] is True for row in json.loads((folder / f"{name}.json").read_text()))
    for name in ("visit", "model"):
        assert json.loads((folder / f"{name}.json").read_text())["rehearsal"] is True
    assert json.loads((folder / "results.json").read_text())["settings"]["rehearsal"] is True
    page = (folder / "report.html").read_text()
    assert "no number on this page was measured" in page
    assert 'content: " rehearsed"' in page
    assert "a rehearsal" in said
    assert "please send" not in said


def test_a_rehearsals_tables_have_ours_and_every_peer_of_a_visit(rehearsal):
    folder, _ = rehearsal
    found = {row.candidate for row in results.read(folder / "results.json").rows if row.timed}
    peers = {f"cuDNN {layout} {plan}{tf32}" for layout in ("NCHW", "NHWC") for plan in ("heuristic", "best plan")
             for tf32 in ("", " TF32")}  # fmt: skip
    assert found >= peers | {"PyTorch NCHW", "PyTorch channels_last TF32", "convlib plan", "cupy_raw.implicit_gemm"}
    assert {one["kernel"] for one in lines_of(folder, "predictions")} >= {"numba_cuda.tiled", "cupy_raw.direct"}
    assert {one["dtype"] for one in lines_of(folder, "verified")} == {"float16", "bfloat16", "float32", "float64"}


def test_nobody_takes_a_rehearsal_for_a_measurement(rehearsal):
    folder, _ = rehearsal
    assert calibration.results_files(folder) == []


def test_the_same_command_goes_on_where_it_stopped(rehearsal):
    folder, _ = rehearsal
    before = (folder / "results.csv").read_text(), (folder / "counters.csv").read_text()
    said = rehearsed(folder)
    assert f"all verified: {visit.TOO_LATE}" in said
    assert "layers: " not in said
    assert "verified: done" not in said
    assert ((folder / "results.csv").read_text(), (folder / "counters.csv").read_text()) == before


@pytest.fixture
def going(tmp_path):
    chosen = cases.cases("article_mnist_cnn")
    return visit.Visit(tmp_path, GPU, 10.0, ["cupy_raw.direct"], chosen)


def said_by_child(case):
    row = results.Row("article_mnist_cnn", case.name, 1, 1, 1, "convlib plan", True, "cupy_raw.tiled", median_s=1e-3)
    return {"case": [case.suite, case.name], "rows": [vars_of(row)], "clocks": {"clocks.sm": "1980 MHz"}}


def vars_of(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_an_interrupted_stage_keeps_what_it_has_and_measures_only_the_rest(going, monkeypatch):
    asked = []

    def measured(left, rehearse, deadline, note):
        asked.append(left)
        yield {"about": {"peaks": None, "driver": "580", "card": {}}}
        yield said_by_child(next(case for case in going.cases if case.name == left[0][1]))
        raise OutOfTime("the second case")

    monkeypatch.setattr(visit, "find_spec", lambda package: True)
    monkeypatch.setattr(layer_tables, "measured", measured)
    layers = next(stage for stage in visit.STAGES if stage.name == "layers")
    assert going.run(layers) == visit.TOO_LATE
    again = visit.Visit(going.folder, GPU, 10.0, going.kernels, going.cases)
    assert again.run(layers) == visit.TOO_LATE
    assert [len(left) for left in asked] == [3, 2]
    assert [row.case for row in again.results().rows] == [case.name for case in going.cases[:2]]
    assert [one["clocks.sm"] for one in again.read("clocks", [])] == ["1980 MHz"] * 2
    assert again.results().settings["driver"] == "580"


def test_deadlines_are_shares_of_all_minutes(going):
    assert going.deadline(1.0) - going.start == pytest.approx(600 - visit.DRAWING)
    assert going.deadline(0.5) - going.start == pytest.approx(300 - visit.DRAWING / 2)
    shares = [stage.until for stage in visit.STAGES]
    assert shares == sorted(shares)
    late = visit.Visit(going.folder, GPU, 10.0, going.kernels, going.cases, start=going.start - 601)
    ran = []

    def verify(kernels, place, extent, deadline, note):
        ran.append(extent)
        raise OutOfTime(extent)
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verified, "found", verify)
        assert late.run(visit.STAGES[0]) == visit.TOO_LATE
    assert ran == ["quick"]


def test_a_stage_that_cannot_be_says_why_and_the_others_go_on(going, monkeypatch):
    monkeypatch.setattr(visit, "find_spec", lambda package: None)
    monkeypatch.setattr(visit.counters, "unavailable", lambda: "ncu is not on the path")
    monkeypatch.setattr(verified, "found", lambda *arguments: iter(()))
    states = dict(visit.stages(going))
    assert states == {
        "verified": "done",
        "layers": "CuPy is not installed",
        "counters": "ncu is not on the path",
        "predictions": "no layer was measured",
        "all verified": "done",
    }
    assert "CuPy is not installed" in (going.folder / "report.html").read_text()
    assert "every cupy_raw kernel" in visit.missing(False)["cupy"]


def test_another_cards_folder_is_not_written_into(going):
    with pytest.raises(ValueError, match="has a visit to NVIDIA H200; another folder needed"):
        visit.Visit(going.folder, replace(GPU, name="A100"), 10.0, [], [])


def test_a_full_verification_takes_the_place_of_a_brief_one():
    quick = {"kernel": "a", "pass": "forward", "dtype": "float32", "extent": "quick", "right": True, "source": "1"}
    other = quick | {"dtype": "float64"}
    full = quick | {"extent": "full"}
    assert verified.merged([quick, other], full) == [other, full]
    assert verified.merged([full, other], quick) == [full, other]
    for change in ({"right": False}, {"source": "2"}):
        assert verified.merged([full, other], quick | change) == [other, quick | change]


def test_the_folder_is_named_after_card_and_day():
    assert visit.folder_name(GPU, False) == f"nvidia-h200-{visit.now()[:10]}"
    assert visit.folder_name(GPU, True) == f"rehearsal-{visit.now()[:10]}"


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "no GPU to measure on: "),
    (["--rehearse", "--kernel", "numba_cpu.direct"], "--kernel: one of numba_cuda.direct"),
])  # fmt: skip
def test_what_cannot_be_visited_is_said(arguments, words, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.visible_gpus", list)
    done = CliRunner().invoke(main, ["gpu", *arguments])
    assert done.exit_code != 0
    assert words in done.output


def test_a_wrong_kernel_fails_the_visit_and_is_named(tmp_path, monkeypatch):
    wrong = {"kernel": "cupy_raw.direct", "pass": "forward", "dtype": "float32", "extent": "quick", "right": False,
             "problems": 0, "seconds": 1.0, "problem": "3x3_same", "fault": "a wrong value"}  # fmt: skip
    monkeypatch.setattr(verified, "found", lambda *arguments: iter([wrong]))
    monkeypatch.setattr(visit, "STAGES", visit.STAGES[:1])
    done = CliRunner().invoke(main, [*SMALL, "--output", str(tmp_path)])
    assert done.exit_code == 1
    assert "WRONG: cupy_raw.direct forward float32, 3x3_same: a wrong value" in done.output
    assert '<td class="text missed">WRONG' in (tmp_path / "report.html").read_text()


def test_an_interrupted_visit_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(verified, "found", interrupted)
    done = CliRunner().invoke(main, [*SMALL, "--output", str(tmp_path)])
    assert done.exit_code == 130
    assert "interrupted; the same command goes on from here" in done.output


def test_the_batch_fits_the_cards_memory():
    case = cases.cases("vgg16")[1]
    assert layer_child.images_for(case, 140e9) == 32
    assert layer_child.images_for(case, 20e9) == 16
    assert layer_child.images_for(case, 1e6) == 1
    assert layer_child.images_for(cases.filter_cases()[0], 140e9) == 1


def test_all_cases_begin_with_one_of_each_kind_and_are_all_layers():
    chosen = layer_tables.all_cases()
    quick = cases.quick_cases()
    assert chosen[: len(quick)] == quick
    assert len(chosen) == len(set(map(str, chosen)))
    assert {case.suite for case in chosen} == set(cases.suites())


WITHOUT = """
import sys
for name in ("matplotlib", "jinja2", "psutil", "cpuinfo", "markupsafe"):
    sys.modules[name] = None
from benchmarks import machine, visit, verified
assert machine.describe()["processor"] and machine.describe()["cores"]
from benchmarks.__main__ import main
verified.found = lambda *arguments: iter(())
visit.STAGES = visit.STAGES[:1]
main(sys.argv[1:])
"""


def test_a_plain_checkout_without_the_bench_extra_does_all_but_the_report(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WITHOUT, *SMALL, "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "matplotlib is missing; without it: not report.html and its pictures" in done.stdout
    assert (tmp_path / "visit.json").exists()
    assert not (tmp_path / "report.html").exists()
