"""Depthwise convolution of pixels of few channels, channels last: an RGB image is one plane with rows of W * C numbers.

    C = 3, R = S = 3:   row h of x          r g b r g b r g b r g b r g b r g b ...
                        tap s = 0 reads     [r g b r g b r g]            a vector of neighbours, whatever they are,
                        tap s = 1 reads           [r g b r g b r g]      times
                        the tap's weights   [a b c a b c a b]            the weights of C filters in turn

    y[p, f] = sum over r, s of x[p + r, f + s * C] * w[f mod C, r, s]        f = q * C + c

So it is the problem of one channel, C times as wide, its taps C times as far apart, but for the weights: those are
vectors. `as_planes` makes that problem, `plane_of` the arrays; depthwise.py does the rest. Where lanes are the channels
of one pixel, as in layers of many channels, 3 of 16 lanes would work.

A tile's vectors lie whole vectors apart, and unless C divides their lanes they want different weights; or whole pixels
apart: then all share their weights, and the lanes that are left over are computed by the next vector too. With C = 3
and 16 lanes that is one lane lost, and 7 loads for the 12 multiply-adds of a tap instead of 15; with 8 lanes two lost.

Measured on two Zen 5 cores, 3 channels of 1920 x 1080: with vectors of weights for each vector of a tile 9 x 9 takes
6.9 ms, with one for all 3.9. The last tile of a strip, its sums written to memory and copied from there, cost a quarter
of the time of 5 x 5; its last vectors are stored with a mask instead.

Source: the plane of interleaved channels is how image libraries run separable filters on rows; the tile is
sliding_window.py's.
"""

from dataclasses import replace
from functools import lru_cache

from .short_floats import lanes_for


def serves(problem) -> bool:
    """Are these pixels whose channels do not fill a vector?"""
    few = 1 < problem.C < lanes_for(problem.dtype.name)
    return few and problem.layout == "NHWC" and problem.stride[1] == 1


def takes(x, y, residual) -> bool:
    """Do pixels follow each other in memory as their channels do?"""
    return all(a is None or a.strides[3] == a.shape[1] * a.strides[1] for a in (x, y, residual))


@lru_cache(maxsize=1024)
def as_planes(problem):
    """The problem of one channel whose rows are those of `problem`, all channels side by side."""
    C, (rows, (left, right)) = problem.C, problem.padding
    return replace(
        problem, C=1, groups=1, K=problem.Kg, W=problem.W * C, padding=(rows, (left * C, right * C)),
        dilation=(problem.dilation[0], problem.dilation[1] * C), layout="NCHW",
    )  # fmt: skip


def plane_of(array, C):
    """The array (N, C * m, H, W) as (N, m, H, W * C): a view, as `takes` has made sure."""
    if array is None:
        return None
    N, channels, H, W = array.shape
    pixels = array.transpose(0, 2, 3, 1).reshape(N, H, W * C, channels // C)
    return pixels.transpose(0, 3, 1, 2)


def distances(C, L):
    """How far apart, in numbers, a tile's vectors may lie: as many whole pixels as fit a vector, or a vector."""
    return {L, L // C * C}
