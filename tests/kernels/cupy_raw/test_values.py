"""Every CUDA C kernel against the reference, launched through the seam and run on the CPU by g++ (on_cpu.py)."""

from dataclasses import replace

import numpy as np
import pytest

from convlib import accuracy, device, dispatch, operations, strided
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_input_grad,
    depthwise_tiles,
    depthwise_weight_grad,
    direct,
    im2col,
    implicit_gemm,
    tiled,
    weight_grad,
    weight_grad_direct,
    weight_grad_splits,
)
from convlib.verification.problems import SMALL, TINY, UNWRITTEN, Case, arrays_of, expected, logical_arrays, placed
from tests.kernels.cupy_raw import on_cpu

pytestmark = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

KERNELS = {"direct": direct, "tiled": tiled, "im2col": im2col, "implicit_gemm": implicit_gemm, "depthwise": depthwise}
GPU = device.emulator_of(80)


def served(kernels, cases, pass_="forward"):
    """The pairs of a kernel's name and a case that it takes: all, except that depthwise kernels take only such."""

    def takes(name, problem):
        filters = problem.Kg == 1 or pass_ == "forward"
        return not name.startswith("depthwise") or (problem.Cg == 1 and filters)

    return [(name, case) for name in kernels for case in cases if takes(name, case.problem(pass_))]


def convolved(kernel, case, x, w, bias, residual, out):
    """What `kernel` writes into `out` for `case`; its workspace starts as NaNs."""
    problem = case.problem()
    assert kernel.why_not(problem, GPU) == []
    views = logical_arrays(case, x, w, bias, residual)
    y = out.transpose(operations.FROM_LAYOUT[problem.layout])
    x, w, bias, residual, y = (strided.as_storage(view) for view in (*views, y))
    workspace = strided.empty_aligned((dispatch.one_call_bytes(kernel, problem, GPU),), np.uint8)
    workspace.fill(0xFF)
    with on_cpu.kernels_on_cpu():
        kernel.run(problem, GPU, x, w, y, bias, residual, workspace)
    return y.view(problem.dtype) if y.dtype == np.uint16 else y


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
    monkeypatch.setattr(im2col, "gemm_seconds", lambda problem, device, tile, tile_m: abs(tile - tile_k))
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
    "channels": Case("channels", (2, 6, 10, 20), (36, 20, 1, 1), {"layout": "NHWC"}, bias=True),
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
    y = out.transpose(operations.FROM_LAYOUT[case.problem().layout])
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


GRADIENTS_OF_X = [
    Case("padding_beyond_the_stride", (2, 3, 12, 9), (3, 1, 3, 5), {"groups": 3, "stride": (2, 3), "padding": (4, 7)}),
    Case("no_tap_for_some", (1, 5, 10, 11), (5, 1, 1, 2), {"groups": 5, "stride": 3}),
    Case("dilated", (1, 3, 14, 15), (3, 1, 3, 3), {"groups": 3, "stride": (2, 3), "dilation": (3, 2), "padding": 2}),
    Case("pieces_of_rows", (1, 2, 9, 1100), (2, 1, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    Case("channels", (2, 20, 21, 40), (40, 1, 5, 5), {"groups": 40, "stride": 2, "padding": 2, "layout": "NHWC"}),
    Case(
        "channels_apart", (1, 9, 9, 36), (36, 1, 3, 3), {"groups": 36, "stride": 2, "layout": "NHWC"}, memory="slices"
    ),
    Case("few_channels", (2, 9, 13, 5), (5, 1, 3, 3), {"groups": 5, "stride": 2, "padding": 1, "layout": "NHWC"}),
    Case("reversed", (1, 4, 9, 12), (4, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}, memory="reversed"),
]
OF_X = GRADIENTS_OF_X + [case for name, case in served(["depthwise"], NO_RESIDUAL, "weight_grad") if not case.bias]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("case", [case for case in OF_X if case.problem().R < 15], ids=str)
def test_the_depthwise_input_gradient_equals_the_reference(case, dtype):
    case = replace(case, dtype=dtype)
    problem = case.problem("input_grad")
    assert depthwise_input_grad.why_not(problem, GPU) == []
    order = operations.FROM_LAYOUT[problem.layout]
    _, w, *_ = arrays_of(case)
    w = logical_arrays(case, np.empty(case.x), w, None, None)[1]
    random = np.random.default_rng(1)
    grad_y = placed(random.integers(-3, 4, operations.result_shape(problem, True)).astype(w.dtype), case.memory).view
    grad_x = placed(np.full(case.x, np.nan).astype(w.dtype), case.result_memory).view
    views = [strided.as_storage(view) for view in (grad_y.transpose(order), w, grad_x.transpose(order))]
    with on_cpu.kernels_on_cpu():
        depthwise_input_grad.run(problem, GPU, *views)
    exact = reference.input_grad(problem, grad_y.transpose(order), w)
    np.testing.assert_array_equal(grad_x.transpose(order).astype(float), exact.astype(w.dtype).astype(float))


def test_the_depthwise_input_gradient_refuses_what_it_does_not_compute():
    case = Case("several", (1, 4, 30, 30), (8, 2, 13, 13), {"groups": 2, "stride": 2})
    assert depthwise_input_grad.why_not(case.problem("input_grad"), GPU) == [
        "takes one channel and one filter per group, this problem has 2 and 4"
    ]
    case = replace(case, w=(4, 1, 13, 13), keywords={"groups": 4, "stride": 2})
    problem = replace(case.problem("input_grad"), has_bias=True)
    assert depthwise_input_grad.why_not(problem, GPU) == [
        "windows of at most 121 taps, got 13 x 13", "adds no bias or residual and applies no activation"
    ]  # fmt: skip


WEIGHTS = Case("weights", (3, 11, 13, 10), (70, 11, 3, 2), {"padding": (1, 2), "stride": (1, 2)}, memory="slices")
GROUPS = Case("weights_groups", (2, 13, 10, 24), (70, 12, 3, 3), {"groups": 2, "dilation": 2, "layout": "NHWC"})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", weight_grad.TILES, ids=str)
def test_every_tile_of_the_weight_gradient_equals_the_reference(tile, splits, dtype, monkeypatch):
    case = replace((WEIGHTS, GROUPS)[tile[0] // 16], dtype=dtype)
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
    case = replace(case, w=(*case.w[:2], 7, 6), keywords={**case.keywords, "padding": 5})
    assert weight_grad_direct.cut_for(replace(case.problem(), pass_="weight_grad"), GPU)[:1] == (2,), "two chunks"
    check_weight_grad(weight_grad_direct, case)
    weight_grad_direct.cut_for.cache_clear()


# Every way in which the depthwise kernels load a patch, with windows, strides and dilations of every kind.
PATCHES = {
    "STRETCH": (
        Case("rows", (2, 3, 29, 20), (3, 1, 3, 3), {"groups": 3, "padding": 1}, bias=True),
        Case("planes", (2, 9, 5, 7), (9, 1, 3, 2), {"groups": 9, "padding": 1}, residual=True),
        Case("tiny_planes", (3, 10, 1, 2), (10, 1, 2, 3), {"groups": 10, "padding": (1, 2)}),
        Case("strided", (1, 6, 25, 18), (6, 1, 5, 5), {"groups": 6, "stride": 2, "padding": 2}),
        Case("dilated", (1, 1, 23, 21), (1, 1, 3, 2), {"stride": (2, 3), "dilation": (3, 2), "padding": 4}),
        Case("filters", (2, 4, 9, 10), (16, 1, 3, 3), {"groups": 4, "padding": 1}, bias=True),
        Case("several_filters", (1, 1, 19, 17), (5, 1, 4, 3), bias=True),
        Case("tall", (1, 2, 52, 5), (2, 1, 51, 3), {"groups": 2, "padding": (2, 1)}),  # 26 rows of taps at once, and 25
        Case("wide", (1, 2, 12, 15), (2, 1, 10, 13), {"groups": 2, "padding": (1, 2)}),  # 4 columns at once, then one
        Case("rgb", (2, 13, 12, 3), (3, 1, 3, 3), {"groups": 3, "padding": 1, "layout": "NHWC"}, bias=True),
    ),
    "PIECES": (
        Case("pieces", (1, 2, 11, 301), (2, 1, 3, 5), {"groups": 2, "padding": (1, 2)}, residual=True),
        Case("image", (1, 1, 40, 290), (1, 1, 15, 15), {"padding": 7, "activation": "relu"}),
        Case("wide_rgb", (1, 5, 120, 3), (3, 1, 3, 3), {"groups": 3, "padding": 1, "layout": "NHWC"}),
    ),
    "PIXELS": (
        Case("pixels", (2, 9, 10, 72), (72, 1, 3, 3), {"groups": 72, "padding": 1, "layout": "NHWC"}, bias=True),
        Case("strided_pixels", (1, 19, 33, 40), (40, 1, 5, 3), {"groups": 40, "stride": 2, "layout": "NHWC"}),
    ),
    "ELEMENTS": (
        Case("odd_channels", (1, 9, 10, 37), (37, 1, 3, 3), {"groups": 37, "layout": "NHWC"}),
        Case("slices", (2, 3, 12, 14), (3, 1, 3, 3), {"groups": 3, "padding": 1}, bias=True, memory="slices"),
        Case("reversed", (1, 3, 12, 14), (3, 1, 2, 3), {"groups": 3}, memory="reversed"),
    ),
}
PATCHES = {case.name: (staging, case) for staging, cases in PATCHES.items() for case in cases}
OTHER_TYPES = [
    (patch, dtype) for patch in ("planes", "pieces", "pixels", "slices") for dtype in ("float16", "bfloat16", "float64")
]


@pytest.mark.parametrize(("patch", "dtype"), [(patch, "float32") for patch in PATCHES] + OTHER_TYPES)
def test_every_way_to_load_a_patch_equals_the_reference(patch, dtype):
    staging, case = PATCHES[patch]
    case = replace(case, dtype=dtype)
    assert staging_of(case) == staging
    check(depthwise, "depthwise", case)
    if case.problem().Kg == 1:
        check_weight_grad(depthwise_weight_grad, case)


IN_TURNS = {
    "four": Case("four", (1, 17, 29, 40), (40, 1, 5, 5), {"groups": 40, "padding": 2, "layout": "NHWC"}),
    "strided": Case("strided", (1, 41, 30, 40), (40, 1, 7, 7), {"groups": 40, "stride": 2, "layout": "NHWC"}),
    "apart": Case("apart", (1, 12, 25, 40), (40, 1, 3, 3), {"groups": 40, "layout": "NHWC"}, memory="slices"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", IN_TURNS.values(), ids=IN_TURNS)
def test_a_thread_of_the_weight_gradient_takes_several_strips_of_a_channel(case, dtype):
    case = replace(case, dtype=dtype)
    tile = depthwise_weight_grad.tile_for(case.problem("weight_grad"), GPU)
    assert tile.turns > 1
    check_weight_grad(depthwise_weight_grad, case)


def staging_of(case):
    tile = depthwise.tile_for(case.problem(), GPU)
    return depthwise.staging(case.problem(), tile, case.memory == "contiguous")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 32 threads, 4 rows each, so that small planes, too, are cut in both directions."""
    for kernel in (depthwise_tiles, depthwise_weight_grad):
        monkeypatch.setattr(kernel, "MOST_THREADS", 32)
        monkeypatch.setattr(kernel, "ROWS", (2, 4))
        kernel.tile_for.cache_clear()
    yield
    for kernel in (depthwise_tiles, depthwise_weight_grad):
        kernel.tile_for.cache_clear()


MANY_TILES = ("rows", "strided", "dilated", "pieces", "image", "wide_rgb", "pixels", "strided_pixels")


@pytest.mark.parametrize("patch", MANY_TILES)
def test_planes_cut_into_many_tiles_equal_the_reference(patch, small_blocks):
    _, case = PATCHES[patch]
    tile = depthwise.tile_for(case.problem(), GPU)
    assert tile.across_p * tile.across_q > 1
    check(depthwise, "depthwise", case)
    check_weight_grad(depthwise_weight_grad, case)


# Blocks descend down large pictures, so tiles are put here by force: rows, strips, columns, steps. The last lacks rows
# for some steps; in "rows" padding reaches below a step and what it keeps.
DESCENDING = {
    "pieces": (Case("pieces", (1, 1, 70, 90), (1, 1, 15, 15), {"padding": 7}, bias=True), (8, 1, 64, 3)),
    "rows": (
        Case("rows", (1, 2, 31, 29), (2, 1, 11, 3), {"groups": 2, "padding": (20, 1)}, residual=True),
        (8, 1, 29, 2),
    ),
    "elements": (
        Case("elements", (1, 1, 80, 45), (1, 1, 9, 4), {"stride": (2, 1)}, memory="slices"),
        (8, 2, 40, 2),
    ),
}


def descend(monkeypatch, problem, rows, strips, columns, steps):
    tile = depthwise_tiles.tile_of(problem, 1, rows, 1, strips, columns, 1, steps=steps)
    monkeypatch.setattr(depthwise, "tile_for", lambda *_: tile)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", DESCENDING)
def test_blocks_that_descend_equal_the_reference(name, dtype, monkeypatch):
    case, tile = DESCENDING[name]
    case = replace(case, dtype=dtype)
    descend(monkeypatch, case.problem(), *tile)
    check(depthwise, "depthwise", case)


def test_blocks_descend_down_a_picture_and_not_for_small_windows():
    def steps(window, sm_count=108):
        gpu = replace(GPU, sm_count=sm_count)
        return depthwise.tile_for(Case("", (1, 1, 1080, 1920), (1, 1, window, window)).problem(), gpu).steps

    assert [steps(7), steps(15) > 1, steps(31) > 1] == [1, True, True]
    assert steps(31, sm_count=30) > steps(31), "fewer multiprocessors, larger tiles, less halo"


def check_weight_grad(kernel, case):
    """The kernel's grad_w, in a slice of a larger array; its workspace starts as NaNs."""
    problem = replace(case.problem(), pass_="weight_grad", activation=None, has_bias=False)
    assert kernel.why_not(problem, GPU) == []
    x, w, *_ = arrays_of(case)
    x = logical_arrays(case, x, w, None, None)[0]
    grad_y = np.random.default_rng(1).integers(-3, 4, problem.y_shape).astype(problem.dtype)
    out = placed(np.full(problem.w_shape, np.nan).astype(problem.dtype), "slices")
    grad_w, beside = out.view, out.beside()
    workspace = strided.empty_aligned((kernel.workspace_bytes(problem, GPU),), np.uint8)
    workspace.fill(0xFF)
    with on_cpu.kernels_on_cpu():
        kernel.run(problem, GPU, *map(strided.as_storage, (x, grad_y, grad_w)), workspace=workspace)
    exact = reference.weight_grad(problem, x, grad_y)
    np.testing.assert_array_equal(grad_w.astype(float), exact.astype(problem.dtype).astype(float))
    assert (out.flat[beside] == UNWRITTEN).all(), "a byte beside the output was written"


def check(kernel, name, case, exactly=True):
    x, w, bias, residual, out = arrays_of(case)
    out = placed(out, case.result_memory)
    beside = out.beside()
    y = convolved(kernel, case, x, w, bias, residual, out.view).astype(np.float64)
    exact, magnitude = expected(case, x, w, bias, residual)
    assert not np.isnan(y).any(), "an output was not written, or read something that was not"
    assert (out.flat[beside] == UNWRITTEN).all(), "a byte beside the output was written"
    if not exactly or case.keywords.get("activation") == "silu" or case.problem().dtype.itemsize == 2:
        assert (np.abs(y - exact) <= accuracy.elementwise(case.problem(), name, magnitude, exact)).all()
    else:
        np.testing.assert_array_equal(y, exact)
