"""The matrices of Winograd's minimal filtering, derived from a choice of points in exact arithmetic.

F(m, 3) computes m neighbouring outputs of a 3-tap filter g over m + 2 inputs d with m + 2 multiplications instead of
3 m:

    y = A^T [ (G g) * (B^T d) ]            and for images, both ways:      Y = A^T [ (G g G^T) * (B^T d B) ] A

Where it comes from (Toom and Cook): a product of two polynomials of degrees m - 1 and 2 has m + 2 coefficients, so it
is known from its values at m + 2 points: evaluate both factors there (A with m coefficients, G with 3), multiply
value by value, interpolate (B). The last point is infinity, whose "value" is the leading coefficient. A correlation
is the transpose of such a product, so evaluation and interpolation change places: B^T goes in front, A^T behind.

    A^T[j, i] = p_i^j          G[i, k] = p_i^k / prod over j != i of (p_i - p_j)
    B^T[i, :] = coefficients of prod over j != i of (z - p_j)        infinity: of prod over all j of (z - p_j)

Points come as 0 and pairs +-p: then half the coefficients of a pair's rows agree and the others differ in sign only,
which halves the work (winograd_transforms.py). Which pairs decides the rounding error, since large and small powers
of p meet in one sum. Measured error at C = 64 in float32, norm-relative: F(4,3) with 0, +-1, +-2: 1.7e-6; with 0,
+-sqrt(1/2), +-sqrt(2): 8.3e-7.

Sources: Winograd, Arithmetic Complexity of Computations, SIAM 1980; Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016; on the points: Barabasz et al., Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks, ACM TOMS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

TAPS = 3


@dataclass(frozen=True)
class Root2:
    """The number a + b sqrt(2), exactly."""

    a: Fraction
    b: Fraction = Fraction(0)

    def __add__(self, other):
        return Root2(self.a + other.a, self.b + other.b)

    def __neg__(self):
        return Root2(-self.a, -self.b)

    def __sub__(self, other):
        return self + -other

    def __mul__(self, other):
        return Root2(self.a * other.a + 2 * self.b * other.b, self.a * other.b + self.b * other.a)

    def __truediv__(self, other):
        norm = other.a * other.a - 2 * other.b * other.b
        return self * Root2(other.a / norm, -other.b / norm)

    def __bool__(self):
        return bool(self.a or self.b)

    def __float__(self):
        return float(self.a) + float(self.b) * 2**0.5


ZERO, ONE, HALF = Root2(Fraction(0)), Root2(Fraction(1)), Root2(Fraction(1, 2))

# One number of each pair +-p; 0 and infinity are always points too.
PAIRS = {
    2: (ONE,),
    4: (Root2(Fraction(0), Fraction(1, 2)), Root2(Fraction(0), Fraction(1))),  # sqrt(1/2), sqrt(2)
    6: (ONE, Root2(Fraction(1, 2)), Root2(Fraction(9, 5))),  # from a search over such pairs: 20 % under 1, 1/2, 2
}


@cache
def points(m) -> tuple[Root2, ...]:
    """The finite points of F(m, 3): 0, p, -p, q, -q, ..."""
    return (ZERO, *(signed for p in PAIRS[m] for signed in (p, -p)))


@cache
def output_matrix(m):
    """A^T: m rows, one column for every finite point and one for infinity."""
    return tuple((*(power(p, j) for p in points(m)), ONE if j == m - 1 else ZERO) for j in range(m))


@cache
def filter_matrix(m):
    """G: m + 2 rows, 3 columns."""
    finite = points(m)
    rows = []
    for p in finite:
        scale = ONE
        for other in finite:
            scale = scale * (p - other) if other != p else scale
        rows.append(tuple(power(p, k) / scale for k in range(TAPS)))
    return (*rows, (ZERO,) * (TAPS - 1) + (ONE,))


@cache
def input_matrix(m):
    """B^T: m + 2 rows, m + 2 columns."""
    finite = points(m)
    rows = [(*with_roots(other for other in finite if other != p), ZERO) for p in finite]
    return (*rows, with_roots(finite))


def power(number, exponent):
    result = ONE
    for _ in range(exponent):
        result = result * number
    return result


def with_roots(roots):
    """Coefficients, lowest first, of the polynomial with leading coefficient 1 and these roots."""
    coefficients = [ONE]
    for root in roots:
        shifted, scaled = [ZERO, *coefficients], [-root * c for c in coefficients] + [ZERO]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)
