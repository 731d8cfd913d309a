"""The depthwise CUDA C kernels in the PTX emulator: every way to load, all checks, barriers taken out, bytes moved."""

import math
from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import device, emulator, operands, strided
from convlib.compiling import TARGETS
from convlib.emulator.profile import profile, scale
from convlib.kernels import reference
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_input_grad,
    depthwise_tiles,
    depthwise_weight_grad,
)
from convlib.problem import make_problem
from convlib.verification.problems import Case, arrays_of, logical_arrays
from tests.kernels.cupy_raw.in_emulator import check, watched
from tests.kernels.cupy_raw.planted import BARRIER, plant
from tests.kernels.cupy_raw.test_depthwise_values import (
    DESCENDING,
    GRADIENTS_OF_X,
    OTHER_TYPES,
    PATCHES,
    descend,
    staging_of,
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


@pytest.mark.parametrize(("patch", "dtype"), [(patch, "float32") for patch in PATCHES] + OTHER_TYPES)
def test_every_way_to_load_a_patch_runs_without_a_fault(patch, dtype, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(TARGETS[(len(patch) + len(dtype)) % len(TARGETS)]))
    check(depthwise, "depthwise", replace(PATCHES[patch][1], dtype=dtype))


@pytest.mark.parametrize("name", DESCENDING)
def test_blocks_that_descend_run_without_a_fault(name, monkeypatch):
    case, tile = DESCENDING[name]
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(TARGETS[len(name) % len(TARGETS)]))
    descend(monkeypatch, case.problem(), *tile)
    check(depthwise, "depthwise", case)


@pytest.mark.parametrize("behind", range(4))
def test_a_residual_that_lies_otherwise_behind_a_boundary_than_y_is_not_loaded_by_vectors(behind):
    """A GPU faults where 128 bits begin at no multiple of 16 bytes."""
    problem = make_problem((1, 2, 9, 9), (2, 1, 3, 3), np.float32, groups=2, padding=1, has_residual=True)
    random = np.random.default_rng(1)
    x, w, y, residual = (strided.empty_aligned((165,), np.float32) for _ in range(4))
    for array in (x, w, residual):
        array[...] = random.integers(-3, 4, array.shape)
    x, w = x[:162].reshape(problem.x_shape), w[:18].reshape(problem.w_shape)
    y, residual = y[:162].reshape(problem.y_shape), residual[behind : behind + 162].reshape(problem.y_shape)
    watched(depthwise, problem, x, w, y, residual=residual)
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w, residual=residual))


@pytest.mark.parametrize("width", [9, 301], ids=["STRETCH", "PIECES"])
@pytest.mark.parametrize("behind", range(1, 4))
def test_vectors_stay_within_an_image_that_begins_behind_a_boundary(behind, width):
    problem = make_problem((1, 2, 5, width), (2, 1, 3, 3), np.float32, groups=2, padding=1)
    random = np.random.default_rng(1)
    size = math.prod(problem.x_shape)
    x, w, y = (strided.empty_aligned((size + behind,), np.float32) for _ in range(3))
    x[...], w[...] = random.integers(-3, 4, x.shape), random.integers(-3, 4, w.shape)
    x, w, y = x[behind:].reshape(problem.x_shape), w[:18].reshape(problem.w_shape), y[:size].reshape(problem.y_shape)
    watched(depthwise, problem, x, w, y)
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))


@pytest.mark.parametrize("side", [16, 32])
def test_channels_that_fill_no_share_of_a_block_are_not_read_past_the_last(side, monkeypatch):
    """40 channels, 16 or 32 side by side: of the last share 8 exist."""
    case = Case("shares", (1, 5, 6, 40), (40, 1, 3, 3), {"groups": 40, "padding": 1, "layout": "NHWC"}, bias=True)
    tile = depthwise_tiles.tile_of(case.problem(), side, 2, 1, 2, 3, 1)
    monkeypatch.setattr(depthwise, "tile_for", lambda *_: tile)
    assert staging_of(case) == "PIXELS"
    check(depthwise, "depthwise", case)


@pytest.mark.parametrize("barrier", range(3))
def test_the_emulator_sees_when_a_block_that_descends_lacks_a_barrier(barrier, monkeypatch):
    """After staging, before rows move up, and before more are staged."""
    plant(monkeypatch, "conv2d_depthwise", BARRIER, barrier, of=3)
    case, tile = DESCENDING["elements"]
    descend(monkeypatch, case.problem(), *tile)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check(depthwise, "depthwise", case)


@pytest.mark.parametrize("patch", [patch for patch in PATCHES if PATCHES[patch][1].problem().Kg == 1])
def test_every_way_to_load_two_patches_runs_without_a_fault(patch, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(TARGETS[len(patch) % len(TARGETS)]))
    case = PATCHES[patch][1]
    problem = replace(case.problem("weight_grad"))
    x, w, *_ = arrays_of(case)
    x = logical_arrays(case, x, w, None, None)[0]
    grad_y = np.random.default_rng(1).integers(-3, 4, problem.y_shape).astype(problem.dtype)
    grad_w = np.full(problem.w_shape, np.nan, problem.dtype)
    gpu = device.emulator()
    workspace = strided.empty_aligned((depthwise_weight_grad.workspace_bytes(problem, gpu),), np.uint8)
    with emulator.watching(outputs=[grad_w], scratch=[workspace]) as watch:
        depthwise_weight_grad.run(problem, gpu, x, grad_y, grad_w, workspace=workspace)
    watch.raise_if_faulty()
    np.testing.assert_array_equal(grad_w, reference.weight_grad(problem, x, grad_y).astype(np.float32))


@pytest.mark.parametrize("case", [case for case in GRADIENTS_OF_X if case.x[-1] < 1000], ids=str)
def test_the_depthwise_input_gradient_runs_without_a_fault(case):
    problem, order = case.problem("input_grad"), operands.FROM_LAYOUT[case.problem().layout]
    _, w, *_ = arrays_of(case)
    w = logical_arrays(case, np.empty(case.x), w, None, None)[1]
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(np.float32)
    grad_x = np.full(case.x, np.nan, np.float32)
    with emulator.watching(outputs=[grad_x]) as watch:
        depthwise_input_grad.run(problem, device.emulator(), grad_y.transpose(order), w, grad_x.transpose(order))
    watch.raise_if_faulty()
    exact = reference.input_grad(problem, grad_y.transpose(order), w)
    np.testing.assert_array_equal(grad_x.transpose(order), exact.astype(np.float32))


@pytest.mark.parametrize("barrier", range(2))
def test_the_emulator_sees_when_the_depthwise_kernel_lacks_a_barrier(barrier, monkeypatch):
    """After staging, and before the outputs leave."""
    plant(monkeypatch, "conv2d_depthwise", BARRIER, barrier, of=2)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check(depthwise, "depthwise", PATCHES["rows"][1])


@pytest.mark.parametrize("barrier", range(2))
def test_the_emulator_sees_when_the_depthwise_input_gradient_lacks_a_barrier(barrier, monkeypatch):
    """After staging, and before its sums leave."""
    plant(monkeypatch, "conv2d_depthwise_input_grad", BARRIER, barrier, of=2)
    grad_y, w = np.ones((1, 4, 14, 14), np.float32), np.ones((4, 1, 3, 3), np.float32)
    call = {"stride": 2, "padding": 1, "groups": 4, "backend": "cupy_raw", "algorithm": "depthwise_input_grad"}
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        convlib.conv2d_input_grad(grad_y, w, (1, 4, 28, 28), **call)


# Layers of MobileNetV2, EfficientNet and ConvNeXt, filters of images and pictures; sizes that end amid a sector.
BANDWIDTH_BOUND = {
    "mobilenet_112": ((1, 32, 112, 112), 3, {"padding": 1}),
    "mobilenet_112_stride_2": ((1, 32, 112, 112), 3, {"padding": 1, "stride": 2}),
    "mobilenet_28_stride_2": ((2, 48, 28, 28), 3, {"padding": 1, "stride": 2}),
    "mobilenet_14": ((2, 96, 14, 14), 3, {"padding": 1}),
    "mobilenet_7": ((2, 240, 7, 7), 3, {"padding": 1}),
    "odd": ((2, 40, 27, 27), 3, {"padding": 1}),
    "efficientnet_5x5": ((2, 48, 28, 28), 5, {"padding": 2}),
    "efficientnet_5x5_stride_2": ((1, 48, 56, 56), 5, {"padding": 2, "stride": 2}),
    "convnext_7x7": ((1, 32, 56, 56), 7, {"padding": 3}),
    "7x7_stride_2": ((1, 32, 56, 56), 7, {"padding": 3, "stride": 2}),
    "image": ((1, 1, 512, 512), 3, {"padding": 1}),
    "picture": ((1, 3, 256, 384), 5, {"padding": 2}),
}
MOST_MOVED = 1.2


def bandwidth_bound(layer, layout, pass_="forward", images=None):
    (n, c, h, w), window, keywords = BANDWIDTH_BOUND[layer]
    n = images or n
    x_shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    w_shape = (c, 1, window, window)
    return make_problem(x_shape, w_shape, np.float32, groups=c, layout=layout, pass_=pass_, **keywords)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", BANDWIDTH_BOUND)
def test_the_depthwise_kernel_moves_at_most_a_fifth_more_than_it_must(layer, layout):
    """In whole sectors of every request, as if no cache helped: x once with its halos, y once.

    Of 16 images: what lies in L2 as a whole is bound by other things, and depthwise.py then fills the multiprocessors.
    """
    problem, threads = bandwidth_bound(layer, layout, images=16), 16384 if "stride_2" in layer else 8192
    assert moved(profile("cupy_raw.depthwise", problem, threads=threads)) <= MOST_MOVED


def test_a_filter_of_15x15_moves_at_most_a_fifth_more_than_it_must():
    picture = make_problem((1, 1, 1080, 1920), (1, 1, 15, 15), np.float32, padding=7)
    assert moved(profile("cupy_raw.depthwise", picture, threads=2048)) <= MOST_MOVED


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", [layer for layer in BANDWIDTH_BOUND if layer not in ("image", "picture")])
def test_the_depthwise_weight_gradient_moves_at_most_a_fifth_more_than_it_must(layer, layout):
    problem = bandwidth_bound(layer, layout, "weight_grad", images=16)
    assert moved(profile("cupy_raw.depthwise_weight_grad", problem, threads=8192)) <= MOST_MOVED


@pytest.mark.parametrize("images", [None, 16], ids=["in_l2", "16_images"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", [layer for layer in BANDWIDTH_BOUND if "stride_2" in layer])
def test_the_depthwise_input_gradient_moves_at_most_a_fifth_more_than_it_must(layer, layout, images):
    """Phase by phase it is 1.9 to 2.8 times as much."""
    problem = bandwidth_bound(layer, layout, "input_grad", images)
    assert moved(profile("cupy_raw.depthwise_input_grad", problem, threads=16384)) <= MOST_MOVED


def moved(counted):
    """Bytes of all launches, over those of x, w and y."""
    sectors = sum(report.counters.sector_bytes * scale(report) for report in counted.reports)
    return sectors / counted.compulsory_bytes
