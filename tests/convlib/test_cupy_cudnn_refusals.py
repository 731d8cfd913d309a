"""convlib.cupy_cudnn: bad input, the argument named and the output untouched."""

import numpy as np
import pytest

from convlib.cupy_cudnn import (
    CUDNN_TENSOR_NHWC,
    convolution_backward_data,
    convolution_backward_filter,
    convolution_forward,
)
from tests.convlib import cupy_on_host
from tests.convlib.cudnn_calls import BACKWARD, CASES, FORWARD, filled, integers, problem


def test_a_mixture_of_libraries_is_refused(monkeypatch):
    cupy_on_host.install(monkeypatch)
    x, W, gy, rest = problem(2, CASES[0])
    y = filled(gy.shape)
    with pytest.raises(TypeError, match="^W: an array of cupy needed, like x, got one of numpy$"):
        convolution_forward(cupy_on_host.over(x), W, None, cupy_on_host.over(y), *rest, **FORWARD)
    with pytest.raises(TypeError, match="^y: an array of numpy needed, like x, got one of cupy$"):
        convolution_forward(x, W, None, cupy_on_host.over(y), *rest, **FORWARD)
    assert np.isnan(y).all()


def test_a_mixture_of_devices_is_refused(monkeypatch):
    cupy_on_host.install(monkeypatch)
    x, W, gy, rest = problem(2, CASES[0])
    x, W, y = map(cupy_on_host.over, (x, W, filled(gy.shape)))
    y.device = cupy_on_host.SimpleNamespace(id=1)
    with pytest.raises(ValueError, match="^y: an array on cuda:0 needed, like x, got one on cuda:1$"):
        convolution_forward(x, W, None, y, *rest, **FORWARD)
    assert np.isnan(y.host).all()


def read_only(array):
    array.flags.writeable = False
    return array


X, WEIGHTS, GY, REST = problem(2, CASES[0])
CALLS = {
    "forward": (convolution_forward, "y", {"x": X, "W": WEIGHTS, "b": None, "y": GY} | FORWARD),
    "data": (convolution_backward_data, "y", {"W": WEIGHTS, "x": GY, "b": None, "y": X} | BACKWARD),
    "filter": (convolution_backward_filter, "gW", {"x": X, "gy": GY, "gW": WEIGHTS} | BACKWARD),
}
BAD = [
    ("forward", {"W": integers((6, 3, 3, 2))}, ValueError, r"^W: C / groups = 4 / 1 channels needed, as x has, got 3$"),
    ("forward", {"y": filled((2, 5, 5, 7))}, ValueError, "^y: 6 channels needed, as W has filters, got 5$"),
    ("forward", {"y": filled((2, 6, 5, 8))}, ValueError,
     r"^y: shape \(2, 6, 5, 7\) needed, got \(2, 6, 5, 8\)$"),
    ("forward", {"y": filled((3, 6, 5, 7))}, ValueError, r"^y: shape \(2, 6, 5, 7\) needed"),
    ("forward", {"y": filled(GY.shape, np.float64)}, TypeError, "^y: float32 needed, like x, got float64"),
    ("forward", {"y": read_only(filled(GY.shape))}, ValueError, "^y: a writeable array needed, got a read-only one$"),
    ("forward", {"W": WEIGHTS.astype(np.float64)}, TypeError, "^W: float32 needed, like x, got float64"),
    ("forward", {"x": X.astype(np.complex64)}, TypeError,
     "^x: float16, float32, float64 needed, as cuDNN had it, got complex64; convlib.conv2d"),
    ("forward", {"x": X.astype(int)}, TypeError, "^x: float16, float32, float64 needed, as cuDNN had it, got int64"),
    ("forward", {"x": [[1.0]]}, TypeError, "^x: a NumPy, CuPy, .* array needed, got builtins.list; make it one"),
    ("forward", {"x": X[0]}, ValueError, r"^x: 4 dimensions needed, as pad has 2, got \(4, 7, 8\)$"),
    ("forward", {"x": X[:, :, :2]}, ValueError, "^W: its window is larger than x with its padding"),
    ("forward", {"b": integers(5)}, ValueError, r"^b: 6 elements needed, one for each channel of y, got shape \(5,\)$"),
    ("forward", {"b": integers(6, np.float64)}, TypeError, "^b: float32 needed, like x, got float64"),
    ("forward", {"pad": (0,)}, ValueError, "^stride: 1 numbers needed, as many as pad has, got"),
    ("forward", {"pad": 0}, ValueError, "^pad: one number for each of one to three spatial dimensions needed, got 0$"),
    ("forward", {"pad": (0, -1)}, ValueError, "^pad: at least 0 .* got -1$"),
    ("forward", {"stride": (1, 0)}, ValueError, "^stride: at least 1 .* got 0$"),
    ("forward", {"dilation": (1, 1.5)}, TypeError, "^dilation: an int needed, got 1.5$"),
    ("forward", {"groups": 4}, ValueError, "^groups: a divisor of the 6 filters of W needed, got 4$"),
    ("forward", {"d_layout": 2}, ValueError, r"^d_layout: CUDNN_TENSOR_NCHW \(0\) or CUDNN_TENSOR_NHWC \(1\) needed"),
    ("forward", {"w_layout": "NHWC"}, ValueError, "^w_layout: CUDNN_TENSOR_NCHW"),
    ("forward", {"tensor_core": "sometimes"}, ValueError, "^tensor_core: 'always', 'auto' or 'never' needed"),
    ("data", {"y": filled((2, 3, 7, 8))}, ValueError, r"^y: C = 4 channels needed \(groups = 1\), got 3$"),
    ("data", {"x": integers((2, 5, 5, 7))}, ValueError, "^x: 6 channels needed, as W has filters, got 5$"),
    ("data", {"y": filled((2, 4, 7, 9))}, ValueError,
     r"^y: a shape whose convolution has x's shape \(2, 6, 5, 7\) needed, got \(2, 4, 7, 9\), whose .* 8\)$"),
    ("data", {"y": read_only(filled(X.shape))}, ValueError, "^y: a writeable array needed"),
    ("data", {"y": filled(X.shape, np.float16)}, TypeError, "^y: float32 needed, like W, got float16"),
    ("data", {"b": integers(6)}, ValueError, "^b: 4 elements needed"),
    ("filter", {"gW": filled((6, 3, 3, 2))}, ValueError, "^gW: C / groups = 4 / 1 channels needed, as x has, got 3$"),
    ("filter", {"gy": integers((2, 6, 5, 6))}, ValueError, r"^gy: shape \(2, 6, 5, 7\) needed, got \(2, 6, 5, 6\)$"),
    ("filter", {"gy": integers((2, 5, 5, 7))}, ValueError, "^gy: 6 channels needed, as gW has filters, got 5$"),
    ("filter", {"gW": read_only(filled(WEIGHTS.shape))}, ValueError, "^gW: a writeable array needed"),
]  # fmt: skip


def bad_call(name, change):
    function, out, call = CALLS[name]
    rest = dict(zip(("pad", "stride", "dilation", "groups"), REST))
    call = {**call, **rest, out: filled(call[out].shape)} | change
    return function, call, call[out]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD, ids=[f"{n}_{','.join(c)}" for n, c, _, _ in BAD])
def test_bad_input_is_named_and_the_output_untouched(name, change, error, message):
    function, call, out = bad_call(name, change)
    with pytest.raises(error, match=message):
        function(**call)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("name", "over"), [("forward", "x"), ("forward", "W"), ("data", "x"), ("data", "W"), ("filter", "x")]
)
def test_an_output_over_an_input_is_refused(name, over):
    function, call, out = bad_call(name, {})
    out_name = CALLS[name][1]
    memory = np.full(out.size + call[over].size, np.nan, np.float32)
    call[over] = memory[: call[over].size].reshape(call[over].shape)
    call[out_name] = memory[call[over].size - 1 :][: out.size].reshape(out.shape)
    with pytest.raises(ValueError, match=f"^{out_name}: memory apart from every input needed, but it overlaps {over}$"):
        function(**call)
    assert np.isnan(memory).all()


def test_channels_last_has_two_dimensions():
    x, W, gy, rest = problem(3, CASES[0])
    with pytest.raises(ValueError, match="^d_layout: CUDNN_TENSOR_NHWC has two spatial dimensions, got 3$"):
        convolution_forward(x, W, None, gy, *rest, **FORWARD, d_layout=CUDNN_TENSOR_NHWC)
