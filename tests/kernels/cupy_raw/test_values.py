"""Every CUDA C kernel against the reference, launched through the seam and run on the CPU by g++ (on_cpu.py)."""

from dataclasses import replace

import numpy as np
import pytest

from convlib import operands, strided
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_weight_grad,
    direct,
    im2col,
    implicit_gemm,
    tiled,
    weight_grad,
    weight_grad_direct,
    weight_grad_splits,
)
from convlib.problem import make_problem
from convlib.verification.problems import SMALL, TINY, Case, arrays_of, logical_arrays
from tests.kernels.cupy_raw import on_cpu
from tests.kernels.cupy_raw.against_reference import GPU, check, check_weight_grad, convolved, served

pytestmark = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

KERNELS = {"direct": direct, "tiled": tiled, "im2col": im2col, "implicit_gemm": implicit_gemm, "depthwise": depthwise}


@pytest.mark.parametrize(("name", "case"), served(KERNELS, TINY + SMALL), ids=str)
def test_equals_the_reference(name, case):
    check(KERNELS[name], name, case)


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", ("leaky_relu", 0.25)], ids=str)
def test_a_nan_stays_one_under_every_activation(activation):
    """A comparison the other way round loses it, as fmax does."""
    case = Case("nan", (1, 1, 2, 3), (1, 1, 1, 1), {"activation": activation})
    x, w, _, _, out = arrays_of(case)
    x[...], w[...] = [[[[np.nan, -2, 7], [1, 0, 2]]]], 1
    y = convolved(direct, case, x, w, None, None, out)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


# Small problems get small tiles, so the others are put here by force, on a problem that sticks out of all of them.
STICKING_OUT = Case("sticking_out", (2, 11, 21, 37), (35, 11, 3, 3), {"padding": 1}, bias=True, memory="slices")
STRIDED = Case("strided", (1, 11, 45, 70), (35, 11, 3, 3), {"padding": 1, "stride": 2}, residual=True, memory="slices")
TILES = [(columns, *shape) for shape in tiled.SHAPES for columns in (32, 16, 8)]


@pytest.mark.parametrize("number", range(len(TILES)), ids=[str(tile) for tile in TILES])
def test_every_tile_of_the_tiled_kernel_equals_the_reference(number, monkeypatch):
    columns, filters, rows, warps_p, warps_k = TILES[number]
    case = (STICKING_OUT, STRIDED)[number % 2]
    tile = tiled.Tile(columns, rows, filters, warps_p, warps_k, channels=4)
    if tiled.shared_bytes(case.problem(), tile) > tiled.SHARED_BYTES:
        tile = tile._replace(channels=1)
    monkeypatch.setattr(tiled, "tile_for", lambda problem, device: tile)
    check(tiled, "tiled", case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_every_tile_of_the_matrix_product_equals_the_reference(wanted, dtype, monkeypatch):
    tile_k = (4, 8, 16)[wanted] * im2col.EACH[np.dtype(dtype).itemsize]
    monkeypatch.setattr(im2col, "gemm_seconds", lambda problem, device, sizes: abs(sizes.tile_k - tile_k))
    monkeypatch.setattr(im2col, "COLUMNS_BYTES", 1)  # and many slices
    im2col.matrices.cache_clear()
    case = replace(STICKING_OUT, dtype=dtype)
    assert im2col.matrices(case.problem(), GPU).tile_k == tile_k
    check(im2col, "im2col", case)
    im2col.matrices.cache_clear()


# Each way of walking along d, for every tile of the implicit product: whole stages of channels and others, taps inner,
# channels side by side, pixels side by side; in one piece, and in three that leave the last one short.
WALKS = {
    "whole": Case("whole", (2, 32, 9, 11), (70, 16, 3, 3), {"padding": 1, "groups": 2}, bias=True, memory="slices"),
    "part": Case("part", (2, 20, 9, 11), (35, 20, 3, 2), {"dilation": (1, 2)}, residual=True, memory="slices"),
    "taps": Case("taps", (2, 11, 9, 11), (35, 11, 3, 3), {"stride": 2, "padding": 2}, bias=True, memory="slices"),
    "together": Case("together", (2, 9, 11, 20), (36, 20, 3, 3), {"padding": 1, "layout": "NHWC"}, True, True),
    "together_whole": Case("together_whole", (2, 9, 11, 48), (33, 16, 3, 3), {"groups": 3, "layout": "NHWC"}),
    "pointwise": Case("pointwise", (2, 40, 6, 10), (70, 40, 1, 1), {}, bias=True, residual=True),
    "pointwise_part": Case("pointwise_part", (3, 68, 9, 12), (70, 34, 1, 1), {"groups": 2, "activation": "relu"}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("tile", implicit_gemm.ALL_TILES, ids=str)
def test_every_tile_and_walk_of_the_implicit_product_equals_the_reference(tile, walk, splits, dtype, monkeypatch):
    case = replace(WALKS[walk], dtype=dtype)
    cut = force_cut(monkeypatch, case.problem(), tile, splits)
    assert (cut.splits, cut.taps_inner) == (splits, walk == "taps")
    together = implicit_gemm.loaded_together
    taken = []
    monkeypatch.setattr(implicit_gemm, "loaded_together", lambda *given: taken.append(together(*given)) or taken[-1])
    check(implicit_gemm, "implicit_gemm", case)
    pointwise, channels = walk.startswith("pointwise"), walk.startswith("together")
    channels &= (dtype, tile[0]) != ("float64", 16)  # too many threads for that
    assert taken == ["PIXELS" if pointwise else "CHANNELS" if channels else "NONE"]


@pytest.mark.parametrize(
    ("tile", "walk"), [((16, 16), "together"), ((8, 8), "whole"), ((4, 8), "pointwise_part")], ids=str
)
def test_whole_tiles_and_split_ones_of_a_last_wave_equal_the_reference(tile, walk, monkeypatch):
    cut = force_cut(monkeypatch, WALKS[walk].problem(), tile, splits=2, whole=1)
    assert cut.whole == 1
    assert cut.split_tiles >= 1
    check(implicit_gemm, "implicit_gemm", WALKS[walk])


# Slices of a block share its stages: as many pixels as meet every way to load, and stages for each slice.
SLICED = {
    "taps": ((8, 8), 2, replace(WALKS["taps"], x=(2, 8, 9, 11), w=(35, 8, 3, 4))),
    "channels": ((4, 16), 2, WALKS["together_whole"]),
    "pixels": ((4, 8), 4, replace(WALKS["pointwise"], x=(2, 32, 6, 10), w=(70, 32, 1, 1))),
    "four": ((8, 8), 4, replace(WALKS["together_whole"], x=(2, 9, 11, 96), w=(33, 32, 3, 3))),
    "large": ((16, 8), 2, replace(WALKS["pointwise"], x=(2, 32, 6, 10), w=(70, 32, 1, 1))),
    "float64": ((8, 8), 2, replace(WALKS["whole"], dtype="float64")),
    "narrow": ((4, 4), 2, replace(WALKS["together_whole"], x=(2, 9, 11, 96), w=(33, 32, 3, 3))),
    "narrow_pixels": ((4, 4), 4, replace(WALKS["pointwise"], x=(2, 32, 6, 10), w=(70, 32, 1, 1))),
    "narrow_float64": ((4, 4), 2, replace(WALKS["whole"], dtype="float64")),
}


@pytest.mark.parametrize("name", SLICED)
def test_slices_of_a_block_equal_the_reference(name, monkeypatch):
    tile, slices, case = SLICED[name]
    force_cut(monkeypatch, case.problem(), tile, splits=1, slices=slices)
    check(implicit_gemm, "implicit_gemm", case)


# Weights in the order of d already, which no launch packs: all of a stage, and stages that end amid a filter's numbers.
AS_THEY_LIE = {
    "pointwise": WALKS["pointwise"],
    "strided": Case("strided", (2, 24, 9, 11), (70, 12, 1, 1), {"groups": 2, "stride": 2}, memory="broadcast"),
    "channels": Case("channels", (2, 6, 10, 40), (40, 20, 1, 1), {"layout": "NHWC", "groups": 2}, bias=True),
    "windows": replace(WALKS["together"], x=(2, 9, 11, 24), w=(36, 3, 3, 24), keywords={
        "padding": 1, "layout": "NHWC", "weight_layout": "OHWI"}),
    "taps": Case("taps", (2, 4, 9, 11), (35, 4, 3, 3), {"padding": 1}),
    "float16": Case("float16", (2, 20, 6, 10), (36, 20, 1, 1), bias=True, dtype="float16"),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_THEY_LIE)
@pytest.mark.parametrize("tile", implicit_gemm.ALL_TILES, ids=str)
def test_weights_in_order_are_read_as_they_lie_and_equal_the_reference(tile, name, monkeypatch):
    case = AS_THEY_LIE[name]
    splits = 2 if name == "windows" else 1
    force_cut(monkeypatch, case.problem(), tile, splits)
    check(implicit_gemm, "implicit_gemm", case)
    assert started(case) == ["conv2d_implicit_gemm"] + ["sum_splits"] * (splits - 1)


def test_weights_of_float64_are_read_as_they_lie(monkeypatch):
    case = replace(AS_THEY_LIE["pointwise"], dtype="float64")
    force_cut(monkeypatch, case.problem(), (8, 8), splits=1)
    check(implicit_gemm, "implicit_gemm", case)
    assert started(case) == ["conv2d_implicit_gemm"]


@pytest.mark.parametrize(
    ("shape", "memory"),
    [((70, 6, 1, 1), "contiguous"), ((70, 16, 3, 3), "contiguous"), ((70, 16, 1, 1), "slices")],
    ids=["rows_not_of_16_bytes", "another_order", "gaps"],
)
def test_other_weights_are_packed_first(shape, memory):
    case = Case("packed", (1, shape[1], 9, 9), shape, memory=memory)
    assert started(case)[:2] == ["pack_filters", "conv2d_implicit_gemm"]


def started(case):
    """The functions that a single call launches."""
    x, w, bias, residual, out = arrays_of(case)
    y = out.transpose(operands.FROM_LAYOUT[case.problem().layout])
    views = (strided.as_storage(view) for view in (*logical_arrays(case, x, w, bias, residual), y))
    x, w, bias, residual, y = views
    workspace = np.zeros(implicit_gemm.one_call_bytes(case.problem(), GPU), np.uint8)
    with launching.recording() as launches:
        implicit_gemm.run(case.problem(), GPU, x, w, y, bias, residual, workspace)
    return [launch.kernel.function for launch in launches]


def force_cut(monkeypatch, problem, tile, splits, whole=0, slices=1):
    cut = implicit_gemm.cut_of(problem, implicit_gemm.tile_of(problem, tile, slices), splits, whole)
    assert cut.depth // implicit_gemm.DEPTH % slices == 0
    monkeypatch.setattr(implicit_gemm, "cut_for", lambda problem, device: cut)
    return cut


BACKWARD = {
    "weight_grad": weight_grad,
    "weight_grad_direct": weight_grad_direct,
    "depthwise_weight_grad": depthwise_weight_grad,
}
NO_RESIDUAL = [case for case in TINY + SMALL if not case.residual and 0 not in case.x]


@pytest.mark.parametrize(("name", "case"), served(BACKWARD, NO_RESIDUAL, "weight_grad"), ids=str)
def test_weight_gradients_equal_the_reference(name, case):
    check_weight_grad(BACKWARD[name], case)


@pytest.mark.parametrize("name", BACKWARD)
def test_an_infinite_pixel_reaches_the_taps_that_meet_it_alone(name):
    """Of a strip's last rows some do not exist, of a stage's last pixels too: of these no tap takes anything."""
    problem = make_problem((1, 2, 7, 9), (2, 1, 3, 3), np.float32, groups=2, pass_="weight_grad")
    x, grad_y, grad_w = (np.ones(shape, np.float32) for shape in (problem.x_shape, problem.y_shape, problem.w_shape))
    x[:, :, -1] = np.inf
    workspace = np.full(BACKWARD[name].workspace_bytes(problem, GPU), 0xFF, np.uint8)
    with on_cpu.kernels_on_cpu():
        BACKWARD[name].run(problem, GPU, x, grad_y, grad_w, workspace=workspace)
    np.testing.assert_array_equal(grad_w, reference.weight_grad(problem, x, grad_y))


WEIGHTS = Case("weights", (3, 11, 13, 10), (70, 11, 3, 2), {"padding": (1, 2), "stride": (1, 2)}, memory="slices")
RUNS = Case("weights_runs", (2, 32, 11, 15), (80, 16, 3, 3), {"groups": 2, "padding": (1, 2), "dilation": (2, 1)})
GROUPS = Case("weights_groups", (2, 13, 10, 24), (70, 12, 3, 3), {"groups": 2, "dilation": 2, "layout": "NHWC"})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", weight_grad.TILES, ids=str)
@pytest.mark.parametrize("in_runs", [False, True])
def test_every_tile_of_the_weight_gradient_equals_the_reference(in_runs, tile, splits, dtype, monkeypatch):
    case = replace(RUNS if in_runs else (WEIGHTS, GROUPS)[tile[0] // 16], dtype=dtype)
    problem = replace(case.problem(), pass_="weight_grad")
    each = weight_grad_splits.EACH[problem.accumulate.itemsize]
    cut = weight_grad_splits.cut_of(problem, tile[0] * each, tile[1] * each, splits)
    assert cut.splits == splits
    monkeypatch.setattr(weight_grad, "cut_for", lambda problem, device: cut)
    check_weight_grad(weight_grad, case)


@pytest.mark.parametrize("case", [WEIGHTS, GROUPS], ids=str)
def test_the_direct_weight_gradient_splits_pixels_and_taps(case, monkeypatch):
    monkeypatch.setattr(weight_grad_direct, "FEWEST_PIXELS", 40)
    weight_grad_direct.cut_for.cache_clear()
    case = replace(case, w=(*case.w[:2], 7, 7), keywords={**case.keywords, "padding": 6})  # 49: 25 taps, then 24
    assert weight_grad_direct.cut_for(replace(case.problem(), pass_="weight_grad"), GPU)[:1] == (2,), "two chunks"
    check_weight_grad(weight_grad_direct, case)
    weight_grad_direct.cut_for.cache_clear()
