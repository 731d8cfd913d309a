"""verify's records: they survive what happens to files, and count for the kernel, device and driver they are of."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import convlib
from convlib import device, dispatch, json_file
from convlib.__main__ import main
from convlib.device import Device
from convlib.verification import records, sources
from convlib.verification.records import Entry, Records, RecordWarning
from tests.convlib.verification.verified_rows import CPU_ROWS, run


def entry(**changes):
    plain = Entry(1.0, "0.1.0", sources.digest("numba_cpu.direct"), "run", 7, 0.5)
    return replace(plain, **changes)


def test_a_record_holds_what_was_put():
    record = Records(device.cpu())
    assert record.entries() == {}
    record.put("a", entry())
    record.put("b", entry(problem="3x3_same", fault="a wrong value"))
    again = Records(device.cpu())
    assert again.entries() == {"a": entry(), "b": entry(problem="3x3_same", fault="a wrong value")}
    assert again.entries()["a"].passed
    assert not again.entries()["b"].passed
    assert json.loads(record.path.read_text())["device"] == records.identity(device.cpu())


def test_a_state_keeps_the_time_since_when():
    record = Records(device.cpu())
    for since, changes in ((1.0, {}), (2.0, {}), (3.0, {"fault": "a wrong value"}), (4.0, {"fault": "a wrong value"})):
        record.put("a", entry(since=since, **changes))
    assert record.entries()["a"].since == 3.0
    record.put("a", entry(since=5.0, digest="changed"))
    assert record.entries()["a"].since == 5.0


@pytest.mark.parametrize("damage", [
    lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]", lambda text: "{}", lambda text: "\0",
    lambda text: text.replace('"digest"', '"digits"'),
    lambda text: text.replace('"unfinished": null', '"unfinished": 3'),
])  # fmt: skip
def test_a_damaged_record_counts_as_empty_and_is_replaced(damage):
    record = Records(device.cpu())
    record.put("a", entry())
    record.path.write_text(damage(record.path.read_text()))
    with pytest.warns(RecordWarning, match="is damaged and counts as empty"):
        assert record.entries() == {}
    with pytest.warns(RecordWarning):
        record.put("b", entry())
    assert record.entries() == {"b": entry()}


def test_a_folder_that_cannot_be_written_is_survived(folder):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    with pytest.warns(RecordWarning) as warned:
        assert all(result.passed for result in run(CPU_ROWS))
    assert any("cannot be written, so nothing is remembered" in str(one.message) for one in warned)


def test_a_read_only_home_is_survived(folder, monkeypatch):
    """Whoever is root may write everywhere, so the system's refusal is made up."""

    def refused(*arguments, **keywords):
        raise PermissionError(30, "Read-only file system", str(folder))

    monkeypatch.setattr(Path, "mkdir", refused)
    record = Records(device.cpu())
    with pytest.warns(RecordWarning, match="Read-only file system"):
        record.put("a", entry())
    record.put("b", entry())  # in silence: once is enough
    assert record.entries() == {}


def test_a_full_disk_leaves_the_old_record(folder, monkeypatch):
    record = Records(device.cpu())
    record.put("a", entry())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RecordWarning, match="No space left on device"):
        record.put("b", entry())
    assert record.entries() == {"a": entry()}
    assert [path.suffix for path in folder.iterdir() if path.suffix != ".lock"] == [".json"], "half a file was left"


def test_a_record_that_somebody_else_locks_is_survived(monkeypatch):
    monkeypatch.setattr(json_file, "LOCK_SECONDS", 0.2)
    record = Records(device.cpu())
    record.put("a", entry())
    with json_file.FileLock(f"{record.path}.lock"):
        with pytest.warns(RecordWarning, match="cannot be written"):
            Records(device.cpu()).put("b", entry())
        assert set(record.entries()) == {"a"}


PUT_MANY = """
import sys
from pathlib import Path
from convlib import device
from convlib.verification.records import Entry, Records
record = Records(device.cpu(), Path(sys.argv[1]))
for i in range(40):
    record.put(f"{sys.argv[2]} {i}", Entry(1.0, "", "", "", i, 0.0))
"""


def test_two_processes_at_once_lose_nothing(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    both = [
        subprocess.Popen([sys.executable, "-c", PUT_MANY, str(folder), name], env=environment)
        for name in ("one", "two")
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    found = Records(device.cpu()).entries()
    assert {key: entry.problems for key, entry in found.items()} == {
        f"{name} {i}": i for name in ("one", "two") for i in range(40)
    }


def test_kernels_tells_what_is_on_record():
    record = Records(device.cpu())
    name, day = record.constant["device"]["name"], r"\d{4}-\d\d-\d\d"

    def found():
        return {facts.name: facts.found for facts in convlib.kernels()}

    assert set(found().values()) == {()}
    for dtype in ("float32", "float64"):
        record.put(f"numba_cpu.direct forward {dtype}", entry())
    (line,) = found()["numba_cpu.direct"]
    assert re.fullmatch(rf"verified on {name} since {day}: forward float32, forward float64", line)
    record.put("numba_cpu.direct forward float64", entry(fault="a wrong value"))
    (line,) = found()["numba_cpu.direct"]
    assert re.fullmatch(rf"quarantined on {name} since {day}: forward float64", line)
    assert found()["numba_cpu.blocked"] == ()
    record.put("numba_cpu.direct forward float64", entry(digest="of what it was before"))
    assert found()["numba_cpu.direct"][0].startswith("verified")
    assert "verified on" in CliRunner().invoke(main, ("kernels",), env={"COLUMNS": "200"}).output


def test_kernels_tells_on_which_gpu_of_this_machine_nothing_is_known(monkeypatch):
    gpu = Device("cuda", name="NVIDIA H200", compute_capability=(9, 0))
    monkeypatch.setattr(sys.modules["convlib.explain"], "visible_gpus", lambda: [gpu])
    monkeypatch.setattr(device, "driver", lambda: "580.82.07")
    Records(gpu).put("cupy_raw.tiled forward float32", entry(digest=sources.digest("cupy_raw.tiled")))
    Records(replace(gpu, name="A100")).put(
        "cupy_raw.im2col forward float32", entry(digest=sources.digest("cupy_raw.im2col"))
    )
    found = {facts.name: facts.found for facts in convlib.kernels()}
    assert found["cupy_raw.direct"] == ("unverified on NVIDIA H200",)
    assert found["cupy_raw.im2col"][0].startswith("verified on A100")
    assert found["cupy_raw.im2col"][1:] == ("unverified on NVIDIA H200",)
    assert len(found["cupy_raw.tiled"]) == 1
    assert found["cupy_raw.tiled"][0].startswith("verified on NVIDIA H200 since ")
    assert found["numba_cpu.direct"] == ()


def test_another_driver_is_another_device(monkeypatch, tmp_path):
    gpu = Device("cuda", name="H200", compute_capability=(9, 0))
    version = tmp_path / "version"
    monkeypatch.setattr(device, "DRIVER", version)
    paths = set()
    for number in ("535.54.03", "580.82.07"):
        version.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {number}  Tue\nGCC version: 12.2.0\n")
        device.driver.cache_clear()
        assert records.identity(gpu) == {"name": "H200", "compute_capability": "9.0", "driver": number}
        paths.add(Records(gpu).path)
    device.driver.cache_clear()
    assert len(paths) == 2


def test_a_kernels_digest_is_of_its_own_sources(tmp_path, monkeypatch):
    kernels = Path(shutil.copytree(sources.kernels_folder(), tmp_path / "kernels"))
    monkeypatch.setattr(sources, "kernels_folder", lambda: kernels)

    def digests():
        sources.digest.cache_clear()
        return {name: sources.digest(name) for name in dispatch.KERNELS}

    found = digests()

    def changed_by(file):
        before = dict(found)
        (kernels / file).write_text((kernels / file).read_text() + "\n")
        found.update(digests())
        return {name for name in found if found[name] != before[name]}

    assert changed_by("cupy_raw/tiled.cu") == {"cupy_raw.tiled"}
    assert changed_by("numba_cuda/tiled.py") == {"numba_cuda.tiled"}
    assert changed_by("cupy_raw/epilogue.cuh") >= {"cupy_raw.direct", "cupy_raw.implicit_gemm"}
    assert changed_by("numba_cpu/winograd_stages.py") == {
        f"numba_cpu.winograd_{form}" for form in ("f2", "f3", "f4", "f5", "f6", "dilated")
    }
    assert changed_by("gpu_cost.json") == {n for n in dispatch.KERNELS if not n.startswith("numba_cpu")}
    assert changed_by("launching.py") == {n for n in dispatch.KERNELS if not n.startswith("numba_cpu")}
    assert changed_by("reference.py") == set(dispatch.KERNELS)
    sources.digest.cache_clear()
