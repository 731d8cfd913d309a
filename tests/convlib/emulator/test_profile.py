"""Profiles count what a launch on a layer does, and say when only a sample of its blocks was executed."""

from __future__ import annotations

import numpy as np
import pytest

from convlib import UnsupportedError
from convlib.emulator import profile
from convlib.problem import make_problem

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed (extra cuda13)")
pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")


def problem(**keywords):
    return make_problem((1, 8, 40, 40), (16, 8, 3, 3), np.dtype(np.float32), **keywords)


def test_every_multiply_add_is_counted():
    found = profile.profile("cupy_raw.direct", problem(), threads=10**9)
    counts = found.reports[0].counters
    assert counts.blocks_run == counts.blocks
    assert counts.lanes["fma"] == problem().macs
    assert counts.bytes_written == int(np.prod(problem().y_shape)) * 4
    assert found.compulsory_bytes == 4 * (8 * 40 * 40 + 16 * 8 * 9 + 16 * 38 * 38)


def test_a_sample_is_scaled_and_says_so():
    whole = profile.profile("cupy_raw.direct", problem(), threads=10**9).reports[0].counters
    sampled = profile.profile("cupy_raw.direct", problem(), threads=4096)
    counts = sampled.reports[0].counters
    assert counts.blocks_run < counts.blocks
    estimate = counts.warp_instructions * profile.scale(sampled.reports[0])
    assert estimate == pytest.approx(whole.warp_instructions, rel=0.05)
    assert f"scaled from {counts.blocks_run} of {counts.blocks} blocks" in profile.table(sampled)


def test_the_table_names_what_nsight_would():
    text = profile.table(profile.profile("cupy_raw.tiled", problem(), threads=2048))
    for words in ("fma", "active lanes per warp", "wavefronts each", "sectors each", "MB requested"):
        assert words in text


def test_refuses_what_is_no_gpu_kernel():
    with pytest.raises(ValueError, match="kernel: one of"):
        profile.profile("numba_cpu.direct", problem())


def test_refuses_in_the_kernels_own_words(monkeypatch):
    monkeypatch.setattr("convlib.kernels.cupy_raw.tiled.why_not", lambda problem, device: ["has no mind to"])
    with pytest.raises(UnsupportedError, match="has no mind to"):
        profile.profile("cupy_raw.tiled", problem())


def test_samples_take_the_start_the_middle_and_the_end_of_a_grid():
    blocks = profile.sample((100, 10, 1), (32, 8, 1), 256 * 9)
    assert blocks.tolist() == [0, 1, 2, 498, 499, 500, 997, 998, 999]
    assert profile.sample((2, 2, 1), (32, 1, 1), 4096).tolist() == [0, 1, 2, 3]
