"""The definition itself, held against SciPy's correlate2d, which shares no code with it."""

import numpy as np
import pytest
from scipy.signal import correlate2d

from convlib.kernels import reference
from convlib.problem import make_problem


@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_is_scipys_correlation_summed_over_channels(stride, dilation, groups):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 4, 11, 12)), random.standard_normal((8, 4 // groups, 3, 2))
    problem = make_problem(
        x.shape, w.shape, x.dtype, stride=stride, padding=((2, 1), (0, 3)), dilation=dilation, groups=groups
    )

    y = reference.conv2d(problem, x, w)

    padded = np.pad(x, ((0, 0), (0, 0), (2, 1), (0, 3)))
    window = np.zeros((8, 4 // groups, problem.dilation[0] * 2 + 1, problem.dilation[1] + 1))
    window[:, :, :: problem.dilation[0], :: problem.dilation[1]] = w
    for n in range(2):
        for k in range(8):
            first = k // problem.Kg * problem.Cg
            full = sum(correlate2d(padded[n, first + c], window[k, c], mode="valid") for c in range(problem.Cg))
            np.testing.assert_allclose(
                y[n, k], full[:: problem.stride[0], :: problem.stride[1]], rtol=1e-12, atol=1e-12
            )


def test_adds_bias_and_residual_before_the_activation():
    problem = make_problem(
        (1, 1, 1, 2), (1, 1, 1, 1), np.dtype(np.float64), has_bias=True, has_residual=True, activation="relu"
    )
    y = reference.conv2d(
        problem, np.array([[[[2.0, -2.0]]]]), np.ones((1, 1, 1, 1)), np.array([1.0]), np.array([[[[-1.0, -1.0]]]])
    )
    np.testing.assert_array_equal(y, [[[[2.0, 0.0]]]])


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        ("relu", [0, 0, 7]),
        ("relu6", [0, 0, 6]),
        (("leaky_relu", 0.5), [-1, 0, 7]),
        ("silu", [-0.2384058, 0, 6.9936222]),
    ],
    ids=str,
)
def test_activations(activation, wanted):
    problem = make_problem((1, 1, 1, 3), (1, 1, 1, 1), np.dtype(np.float64), activation=activation)
    y = reference.conv2d(problem, np.array([[[[-2.0, 0.0, 7.0]]]]), np.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(y.ravel(), wanted, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_the_derivatives_of_a_bilinear_function(groups):
    """<conv(x, w), g> is linear in x and in w, so its derivative by an element is its value at that basis vector."""
    random = np.random.default_rng(0)
    problem = make_problem(
        (2, 2, 4, 5), (4, 2 // groups, 2, 3), np.dtype(np.float64), stride=(2, 1), dilation=(1, 2),
        padding=((1, 0), (2, 1)), groups=groups,
    )  # fmt: skip
    shapes = (problem.x_shape, problem.w_shape, problem.y_shape)
    x, w, g = (random.integers(-3, 4, shape).astype(float) for shape in shapes)
    by_x, by_w = reference.input_grad(problem, g, w), reference.weight_grad(problem, x, g)
    for i in np.ndindex(x.shape):
        one = np.zeros(x.shape)
        one[i] = 1
        assert by_x[i] == np.sum(reference.conv2d(problem, one, w) * g)
    for i in np.ndindex(w.shape):
        one = np.zeros(w.shape)
        one[i] = 1
        assert by_w[i] == np.sum(reference.conv2d(problem, x, one) * g)


def test_flushes_denormal_inputs_only_when_asked():
    x = np.full((1, 1, 1, 1), 1e-40, np.float32)
    problem = make_problem(x.shape, (1, 1, 1, 1), x.dtype)
    w = np.full((1, 1, 1, 1), 2.0**20, np.float32)
    assert reference.conv2d(problem, x, w)[0, 0, 0, 0] > 0
    assert reference.conv2d(problem, x, w, flush_denormals=True)[0, 0, 0, 0] == 0


def complex_normal(random, *shape):
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


def test_complex_numbers_are_scipys_correlation_without_its_conjugation():
    random = np.random.default_rng(0)
    x, w = complex_normal(random, 2, 3, 7, 8), complex_normal(random, 4, 3, 3, 2)
    problem = make_problem(x.shape, w.shape, np.dtype(np.float64))
    exact = [[sum(correlate2d(x[n, c], w[k, c].conj(), "valid") for c in range(3)) for k in range(4)] for n in range(2)]
    np.testing.assert_allclose(reference.conv2d(problem, x, w), exact, rtol=1e-12)


@pytest.mark.parametrize("parameters", [{}, {"stride": 2, "padding": ((1, 0), (2, 1)), "groups": 2}], ids=str)
def test_complex_gradients_are_the_adjoints(parameters):
    """<y, conv(x, w)> is <input gradient, x> and <weight gradient, w>; vdot conjugates its first argument."""
    random = np.random.default_rng(0)
    x, w = complex_normal(random, 2, 4, 7, 8), complex_normal(random, 6, 4 // parameters.get("groups", 1), 3, 2)
    problem = make_problem(x.shape, w.shape, np.dtype(np.float64), **parameters)
    y = complex_normal(random, *problem.y_shape)
    inner = np.vdot(y, reference.conv2d(problem, x, w))
    np.testing.assert_allclose(np.vdot(reference.input_grad(problem, y, w), x), inner, rtol=1e-12)
    np.testing.assert_allclose(np.vdot(reference.weight_grad(problem, x, y), w), inner, rtol=1e-12)
