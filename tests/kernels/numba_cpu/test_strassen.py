"""Strassen's kernel: what holds beyond the shared problems of test_every_kernel.py, hardly any of which it takes."""

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device
from convlib.kernels import reference
from convlib.kernels.numba_cpu import blocked_cuts, microkernel, strassen, strassen_cuts, target, vectors
from convlib.problem import make_problem
from convlib.strided import empty_aligned

from .guarded_pages import before_a_guard

# with lone pixels left over, tiles, nothing; half the channels no whole number of vectors
PROBLEMS = {
    "14 x 14": ((1, 64, 14, 14), (32, 64, 1, 1), {}),
    "batch": ((2, 38, 17, 13), (64, 38, 1, 1), {}),
    "groups": ((1, 24, 12, 16), (64, 12, 1, 1), {"groups": 2}),
    "stride 2": ((1, 40, 28, 27), (32, 40, 1, 1), {"stride": 2}),
    "patches": ((1, 5, 40, 46), (32, 5, 4, 4), {"stride": 4}),
    "channels last": ((1, 40, 14, 14), (32, 40, 1, 1), {"layout": "NHWC"}),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def operands(name):
    """x and residual as the layout has them, w, bias, the problem, and the exact result in logical order."""
    x_shape, w_shape, keywords = PROBLEMS[name]
    x, w, bias = normal(*x_shape), normal(*w_shape), normal(w_shape[0])
    shape = x.transpose(0, 2, 3, 1).shape if "layout" in keywords else x_shape
    problem = make_problem(shape, w_shape, np.float32, has_bias=True, has_residual=True, **keywords)
    residual = normal(problem.N, problem.K, problem.P, problem.Q)
    return x, w, bias, residual, problem, reference.conv2d(problem, x, w, bias, residual)


def computed(name, threads, packed=True):
    x, w, bias, residual, problem, _ = operands(name)
    place = device.cpu_with(threads)
    if packed:
        memory = empty_aligned((strassen.packed_bytes(problem, place),), np.uint8)
        memory[:] = 255  # NaN, wherever it is read before it is written
        strassen.pack(problem, place, w, memory)
        w = memory
    workspace = empty_aligned((strassen.workspace_bytes(problem, place),), np.uint8)
    workspace[:] = 255
    y = np.full(residual.shape, np.nan, np.float32)
    strassen.run(problem, place, x, w, y, bias, residual, workspace)
    return y


def forget_cuts():
    for cached in (strassen_cuts.best_cut, strassen_cuts.blocking, strassen.prepared):
        cached.cache_clear()


@pytest.mark.parametrize("name", PROBLEMS)
def test_is_right_wherever_the_numbers_lie(name):
    *_, problem, exact = operands(name)
    error = np.linalg.norm(computed(name, 2) - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "strassen")


# of the batch some tasks are what is left over, which may not touch the sums of weights that later pairs use
@pytest.mark.parametrize("name", ["14 x 14", "batch", "groups", "patches"])
def test_the_bits_depend_neither_on_threads_nor_on_who_packs_nor_on_the_cut(name, monkeypatch):
    y = computed(name, 1)
    np.testing.assert_array_equal(y, computed(name, 3))
    for most in (16 << 20, 0):  # bytes of the weights' sums that threads make: of all filters, or of few at a time
        forget_cuts()
        monkeypatch.setattr(strassen_cuts, "MOST_MADE", most)
        np.testing.assert_array_equal(y, computed(name, 2, packed=False))
    forget_cuts()
    monkeypatch.setattr(strassen_cuts, "FILTER_CUTS", (2,))
    np.testing.assert_array_equal(y, computed(name, 1))
    forget_cuts()


@pytest.mark.parametrize("size", [(8, 10), (2, 109)], ids=["a whole tile", "less than a tile"])
def test_what_is_left_over_may_begin_within_a_line(size, monkeypatch):
    """Behind 50 pixels, or 200, of float64 where vectors are lines: y goes past the cache, nothing is read behind x."""
    monkeypatch.setattr(blocked_cuts, "from_memory", lambda problem: True)
    random, place = np.random.default_rng(0), device.cpu_with(2)
    x, w = (random.integers(-3, 4, shape).astype(np.float64) for shape in ((2, 46, *size), (32, 46, 1, 1)))
    problem = make_problem(x.shape, w.shape, np.float64)
    y = empty_aligned(problem.y_shape, np.float64)
    workspace = empty_aligned((strassen.workspace_bytes(problem, place),), np.uint8)
    strassen.run(problem, place, before_a_guard(x), w, y, None, None, workspace)
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))


def test_threads_of_a_plan_share_no_maps_where_that_costs_little():
    one, two, few = (
        make_problem((N, C, 14, 14), (K, C, 1, 1), np.float32)
        for N, C, K in ((1, 64, 1024), (2, 64, 1024), (1, 1024, 64))
    )
    assert strassen_cuts.shared_maps(one, 3, 1, 2) == strassen_cuts.shared_maps(one, 6, 1, 4) / 3 == 1024
    assert strassen_cuts.shared_maps(one, 3, 2, 2) == strassen_cuts.shared_maps(two, 3, 1, 2) == 0
    assert [strassen_cuts.best_cut(problem, 2, True) for problem in (one, two, few)] == [2, 1, 1]


def test_blocks_of_channels_go_on_with_the_sums_before():
    x, w = normal(1, 1600, 14, 14), normal(32, 1600, 1, 1)
    problem = make_problem(x.shape, w.shape, np.float32)
    assert strassen_cuts.channel_block(problem) < 800
    y = convlib.conv2d(x, w, algorithm="strassen")
    assert np.linalg.norm(y - reference.conv2d(problem, x, w)) < 1e-6 * np.linalg.norm(y)


@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_activations(activation):
    x, w = normal(1, 32, 14, 14), normal(32, 32, 1, 1)
    y = convlib.conv2d(x, w, activation=activation, algorithm="strassen")
    np.testing.assert_allclose(y, convlib.conv2d(x, w, activation=activation, algorithm="direct"), atol=1e-4)


@pytest.mark.parametrize("C", [2, 64, 256])
def test_the_error_keeps_to_the_contract(C):
    x, w = normal(1, C, 14, 14), normal(64, C, 1, 1)
    problem = make_problem(x.shape, w.shape, np.float32)
    y, exact = convlib.conv2d(x, w, algorithm="strassen"), reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert 0.3 * accuracy.norm_relative(problem, "strassen") < error < accuracy.norm_relative(problem, "strassen")


def test_stays_under_the_default_error_up_to_16384_channels():
    problem = make_problem((1, 16384, 14, 14), (64, 16384, 1, 1), np.float32)
    assert accuracy.norm_relative(problem, "strassen") < accuracy.DEFAULT_MAX_ERROR


ONE_PAIR = 2, microkernel.VECTORS * vectors.lanes(np.float32)
# where multiply-adds take twice as long, sums of the weights are predicted to pay for one pair too
CALLED = "numba_cpu.strassen" if target.multiply_adds_per_cycle() == 1 else "numba_cpu.blocked"


@pytest.mark.parametrize(
    ("x_shape", "K", "called"),
    [((1, 512, 28, 28), 256, "numba_cpu.strassen"), ((1, 1024, *ONE_PAIR), 1024, CALLED)],
)
def test_plans_of_large_1x1_layers_choose_it_and_calls_that_would_pack_much_do_not(x_shape, K, called):
    w = normal(K, x_shape[1], 1, 1)
    assert convlib.plan(x_shape, w).name.startswith("numba_cpu.strassen")  # or one of its kin, which only plans take
    problem = make_problem(x_shape, w.shape, np.float32)
    assert choosing.choose(problem, device.cpu_with(2)) == called


@pytest.mark.skipif(target.multiply_adds_per_cycle() == 2 or target.vector_bytes() < 64, reason="measured on a Zen 4")
@pytest.mark.parametrize(
    ("C", "size", "K", "fastest"),
    [(1536, 10, 2048, "_by_filters"), (2048, 7, 4096, "_by_filters"), (2048, 14, 2048, "_twice")],
)
def test_weights_from_memory_hide_behind_the_products_of_plans(C, size, K, fastest):
    problem = make_problem((1, C, size, size), (K, C, 1, 1), np.float32)
    assert choosing.chosen(problem, device.cpu_with(2), planned=True).name == f"numba_cpu.strassen{fastest}"


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "keywords", "word"),
    [
        ((1, 64, 14, 14), (32, 64, 3, 3), {"padding": 1}, "window"),
        ((1, 63, 14, 14), (32, 63, 1, 1), {}, "even"),
        ((1, 64, 14, 14), (33, 64, 1, 1), {}, "filters"),
        ((1, 64, 4, 5), (32, 64, 1, 1), {}, "pixels"),
    ],
)
def test_says_what_it_cannot_halve(x_shape, w_shape, keywords, word):
    problem = make_problem(x_shape, w_shape, np.float32, **keywords)
    assert any(word in reason for reason in strassen.why_not(problem, device.cpu()))
