"""plan: equals conv2d, keeps its own weights, serves threads, and refuses what was not planned."""

import copy
import pickle
import threading

import numpy as np
import pytest

import convlib
from convlib import UnsupportedError, conv2d, plan

RANDOM = np.random.default_rng(0)
X, W, BIAS, RESIDUAL = (
    RANDOM.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 9, 8), (4, 6, 3, 3), (4,), (2, 4, 9, 8))
)


def test_equals_conv2d_bit_for_bit():
    call = {"padding": 1, "activation": "relu"}
    planned = plan(X.shape, W, BIAS, residual=True, **call)
    wanted = conv2d(X, W, BIAS, residual=RESIDUAL, **call)
    for _ in range(2):
        np.testing.assert_array_equal(planned(X, residual=RESIDUAL), wanted)
    out = np.full_like(wanted, np.nan)
    assert planned(X, residual=RESIDUAL, out=out) is out
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_has_its_own_weights_and_bias(algorithm):
    w, bias = W.copy(), BIAS.copy()
    planned = plan(X.shape, w, bias, padding=1, algorithm=algorithm)
    before = planned(X)
    w[...] = np.nan
    bias[...] = np.nan
    np.testing.assert_array_equal(planned(X), before)


def test_one_image_layouts_and_flip():
    call = {"layout": "NHWC", "weight_layout": "HWIO", "flip_kernel": True, "padding": "same"}
    x, w = X[0].transpose(1, 2, 0), W.transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(plan(x.shape, w, **call)(x), conv2d(x, w, **call))


def test_says_what_it_is():
    planned = plan(X.shape, W, padding=1)
    assert planned.name == convlib.explain(X, W, padding=1).chosen
    assert planned.y_shape == (2, 4, 9, 8)
    assert repr(planned) == f"Plan({planned.name}: {planned.problem})"


def test_threads_may_share_it():
    x = RANDOM.standard_normal((8, 1, 64, 24, 24)).astype(np.float32)
    w = RANDOM.standard_normal((64, 64, 3, 3)).astype(np.float32)
    planned = plan(x[0].shape, w, padding=1)
    wanted = [planned(image) for image in x]
    wrong = []

    def work(index):
        for _ in range(10):
            if not np.array_equal(planned(x[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_caller_gets_memory_of_its_own(monkeypatch):
    planned = plan(X.shape, W, algorithm="direct")
    seen = []

    def run(problem, device, x, w, y, bias, residual, workspace):
        seen.append(workspace)
        if len(seen) == 1:
            planned(X)

    monkeypatch.setattr(planned.kernel, "run", run)
    planned(X)
    assert len(seen) == 2
    assert seen[0] is planned.workspace
    assert seen[1] is not planned.workspace
    planned(X)
    assert seen[2] is planned.workspace, "the lock was not given back"


def test_a_failed_call_gives_its_workspace_back(monkeypatch):
    planned = plan(X.shape, W, algorithm="direct")

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(planned.kernel, "run", fail)
        with pytest.raises(MemoryError):
            planned(X)
    assert not planned.in_use.locked()


VALUE_ERRORS = {
    "x_shape": (
        {"x_shape": (9, 8)},
        "x_shape: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 2: (9, 8)",
    ),
    "negative N": ({"x_shape": (-1, 6, 9, 8)}, "x_shape: at least 0 and at most 2147483647 needed, got -1"),
    "channels": (
        {"x_shape": (2, 5, 9, 8)},
        "w: C / groups = 5 input channels needed (C = 5, groups = 1), got 6",
    ),
    "bias": ({"bias": BIAS[:2]}, "bias: shape (4,) needed, got (2,)"),
    "backend": (
        {"backend": "cuda"},
        "backend: one of 'auto', 'numba_cpu', 'numba_cuda', 'cupy_raw' needed, got 'cuda'",
    ),
}  # fmt: skip
TYPE_ERRORS = {
    "x_shape": ({"x_shape": 9}, "x_shape: a shape, as a tuple of ints, needed, got 9"),
    "an array as x_shape": ({"x_shape": BIAS[:1]}, "x_shape: a shape, as a tuple of ints, needed, got array("),
    "a float in x_shape": ({"x_shape": (2.0, 6, 9, 8)}, "x_shape: an int needed, got 2.0"),
    "w": (
        {"w": W.tolist()},
        "w: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; make it one, as numpy.asarray(w, ",
    ),
    "w's dtype": ({"w": W.astype(int)}, "w: dtype must be one of float16, bfloat16, float32, float64, got int64"),
    "bias's dtype": (
        {"bias": BIAS.astype(float)},
        "bias: float32 needed, like w, got float64; convlib never converts inputs",
    ),
    "residual": ({"residual": RESIDUAL}, "residual: True or False needed, got array("),
    "flip_kernel": ({"flip_kernel": None}, "flip_kernel: True or False needed, got None"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_wrong_shapes_and_values(arguments, message):
    with pytest.raises(ValueError) as raised:
        plan(**{"x_shape": X.shape, "w": W, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize(("arguments", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError) as raised:
        plan(**{"x_shape": X.shape, "w": W, **arguments})
    assert str(raised.value).startswith(message)  # of an array that came by mistake only the beginning is told


CALLS = {
    "another shape": ({"x": X[:1]}, ValueError, "x: shape (2, 6, 9, 8) needed, as planned, got (1, 6, 9, 8)"),
    "another dtype": ({"x": X.astype(np.float64)}, TypeError, "x: float32 needed, as planned, got float64"),
    "a list": (
        {"x": [1.0]},
        TypeError,
        "x: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; "
        "make it one, as numpy.asarray(x, numpy.float32)",
    ),
    "foreign byte order": (
        {"x": X.astype(X.dtype.newbyteorder())},
        TypeError,
        "x: float32 needed, as planned, got float32 in foreign byte order",
    ),
    "no residual": ({"residual": None}, ValueError, "residual: one was planned, got none"),
    "residual's shape": (
        {"residual": RESIDUAL[:, :, 1:]},
        ValueError,
        "residual: shape (2, 4, 9, 8) needed, got (2, 4, 8, 8)",
    ),
    "residual's dtype": (
        {"residual": RESIDUAL.astype(float)},
        TypeError,
        "residual: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "out's shape": ({"out": X}, ValueError, "out: shape (2, 4, 9, 8) needed, got (2, 6, 9, 8)"),
    "out on the residual": (
        {"out": RESIDUAL},
        ValueError,
        "out: memory apart from every input needed, but it overlaps residual",
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), CALLS.values(), ids=CALLS)
def test_a_call_must_be_as_planned(arguments, kind, message):
    planned = plan(X.shape, W, padding=1, residual=True)
    before = RESIDUAL.copy()
    with pytest.raises(kind) as raised:
        planned(**{"x": X, "residual": RESIDUAL, **arguments})
    assert str(raised.value) == message
    np.testing.assert_array_equal(RESIDUAL, before)


def test_a_residual_that_was_not_planned_is_refused():
    with pytest.raises(ValueError, match="^residual: none was planned, got one$"):
        plan(X.shape, W, padding=1)(X, residual=RESIDUAL)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_a_plan_stays_in_its_process(copied):
    with pytest.raises(TypeError, match="^a plan cannot be pickled or copied: .*, and plan again there$"):
        copied(plan(X.shape, W))


def test_no_kernel_is_an_unsupported_error():
    with pytest.raises(UnsupportedError, match="kernels: runs on cuda or simulator"):
        plan(X.shape, W, backend="numba_cuda")
