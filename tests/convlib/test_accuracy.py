"""The error contracts are wide enough for rounding and too narrow for a mistake."""

import numpy as np
import pytest

import convlib
from convlib import accuracy, dispatch
from convlib.kernels import reference
from convlib.problem import DTYPES, make_problem, named_dtype

CPU_KERNELS = [name for name in dispatch.KERNELS if name.startswith("numba_cpu.")]


def problem_of(dtype, stride=1):
    return make_problem((1, 70, 15, 14), (20, 70, 3, 3), dtype, padding=1, stride=stride)


def serves(name, dtype):
    kernel = dispatch.kernel(name)
    return "forward" in kernel.passes and not kernel.why_not(problem_of(dtype), convlib.device.cpu())


SERVED = [(name, dtype, 1) for name in CPU_KERNELS for dtype in DTYPES if serves(name, dtype)]
STRIDED = [(f"numba_cpu.winograd_{tiles}", "float64", 2) for tiles in ("f2", "f4")]


def data(problem, seed=0):
    """The contract's: x standard normal, w normal over the root of the reduction's length."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(problem.x_shape)
    w = random.standard_normal(problem.w_shape) / np.sqrt(problem.reduction)
    return x.astype(problem.dtype), w.astype(problem.dtype)


def by_long_doubles(x, w, stride):
    """A 3 x 3 convolution with padding 1, to more digits than the reference, whose own rounding is float64's."""
    padded = np.pad(x.astype(np.longdouble), ((0, 0), (0, 0), (1, 1), (1, 1)))
    H, W = x.shape[2:]
    taps = ((padded[:, :, r : r + H : stride, s : s + W : stride], r, s) for r in range(3) for s in range(3))
    w = w.astype(np.longdouble)
    return sum(np.einsum("nchw,kc->nkhw", pixels, w[:, :, r, s]) for pixels, r, s in taps)


@pytest.mark.parametrize(("name", "dtype", "stride"), SERVED + STRIDED)
def test_every_kernel_keeps_its_norm_relative_contract(name, dtype, stride):
    problem = problem_of(dtype, stride)
    x, w = data(problem)
    exact = by_long_doubles(x, w, stride)
    y = convlib.conv2d(
        x, w, padding=1, stride=stride, backend="numba_cpu", algorithm=dispatch.algorithm_of(name), max_error=1.0
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


# What tensor cores are known to do (Fasi et al., 2021), in float64: a sum and several exact products are aligned to the
# largest of them, cut off below the last of its 24 bits, added, and cut off once more.


def cut_off(values, largest):
    step = np.exp2(np.floor(np.log2(np.maximum(largest, 1e-300))) - 23)
    return np.trunc(values / step) * step


def added_by_tensor_cores(total, products, at_once):
    for start in range(0, products.shape[-1], at_once):
        several = np.concatenate([total[:, None], products[:, start : start + at_once]], axis=1)
        total = cut_off(several, np.abs(several).max(axis=1, keepdims=True)).sum(axis=1)
        total = cut_off(total, np.abs(total))
    return total


def to_tf32(values):
    bits = values.astype(np.float32).view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def tensor_core_sums(x, w, precision, at_once):
    zero = np.zeros(len(x))
    if precision != "3xtf32":
        x, w = (to_tf32(x), to_tf32(w)) if precision else (x, w)
        return added_by_tensor_cores(zero, x * w, at_once)
    x_large, w_large = to_tf32(x), to_tf32(w)
    x_small, w_small = to_tf32(x - x_large), to_tf32(w - w_large)
    total = zero.astype(np.float32)
    for start in range(0, x.shape[1], 8):
        part, chain = slice(start, start + 8), zero
        for left, right in ((x_small, w_large), (x_large, w_small), (x_large, w_large)):
            chain = added_by_tensor_cores(chain, left[:, part] * right[:, part], at_once)
        total += chain.astype(np.float32)
    return total


@pytest.mark.parametrize("at_once", [4, 8])
@pytest.mark.parametrize("length", [1, 8, 72, 1152])
@pytest.mark.parametrize(("dtype", "precision"), [("float16", None), ("float32", "tf32"), ("float32", "3xtf32")])
def test_sums_as_tensor_cores_make_them_keep_their_contracts(dtype, precision, length, at_once):
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((1000, length)).astype(dtype).astype(np.float64) for _ in range(2))
    problem = make_problem((1, length, 1, 1), (1, length, 1, 1), dtype, precision=precision)
    exact = (x * w).sum(axis=1)
    error = tensor_core_sums(x, w, precision, at_once) - exact
    store = accuracy.UNIT_ROUNDOFF["float16"] if dtype == "float16" else 0
    bound = accuracy.norm_relative(problem, "tensor_core") - store
    relative = np.linalg.norm(error) / np.linalg.norm(exact)
    assert 0.1 * bound < relative < bound or (dtype, length) == ("float16", 1)
    within = accuracy.elementwise(problem, "tensor_core", np.abs(x * w).sum(axis=1), 0 * exact)
    assert (np.abs(error) <= within).all()
