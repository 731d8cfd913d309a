"""Large windows on a GPU: whole images through the array library's own Fourier transforms, which are NVIDIA's cuFFT.

signal.py's alternative to conv2d there. It is no row of the list of kernels, which allocate nothing and can be recorded
in a graph; cuFFT takes memory of its own and plans at its first call. On the CPU kernels/numba_cpu/fft.py does this.

    x (N, G, 1, H, W) --rfft2--> spectra --times the kernels', (G, M, R, S) --rfft2-->--> irfft2 --> the part asked for

Chosen by predicted times, as kernels are: each transform is counted as PASSES over its numbers in memory. No GPU has
measured this yet.
Source: Stockham, High-speed convolution and correlation, 1966.
"""

from __future__ import annotations

import math

from . import accuracy, dispatch
from .kernels import gpu_cost
from .problem import ConvProblem

PASSES = 6  # reading and writing for each of two axes, and for padding, multiplying or cutting
LAUNCHES = 10


def chosen(problem: ConvProblem, place, options: dict) -> bool:
    """Whether this is to compute `problem` on `place`: asked for, or predicted to be faster than every kernel."""
    algorithm, limit = options["algorithm"], options["workspace_limit"]
    if place.kind != "cuda" or algorithm not in ("auto", "fft") or options["backend"] != "auto" or problem.N == 0:
        return False
    allowed = accuracy.norm_relative(problem, "fft") <= options["max_error"] and problem.dtype.itemsize >= 4
    if not allowed or (limit is not None and workspace_bytes(problem) > limit):
        return False
    held = dispatch.candidates(problem, place, options["max_error"], limit)
    kernels = min((one.seconds for one in held if one.possible), default=math.inf)
    return algorithm == "fft" or predicted_seconds(problem, place) < kernels


def predicted_seconds(problem: ConvProblem, place) -> float:
    bandwidth = gpu_cost.MEMORY_PER_SM.get(place.compute_capability, 10e9) * gpu_cost.sm_count(place)
    return LAUNCHES * gpu_cost.LAUNCH + PASSES * workspace_bytes(problem) / bandwidth


def workspace_bytes(problem: ConvProblem) -> int:
    """The spectra of x, w and y; a spectrum of real numbers takes about as much memory as they."""
    rows, columns = transform_size((problem.H, problem.W), (problem.R, problem.S))
    images = problem.N * problem.C + problem.K + problem.N * problem.K
    return images * rows * (columns + 2) * problem.dtype.itemsize


def transform_size(image, window):
    """Rows and columns that hold the full convolution, and that transforms of small factors take."""
    return tuple(smooth(size + taps - 1) for size, taps in zip(image, window))


def smooth(size: int) -> int:
    """The next number without a prime factor above 7.

    >>> smooth(1206), smooth(2046)
    (1215, 2048)
    """
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def convolved(module, x, w, groups, padding, turned):
    """The convolution of x (N, G, H, W) with w (G M, 1, R, S), padded with at most R - 1 (S - 1) zeros: (N, G M, P, Q).

    module: numpy, cupy or torch. turned: whether windows are turned by 180 degrees, which makes a convolution of it.
    """
    image, window = tuple(x.shape[-2:]), tuple(w.shape[-2:])
    size = transform_size(image, window)
    w = w.reshape((groups, -1, *window))
    spectra = module.fft.rfft2(w if turned else module.flip(w, (-2, -1)), size)
    y = module.fft.irfft2(module.fft.rfft2(x, size)[:, :, None] * spectra, size)
    starts = [taps - 1 - before for taps, (before, _) in zip(window, padding)]
    ends = [s + n + sum(p) - t + 1 for s, n, p, t in zip(starts, image, padding, window)]
    y = y[..., starts[0] : ends[0], starts[1] : ends[1]]
    return y.reshape((x.shape[0], -1, *y.shape[-2:]))
