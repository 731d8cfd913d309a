"""Windows whose outer taps meet padding only: the same outputs from what is left of them."""

from itertools import product

import numpy as np
import pytest

import convlib
from convlib import padding_taps
from convlib.problem import make_problem
from tests.convlib.calls import BIAS, W, X, defined


@pytest.mark.parametrize(
    ("dilation", "padding", "stride", "left"),
    [
        (9, 9, 1, (1, 1)),
        (8, 8, 1, (3, 1)),  # 9 rows, the first of which the last window meets
        (9, ((9, 18), (0, 18)), 1, (2, 1)),
        ((3, 9), ((0, 6), (10, 9)), (2, 4), (3, 1)),
        ((9, 1), ((20, 2), (1, 1)), 1, (2, 3)),
        (40, 40, 7, (1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("flip_kernel", [False, True])
def test_taps_that_meet_only_padding_are_left_out(dilation, padding, stride, left, flip_kernel):
    parameters = {"dilation": dilation, "padding": padding, "stride": stride}
    turned = W[:, :, ::-1, ::-1] if flip_kernel else W
    wanted = defined(X, turned, **parameters) + BIAS[:, None, None]
    parameters["flip_kernel"] = flip_kernel
    np.testing.assert_array_equal(convlib.conv2d(X, W, BIAS, **parameters), wanted)
    np.testing.assert_array_equal(convlib.plan(X.shape, W, BIAS, **parameters)(X), wanted)
    problem = convlib.explain(X, W, BIAS, **parameters).problem
    assert left == (problem.R, problem.S)


def test_every_tap_at_an_end_that_meets_x_is_kept_and_no_other():
    sizes = product(range(1, 5), range(1, 5), range(1, 4), range(5), range(5), range(1, 5))
    for size, taps, stride, before, after, dilation in sizes:
        outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
        if size + before + after <= dilation * (taps - 1):
            continue
        places = [[tap * dilation - before + output * stride for output in range(outputs)] for tap in range(taps)]
        meeting = [any(0 <= place < size for place in row) for row in places]
        first, end = padding_taps.taps_that_meet(size, taps, stride, (before, after), dilation, outputs)
        assert 0 <= first < end <= taps
        assert not any(meeting[:first] + meeting[end:])
        assert first == taps - 1 or meeting[first] or (first + 1) * dilation > before
        assert end == first + 1 or meeting[end - 1] or (taps - end + 1) * dilation > after


def test_a_problem_whose_taps_all_meet_x_stays_as_it_is():
    problem = make_problem((1, 2, 5, 5), (3, 2, 3, 3), "float32", padding=2, dilation=2)
    assert padding_taps.without_padding_taps(problem) == (problem, None)


def test_a_forced_algorithm_gets_the_window_that_was_asked_for():
    parameters = {"padding": 9, "dilation": 9, "algorithm": "im2col"}
    assert convlib.explain(X, W, **parameters).problem.R == 3
    wanted = defined(X, W, padding=9, dilation=9)
    np.testing.assert_array_equal(convlib.conv2d(X, W, **parameters), wanted)
    np.testing.assert_array_equal(convlib.plan(X.shape, W, **parameters)(X), wanted)
