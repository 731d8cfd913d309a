"""numba_cuda.implicit_gemm in Numba's simulator; test_in_simulator.py starts it."""

import numpy as np
import pytest

from convlib.kernels.numba_cuda import implicit_gemm
from convlib.verification.problems import TINY, Case
from tests.kernels.numba_cuda.held_against_reference import SIMULATOR, check, check_through_conv2d


@pytest.fixture
def force_cut(monkeypatch):
    """A function that makes the launcher take this tile, and split all but the first tiles into so many parts."""

    def force(problem, lanes, splits=1, whole=0):
        cut = implicit_gemm.cut_of(problem, implicit_gemm.tile_of(problem, lanes), splits, whole)
        monkeypatch.setattr(implicit_gemm, "cut_for", lambda problem, device: cut)
        return cut

    return force


# What splitting a problem into parts adds to it is told by a few; it triples the threads, which the simulator starts
# one by one. Nor do sixteen groups say more than five, or one way to ask for TF32, which is not taken, than the other.
SPLIT_BY_ITSELF = ("3x3_same", "nhwc", "slices", "float16", "bfloat16")
SPLIT = "silu"  # which a launch more would not repay
LONG = ("depthwise_last_row_unread", "3xtf32")


@pytest.mark.parametrize("case", [case for case in TINY if case.name not in LONG], ids=str)
def test_equals_the_reference(case, force_cut):
    if case.name in SPLIT_BY_ITSELF:
        assert implicit_gemm.cut_for(case.problem(), SIMULATOR).splits > 1
    else:
        force_cut(case.problem(), (8, 8), splits=2 if case.name == SPLIT else 1)
    check(implicit_gemm, "implicit_gemm", case)


def test_runs_through_conv2d():
    check_through_conv2d("implicit_gemm", next(case for case in TINY if case.bias and case.residual))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", implicit_gemm.TILES, ids="{0[0]}x{0[1]}".format)
def test_covers_outputs_past_a_tile_in_both_dimensions(lanes, dtype, force_cut):
    each = 4 if dtype == "float64" else 8
    case = Case("past", (1, 3, 1, lanes[1] * each + 3), (lanes[0] * each + 1, 3, 1, 3), dtype=dtype)
    force_cut(case.problem(), lanes)
    check(implicit_gemm, "implicit_gemm", case)


LAYOUTS = ("NCHW", "NHWC")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("C", [7, 8, 9])
def test_takes_channels_in_stages_under_on_and_past_one(C, layout, force_cut):
    x = (2, C, 3, 4) if layout == "NCHW" else (2, 3, 4, C)
    case = Case("stages", x, (3, C, 2, 2), {"padding": 1, "layout": layout}, bias=True)
    force_cut(case.problem(), (8, 8))
    check(implicit_gemm, "implicit_gemm", case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", ["contiguous", "slices", "reversed", "broadcast"])
def test_gathers_channels_however_x_lies(memory, layout, force_cut):
    x = (2, 16, 4, 5) if layout == "NCHW" else (2, 4, 5, 16)
    keywords = {"padding": 1, "stride": (2, 1), "dilation": (1, 2), "layout": layout}
    case = Case("lying", x, (3, 16, 2, 2), keywords, memory=memory)
    force_cut(case.problem(), (8, 8))
    check(implicit_gemm, "implicit_gemm", case)


def test_neighbouring_lanes_take_what_lies_side_by_side():
    problem = Case("walks", (1, 16, 4, 5), (3, 16, 3, 3)).problem()
    cut = implicit_gemm.cut_for(problem, SIMULATOR)
    assert implicit_gemm.walk_for(problem, cut, (320, 1, 80, 16)) == (False, True, True, False)
    assert implicit_gemm.walk_for(problem, cut, (320, 20, 5, 1)) == (False, False, True, False)
    assert implicit_gemm.walk_for(problem, cut, (2**31, 20, 5, 1)).wide
    assert implicit_gemm.walk_for(problem, cut._replace(filters=2**31 // cut.depth), (320, 20, 5, 1)).wide


# Sizes that stick out of a tile; groups, of which the first tiles are whole; splits that begin amid a tap, and a last
# one that is shorter: 8 stages in 3.
SPLIT = {
    "all tiles, channels inner": (Case("all", (1, 16, 3, 4), (5, 16, 2, 2), {"padding": 1}, bias=True), 3, 0),
    "taps inner": (Case("taps", (1, 3, 4, 5), (3, 3, 3, 3)), 2, 0),
    "behind a whole one": (Case("behind", (1, 32, 3, 3), (70, 16, 1, 3), {"groups": 2}, residual=True), 2, 1),
    "channels last": (Case("last", (1, 3, 4, 17), (5, 17, 2, 2), {"layout": "NHWC"}, bias=True), 4, 0),
    "float64": (Case("float64", (1, 16, 3, 3), (5, 16, 2, 1), dtype="float64"), 2, 0),
}


@pytest.mark.parametrize("name", SPLIT)
def test_parts_of_a_tile_are_added_in_their_order(name, force_cut):
    case, splits, whole = SPLIT[name]
    cut = force_cut(case.problem(), (8, 8), splits, whole)
    assert (cut.splits, cut.whole) == (splits, whole)
    check(implicit_gemm, "implicit_gemm", case)


@pytest.mark.parametrize("flip", [(), (1,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_one_axis_holds_every_element_where_the_offsets_say(flip):
    x = np.flip(np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5), flip)[:, :, ::2]
    flat, first = implicit_gemm.one_axis(x), implicit_gemm.bytes_below(x) // 4
    for index in np.ndindex(x.shape):
        offset = first + sum(i * stride // 4 for i, stride in zip(index, x.strides))
        assert 0 <= offset < flat.size
        assert flat[offset] == x[index]
