"""convlib.cupy_cudnn in the place of cupy.cudnn: the definition in one to three dimensions, sigpy on it, refusals."""

import inspect
from itertools import product

import numpy as np
import pytest

from convlib import (
    UnsupportedError,
    cupy_cudnn,
    device,
    dispatch,
    gradients,
    operations,
    transposed,
    tuned_times,
    tuning,
)  # fmt: skip
from convlib.cupy_cudnn import (
    CUDNN_TENSOR_NHWC,
    convolution_backward_data,
    convolution_backward_filter,
    convolution_forward,
)
from tests.convlib import cupy_on_host

FORWARD = {"auto_tune": False, "tensor_core": "auto"}
BACKWARD = FORWARD | {"deterministic": False}
SIZES, WINDOW = (7, 8, 6), (3, 2, 3)
CASES = [
    {"pad": 0, "stride": 1, "dilation": 1, "groups": 1},
    {"pad": 2, "stride": 1, "dilation": 2, "groups": 2},
    {"pad": 1, "stride": 2, "dilation": 1, "groups": 1},
    {"pad": 4, "stride": 3, "dilation": 1, "groups": 2},  # some slices meet padding only
]
IDS = ["plain", "dilated_groups", "stride", "wide_padding"]


@pytest.fixture(autouse=True)
def as_imported(monkeypatch):
    """Every test finds the workspace as it is unless set."""
    monkeypatch.setattr(cupy_cudnn, "max_workspace_size", cupy_cudnn.max_workspace_size)


def integers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def arguments(dimensions, pad, stride, dilation, groups):
    return (pad,) * dimensions, (stride,) * dimensions, (dilation,) * dimensions, groups


def windows(x_shape, W_shape, pad, stride, dilation, groups):
    """The shape of the result, and every weight with the part of the padded x that it meets."""
    K, Cg, *window = W_shape
    outputs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(x_shape[2:], pad, dilation, window, stride)
    ]
    taps = []
    for k, c, *tap in np.ndindex(*W_shape):
        parts = (slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, outputs, stride))
        taps.append(((k, c, *tap), k, (slice(None), k // (K // groups) * Cg + c, *parts)))
    return (x_shape[0], K, *outputs), taps


def padded(x, pad):
    return np.pad(x.astype(float), [(0, 0), (0, 0), *((p, p) for p in pad)])


def defined(x, W, *rest):
    """The definition of the forward pass, in any number of dimensions."""
    shape, taps = windows(x.shape, W.shape, *rest)
    y, x = np.zeros(shape), padded(x, rest[0])
    for tap, k, part in taps:
        y[:, k] += x[part] * W[tap]
    return y


def defined_data(gy, W, x_shape, *rest):
    _, taps = windows(x_shape, W.shape, *rest)
    gx = padded(np.zeros(x_shape), rest[0])
    for tap, k, part in taps:
        gx[part] += gy[:, k].astype(float) * W[tap]
    return gx[(slice(None), slice(None), *(slice(p, p + n) for p, n in zip(rest[0], x_shape[2:])))]


def defined_filter(x, gy, W_shape, *rest):
    _, taps = windows(x.shape, W_shape, *rest)
    gW, x = np.zeros(W_shape), padded(x, rest[0])
    for tap, k, part in taps:
        gW[tap] = (x[part] * gy[:, k]).sum()
    return gW


def problem(dimensions, case, dtype=np.float32):
    """x, W, gy and the arguments that they go with."""
    rest = arguments(dimensions, **case)
    x, W = (
        integers((2, 4, *SIZES[:dimensions]), dtype),
        integers((6, 4 // case["groups"], *WINDOW[:dimensions]), dtype, 1),
    )
    return x, W, integers(windows(x.shape, W.shape, *rest)[0], dtype, 2), rest


def filled(shape, dtype=np.float32):
    return np.full(shape, np.nan, dtype)


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


# sigpy, whose CUDA branch lost cupy.cudnn


@pytest.fixture(scope="module")
def sigpy():
    """sigpy.conv as it is, which takes SciPy for NumPy arrays, and its CUDA branch on the stand-in."""
    pytest.importorskip("sigpy", reason="sigpy is not installed (extra examples)")
    import sigpy.conv

    from convlib.examples import mri

    return sigpy.conv, mri.sigpy_on_convlib()


def random_array(shape, dtype, seed):
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape)
    return (values + 1j * random.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


def check_close(got, wanted):
    """As near as two ways to sum come, of which SciPy's may be a Fourier transform: relative to the largest or 1."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    tolerance = 1e-5 if wanted.real.dtype == np.float32 else 2e-14  # sums of up to 2,000 products
    assert np.abs(got - wanted).max() <= tolerance * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("mode", ["full", "valid"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_sigpys_cuda_branch_equals_its_scipy_branch(sigpy, dtype, mode, multi_channel, dimensions):
    by_scipy, by_convlib = sigpy
    all_strides, windows = [None, (1, 1, 1), (2, 2, 2), (3, 1, 2)], [(3, 2, 4), (1, 1, 1)]
    for batch, strides, window in product([(), (2,), (2, 3)], all_strides, windows):
        data_shape = (*batch, *(3,) * multi_channel, *(8, 7, 6)[:dimensions])
        filt_shape = (*(2, 3) * multi_channel, *window[:dimensions])
        keywords = {"mode": mode, "multi_channel": multi_channel, "strides": strides and strides[:dimensions]}
        data, filt = random_array(data_shape, dtype, 0), random_array(filt_shape, dtype, 1)

        output = by_convlib.convolve(data, filt, **keywords)
        wanted = by_scipy.convolve(data, filt, **keywords)
        check_close(output, wanted)

        output = random_array(wanted.shape, dtype, 2)
        got = by_convlib.convolve_data_adjoint(output, filt, data_shape, **keywords)
        check_close(got, by_scipy.convolve_data_adjoint(output, filt, data_shape, **keywords))
        got = by_convlib.convolve_filter_adjoint(output, data, filt_shape, **keywords)
        check_close(got, by_scipy.convolve_filter_adjoint(output, data, filt_shape, **keywords))


def test_sigpys_cuda_branch_is_the_one_that_ran(sigpy, monkeypatch):
    monkeypatch.setattr(cupy_cudnn, "convolution_forward", lambda *a, **k: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        sigpy[1].convolve(np.ones((5, 5)), np.ones((2, 2)))


# The workspace


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
    limits, chosen = [], dispatch.chosen
    monkeypatch.setattr(dispatch, "chosen", lambda *a, **k: (limits.append(a[5]), chosen(*a, **k))[1])
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
    monkeypatch.setattr(tuning, "in_turns", in_turns)
    monkeypatch.setattr(tuning, "FAR", 1e9)
    monkeypatch.setattr(
        dispatch, "KERNELS", ("numba_cpu.direct", "numba_cpu.blocked", "numba_cpu.input_grad", "numba_cpu.weight_grad")
    )
    forget()
    yield asked
    forget()


def forget():
    """As in a new process."""
    tuned_times.known.clear()
    for cached in (
        tuned_times.file_of, dispatch.algorithms, dispatch.candidates, dispatch.settled_choice,
        operations.settled_before, transposed.faster_than_phases,
    ):  # fmt: skip
        cached.cache_clear()


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
    ran, run_on_cpu = [], operations.run_on_cpu
    monkeypatch.setattr(
        operations, "run_on_cpu", lambda chosen, call: (ran.append(chosen.name), run_on_cpu(chosen, call))
    )
    all_three(True)
    ran.clear()
    all_three(True)
    assert ran == ["numba_cpu.direct", "numba_cpu.input_grad", "numba_cpu.weight_grad"]
    monkeypatch.setattr(tuning, "in_turns", lambda calls, place: {name: -len(name) for name in calls})
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
    monkeypatch.setattr(tuning, "in_turns", lambda calls, place: {name: seconds(call) for name, call in calls.items()})
    monkeypatch.setattr(tuning, "random", lambda problem, shape: np.full(shape, np.nan, problem.dtype))
    results = []

    def seconds(call):
        y = call.args[-1].y if hasattr(call.args[-1], "y") else call.args[0].grad_x
        y[...] = 7
        call()
        results.append(np.isnan(y).all())
        return 1.0

    all_three(True)
    assert len(results) > len(dispatch.KERNELS)
    assert all(results)


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


# CuPy arrays, by their stand-in


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


# Bad input: the argument named, and the output untouched


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
