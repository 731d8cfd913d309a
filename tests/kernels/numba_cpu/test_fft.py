"""Fourier tiles: every length there and back, tiles and blocks of taps without a gap, the accuracy that is promised."""

import math
from dataclasses import replace

import numpy as np
import pytest

from convlib import accuracy, choosing, device
from convlib.kernels import reference
from convlib.kernels.numba_cpu import fft, fft_passes, target
from convlib.problem import make_problem
from convlib.strided import empty_aligned


def problem_of(x_shape, w_shape, dtype="float32", **keywords):
    return make_problem(x_shape, w_shape, dtype, **keywords)


def arrays_of(problem, seed=0):
    random = np.random.default_rng(seed)
    x, w = (random.standard_normal(shape).astype(problem.dtype) for shape in (problem.x_shape, problem.w_shape))
    return x, w, np.full(problem.y_shape, np.nan, problem.dtype)


def poisoned(count):
    memory = empty_aligned((count,), np.uint8)
    memory[:] = 255  # NaN in every float type
    return memory


def run(problem, x, w, y, threads=2):
    cpu = replace(device.cpu(), threads=threads)
    packed, workspace = poisoned(fft.packed_bytes(problem, cpu)), poisoned(fft.workspace_bytes(problem, cpu))
    fft.pack(problem, cpu, w, packed)
    fft.run(problem, cpu, x, packed, y, workspace=workspace)
    return y


@pytest.fixture
def in_tiles(monkeypatch):
    """Has every problem cut into tiles of so many rows and columns: in_tiles(32, 64)."""

    def force(rows, columns):
        monkeypatch.setattr(fft, "tiling", lambda problem: fft.tiled(problem, rows, columns))
        fft.prepared.cache_clear()

    yield force
    fft.prepared.cache_clear()


def error_of(problem, x, w, y):
    exact = reference.conv2d(problem, x, w)
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", fft.TILES)
def test_every_tile_keeps_the_accuracy_that_is_promised(rows, dtype, in_tiles):
    columns = fft.TILES[-1 - fft.TILES.index(rows)]
    problem = problem_of((2, 2, rows + 9, columns + 5), (2, 2, 7, 6), dtype, padding=(3, 2))
    in_tiles(rows, columns)
    x, w, y = arrays_of(problem)
    assert error_of(problem, x, w, run(problem, x, w, y)) <= accuracy.norm_relative(problem, "fft")


BLOCKED = {
    "three_blocks_of_rows": (((1, 1, 70, 30), (1, 1, 40, 5)), {"padding": (20, 2)}, (3, 1)),
    "blocks_both_ways": (((1, 1, 75, 80), (1, 1, 33, 57)), {}, (3, 4)),
    "a_last_block_that_is_not_full": (((1, 2, 80, 80), (3, 2, 19, 35)), {"padding": 7}, (2, 3)),
    "dilated": (((1, 1, 90, 60), (1, 1, 9, 7)), {"dilation": (5, 8), "padding": (0, 30)}, (3, 4)),
    "dilated_beyond_a_tile": (((1, 1, 90, 95), (1, 1, 3, 2)), {"dilation": (40, 70)}, (3, 2)),
    "few_outputs": (((4, 1, 51, 53), (1, 1, 50, 51)), {}, (1, 1)),
    "window_larger_than_the_image": (((3, 1, 9, 11), (2, 1, 60, 70)), {"padding": (60, 70)}, (4, 5)),
}


@pytest.mark.parametrize(("shapes", "keywords", "blocks"), BLOCKED.values(), ids=BLOCKED)
def test_a_window_in_blocks_of_taps(shapes, keywords, blocks, in_tiles):
    problem = problem_of(*shapes, **keywords)
    in_tiles(32, 32) if blocks != (1, 1) else in_tiles(64, 64)
    tiles = fft.tiling(problem)
    assert (tiles.blocks_r, tiles.blocks_s) == blocks
    x, w, y = arrays_of(problem)
    assert error_of(problem, x, w, run(problem, x, w, y)) <= accuracy.norm_relative(problem, "fft")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_pairs_across_images_and_a_last_tile_alone(count, in_tiles):
    problem = problem_of((count, 3, 25, 31), (3, 1, 9, 8), "float64", groups=3)
    in_tiles(32, 32)
    x, w, y = arrays_of(problem)
    np.testing.assert_allclose(run(problem, x, w, y), reference.conv2d(problem, x, w), atol=1e-12)


def test_a_tiling_wastes_no_more_than_half_of_a_tile():
    for size in (5, 31, 32, 33, 100, 1000, 5000):
        for window in (1, 3, 31, 33, 500, 3000):
            problem = problem_of((1, 1, size, size), (1, 1, window, window), padding=window)
            tiles = fft.tiling(problem)
            assert tiles.outputs_h > tiles.tile_h // 2 or tiles.outputs_h == problem.P or tiles.tile_h == 32
            assert tiles.outputs_h * tiles.tiles_h >= problem.P > tiles.outputs_h * (tiles.tiles_h - 1)
            assert tiles.block_r * tiles.blocks_r >= window > tiles.block_r * (tiles.blocks_r - 1)


def test_gives_the_same_bits_for_every_number_of_threads():
    for size in (70, 130, 300, 600):
        problem = problem_of((1, 2, size, size + 9), (2, 1, 21, 13), groups=2, padding="same")
        results = [run(problem, *arrays_of(problem), threads=threads) for threads in (1, 2, 3, 16)]
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


def test_a_nan_stays_in_its_pair_of_tiles(in_tiles):
    problem = problem_of((2, 1, 200, 40), (1, 1, 5, 5), "float64")
    in_tiles(64, 64)
    x, w, y = arrays_of(problem)
    clean = run(problem, x, w, y.copy())
    x[0, 0, 0, 0] = np.nan
    y = run(problem, x, w, y)
    tiles = fft.tiling(problem)
    spoiled = np.isnan(y[0, 0, :, 0])
    assert spoiled[0]
    assert np.flatnonzero(spoiled).max() < 2 * tiles.outputs_h
    np.testing.assert_array_equal(y[~np.isnan(y)], clean[~np.isnan(y)])
    assert not np.isnan(y[1]).any()


@pytest.mark.parametrize("length", [*fft.TILES, 2048])
def test_the_passes_multiply_up_to_the_length_and_their_factors_lie_on_the_circle(length):
    assert math.prod(fft_passes.radices(length)) == length
    assert fft_passes.radices(length)[-1] > 2
    passes, factors = fft_passes.tables(length, "float64")
    np.testing.assert_allclose(np.hypot(factors[0::2], factors[1::2]), 1)
    assert passes[0, 1] * passes[0, 0] == length
    assert passes[-1, 3] + 2 * passes[-1, 1] * (passes[-1, 0] - 1) == factors.size


def test_refuses_strides_in_words():
    problem = problem_of((1, 1, 9, 9), (1, 1, 3, 3), stride=2)
    assert fft.why_not(problem, device.cpu()) == ["stride 1 needed, got (2, 2)"]


def test_many_channels_that_no_cache_holds_count_for_every_filter():
    # the input gradient of VGG-16's first layer: 64 channels for 3 filters, which Winograd does in less than half
    one, three = (problem_of((8, 64, 224, 224), (K, 64, 3, 3), padding=1) for K in (1, 3))
    place = device.cpu_with(2)
    assert fft.predicted_seconds(three, place) > 3.5 * fft.predicted_seconds(one, place)
    fits = [problem_of((1, 64, 160, 160), (K, 64, 3, 3), padding=1) for K in (1, 3)]
    assert fft.predicted_seconds(fits[1], place) < 3 * fft.predicted_seconds(fits[0], place)


@pytest.mark.skipif(target.multiply_adds_per_cycle() == 2, reason="measured on a Zen 4")
@pytest.mark.parametrize(
    ("channels", "filters", "size", "window", "is_chosen"),
    [
        (1, 64, 255, 9, False),
        (8, 8, 160, 5, False),
        (6, 12, 112, 5, False),
        (1, 16, 512, 11, True),
        (1, 1, 1080, 9, True),
    ],
)
def test_is_chosen_where_it_is_fastest(channels, filters, size, window, is_chosen):
    problem = problem_of((1, channels, size, size), (filters, channels, window, window), padding=window // 2)
    names = [choosing.chosen(problem, device.cpu_with(2), planned=planned).name for planned in (True, False)]
    assert [name == "numba_cpu.fft" for name in names] == [is_chosen, is_chosen]
