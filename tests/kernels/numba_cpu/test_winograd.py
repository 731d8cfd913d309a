"""Winograd's own promises; that it equals the reference on the shared problems is tested in test_every_kernel.py."""

from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import convlib
from convlib import accuracy, choosing, device, dispatch
from convlib.kernels import reference
from convlib.kernels.numba_cpu import target, winograd, winograd_cuts, winograd_multiply
from convlib.problem import make_problem

from .guarded_pages import before_a_guard

TILES = {f"winograd_f{m}": m for m in (2, 3, 4, 5, 6)}
OF_3X3 = [(f"winograd_f{m}", (3, 3), 1) for m in (2, 4, 5, 6)]
OTHERS = [
    ("winograd_f2", (3, 3), 2),
    ("winograd_f3", (3, 3), 2),
    ("winograd_f4", (3, 3), 2),
    ("winograd_f4", (5, 5), 1),
    ("winograd_f4", (7, 7), 2),
    ("winograd_f4", (1, 7), 1),
    ("winograd_f4", (3, 1), (2, 1)),
]
f4 = partial(convlib.conv2d, algorithm="winograd_f4")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(K, C, window=(3, 3), seed=1):
    return normal(K, C, *window, seed=seed) / np.float32(np.sqrt(window[0] * window[1] * C))


def half(window):
    """Padding that keeps the size."""
    return tuple(taps // 2 for taps in window)


NO_SUMS = {"SUMS_IN_CACHE": 0, "SUMS_IN_CACHE_IF_SLOWER": 0, "SUMS_IN_CACHE_IF_FEW": 0}
ONE_AT_A_TIME = {**NO_SUMS, "LEAST_CHUNK": 1, "STRIP_VECTORS": 1}


@pytest.fixture
def other_cut(monkeypatch):
    """Cut problems by other numbers: other_cut(SUMS_IN_CACHE=0, ...)."""

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(winograd_cuts, name, value)
        forget()

    def forget():
        for remembered in (winograd.cut, winograd.prepared, winograd.prepared_pack):
            remembered.cache_clear()

    yield change
    monkeypatch.undo()
    forget()


def computed(threads, m=4, shape=(2, 40, 27, 30), K=44, window=(3, 3), stride=1, packed=True):
    """F(m) on that many threads (and as many parts and ranges as it then wants), by the kernel's own interface."""
    x, w, place = normal(*shape), weights(K, shape[1], window), device.cpu_with(threads)
    problem = make_problem(shape, w.shape, np.float32, padding=half(window), stride=stride)
    y = np.full(problem.y_shape, np.nan, np.float32)
    if not packed:
        count = winograd.bytes_to_transform(m, problem, place)
        workspace = aligned_bytes(count, behind=4096)
        winograd.run(m, problem, place, x, w, y, workspace=workspace)
        assert (workspace[count:] == 255).all(), "written behind the workspace"
        return y
    filters, workspace = (
        aligned_bytes(count(m, problem, place)) for count in (winograd.packed_bytes, winograd.workspace_bytes)
    )
    winograd.pack(m, problem, place, w, filters)
    winograd.run(m, problem, place, x, filters, y, workspace=workspace)
    return y


def aligned_bytes(count, behind=0):
    """`count` bytes and those behind them, all 255: as floats, NaN."""
    raw = np.full(count + behind + 64, 255, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count + behind]


@pytest.mark.parametrize(("algorithm", "window", "stride"), OF_3X3 + OTHERS)
def test_the_bits_do_not_depend_on_threads_or_cuts(other_cut, algorithm, window, stride):
    compute = partial(computed, m=TILES[algorithm], window=window, stride=stride)
    y = compute(threads=1)
    np.testing.assert_array_equal(y, compute(threads=3))
    other_cut(**ONE_AT_A_TIME)
    np.testing.assert_array_equal(y, compute(threads=2))
    other_cut(STRIP_VECTORS=3)
    np.testing.assert_array_equal(y, compute(threads=2))


@pytest.mark.parametrize(("algorithm", "window", "stride"), OF_3X3 + OTHERS)
def test_transforming_the_filters_where_they_are_used_changes_no_bit(other_cut, algorithm, window, stride):
    """All of them at once for several strips; by blocks of channels and chunks of filters; and where they are split."""
    compute = partial(computed, m=TILES[algorithm], window=window, stride=stride)
    other_cut(channels_at_a_time=lambda tile: 16)
    y = compute(threads=1)
    np.testing.assert_array_equal(y, compute(threads=1, packed=False))
    np.testing.assert_array_equal(y, compute(threads=3, packed=False))
    other_cut(ALL_FILTERS=0, ALL_FILTERS_OF_A_STRIP=0, **ONE_AT_A_TIME)
    np.testing.assert_array_equal(y, compute(threads=2, packed=False))
    other_cut(part_counts=lambda problem, threads: [3])
    np.testing.assert_array_equal(y, compute(threads=3, packed=False))


@pytest.mark.skipif(target.vector_bytes() != 64, reason="of vectors of 64 bytes")
def test_where_products_are_slow_threads_share_no_outputs_and_much_stays_in_the_cache(monkeypatch, other_cut):
    problem = make_problem((1, 128, 28, 28), (128, 128, 3, 3), np.float32, padding=1)
    for per_cycle, shared in ((2, True), (1, False)):
        monkeypatch.setattr(target, "multiply_adds_per_cycle", lambda count=per_cycle: count)
        other_cut()
        cut = winograd.cut(6, problem, 2)
        assert winograd_cuts.shares_outputs(problem, 2, cut) == shared
    assert cut.chunk < cut.part
    alone = winograd.cut(6, make_problem((1, 128, 64, 64), (256, 128, 3, 3), np.float32, padding=1), 2, False)
    assert alone.filter_group <= target.cache_bytes(2)


@pytest.mark.parametrize("packed", [True, False])
def test_with_16_registers_threads_share_no_outputs_and_chunks_are_whole_register_tiles(monkeypatch, other_cut, packed):
    for name, value in {"register_count": 16, "multiply_adds_per_cycle": 2}.items():
        monkeypatch.setattr(target, name, lambda value=value: value)
    monkeypatch.setattr(target, "cache_bytes", lambda level: 1 << 20)
    other_cut(SUMS_IN_CACHE_IF_FEW=1 / 4)
    problem = make_problem((1, 128, 28, 28), (128, 128, 3, 3), np.float32, padding=1)
    cut = winograd.cut(6, problem, 2, packed)
    assert not winograd_cuts.shares_outputs(problem, 2, cut)
    assert cut.chunk < cut.part
    assert cut.chunk % 3 == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("to_layout", [(2, 3, 1, 0), (0, 2, 3, 1)], ids=["HWIO", "OHWI"])
def test_where_the_weights_lie_changes_no_bit(to_layout, stride):
    x, w, convolve = normal(2, 37, 12, 14), weights(44, 37), partial(f4, padding=1, stride=stride)
    layout = "".join("OIHW"[axis] for axis in to_layout)
    there = np.ascontiguousarray(w.transpose(to_layout))
    np.testing.assert_array_equal(convolve(x, w), convolve(x, there, weight_layout=layout))


@pytest.mark.parametrize(("algorithm", "window", "stride"), OF_3X3 + OTHERS)
def test_taps_that_are_loaded_ahead_change_no_bit_and_none_is_read_behind_the_last(algorithm, window, stride):
    convolve = partial(convlib.conv2d, algorithm=algorithm, padding=half(window), stride=stride)
    for C in (17, 18, 19, 20):
        x, w = normal(1, C, 9, 9), weights(32, C, window)
        np.testing.assert_array_equal(convolve(x, before_a_guard(w)), convolve(x, every_other(w)))


@pytest.mark.parametrize(
    ("m", "size", "stride", "products"),
    [
        (4, 14, 1, 22),  # 3 + 4 + 4 + 3 outputs: the first tile without the point 0, the last without infinity
        (2, 7, 1, 15),  # 2 + 2 + 2 + 1
        (2, 14, 2, 18),  # 5 + 5 + 5 + 3
        (4, 14, 2, 17),  # 3 + 4: of 5 points none is infinity
        (4, 5, 1, 10),
        (4, 56, 1, 84),
        (5, 14, 1, 20),  # 4 + 5 + 5
        (3, 28, 2, 33),  # 3 + 3 + 3 + 3 + 2: 7 products each, at infinity of both phases
    ],
)
def test_products_are_left_out_that_no_output_needs(m, size, stride, products):
    shape, w_shape = (2, 20, size, size), (20, 20, 3, 3)  # two images: what is left out lies in the middle too
    problem = make_problem(shape, w_shape, np.float32, padding=1, stride=stride)
    assert [line.products for line in winograd_cuts.lines_of_tiles(m, problem)] == [products] * 2
    exact = reference.conv2d(problem, normal(*shape), weights(20, 20))
    np.testing.assert_allclose(computed(2, m, shape, K=20, stride=stride), exact, atol=1e-5)


def test_a_single_call_packs_first_where_many_threads_would_transform_the_same_filters():
    problem = make_problem((1, 128, 112, 112), (128, 128, 3, 3), np.float32, padding=1)
    assert winograd.one_call_bytes(4, problem, device.cpu_with(2)) > 0
    assert winograd.one_call_bytes(4, problem, device.cpu_with(64)) is None


def channels_last(array):
    """The same (N, C, H, W) array with its channels side by side in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def every_other(array):
    """The same array, its columns two apart in memory."""
    return np.repeat(array, 2, axis=3)[..., ::2]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("place", [channels_last, every_other])
def test_where_the_numbers_lie_changes_no_bit(place, stride):
    x, w = normal(2, 37, 27, 30), weights(44, 37)
    y = f4(x, w, padding=1, stride=stride)
    out = place(np.full_like(y, np.nan))
    f4(place(x), place(w), padding=1, stride=stride, out=out)
    np.testing.assert_array_equal(y, out)


WITH_TURNED_PIXELS = OF_3X3 + [(f"winograd_f{m}", (3, 3), 2) for m in (2, 3, 4)] + [("winograd_f4", (5, 5), 1)]


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (14, 14), (17, 40)])
@pytest.mark.parametrize(("algorithm", "window", "stride"), WITH_TURNED_PIXELS)
def test_channels_in_the_lanes_give_the_bits_of_tiles_in_the_lanes(other_cut, algorithm, window, stride, size):
    m, shape = TILES[algorithm], (3, 48, *size)
    problem = make_problem(shape, (20, 48, *window), np.float32, padding=half(window), stride=stride)
    compute = partial(computed, 2, m, shape, 20, window, stride)
    other_cut(MOST_TILES_OF_A_LINE=0)
    assert not winograd_cuts.lanes_are_channels(m, problem)
    y = compute()
    np.testing.assert_allclose(y, reference.conv2d(problem, normal(*shape), weights(20, 48, window)), atol=6e-5)
    other_cut(MOST_TILES_OF_A_LINE=99)
    odd = winograd_cuts.lines_of_tiles(m, problem)[1].tiles % 4 != 0
    assert winograd_cuts.lanes_are_channels(m, problem) or not odd
    for changed in ({}, {"TURNED_BYTES": 0}, {"TURNED_BYTES": 1 << 20}, ONE_AT_A_TIME):
        other_cut(**changed)
        np.testing.assert_array_equal(y, compute())
        np.testing.assert_array_equal(y, compute(packed=False))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_turned_pixels_may_lie_anywhere_and_none_is_read_behind_the_last(dtype, stride):
    x, w = normal(2, 32, 11, 21).astype(dtype), weights(20, 32).astype(dtype)
    convolve = partial(f4, w=w, padding=1, stride=stride)
    y = convolve(x)
    for place in (before_a_guard, channels_last, every_other):
        np.testing.assert_array_equal(y, convolve(place(x)))
    backwards = np.ascontiguousarray(x[..., ::-1])
    np.testing.assert_array_equal(y, convolve(backwards[..., ::-1]))
    half_of_channels = np.repeat(x, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(y, convolve(half_of_channels))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("window", [(3, 3), (1, 7), (5, 5)])
def test_sixteen_bits_widened_by_vectors_are_as_those_widened_one_by_one(dtype, window):
    w, convolve = weights(20, 7, window).astype(dtype), partial(f4, padding=half(window))
    for size in range(1, 18):
        x = before_a_guard(normal(1, 7, 5, size).astype(dtype))
        y = convolve(x, before_a_guard(w))
        np.testing.assert_array_equal(y, convolve(every_other(x), every_other(w)))


@pytest.mark.parametrize(("window", "stride"), [((3, 3), 1), ((3, 3), 2), ((1, 7), 1)])
def test_weights_that_lie_turned_change_no_bit(other_cut, window, stride):
    x, w, convolve = normal(1, 20, 9, 9), weights(20, 44, window), partial(f4, padding=half(window), stride=stride)
    turned = w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]  # as input gradients have them
    y = convolve(x, np.ascontiguousarray(turned))
    np.testing.assert_array_equal(y, convolve(x, turned))
    other_cut(PAST_CACHE_WEIGHTS=0)
    np.testing.assert_array_equal(y, convolve(x, turned))


def test_splitting_the_filters_changes_no_bit(other_cut):
    y = computed(threads=1)
    other_cut(part_counts=lambda problem, threads: [3])
    np.testing.assert_array_equal(y, computed(threads=3))


@pytest.mark.parametrize("stride", [1, 2])
def test_stores_past_the_cache_write_the_same(other_cut, stride):
    compute = partial(computed, threads=1, shape=(1, 9, 18, 48 * stride), stride=stride)
    y = compute()
    other_cut(PAST_CACHE_BYTES=0, PAST_CACHE_WEIGHTS=0)
    np.testing.assert_array_equal(y, compute())


@pytest.mark.parametrize(("algorithm", "window", "stride"), OF_3X3 + OTHERS)
@pytest.mark.parametrize("C", [1, 20, 130])
def test_the_error_keeps_to_the_contract(algorithm, window, stride, C):
    x, w, keywords = normal(1, C, 26, 25), weights(24, C, window), {"padding": half(window), "stride": stride}
    problem = make_problem(x.shape, w.shape, np.float32, **keywords)
    y, exact = convlib.conv2d(x, w, algorithm=algorithm, max_error=1, **keywords), reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert 0.3 * accuracy.norm_relative(problem, algorithm) < error < accuracy.norm_relative(problem, algorithm)


def test_f4_and_f2_are_allowed_by_default_whatever_the_channels():
    problem = make_problem((1, 4096, 8, 8), (1, 4096, 3, 3), np.float32)
    assert accuracy.norm_relative(problem, "winograd_f2") < 5e-7
    assert accuracy.norm_relative(problem, "winograd_f4") < 1.5e-6
    assert accuracy.norm_relative(problem, "winograd_f6") > accuracy.DEFAULT_MAX_ERROR


def test_f6_stays_under_the_default_error_however_many_channels():
    C = 1100
    x, w = normal(1, C, 12, 12), weights(16, C)
    problem = make_problem(x.shape, w.shape, np.float32, padding=1)
    y, exact = convlib.conv2d(x, w, padding=1, algorithm="winograd_f6"), reference.conv2d(problem, x, w)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert error < accuracy.norm_relative(problem, "winograd_f6") < accuracy.DEFAULT_MAX_ERROR


@pytest.mark.parametrize(("m", "stride"), [(2, 1), (4, 1), (6, 1), (2, 2)])
def test_all_taps_of_the_next_chunk_are_fetched(m, stride):
    problem = make_problem((1, 512, 14, 14), (512, 512, 3, 3), np.float32, padding=1, stride=stride)
    chosen, lanes = winograd_cuts.cut(m, problem, 2, packed=False), target.lanes(np.float32)
    w_k, w_c, soon = 512 * 36, 36, 1 << 20
    call = SimpleNamespace(**vars(chosen), Cg=512, w_k=w_k, w_c=w_c)
    wanted = {soon + k * w_k + at for k in range(chosen.chunk * lanes) for at in range(chosen.depth_step * w_c)}
    fetched = set()
    for number in range(lanes * chosen.fetched):
        for vector in range(chosen.chunk):
            where, step = winograd_multiply.taps_to_fetch.py_func(call, soon, number, 1, 0, vector, lanes)
            fetched.update((where + step * d) // 64 for d in range(chosen.depth_block))
    assert chosen.depth_step == chosen.depth_block < 512
    assert {at // 64 for at in wanted} <= fetched


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize(("C", "size"), [(64, 224), (512, 28), (1024, 32)])
def test_the_workspace_of_all_threads_is_limited(threads, C, size):
    problem = make_problem((1, C, size, size), (C, C, 3, 3), np.float32, padding=1)
    place = device.cpu_with(threads)
    assert winograd.workspace_bytes(4, problem, place) < 64 << 20
    assert (winograd.one_call_bytes(4, problem, place) or 0) < 64 << 20


def test_nan_stays_within_the_tiles_that_read_it():
    x, w = normal(1, 3, 24, 24), weights(2, 3)
    x[0, 1, 9, 13] = np.nan
    spread = np.isnan(f4(x, w, padding=1)[0])
    rows, columns = np.nonzero(spread.all(axis=0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 11, 12, 15)  # tile (2, 3) reads rows 7 to 12
    kept = np.isnan(convlib.conv2d(x, w, padding=1, max_error=1e-9)[0])
    rows, columns = np.nonzero(kept.any(axis=0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 10, 12, 14)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 9), (7, 7), (14, 14), (3, 100), (100, 3)])
@pytest.mark.parametrize(("algorithm", "window", "stride"), OF_3X3 + OTHERS)
def test_every_size_of_map(algorithm, window, stride, size):
    x, w = normal(1, 5, *size), weights(18, 5, window)  # a vector of filters and more, in whatever vectors
    keywords = {"padding": half(window), "stride": stride}
    problem = make_problem(x.shape, w.shape, np.float32, **keywords)
    y = np.full(problem.y_shape, np.nan, np.float32)  # an output never written stays NaN
    convlib.conv2d(x, w, algorithm=algorithm, max_error=1, out=y, **keywords)
    np.testing.assert_allclose(y, reference.conv2d(problem, x, w), atol=3e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # vectors of 8 in one of them, whatever the processor
@pytest.mark.parametrize(("window", "stride", "size"), [((11, 11), 4, (26, 61)), ((1, 8), (1, 4), (1, 90))])
def test_tiles_whose_columns_two_vectors_do_not_hold(window, stride, size, dtype):
    x, w = normal(1, 3, *size).astype(dtype), weights(18, 3, window).astype(dtype)
    keywords = {"padding": half(window), "stride": stride}
    expected = reference.conv2d(make_problem(x.shape, w.shape, dtype, **keywords), x, w)
    np.testing.assert_allclose(f4(x, w, max_error=1, **keywords), expected, atol=3e-5)


@pytest.mark.parametrize(
    ("algorithm", "window", "stride", "reason"),
    [
        ("winograd_f2", (5, 3), 1, "3 x 3 kernels only, got 5 x 3"),
        ("winograd_f3", (3, 3), 1, "strides only, got (1, 1)"),
        ("winograd_f6", (3, 3), 2, "stride 1 only, got (2, 2)"),
        ("winograd_f4", (1, 1), 1, "windows that overlap only, got 1 x 1 with stride (1, 1)"),
        ("winograd_f4", (2, 3), 2, "windows that overlap only, got 2 x 3 with stride (2, 2)"),
        ("winograd_f4", (1, 3), 2, "windows that overlap only, got 1 x 3 with stride (2, 2)"),
        ("winograd_f4", (7, 3), 1, "at most 8 products of a phase each way, 7 x 3 with stride (1, 1) needs 10 x 6"),
        ("winograd_f4", (1, 8), 1, "at most 10 products of a phase each way, 1 x 8 with stride (1, 1) needs 1 x 11"),
        ("winograd_f4", (13, 3), 2, "at most 11 taps and a stride of 4 each way, got 13 x 3 with stride (2, 2)"),
    ],
)
def test_refuses_what_it_does_not_compute(algorithm, window, stride, reason):
    problem = make_problem((1, 4, 19, 19), (4, 4, *window), np.float32, stride=stride)
    assert dispatch.kernel(f"numba_cpu.{algorithm}").why_not(problem, device.cpu()) == [reason]


def test_refuses_dilation():
    problem = make_problem((1, 4, 9, 9), (4, 4, 3, 3), np.float32, dilation=2)
    assert winograd.why_not(4, problem, device.cpu()) == ["dilation 1 only, got (2, 2)"]


@pytest.mark.parametrize(
    ("shape", "w_shape", "stride", "right"),
    [
        ((1, 128, 56, 56), (128, 128, 3, 3), 2, "winograd_f4"),
        ((1, 256, 28, 28), (256, 256, 3, 3), 2, "winograd_f3 winograd_f2"),
        ((1, 256, 14, 14), (256, 256, 3, 3), 1, "winograd_f5 winograd_f4"),  # F(5) has too few tiles for fast products
        ((1, 512, 14, 14), (512, 512, 3, 3), 2, "winograd_f2 blocked"),  # F(4) would stream 38 MB of weights
        ((1, 3, 224, 224), (64, 3, 7, 7), 2, "winograd_f4"),
        ((1, 96, 27, 27), (192, 96, 5, 5), 1, "winograd_f4"),
        ((1, 128, 17, 17), (128, 128, 1, 7), 1, "winograd_f4"),
        ((1, 3, 224, 224), (32, 3, 3, 3), 2, "blocked"),
    ],
)
def test_plans_choose_it_where_it_wins(shape, w_shape, stride, right):
    problem = make_problem(shape, w_shape, np.float32, stride=stride, padding=half(w_shape[2:]))
    planned = choosing.chosen(problem, device.cpu_with(2), planned=True).name
    assert planned.removeprefix("numba_cpu.") in right.split()


def test_a_single_call_leaves_many_weights_and_few_outputs_of_a_stride_to_blocked():
    """But not where one multiply-add of 64 bytes starts per cycle: there fewer of them repay their transforms."""
    right = "winograd_f2" if target.multiply_adds_per_cycle() == 1 else "blocked"
    problem = make_problem((1, 512, 14, 14), (512, 512, 3, 3), np.float32, stride=2, padding=1)
    assert choosing.chosen(problem, device.cpu_with(2)).name == f"numba_cpu.{right}"
