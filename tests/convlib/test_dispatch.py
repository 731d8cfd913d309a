"""Dispatch: who can run a problem, who is chosen, and what a refusal says. Kernels here are stand-ins."""

import re
from types import SimpleNamespace

import pytest

from convlib import UnsupportedError, accuracy, choosing, device, dispatch, machine
from convlib.kernels.numba_cpu import target as processor
from convlib.problem import make_problem

PROBLEM = make_problem((1, 8, 9, 9), (8, 8, 3, 3), "float32")
CPU = device.Device("cpu", threads=2)


def kernel(seconds, reasons=(), workspace=0, passes=("forward",), packed=None):
    facts = {
        "passes": passes,
        "why_not": lambda problem, device: list(reasons),
        "workspace_bytes": lambda problem, device: workspace,
        "predicted_seconds": lambda problem, device: seconds,
        "run": lambda *arguments: None,
    }
    if packed is not None:
        facts |= {"packed_bytes": lambda problem, device: packed, "pack": lambda *arguments: None}
    return SimpleNamespace(**facts)


@pytest.fixture
def listed(monkeypatch):
    """Lists stand-ins instead of the kernels: listed(direct=kernel(...))."""
    caches = (dispatch.candidates, choosing.settled_choice, dispatch.algorithms)

    def clear():
        for cached in caches:
            cached.cache_clear()

    def put(**kernels):
        modules = {f"numba_cpu.{name}": module for name, module in kernels.items()}
        monkeypatch.setattr(dispatch, "KERNELS", tuple(modules))
        monkeypatch.setattr(dispatch, "kernel", modules.__getitem__)
        monkeypatch.setattr(accuracy, "GROWTH", {"direct": 1.0, "winograd": 100.0})
        clear()

    yield put
    monkeypatch.undo()
    clear()


def test_chooses_the_smallest_prediction_among_those_that_can(listed):
    listed(direct=kernel(3.0), blocked=kernel(1.0, reasons=["odd sizes only"]), tiled=kernel(2.0))
    accuracy.GROWTH.update(blocked=1.0, tiled=1.0)
    assert choosing.choose(PROBLEM, CPU) == "numba_cpu.tiled"
    assert choosing.choose(PROBLEM, CPU, "numba_cpu", "direct") == "numba_cpu.direct"
    chosen = choosing.chosen(PROBLEM, CPU)
    assert (chosen.name, chosen.family) == ("numba_cpu.tiled", "numba_cpu")


def test_packing_counts_for_a_single_call_and_not_for_a_plan(listed):
    packing = kernel(1.0)
    packing.pack_seconds = lambda problem, device: 5.0
    listed(direct=kernel(2.0), winograd=packing)
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0).name == "numba_cpu.direct"
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0, planned=True).name == "numba_cpu.winograd"


def test_a_single_call_counts_the_touching_of_scratch_memory_that_no_thread_keeps(listed):
    """Of 64 MiB and a byte 4.1 milliseconds."""
    listed(direct=kernel(1.004), winograd=kernel(1.0, workspace=(64 << 20) + 1))
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0).name == "numba_cpu.direct"
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0, planned=True).name == "numba_cpu.winograd"
    listed(direct=kernel(1.005), winograd=kernel(1.0, workspace=(64 << 20) + 1))
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0).name == "numba_cpu.winograd"
    listed(direct=kernel(1.004), winograd=kernel(1.0, workspace=64 << 20))
    assert choosing.chosen(PROBLEM, CPU, max_error=1.0).name == "numba_cpu.winograd"


@pytest.mark.parametrize(("seconds", "chosen"), [(0.0, "numba_cpu.blocked"), (0.1, "numba_cpu.direct")])
def test_a_single_call_does_not_count_memory_for_weights_that_it_does_not_pack(listed, seconds, chosen):
    reading = kernel(1.0, packed=(64 << 20) + 1)
    reading.pack_seconds = lambda problem, device: seconds
    listed(direct=kernel(1.004 + seconds), blocked=reading)
    accuracy.GROWTH.update(blocked=1.0)
    assert choosing.chosen(PROBLEM, CPU).name == chosen


@pytest.mark.parametrize(("alone", "single"), [(70, (0, 70)), (None, (128, 100))])
def test_a_kernel_may_take_the_weights_of_a_single_call_as_they_lie(listed, alone, single):
    one = kernel(1.0, workspace=100, packed=65)
    one.one_call_bytes = lambda problem, device: alone
    listed(direct=one)
    chosen = choosing.chosen(PROBLEM, CPU, workspace_limit=sum(single))
    assert (chosen.packed_bytes, chosen.workspace_bytes) == single
    assert not any(c.possible for c in dispatch.candidates(PROBLEM, CPU, 1.0, sum(single) - 1))
    planned = choosing.chosen(PROBLEM, CPU, planned=True)
    assert (planned.packed_bytes, planned.workspace_bytes) == (128, 100)


def test_refusal_lists_every_reason(listed):
    listed(direct=kernel(1.0, reasons=["float64 only, x is float32", "3 x 3 windows only"]))
    with pytest.raises(UnsupportedError) as raised:
        choosing.choose(PROBLEM, CPU)
    assert str(raised.value) == (
        f"convlib cannot run this problem on cpu:0:\n  {PROBLEM}\n"
        "  numba_cpu.direct: float64 only, x is float32; 3 x 3 windows only"
    )


def test_a_backend_and_an_algorithm_that_no_kernel_has_both(listed):
    listed(direct=kernel(1.0))
    with pytest.raises(UnsupportedError, match="backend='cupy_raw', algorithm='direct' cannot run"):
        choosing.choose(PROBLEM, CPU, "cupy_raw", "direct")


@pytest.mark.parametrize(("limit", "possible"), [(None, True), (100 + 128, True), (100 + 127, False), (0, False)])
def test_workspace_limit_counts_packed_weights_on_their_boundary(listed, limit, possible):
    listed(direct=kernel(1.0, workspace=100, packed=65))
    (candidate,) = dispatch.candidates(PROBLEM, CPU, 1.0, limit)
    assert candidate.workspace_bytes == 228
    assert candidate.possible is possible
    if not possible:
        assert candidate.reasons == (f"needs 228 bytes of workspace, workspace_limit is {limit}",)
    else:
        chosen = choosing.chosen(PROBLEM, CPU, workspace_limit=limit)
        assert (chosen.packed_bytes, chosen.workspace_bytes) == (128, 100)


def test_max_error_rules_out_what_promises_less_but_never_plain_sums(listed):
    listed(direct=kernel(2.0), winograd=kernel(1.0))
    bound = accuracy.norm_relative(PROBLEM, "winograd")
    assert choosing.choose(PROBLEM, CPU, max_error=bound) == "numba_cpu.winograd"
    assert choosing.choose(PROBLEM, CPU, max_error=bound * 0.999) == "numba_cpu.direct"
    assert choosing.choose(PROBLEM, CPU, max_error=1e-30) == "numba_cpu.direct"
    with pytest.raises(UnsupportedError, match=r"winograd: its error bound is 5.1e-05, max_error is 1.0e-06"):
        choosing.choose(PROBLEM, CPU, "auto", "winograd", 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_max_error_is_of_the_sums_and_not_of_rounding_16_bit_results(listed, dtype):
    listed(direct=kernel(2.0), winograd=kernel(1.0))
    problem = make_problem((1, 8, 9, 9), (8, 8, 3, 3), dtype)
    bound = accuracy.norm_relative(PROBLEM, "winograd")
    assert choosing.choose(problem, CPU, max_error=bound) == "numba_cpu.winograd"
    assert choosing.choose(problem, CPU, max_error=bound * 0.999) == "numba_cpu.direct"
    told = {c.name: c.error for c in dispatch.candidates(problem, CPU, 1.0, None)}
    assert told["numba_cpu.winograd"] == bound + accuracy.UNIT_ROUNDOFF[dtype], "what is told is all of it"


def test_a_kernel_of_another_pass_says_which(listed):
    listed(direct=kernel(1.0, passes=("input_grad", "weight_grad")))
    (candidate,) = dispatch.candidates(PROBLEM, CPU, 1.0, None)
    assert candidate.reasons == ("computes input_grad, weight_grad only, not forward",)


def test_kernels_never_see_an_empty_batch(listed):
    seen = []
    module = kernel(1.0)
    module.why_not = lambda problem, device: seen.append(problem.N) or []
    listed(direct=module)
    empty = make_problem((0, 8, 9, 9), (8, 8, 3, 3), "float32")
    assert choosing.choose(empty, CPU) == "numba_cpu.direct"
    assert set(seen) == {1}


def test_a_family_runs_where_its_arrays_are(monkeypatch):
    gpu = device.named("sm_80")
    assert dispatch.family_reasons("numba_cpu", gpu) == ["runs on cpu, the arrays are on cuda"]
    assert dispatch.family_reasons("cupy_raw", device.simulator()) == [
        "runs on cuda or emulator, the arrays are on simulator"
    ]
    monkeypatch.setattr(machine, "installed", lambda package: False)
    assert dispatch.family_reasons("cupy_raw", gpu) == ["needs cupy, which is not installed: pip install cupy-cuda13x"]
    assert dispatch.family_reasons("cupy_raw", device.emulator()) == []


def test_every_listed_kernel_keeps_the_contract():
    assert dispatch.KERNELS
    assert len(set(dispatch.KERNELS)) == len(dispatch.KERNELS)
    for name in dispatch.KERNELS:
        family, algorithm = dispatch.family_of(name), dispatch.algorithm_of(name)
        assert family in dispatch.FAMILIES
        assert algorithm in accuracy.GROWTH, f"{name} has no error contract in accuracy.GROWTH"
        if family == "numba_cpu":
            module = dispatch.kernel(name)
            assert set(module.passes) <= {"forward", "input_grad", "weight_grad"}
            assert hasattr(module, "pack") == hasattr(module, "packed_bytes")


@pytest.mark.parametrize("target", ["", "sm_80", "83", "8x"])
def test_a_target_that_the_emulator_does_not_know_is_named(target, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", target)
    with pytest.raises(ValueError, match=f"^CONVLIB_EMULATE_TARGET: one of 75, 80, .*120 needed, got '{target}'"):
        device.emulator()


def single(x, w, **keywords):
    return choosing.chosen(make_problem(x, w, "float32", **keywords), device.Device("cpu", threads=2)).name


def test_fresh_pages_count_with_what_touching_them_takes():
    """More than a thread keeps: 144 to 203 MB of spectra, 98 MB of transformed filters."""
    assert single((1, 1, 2048, 2048), (1, 1, 1025, 1025), padding=512) == "numba_cpu.fft"
    assert single((1, 1, 4000, 4000), (1, 1, 2001, 2001), padding=1000) == "numba_cpu.fft"
    as_fast = processor.multiply_adds_per_cycle() == 1  # 0.45 to 0.54 s with F(6), 0.46 to 0.50 with F(4) on a Zen 4
    large = "numba_cpu.winograd_f6" if as_fast else "numba_cpu.winograd_f4"
    assert single((32, 1024, 32, 32), (512, 1024, 3, 3), padding=1) == large


def test_what_exceeds_the_machines_memory_is_refused():
    problem = make_problem((1, 1, 3, 3), (1, 1, 2, 2), "float32", padding=2**20, stride=2**18)
    held = {c.name: c for c in dispatch.candidates(problem, device.cpu(), 5e-6, None, planned=True)}
    assert re.fullmatch(
        r"needs [\d,]+ bytes of workspace, this machine has [\d,]+ in all", *held["numba_cpu.depthwise"].reasons
    )
    chosen = choosing.chosen(problem, device.cpu(), planned=True)
    assert chosen.packed_bytes + chosen.workspace_bytes < 1 << 30
