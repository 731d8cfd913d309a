"""Coil sensitivities of an MRI scanner, calibrated with sigpy's own convolution on convlib.

    python -m convlib.examples.mri --output mri

Several coils see the same slice, each weighted by its own complex sensitivity. Whoever knows the sensitivities can
combine the coils' images into one with less noise than any of them. Walsh's adaptive calibration: multiply each pair of
images, smooth the products with a window, and take at each pixel the eigenvector of the largest eigenvalue. The
smoothing is `sigpy.convolve` on a batch of coils x coils complex images.

sigpy 0.1.27 has two branches of it: SciPy for NumPy arrays, and cuDNN, through cupy.cudnn, for CuPy's; since CuPy 14
the second raises "cudnn must be installed". Here it runs on NumPy arrays, with convlib.cupy_cudnn in the place of
cupy.cudnn, beside the first, and beside convlib.conv2d, which takes complex numbers in one call, and the window as it
is, real.
The slice is sigpy's Shepp-Logan phantom, the coils are its birdcage.
Source: Walsh, Gmitro and Marcellin, Adaptive Reconstruction of Phased Array MR Imagery, MRM 43, 2000.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace

import click
import numpy as np

import convlib

MISSING = 'the example needs {}, which is not installed: python -m pip install "convlib-kernels[examples]"'
DARK = 0.01  # of the phantom's largest value: where it is no brighter, there is nothing to calibrate with
WARM_UP, RUNS = 1, 3


def sigpy_on_convlib() -> ModuleType:
    """sigpy.conv once more, its CUDA branch on convlib.cupy_cudnn, and taken for NumPy arrays too.

    With CuPy arrays two lines of sigpy change: the import, to `from convlib import cupy_cudnn as cudnn`, and
    `cudnn_enabled` in its config.
    """
    import sigpy

    spec = spec_from_file_location("sigpy_conv_on_convlib", sigpy.conv.__file__)
    module = module_from_spec(spec)
    with cudnn_at_hand(sigpy.config):
        spec.loader.exec_module(module)
    not_numpy = SimpleNamespace(**vars(np))  # sigpy asks `xp == np`
    module.backend = SimpleNamespace(get_array_module=lambda array: not_numpy)
    module.config = SimpleNamespace(cudnn_enabled=True)
    return module


@contextmanager
def cudnn_at_hand(config):
    """What sigpy.conv asks for when it is imported: that it may use cuDNN, and `from cupy import cudnn`."""
    from convlib import cupy_cudnn

    cupy, enabled = sys.modules.get("cupy"), config.cudnn_enabled
    sys.modules["cupy"], config.cudnn_enabled = ModuleType("cupy"), True
    sys.modules["cupy"].cudnn = cupy_cudnn
    try:
        yield
    finally:
        config.cudnn_enabled = enabled
        del sys.modules["cupy"]
        if cupy is not None:
            sys.modules["cupy"] = cupy


def scan(size, coils, noise, seed):
    """The phantom (size, size), the coils' sensitivities and their noisy images (coils, size, size), all complex64."""
    import sigpy
    from sigpy.mri.sim import birdcage_maps

    random = np.random.default_rng(seed)
    phantom = sigpy.shepp_logan((size, size), dtype=np.complex64)
    maps = birdcage_maps((coils, size, size), dtype=np.complex64)
    images = phantom * maps + noise * complex_normal(random, maps.shape) / np.sqrt(2)
    return phantom, maps, images.astype(np.complex64)


def complex_normal(random, shape):
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


def hann_window(width):
    """Weights that fall off to every side and sum to one, as sigpy's branches want them: of the images' dtype."""
    line = np.hanning(width + 2)[1:-1]
    return (np.outer(line, line) / line.sum() ** 2).astype(np.complex64)


def products(images):
    """Each coil's image times each one's conjugate, (coils, coils, size, size)."""
    return images[:, None] * images[None].conj()


def smoothed(convolve, covariance, window):
    """Every image of the batch under the window, cropped to its own size, by one of sigpy's branches."""
    full, margin = convolve(covariance, window, mode="full"), len(window) // 2
    rows, columns = (slice(margin, margin + size) for size in covariance.shape[-2:])
    return full[..., rows, columns]


def smoothed_by_conv2d(covariance, window):
    """The same by convlib alone: complex images, real window; the symmetric window needs no turning."""
    images = covariance.reshape(-1, 1, *covariance.shape[-2:])
    y = convlib.conv2d(images, np.ascontiguousarray(window.real)[None, None], padding="same")
    return y.reshape(covariance.shape)


def largest_eigenvectors(covariance):
    """At each pixel the coils' sensitivities, (coils, size, size): of unit length, the first coil's real."""
    _, vectors = np.linalg.eigh(covariance.transpose(2, 3, 0, 1))
    maps = vectors[..., -1].transpose(2, 0, 1)
    return maps * np.exp(-1j * np.angle(maps[:1]))


def combined(images, maps):
    """The slice that the coils' images agree on."""
    return np.abs((maps.conj() * images).sum(0))


def timed(smooth, *arguments):
    """The result and the fastest of a few runs, in milliseconds."""
    seconds = []
    for _ in range(WARM_UP + RUNS):
        start = perf_counter()
        result = smooth(*arguments)
        seconds.append(perf_counter() - start)
    return result, 1e3 * min(seconds[WARM_UP:])


def error(result, exact):
    return float(np.abs(result - exact).max() / np.abs(exact).max())


def bound(window):
    """Rounding errors of a sum of n complex64 products grow with n; tenfold the square root is far outside chance."""
    return 10 * 2.0**-24 * np.sqrt(2 * window.size + 2)


def deviation(maps, true, inside):
    """Root mean square distance of unit vectors inside the phantom, their phases taken from the first coil."""
    true = true * np.exp(-1j * np.angle(true[:1]))
    return float(np.sqrt((np.abs(maps - true)[:, inside] ** 2).sum(0).mean()))


def noise_of(image, phantom):
    """How far an image is from the phantom, root mean square."""
    return float(np.sqrt(np.mean((image - np.abs(phantom)) ** 2)))


def draw(above, below, path):
    """Two rows of images with their titles, before and after; the sensitivities in between with their phase."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for row, (left, maps, right) in zip(axes, (above, below)):
        for axis, (title, image) in zip(row[[0, 1, 3]], (left, maps, right)):
            axis.imshow(np.abs(image), cmap="viridis" if title == maps[0] else "gray", vmin=0)
            axis.set_title(title, fontsize=10)
        row[2].imshow(np.angle(maps[1]), cmap="twilight", vmin=-np.pi, vmax=np.pi)
        row[2].set_title("its phase", fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    click.echo(f"wrote {path}")


def require_packages():
    for package, name in (("sigpy", "sigpy"), ("matplotlib", "Matplotlib")):
        if find_spec(package) is None:
            click.echo(MISSING.format(name), err=True)
            sys.exit(2)


def compared(covariance, window):
    """The smoothed products by sigpy on convlib, after all three ways were timed; and whether all errors are small."""
    import sigpy

    ways = {
        "sigpy on convlib.cupy_cudnn": partial(smoothed, sigpy_on_convlib().convolve),
        "sigpy on SciPy": partial(smoothed, sigpy.convolve),
        "convlib.conv2d, window real": smoothed_by_conv2d,
    }
    exact = smoothed(sigpy.convolve, covariance.astype(np.complex128), window.astype(np.complex128))
    results, right = {}, True
    for name, smooth in ways.items():
        results[name], milliseconds = timed(smooth, covariance, window)
        found = error(results[name], exact)
        right = right and found <= bound(window)
        verdict = "" if found <= bound(window) else "  WRONG"
        click.echo(f"  {name:28} {milliseconds:6.0f} ms, error {found:.1e} of {bound(window):.1e} allowed{verdict}")
    return results["sigpy on convlib.cupy_cudnn"], right


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("mri"), show_default=True,
    help="Folder for the picture.",
)  # fmt: skip
@click.option("--size", type=click.IntRange(32, 1024), default=256, show_default=True, help="Pixels a side.")
@click.option("--coils", type=click.IntRange(2, 32), default=8, show_default=True)
@click.option("--radius", type=click.IntRange(1, 15), default=5, show_default=True, help="Of the smoothing, in pixels.")
@click.option("--noise", type=float, default=0.05, show_default=True, help="Of each coil, beside a phantom of 1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
def main(output, size, coils, radius, noise, seed):
    """Walsh's calibration of coil sensitivities with sigpy.convolve on convlib; a picture in --output."""
    require_packages()
    phantom, true, images = scan(size, coils, noise, seed)
    covariance, window = products(images), hann_window(2 * radius + 1)
    width = len(window)
    click.echo(f"{coils * coils} complex images of {size} x {size} under a window of {width} x {width}:")
    smooth, right = compared(covariance, window)

    inside = np.abs(phantom) > DARK
    raw, calibrated = largest_eigenvectors(covariance), largest_eigenvectors(smooth)
    before, after = (deviation(maps, true, inside) for maps in (raw, calibrated))
    click.echo(
        f"sensitivities (vectors of length 1) off the true ones: {before:.3f} by single pixels, {after:.3f} smoothed"
    )
    root, slice_ = np.sqrt((np.abs(images) ** 2).sum(0)), combined(images, calibrated)
    before, after = (noise_of(image, phantom) for image in (root, slice_))
    click.echo(f"slice off the phantom: {before:.4f} as root of the sum of squares, {after:.4f} combined")

    output.mkdir(parents=True, exist_ok=True)
    above = ("one coil's image", images[1]), ("its sensitivity, pixel by pixel", raw[1]), ("root sum of squares", root)
    below = ("the phantom", phantom), ("smoothed by sigpy on convlib", calibrated[1]), ("coils combined", slice_)
    draw(above, below, output / "calibration.png")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.mri")
