"""Fourier transforms of tiles on a GPU: values by g++ and in the emulator, tilings, slices, banks, error, choice."""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device, machine, strided
from convlib.compiling import TARGETS
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import fft
from convlib.problem import DTYPES, make_problem, named_dtype
from convlib.verification.problems import Case
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import against_reference, on_cpu, test_launches

GPU = device.emulator_of(80)

needs_compiler = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

# Windows whole and in blocks, alone and with several filters, pairs of tiles in one image and in two.
CASES = {
    "alone": Case("alone", (1, 1, 50, 75), (1, 1, 21, 15), {"padding": 10}, bias=True),
    "two images": Case("two_images", (2, 1, 20, 30), (1, 1, 9, 12), {}, residual=True),
    "three images": Case("three_images", (3, 2, 20, 30), (2, 1, 9, 12), {"groups": 2, "padding": ((8, 0), (0, 11))}),
    "filters": Case("filters", (1, 2, 30, 41), (4, 1, 7, 9), {"groups": 2, "activation": "relu"}, bias=True),
    "blocks": Case("blocks", (1, 1, 90, 100), (1, 1, 70, 45), {"padding": 30}, bias=True),
    "blocks of rows": Case("blocks_of_rows", (1, 2, 90, 20), (2, 1, 80, 5), {"groups": 2, "padding": 3}),
    "blocks of columns": Case("blocks_of_columns", (1, 2, 20, 100), (2, 1, 5, 70), {"groups": 2, "padding": 3}),
    "dilation": Case("dilation", (1, 1, 80, 70), (1, 1, 11, 9), {"dilation": (5, 3), "padding": 20}, memory="slices"),
    "channels last": Case("channels_last", (1, 40, 30, 3), (3, 1, 15, 8), {"groups": 3, "layout": "NHWC"}, bias=True),
}


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(fft, "WORKSPACE_BYTES", 1)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_reference(case, dtype):
    against_reference.check(fft, "fft", replace(case, dtype=dtype), exactly=False)


@needs_compiler
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_reference_row_by_row(case, small_slices):
    against_reference.check(fft, "fft", case, exactly=False)


def test_the_slices_cover_every_pair_of_tiles_once(small_slices):
    case = CASES["blocks"]
    tiling = fft.tiling_for(case.problem(), GPU)
    assert tiling.down > 1
    launches = test_launches.launches_of(fft, case)
    slices = [launch.args[-1] for launch in launches if launch.kernel.function == "convolve_tiles"]
    assert [(int(s["first_down"]), int(s["down"])) for s in slices] == [(row, 1) for row in range(tiling.down)]


def test_the_workspace_is_bounded_whatever_the_image():
    def bytes_of(size, N=1):
        return fft.workspace_bytes(make_problem((N, 1, size, size), (1, 1, 127, 127), np.float32, padding=63), GPU)

    windows = 16 * 64 * 64 * 8
    assert bytes_of(512) < bytes_of(1024) < bytes_of(4096) <= windows + (64 << 20)
    assert bytes_of(1024, N=100) <= windows + (64 << 20)


@pytest.mark.parametrize("taps", range(1, 200, 11))
@pytest.mark.parametrize("dilation", [1, 2, 3, 31, 63, 64])
def test_blocks_of_the_window_reach_from_tile_to_tile(taps, dilation):
    for cut in fft.cuts(taps, dilation):
        assert cut.block * cut.blocks >= taps > cut.block * (cut.blocks - 1)
        assert cut.outputs + (cut.block - 1) * dilation <= fft.TILE, "no output wraps around"
        assert cut.outputs >= 1
        assert cut.blocks == 1 or cut.outputs == cut.block * dilation, "a block further is a tile further"


@needs_compiler
@pytest.mark.parametrize("window", [21, 50])
def test_the_error_keeps_to_the_contract(window):
    """g++ rounds products and sums apart, where a GPU does not: no smaller an error."""
    problem = make_problem((1, 1, 100, 100), (1, 1, window, window), np.float32, padding=10)
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in (problem.x_shape, problem.w_shape))
    y = np.full(problem.y_shape, np.nan, np.float32)
    workspace = strided.empty_aligned((fft.workspace_bytes(problem, GPU),), np.uint8)
    with on_cpu.kernels_on_cpu():
        fft.run(problem, GPU, x, w, y, workspace=workspace)
    exact = reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "fft")
    assert 0.2 * bound < error < bound


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_arguments_fit_the_parameters_that_the_kernels_declare(case):
    for launch in test_launches.launches_of(fft, case):
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        passed = launching.with_null_pointers(launch.args)
        for parameter, value, given in zip(declared, passed, launch.args, strict=True):
            stand_in_cupy.check_argument(parameter, value)
            if parameter.startswith("Tiles"):
                assert value.dtype == fft.TILES
            elif "Complex" in parameter:
                assert given is None or given.dtype == np.uint8, "the workspace"
            else:
                test_launches.check_type(parameter, given, case.problem())
        assert (launch.shared_bytes, launch.stream) == (0, 7)


def test_refuses_what_it_does_not_compute():
    def reasons(w_shape=(4, 1, 9, 9), **keywords):
        keywords = {"padding": 300, "groups": 4, **keywords}
        return fft.why_not(make_problem((1, 4, 70, 70), w_shape, np.float32, **keywords), GPU)

    assert reasons() == []
    assert reasons(stride=(2, 1)) == ["stride 1 needed, got (2, 1)"]
    assert reasons(dilation=(65, 1)) == ["neighbouring taps at most 64 apart needed, got dilation (65, 1)"]
    assert reasons((4, 1, 1, 9), dilation=(65, 1)) == []
    assert reasons((4, 2, 9, 9), groups=2) == ["takes one channel per group (groups = C); this problem has 2"]


def test_chosen_for_large_windows_and_not_for_small_ones(monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda package: True)

    def chosen(window, dtype="float32", **keywords):
        problem = make_problem((1, 1, 1080, 1920), (1, 1, window, window), named_dtype(dtype), padding=window // 2)
        return choosing.choose(problem, device.named("sm_90"), **keywords)

    assert chosen(127) == chosen(31) == "cupy_raw.fft"
    assert chosen(127, max_error=1e-8) != "cupy_raw.fft"
    assert not chosen(3).endswith(".fft")
    assert chosen(3, algorithm="fft") == "cupy_raw.fft"
    assert chosen(127, workspace_limit=1 << 20) != "cupy_raw.fft"


class TestMachineCode:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("target", TARGETS)
    def test_compiles_for_every_target_and_type_without_spills(self, target, dtype, through_nvrtc):
        problem = through_nvrtc.problem_of("image_filter", dtype)
        for source in fft.sources(problem, alone=target % 2 == 0):
            through_nvrtc.check(source, target, dtype)

    @pytest.mark.parametrize("alone", [True, False])
    @pytest.mark.parametrize("target", [75, 90, 120])
    def test_both_ways_to_convolve_compile_with_an_activation(self, target, alone, through_nvrtc):
        problem = replace(through_nvrtc.problem_of("image_filter"), activation="silu")
        through_nvrtc.check(fft.sources(problem, alone)[-1], target, "float32")


@pytest.mark.usefixtures("in_emulator")
class TestEmulated:
    """Its PTX, executed: races, bounds, uninitialised reads and every output written once are checked by `watched`."""

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_runs_without_a_fault(self, case, in_emulator):
        in_emulator.check(fft, "fft", case)

    @pytest.mark.parametrize("case", ["blocks", "filters"])
    def test_runs_without_a_fault_row_by_row(self, case, small_slices, in_emulator):
        in_emulator.check(fft, "fft", CASES[case])

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_no_bank_conflicts_and_whole_sectors(self, dtype, in_emulator):
        problem = make_problem((1, 1, 100, 128), (1, 1, 40, 45), named_dtype(dtype), padding=((20, 19), (22, 22)))
        x, w, y = (np.ones(shape, dtype) for shape in (problem.x_shape, problem.w_shape, problem.y_shape))
        words = np.dtype(dtype).itemsize // 4
        for report in in_emulator.watched(fft, problem, x, w, y):
            for kind in ("load", "store"):
                for access in in_emulator.accesses(report, "shared", kind):
                    assert access.cost == access.requests * words, "a wavefront for each 128 bytes"
            spectra = report.kernel != "convolve_tiles"
            for access in in_emulator.accesses(report, "global", "store") if spectra else ():
                assert access.cost == access.requests * 8 * words, "32 complex numbers side by side"

    def test_complex_numbers_and_gradients_take_it(self):
        random = np.random.default_rng(0)
        x, w = (
            random.standard_normal((1, 1, *s)) + 1j * random.standard_normal((1, 1, *s)) for s in ((30, 40), (9, 8))
        )
        kernel = {"backend": "cupy_raw", "algorithm": "fft"}
        np.testing.assert_allclose(convlib.conv2d(x, w, **kernel), convlib.conv2d(x, w), atol=1e-11)
        grad_y = convlib.conv2d(x.real, w.real)
        got = convlib.conv2d_input_grad(grad_y, w.real, x.shape, **kernel)
        np.testing.assert_allclose(got, convlib.conv2d_input_grad(grad_y, w.real, x.shape), atol=1e-10)
