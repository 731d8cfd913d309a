"""Every layer keeps a GPU's multiprocessors busy, or says so; and the table of what limits it."""

from dataclasses import replace
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import waves
from benchmarks.__main__ import main
from convlib import device

A100, H100 = device.named("sm_80"), device.named("sm_90")


@pytest.mark.parametrize("place", [A100, H100], ids=lambda place: f"{place.sm_count}_multiprocessors")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("images", [1, 32])
def test_every_layer_is_busy_for_four_fifths_or_split(images, layout, place):
    """Open: depthwise at one image with channels last, where less than whole sectors would fill the rest."""
    found = waves.rows(place, images, layout)
    assert len(found) > 60
    idle = [row for row in found if not row.passes]
    assert [row for row in idle if row.kernel == "implicit_gemm"] == []
    assert [row for row in idle if (images, layout) != (1, "NHWC")] == []


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
    assert all(row.blocks < 108 for row in idle)


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
    assert done.exit_code == 0, done.output
    assert "H100 SXM, 132 SMs, 1 image, NCHW" in done.output
