"""The blocked kernels: what holds beyond the shared problems of test_every_kernel."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convlib
from convlib import choosing
from convlib.device import Device
from convlib.kernels import reference
from convlib.kernels.numba_cpu import (
    blocked,
    blocked_by_filters,
    blocked_cuts,
    few_channels,
    few_pixels,
    patches,
    pixels_in_place,
    target,
    turned,
)
from convlib.kernels.numba_cpu.microkernel import VECTORS
from convlib.kernels.numba_cpu.vectors import lanes
from convlib.problem import make_problem
from convlib.strided import empty_aligned

from .guarded_pages import before_a_guard

LAYERS = json.loads((Path(convlib.__file__).parent / "layers.json").read_text())
# past one block of channels, one tile of pixels and one of filters; with a window, as a point, with few pixels
PROBLEMS = {
    "window": ((1, 40, 9, 11), (24, 40, 3, 3), {"padding": 1}),
    "stride 2": ((2, 33, 14, 14), (40, 33, 3, 3), {"padding": 1, "stride": 2}),
    "point": ((2, 300, 13, 13), (128, 300, 1, 1), {}),
    "few pixels": ((1, 300, 7, 7), (72, 300, 1, 1), {}),
    "one pixel": ((3, 70, 1, 1), (16, 70, 1, 1), {}),
    "nine pixels, two blocks of depths": ((2, 140, 5, 5), (16, 140, 3, 3), {}),
    "point, stride 2": ((1, 300, 14, 15), (20, 300, 1, 1), {"stride": 2}),
    "stride 3, dilated": ((2, 9, 20, 23), (16, 9, 3, 2), {"stride": 3, "dilation": 2, "padding": (1, 3)}),
    "stride 3, padded": ((1, 17, 12, 110), (16, 17, 3, 3), {"stride": (2, 3), "padding": 1}),
    "stride 4, padded": ((1, 9, 11, 140), (8, 9, 3, 5), {"stride": 4, "padding": ((1, 2), (3, 2))}),
    "a row too long for the cache": ((1, 8, 4, 9000), (8, 8, 3, 3), {"padding": 1}),
    "filters left over": ((1, 300, 7, 7), (107, 300, 1, 1), {}),
    "filters left over of groups": ((1, 40, 9, 11), (10, 20, 3, 3), {"padding": 1, "groups": 2}),
    "few channels": ((2, 3, 61, 67), (40, 3, 7, 7), {"padding": 3, "stride": 2}),
    "patches of 2 x 2": ((1, 40, 14, 45), (32, 40, 2, 2), {"stride": 2}),
    "patches of 4 x 4": ((2, 3, 24, 74), (32, 3, 4, 4), {"stride": 4}),
    "patches of 3 x 17": ((1, 5, 9, 290), (16, 5, 3, 17), {"stride": (3, 17)}),
    "few channels, long rows": ((1, 2, 3, 810), (24, 2, 3, 3), {"padding": 1}),
    "one channel, windows of padding": ((2, 1, 9, 70), (16, 1, 11, 3), {"padding": (14, 1), "stride": (3, 2)}),
    "a row": ((2, 40, 1, 1100), (24, 40, 1, 5), {"padding": (0, 2)}),
    "a row, dilated": ((1, 70, 1, 613), (20, 70, 1, 3), {"padding": ((0, 0), (7, 1)), "dilation": (1, 4)}),
    "a row amid padding": ((1, 20, 1, 200), (8, 20, 1, 9), {"padding": ((1, 0), (250, 3)), "stride": (2, 1)}),
    "a row of groups": ((1, 24, 1, 301), (48, 12, 1, 2), {"groups": 2}),
    "a row, stride 2": ((2, 37, 1, 1403), (20, 37, 1, 5), {"padding": (0, 2), "stride": (1, 2)}),
    "a row, stride 3, dilated": ((1, 9, 1, 640), (12, 9, 1, 7), {"padding": (0, 4), "stride": 3, "dilation": 2}),
    "a row, stride 2, dilated": ((1, 130, 1, 403), (300, 130, 1, 3), {"stride": 2, "dilation": 4}),
    "a row of far taps": ((1, 40, 1, 2100), (16, 40, 1, 3), {"dilation": (1, 1000)}),
    "one channel, one row": ((1, 1, 1, 1600), (40, 1, 1, 10), {"stride": (1, 5)}),
    "one channel, dilated": ((1, 1, 13, 33), (8, 1, 5, 3), {"padding": (7, 2), "dilation": (3, 1)}),
    "few channels, dilated": ((1, 8, 50, 70), (16, 4, 3, 5), {"groups": 2, "dilation": 2, "padding": (2, 0)}),
}


def arrays(name):
    x_shape, w_shape, keywords = PROBLEMS[name]
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape))
    return make_problem(x_shape, w_shape, x.dtype, **keywords), x, w


def result(kernel, problem, x, w, threads, packed):
    device = Device("cpu", threads=threads)
    if packed:
        memory = empty_aligned((kernel.packed_bytes(problem, device),), np.uint8)
        kernel.pack(problem, device, w, memory)
        w = memory
    bytes_of = kernel.workspace_bytes if packed else getattr(kernel, "one_call_bytes", kernel.workspace_bytes)
    workspace = empty_aligned((bytes_of(problem, device),), np.uint8)
    workspace[:] = 255  # NaN, wherever it is read before it is written
    y = np.full(problem.y_shape, np.nan, np.float32)
    if problem.layout == "NHWC":
        y = np.ascontiguousarray(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    kernel.run(problem, device, x, w, y, workspace=workspace)
    return y


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kernel", [blocked, blocked_by_filters], ids=lambda k: k.__name__.rpartition(".")[2])
def test_gives_the_same_bits_on_any_number_of_threads(kernel, name):
    problem, x, w = arrays(name)
    x, w = x + np.float32(0.3), w * np.float32(0.7)  # sums that are rounded
    first = result(kernel, problem, x, w, threads=1, packed=True)
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(result(kernel, problem, x, w, threads, packed=True), first)


@pytest.mark.parametrize("name", PROBLEMS)
def test_contiguous_weights_are_read_where_they_lie(name):
    problem, x, w = arrays(name)
    assert blocked.reads_in_place(problem, w)
    exact = reference.conv2d(problem, x, w, None, None)
    np.testing.assert_array_equal(result(blocked, problem, x, before_a_guard(w), 2, packed=False), exact)


@pytest.mark.parametrize("name", PROBLEMS)
def test_images_that_are_slices_are_read_too(name):
    problem, x, w = arrays(name)
    wider = np.full((*x.shape[:3], x.shape[3] + 5), np.nan, np.float32)
    wider[..., 2:-3] = x
    exact = reference.conv2d(problem, x, w, None, None)
    np.testing.assert_array_equal(result(blocked, problem, wider[..., 2:-3], w, 2, packed=True), exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [2500, 37])
def test_a_lone_pixel_is_finished_beside_its_tile(channels, dtype):
    """With several blocks of channels and filters that fill no panel; nothing is read behind x and the weights."""
    pixels = VECTORS * lanes(dtype) + 1
    problem = make_problem((2, channels, 1, pixels), (21, channels, 1, 1), np.dtype(dtype), has_bias=True,
                           has_residual=True, activation="relu")  # fmt: skip
    assert blocked_cuts.one_tile(problem)
    assert (blocked_cuts.channel_block(problem) < channels) == (channels > 37)
    random = np.random.default_rng(0)
    x, w, bias, residual = (
        before_a_guard(random.integers(-3, 4, shape).astype(dtype))
        for shape in (problem.x_shape, problem.w_shape, (21,), problem.y_shape)
    )
    y, device = np.full(problem.y_shape, np.nan, dtype), Device("cpu", threads=2)
    workspace = empty_aligned((blocked.workspace_bytes(problem, device),), np.uint8)
    workspace[:] = 255
    blocked.run(problem, device, x, w, y, bias, residual, workspace)
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w, bias, residual))


# one window that sees all, windows read by vectors and by numbers, and tiles of filters that are not full
FEW_PIXELS = {
    "all": ((2, 5, 3, 4), (17, 5, 3, 4), {}),
    "four of a point": ((1, 37, 2, 2), (12, 37, 1, 1), {}),
    "one padded": ((2, 9, 1, 1), (5, 9, 3, 3), {"padding": 1}),
    "three, stride 2": ((1, 8, 3, 7), (20, 8, 3, 3), {"stride": (1, 2)}),
    "nine": ((2, 20, 5, 5), (10, 20, 3, 3), {}),
    "nine padded": ((2, 20, 3, 3), (10, 20, 3, 3), {"padding": 1}),
    "six padded on some sides, wide": ((1, 7, 2, 9), (9, 7, 3, 5), {"padding": ((2, 0), (1, 3)), "stride": (1, 4)}),
    "four padded below": ((1, 5, 2, 6), (9, 5, 4, 3), {"padding": ((0, 3), (1, 1)), "stride": (1, 5)}),
    "four of many columns": ((1, 5, 3, 16), (9, 5, 2, 3), {"padding": (0, 1), "stride": (1, 9)}),
    "six padded, dilated": ((1, 6, 4, 5), (11, 6, 3, 3), {"padding": 1, "dilation": 2}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FEW_PIXELS)
def test_few_pixels_are_dot_products(name, dtype):
    """Exactly, where nothing is rounded; nothing is read behind x, weights, bias and residual, nor written around y."""
    x_shape, w_shape, keywords = FEW_PIXELS[name]
    problem = make_problem(x_shape, w_shape, np.dtype(dtype), has_bias=True, has_residual=True, activation="relu",
                           **keywords)  # fmt: skip
    assert few_pixels.serves(problem) == (len(few_pixels.ROWS[target.register_count()]) >= problem.P * problem.Q)
    random = np.random.default_rng(0)
    x, w, bias, residual = (
        before_a_guard(random.integers(-3, 4, shape).astype(dtype))
        for shape in (x_shape, w_shape, w_shape[:1], problem.y_shape)
    )
    around = np.full((problem.N + 1, *problem.y_shape[1:]), np.nan, dtype)
    device = Device("cpu", threads=2)
    workspace = empty_aligned((blocked.workspace_bytes(problem, device),), np.uint8)
    workspace[:] = 255
    blocked.run(problem, device, x, w, around[:-1], bias, residual, workspace)
    np.testing.assert_array_equal(around[:-1], reference.conv2d(problem, x, w, bias, residual))
    assert np.isnan(around[-1]).all()


def test_padding_of_few_pixels_costs_few_cycles():
    """SSD's last head: by numbers its columns took longer than their products."""
    inside = make_problem((1, 256, 5, 5), (16, 256, 3, 3), np.dtype(np.float32))
    padded = replace(inside, H=3, W=3, padding=((1, 1), (1, 1)))
    assert few_pixels.copy_cycles(padded) < 1.5 * few_pixels.copy_cycles(inside)
    assert few_pixels.copy_cycles(replace(padded, padding=((2, 2), (2, 2)), dilation=(2, 2))) > 50_000


def test_rows_of_windows_outside_the_image_are_counted_out():
    """DeepSpeech's first layer, whose windows have 41 rows."""
    problem = make_problem((1, 1, 161, 200), (32, 1, 41, 11), np.dtype(np.float32), padding=(20, 5), stride=2)
    assert few_channels.share_inside(problem) == pytest.approx(1 - 2 * 110 / (81 * 41))


def test_threads_share_the_filters_of_a_single_row():
    """wav2vec's first layer, which one thread did alone."""
    problem = make_problem((1, 1, 1, 16_000), (512, 1, 1, 10), np.dtype(np.float32), stride=(1, 5))
    assert [few_channels.geometry(problem, threads)[1] for threads in (1, 2, 4)] == [1, 2, 4]


def test_few_pixels_of_two_threads_are_the_bits_of_one():
    """Each copies columns and keeps sums, here of several blocks of depths, where the other does not."""
    problem = make_problem((2, 100, 4, 4), (405, 100, 3, 3), np.dtype("float32"))
    assert few_pixels.part_count(problem, 2) == 2
    assert few_pixels.depth_block(problem) < problem.reduction
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape, dtype=np.float32) for shape in (problem.x_shape, problem.w_shape))

    def run(threads):
        y, device = np.full(problem.y_shape, np.nan, np.float32), Device("cpu", threads=threads)
        workspace = empty_aligned((blocked.workspace_bytes(problem, device),), np.uint8)
        workspace[:] = 255
        blocked.run(problem, device, x, w, y, None, None, workspace)
        return y

    one = run(threads=1)
    for _ in range(100):  # in most of which the second thread is awake
        np.testing.assert_array_equal(run(threads=2), one)


def test_few_pixels_with_channels_last_are_dot_products_only_where_they_lie_as_in_nchw():
    assert not few_pixels.serves(make_problem((1, 5, 5, 20), (10, 20, 3, 3), np.dtype("float32"), layout="NHWC"))
    assert few_pixels.serves(make_problem((1, 1, 1, 20), (10, 20, 1, 1), np.dtype("float32"), layout="NHWC"))


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name.startswith("patches")])
@pytest.mark.parametrize("kernel", [blocked, blocked_by_filters], ids=lambda k: k.__name__.rpartition(".")[2])
def test_nothing_is_read_behind_patches(kernel, name):
    problem, x, w = arrays(name)
    assert patches.serves(problem)
    exact = reference.conv2d(problem, x, w, None, None)
    np.testing.assert_array_equal(result(kernel, problem, before_a_guard(x), w, 2, packed=True), exact)


# one tile, several of which the last begins within the one before, and a stride
FEW_FILTERS = {
    "one": ((2, 9, 6, 40), (1, 9, 3, 3), {"padding": 1}),
    "three": ((1, 20, 33, 230), (3, 20, 3, 3), {"padding": 1}),
    "four in each group, stride 2": ((1, 12, 17, 75), (8, 6, 5, 2), {"groups": 2, "stride": 2, "padding": (2, 1)}),
}


@pytest.mark.parametrize("name", FEW_FILTERS)
def test_few_filters_have_tiles_of_their_own(name, monkeypatch):
    monkeypatch.setitem(few_channels.WIDEST, 16, few_channels.WIDEST[32])  # everywhere, also where it is not faster
    for cached in (few_channels.serves, few_channels.has_few_filters):
        cached.cache_clear()
    x_shape, w_shape, keywords = FEW_FILTERS[name]
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape))
    problem = make_problem(x_shape, w_shape, x.dtype, **keywords)
    assert few_channels.tile_of(problem)[0] == problem.Kg
    exact = reference.conv2d(problem, x, w, None, None)
    for threads in (1, 3):
        np.testing.assert_array_equal(result(blocked, problem, x, w, threads, packed=True), exact)


@pytest.mark.parametrize("K", [2, 12])
@pytest.mark.parametrize("offset", [0, 4], ids="{} numbers from a line".format)
def test_stores_past_the_cache_write_the_same(K, offset, monkeypatch):
    """Of whole lines: rows of 160 numbers, in tiles of 3 and 2 vectors; y where no line begins is stored plainly."""
    problem = make_problem((2, 3, 9, 160), (K, 3, 3, 3), np.dtype(np.float32), padding=1, activation="silu")
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (problem.x_shape, problem.w_shape))
    y = result(blocked, problem, x, w, threads=2, packed=False)
    place, memory = Device("cpu", threads=2), np.full(y.size + 64, np.nan, np.float32)
    start = -memory.ctypes.data % 64 // 4 + offset
    past = memory[start : start + y.size].reshape(y.shape)
    caches = few_channels.geometry.cache_clear, few_channels.prepared.cache_clear
    with monkeypatch.context() as patched:
        patched.setattr(few_channels, "PAST_CACHE_BYTES", 0)
        patched.setattr(few_channels, "LINE_CYCLES", 0)
        for clear in caches:
            clear()
        assert few_channels.stores_past_cache(problem) == (target.vector_bytes() == 64)
        workspace = empty_aligned((blocked.workspace_bytes(problem, place),), np.uint8)
        blocked.run(problem, place, x, w, past, workspace=workspace)
    for clear in caches:
        clear()
    np.testing.assert_array_equal(past, y)
    assert np.isnan(memory[:start]).all()
    assert np.isnan(memory[start + y.size :]).all()


@pytest.mark.parametrize("shape", [(12, 32), (13, 29), (30, 39)], ids="{0[0]} x {0[1]}".format)
@pytest.mark.parametrize("filters", [18, 72])
@pytest.mark.parametrize("cache", ["collide", "collide_near"])
def test_channels_that_share_places_of_the_cache_are_copied(cache, shape, filters, monkeypatch):
    """Whole tiles of pixels, lone ones and narrow tiles; filters that fill no tile; nothing is read behind x."""
    monkeypatch.setattr(blocked_cuts, cache, lambda *of: True)
    x_shape = (2, 150, *shape)
    problem = make_problem(x_shape, (filters, 150, 1, 1), np.dtype(np.float32))
    assert blocked_cuts.copies_runs(problem)
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, problem.w_shape))
    exact = reference.conv2d(problem, x, w, None, None)
    for threads in (1, 3):
        np.testing.assert_array_equal(result(blocked, problem, before_a_guard(x), w, threads, packed=False), exact)
        np.testing.assert_array_equal(result(blocked, problem, x, w, threads, packed=True), exact)
    wider = np.full((*x_shape[:3], x_shape[3] + 5), np.nan, np.float32)  # rows with gaps are no runs
    wider[..., 2:-3] = x
    np.testing.assert_array_equal(result(blocked, problem, wider[..., 2:-3], w, 2, packed=False), exact)


def test_channels_collide_where_maps_are_as_large_as_the_caches_ways():
    most = target.cache_ways(2)
    way = target.cache_bytes(2) // most // 4
    assert blocked_cuts.collide(way, most + 1, 4)
    assert blocked_cuts.collide(2 * way, most + 1, 4)
    assert not blocked_cuts.collide(way, most, 4)
    assert not blocked_cuts.collide(way // 2, 2 * most, 4)
    assert not blocked_cuts.collide(way + 16, most + 1, 4)


def test_channels_collide_near_where_maps_are_whole_pages_and_registers_few(monkeypatch):
    def collides(channels, side):
        blocked_cuts.collide_near.cache_clear()
        problem = make_problem((1, channels, side, side), (8, channels, 1, 1), np.dtype(np.float32))
        return blocked_cuts.collide_near(problem)

    monkeypatch.setattr(target, "cache_bytes", lambda level: 32_768)
    monkeypatch.setattr(target, "cache_ways", lambda level: 8)
    monkeypatch.setattr(target, "register_count", lambda: 16)
    assert collides(9, 64)  # 4 pages apart: all at the same places
    assert not collides(8, 64)
    assert collides(33, 80)  # 6 pages and a quarter
    assert not collides(32, 80)
    assert not collides(256, 56)  # 3 and a sixteenth
    assert not collides(256, 16)  # four channels a page
    monkeypatch.setattr(target, "register_count", lambda: 32)
    assert not collides(9, 64)
    blocked_cuts.collide_near.cache_clear()


def test_x_is_copied_where_it_comes_from_memory():
    images = target.cache_bytes(3) // (4 * 8 * 31 * 31)
    few, many = (make_problem((N, 8, 31, 31), (8, 8, 1, 1), np.dtype(np.float32)) for N in (images // 8, images))
    assert not blocked_cuts.copies_runs(few)
    assert blocked_cuts.copies_runs(many)


def test_large_outputs_of_whole_lines_go_to_memory(monkeypatch):
    monkeypatch.setattr(blocked_cuts, "from_memory", lambda problem: False)
    images = target.cache_bytes(3) // 2 // (4 * 8 * 16 * 16)
    small, large, odd = (
        make_problem((N, 4, size, size), (8, 4, 1, 1), np.dtype(np.float32))
        for N, size in ((images - 1, 16), (images, 16), (2 * images, 15))
    )
    goes = [blocked_cuts.stores_past_cache(problem) for problem in (small, large, odd)]
    assert goes == [False, target.vector_bytes() == 64, False]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 64, 511, 1024, 4095])
def test_a_rows_planes_are_not_copied_for_fewer_pixels_than_taps_reach_over(dilation, stride):
    keywords = {"padding": (0, dilation), "dilation": dilation, "stride": stride}
    problem = make_problem((1, 64, 1, 16_000), (64, 64, 1, 3), np.dtype(np.float32), **keywords)
    numbers = dict(zip(blocked_cuts.BLOCKING, blocked_cuts.blocking(problem, 1)[0]))
    pixels = numbers["group"] * VECTORS * lanes(np.float32)
    copied = numbers["row_planes"] * (pixels + 2 * dilation // stride)
    assert copied <= 1.2 * 3 * pixels  # as many as planes for each tap, but for whole tiles
    assert numbers["row_planes"] or dilation > 1


@pytest.mark.parametrize("by_runs", [True, False], ids=["runs of x", "rows of x with gaps"])
@pytest.mark.parametrize("filters", [20, 72])
@pytest.mark.parametrize(
    ("shift", "rows"), [(0, 16), (4, 16), (0, 17)], ids=["whole lines", "lines that begin elsewhere", "maps with a gap"]
)
def test_y_goes_past_the_cache_where_it_comes_from_memory(shift, rows, filters, by_runs, monkeypatch):
    """By vectors that are lines, or by way of runs where they are not or none begins; nothing beside y is written."""
    monkeypatch.setattr(blocked_cuts, "from_memory", lambda problem: True)
    problem = make_problem((2, 150, 16, 31), (filters, 150, 1, 1), np.dtype(np.float32))
    numbers, _ = blocked_cuts.blocking(problem, 2, by_runs=by_runs)
    assert numbers[blocked_cuts.BLOCKING.index("streaming")]
    random = np.random.default_rng(0)
    x, w, residual = (
        random.integers(-3, 4, s).astype(np.float32) for s in (problem.x_shape, problem.w_shape, problem.y_shape)
    )
    x = x if by_runs else np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=np.nan)[..., :-1]
    exact = reference.conv2d(problem, x, w, None, None)
    count, device = 2 * filters * rows * 31, Device("cpu", threads=2)
    for added in (None, residual):
        memory = empty_aligned((count + 32,), np.float32)
        memory.fill(np.nan)
        y = memory[shift : shift + count].reshape(2, filters, rows, 31)[:, :, :16]
        workspace = empty_aligned((blocked.workspace_bytes(problem, device),), np.uint8)
        blocked.run(replace(problem, has_residual=added is not None), device, x, w, y, None, added, workspace)
        np.testing.assert_array_equal(y, exact if added is None else exact + residual)
        assert np.isnan(memory).sum() == memory.size - exact.size


def test_other_weights_are_packed():
    problem, _, w = arrays("window")
    assert not blocked.reads_in_place(problem, w[:, :, ::-1])
    odd = make_problem((1, 3, 61, 67), (23, 3, 3, 3), np.dtype(np.float32))  # few channels, a tile that is not full
    assert not blocked.reads_in_place(odd, np.zeros((23, 3, 3, 3), np.float32))


@pytest.mark.parametrize("kernel", [blocked, blocked_by_filters], ids=lambda k: k.__name__.rpartition(".")[2])
def test_workspace_stays_under_64_mb_on_every_layer_of_the_tables(kernel):
    for network in LAYERS.values():
        for layer in network["layers"]:
            if layer["type"] != "conv":
                continue
            x_shape = tuple(layer[size] for size in "NCHW")
            w_shape = (layer["K"], layer["C"] // layer["groups"], layer["R"], layer["S"])
            problem = make_problem(
                x_shape, w_shape, np.dtype(np.float32), groups=layer["groups"],
                stride=tuple(layer["stride"]), padding=tuple(layer["padding"]),
            )  # fmt: skip
            for threads in (1, 2, 16):
                assert kernel.workspace_bytes(problem, Device("cpu", threads=threads)) <= 64 << 20, layer


# rows longer and shorter than a tile of pixels, with and without padding, groups, vectors of filters that are not full
CHANNELS_LAST = {
    "stride 2": ((1, 23, 37, 3), (32, 3, 3, 3), {"padding": 1, "stride": 2}),
    "rows shorter than a tile": ((2, 9, 5, 3), (70, 3, 3, 3), {"padding": 1}),
    "read in place": ((1, 16, 36, 3), (50, 3, 4, 4), {"stride": 4}),
    "patches of many channels": ((1, 8, 28, 150), (66, 150, 2, 2), {"stride": 2}),
    "1x1 of many channels": ((2, 3, 14, 300), (40, 300, 1, 1), {}),
    "groups, dilated": ((1, 13, 17, 10), (24, 5, 3, 2), {"padding": (1, 2), "dilation": 2, "groups": 2}),
}


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_pixels_are_read_where_they_lie(name, activation):
    """Exactly, if nothing is rounded; with a residual; nothing is read behind x nor written around y."""
    x_shape, w_shape, keywords = CHANNELS_LAST[name]
    problem = make_problem(
        x_shape, w_shape, np.dtype(np.float32), layout="NHWC", has_bias=True, has_residual=True, activation=activation,
        **keywords,
    )  # fmt: skip
    random = np.random.default_rng(0)
    x, w, bias, residual = (
        random.integers(-3, 4, shape).astype(np.float32)
        for shape in (x_shape, w_shape, w_shape[:1], (problem.N, problem.P, problem.Q, problem.K))
    )
    x, residual = (before_a_guard(array).transpose(0, 3, 1, 2) for array in (x, residual))
    wider = np.full((problem.N, problem.P, problem.Q, problem.K + 2), np.nan, np.float32)
    y = wider[..., :-2].transpose(0, 3, 1, 2)
    assert pixels_in_place.serves(problem)
    assert pixels_in_place.takes(x, y, residual, "NHWC")

    device = Device("cpu", threads=2)
    packed = empty_aligned((blocked_by_filters.packed_bytes(problem, device),), np.uint8)
    blocked_by_filters.pack(problem, device, w, packed)
    workspace = empty_aligned((blocked_by_filters.workspace_bytes(problem, device),), np.uint8)
    workspace[:] = 255
    blocked_by_filters.run(problem, device, x, packed, y, bias, residual, workspace)
    rtol, atol = (0, 0) if activation is None else (2e-6, 1e-30)
    np.testing.assert_allclose(y, reference.conv2d(problem, x, w, bias, residual), rtol=rtol, atol=atol)
    assert np.isnan(wider[..., -2:]).all()


@pytest.mark.parametrize("step", [1, 2], ids=["side by side", "apart"])
@pytest.mark.parametrize("name", ["stride 2", "groups, dilated", "read in place"])
def test_a_call_takes_weights_as_they_lie(name, step):
    """Packed by every task for itself; or within the call, for an x that cannot be read in place."""
    x_shape, w_shape, keywords = CHANNELS_LAST[name]
    problem = make_problem(x_shape, w_shape, np.dtype(np.float32), layout="NHWC", **keywords)
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape))
    x = np.repeat(x, step, axis=3)[..., ::step].transpose(0, 3, 1, 2)
    assert pixels_in_place.serves(problem)
    assert pixels_in_place.takes(x, x, None, "NHWC") == (step == 1)
    exact = reference.conv2d(problem, x, w, None, None)
    np.testing.assert_array_equal(result(blocked_by_filters, problem, x, w, 2, packed=False), exact)


@pytest.fixture
def two_rows_at_a_time(monkeypatch):
    """As in maps whose outputs the L2 cache does not hold."""
    monkeypatch.setattr(pixels_in_place, "rows_at_once", lambda *arguments: 2)
    for cached in (pixels_in_place.geometry, pixels_in_place.prepared):
        cached.cache_clear()
    yield
    for cached in (pixels_in_place.geometry, pixels_in_place.prepared):
        cached.cache_clear()


@pytest.mark.parametrize("order", ["OIHW", "HWIO"])
@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_weights_that_rows_share_are_packed_once(name, order, two_rows_at_a_time):
    x_shape, w_shape, keywords = CHANNELS_LAST[name]
    problem = make_problem(x_shape, w_shape, np.dtype(np.float32), layout="NHWC", **keywords)
    random = np.random.default_rng(0)
    x, w = (random.integers(-3, 4, shape).astype(np.float32) for shape in (x_shape, w_shape))
    x = x.transpose(0, 3, 1, 2)
    if order == "HWIO":
        w = np.ascontiguousarray(w.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    exact = reference.conv2d(problem, x, w, None, None)
    for packed in (False, True):
        np.testing.assert_array_equal(result(blocked_by_filters, problem, x, w, 2, packed), exact)


def test_one_channel_lies_side_by_side_whatever_its_stride_says():
    x = np.zeros((1, 1, 9, 11), np.float32)
    assert x.strides[1] != x.itemsize
    y = np.zeros((1, 9, 11, 20), np.float32).transpose(0, 3, 1, 2)
    assert pixels_in_place.takes(x, y, None, "NHWC")
    assert not pixels_in_place.takes(np.zeros((1, 2, 9, 11), np.float32), y, None, "NHWC")


@pytest.mark.parametrize("size", [4, 7, 8])
def test_channels_last_are_turned(size):
    """Exactly, if nothing is rounded, with a residual, several images; nothing but y is written nor read beyond it."""
    problem = make_problem(
        (2, size, size, 50), (37, 50, 1, 1), np.dtype(np.float32), layout="NHWC", has_bias=True, has_residual=True,
        activation="relu",
    )  # fmt: skip
    random = np.random.default_rng(0)
    shapes = ((2, size, size, 50), (2, size, size, 37), problem.w_shape, (37,))
    x, residual, w, bias = (before_a_guard(random.integers(-3, 4, shape).astype(np.float32)) for shape in shapes)
    wider = np.full((2, size, size, 39), np.nan, np.float32)
    x, residual, y = (array.transpose(0, 3, 1, 2) for array in (x, residual, wider[..., :-2]))
    assert turned.serves(problem)
    assert turned.takes(x, y, residual)
    assert not turned.takes(x[:, ::2], y, residual)

    device = Device("cpu", threads=2)
    workspace = empty_aligned((blocked.workspace_bytes(problem, device),), np.uint8)
    workspace[:] = 255
    blocked.run(problem, device, x, w, y, bias, residual, workspace)
    np.testing.assert_array_equal(y, reference.conv2d(problem, x, w, bias, residual))
    assert np.isnan(wider[..., -2:]).all()


@pytest.mark.parametrize(("shape", "K"), [((1, 512, 7, 7), 2048), ((1, 256, 14, 14), 1024)])
def test_a_single_call_in_sixteen_bits_does_not_pack_for_im2col_what_it_would_pack_without(shape, K):
    problem = make_problem(shape, (K, shape[1], 1, 1), np.float16)
    assert choosing.choose(problem, Device("cpu", threads=2)) == "numba_cpu.blocked"
