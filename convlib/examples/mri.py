"""Coil sensitivities of an MRI scanner, calibrated with sigpy's own convolution on convlib.

    python -m convlib.examples.mri --output mri

Several coils see the same slice, each weighted by its own complex sensitivity. What is wanted are the sensitivities, to
combine the coils' images without the noise of all. Walsh's adaptive calibration: multiply each pair of images, smooth
the products with a window, and take at each pixel the eigenvector of the largest eigenvalue. The smoothing is
`sigpy.convolve` on a batch of coils x coils complex images. sigpy (0.1.27) has two branches of it: SciPy on the CPU, and
cuDNN through `cupy.cudnn`, which raises "cudnn must be installed" since CuPy 14. Here the second runs, on NumPy arrays,
with convlib.cupy_cudnn in the place of cupy.cudnn; both are compared with the first in complex128 and timed.

The slice is sigpy's Shepp-Logan phantom, the coils are its birdcage.
Source: Walsh, Gmitro and Marcellin, Adaptive Reconstruction of Phased Array MR Imagery, MRM 43, 2000.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace

import click
import numpy as np

MISSING = 'the example needs {}, which is not installed: python -m pip install "convlib-kernels[mri]"'
SMALLEST_SIGNAL = 0.02  # of the phantom's largest value: where there is less, no coil sees anything to calibrate with


def sigpy_on_convlib() -> ModuleType:
    """sigpy.conv once more, with convlib.cupy_cudnn in the place of cupy.cudnn and NumPy arrays taken as CuPy's.

    With a GPU and CuPy arrays the last step is not needed: the two lines that change in sigpy are its import, to
    `from convlib import cupy_cudnn as cudnn`, and `cudnn_enabled` in its config.
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
