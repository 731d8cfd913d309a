"""The CPU weight gradient by Winograd: its error, and every way in which it is cut and copied."""

import sys

import numpy as np
import pytest

import convlib
from benchmarks import cases, gate
from convlib import accuracy, choosing
from convlib.device import Device
from convlib.kernels.numba_cpu import (
    target,
    winograd_weight_grad,
    winograd_weight_grad_chains,
    winograd_weight_grad_cuts,
)
from convlib.problem import make_problem

from .guarded_pages import before_a_guard

PROBLEMS = {
    "whole tiles": ((2, 16, 8, 12), (16, 16, 3, 3), {"padding": 1}),
    "tiles that stick out": ((2, 16, 9, 7), (48, 16, 3, 3), {"padding": 1}),
    "no padding": ((3, 16, 10, 23), (16, 16, 3, 3), {}),
    "odd padding": ((2, 20, 6, 19), (33, 20, 3, 3), {"padding": ((2, 0), (4, 3))}),
    "rows of several pieces": ((1, 5, 3, 70), (17, 5, 3, 3), {"padding": 1}),
    "groups": ((2, 36, 7, 9), (40, 18, 3, 3), {"padding": 1, "groups": 2}),
    "one output": ((1, 2, 3, 3), (3, 2, 3, 3), {}),
    "many channels and filters": ((1, 150, 6, 6), (180, 150, 3, 3), {"padding": 1}),
}


@pytest.fixture(params=["as they are", "small caches, short chains"])
def cut(request, monkeypatch):
    """The cut of real layers, and one that makes several of everything of the small problems here."""
    cached = winograd_weight_grad_cuts.cuts, winograd_weight_grad.prepared
    for function in cached:
        function.cache_clear()
    if request.param != "as they are":
        monkeypatch.setattr(target, "cache_bytes", {1: 4 << 10, 2: 40 << 10}.__getitem__)
        monkeypatch.setattr(winograd_weight_grad_chains, "CHAIN", 7)
        monkeypatch.setattr(winograd_weight_grad_cuts, "MOST_TASKS", 2)  # parts of several chains
        monkeypatch.setattr(winograd_weight_grad_cuts, "STRIP", 3)
        monkeypatch.setattr(winograd_weight_grad_cuts, "PIECE", 2)
    yield
    for function in cached:
        function.cache_clear()


def normal(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def computed(problem, x, grad_y, threads=2):
    place = Device("cpu", threads=threads)
    workspace = np.full(winograd_weight_grad.workspace_bytes(problem, place), 255, np.uint8)  # NaN, if read too early
    grad_w = np.full(problem.w_shape, np.nan, problem.dtype)
    winograd_weight_grad.run(problem, place, x, grad_y, grad_w, workspace=workspace)
    return grad_w


def relative_error(problem, x, grad_y, got):
    wanted = gate.exact(cases.Case("any", "any", problem), cases.Operands(x, np.zeros(problem.w_shape), None, grad_y))
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_cut_keeps_the_error_and_the_bits_whatever_the_threads(name, cut):
    x, w, keywords = PROBLEMS[name]
    problem = make_problem(x, w, "float32", pass_="weight_grad", **keywords)
    x, grad_y = normal(x, 0), normal(problem.y_shape, 1)
    results = [computed(problem, x, grad_y, threads) for threads in (1, 2, 5)]
    for grad_w in results:
        np.testing.assert_array_equal(grad_w, results[0])
    bound = accuracy.norm_relative(problem, "winograd_weight_grad")
    assert relative_error(problem, x, grad_y, results[0]) < bound < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("N", "size"), [(1, 15), (3, 40), (4, 60)])
def test_the_error_keeps_to_the_contract(N, size, dtype):
    """Within the bound, which is no wider than it must be: of one tile's sum and of several chains."""
    problem = make_problem((N, 8, size, size), (16, 8, 3, 3), dtype, padding=1, pass_="weight_grad")
    x, grad_y = normal(problem.x_shape, 0, dtype), normal(problem.y_shape, 1, dtype)
    bound = accuracy.norm_relative(problem, "winograd_weight_grad")
    error = relative_error(problem, x, grad_y, computed(problem, x, grad_y))
    assert error < bound
    assert dtype == "float64" or error > 0.3 * bound


def test_the_default_error_allows_batches_of_the_largest_maps():
    problem = make_problem((8, 64, 224, 224), (64, 64, 3, 3), np.float32, padding=1, pass_="weight_grad")
    assert accuracy.norm_relative(problem, "winograd_weight_grad") < 0.6 * accuracy.DEFAULT_MAX_ERROR


@pytest.mark.parametrize(("C", "K", "size"), [(64, 64, 224), (128, 256, 56), (512, 512, 14), (512, 512, 7)])
def test_it_is_chosen_where_it_wins(C, K, size):
    problem = make_problem((8, C, size, size), (K, C, 3, 3), np.float32, padding=1, pass_="weight_grad")
    assert choosing.choose(problem, Device("cpu", threads=2)) == "numba_cpu.winograd_weight_grad"


@pytest.mark.parametrize(("C", "K", "size"), [(1, 64, 64), (256, 256, 5), (4, 4, 16)])
def test_it_is_not_chosen_where_tiles_and_vectors_are_wasted(C, K, size):
    problem = make_problem((1, C, size, size), (K, C, 3, 3), np.float32, padding=1, pass_="weight_grad")
    assert choosing.choose(problem, Device("cpu", threads=2)) == "numba_cpu.weight_grad"


@pytest.mark.parametrize("threads", [1, 2, 16, 64])
@pytest.mark.parametrize(("C", "size"), [(64, 224), (512, 28), (2048, 14)])
def test_the_workspace_of_all_threads_is_limited(threads, C, size):
    problem = make_problem((8, C, size, size), (C, C, 3, 3), np.float32, padding=1, pass_="weight_grad")
    assert winograd_weight_grad.workspace_bytes(problem, Device("cpu", threads=threads)) < 64 << 20


@pytest.mark.parametrize("strides", ["reversed", "columns apart", "channels last"])
def test_any_strides_are_read(strides, cut):
    problem = make_problem((2, 16, 9, 33), (18, 16, 3, 3), "float32", padding=1, pass_="weight_grad")
    x, grad_y = normal(problem.x_shape, 0), normal(problem.y_shape, 1)
    wanted = computed(problem, x, grad_y)
    views = []
    for array in (x, grad_y):
        if strides == "reversed":
            view = array.copy()[:, ::-1, ::-1, ::-1]
            view[:] = array
        elif strides == "columns apart":
            view = np.full((*array.shape[:3], 3 * array.shape[3]), np.nan, np.float32)[..., ::3]
            view[:] = array
        else:
            view = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        views.append(view)
    np.testing.assert_array_equal(computed(problem, *views), wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("name", PROBLEMS)
def test_nothing_is_read_behind_the_arrays(name, cut):
    """Both operands end where a page ends behind which nothing may be read: a read there ends the process."""
    x, w, keywords = PROBLEMS[name]
    problem = make_problem(x, w, "float32", pass_="weight_grad", **keywords)
    x, grad_y = (before_a_guard(normal(shape, seed)) for seed, shape in enumerate((x, problem.y_shape)))
    assert relative_error(problem, x, grad_y, computed(problem, x, grad_y)) < 1e-5


def test_nan_spoils_its_channel_and_nothing_else():
    x, grad_y = normal((1, 16, 12, 12), 0), normal((1, 16, 12, 12), 1)
    x[0, 3, 5, 5] = np.nan
    call = {"padding": 1, "max_error": 5e-6, "algorithm": "winograd_weight_grad"}
    spoiled = np.isnan(convlib.conv2d_weight_grad(x, grad_y, (16, 16, 3, 3), **call))
    assert spoiled[:, 3].all()
    assert spoiled.sum() == spoiled[:, 3].sum()


@pytest.mark.parametrize(
    ("w", "keywords", "reason"),
    [
        ((8, 8, 5, 5), {}, "3 x 3 kernels only, got 5 x 5"),
        ((8, 8, 3, 3), {"stride": 2}, r"stride 1 only, got \(2, 2\)"),
        ((8, 8, 3, 3), {"dilation": (1, 2)}, r"dilation 1 only, got \(1, 2\)"),
        ((8, 8, 3, 3), {"max_error": 1e-8}, "its error bound is .*, max_error is 1.0e-08"),
    ],
)
def test_it_refuses_in_words(w, keywords, reason):
    shape = {k: v for k, v in keywords.items() if k != "max_error"}
    x, y = (normal(s, 0) for s in ((1, 8, 9, 9), make_problem((1, 8, 9, 9), w, np.float32, **shape).y_shape))
    with pytest.raises(convlib.UnsupportedError, match=reason):
        convlib.conv2d_weight_grad(x, y, w, algorithm="winograd_weight_grad", **keywords)
