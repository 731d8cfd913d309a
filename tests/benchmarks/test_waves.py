"""Every layer keeps a GPU's multiprocessors busy, or says so; and the table of what limits it."""

from dataclasses import replace
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import waves
from benchmarks.__main__ import main
from convlib import device, layers
from convlib.kernels import gpu_cost
from convlib.kernels.cupy_raw import cut

A100, H100 = device.named("sm_80"), device.named("sm_90")


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("images", [1, 32])
def test_every_last_wave_of_a_product_is_full_or_split(images, layout, place):
    """And every depthwise layer busy for four fifths."""
    found = waves.rows(place, images, layout)
    assert len(found) > 60
    for row in found:
        assert row.splits > 1 or (row.busy if row.last_wave is None else row.last_wave) >= 0.8, row


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("images", [1, 32])
def test_input_gradients_fill_their_last_wave_or_are_split(images, layout, place):
    """Winograd's slices are busy for four fifths, by tiles of 64 x 32, and as they differ by a tile at most."""
    found = waves.rows(place, images, layout, pass_="input_grad")
    assert len(found) > 80
    assert [row for row in found if not row.passes] == []


@pytest.mark.parametrize(("place", "tile"), [(A100, "32 x 32"), (H100, "64 x 64 in 2")], ids=["108", "132"])
def test_a_layer_of_two_stages_fills_a_wave_by_small_tiles_or_slices_of_a_block(place, tile):
    """16x112x112-96-1x1 at one image: split, its three launches would take 1.3 times as long as its two."""
    found = waves.rows(place, 1, "NCHW", ["mobilenet_v2"])
    (row,) = [row for row in found if row.layer == "16x112x112-96-1x1"]
    assert (row.tile, row.splits) == (tile, 1)
    assert 0.85 < row.busy <= 1


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("images", [1, 32])
def test_every_last_wave_of_tensor_cores_is_full_or_split(images, layout, place):
    found = waves.rows(place, images, layout, product="tensor_core")
    assert len(found) == 52
    assert [row for row in found if not row.passes] == []
    assert min(row.busy for row in found if row.splits == 1) >= 0.8


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("images", [1, 32])
def test_input_gradients_on_tensor_cores_do(images, place):
    found = waves.rows(place, images, "NHWC", product="tensor_core", pass_="input_grad")
    assert len(found) == 67
    assert [row for row in found if not row.passes] == []


def test_blocks_of_one_stage_stay_where_there_are_more_tiles_than_slots():
    """3 channels for 32 images: their waves would end at 4 %, of 30."""
    (row,) = [row for row in waves.rows(A100, 32, "NCHW", ["vgg16"], "tensor_core") if row.layer.startswith("3x")]
    assert (row.last_wave, row.splits, row.stages) == (1, 1, 0)
    assert row.whole > 50 * A100.sm_count
    assert row.busy > 0.98


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("product", waves.PRODUCTS)
@pytest.mark.parametrize("images", [1, 32])
def test_weight_gradients_fill_their_last_wave_or_are_split(images, product, layout, place):
    found = waves.rows(place, images, layout, product=product, pass_="weight_grad")
    assert len(found) == (62 if product == "implicit_gemm" else 52)
    assert [row for row in found if not row.passes] == []


def test_a_strided_input_gradient_has_a_row_for_each_window_of_its_phases():
    found = waves.rows(A100, 32, "NCHW", ["resnet50"], "tensor_core", "input_grad")
    (layer,) = {row.layer.partition(",")[0] for row in found if "128x56x56-128-3x3/2" in row.layer}
    assert [row.layer.partition(", ")[2] for row in found if row.layer.startswith(layer)] == [
        "1x1 of it", "1x2 of it", "2x1 of it", "2x2 of it",
    ]  # fmt: skip
    assert {row.layer for row in found if not row.passes} == set()


def test_the_slices_of_a_batched_winograd_are_listed_where_it_is_chosen():
    found = waves.rows(A100, 32, "NCHW", ["vgg16"])
    slices = [row for row in found if row.kernel == "winograd_batched"]
    assert len(slices) >= 8
    assert all(", slice of " in row.layer and row.blocks > 108 for row in slices)


def test_a_last_wave_of_few_warps_takes_as_long_as_one_that_issues_all_the_time():
    """Six blocks of two warps in a wave, and one behind them, which alone issues a quarter of the time: 6 and 4."""
    block = gpu_cost.Block(1000, 4)
    wave = gpu_cost.wave_seconds(A100, (6 * 108, 0), 6, (block, block))
    assert gpu_cost.wave_seconds(A100, (7 * 108, 0), 6, (block, block)) == pytest.approx(wave * 10 / 6)


def test_no_full_wave_costs_a_simulated_layer_more_than_it_saves():
    """VGG-16's 512x28x28-512 with 1 channel in 32, on 30 multiprocessors: 28 blocks took 72,468 simulated cycles, 56 in
    two slices, which fill their last wave, 80,864, and 600 of one warp 89,113.
    """
    (layer,) = [layer for layer in layers.layers("vgg16") if layer.name == "512x28x28-512-3x3"]
    problem, place = replace(layer.problem, C=16), replace(A100, compute_capability=(7, 5), sm_count=30)
    taken = waves.implicit_gemm.cut_for(problem, place)
    assert (taken.tile.filters, taken.tile.pixels, taken.blocks) == (128, 128, 28)
    tile = taken.tile._replace(filters=32, pixels=64, threads=64, slices=2)
    of_two_warps = waves.implicit_gemm.seconds(problem, place, waves.implicit_gemm.cut_of(problem, tile))
    assert 1.2 < of_two_warps / waves.implicit_gemm.seconds(problem, place, taken) < 1.4, "94,214 of 72,468"


def test_parts_begin_beside_whole_tiles_that_fill_no_wave():
    """Of a multiprocessor's two places one is free: halves of two more take it while a whole tile is multiplied."""

    def seconds(whole, parts):
        return gpu_cost.wave_seconds(A100, (whole, parts), 2, (gpu_cost.Block(1000, 2), gpu_cost.Block(500, 2)))

    assert seconds(108, 216) == seconds(216, 0) == seconds(0, 432)
    assert seconds(108, 0) == seconds(108, 108) < seconds(108, 324)
    assert seconds(216, 216) == seconds(216, 0) + seconds(0, 216)


def test_of_cuts_that_memory_makes_equal_the_one_that_multiplies_least_is_taken():
    """Of 49 pixels a tile of 128 would pad more than it has."""
    (layer,) = [layer for layer in layers.layers("resnet50") if layer.name == "512x7x7-512-3x3"]
    place = device.named("sm_89")
    taken = waves.implicit_gemm.cut_for(layer.problem, place)
    seconds = waves.implicit_gemm.seconds
    equal = [
        other for other in waves.implicit_gemm.cuts(layer.problem, place)
        if seconds(layer.problem, place, other) == seconds(layer.problem, place, taken)
    ]  # fmt: skip
    assert max(other.tile.pixels for other in equal) == 128
    assert taken.tile.pixels == 64


@pytest.fixture
def one_layer_left(monkeypatch):
    """144x28x28-32-1x1's input gradient at one image on an H100: of one stage, warps of 16 filters fill no wave."""
    fewer = set(waves.tensor_core.SHORT_TILES) - {waves.tensor_core.NARROWEST}
    monkeypatch.setattr(waves.tensor_core, "SHORT_TILES", tuple(fewer))
    waves.tensor_core.cut_for.cache_clear()
    yield
    waves.tensor_core.cut_for.cache_clear()


@pytest.mark.usefixtures("one_layer_left")
def test_a_row_says_why_it_is_not_full():
    found = waves.rows(H100, 1, "NCHW", ["mobilenet_v2"], "tensor_core", "input_grad")
    text = StringIO()
    Console(file=text, width=250).print(waves.table(found, H100, 1, "NCHW"))
    assert text.getvalue().count("one stage: nothing to split") == sum(not row.passes for row in found) == 1


def test_a_last_wave_is_split_and_the_waves_before_it_are_whole():
    (row,) = [row for row in waves.rows(A100, 32, "NCHW", ["vgg16"]) if row.layer == "128x56x56-256-3x3"]
    assert row.whole > 0
    assert row.whole % 108 == 0
    assert row.splits > 1
    assert 0 < row.split_tiles < row.whole


def test_a_row_tells_an_idle_gpu(monkeypatch):
    """One tile for every layer leaves most of them idle."""
    monkeypatch.setattr(waves.implicit_gemm, "TILES", ((16, 16),))
    monkeypatch.setattr(waves.implicit_gemm, "ALL_TILES", ((16, 16),))
    monkeypatch.setattr(cut, "MOST_SPLITS", 1)
    waves.implicit_gemm.cut_for.cache_clear()
    try:
        found = waves.rows(A100, 1, "NCHW", ["resnet50"])
    finally:
        waves.implicit_gemm.cut_for.cache_clear()
    idle = [row for row in found if not row.passes]
    assert len(idle) > 10
    assert all(row.blocks < 0.8 * 216 for row in idle)


def test_a_card_twice_as_large_is_never_busier():
    small = waves.rows(A100, 1, "NCHW", ["vgg16"])
    large = waves.rows(replace(A100, sm_count=100_000), 1, "NCHW", ["vgg16"])
    assert max(row.busy for row in large) < min(row.busy for row in small)


def test_the_table_calls_its_times_predicted_and_names_what_limits_each_layer():
    found = waves.rows(A100, 32, "NCHW", ["vgg16"])
    text = StringIO()
    Console(file=text, width=200).print(waves.table(found, A100, 32, "NCHW"))
    assert "times are predicted, never measured" in text.getvalue()
    assert "measured" not in text.getvalue().replace("never measured", "")
    for row in found:
        assert row.layer in text.getvalue()
        assert row.limited_by in text.getvalue()
    assert {row.limited_by for row in found} == {"multiply-adds"}


def test_the_command_prints_the_table():
    done = CliRunner().invoke(main, ["waves", "--device", "sm_90"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "H100 SXM, 132 SMs, 1 image, NCHW" in done.output


@pytest.mark.usefixtures("one_layer_left")
def test_the_command_names_a_layer_that_is_left():
    command = ["waves", "--device", "sm_90", "--product", "tensor_core", "--batch", "1", "--pass", "input_grad"]
    done = CliRunner().invoke(main, command, env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "1 layer fills less than 80%; the first: 144x28x28-32-1x1" in done.output
