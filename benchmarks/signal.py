"""convlib.signal beside SciPy and OpenCV: many small pairs in one call, and one large image with large kernels.

Both are float32. The pairs (mode "full") go one by one into SciPy's functions, which take no more; the image (mode
"same", zeros outside) goes to OpenCV's filter2D too. Equal threads: SciPy's FFT is told how many workers, OpenCV how
many threads. On the pairs SciPy's gets one, with which it is four times as fast there. The gate is gate.py's, the
clock engine.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from convlib import accuracy, signal

from . import engine, gate
from .candidate import Candidate
from .results import geometric_mean

OURS = "convlib.signal"
WINDOWS = (33, 47, 63, 95, 127)
SETTINGS = engine.Settings(rounds=9, most_seconds=4.0)


@dataclass(frozen=True)
class Work:
    """What is convolved: images (N, H, W) with kernels (N, R, S), pair by pair."""

    name: str
    images: np.ndarray
    kernels: np.ndarray
    mode: str


@dataclass(frozen=True)
class Measured:
    """One candidate on one work: median seconds, norm-relative error, and how many times as long as ours it takes."""

    work: str
    candidate: str
    median_s: float
    error: float
    ratio: float


@dataclass(frozen=True)
class Bar:
    """What was asked for: `value` at least `floor`."""

    text: str
    value: float
    floor: float


def works() -> list[Work]:
    """256 pairs of 64 x 64 with 15 x 15, and a 1080p image with kernels of 33 x 33 to 127 x 127."""
    pairs = Work("256 x 64x64, 15x15", normal((256, 64, 64)), normal((256, 15, 15), 1 / 15), "full")
    image = normal((1, 1080, 1920))
    return [pairs, *(Work(f"1080p, {R}x{R}", image, normal((1, R, R), 1 / R), "same") for R in WINDOWS)]


def normal(shape, scale=1.0):
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)


def measure(work: Work, settings: engine.Settings, threads: int) -> list[Measured]:
    """Every candidate that is installed, ours first; raises GateError for a wrong one."""
    candidates = [ours(work), *(make(work, threads) for name, make in peers(work).items())]
    wanted = exact(work)
    errors = {candidate.name: gate.check(candidate, wanted) for candidate in candidates}
    timings = engine.measure(candidates, settings)
    return [
        Measured(work.name, name, timing.median, errors[name], engine.ratio(timing, timings[OURS]))
        for name, timing in timings.items()
    ]


def exact(work: Work) -> np.ndarray:
    """In float64, by one large transform: to about 1e-15 of the result's norm."""
    from scipy.signal import fftconvolve

    pairs = zip(work.images.astype(np.float64), work.kernels.astype(np.float64))
    return np.stack([fftconvolve(image, kernel, work.mode) for image, kernel in pairs])


def ours(work: Work) -> Candidate:
    return candidate(OURS, lambda: signal.convolve2d(work.images, work.kernels, work.mode))


def peers(work: Work) -> dict[str, Callable[[Work, int], Candidate]]:
    """The installed peers, by name; SciPy's convolve2d would take half a minute on the large image."""
    found = {name: scipy_loop(name) for name in ("fftconvolve", "oaconvolve")}
    if len(work.images) > 1:
        return {"convolve2d": scipy_loop("convolve2d"), **found}
    return found | ({"filter2D": opencv} if find_spec("cv2") else {})


def scipy_loop(function: str) -> Callable[[Work, int], Candidate]:
    """A function of scipy.signal, pair by pair."""

    def make(work: Work, threads: int) -> Candidate:
        import scipy

        convolve, workers = getattr(scipy.signal, function), threads if len(work.images) == 1 else 1

        def call():
            with scipy.fft.set_workers(workers):
                return [convolve(image, kernel, work.mode) for image, kernel in zip(work.images, work.kernels)]

        return candidate(f"SciPy {function}", call)

    return make


def opencv(work: Work, threads: int) -> Candidate:
    """cv2.filter2D, a correlation, with the kernel turned beforehand."""
    import cv2

    cv2.setNumThreads(threads)
    kernel = np.ascontiguousarray(work.kernels[0, ::-1, ::-1])
    return candidate(
        "OpenCV filter2D", lambda: [cv2.filter2D(work.images[0], -1, kernel, borderType=cv2.BORDER_CONSTANT)]
    )


def candidate(name: str, function: Callable) -> Candidate:
    last = {}

    def call():
        last["y"] = function()

    return Candidate(name, call, lambda: np.asarray(last["y"]), accuracy.DEFAULT_MAX_ERROR, name == OURS)


def bars(found: list[Measured]) -> list[Bar]:
    """The pairs against loops over SciPy's functions; the images against the fastest peer of each."""
    ratios: dict[str, dict[str, float]] = {}
    for one in found:
        if one.candidate != OURS:
            ratios.setdefault(one.work, {})[one.candidate] = one.ratio
    pairs, *images = ratios.values()
    fastest = [min(peer.values()) for peer in images]
    return [
        Bar("pairs, a loop over scipy.signal.convolve2d / ours", pairs["SciPy convolve2d"], 20),
        Bar("pairs, a loop over scipy.signal.fftconvolve / ours", pairs["SciPy fftconvolve"], 3),
        Bar("1080p, the fastest peer / ours, at worst", min(fastest), 0.9),
        Bar("1080p, the fastest peer / ours, geometric mean", geometric_mean(fastest), 1.1),
    ]
