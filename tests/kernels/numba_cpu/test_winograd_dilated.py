"""Dilated Winograd: every image's outputs are back in their places, in any layout, with all that a call may add."""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy
from convlib.device import cpu
from convlib.kernels.numba_cpu import dilated_parts, winograd, winograd_dilated
from convlib.problem import make_problem
from convlib.strided import empty_aligned

# images that are not equally large, filters that fill no vector, a dilation each way, windows that meet padding only
PROBLEMS = {
    "uneven images": ((2, 5, 13, 17), (7, 5, 3, 3), {"padding": 2, "dilation": 2}),
    "a dilation each way": ((1, 8, 9, 11), (20, 8, 3, 3), {"padding": (6, 1), "dilation": (6, 1)}),
    "larger than the image": ((1, 8, 5, 5), (4, 8, 3, 3), {"padding": 18, "dilation": 18}),
    "images of 2 x 2": ((1, 8, 7, 8), (20, 8, 3, 3), {"padding": 4, "dilation": 4}),
    "groups": ((1, 6, 11, 8), (6, 3, 3, 3), {"padding": 3, "dilation": 3, "groups": 2}),
}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_keeps_its_contract(name, layout, activation):
    x_shape, w_shape, keywords = PROBLEMS[name]
    keywords = {**keywords, "layout": layout, "activation": activation}
    order = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)
    x_shape = tuple(x_shape[axis] for axis in order)
    problem = make_problem(x_shape, w_shape, np.dtype(np.float32), has_bias=True, **keywords)
    random = np.random.default_rng(0)
    x, w, bias = (random.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    exact = convlib.conv2d(*(array.astype(np.float64) for array in (x, w, bias)), algorithm="direct", **keywords)
    y = np.full(exact.shape, np.nan, np.float32)  # an output never written stays NaN
    convlib.conv2d(x, w, bias, algorithm="winograd_dilated", out=y, **keywords)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "winograd_dilated")


def test_tells_what_it_cannot_run():
    shapes = (1, 8, 16, 16), (8, 8, 3, 3), np.dtype(np.float32)
    assert winograd_dilated.why_not(make_problem(*shapes, dilation=2), cpu()) == []
    assert "dilated windows only" in winograd_dilated.why_not(make_problem(*shapes), cpu())[0]
    assert "stride 1 only" in winograd_dilated.why_not(make_problem(*shapes, dilation=2, stride=2), cpu())[0]


def test_images_of_one_size_are_a_part():
    """28 rows and 30 columns at dilation 18: images of 2 and of 1 pixel each way, and for each the window it meets."""
    problem = make_problem((1, 512, 28, 30), (512, 512, 3, 3), np.dtype(np.float32), padding=18, dilation=18)
    some = dilated_parts.parts(problem, cpu())
    windows = [(part.problem.R, part.problem.S) for part in some]
    assert windows == [(3, 3), (3, 1), (1, 3), (1, 1)]
    images = [getattr(part.problem, "images", None) for part in some]
    assert images == [(10, 12), (10, 1), (1, 12), None]
    assert (some[3].problem.H, some[3].problem.W) == (8, 6)


BY_SIZE = {  # x, w, dilation
    "2 and 1 pixels": ((2, 32, 28, 30), (40, 32, 3, 3), 18),
    "3 and 2 pixels": ((1, 19, 28, 27), (17, 19, 3, 3), 12),
    "wide windows": ((1, 16, 35, 37), (24, 16, 5, 5), 16),
}


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("name", BY_SIZE)
def test_parts_and_the_whole_agree(name, parts, layout, planned, monkeypatch):
    choose(monkeypatch, among_others=0.0 if parts > 1 else 1e9)
    compare(*BY_SIZE[name], parts, layout=layout, planned=planned)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_blocks_of_channels_add_up(activation, monkeypatch):
    """Three blocks, of which the last is short; images of 6 and 5 columns, whose vectors of outputs overlap."""
    choose(monkeypatch, among_others=1e9)
    monkeypatch.setattr(dilated_parts, "MOST_WORKSPACE", 130_000)
    monkeypatch.setattr(winograd, "packs_first", lambda *_: True)
    compare((1, 40, 33, 33), (24, 40, 3, 3), 6, 1, blocks=3, activation=activation)


def choose(monkeypatch, among_others):
    """Parts where they are predicted to take no time, the whole where they are to take long."""
    monkeypatch.setattr(dilated_parts, "AMONG_OTHERS", among_others)
    monkeypatch.setattr(dilated_parts, "PACKED_AMONG_OTHERS", among_others)
    monkeypatch.setattr(dilated_parts, "parts", dilated_parts.parts.__wrapped__)
    monkeypatch.setattr(winograd_dilated, "parts", dilated_parts.parts)


def compare(x_shape, w_shape, dilation, parts, blocks=0, layout="NCHW", planned=False, activation="relu"):
    """Whole numbers, which Winograd's errors leave the nearest ones, with bias and residual, in scratch memory of the
    size that was asked for.
    """
    random, device = np.random.default_rng(0), cpu()
    x, w, bias = (random.integers(-4, 5, shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    residual = random.integers(-9, 10, (x_shape[0], w_shape[0], *x_shape[2:])).astype(np.float32)
    keywords = {"padding": dilation * (w_shape[2] // 2), "dilation": dilation, "activation": activation}
    exact = convlib.conv2d(x, w, bias, residual=residual, algorithm="direct", **keywords)
    y = np.full_like(exact, np.nan)  # an output never written stays NaN
    if layout == "NHWC":
        x, y, residual = (array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for array in (x, y, residual))
    problem = replace(
        make_problem(x_shape, w_shape, x.dtype, has_bias=True, **keywords), has_residual=True, layout=layout
    )
    some = winograd_dilated.parts(problem, device, packed=planned)
    assert (len(some), len(some[0].blocks)) == (parts, blocks)
    count, weights = winograd_dilated.one_call_bytes(problem, device), w
    if planned:
        count = winograd_dilated.workspace_bytes(problem, device)
        weights = empty_aligned((winograd_dilated.packed_bytes(problem, device),), np.uint8)
        winograd_dilated.pack(problem, device, w, weights)
    winograd_dilated.run(problem, device, x, weights, y, bias, residual, empty_aligned((count,), np.uint8))
    np.testing.assert_array_equal(np.rint(y), exact)
    np.testing.assert_allclose(y, exact, atol=0.1)
