from fractions import Fraction

import numpy as np
import pytest

from convlib.kernels.numba_cpu.winograd_matrices import (
    ONE,
    TAPS,
    ZERO,
    Root2,
    filter_matrix,
    input_matrix,
    output_matrix,
)

TILES = (2, 4, 6)


def total(numbers):
    result = ZERO
    for number in numbers:
        result = result + number
    return result


@pytest.mark.parametrize("m", TILES)
def test_the_three_matrices_correlate_exactly(m):
    """A^T [(G g) * (B^T d)] is bilinear, so it is the correlation if it is for every pair of unit vectors."""
    A, G, B = output_matrix(m), filter_matrix(m), input_matrix(m)
    for tap in range(TAPS):
        for d in range(m + 2):
            for j in range(m):
                product = total(A[j][i] * G[i][tap] * B[i][d] for i in range(m + 2))
                assert product == (ONE if d == j + tap else ZERO), (tap, d, j)


def test_f2_is_the_one_of_lavin_and_gray_but_for_signs_and_scales():
    A = np.array([[float(a) for a in row] for row in output_matrix(2)])
    np.testing.assert_array_equal(A, [[1, 1, 1, 0], [0, 1, -1, 1]])


def test_numbers_with_a_root_of_two_divide_exactly():
    a, b = Root2(Fraction(3, 7), Fraction(-2, 5)), Root2(Fraction(1, 3), Fraction(5, 2))
    assert a / b * b == a
    assert float(Root2(Fraction(0), Fraction(1, 2))) == pytest.approx(0.5**0.5, rel=1e-15)
