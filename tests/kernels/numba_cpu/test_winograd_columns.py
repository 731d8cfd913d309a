"""Winograd down the columns: its contract wherever the arrays lie, and the choice between it and others."""

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device
from convlib.device import cpu
from convlib.kernels.numba_cpu import target, winograd_columns
from convlib.problem import make_problem
from convlib.strided import empty_aligned

FLOAT32 = np.dtype(np.float32)
CHOSEN = "numba_cpu.winograd_columns"

if target.vector_bytes() < 64:
    pytest.skip("needs AVX-512", allow_module_level=True)


def laid(shape, layout):
    """Of (N, C, H, W)."""
    return shape if layout == "NCHW" else (shape[0], *shape[2:], shape[1])


def made(x_shape, w_shape, seed=0, layout="NCHW", **keywords):
    """The problem and x, w, bias and residual of it. x_shape: (N, C, H, W)."""
    x_shape = laid(x_shape, layout)
    problem = make_problem(x_shape, w_shape, FLOAT32, layout=layout, **keywords)
    random = np.random.default_rng(seed)
    shapes = x_shape, w_shape, w_shape[:1], laid(problem.y_shape, layout)
    return problem, *(random.standard_normal(shape).astype(FLOAT32) for shape in shapes)


def columns(x, w, bias=None, **keywords):
    return convlib.conv2d(x, w, bias, algorithm="winograd_columns", **keywords)


layouts = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


@layouts
@pytest.mark.parametrize("C", [2, 3, 8])
def test_the_error_keeps_to_the_contract(C, layout):
    problem, x, w, _, _ = made((1, C, 24, 40), (32, C, 3, 3), padding=1, layout=layout)
    keywords = {"padding": 1, "layout": layout}
    exact = convlib.conv2d(x.astype(float), w.astype(float), algorithm="direct", **keywords)
    error = np.linalg.norm(columns(x, w, **keywords) - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "winograd_columns")
    assert bound / 2 < error < bound < 4e-7


@layouts
@pytest.mark.parametrize("activation", [None, "relu", "relu6", ("leaky_relu", 0.25), "silu"], ids=str)
def test_any_end_of_a_layer_in_any_memory(activation, layout):
    # NCHW: groups of 5 filters; 3 rows left of the last tile, columns in strips and a tile that starts early
    groups, K = (2, 10) if layout == "NCHW" else (1, 32)
    keywords = {"padding": ((0, 2), (3, 0)), "groups": groups, "layout": layout}
    _, x, w, bias, residual = made((2, 4, 7, 300), (K, 4 // groups, 3, 3), **keywords)
    keywords |= {"activation": activation}
    exact = convlib.conv2d(
        *(a.astype(float) for a in (x, w, bias)), residual=residual.astype(float), algorithm="direct", **keywords
    )
    plain = columns(x, w, bias, residual=residual, **keywords)
    np.testing.assert_allclose(plain, exact, atol=3e-5)
    every_other = np.full((*residual.shape[:3], 2 * residual.shape[3]), np.nan, FLOAT32)
    apart, more = every_other[..., ::2], np.repeat(residual, 2, axis=3)[..., ::2]
    columns(np.repeat(x, 2, axis=3)[..., ::2], w, bias, residual=more, out=apart, **keywords)
    np.testing.assert_array_equal(apart, plain)
    assert np.isnan(every_other[..., 1::2]).all()


def test_weights_that_repeat_are_not_taken_for_packed_ones():
    _, x, w, _, _ = made((1, 3, 9, 20), (6, 3, 3, 3))
    repeated = np.broadcast_to(w[:1], w.shape)
    np.testing.assert_array_equal(columns(x, repeated), columns(x, repeated.copy()))


@layouts
def test_plans_threads_and_stores_past_the_cache_change_no_bit(monkeypatch, layout):
    K, keywords = 9 if layout == "NCHW" else 48, {"padding": 1, "layout": layout}
    problem, x, w, bias, _ = made((1, 3, 22, 96), (K, 3, 3, 3), has_bias=True, **keywords)
    once = columns(x, w, bias, **keywords)
    plan = convlib.plan(x.shape, w, bias, algorithm="winograd_columns", **keywords)
    np.testing.assert_array_equal(plan(x), once)
    monkeypatch.setattr(winograd_columns, "PAST_CACHE_BYTES", 0)
    for cached in (winograd_columns.geometry, winograd_columns.prepared):
        monkeypatch.setattr(winograd_columns, cached.__name__, cached.__wrapped__)
    assert winograd_columns.stores_past_cache(problem)
    for threads in (1, 3):
        place = device.cpu_with(threads)
        workspace = empty_aligned((winograd_columns.one_call_bytes(problem, place),), np.uint8)
        y = empty_aligned(once.shape, FLOAT32)
        y.fill(np.nan)
        logical = (np.moveaxis(a, -1, 1) if layout == "NHWC" else a for a in (x, y))
        winograd_columns.run(problem, place, next(logical), w, next(logical), bias, workspace=workspace)
        np.testing.assert_array_equal(y, once)


@layouts
def test_nan_stays_within_the_rows_of_its_tiles_and_the_columns_that_read_it(layout):
    _, x, w, _, _ = made((1, 3, 20, 40), (16, 3, 3, 3), padding=1, layout=layout)
    x[(0, 1, 9, 17) if layout == "NCHW" else (0, 9, 17, 1)] = np.nan  # row 9: of the tile of rows 8 to 11 alone
    lost = np.isnan(columns(x, w, padding=1, layout=layout)[0])
    lost = lost if layout == "NCHW" else np.moveaxis(lost, -1, 0)
    assert lost[:, 8:11, 16:19].all()
    lost[:, 8:12, 16:19] = False
    assert not lost.any()


def test_tells_what_it_cannot_run():
    def reasons(x_shape=(1, 3, 20, 20), w_shape=(4, 3, 3, 3), **keywords):
        return "; ".join(winograd_columns.why_not(make_problem(x_shape, w_shape, FLOAT32, **keywords), cpu()))

    assert reasons() == ""
    assert reasons(stride=2, padding=16) == "stride 1 only, got (2, 2)"
    assert reasons(dilation=2) == "dilation 1 only, got (2, 2)"
    assert reasons((1, 9, 20, 20), (4, 9, 3, 3)) == "2 to 8 input channels a group, got 9"
    assert reasons((1, 3, 20, 17)) == "rows of at least 16 outputs, got 15"
    assert reasons(w_shape=(4, 3, 5, 3)) == "3 x 3 kernels only, got 5 x 3"
    assert reasons((1, 5, 6, 3), (16, 3, 3, 3), layout="NHWC") == ""
    assert reasons((1, 5, 5, 3), (16, 3, 3, 3), layout="NHWC") == "rows of at least 4 outputs, got 3"
    assert reasons((1, 9, 9, 3), layout="NHWC") == "a multiple of 16 filters in NHWC, got 4"
    two = reasons((1, 9, 9, 6), (32, 3, 3, 3), layout="NHWC", groups=2)
    assert two == "one group only in NHWC, got 2"


LAYERS = {  # C, size, K, layout: whether it is chosen where one multiply-add starts a cycle, and where two do
    "VGG-16": ((3, 224, 64, "NCHW"), True, False),
    "a photograph": ((3, 256, 3, "NCHW"), True, True),
    "half the size": ((3, 112, 64, "NCHW"), True, True),
    "six channels": ((6, 224, 32, "NCHW"), True, False),
    "one channel": ((1, 256, 64, "NCHW"), False, False),
    "VGG-16, channels last": ((3, 224, 64, "NHWC"), True, False),
    "many channels": ((16, 112, 32, "NCHW"), False, False),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_is_chosen_where_multiply_adds_outlast_the_stores(layer, monkeypatch):
    (C, size, K, layout), *expected = LAYERS[layer]
    for multiply_adds, is_chosen in enumerate(expected, start=1):
        monkeypatch.setattr(target, "multiply_adds_per_cycle", lambda count=multiply_adds: count)
        activation = ("leaky_relu", multiply_adds / 8)  # which nobody else has: choices are remembered
        x_shape, keywords = laid((1, C, size, size), layout), {"padding": 1, "layout": layout}
        problem = make_problem(x_shape, (K, C, 3, 3), FLOAT32, activation=activation, **keywords)
        assert (choosing.choose(problem, cpu()) == CHOSEN) == is_chosen
