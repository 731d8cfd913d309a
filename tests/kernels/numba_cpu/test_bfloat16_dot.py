"""The dot products of channel pairs: what holds beyond the shared problems, which hold it to the reference too.

On a processor without the instructions only the refusal can be tested; the rest is then not defined.
"""

import ml_dtypes
import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device, dispatch
from convlib.kernels import reference
from convlib.kernels.numba_cpu import bfloat16_dot, channel_pairs
from convlib.problem import make_problem
from convlib.strided import empty_aligned

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# panels and planes, whole and narrow tiles and lone pixels, odd channels, padding, strides, dilation, groups
PROBLEMS = {
    "1x1 of 14 x 14": ((2, 70, 14, 14), (40, 70, 1, 1), {}),
    "1x1 of odd channels": ((1, 43, 11, 13), (17, 43, 1, 1), {}),
    "1x1, channels last": ((1, 38, 12, 11), (24, 38, 1, 1), {"layout": "NHWC"}),
    "1x1, stride 2": ((1, 40, 28, 27), (32, 40, 1, 1), {"stride": 2}),
    "3x3": ((2, 21, 18, 37), (19, 21, 3, 3), {"padding": 1}),
    "7x7, stride 2": ((1, 3, 33, 35), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "stride 3, dilated": ((1, 7, 30, 29), (8, 7, 3, 2), {"stride": 3, "dilation": 2, "padding": 2}),
    "groups": ((1, 20, 9, 16), (24, 5, 3, 3), {"groups": 4, "padding": 1}),
    "blocks of channels": ((1, 700, 7, 7), (16, 700, 1, 1), {}),
    "blocks of channels, 3x3": ((1, 301, 7, 7), (16, 301, 3, 3), {"padding": 1}),
    "blocks of filters, 3x3": ((1, 75, 9, 9), (139, 75, 3, 3), {"padding": 1}),
}


def normal(*shape, scale=1.0):
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    return (numbers * np.float32(scale)).astype(BFLOAT16)


def operands(name):
    """x and residual in logical order, w, bias, the problem and the exact result."""
    x_shape, w_shape, keywords = PROBLEMS[name]
    x, w, bias = normal(*x_shape), normal(*w_shape, scale=np.prod(w_shape[1:]) ** -0.5), normal(w_shape[0])
    last = "layout" in keywords
    in_layout = x.transpose(0, 2, 3, 1).shape if last else x_shape
    problem = make_problem(in_layout, w_shape, BFLOAT16, has_bias=True, has_residual=True, **keywords)
    residual = normal(*problem.y_shape)
    if last:
        x, residual = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, residual))
    return x, w, bias, residual, problem, reference.conv2d(problem, x, w, bias, residual)


def computed(name, threads=2, packed=True, w=None):
    """By the kernel, whose packed weights and workspace begin as NaN. w: the weights as other memory holds them."""
    x, w, bias, residual, problem, _ = (w if i == 1 and w is not None else a for i, a in enumerate(operands(name)))
    place = device.cpu_with(threads)
    workspace_bytes = bfloat16_dot.workspace_bytes(problem, place)
    if packed:
        memory = poisoned(bfloat16_dot.packed_bytes(problem, place))
        bfloat16_dot.pack(problem, place, w.view(np.uint16), memory)
    else:
        alone = bfloat16_dot.one_call_bytes(problem, place)
        assert alone or bfloat16_dot.reads_in_place(problem, w)
        memory, workspace_bytes = w.view(np.uint16), alone or workspace_bytes
    y = np.full_like(residual, np.nan)
    numbers = (a.view(np.uint16) for a in (y, bias, residual))
    workspace = poisoned(workspace_bytes)
    bfloat16_dot.run(problem, place, x.view(np.uint16), memory, *numbers, workspace)
    return y.astype(np.float64)


def poisoned(count):
    memory = empty_aligned((count,), np.uint8)
    memory[:] = 255
    return memory


def one_sum(x, w):
    """The dot product of two lists of numbers by the kernel, as the float32 that bfloat16 leaves of it."""
    x, w = (np.array(numbers, np.float32).astype(BFLOAT16).reshape(1, -1, 1, 1) for numbers in (x, w))
    return float(convlib.conv2d(x, w, algorithm="bfloat16_dot")[0, 0, 0, 0])


def test_without_the_instructions_it_says_so_and_others_run(monkeypatch):
    x, w = normal(1, 8, 9, 9), normal(8, 8, 1, 1)
    problem = make_problem(x.shape, w.shape, BFLOAT16)
    monkeypatch.setattr(channel_pairs.target, "features", lambda: frozenset({"avx2", "fma"}))
    dispatch.candidates.cache_clear()
    reasons = bfloat16_dot.why_not(problem, device.cpu())
    names = dispatch.ranked(problem, device.cpu(), "auto", "auto", 5e-6, None)
    dispatch.candidates.cache_clear()
    assert "AVX-512 BF16" in reasons[0]
    assert names
    assert "numba_cpu.bfloat16_dot" not in names


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_takes_no_other_numbers(dtype):
    problem = make_problem((1, 8, 9, 9), (8, 8, 1, 1), dtype)
    assert any(dtype in reason for reason in bfloat16_dot.why_not(problem, device.cpu()))


if channel_pairs.multiplies_pairs():

    @pytest.mark.parametrize("name", PROBLEMS)
    def test_is_right_wherever_the_numbers_lie(name):
        *_, problem, exact = operands(name)
        error = np.linalg.norm(computed(name) - exact) / np.linalg.norm(exact)
        assert error < 0.6 * accuracy.norm_relative(problem, "bfloat16_dot")

    @pytest.mark.parametrize("name", ["1x1 of 14 x 14", "groups", "blocks of channels, 3x3"])
    def test_the_bits_do_not_depend_on_threads(name):
        np.testing.assert_array_equal(computed(name, 1), computed(name, 3))

    def test_weights_of_1x1_layers_are_read_where_they_lie():
        np.testing.assert_array_equal(computed("1x1 of 14 x 14"), computed("1x1 of 14 x 14", packed=False))

    @pytest.mark.parametrize(
        "name", ["3x3", "stride 3, dilated", "groups", "blocks of channels, 3x3", "blocks of filters, 3x3"]
    )
    def test_a_single_call_makes_the_words_of_its_weights_as_it_goes(name):
        w = operands(name)[1]
        turned = np.ascontiguousarray(w.transpose(3, 0, 2, 1)).transpose(1, 3, 2, 0)
        for threads in (1, 3):
            for weights in (w, turned):
                np.testing.assert_array_equal(computed(name), computed(name, threads, packed=False, w=weights))

    @pytest.mark.parametrize("activation", ["relu6", "silu", ("leaky_relu", 0.25)])
    def test_activations(activation):
        x, w = normal(1, 32, 14, 14), normal(32, 32, 1, 1, scale=0.2)
        wanted = reference.conv2d(make_problem(x.shape, w.shape, BFLOAT16, activation=activation), x, w)
        y = convlib.conv2d(x, w, activation=activation, algorithm="bfloat16_dot").astype(np.float64)
        assert np.linalg.norm(y - wanted) < 2.0**-8 * np.linalg.norm(wanted)

    @pytest.mark.parametrize("C", [2, 65, 1024])
    def test_sums_keep_to_the_contract_of_float32(C):
        """Of results that are small beside their products, rounding them cannot hide what the sums lost."""
        x, w = normal(1, C, 12, 12), normal(16, C, 1, 1)
        pairs = np.concatenate([x, x], axis=1), np.concatenate([w, -w], axis=1)
        y = convlib.conv2d(*pairs, algorithm="bfloat16_dot").astype(np.float64)
        problem = make_problem(pairs[0].shape, pairs[1].shape, BFLOAT16)
        x, w = (abs(a.astype(np.float64)) for a in pairs)
        magnitude = np.einsum("nchw,kc->nkhw", x, w[:, :, 0, 0])
        assert (abs(y) <= accuracy.elementwise(problem, "bfloat16_dot", magnitude, 0 * magnitude)).all()
        assert C == 2 or abs(y).max() > 0

    def test_nan_and_infinity_reach_the_outputs_that_read_them_and_no_others():
        x, w = normal(1, 5, 9, 12), abs(normal(8, 5, 3, 3))
        x[0, 4, 2, 3], x[0, 1, 7, 10] = np.nan, np.inf
        y = convlib.conv2d(x, w, padding=1, algorithm="bfloat16_dot").astype(np.float64)[0]
        nan, infinite = np.zeros((9, 12), bool), np.zeros((9, 12), bool)
        nan[1:4, 2:5], infinite[6:9, 9:12] = True, True
        np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(nan, y.shape))
        np.testing.assert_array_equal(np.isposinf(y), np.broadcast_to(infinite, y.shape))

    def test_knows_no_numbers_below_the_smallest_normal_one():
        tiny, smallest = 2.0**-130, 2.0**-126
        assert one_sum([tiny, tiny], [2.0**100, 1]) == 0
        assert one_sum([2.0**-70, 0], [2.0**-60, 0]) == 0
        assert one_sum([smallest, smallest], [1.5, -1]) == 0

    def test_of_a_pair_the_second_product_is_added_first_and_each_is_rounded():
        """2^24 + 1 is no float32: a 1 that is added to 2^24 is lost, and kept where it comes before -2^24."""
        assert one_sum([1, 2.0**12], [1, 2.0**12]) == 2.0**24
        assert one_sum([-(2.0**12), 1, 1, 2.0**12], [2.0**12, 1, 1, 2.0**12]) == 1

    def test_is_chosen_for_1x1_layers_and_strides():
        for w_shape, keywords in (((64, 64, 1, 1), {}), ((64, 64, 3, 3), {"stride": 2, "padding": 1})):
            problem = make_problem((1, 64, 28, 28), w_shape, BFLOAT16, **keywords)
            assert choosing.choose(problem, device.cpu()) == "numba_cpu.bfloat16_dot"
