"""The weight gradient on tensor cores: values, copies and waits in the emulator, machine code, refusals, choice."""

import re
from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, compiling, device, emulator, layers, strided
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import tensor_core_weight_grad as kernel
from convlib.kernels.cupy_raw.tensor_core_tile import SHARED_BYTES, Tile, chunk_of, stages_held
from convlib.kernels.cupy_raw.weight_grad_splits import PARTIAL_BYTES
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import Case, in_memory
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import test_launches
from tests.kernels.cupy_raw.planted import plant
from tests.kernels.cupy_raw.tensor_core_cases import TYPES, of_type

GPU = device.emulator_of(80)
ALL_TILES = tuple(dict.fromkeys(kernel.TILES + kernel.TAPS_TILES + kernel.PRECISE_TILES))
NONE, CHANNELS, PIXELS = "NONE", "CHANNELS", "PIXELS"

# Each way in which x and grad_y can lie, on problems that stick out of a tile of columns, of filters (but two of them)
# and of a stage.
LYING = {
    "channels": Case("channels", (2, 9, 11, 24), (72, 24, 3, 3), {"padding": 1, "layout": "NHWC"}),
    "channels_strided": Case("channels_strided", (2, 9, 12, 48), (80, 24, 3, 2), {"layout": "NHWC", "groups": 2,
                             "stride": (1, 2), "dilation": (2, 1)}),
    "channels_of_x": Case("channels_of_x", (2, 9, 10, 16), (70, 16, 3, 3), {"layout": "NHWC", "stride": 2}),
    "pixels": Case("pixels", (3, 20, 8, 9), (128, 20, 1, 1)),
    "pixels_of_y": Case("pixels_of_y", (2, 20, 8, 10), (70, 10, 3, 3), {"padding": 1, "groups": 2}),
    "gathered": Case("gathered", (2, 19, 7, 9), (34, 19, 3, 3), {"dilation": (1, 2), "padding": (0, 3)}),
    "slices": Case("slices", (2, 16, 8, 8), (128, 16, 1, 1), memory="slices"),
    "few_filters": Case("few_filters", (2, 13, 7, 9), (3, 13, 3, 2), {"padding": 1}),
    "taps_channels": Case("taps_channels", (2, 9, 11, 2), (72, 2, 3, 3), {"padding": (1, 2), "layout": "NHWC"}),
    "taps": Case("taps", (2, 3, 12, 12), (66, 3, 5, 5), {"padding": (4, 6), "stride": 2, "dilation": (2, 3)}),
}  # fmt: skip
EXPECTED = {
    "channels": (CHANNELS, CHANNELS),
    "channels_strided": (CHANNELS, CHANNELS),
    "channels_of_x": (CHANNELS, NONE),
    "pixels": (PIXELS, PIXELS),
    "pixels_of_y": (NONE, PIXELS),
    "gathered": (NONE, NONE),
    "slices": (NONE, NONE),
    "few_filters": (NONE, NONE),
    "taps_channels": (NONE, CHANNELS),
    "taps": (NONE, NONE),
}
# Rows of a window, taps inner: padded, to as many taps as have bits; with too many columns then, on tiles of 64; whole.
ROWS = {
    "padded": Case("padded", (2, 3, 9, 8), (20, 3, 7, 7), {"padding": 3, "stride": (2, 1)}),
    "padded_slices": Case("padded_slices", (1, 2, 9, 8), (9, 2, 3, 3), {"dilation": (1, 3), "padding": 2},
                          memory="slices"),
    "alone": Case("alone", (1, 3, 8, 9), (9, 3, 3, 7), {"padding": (1, 2)}),
    "whole": Case("whole", (1, 9, 8, 6), (12, 3, 2, 4), {"padding": 1, "layout": "NHWC", "groups": 2}),
}  # fmt: skip


def force_cut(monkeypatch, problem, tile, splits=1):
    cut = kernel.cut_of(problem, tile, splits)
    monkeypatch.setattr(kernel, "cut_for", lambda problem, device: cut)
    return cut


def operands(case, integers=True):
    """x and grad_y of the case, in logical order, and a NaN-filled grad_w."""
    random, problem = np.random.default_rng(0), case.problem("weight_grad")
    order = (0, 3, 1, 2) if problem.layout == "NHWC" else (0, 1, 2, 3)

    def image(shape):
        stored = [shape[axis] for axis in np.argsort(order)]
        numbers = random.integers(-3, 4, stored) if integers else random.standard_normal(stored)
        return in_memory(numbers.astype(problem.dtype), case.memory).transpose(order)

    return image(problem.x_shape), image(problem.y_shape), np.full(problem.w_shape, np.nan).astype(problem.dtype)


def watched(case, integers=True):
    """Run the kernel in the emulator: x, grad_y, grad_w, and the reports; every weight must be written once."""
    gpu, problem = device.emulator(), case.problem("weight_grad")
    assert kernel.why_not(problem, gpu) == []
    x, grad_y, grad_w = operands(case, integers)
    workspace = strided.empty_aligned((kernel.workspace_bytes(problem, gpu),), np.uint8)
    workspace.fill(0xFF)
    with emulator.watching(outputs=[strided.as_storage(grad_w)], scratch=[workspace]) as watch:
        kernel.run(problem, gpu, *map(strided.as_storage, (x, grad_y, grad_w)), workspace=workspace)
    watch.raise_if_faulty()
    return x, grad_y, grad_w, watch.reports


def check(case):
    """Sums of small integers are exact, in TF32 too; 16-bit results are rounded once."""
    x, grad_y, grad_w, _ = watched(case)
    exact = reference.weight_grad(case.problem("weight_grad"), x, grad_y)
    np.testing.assert_array_equal(grad_w.astype(float), exact.astype(grad_w.dtype).astype(float))


@pytest.mark.parametrize("name", LYING)
def test_arguments_fit_the_parameters_that_the_kernels_declare(name, monkeypatch):
    case = replace(LYING[name], dtype="float16")
    force_cut(monkeypatch, case.problem("weight_grad"), kernel.TILES[-1], 2)
    launches = test_launches.launches_of(kernel, case)
    assert [launch.kernel.function for launch in launches] == ["conv2d_tensor_core_weight_grad", "finish_weight_grad"]
    for launch in launches:
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        for parameter, value in zip(declared, launching.with_null_pointers(launch.args), strict=True):
            stand_in_cupy.check_argument(parameter, value)
        assert (launch.shared_bytes, launch.stream) == (0, 7)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("name", LYING)
def test_arrays_that_lie_side_by_side_are_copied_whole(name, type_):
    case = of_type(LYING[name], type_)
    x, grad_y, _ = operands(case)
    lying = kernel.lying_of(case.problem("weight_grad"), *map(strided.as_storage, (x, grad_y)))
    if case.dtype != "float32" or name in ("channels", "channels_strided", "pixels"):  # whose chunks are shorter
        assert lying == (*EXPECTED[name], EXPECTED[name][1] == CHANNELS)


def test_refuses_what_tensor_cores_do_not_take():
    def reasons(dtype, target, **keywords):
        problem = make_problem((1, 16, 9, 9), (8, 16, 3, 3), named_dtype(dtype), pass_="weight_grad", **keywords)
        return kernel.why_not(problem, device.emulator_of(target))

    assert reasons("float16", 75) == reasons("bfloat16", 80) == reasons("float32", 80, precision="tf32") == []
    assert reasons("float64", 90) == ["float16, bfloat16, float32 only, got float64"]
    assert reasons("float32", 90) == ['float32 only with precision "tf32" or "3xtf32"']
    (reason,) = reasons("bfloat16", 75)
    assert reason.startswith("bfloat16 from compute capability 8.0 on, emulator:0 (PTX emulator, sm_75) has 7.5")


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_is_chosen_for_16_bit_types_and_for_float32_where_the_caller_asks(layout, target):
    def chosen(dtype, precision=None, groups=1, images=8):
        x = (images, 28, 28, 128) if layout == "NHWC" else (images, 128, 28, 28)
        problem = make_problem(
            x, (128, 128 // groups, 3, 3), named_dtype(dtype), padding=1, layout=layout, precision=precision,
            groups=groups, pass_="weight_grad",
        )  # fmt: skip
        return choosing.choose(problem, device.emulator_of(target), "cupy_raw")

    for images in (1, 8):
        assert chosen("float16", images=images) == chosen("bfloat16") == "cupy_raw.tensor_core_weight_grad"
    assert chosen("float32", "tf32") == chosen("float32", "3xtf32") == "cupy_raw.tensor_core_weight_grad"
    assert chosen("float32") == "cupy_raw.weight_grad"
    assert chosen("float16", groups=128) != "cupy_raw.tensor_core_weight_grad"


@pytest.mark.parametrize("images", [1, 32])
def test_every_layer_of_resnet_fills_its_wave_or_is_split_as_far_as_pays(images):
    gpu = replace(GPU, sm_count=108)
    for layer in layers.layers("resnet50"):
        problem = replace(
            layer.problem, N=images, dtype=np.dtype(np.float16), pass_="weight_grad", activation=None, has_bias=False
        )
        cut = kernel.cut_for(problem, gpu)
        blocks = np.prod(cut.grid(problem))
        assert cut.partial_bytes <= PARTIAL_BYTES or cut.splits == 1
        full = blocks >= 0.55 * 108 * -(-blocks // 108)
        assert full or cut.splits == max(kernel.possible_splits(problem)) or cut.tile == kernel.TILES[-1], layer.name


@pytest.mark.parametrize("tile", ALL_TILES, ids=str)
def test_three_stages_or_more_lie_in_shared_memory_where_copies_are_asynchronous(tile):
    assert stages_held(tile, device.emulator_of(75)) == 2
    for target in (80, 90, 120):
        stages = stages_held(tile, device.emulator_of(target))
        assert stages >= 3
        assert stages * tile.stage_bytes <= SHARED_BYTES


@pytest.mark.parametrize(
    ("channels", "window", "columns", "row", "found"),
    [
        (3, (7, 7), 64, 8, (192 // 4, 4)),
        (3, (3, 3), 128, 4, (128 // 4, 4)),
        (7, (3, 3), 64, 3, (64, 1)),  # 84 columns would take two tiles
        (7, (3, 3), 128, 4, (128 // 4, 4)),
        (2, (9, 5), 128, 5, (128, 1)),  # 72 taps are more than bits
        (1, (8, 8), 64, 8, (64, 1)),  # whole, and more than bits with those of the next channel
        (7, (5, 8), 64, 8, (320 // 4, 4)),
        (7, (8, 7), 128, 7, (0, 1)),
    ],
)
def test_rows_of_windows_are_padded_to_runs_where_that_costs_nothing(channels, window, columns, row, found):
    problem = make_problem((1, channels, 20, 20), (8, channels, *window), np.dtype(np.float16), pass_="weight_grad")
    cut = kernel.cut_of(problem, next(tile for tile in kernel.TAPS_TILES if tile.rows == columns), 1)
    assert (cut.tap_row, kernel.found_steps(problem, cut)) == (row, found)
    assert kernel.found_steps(problem, cut, wide=True) == (0, 1)
    assert cut.columns == -(-channels * window[0] * row // columns) * columns


def test_predicted_times_grow_with_the_problem():
    def seconds(images, **keywords):
        problem = make_problem((images, 64, 56, 56), (64, 64, 3, 3), pass_="weight_grad", **keywords)
        return kernel.predicted_seconds(problem, GPU)

    half = [seconds(images, dtype=np.dtype(np.float16)) for images in (1, 8, 64)]
    assert 1e-6 < half[0] < half[1] < half[2] < 10
    single = [seconds(64, dtype=np.dtype(np.float32), precision=precision) for precision in ("tf32", "3xtf32")]
    assert half[2] < single[0] < single[1]


class TestMachineCode:
    """What the compilers of a GPU make of it."""

    @pytest.fixture(autouse=True)
    def compilers(self):
        pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
        pytest.importorskip("nvidia", reason="cuobjdump and nvdisasm are not installed (extra emulate)")

    def source(self, tile, type_, lying, target=80, wide=False, channels=256):
        precision, window = TYPES[type_].get("precision"), 1 if lying[0] == PIXELS else 3
        dtype = named_dtype("float32" if precision else type_)
        problem = make_problem((8, channels, 14, 14), (256, channels, window, window), dtype, padding=window // 2,
                               precision=precision, pass_="weight_grad")  # fmt: skip
        stages = stages_held(tile, device.emulator_of(target))
        return kernel.sources_of(problem, kernel.cut_of(problem, tile, 4), stages, wide, kernel.Lying(*lying))[0]

    def check(self, source, target):
        used = compiling.resources(compiling.cuda_source_cubin(source, target))[source.function]
        assert (used.stack, used.local) == (0, 0), f"{source.function} spills registers: {used}"
        assert used.shared <= 48 * 1024 + (1024 if target >= 90 else 0)

    @pytest.mark.parametrize("tile", ALL_TILES, ids=str)
    def test_every_tile_compiles_without_spills(self, tile):
        type_ = "3xtf32" if tile in kernel.PRECISE_TILES else "float16"
        self.check(self.source(tile, type_, (CHANNELS, CHANNELS), 120), 120)  # its compiler wants the most registers

    @pytest.mark.parametrize("lying", [(CHANNELS, CHANNELS), (NONE, NONE)], ids=" ".join)
    def test_both_ways_to_bring_stages_compile_without_spills_where_copies_are_not_asynchronous(self, lying):
        self.check(self.source(kernel.TILES[0], "float16", lying, 75), 75)

    @pytest.mark.parametrize("tile", kernel.TAPS_TILES, ids=str)
    def test_every_tile_of_few_channels_compiles_without_spills(self, tile):
        self.check(self.source(tile, "float16", (NONE, NONE), 120, channels=3), 120)

    def test_64_bit_offsets_and_few_channels_compile_without_spills(self):
        self.check(self.source(kernel.TILES[0], "float16", (NONE, NONE), 120, wide=True), 120)
        self.check(self.source(kernel.TILES[0], "float16", (NONE, NONE), 120, channels=3), 120)

    @pytest.mark.parametrize("tile", kernel.PRECISE_TILES, ids=str)
    @pytest.mark.parametrize("lying", [(NONE, NONE), (CHANNELS, NONE)], ids=" ".join)
    def test_64_bit_offsets_and_three_products_compile_without_spills(self, lying, tile):
        for target in (90, 120):
            self.check(self.source(tile, "3xtf32", lying, target, wide=True), target)

    def test_nothing_is_added_by_atomics(self):
        problem = LYING["pixels"].problem("weight_grad")
        for source in kernel.sources(replace(problem, dtype=np.dtype(np.float16)), GPU):
            assert not re.search(r"\b(atom|red)\.", compiling.cuda_source_ptx(source, 80))


class TestEmulated:
    """Its PTX, executed: races, bounds, waits, uninitialised reads and every weight written once are checked."""

    @pytest.fixture(autouse=True)
    def emulated(self, monkeypatch):
        pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
        monkeypatch.setenv("CONVLIB_EMULATE", "1")

    @pytest.mark.parametrize("turn", [0, 1])
    @pytest.mark.parametrize("name", LYING)
    def test_every_way_to_lie_runs_without_a_fault(self, name, turn, monkeypatch):
        number = list(LYING).index(name)
        case = of_type(LYING[name], list(TYPES)[(number + 2 * turn + number // 4) % len(TYPES)])
        problem = case.problem("weight_grad")
        tiles = kernel.tiles_of(problem)
        force_cut(monkeypatch, problem, tiles[(2 * number + turn) % len(tiles)], splits=1 + 2 * turn)
        check(case)

    @pytest.mark.parametrize("type_", ["float16", "tf32"])
    @pytest.mark.parametrize("name", ROWS)
    def test_rows_of_every_length_run_without_a_fault(self, name, type_, monkeypatch):
        case = of_type(ROWS[name], type_)
        tiles = kernel.tiles_of(case.problem("weight_grad"))
        force_cut(monkeypatch, case.problem("weight_grad"), tiles[list(ROWS).index(name) % 2 - 1], splits=2)
        check(case)

    def test_padded_rows_are_found_without_a_table_where_offsets_have_64_bits(self, monkeypatch):
        monkeypatch.setattr(kernel, "is_wide", lambda *given: True)
        case = of_type(ROWS["padded_slices"], "float16")
        cut = force_cut(monkeypatch, case.problem("weight_grad"), kernel.TAPS_TILES[-1], splits=2)
        assert cut.tap_row == 4
        check(case)

    @pytest.mark.parametrize(
        ("name", "tile"), list(zip(("channels", "gathered", "pixels_of_y"), kernel.PRECISE_TILES)), ids=str
    )
    def test_three_products_run_without_a_fault_where_offsets_have_64_bits(self, name, tile, monkeypatch):
        monkeypatch.setattr(kernel, "is_wide", lambda *given: True)
        case = of_type(LYING[name], "3xtf32")
        force_cut(monkeypatch, case.problem("weight_grad"), tile, splits=2)
        check(case)

    @pytest.mark.parametrize("tile", [kernel.TAPS_TILES[0], kernel.TAPS_TILES[-1]], ids=str)
    def test_windows_of_more_rows_and_columns_than_there_are_bits_run_without_a_fault(self, tile, monkeypatch):
        case = Case(
            "large", (1, 2, 18, 17), (9, 2, 17, 15), {"padding": ((1, 15), (1, 17)), "dilation": 2}, dtype="float16"
        )
        force_cut(monkeypatch, case.problem("weight_grad"), tile)
        check(case)

    def test_a_pixel_that_does_not_exist_adds_nothing_beside_infinities(self, monkeypatch):
        """What is gathered in its place may be infinite, and zero times that is NaN."""
        case = Case("infinite", (1, 9, 5, 5), (9, 9, 3, 3), dtype="float16")
        x, grad_y, grad_w = operands(case)
        x[...], grad_y[...] = 1, np.inf
        monkeypatch.setattr(f"{__name__}.operands", lambda *given: (x, grad_y, grad_w))
        watched(case)
        assert np.isposinf(grad_w).all()

    @pytest.mark.parametrize("target", [80, 90])
    @pytest.mark.parametrize("name", ["channels", "gathered"])
    def test_a_nan_stays_one_where_floats_are_rounded_and_spoils_no_neighbour(self, name, target, monkeypatch):
        """All of its bits are ones, so that adding half of the last place kept would carry into the sign."""
        monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
        case = of_type(LYING[name], "tf32")
        x, grad_y, grad_w = operands(case)
        x[0, 5, 3, 4] = grad_y[1, 7, 2, 1] = np.uint32(0x7FFFFFFF).view(np.float32)
        monkeypatch.setattr(f"{__name__}.operands", lambda *given: (x, grad_y, grad_w))
        check(case)
        assert 0 < np.isnan(grad_w).mean() < 0.2

    @pytest.mark.parametrize("target", [80, 90])
    @pytest.mark.parametrize("name", ["channels", "pixels", "gathered"])
    def test_floats_are_rounded_to_the_nearest_wherever_they_lie(self, name, target, monkeypatch):
        """Both operands; tensor cores alone would cut off what is three quarters of the last place that they take."""
        monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
        case = of_type(LYING[name], "tf32")
        x, grad_y, grad_w = operands(case)
        x[...] = grad_y[...] = 1
        nearest = reference.weight_grad(case.problem("weight_grad"), x, grad_y) * (1 + 2**-10) ** 2
        x[...] = grad_y[...] = 1 + 3 * 2**-12
        monkeypatch.setattr(f"{__name__}.operands", lambda *given: (x, grad_y, grad_w))
        watched(case)
        np.testing.assert_allclose(grad_w, nearest, rtol=1e-5)

    @pytest.mark.parametrize("tile", ALL_TILES, ids=str)
    def test_every_tile_runs_without_a_fault(self, tile, monkeypatch):
        case = of_type(LYING["channels"], "3xtf32" if tile in kernel.PRECISE_TILES else "tf32")
        force_cut(monkeypatch, case.problem("weight_grad"), tile, splits=2)
        check(case)

    @pytest.mark.parametrize("target", compiling.TARGETS)
    def test_every_target_runs_without_a_fault(self, target, monkeypatch):
        monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
        check(replace(LYING["channels" if target in (75, 90, 120) else "pixels_of_y"], dtype="float16"))

    @pytest.mark.parametrize("type_", ["float16", "tf32"])
    @pytest.mark.parametrize("name", ["channels", "pixels", "gathered"])
    def test_no_copy_and_no_matrix_meets_a_bank_conflict(self, name, type_, monkeypatch):
        case = of_type(LYING[name], type_)
        problem = case.problem("weight_grad")
        if name == "gathered":
            monkeypatch.setattr(kernel, "lying_of", lambda *given: kernel.Lying(NONE, NONE))
        force_cut(monkeypatch, problem, Tile(128, 64, 64, 64, 2))  # rows of both widths
        *_, (found, _) = watched(case)
        shared = [access for access in found.counters.traffic if access.space == "shared"]
        loads = {"ldmatrix"} if type_ == "float16" or name == "pixels" else {"load"}
        passed = {"load", "store"}  # from half to half
        assert {access.kind for access in shared} == loads | passed | ({"copy"} if name != "gathered" else set())
        for access in shared:
            assert access.cost <= access.requests * max(access.size // 4, 1), access

    def test_copies_move_whole_sectors_and_each_chunk_once(self, monkeypatch):
        case = Case("sectors", (1, 8, 16, 64), (128, 64, 1, 1), {"layout": "NHWC"}, dtype="float16")
        force_cut(monkeypatch, case.problem("weight_grad"), kernel.TILES[3])
        *_, (found, _) = watched(case)
        copies = [access for access in found.counters.traffic if (access.space, access.kind) == ("global", "copy")]
        assert sum(access.requests for access in copies) == 128 * (64 + 128) * 2 // 512, "512 bytes per warp"
        assert all(access.cost == access.requests * 16 for access in copies)

    @pytest.mark.parametrize(
        ("name", "what", "wrong", "fault"),
        [
            ("channels", r"cp\.async\.wait_group 1;", "", "copy in flight"),
            ("pixels_of_y", r"cp\.async\.wait_group 1;", "", "copy in flight"),
            ("channels", r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "copy in flight"),
            ("pixels_of_y", r"(?m)^(\s*)(?:bar|barrier)\.sync.*$", "", "race"),
            ("channels", r"cp\.async\.commit_group;", "", "copy in flight"),
        ],
        ids=["no_wait", "no_wait_for_pixels", "one_wait_too_weak", "no_barrier", "no_group"],
    )
    def test_the_emulator_sees_what_is_missing(self, name, what, wrong, fault, monkeypatch):
        plant(monkeypatch, "conv2d_tensor_core_weight_grad", what, instead=wrong)
        case = replace(LYING[name], dtype="float16")
        force_cut(monkeypatch, case.problem("weight_grad"), kernel.TILES[1])
        with pytest.raises(emulator.EmulationError, match=fault):
            check(case)

    @pytest.mark.parametrize("type_", TYPES)
    def test_the_error_keeps_to_the_contract(self, type_):
        """On normal numbers, which are rounded; the emulator rounds sums, too, where tensor cores cut them off."""
        case = of_type(Case("normal", (4, 9, 10, 8), (16, 8, 3, 3), {"layout": "NHWC"}), type_)
        problem = case.problem("weight_grad")
        x, grad_y, grad_w, _ = watched(case, integers=False)
        exact, magnitude = (reference.weight_grad(problem, *both) for both in ((x, grad_y), (abs(x), abs(grad_y))))
        error = np.abs(grad_w.astype(np.float64) - exact)
        bound = accuracy.norm_relative(problem, "tensor_core_weight_grad")
        assert 0.05 * bound < np.linalg.norm(error) / np.linalg.norm(exact) < bound
        assert (error <= accuracy.elementwise(problem, "tensor_core_weight_grad", magnitude, exact)).all()


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_weight_gradients_reach_it(layout, type_, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")
    precision = TYPES[type_].get("precision")
    x, grad_y = ((8, 28, 28, 64), (8, 14, 14, 96)) if layout == "NHWC" else ((8, 64, 28, 28), (8, 96, 14, 14))
    x, grad_y = (np.ones(shape, named_dtype("float32" if precision else type_)) for shape in (x, grad_y))
    call = {"padding": 1, "stride": 2, "layout": layout, "precision": precision, "backend": "cupy_raw"}
    with launching.recording() as launches:
        convlib.conv2d_weight_grad(x, grad_y, (96, 64, 3, 3), **call)
    assert [launch.kernel.function for launch in launches] == ["conv2d_tensor_core_weight_grad", "finish_weight_grad"]


@pytest.mark.parametrize("type_", TYPES)
def test_a_chunk_is_16_bytes_and_a_stage_64(type_):
    problem = of_type(LYING["channels"], type_).problem("weight_grad")
    assert kernel.depth_of(problem) == 4 * chunk_of(problem)
