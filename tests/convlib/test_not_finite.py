"""conv2d of what is not finite: which outputs a NaN or an infinity reaches."""

import numpy as np
import pytest

from convlib import conv2d, conv2d_bias_grad, conv2d_input_grad
from convlib.kernels import reference
from convlib.problem import make_problem
from convlib.signal import convolve2d


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


LARGEST, ENDLESS = np.full((1, 1, 3, 3), 6e4, np.float16), np.full((1, 1, 3, 3), complex(np.inf, np.inf), np.complex64)
QUIET = {
    "bias gradient": lambda: conv2d_bias_grad(LARGEST),
    "folded": lambda: conv2d_input_grad(LARGEST, LARGEST, (1, 1, 3, 3), padding=1, padding_mode="reflect"),
    "complex": lambda: conv2d(ENDLESS, np.full((1, 1, 1, 1), 1 + 1j, np.complex64)),
    "signal": lambda: convolve2d(ENDLESS[0, 0], np.full((1, 1), 1 + 1j, np.complex64)),
}


@pytest.mark.parametrize("name", QUIET)
def test_overflow_and_infinities_are_not_warned_of(name, recwarn):
    assert not np.isfinite(QUIET[name]()).any()
    assert not recwarn


def test_a_real_kernel_leaves_real_infinities_out_of_imaginary_parts():
    assert convolve2d(np.array([[complex(np.inf, 3)]]), np.array([[2.0]]))[0, 0].imag == 6
