"""Tiles that several blocks share, in the emulator: every check, and how many sectors their sums move."""

import numpy as np
import pytest

from convlib import device
from convlib.kernels.numba_cuda import implicit_gemm
from convlib.problem import make_problem
from convlib.verification.problems import Case
from tests.kernels.cupy_raw import in_emulator

pytest.importorskip("numba.cuda", reason="numba-cuda is not installed (extra cuda13)")
pytestmark = pytest.mark.skipif(device.simulating(), reason="Numba simulates CUDA in this process")

# Two groups, of which the first tile is whole; splits that begin amid a tap; filters and pixels past a tile's.
SPLIT = {
    "NCHW": Case("pixels", (1, 32, 6, 8), (70, 16, 3, 1), {"groups": 2, "padding": (1, 0)}, bias=True),
    "NHWC": Case("filters", (1, 6, 8, 17), (32, 17, 3, 1), {"layout": "NHWC"}, residual=True),
}
STORED = {"NCHW": 4, "NHWC": 8}  # sectors of a store of sums: 8 lanes along the pixels, 4 along the filters
WHOLE = 4  # sectors of 32 lanes side by side


@pytest.mark.parametrize("layout", SPLIT)
def test_parts_of_a_tile_run_without_a_fault_and_their_sums_move_side_by_side(layout, monkeypatch):
    case, reports = SPLIT[layout], []
    problem = case.problem()
    cut = implicit_gemm.cut_of(problem, implicit_gemm.tile_of(problem, (8, 8)), 3, problem.groups - 1)
    assert (cut.splits, cut.whole) == (3, problem.groups - 1)
    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    monkeypatch.setattr(implicit_gemm, "cut_for", lambda problem, device: cut)
    monkeypatch.setattr(in_emulator, "watched", keeping(in_emulator.watched, reports))
    in_emulator.check(implicit_gemm, "implicit_gemm", case)
    _, product, adding = reports
    for report, kind, most in ((product, "store", STORED[layout]), (adding, "load", WHOLE), (adding, "store", WHOLE)):
        for access in in_emulator.accesses(report, "global", kind):
            assert access.cost <= most * access.requests, access


def test_a_pixel_that_is_none_stays_outside_of_an_image_of_2_to_the_30_rows(monkeypatch):
    """Its row is far above each image, so that a tall window does not reach down to it."""
    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    far = 2**30
    problem = make_problem((1, 1, far + 2, 3), (2, 1, 2, 3), np.float32, dilation=(far, 1))
    row = np.arange(3, dtype=np.float32)
    x = np.lib.stride_tricks.as_strided(row, (1, 1, 1, 3), (12, 12, 0, 4))  # all rows are this one
    w, y = np.ones(problem.w_shape, np.float32), np.full(problem.y_shape, np.nan, np.float32)
    in_emulator.watched(implicit_gemm, problem, x, w, y)
    np.testing.assert_array_equal(y, 6)


def keeping(function, reports):
    return lambda *given: reports.extend(function(*given)) or reports
