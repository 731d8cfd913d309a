"""The error contracts are wide enough for rounding and too narrow for a mistake."""

import numpy as np
import pytest

import convlib
from convlib import accuracy, dispatch
from convlib.kernels import reference
from convlib.problem import DTYPES, make_problem, named_dtype

CPU_KERNELS = [name for name in dispatch.KERNELS if name.startswith("numba_cpu.")]


def problem_of(dtype):
    return make_problem((1, 70, 15, 14), (20, 70, 3, 3), dtype, padding=1)


def serves(name, dtype):
    kernel = dispatch.kernel(name)
    return "forward" in kernel.passes and not kernel.why_not(problem_of(dtype), convlib.device.cpu())


SERVED = [(name, dtype) for name in CPU_KERNELS for dtype in DTYPES if serves(name, dtype)]


def data(problem, seed=0):
    """The contract's: x standard normal, w normal over the root of the reduction's length."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(problem.x_shape)
    w = random.standard_normal(problem.w_shape) / np.sqrt(problem.reduction)
    return x.astype(problem.dtype), w.astype(problem.dtype)


def by_long_doubles(x, w):
    """A 3 x 3 convolution with padding 1, to more digits than the reference, whose own rounding is float64's."""
    padded = np.pad(x.astype(np.longdouble), ((0, 0), (0, 0), (1, 1), (1, 1)))
    H, W = x.shape[2:]
    taps = ((r, s) for r in range(3) for s in range(3))
    w = w.astype(np.longdouble)
    return sum(np.einsum("nchw,kc->nkhw", padded[:, :, r : r + H, s : s + W], w[:, :, r, s]) for r, s in taps)


@pytest.mark.parametrize(("name", "dtype"), SERVED)
def test_every_kernel_keeps_its_norm_relative_contract(name, dtype):
    problem = problem_of(dtype)
    x, w = data(problem)
    exact = by_long_doubles(x, w)
    y = convlib.conv2d(
        x, w, padding=1, backend="numba_cpu", algorithm=dispatch.algorithm_of(name), max_error=1.0
    ).astype(np.longdouble)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, dispatch.algorithm_of(name))
    assert error <= bound
    one_wrong = y.copy()
    one_wrong[0, 0, 0, 0] += 1  # a single output off by its own size
    if dtype in ("float32", "float64"):
        assert np.linalg.norm(one_wrong - exact) / np.linalg.norm(exact) > 100 * bound


def test_bounds_grow_with_the_reduction_and_follow_the_accumulator():
    def bound(channels, dtype):
        return accuracy.norm_relative(make_problem((1, channels, 4, 4), (1, channels, 1, 1), dtype), "direct")

    assert bound(98, "float32") == pytest.approx(10 * 2.0**-24)
    assert bound(398, "float32") == pytest.approx(2 * bound(98, "float32"))
    assert bound(98, "float64") == pytest.approx(10 * 2.0**-53)
    assert bound(98, "float16") == pytest.approx(10 * 2.0**-24 + 2.0**-11)
    assert bound(98, "bfloat16") == pytest.approx(10 * 2.0**-24 + 2.0**-8)


def test_the_default_max_error_leaves_plain_sums_of_known_networks_their_contract():
    largest = make_problem((1, 2048, 7, 7), (512, 2048, 1, 1), "float32")
    assert accuracy.norm_relative(largest, "direct") < accuracy.DEFAULT_MAX_ERROR


def test_elementwise_bound_allows_rounding_in_any_order_and_no_missing_term():
    problem = make_problem((1, 50, 1, 1), (1, 50, 1, 1), "float32")
    x, w = data(problem)
    exact = reference.conv2d(problem, x, w)
    magnitude = reference.conv2d(problem, np.abs(x), np.abs(w))
    bound = accuracy.elementwise(problem, "direct", magnitude, exact)
    products = (x.ravel() * w.ravel()).astype(np.float32)
    for order in (slice(None), slice(None, None, -1), np.argsort(products)):
        total = np.float32(0)
        for product in products[order]:
            total = np.float32(total + product)
        assert abs(total - exact).max() <= bound.max()
    assert np.abs(products).min() > bound.max(), "a bound that lets a product be left out checks nothing"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_smallest_step_is_the_smallest_number(name):
    dtype = named_dtype(name)
    step = accuracy.smallest_step(dtype) if name != "bfloat16" else 2.0**-133
    assert np.array(step).astype(dtype) > 0
    assert np.array(step / 4).astype(dtype) == 0
    assert accuracy.smallest_step(dtype) == step
