"""The JAX adapter: values, derivatives of both orders and modes, and what jit, vmap and tracing make of it."""

import re
from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")

from jax import numpy as jnp  # noqa: E402
from jax.sharding import AbstractMesh, PartitionSpec  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import convlib.jax  # noqa: E402
from convlib.jax import conv2d, conv_transpose2d  # noqa: E402

PARAMETERS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": ((1, 0), (0, 2))},
    {"padding": "same", "stride": 2},
    {"layout": "NHWC", "weight_layout": "HWIO", "padding": 1},
    {"layout": "NHWC", "weight_layout": "OHWI", "groups": 2},
]
TRANSPOSED = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"groups": 2, "dilation": 2},
    {"stride": (3, 2), "padding": ((1, 0), (0, 1))},
    {"stride": 1, "dilation": 3, "output_padding": (2, 1)},
    {"padding": "same", "stride": 2},
    {"layout": "NHWC", "weight_layout": "HWIO", "stride": 2, "output_padding": 1},
]


def spelled(parameters):
    return ",".join(f"{k}={v}" for k, v in parameters.items()).replace(" ", "") or "plain"


def in_order(array, source, wanted):
    return np.ascontiguousarray(array.transpose([source.index(letter) for letter in wanted]))


def arrays(parameters, dtype=np.float32, transposed=False):
    """x, w and bias of small integers, in the layouts that `parameters` name: float32 sums of them are exact."""
    random, groups = np.random.default_rng(0), parameters.get("groups", 1)
    w_shape = (4, 6 // groups, 3, 2) if transposed else (6, 4 // groups, 3, 2)
    x, w, bias = (random.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 4, 6, 7), w_shape, (6,)))
    x = in_order(x, "NCHW", parameters.get("layout", "NCHW"))
    w = in_order(w, "OIHW", parameters.get("weight_layout", "OIHW"))
    return [jnp.asarray(a).astype(dtype) for a in (x, w, bias)]


def by_lax(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW", weight_layout="OIHW"):
    """The same convolution by JAX itself."""
    stride, dilation = (value if isinstance(value, tuple) else (value, value) for value in (stride, dilation))
    if isinstance(padding, int):
        padding = (padding, padding)
    if not isinstance(padding, str):
        padding = tuple(p if isinstance(p, tuple) else (p, p) for p in padding)
    y = jax.lax.conv_general_dilated(
        x, w, stride, padding.upper() if isinstance(padding, str) else padding, rhs_dilation=dilation,
        dimension_numbers=(layout, weight_layout, layout), feature_group_count=groups,
    )  # fmt: skip
    return y if bias is None else y + (bias[:, None, None] if layout == "NCHW" else bias)


def transposed_by_lax(x, w, bias=None, *, output_padding=0, **parameters):
    """What JAX's own gradient by the input of its convolution makes of x."""
    layout = parameters.get("layout", "NCHW")
    shape = jax.eval_shape(
        partial(conv_transpose2d, output_padding=output_padding, **parameters), x, w
    ).shape  # the arithmetic of the sizes has tests of its own, against PyTorch
    if parameters.get("padding") == "same":
        assert shape == (2, 6, *(size * parameters["stride"] for size in x.shape[2:]))
    y, back = jax.vjp(lambda of: by_lax(of, w, **parameters), jnp.zeros(shape, x.dtype))
    grown = jnp.pad(x, [(0, wanted - size) for wanted, size in zip(y.shape, x.shape)])
    (y,) = back(grown)
    return y if bias is None else y + (bias[:, None, None] if layout == "NCHW" else bias)


CALLS = [(conv2d, by_lax, p) for p in PARAMETERS] + [(conv_transpose2d, transposed_by_lax, p) for p in TRANSPOSED]
IDS = [f"{ours.__name__}-{spelled(p)}" for ours, _, p in CALLS]


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("ours", "theirs", "parameters"), CALLS, ids=IDS)
def test_values_and_gradients_are_jaxs(ours, theirs, parameters, jitted):
    given = arrays(parameters, transposed=ours is conv_transpose2d)
    wrap = jax.jit if jitted else lambda function: function
    y, back = jax.vjp(wrap(partial(ours, **parameters)), *given)
    wanted, wanted_back = jax.vjp(partial(theirs, **parameters), *given)
    np.testing.assert_array_equal(y, wanted)
    grad = jnp.asarray(np.random.default_rng(1).integers(-3, 4, y.shape), jnp.float32)
    for mine, their in zip(back(grad), wanted_back(grad), strict=True):
        np.testing.assert_array_equal(mine, their)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(("ours", "theirs", "parameters"), CALLS, ids=IDS)
def test_derivatives_of_both_orders_and_modes_agree_with_finite_differences(ours, theirs, parameters, x64):
    x, w, bias = arrays(parameters, np.float64, transposed=ours is conv_transpose2d)
    one = x[:1]
    check_grads(partial(ours, **parameters), (one / 4, w / 4, bias), order=2, modes=["fwd", "rev"], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_keeps_its_dtype(dtype, x64):
    exact = arrays({}, np.float64)
    given = [a.astype(dtype) for a in exact]
    y, back = jax.vjp(jax.jit(partial(conv2d, padding=1)), *given)
    wanted, wanted_back = jax.vjp(partial(by_lax, padding=1), *exact)
    grad = jnp.ones_like(wanted)
    bound = {"float16": 2e-3, "bfloat16": 1.6e-2}.get(dtype, 1e-12 if dtype == "float64" else 1e-6)
    for mine, their in zip((y, *back(grad.astype(dtype))), (wanted, *wanted_back(grad)), strict=True):
        assert mine.dtype == dtype
        error = np.linalg.norm(np.float64(mine) - their) / np.linalg.norm(their)
        assert error < bound


@pytest.fixture
def calls(monkeypatch):
    """The primitives that ran, by the name of what they give."""
    seen, run = [], convlib.jax.Callback.run

    def counted(self, *buffers):
        seen.append(self.result)
        run(self, *buffers)

    monkeypatch.setattr(convlib.jax.Callback, "run", counted)
    return seen


def stacked(array, axis, count=3):
    return array if axis is None else jnp.stack([array + i for i in range(count)], axis)


VMAPS = [(0, None), (None, 0), (0, 0), (1, None), (None, 4), (3, 2)]
LAYOUTS = [
    {},
    {"groups": 2},
    {"layout": "NHWC", "weight_layout": "HWIO"},
    {"layout": "NHWC", "weight_layout": "HWIO", "groups": 2},
]


@pytest.mark.parametrize("parameters", LAYOUTS, ids=spelled)
@pytest.mark.parametrize("in_axes", VMAPS, ids=str)
def test_vmap_is_a_loop_in_one_call(in_axes, parameters, calls):
    x, w, _ = arrays(parameters)
    given = [stacked(array, axis) for array, axis in zip((x, w), in_axes)]
    for wrap in (lambda function: function, jax.jit):
        calls.clear()
        y = wrap(jax.vmap(partial(conv2d, stride=2, padding=1, **parameters), in_axes))(*given).block_until_ready()
        assert calls == ["y"]
        np.testing.assert_array_equal(y, jax.vmap(partial(by_lax, stride=2, padding=1, **parameters), in_axes)(*given))


@pytest.mark.parametrize("parameters", LAYOUTS, ids=spelled)
@pytest.mark.parametrize("in_axes", VMAPS, ids=str)
@pytest.mark.parametrize("by", [0, 1], ids=["by_x", "by_w"])
def test_vmap_of_a_gradient_is_a_loop_in_two_calls(by, in_axes, parameters, calls):
    def gradient(function):
        return jax.grad(lambda x, w: (function(x, w, padding=1, **parameters) ** 2).sum(), by)

    x, w, _ = arrays(parameters)
    given = [stacked(array, axis) for array, axis in zip((x, w), in_axes)]
    got = jax.jit(jax.vmap(gradient(conv2d), in_axes))(*given).block_until_ready()
    assert sorted(calls) == sorted(["y", "xw"[by]])
    np.testing.assert_array_equal(got, jax.vmap(gradient(by_lax), in_axes)(*given))


def test_precision_reaches_every_derivative(monkeypatch):
    asked = {}
    for name, function in convlib.jax.KERNELS.items():

        def noted(*arguments, name=name, function=function, precision, **parameters):
            asked[name] = precision
            return function(*arguments, precision=precision, **parameters)

        monkeypatch.setitem(convlib.jax.KERNELS, name, noted)
    x, w, _ = arrays({})
    for precision in ("tf32", None):
        total = partial(lambda precision, x, w: conv2d(x, w, precision=precision).sum(), precision)
        jax.block_until_ready(jax.grad(total, (0, 1))(x, w))
        assert asked == {"y": precision, "x": precision, "w": precision}


def test_vmaps_nest(calls):
    x, w, _ = arrays({"groups": 2})
    xs, ws = stacked(x, 0, 2), stacked(w, 0, 3)

    def nested(function):
        inner = jax.vmap(partial(function, groups=2, padding=1), (0, None))
        return jax.vmap(inner, (None, 0))(xs, ws)

    np.testing.assert_array_equal(nested(conv2d), nested(by_lax))
    assert calls == ["y"]


def test_vmap_of_the_transposed_is_a_loop():
    x, w, bias = arrays({}, transposed=True)
    xs, ws, biases = stacked(x, 1), stacked(w, 0), stacked(bias, 0)
    one = partial(conv_transpose2d, stride=2, output_padding=1)
    got = jax.vmap(one, (1, 0, 0))(xs, ws, biases)
    for i in range(3):
        np.testing.assert_array_equal(got[i], one(xs[:, i], ws[i], biases[i]))


def test_vmap_over_nothing_gives_nothing():
    x, w, _ = arrays({})
    assert jax.vmap(conv2d)(x[None][:0], w[None][:0]).shape == (0, 2, 6, 4, 6)
    assert jax.jit(jax.vmap(conv2d, (0, None)))(x[None][:0], w).shape == (0, 2, 6, 4, 6)


def test_gradients_of_each_image_are_taken_in_two_calls(calls):
    x, w, _ = arrays({})

    def loss(w, image):
        return (conv2d(image, w) ** 2).sum()

    got = jax.vmap(jax.grad(loss), (None, 0))(w, x)
    assert calls == ["y", "w"]
    for i in range(2):
        np.testing.assert_array_equal(got[i], jax.grad(loss)(w, x[i]))


def test_shapes_and_dtypes_are_known_without_running(calls):
    x, w = jax.ShapeDtypeStruct((8, 3, 32, 32), jnp.bfloat16), jax.ShapeDtypeStruct((16, 3, 5, 5), jnp.bfloat16)
    y = jax.eval_shape(partial(conv2d, stride=2), x, w)
    assert (y.shape, y.dtype) == ((8, 16, 14, 14), jnp.bfloat16)
    assert calls == []


def test_one_image_and_no_images():
    x, w, bias = arrays({})
    np.testing.assert_array_equal(conv2d(x[0], w, bias), by_lax(x, w, bias)[0])
    y, back = jax.vjp(conv2d, x[:0], w, bias)
    assert y.shape == (0, 6, 4, 6)
    assert [g.shape for g in back(y)] == [(0, 4, 6, 7), w.shape, bias.shape]
    assert not np.any(back(y)[1])


def test_numpy_arrays_are_taken_and_jax_arrays_come_back():
    y = conv2d(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3), np.float32))
    assert isinstance(y, jax.Array)
    assert y.item() == 9


def test_inputs_are_not_written_and_results_are_not_shared():
    x, w, _ = arrays({})
    before = np.array(x)
    f = jax.jit(conv2d)
    first = f(x, w)
    kept = np.array(first)
    f(x + 1, w).block_until_ready()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("split", ["x", "w"])
def test_under_shard_map_a_gradient_is_summed_over_the_devices_that_share_its_array(split, calls):
    """Traced for two devices: what is summed over them, and so is the gradient of what both of them have."""
    over, whole = PartitionSpec("devices"), PartitionSpec()
    specs = ((over, whole), over) if split == "x" else ((whole, over), PartitionSpec(None, "devices"))
    mesh = AbstractMesh((2,), ("devices",))

    def summed(function):
        shared = jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
        trace = jax.make_jaxpr(jax.grad(lambda x, w: (shared(x, w) ** 2).sum(), (0, 1)))(x, w)
        return re.findall(r":(\S+) = psum", str(trace))

    x, w, _ = arrays({})
    assert summed(conv2d) == summed(by_lax) == [{"x": "f32[6,4,3,2]", "w": "f32[2,4,6,7]"}[split]]
    assert calls == []


def network(function, x, weights):
    for w in weights:
        x = jax.nn.relu(function(x, w, padding=1))
    return x.mean()


def test_a_deep_chain_on_large_arrays_neither_hangs_nor_differs():
    """Callbacks that take jax.Arrays wait for the thread they run on once arrays are large; ours take buffers."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 8, 192, 192)), jnp.float32)
    weights = [jnp.asarray(random.standard_normal((8, 8, 3, 3)) / 6, jnp.float32) for _ in range(6)]
    got = [jax.jit(jax.value_and_grad(partial(network, conv2d), 1))(x, weights) for _ in range(5)][-1]
    wanted = jax.value_and_grad(partial(network, by_lax), 1)(x, weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), got, wanted)


def test_trains_inside_a_scan():
    x, w, _ = arrays({})
    wanted = by_lax(x, w)

    def trained(function):
        def loss(v):
            return ((function(x, v) - wanted) ** 2).mean()

        def step(v, _):
            value, grad = jax.value_and_grad(loss)(v)
            return v - 0.03 * grad, value

        return jax.jit(lambda v: jax.lax.scan(step, v, length=20)[1])(jnp.zeros_like(w))

    losses = trained(conv2d)
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(losses, trained(by_lax), rtol=1e-4)


X, W = np.ones((1, 4, 5, 5), np.float32), np.ones((6, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "parameters", "error", "message"),
    [
        (([1.0], W), {}, TypeError, "x: a JAX or NumPy array needed, got builtins.list"),
        ((X, W.astype(np.float16)), {}, TypeError, "w: float32 needed, like x, got float16; convlib never converts"),
        ((X, W, np.ones(6, np.float16)), {}, TypeError, "bias: float32 needed, like x, got float16"),
        ((X.astype(int), W.astype(int)), {}, TypeError, "x: dtype must be one of float16, bfloat16, float32, float64"),
        ((X, W[:, :3]), {}, ValueError, "w: C / groups = 4 input channels needed"),
        ((X, W, np.ones(4, np.float32)), {}, ValueError, r"bias: shape \(6,\) needed, got \(4,\)"),
        ((X[0, 0], W), {}, ValueError, "x: 4 dimensions needed"),
        ((X, W), {"stride": 0}, ValueError, "stride: at least 1"),
        ((X, W), {"padding": "full"}, ValueError, "padding: one of 'valid', 'same' needed, got 'full'"),
        ((X, W), {"layout": "CHWN"}, ValueError, "layout: one of 'NCHW', 'NHWC' needed, got 'CHWN'"),
    ],
)
def test_errors_are_raised_while_tracing_and_name_the_argument(arguments, parameters, error, message, calls):
    function = partial(conv2d, **parameters)
    with pytest.raises(error, match=message):
        function(*arguments)
    if error is ValueError:
        with pytest.raises(error, match=message):
            jax.jit(function)(*arguments)
    assert calls == []


def test_transposed_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"w: along O of OIHW it must have x's C = 4, got 6"):
        conv_transpose2d(X, W)
    with pytest.raises(ValueError, match=r"output_padding: less than stride or dilation needed, got 2"):
        conv_transpose2d(X, W[:4], stride=2, output_padding=2)
    with pytest.raises(ValueError, match=r"bias: shape \(4,\) needed, got \(6,\)"):
        conv_transpose2d(X, W[:4], np.ones(6, np.float32))


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_values_and_gradients():
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no GPU")
    pytest.importorskip("cupy", reason="on a GPU convlib.jax needs CuPy")
    given = arrays({})
    y, back = jax.vjp(jax.jit(partial(conv2d, padding=1)), *given)
    wanted, wanted_back = jax.vjp(partial(by_lax, padding=1), *given)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)
    for mine, their in zip(back(y), wanted_back(y), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-4)


# Complex numbers


@pytest.mark.parametrize("parameters", PARAMETERS, ids=spelled)
def test_complex_values_and_gradients_are_jaxs_own(parameters):
    """JAX's gradient does not conjugate, convlib's does: they meet in the middle."""
    x, w, bias = (a + 1j * a[::-1] for a in arrays(parameters))
    ours, theirs = (partial(f, **parameters) for f in (conv2d, by_lax))
    np.testing.assert_array_equal(ours(x, w, bias), theirs(x, w, bias))

    def loss(function, *operands):
        return (jnp.abs(function(*operands)) ** 2 / 64).sum()

    got, wanted = (jax.grad(partial(loss, f), (0, 1, 2))(x, w, bias) for f in (ours, theirs))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_complex_transposed_values_and_derivatives():
    x, w, _ = (a + 1j * a[::-1] for a in arrays({"groups": 2}, transposed=True))
    call = {"stride": 2, "groups": 2}
    exact = convlib.conv_transpose2d(np.asarray(x), np.asarray(w), **call)
    np.testing.assert_array_equal(conv_transpose2d(x, w, **call), exact)
    check_grads(partial(conv_transpose2d, **call), (x[:1, :, :2, :2], w), 2, atol=0.2, rtol=0.2)


def test_complex_numbers_beside_real_ones_are_refused_as_jax_refuses_them():
    x, w, _ = arrays({})
    with pytest.raises(TypeError, match="^w: complex64 needed, like x, got float32"):
        conv2d(x + 0j, w)
