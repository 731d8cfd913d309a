"""Every layer keeps a GPU's multiprocessors busy, or says so; and the table of what limits it."""

from dataclasses import replace
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import waves
from benchmarks.__main__ import main
from convlib import device
from convlib.kernels.gpu_cost import LAUNCH

A100, H100 = device.named("sm_80"), device.named("sm_90")


# Reductions of two or three stages, which leave nothing to split.
SHORT = {"16x112x112-96-1x1", "24x56x56-144-1x1"}

# What full waves would cost more than a launch and a twentieth: by SMs and images.
DEARER = {
    (108, 1): {"3x224x224-64-3x3", "64x112x112-128-3x3", "3x224x224-32-3x3/2"},
    (108, 32): {"64x56x56-64-1x1", "96x56x56-24-1x1", "144x56x56-24-1x1", "96x14x14-576-1x1", "160x7x7-960-1x1"},
    (132, 1): set(),
    (132, 32): {"64x14x14-384-1x1", "160x7x7-960-1x1", "320x7x7-1280-1x1"},
}
# Whole sectors of channels and few halo rows leave depthwise no other tile here, with channels last.
HALO = {(108, 1): {"960x7x7-960-3x3-g960"}, (132, 1): {"384x14x14-384-3x3-g384"}}


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("images", [1, 32])
def test_every_last_wave_of_a_product_is_full_or_split_where_that_costs_no_more(images, layout, place):
    """And every depthwise layer busy for four fifths; but for those named above."""
    found = waves.rows(place, images, layout)
    assert len(found) > 60
    key = place.sm_count, images
    left = {row.layer for row in found if not row.passes}
    assert left <= SHORT | DEARER[key] | (HALO.get(key, set()) if layout == "NHWC" else set())
    for row in found:
        assert row.passes or row.busy >= 0.9 or row.kernel == "depthwise", row
        assert row.passes or row.dearer is None or row.dearer > 1.05, row


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("images", [1, 32])
def test_tensor_cores_fill_their_last_wave_or_are_split_where_that_costs_no_more(images, place):
    """Their layers are so short that a launch is a third of many: those keep their few blocks."""
    found = waves.rows(place, images, "NHWC", product="tensor_core")
    assert len(found) == 52
    for row in (row for row in found if not row.passes):
        allowed = 1.05 + LAUNCH / row.predicted_seconds
        assert row.dearer is None or row.dearer > allowed, row
        assert row.busy >= 0.7 or row.limited_by == "launches" or row.predicted_seconds < 20e-6, row


def test_a_last_wave_is_split_and_the_waves_before_it_are_whole():
    (row,) = [row for row in waves.rows(A100, 32, "NCHW", ["vgg16"]) if row.layer == "128x56x56-256-3x3"]
    assert row.whole > 0
    assert row.whole % 108 == 0
    assert row.splits > 1
    assert 0 < row.split_tiles < row.whole


def test_a_row_tells_an_idle_gpu(monkeypatch):
    """One tile for every layer leaves most of them idle."""
    monkeypatch.setattr(waves.implicit_gemm, "TILES", ((16, 16),))
    monkeypatch.setattr(waves.implicit_gemm, "MOST_SPLITS", 1)
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
    assert done.exit_code == 1, "two layers are left"
    assert "2 layers fill less than 80%; the first: 16x112x112-96-1x1" in done.output
    assert "H100 SXM, 132 SMs, 1 image, NCHW" in done.output
