"""The PyTorch adapter: values, gradients of both orders, and all that PyTorch does around its operators."""

import copy
import io
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import convlib.torch  # noqa: E402
from convlib.torch import Conv2d, ConvTranspose2d, conv2d, conv_transpose2d  # noqa: E402

PARAMETERS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": 1},
    {"padding": "same"},
]
IDS = [str(p).replace(" ", "") for p in PARAMETERS]


def tensors(groups=1, dtype=torch.float64, grad=True, transposed=False):
    torch.manual_seed(0)
    w_shape = (4, 6 // groups, 3, 2) if transposed else (6, 4 // groups, 3, 2)
    made = [torch.randn(shape).to(dtype) for shape in ((2, 4, 6, 7), w_shape, (6,))]
    return [t.requires_grad_(grad) for t in made]


def check_values_and_gradients(y, wanted, ours, theirs):
    torch.testing.assert_close(y, wanted)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, their.grad)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=IDS)
def test_conv2d_has_pytorchs_values_and_gradients(parameters):
    ours, theirs = tensors(parameters.get("groups", 1)), tensors(parameters.get("groups", 1))
    y, wanted = conv2d(*ours, **parameters), F.conv2d(*theirs, **parameters)
    check_values_and_gradients(y, wanted, ours, theirs)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2, "dilation": 2}, {"stride": (3, 2)}],
    ids=str,
)
def test_conv_transpose2d_has_pytorchs_values_and_gradients(parameters):
    groups = parameters.get("groups", 1)
    ours, theirs = tensors(groups, transposed=True), tensors(groups, transposed=True)
    y, wanted = conv_transpose2d(*ours, **parameters), F.conv_transpose2d(*theirs, **parameters)
    check_values_and_gradients(y, wanted, ours, theirs)


@pytest.mark.parametrize("parameters", PARAMETERS[:4], ids=IDS[:4])
def test_gradients_of_both_orders_agree_with_finite_differences(parameters):
    arguments = tensors(parameters.get("groups", 1))
    small = [arguments[0].detach()[:1, :, :5, :4].clone().requires_grad_(), *arguments[1:]]
    assert torch.autograd.gradcheck(lambda *a: conv2d(*a, **parameters), small, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: conv2d(*a, **parameters), small, fast_mode=True)


@pytest.mark.parametrize("parameters", [{}, {"stride": 2, "output_padding": 1}], ids=str)
def test_transposed_gradients_of_both_orders_agree_with_finite_differences(parameters):
    x, w, bias = tensors(transposed=True)
    small = [x.detach()[:1, :, :3, :4].clone().requires_grad_(), w, bias]
    assert torch.autograd.gradcheck(lambda *a: conv_transpose2d(*a, **parameters), small, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: conv_transpose2d(*a, **parameters), small, fast_mode=True)


def passed_by(monkeypatch):
    """Let the operators, and what stands for them under transforms, be counted: the names of those that a call took."""
    seen, functions = [], convlib.torch_operators.FUNCTIONS

    class Counted:
        def __getattr__(self, name):
            seen.append(name)
            return getattr(torch.ops.convlib, name)

        def __getitem__(self, name):
            seen.append(name)
            return functions[name]

    monkeypatch.setattr(convlib.torch_operators, "OPS", Counted())
    monkeypatch.setattr(convlib.torch_operators, "FUNCTIONS", Counted())
    return seen


def test_a_plain_call_goes_past_the_operator_with_the_same_bits(monkeypatch):
    results = []
    for watched in (convlib.torch_operators.watched, lambda *tensors: True):
        monkeypatch.setattr(convlib.torch_operators, "watched", watched)
        seen = passed_by(monkeypatch)
        for function, transposed in ((conv2d, False), (conv_transpose2d, True)):
            arguments = tensors(transposed=transposed)
            y = function(*arguments, stride=2, padding=1)
            assert seen == ([] if len(results) < 2 else [function.__name__])
            y.square().sum().backward()
            seen.clear()
            results.append([y.detach(), *(t.grad for t in arguments)])
    for ours, operators in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, operators, strict=True))


class Tagged(torch.Tensor):
    """A subclass, which may want to see every operator."""


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


WATCHERS = {
    "autocast": lambda call, x: in_context(torch.autocast("cpu", torch.bfloat16), call, x),
    "a dispatch mode": lambda call, x: in_context(Seen(), call, x),
    "a function mode": lambda call, x: in_context(torch.device("cpu"), call, x),
    "the profiler": lambda call, x: in_context(torch.profiler.profile(), call, x),
    "vmap": lambda call, x: torch.func.vmap(call)(x[None]),
    "a tracer": lambda call, x: torch.jit.trace(call, x, check_trace=False),
    "a subclass": lambda call, x: call(x.as_subclass(Tagged)),
    "forward derivatives": lambda call, x: in_context(torch.autograd.forward_ad.dual_level(), call, x),
    "another device": lambda call, x: call(x.to("meta")),
}


def in_context(context, call, x):
    with context:
        return call(x)


@pytest.mark.parametrize("watcher", WATCHERS)
def test_whoever_watches_sees_the_operator(watcher, monkeypatch):
    seen = passed_by(monkeypatch)
    WATCHERS[watcher](lambda x: conv2d(x, torch.ones(1, 1, 2, 2, device=x.device)), torch.ones(1, 1, 4, 4))
    assert set(seen) == {"conv2d"}


def grad_y():
    return torch.randn(2, 6, 4, 6, dtype=torch.float64)


OPERATORS = {
    "conv2d": lambda x, w, b: (x, w, b, [2, 1], [1, 0, 2, 1], [1, 1], 1),
    "input_grad": lambda x, w, b: (grad_y(), w, [2, 4, 6, 7], [1, 1], [0] * 4, [1, 1], 1),
    "weight_grad": lambda x, w, b: (x, grad_y(), [6, 4, 3, 2], [1, 1], [0] * 4, [1, 1], 1),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_torchs_rules(name):
    x, w, b = tensors()
    arguments = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in OPERATORS[name](x, w, b)]
    torch.library.opcheck(getattr(torch.ops.convlib, name), tuple(arguments))


def test_the_transposed_operator_keeps_torchs_rules():
    x, w, b = tensors(transposed=True)
    torch.library.opcheck(torch.ops.convlib.conv_transpose2d, (x, w, b, [2, 6, 8, 8], [1, 1], [0] * 4, [1, 1], 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_trains(dtype):
    x, w, bias = tensors(dtype=dtype)
    conv2d(x, w, bias, padding=1).float().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (x, w, bias)]
    F.conv2d(*exact, padding=1).sum().backward()
    for mine, their in zip((x, w, bias), exact, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad.double(), their.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("dtype", "under"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)])
def test_follows_autocast(dtype, under):
    x, w, bias = tensors(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv2d(x, w, bias)
        assert y.dtype == F.conv2d(x, w, bias).dtype == under
    y.float().sum().backward()
    assert w.grad.dtype == dtype


def asked_for(monkeypatch, module, names):
    """What precision each call of a module's functions, by their names, asks for."""
    asked = []
    for name in names:
        function = getattr(module, name)

        def noted(*arguments, name=name, function=function, **parameters):
            asked.append((name, parameters["precision"]))
            return function(*arguments, **parameters)

        monkeypatch.setattr(module, name, noted)
    return asked


@pytest.mark.parametrize("by_operator", [False, True])
def test_precision_reaches_both_passes(by_operator, monkeypatch):
    if by_operator:
        monkeypatch.setattr(convlib.torch_operators, "watched", lambda *tensors: True)
    forward = asked_for(monkeypatch, convlib.operations, ["conv2d"])
    names = ["conv2d_input_grad", "conv2d_weight_grad"] if by_operator else ["conv2d_grads"]
    backward = asked_for(monkeypatch, convlib.gradients, names)
    for precision in ("tf32", None):
        conv2d(*tensors(dtype=torch.float32), precision=precision).sum().backward()
        assert (forward, sorted(backward)) == ([("conv2d", precision)], [(name, precision) for name in names])
        forward.clear()
        backward.clear()


def test_precision_of_a_model_is_set_with_the_swap(monkeypatch):
    network = convlib.torch.replace_convolutions(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), precision="3xtf32")
    asked = asked_for(monkeypatch, convlib.operations, ["conv2d"])
    x = torch.ones(1, 3, 5, 5)
    network(x)
    copy.deepcopy(network)(x)
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    torch.func.vmap(network)(x[None])
    assert [precision for _, precision in asked] == ["3xtf32", "3xtf32", None, "3xtf32"]
    assert not hasattr(convlib.torch.restore_convolutions(network)[0], "precision")
    with pytest.raises(ValueError, match="precision: one of .* needed, got 'bf16'"):
        convlib.torch.replace_convolutions(network, precision="bf16")


def test_channels_last_in_channels_last_out():
    x, w, bias = tensors(dtype=torch.float32)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    y = conv2d(x, w, bias, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.conv2d(x, w, bias, padding=1))


def test_a_gradient_in_channels_last_stays_there():
    _, w, _ = tensors(dtype=torch.float32, grad=False)
    grad = torch.randn(2, 6, 4, 6).to(memory_format=torch.channels_last)
    parameters = ([2, 4, 6, 7], [1, 1], [0, 0, 0, 0], [1, 1], 1)
    by_x = torch.ops.convlib.input_grad(grad, w, *parameters)
    assert by_x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(by_x, F.conv_transpose2d(grad, w))
    torch.library.opcheck(torch.ops.convlib.input_grad.default, (grad, w, *parameters), test_utils="test_faketensor")


@pytest.mark.parametrize("channels_last", [False, True])
def test_transposed_windows_side_by_side_need_one_convolution_unless_channels_lie_together(channels_last, monkeypatch):
    called = []
    for module, name in ((convlib.operations, "conv2d"), (convlib.gradients, "conv_transpose2d")):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=right, **k: called.append(n) or f(*a, **k))
    x, w, bias = torch.randn(2, 3, 5, 4), torch.randn(3, 4, 2, 3), torch.randn(4)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    y = conv_transpose2d(x, w, bias, stride=(2, 3))
    assert called == ["conv_transpose2d" if channels_last else "conv2d"]
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(y, F.conv_transpose2d(x, w, bias, stride=(2, 3)))


@pytest.mark.parametrize("parameters", [{"padding": 1}, {"output_padding": 1}, {"stride": (2, 2)}, {"dilation": 2}])
def test_other_transposed_windows_overlap_or_leave_gaps(parameters):
    x, w = torch.randn(2, 3, 5, 4), torch.randn(3, 4, 2, 3)
    parameters = {"stride": (2, 3)} | parameters
    torch.testing.assert_close(conv_transpose2d(x, w, **parameters), F.conv_transpose2d(x, w, **parameters))


def test_compiles_and_exports_without_a_break():
    model = nn.Sequential(Conv2d(2, 3, 3, padding=1), nn.ReLU(), ConvTranspose2d(3, 1, 2, stride=2)).eval()
    x = torch.randn(1, 2, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    names = {str(node.target) for node in exported.graph.nodes}
    assert {"convlib.conv2d.default", "convlib.conv_transpose2d.default"} <= names


def test_a_model_is_traced_symbolically():
    layers = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(4, 2, 2, stride=2)
    model = convlib.torch.replace_convolutions(nn.Sequential(*layers))
    traced = torch.fx.symbolic_trace(model)
    assert {conv2d, conv_transpose2d} <= {node.target for node in traced.graph.nodes}
    torch.testing.assert_close(traced(torch.ones(1, 3, 5, 6)), model(torch.ones(1, 3, 5, 6)))


def test_a_traced_transposed_convolution_warns_that_it_keeps_its_sizes():
    layer, x = ConvTranspose2d(2, 3, 3, stride=2, padding=1), torch.randn(1, 2, 5, 5)
    with pytest.warns(torch.jit.TracerWarning, match="Python integer"):
        traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x), layer(x))
    w = torch.ones(1, 2, 2, 2)
    torch.testing.assert_close(
        torch.jit.trace(lambda x: conv2d(x, w, padding="same"), x)(x), F.conv2d(x, w, padding="same")
    )


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, padding_mode="reflect"), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 64, 5),
    )  # fmt: skip


def losses(network, steps=10):
    torch.manual_seed(1)
    x, labels = torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_a_model_trains_to_pytorchs_losses_and_swaps_back():
    theirs = model()
    ours = convlib.torch.replace_convolutions(copy.deepcopy(theirs))
    assert [type(m).__module__ for m in ours if "Conv" in type(m).__name__] == ["convlib.torch"] * 3
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-4)
    assert convlib.torch.restore_convolutions(ours) is ours
    assert [type(m) for m in ours] == [type(m) for m in theirs]


def test_saves_and_loads():
    network = convlib.torch.replace_convolutions(model()).eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)


class Blurred(torch.utils.data.Dataset):
    """Images that a worker convolves itself."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return conv2d(torch.full((1, 1, 8, 8), float(index)), torch.ones(1, 1, 3, 3))[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_runs_in_dataloader_workers(method):
    conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3))  # the parent's threads are running before the fork
    loader = torch.utils.data.DataLoader(Blurred(), num_workers=2, multiprocessing_context=method, timeout=120)
    assert [batch.mean().item() for batch in loader] == [0.0, 9.0, 18.0, 27.0]


def test_unbatched_and_output_size():
    layer = ConvTranspose2d(2, 3, 3, stride=2)
    x = torch.randn(2, 4, 4)
    torch.testing.assert_close(layer(x), nn.ConvTranspose2d.forward(layer, x))
    assert layer(x[None], output_size=(10, 10)).shape == (1, 3, 10, 10)
    torch.testing.assert_close(conv2d(x, torch.ones(1, 2, 2, 2)), F.conv2d(x, torch.ones(1, 2, 2, 2)))


ONE_IMAGE, FILTERS = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 2, 2)
ERRORS = {
    "channels": (ONE_IMAGE, torch.zeros(3, 3, 2, 2), "weight: "),
    "dtype": (ONE_IMAGE, FILTERS.double(), "weight: float32 needed, like input, got float64"),
    "no such dtype": (ONE_IMAGE.int(), FILTERS.int(), "input: dtype must be one of"),
    "sparse": (ONE_IMAGE.to_sparse(), FILTERS, "input: a dense tensor needed"),
    "no rows": (torch.zeros(1, 2, 0, 4), FILTERS, "input(, weight)?: "),
}


@pytest.mark.parametrize("wrong", ERRORS)
@pytest.mark.parametrize("function", [conv2d, conv_transpose2d])
def test_errors_are_convlibs_with_the_names_of_pytorchs_arguments(function, wrong):
    *tensors, message = ERRORS[wrong]
    with pytest.raises((ValueError, TypeError), match=f"^{message}") as raised:
        function(*tensors)
    assert not re.search(r"\b[xw]\b", str(raised.value))


@pytest.mark.parametrize(("size", "filters"), [(4, (2, 3, 2, 2)), (1, (2, 2, 2, 2))], ids=["channels", "window"])
def test_tensors_without_data_are_refused_where_others_are(size, filters):
    with pytest.raises(ValueError, match="^weight: "):
        conv2d(torch.empty(1, 2, size, size, device="meta"), torch.empty(filters, device="meta"))


def test_sizes_in_errors_stay_sizes():
    @convlib.torch.errors_name_input_and_weight
    def refused():
        raise convlib.UnsupportedError("w: 1 x 1 needed, as x has it")

    with pytest.raises(convlib.UnsupportedError, match="^weight: 1 x 1 needed, as input has it$"):
        refused()


def test_a_keyword_that_there_is_not_is_named_as_it_was_given():
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        conv2d(x=ONE_IMAGE, weight=FILTERS)


@pytest.mark.parametrize("swap", [convlib.torch.replace_convolutions, convlib.torch.restore_convolutions])
def test_what_is_no_module_has_no_convolutions_to_swap(swap):
    with pytest.raises(TypeError, match=r"^model: a torch\.nn\.Module needed, got <function"):
        swap(lambda x: x)


WRONG = {
    "stride": None, "dilation": 1.5, "padding": None, "input": None, "weight": np.zeros((2, 2, 2, 2)), "bias": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("function", [conv2d, conv_transpose2d])
def test_errors_name_what_is_no_tensor_and_no_number(function, name):
    right = {"input": torch.zeros(1, 2, 4, 4), "weight": torch.zeros(2, 2, 2, 2)}
    with pytest.raises(TypeError, match=f"^{name}: .* needed, got "):
        function(**right | {name: WRONG[name]})


def test_one_number_in_a_tuple_is_for_rows_and_columns_as_in_pytorch():
    x, w, two = torch.randn(1, 2, 7, 7), torch.randn(2, 2, 3, 3), (2,)
    for ours, theirs in ((conv2d, F.conv2d), (conv_transpose2d, F.conv_transpose2d)):
        keywords = {"stride": two, "padding": [1], "dilation": two}
        torch.testing.assert_close(ours(x, w, **keywords), theirs(x, w, **keywords))
        with pytest.raises(ValueError, match=r"^stride: an int or a pair \(rows, columns\) needed, got .2, 2, 2.$"):
            ours(x, w, stride=(2, 2, 2))


def test_numpys_integers_are_integers():
    x, w, two = torch.randn(1, 2, 7, 7), torch.randn(2, 2, 3, 3), np.int64(2)
    for function in (conv2d, conv_transpose2d):
        taken = function(x, w, stride=two, padding=np.int64(1), dilation=two)
        assert torch.equal(taken, function(x, w, stride=2, padding=1, dilation=2))


def test_channels_known_only_when_running_are_compiled_and_checked_then():
    x, w = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)
    torch._dynamo.decorators.mark_unbacked(x, 1)
    compiled = torch.compile(lambda x, w: conv2d(x, w), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), torch.full((1, 3, 3, 3), 18.0))
    x = torch.ones(1, 4, 5, 5)
    torch._dynamo.decorators.mark_unbacked(x, 1)
    with pytest.raises(ValueError, match="channels"):
        compiled(x, w)
