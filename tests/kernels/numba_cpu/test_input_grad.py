"""The CPU input gradient, in every way that it copies, multiplies and stores: exact sums of small integers."""

import sys

import numpy as np
import pytest

from convlib.device import Device
from convlib.kernels import reference
from convlib.kernels.numba_cpu import input_grad, input_grad_cuts, target
from convlib.problem import make_problem

from .guarded_pages import before_a_guard

# name -> x, w, keywords, and whether the phases are stacked
PROBLEMS = {
    "1x1": ((2, 24, 9, 13), (70, 24, 1, 1), {}, False),
    "1x1 over whole tiles": ((1, 130, 20, 16), (40, 130, 1, 1), {}, False),
    "1x1, images share tiles": ((7, 16, 7, 7), (40, 16, 1, 1), {}, False),
    "1x1, a lone pixel": ((1, 48, 7, 7), (40, 48, 1, 1), {}, False),
    "1x1, four lone pixels": ((1, 130, 14, 14), (40, 130, 1, 1), {}, False),
    "1x1 with padding": ((2, 16, 7, 9), (20, 16, 1, 1), {"padding": 1}, False),
    "1x1 in groups": ((2, 48, 9, 7), (40, 24, 1, 1), {"groups": 2}, False),
    "1x1, stride 2": ((3, 40, 14, 14), (60, 40, 1, 1), {"stride": 2}, False),
    "1x1, stride 2, odd": ((3, 40, 15, 13), (60, 40, 1, 1), {"stride": 2}, False),
    "3x3, stride 2": ((3, 40, 14, 18), (60, 40, 3, 3), {"stride": 2, "padding": 1}, False),
    "3x3, stride 2, a lone pixel": ((1, 20, 13, 14), (60, 20, 3, 3), {"stride": 2, "padding": 1}, False),
    "3x3, stride 2, packed by tasks": ((1, 260, 14, 13), (24, 260, 3, 3), {"stride": 2, "padding": 1}, False),
    "3x3, stride 2, odd": ((2, 20, 13, 65), (60, 20, 3, 3), {"stride": 2, "padding": 1}, False),
    "stride by rows": ((2, 20, 13, 40), (20, 20, 3, 3), {"stride": (2, 1), "padding": 1}, False),
    "stride by columns": ((2, 20, 13, 40), (20, 20, 3, 3), {"stride": (1, 2), "padding": ((2, 0), (1, 3))}, False),
    "dilation": ((1, 20, 21, 20), (20, 20, 3, 3), {"stride": 2, "dilation": (2, 3), "padding": 3}, False),
    "dilation beyond the stride": ((1, 20, 20, 20), (20, 20, 2, 2), {"stride": (2, 4), "dilation": (4, 2)}, False),
    "stride 3": ((2, 20, 16, 17), (20, 20, 4, 5), {"stride": 3, "padding": 1}, False),
    "groups": ((2, 48, 14, 14), (40, 24, 3, 3), {"groups": 2, "stride": 2, "padding": 1}, False),
    "first layer": ((2, 3, 40, 46), (20, 3, 7, 7), {"stride": 2, "padding": 3}, True),
    "one channel": ((2, 1, 19, 23), (20, 1, 5, 3), {"stride": 2, "padding": ((0, 3), (2, 1))}, True),
    "few channels, stride 3": ((2, 2, 19, 23), (20, 2, 5, 7), {"stride": 3, "padding": 2}, True),
    "depthwise": ((2, 6, 9, 20), (6, 1, 3, 3), {"groups": 6, "stride": 2, "padding": 1}, True),
    "depthwise, wide": ((2, 3, 10, 75), (3, 1, 5, 5), {"groups": 3, "stride": 2, "padding": ((2, 1), (1, 3))}, True),
    "depthwise, dilated": ((1, 3, 21, 20), (3, 1, 3, 2), {"groups": 3, "stride": (3, 2), "dilation": (2, 4)}, False),
    "depthwise, one filter twice": ((1, 3, 9, 11), (6, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}, True),
    "depthwise, by rows": ((1, 3, 9, 40), (3, 1, 3, 3), {"groups": 3, "stride": (2, 1), "padding": 1}, True),
}
# whose weights are read in place, as soon as they are many: 1x1, and whole tiles of channels
IN_PLACE = (
    "1x1",
    "1x1, images share tiles",
    "1x1, a lone pixel",
    "1x1 with padding",
    "1x1 in groups",
    "1x1, stride 2",
    "1x1, stride 2, odd",
)


def integers(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def problem_of(name, dtype="float32"):
    x, w, keywords, _ = PROBLEMS[name]
    return make_problem(x, w, dtype, pass_="input_grad", **keywords)


def computed(problem, grad_y, w, threads=2, grad_x=None, bias=None):
    place = Device("cpu", threads=threads)
    workspace = np.full(input_grad.workspace_bytes(problem, place), 255, np.uint8)  # NaN, where it is read too early
    grad_x = np.full(problem.x_shape, np.nan, problem.dtype) if grad_x is None else grad_x
    input_grad.run(problem, place, grad_y, w, grad_x, bias, workspace=workspace)
    return grad_x


STRIDED = [name for name, (_, _, keywords, _) in PROBLEMS.items() if keywords.get("stride", 1) != 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu6", ("leaky_relu", 0.5)])
@pytest.mark.parametrize("name", STRIDED)
def test_a_transposed_convolutions_bias_and_activation(name, activation, dtype):
    x, w, keywords, _ = PROBLEMS[name]
    problem = make_problem(x, w, dtype, pass_="input_grad", has_bias=True, activation=activation, **keywords)
    assert not input_grad.why_not(problem, Device("cpu", threads=2))
    w, grad_y = integers(problem.w_shape, 0, dtype), integers(problem.y_shape, 1, dtype)
    bias = integers(2 * problem.C, 2, dtype)[::2]  # zeros are there too, where no tap meets an input
    wanted = reference.activated(problem, reference.input_grad(problem, grad_y, w) + bias[:, None, None])
    np.testing.assert_array_equal(computed(problem, grad_y, w, bias=bias), wanted)


@pytest.mark.parametrize("name", ["3x3, stride 2", "first layer"])
def test_an_activation_alone(name):
    x, w, keywords, _ = PROBLEMS[name]
    problem = make_problem(x, w, "float32", pass_="input_grad", activation="silu", **keywords)
    w, grad_y = integers(problem.w_shape, 0), integers(problem.y_shape, 1)
    wanted = reference.activated(problem, reference.input_grad(problem, grad_y, w))
    np.testing.assert_allclose(computed(problem, grad_y, w), wanted, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_way_is_taken_and_exact(name, threads, dtype):
    problem = problem_of(name, dtype)
    w, grad_y = integers(problem.w_shape, 0, dtype), integers(problem.y_shape, 1, dtype)
    assert input_grad.rows_of(problem)[0] == PROBLEMS[name][3]
    np.testing.assert_array_equal(computed(problem, grad_y, w, threads), reference.input_grad(problem, grad_y, w))


@pytest.fixture
def small_caches(monkeypatch):
    """So that filters come in several blocks, rows in several slabs, and few weights are many."""
    for cached in (input_grad.cuts, input_grad.prepared):
        cached.cache_clear()
    monkeypatch.setattr(target, "cache_bytes", {1: 64 * target.vector_bytes(), 2: 20 << 10}.__getitem__)
    monkeypatch.setattr(input_grad_cuts, "SLAB_FILTERS", 8)
    monkeypatch.setattr(input_grad_cuts, "DEEPEST", {16: 16, 32: 16})
    monkeypatch.setattr(input_grad_cuts, "PACKED_BYTES", {16: 0, 32: 0})
    yield
    for cached in (input_grad.cuts, input_grad.prepared):
        cached.cache_clear()


@pytest.mark.parametrize("name", PROBLEMS)
def test_blocks_and_slabs_change_nothing(name, small_caches):
    problem = problem_of(name)
    cut = dict(zip(input_grad.CUTS, input_grad.cuts(problem, 2)[0], strict=True))
    assert cut["depth_block"] < problem.Kg or problem.Kg < 8
    assert input_grad_cuts.wants_weights_in_place(problem) == (name in IN_PLACE)
    w, grad_y = integers(problem.w_shape, 0), integers(problem.y_shape, 1)
    np.testing.assert_array_equal(computed(problem, grad_y, w), reference.input_grad(problem, grad_y, w))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_bits_for_every_number_of_threads(name):
    problem, random = problem_of(name), np.random.default_rng(0)
    grad_y, w = (random.standard_normal(shape, dtype=np.float32) for shape in (problem.y_shape, problem.w_shape))
    first = computed(problem, grad_y, w, 1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(computed(problem, grad_y, w, threads), first)


def test_few_pixels_have_lone_ones_and_tasks_that_pack():
    roomy = target.register_count() == 32 and target.cache_bytes(2) >= 1 << 20  # else filters are more
    for name, packs in (("1x1, a lone pixel", False), ("3x3, stride 2, packed by tasks", True)):
        cut = dict(zip(input_grad.CUTS, input_grad.cuts(problem_of(name), 2)[0], strict=True))
        assert cut["tiled"] == (48 if target.register_count() == 32 else 49)
        assert cut["packs"] == packs or not roomy


@pytest.mark.parametrize("strides", ["reversed", "columns apart", "channels last"])
@pytest.mark.parametrize("name", ["1x1", "1x1, stride 2", "3x3, stride 2", "stride by rows", "first layer"])
def test_any_strides_are_read_and_written(name, strides):
    problem = problem_of(name)
    w, grad_y = integers(problem.w_shape, 0), integers(problem.y_shape, 1)
    wanted = reference.input_grad(problem, grad_y, w)
    into = laid_out(np.full(problem.x_shape, np.nan, np.float32), strides)
    got = computed(problem, laid_out(grad_y, strides), laid_out(w, strides), 2, into)
    np.testing.assert_array_equal(got, wanted)


def laid_out(array, strides):
    """The same numbers, otherwise in memory."""
    if strides == "channels last":
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if strides == "reversed":
        return array[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    view = np.full((*array.shape[:3], 3 * array.shape[3]), np.nan, np.float32)[..., ::3]
    view[:] = array
    return view


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("name", PROBLEMS)
def test_nothing_is_touched_behind_the_arrays(name):
    """All three end where a page ends behind which nothing may be read or written: that would end the process."""
    problem = problem_of(name)
    w, grad_y = integers(problem.w_shape, 0), integers(problem.y_shape, 1)
    wanted = reference.input_grad(problem, grad_y, w)
    into = before_a_guard(np.full(problem.x_shape, np.nan, np.float32))
    np.testing.assert_array_equal(computed(problem, before_a_guard(grad_y), before_a_guard(w), 2, into), wanted)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"dtype": "float16", "stride": 2}, "float32 and float64 only, got float16"),
        ({"dtype": "float32"}, "stride 1 has one phase only"),
        ({"dtype": "float32", "stride": 2, "has_residual": True}, "adds no residual"),
        ({"dtype": "float32", "has_bias": True}, "with stride 1 adds no bias"),
        ({"dtype": "float32", "activation": "relu"}, "with stride 1 adds no bias and applies no activation"),
    ],
)
def test_refuses_in_words(keywords, reason):
    problem = make_problem((1, 2, 8, 8), (2, 2, 3, 3), pass_="input_grad", **keywords)
    assert any(reason in one for one in input_grad.why_not(problem, Device("cpu")))
