"""How far a result may lie from the exact one: every tolerance and every error contract comes from here.

Two bounds, both derived from the accumulating type's unit roundoff u, the reduction length n and the algorithm:

- `elementwise`, for tests: |y - exact| <= factor * gamma(n) * (|x| conv |w| + |bias| + |residual|) + the store's
  rounding, with gamma(n) = n u / (1 - n u): true for sums in any order (Higham, Accuracy and Stability of
  Numerical Algorithms, 2nd edition, section 3.1);
- `norm_relative`, the contract: ||y - exact|| / ||exact|| for standard normal data, where rounding errors add up like
  a random walk: factor * u * sqrt(n) (same book, section 2.8). `max_error` is compared with all of it but the rounding
  of a 16-bit result, which every algorithm has.

float16 and bfloat16 are summed in float32, u = 2^-24, as they are given, and rounded once, when the result is stored:
by at most 2^-11 and 2^-8 of it, which makes norm-relative errors of 2.1e-4 and 1.7e-3. So the algorithms hardly differ
there; `max_error` holds them by the sums that they round.

Neither bound speaks of NaN and infinities. Plain sums keep them to the outputs that read them. One thing is left to
each kernel: a weight that is infinite or NaN over padding is either multiplied by that zero, which gives NaN, as in
reference.py, or left out; the same kernel may do one above the image and the other beside it. Held to by
tests/convlib/test_not_finite.py.

GROWTH says how much an algorithm multiplies these over plain summation.
"""

import numpy as np

from .kernels.numba_cpu.winograd_matrices import Axis, Tile, amplification, summed_at_a_time, tile_of
from .kernels.numba_cpu.winograd_weight_grad_chains import TILE, chains_of, longest_chain

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

# Plain sums of products, in whatever order, are 1. Others say where their number comes from.
GROWTH = {
    "direct": 1.0,
    "depthwise": 1.0,
    "tiled": 1.0,
    "im2col": 1.0,
    "implicit_gemm": 1.0,
    "tensor_core": 1.0,
    "blocked": 1.0,
    "blocked_by_filters": 1.0,
    "grouped": 1.0,
    "bfloat16_dot": 1.0,
    "input_grad": 1.0,
    "weight_grad": 1.0,
    "weight_grad_direct": 1.0,
    "tensor_core_weight_grad": 1.0,
    "depthwise_input_grad": 1.0,
    "depthwise_weight_grad": 1.0,
    # Element by element, against the largest magnitude in the image, with room; test_every_kernel.py holds them to it.
    "winograd_f2": 2.0,
    "winograd_fused": 2.0,
    "winograd_f3": 4.0,
    "winograd_f4": 8.0,
    "winograd_columns": 4.0,
    "winograd_dilated": 8.0,
    "winograd_batched": 8.0,
    "winograd_weight_grad": 8.0,
    "winograd_f5": 20.0,
    "winograd_f6": 50.0,
    "fft": 8.0,
    "strassen": 4.0,
    "strassen_by_filters": 4.0,
    "strassen_twice": 16.0,
}

# Winograd's: the side of its tiles, and the norm-relative error over u, sqrt(amplification * (a + b * (products summed
# at a time + number of such sums))), a for the transforms' rounding, b for the sums'. The amplification follows from
# the points (winograd_matrices.py); a and b, the same for all, are fitted to standard normal data at C = 1 .. 4096 on
# 24 x 24 maps, plus a fifth; held to by test_winograd.py and, for a GPU's, which sum all channels at a time, by
# test_winograd_fused.py (F(2, 3)) and _batched.py (F(4, 3)). The weight gradient sums tiles, not channels,
# in chains of its own: held to by test_winograd_weight_grad.py.
WINOGRAD_TILES = {
    "winograd_f2": 2, "winograd_fused": 2, "winograd_f3": 3, "winograd_f4": 4, "winograd_dilated": 4,
    "winograd_batched": 4, "winograd_columns": 4, "winograd_f5": 5, "winograd_f6": 6,
}  # fmt: skip
WINOGRAD_NOISE = (2.15, 0.1395)
SUMMED_AT_ONCE = ("winograd_fused", "winograd_batched")
BY_WINOGRAD = (*WINOGRAD_TILES, "winograd_weight_grad")

# The Fourier transform's, likewise: b for each channel, whose spectra are summed. Held to by test_fft.py.
FFT_NOISE = (26.0, 0.15)

# One level of Strassen, in the form of Winograd, likewise: a for the sums of x, w and the seven products, b for the
# products' own. Products of (1, 1, 9, 4, 4, 4, 4) times a plain one's variance make sums of (2, 18, 18, 18), on average
# 14 where a plain sum of both halves has 4, in which errors grow with the number's square: b is 3.5 times a plain
# sum's 0.1. Held to by test_strassen.py and test_strassen_by_filters.py. Of two levels b is 3.5 times that again: see
# test_strassen_twice.py.
STRASSEN_NOISE = (10.0, 0.42)
STRASSEN_TWICE_NOISE = (60.0, 1.47)
BY_STRASSEN = ("strassen", "strassen_by_filters", "strassen_twice")

# On tensor cores, whose sums are plain ones, but for what tensor cores do: they add several exact products to a sum as
# if all were aligned to the largest, and cut off what lies below its last bit (Fasi et al., Numerical behavior of
# NVIDIA tensor cores, 2021): at most 2 u of it for each number added, and for each result, of which there is one for
# four products or more. TF32 rounds x and w to 11 bits beforehand. In three products each of x and w keeps all but
# TF32^2 of itself, and the product of what remains of both, TF32^2, is left out; 24 numbers at a time, of 8 products,
# are summed there, the rest in float32. Held to by test_accuracy.py, on a model, and test_tensor_core_emulated.py.
TF32 = 2.0**-11
CUT_OFF = 2 * (1 + 1 / 4)
SUMMED_FROM_ZERO = 24
ON_TENSOR_CORES = ("tensor_core", "tensor_core_weight_grad")

# The dot products of AVX-512 BF16, whose sums are plain ones too: both products are exact and added one after the
# other, each with one rounding to nearest even. But they know no numbers below the smallest normal one: a sum that
# falls below it is zero, and so is such an x or w before all else. Held to by test_bfloat16_dot.py.
SMALLEST_NORMAL = 2.0**-126

DEFAULT_MAX_ERROR = 5e-6


def norm_relative(problem, algorithm: str) -> float:
    """The norm-relative error that `algorithm` keeps to on this problem (standard normal data, against float64)."""
    return of_sums(problem, algorithm) + of_store(problem)


def of_sums(problem, algorithm: str) -> float:
    """Its part that `max_error` bounds: of the sums as they are kept, before a 16-bit result is rounded."""
    u = UNIT_ROUNDOFF[problem.accumulate.name]
    if algorithm in BY_WINOGRAD:
        return u * np.sqrt(winograd_noise(problem, algorithm))
    if algorithm == "fft":
        transforms, sums = FFT_NOISE
        return u * np.sqrt(transforms + sums * problem.Cg)
    if algorithm in BY_STRASSEN:
        products, sums = STRASSEN_TWICE_NOISE if algorithm == "strassen_twice" else STRASSEN_NOISE
        return u * np.sqrt(products + sums * problem.reduction)
    rounded = TF32 if algorithm in ON_TENSOR_CORES and problem.precision == "tf32" else 0.0
    return GROWTH[algorithm] * u * np.sqrt(problem.reduction + 2) + rounded


def winograd_noise(problem, algorithm) -> float:
    """The mean square of the error over u."""
    transforms, sums = WINOGRAD_NOISE
    if algorithm == "winograd_weight_grad":
        tile, summed = TILE, longest_chain(problem) + chains_of(problem)
    elif algorithm == "winograd_columns":
        tile = Tile(Axis(WINOGRAD_TILES[algorithm], problem.R), Axis(1, 1))
        summed = problem.Cg * problem.S + 1
    else:
        tile = tile_of(WINOGRAD_TILES[algorithm], problem)
        products = problem.Cg * tile.phases
        at_a_time = np.inf if algorithm in SUMMED_AT_ONCE else summed_at_a_time(tile)
        summed = min(products, at_a_time) + products / at_a_time
    return amplification(tile.rows) * amplification(tile.columns) * (transforms + sums * summed)


def of_store(problem) -> float:
    """The part that no algorithm can avoid: the rounding to a type shorter than the sums'."""
    return UNIT_ROUNDOFF[problem.dtype.name] if problem.dtype != problem.accumulate else 0.0


def sums_plainly(algorithm: str) -> bool:
    """Whether nothing more accurate can be asked for: such an algorithm is allowed whatever `max_error` says.

    TF32 too, as tensor cores use it only where the caller asked for that.
    """
    return GROWTH[algorithm] == 1.0


def elementwise(problem, algorithm: str, magnitude, exact):
    """The largest |y - exact| allowed, element by element.

    magnitude: |x| conv |w| + |bias| + |residual|; exact: the float64 result. Both (N, K, P, Q), or as the
    gradient is. Of complex numbers |x| is the sum of its parts' magnitudes, and `problem` the real one of the same
    sizes.
    """
    u = UNIT_ROUNDOFF[problem.accumulate.name]
    terms = problem.reduction + 4  # bias, residual, and the activation's own two roundings
    gamma = terms * u / (1 - terms * u)
    if algorithm == "fft" or algorithm in BY_WINOGRAD:  # rounding errors of a tile's largest outputs reach all
        magnitude = magnitude.max(axis=(2, 3), keepdims=True)
    if algorithm in BY_STRASSEN:  # of other filters' too
        magnitude = magnitude.max(axis=(1, 2, 3), keepdims=True)
    store = UNIT_ROUNDOFF[problem.dtype.name] * np.abs(exact) + smallest_step(problem.dtype)
    if algorithm == "bfloat16_dot":  # for each sum, and the result; of x and w that are not so small
        store += (terms + 1) * SMALLEST_NORMAL
    if algorithm in ON_TENSOR_CORES:
        return tensor_core_factor(problem.precision, gamma, u) * magnitude + store
    return GROWTH[algorithm] * gamma * magnitude + store


def tensor_core_factor(precision, gamma, u) -> float:
    """What the magnitude of a result is to be multiplied by; see TF32, above."""
    if precision == "3xtf32":
        return gamma + CUT_OFF * SUMMED_FROM_ZERO * u + 3 * TF32**2
    operands = 2 * TF32 + TF32**2 if precision == "tf32" else 0.0
    return CUT_OFF * gamma * (1 + operands) + operands


def smallest_step(dtype) -> float:
    """The smallest positive number of `dtype`: below it results round to zero."""
    exponents = {"float16": -24, "bfloat16": -133, "float32": -149, "float64": -1074}
    return 2.0 ** exponents[np.dtype(dtype).name]
