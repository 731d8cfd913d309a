from fractions import Fraction

import numpy as np
import pytest

from convlib.kernels.numba_cpu import target
from convlib.kernels.numba_cpu.winograd_matrices import (
    ONE,
    ZERO,
    Axis,
    Root2,
    Tile,
    amplification,
    filter_matrix,
    input_matrix,
    lean_filter_matrix,
    lean_input_matrix,
    lean_output_matrix,
    output_matrix,
)
from convlib.kernels.numba_cpu.winograd_transforms import columns_together, without_factor

WINDOWS = [(taps, 1) for taps in range(1, 8)] + [(taps, 2) for taps in range(3, 8)] + [(5, 3), (11, 4)]
PLAIN = output_matrix, filter_matrix, input_matrix
LEAN = lean_output_matrix, lean_filter_matrix, lean_input_matrix
AXES = [axis for m in (2, 4, 6) for taps, stride in WINDOWS if (axis := Axis(m, taps, stride)).points <= 10]


def total(numbers):
    result = ZERO
    for number in numbers:
        result = result + number
    return result


@pytest.mark.parametrize("matrices", [PLAIN, LEAN], ids=["plain", "lean"])
@pytest.mark.parametrize("axis", AXES, ids="{0.m} of {0.taps} by {0.stride}".format)
def test_the_three_matrices_correlate_exactly(axis, matrices):
    """A^T [(G g) * (B^T d)] is bilinear, so it is the correlation if it is for every pair of unit vectors."""
    outputs, filters, pixels = matrices
    A = outputs(axis)
    for phase in range(axis.phases):
        G, B = filters(axis, phase), pixels(axis, phase)
        taps, inputs = range(phase, axis.taps, axis.stride), range(phase, axis.span, axis.stride)
        assert {len(row) for row in G} == {len(taps)}
        assert {len(row) for row in B} == {len(inputs)}
        for t, tap in enumerate(taps):
            for i, d in enumerate(inputs):
                for j in range(axis.m):
                    product = total(A[j][n] * G[n][t] * B[n][i] for n in range(axis.points))
                    assert product == (ONE if d == axis.stride * j + tap else ZERO), (tap, d, j)


def test_two_pixels_between_padding_need_three_products():
    axis = Axis(2, 3, closed=True)
    A, G, B = output_matrix(axis), filter_matrix(axis), input_matrix(axis)
    assert axis.points == axis.products == len(G) == len(B) == 3
    for tap in range(3):
        for d in (1, 2):
            for j in range(2):
                product = total(A[j][n] * G[n][tap] * B[n][d] for n in range(3))
                assert product == (ONE if d == j + tap else ZERO), (tap, d, j)


@pytest.mark.parametrize("axis", AXES, ids="{0.m} of {0.taps} by {0.stride}".format)
def test_products_of_zeros_are_not_counted(axis):
    rows = [row for phase in range(axis.phases) for row in filter_matrix(axis, phase)]
    assert axis.products == sum(any(row) for row in rows)


@pytest.mark.parametrize("axis", [a for a in AXES if a.most_taps > 1], ids="{0.m} of {0.taps} by {0.stride}".format)
def test_numbers_are_stored_that_differ(axis):
    assert axis.numbers == sum(len(set(filter(any, lean_filter_matrix(axis, f)))) for f in range(axis.phases))


def test_filters_of_a_stride_have_as_many_numbers_as_squares():
    assert Tile(Axis(2, 3, 2), Axis(2, 3, 2), by_phases=True).numbers == 16
    assert Tile(Axis(4, 3, 2), Axis(4, 3, 2), by_phases=True).numbers == 36


def test_a_stride_saves_less_than_none():
    assert Tile(Axis(4, 3, 2), Axis(4, 3, 2)).products == 81
    assert Tile(Axis(4, 7, 2), Axis(4, 7, 2)).products == 169
    assert Tile(Axis(4, 5), Axis(4, 5)).products == 64
    assert Tile(Axis(1, 1), Axis(4, 7)).products == 10


def test_f2_is_the_one_of_lavin_and_gray_but_for_signs_and_scales():
    A = np.array([[float(a) for a in row] for row in output_matrix(Axis(2, 3))])
    np.testing.assert_array_equal(A, [[1, 1, 1, 0], [0, 1, -1, 1]])


@pytest.mark.parametrize("axis", [Axis(2, 3), Axis(4, 3), Axis(4, 3, 2), Axis(4, 7, 2)], ids=str)
def test_amplification_is_what_random_errors_of_the_products_become(axis):
    random, m, samples = np.random.default_rng(0), axis.m, 20_000
    errors = np.zeros((samples, m))
    for phase in range(axis.phases):
        G, B = (np.array([[float(c) for c in row] for row in f(axis, phase)]) for f in (filter_matrix, input_matrix))
        g, d = random.standard_normal((samples, G.shape[1])), random.standard_normal((samples, B.shape[1]))
        products = (g @ G.T) * (d @ B.T) * random.choice([-1, 1], (samples, axis.points))
        errors += products @ np.array([[float(a) for a in row] for row in output_matrix(axis)]).T
    assert np.mean(errors**2) / axis.taps == pytest.approx(amplification(axis), rel=0.05)


def test_numbers_with_a_root_of_two_divide_exactly():
    a, b = Root2(Fraction(3, 7), Fraction(-2, 5)), Root2(Fraction(1, 3), Fraction(5, 2))
    assert a / b * b == a
    assert float(Root2(Fraction(0), Fraction(1, 2))) == pytest.approx(0.5**0.5, rel=1e-15)


def test_rows_of_inputs_share_a_factor_but_for_the_points_1_and_minus_1():
    matrix = lean_input_matrix(Axis(6, 3))
    quotients = [without_factor(row) for row in matrix]
    assert [i for i, quotient in enumerate(quotients) if quotient is None] == [1, 2]
    for row, quotient in zip(matrix, quotients, strict=True):
        if quotient is not None:
            higher, lower = (ZERO, ZERO, *quotient), (*quotient, ZERO, ZERO)
            assert row == tuple(a - b for a, b in zip(higher, lower, strict=True))


@pytest.mark.parametrize(("m", "runs"), [(2, [4]), (4, [3, 3]), (5, [3, 4]), (6, [3, 4, 1])])
@pytest.mark.parametrize("registers", [16, 32])
def test_runs_of_columns_hold_whole_pairs(monkeypatch, registers, m, runs):
    monkeypatch.setattr(target, "register_count", lambda: registers)
    axis = Axis(m, 3)
    found = columns_together(Tile(axis, axis))
    assert [j for run in found for j in run] == list(range(axis.points))
    assert [len(run) for run in found] == (runs if registers == 32 else [axis.points])
