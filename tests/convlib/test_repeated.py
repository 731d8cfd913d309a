"""Calls that come again: what is remembered of them, and what is not taken for one of them."""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import gradients, operations, repeated, running
from convlib.kernels import reference
from convlib.problem import make_problem


def arrays(seed=0):
    random = np.random.default_rng(seed)
    return tuple(random.integers(-3, 4, shape).astype(np.float32) for shape in ((1, 3, 6, 6), (4, 3, 3, 3), (4,)))


def exact(x, w, bias):
    problem = make_problem(x.shape, w.shape, x.dtype, has_bias=True)
    return reference.conv2d(problem, x, w, bias, None)


@pytest.fixture
def no_checks(monkeypatch):
    """From here on a call that is checked anew fails."""

    def checked(*arguments, **keywords):
        raise AssertionError("checked anew")

    def forbid():
        for name in ("check_operands", "settle"):
            monkeypatch.setattr(operations, name, checked)
        monkeypatch.setattr(gradients, "check_operands", checked)
        monkeypatch.setattr(convlib.plan.__globals__["Plan"], "check", checked)

    return forbid


def test_a_call_that_comes_again_is_not_checked_again(no_checks):
    x, w, bias = arrays()
    convlib.conv2d(x, w, bias)
    out = np.empty((1, 4, 4, 4), np.float32)
    convlib.conv2d(x, w, bias, out=out)
    no_checks()
    x, w, bias = arrays(1)
    np.testing.assert_array_equal(convlib.conv2d(x, w, bias), exact(x, w, bias))
    assert convlib.conv2d(x, w, bias, out=out) is out
    np.testing.assert_array_equal(out, exact(x, w, bias))


def test_tensors_that_come_again_are_not_checked_again(no_checks):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, bias = map(torch.from_numpy, arrays())
    last = x.to(memory_format=torch.channels_last)
    first = [convlib.conv2d(one, w, bias) for one in (x, last)]
    convlib.conv2d(last.numpy(), w.numpy(), bias.numpy())
    no_checks()
    for one, wanted in zip((x, last), first, strict=True):
        y = convlib.conv2d(one, w, bias)
        assert isinstance(y, torch.Tensor)
        assert y.stride() == wanted.stride()
        assert torch.equal(y, wanted)
    assert isinstance(convlib.conv2d(last.numpy(), w.numpy(), bias.numpy()), np.ndarray)


def test_a_tensor_that_wants_a_gradient_is_still_refused():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, bias = map(torch.from_numpy, arrays())
    convlib.conv2d(x, w, bias)
    with pytest.raises(TypeError, match="w: requires grad"):
        convlib.conv2d(x, w.requires_grad_(), bias)
    with pytest.raises(TypeError, match="w: an array of torch needed"):
        convlib.conv2d(x, w.detach().numpy(), bias)


def test_a_plan_checks_once(no_checks):
    x, w, bias = arrays()
    planned = convlib.plan(x.shape, w, bias)
    planned(x)
    no_checks()
    x = arrays(1)[0]
    np.testing.assert_array_equal(planned(x), exact(x, w, bias))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("weight_layout", ["OIHW", "HWIO"])
def test_other_layouts_and_flipped_windows_come_again_alike(layout, weight_layout):
    x, w, _ = arrays()
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    w = w if weight_layout == "OIHW" else np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    keywords = {"layout": layout, "weight_layout": weight_layout, "flip_kernel": True, "padding_mode": "reflect"}
    first = convlib.conv2d(x, w, padding=1, **keywords)
    np.testing.assert_array_equal(convlib.conv2d(x, w, padding=1, **keywords), first)
    np.testing.assert_array_equal(convlib.conv2d(x[0], w, padding=1, **keywords), first[0])


def test_other_strides_and_dtypes_are_other_calls():
    for dtype in (np.float32, np.float64):
        x, w, bias = (array.astype(dtype) for array in arrays())
        for turned in (x, x[..., ::-1], x[:, :, ::-1], x[:, ::-1], x.transpose(0, 1, 3, 2)):
            y = convlib.conv2d(turned, w, bias)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, exact(turned, w, bias))


@pytest.mark.parametrize(
    ("keywords", "wrong"),
    [
        ({"stride": 1}, {"stride": True}),
        ({"stride": (1, 1)}, {"stride": (1, True)}),
        ({"stride": (1, 1)}, {"stride": (1, 1.0)}),
        ({"padding": ((0, 0), (0, 0))}, {"padding": ((0, 0), (0, False))}),
        ({"flip_kernel": False}, {"flip_kernel": 0}),
        ({"max_error": 1.0}, {"max_error": True}),
        ({"padding": np.int64(0)}, {"padding": np.float64(0)}),
        ({"stride": (1, np.int64(1))}, {"stride": (1, np.int64(1).tobytes())}),
    ],
)
def test_an_equal_value_of_a_wrong_type_is_still_refused(keywords, wrong):
    x, w, bias = arrays()
    convlib.conv2d(x, w, bias, **keywords)
    convlib.conv2d(x, w, bias, **keywords)
    with pytest.raises(TypeError, match=next(iter(wrong))):
        convlib.conv2d(x, w, bias, **wrong)


def test_another_number_of_threads_is_another_call(monkeypatch):
    x, w, bias = arrays()
    wanted = convlib.conv2d(x, w, bias)
    here = operations.device.cpu()
    other, settled = replace(here, threads=1 + here.threads % 2), []
    monkeypatch.setattr(operations.device, "cpu", lambda: other)
    monkeypatch.setattr(running, "cpu_launch", lambda chosen, call: settled.append(call.device))
    np.testing.assert_array_equal(convlib.conv2d(x, w, bias), wanted)
    assert settled == [other]


def test_a_result_that_may_not_be_written_is_still_refused():
    x, w, bias = arrays()
    out = np.empty((1, 4, 4, 4), np.float32)
    planned = convlib.plan(x.shape, w, bias)
    for _ in range(2):
        convlib.conv2d(x, w, bias, out=out)
        planned(x, out=out)
    out.flags.writeable = False
    for call in (lambda: convlib.conv2d(x, w, bias, out=out), lambda: planned(x, out=out)):
        with pytest.raises(ValueError, match="writeable"):
            call()


@pytest.mark.parametrize("name", ["x", "w", "bias", "residual"])
def test_a_result_that_overlaps_is_still_refused(name):
    residual = np.ones((1, 4, 4, 4), np.float32)
    operands = dict(zip(("x", "w", "bias", "residual"), (*arrays(), residual), strict=True))
    shape = operands[name].shape
    memory = np.zeros(2 * 108, np.float32)
    operands[name] = memory[: np.prod(shape)].reshape(shape)
    apart, over = (memory[start : start + 64].reshape(1, 4, 4, 4) for start in (108, 2))
    planned = convlib.plan(operands["x"].shape, operands["w"], operands["bias"], residual=True)
    later = {key: operands[key] for key in ("x", "residual")}  # a plan has its own weights and bias
    for _ in range(2):
        convlib.conv2d(**operands, out=apart)
        planned(**later, out=apart)
    with pytest.raises(ValueError, match=f"overlaps {name}"):
        convlib.conv2d(**operands, out=over)
    if name in later:
        with pytest.raises(ValueError, match=f"overlaps {name}"):
            planned(**later, out=over)


GRADIENTS = {
    "input_grad": lambda x, w, y, **keywords: convlib.conv2d_input_grad(y, w, x.shape, **keywords),
    "weight_grad": lambda x, w, y, **keywords: convlib.conv2d_weight_grad(x, y, w.shape, **keywords),
    "transposed": lambda x, w, y, **keywords: convlib.conv_transpose2d(y, w, **keywords),
}
WAYS = {
    "plain": {},
    "by phase": {"stride": 2, "algorithm": "blocked"},
    "phases of zeros": {"stride": 3, "algorithm": "blocked"},
    "all phases at once": {"stride": 2, "padding": 1},
    "groups": {"stride": 2, "groups": 2},
    "flipped, channels last": {"layout": "NHWC", "weight_layout": "HWIO", "flip_kernel": True},
    "padded": {"padding": 1, "padding_mode": "reflect"},
}


def gradient_arrays(name, way, dtype=np.float32, seed=0):
    """x (2, 4, 7, 7), w (6, 4 / groups, 2, 2) and an array like their convolution, and the keywords of `way`."""
    keywords = dict(WAYS[way])
    if name == "transposed":
        keywords.pop("padding_mode", None)
    if name == "weight_grad":
        keywords.pop("algorithm", None)
    random = np.random.default_rng(seed)
    x, w = (
        random.integers(-3, 4, shape).astype(dtype)
        for shape in ((2, 4, 7, 7), (6, 4 // keywords.get("groups", 1), 2, 2))
    )
    if keywords.get("layout") == "NHWC":
        x, w = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    forward = {key: value for key, value in keywords.items() if key != "algorithm"}
    return (x, w, np.round(convlib.conv2d(x, w, **forward) / 8)), keywords


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_come_again_have_the_values_of_new_ones(name, way):
    gradient = GRADIENTS[name]
    operands, keywords = gradient_arrays(name, way)
    gradient(*operands, **keywords)
    others, _ = gradient_arrays(name, way, seed=1)
    wanted = gradient(*(array.astype(np.float64) for array in others), **keywords)
    np.testing.assert_array_equal(gradient(*others, **keywords), wanted)
    out = np.full(wanted.shape, np.nan, np.float32)
    for _ in range(2):
        assert gradient(*others, **keywords, out=out) is out
        np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "padded"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_come_again_are_not_checked_again(name, way, no_checks):
    operands, keywords = gradient_arrays(name, way)
    wanted = GRADIENTS[name](*operands, **keywords)
    no_checks()
    np.testing.assert_array_equal(GRADIENTS[name](*operands, **keywords), wanted)


@pytest.mark.parametrize("way", ["plain", "all phases at once", "phases of zeros"])
def test_transposed_convolutions_come_again_with_their_epilogue(way, no_checks):
    (_, w, y), keywords = gradient_arrays("transposed", way)
    added = {"bias": np.arange(-2, 2, dtype=np.float32), "activation": "relu"}
    plain = convlib.conv_transpose2d(y, w, **keywords)
    residual = np.round(plain[::-1] / 2)
    wanted = np.maximum(plain + added["bias"][:, None, None] + residual, 0)
    np.testing.assert_array_equal(convlib.conv_transpose2d(y, w, **added, residual=residual, **keywords), wanted)
    no_checks()
    for name in ("bias", "residual"):  # other values than those of the first time
        added = {**added, "residual": residual.copy(), "bias": added["bias"].copy()}
        added[name] += 1
        wanted = np.maximum(plain + added["bias"][:, None, None] + added["residual"], 0)
        np.testing.assert_array_equal(convlib.conv_transpose2d(y, w, **added, **keywords), wanted)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_tensors_come_again_as_tensors(name, no_checks):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    operands, keywords = gradient_arrays(name, "all phases at once")
    wanted = GRADIENTS[name](*operands, **keywords)
    tensors = [torch.from_numpy(array) for array in operands]
    GRADIENTS[name](*tensors, **keywords)
    last = [tensor.to(memory_format=torch.channels_last) for tensor in tensors]
    strides = GRADIENTS[name](*last, **keywords).stride()
    no_checks()
    for given in (tensors, last):
        found = GRADIENTS[name](*given, **keywords)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), wanted)
    assert found.stride() == strides


@pytest.mark.parametrize("way", ["plain", "all phases at once", "groups"])
def test_both_gradients_at_once_come_again_with_the_values_of_each(way, no_checks):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    (x, w, y), keywords = gradient_arrays("input_grad", way)
    keywords = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "precision": None, **keywords}
    keywords.pop("algorithm", None)
    wanted = [GRADIENTS[name](x, w, y, **keywords) for name in ("input_grad", "weight_grad")]
    tensors = [torch.from_numpy(array) for array in (x, w, y)]
    last = [tensor.to(memory_format=torch.channels_last) for tensor in tensors]
    first = [gradients.conv2d_grads(*given, **keywords) for given in ((x, w, y), tensors, last)]
    no_checks()
    for given, before in zip(((x, w, y), tensors, last), first, strict=True):
        for one, earlier, value in zip(gradients.conv2d_grads(*given, **keywords), before, wanted, strict=True):
            assert type(one) is type(earlier) is type(given[0])
            assert one.strides == earlier.strides if given[0] is x else one.stride() == earlier.stride()
            np.testing.assert_array_equal(np.asarray(earlier), value)
            np.testing.assert_array_equal(np.asarray(one), value)


def test_both_gradients_at_once_refuse_what_each_does():
    (x, w, y), _ = gradient_arrays("input_grad", "plain")
    for _ in range(2):
        gradients.conv2d_grads(x, w, y, precision=None)
        with pytest.raises(ValueError, match="precision: one of .* needed, got 'bf16'"):
            gradients.conv2d_grads(x, w, y, precision="bf16")
        with pytest.raises(ValueError, match="grad_y: shape"):
            gradients.conv2d_grads(x, w, y[:, :, 1:], precision=None)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_that_may_not_be_written_there_is_still_refused(name):
    operands, keywords = gradient_arrays(name, "plain")
    shape = GRADIENTS[name](*operands, **keywords).shape
    first = 0 if name == "weight_grad" else 2
    memory = np.zeros(1000, np.float32)
    operands = list(operands)
    count = operands[first].size
    operands[first] = memory[:count].reshape(operands[first].shape)
    apart, over = (memory[start : start + np.prod(shape)].reshape(shape) for start in (count, 0))
    for _ in range(2):
        GRADIENTS[name](*operands, **keywords, out=apart)
    with pytest.raises(ValueError, match="out: memory apart from every input needed, but it overlaps (x|grad_y)"):
        GRADIENTS[name](*operands, **keywords, out=over)
    apart.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        GRADIENTS[name](*operands, **keywords, out=apart)


BOTH = {"both": lambda x, w, y, **keywords: gradients.conv2d_grads(x, w, y, **keywords)[1]}


@pytest.mark.parametrize("name", [*GRADIENTS, *BOTH])
def test_another_number_of_threads_is_another_gradient(name, monkeypatch):
    gradient = (GRADIENTS | BOTH)[name]
    operands, keywords = gradient_arrays(name, "plain")
    wanted = gradient(*operands, **keywords)
    here = operations.device.cpu()
    other, settled, launch = replace(here, threads=1 + here.threads % 2), [], running.cpu_launch

    def noted(chosen, call):
        settled.append(call.device)
        return launch(chosen, call)

    monkeypatch.setattr(operations.device, "cpu", lambda: other)
    monkeypatch.setattr(running, "cpu_launch", noted)
    np.testing.assert_array_equal(gradient(*operands, **keywords), wanted)
    assert settled == [other] * (2 if name == "both" else 1)


def test_shapes_of_gradients_are_told_apart():
    (x, w, y), _ = gradient_arrays("input_grad", "plain")
    assert GRADIENTS["input_grad"](x, w, y, stride=1).shape == x.shape
    for _ in range(2):
        strided = y[:, :, :3, :3].copy()
        assert convlib.conv2d_input_grad(strided, w, (2, 4, 6, 6), stride=2).shape == (2, 4, 6, 6)
        assert convlib.conv2d_input_grad(strided, w, [2, 4, 7, 7], stride=2).shape == (2, 4, 7, 7)
    with pytest.raises(ValueError, match="grad_y"):
        convlib.conv2d_input_grad(strided, w, (2, 4, 9, 9), stride=2)


def test_what_is_remembered_stays_bounded(monkeypatch):
    monkeypatch.setattr(repeated, "MOST", 3)
    known = repeated.Repeated()
    for number in range(10):
        signature = repeated.signature((), (number,))
        known.keep(signature, number)
        assert known.find(signature) == number
        assert len(known.known) <= 3
    known.keep(None, 1)
    assert known.find(None) is None
