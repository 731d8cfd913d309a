"""Winograd in steps, on a GPU: values by g++ and in the emulator, slices, workspace, error and choice.

Its matrix product is im2col's, whose machine code and banks are tested with it.
"""

from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, strided
from convlib.compiling import TARGETS
from convlib.emulator.profile import profile
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import im2col, winograd_batched
from convlib.problem import DTYPES, make_problem
from convlib.verification.problems import SMALL, TINY, Case
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import against_reference, on_cpu, test_launches

GPU = device.emulator_of(80)
SERVED = [case for case in TINY + SMALL if not winograd_batched.why_not(case.problem(), GPU)]

needs_compiler = pytest.mark.skipif(not on_cpu.available(), reason="g++ is not installed")

# The ways that images can lie, on problems of more tiles than a slice of one block of the matrix product.
LYING = {
    "tiles": Case("tiles", (3, 9, 26, 31), (35, 9, 3, 3), {"padding": 1}, bias=True),
    "pairs of tiles": Case("pairs", (3, 9, 26, 30), (35, 9, 3, 3), {"padding": 1}, bias=True, residual=True),
    "fours of tiles": Case("fours", (3, 9, 26, 32), (35, 9, 3, 3), {"padding": ((0, 2), (1, 1))}, residual=True),
    "filters": Case("filters", (3, 26, 31, 10), (70, 5, 3, 3), {"groups": 2, "layout": "NHWC"}, residual=True),
    "pairs of channels": Case("channels", (3, 26, 31, 20), (70, 10, 3, 3), {"groups": 2, "layout": "NHWC"}, bias=True),
    "fours of filters": Case("filters", (3, 26, 31, 20), (72, 10, 3, 3), {"groups": 2, "layout": "NHWC"}, bias=True),
    "slices": Case("slices", (3, 9, 26, 31), (35, 9, 3, 3), {"padding": ((2, 0), (0, 3))}, memory="slices"),
}
# Adjacent channels, or pixels, of x; how many pixels of x, and of y, are one load, and one store.
LAID = {
    "tiles": ("PIXELS", 1, 1),
    "pairs of tiles": ("PIXELS", 2, 2),
    "fours of tiles": ("PIXELS", 4, 4),
    "filters": ("NONE", 1, 1),
    "pairs of channels": ("CHANNELS", 1, 1),
    "fours of filters": ("CHANNELS", 1, 1),
    "slices": ("NONE", 1, 1),
}


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(winograd_batched, "WORKSPACE_BYTES", 1)
    winograd_batched.matrices.cache_clear()
    yield
    winograd_batched.matrices.cache_clear()


@needs_compiler
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_equals_the_reference(case):
    against_reference.check(winograd_batched, "winograd_batched", case, exactly=False)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lying", LYING)
def test_equals_the_reference_in_slices_however_images_lie(lying, dtype, small_slices, monkeypatch):
    case, found = replace(LYING[lying], dtype=dtype), []
    in_memory = winograd_batched.lying
    monkeypatch.setattr(winograd_batched, "lying", lambda *arrays: found.append(in_memory(*arrays)) or found[-1])
    if dtype == "float64":  # slices that end amid a warp
        monkeypatch.setattr(winograd_batched, "products_seconds", lambda problem, device, sizes: sizes.tile_m)
    sizes, tiles = winograd_batched.matrices(case.problem(), GPU), winograd_batched.transformed(case.problem()).W
    assert sizes.pixels == sizes.tile_m < tiles, "more than one slice"
    assert (sizes.tile_m == 16) == (dtype == "float64")
    against_reference.check(winograd_batched, "winograd_batched", case, exactly=False)
    assert found[-1][:3] == LAID[lying]


@needs_compiler
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 9), (3, 70)], ids=str)
@pytest.mark.parametrize("padding", [1, 2, ((3, 0), (0, 4))], ids=str)
def test_every_size_of_map_and_padding(size, padding):
    case = Case("size", (2, 3, *size), (5, 3, 3, 3), {"padding": padding})
    against_reference.check(winograd_batched, "winograd_batched", case, exactly=False)


@needs_compiler
@pytest.mark.parametrize("C", [1, 20, 130, 1000])
def test_the_error_keeps_to_the_contract(C):
    """g++ rounds products and sums apart, where a GPU does not: no smaller an error."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, C, 16, 15)).astype(np.float32)
    w = (random.standard_normal((24, C, 3, 3)) / np.sqrt(9 * C)).astype(np.float32)
    problem = make_problem(x.shape, w.shape, np.float32, padding=1)
    y = np.full(problem.y_shape, np.nan, np.float32)
    workspace = strided.empty_aligned((winograd_batched.workspace_bytes(problem, GPU),), np.uint8)
    with on_cpu.kernels_on_cpu():
        winograd_batched.run(problem, GPU, x, w, y, workspace=workspace)
    exact = reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    bound = accuracy.norm_relative(problem, "winograd_batched")
    assert 0.3 * bound < error < bound


def test_workspace_is_bounded_whatever_the_batch():
    def bytes_of(N):
        problem = make_problem((N, 512, 28, 28), (512, 512, 3, 3), np.float32, padding=1)
        return winograd_batched.workspace_bytes(problem, GPU)

    filters = 36 * 512 * 512 * 4
    assert bytes_of(1000) == bytes_of(100) <= filters + (64 << 20)


@pytest.mark.parametrize("case", LYING.values(), ids=LYING)
def test_arguments_fit_the_parameters_that_the_kernels_declare(case, small_slices):
    launches = test_launches.launches_of(winograd_batched, case)
    assert len(launches) > 4, "more than one slice"
    for launch in launches:
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        passed = launching.with_null_pointers(launch.args)
        assert len(passed) == len(declared)
        for parameter, value, given in zip(declared, passed, launch.args, strict=True):
            stand_in_cupy.check_argument(parameter, value)
            if launch.kernel.function == "conv2d_gemm" and "Element*" in parameter:
                assert given is None or given.dtype == np.uint8, "its y is the workspace's products"
            else:
                test_launches.check_type(parameter, given, case.problem())
        assert (launch.shared_bytes, launch.stream) == (0, 7)


def test_the_slices_cover_every_tile_once(small_slices):
    case = LYING["tiles"]
    sizes, tiles = winograd_batched.matrices(case.problem(), GPU), winograd_batched.transformed(case.problem()).W
    launches = test_launches.launches_of(winograd_batched, case)
    slices = [launch.args[-1] for launch in launches if launch.kernel.function == "transform_products"]
    assert [int(part["first"]) for part in slices] == list(range(0, tiles, sizes.pixels))
    assert sum(int(part["pixels"]) for part in slices) == tiles


def test_slices_differ_by_a_tile_at_most():
    """32 images of 28 x 28 are 1,568 tiles, of whose columns and products the workspace takes a third."""
    problem = make_problem((32, 512, 28, 28), (256, 512, 3, 3), np.float32, padding=1)
    for sizes in winograd_batched.possible_matrices(problem):
        slices = winograd_batched.slices(problem, sizes)
        ends = [first + tiles for first, tiles in slices]
        assert [first for first, _ in slices] == [0, *ends[:-1]]
        assert ends[-1] == 32 * 7 * 7
        counts = [launching.ceil_div(tiles, sizes.tile_m) for _, tiles in slices]
        assert len(counts) > 2
        assert max(counts) - min(counts) <= 1
        assert max(counts) * sizes.tile_m == sizes.pixels


def test_refuses_what_it_does_not_compute():
    problem = make_problem((1, 4, 9, 9), (4, 4, 3, 3), np.float32, stride=2)
    assert winograd_batched.why_not(problem, GPU) == ["stride 1 only, got (2, 2)"]


LYING_OF_TARGET = {
    86: winograd_batched.Lying("NONE", 1, 1),
    90: winograd_batched.Lying("CHANNELS", 1, 1, together=True),
    100: winograd_batched.Lying("PIXELS", 2, 2, weights="CHANNELS"),
    120: winograd_batched.Lying("CHANNELS", 1, 1, together=True, weights="NONE"),
}


class TestMachineCode:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("target", TARGETS)
    def test_compiles_for_every_target_and_type_without_spills(self, target, dtype, through_nvrtc):
        problem = through_nvrtc.problem_of("3x3", dtype)
        lying = LYING_OF_TARGET.get(target, winograd_batched.ALIGNED)
        for source in winograd_batched.sources(problem, GPU, lying=lying):
            if source.function == "conv2d_gemm":
                (product,) = {s for s in im2col.sources(problem, GPU) if s.function == "conv2d_gemm"}
                assert source.file == product.file, "compiled in test_compiled.py"
            else:
                through_nvrtc.check(source, target, dtype)


@pytest.mark.usefixtures("in_emulator")
class TestEmulated:
    """Its PTX, executed: races, bounds, uninitialised reads and every output written once are checked by `watched`."""

    @pytest.mark.parametrize(
        "case",
        [*LYING.values(), replace(LYING["pairs of channels"], dtype="float64")],
        ids=[*LYING, "channels of float64"],
    )
    def test_runs_without_a_fault_in_slices_however_y_lies(self, case, small_slices, in_emulator):
        in_emulator.check(winograd_batched, "winograd_batched", replace(case, x=(2, *case.x[1:])))

    @pytest.mark.parametrize(("layout", "dtype"), [("NCHW", "float32"), ("NHWC", "float32"), ("NHWC", "float64")])
    def test_the_transforms_meet_few_more_sectors_than_they_must(self, layout, dtype, in_emulator):
        """Of rows of whole sectors, and 64 tiles; a warp's first and last tile load one element more of each row."""
        x = (1, 16, 16, 64) if layout == "NCHW" else (1, 16, 64, 16)
        problem = make_problem(x, (64, 16, 3, 3), np.dtype(dtype), padding=1, layout=layout)
        reports = profile("cupy_raw.winograd_batched", replace(problem, has_bias=True, has_residual=True)).reports
        filters, tiles, multiplied, products = reports
        for report, most in ((filters, 1), (tiles, 1.15), (multiplied, 1), (products, 1)):
            for kind in ("load", "store"):
                found = in_emulator.accesses(report, "global", kind)
                least = sum(access.lanes * access.size / 32 for access in found)
                assert sum(access.cost for access in found) <= most * least, (report.kernel, kind)
        shared = [access for report in reports for access in report.counters.traffic if access.space == "shared"]
        assert all(access.cost == access.requests * max(access.size // 4, 1) for access in shared)

    def test_input_gradients_keep_to_the_bound(self):
        random = np.random.default_rng(0)
        problem = make_problem((1, 6, 7, 9), (5, 6, 3, 3), np.float32, padding=(1, 0))
        w, grad_y = (random.integers(-3, 4, s).astype(np.float32) for s in (problem.w_shape, problem.y_shape))
        kernel = {"backend": "cupy_raw", "algorithm": "winograd_batched", "max_error": 1.0}
        got = convlib.conv2d_input_grad(grad_y, w, problem.x_shape, padding=(1, 0), **kernel)
        exact = reference.input_grad(problem, grad_y, w)
        magnitude = reference.input_grad(problem, np.abs(grad_y), np.abs(w))
        assert (np.abs(got - exact) <= accuracy.elementwise(problem, "winograd_batched", magnitude, exact)).all()
