"""The CUDA C kernels in the PTX emulator: every tile, with all checks; and what their accounts say of banks, sectors.

tests/convlib/emulator/test_every_kernel.py runs every shared problem there, with the tile each launcher chooses, which
for problems as small is a small one.

Of conditions that were taken out of the kernels one at a time, a few stay green, as they only spare work. A pixel, tile
or channel that does not exist may read any that does, since nothing is stored of it (PixelWalk::exists,
winograd_batched.cu's `wanted`, depthwise.cu's Part::channel); ChannelWalk may clear what it fills anyway, move_up move
zeros onto zeros, and depthwise.cu's `exist` be more than ROWS, where its loops end.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, dispatch, operations, strided
from convlib.compiling import TARGETS
from convlib.emulator.profile import profile, scale
from convlib.kernels import reference
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_input_grad,
    depthwise_weight_grad,
    im2col,
    implicit_gemm,
    tiled,
    weight_grad,
    weight_grad_direct,
)
from convlib.kernels.cupy_raw import weight_grad_splits as splits
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import Case, arrays_of, expected, in_memory, logical_arrays
from tests.kernels.cupy_raw.test_values import (
    AS_THEY_LIE,
    DESCENDING,
    GRADIENTS_OF_X,
    GROUPS,
    OTHER_TYPES,
    PATCHES,
    SLICED,
    WALKS,
    WEIGHTS,
    descend,
    force_cut,
)

emulator = pytest.importorskip("convlib.emulator", reason="the emulator is not installed")
pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


def watched(kernel, problem, x, w, y, bias=None, residual=None):
    """Run `kernel` in the emulator; every output must be written once, and the workspace before it is read."""
    gpu = device.emulator()
    assert kernel.why_not(problem, gpu) == []
    x, w, y, bias, residual = (strided.as_storage(view) for view in (x, w, y, bias, residual))
    workspace = strided.empty_aligned((dispatch.one_call_bytes(kernel, problem, gpu),), np.uint8)
    scratch = [workspace] if workspace.size else []
    with emulator.watching(outputs=[y], scratch=scratch) as watch:
        kernel.run(problem, gpu, x, w, y, bias, residual, workspace)
    watch.raise_if_faulty()
    return watch.reports


STICKING_OUT = Case("sticking_out", (1, 5, 11, 37), (19, 5, 3, 3), {"padding": 1}, bias=True)  # of every tile


def check(kernel, name, case):
    problem = case.problem()
    x, w, bias, residual, out = arrays_of(case)
    bias = None if bias is None else in_memory(bias, case.result_memory)
    views = logical_arrays(case, x, w, bias, residual)
    y = out.transpose(operations.FROM_LAYOUT[problem.layout])
    watched(kernel, problem, *views[:2], y, *views[2:])
    exact, magnitude = expected(case, x, w, bias, residual)
    error = np.abs(y.astype(np.float64) - exact)
    assert (error <= accuracy.elementwise(problem, name, magnitude, exact)).all()


@pytest.mark.parametrize("number", range(len(tiled.SHAPES)), ids=[str(shape) for shape in tiled.SHAPES])
def test_every_tile_of_the_tiled_kernel_runs_without_a_fault(number, monkeypatch):
    filters, rows, warps_p, warps_k = tiled.SHAPES[number]
    tile = tiled.Tile((32, 16, 8)[number % 3], rows, filters, warps_p, warps_k, channels=2)
    monkeypatch.setattr(tiled, "tile_for", lambda problem, device: tile)
    check(tiled, "tiled", STICKING_OUT)


@pytest.mark.parametrize("tile_k", [32, 64, 128])
def test_every_tile_of_the_matrix_product_runs_without_a_fault_in_slices(tile_k, monkeypatch):
    monkeypatch.setattr(im2col, "gemm_seconds", lambda problem, device, tile, tile_m: abs(tile - tile_k))
    monkeypatch.setattr(im2col, "COLUMNS_BYTES", 1)
    im2col.matrices.cache_clear()
    assert im2col.matrices(STICKING_OUT.problem(), device.emulator()).tile_k == tile_k
    check(im2col, "im2col", STICKING_OUT)
    im2col.matrices.cache_clear()


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("tile", implicit_gemm.ALL_TILES, ids=str)
def test_every_tile_and_walk_of_the_implicit_product_runs_without_a_fault(tile, walk, monkeypatch):
    splits = 1 + 2 * (implicit_gemm.ALL_TILES.index(tile) % 2)
    problem = WALKS[walk].problem()
    force_cut(monkeypatch, problem, tile, splits, whole=problem.groups - 1)
    check(implicit_gemm, "implicit_gemm", WALKS[walk])


@pytest.mark.parametrize("channels", [3, 16])
def test_windows_of_more_taps_than_bits_run_without_a_fault(channels, monkeypatch):
    case = Case("more_taps", (1, channels, 7, 9), (5, channels, 9, 8), {"padding": 4})
    force_cut(monkeypatch, case.problem(), (4, 8), splits=1)
    check(implicit_gemm, "implicit_gemm", case)


# Stages that end amid a group's channels, and past the last tap.
PADDED = {
    "channels": ((1, 40, 5, 6), (6, 20, 3, 3), {"groups": 2}),
    "channels_last": ((1, 5, 6, 40), (8, 20, 3, 2), {"groups": 2, "layout": "NHWC"}),
    "pointwise": ((1, 40, 4, 4), (6, 20, 1, 1), {"groups": 2}),
    "taps": ((1, 3, 6, 7), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize(
    ("kernel", "name"), [*((implicit_gemm, name) for name in PADDED), (im2col, "channels"), (tiled, "channels")],
    ids=lambda given: getattr(given, "__name__", given).rpartition(".")[2],
)  # fmt: skip
def test_an_infinity_reaches_the_outputs_of_its_windows_alone(kernel, name, monkeypatch):
    """What pads a stage is zero in x too: the weights' zeros times infinity would be NaN."""
    x_shape, w_shape, keywords = PADDED[name]
    problem = make_problem(x_shape, w_shape, np.float32, **keywords)
    force_cut(monkeypatch, problem, (4, 8), splits=1)  # of the first
    x = strided.empty_aligned(x_shape, np.float32).transpose(operations.FROM_LAYOUT[problem.layout])
    x[...] = 1
    x[0, :, 3, 3] = np.inf
    w, y = np.ones(w_shape, np.float32), np.full(problem.y_shape, np.nan, np.float32)
    watched(kernel, problem, x, w, y)
    exact = reference.conv2d(problem, x, w)
    assert np.isinf(exact).any()
    np.testing.assert_array_equal(y, exact)


@pytest.mark.parametrize("name", SLICED)
def test_slices_of_a_block_run_without_a_fault(name, monkeypatch):
    tile, slices, case = SLICED[name]
    force_cut(monkeypatch, case.problem(), tile, splits=1, slices=slices)
    check(implicit_gemm, "implicit_gemm", case)


@pytest.mark.parametrize("name", AS_THEY_LIE)
@pytest.mark.parametrize("tile", [(16, 16), (8, 8), (4, 8)], ids=str)
def test_weights_read_as_they_lie_run_without_a_fault(tile, name, monkeypatch):
    force_cut(monkeypatch, AS_THEY_LIE[name].problem(), tile, splits=1)
    check(implicit_gemm, "implicit_gemm", AS_THEY_LIE[name])


def test_an_infinite_weight_reaches_the_outputs_of_its_filter_alone(monkeypatch):
    """Past the end of a filter's numbers lie the next one's: of these a stage takes none."""
    problem = make_problem((1, 12, 4, 4), (6, 12, 1, 1), np.float32)
    force_cut(monkeypatch, problem, (4, 8), splits=1)
    x, w = (strided.empty_aligned(shape, np.float32) for shape in (problem.x_shape, problem.w_shape))
    x[...] = w[...] = 1
    w[3, 0] = np.inf
    y = np.full(problem.y_shape, np.nan, np.float32)
    (report,) = watched(implicit_gemm, problem, x, w, y)
    assert report.kernel == "conv2d_implicit_gemm"
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))


@pytest.mark.parametrize("barrier", range(2, 6))
def test_the_emulator_sees_when_slices_lack_a_barrier(barrier, monkeypatch):
    """Of those around each half of the sums that change hands, behind two of the product."""
    tile, slices, case = SLICED["taps"]
    force_cut(monkeypatch, case.problem(), tile, splits=1, slices=slices)
    whole = emulator.ptx_of_source

    def without(source, target):
        text = whole(source, target)
        if source.function != "conv2d_implicit_gemm":
            return text
        barriers = list(re.finditer(r"(?m)^\s*(?:bar|barrier)\.sync.*$", text))
        assert len(barriers) == 6
        return text[: barriers[barrier].start()] + text[barriers[barrier].end() :]

    monkeypatch.setattr(emulator, "ptx_of_source", without)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check(implicit_gemm, "implicit_gemm", case)


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


@pytest.mark.parametrize("barrier", range(3))
def test_the_emulator_sees_when_a_block_that_descends_lacks_a_barrier(barrier, monkeypatch):
    """After staging, before rows move up, and before more are staged."""
    whole = emulator.ptx_of_source

    def without(source, target):
        parts = re.split(r"(?m)^\s*(?:bar|barrier)\.sync.*$", whole(source, target))
        assert len(parts) == 4
        parts[barrier : barrier + 2] = [parts[barrier] + parts[barrier + 1]]
        return "bar.sync 0;".join(parts)

    monkeypatch.setattr(emulator, "ptx_of_source", without)
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


FEW_WEIGHTS = Case("few_weights", (2, 2, 9, 10), (3, 2, 2, 3))


@pytest.mark.parametrize(
    ("kernel", "case"), [(weight_grad, WEIGHTS), (weight_grad, GROUPS), (weight_grad_direct, FEW_WEIGHTS)],
    ids=["strides", "groups", "direct"],
)  # fmt: skip
def test_splits_of_a_weight_gradient_run_without_a_fault(kernel, case, monkeypatch):
    problem, order = case.problem("weight_grad"), operations.FROM_LAYOUT[case.problem().layout]
    gpu = device.emulator()
    cut = splits.cut_of(problem, 64, 128, 3) if kernel is weight_grad else splits.direct_cut(problem, gpu, 1, 40)
    assert cut.splits > 2
    monkeypatch.setattr(kernel, "cut_for", lambda problem, device: cut)
    x, *_ = arrays_of(case)
    grad_y = np.random.default_rng(1).integers(-3, 4, operations.result_shape(problem, True)).astype(np.float32)
    grad_w = np.full(case.w, np.nan, np.float32)
    workspace = strided.empty_aligned((cut.partial_bytes,), np.uint8)
    x, grad_y = x.transpose(order), grad_y.transpose(order)
    with emulator.watching(outputs=[grad_w], scratch=[workspace]) as watch:
        kernel.run(problem, gpu, x, grad_y, grad_w, workspace=workspace)
    watch.raise_if_faulty()
    np.testing.assert_array_equal(grad_w, reference.weight_grad(problem, x, grad_y).astype(np.float32))


@pytest.mark.parametrize("case", [case for case in GRADIENTS_OF_X if case.x[-1] < 1000], ids=str)
def test_the_depthwise_input_gradient_runs_without_a_fault(case):
    problem, order = case.problem("input_grad"), operations.FROM_LAYOUT[case.problem().layout]
    _, w, *_ = arrays_of(case)
    w = logical_arrays(case, np.empty(case.x), w, None, None)[1]
    grad_y = np.random.default_rng(1).integers(-3, 4, operations.result_shape(problem, True)).astype(np.float32)
    grad_x = np.full(case.x, np.nan, np.float32)
    with emulator.watching(outputs=[grad_x]) as watch:
        depthwise_input_grad.run(problem, device.emulator(), grad_y.transpose(order), w, grad_x.transpose(order))
    watch.raise_if_faulty()
    exact = reference.input_grad(problem, grad_y.transpose(order), w)
    np.testing.assert_array_equal(grad_x.transpose(order), exact.astype(np.float32))


@pytest.mark.parametrize("barrier", range(2))
def test_the_emulator_sees_when_the_depthwise_kernel_lacks_a_barrier(barrier, monkeypatch):
    """After staging, and before the outputs leave."""
    whole = emulator.ptx_of_source

    def without(source, target):
        parts = re.split(r"(?m)^\s*(?:bar|barrier)\.sync.*$", whole(source, target))
        assert len(parts) == 3
        return (
            parts[0]
            + ("" if barrier == 0 else "bar.sync 0;")
            + parts[1]
            + ("" if barrier else "bar.sync 0;")
            + parts[2]
        )

    monkeypatch.setattr(emulator, "ptx_of_source", without)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check(depthwise, "depthwise", PATCHES["rows"][1])


@pytest.mark.parametrize("barrier", range(2))
def test_the_emulator_sees_when_the_depthwise_input_gradient_lacks_a_barrier(barrier, monkeypatch):
    """After staging, and before its sums leave."""
    whole = emulator.ptx_of_source

    def without(source, target):
        parts = re.split(r"(?m)^\s*(?:bar|barrier)\.sync.*$", whole(source, target))
        assert len(parts) == 3
        return parts[0] + "bar.sync 0;" * (barrier != 0) + parts[1] + "bar.sync 0;" * (barrier != 1) + parts[2]

    monkeypatch.setattr(emulator, "ptx_of_source", without)
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


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("layer", [layer for layer in BANDWIDTH_BOUND if "stride_2" in layer])
def test_the_depthwise_input_gradient_moves_at_most_a_fifth_more_than_it_must(layer, layout):
    """Phase by phase it is 1.9 to 2.8 times as much."""
    problem = bandwidth_bound(layer, layout, "input_grad")
    assert moved(profile("cupy_raw.depthwise_input_grad", problem, threads=16384)) <= MOST_MOVED


def moved(counted):
    """Bytes of all launches, over those of x, w and y."""
    sectors = sum(report.counters.sector_bytes * scale(report) for report in counted.reports)
    return sectors / counted.compulsory_bytes


LAYERS = {
    "wide": ((1, 16, 12, 64), (64, 16, 3, 3), {"padding": 1}),
    "narrow": ((1, 8, 7, 7), (64, 8, 3, 3), {"padding": 1}),
    "stride_2": ((1, 8, 41, 70), (32, 8, 3, 3), {"padding": 1, "stride": 2}),
    "stride_3": ((1, 4, 41, 70), (32, 4, 3, 3), {"stride": 3}),
    "dilated": ((1, 8, 20, 40), (32, 8, 3, 3), {"padding": 2, "dilation": 2}),
    "first_layer": ((1, 3, 40, 60), (32, 3, 7, 7), {"padding": 3, "stride": 2}),
    "depthwise": ((1, 16, 14, 14), (16, 1, 3, 3), {"padding": 1, "groups": 16}),
    "image_filter": ((1, 1, 40, 70), (1, 1, 15, 15), {"padding": 7}),
    "channels_last": ((1, 12, 40, 16), (32, 16, 3, 3), {"padding": 1, "layout": "NHWC"}),
    "pointwise": ((1, 32, 16, 32), (64, 32, 1, 1), {}),
}


def reports_of(kernel, layer, dtype="float32"):
    x_shape, w_shape, keywords = LAYERS[layer]
    problem = make_problem(x_shape, w_shape, named_dtype(dtype), **keywords)
    order = operations.FROM_LAYOUT[problem.layout]
    x, w = (strided.empty_aligned(shape, problem.dtype) for shape in (x_shape, w_shape))
    x[...] = w[...] = 1
    y = strided.empty_aligned(operations.result_shape(problem, batched=True), problem.dtype)
    return watched(kernel, problem, x.transpose(order), w, y.transpose(order))


def accesses(report, space, kind):
    return [access for access in report.counters.traffic if (access.space, access.kind) == (space, kind)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_no_read_of_the_tiled_kernel_meets_a_bank_conflict(layer, dtype):
    (report,) = reports_of(tiled, layer, dtype)
    for access in accesses(report, "shared", "load"):
        assert access.cost == access.requests * max(access.size // 4, 1), access


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_access_of_the_matrix_product_meets_a_bank_conflict(dtype):
    *_, report = reports_of(im2col, "wide", dtype)
    shared = accesses(report, "shared", "load") + accesses(report, "shared", "store")
    assert {access.size for access in shared} == {16}
    for access in shared:
        assert access.cost == access.requests * 4, access


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", implicit_gemm.ALL_TILES, ids=str)
@pytest.mark.parametrize("layer", ["wide", "channels_last", "pointwise"])
def test_no_access_of_the_implicit_product_meets_a_bank_conflict(layer, tile, dtype, monkeypatch):
    x, w, keywords = LAYERS[layer]
    force_cut(monkeypatch, make_problem(x, w, named_dtype(dtype), **keywords), tile, 1)
    *_, report = reports_of(implicit_gemm, layer, dtype)  # of pointwise weights the only one
    shared = accesses(report, "shared", "load") + accesses(report, "shared", "store")
    for access in shared:
        assert access.cost == access.requests * max(access.size // 4, 1), access
    in_the_loop = [access for access in accesses(report, "shared", "load") if "register_tile" in access.source[0]]
    assert {access.size for access in in_the_loop} == {16}


def packed_and_run(problem, x, w, y):
    """What a plan does; the report of the packing."""
    gpu = device.emulator()
    packed, workspace = (
        strided.empty_aligned((count(problem, gpu),), np.uint8)
        for count in (implicit_gemm.packed_bytes, implicit_gemm.workspace_bytes)
    )
    with emulator.watching(outputs=[y], scratch=[array for array in (packed, workspace) if array.size]) as watch:
        implicit_gemm.pack(problem, gpu, w, packed)
        implicit_gemm.run(problem, gpu, x, packed, y, workspace=workspace)
    watch.raise_if_faulty()
    return watch.reports[0]


AS_W_LIES = {"ROWS": (0, 1, 2, 3), "ROWS, channels inner": (0, 2, 3, 1), "FILTERS": (2, 3, 1, 0)}


@pytest.mark.parametrize("along", AS_W_LIES)
def test_filters_are_packed_in_whole_sectors_and_few_instructions(along):
    """Of PTX for each weight and lane; of the machine's, half as many: tests/benchmarks/test_issued.py."""
    problem = make_problem((1, 32, 8, 8), (64, 32, 3, 3), np.float32, padding=1)
    x, y = (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for shape in (problem.x_shape, problem.y_shape))
    order = AS_W_LIES[along]
    w = strided.empty_aligned(tuple(problem.w_shape[axis] for axis in order), np.float32)
    w[...] = np.arange(w.size).reshape(w.shape)
    w = w.transpose(np.argsort(order))
    cut = implicit_gemm.cut_for(problem, device.emulator())
    assert implicit_gemm.weights_along(problem, cut, w)[0] == along.split(",")[0]
    packing = packed_and_run(problem, x, w, y)
    assert packing.kernel == "pack_filters"
    assert not accesses(packing, "shared", "load") + accesses(packing, "shared", "store")
    for access in accesses(packing, "global", "load") + accesses(packing, "global", "store"):
        assert access.cost == access.lanes * access.size / 32, access
    assert packing.counters.warp_instructions <= 6 * w.size / 32
    np.testing.assert_allclose(y[0, :, 4, 4], (w * x[0, :, 3:6, 3:6].astype(float)).sum((1, 2, 3)), rtol=1e-5)


def unsplit(layer, monkeypatch):
    """The report of the product with the largest tile, in one piece."""
    x, w, keywords = LAYERS[layer]
    force_cut(monkeypatch, make_problem(x, w, np.float32, **keywords), (16, 16), 1)
    return reports_of(implicit_gemm, layer)[-1]


@pytest.mark.parametrize("layer", ["channels_last", "pointwise"])
def test_the_implicit_product_moves_whole_sectors(layer, monkeypatch):
    report = unsplit(layer, monkeypatch)
    for access in accesses(report, "global", "load") + accesses(report, "global", "store"):
        assert access.size == 16
        assert access.cost <= 1.15 * access.lanes * access.size / 32, access


@pytest.mark.parametrize("layer", ["channels_last", "pointwise"])
def test_the_sums_of_splits_move_whole_sectors(layer, monkeypatch):
    x, w, keywords = LAYERS[layer]
    force_cut(monkeypatch, make_problem(x, w, np.float32, **keywords), (4, 8), 2)
    *_, product, adding = reports_of(implicit_gemm, layer)
    moves = accesses(product, "global", "store") + accesses(adding, "global", "load")
    for access in moves + accesses(adding, "global", "store"):
        assert access.size == 16
        assert access.cost == access.lanes * access.size / 32, access


def test_windows_meet_few_more_sectors_than_they_must(monkeypatch):
    """A window's left and right columns begin amid a sector: for 4 sectors, 5 are touched."""
    report = unsplit("wide", monkeypatch)
    touched = sum(access.cost for access in accesses(report, "global", "load"))
    assert touched <= 1.15 * sum(access.lanes * access.size / 32 for access in accesses(report, "global", "load"))
    for access in accesses(report, "global", "store"):
        assert access.cost == access.lanes * access.size / 32, access


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_access_of_the_weight_gradients_product_meets_a_bank_conflict(dtype):
    problem = make_problem((1, 16, 12, 32), (64, 16, 3, 3), np.dtype(dtype), padding=1, pass_="weight_grad")
    report, _ = profile("cupy_raw.weight_grad", problem).reports
    shared = accesses(report, "shared", "load") + accesses(report, "shared", "store")
    assert {access.kind for access in shared} == {"load", "store"}
    for access in shared:
        assert access.cost == access.requests * max(access.size // 4, 1), access


def test_the_matrix_product_moves_whole_sectors():
    *_, report = reports_of(im2col, "wide")
    for access in accesses(report, "global", "load"):
        assert access.cost == access.requests * 16, "512 bytes per warp"
    for access in accesses(report, "global", "store"):
        assert access.cost == access.requests * 4, "8 neighbouring pixels of 4 filters"
