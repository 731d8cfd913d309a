"""numba_cuda.direct in Numba's simulator; test_in_simulator.py starts it."""

import pytest

from convlib.kernels.numba_cuda import direct
from convlib.verification.problems import TINY, Case
from tests.kernels.numba_cuda.held_against_reference import check, check_through_conv2d

PAST_A_BLOCK = (
    Case("257_outputs", (1, 1, 1, 257), (1, 1, 1, 1)),
    Case("256_outputs", (1, 2, 16, 16), (1, 2, 1, 1)),
    Case("nhwc_258_outputs", (1, 43, 2, 1), (3, 1, 1, 1), {"layout": "NHWC"}),
)


@pytest.mark.parametrize("case", TINY + PAST_A_BLOCK, ids=str)
def test_equals_the_reference(case):
    check(direct, "direct", case)


def test_runs_through_conv2d():
    check_through_conv2d("direct", next(case for case in TINY if case.bias and case.residual))
