"""Complex numbers against the reference, which computes with them directly: exactly, on small integers."""

import os
import subprocess
import sys

import numpy as np
import pytest

import convlib
from convlib import UnsupportedError, accuracy, choosing, running
from convlib.kernels import reference
from convlib.problem import make_problem
from tests.convlib import cupy_on_host

SHAPES = [
    ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    ((1, 2, 8, 9), (3, 2, 3, 2), {"stride": 2, "padding": 1}),
    ((3, 2, 9, 7), (3, 2, 2, 3), {"stride": (3, 2), "padding": ((2, 0), (1, 3))}),
    ((1, 2, 11, 10), (2, 2, 3, 3), {"stride": 2, "dilation": (2, 3), "padding": 3}),
    ((2, 6, 6, 5), (4, 3, 3, 3), {"groups": 2, "padding": "same"}),
    ((2, 4, 7, 7), (8, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
]
IDS = [f"{x}_{w}_{k}".replace(" ", "") for x, w, k in SHAPES]
PLAIN = {"max_error": 1e-9}  # only kernels that sum products as they are: whole numbers stay exact
KINDS = {"image": (True, False), "weights": (False, True), "both": (True, True)}


def numbers(shape, is_complex=True, dtype=np.complex64, seed=0):
    """Small whole numbers, complex or only their real parts: float32 sums of their products are exact."""
    random = np.random.default_rng(seed)
    values = (random.integers(-3, 4, shape) + 1j * random.integers(-3, 4, shape)).astype(dtype)
    return values if is_complex else values.real.copy()


def problem_of(x, w, keywords):
    return make_problem(x, w, np.float32, **keywords)


@pytest.fixture
def ran(monkeypatch):
    """Every problem that a kernel was run for."""
    problems, run = [], running.run_kernel

    def noted(chosen, call):
        problems.append(call.problem)
        run(chosen, call)

    monkeypatch.setattr(running, "run_kernel", noted)
    return problems


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_conv2d_is_exact_with_bias_residual_and_out(x, w, keywords, kind, dtype):
    of_x, of_w = KINDS[kind]
    problem = problem_of(x, w, keywords)
    image, weights = numbers(x, of_x, dtype), numbers(w, of_w, dtype, 1)
    bias, residual = numbers(problem.K, True, dtype, 2), numbers(problem.y_shape, True, dtype, 3)
    out = np.full(problem.y_shape, np.nan, dtype)

    got = convlib.conv2d(image, weights, bias, residual=residual, out=out, **keywords, **PLAIN)

    assert got is out
    np.testing.assert_array_equal(got, reference.conv2d(problem, image, weights, bias, residual))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_both_gradients_are_the_adjoints(x, w, keywords, kind):
    of_other, of_grad = KINDS[kind]
    problem = problem_of(x, w, keywords)
    image, weights = numbers(x, of_other), numbers(w, of_other, seed=1)
    grad_y = numbers(problem.y_shape, of_grad, seed=2)
    by_x, by_w = np.full(x, np.nan, np.complex64), np.full(w, np.nan, np.complex64)

    assert convlib.conv2d_input_grad(grad_y, weights, x, out=by_x, **keywords, **PLAIN) is by_x
    assert convlib.conv2d_weight_grad(image, grad_y, w, out=by_w, **keywords, **PLAIN) is by_w

    np.testing.assert_array_equal(by_x, reference.input_grad(problem, grad_y, weights))
    np.testing.assert_array_equal(by_w, reference.weight_grad(problem, image, grad_y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("x", "w", "keywords"), SHAPES, ids=IDS)
def test_conv_transpose2d_conjugates_nothing(x, w, keywords, kind):
    of_x, of_w = KINDS[kind]
    problem = problem_of(x, w, keywords)
    keywords = keywords | {"padding": problem.padding}
    small, weights, bias = numbers(problem.y_shape, of_x), numbers(w, of_w, seed=1), numbers(problem.C, seed=2)
    plain = convlib.conv_transpose2d(small.real.copy(), weights.real.copy(), **keywords)
    spare = (problem.H - plain.shape[2], problem.W - plain.shape[3])
    residual, out = numbers(x, seed=3), np.full(x, np.nan, np.complex64)

    got = convlib.conv_transpose2d(
        small, weights, bias, output_padding=spare, residual=residual, out=out, **keywords, **PLAIN
    )  # fmt: skip

    assert got is out
    exact = reference.input_grad(problem, small, weights.conj()) + bias[:, None, None] + residual
    np.testing.assert_array_equal(got, exact)


def test_a_real_operand_takes_half_the_work_and_every_call_is_one(ran):
    """Images and filters are doubled where they are complex, and nothing else."""
    x, w, y = (2, 3, 7, 6), (4, 3, 3, 3), (2, 4, 5, 4)
    for of_x, of_w in KINDS.values():
        convlib.conv2d(numbers(x, of_x), numbers(w, of_w))
        convlib.conv2d_input_grad(numbers(y, of_x), numbers(w, of_w), x)
        convlib.conv2d_weight_grad(numbers(x, of_w), numbers(y, of_x), w)
    sizes = [(p.N, p.C, p.K) for p in ran]
    # The input gradient is a forward problem on w with channels and filters exchanged.
    assert sizes[0::3] == [(4, 3, 4), (2, 3, 8), (4, 3, 8)]
    assert sizes[1::3] == [(4, 4, 3), (2, 4, 6), (4, 4, 6)]
    assert sizes[2::3] == [(2, 3, 8), (2, 6, 4), (2, 6, 8)]


def test_a_real_operand_of_the_right_dtype_is_not_even_copied(monkeypatch):
    x, w = numbers((2, 3, 7, 6)), numbers((4, 3, 3, 3), False)
    seen = []
    monkeypatch.setattr(running, "run_kernel", lambda chosen, call: seen.append(call.w))
    convlib.conv2d(x, w)
    assert np.shares_memory(seen[0], w)


NAMES = ("float16", "float32", "float64", "complex64", "complex128")
PAIRS = [(a, b) for a in NAMES for b in NAMES if "complex" in a + b]


@pytest.mark.parametrize(("of_x", "of_w"), PAIRS, ids=lambda name: name)
def test_the_results_dtype_is_numpys(of_x, of_w):
    x = numbers((1, 2, 5, 5), "complex" in of_x).astype(of_x)
    w = numbers((3, 2, 2, 2), "complex" in of_w, seed=1).astype(of_w)
    y = convlib.conv2d(x, w)
    assert y.dtype == np.result_type(x, w)
    np.testing.assert_array_equal(y, reference.conv2d(problem_of(x.shape, w.shape, {}), x, w))
    assert convlib.conv_transpose2d(x, w.swapaxes(0, 1)).dtype == y.dtype
    assert convlib.conv2d_input_grad(y, w, x.shape).dtype == y.dtype
    assert convlib.conv2d_weight_grad(x, y, w.shape).dtype == y.dtype


def test_a_wider_bias_widens_the_result():
    x, w = numbers((1, 2, 5, 5)), numbers((3, 2, 2, 2), seed=1)
    assert convlib.conv2d(x, w, np.ones(3)).dtype == np.complex128
    np.testing.assert_array_equal(convlib.conv2d(x, w, np.ones(3)), convlib.conv2d(x, w) + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI", "HWIO"])
def test_every_layout_flipped_and_in_groups(layout, weight_layout, kind):
    of_x, of_w = KINDS[kind]
    keywords = {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2}
    problem = problem_of((2, 4, 7, 8), (6, 2, 3, 2), keywords)
    x, w, y = numbers(problem.x_shape, of_x), numbers(problem.w_shape, of_w, seed=1), numbers(problem.y_shape, seed=2)
    bias = numbers(6, seed=3)
    order, weight_order = (tuple(map(a.index, b)) for a, b in (("NCHW", layout), ("OIHW", weight_layout)))
    call = keywords | {"layout": layout, "weight_layout": weight_layout, "flip_kernel": True}
    stored, turned = w.transpose(weight_order), w[:, :, ::-1, ::-1]

    got = convlib.conv2d(x.transpose(order), stored, bias, **call)
    np.testing.assert_array_equal(got, reference.conv2d(problem, x, turned, bias).transpose(order))
    shape = tuple(problem.x_shape[a] for a in order)
    got = convlib.conv2d_input_grad(y.transpose(order), stored, shape, **call)
    np.testing.assert_array_equal(got, reference.input_grad(problem, y, turned).transpose(order))
    got = convlib.conv2d_weight_grad(x.transpose(order), y.transpose(order), stored.shape, **call)
    exact = reference.weight_grad(problem, x, y)[:, :, ::-1, ::-1]
    np.testing.assert_array_equal(got, exact.transpose(weight_order))
    del call["padding"]
    got = convlib.conv_transpose2d(y.transpose(order), stored, numbers(4, seed=4), **call)
    whole = problem_of((2, 4, 7, 10), (6, 2, 3, 2), {"stride": 2, "groups": 2})
    exact = reference.input_grad(whole, y, turned.conj()) + numbers(4, seed=4)[:, None, None]
    np.testing.assert_array_equal(got, exact.transpose(order))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_and_their_adjoint(mode):
    """<conv(pad(x)), y> = <x, grad(y)>, exactly: NumPy's vdot conjugates its first argument."""
    x, w = numbers((2, 2, 4, 5)), numbers((3, 2, 2, 3), seed=1)
    call = {"padding": ((2, 1), (1, 3)), "padding_mode": mode}
    y = convlib.conv2d(x, w, **call)
    parts = [(a.real.copy(), a.imag.copy()) for a in (x, w)]
    of_parts = [[convlib.conv2d(a, b, **call) for b in parts[1]] for a in parts[0]]
    np.testing.assert_array_equal(y.real, of_parts[0][0] - of_parts[1][1])
    np.testing.assert_array_equal(y.imag, of_parts[0][1] + of_parts[1][0])
    grad_y = numbers(y.shape, seed=2)
    assert np.vdot(grad_y, y) == np.vdot(convlib.conv2d_input_grad(grad_y, w, x.shape, **call), x)
    assert np.vdot(grad_y, y) == np.vdot(convlib.conv2d_weight_grad(x, grad_y, w.shape, **call), w)


def test_one_image_without_a_batch_and_an_empty_batch():
    x, w = numbers((2, 5, 6)), numbers((3, 2, 2, 2), seed=1)
    bias, residual = numbers(3), numbers((3, 4, 5))
    y = convlib.conv2d(x, w, bias, residual=residual)
    np.testing.assert_array_equal(y, convlib.conv2d(x[None], w, bias, residual=residual[None])[0])
    by_x, by_w = convlib.conv2d_input_grad(y, w, x.shape), convlib.conv2d_weight_grad(x, y, w.shape)
    np.testing.assert_array_equal(by_x, convlib.conv2d_input_grad(y[None], w, (1, *x.shape))[0])
    np.testing.assert_array_equal(by_w, convlib.conv2d_weight_grad(x[None], y[None], w.shape))
    assert convlib.conv_transpose2d(y, w).shape == (2, 5, 6)
    assert convlib.conv2d(x[None][:0], w).shape == (0, 3, 4, 5)
    assert not convlib.conv2d_weight_grad(x[None][:0], y[None][:0], w.shape).any()


def test_inputs_are_read_where_they_lie_and_never_written():
    x, w = numbers((2, 8, 9, 12))[:, ::2, ::-1, ::2], numbers((4, 3, 3, 4), seed=1).transpose(0, 3, 1, 2)
    for array in (x, w):
        array.flags.writeable = False
    np.testing.assert_array_equal(convlib.conv2d(x, w), reference.conv2d(problem_of(x.shape, w.shape, {}), x, w))
    out = np.full((2, 4, 14, 4), np.nan, np.complex64)[:, :, ::2, ::-1]
    np.testing.assert_array_equal(convlib.conv2d(x, w, out=out), convlib.conv2d(x, w))


def test_the_bias_gradient_sums_both_parts():
    grad_y = numbers((2, 3, 4, 5))
    got = convlib.conv2d_bias_grad(grad_y)
    assert got.dtype == np.complex64
    np.testing.assert_array_equal(got, grad_y.sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("algorithm", ["direct", "blocked", "winograd_f4"])
@pytest.mark.parametrize("C", [1, 3, 64])
def test_the_error_stays_within_the_real_contract(algorithm, C, dtype):
    random = np.random.default_rng(0)
    shapes = (2, C, 24, 24), (8, C, 3, 3)
    x, w = (random.standard_normal((*shape, 2)).view(np.complex128)[..., 0].astype(dtype) for shape in shapes)
    problem = make_problem(x.shape, w.shape, x.real.dtype, padding=1)
    y = convlib.conv2d(x, w, padding=1, algorithm=algorithm, max_error=1)
    exact = reference.conv2d(problem, x, w)
    assert np.linalg.norm(y - exact) / np.linalg.norm(exact) <= accuracy.norm_relative(problem, algorithm)
    magnitude = reference.conv2d(problem, abs(x.real) + abs(x.imag), abs(w.real) + abs(w.imag))
    assert np.all(abs(y - exact) <= accuracy.elementwise(problem, algorithm, magnitude, exact))


# What is refused, and that nothing was written by then


X, W = numbers((1, 2, 5, 5)), numbers((3, 2, 2, 2), seed=1)
REFUSED = [
    ({"activation": "relu"}, ValueError, "^activation: None needed with complex numbers, which have no order .*'relu'"),
    ({"activation": ("leaky_relu", 0.1)}, ValueError, "^activation: None needed with complex numbers"),
    ({"out": np.zeros((1, 3, 4, 4), np.float32)}, TypeError,
     "^out: complex64 needed for x in complex64, w in complex64, got float32$"),
    ({"out": np.zeros((1, 3, 4, 4), np.complex128)}, TypeError, "^out: complex64 needed .* got complex128$"),
    ({"out": np.zeros((1, 3, 4, 5), np.complex64)}, ValueError,
     r"^out: shape \(1, 3, 4, 4\) needed, got \(1, 3, 4, 5\)$"),
    ({"bias": np.zeros(2, np.complex64)}, ValueError, r"^bias: shape \(3,\) needed, got \(2,\)$"),
    ({"residual": np.zeros((1, 3, 4, 5), np.complex64)}, ValueError, r"^residual: shape \(1, 3, 4, 4\) needed"),
    ({"w": np.zeros((3, 3, 2, 2), np.complex64)}, ValueError, r"^w: C / groups = 2 input channels needed .* got 3$"),
    ({"w": W.real.astype(np.int32)}, TypeError, "^w: complex64, complex128, float16, .* needed .* got int32$"),
    ({"w": W.astype(">c8")}, TypeError, "^w: .* got complex64 in foreign byte order$"),
    ({"groups": 2}, ValueError, r"^groups: must divide K = 3 \(the filters of w\), got 2$"),
    ({"workspace_limit": 100}, UnsupportedError,
     "^workspace_limit: 1,360 bytes needed for blocks of real and imaginary parts alone, got 100$"),
    ({"padding_mode": "mirror"}, ValueError, "^padding_mode: one of "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[m.partition(":")[0][1:] for _, _, m in REFUSED])
def test_what_is_wrong_is_named_and_out_is_untouched(change, error, message):
    call = {"x": X, "w": W, "out": np.full((1, 3, 4, 4), 7 + 7j, np.complex64)} | change
    before = call["out"].copy()
    with pytest.raises(error, match=message):
        convlib.conv2d(**call)
    np.testing.assert_array_equal(call["out"], before)


def test_out_may_be_neither_read_only_nor_over_an_input():
    memory = np.zeros(100, np.complex64)
    x = memory[:50].reshape(1, 2, 5, 5)
    with pytest.raises(ValueError, match="^out: memory apart from every input needed, but it overlaps x$"):
        convlib.conv2d(x, W, out=memory[40:88].reshape(1, 3, 4, 4))
    out = np.zeros((1, 3, 4, 4), np.complex64)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="^out: a writeable array needed"):
        convlib.conv2d(X, W, out=out)


def test_a_complex_bias_on_real_operands_is_refused():
    with pytest.raises(TypeError, match="^bias: float32 needed, like x, got complex64"):
        convlib.conv2d(X.real.copy(), W.real.copy(), numbers(3))


def test_a_plan_of_complex_weights_is_refused():
    with pytest.raises(TypeError, match="^w: real weights needed for a plan, got complex64; conv2d takes complex"):
        convlib.plan(X.shape, W)


def test_the_workspace_limit_counts_the_blocks_and_leaves_the_rest_to_the_kernel(monkeypatch):
    given, chosen = [], choosing.chosen
    monkeypatch.setattr(choosing, "chosen", lambda *a, **k: (given.append(a[5]), chosen(*a, **k))[1])
    convlib.conv2d(X, W, workspace_limit=1_000_000)
    x, w, y = X.size * 2, W.size * 2, 48 * 4
    assert given == [1_000_000 - 4 * (x + w + y)]


@pytest.mark.parametrize("padding", [{}, {"padding": 1, "padding_mode": "reflect"}], ids=["", "reflect"])
@pytest.mark.parametrize(("x", "w"), [(X, W), (X, W.real.copy()), (X.real.copy(), W)], ids=["both", "x", "w"])
def test_explain_leaves_to_kernels_what_a_call_leaves(x, w, padding, monkeypatch):
    given, chosen = [], choosing.chosen
    monkeypatch.setattr(choosing, "chosen", lambda *a, **k: (given.append(a[5]), chosen(*a, **k))[1])
    convlib.conv2d(x, w, **padding, workspace_limit=2_000_000)
    assert given == [convlib.explain(x, w, **padding, workspace_limit=2_000_000).workspace_limit]
    assert given[0] < 2_000_000


def test_explain_shows_the_real_call():
    explanation = convlib.explain(X, W, numbers(3), padding=1)
    assert (explanation.complex_dtype, explanation.problem.N, explanation.problem.K) == ("complex64", 2, 6)
    assert str(explanation).splitlines()[2].startswith("for complex64: real and imaginary parts are blocks")
    assert explanation == convlib.explain(X.shape, W.shape, True, dtype="complex64", padding=1)
    assert convlib.explain(X, W.real.copy()).problem.K == 3
    assert convlib.explain(X.real.copy(), W).problem.N == 1
    assert convlib.explain(X.shape, W) == convlib.explain(X, W), "a shape is of the dtype of the array beside it"
    assert convlib.explain(X.shape, W, dtype="float32") == convlib.explain(X.real.copy(), W)
    assert convlib.explain(X, W.shape, dtype="float32") == convlib.explain(X, W.real.copy())
    assert convlib.explain(X.real.copy(), W.shape, dtype="complex64") == convlib.explain(X.real.copy(), W)
    with pytest.raises(TypeError, match="^dtype: complex64, as x has it, or none needed, got float32$"):
        convlib.explain(X, W, dtype="float32")
    with pytest.raises(ValueError, match="^activation: None needed"):
        convlib.explain(X, W, activation="relu")


def test_the_kernel_that_explain_names_is_the_one_that_runs(ran):
    explanation = convlib.explain(X, W, padding=1)
    convlib.conv2d(X, W, padding=1)
    assert ran == [explanation.problem]


# Every library


@pytest.mark.parametrize("kind", KINDS)
def test_cupy_arrays_by_their_stand_in(monkeypatch, kind):
    of_x, of_w = KINDS[kind]
    problems = cupy_on_host.install(monkeypatch)
    x, w, bias = numbers((2, 4, 7, 6), of_x), numbers((6, 2, 3, 3), of_w, seed=1), numbers(6, seed=2)
    x, w = x[:, :, ::-1], w.transpose(0, 1, 3, 2)
    over, call = cupy_on_host.over, {"groups": 2, "padding": 1} | PLAIN

    y = convlib.conv2d(over(x), over(w), over(bias), residual=over(numbers((2, 6, 7, 6))), **call)
    by_x = convlib.conv2d_input_grad(y, over(w), x.shape, **call)
    by_w = convlib.conv2d_weight_grad(over(x), y, w.shape, **call)
    transposed = convlib.conv_transpose2d(y, over(w), **call)

    assert {type(array) for array in (y, by_x, by_w, transposed)} == {cupy_on_host.ndarray}
    assert all(problem.dtype == np.float32 for problem in problems)
    exact = convlib.conv2d(x, w, bias, residual=numbers((2, 6, 7, 6)), **call)
    np.testing.assert_array_equal(y.host, exact)
    np.testing.assert_array_equal(by_x.host, convlib.conv2d_input_grad(exact, w, x.shape, **call))
    np.testing.assert_array_equal(by_w.host, convlib.conv2d_weight_grad(x, exact, w.shape, **call))
    np.testing.assert_array_equal(transposed.host, convlib.conv_transpose2d(exact, w, **call))


def test_cupy_out_is_written_in_place(monkeypatch):
    cupy_on_host.install(monkeypatch)
    out = np.full((1, 3, 4, 4), np.nan, np.complex64)
    convlib.conv2d(cupy_on_host.over(X), cupy_on_host.over(W), out=cupy_on_host.over(out))
    np.testing.assert_array_equal(out, convlib.conv2d(X, W))


def test_torch_tensors_and_their_memory_order():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    y = convlib.conv2d(x, w)
    assert y.dtype == torch.complex64
    np.testing.assert_array_equal(y.numpy(), convlib.conv2d(X, W))
    assert convlib.conv2d(x.real.double(), w).dtype == torch.complex128
    last = convlib.conv2d(x.to(memory_format=torch.channels_last), w)
    assert last.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(last.numpy(), y.numpy())
    out = torch.empty_like(y)
    assert convlib.conv2d(x, w, out=out) is out
    np.testing.assert_array_equal(out.numpy(), y.numpy())
    with pytest.raises(TypeError, match=r"^w: a tensor in memory as it reads needed; pass w.resolve_conj\(\)$"):
        convlib.conv2d(x, w.conj())


def test_jax_arrays():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    y = convlib.conv2d(jax.numpy.asarray(X), jax.numpy.asarray(W))
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, convlib.conv2d(X, W))


SIMULATED = """
import numpy as np
from numba import cuda
import convlib
x = (np.arange(50) + 2j * np.arange(50)[::-1]).astype(np.complex64).reshape(1, 2, 5, 5)
w = (np.arange(24) - 1j * np.arange(24)).astype(np.complex64).reshape(3, 2, 2, 2)
wanted = convlib.conv2d(x, w)
np.testing.assert_array_equal(convlib.conv2d(cuda.to_device(x), cuda.to_device(w)).copy_to_host(), wanted)
np.testing.assert_array_equal(convlib.conv2d(x, w, backend="numba_cuda"), wanted)
by_x = convlib.conv2d_input_grad(cuda.to_device(wanted), cuda.to_device(w), x.shape).copy_to_host()
np.testing.assert_array_equal(by_x, convlib.conv2d_input_grad(wanted, w, x.shape))
print("done")
"""


def test_numba_device_arrays_in_the_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", SIMULATED], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("backend", ["numba_cuda", "cupy_raw"])
def test_gpu_kernels_in_the_emulator(monkeypatch, backend):
    for package in ("cuda.bindings.nvrtc", "numba.cuda", "cupy"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra cuda13)")
    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    y = convlib.conv2d(X, W, backend=backend)
    np.testing.assert_array_equal(y, convlib.conv2d(X, W))
