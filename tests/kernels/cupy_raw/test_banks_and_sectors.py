"""The CUDA C products and tiles in the PTX emulator: bank conflicts of shared memory, sectors of global memory."""

import numpy as np
import pytest

from convlib import device, emulator, strided
from convlib.emulator.profile import profile
from convlib.kernels.cupy_raw import (
    im2col,
    implicit_gemm,
    tiled,
    weight_grad,
)
from convlib.problem import make_problem, named_dtype
from tests.kernels.cupy_raw.in_emulator import LAYERS, accesses, reports_of
from tests.kernels.cupy_raw.test_values import force_cut


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


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
@pytest.mark.parametrize(("channels", "layout", "together"), [
    (14, "NCHW", "NONE"), (16, "NCHW", "PIXELS"), (16, "NHWC", "CHANNELS"),
])  # fmt: skip
def test_no_access_of_the_weight_gradients_product_meets_a_bank_conflict(channels, layout, together, dtype):
    x, keywords = (1, channels, 12, 32), {"padding": 1, "layout": layout}
    x = x if layout == "NCHW" else (1, 12, 32, channels)
    problem = make_problem(x, (64, channels, 3, 3), np.dtype(dtype), pass_="weight_grad", **keywords)
    assert weight_grad.together_as_planned(problem) == together
    report, _ = profile("cupy_raw.weight_grad", problem).reports
    shared = accesses(report, "shared", "load") + accesses(report, "shared", "store")
    assert {access.kind for access in shared} == {"load", "store"}
    for access in shared:
        assert access.cost == access.requests * max(access.size // 4, 1), access


def test_the_weight_gradients_product_moves_whole_sectors_of_channels_last():
    problem = make_problem((1, 12, 32, 64), (64, 64, 3, 3), np.float32, padding=1, layout="NHWC", pass_="weight_grad")
    report, _ = profile("cupy_raw.weight_grad", problem, threads=512).reports
    for access in accesses(report, "global", "load") + accesses(report, "global", "store"):
        assert access.size == 16
        assert access.cost == access.lanes * access.size / 32, access


@pytest.mark.parametrize("case", [
    ((1, 64, 12, 32), (64, 64, 3, 3), {"padding": 1}), ((1, 64, 8, 56), (64, 64, 3, 3), {"padding": 1}),
    ((1, 64, 8, 32), (64, 64, 1, 1), {}), ((2, 64, 8, 28), (64, 64, 3, 3), {"padding": 1}),
], ids=["32", "56", "1x1", "28"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_weight_gradients_runs_of_pixels_move_whole_sectors(dtype, case):
    """At the ends of a row lanes read nothing, of sectors that others read."""
    x, w, keywords = case
    problem = make_problem(x, w, np.dtype(dtype), pass_="weight_grad", **keywords)
    report, _ = profile("cupy_raw.weight_grad", problem, threads=512).reports
    loaded = accesses(report, "global", "load")
    assert sum(access.cost for access in loaded) <= 1.15 * sum(access.lanes * access.size / 32 for access in loaded)
    for access in accesses(report, "global", "store"):
        assert access.cost == access.lanes * access.size / 32, access


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_matrix_product_stores_whole_sectors_of_channels_last(dtype):
    *_, report = reports_of(im2col, "channels_last", dtype)
    stores = accesses(report, "global", "store")
    assert {access.size for access in stores} == {8 if dtype == "float16" else 16}
    for access in stores:
        assert access.cost == access.lanes * access.size / 32, access


def test_the_matrix_product_moves_whole_sectors():
    *_, report = reports_of(im2col, "wide")
    for access in accesses(report, "global", "load"):
        assert access.cost == access.requests * 16, "512 bytes per warp"
    for access in accesses(report, "global", "store"):
        assert access.cost == access.requests * 4, "8 neighbouring pixels of 4 filters"
