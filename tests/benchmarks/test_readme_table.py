"""README's table of cards is what results/ says, and says when that is nothing or less than a verification."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import readme_table
from benchmarks.__main__ import main
from convlib.emulator.profile import gpu_kernels

CHECKOUT = Path(__file__).parents[2]
GPU = {"name": "NVIDIA H100", "compute_capability": [9, 0], "sm_count": 132}


def layers(folder, **settings):
    settings = {"device": "cuda:0 (NVIDIA H100)", "date": "2026-12-01T10:00:00", "gpu": GPU} | settings
    measured = {"suite": "vgg16", "kernel": "cupy_raw.tiled", "status": "measured"}
    rows = [measured | {"case": "a"}, measured | {"case": "a"}, measured | {"case": "b"}]
    rows.append(measured | {"case": "c", "status": "error 1 against float64"})
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"settings": settings, "rows": rows}))


def visited(folder, date="2026-12-02T10:00:00", rehearsal=False, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "visit.json").write_text(json.dumps({"date": date, "gpu": GPU, "rehearsal": rehearsal}))
    row = {"kernel": "cupy_raw.tiled", "pass": "forward", "right": True, "problems": 7} | changes
    (folder / "verified.json").write_text(json.dumps([row | {"dtype": dtype} for dtype in ("float32", "float64")]))


def test_readme_says_what_the_committed_results_say():
    text = (CHECKOUT / "README.md").read_text()
    assert readme_table.with_table(text, CHECKOUT / "results") == text, "run python -m benchmarks cards"


def test_no_results_are_said_to_be_none(tmp_path):
    assert readme_table.table(tmp_path) == "No GPU kernel has been verified on any card yet.\n"


def test_layer_tables_alone_are_no_verification(tmp_path):
    layers(tmp_path / "a")
    assert "| `cupy_raw.tiled` | not verified; right on 2 layers, 2026-12-01 |" in readme_table.table(tmp_path)
    assert "| any other of `numba_cuda` and `cupy_raw` | on none |" in readme_table.table(tmp_path)


def test_a_verification_goes_before_layers_and_the_newest_before_older_ones(tmp_path):
    layers(tmp_path / "a")
    visited(tmp_path / "z", date="2026-11-01", right=False)
    visited(tmp_path / "b")
    assert readme_table.verdicts(tmp_path) == {
        "cupy_raw.tiled": {"NVIDIA H100": "verified in float32, float64: 14 problems, 2026-12-02"}
    }


def test_a_wrong_kernel_is_called_wrong(tmp_path):
    visited(tmp_path / "a", right=False)
    assert "**wrong**: forward float32, forward float64, 2026-12-02" in readme_table.table(tmp_path)


def test_rehearsals_do_not_count(tmp_path):
    layers(tmp_path / "a", rehearsal=True, device="rehearsal:0 (x)")
    visited(tmp_path / "b", rehearsal=True)
    assert readme_table.verdicts(tmp_path) == {}


def test_the_command_rewrites_what_stands_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_table.START}old\n{readme_table.END}after\n")
    done = CliRunner().invoke(main, ["cards", "--readme", str(readme), "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    none = readme_table.table(tmp_path)
    assert readme.read_text() == f"before\n{readme_table.START}{none}{readme_table.END}after\n"


def test_marks_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="cards: python -m benchmarks cards"):
        readme_table.with_table("no marks", tmp_path)


@pytest.mark.parametrize("kernel", gpu_kernels())
def test_a_kernel_says_that_it_never_ran_on_hardware_where_results_have_none(kernel):
    place = CHECKOUT / "kernels" / kernel.replace(".", "/")
    text = place.with_suffix(".cu" if kernel.startswith("cupy_raw.") else ".py").read_text()
    assert ("Never run on hardware" in text) == (kernel not in readme_table.verdicts(CHECKOUT / "results"))
