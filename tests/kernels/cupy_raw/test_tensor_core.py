"""Tensor cores: values, copies and waits in the emulator, machine code, refusals, accuracy and choice."""

import re
from dataclasses import replace

import numpy as np
import pytest

import convlib
from convlib import accuracy, compiling, device, dispatch, emulator, report, strided
from convlib.compiling import TARGETS
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import tensor_core, tensor_core_tile
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import Case
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import in_emulator, test_launches

GPU = device.emulator_of(80)

# Each way in which x and y can lie, on problems that stick out of a tile of pixels, of filters and of a stage.
LYING = {
    "copied": Case("copied", (2, 9, 11, 40), (48, 40, 3, 3), {"padding": 1, "layout": "NHWC"}, bias=True,
                   residual=True, dtype="float16"),
    "copied_odd_filters": Case("copied_odd_filters", (2, 9, 10, 48), (70, 24, 3, 2), {"layout": "NHWC", "groups": 2,
                               "stride": (1, 2)}, bias=True, dtype="float16"),
    "gathered": Case("gathered", (2, 20, 8, 10), (70, 20, 3, 3), {"padding": 1}, bias=True, residual=True,
                     dtype="float16"),
    "gathered_whole": Case("gathered_whole", (2, 48, 7, 9), (34, 24, 3, 3), {"groups": 2, "dilation": (2, 3),
                           "padding": 1}, bias=True, residual=True, dtype="float16", memory="slices"),
    "gathered_last": Case("gathered_last", (2, 9, 11, 21), (34, 21, 3, 3), {"padding": 2, "layout": "NHWC"},
                          residual=True, dtype="float16"),
    "copied_stages": Case("copied_stages", (1, 7, 9, 32), (34, 32, 3, 3), {"padding": 1, "layout": "NHWC"},
                          dtype="float16"),
    "gathered_stages": Case("gathered_stages", (1, 64, 8, 9), (34, 64, 3, 2), {"padding": 1}, dtype="float16"),
    "taps": Case("taps", (2, 3, 12, 11), (35, 3, 5, 5), {"padding": (4, 6), "stride": 2, "dilation": (2, 3)}, bias=True,
                 dtype="float16"),
}  # fmt: skip
EXPECTED = {
    "copied": tensor_core.Lying(True, True, 8),
    "copied_odd_filters": tensor_core.Lying(True, True, 1),
    "gathered": tensor_core.Lying(False, False, 8),
    "gathered_whole": tensor_core.Lying(False, False, 1),
    "gathered_last": tensor_core.Lying(False, True, 1),
    "copied_stages": tensor_core.Lying(True, True, 1),
    "gathered_stages": tensor_core.Lying(False, False, 8),
    "taps": tensor_core.Lying(False, False, 1),
}
NUMBERS = 6  # of cases to emulate for each way to lie
ALL_TILES = tensor_core.TILES + tensor_core.ONE_STAGE_TILES + tensor_core.PRECISE_TILES
TYPES = {"float16": {}, "bfloat16": {}, "tf32": {"precision": "tf32"}, "3xtf32": {"precision": "3xtf32"}}


def of_type(case, type_):
    """`case` in one of TYPES."""
    dtype = "float32" if "tf32" in type_ else type_
    return replace(case, dtype=dtype, keywords={**case.keywords, **TYPES[type_]})


def most_of_tensor_cores(tile, target):
    """What share of their time shared memory leaves the tensor cores, whatever a tile's warps; not of three products.

    A stage has 64 bytes of each row and filter, stored once and loaded once at least, 128 bytes in a cycle; of a 16-bit
    type these are 32 steps.
    """
    multiplying = tile.rows * tile.filters * 32 / (report.SCHEDULERS * report.MULTIPROCESSORS[target].mma)
    return min(1, multiplying / (2 * (tile.rows + tile.filters) * 64 / 128))


def force_cut(monkeypatch, problem, tile, splits=1, whole=0):
    cut = tensor_core.cut_of(problem, tile, splits, whole)
    monkeypatch.setattr(tensor_core, "cut_for", lambda problem, device: cut)
    return cut


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("name", LYING)
def test_arguments_fit_the_parameters_that_the_kernels_declare(name, splits, monkeypatch):
    force_cut(monkeypatch, LYING[name].problem(), tensor_core.TILES[-1], splits)
    launches = test_launches.launches_of(tensor_core, LYING[name])
    assert len(launches) == 2
    for launch in launches:
        declared = stand_in_cupy.declared_parameters(launch.kernel.text(), launch.kernel.function)
        passed = launching.with_null_pointers(launch.args)
        assert len(launch.args) == len(declared)
        for parameter, value in zip(declared, passed, strict=True):
            stand_in_cupy.check_argument(parameter, value)
        assert (launch.shared_bytes, launch.stream) == (0, 7)


def test_refuses_what_tensor_cores_do_not_take():
    def reasons(dtype, target, **keywords):
        problem = make_problem((1, 16, 9, 9), (8, 16, 3, 3), named_dtype(dtype), **keywords)
        return tensor_core.why_not(problem, device.emulator_of(target))

    assert reasons("float16", 75) == reasons("bfloat16", 80) == reasons("float32", 80, precision="tf32") == []
    assert reasons("float64", 90) == ["float16, bfloat16, float32 only, got float64"]
    assert reasons("float32", 90) == ['float32 only with precision "tf32" or "3xtf32"']
    (reason,) = reasons("bfloat16", 75)
    assert reason.startswith("bfloat16 from compute capability 8.0 on, emulator:0 (PTX emulator, sm_75) has 7.5")
    assert reasons("float32", 75, precision="3xtf32")[0].startswith("float32 from compute capability 8.0 on")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_precision_is_for_float32_only(dtype):
    x = np.ones((1, 1, 3, 3), named_dtype(dtype))
    with pytest.raises(ValueError, match=f"precision: None needed, except of float32; got 'tf32' with {dtype}"):
        convlib.conv2d(x, x, precision="tf32")
    with pytest.raises(ValueError, match="precision: one of None, 'tf32', '3xtf32' needed, got 'fp32'"):
        convlib.conv2d(x.astype(np.float32), x.astype(np.float32), precision="fp32")


@pytest.mark.parametrize("target", [80, 90])
def test_is_chosen_for_16_bit_types_and_for_float32_where_the_caller_asks(target):
    def chosen(dtype, precision=None, layout="NHWC", channels=128):
        x = (8, 28, 28, channels) if layout == "NHWC" else (8, channels, 28, 28)
        problem = make_problem(
            x, (128, channels, 3, 3), named_dtype(dtype), padding=1, layout=layout, precision=precision
        )
        return dispatch.choose(problem, device.emulator_of(target), "cupy_raw")

    for layout in ("NHWC", "NCHW"):
        assert chosen("float16", layout=layout) == chosen("bfloat16", layout=layout) == "cupy_raw.tensor_core"
    assert chosen("float32", "tf32") == chosen("float32", "3xtf32") == "cupy_raw.tensor_core"
    assert chosen("float32") != "cupy_raw.tensor_core"


@pytest.mark.parametrize("tile", ALL_TILES, ids=str)
def test_three_stages_or_more_lie_in_shared_memory_where_copies_are_asynchronous(tile):
    assert tensor_core.stages_held(tile, device.emulator_of(75)) == 2
    for target in (80, 90, 120):
        stages = tensor_core.stages_held(tile, device.emulator_of(target))
        assert stages >= 3
        assert stages * tile.stage_bytes <= tensor_core_tile.SHARED_BYTES


@pytest.mark.parametrize("target", [80, 90])
def test_small_tiles_are_for_small_problems(target):
    small = {tile for tile in tensor_core.TILES if tile.rows * tile.filters <= 64 * 64}

    def tiles(images):
        problems = (make_problem((images, 256, size, size), (256, 256, 3, 3), np.dtype(np.float16), padding=1)
                    for size in (7, 14, 28))  # fmt: skip
        return {tensor_core.cut_for(problem, device.emulator_of(target)).tile for problem in problems}

    assert tiles(1) & small
    assert not tiles(32) & small


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_predicted_times_grow_with_the_problem(dtype):
    seconds = [
        tensor_core.predicted_seconds(make_problem((n, 64, 56, 56), (64, 64, 3, 3), named_dtype(dtype)), GPU)
        for n in (1, 8, 64)
    ]
    assert 1e-6 < seconds[0] < seconds[1] < seconds[2] < 10


class TestMachineCode:
    """What the compilers of a GPU make of it."""

    @pytest.fixture(autouse=True)
    def compilers(self):
        pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
        pytest.importorskip("nvidia", reason="cuobjdump and nvdisasm are not installed (extra emulate)")

    def source(self, tile, type_, lying, target=80, splits=1, wide=False, channels=256):
        precision = TYPES[type_].get("precision")
        dtype = named_dtype("float32" if precision else type_)
        layout, x = ("NHWC", (8, 14, 14, channels)) if lying.along_filters else ("NCHW", (8, channels, 14, 14))
        problem = make_problem(x, (256, channels, 3, 3), dtype, padding=1, layout=layout, precision=precision,
                               activation="relu")  # fmt: skip
        cut = tensor_core.cut_of(problem, tile, splits)
        stages = tensor_core.stages_held(tile, device.emulator_of(target))
        lying = lying._replace(run=min(lying.run, tensor_core.chunk_of(problem)))
        return tensor_core.sources_of(problem, cut, stages, wide, lying)

    def check(self, source, target):
        used = compiling.resources(compiling.cuda_source_cubin(source, target))[source.function]
        assert (used.stack, used.local) == (0, 0), f"{source.function} spills registers: {used}"
        assert used.shared <= 48 * 1024 + (1024 if target >= 90 else 0)

    @pytest.mark.parametrize(
        ("type_", "tile"),
        [*((type_, tile) for type_ in ("float16", "tf32") for tile in tensor_core.TILES),
         *(("float16", tile) for tile in tensor_core.ONE_STAGE_TILES),
         ("bfloat16", tensor_core.TILES[0]), *(("3xtf32", tile) for tile in tensor_core.PRECISE_TILES)],
        ids=str,
    )  # fmt: skip
    def test_every_tile_compiles_without_spills(self, type_, tile):
        for target in (90, 120):  # whose compilers want the most registers
            self.check(self.source(tile, type_, tensor_core.Lying(True, True, 8), target)[1], target)

    @pytest.mark.parametrize("target", [75, 90, 120])
    @pytest.mark.parametrize("lying", sorted(set(EXPECTED.values())), ids=str)
    def test_every_way_to_lie_compiles_without_spills(self, lying, target):
        for source in self.source(tensor_core.TILES[0], "float16", lying, target):
            self.check(source, target)
        for splits, wide, channels in ((2, False, 256), (1, True, 256), *([(1, False, 3)] * (not lying.together))):
            self.check(self.source(tensor_core.TILES[0], "float16", lying, target, splits, wide, channels)[1], target)

    @pytest.mark.parametrize(
        ("target", "tile", "type_", "together"),
        [*((90, tile, "float16", together) for tile in tensor_core.TILES for together in (True, False)),
         *((80, tile, "float16", False) for tile in tensor_core.TILES), (90, tensor_core.TILES[0], "bfloat16", True),
         *((90, tile, "tf32", True) for tile in tensor_core.TILES),
         *((target, tile, "3xtf32", True) for tile in tensor_core.PRECISE_TILES for target in (80, 90))],
        ids=str,
    )  # fmt: skip
    def test_the_tensor_cores_are_kept_busy(self, target, tile, type_, together):
        """At least 85 % of the time in which instructions issue and shared memory answers, in the main loop.

        Of small tiles shared memory allows less, whatever their warps. Where x is gathered, its stages end amid the
        channels, and so do chunks.
        """
        channels = 256 if together else 258
        source = self.source(tile, type_, tensor_core.Lying(together, together, 8), target, channels=channels)[1]
        loop = report.Loop.of(compiling.sass(compiling.cuda_source_cubin(source, target)), source.function)
        blocks = tile.warp_rows * tile.warp_filters // (16 * 8)
        assert len(loop.tensor) == blocks * 2 // tile.halves * (3 if type_ == "3xtf32" else 1)
        most = 1 if type_ == "3xtf32" else most_of_tensor_cores(tile, target)
        assert loop.issue_bound(report.MULTIPROCESSORS[target]) >= min(0.85, most)
        assert loop.roots["BAR"] == 1, "one barrier per stage"
        assert loop.roots["LDG"] == (0 if together else tile.rows * 32 // tile.threads)
        assert loop.load_bits("LDGSTS") == loop.load_bits("LDSM") == 128

    def test_no_tile_but_small_ones_is_kept_from_85_percent_by_shared_memory(self):
        for target, sizes in ((80, {(32, 64), (128, 32)}), (90, {(64, 64), (32, 64), (128, 32)})):
            low = {tile[:2] for tile in tensor_core.TILES if most_of_tensor_cores(tile, target) < 0.85}
            assert low == sizes

    @pytest.mark.parametrize(("target", "tile", "bound"), [(80, 0, 1), (90, 0, 1), (80, 2, 0.77), (90, 2, 0.58)])
    def test_windows_of_few_channels_are_gathered_beside(self, target, tile, bound):
        """A step found for all of a thread's pixels, an element in under five instructions."""
        source = self.source(tensor_core.TILES[tile], "float16", tensor_core.Lying(False, False, 8), target, channels=3)
        loop = report.Loop.of(compiling.sass(compiling.cuda_source_cubin(source[1], target)), source[1].function)
        assert loop.roots["LDG"] == 4096 // tensor_core.TILES[tile].threads
        assert loop.issue_bound(report.MULTIPROCESSORS[target]) >= bound


class TestEmulated:
    """Its PTX, executed: races, bounds, waits, uninitialised reads and every output written once are checked."""

    @pytest.fixture(autouse=True)
    def emulated(self, monkeypatch):
        pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
        monkeypatch.setenv("CONVLIB_EMULATE", "1")

    def case_and_tile(self, number, name):
        """Whose type and tile change by both."""
        way = list(LYING).index(name)
        case = of_type(LYING[name], list(TYPES)[(number + way) % len(TYPES)])
        tiles = tensor_core.tiles_of(case.problem())
        return case, tiles[(2 * number - way) % len(tiles)]

    def test_every_tile_has_its_turn_of_copies_and_of_gathering(self):
        turns = (self.case_and_tile(number, name) + (name,) for number in range(NUMBERS) for name in LYING)
        found = {
            (tile, EXPECTED[name].together) for case, tile, name in turns if "3xtf32" not in case.keywords.values()
        }
        assert found == {(tile, together) for tile in tensor_core.TILES for together in (True, False)}

    @pytest.mark.parametrize("name", LYING)
    @pytest.mark.parametrize("number", range(NUMBERS))
    def test_every_tile_and_way_to_lie_runs_without_a_fault(self, number, name, monkeypatch):
        case, tile = self.case_and_tile(number, name)
        splits = (1, 3, 2)[number % 3]
        taken, lying_of = [], tensor_core.lying_of
        monkeypatch.setattr(tensor_core, "lying_of", lambda *given: taken.append(lying_of(*given)) or taken[-1])
        assert force_cut(monkeypatch, case.problem(), tile, splits, case.problem().groups - 1).splits == splits
        in_emulator.check(tensor_core, "tensor_core", case)
        assert [lying._replace(run=0) for lying in taken] == [EXPECTED[name]._replace(run=0)]
        assert case.dtype == "float32" or taken == [EXPECTED[name]]

    @pytest.mark.parametrize("type_", ["float16", "3xtf32"])
    def test_windows_of_more_rows_and_columns_than_there_are_bits_run_without_a_fault(self, type_, monkeypatch):
        large = Case("large", (1, 2, 18, 17), (9, 2, 17, 15), {"padding": ((1, 15), (1, 17)), "dilation": 2}, bias=True)
        case = of_type(large, type_)
        assert case.problem().Cg * 17 * 15 % tensor_core.depth_of(case.problem()), "steps past the last"
        force_cut(monkeypatch, case.problem(), tensor_core.tiles_of(case.problem())[1])
        in_emulator.check(tensor_core, "tensor_core", case)

    @pytest.mark.parametrize("target", TARGETS)
    @pytest.mark.parametrize("name", ["copied", "gathered"])
    def test_every_target_runs_without_a_fault(self, name, target, monkeypatch):
        monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
        force_cut(monkeypatch, LYING[name].problem(), tensor_core.TILES[-1])
        in_emulator.check(tensor_core, "tensor_core", LYING[name])

    def reports_of(self, case, tile, target, monkeypatch):
        monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
        force_cut(monkeypatch, case.problem(), tile)
        x_shape, w_shape = case.x, case.w
        problem = case.problem()
        x, w = np.ones(x_shape, problem.dtype), np.ones(w_shape, problem.dtype)
        order = (0, 3, 1, 2) if problem.layout == "NHWC" else (0, 1, 2, 3)
        y = strided.empty_aligned([problem.y_shape[axis] for axis in np.argsort(order)], problem.dtype)
        aligned = strided.empty_aligned(x.shape, x.dtype)
        aligned[...] = x
        return in_emulator.watched(tensor_core, problem, aligned.transpose(order), w, y.transpose(order))

    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    @pytest.mark.parametrize("tile", tensor_core.ONE_STAGE_TILES, ids=str)
    def test_reductions_of_one_stage_run_without_a_fault(self, tile, layout, monkeypatch):
        x = (2, 9, 10, 24) if layout == "NHWC" else (2, 24, 9, 10)
        case = Case("one_stage", x, (70, 24, 1, 1), {"layout": layout}, bias=True, dtype="float16")
        assert tile in tensor_core.tiles_of(case.problem())
        assert force_cut(monkeypatch, case.problem(), tile).stages == 1
        in_emulator.check(tensor_core, "tensor_core", case)

    @pytest.mark.parametrize("type_", ["float16", "tf32"])
    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    @pytest.mark.parametrize("tile", tensor_core.TILES, ids=str)
    def test_no_copy_and_no_matrix_meets_a_bank_conflict(self, tile, layout, type_, monkeypatch):
        """Nor does anything else, but that on the way out warps narrower than 64 meet in twos."""
        x = (1, 9, 16, 32) if layout == "NHWC" else (1, 32, 9, 16)
        case = of_type(Case("banks", x, (128, 32, 3, 3), {"padding": 1, "layout": layout}), type_)
        _, found = self.reports_of(case, tile, 80, monkeypatch)
        shared = [access for access in found.counters.traffic if access.space == "shared"]
        assert {access.kind for access in shared} == {"copy", "ldmatrix", "load", "store"}
        for access in shared:
            in_loop = access.kind in ("copy", "ldmatrix") or (access.kind, access.size) == ("store", 16)
            lanes = 1 if in_loop or tile.warp_rows == tile.warp_filters == 64 else 2
            assert access.cost <= access.requests * max(access.size // 4, 1) * lanes, access

    def test_copies_move_each_chunk_once_and_whole_sectors(self, monkeypatch):
        case = Case("sectors", (1, 16, 16, 64), (128, 64, 1, 1), {"layout": "NHWC"}, dtype="float16")
        _, found = self.reports_of(case, tensor_core.TILES[0], 80, monkeypatch)
        copies = in_emulator.accesses(found, "global", "copy")
        assert sum(access.requests for access in copies) == 2 * 2 * (128 + 128) * 4 // 32, "two blocks, two stages"
        assert all(access.cost == access.requests * 16 for access in copies), "512 bytes per warp"

    @pytest.mark.parametrize(
        ("what", "wrong", "fault"),
        [
            (r"cp\.async\.wait_group 1;", "", "copy in flight"),
            (r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "copy in flight"),
            (r"(?m)^(\s*)(?:bar|barrier)\.sync.*$", "", "race"),
            (r"cp\.async\.commit_group;", "", "copy in flight"),
            (r"bar\.warp\.sync.*", "", "race"),
        ],
        ids=["no_wait", "one_wait_too_weak", "no_barrier", "no_group", "no_warp_barrier"],
    )
    @pytest.mark.parametrize("name", ["copied", "gathered"])
    def test_the_emulator_sees_what_is_missing(self, name, what, wrong, fault, monkeypatch):
        whole = emulator.ptx_of_source

        def mutated(source, target):
            text = whole(source, target)
            if source.function != "conv2d_tensor_core":
                return text
            assert re.search(what, text)
            return re.sub(what, wrong, text)

        monkeypatch.setattr(emulator, "ptx_of_source", mutated)
        force_cut(monkeypatch, LYING[name].problem(), tensor_core.TILES[1])
        with pytest.raises(emulator.EmulationError, match=fault):
            in_emulator.check(tensor_core, "tensor_core", LYING[name])

    @pytest.mark.parametrize(
        ("what", "which"),
        [("membar.gl;", 0), ("membar.gl;", 1), (r"(?s)bar\.sync[^;]*;(?=((?!bar\.sync).)*membar)", 0)],
        ids=["no_release", "no_acquire", "no_barrier"],
    )
    def test_the_emulator_sees_what_the_splits_need_to_find_each_others_sums(self, what, which, monkeypatch):
        case = LYING["copied_stages"]
        cut = force_cut(monkeypatch, case.problem(), tensor_core.TILES[1], 3)
        assert (cut.whole, cut.splits) == (0, 3)
        in_emulator.check(tensor_core, "tensor_core", case)
        whole = emulator.ptx_of_source

        def mutated(source, target):
            text = whole(source, target)
            if source.function != "conv2d_tensor_core":
                return text
            found = list(re.finditer(what, text))
            assert len(found) > which
            at = found[which]
            return text[: at.start()] + text[at.end() :]

        monkeypatch.setattr(emulator, "ptx_of_source", mutated)
        with pytest.raises(emulator.EmulationError, match="race"):
            in_emulator.check(tensor_core, "tensor_core", case)

    def test_splits_leave_their_counts_as_the_next_call_of_a_plan_needs_them(self, monkeypatch):
        problem, gpu = LYING["copied_stages"].problem(), device.emulator()
        smallest = min(tensor_core.TILES, key=lambda tile: tile.rows * tile.filters)
        assert force_cut(monkeypatch, problem, smallest, 3).split_tiles > 1
        x, w = (strided.empty_aligned(shape, np.float16) for shape in (problem.x_shape, problem.w_shape))
        x[...], w[...] = 1, np.arange(problem.K).reshape(-1, 1, 1, 1)
        packed, workspace = (
            strided.empty_aligned((count(problem, gpu),), np.uint8)
            for count in (tensor_core.packed_bytes, tensor_core.workspace_bytes)
        )
        tensor_core.pack(problem, gpu, w, packed)
        for _ in range(2):
            y = np.full(problem.y_shape, np.nan, np.float16)
            tensor_core.run(problem, gpu, x, packed, y, workspace=workspace)
            np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))

    @pytest.mark.parametrize("name", ["copied", "gathered", "gathered_odd", "more_taps_than_bits"])
    def test_an_infinity_reaches_the_outputs_of_its_windows_alone(self, name, monkeypatch):
        """What pads a stage, and what a chunk repeats, is zero in x too: zero weights times infinity would be NaN.

        A tap's last chunk ends with its last channel; past the last tap a stage has the first channels again.
        """
        x_shape, w_shape, layout = {
            "copied": ((1, 9, 9, 40), (8, 40, 3, 3), "NHWC"),
            "gathered": ((1, 20, 9, 9), (8, 20, 3, 3), "NCHW"),
            "gathered_odd": ((1, 21, 9, 9), (8, 21, 3, 3), "NCHW"),
            "more_taps_than_bits": ((1, 9, 9, 8), (8, 8, 7, 5), "NHWC"),
        }[name]
        padding = 2 if name == "more_taps_than_bits" else 0  # so that what would be an eighth row meets it
        problem = make_problem(x_shape, w_shape, np.dtype(np.float16), layout=layout, padding=padding)
        force_cut(monkeypatch, problem, tensor_core.TILES[-1])
        x, w = strided.empty_aligned(x_shape, np.float16), np.ones(w_shape, np.float16)
        x[...] = 1
        x = x.transpose(0, 3, 1, 2) if layout == "NHWC" else x
        x[0, [0, -1, -6], 5, 5] = np.inf  # of 20 channels the last chunk repeats four, number 14 too; of 21 three
        y = np.full(problem.y_shape, np.nan, np.float16)
        in_emulator.watched(tensor_core, problem, x, w, y)
        np.testing.assert_array_equal(y.astype(float), reference.conv2d(problem, x, w))

    @pytest.mark.parametrize("type_", ["tf32", "3xtf32"])
    def test_a_nan_stays_one_where_floats_are_rounded(self, type_, monkeypatch):
        """All of its bits are ones, so that adding half of the last place kept would carry into the sign."""
        case = of_type(Case("nan", (1, 5, 5, 8), (8, 8, 3, 3), {"layout": "NHWC"}), type_)
        x = strided.empty_aligned(case.x, np.float32)
        x[...] = 1
        x.view(np.uint32)[0, 0, 0, 0] = 0x7FFFFFFF
        y = np.zeros((1, 8, 3, 3), np.float32)
        in_emulator.watched(tensor_core, case.problem(), x.transpose(0, 3, 1, 2), np.ones(case.w, np.float32), y)
        nan = np.zeros(y.shape, bool)
        nan[:, :, 0, 0] = True
        np.testing.assert_array_equal(np.isnan(y), nan)

    @pytest.mark.parametrize("type_", TYPES)
    def test_the_error_keeps_to_the_contract(self, type_):
        """On normal numbers, which are rounded; the emulator rounds sums, too, where tensor cores cut them off."""
        random = np.random.default_rng(0)
        case = of_type(Case("normal", (1, 6, 7, 72), (40, 72, 3, 3), {"layout": "NHWC"}), type_)
        problem = case.problem()
        x = random.standard_normal((1, 6, 7, 72)).astype(problem.dtype).transpose(0, 3, 1, 2)
        w = (random.standard_normal((40, 72, 3, 3)) / np.sqrt(648)).astype(problem.dtype)
        y = np.full((1, 4, 5, 40), np.nan, problem.dtype).transpose(0, 3, 1, 2)
        in_emulator.watched(tensor_core, problem, x, w, y)
        exact = reference.conv2d(problem, x, w)
        error = np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact)
        bound = accuracy.norm_relative(problem, "tensor_core")
        assert 0.05 * bound < error < bound

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("stride", [1, 2])
    def test_input_gradients_equal_the_reference(self, stride, type_):
        random = np.random.default_rng(0)
        precision = TYPES[type_].get("precision")
        dtype = named_dtype("float32" if precision else type_)
        problem = make_problem((1, 16, 7, 9), (24, 16, 3, 3), dtype, padding=1, stride=stride)
        w = random.integers(-3, 4, problem.w_shape).astype(dtype)
        grad_y = random.integers(-3, 4, problem.y_shape).astype(dtype)
        kernel = {"backend": "cupy_raw", "algorithm": "tensor_core", "precision": precision}
        got = convlib.conv2d_input_grad(grad_y, w, problem.x_shape, padding=1, stride=stride, **kernel)
        exact = reference.input_grad(problem, grad_y, w)
        np.testing.assert_array_equal(got.astype(float), exact.astype(dtype).astype(float))
