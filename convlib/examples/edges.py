"""A photograph through image filters and through the first layers of a VGG-sized network, each checked against SciPy.

    python -m convlib.examples.edges --output edges

writes filters.png, network.png and worked_example.png, prints every result's error against SciPy in float64, and ends
with exit code 1 if one is past its bound. The photograph is scikit-image's astronaut, which ships inside its package.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import click
import numpy as np

import convlib
from convlib.examples.program import CannotRun, need, output_option, save, subplots
from convlib.problem import make_problem

SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
SHARPEN = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
IMAGE, KERNEL = np.arange(1, 10).reshape(3, 3), np.arange(1, 5).reshape(2, 2)
# Filters of the network's convolutions; "pool" halves rows and columns. VGG-16 begins so.
NETWORK = (64, 64, "pool", 128, 128, "pool")
FIRST_WINDOW = 7  # Gabor filters want more room than VGG's 3 x 3


@dataclass(frozen=True)
class Checked:
    """One result beside SciPy's: the largest difference, relative to the largest value, and the most allowed."""

    name: str
    kernel: str
    error: float
    bound: float

    @property
    def wrong(self) -> bool:
        return not self.error <= self.bound


def gaussian(sigma):
    """A Gaussian window that reaches three sigma to each side and sums to one."""
    radius = int(np.ceil(3 * sigma))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def gabor_bank(filters, window):
    """Waves under a Gaussian, in `filters` orientations and three wavelengths, on three channels, like first layers'.

    Each sums to zero (so plain areas give nothing) and has norm one.
    """
    rows, columns = np.mgrid[:window, :window] - window // 2
    bank = np.empty((filters, 3, window, window))
    for k in range(filters):
        angle, wavelength = np.pi * k / filters, (3.0, 4.5, 7.0)[k % 3]
        across = columns * np.cos(angle) + rows * np.sin(angle)
        wave = np.cos(2 * np.pi * across / wavelength + np.pi / 2 * (k % 2)) * np.exp(
            -(rows**2 + columns**2) / (window / 2) ** 2
        )
        wave -= wave.mean()
        bank[k] = wave / np.linalg.norm(wave) / np.sqrt(3)
    return bank.astype(np.float32)


def orthogonal_filters(filters, channels, window, random):
    """Filters that are orthogonal to each other: of all random ones those that lose least of their input."""
    tall = random.standard_normal((channels * window * window, filters))
    q, _ = np.linalg.qr(tall)
    return np.ascontiguousarray(q.T.reshape(filters, channels, window, window) * np.sqrt(2), np.float32)


def max_pool(x):
    """The largest of every 2 x 2 pixels; an odd last row or column is left out."""
    N, C, H, W = x.shape
    return x[:, :, : H // 2 * 2, : W // 2 * 2].reshape(N, C, H // 2, 2, W // 2, 2).max((3, 5))


def scipy_conv2d(x, w):
    """What conv2d(x, w, padding="same") is for odd windows, by SciPy in float64."""
    from scipy.ndimage import correlate

    x, w = x[0].astype(np.float64), w.astype(np.float64)
    channels = range(len(x))
    return np.stack([sum(correlate(x[c], filters[c], mode="constant") for c in channels) for filters in w])[None]


def convolved(name, x, w, backend, activation=None):
    """conv2d with padding "same", and its comparison with SciPy."""
    y = convlib.conv2d(x, w, padding="same", activation=activation, backend=backend)
    exact = scipy_conv2d(x, w)
    if activation == "relu":
        exact = np.maximum(exact, 0)
    kernel = convlib.explain(x, w, padding="same", activation=activation, backend=backend).chosen
    error = float(np.abs(y - exact).max() / np.abs(exact).max())
    return y, Checked(name, kernel, error, bound(x, w))


def bound(x, w):
    """Rounding errors of a sum of n float32 products grow with n; tenfold the square root is far outside chance."""
    n = make_problem(x.shape, w.shape, x.dtype, padding="same").reduction
    return 10 * 2.0**-24 * np.sqrt(n + 2)


def photograph(size):
    """The astronaut in float32 from 0 to 1, (1, 3, size, size)."""
    from skimage import data
    from skimage.transform import resize

    image = resize(data.astronaut(), (size, size), anti_aliasing=True)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def filtered(x, backend):
    """The grey photograph through each image filter."""
    grey = np.tensordot(np.float32([0.2125, 0.7154, 0.0721]), x, (0, 1))[:, None].astype(np.float32)
    windows = {"Sobel, horizontal": SOBEL_X, "Sobel, vertical": SOBEL_X.T, "Gaussian, sigma 3": gaussian(3)}
    windows["sharpened"] = SHARPEN
    images, checks = {"photograph": grey[0, 0]}, []
    for name, window in windows.items():
        y, checked = convolved(name, grey, window.astype(np.float32)[None, None], backend)
        images[name] = y[0, 0]
        checks.append(checked)
    images["edges: length of both Sobels"] = np.hypot(images["Sobel, horizontal"], images["Sobel, vertical"])
    return images, checks


def through_network(x, backend, seed, advance):
    """The photograph through the network's layers: an output of each, and its comparison. `advance` counts layers."""
    random = np.random.default_rng(seed)
    outputs, checks = {}, []
    for position, layer in enumerate(NETWORK, 1):
        if layer == "pool":
            x = max_pool(x)
        else:
            channels = x.shape[1]
            first = not checks
            w = gabor_bank(layer, FIRST_WINDOW) if first else orthogonal_filters(layer, channels, 3, random)
            name = f"layer {position}: {channels} to {layer}, {w.shape[2]}x{w.shape[3]}, {x.shape[2]}x{x.shape[3]}"
            x, checked = convolved(name, x, w, backend, "relu")
            outputs[name] = x[0]
            checks.append(checked)
        advance()
    return outputs, checks


def worked_example(backend):
    """The 3 x 3 image 1 to 9 under the 2 x 2 kernel 1 to 4, both ways."""
    x, w = (array.astype(np.float32)[None, None] for array in (IMAGE, KERNEL))
    return {
        "correlation": convlib.conv2d(x, w, backend=backend)[0, 0],
        "convolution": convlib.conv2d(x, w, flip_kernel=True, backend=backend)[0, 0],
    }


def worked_steps(kernel):
    """Each output of the worked example written out: window and kernel, product by product."""
    lines = []
    for p in range(2):
        for q in range(2):
            window = IMAGE[p : p + 2, q : q + 2]
            products = " + ".join(f"{a}*{b}" for a, b in zip(window.ravel(), kernel.ravel(), strict=True))
            lines.append(f"y[{p},{q}] = {products} = {int((window * kernel).sum())}")
    return lines


def explain_worked_example(results):
    """Print both results step by step; the checks compare them with SciPy's."""
    from scipy.signal import convolve2d, correlate2d

    click.echo("\nA worked example: image 1 to 9 (3 x 3), kernel [[1, 2], [3, 4]].")
    click.echo("Deep learning's conv2d is the correlation: the kernel as it stands, laid on each window.")
    click.echo("\n".join(f"  {line}" for line in worked_steps(KERNEL)))
    click.echo("The convolution of the mathematical definition turns the kernel by 180 degrees: [[4, 3], [2, 1]].")
    click.echo("\n".join(f"  {line}" for line in worked_steps(KERNEL[::-1, ::-1])))
    click.echo(
        "Convolution turns it so that convolving is commutative; a network that learns its kernel does not care.\n"
        "They differ unless the kernel equals itself turned. Whoever prints other numbers for this example has\n"
        "neither: check each product above by hand."
    )
    exact = {
        "correlation": correlate2d(IMAGE, KERNEL, "valid"),
        "convolution": convolve2d(IMAGE, KERNEL, "valid"),
    }
    checks = []
    for name, y in results.items():
        click.echo(f"{name}: {y.astype(int).tolist()}")
        checks.append(Checked(f"worked example, {name}", "", float(np.abs(y - exact[name]).max()), 0.0))
    return checks


def draw_filters(images, path):
    figure, axes = subplots(2, 3, (12, 8.4))
    for axis, (name, image) in zip(axes.flat, images.items(), strict=True):
        signed = name.startswith("Sobel")
        widest = np.abs(image).max()
        limits = (-widest, widest) if signed else (0, min(1, widest) if "edges" not in name else widest)
        axis.imshow(image, cmap="RdBu_r" if signed else "gray", vmin=limits[0], vmax=limits[1])
        axis.set_title(name)
        axis.set_axis_off()
    save(figure, path)


def draw_network(x, outputs, path):
    """The photograph, and eight channels of every layer."""
    shown = 8
    figure, axes = subplots(1 + len(outputs), shown, (1.7 * shown, 1.9 * (1 + len(outputs))))
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(x[0].transpose(1, 2, 0))
    axes[0, 0].set_title("photograph", loc="left", fontsize=9)
    for row, (name, y) in zip(axes[1:], outputs.items(), strict=True):
        row[0].set_title(name, loc="left", fontsize=9)
        for axis, channel in zip(row, y[:: len(y) // shown], strict=False):
            axis.imshow(channel, cmap="magma", vmin=0, vmax=np.percentile(y, 99.5))
    save(figure, path)


def draw_worked_example(results, path):
    figure, axes = subplots(1, 5, (12, 3.2))
    grids = {
        "image": IMAGE,
        "kernel": KERNEL,
        "correlation (conv2d)": results["correlation"],
        "kernel, turned": KERNEL[::-1, ::-1],
        "convolution (flip_kernel)": results["convolution"],
    }
    for axis, (name, grid) in zip(axes.flat, grids.items(), strict=True):
        axis.imshow(np.ones_like(grid), cmap="gray", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(grid):
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=18)
        axis.set_xticks(np.arange(0.5, grid.shape[1] - 1), [])
        axis.set_yticks(np.arange(0.5, grid.shape[0] - 1), [])
        axis.grid(color="gray")
        axis.set_title(name)
    save(figure, path)


def show_checks(checks):
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("result", "kernel", "error against SciPy", "allowed", box=box.SIMPLE)
    for checked in checks:
        verdict = "  WRONG" if checked.wrong else ""
        table.add_row(checked.name, checked.kernel, f"{checked.error:.1e}{verdict}", f"{checked.bound:.1e}")
    Console().print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@output_option("edges")
@click.option("--size", type=click.IntRange(16, 512), default=224, show_default=True, help="Pixels a side.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random orthogonal filters.")
@click.option("--backend", type=click.Choice(["auto", "numba_cpu", "numba_cuda", "cupy_raw"]), default="auto")
def main(output, size, seed, backend):
    """A photograph through image filters and a VGG-sized stack; pictures in --output, errors against SciPy printed."""
    need("scipy", "skimage", "matplotlib")
    from rich.progress import Progress

    output.mkdir(parents=True, exist_ok=True)
    x = photograph(size)
    try:
        results = worked_example(backend)
        images, checks = filtered(x, backend)
        with Progress(transient=True) as progress:
            task = progress.add_task("layers of the network", total=len(NETWORK))
            outputs, of_network = through_network(x, backend, seed, lambda: progress.advance(task))
    except convlib.UnsupportedError as error:
        raise CannotRun(f"--backend {backend}: {error}") from None
    checks += of_network + explain_worked_example(results)
    draw_filters(images, output / "filters.png")
    draw_network(x, outputs, output / "network.png")
    draw_worked_example(results, output / "worked_example.png")
    show_checks(checks)
    sys.exit(1 if any(checked.wrong for checked in checks) else 0)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.edges")
