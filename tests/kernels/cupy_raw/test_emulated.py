"""The CUDA C kernels in the PTX emulator: every tile, with all checks. The depthwise ones: test_depthwise_emulated.py.

tests/convlib/emulator/test_every_kernel.py runs every shared problem there, with the tile each launcher chooses, which
for problems as small is a small one.

Of conditions that were taken out of the kernels one at a time, a few stay green, as they only spare work. A pixel, tile
or channel that does not exist may read any that does, since nothing is stored of it (PixelWalk::exists,
winograd_batched.cu's `wanted`, depthwise.cu's Part::channel), and weight_grad_direct.cu sum a tap past the last;
a pixel that a weight gradient's first stage lacks is zero in grad_y and in x (PixelWalk::prepare), either would do;
ChannelWalk may clear what it fills anyway, move_up move zeros onto zeros, and depthwise.cu's `exist` be more than ROWS,
where its loops end.
"""

from dataclasses import replace

import numpy as np
import pytest

from convlib import device, emulator, operands, strided
from convlib.kernels import reference
from convlib.kernels.cupy_raw import (
    im2col,
    implicit_gemm,
    tiled,
    weight_grad,
    weight_grad_direct,
)
from convlib.kernels.cupy_raw import weight_grad_splits as splits
from convlib.problem import make_problem
from convlib.verification.problems import Case, arrays_of
from tests.kernels.cupy_raw.in_emulator import check, watched
from tests.kernels.cupy_raw.planted import BARRIER, plant
from tests.kernels.cupy_raw.test_values import AS_THEY_LIE, GROUPS, SLICED, WALKS, WEIGHTS, force_cut


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setenv("CONVLIB_EMULATE", "1")


STICKING_OUT = Case("sticking_out", (1, 5, 11, 37), (19, 5, 3, 3), {"padding": 1}, bias=True)  # of every tile


@pytest.mark.parametrize("number", range(len(tiled.SHAPES)), ids=[str(shape) for shape in tiled.SHAPES])
def test_every_tile_of_the_tiled_kernel_runs_without_a_fault(number, monkeypatch):
    filters, rows, warps_p, warps_k = tiled.SHAPES[number]
    tile = tiled.Tile((32, 16, 8)[number % 3], rows, filters, warps_p, warps_k, channels=2)
    monkeypatch.setattr(tiled, "tile_for", lambda problem, device: tile)
    check(tiled, "tiled", STICKING_OUT)


@pytest.mark.parametrize("tile_k", [32, 64, 128])
def test_every_tile_of_the_matrix_product_runs_without_a_fault_in_slices(tile_k, monkeypatch):
    monkeypatch.setattr(im2col, "gemm_seconds", lambda problem, device, sizes: abs(sizes.tile_k - tile_k))
    monkeypatch.setattr(im2col, "COLUMNS_BYTES", 1)
    im2col.matrices.cache_clear()
    assert im2col.matrices(STICKING_OUT.problem(), device.emulator()).tile_k == tile_k
    check(im2col, "im2col", STICKING_OUT)
    im2col.matrices.cache_clear()


@pytest.mark.parametrize(("dtype", "count"), [("float32", 4), ("float64", 2), ("float16", 4)])
def test_groups_of_filters_that_leave_as_vectors_run_without_a_fault(dtype, count, monkeypatch):
    taken, filters = [], im2col.filters_at_once
    monkeypatch.setattr(im2col, "filters_at_once", lambda *given: taken.append(filters(*given)) or taken[-1])
    keywords = {"groups": 2, "layout": "NHWC", "activation": "relu"}
    check(im2col, "im2col", Case("vectors", (2, 5, 6, 8), (24, 4, 3, 3), keywords, True, True, dtype=dtype))
    assert taken == [count]


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("tile", implicit_gemm.ALL_TILES, ids=str)
def test_every_tile_and_walk_of_the_implicit_product_runs_without_a_fault(tile, walk, monkeypatch):
    splits = 1 + 2 * (implicit_gemm.ALL_TILES.index(tile) % 2)
    problem = WALKS[walk].problem()
    force_cut(monkeypatch, problem, tile, splits, whole=problem.groups - 1)
    check(implicit_gemm, "implicit_gemm", WALKS[walk])


@pytest.mark.parametrize("channels", [3, 16])
def test_windows_of_more_taps_than_bits_run_without_a_fault(channels, monkeypatch):
    case = Case("more_taps", (1, channels, 7, 9), (5, channels, 9, 8), {"padding": 4})
    force_cut(monkeypatch, case.problem(), (4, 8), splits=1)
    check(implicit_gemm, "implicit_gemm", case)


# Stages that end amid a group's channels, and past the last tap.
PADDED = {
    "channels": ((1, 40, 5, 6), (6, 20, 3, 3), {"groups": 2}),
    "channels_last": ((1, 5, 6, 40), (8, 20, 3, 2), {"groups": 2, "layout": "NHWC"}),
    "pointwise": ((1, 40, 4, 4), (6, 20, 1, 1), {"groups": 2}),
    "taps": ((1, 3, 6, 7), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize(
    ("kernel", "name"), [*((implicit_gemm, name) for name in PADDED), (im2col, "channels"), (tiled, "channels")],
    ids=lambda given: getattr(given, "__name__", given).rpartition(".")[2],
)  # fmt: skip
def test_an_infinity_reaches_the_outputs_of_its_windows_alone(kernel, name, monkeypatch):
    """What pads a stage is zero in x too: the weights' zeros times infinity would be NaN."""
    x_shape, w_shape, keywords = PADDED[name]
    problem = make_problem(x_shape, w_shape, np.float32, **keywords)
    force_cut(monkeypatch, problem, (4, 8), splits=1)  # of the first
    x = strided.empty_aligned(x_shape, np.float32).transpose(operands.FROM_LAYOUT[problem.layout])
    x[...] = 1
    x[0, :, 3, 3] = np.inf
    w, y = np.ones(w_shape, np.float32), np.full(problem.y_shape, np.nan, np.float32)
    watched(kernel, problem, x, w, y)
    exact = reference.conv2d(problem, x, w)
    assert np.isinf(exact).any()
    np.testing.assert_array_equal(y, exact)


@pytest.mark.parametrize("name", SLICED)
def test_slices_of_a_block_run_without_a_fault(name, monkeypatch):
    tile, slices, case = SLICED[name]
    force_cut(monkeypatch, case.problem(), tile, splits=1, slices=slices)
    check(implicit_gemm, "implicit_gemm", case)


@pytest.mark.parametrize("name", AS_THEY_LIE)
@pytest.mark.parametrize("tile", [(16, 16), (8, 8), (4, 8)], ids=str)
def test_weights_read_as_they_lie_run_without_a_fault(tile, name, monkeypatch):
    force_cut(monkeypatch, AS_THEY_LIE[name].problem(), tile, splits=2 if name == "windows" else 1)
    check(implicit_gemm, "implicit_gemm", AS_THEY_LIE[name])


def test_an_infinite_weight_reaches_the_outputs_of_its_filter_alone(monkeypatch):
    """Past the end of a filter's numbers lie the next one's: of these a stage takes none."""
    problem = make_problem((1, 12, 4, 4), (6, 12, 1, 1), np.float32)
    force_cut(monkeypatch, problem, (4, 8), splits=1)
    x, w = (strided.empty_aligned(shape, np.float32) for shape in (problem.x_shape, problem.w_shape))
    x[...] = w[...] = 1
    w[3, 0] = np.inf
    y = np.full(problem.y_shape, np.nan, np.float32)
    (report,) = watched(implicit_gemm, problem, x, w, y)
    assert report.kernel == "conv2d_implicit_gemm"
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))


def test_an_infinite_weight_is_packed_for_its_filter_alone():
    """Its channels are padded with zeros, not with the next filter's numbers; 64 filters, as many as a block packs."""
    problem = make_problem((1, 20, 4, 4), (64, 20, 3, 3), np.float32)
    x, w = (strided.empty_aligned(shape, np.float32) for shape in (problem.x_shape, problem.w_shape))
    x[...] = w[...] = 1
    w[3, 0] = np.inf
    y = np.full(problem.y_shape, np.nan, np.float32)
    assert watched(implicit_gemm, problem, x, w, y)[0].kernel == "pack_filters"
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w))


@pytest.mark.parametrize("barrier", range(2, 6))
def test_the_emulator_sees_when_slices_lack_a_barrier(barrier, monkeypatch):
    """Of those around each half of the sums that change hands, behind two of the product."""
    tile, slices, case = SLICED["taps"]
    force_cut(monkeypatch, case.problem(), tile, splits=1, slices=slices)
    plant(monkeypatch, "conv2d_implicit_gemm", BARRIER, barrier, of=6)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check(implicit_gemm, "implicit_gemm", case)


def test_a_column_that_is_none_stays_outside_of_an_image_of_2_to_the_30_rows():
    """Its row is far above each image, so that a large one's last windows do not reach down to it."""
    far = 2**30
    problem = make_problem((1, 1, far + 2, 3), (2, 1, 2, 3), np.float32, stride=(far, 1), pass_="weight_grad")
    row = np.arange(3, dtype=np.float32)
    x = np.lib.stride_tricks.as_strided(row, (1, 1, 1, 3), (12, 12, 0, 4))  # all rows are this one
    grad_y, grad_w = np.ones(problem.y_shape, np.float32), np.full(problem.w_shape, np.nan, np.float32)
    watched(weight_grad, problem, x, grad_y, grad_w)
    np.testing.assert_array_equal(grad_w, np.broadcast_to(2 * x[:, :, 0], problem.w_shape))


FEW_WEIGHTS = Case("few_weights", (2, 2, 9, 10), (3, 2, 2, 3))
IN_CHUNKS = Case("in_chunks", (2, 1, 14, 16), (1, 1, 7, 7))  # 25 taps, then 24


@pytest.mark.parametrize(
    ("kernel", "case"),
    [(weight_grad, WEIGHTS), (weight_grad, GROUPS), (weight_grad_direct, FEW_WEIGHTS), (weight_grad_direct, IN_CHUNKS)],
    ids=["strides", "groups", "direct", "chunks"],
)
def test_splits_of_a_weight_gradient_run_without_a_fault(kernel, case, monkeypatch):
    chunks = 2 if case is IN_CHUNKS else 1
    problem, gpu = case.problem("weight_grad"), device.emulator()
    cut = splits.cut_of(problem, 64, 128, 3) if kernel is weight_grad else splits.direct_cut(problem, gpu, chunks, 40)
    check_weight_grad(kernel, case, cut, monkeypatch)


def check_weight_grad(kernel, case, cut, monkeypatch, fewest_splits=3):
    problem, order = case.problem("weight_grad"), operands.FROM_LAYOUT[case.problem().layout]
    assert cut.splits >= fewest_splits
    monkeypatch.setattr(kernel, "cut_for", lambda problem, device: cut)
    x, *_ = arrays_of(case)
    grad_y = np.random.default_rng(1).integers(-3, 4, operands.result_shape(problem, True)).astype(x.dtype)
    grad_w = np.full(case.w, np.nan, x.dtype)
    workspace = strided.empty_aligned((cut.partial_bytes,), np.uint8)
    x, grad_y = x.transpose(order), grad_y.transpose(order)
    with emulator.watching(outputs=[grad_w], scratch=[workspace]) as watch:
        kernel.run(problem, device.emulator(), *map(strided.as_storage, (x, grad_y, grad_w)), workspace=workspace)
    watch.raise_if_faulty()
    np.testing.assert_array_equal(grad_w, reference.weight_grad(problem, x, grad_y).astype(x.dtype))


# Tiles, and the stages of the last split, go past the last filters, columns and pixels; in rows that end amid a stage.
KEYWORDS = {"groups": 2, "padding": (1, 2), "stride": (1, 2), "dilation": (2, 1)}
TOGETHER = {
    "CHANNELS": Case("channels", (2, 11, 10, 24), (72, 12, 3, 3), {**KEYWORDS, "layout": "NHWC"}),
    "PIXELS": Case("pixels", (2, 32, 11, 15), (80, 16, 3, 3), KEYWORDS),
}


def tile_of(together, monkeypatch, tile, dtype, splits_wanted=3):
    """The case in that type, and its cut; that it is taken together so is asserted when it runs."""
    case = together if isinstance(together, Case) else TOGETHER[together]
    case = replace(case, dtype=dtype)
    problem, together_in = case.problem("weight_grad"), weight_grad.together_in
    expected = "PIXELS" if problem.layout == "NCHW" else "CHANNELS"

    def asserted(*given):
        assert together_in(*given) == expected
        return expected

    monkeypatch.setattr(weight_grad, "together_in", asserted)
    each = splits.EACH[problem.accumulate.itemsize]
    return case, splits.cut_of(problem, tile[0] * each, tile[1] * each, splits_wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("tile", weight_grad.TILES, ids=str)
@pytest.mark.parametrize("together", TOGETHER)
def test_a_weight_gradient_of_what_lies_together_runs_without_a_fault(together, tile, dtype, monkeypatch):
    check_weight_grad(weight_grad, *tile_of(together, monkeypatch, tile, dtype), monkeypatch)


@pytest.mark.parametrize("splits_wanted", [1, 4])
@pytest.mark.parametrize(("x", "w", "keywords"), [
    ((1, 8, 7, 16), (8, 8, 3, 3), {"padding": 1}),  # whole stages, each tap from amid a sector on
    ((7, 8, 3, 5), (8, 8, 3, 3), {"padding": 1}),  # rows are shorter than a stage
    ((30, 8, 1, 3), (8, 8, 1, 1), {}),  # images are
    ((15, 8, 2, 2), (8, 8, 2, 2), {"padding": ((0, 1), (1, 0))}),
    ((59, 8, 2, 3), (8, 8, 2, 3), {}),  # one pixel each
    ((3, 8, 6, 40), (8, 8, 3, 4), {"stride": (2, 9), "padding": 2}),  # pixels lie further apart than a sector is long
], ids=["whole", "short_rows", "short_images", "four_pixels", "one_pixel", "far_apart"])  # fmt: skip
def test_runs_of_pixels_cross_rows_images_and_splits_without_a_fault(x, w, keywords, splits_wanted, monkeypatch):
    case, cut = tile_of(Case("runs", x, w, keywords), monkeypatch, (8, 8), "float32", splits_wanted)
    check_weight_grad(weight_grad, case, cut, monkeypatch, fewest_splits=splits_wanted)


@pytest.mark.parametrize("memory", ["reversed", "broadcast"])
def test_runs_of_pixels_go_backwards_and_repeat_without_a_fault(memory, monkeypatch):
    case = replace(TOGETHER["PIXELS"], memory=memory)
    check_weight_grad(weight_grad, *tile_of(case, monkeypatch, (8, 8), "float32"), monkeypatch)


@pytest.mark.parametrize("pixels", [*range(1, 18), 63])
def test_a_split_of_any_length_runs_without_a_fault(pixels, monkeypatch):
    """One stage or several, of which the first lacks pixels, by taps that begin at any place of a sector."""
    case = Case("short", (1, 8, 3, pixels), (8, 8, 3, 7), {"padding": ((0, 0), (3, 3))})
    case, cut = tile_of(case, monkeypatch, (8, 8), "float32", 1)
    check_weight_grad(weight_grad, case, cut, monkeypatch, fewest_splits=1)


@pytest.mark.parametrize("barrier", range(2))
@pytest.mark.parametrize("together", TOGETHER)
def test_the_emulator_sees_when_that_weight_gradient_lacks_a_barrier(together, barrier, monkeypatch):
    case, cut = tile_of(together, monkeypatch, (8, 8), "float32")
    plant(monkeypatch, "conv2d_weight_grad", BARRIER, barrier, of=2)
    with pytest.raises(emulator.EmulationError, match="race|uninitialised"):
        check_weight_grad(weight_grad, case, cut, monkeypatch)


@pytest.mark.parametrize("change", ["filters", "channels", "groups", "grad_y", "x", "address", "steps"])
def test_a_weight_gradient_loads_no_vectors_where_they_do_not_lie_so(change):
    C, K = (22 if change == "channels" else 24), (70 if change == "filters" else 72)
    groups = 4 if change == "groups" else 1
    problem = make_problem((2, C, 9, 9), (K, C // groups, 3, 3), np.float32, groups=groups, pass_="weight_grad")

    def image(shape, lies_otherwise):
        n, c, h, w = shape
        behind = change == "address" and shape == problem.x_shape
        if change == "steps" and shape == problem.x_shape:
            rows = strided.empty_aligned((n, h, w + 1, c + 2), np.float32)  # whole vectors, and images; pixels are not
            return rows[:, :, :w, :c].transpose(0, 3, 1, 2)
        memory = strided.empty_aligned((n * c * h * w + behind,), np.float32)[int(behind) :]
        return memory.reshape(shape) if lies_otherwise else memory.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    x, grad_y = image(problem.x_shape, change == "x"), image(problem.y_shape, change == "grad_y")
    few = change in ("filters", "channels", "groups")
    assert weight_grad.together_in(problem, x, grad_y) == ("NONE" if few else "PIXELS")


@pytest.mark.parametrize("change", ["filters", "channels", "groups", "rows", "far"])
def test_a_weight_gradient_takes_no_runs_of_pixels_where_there_are_none(change):
    C, K = (20 if change == "channels" else 24), (68 if change == "filters" else 72)
    groups, H = (2 if change == "groups" else 1), (2**30 if change == "far" else 9)
    problem = make_problem((2, C, H, 9), (K, C // groups, 3, 3), np.float32, groups=groups, pass_="weight_grad")
    x = np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), problem.x_shape, (0, 0, 0, 4))
    n, k, p, q = problem.y_shape
    grad_y = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (n, k, p, q), (0, 0, 4 * q + (change == "rows") * 4, 4)
    )
    assert weight_grad.together_in(problem, x, grad_y) == "NONE"


@pytest.mark.parametrize(("layout", "channels", "dtype", "together"), [
    ("NHWC", 12, "float16", "CHANNELS"), ("NHWC", 10, "float32", "NONE"), ("NHWC", 10, "float64", "CHANNELS"),
    ("NCHW", 12, "float32", "NONE"), ("NCHW", 12, "float64", "PIXELS"), ("NCHW", 8, "bfloat16", "PIXELS"),
])  # fmt: skip
def test_what_is_taken_together_is_predicted_as_fresh_arrays_lie(layout, channels, dtype, together):
    x = (1, channels, 8, 8) if layout == "NCHW" else (1, 8, 8, channels)
    problem = make_problem(x, (16, channels, 3, 3), np.dtype(dtype), padding=1, layout=layout, pass_="weight_grad")
    arrays = (strided.empty_aligned(shape, problem.dtype) for shape in (x, operands.result_shape(problem, True)))
    x, grad_y = (array.transpose(operands.FROM_LAYOUT[layout]) for array in arrays)
    assert weight_grad.together_in(problem, x, grad_y) == weight_grad.together_as_planned(problem) == together
