"""conv2d with arrays of every library, each in a few lines. What is not installed, or needs a GPU, says so.

python -m convlib.examples.array_libraries
"""

from __future__ import annotations

import sys

import click
import numpy as np

import convlib
from convlib.examples.program import need

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((1, 16, 32, 32)).astype(np.float32)  # N C H W
W = RANDOM.standard_normal((8, 16, 3, 3)).astype(np.float32)  # K C R S


class NotHere(Exception):
    """Why an example cannot run on this machine."""


def numpy():
    return convlib.conv2d(X, W, padding="same")


def torch():
    import torch

    x, w = torch.from_numpy(X), torch.from_numpy(W)  # the tensors share NumPy's memory, and convlib reads it there
    y = convlib.conv2d(x, w, padding="same")
    return y, y.numpy()


def torch_on_a_gpu():
    import torch

    if not torch.cuda.is_available():
        raise NotHere("PyTorch sees no GPU")
    x, w = torch.from_numpy(X).cuda(), torch.from_numpy(W).cuda()
    y = convlib.conv2d(x, w, padding="same")  # on PyTorch's current stream, not waited for
    return y, y.cpu().numpy()


def jax():
    import jax

    x, w = jax.numpy.asarray(X), jax.numpy.asarray(W)
    y = convlib.conv2d(x, w, padding="same")  # outside jit: convlib runs at once, on the array's own memory
    return y, np.asarray(y)


def cupy():
    import cupy

    need_a_gpu()
    x, w = cupy.asarray(X), cupy.asarray(W)
    y = convlib.conv2d(x, w, padding="same")  # on CuPy's current stream, not waited for
    return y, cupy.asnumpy(y)


def numba():
    from numba import cuda

    need_a_gpu()
    x, w = cuda.to_device(X), cuda.to_device(W)
    y = convlib.conv2d(x, w, padding="same")
    return y, y.copy_to_host()


def need_a_gpu():
    if not convlib.info()["gpus"]:
        raise NotHere("no GPU is visible")


EXAMPLES = {
    "NumPy": numpy,
    "PyTorch": torch,
    "PyTorch, CUDA": torch_on_a_gpu,
    "JAX": jax,
    "CuPy": cupy,
    "Numba, CUDA": numba,
}


def outcome(example, wanted):
    """What happened, in words, and whether it is wrong."""
    try:
        result = example()
    except NotHere as reason:
        return f"not run: {reason}", False
    except ModuleNotFoundError as error:
        return f"not run: {error.name} is not installed", False
    y, on_host = result if isinstance(result, tuple) else (result, result)
    error = float(np.linalg.norm(on_host - wanted) / np.linalg.norm(wanted))
    kind = f"{type(y).__module__}.{type(y).__qualname__} {tuple(y.shape)}"
    return f"{kind}, {error:.1e} from SciPy", error > 5e-6


def by_scipy():
    """The same convolution by SciPy in float64."""
    from scipy.ndimage import correlate

    x, w = X[0].astype(np.float64), W.astype(np.float64)
    return np.stack([sum(correlate(x[c], filters[c], mode="constant") for c in range(len(x))) for filters in w])[None]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main():
    """conv2d with NumPy, PyTorch, JAX, CuPy and Numba arrays; says plainly which did not run and why."""
    need("scipy")
    wanted = by_scipy()
    failed = False
    for name, example in EXAMPLES.items():
        text, wrong = outcome(example, wanted)
        failed |= wrong
        click.echo(f"{name:14} {text}{'  WRONG' if wrong else ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(prog_name="python -m convlib.examples.array_libraries")
