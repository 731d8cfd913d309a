"""convlib.cupy_cudnn: the workspace that kernels may take, and what auto_tune measures in it."""

import numpy as np
import pytest

from convlib import (
    UnsupportedError,
    choosing,
    cupy_cudnn,
    device,
    dispatch,
    gradients,
    measuring,
    operations,
    running,
    tuned_times,
)
from convlib.cupy_cudnn import (
    convolution_backward_data,
    convolution_backward_filter,
    convolution_forward,
)
from tests.convlib.cudnn_calls import (
    BACKWARD,
    CASES,
    FORWARD,
    IDS,
    defined,
    defined_data,
    defined_filter,
    filled,
    problem,
)
from tests.convlib.new_process import forget


@pytest.fixture(autouse=True)
def as_imported(monkeypatch):
    """Every test finds the workspace as it is unless set."""
    monkeypatch.setattr(cupy_cudnn, "max_workspace_size", cupy_cudnn.max_workspace_size)


def test_the_workspace_is_1_gib_until_it_is_set():
    assert cupy_cudnn.get_max_workspace_size() == 1 << 30
    cupy_cudnn.set_max_workspace_size(12345)
    assert cupy_cudnn.get_max_workspace_size() == 12345


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (1.5, TypeError), ("8", TypeError), (None, TypeError)])
def test_a_workspace_that_is_no_number_of_bytes_is_refused(size, error):
    with pytest.raises(error, match="^size: "):
        cupy_cudnn.set_max_workspace_size(size)
    assert cupy_cudnn.get_max_workspace_size() == 1 << 30


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_workspace_is_what_kernels_may_take(dimensions, monkeypatch):
    x, W, gy, rest = problem(dimensions, CASES[1])
    limits, chosen = [], choosing.chosen
    monkeypatch.setattr(choosing, "chosen", lambda *a, **k: (limits.append(a[5]), chosen(*a, **k))[1])
    cupy_cudnn.set_max_workspace_size(1_234_567)
    convolution_forward(x, W, None, filled(gy.shape), *rest, **FORWARD)
    convolution_backward_data(W, gy, None, filled(x.shape), *rest, **BACKWARD)
    convolution_backward_filter(x, gy, filled(W.shape), *rest, **BACKWARD)
    assert set(limits) == {1_234_567}


def test_forward_and_data_need_none_and_the_filter_gradient_says_what_it_needs():
    x, W, gy, rest = problem(2, CASES[0])
    cupy_cudnn.set_max_workspace_size(0)
    y, gx, gW = filled(gy.shape), filled(x.shape), filled(W.shape)
    convolution_forward(x, W, None, y, *rest, **FORWARD)
    convolution_backward_data(W, gy, None, gx, *rest, **BACKWARD)
    np.testing.assert_array_equal(y, defined(x, W, *rest))
    np.testing.assert_array_equal(gx, defined_data(gy, W, x.shape, *rest))
    with pytest.raises(RuntimeError, match=r"needs [\d,]+ bytes of workspace, workspace_limit is 0"):
        convolution_backward_filter(x, gy, gW, *rest, **BACKWARD)
    assert np.isnan(gW).all()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_three_dimensions_take_as_many_slices_at_once_as_the_workspace_holds(case, monkeypatch):
    x, W, gy, rest = problem(3, case)
    y, gx = filled(gy.shape), filled(x.shape)
    plane = max(gy[0, :, 0].nbytes, x[0, :, 0].nbytes)
    images = []
    for module, name in ((operations, "conv2d"), (gradients, "conv_transpose2d")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda x, *a, run=run, **k: (images.append(len(x)), run(x, *a, **k)))
    cupy_cudnn.set_max_workspace_size(2 * plane)
    convolution_forward(x, W, None, y, *rest, **FORWARD)
    convolution_backward_data(W, gy, None, gx, *rest, **BACKWARD)
    np.testing.assert_array_equal(y, defined(x, W, *rest))
    np.testing.assert_array_equal(gx, defined_data(gy, W, x.shape, *rest))
    assert max(images) <= 2

    cupy_cudnn.set_max_workspace_size(100)
    with pytest.raises(UnsupportedError, match="^set_max_workspace_size: [\\d,]+ bytes needed for a slice .* got 100$"):
        convolution_forward(x, W, None, y, *rest, **FORWARD)
    with pytest.raises(UnsupportedError, match="^set_max_workspace_size: [\\d,]+ bytes needed for copies .* got 100$"):
        convolution_backward_filter(x, gy, filled(W.shape), *rest, **BACKWARD)


# auto_tune


@pytest.fixture
def measurements(monkeypatch, tmp_path):
    """Made-up times, in which the last kernel by name is the fastest; and the passes and kernels that were measured."""
    asked = []

    def in_turns(calls, place):
        asked.append(tuple(calls))
        return {name: float(number) for number, name in enumerate(sorted(calls, reverse=True))}

    monkeypatch.setattr(tuned_times, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(measuring, "in_turns", in_turns)
    monkeypatch.setattr(measuring, "FAR", 1e9)
    monkeypatch.setattr(
        dispatch, "KERNELS", ("numba_cpu.direct", "numba_cpu.blocked", "numba_cpu.input_grad", "numba_cpu.weight_grad")
    )
    forget()
    yield asked
    forget()


def all_three(auto_tune, dimensions=2, case=CASES[2]):
    x, W, gy, rest = problem(dimensions, case)
    y, gx, gW = filled(gy.shape), filled(x.shape), filled(W.shape)
    convolution_forward(x, W, None, y, *rest, **FORWARD | {"auto_tune": auto_tune})
    convolution_backward_data(W, gy, None, gx, *rest, **BACKWARD | {"auto_tune": auto_tune})
    convolution_backward_filter(x, gy, gW, *rest, **BACKWARD | {"auto_tune": auto_tune})
    np.testing.assert_array_equal(y, defined(x, W, *rest))
    np.testing.assert_array_equal(gx, defined_data(gy, W, x.shape, *rest))
    np.testing.assert_array_equal(gW, defined_filter(x, gy, W.shape, *rest))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_auto_tune_measures_once_and_other_processes_know(measurements, dimensions, recwarn):
    all_three(False, dimensions)
    assert not measurements
    all_three(True, dimensions)
    found = len(measurements)
    kernels = {name for names in measurements for way in names for name in way.split(" + ")}
    at_once = {"numba_cpu.input_grad"} if dimensions < 3 else set()  # it adds no residual, which sums slices
    assert kernels == {"numba_cpu.direct", "numba_cpu.blocked", "numba_cpu.weight_grad"} | at_once
    all_three(True, dimensions)
    forget()
    all_three(True, dimensions)
    assert len(measurements) == found
    assert not recwarn


def test_what_was_measured_runs(measurements, monkeypatch):
    ran, run_on_cpu = [], running.run_on_cpu
    monkeypatch.setattr(running, "run_on_cpu", lambda chosen, call: (ran.append(chosen.name), run_on_cpu(chosen, call)))
    all_three(True)
    ran.clear()
    all_three(True)
    assert ran == ["numba_cpu.direct", "numba_cpu.input_grad", "numba_cpu.weight_grad"]
    monkeypatch.setattr(measuring, "in_turns", lambda calls, place: {name: -len(name) for name in calls})
    tuned_times.file_of(device.cpu()).path.unlink()
    forget()
    all_three(True)
    ran.clear()
    all_three(True)
    assert ran == ["numba_cpu.blocked", *["numba_cpu.blocked"] * 4, "numba_cpu.weight_grad"], "a stride of 2: 4 phases"


def test_only_what_the_workspace_has_room_for_is_measured(measurements):
    x, W, gy, rest = problem(2, CASES[0])
    cupy_cudnn.set_max_workspace_size(0)
    convolution_forward(x, W, None, filled(gy.shape), *rest, **FORWARD | {"auto_tune": True})
    assert measurements == [("numba_cpu.direct",)]


def test_the_kernels_of_every_pass_are_measured_on_what_they_take(measurements, monkeypatch):
    """In turns, as they are: the calls are made, and each writes all of its result."""
    monkeypatch.setattr(
        measuring, "in_turns", lambda calls, place: {name: seconds(call) for name, call in calls.items()}
    )
    monkeypatch.setattr(measuring, "random", lambda problem, shape: np.full(shape, np.nan, problem.dtype))
    results = []

    def seconds(call):
        y = call.args[-1].y if hasattr(call.args[-1], "y") else call.args[-1].grad_x
        y[...] = 7
        call()
        results.append(np.isnan(y).all())
        return 1.0

    all_three(True)
    assert len(results) > len(dispatch.KERNELS)
    assert all(results)
