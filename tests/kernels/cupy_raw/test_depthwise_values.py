"""The depthwise CUDA C kernels against the reference, run by g++: every way to load and to cut; their gradients."""

from dataclasses import replace

import numpy as np
import pytest

from convlib import operands, strided
from convlib.kernels import reference
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_input_grad,
    depthwise_tiles,
    depthwise_weight_grad,
)
from convlib.verification.problems import SMALL, TINY, Case, arrays_of, logical_arrays, placed
from tests.kernels.cupy_raw import on_cpu
from tests.kernels.cupy_raw.against_reference import GPU, check, check_weight_grad, served

pytestmark = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

NO_RESIDUAL = [case for case in TINY + SMALL if not case.residual and 0 not in case.x]
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
    order = operands.FROM_LAYOUT[problem.layout]
    _, w, *_ = arrays_of(case)
    w = logical_arrays(case, np.empty(case.x), w, None, None)[1]
    random = np.random.default_rng(1)
    grad_y = placed(random.integers(-3, 4, operands.result_shape(problem, True)).astype(w.dtype), case.memory).view
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


# Every way in which the depthwise kernels load a patch, with windows, strides and dilations of every kind.
PATCHES = {
    "STRETCH": (
        Case("rows", (2, 3, 29, 20), (3, 1, 3, 3), {"groups": 3, "padding": 1}, bias=True),
        Case("even_rows", (1, 3, 16, 20), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
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


@pytest.fixture
def beyond_l2(monkeypatch):
    """Tiles as for arrays that do not lie in the L2 cache."""
    monkeypatch.setattr(depthwise_tiles, "SHORT", 0)
    forget_tiles()
    yield
    forget_tiles()


def forget_tiles():
    """And sources, whose turns follow from a tile and MOST_THREADS."""
    for remembered in (
        *(module.tile_for for module in (depthwise_tiles, depthwise_input_grad, depthwise_weight_grad)),
        *(module.source_of for module in (depthwise, depthwise_input_grad)),
        depthwise_weight_grad.sources_of,
    ):
        remembered.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", IN_TURNS.values(), ids=IN_TURNS)
def test_a_thread_of_the_weight_gradient_takes_several_strips_of_a_channel(case, dtype, beyond_l2):
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
    forget_tiles()
    yield
    forget_tiles()


MANY_TILES = ("rows", "even_rows", "strided", "dilated", "pieces", "image", "wide_rgb", "pixels", "strided_pixels")


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
