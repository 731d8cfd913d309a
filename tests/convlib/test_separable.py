"""Windows that are a column times a row: found exactly, and run as two passes by plan and by convlib.signal."""

import numpy as np
import pytest

from convlib import accuracy, conv2d, device, plan, separable, signal
from convlib.problem import make_problem

RANDOM = np.random.default_rng(0)


@pytest.fixture
def passes(monkeypatch):
    """The windows' shapes of every pass that is run."""
    seen, run = [], separable.Pass.run
    monkeypatch.setattr(separable.Pass, "run", lambda one, *arguments: seen.append(one.w.shape) or run(one, *arguments))
    return seen


@pytest.fixture
def always_worthwhile(monkeypatch):
    monkeypatch.setattr(separable, "worthwhile", lambda *arguments: True)


def products(count, R, S, dtype="f4", seed=0):
    random = np.random.default_rng(seed)
    return np.einsum("kr,ks->krs", random.standard_normal((count, R)), random.standard_normal((count, S))).astype(dtype)


# Which are products.


def test_what_is_nearly_a_product_is_none():
    """Every cross of a row and a column gives it to 16 roundings, and the best column and row leave too much over."""
    signs = np.random.default_rng(0).choice([-1, 1], (1, 9, 9))
    assert separable.decomposed(np.ones((1, 9, 9)), "f4") is not None
    assert separable.decomposed(1 + 1 * 2.0**-24 * signs, "f4") is not None
    assert separable.crosses((1 + 5 * 2.0**-24 * signs)[0], 16 * 2.0**-24 * 1.3)
    assert separable.decomposed(1 + 5 * 2.0**-24 * signs, "f4") is None


def test_products_rounded_to_their_dtype_count_and_what_is_left_over_is_within_the_rounding():
    for dtype in ("f4", "f8"):
        for seed in range(20):
            kernels = products(3, 9, 11, dtype, seed)
            columns, rows = separable.decomposed(kernels, dtype)
            left = np.linalg.norm(kernels - np.einsum("kr,ks->krs", columns.astype("f8"), rows.astype("f8")))
            assert left <= separable.ROUNDINGS * accuracy.UNIT_ROUNDOFF[np.dtype(dtype).name] * np.linalg.norm(kernels)
    assert separable.decomposed(np.zeros((1, 3, 4)), "f8")[0].shape == (1, 3)


def worthwhile(size, window, dtype="float32", max_error=accuracy.DEFAULT_MAX_ERROR):
    shapes = (1, 1, size, size), (1, 1, window, window)
    problem = make_problem(*shapes, dtype, padding=window // 2)
    return separable.worthwhile(problem, device.cpu(), max_error, None)


def test_a_window_is_split_only_where_that_is_predicted_to_be_faster_and_exact_enough():
    assert not worthwhile(512, 3)
    assert worthwhile(512, 21)
    assert not worthwhile(512, 21, max_error=5e-7)
    assert not worthwhile(512, 21, dtype="float16")
    assert not worthwhile(512, 21, dtype="float64", max_error=signal.PLAIN_SUMS_ONLY), "integers must stay exact"


# Plans.

SPLIT = {
    "image filter": ((1, 1, 60, 70), (1, 21, 21), {"padding": 10}),
    "depthwise": ((2, 3, 30, 41), (3, 7, 10), {"padding": "same", "groups": 3, "activation": "relu"}),
    "filters": ((2, 2, 30, 41), (6, 9, 5), {"padding": ((1, 2), (3, 0)), "groups": 2, "flip_kernel": True}),
    "strides": ((1, 2, 31, 40), (2, 5, 7), {"stride": (2, 3), "dilation": (2, 1), "groups": 2}),
    "channels last": ((2, 30, 41, 3), (3, 7, 10), {"layout": "NHWC", "groups": 3}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SPLIT)
def test_a_plan_runs_two_passes(case, dtype, passes, always_worthwhile):
    x_shape, (K, R, S), keywords = SPLIT[case]
    w, bias = products(K, R, S, dtype)[:, None], RANDOM.standard_normal(K).astype(dtype)
    x = RANDOM.standard_normal(x_shape).astype(dtype)
    planned = plan(x_shape, w, bias, residual=True, **keywords)
    residual = RANDOM.standard_normal(planned.y_shape).astype(dtype)
    x_before, w_before = x.copy(), w.copy()
    out = np.full(planned.y_shape, np.nan, dtype)
    planned.workspace.fill(0xFF)
    assert planned(x, residual=residual, out=out) is out
    np.testing.assert_array_equal(planned(x, residual=residual), out)
    assert passes == 2 * [(K, 1, R, 1), (K, 1, 1, S)]
    assert planned.name.count("numba_cpu.") == 2
    wide = (array.astype("f8") for array in (x, w, bias))
    exact = conv2d(*wide, residual=residual.astype("f8"), algorithm="direct", **keywords)
    bound = sum(accuracy.norm_relative(one, "depthwise") for one in separable.two_passes(planned.problem))
    bound += separable.ROUNDINGS * accuracy.UNIT_ROUNDOFF[dtype]
    assert np.linalg.norm(out - exact) <= bound * np.linalg.norm(exact)
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(w, w_before)


def test_a_split_plan_keeps_its_own_weights_and_serves_tensors(always_worthwhile, passes):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w = RANDOM.standard_normal((1, 1, 40, 40)).astype("f4"), products(1, 9, 9)[:, None]
    wanted = plan(x.shape, w)(x)
    tensor = torch.from_numpy(w.copy())
    planned = plan(x.shape, tensor)
    tensor.fill_(np.nan)
    np.testing.assert_array_equal(planned(torch.from_numpy(x)).numpy(), wanted)
    assert len(passes) == 4


def test_large_products_are_split_without_being_asked(passes):
    problem = make_problem((1, 1, 512, 512), (1, 1, 21, 21), "float32", padding=10)
    x, w = RANDOM.standard_normal(problem.x_shape).astype("f4"), products(1, 21, 21)[:, None]
    y = plan(x.shape, w, padding=10)(x)
    assert passes == [(1, 1, 21, 1), (1, 1, 1, 21)]
    some = conv2d(x[:, :, :40, :40].astype("f8"), w.astype("f8"), padding=((10, 0), (10, 0)))
    np.testing.assert_allclose(y[:, :, :30, :30], some[:, :, :30, :30], atol=1e-4)


def test_what_is_asked_for_otherwise_is_not_split(passes):
    x, w = np.ones((1, 1, 512, 512), "f4"), products(1, 21, 21)[:, None]
    for changed in ({"algorithm": "depthwise"}, {"max_error": 5e-7}, {"workspace_limit": 100_000}):
        plan(x.shape, w, padding=10, **changed)
    plan(x.shape, RANDOM.standard_normal((1, 1, 21, 21)).astype("f4"), padding=10)(x)
    plan((1, 3, 64, 64), RANDOM.standard_normal((2, 3, 9, 9)).astype("f4"))
    assert passes == []


def test_workspace_holds_what_lies_between_and_obeys_the_limit(always_worthwhile):
    w = products(1, 21, 21)[:, None]
    needed = plan((1, 1, 512, 512), w, padding=10).workspace_bytes
    assert needed >= 512 * 512 * 4
    assert "+" in plan((1, 1, 512, 512), w, padding=10, workspace_limit=2 * needed).name
    assert "+" not in plan((1, 1, 512, 512), w, padding=10, workspace_limit=needed - 1).name


# convlib.signal.


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("function", [signal.convolve2d, signal.correlate2d])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_signal_runs_two_passes(mode, function, dtype, library, passes, always_worthwhile):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    images, kernels = RANDOM.standard_normal((4, 30, 40)).astype(dtype), products(4, 7, 10, dtype)
    result = np.asarray(function(module.asarray(images), module.asarray(kernels), mode))
    assert passes == [(4, 1, 7, 1), (4, 1, 1, 10)]
    exact = function(images.astype("f8"), kernels.astype("f8"), mode, algorithm="direct")
    assert np.linalg.norm(result - exact) <= 10 * np.finfo(dtype).eps * np.linalg.norm(exact)


def test_filters_of_one_image_run_as_two_passes_too(passes, always_worthwhile):
    image, kernels = RANDOM.standard_normal((30, 40)), products(3, 5, 6, "f8")
    result = signal.convolve2d(image, kernels)
    assert passes == [(3, 1, 5, 1), (3, 1, 1, 6)]
    np.testing.assert_allclose(result, signal.convolve2d(image, kernels, algorithm="direct"), atol=1e-12)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: w.__setitem__((1, 2, 3), w[1, 2, 3] * (1 + 1e-5) + 1e-5),
        lambda w: w.__setitem__((0, 0, 0), np.nan),
        lambda w: w.__setitem__((0, 0, 0), np.inf),
    ],
)
def test_one_kernel_that_is_no_product_and_none_is_split(spoil, passes, always_worthwhile):
    kernels = products(2, 7, 8)
    spoil(kernels)
    signal.convolve2d(RANDOM.standard_normal((2, 30, 40)).astype("f4"), kernels)
    assert passes == []


def test_a_forced_algorithm_is_never_split(passes, always_worthwhile):
    signal.convolve2d(np.ones((9, 9)), np.ones((3, 3)), algorithm="direct")
    assert passes == []
