"""verify: planted faults are each one red row, everything else stays green; runs go on; records survive."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convlib
from convlib import device, dispatch, json_file, strided
from convlib.__main__ import main
from convlib.device import Device
from convlib.kernels import launching
from convlib.kernels.numba_cpu.channel_pairs import multiplies_pairs
from convlib.problem import DTYPES
from convlib.verification import checks, children, problems, records, rows, runs, sources
from convlib.verification.children import Settings
from convlib.verification.records import Entry, Records, RecordWarning
from convlib.verification.rows import Row
from tests.convlib.planted_child import ENDLESS, GPU_FAULTS, planted_child
from tests.kernels.cupy_raw import on_cpu

CPU_ROWS = [Row("numba_cpu.direct", "forward", dtype) for dtype in ("float32", "float64")]
GPU_ROWS = [Row("cupy_raw.direct", "forward", dtype) for dtype in ("float32", "float64")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where this test's records lie."""
    monkeypatch.setattr(records, "user_state_path", lambda name: tmp_path / name)
    return tmp_path / "convlib" / "verified"


def with_fault(fault, limit=120.0):
    return Settings("quick", limit=limit, command=planted_child(fault))


def results_of(todo, place, settings):
    """The first row's result, after the second was found right."""
    faulty, right = children.checked(todo, place, settings)
    assert (faulty.row, right.row) == tuple(todo)
    assert right.passed, right.fault
    assert right.problems == len(rows.served(right.row.kernel, "forward", right.row.dtype, place, "quick"))
    return faulty


CPU_FAULTS = {
    "wrong_tile": "a wrong value: y[",
    "past_the_end": "written beside the result: 0 bytes past its end",
    "before_the_start": "written beside the result: 4 bytes before its first element",
    "dies": "the process was killed by SIGSEGV",
    "leaves": "the process ended with exit code 7: bye",
    "raises": "RuntimeError: an illegal memory access was encountered",
    "other_bits": "other bits the second time: y[0, 0, 0, 0]",
    "writes_its_input": "x was written",
    "writes_its_weights": "w was written",
    "right_for_one_image": "a wrong value: y[1, ",
    "leaves_one_out": "never written, or from memory that nobody wrote: y[",
    "accumulates": "never written, or from memory that nobody wrote: y[",
}


@pytest.mark.parametrize("fault", CPU_FAULTS)
def test_a_planted_fault_is_one_red_row(fault):
    found = results_of(CPU_ROWS, device.cpu(), with_fault(fault))
    assert not found.passed
    assert found.fault.startswith(CPU_FAULTS[fault])
    assert found.problem in {case.name for case in problems.cases_for("cpu", "float32", "quick")}


def test_a_kernel_that_never_returns_is_one_red_row_and_is_ended():
    started = time.monotonic()
    found = results_of(CPU_ROWS, device.cpu(), with_fault("never_returns", limit=10))
    assert found.fault == "did not return within 10 s"
    assert time.monotonic() - started < 60


def test_at_the_deadline_a_run_ends_and_the_next_goes_on():
    going = runs.verified({device.cpu(): CPU_ROWS[::-1]}, Settings("quick"))
    next(going)
    going.close()
    started = time.monotonic()
    settings = replace(with_fault("never_returns", limit=60), deadline=started + 5)
    with pytest.raises(children.OutOfTime, match="numba_cpu.direct forward float32: "):
        run(CPU_ROWS[::-1], settings)
    assert time.monotonic() - started < 30
    assert [result.before for result in run(CPU_ROWS[::-1])] == [True, False]


def test_right_for_one_image_is_found_by_a_problem_of_several():
    found = results_of(CPU_ROWS, device.cpu(), with_fault("right_for_one_image"))
    case = next(case for case in problems.TINY + problems.SMALL if case.name == found.problem)
    assert case.problem().N > 1


def test_a_child_ends_with_its_parent(tmp_path):
    child = children.Child(CPU_ROWS, device.cpu(), with_fault("never_returns"), tmp_path)
    assert child.answers.get(timeout=60)["problem"]
    child.process.stdin.close()  # as the system does when the parent dies
    assert child.process.wait(60) == 1


def test_what_a_kernel_prints_is_no_answer():
    assert results_of(CPU_ROWS, device.cpu(), with_fault("prints")).passed


@pytest.fixture
def compilers():
    for module in ("cuda.bindings.nvrtc", "cupy"):
        pytest.importorskip(module, reason="the CUDA compilers are not installed (extra cuda13)")


@pytest.mark.parametrize("name", GPU_FAULTS)
def test_a_fault_planted_in_a_gpu_kernel_is_one_red_row(name, compilers):
    fault, words = GPU_FAULTS[name]
    found = results_of(GPU_ROWS, device.emulator_of(80), with_fault(fault))
    assert not found.passed
    assert re.match(words, found.fault), found.fault


def test_a_gpu_kernel_that_never_returns_is_one_red_row(compilers):
    found = results_of(GPU_ROWS, device.emulator_of(80), with_fault(ENDLESS, limit=30))
    assert found.fault == "did not return within 30 s"


def test_the_kernel_without_a_fault_is_right(compilers):
    assert results_of(GPU_ROWS, device.emulator_of(80), Settings("quick")).passed


# On a GPU: CuPy's arrays, as views of memory that g++'s kernels can reach


def stand_in_cupy():
    """The part of CuPy that carries bytes to a GPU and back, and makes arrays of addresses there."""

    def asarray(flat):
        memory = strided.empty_aligned(flat.shape, np.uint8)
        memory[:] = flat
        pointer = types.SimpleNamespace(ptr=problems.address(memory))
        return types.SimpleNamespace(data=pointer, get=memory.copy, memory=memory)

    def ndarray(shape, dtype, pointer, strides):
        start, size, _ = pointer.memory
        everything = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)
        return np.ndarray(shape, dtype, everything, pointer.offset, strides)

    cupy = types.ModuleType("cupy")
    cupy.asarray, cupy.ndarray = asarray, ndarray
    cupy.cuda = types.SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(),
        UnownedMemory=lambda start, size, owner, index: (start, size, owner),
        MemoryPointer=lambda memory, offset: types.SimpleNamespace(memory=memory, offset=offset),
    )
    return cupy


@pytest.fixture
def gpu(monkeypatch):
    if not on_cpu.available():
        pytest.skip("g++ is not installed")
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy())
    monkeypatch.setattr(dispatch, "installed", lambda package: True)
    with on_cpu.kernels_on_cpu():
        yield Device("cuda", name="a stand-in", compute_capability=(8, 0), sm_count=108)


@pytest.mark.parametrize("name", ["cupy_raw.direct", "cupy_raw.implicit_gemm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_cross_to_a_gpu_and_back_with_their_guards(name, dtype, gpu):
    for case in problems.cases_for("cuda", dtype):
        if case.name in ("slices", "nhwc", "negative_strides"):
            checks.check(name, case, "forward", gpu)


@pytest.mark.parametrize(("argument", "at", "fault"), [
    (2, lambda y: np.lib.array_utils.byte_bounds(y)[1], "written beside the result: 0 bytes past its end"),
    (2, lambda y: np.lib.array_utils.byte_bounds(y)[0] - 1, "written beside the result: 1 bytes before"),
    (0, lambda x: np.lib.array_utils.byte_bounds(x)[0], "x was written: at byte 0"),
    (1, lambda w: np.lib.array_utils.byte_bounds(w)[1], "w was written: 0 bytes past its end"),
    (3, lambda bias: np.lib.array_utils.byte_bounds(bias)[0], "bias was written: at byte 0"),
])  # fmt: skip
def test_a_stray_write_on_a_gpu_is_found(argument, at, fault, gpu):
    def launch(kernel, grid, block, args, shared_bytes, stream):
        on_cpu.run_on_cpu(kernel, grid, block, args, shared_bytes, stream)
        ctypes.c_ubyte.from_address(at(args[argument])).value ^= 1

    case = next(case for case in problems.TINY if case.name == "3x3_same")
    with launching.through(launch), pytest.raises(checks.Fault, match=fault):
        checks.check("cupy_raw.direct", case, "forward", gpu)


def test_a_stray_write_beside_the_workspace_is_found(gpu):
    def launch(kernel, grid, block, args, shared_bytes, stream):
        on_cpu.run_on_cpu(kernel, grid, block, args, shared_bytes, stream)
        if kernel.function == "pack_filters":
            ctypes.c_ubyte.from_address(problems.address(args[1]) - 5).value ^= 1

    case = next(case for case in problems.TINY if case.name == "3x3_same")
    with launching.through(launch), pytest.raises(checks.Fault, match="beside the workspace: 5 bytes before"):
        checks.check("cupy_raw.implicit_gemm", case, "forward", gpu)


def test_packed_weights_that_run_changes_are_found(monkeypatch):
    """A plan packs once and runs again and again."""
    kernel = dispatch.kernel("numba_cpu.blocked")
    run = kernel.run

    def changing(problem, place, x, packed, *rest):
        run(problem, place, x, packed, *rest)
        packed[3] ^= 1

    monkeypatch.setattr(kernel, "run", changing)
    with pytest.raises(checks.Fault, match="packed weights was written: at byte 3"):
        checks.check("numba_cpu.blocked", problems.TINY[0], "forward", device.cpu())


# What is checked


@pytest.mark.parametrize("place", [device.cpu(), device.emulator_of(80), device.named("sm_90")], ids=str)
@pytest.mark.parametrize("extent", ["full", "quick", "two"])
def test_every_kernel_pass_and_dtype_has_problems_of_one_image_and_of_several(place, extent, monkeypatch):
    monkeypatch.setattr(dispatch, "installed", lambda package: True)
    names = [name for name in dispatch.KERNELS if place.kind in dispatch.FAMILIES[dispatch.family_of(name)].runs_on]
    todo = rows.todo(names, place, extent)
    on_tensor_cores = ("cupy_raw.tensor_core", "cupy_raw.tensor_core_weight_grad")
    left_out = {(name, "float64") for name in on_tensor_cores}  # which tensor cores do not take
    in_full_precision = ("numba_cpu.input_grad", "numba_cpu.strassen")
    left_out |= {(name, dtype) for name in in_full_precision for dtype in ("float16", "bfloat16")}
    dots = {"bfloat16"} if multiplies_pairs() else set()
    left_out |= {("numba_cpu.bfloat16_dot", dtype) for dtype in set(DTYPES) - dots}
    asked = {(n, p, dtype) for n in names for p in dispatch.kernel(n).passes for dtype in DTYPES}
    assert {(row.kernel, row.pass_, row.dtype) for row in todo} == {
        (n, p, d) for n, p, d in asked if (n, d) not in left_out
    }
    for row in todo:
        images = {case.problem().N for case in rows.served(row.kernel, row.pass_, row.dtype, place, extent)}
        assert 1 in images, row
        assert max(images) > 1, row


def test_quick_is_part_of_full():
    for kind in ("cpu", "cuda", "emulator"):
        full, quick = (problems.cases_for(kind, "float32", extent) for extent in ("full", "quick"))
        names = problems.QUICK_EMULATED if kind == "emulator" else problems.QUICK
        assert {case.name for case in quick} == set(names)
        assert all(case in full for case in quick)


# compute-sanitizer

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


# Runs


def run(todo, settings=None, **options):
    place = device.cpu()
    return [result for _, result in runs.verified({place: todo}, settings or Settings("quick"), **options)]


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


# Records


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
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
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

    def changed_by(file):
        before = digests()
        (kernels / file).write_text((kernels / file).read_text() + "\n")
        return {name for name, digest in digests().items() if digest != before[name]}

    assert changed_by("cupy_raw/tiled.cu") == {"cupy_raw.tiled"}
    assert changed_by("numba_cuda/tiled.py") == {"numba_cuda.tiled"}
    assert changed_by("cupy_raw/epilogue.cuh") >= {"cupy_raw.direct", "cupy_raw.implicit_gemm"}
    assert changed_by("numba_cpu/winograd_stages.py") == {f"numba_cpu.winograd_f{n}" for n in (2, 4, 6)}
    assert changed_by("gpu_cost.json") == {n for n in dispatch.KERNELS if not n.startswith("numba_cpu")}
    assert changed_by("launching.py") == {n for n in dispatch.KERNELS if not n.startswith("numba_cpu")}
    assert changed_by("reference.py") == set(dispatch.KERNELS)
    sources.digest.cache_clear()


# The command


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
