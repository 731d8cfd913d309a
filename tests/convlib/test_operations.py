"""conv2d on NumPy arrays: what each argument means, against NumPy and SciPy, and every refusal, message included."""

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
from convlib.kernels import reference
from convlib.problem import make_problem


def integers(*shape, seed=0, dtype=np.float32):
    """Small integers: their float32 sums are exact, so a test may ask for equality."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def defined(x, w, **parameters):
    """The reference's answer, in float64."""
    return reference.conv2d(make_problem(x.shape, w.shape, np.float64, **parameters), x, w)


X, W = integers(2, 6, 9, 8), integers(4, 6, 3, 3, seed=1)
BIAS = integers(4, seed=2)


# What arguments mean


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
    y = conv2d(x, w, padding=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, defined(X, W, padding=1).astype(dtype))


def test_empty_batch_gives_an_empty_result():
    y = conv2d(X[:0], W, padding="same", stride=2)
    assert (y.shape, y.dtype) == ((0, 4, 5, 4), np.float32)
    assert conv2d(X[:0], W, padding=2, padding_mode="reflect").shape == (0, 4, 11, 10)
    assert convlib.plan((0, 6, 9, 8), W)(X[:0]).shape == (0, 4, 7, 6)
    out = np.empty((0, 4, 7, 6), np.float32)
    assert conv2d(X[:0], W, out=out) is out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_outputs_that_read_it(value):
    """A plain sum keeps NaN and infinity where they belong, and `algorithm` asks for a plain sum."""
    x = np.ones((1, 1, 6, 7), np.float32)
    x[0, 0, 2, 3] = value
    y = conv2d(x, np.ones((1, 1, 3, 3), np.float32), algorithm="direct")[0, 0]
    reads = np.zeros((4, 5), bool)
    reads[0:3, 1:4] = True
    np.testing.assert_array_equal(y, np.where(reads, np.float32(value), 9))


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", ("leaky_relu", 0.1)], ids=str)
def test_activations_pass_nan_on(activation):
    x = np.full((1, 1, 1, 1), np.nan, np.float32)
    assert np.isnan(conv2d(x, np.ones((1, 1, 1, 1), np.float32), activation=activation))


def test_infinity_times_a_padding_zero_is_not_computed():
    w = np.full((1, 1, 3, 3), np.inf, np.float32)
    y = conv2d(np.ones((1, 1, 3, 3), np.float32), w, padding=1, algorithm="direct")
    np.testing.assert_array_equal(y, np.full((1, 1, 3, 3), np.inf))


PADDED = {
    "direct": ("direct", {}, (1, 2, 6, 7), 3),
    "im2col": ("im2col", {}, (1, 2, 6, 7), 3),
    "blocked": ("blocked", {}, (1, 2, 6, 7), 3),
    "blocked_by_filters": ("blocked_by_filters", {}, (1, 2, 6, 7), 3),
    "rows": ("depthwise", {}, (1, 37, 29, 31), 3),
    "stacked_rows": ("depthwise", {}, (1, 5, 6, 7), 3),
    "pixels": ("depthwise", {"layout": "NHWC"}, (1, 20, 9, 11), 3),
    "panel": ("depthwise", {"dilation": (3, 1), "stride": (3, 1)}, (1, 2, 12, 7), 3),
    "whole_map": ("depthwise", {}, (1, 3, 7, 7), 13),
}


@pytest.mark.parametrize(("algorithm", "keywords", "shape", "side"), PADDED.values(), ids=PADDED)
def test_an_infinite_weight_over_padding_is_left_out_or_gives_nan(algorithm, keywords, shape, side):
    """One rule for all plain sums, and conv2d's docstring has it: where the weight meets x, the sum is infinite, or NaN
    where it meets a zero; over padding either its product is left out or the sum is NaN; other sums are what they are.
    """
    C = shape[1] if "layout" not in keywords else shape[3]
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    w = np.ones((C, 1 if algorithm == "depthwise" else C, side, side), np.float32)
    w[0, 0, 0, 0] = np.inf
    dilation, groups = keywords.get("dilation", (1, 1)), C // w.shape[1]
    padding = tuple(side // 2 * d for d in dilation)
    problem = make_problem(shape, w.shape, "float32", padding=padding, groups=groups, **keywords)
    to_nchw = (0, 3, 1, 2) if "layout" in keywords else (0, 1, 2, 3)
    with np.errstate(invalid="ignore"):
        wanted = reference.conv2d(problem, x.transpose(to_nchw), w)
    left_out = reference.conv2d(problem, x.transpose(to_nchw), np.where(np.isinf(w), 0, w))

    y = conv2d(x, w, padding=padding, groups=groups, algorithm=algorithm, backend="numba_cpu", **keywords)

    y = y.transpose(to_nchw)
    over_padding = np.zeros(y.shape, bool)  # the first tap meets it in the first rows and columns of outputs
    rows, columns = -(-padding[0] // problem.stride[0]), -(-padding[1] // problem.stride[1])
    over_padding[:, 0, :rows] = over_padding[:, 0, :, :columns] = True
    np.testing.assert_array_equal(y[~over_padding], wanted[~over_padding])
    assert ((y == left_out) | np.isnan(y))[over_padding].all()


# Memory: what is read, what is written


def every_argument():
    """A call with every array, each a slice of a larger one whose rest is NaN."""
    residual = integers(2, 4, 9, 8, seed=3)
    arrays = []
    for array in (X, W, BIAS, residual, np.zeros_like(residual)):
        larger = np.full([2 * n + 3 for n in array.shape], np.nan, np.float32)
        window = larger[tuple(slice(1, 1 + 2 * n, 2) for n in array.shape)]
        window[...] = array
        arrays.append((larger, window))
    return arrays


def test_inputs_are_never_written_and_out_only_where_it_lies():
    arrays = every_argument()
    before = [larger.copy() for larger, _ in arrays]
    x, w, bias, residual, out = (window for _, window in arrays)
    assert conv2d(x, w, bias, residual=residual, padding=1, out=out) is out
    np.testing.assert_array_equal(out, conv2d(X, W, BIAS, residual=residual.copy(), padding=1))
    for (larger, _), copy in zip(arrays[:4], before[:4], strict=True):
        np.testing.assert_array_equal(larger, copy)
    larger, window = arrays[4]
    window[...] = 0
    np.testing.assert_array_equal(larger, before[4])


def test_read_only_and_reversed_inputs_and_subclasses():
    x = X.copy()
    x.flags.writeable = False
    y = conv2d(x, W)
    np.testing.assert_array_equal(y, conv2d(X, W))
    reversed_twice = np.ascontiguousarray(X[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(conv2d(reversed_twice, W), y)

    class Image(np.ndarray):
        pass

    assert type(conv2d(X.view(Image), W)) is np.ndarray


def test_same_call_same_bits():
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 33, 19, 21), (40, 33, 3, 3)))
    first = conv2d(x, w, padding=1)
    for _ in range(3):
        np.testing.assert_array_equal(conv2d(x, w, padding=1).view(np.uint32), first.view(np.uint32))
    np.testing.assert_array_equal(conv2d(x, w, padding=1, out=np.empty_like(first)), first)


def test_out_may_be_reversed_or_channels_last_in_memory():
    wanted = conv2d(X, W)
    channels_last = np.empty((2, 7, 6, 4), np.float32).transpose(0, 3, 1, 2)
    backwards = np.empty((2, 4, 7, 6), np.float32)[:, ::-1, ::-1, ::-1]
    for out in (channels_last, backwards):
        assert conv2d(X, W, out=out) is out
        np.testing.assert_array_equal(out, wanted)


# Refusals


def read_only(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


FOREIGN = np.dtype(np.float32).newbyteorder()
Y = (2, 4, 7, 6)

ONE_OF = "dtype must be one of float16, bfloat16, float32, float64"
VALUE_ERRORS = {
    "x of 2 dimensions": (
        {"x": X[0, 0]},
        "x: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 2: (9, 8)",
    ),
    "x of 5 dimensions": (
        {"x": X[None]},
        "x: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 5: (1, 2, 6, 9, 8)",
    ),
    "w of 3 dimensions": ({"w": W[0]}, "w: 4 dimensions needed (O, I, H, W), got 3: (6, 3, 3)"),
    "no channels": ({"x": X[:, :0], "w": W[:, :0]}, "x: C must be at least 1, got shape (2, 0, 9, 8) in NCHW"),
    "bias of another length": ({"bias": BIAS[:3]}, "bias: shape (4,) needed, got (3,)"),
    "bias of two dimensions": ({"bias": BIAS[None]}, "bias: shape (4,) needed, got (1, 4)"),
    "residual of x's shape": ({"residual": X}, "residual: shape (2, 4, 7, 6) needed, got (2, 6, 9, 8)"),
    "residual in the other layout": (
        {"residual": integers(2, 7, 6, 4)},
        "residual: shape (2, 4, 7, 6) needed, got (2, 7, 6, 4)",
    ),
    "out of another shape": ({"out": integers(2, 4, 9, 8)}, "out: shape (2, 4, 7, 6) needed, got (2, 4, 9, 8)"),
    "out that is read-only": ({"out": read_only(Y)}, "out: a writeable array needed, got a read-only one"),
    "out whose elements overlap": (
        {"out": np.lib.stride_tricks.as_strided(np.zeros(99, np.float32), Y, (0, 4, 8, 4))},
        "out: elements that lie apart in memory needed, got strides (0, 4, 8, 4)",
    ),
    "padding_mode": (
        {"padding_mode": "constant"},
        "padding_mode: one of 'zeros', 'reflect', 'replicate', 'circular' needed, got 'constant'",
    ),
    "reflection of too much": (
        {"padding": (0, 8), "padding_mode": "reflect"},
        "padding: at most 7 needed for padding_mode='reflect' with W = 8, got 8",
    ),
    "wrapping of too much": (
        {"padding": 10, "padding_mode": "circular"},
        "padding: at most 9 needed for padding_mode='circular' with H = 9, got 10",
    ),
    "backend": (
        {"backend": "opencl"},
        "backend: one of 'auto', 'numba_cpu', 'numba_cuda', 'cupy_raw' needed, got 'opencl'",
    ),
    "max_error": ({"max_error": 0}, "max_error: a number above 0 needed, got 0"),
    "max_error that is no number": ({"max_error": float("nan")}, "max_error: a number above 0 needed, got nan"),
    "workspace_limit": (
        {"workspace_limit": -1},
        f"workspace_limit: at least 0 and at most {2**63 - 1} needed, got -1",
    ),
    "x that is not aligned": (
        {"x": unaligned(X)},
        "x: an address and strides that are multiples of its 4-byte elements needed, got strides (1728, 288, 32, 4); "
        "pass x.copy()",
    ),
    "out that is not aligned": (
        {"out": unaligned(np.zeros(Y, np.float32))},
        "out: an address and strides that are multiples of its 4-byte elements needed, got strides (672, 168, 24, 4); "
        "pass out.copy()",
    ),
}  # fmt: skip

TYPE_ERRORS = {
    "x as a list": (
        {"x": [[1.0]]},
        "x: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; "
        "make it one, as numpy.asarray(x, numpy.float32)",
    ),
    "w as a list": (
        {"w": [[1.0]]},
        "w: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; "
        "make it one, as numpy.asarray(w, numpy.float32)",
    ),
    "a scalar": (
        {"x": 1.0},
        "x: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.float; "
        "make it one, as numpy.asarray(x, numpy.float32)",
    ),
    "no array": ({"w": None}, "w: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.NoneType"),
    "a masked array": (
        {"x": np.ma.masked_less(X, 0)},
        "x: a NumPy array without a mask needed, got numpy.ma.MaskedArray; fill it first, as x.filled(0)",
    ),
    "integers": (
        {"x": X.astype(int), "w": W.astype(int)},
        f"x: {ONE_OF}, got int64; convlib never converts inputs",
    ),
    "bools": (
        {"x": X > 0},
        f"x: {ONE_OF}, got bool; convlib never converts inputs",
    ),
    "objects": (
        {"x": X.astype(object)},
        f"x: {ONE_OF}, got object; convlib never converts inputs",
    ),
    "w of another dtype": (
        {"w": W.astype(np.float64)},
        "w: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "bias of another dtype": (
        {"bias": BIAS.astype(np.float16)},
        "bias: float32 needed, like x, got float16; convlib never converts inputs",
    ),
    "residual of another dtype": (
        {"residual": np.zeros(Y)},
        "residual: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "out of another dtype": (
        {"out": np.zeros(Y)},
        "out: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "x in foreign byte order": (
        {"x": X.astype(FOREIGN)},
        f'x: native byte order needed, got {FOREIGN.str}; use x.astype(x.dtype.newbyteorder("="))',
    ),
    "w in foreign byte order": (
        {"w": W.astype(FOREIGN)},
        "w: float32 needed, like x, got float32 in foreign byte order; convlib never converts inputs",
    ),
    "bool stride": ({"stride": True}, "stride: an int or a pair (rows, columns) needed, got True"),
    "flip_kernel": ({"flip_kernel": 1}, "flip_kernel: True or False needed, got 1"),
    "max_error as text": ({"max_error": "1e-3"}, "max_error: a number needed, got '1e-3'"),
    "max_error as a list": ({"max_error": [1e-3]}, "max_error: a number needed, got [0.001]"),
    "max_error as a bool": ({"max_error": True}, "max_error: a number needed, got True"),
    "workspace_limit as a float": ({"workspace_limit": 1e6}, "workspace_limit: an int needed, got 1000000.0"),
}


@pytest.mark.parametrize(("arguments", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_wrong_shapes_and_values(arguments, message):
    with pytest.raises(ValueError) as raised:
        conv2d(**{"x": X, "w": W, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize(("arguments", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError) as raised:
        conv2d(**{"x": X, "w": W, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["x", "w", "bias", "residual"])
def test_out_lies_apart_from_every_input(name):
    memory = np.zeros(2000, np.float32)

    def at(start, shape):
        return memory[start : start + int(np.prod(shape))].reshape(shape)

    arrays = {"x": X, "w": W, "bias": BIAS, "residual": np.zeros(Y, np.float32)}
    arrays[name] = at(335, arrays[name].shape)  # its first element is out's last but one
    with pytest.raises(ValueError, match=f"^out: memory apart from every input needed, but it overlaps {name}$"):
        conv2d(**arrays, out=at(1, Y))
    beside = at(0, Y)
    arrays[name] = at(336, arrays[name].shape)
    assert conv2d(**arrays, out=beside) is beside


def test_interleaved_slices_of_one_array_do_not_overlap():
    both = np.zeros((2, 6, 9, 16), np.float32)
    both[..., ::2] = X
    out = both[:, :, :, 1::2]
    conv2d(both[..., ::2], np.eye(6, dtype=np.float32)[:, :, None, None], out=out)
    np.testing.assert_array_equal(out, X)


def test_a_forced_kernel_that_cannot_run_says_why():
    with pytest.raises(UnsupportedError) as raised:
        conv2d(X, W, backend="cupy_raw")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("backend='cupy_raw' cannot run this problem on cpu:0")
    assert re.fullmatch("  each of [0-9]+ kernels: runs on cuda or emulator, the arrays are on cpu", lines[-1])
    assert issubclass(UnsupportedError, NotImplementedError)


def test_a_forced_algorithm_is_an_error_if_no_kernel_has_that_name():
    with pytest.raises(ValueError, match="^algorithm: one of 'auto', 'direct'.* needed, got 'fourier'$"):
        conv2d(X, W, algorithm="fourier")


def test_workspace_limit_counts_the_padded_input():
    padded = 2 * 6 * 11 * 10 * 4
    with pytest.raises(UnsupportedError) as raised:
        conv2d(X, W, padding=1, padding_mode="reflect", workspace_limit=padded - 1)
    assert str(raised.value) == "workspace_limit: 5,280 bytes needed for the padded input alone, got 5,279"
    conv2d(X, W, padding=1, padding_mode="reflect", workspace_limit=padded)


def test_workspace_limit_zero_leaves_the_kernels_that_need_none():
    np.testing.assert_array_equal(conv2d(X, W, workspace_limit=0), conv2d(X, W))


# Properties


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
