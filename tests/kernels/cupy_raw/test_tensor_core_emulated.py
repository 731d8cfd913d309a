"""Tensor cores in the PTX emulator: races, bounds, waits, uninitialised reads, every output written once; accuracy."""

from pathlib import Path

import numpy as np
import pytest

import convlib
from convlib import accuracy, device, emulator, strided
from convlib.compiling import TARGETS
from convlib.kernels import launching, reference
from convlib.kernels.cupy_raw import tensor_core
from convlib.problem import make_problem, named_dtype
from convlib.verification.problems import Case
from tests.kernels.cupy_raw import in_emulator
from tests.kernels.cupy_raw.planted import plant
from tests.kernels.cupy_raw.tensor_core_cases import EXPECTED, LYING, TYPES, force_cut, of_type

NUMBERS = 6  # of cases to emulate for each way to lie


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


def case_and_tile(number, name):
    """Whose type and tile change by both."""
    way = list(LYING).index(name)
    case = of_type(LYING[name], list(TYPES)[(number + way) % len(TYPES)])
    tiles = tensor_core.tiles_of(case.problem())
    return case, tiles[(2 * number - way) % len(tiles)]


def test_every_tile_has_its_turn_of_copies_and_of_gathering():
    turns = (case_and_tile(number, name) + (name,) for number in range(NUMBERS) for name in LYING)
    found = {(tile, EXPECTED[name].together) for case, tile, name in turns if "3xtf32" not in case.keywords.values()}
    assert found == {(tile, together) for tile in tensor_core.TILES for together in (True, False)}


@pytest.mark.parametrize("name", LYING)
@pytest.mark.parametrize("number", range(NUMBERS))
def test_every_tile_and_way_to_lie_runs_without_a_fault(number, name, monkeypatch):
    case, tile = case_and_tile(number, name)
    splits = (1, 3, 2)[number % 3]
    taken, lying_of = [], tensor_core.lying_of
    monkeypatch.setattr(tensor_core, "lying_of", lambda *given: taken.append(lying_of(*given)) or taken[-1])
    assert force_cut(monkeypatch, case.problem(), tile, splits, case.problem().groups - 1).splits == splits
    in_emulator.check(tensor_core, "tensor_core", case)
    assert [lying._replace(run=0) for lying in taken] == [EXPECTED[name]._replace(run=0)]
    assert case.dtype == "float32" or taken == [EXPECTED[name]]


@pytest.mark.parametrize(("type_", "columns", "wide", "run"), [
    ("float16", 15, False, 8), ("float16", 15, True, 1), ("float16", 17, False, 1), ("3xtf32", 15, False, 1),
])  # fmt: skip
def test_windows_of_more_rows_and_columns_than_there_are_bits_run_without_a_fault(
    type_, columns, wide, run, monkeypatch
):
    keywords = {"padding": ((1, 15), (1, 17)), "dilation": 2}
    case = of_type(Case("large", (1, 3, 18, 17), (9, 3, 17, columns), keywords, bias=True), type_)
    problem = case.problem()
    assert problem.Cg * 17 * columns % tensor_core.depth_of(problem), "steps past the last"
    cut = force_cut(monkeypatch, problem, tensor_core.tiles_of(problem)[1])
    assert tensor_core.found_steps(problem, cut, wide) == (cut.depth // run if run > 1 else 0, run)
    monkeypatch.setattr(tensor_core, "is_wide", lambda *given, **named: wide)
    in_emulator.check(tensor_core, "tensor_core", case)


def test_runs_of_taps_that_lie_apart_run_without_a_fault(monkeypatch):
    """Backwards, and each a pixel's channels, of two groups, from the next; splits begin amid the windows."""
    keywords = {"layout": "NHWC", "groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": ((3, 4), (5, 9))}
    case = Case("apart", (2, 21, 20, 6), (10, 3, 9, 8), keywords, bias=True, dtype="bfloat16", memory="reversed")
    cut = force_cut(monkeypatch, case.problem(), tensor_core.TILES[2], splits=3)
    assert tensor_core.found_steps(case.problem(), cut) == (cut.depth // 8, 8)
    in_emulator.check(tensor_core, "tensor_core", case)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["copied", "gathered"])
def test_every_target_runs_without_a_fault(name, target, monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
    force_cut(monkeypatch, LYING[name].problem(), tensor_core.TILES[-1])
    in_emulator.check(tensor_core, "tensor_core", LYING[name])


def reports_of(case, tile, target, monkeypatch, splits=1):
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
    force_cut(monkeypatch, case.problem(), tile, splits)
    x_shape, w_shape = case.x, case.w
    problem = case.problem()
    x, w = np.ones(x_shape, problem.dtype), np.ones(w_shape, problem.dtype)
    order = (0, 3, 1, 2) if problem.layout == "NHWC" else (0, 1, 2, 3)
    y = strided.empty_aligned([problem.y_shape[axis] for axis in np.argsort(order)], problem.dtype)
    aligned = strided.empty_aligned(x.shape, x.dtype)
    aligned[...] = x
    return in_emulator.watched(tensor_core, problem, aligned.transpose(order), w, y.transpose(order))


SHORT = {
    1: Case("copied", (2, 9, 10, 24), (70, 24, 1, 1), {"layout": "NHWC"}, bias=True, dtype="float16"),
    3: Case("gathered", (2, 24, 9, 10), (70, 24, 2, 2), {}, bias=True, dtype="float16"),
}


@pytest.mark.parametrize("stages", SHORT)
@pytest.mark.parametrize("tile", tensor_core.SHORT_TILES, ids=str)
def test_short_reductions_run_without_a_fault(tile, stages, monkeypatch):
    problem = SHORT[stages].problem()
    assert tile in tensor_core.tiles_of(problem)
    assert force_cut(monkeypatch, problem, tile).stages == stages
    in_emulator.check(tensor_core, "tensor_core", SHORT[stages])


@pytest.mark.parametrize("tile", [tensor_core.TILES[2], tensor_core.SHORT_TILES[0]], ids=str)
@pytest.mark.parametrize("channels", [24, 3], ids=["copied", "taps"])
def test_blocks_that_stay_take_tile_after_tile(channels, tile, monkeypatch):
    x, window = ((2, 9, 22, 24), (1, 1)) if channels == 24 else ((2, 3, 9, 22), (3, 3))
    layout = "NHWC" if channels == 24 else "NCHW"
    case = Case("staying", x, (34, channels, *window), {"layout": layout}, bias=True, residual=True, dtype="float16")
    cut = tensor_core.cut_of(case.problem(), tile)._replace(staying=2)
    assert cut.whole > 2 * cut.blocks - 2
    monkeypatch.setattr(tensor_core, "cut_for", lambda problem, device: cut)
    in_emulator.check(tensor_core, "tensor_core", case)
    plant(monkeypatch, "conv2d_tensor_core", r"(?s)bar\.sync[^;]*;(?=((?!bar\.sync).)*$)", 0)
    with pytest.raises(emulator.EmulationError, match="race"):
        in_emulator.check(tensor_core, "tensor_core", case)


@pytest.mark.parametrize("type_", ["float16", "tf32"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("tile", [*tensor_core.TILES, tensor_core.NARROWEST], ids=str)
def test_no_copy_and_no_matrix_meets_a_bank_conflict(tile, layout, type_, monkeypatch):
    """Nor does anything else, but that on the way out warps narrower than 64 meet in twos.

    Half of them are split: what the last split copies of the others, and reads, meets none either.
    """
    splits = 3 if layout == "NHWC" else 1
    x = (1, 9, 16, 32) if layout == "NHWC" else (1, 32, 9, 16)
    case = of_type(Case("banks", x, (128, 32, 3, 3), {"padding": 1, "layout": layout}), type_)
    _, found = reports_of(case, tile, 80, monkeypatch, splits)
    shared = [access for access in found.counters.traffic if access.space == "shared"]
    if splits > 1:
        check_ring(shared, tile, found, splits)
    assert {access.kind for access in shared} == {"copy", "ldmatrix", "load", "store"}
    for access in shared:
        in_loop = access.kind in ("copy", "ldmatrix") or (access.kind, access.size) == ("store", 16)
        lanes = 1 if in_loop or tile.warp_rows == tile.warp_filters == 64 else 2
        assert access.cost <= access.requests * max(access.size // 4, 1) * lanes, access


def check_ring(shared, tile, found, splits):
    """512 bytes of a warp at a time, of each split, in four wavefronts each, copied and read."""
    flag = max(access.line for access in shared if access.size == 1)
    text = (Path(launching.__file__).parent / "cupy_raw/tensor_core.cu").read_text().splitlines()
    copied = [access for access in shared if access.kind == "copy" and access.line > flag]
    read = [access for access in shared if "(memory + place" in text[access.source[1] - 1] and access.kind == "load"]
    tiles = -(-9 * 16 // tile.rows) * -(-128 // tile.filters)
    for accesses in (copied, read):
        assert sum(access.requests for access in accesses) == tiles * splits * tile.rows * tile.filters * 4 // 512
        assert all(access.cost == access.requests * 4 for access in accesses)
    out = [access for access in in_emulator.accesses(found, "global", "copy") if access.line > flag]
    assert all(access.cost == access.requests * 16 for access in out), "whole sectors"


def test_copies_move_each_chunk_once_and_whole_sectors(monkeypatch):
    case = Case("sectors", (1, 16, 16, 64), (128, 64, 1, 1), {"layout": "NHWC"}, dtype="float16")
    _, found = reports_of(case, tensor_core.TILES[0], 80, monkeypatch)
    copies = in_emulator.accesses(found, "global", "copy")
    assert sum(access.requests for access in copies) == 2 * 2 * (128 + 128) * 4 // 32, "two blocks, two stages"
    assert all(access.cost == access.requests * 16 for access in copies), "512 bytes per warp"


@pytest.mark.parametrize(
    ("what", "wrong", "fault"),
    [
        (r"cp\.async\.wait_group {enough};", "", "copy in flight"),
        (r"cp\.async\.wait_group {enough};", "cp.async.wait_group {weaker};", "copy in flight"),
        (r"(?m)^(\s*)(?:bar|barrier)\.sync.*$", "", "race"),
        (r"cp\.async\.commit_group;", "", "copy in flight"),
        (r"bar\.warp\.sync.*", "", "race"),
    ],
    ids=["no_wait", "one_wait_too_weak", "no_barrier", "no_group", "no_warp_barrier"],
)
@pytest.mark.parametrize(("name", "tile"), [
    ("copied", tensor_core.TILES[1]), ("gathered", tensor_core.TILES[1]), ("copied", tensor_core.NARROWEST),
], ids=["copied", "gathered", "narrowest"])  # fmt: skip
def test_the_emulator_sees_what_is_missing(name, tile, what, wrong, fault, monkeypatch):
    enough = tensor_core.stages_held(tile, device.emulator()) - 2
    what, wrong = (text.format(enough=enough, weaker=enough + 1) for text in (what, wrong))
    plant(monkeypatch, "conv2d_tensor_core", what, instead=wrong)
    force_cut(monkeypatch, LYING[name].problem(), tile)
    with pytest.raises(emulator.EmulationError, match=fault):
        in_emulator.check(tensor_core, "tensor_core", LYING[name])


@pytest.mark.parametrize(
    ("what", "which", "fault"),
    [
        ("membar.gl;", 0, "race"),
        ("membar.gl;", 1, "race"),
        (r"(?s)bar\.sync[^;]*;(?=((?!bar\.sync).)*membar)", 0, "race"),
        (r"(?s)bar\.sync[^;]*;(?=((?!bar\.sync).)*wait_group 2)", 0, "race|in flight"),
        (r"cp\.async\.wait_group 2;", None, "copy in flight"),
        (r"(?<=cp\.async\.wait_group )2(?=;)", None, "copy in flight"),
    ],
    ids=["no_release", "no_acquire", "no_barrier", "no_barrier_behind_the_flag", "no_wait", "one_wait_too_weak"],
)
def test_the_emulator_sees_what_the_splits_need_to_find_each_others_sums(what, which, fault, monkeypatch):
    case = LYING["copied_stages"]
    cut = force_cut(monkeypatch, case.problem(), tensor_core.TILES[1], 3)
    assert (cut.whole, cut.splits) == (0, 3)
    in_emulator.check(tensor_core, "tensor_core", case)
    plant(monkeypatch, "conv2d_tensor_core", what, which, instead="3" if what.endswith("(?=;)") else "")
    with pytest.raises(emulator.EmulationError, match=fault):
        in_emulator.check(tensor_core, "tensor_core", case)


def test_splits_leave_their_counts_as_the_next_call_of_a_plan_needs_them(monkeypatch):
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


@pytest.mark.parametrize("tile", tensor_core.TILES, ids=str)
def test_taps_of_as_many_as_have_bits_run_without_a_fault(tile, monkeypatch):
    case = Case("taps", (2, 3, 9, 8), (35, 3, 7, 7), {"padding": (3, 4), "stride": (2, 1)}, dtype="float16")
    force_cut(monkeypatch, case.problem(), tile, splits=2)
    in_emulator.check(tensor_core, "tensor_core", case)


@pytest.mark.parametrize("name", ["copied", "gathered", "gathered_odd", "more_taps_than_bits", "taps", "runs"])
def test_an_infinity_reaches_the_outputs_of_its_windows_alone(name, monkeypatch):
    """What pads a stage, and what a chunk repeats, is zero in x too: zero weights times infinity would be NaN.

    A tap's last chunk ends with its last channel; past the last tap a stage has the first channels again.
    """
    x_shape, w_shape, layout = {
        "copied": ((1, 9, 9, 40), (8, 40, 3, 3), "NHWC"),
        "gathered": ((1, 20, 9, 9), (8, 20, 3, 3), "NCHW"),
        "gathered_odd": ((1, 21, 9, 9), (8, 21, 3, 3), "NCHW"),
        "more_taps_than_bits": ((1, 9, 9, 8), (8, 8, 7, 5), "NHWC"),
        "taps": ((1, 3, 9, 9), (8, 3, 5, 5), "NCHW"),
        "runs": ((1, 3, 40, 9), (8, 3, 5, 15), "NCHW"),
    }[name]
    # So that what would be an eighth row meets it, and what would be a sixteenth column.
    padding = {"more_taps_than_bits": 2, "runs": 10}.get(name, 0)
    problem = make_problem(x_shape, w_shape, np.dtype(np.float16), layout=layout, padding=padding)
    force_cut(monkeypatch, problem, tensor_core.TILES[-1])
    x, w = strided.empty_aligned(x_shape, np.float16), np.ones(w_shape, np.float16)
    x[...] = 1
    x = x.transpose(0, 3, 1, 2) if layout == "NHWC" else x
    some = [0, -1, -min(6, x.shape[1])]  # of 20 channels the last chunk repeats four, number 14 too; of 21 three
    x[0, some, 5, 5] = np.inf
    y = np.full(problem.y_shape, np.nan, np.float16)
    in_emulator.watched(tensor_core, problem, x, w, y)
    np.testing.assert_array_equal(y.astype(float), reference.conv2d(problem, x, w))


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("type_", ["tf32", "3xtf32"])
def test_a_nan_stays_one_where_floats_are_rounded(type_, target, monkeypatch):
    """All of its bits are ones, so that adding half of the last place kept would carry into the sign."""
    monkeypatch.setenv("CONVLIB_EMULATE_TARGET", str(target))
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
def test_the_error_keeps_to_the_contract(type_):
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
def test_input_gradients_equal_the_reference(stride, type_):
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
