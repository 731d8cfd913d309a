"""conv2d on NumPy arrays: what each argument means, against NumPy and SciPy; random calls against the definition."""

import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate2d

import convlib
from convlib import UnsupportedError, conv2d, device
from convlib.problem import make_problem
from tests.convlib.calls import BIAS, W, X, defined, integers


def test_one_channel_is_scipys_correlation_and_flipped_its_convolution():
    image, kernel = integers(1, 1, 13, 11), integers(1, 1, 4, 3, seed=1)
    np.testing.assert_array_equal(conv2d(image, kernel)[0, 0], correlate2d(image[0, 0], kernel[0, 0], "valid"))
    flipped = conv2d(image, kernel, flip_kernel=True)[0, 0]
    np.testing.assert_array_equal(flipped, convolve2d(image[0, 0], kernel[0, 0], "valid"))
    full = conv2d(image, kernel, padding=(3, 2), flip_kernel=True)[0, 0]
    np.testing.assert_array_equal(full, convolve2d(image[0, 0], kernel[0, 0], "full"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"stride": 2},
        {"stride": (3, 1)},
        {"padding": 2},
        {"padding": (0, 3)},
        {"padding": ((2, 0), (1, 3))},
        {"padding": "valid"},
        {"padding": "same"},
        {"padding": "same", "stride": 2},
        {"padding": "same", "stride": (3, 2), "dilation": 2},
        {"dilation": (2, 3)},
        {"dilation": 2, "stride": 2, "padding": 1},
    ],
    ids=str,
)
def test_strides_paddings_and_dilations(parameters):
    np.testing.assert_array_equal(conv2d(X, W, **parameters), defined(X, W, **parameters))


@pytest.mark.parametrize(("groups", "filters"), [(2, 4), (3, 3), (6, 6), (6, 12)])
def test_groups_convolve_their_own_channels(groups, filters):
    w = integers(filters, 6 // groups, 3, 3, seed=1)
    parts = [
        conv2d(x, part, padding=1)
        for x, part in zip(np.split(X, groups, axis=1), np.split(w, groups, axis=0), strict=True)
    ]
    np.testing.assert_array_equal(conv2d(X, w, groups=groups, padding=1), np.concatenate(parts, axis=1))


def test_one_image_without_a_batch():
    y = conv2d(X[0], W, BIAS, padding=1)
    assert y.shape == (4, 9, 8)
    np.testing.assert_array_equal(y, conv2d(X, W, BIAS, padding=1)[0])
    channels_last = conv2d(X[0].transpose(1, 2, 0), W, BIAS, padding=1, layout="NHWC")
    np.testing.assert_array_equal(channels_last.transpose(2, 0, 1), y)


def test_layouts_and_weight_layouts_change_the_order_of_axes_only():
    y = conv2d(X, W, BIAS, stride=2)
    for layout, axes, back in (("NCHW", (0, 1, 2, 3), (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1), (0, 3, 1, 2))):
        for weight_layout, weight_axes in (("OIHW", (0, 1, 2, 3)), ("OHWI", (0, 2, 3, 1)), ("HWIO", (2, 3, 1, 0))):
            for copy in (np.asarray, np.ascontiguousarray):
                got = conv2d(
                    copy(X.transpose(axes)), copy(W.transpose(weight_axes)), BIAS, stride=2, layout=layout,
                    weight_layout=weight_layout,
                )  # fmt: skip
                np.testing.assert_array_equal(got.transpose(back), y, err_msg=f"{layout} {weight_layout}")


def test_flip_kernel_turns_each_window_whatever_its_layout():
    turned = conv2d(X, np.ascontiguousarray(W[:, :, ::-1, ::-1]))
    np.testing.assert_array_equal(conv2d(X, W, flip_kernel=True), turned)
    hwio = conv2d(X, W.transpose(2, 3, 1, 0), weight_layout="HWIO", flip_kernel=True)
    np.testing.assert_array_equal(hwio, turned)


@pytest.mark.parametrize(("mode", "numpy_mode"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
@pytest.mark.parametrize("padding", [1, (2, 3), ((2, 0), (1, 4)), "same"], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_padding_modes_are_numpys(mode, numpy_mode, padding, layout):
    widths = make_problem(X.shape, W.shape, np.float32, padding=padding).padding
    wanted = conv2d(np.pad(X, ((0, 0), (0, 0), *widths), numpy_mode), W, max_error=1e-9)  # plain sums, which are exact
    x = X if layout == "NCHW" else X.transpose(0, 2, 3, 1)
    y = conv2d(x, W, padding=padding, padding_mode=mode, layout=layout, max_error=1e-9)
    np.testing.assert_array_equal(y if layout == "NCHW" else y.transpose(0, 3, 1, 2), wanted)


def test_padding_modes_without_padding_copy_nothing():
    y = conv2d(X, W, padding_mode="reflect", workspace_limit=None)
    np.testing.assert_array_equal(y, conv2d(X, W))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (None, lambda v: v),
        ("relu", lambda v: np.maximum(v, 0)),
        ("relu6", lambda v: np.clip(v, 0, 6)),
        (("leaky_relu", 0.25), lambda v: np.where(v > 0, v, v / 4)),
        (["leaky_relu", 0], lambda v: np.where(v > 0, v, 0)),
    ],
    ids=["none", "relu", "relu6", "leaky_relu", "leaky_relu_0"],
)
def test_activation_comes_after_bias_and_residual(activation, function):
    residual = integers(2, 4, 7, 6, seed=3) * 10
    wanted = function(conv2d(X, W) + BIAS[:, None, None] + residual)
    np.testing.assert_array_equal(conv2d(X, W, BIAS, residual=residual, activation=activation), wanted)


def test_silu_is_y_times_its_logistic_function():
    plain = conv2d(X, W, BIAS).astype(np.float64)
    wanted = plain / (1 + np.exp(-plain))
    np.testing.assert_allclose(conv2d(X, W, BIAS, activation="silu"), wanted, rtol=1e-5, atol=1e-6)


def test_residual_lies_in_the_results_layout():
    residual = integers(2, 7, 6, 4, seed=3)
    y = conv2d(X.transpose(0, 2, 3, 1), W, layout="NHWC", residual=residual)
    np.testing.assert_array_equal(y, conv2d(X, W).transpose(0, 2, 3, 1) + residual)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_result_has_the_inputs_dtype_and_is_rounded_once(dtype):
    x, w = X.astype(dtype), W.astype(dtype)
    y = conv2d(x, w, padding=1, algorithm="blocked")
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, defined(X, W, padding=1).astype(dtype))


def test_empty_batch_gives_an_empty_result():
    y = conv2d(X[:0], W, padding="same", stride=2)
    assert (y.shape, y.dtype) == ((0, 4, 5, 4), np.float32)
    assert conv2d(X[:0], W, padding=2, padding_mode="reflect").shape == (0, 4, 11, 10)
    assert convlib.plan((0, 6, 9, 8), W)(X[:0]).shape == (0, 4, 7, 6)
    out = np.empty((0, 4, 7, 6), np.float32)
    assert conv2d(X[:0], W, out=out) is out


# Random calls


@st.composite
def valid_calls(draw):
    """Arguments of a random valid call, and what its result must be."""
    groups = draw(st.integers(1, 3))
    N, Cg, Kg, R, S = draw(st.tuples(*[st.integers(1, 3)] * 5))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(
        st.one_of(st.just("same"), st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2), st.integers(0, 2))
    )
    H = draw(st.integers(dilation[0] * (R - 1) + 1, 9))
    W = draw(st.integers(dilation[1] * (S - 1) + 1, 9))
    parameters = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    seed = draw(st.integers(0, 2**16))
    x, w = integers(N, Cg * groups, H, W, seed=seed), integers(Kg * groups, Cg, R, S, seed=seed + 1)
    exact = defined(x, w, **parameters)
    bias = integers(Kg * groups, seed=seed + 2) if draw(st.booleans()) else None
    residual = integers(*exact.shape, seed=seed + 3) if draw(st.booleans()) else None
    exact = exact + (0 if bias is None else bias[:, None, None]) + (0 if residual is None else residual)
    return x, w, {"bias": bias, "residual": residual, **parameters}, exact


@settings(max_examples=120, deadline=None)
@given(valid_calls(), st.sampled_from(["auto", "direct"]), st.booleans(), st.booleans())
def test_random_valid_calls_equal_the_definition(call, algorithm, channels_last, flip):
    x, w, keywords, exact = call
    to, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if channels_last else ((0, 1, 2, 3), (0, 1, 2, 3))
    if keywords["residual"] is not None:
        keywords = {**keywords, "residual": keywords["residual"].transpose(to)}
    y = conv2d(
        x.transpose(to), w[:, :, ::-1, ::-1] if flip else w, flip_kernel=flip, algorithm=algorithm,
        layout="NHWC" if channels_last else "NCHW", **keywords,
    )  # fmt: skip
    np.testing.assert_array_equal(y.transpose(back), exact)


wrong_or_right = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["same", "NHWC", "HWIO", "relu", "direct"]),
    st.sampled_from([[1, 2], (1, 2), {}, np.float32(3), len]),
    st.sampled_from([X, W, BIAS, X[0], X.astype(np.float64)]),
)
NAMES = (
    "bias", "stride", "padding", "dilation", "groups", "layout", "weight_layout", "padding_mode", "flip_kernel",
    "activation", "residual", "algorithm", "backend", "max_error", "workspace_limit", "out",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(("x", "w", *NAMES)), wrong_or_right, min_size=1, max_size=4),
)
def test_random_arguments_end_in_a_result_or_an_error_that_names_one(arguments):
    before = X.copy(), W.copy(), BIAS.copy()
    try:
        conv2d(**{"x": X, "w": W, **arguments})
    except (ValueError, TypeError, UnsupportedError) as error:
        named = re.match(r"(convlib cannot run|\w+)", str(error)).group()
        assert named in ("x", "w", "convlib cannot run", *NAMES), error  # noqa: PT017
    for array, copy in zip((X, W, BIAS), before, strict=True):
        np.testing.assert_array_equal(array, copy)


# A light import


@pytest.mark.parametrize("statement", ["import convlib", "import convlib; convlib.kernels(); convlib.ConvProblem"])
def test_import_loads_no_heavy_package(statement):
    code = f"import sys; {statement}; print(*sorted(n for n in sys.modules if '.' not in n))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numba", "llvmlite", "numba_cuda", "cupy", "torch", "jax", "scipy", "rich", "click", "matplotlib"}
    if "kernels()" in statement and device.has_driver():  # then a GPU library says which cards there are
        heavy -= {"numba", "llvmlite", "numba_cuda", "cupy"}
    assert not heavy & set(done.stdout.split())
