"""The matrices of Winograd's minimal filtering, derived from a choice of points in exact arithmetic.

F(m, r) computes m neighbouring outputs of an r-tap filter g over n = m + r - 1 inputs d with n multiplications
instead of r m:

    y = A^T [ (G g) * (B^T d) ]            and for images, both ways:      Y = A^T [ (G g G^T) * (B^T d B) ] A

Where it comes from (Toom and Cook): a product of two polynomials of degrees m - 1 and r - 1 has n coefficients, so it
is known from its values at n points: evaluate both factors there (A with m coefficients, G with r), multiply
value by value, interpolate (B). The last point may be infinity, whose "value" is the leading coefficient. A
correlation is the transpose of such a product, so evaluation and interpolation change places: B^T goes in front, A^T
behind.

    A^T[j, i] = p_i^j          G[i, k] = p_i^k / prod over j != i of (p_i - p_j)
    B^T[i, :] = coefficients of prod over j != i of (z - p_j)        infinity: of prod over all j of (z - p_j)

Points come as 0 and pairs +-p, and infinity where their number is even (of three: 0, 1 and infinity): then half the
coefficients of a pair's rows agree and the others differ in sign only, which halves the work (winograd_transforms.py).
Which pairs decides the rounding error, since large and small powers of p meet in one sum (`amplification`). Measured
error at C = 64 in float32, norm-relative: F(4,3) with 0, +-1, +-2: 1.7e-6; with 0, +-sqrt(1/2), +-sqrt(2): 8.3e-7.

A stride of 2 leaves two phases of inputs and taps, the even and the odd ones, each a convolution of stride 1:

    d0 d1 d2 d3 d4 ...       y_j = sum over k of  g_2k d_2(j+k)  +  sum over k of  g_2k+1 d_2(j+k)+1
    g0 g1 g2                       phase 0: g0 g2 (2 taps)          phase 1: g1 (1 tap)

Both use the points of the longer one, so their products are summed before the one A^T. A phase with a tap less gets a
zero as its first: its value at the point 0 is that zero, so that product is not computed: 5 + 4 instead of 12
multiplications for 4 outputs of 3 taps, and 81 instead of 144 both ways.

The factors of the matrices' rows are free, as long as each product's come to 1. With those of G in A^T, where they cost
nothing, G has plain powers of the points, two thirds of the operations for F(4, 3). And g1 alone, the second tap of a
phase, is p g1 at the point p and g1 at infinity: with that p in B^T it is one number for all points (the lean
matrices). Of 3 taps with stride 2 a filter then has 16 different numbers for the 25 products of F(2 x 2), 36 for the 81
of F(4 x 4).

Images of two pixels between padding need three products instead of four, as x and the taps change places:

    0 d1 d2 0        y_0 = d1 g1 + d2 g2       y_1, y_0 are F(2, 2) of the taps d1, d2 over the inputs g0, g1, g2
                     y_1 = d1 g0 + d2 g1

Sources: Winograd, Arithmetic Complexity of Computations, SIAM 1980; Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016; on the points: Barabasz et al., Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks, ACM TOMS 2020; on strides: Huang et al., DWM: A Decomposable Winograd Method for
Convolution Acceleration, AAAI 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, reduce
from operator import mul
from typing import NamedTuple


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


def rational(*numbers) -> tuple[Root2, ...]:
    return tuple(Root2(Fraction(number)) for number in numbers)


# One number of each pair +-p, by the number of points; 0 is always a point too, and infinity where that is even.
# From a search for the smallest `amplification` over round numbers: F(4, 3) with 1, 2 has 1.6 times that of roots.
PAIRS = {
    1: (),
    2: (),
    3: (),  # 1 and infinity instead: an output at the end of y then needs two products, not three
    4: rational(1),
    5: rational("3/4", "5/2"),
    6: (Root2(Fraction(0), Fraction(1, 2)), Root2(Fraction(0), Fraction(1))),  # sqrt(1/2), sqrt(2)
    7: rational("1/2", "11/10", 3),
    8: rational(1, "1/2", "9/5"),
    9: rational("1/2", "9/10", "3/2", 3),
    10: rational("2/5", "4/5", "5/4", "5/2"),
}
CHANNELS_BY_PHASES = 16  # of fewer, sums over the channels of one phase would be short
LONE = 3  # of so many points one is neither 0 nor infinity nor of a pair


@dataclass(frozen=True)
class Axis:
    """One direction of a tile: m outputs of a filter of `taps` taps, `stride` inputs apart.

    closed: two outputs of three taps whose first and last input are padding, always.
    """

    m: int
    taps: int
    stride: int = 1
    closed: bool = False

    @property
    def phases(self) -> int:
        """Convolutions of stride 1 that it is the sum of."""
        return self.stride

    @property
    def long_phases(self) -> int:
        """Those that have a product at the point 0: as many taps as any."""
        return self.taps - self.stride * (self.most_taps - 1)

    @property
    def most_taps(self) -> int:
        return -(-self.taps // self.stride)

    @property
    def points(self) -> int:
        return CLOSED.points if self.closed else self.m + self.most_taps - 1

    @property
    def products(self) -> int:
        """Of all phases."""
        return self.phases * (self.points - 1) + self.long_phases

    @property
    def repeats(self) -> bool:
        """Whether its short phases have one tap each: a filter has one number for all of their points."""
        return self.long_phases < self.phases and self.most_taps == 2

    @property
    def numbers(self) -> int:
        """Of a filter, that differ."""
        return self.products - (self.phases - self.long_phases) * (self.points - 2) * self.repeats

    @property
    def step(self) -> int:
        """Inputs from tile to tile."""
        return self.m * self.stride

    @property
    def span(self) -> int:
        """Inputs that a tile reads."""
        return self.step + self.taps - self.stride


CLOSED = Axis(2, 2)  # of which a closed one has the points


class Tile(NamedTuple):
    """A tile of outputs: F(rows.m x columns.m, rows.taps x columns.taps).

    by_phases: whether the filters' numbers that are the same at several points are stored once; the products of a
    plane are then summed phase by phase.
    """

    rows: Axis
    columns: Axis
    by_phases: bool = False

    @property
    def planes(self) -> int:
        """Matrix products, each over the channels of all phases that have its two points."""
        return self.rows.points * self.columns.points

    @property
    def products(self) -> int:
        """Multiplications per channel and filter."""
        return self.rows.products * self.columns.products

    @property
    def phases(self) -> int:
        return self.rows.phases * self.columns.phases

    @property
    def numbers(self) -> int:
        """Of a filter and channel, that are stored."""
        return self.rows.numbers * self.columns.numbers if self.by_phases else self.products


@cache
def tile_of(m, problem) -> Tile:
    """F(m x m) of a problem's window and stride; where a window has one row or column, so has the tile."""
    windows = zip((problem.R, problem.S), problem.stride, both_closed(m, problem), strict=True)
    axes = [Axis(m if taps > 1 else 1, taps, stride, closed) for taps, stride, closed in windows]
    by_phases = problem.Cg >= CHANNELS_BY_PHASES and all(axis.repeats or axis.phases == 1 for axis in axes)
    return Tile(*axes, by_phases and any(axis.repeats for axis in axes))


def both_closed(m, problem):
    """Whether, down and across, a dilated problem's images have two pixels and no more than padding beside them."""
    sides = zip(
        (problem.R, problem.S), (problem.H, problem.W), (problem.P, problem.Q), problem.dilation, problem.padding,
        strict=True,
    )  # fmt: skip
    for taps, size, outputs, apart, (before, _) in sides:
        two = m == 2 and taps == 3 and apart < outputs <= 2 * apart
        yield two and apart > 1 and before >= apart and 3 * apart - before >= size


@cache
def finite_points(axis) -> tuple[Root2, ...]:
    """0, p, -p, q, -q, ..."""
    lone = (ONE,) if axis.points == LONE else ()
    return (ZERO, *(signed for p in PAIRS[axis.points] for signed in (p, -p)), *lone)


def has_infinity(axis) -> bool:
    return axis.points % 2 == 0 or axis.points == LONE


@cache
def output_matrix(axis):
    """A^T: m rows, one column for every point."""
    if axis.closed:
        return output_matrix(CLOSED)[::-1]
    last = axis.m - 1
    infinity = [(ONE if j == last else ZERO,) if has_infinity(axis) else () for j in range(axis.m)]
    return tuple((*(power(p, j) for p in finite_points(axis)), *infinity[j]) for j in range(axis.m))


@cache
def filter_matrix(axis, phase=0):
    """G: a row for every point, a column for every tap of the phase."""
    if axis.closed:
        return input_matrix(CLOSED)
    finite, taps = finite_points(axis), axis.most_taps
    rows = [tuple(power(p, k) / scale for k in range(taps)) for p, scale in zip(finite, scales(axis))]
    if has_infinity(axis):
        rows.append((ZERO,) * (taps - 1) + (ONE,))
    return shortened(rows, axis, phase)


@cache
def input_matrix(axis, phase=0):
    """B^T: a row for every point, a column for every input of the phase."""
    if axis.closed:
        return tuple((ZERO, *row, ZERO) for row in filter_matrix(CLOSED))
    finite = finite_points(axis)
    beyond = (ZERO,) if has_infinity(axis) else ()
    rows = [(*with_roots(other for other in finite if other != p), *beyond) for p in finite]
    if has_infinity(axis):
        rows.append(with_roots(finite))
    return shortened(rows, axis, phase)


@cache
def lean_output_matrix(axis):
    """A^T of the transforms with fewer operations: a column times what its point's products lack."""
    lacking = [ONE if scale == -ONE else ONE / scale for scale in scales(axis)]
    return tuple(
        tuple(number * factor for number, factor in zip(row, lacking, strict=True)) for row in output_matrix(axis)
    )


@cache
def lean_filter_matrix(axis, phase=0):
    """G of them: plain powers of the points; of a lone tap, where those would be all that there is, ones."""
    rows = zip(filter_matrix(axis, phase), scales(axis), lone_factors(axis, phase), strict=True)
    return tuple(tuple(number * scale / factor for number in row) for row, scale, factor in rows)


@cache
def lean_input_matrix(axis, phase=0):
    """B^T of them: a row times what its product lacks of a lone tap's power; and of signs."""
    rows = zip(input_matrix(axis, phase), scales(axis), lone_factors(axis, phase), strict=True)
    return tuple(
        tuple(number * factor * (scale if scale == -ONE else ONE) for number in row) for row, scale, factor in rows
    )


@cache
def scales(axis):
    """What G divides the powers of each point by."""
    if axis.closed:
        return (ONE,) * axis.points
    finite = finite_points(axis)
    products = (reduce(mul, (p - other for other in finite if other != p), ONE) for p in finite)
    return (*products, *(ONE for _ in range(has_infinity(axis))))


def lone_factors(axis, phase):
    """The powers of a phase whose only tap is the second of the others': it is the same number at every point then."""
    if not axis.repeats or phase < axis.long_phases:
        return (ONE,) * axis.points
    return (ONE, *finite_points(axis)[1:], *(ONE for _ in range(has_infinity(axis))))


def shortened(rows, axis, phase):
    """The matrix of a phase: where it has a tap less than others, without the first column and a zero row for 0."""
    if phase < axis.long_phases:
        return tuple(rows)
    return ((ZERO,) * (len(rows[0]) - 1), *(row[1:] for row in rows[1:]))


@cache
def amplification(axis) -> float:
    """What the products' rounding errors, all of one relative size, become in the outputs: an output's mean square
    error, for inputs and taps that are independent and of one size, over its own mean square.
    """
    products = [0.0] * axis.points
    for phase in range(axis.phases):
        for i, (g, b) in enumerate(zip(filter_matrix(axis, phase), input_matrix(axis, phase), strict=True)):
            products[i] += square(g) * square(b)
    weights = [square(column) for column in zip(*output_matrix(axis), strict=True)]
    return sum(w * p for w, p in zip(weights, products, strict=True)) / axis.m / axis.taps


def square(row) -> float:
    return sum(float(number) ** 2 for number in row)


def summed_at_a_time(tile) -> int:
    """Products that one sum from zero has at most: shorter sums err less, which larger tiles need."""
    return 64 if amplification(tile.rows) * amplification(tile.columns) > 150 else 128


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
