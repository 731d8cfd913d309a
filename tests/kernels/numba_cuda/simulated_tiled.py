"""numba_cuda.tiled in Numba's simulator; test_in_simulator.py starts it."""

import pytest

from convlib import device
from convlib.kernels.numba_cuda import tiled
from convlib.verification.problems import TINY, Case
from tests.kernels.numba_cuda.held_against_reference import check, check_through_conv2d


@pytest.mark.parametrize("case", TINY, ids=str)
def test_equals_the_reference(case):
    check(tiled, "tiled", case)


def test_runs_through_conv2d():
    check_through_conv2d("tiled", next(case for case in TINY if case.bias and case.residual))


@pytest.mark.parametrize("block", tiled.BLOCKS, ids=str)
def test_covers_outputs_past_a_block_in_every_dimension(block, monkeypatch):
    monkeypatch.setattr(tiled, "BLOCKS", (block,))
    monkeypatch.setattr(tiled, "plan_for", tiled.plan_for.__wrapped__)
    sizes = (1, 1, block.P + 1, 2 * block.Q + 2)
    check(tiled, "tiled", Case("past", sizes, (block.K + 1, 1, 1, 2), {"stride": (1, 2), "padding": ((0, 0), (0, 1))}))


@pytest.mark.parametrize("C", [1, 2, 3, 4, 5])
def test_stages_channels_in_chunks(C, monkeypatch):
    monkeypatch.setattr(tiled, "MOST_CHANNELS", 2)
    monkeypatch.setattr(tiled, "plan_for", tiled.plan_for.__wrapped__)
    check(tiled, "tiled", Case("chunks", (1, C, 4, 5), (3, C, 3, 3), {"padding": 1}, bias=True))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types_past_a_block(dtype):
    check(tiled, "tiled", Case("types", (1, 9, 9, 9), (9, 9, 2, 2), {"dilation": 2}, bias=True, dtype=dtype))


def test_refuses_a_tile_that_does_not_fit_shared_memory():
    problem = Case("far", (1, 1, 500, 500), (1, 1, 3, 3), {"dilation": 90}).problem()
    (reason,) = tiled.why_not(problem, device.simulator())
    assert "shared memory" in reason
    assert "49,152" in reason
