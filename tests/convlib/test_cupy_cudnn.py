"""convlib.cupy_cudnn in the place of cupy.cudnn: the definition, in one to three dimensions, of every array taken."""

import inspect

import numpy as np
import pytest

from convlib import cupy_cudnn, operations
from convlib.cupy_cudnn import (
    CUDNN_TENSOR_NHWC,
    convolution_backward_data,
    convolution_backward_filter,
    convolution_forward,
)
from tests.convlib import cupy_on_host
from tests.convlib.cudnn_calls import (
    BACKWARD,
    CASES,
    FORWARD,
    IDS,
    WINDOW,
    defined,
    defined_data,
    defined_filter,
    filled,
    integers,
    problem,
)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_all_three_are_exact(dimensions, case, dtype):
    x, W, gy, rest = problem(dimensions, case, dtype)
    b, bx = integers(6, dtype, 3), integers(4, dtype, 4)
    along = (slice(None), *(None,) * dimensions)
    y, gx, gW = filled(gy.shape, dtype), filled(x.shape, dtype), filled(W.shape, dtype)

    convolution_forward(x, W, b, y, *rest, **FORWARD)
    convolution_backward_data(W, gy, bx, gx, *rest, **BACKWARD)
    convolution_backward_filter(x, gy, gW, *rest, **BACKWARD)

    np.testing.assert_array_equal(y, (defined(x, W, *rest) + b[along]).astype(dtype))
    np.testing.assert_array_equal(gx, (defined_data(gy, W, x.shape, *rest) + bx[along]).astype(dtype))
    np.testing.assert_array_equal(gW, defined_filter(x, gy, W.shape, *rest).astype(dtype))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_arrays_of_any_strides_and_no_dilation_and_no_bias(dimensions):
    x, W, gy, rest = problem(dimensions, CASES[2])
    pad, stride, _, groups = rest
    backwards = (slice(None), slice(None), *(slice(None, None, -1),) * dimensions)
    y = np.full((*gy.shape, 2), np.nan, np.float32)[..., 0]
    x.flags.writeable = W.flags.writeable = False

    convolution_forward(x[backwards], W[backwards], None, y, list(pad), list(stride), None, groups, **FORWARD)

    np.testing.assert_array_equal(y, defined(x[backwards], W[backwards], *rest))


def test_channels_last():
    x, W, gy, rest = problem(2, CASES[1])
    last = {"d_layout": CUDNN_TENSOR_NHWC, "w_layout": CUDNN_TENSOR_NHWC}
    x_last, W_last, gy_last = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, W, gy))
    y, gx, gW, b = filled(gy_last.shape), filled(x_last.shape), filled(W_last.shape), integers((1, 6, 1, 1), seed=3)

    convolution_forward(x_last, W_last, b, y, *rest, **FORWARD, **last)
    convolution_backward_data(W_last, gy_last, None, gx, *rest, **BACKWARD, **last)
    convolution_backward_filter(x_last, gy_last, gW, *rest, **BACKWARD, **last)

    np.testing.assert_array_equal(y.transpose(0, 3, 1, 2), defined(x, W, *rest) + b)
    np.testing.assert_array_equal(gx.transpose(0, 3, 1, 2), defined_data(gy, W, x.shape, *rest))
    np.testing.assert_array_equal(gW.transpose(0, 3, 1, 2), defined_filter(x, gy, W.shape, *rest))
    y = filled(gy_last.shape)
    convolution_forward(x_last, W, b, y, *rest, **FORWARD, d_layout=CUDNN_TENSOR_NHWC)
    np.testing.assert_array_equal(y.transpose(0, 3, 1, 2), defined(x, W, *rest) + b)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_empty_batch(dimensions):
    x, W, gy, rest = problem(dimensions, CASES[0])
    gW = filled(W.shape)
    convolution_forward(x[:0], W, None, gy[:0], *rest, **FORWARD)
    convolution_backward_data(W, gy[:0], None, x[:0], *rest, **BACKWARD)
    convolution_backward_filter(x[:0], gy[:0], gW, *rest, **BACKWARD)
    assert not gW.any()


def test_three_dimensions_are_one_call_for_each_slice_of_the_kernel_and_each_image(monkeypatch):
    x, W, gy, rest = problem(3, CASES[0])
    calls, conv2d = [], operations.conv2d
    monkeypatch.setattr(operations, "conv2d", lambda *a, **k: (calls.append(k), conv2d(*a, **k)))
    convolution_forward(x, W, None, gy, *rest, **FORWARD)
    assert len(calls) == len(x) * WINDOW[0]
    assert all(call["residual"] is not None for call in calls)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("tensor_core", ["always", "auto", "never"])
def test_tensor_cores_take_float32_when_they_always_shall(tensor_core, dtype, monkeypatch):
    asked = []
    calls = ((cupy_cudnn.operations, "conv2d"), (cupy_cudnn.gradients, "conv_transpose2d"),
             (cupy_cudnn.gradients, "conv2d_weight_grad"))  # fmt: skip
    for module, name in calls:
        monkeypatch.setattr(module, name, lambda *arguments, precision, **parameters: asked.append(precision))
    x, W, gy, rest = problem(2, CASES[0])
    x, W, gy = (array.astype(dtype) for array in (x, W, gy))
    options = BACKWARD | {"tensor_core": tensor_core}
    convolution_forward(x, W, None, gy, *rest, **FORWARD | {"tensor_core": tensor_core})
    convolution_backward_data(W, gy, None, x, *rest, **options)
    convolution_backward_filter(x, gy, W, *rest, **options)
    assert asked == ["tf32" if (tensor_core, dtype) == ("always", "float32") else None] * 3


def test_the_signatures_are_cupys():
    backward = ["deterministic", "auto_tune", "tensor_core", "d_layout", "w_layout"]
    rest = ["pad", "stride", "dilation", "groups"]
    wanted = {
        convolution_forward: (["x", "W", "b", "y", *rest], backward[1:]),
        convolution_backward_data: (["W", "x", "b", "y", *rest], backward),
        convolution_backward_filter: (["x", "gy", "gW", *rest], backward),
    }
    for function, (positional, keyword) in wanted.items():
        parameters = inspect.signature(function).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
        assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == keyword
        assert {p.name for p in parameters if p.default is not p.empty} == {"d_layout", "w_layout"}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_cupy_arrays(monkeypatch, dimensions):
    cupy_on_host.install(monkeypatch)
    x, W, gy, rest = problem(dimensions, CASES[3])
    y, gx, gW, b = filled(gy.shape), filled(x.shape), filled(W.shape), integers(6, seed=3)
    over = cupy_on_host.over

    convolution_forward(over(x), over(W), over(b), over(y), *rest, **FORWARD)
    convolution_backward_data(over(W), over(gy), None, over(gx), *rest, **BACKWARD)
    convolution_backward_filter(over(x), over(gy), over(gW), *rest, **BACKWARD)

    np.testing.assert_array_equal(y, defined(x, W, *rest) + b[(slice(None), *(None,) * dimensions)])
    np.testing.assert_array_equal(gx, defined_data(gy, W, x.shape, *rest))
    np.testing.assert_array_equal(gW, defined_filter(x, gy, W.shape, *rest))
