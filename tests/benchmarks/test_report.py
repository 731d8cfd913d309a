"""The report is one file that needs nothing else, with its pictures in both widths."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import cases, gate, plots, report, results
from benchmarks.ours import CONV2D, PLAN
from convlib.kernels import gpu_cost
from convlib.report import read_csv

BASELINE = Path(__file__).parents[1] / "convlib" / "report_baseline.csv"
SECONDS = {CONV2D: 2e-3, PLAN: 6e-3, "PyTorch NCHW": 4e-3, "OpenCV filter2D": 3e-3, "MNN": 5e-4}

FURTHER = {
    "startup": {"import convlib, beyond numpy": 0.029, "conv2d, beyond the kernel": 31e-6},
    "memory": {"vgg16": {"64x224x224-64-3x3": 12_345_678}},
    "scaling": [{"suite": "vgg16", "case": "a", "threads": 2, "one_s": 0.004, "all_s": 0.002, "gain": 2.0}],
    "stages": [
        {"suite": "vgg16", "case": "b", "kernel": "numba_cpu.winograd_f4", "pack_s": 1e-3, "run_s": 9e-3,
         "limit_s": 5e-3, "stages_s": {"input": 2e-3, "multiply": 6e-3, "output": 1.5e-3}},
        {"suite": "vgg16", "case": "c", "kernel": "numba_cpu.blocked", "pack_s": 0.0, "run_s": 4e-3,
         "limit_s": None, "stages_s": {}},
    ],
}  # fmt: skip


def row(case, candidate, seconds):
    error = 1e-4 if candidate == "MNN" else 1e-7
    return results.Row(
        case.suite, case.name, case.count, case.problem.macs, 1000, candidate, candidate.startswith("convlib"),
        "numba_cpu.direct", error=error, error_class=gate.error_class(error), median_s=seconds, p20_s=seconds,
        p80_s=seconds, gflops=2 * case.problem.macs / seconds / 1e9, calls=1, rounds_s=(seconds,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return written_with(tmp_path_factory, {"device": "cpu:0"})


@pytest.fixture(scope="module")
def written_on_a_gpu(tmp_path_factory):
    device = {"device": "cuda:0 (NVIDIA H200)", "batch": 32, "threads": 1, "driver": "580.1, 345 MHz"}
    return written_with(tmp_path_factory, device)


def written_with(tmp_path_factory, settings_of_device):
    folder = tmp_path_factory.mktemp("report")
    chosen = cases.cases("article_mnist_cnn") + cases.filter_cases()[:2]
    rows = [row(case, name, seconds) for case in chosen for name, seconds in SECONDS.items()]
    rows.append(results.Row("article_mnist_cnn", chosen[0].name, 1, 1, 1, "ncnn", False, status="<refused & told>"))
    machine = {
        "processor": "A processor", "instruction_sets": ["avx2"], "numba_target": "any", "cores": 2, "gpus": [],
        "logical_processors": 2, "memory_bytes": 2**30, "system": "any", "python": "3", "load_before": 0.0,
        "packages": {"numpy": "2"}, "environment": {},
    }  # fmt: skip
    settings = {
        "date": "today", "threads": 2, "rounds": 3, "sleep_seconds": 0.01, "load_after": 0.0, "command": "benchmarks",
        "peaks": {"core_gflops": 100.0, "bandwidth_gbs": 10.0},
    } | settings_of_device  # fmt: skip
    for name, content in FURTHER.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if "driver" in settings_of_device:
        shutil.copy(BASELINE, folder / report.MACHINE_CODE)
    report.write(results.Results(machine, settings, rows), folder)
    return folder


def test_the_page_refers_to_nothing_outside_itself(written):
    page = (written / "report.html").read_text()
    assert "http" not in page
    assert re.findall(r'(?:src|srcset|href)="(?!data:image/png;base64,)', page) == []
    assert len(re.findall("<picture>", page)) == 5


def test_the_page_says_what_it_is_about_and_what_was_refused(written):
    page = (written / "report.html").read_text()
    assert "<h1>convlib beside its peers on A processor</h1>" in page
    assert "Nothing here says anything about GPU kernels" in page
    assert "ncnn: &lt;refused &amp; told&gt; <small>(article_mnist_cnn 1x28x28-32-3x3)" in page


def test_the_page_of_a_gpu_names_it_and_its_driver(written_on_a_gpu):
    page = (written_on_a_gpu / "report.html").read_text()
    assert "<h1>convlib beside its peers on NVIDIA H200</h1>" in page
    assert "<dd>580.1, 345 MHz</dd>" in page
    assert "float32, 32 images in a batch. Nothing here says anything about CPU kernels" in page
    assert "replays of a captured graph" in page


def test_the_page_of_a_gpu_has_the_models_error_before_and_after_it_was_fitted(written, written_on_a_gpu):
    page = (written_on_a_gpu / "report.html").read_text()
    off = gpu_cost.FITTED["off_by_a_factor_of"]["cupy_raw.tiled"]
    waiting = gpu_cost.FITTED["waiting"]["cupy_raw.tiled"]
    numbers = f"<td>{off['cases']}<td>{waiting}<td>{off['before']:.2f}<td>{off['after']:.2f}"
    assert f'<td class="text">cupy_raw.tiled{numbers}' in page
    assert "nvidia-h200-2026-11-28/resnet50-batch-32" in page
    assert "The cost model" not in (written / "report.html").read_text()


def test_the_machine_code_that_lies_in_the_folder_is_drawn_and_tabulated(written, written_on_a_gpu):
    page = (written_on_a_gpu / "report.html").read_text()
    assert len(re.findall("<picture>", page)) == 5 + 2
    rows = [row for row in read_csv(BASELINE) if row.dtype == "float32"]
    assert len(re.findall(r"<td>cupy_raw\.\w+<td|<td>numba_cuda\.\w+<td", page)) == len(rows)
    assert f'<td>cupy_raw.im2col<td class="text">conv2d_gemm<td>sm_{rows[0].target}<td>' in page
    assert "machine code" not in (written / "report.html").read_text()


def test_the_fastest_accurate_candidate_is_marked_and_not_the_fast_one(written):
    page = (written / "report.html").read_text()
    best = re.findall(r'<td class="[^"]*best"[^>]*>(\S+)', page)
    assert set(best) == {"2.00"}  # conv2d; MNN's 0.5 is of the other class


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_every_picture_has_its_width(written, width):
    pictures = sorted(written.glob(f"*-{width}.png"))
    assert len(pictures) == 5
    assert {Image.open(picture).width for picture in pictures} == {width}


def test_what_other_commands_measured_stands_in_the_page(written):
    page = (written / "report.html").read_text()
    assert '<td class="met">29.0 ms<td>30.0 ms' in page
    assert '<td class="missed">31.0 us<td>30.0 us' in page
    assert "vgg16 64x224x224-64-3x3<td>12.3" in page
    assert "<td>4.00<td>2.00<td>2.00" in page
    assert "winograd_f4<td>1.000<td>9.000<td>5.000<td>2.000<td>6.000<td>1.500" in page
