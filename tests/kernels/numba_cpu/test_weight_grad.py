"""The CPU weight gradient, in every way that it copies and cuts: exact sums of small integers."""

import sys

import numpy as np
import pytest

from benchmarks import cases, gate
from convlib.device import Device
from convlib.kernels.numba_cpu import (
    target,
    weight_grad,
    weight_grad_cuts,
    weight_grad_depthwise,
    weight_grad_pixels,
)
from convlib.kernels.numba_cpu.vectors import lanes
from convlib.problem import make_problem

from .guarded_pages import before_a_guard

MODES = {
    weight_grad_cuts.SHIFTED: "shifted",
    weight_grad_cuts.COLUMNS: "columns",
    weight_grad_cuts.WINDOWS: "windows",
    weight_grad_cuts.BATCHED: "batched",
}

DEPTHWISE = "depthwise" if target.vector_bytes() >= 32 else "pixels"

# name -> x, w, keywords, and how x comes to the micro-kernel
PROBLEMS = {
    "1x1, in place": ((3, 16, 9, 13), (70, 16, 1, 1), {}, "in place"),
    "3x3 without padding, in place": ((2, 8, 11, 18), (33, 8, 3, 3), {}, "in place"),
    "1x1 of odd channels": ((2, 13, 9, 13), (20, 13, 1, 1), {}, "shifted"),
    "3x3 on a wide map": ((2, 16, 7, 40), (33, 16, 3, 3), {"padding": 1}, "shifted"),
    "3x3 on a narrow map": ((2, 16, 9, 9), (70, 16, 3, 3), {"padding": 1}, "columns"),
    "3x3 on a small map": ((5, 16, 7, 7), (70, 16, 3, 3), {"padding": 1}, "batched"),
    "3x3 on one small map": ((1, 16, 7, 7), (70, 16, 3, 3), {"padding": 1}, "columns"),
    "small maps and groups": ((3, 32, 5, 6), (70, 16, 3, 2), {"padding": ((2, 0), (1, 1)), "groups": 2}, "batched"),
    "few channels": ((2, 3, 19, 23), (20, 3, 5, 3), {"padding": ((0, 3), (2, 1)), "stride": (1, 2)}, "windows"),
    "first layer": ((2, 3, 25, 37), (22, 3, 7, 7), {"padding": 3, "stride": 2}, "pixels"),
    "one channel": ((3, 1, 9, 42), (6, 1, 3, 4), {"padding": ((0, 3), (2, 1))}, "pixels"),
    "few channels, dilated": ((2, 8, 15, 50), (18, 4, 2, 3), {"groups": 2, "dilation": (2, 3), "stride": 3}, "pixels"),
    "1x1, stride 2": ((2, 16, 15, 63), (20, 16, 1, 1), {"stride": 2}, "shifted"),
    "3x3, stride 2": ((2, 16, 13, 65), (20, 16, 3, 3), {"stride": 2, "padding": 1}, "shifted"),
    "3x3, stride 2, narrow": ((2, 16, 18, 18), (70, 16, 3, 3), {"stride": 2, "padding": 1}, "columns"),
    "3x3, stride 2, small": ((9, 16, 14, 14), (70, 16, 3, 3), {"stride": 2, "padding": 1}, "batched"),
    "1x1, stride 2, small": ((5, 24, 14, 14), (70, 24, 1, 1), {"stride": 2}, "batched"),
    "stride 3, small": ((9, 16, 14, 14), (70, 16, 3, 3), {"stride": 3, "padding": 1}, "batched"),
    "3x3, stride 3, dilation 2": ((2, 16, 19, 70), (20, 16, 3, 3), {"stride": 3, "dilation": 2}, "shifted"),
    "groups": ((2, 24, 9, 50), (40, 12, 3, 3), {"groups": 2, "padding": 1}, "shifted"),
    "depthwise": ((2, 6, 21, 20), (6, 1, 3, 3), {"groups": 6, "padding": 1}, DEPTHWISE),
    "depthwise on a narrow map": ((2, 6, 240, 6), (6, 1, 3, 3), {"groups": 6, "padding": 1, "stride": 2}, DEPTHWISE),
    "depthwise on small maps": ((5, 6, 7, 7), (6, 1, 5, 5), {"groups": 6, "padding": 2}, DEPTHWISE),
    "depthwise, dilated": (
        (3, 5, 19, 37),
        (10, 1, 3, 3),
        {"groups": 5, "dilation": (2, 3), "padding": 2, "stride": (2, 1)},
        DEPTHWISE,
    ),
    "depthwise, stride 2": ((4, 3, 11, 70), (3, 1, 3, 5), {"groups": 3, "stride": 2, "dilation": (1, 3)}, DEPTHWISE),
    "depthwise, 7x7": ((2, 5, 15, 33), (5, 1, 7, 7), {"groups": 5, "padding": 3}, DEPTHWISE),
    "depthwise, channels last": (
        (2, 21, 20, 21),
        (21, 1, 3, 3),
        {"groups": 21, "padding": 1, "layout": "NHWC"},
        DEPTHWISE,
    ),
    "depthwise, 7x7, channels last": (
        (2, 15, 9, 40),
        (40, 1, 7, 7),
        {"groups": 40, "padding": (2, 3), "stride": 2, "layout": "NHWC"},
        DEPTHWISE,
    ),
    "depthwise, scattered": ((2, 6, 9, 20), (6, 1, 3, 3), {"groups": 6, "padding": 1}, "windows"),
    "large": ((1, 160, 70, 90), (24, 160, 3, 3), {"padding": 1}, "shifted"),
}


def integers(shape, seed):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def operands(name):
    """The problem, x and grad_y; small integers. For "windows" columns of grad_y are no neighbours."""
    x, w, keywords, way = PROBLEMS[name]
    problem = make_problem(x, w, "float32", pass_="weight_grad", **keywords)
    x, grad_y = in_memory(problem, integers(problem.x_shape, 0)), in_memory(problem, integers(problem.y_shape, 1))
    return problem, x, np.asfortranarray(grad_y) if way == "windows" else grad_y


def in_memory(problem, array, place=np.ascontiguousarray):
    """The same numbers as the problem's layout has them in memory."""
    return place(array) if problem.layout == "NCHW" else place(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def way_of(problem, x, grad_y):
    if weight_grad_depthwise.serves(problem) and weight_grad_depthwise.takes(problem, x, grad_y):
        return "depthwise"
    if weight_grad_pixels.serves(problem) and weight_grad_pixels.takes(grad_y):
        return "pixels"
    mode = weight_grad.mode_of(problem)
    return "in place" if weight_grad.lies_in_place(problem, mode, x) else MODES[mode]


def computed(problem, x, grad_y, threads=2):
    place = Device("cpu", threads=threads)
    workspace = np.full(weight_grad.workspace_bytes(problem, place), 255, np.uint8)  # NaN, where it is read too early
    grad_w = np.full(problem.w_shape, np.nan, np.float32)
    weight_grad.run(problem, place, x, grad_y, grad_w, workspace=workspace)
    return grad_w


def exact(problem, x, grad_y):
    return gate.exact(cases.Case("any", "any", problem), cases.Operands(x, np.zeros(problem.w_shape), None, grad_y))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_way_is_taken_and_exact(name, threads):
    problem, x, grad_y = operands(name)
    assert way_of(problem, x, grad_y) == PROBLEMS[name][-1]
    np.testing.assert_array_equal(computed(problem, x, grad_y, threads), exact(problem, x, grad_y))


def forget():
    for module in (weight_grad, weight_grad_pixels, weight_grad_depthwise):
        module.prepared.cache_clear()
    for module in (weight_grad_pixels, weight_grad_depthwise):
        module.geometry.cache_clear()
    weight_grad.cuts.cache_clear()


@pytest.fixture
def small_caches(monkeypatch):
    forget()
    vector = 4 * lanes(np.float32)
    monkeypatch.setattr(target, "cache_bytes", {1: 64 * vector, 2: 40 << 10}.__getitem__)
    monkeypatch.setattr(weight_grad_pixels, "CHAIN", 150)
    monkeypatch.setattr(weight_grad_depthwise, "CHAIN", 30)
    yield
    forget()


@pytest.mark.parametrize("name", PROBLEMS)
def test_slabs_and_chunks_change_nothing(name, small_caches):
    problem, x, grad_y = operands(name)
    if way_of(problem, x, grad_y) == "depthwise":
        cut = dict(zip(weight_grad_depthwise.GEOMETRY, weight_grad_depthwise.geometry(problem)[0], strict=True))
        assert cut["groups_of_images"] * cut["bands"] > 1
    elif way_of(problem, x, grad_y) == "pixels":
        assert (
            dict(zip(weight_grad_pixels.GEOMETRY, weight_grad_pixels.geometry(problem, 2)[0], strict=True))["bands"] > 1
        )
    else:
        cut = dict(zip(weight_grad.CUTS, weight_grad.cuts(problem, 2)[0], strict=True))
        assert cut["slab"] < problem.P or cut["chunk"] < cut["batch"] * cut["slab"] * cut["pitch"]
    np.testing.assert_array_equal(computed(problem, x, grad_y), exact(problem, x, grad_y))


@pytest.mark.parametrize("strides", ["reversed", "columns apart", "channels last"])
def test_any_strides_are_read(strides):
    problem = make_problem((2, 16, 9, 13), (18, 16, 1, 1), "float32", pass_="weight_grad")
    x, grad_y = integers(problem.x_shape, 0), integers(problem.y_shape, 1)
    wanted = exact(problem, x, grad_y)
    for array in (x, grad_y):
        before = array.copy()
        if strides == "reversed":
            view = array[:, :, ::-1, ::-1]
            view[:] = before
        elif strides == "columns apart":
            view = np.full((*array.shape[:3], 3 * array.shape[3]), np.nan, np.float32)[..., ::3]
            view[:] = before
        else:
            view = np.ascontiguousarray(before.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        x, grad_y = (view, grad_y) if array is x else (x, view)
    np.testing.assert_array_equal(computed(problem, x, grad_y), wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mprotect")
@pytest.mark.parametrize("name", PROBLEMS)
def test_nothing_is_read_behind_the_arrays(name):
    """Both operands end where a page ends behind which nothing may be read: a read there ends the process."""
    x_shape, w, keywords, _ = PROBLEMS[name]
    problem = make_problem(x_shape, w, "float32", pass_="weight_grad", **keywords)
    shapes = problem.x_shape, problem.y_shape
    x, grad_y = (in_memory(problem, integers(shape, seed), before_a_guard) for seed, shape in enumerate(shapes))
    np.testing.assert_array_equal(computed(problem, x, grad_y), exact(problem, x, grad_y))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_depthwise_infinities_that_no_output_reads_change_nothing(layout):
    """Nor do they where rows of outputs are left over, or a vector's lanes are."""
    x_shape = (2, 12, 18, 3) if layout == "NHWC" else (2, 3, 12, 18)
    problem = make_problem(x_shape, (3, 1, 3, 3), "float32", pass_="weight_grad", stride=2, groups=3, layout=layout)
    x, grad_y = integers(problem.x_shape, 0), integers(problem.y_shape, 1)
    wanted = exact(problem, x, grad_y)
    x[:, :, 11], x[:, :, :, 17] = np.inf, np.nan
    np.testing.assert_array_equal(computed(problem, in_memory(problem, x), in_memory(problem, grad_y)), wanted)
