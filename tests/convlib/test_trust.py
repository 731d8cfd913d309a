"""Trust: a GPU kernel is checked before its first answer is believed. The emulator stands for a GPU not known yet."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import convlib
from convlib import choosing, device, dispatch, json_file, machine, operations, trust
from convlib.device import Device
from convlib.kernels.cupy_raw import direct
from convlib.verification import children, records, runs
from convlib.verification.children import Result
from convlib.verification.records import Records, RecordWarning
from convlib.verification.rows import Row
from tests.convlib.new_process import forget
from tests.convlib.planted_child import ENDLESS, GPU_FAULTS, planted_child

for module in ("cuda.bindings.nvrtc", "cupy"):
    pytest.importorskip(module, reason="the CUDA compilers are not installed (extra cuda13)")

GPU = device.emulator_of(80)
FIRST, NEXT = "cupy_raw.direct", "cupy_raw.tiled"
PROBLEM = convlib.explain((2, 3, 6, 5), (5, 3, 3, 3), on=GPU).problem


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Records of this test alone; the emulator is not believed; cupy_raw.direct is the first choice, tiled the next."""
    monkeypatch.setattr(records, "user_state_path", lambda name: tmp_path / name)
    monkeypatch.setattr(trust, "DISTRUSTED", ("emulator",))
    monkeypatch.setattr(dispatch, "KERNELS", (FIRST, NEXT))
    monkeypatch.setattr(direct, "predicted_seconds", lambda problem, device: 0.0)
    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    monkeypatch.delenv("CONVLIB_TRUST", raising=False)
    forget()
    yield tmp_path / "convlib" / "verified"
    forget()


def put(name, fault=None):
    problem = None if fault is None else "3x3_same"
    result = Result(Row(name, "forward", "float32"), 2, 1.0, problem, fault)
    Records(GPU).put(result.row.key, runs.entry_of(result, "a run"))


def convolved(**forced):
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in ((2, 3, 6, 5), (5, 3, 3, 3)))
    y = convlib.conv2d(x, w, padding=1, backend="cupy_raw", **forced)
    exact = convlib.conv2d(x.astype(float), w.astype(float), padding=1, algorithm="direct", backend="numba_cpu")
    np.testing.assert_array_equal(y, exact)
    return y


@pytest.fixture
def exact_on_the_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "KERNELS", (FIRST, NEXT, "numba_cpu.direct"))


@pytest.fixture
def started(monkeypatch):
    """The children that were started."""
    commands = []
    start = children.subprocess.Popen

    def noted(command, **keywords):
        commands.append(command)
        return start(command, **keywords)

    monkeypatch.setattr(children.subprocess, "Popen", noted)
    return commands


pytestmark = pytest.mark.usefixtures("exact_on_the_cpu")


def test_after_a_faulty_kernel_its_successors_are_checked_all_the_same(monkeypatch, started):
    monkeypatch.setattr(children, "CHILD", planted_child(GPU_FAULTS["a wrong value in one tile"][0]))
    with pytest.warns(trust.QuarantineWarning):
        convolved()
    found = Records(GPU).entries()
    assert [found[f"{name} forward float32"].passed for name in (FIRST, NEXT)] == [False, True]
    assert len(started) == 2, "one until the fault, one for the rest"


@pytest.mark.parametrize("name", [*GPU_FAULTS, "never returns"])
def test_a_faulty_kernel_is_quarantined_and_the_next_one_answers(name, monkeypatch, started):
    fault, _ = GPU_FAULTS.get(name, (ENDLESS, None))
    monkeypatch.setattr(children, "CHILD", planted_child(fault))
    monkeypatch.setattr(trust, "LIMIT", 20.0)
    put(NEXT)
    with pytest.warns(trust.QuarantineWarning, match=rf"{FIRST} was found wrong on emulator.*please report") as warned:
        convolved()
    assert len(warned) == 1, [str(one.message) for one in warned]
    entry = Records(GPU).entries()[f"{FIRST} forward float32"]
    assert not entry.passed
    assert entry.fault in str(warned[0].message)
    assert len(started) == 1

    forget()
    with pytest.warns(trust.QuarantineWarning):
        convolved()
    assert len(started) == 1, "what is on record was checked again"
    with pytest.raises(convlib.UnsupportedError, match=f"{FIRST}: quarantined since "):
        convolved(algorithm="direct")


def test_the_first_use_is_announced_and_checked_once_with_likely_successors(capfd, started):
    convolved()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("convlib:")]
    assert said == [f"convlib: first use of {FIRST}, {NEXT} in float32 on {GPU}: checking"]
    found = Records(GPU).entries()
    assert set(found) == {f"{name} forward float32" for name in (FIRST, NEXT)}
    assert all(entry.passed and entry.problems == 2 for entry in found.values())
    assert len(started) == 1, "one child for all"

    forget()
    convolved()
    assert capfd.readouterr().err == ""
    assert len(started) == 1


def test_later_calls_do_not_ask(monkeypatch):
    put(FIRST)
    convolved()
    monkeypatch.setattr(trust, "first_believed", None)
    convolved()


def test_explain_shows_the_state_and_checks_nothing(started):
    def verdicts():
        explanation = convlib.explain((2, 3, 6, 5), (5, 3, 3, 3), on=GPU, backend="cupy_raw")
        return explanation.chosen, {c.name: explanation.verdict(c) for c in explanation.candidates}

    chosen, verdict = verdicts()
    assert (chosen, verdict[FIRST], verdict[NEXT]) == (FIRST, "chosen, unverified", "possible, unverified")
    put(FIRST, fault="a wrong value")
    put(NEXT)
    forget()
    chosen, verdict = verdicts()
    assert chosen == NEXT
    assert verdict[NEXT].startswith("chosen, verified since 2")
    assert verdict[FIRST].startswith("possible, quarantined since 2")
    assert verdict[FIRST].endswith(": 3x3_same: a wrong value")
    assert not started


def test_all_believes_everything(monkeypatch, started):
    monkeypatch.setenv("CONVLIB_TRUST", "all")
    put(FIRST, fault="a wrong value")
    convolved()
    assert choosing.chosen(PROBLEM, GPU).name == FIRST
    assert not started


def test_verified_uses_what_is_on_record_and_checks_nothing(monkeypatch, started):
    monkeypatch.setenv("CONVLIB_TRUST", "verified")
    with pytest.raises(convlib.UnsupportedError, match=f"{FIRST}: unverified\n  {NEXT}: unverified"):
        convolved()
    put(NEXT)
    forget()
    convolved()
    assert choosing.chosen(PROBLEM, GPU).name == NEXT
    assert not started


def test_an_unknown_policy_is_refused(monkeypatch):
    monkeypatch.setenv("CONVLIB_TRUST", "some")
    with pytest.raises(ValueError, match="CONVLIB_TRUST: one of 'verify', 'all', 'verified' needed, got 'some'"):
        convolved()


def test_nothing_is_checked_while_a_stream_is_captured(monkeypatch, started):
    monkeypatch.setattr(trust, "capturing", lambda place: True)
    with pytest.raises(convlib.UnsupportedError, match="cannot be while a stream is captured: call it once before"):
        convolved()
    assert not started
    put(FIRST)
    forget()
    convolved()


@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_capture_is_seen_in_either_library(library, monkeypatch):
    for other in ("cupy", "torch"):
        monkeypatch.delitem(sys.modules, other, raising=False)
    gpu = Device("cuda")
    assert not trust.capturing(gpu)
    stream = types.SimpleNamespace(is_capturing=lambda: True)
    cuda = types.SimpleNamespace(
        get_current_stream=lambda *index: stream, is_available=lambda: True, is_current_stream_capturing=lambda: True
    )
    monkeypatch.setitem(sys.modules, library, types.SimpleNamespace(cuda=cuda))
    assert trust.capturing(gpu)


@pytest.mark.parametrize("why", ["embedded", "busy"])
def test_where_no_child_can_do_it_values_are_checked_here(why, monkeypatch, capfd):
    if why == "embedded":
        monkeypatch.setattr(sys, "executable", "/usr/bin/blender")
    else:
        command = (sys.executable, "-c", "raise SystemExit('all CUDA-capable devices are busy or unavailable')")
        monkeypatch.setattr(children, "CHILD", command)
    convolved()
    said = capfd.readouterr().err
    assert {"embedded": "runs inside another program", "busy": "busy or unavailable"}[why] in said
    assert "values are checked in this process" in said
    assert all(entry.passed for entry in Records(GPU).entries().values())


def test_a_wrong_kernel_is_quarantined_where_no_child_can_find_it(monkeypatch):
    monkeypatch.setattr(sys, "executable", None)
    run = direct.run

    def wrong(problem, place, x, w, y, *rest, **keywords):
        run(problem, place, x, w, y, *rest, **keywords)
        y[0, 0, 0, 0] += 1

    monkeypatch.setattr(direct, "run", wrong)
    with pytest.warns(trust.QuarantineWarning, match="a wrong value"):
        convolved()


def test_records_that_cannot_be_written_cost_one_check_a_process(folder, started):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    with pytest.warns(RecordWarning):
        convolved()
    assert len(started) == 1
    choosing.settled_choice.cache_clear()
    operations.settled_before.cache_clear()
    convolved()
    assert len(started) == 1


def cut_in_half(folder, monkeypatch):
    path = Records(GPU).path
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def refuse(error):
    def refused(*arguments, **keywords):
        raise error

    return refused


def fill_the_disk(folder, monkeypatch):
    Records(GPU).path.unlink()
    monkeypatch.setattr(os, "replace", refuse(OSError(28, "No space left on device")))


def make_home_read_only(folder, monkeypatch):
    Records(GPU).path.unlink()
    monkeypatch.setattr(Path, "mkdir", refuse(PermissionError(30, "Read-only file system")))
    monkeypatch.setattr(json_file.tempfile, "NamedTemporaryFile", refuse(PermissionError(30, "Read-only file system")))


@pytest.mark.parametrize(("damage", "warning"), [
    (cut_in_half, "is damaged and counts as empty"),
    (fill_the_disk, "nothing is remembered: .*No space left on device"),
    (make_home_read_only, "nothing is remembered: .*Read-only file system"),
])  # fmt: skip
def test_a_record_that_fails_costs_a_warning_and_one_check(damage, warning, folder, monkeypatch, started):
    put(FIRST)
    damage(folder, monkeypatch)
    with pytest.warns(RecordWarning, match=warning):
        convolved()
    assert len(started) == 1
    choosing.settled_choice.cache_clear()
    operations.settled_before.cache_clear()
    convolved()
    assert len(started) == 1, "what this process had found was checked again"


def test_with_another_driver_a_kernel_is_checked_again(monkeypatch, started):
    put(FIRST)
    convolved()
    assert not started
    forget()
    monkeypatch.setattr(records, "emulator_digest", lambda: "another")
    convolved()
    assert len(started) == 1
    assert {name for name, entry in Records(GPU).entries().items() if entry.passed} == {
        f"{name} forward float32" for name in (FIRST, NEXT)
    }


def test_a_changed_kernel_is_unverified(monkeypatch):
    put(FIRST)
    assert trust.state(FIRST, PROBLEM, GPU).startswith("verified since ")
    monkeypatch.setattr(records, "digest", lambda name: "changed")
    assert trust.state(FIRST, PROBLEM, GPU) == "unverified"


def test_the_cpu_is_believed_without_a_record(folder):
    x, w = np.ones((1, 3, 5, 5), np.float32), np.ones((2, 3, 3, 3), np.float32)
    convlib.conv2d(x, w)
    assert not folder.exists()
    assert trust.state("numba_cpu.direct", PROBLEM, device.cpu()) is None


def test_a_gpu_that_is_not_here_has_no_state(monkeypatch):
    monkeypatch.setattr(trust, "DISTRUSTED", ("cuda",))
    monkeypatch.setattr(machine, "visible_gpus", list)
    assert trust.state(FIRST, PROBLEM, Device("cuda", name="H100", compute_capability=(9, 0))) is None


FIRST_CALL = """
import numpy as np
import convlib
from convlib import trust
trust.DISTRUSTED = ("emulator",)
convlib.conv2d(np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32), backend="cupy_raw")
"""


def test_two_processes_that_start_at_once_check_once(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_STATE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", FIRST_CALL], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(text.count("convlib: first use of") for text in said) == 1, said
