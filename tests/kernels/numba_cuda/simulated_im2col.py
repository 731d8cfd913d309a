"""numba_cuda.im2col in Numba's simulator; test_in_simulator.py starts it."""

import pytest

from convlib.kernels.numba_cuda import im2col
from convlib.verification.problems import TINY, Case
from tests.kernels.numba_cuda.held_against_reference import SIMULATOR, check, check_through_conv2d


@pytest.fixture
def fresh_tiling(monkeypatch):
    monkeypatch.setattr(im2col, "tiling", im2col.tiling.__wrapped__)


@pytest.mark.parametrize("case", TINY, ids=str)
def test_equals_the_reference(case):
    check(im2col, "im2col", case)


def test_runs_through_conv2d():
    check_through_conv2d("im2col", next(case for case in TINY if case.bias and case.residual))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", im2col.TILES, ids="{0[0]}x{0[1]}".format)
def test_covers_outputs_past_a_tile_in_both_dimensions(tile, dtype, monkeypatch, fresh_tiling):
    monkeypatch.setattr(im2col, "TILES", (tile,))
    scale = 2 if dtype == "float64" else 1
    case = Case("past", (1, 3, 1, tile[1] // scale + 3), (tile[0] // scale + 1, 3, 1, 3), {"padding": 0}, dtype=dtype)
    check(im2col, "im2col", case)


@pytest.mark.parametrize("C", [7, 8, 9, 17])
def test_sums_rows_in_steps(C):
    check(im2col, "im2col", Case("steps", (1, C, 3, 4), (3, C, 1, 2), bias=True))


@pytest.mark.parametrize("groups", [1, 2])
def test_takes_pixels_in_slices_that_fit_the_workspace(groups, monkeypatch, fresh_tiling):
    case = Case("slices", (3, 4, 9, 13), (6, 4 // groups, 2, 2), {"groups": groups}, bias=True, residual=True)
    whole = im2col.workspace_bytes(case.problem(), SIMULATOR)
    monkeypatch.setattr(im2col, "WORKSPACE", whole // 2)
    cut = im2col.tiling(case.problem(), 1)
    assert 1 < -(-cut.pixel_tiles // cut.slice_tiles) <= 3
    assert im2col.workspace_bytes(case.problem(), SIMULATOR) < whole
    check(im2col, "im2col", case)
