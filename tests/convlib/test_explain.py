"""explain, kernels and info say what conv2d does."""

import re
from pathlib import Path

import numpy as np
import pytest

import convlib
from convlib import accuracy, dispatch, explain, tuned_times

X, W = np.zeros((1, 6, 9, 8), np.float32), np.zeros((4, 6, 3, 3), np.float32)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    """Whoever runs the tests may have tuned this machine."""
    monkeypatch.setattr(tuned_times, "user_cache_path", lambda name: tmp_path / name)
    tuned_times.file_of.cache_clear()


def test_arrays_and_their_shapes_are_explained_alike():
    call = {"padding": 1, "stride": 2, "activation": "relu"}
    of_arrays = explain(X, W, np.zeros(4, np.float32), **call)
    assert of_arrays == explain(X.shape, W.shape, True, **call)
    assert of_arrays.problem.has_bias
    assert not of_arrays.problem.has_residual
    assert of_arrays != explain(X, W, **call)


def test_weights_say_their_dtype_where_x_is_a_shape():
    assert explain(X.shape, W.astype(np.float64)) == explain(X.shape, W.shape, dtype="float64")


def test_every_kernel_has_a_verdict_and_one_is_chosen():
    explanation = explain(X, W, padding=1)
    assert [c.name for c in explanation.candidates] == list(dispatch.KERNELS)
    verdicts = {c.name: explanation.verdict(c) for c in explanation.candidates}
    assert verdicts[explanation.chosen] == "chosen"
    assert list(verdicts.values()).count("chosen") == 1
    assert verdicts["cupy_raw.direct"] == "runs on cuda or emulator, the arrays are on cpu"
    text = str(explanation).splitlines()
    assert text[0] == str(explanation.problem)
    assert text[1] == f"on {explanation.device}"
    (line,) = (line for line in text if explanation.chosen + " " in line)
    bound = accuracy.norm_relative(explanation.problem, dispatch.algorithm_of(explanation.chosen))
    assert re.search(rf" chosen +[0-9.]+ ms predicted  error {bound:.1e} +[0-9,]+ bytes$", line)


def test_the_chosen_kernel_is_the_one_that_runs(monkeypatch):
    explanation = explain(X, W)
    ran = []
    for candidate in explanation.candidates:
        if candidate.possible:
            module = dispatch.kernel(candidate.name)
            monkeypatch.setattr(module, "run", lambda *a, name=candidate.name: ran.append(name))
    convlib.conv2d(X, W)
    assert ran == [explanation.chosen]


def test_where_nothing_can_run_chosen_is_none():
    explanation = explain(X, W, backend="cupy_raw")
    assert explanation.chosen is None
    assert "chosen" not in {explanation.verdict(c) for c in explanation.candidates}


def test_padding_modes_are_explained_as_they_run_on_the_padded_input():
    explanation = explain(X, W, padding=1, padding_mode="reflect", flip_kernel=True)
    assert explanation.problem.x_shape == (1, 6, 11, 10)
    assert explanation.problem.padding == ((0, 0), (0, 0))
    with pytest.raises(ValueError, match="^padding: at most 7 needed for padding_mode='reflect' with W = 8, got 8$"):
        explain(X, W, padding=(0, 8), padding_mode="reflect")


def test_errors_are_conv2ds():
    for wrong, kind, message in (
        ({"stride": 0}, ValueError, "stride: at least 1"),
        ({"groups": 4}, ValueError, "groups: must divide C = 6, got 4"),
        ({"backend": "opencl"}, ValueError, "backend: one of"),
        ({"max_error": 0}, ValueError, "max_error: a number above 0 needed, got 0"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode: one of"),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            explain(X, W, **wrong)
    with pytest.raises(TypeError, match="^w: float32 needed, like x, got float64"):
        explain(X, W.astype(np.float64))
    with pytest.raises(TypeError, match="^dtype: dtype must be one of"):
        explain(X.shape, W.shape, dtype="int8")
    with pytest.raises(TypeError, match="^dtype: float32, as w has it, or none needed, got float64$"):
        explain(X.shape, W, dtype="float64")
    with pytest.raises(ValueError, match="^on: one of cpu, cuda:0, sm_75.* needed, got 'gpu'$"):
        explain(X.shape, W.shape, on="gpu")
    with pytest.raises(TypeError, match=r"^x: a NumPy, CuPy, .* got builtins\.str"):
        explain("1x6x9x8", W)


def test_kernels_tells_each_ones_idea_and_file():
    listed = convlib.kernels()
    assert [facts.name for facts in listed] == list(dispatch.KERNELS)
    for facts in listed:
        assert facts.name == f"{facts.family}.{facts.algorithm}"
        assert Path(facts.file).is_file()
        assert facts.idea, f"{facts.name}'s file opens with no account"
        assert "\n" not in facts.idea


def test_info_names_versions_processor_threads_and_families():
    found = convlib.info()
    assert found["packages"]["numpy"] == np.__version__
    assert found["threads"] >= 1
    assert found["processor"]
    assert set(found["families"]) == set(dispatch.FAMILIES)
    assert found["families"]["numba_cpu"] == "ready"


def test_channels_last_is_explained_as_it_runs():
    torch = pytest.importorskip("torch")
    x = torch.zeros(1, 64, 20, 20).to(memory_format=torch.channels_last)
    explanation = explain(x, torch.zeros(64, 64, 3, 3), padding=1)
    assert explanation.problem.layout == "NHWC"
    assert explanation.chosen == explain((1, 20, 20, 64), (64, 64, 3, 3), padding=1, layout="NHWC").chosen


def test_what_a_padded_input_takes_is_not_there_for_kernels():
    padded = 6 * 11 * 10 * 4
    around = {"padding": 1, "padding_mode": "reflect"}
    left = explain(X, W, **around, workspace_limit=padded + 100)
    assert left.workspace_limit == 100
    assert any("workspace_limit is 100" in reason for c in left.candidates for reason in c.reasons)


@pytest.mark.parametrize("wrong", [{"flip_kernel": 1}, {"residual": 3}, {"bias": "yes"}], ids=str)
def test_what_is_neither_an_array_nor_an_answer_is_named(wrong):
    (argument,) = wrong
    with pytest.raises(TypeError, match=f"^{argument}: "):
        explain(X, W, **wrong)


def test_numbers_past_every_float_are_infinite():
    assert explain(X, W, max_error=10**400) == explain(X, W, max_error=float("inf"))
    with pytest.raises(ValueError, match="^activation: a finite slope needed"):
        explain(X, W, activation=("leaky_relu", 10**400))
