"""The fused Winograd kernel: values by g++ and in the emulator, its machine code, its banks, its error, its choice."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, compiling, device, strided
from convlib.compiling import TARGETS
from convlib.emulator.profile import profile
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import winograd_fused
from convlib.problem import DTYPES, make_problem, named_dtype
from convlib.verification.problems import SMALL, TINY, Case
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import against_reference, on_cpu, test_launches
from tests.kernels.cupy_raw.machine_code import main_loop, multiply_share

GPU = device.emulator_of(80)
SERVED = [case for case in TINY + SMALL if not winograd_fused.why_not(case.problem(), GPU)]

needs_compiler = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")


def split_into(monkeypatch, splits):
    monkeypatch.setattr(winograd_fused, "tiling_for", lambda problem, _: winograd_fused.tiling_of(problem, splits))


@needs_compiler
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_equals_the_reference(case):
    against_reference.check(winograd_fused, "winograd_fused", case)


# Each way x can lie, on problems that stick out of a block of tiles, of filters and of a stage.
LYING = {
    "PIXELS": Case("pixels", (2, 26, 9, 11), (70, 26, 3, 3), {"padding": 1}, bias=True),
    "CHANNELS": Case("channels", (2, 9, 11, 26), (70, 13, 3, 3), {"groups": 2, "layout": "NHWC"}, residual=True),
    "NONE": Case("none", (2, 26, 11, 9), (35, 26, 3, 3), {"padding": ((2, 0), (0, 3))}, bias=True, memory="slices"),
}


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("adjacent", LYING)
def test_equals_the_reference_however_x_lies_and_in_splits(adjacent, splits, dtype, monkeypatch):
    split_into(monkeypatch, splits)
    compiled = []
    monkeypatch.setattr(on_cpu, "library", lambda kernel, *rest: compiled.append(kernel) or library(kernel, *rest))
    case = replace(LYING[adjacent], dtype=dtype)
    if (adjacent, splits, dtype) == ("CHANNELS", 3, "float64"):
        splits = 1  # 13 channels are one round of a block's patches there
    against_reference.check(winograd_fused, "winograd_fused", case)
    assert [kernel.function for kernel in compiled] == [
        "transform_filters", "conv2d_winograd", *["sum_splits"] * (splits > 1)
    ]  # fmt: skip
    assert ("ADJACENT", adjacent) in compiled[1].constants
    assert ("SPLIT", int(splits > 1)) in compiled[1].constants


library = on_cpu.library


@needs_compiler
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (7, 7), (3, 70), (70, 3)], ids=str)
@pytest.mark.parametrize("padding", [1, 2, ((3, 0), (0, 4))], ids=str)
def test_every_size_of_map_and_padding(size, padding):
    case = Case("size", (2, 3, *size), (5, 3, 3, 3), {"padding": padding})
    against_reference.check(winograd_fused, "winograd_fused", case)


@needs_compiler
@pytest.mark.parametrize("padding", [1, ((0, 2), (1, 0)), ((1, 0), (1, 3))], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lanes_hand_each_other_columns_of_even_rows_padded_by_one(padding, dtype, monkeypatch):
    """Rows end amid a warp's tiles, and warps amid rows; the second filter block's tiles, and images, begin anew."""
    compiled = []
    monkeypatch.setattr(on_cpu, "library", lambda kernel, *rest: compiled.append(kernel) or library(kernel, *rest))
    case = Case("even", (2, 9, 7, 26), (5, 9, 3, 3), {"padding": padding}, bias=True, dtype=dtype)
    against_reference.check(winograd_fused, "winograd_fused", case)
    assert ("IN_PAIRS", int(dtype == "float32")) in compiled[1].constants


@needs_compiler
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("C", [1, 20, 130, 1000])
def test_the_error_keeps_to_the_contract(C, splits, monkeypatch):
    """g++ rounds products and sums apart, where a GPU does not: no smaller an error."""
    split_into(monkeypatch, splits)
    random = np.random.default_rng(0)
    x = random.standard_normal((1, C, 16, 15)).astype(np.float32)
    w = (random.standard_normal((24, C, 3, 3)) / np.sqrt(9 * C)).astype(np.float32)
    problem = make_problem(x.shape, w.shape, np.float32, padding=1)
    y = np.full(problem.y_shape, np.nan, np.float32)
    workspace = strided.empty_aligned((winograd_fused.workspace_bytes(problem, GPU),), np.uint8)
    with on_cpu.kernels_on_cpu():
        winograd_fused.run(problem, GPU, x, w, y, workspace=workspace)
    exact = reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "winograd_fused")
    assert 0.3 * bound / splits < error < bound


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("case", LYING.values(), ids=LYING)
def test_arguments_fit_the_parameters_that_the_kernels_declare(case, splits, monkeypatch):
    split_into(monkeypatch, splits)
    for launch in test_launches.launches_of(winograd_fused, case):
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        assert len(launch.args) == len(declared)
        for parameter, value, given in zip(
            declared, launching.with_null_pointers(launch.args), launch.args, strict=True
        ):
            stand_in_cupy.check_argument(parameter, value)
            if parameter.startswith("Tiling"):
                assert value.dtype == winograd_fused.TILING
            else:
                test_launches.check_type(parameter, given, case.problem())
        assert (launch.shared_bytes, launch.stream) == (0, 7)


def test_refuses_what_it_does_not_compute():
    problem = make_problem((1, 4, 9, 9), (4, 4, 5, 3), np.float32, stride=2, dilation=2)
    reasons = winograd_fused.why_not(problem, GPU)
    assert reasons == ["3 x 3 kernels only, got 5 x 3", "stride 1 only, got (2, 2)", "dilation 1 only, got (2, 2)"]
    weight_grad = make_problem((1, 4, 9, 9), (4, 4, 3, 3), np.float32, pass_="weight_grad")
    why = r"winograd_fused: computes forward only, not weight_grad: F\(3 x 3, 2 x 2\) is predicted to take"
    with pytest.raises(convlib.UnsupportedError, match=why):
        choosing.choose(weight_grad, GPU, "cupy_raw", "winograd_fused")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_predicted_times_grow_with_the_problem(dtype):
    seconds = [
        winograd_fused.predicted_seconds(make_problem((n, 64, 56, 56), (64, 64, 3, 3), named_dtype(dtype)), GPU)
        for n in (1, 8, 64)
    ]
    assert 1e-6 < seconds[0] < seconds[1] < seconds[2] < 10


@pytest.mark.parametrize("target", [80, 90])
def test_is_chosen_where_it_is_predicted_to_win_and_nowhere_else(target):
    def chosen(N, C, K, size):
        problem = make_problem((N, C, size, size), (K, C, 3, 3), np.float32, padding=1)
        return choosing.choose(problem, device.emulator_of(target), "cupy_raw")

    assert chosen(2, 256, 256, 14) == "cupy_raw.winograd_fused"
    assert chosen(4, 512, 512, 7) == "cupy_raw.winograd_fused"
    assert chosen(32, 256, 256, 14) == "cupy_raw.winograd_batched", "tiles enough for 36 matrix products"
    assert "winograd" not in chosen(32, 3, 64, 224), "three channels fill no stage"
    assert chosen(32, 128, 16, 56) != "cupy_raw.winograd_fused", "16 filters fill a quarter of a block"


def test_splits_keep_more_multiprocessors_busy_at_one_image():
    problem = make_problem((1, 256, 14, 14), (256, 256, 3, 3), np.float32, padding=1)
    tiling = winograd_fused.tiling_for(problem, GPU)
    alone = np.prod(winograd_fused.tiling_of(problem, 1).grid(problem))
    assert np.prod(tiling.grid(problem)) > GPU.sm_count / 2 > 6 * alone
    assert tiling.partial_bytes == tiling.splits * 256 * 14 * 14 * 4


class TestMachineCode:
    """What the compilers of a GPU make of it."""

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize(("adjacent", "in_pairs", "share"), [
        ("PIXELS", False, 0.82), ("PIXELS", True, 0.82), ("CHANNELS", False, 0.80),
    ])  # fmt: skip
    def test_four_of_five_instructions_multiply_and_add(self, adjacent, in_pairs, share, target, through_nvrtc):
        stored = 2 if adjacent == "PIXELS" else 1
        problem = through_nvrtc.problem_of("3x3")
        source = winograd_fused.sources_of(problem, False, adjacent, False, stored, in_pairs=in_pairs)[1]
        loop = main_loop(compiling.sass(compiling.cuda_source_cubin(source, target)))
        assert multiply_share(loop) >= share
        assert through_nvrtc.loads(loop, "LDS") == {"128": 64}
        patch = {"64": 4, "32": 8} if in_pairs else {"32": 16}
        assert through_nvrtc.loads(loop, "LDG") == {"128": 8, **patch}, "a stage's filters, and a patch"
        assert through_nvrtc.loads(loop, "STS") == {"128": 8, "32": 32}
        assert sum(n for name, n in loop.items() if name.startswith("BAR")) == 2, "one barrier per stage"

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("target", TARGETS)
    def test_compiles_for_every_target_and_type_without_spills(self, target, dtype, through_nvrtc):
        problem = through_nvrtc.problem_of("3x3", dtype)
        for source in winograd_fused.sources_of(problem, False, "PIXELS", False, stored=2):
            through_nvrtc.check(source, target, dtype)

    @pytest.mark.parametrize("target", [90, 100, 120])
    @pytest.mark.parametrize("split", [False, True])
    @pytest.mark.parametrize("adjacent", LYING)
    def test_compiles_however_x_lies_without_spills(self, adjacent, split, target, through_nvrtc):
        """The targets whose compilers want the most registers; sm_75 to sm_89 want fewer."""
        for wide, stored, in_pairs in product((False, True), (1, 2), {False, adjacent == "PIXELS"}):
            problem = through_nvrtc.problem_of("3x3")
            for source in winograd_fused.sources_of(problem, wide, adjacent, split, stored, in_pairs=in_pairs):
                through_nvrtc.check(source, target, "float32")


@pytest.mark.usefixtures("in_emulator")
class TestEmulated:
    """Its PTX, executed: races, bounds, uninitialised reads and every output written once are checked by `watched`."""

    @pytest.mark.parametrize("splits", [1, 2])
    @pytest.mark.parametrize("case", LYING.values(), ids=LYING)
    def test_runs_without_a_fault_however_x_lies_and_in_splits(self, case, splits, monkeypatch, in_emulator):
        split_into(monkeypatch, splits)
        in_emulator.check(winograd_fused, "winograd_fused", case)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    @pytest.mark.parametrize("layer", ["narrow", "channels_last"])
    def test_no_access_of_shared_memory_meets_a_bank_conflict(self, layer, dtype, in_emulator):
        _, report = in_emulator.reports_of(winograd_fused, layer, dtype)
        shared = [access for access in report.counters.traffic if access.space == "shared"]
        assert {(access.kind, access.size) for access in shared} >= {("load", 16), ("store", 16)}
        for access in shared:
            assert access.cost == access.requests * max(access.size // 4, 1), access

    def test_reads_the_filters_by_whole_sectors_and_each_word_of_them_once_in_a_block(self, in_emulator):
        _, report = in_emulator.reports_of(winograd_fused, "wide")
        filters = [a for a in in_emulator.accesses(report, "global", "load") if a.size == 16]
        for access in filters:
            assert access.cost == access.requests * 16, "512 bytes per warp"
        blocks, stages, again = 6, 4, 1  # 192 tiles; 16 channels; the last stage's are fetched twice
        assert sum(access.requests for access in filters) == blocks * (stages + again) * 4 * 8

    def test_patches_meet_the_sectors_in_which_their_pixels_lie(self, in_emulator):
        """A warp's 64 pixels of four rows, and one more on either side."""
        problem = make_problem((1, 8, 16, 56), (64, 8, 3, 3), np.float32, padding=1)
        _, report = profile("cupy_raw.winograd_fused", problem).reports
        loads = in_emulator.accesses(report, "global", "load")
        for access in (a for a in loads if a.size == 8):
            assert access.cost == access.lanes / 4, "pairs, without a gap"
        for access in (a for a in loads if a.size == 4):
            assert access.lanes == access.requests, "one lane of a warp"
        assert {access.size for access in loads} == {4, 8, 16}

    def test_patches_of_channels_last_meet_whole_sectors(self, in_emulator):
        """Eight channels of a pixel; half of them in the prologue, which brings one of the last two stages."""
        problem = make_problem((1, 16, 56, 32), (64, 32, 3, 3), np.float32, padding=1, layout="NHWC")
        _, report = profile("cupy_raw.winograd_fused", problem).reports
        loads = [access for access in in_emulator.accesses(report, "global", "load") if access.size == 4]
        prologue = [access for access in loads if access.lanes <= 16 * access.requests]
        assert len(prologue) == 16
        assert len(loads) == 32
        for access in loads:
            assert access.cost == access.lanes / (4 if access in prologue else 8)

    @pytest.mark.parametrize("splits", [1, 2])
    def test_stores_whole_sectors(self, splits, monkeypatch, in_emulator):
        split_into(monkeypatch, splits)
        _, report, *_ = in_emulator.reports_of(winograd_fused, "wide")
        stores = in_emulator.accesses(report, "global", "store")
        assert {access.size for access in stores} == {8}, "both pixels of a tile's row"
        assert all(access.cost == access.lanes * access.size / 32 for access in stores)

    def test_input_gradients_equal_the_reference(self):
        random = np.random.default_rng(0)
        problem = make_problem((1, 6, 7, 9), (5, 6, 3, 3), np.float32, padding=(1, 0))
        w = random.integers(-3, 4, problem.w_shape).astype(np.float32)
        grad_y = random.integers(-3, 4, problem.y_shape).astype(np.float32)
        kernel = {"backend": "cupy_raw", "algorithm": "winograd_fused", "max_error": 1.0}
        got = convlib.conv2d_input_grad(grad_y, w, problem.x_shape, padding=(1, 0), **kernel)
        np.testing.assert_array_equal(got, reference.input_grad(problem, grad_y, w))
