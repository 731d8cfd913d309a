"""ONNX's own test cases of Conv, ConvTranspose and BatchNormalization, run by convlib's operators."""

import warnings

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra peers)")

from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import convlib  # noqa: E402
from convlib.onnx import ConvTranspose, conv, conv_transpose, fused, operators  # noqa: E402

NAMES = (
    "test_basic_conv_with_padding", "test_basic_conv_without_padding", "test_conv_with_strides_padding",
    "test_conv_with_strides_no_padding", "test_conv_with_strides_and_asymmetric_padding", "test_conv_with_autopad_same",
    "test_convtranspose", "test_convtranspose_1d", "test_convtranspose_output_shape", "test_convtranspose_pad",
    "test_convtranspose_kernel_shape", "test_convtranspose_pads", "test_convtranspose_dilations",
    "test_convtranspose_autopad_same", "test_convtranspose_group_2", "test_convtranspose_group_2_image_3",
    "test_batchnorm_example", "test_batchnorm_epsilon",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases()}


@pytest.mark.parametrize("name", NAMES)
def test_onnx_own_case(name, cases):
    case = cases[name]
    session = ReferenceEvaluator(case.model, new_ops=operators)
    for inputs, outputs in case.data_sets:
        got = session.run(None, dict(zip(session.input_names, inputs)))
        for y, wanted in zip(got, outputs, strict=True):
            np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_the_convolutions_really_run_on_convlib(monkeypatch):
    called = []
    monkeypatch.setattr("convlib.onnx.plan", lambda *a, **k: called.append(k) or convlib.plan(*a, **k))
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 0, 0, 2], group=2)
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xw"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 7, 6), (6, 2, 3, 3)))
    (y,) = ReferenceEvaluator(model, new_ops=operators).run(None, {"x": x, "w": w})
    (plain,) = ReferenceEvaluator(model).run(None, {"x": x, "w": w})
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-5)
    asked = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 1), "groups": 2}
    assert called == [asked | {"residual": False}]


def one_conv(w_is_input, raw=True):
    """A model of one Conv, whose weights 3 x 3 are ones: an input with that default, or a constant."""
    w = np.ones((2, 1, 3, 3), np.float32)
    if raw:
        w = onnx.numpy_helper.from_array(w, "w")
    else:
        w = helper.make_tensor("w", TensorProto.FLOAT, w.shape, w.flatten())
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "w", "b")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])], "one", inputs if w_is_input else [inputs[0], inputs[2]],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [w],
    )  # fmt: skip
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), new_ops=operators)


@pytest.mark.parametrize("raw", [True, False])
def test_constant_weights_are_planned_once_for_each_shape(raw, monkeypatch):
    shapes = []
    monkeypatch.setattr("convlib.onnx.plan", lambda *a, **k: shapes.append(a[0]) or convlib.plan(*a, **k))
    session, b = one_conv(w_is_input=False, raw=raw), np.zeros(2, np.float32)
    small, large = (np.ones((1, 1, size, size), np.float32) for size in (3, 5))
    for x in (small, large, small, large):
        (y,) = session.run(None, {"x": x, "b": b})
        np.testing.assert_array_equal(y, np.full((1, 2, *y.shape[2:]), 9))
    assert shapes == [small.shape, large.shape]


def test_a_node_keeps_a_few_plans_only(monkeypatch):
    shapes = []
    monkeypatch.setattr("convlib.onnx.plan", lambda *a, **k: shapes.append(a[0]) or convlib.plan(*a, **k))
    monkeypatch.setattr("convlib.onnx.PLANS", 2)
    session, b = one_conv(w_is_input=False), np.zeros(2, np.float32)
    for size in (3, 4, 5, 5, 4, 3):
        session.run(None, {"x": np.ones((1, 1, size, size), np.float32), "b": b})
    assert [shape[2] for shape in shapes] == [3, 4, 5, 3]


def test_weights_and_bias_that_change_in_place_are_seen():
    session = one_conv(w_is_input=True)
    x, w, b = np.ones((1, 1, 3, 3), np.float32), np.ones((2, 1, 3, 3), np.float32), np.zeros(2, np.float32)
    feed = {"x": x, "w": w, "b": b}
    assert session.run(None, feed)[0].flatten().tolist() == [9, 9]
    w[1] = 2
    assert session.run(None, feed)[0].flatten().tolist() == [9, 18]
    b[0] = 1
    assert session.run(None, feed)[0].flatten().tolist() == [10, 18]
    feed |= {"x": x.astype(np.float64), "w": w.astype(np.float64), "b": b.astype(np.float64)}
    assert session.run(None, feed)[0].dtype == np.float64


def test_batch_normalization_of_old_models_takes_the_running_statistics():
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], momentum=0.9)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xsbmv"]
    graph = helper.make_graph([node], "one", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)])
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    s, b, m, v = (np.array(pair, np.float32) for pair in ((2, 3), (1, -1), (4, 5), (0.25, 4)))
    (y,) = ReferenceEvaluator(model, new_ops=operators).run(None, dict(zip("xsbmv", (x, s, b, m, v))))
    wanted = [2 * (x[0, 0] - 4) / 0.5 + 1, 3 * (x[0, 1] - 5) / 2 - 1]
    np.testing.assert_allclose(y[0], wanted, rtol=1e-4, atol=1e-3)


def test_three_axes_and_unknown_paddings_are_refused_in_words():
    with pytest.raises(convlib.UnsupportedError, match=r"Conv: one or two axes besides N and C needed, got x of shape"):
        conv(np.zeros((1, 1, 2, 2, 2), np.float32), np.zeros((1, 1, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="auto_pad: one of NOTSET, VALID, SAME_UPPER, SAME_LOWER needed, got 'SAME'"):
        conv(np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 1, 1, 1), np.float32), auto_pad="SAME")
    with pytest.raises(ValueError, match=r"w with as many axes as x needed \(4\), got 3"):
        conv_transpose(np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 1, 1), np.float32))


@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_a_kernel_shape_that_is_not_that_of_w_is_refused(function):
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 2), np.float32)
    np.testing.assert_array_equal(function(x, w, kernel_shape=[3, 2]), function(x, w))
    with pytest.raises(ValueError, match=r"kernel_shape \(3, 2\) needed, as w has it, got \(2, 2\)"):
        function(x, w, kernel_shape=[2, 2])


# Graphs in which convolutions take in what follows them: ONNX's textual form, and the operators that must be left.
GRAPHS = {
    "relu": ("c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c)", ["FusedConv"]),
    "add, relu": ("c = Conv(x, v) s = Add(x, c) y = Relu(s)", ["FusedConv"]),
    "add alone": ("c = Conv(x, v, b) y = Add(c, x)", ["FusedConv"]),
    "two convolutions": ("c = Conv(x, v) d = Conv(x, v, b) s = Add(c, d) y = Relu(s)", ["Conv", "FusedConv"]),
    "what is added comes later": (
        "c = Conv(x, v) r = Relu(x) d = Neg(r) s = Add(c, d) y = Relu(s)", ["Relu", "Neg", "FusedConv"],
    ),
    "normalized": (
        "c = Conv<strides=[2,1]>(x, w) n = BatchNormalization<epsilon=0.1>(c, f, b, m, u) y = Relu(n)", ["FusedConv"],
    ),
    "normalized, with bias": ("c = Conv(x, w, f) y = BatchNormalization(c, b, f, m, u)", ["Conv"]),
    "transposed, normalized": (
        "c = ConvTranspose<group=2, strides=[2,2]>(x, t, f) n = BatchNormalization(c, b, f, m, u) y = Relu(n)",
        ["ConvTranspose", "Relu"],
    ),
    "clip to 6": ("c = Conv(x, w) y = Clip(c, zero, six)", ["FusedConv"]),
    "clip to 5": ("c = Conv(x, w) y = Clip(c, zero, five)", ["Conv", "Clip"]),
    "leaky": ("c = Conv(x, w) y = LeakyRelu<alpha=0.3>(c)", ["FusedConv"]),
    "silu": ("c = Conv(x, w) s = Sigmoid(c) y = Mul(s, c)", ["FusedConv"]),
    "gate, not silu": ("c = Conv(x, v) s = Sigmoid(c) y = Mul(s, x)", ["Conv", "Sigmoid", "Mul"]),
    "read twice": ("c = Conv(x, w) r = Relu(c) y = Add(r, c)", ["Conv", "Relu", "Add"]),
    "twice itself": ("c = Conv(x, w) y = Add(c, c)", ["Conv", "Add"]),
    "an output": ("y = Conv(x, w) z = Relu(y)", ["Conv", "Relu"]),
    "a bias by channel": ("c = Conv(x, w) s = Add(c, plane) y = Relu(s)", ["Conv", "Add", "Relu"]),
    "spread over a map": ("c = Conv(p, v) y = Add(x, c)", ["Conv", "Add"]),
    "read in a body": (
        "c = Conv(x, v) r = Relu(c) e = If(yes) <then_branch = g1 () => (float[2,4,7,6] i) { i = Neg(c) }, "
        "else_branch = g2 () => (float[2,4,7,6] j) { j = Abs(x) }> y = Add(r, e)",
        ["Conv", "Relu", "If", "Add"],
    ),
}  # fmt: skip


def graph_of(nodes):
    random = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), "t": (4, 2, 2, 2), "plane": (1, 4, 1, 1)}
    shapes |= dict.fromkeys("bfmu", (4,))
    constants = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    constants["u"] = np.abs(constants["u"])
    constants |= {"zero": np.float32(0), "five": np.float32(5), "six": np.float32(6), "yes": np.array(True)}
    outputs = "float[N,4,P,Q] y" + (", float[N,4,P,Q] z" if " z = " in nodes else "")
    text = (
        f'<ir_version: 8, opset_import: ["": 14]> g (float[2,4,7,6] x, float[2,4,1,1] p) => ({outputs}) {{ {nodes} }}'
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return model


@pytest.mark.parametrize("name", GRAPHS)
def test_convolutions_take_in_what_follows_them(name):
    nodes, left = GRAPHS[name]
    model = graph_of(nodes)
    before = model.SerializeToString()
    after = fused(model)
    assert [node.op_type for node in after.graph.node] == left
    assert model.SerializeToString() == before
    random = np.random.default_rng(1)
    inputs = {"x": 4 * random.standard_normal((2, 4, 7, 6)).astype(np.float32)}
    inputs["p"] = random.standard_normal((2, 4, 1, 1)).astype(np.float32)
    wanted = ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(None, inputs)  # onnx's own fails for two groups
    for got, y in zip(ReferenceEvaluator(after, new_ops=operators).run(None, inputs), wanted, strict=True):
        np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (1, 4, 1, 1), (6,)])
def test_what_is_added_may_be_spread_over_the_result(shape):
    """Where the graph does not say what shape it has."""
    model = graph_of("c = Conv(x, v) y = Add(c, p)")
    model.graph.input[1].type.tensor_type.ClearField("shape")
    assert [node.op_type for node in fused(model).graph.node] == ["FusedConv"]
    x, p = np.ones((2, 4, 7, 6), np.float32), np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (y,) = ReferenceEvaluator(fused(model), new_ops=operators).run(None, {"x": x, "p": p})
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x, "p": p})
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_what_is_added_may_not_be_larger():
    model = graph_of("c = Conv(x, v) y = Add(c, p)")
    model.graph.input[1].type.tensor_type.ClearField("shape")
    x, p = np.ones((1, 4, 7, 6), np.float32), np.ones((2, 4, 7, 6), np.float32)
    with pytest.raises(
        convlib.UnsupportedError, match=r"fits the convolution's \(1, 4, 7, 6\) needed, got \(2, 4, 7, 6\)"
    ):
        ReferenceEvaluator(fused(model), new_ops=operators).run(None, {"x": x, "p": p})


@pytest.mark.parametrize("added", ["x", "five"])
def test_a_sequence_is_fused_too(added):
    text = '<ir_version: 8, opset_import: ["": 14]> g (float[2,4,9] x) => (float[2,4,9] y) '
    model = onnx.parser.parse_model(text + f"{{ c = Conv<pads=[1,1]>(x, w) s = Add({added}, c) y = Relu(s) }}")
    random = np.random.default_rng(2)
    w, x = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 4, 3), (2, 4, 9)))
    constants = {"w": w, "five": np.array(5, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    assert [node.op_type for node in fused(model).graph.node] == ["FusedConv"]
    (y,) = ReferenceEvaluator(fused(model), new_ops=operators).run(None, {"x": x})
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
