"""Tensor cores on the host and as machine code: refusals, choice, spills, what bounds the loop."""

import numpy as np
import pytest

import convlib
from convlib import choosing, compiling, device, report
from convlib.kernels import gpu_cost, launching
from convlib.kernels.cupy_raw import tensor_core, tensor_core_tile
from convlib.problem import make_problem, named_dtype
from tests.kernels import stand_in_cupy
from tests.kernels.cupy_raw import test_launches
from tests.kernels.cupy_raw.tensor_core_cases import EXPECTED, LYING, TYPES, force_cut

GPU = device.emulator_of(80)
ALL_TILES = tensor_core.TILES + tensor_core.SHORT_TILES + tensor_core.PRECISE_TILES


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
        return choosing.choose(problem, device.emulator_of(target), "cupy_raw")

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


def test_four_small_warps_are_predicted_faster_than_two_large_ones_where_a_multiprocessor_has_one_block():
    problem = make_problem((1, 14, 14, 256), (256, 256, 3, 3), np.dtype(np.float16), layout="NHWC")
    four, two = (
        tensor_core_tile.block_of(problem, GPU, tensor_core_tile.Tile(64, 64, *warps), stages=18, beside=0)
        for warps in ((32, 32), (64, 64, 2))
    )
    alone, many = 1, 8 * gpu_cost.sm_count(GPU)
    assert gpu_cost.seconds_of(GPU, alone, four) < 0.85 * gpu_cost.seconds_of(GPU, alone, two)
    assert gpu_cost.seconds_of(GPU, many, two) < 0.9 * gpu_cost.seconds_of(GPU, many, four)


def test_the_table_of_steps_tells_how_far_each_lies_and_what_it_needs_inside():
    problem = make_problem((1, 3, 12, 15), (8, 3, 2, 5), np.dtype(np.float16), dilation=(2, 3))
    x = np.zeros((1, 3, 12, 15), np.float16)[..., ::-1]
    found = tensor_core_tile.steps_struct(problem, x, 32)
    distances = [c * 180 + r * 2 * 15 - s * 3 for c in range(3) for r in range(2) for s in range(5)]
    assert found["from"].tolist() == distances + distances[:2], "past the last, those of the first channel"
    assert found["bits"].tolist() == [1 << r | 4 << s for r in range(2) for s in range(5)] * 3 + [2**32 - 1] * 2
    runs = tensor_core_tile.steps_struct(problem, x, 14, run=4, row=8)
    distances = [c * 180 + r * 2 * 15 - s * 3 for c in range(3) for r in range(2) for s in (0, 4)]
    assert runs["from"].tolist() == distances + distances[:2]
    assert (runs["bits"] % 32).tolist() == [0, 0, 1, 1] * 3 + [31, 31]
    assert (runs["bits"] // 32).tolist() == [0, 4] * 7


@pytest.mark.parametrize(("channels", "window", "steps"), [(3, 7, 160), (7, 7, 352), (7, 9, 0), (8, 3, 0), (2, 16, 0)])
def test_steps_lie_in_a_table_if_arguments_have_room_for_it(channels, window, steps):
    problem = make_problem((1, channels, 20, 20), (8, channels, window, window), np.dtype(np.float16))
    depth = tensor_core.reduction_of(problem).depth
    assert tensor_core_tile.table_steps(problem, depth) == steps
    assert tensor_core_tile.table_steps(problem, depth, wide=True) == 0


@pytest.mark.parametrize(("channels", "window", "steps", "run"), [
    (3, 7, 160, 1), (3, 8, 24, 8), (3, 11, 384, 1), (3, 13, 0, 1), (3, 15, 92, 8), (1, 31, 124, 8),
    (1, 32, 0, 1), (7, 31, 0, 1),
])  # fmt: skip
def test_rows_of_large_windows_are_runs_if_to_pad_them_is_little_and_the_table_has_room(channels, window, steps, run):
    problem = make_problem((1, channels, 40, 40), (8, channels, window, window), np.dtype(np.float16))
    for tile in tensor_core.TILES:
        assert tensor_core.found_steps(problem, tensor_core.cut_of(problem, tile)) == (steps, run)
        assert tensor_core.found_steps(problem, tensor_core.cut_of(problem, tile), wide=True) == (0, 1)


def test_adding_splits_takes_their_bytes_and_the_answers_before_them():
    two, four, eight, sixteen = (gpu_cost.adding_seconds(GPU, 1, splits, 64 * 64 * 4) for splits in (2, 4, 8, 16))
    assert gpu_cost.adding_seconds(GPU, 1, 1, 64 * 64 * 4) == 0
    assert 4 * gpu_cost.L2_CYCLES / gpu_cost.clock(GPU) < two < four < eight < gpu_cost.LAUNCH < sixteen


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

    def source(self, tile, type_, lying, target=80, splits=1, wide=False, channels=256, window=3, staying=0):
        precision = TYPES[type_].get("precision")
        dtype = named_dtype("float32" if precision else type_)
        layout, x = ("NHWC", (8, 14, 14, channels)) if lying.along_filters else ("NCHW", (8, channels, 14, 14))
        problem = make_problem(x, (256, channels, window, window), dtype, padding=1, layout=layout, precision=precision,
                               activation="relu")  # fmt: skip
        cut = tensor_core.cut_of(problem, tile, splits)._replace(staying=staying)
        stages = tensor_core.stages_held(tile, device.emulator_of(target))
        lying = lying._replace(run=min(lying.run, tensor_core.chunk_of(problem)))
        return tensor_core.sources_of(problem, cut, stages, wide, lying)

    def check(self, source, target):
        used = compiling.resources(compiling.cuda_source_cubin(source, target))[source.function]
        assert (used.stack, used.local) == (0, 0), f"{source.function} spills registers: {used}"
        assert used.shared <= 48 * 1024 + (1024 if target >= 90 else 0)

    @pytest.mark.parametrize(("way", "window"), [("bits", (7, 7)), ("bits of one chunk", (8, 7)), ("none", (8, 8))])
    @pytest.mark.parametrize("tile", tensor_core.TILES, ids=str)
    def test_what_is_predicted_of_taps_is_what_the_kernel_does(self, way, window, tile):
        problem = make_problem((8, 3, 14, 14), (256, 3, *window), np.float16)
        cut, stages = tensor_core.cut_of(problem, tile), tensor_core.stages_held(tile, GPU)
        lying = tensor_core.lying_as_planned(problem)
        ptx = compiling.cuda_source_ptx(tensor_core.sources_of(problem, cut, stages, False, lying)[1], 80)
        has_bits = tensor_core.has_bits_of_taps(problem, cut)
        assert has_bits == ("BITS_OF_TAPS = 1;" in ptx)
        assert f" AT_ONCE = {tensor_core.pixels_at_once(tile)};" in ptx
        assert way == "bits of one chunk" or has_bits == (way == "bits")

    @pytest.mark.parametrize(
        ("type_", "tile"),
        [*((type_, tile) for type_ in ("float16", "tf32") for tile in tensor_core.TILES),
         *(("float16", tile) for tile in tensor_core.SHORT_TILES),
         ("bfloat16", tensor_core.TILES[0]), *(("3xtf32", tile) for tile in tensor_core.PRECISE_TILES)],
        ids=str,
    )  # fmt: skip
    def test_every_tile_compiles_without_spills(self, type_, tile):
        """For sm_120, whose compiler wants the most registers; of sm_90 test_tensor_core_loops has the others."""
        for target in (90, 120) if tile in tensor_core.SHORT_TILES else (120,):
            self.check(self.source(tile, type_, tensor_core.Lying(True, True, 8), target)[1], target)

    @pytest.mark.parametrize("target", [90, 120])
    @pytest.mark.parametrize("tile", [tensor_core.TILES[0], tensor_core.TILES[2]], ids=str)
    def test_blocks_that_stay_compile_without_spills(self, tile, target):
        lying = tensor_core.Lying(False, False, 8)
        self.check(self.source(tile, "float16", lying, target, channels=3, staying=132)[1], target)

    @pytest.mark.parametrize("target", [75, 80, 120])
    @pytest.mark.parametrize("tile", [tensor_core.TILES[0], tensor_core.TILES[2], tensor_core.TILES[-1]], ids=str)
    def test_runs_of_taps_compile_without_spills(self, tile, target):
        source = self.source(tile, "float16", tensor_core.Lying(False, False, 8), target, channels=3, window=15)[1]
        assert ("RUN_OF_TAPS", 8) in source.constants
        self.check(source, target)

    @pytest.mark.parametrize("target", [75, 90, 120])
    @pytest.mark.parametrize("lying", sorted(set(EXPECTED.values())), ids=str)
    def test_every_way_to_lie_compiles_without_spills(self, lying, target):
        for source in self.source(tensor_core.TILES[0], "float16", lying, target):
            self.check(source, target)
        for splits, wide, channels in ((2, False, 256), (1, True, 256), *([(1, False, 3)] * (not lying.together))):
            self.check(self.source(tensor_core.TILES[0], "float16", lying, target, splits, wide, channels)[1], target)

    @pytest.mark.parametrize(("channels", "splits", "target"), [
        (96, 1, 80), (100, 1, 80), (100, 2, 80), (112, 1, 80), (32, 1, 75),
    ])  # fmt: skip
    def test_the_widest_warps_compile_without_spills_where_they_gather(self, channels, splits, target):
        """144 sums and 48 words on their way: where the tile lies, kept meanwhile, had no register left."""
        lying = tensor_core.Lying(False, False, 8)
        source = self.source(tensor_core.WIDEST, "float16", lying, target, splits, False, channels, window=1)[1]
        self.check(source, target)

    @pytest.mark.parametrize(("channels", "offered"), [(32, True), (64, False)])
    def test_the_widest_warps_are_for_one_stage_where_registers_bring_the_weights_too(self, channels, offered):
        problem = make_problem((32, channels, 28, 28), (96, channels, 1, 1), np.float16)
        for target, expected in ((75, offered), (80, True)):
            tiles = {cut.tile for cut in tensor_core.cuts(problem, device.emulator_of(target))}
            assert (tensor_core.WIDEST in tiles) == expected

    def test_the_tile_for_few_blocks_gives_each_scheduler_a_warp(self):
        (few,) = (tile for tile in tensor_core.TILES if tile[:2] == (64, 64))
        assert few.threads // 32 == report.SCHEDULERS
