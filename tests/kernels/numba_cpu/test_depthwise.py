"""Depthwise: bands and tiles without a gap, the same bits for any number of threads, NaN only where it is read."""

import struct
from dataclasses import replace

import numpy as np
import pytest

from convlib import device, dispatch
from convlib.kernels import reference
from convlib.kernels.numba_cpu import depthwise, direct_rows, short_floats, sliding_window, target
from convlib.problem import make_problem, named_dtype

from .guarded_pages import before_a_guard

L = short_floats.lanes_for("float32")


def problem_of(x_shape, filters, window, **keywords):
    layout = keywords.get("layout", "NCHW")
    C = x_shape[1] if layout == "NCHW" else x_shape[3]
    return make_problem(x_shape, (C * filters, 1, *window), "float32", groups=C, **keywords)


def arrays_of(problem, integers=True):
    """x, w and a NaN-filled y in logical order, lying in memory as the problem's layout says."""
    random = np.random.default_rng(0)

    def values(shape):
        return (random.integers(-3, 4, shape) if integers else random.standard_normal(shape)).astype(np.float32)

    x, w, y = values(problem.x_shape), values(problem.w_shape), np.full(problem.y_shape, np.nan, np.float32)
    if problem.layout == "NHWC":
        x, y = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, y))
    return x, w, y


def like(y, numbers):
    """`numbers`, as many of them as y has, lying in memory as y does."""
    result = np.empty_like(y)
    result[...] = np.resize(numbers, y.shape)
    return result


def guarded(problem, array):
    """The same in memory of the problem's layout, behind which nothing may be read or written."""
    order, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if problem.layout == "NHWC" else ((0, 1, 2, 3), (0, 1, 2, 3))
    return before_a_guard(array.transpose(order)).transpose(back)


def run(problem, x, w, y, threads=2, bias=None, residual=None):
    cpu = replace(device.cpu(), threads=threads)
    workspace = np.full(depthwise.workspace_bytes(problem, cpu), 255, np.uint8)  # NaN in every float type
    depthwise.run(problem, cpu, x, w, y, bias, residual, workspace)
    return y


PROBLEMS = {
    "row_shorter_than_a_vector": problem_of((2, 3, 9, L - 1), 1, (3, 3), padding=1),
    "row_of_one_vector_and_a_half": problem_of((1, 3, 9, L + L // 2), 1, (3, 3), padding=1),
    "rows_stacked": problem_of((2, 5, 7, 7), 1, (3, 3), padding=1),
    "rows_stacked_two_filters": problem_of((2, 3, 6, L // 4), 2, (5, 3), padding=((2, 1), (2, 0))),
    "rows_stacked_stride_2": problem_of((2, 5, L - 3, L - 2), 1, (3, 3), padding=1, stride=2),
    "rows_stacked_stride_2_even": problem_of((1, 3, 8, L), 2, (5, 5), padding=((1, 2), (1, 2)), stride=2),
    "rows_alone_written_out": problem_of((2, 3, 9, L - 2), 1, (7, 7), padding=3),
    "rows_stacked_dilated": problem_of((2, 3, 7, 7), 1, (3, 3), padding=2, dilation=2),
    "rows_alone_dilated": problem_of((2, 3, 7, L - 1), 1, (3, 3), padding=2, dilation=2),
    "rows_dilated_apart": problem_of((1, 2, 13, 2 * L + 5), 1, (3, 3), padding=(2, 4), dilation=(2, 4)),
    "rows_dilated_past_a_vector": problem_of((1, 1, 27, 9 * L + 7), 2, (3, 3), padding=(12, L), dilation=(12, L)),
    "rows_of_a_whole_map": problem_of((2, 3, 7, 7), 1, (13, 13), padding=6),
    "rows_of_a_whole_map_of_two_vectors": problem_of((1, 2, 8, L + 3), 2, (16, 5), padding=((8, 7), (1, 3))),
    "rows_of_7_x_7_taps": problem_of((1, 2, 11, 5 * L + 1), 1, (7, 7), padding=3),
    "rows_of_pixels": problem_of((2, 9, 11, 2 * L + 3), 1, (3, 3), padding=1, layout="NHWC"),
    "rows_of_pixels_stride_2": problem_of((1, 13, 8, L), 1, (5, 3), padding=((2, 0), (4, 1)), stride=2, layout="NHWC"),
    "rows_of_pixels_7_x_7": problem_of((1, 9, 8, L + 3), 1, (7, 7), padding=3, layout="NHWC"),
    "bands_of_rows": problem_of((1, 1, 70, 2 * L + 3), 1, (3, 3), padding=1),
    "rows_of_a_large_window": problem_of((1, 2, 11, 5 * L + 1), 1, (5, 5), padding=2),
    "rows_of_long_strips_stride_2": problem_of((1, 2, 12, 9 * L + 7), 2, (3, 5), padding=(1, 2), stride=2),
    "bands_of_rows_of_a_tall_window": problem_of((1, 1, 60, L + 5), 1, (21, 1), padding=(10, 0)),
    "rows_of_a_wide_window_stride_2": problem_of((1, 2, 12, 4 * L), 1, (1, 25), padding=(0, 5), stride=2),
    "strips": problem_of((1, 1, 6, 2 * depthwise.STRIP + 5), 1, (3, 3), padding=1),
    "bands_of_a_tall_window": problem_of((1, 1, 150, 40), 1, (31, 7), padding=(15, 3)),
    "long_window_stride_2": problem_of((1, 2, 40, 61), 1, (15, 16), padding=7, stride=2),
    "stride_and_dilation_apart": problem_of((1, 2, 40, 61), 2, (5, 4), padding=3, stride=(3, 2), dilation=(2, 3)),
    "padding_wider_than_the_window": problem_of((1, 1, 3, 2), 1, (2, 2), padding=((3, 5), (9, 0))),
    "rgb": problem_of((2, 30, 2 * depthwise.STRIP + 5, 3), 1, (3, 3), padding=1, layout="NHWC"),
    "rgb_without_padding": problem_of((1, 9, 60, 3), 1, (5, 5), layout="NHWC"),
    "rgb_row_shorter_than_a_vector": problem_of((2, 9, 2, 3), 2, (3, 3), padding=1, layout="NHWC"),
    "rgba_large_window": problem_of((1, 40, 61, 4), 1, (15, 16), padding=7, layout="NHWC"),
    "two_channels_two_filters_dilated": problem_of(
        (2, 20, 50, 2), 2, (3, 5), padding=((0, 3), (4, 1)), dilation=(2, 3), stride=(3, 1), layout="NHWC"
    ),
    "five_channels": problem_of((1, 14, 90, 5), 3, (3, 3), padding=1, layout="NHWC"),
    "twelve_channels": problem_of((1, 14, 30, 12), 1, (7, 3), padding=(3, 1), layout="NHWC"),
    "channels_not_a_whole_vector": problem_of((1, 9, 8, 2 * L + 3), 1, (3, 3), padding=1, layout="NHWC"),
    "channels_two_filters_stride_2": problem_of((1, 9, 11, L + 3), 2, (3, 5), padding=2, stride=2, layout="NHWC"),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_equals_the_reference_exactly(problem):
    x, w, y = arrays_of(problem)
    np.testing.assert_array_equal(run(problem, x, w, y), reference.conv2d(problem, x, w, None, None))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    "name",
    [
        "rows_stacked_stride_2_even",
        "row_shorter_than_a_vector",
        "rows_dilated_apart",
        "rows_of_a_whole_map",
        "rows_of_pixels",
    ],
)
def test_16_bit_results_are_rounded_once(name, activation):
    """Sums of integers are the reference's, rounded; residual and silu come before the rounding, not after it too.

    Nothing is read behind x, where a row has fewer numbers than a load.
    """
    problem = replace(PROBLEMS[name], dtype=named_dtype("bfloat16"), activation=activation)
    problem = replace(problem, has_residual=activation is not None)
    x, w, y = (a.astype(problem.dtype) for a in arrays_of(problem, integers=activation is None))
    residual = like(y, x) if problem.has_residual else None
    exact = reference.conv2d(problem, x, w, None, residual)
    x = guarded(problem, x)
    stored = [None if a is None else a.view(np.uint16) for a in (x, w, y, residual)]
    run(problem, *stored[:3], residual=stored[3])
    if activation is None:
        np.testing.assert_array_equal(y, exact.astype(problem.dtype))
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=2.0**-8, atol=2.0**-16)


def test_gives_the_same_bits_for_any_number_of_threads():
    problem = PROBLEMS["bands_of_a_tall_window"]
    x, w, y = arrays_of(problem, integers=False)
    alone = run(problem, x, w, y.copy(), threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(run(problem, x, w, y.copy(), threads), alone)


@pytest.mark.parametrize(
    "problem",
    [
        problem_of((2, 3, 23, 2 * L + 5), 1, (3, 3), padding=1),
        problem_of((1, 2, 41, 2 * L + 3), 1, (5, 5), padding=2, stride=2),
        problem_of((1, 1, 50, 2 * L + 3), 2, (3, 3), padding=7, dilation=7),
    ],
    ids=["stride_1", "stride_2", "dilated"],
)
def test_large_planes_are_computed_in_bands_of_few_rows(problem, monkeypatch):
    x, w, y = arrays_of(problem)
    plain = run(problem, x, w, y.copy())
    monkeypatch.setattr(direct_rows, "LARGE", 0)
    direct_rows.prepared.cache_clear()
    depthwise.faster_ways.cache_clear()
    fields, _, tasks = direct_rows.prepared(problem, 2)
    tasks_now, bands, most_bands, _ = struct.unpack("4q", fields[-32:])
    assert (tasks_now, most_bands) == (tasks, 1)
    assert bands == problem.P // max(direct_rows.FEW_ROWS, direct_rows.fewest_rows(problem))
    exact = reference.conv2d(problem, x, w, None, None)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(run(problem, x, w, y.copy(), threads), exact)
    np.testing.assert_array_equal(plain, exact)


def test_many_planes_that_come_from_memory_are_large_where_each_is(monkeypatch):
    monkeypatch.setattr(target, "cache_bytes", lambda level: {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}[level])

    def is_large(channels, side, threads=2):
        return direct_rows.is_large(problem_of((1, channels, side, side), 1, (3, 3), padding=1), threads)

    assert is_large(64, 256)
    assert not is_large(32, 256)  # 16 MB of x and y
    assert not is_large(2000, 56)  # 25 KB each
    assert is_large(1, 1024)
    assert not is_large(1, 1024, threads=8)


OF_ROWS = [name for name in PROBLEMS if "rows" in name]


@pytest.mark.parametrize("name", OF_ROWS)
def test_nothing_is_read_or_written_behind_rows(name):
    """Of the last rows whole vectors are read and written, or as many lanes of one as there are."""
    problem = PROBLEMS[name]
    x, w, y = arrays_of(problem)
    exact = reference.conv2d(problem, x, w, None, None)
    x, y = guarded(problem, x), guarded(problem, y)
    np.testing.assert_array_equal(run(problem, x, w, y), exact)


@pytest.mark.parametrize("activation", ["relu6", "silu"])
@pytest.mark.parametrize("name", ["rows_stacked", "rows_stacked_two_filters", "rows_of_pixels", "bands_of_rows"])
def test_bias_residual_and_activation_of_rows(name, activation):
    problem = replace(PROBLEMS[name], has_bias=True, has_residual=True, activation=activation)
    x, w, y = arrays_of(problem)
    bias, residual = np.arange(problem.K, dtype=np.float32) - 2, np.roll(arrays_of(problem, integers=False)[0], 1)
    residual = like(y, residual)
    run(problem, x, w, y, bias=bias, residual=residual)
    np.testing.assert_allclose(y, reference.conv2d(problem, x, w, bias, residual), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("C", [2, 3, 5, 7, 12, 20])
def test_nothing_is_written_around_interleaved_channels(C):
    """The last vector of a row may have more lanes than are outputs: no other memory gets them."""
    problem = problem_of((1, 9, 31, C), 1, (3, 3), padding=1, layout="NHWC")
    x, w, y = arrays_of(problem)
    memory = np.full(y.size + 2 * L, 99, np.float32)
    y = memory[L:-L].reshape(y.transpose(0, 2, 3, 1).shape).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(run(problem, x, w, y), reference.conv2d(problem, x, w, None, None))
    np.testing.assert_array_equal(memory[:L], 99)
    np.testing.assert_array_equal(memory[-L:], 99)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("C", [3, 5])
def test_nothing_is_read_behind_interleaved_channels(C, padding):
    """Rows are read where they lie, by whole vectors, and the last one may have more lanes than are left of the row."""
    problem = problem_of((1, 9, 31, C), 1, (3, 3), padding=padding, layout="NHWC")
    x, w, y = arrays_of(problem)
    exact = reference.conv2d(problem, x, w, None, None)
    x, y = (before_a_guard(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, y))
    np.testing.assert_array_equal(run(problem, x, w, y), exact)


def test_interleaved_channels_with_gaps_between_pixels():
    problem = PROBLEMS["five_channels"]
    x, w, _ = arrays_of(problem)
    wide = np.full((1, 14, 90, 7), np.nan, np.float32)
    wide[..., :5] = x.transpose(0, 2, 3, 1)
    y = np.full((1, 14, 90, 17), 99, np.float32)
    run(problem, wide[..., :5].transpose(0, 3, 1, 2), w, y[..., :15].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(y[..., :15].transpose(0, 3, 1, 2), reference.conv2d(problem, x, w, None, None))
    np.testing.assert_array_equal(y[..., 15:], 99)


@pytest.mark.parametrize("name", ["row_of_one_vector_and_a_half", "rows_stacked"])
def test_nan_and_infinity_reach_only_the_outputs_that_read_them(name):
    problem = PROBLEMS[name]
    x, w, y = arrays_of(problem)
    w[w == 0] = 1
    x[0, 1, 4, 5], x[0, 1, 2, -1], x[0, 2, 0, 0] = np.nan, np.nan, np.inf
    run(problem, x, w, y)
    bad = np.zeros(problem.y_shape, bool)
    bad[0, 1, 3:6, 4:7] = bad[0, 1, 1:4, -2:] = bad[0, 2, 0:2, 0:2] = True
    np.testing.assert_array_equal(~np.isfinite(y), bad)


@pytest.mark.parametrize("rows", range(1, 6))
@pytest.mark.parametrize(("R", "step"), [(1, 1), (3, 1), (3, 2), (2, 3), (9, 2)])
def test_every_output_row_of_a_tile_gets_every_tap_row_once(R, step, rows):
    taps = {j: [] for j in range(rows)}
    for outputs, first, count in sliding_window.runs_of_input_rows(R, step, rows):
        for i in range(first, first + count):
            for j in outputs:
                taps[j].append(i - j * step)
    assert all(of_one_row == list(range(R)) for of_one_row in taps.values())


def test_refuses_what_sums_over_channels():
    problem = make_problem((1, 4, 5, 5), (4, 2, 3, 3), "float32", groups=2)
    assert "groups = C = 4" in depthwise.why_not(problem, device.cpu())[0]


@pytest.mark.skipif(target.multiply_adds_per_cycle() == 2, reason="measured on a Zen 4")
@pytest.mark.parametrize(
    ("filters", "size", "window", "stride", "chosen"),
    [(64, 256, (11, 11), 2, "blocked"), (64, 128, (5, 5), 2, "blocked"), (4, 64, (9, 9), 1, "depthwise"),
     (1, 1080, (9, 9), 1, "fft"), (1, 1080, (7, 7), 1, "depthwise")],
)  # fmt: skip
def test_others_are_chosen_where_they_are_faster(filters, size, window, stride, chosen):
    padding = tuple(taps // 2 for taps in window)
    problem = problem_of((1, 1, size, size), filters, window, padding=padding, stride=stride)
    names = dispatch.ranked(problem, device.Device("cpu", threads=2), "auto", "auto", 5e-6, None)
    assert names[0] == f"numba_cpu.{chosen}"
