"""Dilated Winograd: every image's outputs are back in their places, in any layout, with all that a call may add."""

import numpy as np
import pytest

import convlib
from convlib import accuracy
from convlib.device import cpu
from convlib.kernels.numba_cpu import winograd_dilated
from convlib.problem import make_problem

# images that are not equally large, filters that fill no vector, a dilation each way, windows that meet padding only
PROBLEMS = {
    "uneven images": ((2, 5, 13, 17), (7, 5, 3, 3), {"padding": 2, "dilation": 2}),
    "a dilation each way": ((1, 8, 9, 11), (20, 8, 3, 3), {"padding": (6, 1), "dilation": (6, 1)}),
    "larger than the image": ((1, 8, 5, 5), (4, 8, 3, 3), {"padding": 18, "dilation": 18}),
    "images of 2 x 2": ((1, 8, 7, 8), (20, 8, 3, 3), {"padding": 4, "dilation": 4}),
    "groups": ((1, 6, 11, 8), (6, 3, 3, 3), {"padding": 3, "dilation": 3, "groups": 2}),
}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_keeps_its_contract(name, layout, activation):
    x_shape, w_shape, keywords = PROBLEMS[name]
    keywords = {**keywords, "layout": layout, "activation": activation}
    order = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)
    x_shape = tuple(x_shape[axis] for axis in order)
    problem = make_problem(x_shape, w_shape, np.dtype(np.float32), has_bias=True, **keywords)
    random = np.random.default_rng(0)
    x, w, bias = (random.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    exact = convlib.conv2d(*(array.astype(np.float64) for array in (x, w, bias)), algorithm="direct", **keywords)
    y = np.full(exact.shape, np.nan, np.float32)  # an output never written stays NaN
    convlib.conv2d(x, w, bias, algorithm="winograd_dilated", out=y, **keywords)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "winograd_dilated")


def test_tells_what_it_cannot_run():
    shapes = (1, 8, 16, 16), (8, 8, 3, 3), np.dtype(np.float32)
    assert winograd_dilated.why_not(make_problem(*shapes, dilation=2), cpu()) == []
    assert "dilated windows only" in winograd_dilated.why_not(make_problem(*shapes), cpu())[0]
    assert "stride 1 only" in winograd_dilated.why_not(make_problem(*shapes, dilation=2, stride=2), cpu())[0]
