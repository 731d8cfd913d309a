"""tune: what is measured decides, is kept for other processes, and costs no failure when it cannot be."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convlib
from convlib import (
    UnsupportedError,
    choosing,
    conv2d,
    device,
    dispatch,
    json_file,
    machine,
    measuring,
    operations,
    trust,
    tuned_times,
)
from convlib.__main__ import main
from convlib.device import Device
from convlib.problem import make_problem
from convlib.tuned_times import TuningWarning
from tests.convlib.new_process import forget

RANDOM = np.random.default_rng(0)
X, W, BIAS = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 12, 10), (8, 8, 3, 3), (8,)))
CPU_KERNELS = ("numba_cpu.direct", "numba_cpu.im2col", "numba_cpu.blocked")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Times of this test alone, and three kernels to compile."""
    monkeypatch.setattr(tuned_times, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(dispatch, "KERNELS", CPU_KERNELS)
    forget()
    yield tmp_path / "convlib" / "tuned"
    forget()


@pytest.fixture
def measurements(monkeypatch):
    """Made-up times, in which numba_cpu.direct is the fastest; and what was asked for."""
    asked = []

    def measured(names, problem, place, planned):
        asked.append((tuple(names), planned))
        return {name: 1.0 if name == "numba_cpu.direct" else 2.0 + number for number, name in enumerate(names)}

    monkeypatch.setattr(measuring, "measured", measured)
    monkeypatch.setattr(measuring, "FAR", 1e9)
    return asked


def test_measures_and_chooses_the_fastest():
    found = convlib.tune(X, W, padding=1)
    times = {c.name: c.measured for c in found.candidates if c.measured is not None}
    assert times
    assert all(0 < seconds < 10 for seconds in times.values())
    assert found.chosen == min(times, key=times.get)
    assert "ms measured" in str(found)


@pytest.mark.parametrize("call", [
    {"padding": 1},
    {"layout": "NHWC", "stride": 2},
    {"activation": "relu", "groups": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_every_kernel_is_run_as_it_would_be(call, planned, dtype, monkeypatch):
    x_shape = (2, 12, 10, 8) if "layout" in call else (2, 8, 12, 10)
    w_shape = (4, 8 // call.get("groups", 1), 3, 3)
    problem = make_problem(x_shape, w_shape, dtype, has_bias=True, has_residual=True, **call)
    results = []
    monkeypatch.setattr(measuring, "operands", lambda *arguments: results.append(operands(*arguments)) or results[-1])
    operands = tuning_operands
    for name in CPU_KERNELS:
        run = measuring.prepared(name, problem, device.cpu(), planned)
        assert measuring.block(run, 2, device.cpu()) > 0
    results = [y.view(problem.dtype).astype("f8") for _, _, y in results[::2]]  # every other one is for the residual
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=1e-2, atol=1e-2)


tuning_operands = measuring.operands


def test_what_was_measured_decides(measurements):
    assert convlib.tune(X, W, padding=1).chosen == "numba_cpu.direct"
    assert convlib.explain(X, W, padding=1).chosen != "numba_cpu.direct", "the test would prove nothing"
    np.testing.assert_array_equal(
        conv2d(X, W, BIAS, padding=1, tune=True), conv2d(X, W, BIAS, padding=1, algorithm="direct")
    )
    assert convlib.plan(X.shape, W, padding=1, tune=True).name == "numba_cpu.direct"
    assert convlib.plan(X.shape, W, padding=1).name != "numba_cpu.direct"


def test_times_are_kept_for_other_processes(measurements):
    convlib.tune(X, W, padding=1)
    forget()
    assert convlib.tune(X, W, padding=1).chosen == "numba_cpu.direct"
    assert len(measurements) == 1
    forget()
    told = {c.name: c.measured for c in convlib.explain(X, W, padding=1).candidates}
    assert told["numba_cpu.direct"] == 1.0
    assert len(measurements) == 1


@pytest.mark.parametrize("other", [
    {"padding": 2}, {"padding": 1, "activation": "relu"}, {"padding": 1, "planned": True}, {"padding": 1, "bias": True},
], ids=str)  # fmt: skip
def test_another_problem_is_measured_for_itself(other, measurements):
    convlib.tune(X, W, padding=1)
    convlib.tune(X, W, **other)
    assert len(measurements) == 2


def test_another_number_of_threads_is_measured_for_itself(measurements):
    import numba

    before = numba.get_num_threads()
    convlib.tune(X, W, padding=1)
    try:
        numba.set_num_threads(1)
        convlib.tune(X, W, padding=1)
    finally:
        numba.set_num_threads(before)
    assert len(measurements) == (2 if before > 1 else 1)


def test_a_kernel_that_changed_is_measured_again(measurements, monkeypatch):
    convlib.tune(X, W, padding=1)
    forget()
    monkeypatch.setattr(tuned_times, "digest", lambda name: "changed" if name == "numba_cpu.blocked" else "as it was")
    convlib.tune(X, W, padding=1)
    assert len(measurements) == 2


def test_only_what_is_possible_and_was_asked_for_is_chosen(measurements):
    convlib.tune(X, W, padding=1)
    assert convlib.tune(X, W, padding=1, algorithm="blocked").chosen == "numba_cpu.blocked"
    needed = next(c.workspace_bytes for c in convlib.explain(X, W).candidates if c.name == "numba_cpu.blocked")
    assert needed > 0
    assert convlib.tune(X, W, padding=1, workspace_limit=0).chosen == "numba_cpu.direct"
    with pytest.raises(UnsupportedError, match="workspace"):
        convlib.tune(X, W, padding=1, workspace_limit=0, algorithm="im2col")


def test_what_is_predicted_to_be_far_behind_is_not_tried(measurements, monkeypatch):
    monkeypatch.setattr(measuring, "FAR", 4.0)
    large = (1, 64, 100, 100), (64, 64, 3, 3)
    predicted = {c.name: c.seconds for c in convlib.explain(*large).candidates}
    assert predicted["numba_cpu.direct"] > 4 * predicted["numba_cpu.blocked"]
    convlib.tune(*large)
    ((tried, _),) = measurements
    assert "numba_cpu.direct" not in tried


def test_the_slow_drop_out_and_medians_count(monkeypatch):
    clock = {"fast": iter([1.0, 9.0, 1.0, 1.1, 0.9, 1.0, 9.0]), "slow": iter([2.0])}
    monkeypatch.setattr(measuring, "prepared", lambda name, *rest: name)
    monkeypatch.setattr(measuring, "warmed_up", dict)
    monkeypatch.setattr(measuring, "calls_in_a_block", lambda call, place: 1)
    monkeypatch.setattr(measuring, "block", lambda call, count, place: next(clock[call]))
    assert measuring.measured(["fast", "slow"], None, device.cpu(), False) == {"fast": 1.0, "slow": 2.0}


def test_complex_numbers_and_modes_of_padding_take_it(measurements):
    x = X + 1j * X
    np.testing.assert_allclose(conv2d(x, W, tune=True), conv2d(x, W), rtol=1e-4, atol=1e-4)
    assert measurements
    conv2d(X, W, padding=1, padding_mode="reflect", tune=True)
    assert len(measurements) == 2


# What goes wrong.


def test_a_flag_is_a_flag():
    with pytest.raises(TypeError, match="tune: True or False needed, got 1"):
        conv2d(X, W, tune=1)
    with pytest.raises(TypeError, match="tune: True or False needed, got 'yes'"):
        convlib.plan(X.shape, W, tune="yes")
    with pytest.raises(TypeError, match="planned: True or False needed, got 3"):
        convlib.tune(X, W, planned=3)


def test_what_is_not_this_machine_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(dispatch, "KERNELS", ("cupy_raw.direct",))
    for place in (device.named("sm_90"), device.emulator_of(80)):
        monkeypatch.setattr(dispatch, "family_reasons", lambda *arguments: [])
        with pytest.raises(UnsupportedError, match="tune: only what runs on this machine's CPU or GPU"):
            convlib.tune((1, 4, 8, 8), (4, 4, 3, 3), on=place)


@pytest.mark.parametrize("damage", [
    lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]", lambda text: "{}",
    lambda text: text.replace('"seconds"', '"minutes"'), lambda text: text.replace("1.0", '"fast"'),
])  # fmt: skip
def test_a_damaged_file_counts_as_empty_and_is_replaced(damage, measurements, folder):
    convlib.tune(X, W, padding=1)
    (path,) = folder.glob("*.json")
    path.write_text(damage(path.read_text()))
    forget()
    with pytest.warns(TuningWarning, match="is damaged and counts as empty"):
        assert convlib.tune(X, W, padding=1).chosen == "numba_cpu.direct"
    assert len(measurements) == 2
    forget()
    convlib.tune(X, W, padding=1)
    assert len(measurements) == 2, "the file is right again"


def test_a_read_only_home_costs_one_warning_and_one_measurement(measurements, monkeypatch):
    def refused(*arguments, **keywords):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(json_file.tempfile, "NamedTemporaryFile", refused)
    with pytest.warns(TuningWarning, match="nothing is remembered: .*Read-only file system"):
        conv2d(X, W, tune=True)
    choosing.settled_choice.cache_clear()
    operations.settled_before.cache_clear()
    conv2d(X, W, tune=True)
    assert len(measurements) == 1


KEEP_MANY = """
import sys
from pathlib import Path
from convlib import device, tuned_times
from convlib.problem import make_problem
tuned_times.user_cache_path = lambda name: Path(sys.argv[1]) / name
for size in range(4, 24):
    problem = make_problem((1, int(sys.argv[2]), size, size), (4, int(sys.argv[2]), 3, 3), "float32")
    tuned_times.keep({"numba_cpu.direct": 1.0}, problem, device.cpu(), False)
"""


def test_two_processes_lose_nothing_of_each_other(tmp_path, folder):
    together = [
        subprocess.Popen([sys.executable, "-c", KEEP_MANY, str(tmp_path), str(channels)], env=dict(os.environ))
        for channels in (2, 3)
    ]
    assert [process.wait() for process in together] == [0, 0]
    (path,) = folder.glob("*.json")
    assert len(json.loads(path.read_text())["entries"]) == 40


def test_threads_measure_once(measurements):
    import threading

    threads = [threading.Thread(target=conv2d, args=(X, W), kwargs={"tune": True}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measurements) == 1


# On a GPU.

GPU = Device("cuda", 0, "a card", (9, 0), 132)
GPU_KERNELS = ("cupy_raw.direct", "cupy_raw.tiled", "cupy_raw.im2col")


@pytest.fixture
def card(monkeypatch):
    """A GPU that is here, where cupy_raw.tiled is quarantined; kernels are not run."""

    def first_believed(names, problem, place):
        for name in names:
            if name != "cupy_raw.tiled":
                return name
        raise UnsupportedError("quarantined")

    monkeypatch.setattr(dispatch, "KERNELS", GPU_KERNELS)
    monkeypatch.setattr(dispatch, "family_reasons", lambda *arguments: [])
    monkeypatch.setattr(trust, "is_here", lambda place: True)
    monkeypatch.setattr(trust, "capturing", lambda place: False)
    monkeypatch.setattr(trust, "first_believed", first_believed)
    monkeypatch.setattr(tuned_times, "identity", lambda place: {"name": place.name})


def test_only_kernels_that_are_believed_are_run_on_a_gpu(card, monkeypatch):
    tried = []
    times = {"cupy_raw.im2col": 2.0, "cupy_raw.direct": 1.0}
    monkeypatch.setattr(measuring, "measured", lambda names, *rest: tried.extend(names) or {n: times[n] for n in names})
    monkeypatch.setattr(measuring, "FAR", 1e9)
    problem = make_problem((1, 8, 20, 20), (8, 8, 3, 3), "float32")
    assert choosing.chosen(problem, GPU, tune=True).name == "cupy_raw.direct"
    assert sorted(tried) == ["cupy_raw.direct", "cupy_raw.im2col"]


def test_nothing_is_measured_while_a_stream_is_captured(card, monkeypatch):
    monkeypatch.setattr(trust, "capturing", lambda place: True)
    problem = make_problem((1, 8, 20, 20), (8, 8, 3, 3), "float32")
    with pytest.raises(UnsupportedError, match="tune: nothing can be measured while a stream is captured"):
        choosing.chosen(problem, GPU, tune=True)


def test_a_block_on_a_gpu_lies_between_two_events(monkeypatch):
    happened = []

    class Event:
        def __init__(self):
            self.name = f"event {sum(word.startswith('made') for word in happened)}"
            happened.append(f"made {self.name}")

        def record(self):
            happened.append(f"record {self.name}")

        def synchronize(self):
            happened.append(f"wait for {self.name}")

    class Index:
        def __init__(self, index):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    cuda = types.SimpleNamespace(Event=Event, Device=Index, get_elapsed_time=lambda start, end: 6.0)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(machine, "installed", lambda package: True)
    assert measuring.block(lambda: happened.append("call"), 3, GPU) == pytest.approx(2e-3)
    assert happened[2:] == ["record event 0", "call", "call", "call", "record event 1", "wait for event 1"]


# The command.


def test_the_command_prints_what_was_measured(measurements):
    arguments = ["tune", "--x", "2x8x12x10", "--w", "8x8x3x3", "--padding", "1", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["chosen"] == "numba_cpu.direct"
    assert {c["name"]: c["measured"] for c in told["candidates"]}["numba_cpu.direct"] == 1.0
    assert measurements[0][1] is False
    assert CliRunner().invoke(main, [*arguments, "--planned"]).exit_code == 0
    assert measurements[1][1] is True
