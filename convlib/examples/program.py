"""What the examples have in common as programs: their packages, the one line when they cannot run, their pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

# What is imported: how it is called, and which extra of ours brings it.
PACKAGES = {
    "jax": ("JAX", "jax"),
    "keras": ("Keras", "keras"),
    "matplotlib": ("Matplotlib", "examples"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("ONNX Runtime", "peers"),
    "scipy": ("SciPy", "examples"),
    "skimage": ("scikit-image", "examples"),
    "sklearn": ("scikit-learn", "examples"),
    "torch": ("PyTorch", "torch"),
}


class CannotRun(click.ClickException):
    """Why, in one line, a program cannot run: it says so on standard error and ends with exit code 2."""

    exit_code = 2

    def show(self, file=None):
        click.echo(self.message, file, err=True)


def need(*packages: str) -> None:
    """Refuse to run without these packages of PACKAGES: all that are missing, and one command that brings them."""
    missing = [PACKAGES[package] for package in packages if find_spec(package) is None]
    if missing:
        names = " and ".join(name for name, _ in missing)
        extras = ",".join(dict.fromkeys(extra for _, extra in missing))
        raise CannotRun(
            f"the example needs {names}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f'python -m pip install "convlib-kernels[{extras}]"'
        )


def output_option(folder: str, what: str = "the pictures"):
    return click.option(
        "--output", type=click.Path(file_okay=False, path_type=Path), default=Path(folder), show_default=True,
        help=f"Folder for {what}.",
    )  # fmt: skip


def subplots(rows: int, columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    click.echo(f"wrote {path}")
