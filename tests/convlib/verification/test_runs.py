"""verify as it is run: it goes on where it stopped, says what it did not check, and exits by what it found."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from convlib import device, dispatch
from convlib.__main__ import main
from convlib.device import Device
from convlib.problem import DTYPES
from convlib.verification import children, problems, records, rows, runs
from convlib.verification.children import Settings
from convlib.verification.rows import Row
from tests.convlib.verification.verified_rows import CPU_ROWS, run, with_fault

STAND_IN_SANITIZER = """#!/bin/sh
log="${{2#--log-file=}}"; shift 2
"$@"; code=$?
printf '========= COMPUTE-SANITIZER\\n========= Invalid __global__ write\\n========= ERROR SUMMARY: 1 error\\n' > "$log"
[ {complains} = 1 ] && exit 99
exit $code
"""


@pytest.mark.parametrize("complains", [True, False])
def test_the_sanitizers_exit_code_counts(complains, tmp_path, monkeypatch):
    program = tmp_path / children.SANITIZER[0]
    program.write_text(STAND_IN_SANITIZER.format(complains=int(complains)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    gpu = Device("cuda", name="a stand-in", compute_capability=(9, 0))
    settings = replace(with_fault("on_the_cpu"), sanitize=True)
    found = list(children.checked(CPU_ROWS, gpu, settings))
    assert [result.row for result in found] == CPU_ROWS
    for result in found:
        assert result.passed is not complains
        if complains:
            wanted = "compute-sanitizer, exit code 99: COMPUTE-SANITIZER; Invalid __global__ write"
            assert result.fault == wanted


def test_without_the_sanitizer_that_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "compute-sanitizer needed on the path" in command("--sanitize", code=2).output


def test_an_interrupted_run_goes_on_where_it_stopped():
    todo = [*CPU_ROWS, Row("numba_cpu.blocked", "forward", "float32")]
    going = runs.verified({device.cpu(): todo}, Settings("quick"))
    first = next(going)[1]
    going.close()
    assert not first.before

    again = run(todo)
    assert [result.before for result in again] == [True, False, False]
    assert replace(again[0], before=False) == first
    assert not any(result.before for result in run(todo)), "that run was complete, so this one begins anew"


def test_other_settings_or_restart_begin_anew():
    for change in ({"settings": Settings("full")}, {"restart": True}):
        going = runs.verified({device.cpu(): CPU_ROWS}, Settings("quick"))
        next(going)
        going.close()
        assert not any(result.before for result in run(CPU_ROWS[:1], **change))


def test_a_kernel_changed_since_is_checked_again(monkeypatch):
    going = runs.verified({device.cpu(): CPU_ROWS}, Settings("quick"))
    next(going)
    going.close()
    monkeypatch.setattr(records, "digest", lambda name: "changed")
    assert [result.before for result in run(CPU_ROWS)] == [False, False]


def command(*arguments, code=0):
    result = CliRunner().invoke(main, ("verify", *arguments), env={"COLUMNS": "120"})
    assert result.exit_code == code, result.output
    return result


def test_the_command_prints_a_table():
    text = command("--kernel", "numba_cpu.direct", "--quick").output
    lines = [line.split() for line in text.splitlines()]
    for dtype in DTYPES:
        asked = len(problems.cases_for("cpu", dtype, "quick"))
        assert ["numba_cpu.direct", "forward", dtype, str(asked), "right"] in lines
    assert "4 of 4 right, 0 wrong" in text


def test_the_command_says_what_is_wrong_and_exits_1(monkeypatch):
    monkeypatch.setattr(children, "CHILD", with_fault("wrong_tile").command)
    text = command("--kernel", "numba_cpu.direct", "--quick", code=1).output
    assert re.search(r"numba_cpu.direct +forward +float32 +\d+ +WRONG", text)
    assert "numba_cpu.direct forward float32, 3x3_same: a wrong value: y[" in text
    assert "3 of 4 right, 1 wrong" in text


def test_the_command_prints_json():
    found = json.loads(command("--kernel", "numba_cpu.direct", "--quick", "--json").stdout)
    assert found["not_checked"] == {}
    assert {result["dtype"] for result in found["results"]} == set(DTYPES)
    for result in found["results"]:
        assert result["device"] == records.identity(device.cpu())
        assert (result["kernel"], result["passed"], result["fault"]) == ("numba_cpu.direct", True, None)


def test_the_command_says_what_it_did_not_check(monkeypatch):
    monkeypatch.setattr(rows, "visible_gpus", list)
    assert rows.unchecked(dispatch.KERNELS, rows.places(None, False)) == {
        name: rows.NO_GPU for name in dispatch.KERNELS if not name.startswith("numba_cpu")
    }
    found = command("--kernel", "cupy_raw.tiled", code=2)
    assert found.output == f"Error: --kernel: cupy_raw.tiled cannot be checked: {rows.NO_GPU}\n"


def test_an_interrupted_command_says_how_to_go_on(monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(runs, "verified", interrupted)
    assert "interrupted; the same command goes on from here" in command("--quick", code=130).output


@pytest.mark.parametrize(("arguments", "words"), [
    (("--kernel", "cupy_raw.tilde"), "--kernel: one of "),
    (("--device", "sm_90"), "--device: sm_90 can only be emulated, with --emulate"),
    (("--device", "tpu"), "device: one of cpu, cuda:0, "),
    (("--device", "cpu", "--emulate"), "--device: with --emulate one of sm_75, "),
])  # fmt: skip
def test_wrong_arguments_end_in_one_line_and_code_2(arguments, words):
    text = command(*arguments, code=2).output
    assert text.startswith(f"Error: {words}")
    assert text.count("\n") == 1


def test_the_emulator_is_asked_for_a_target(compilers):
    pytest.importorskip("numba.cuda", reason="numba-cuda is not installed (extra cuda13)")
    found = json.loads(
        command("--emulate", "--device", "sm_120", "--kernel", "cupy_raw.direct", "--quick", "--json").stdout
    )
    assert {result["device"]["name"] for result in found["results"]} == {"PTX emulator, sm_120"}
    assert {result["passed"] for result in found["results"]} == {True}
