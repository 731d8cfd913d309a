"""Many pairs of small images and kernels in one call, beside a loop over SciPy: what cupy/cupy issue 9330 asks for.

    python -m convlib.examples.pairs --pairs 256 --size 64 --window 15

Every image is convolved with a kernel of its own, as in a bank of matched filters or in training a model per image.
scipy.signal.convolve2d takes one pair at a time, and so did cupyx's; convlib.signal.convolve2d takes all of them.
Prints each way's median time and error against SciPy in float64, and ends with exit code 1 if one is past its bound.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from statistics import median
from time import perf_counter, sleep

import click
import numpy as np

from convlib.signal import convolve2d

MISSING = 'the example needs SciPy, which is not installed: python -m pip install "convlib-kernels[examples]"'
OURS = "convlib.signal.convolve2d, one call"
ROUNDS = 5


def random_pairs(pairs, size, window, dtype, seed):
    """Images (pairs, size, size) and kernels (pairs, window, window), normally distributed."""
    random = np.random.default_rng(seed)
    return normal(random, (pairs, size, size), dtype), normal(random, (pairs, window, window), dtype)


def normal(random, shape, dtype):
    values = random.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * random.standard_normal(shape)
    return values.astype(dtype)


def one_by_one(convolve, images, kernels):
    """A loop over pairs, which is what SciPy's functions leave to their caller."""
    return np.stack([convolve(image, kernel) for image, kernel in zip(images, kernels, strict=True)])


def timed(ways, images, kernels):
    """Each way's result and median seconds; in turns, so that whatever slows the machine slows them all."""
    results = {name: way(images, kernels) for name, way in ways.items()}  # compiles what is to be compiled
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            sleep(0.01)
            start = perf_counter()
            way(images, kernels)
            seconds[name].append(perf_counter() - start)
    return results, {name: median(values) for name, values in seconds.items()}


def error(result, exact):
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", type=click.IntRange(1, 4096), default=256, show_default=True)
@click.option("--size", type=click.IntRange(8, 512), default=64, show_default=True, help="Pixels a side of each image.")
@click.option("--window", type=click.IntRange(1, 127), default=15, show_default=True, help="Of each kernel.")
@click.option("--dtype", type=click.Choice(["float32", "float64", "complex64", "complex128"]), default="float32")
@click.option("--seed", type=int, default=0, show_default=True)
def main(pairs, size, window, dtype, seed):
    """Convolve many pairs of image and kernel in one call, beside loops over SciPy."""
    if find_spec("scipy") is None:
        click.echo(MISSING, err=True)
        sys.exit(2)
    from scipy import signal

    ways = {
        OURS: convolve2d,
        "scipy.signal.convolve2d, a loop": partial(one_by_one, signal.convolve2d),
        "scipy.signal.fftconvolve, a loop": partial(one_by_one, signal.fftconvolve),
    }
    images, kernels = random_pairs(pairs, size, window, dtype, seed)
    results, seconds = timed(ways, images, kernels)
    double = np.promote_types(dtype, np.float64)
    exact = one_by_one(signal.convolve2d, images.astype(double), kernels.astype(double))
    allowed = 5e-6 if np.finfo(dtype).dtype == np.float32 else 1e-14  # conv2d's own max_error in float32
    click.echo(f"{pairs} pairs of {size} x {size} with {window} x {window}, {dtype}, mode full:")
    wrong = False
    for name in ways:
        found = error(results[name], exact)
        wrong = wrong or not found <= allowed
        verdict = "" if found <= allowed else "  WRONG"
        times = f"{seconds[name] / seconds[OURS]:7.1f} x"
        click.echo(f"  {name:36} {1e3 * seconds[name]:9.2f} ms {times}   error {found:.1e}{verdict}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.pairs")
