"""A whole network at work: ResNet-50 on one image, PyTorch's own convolutions beside convlib's, everything else alike.

Here a layer's weights come from memory and its image from the layer before, which tables of single layers, measured
again and again, do not show. PyTorch in both its memory formats. Before anything is timed the outputs must agree to
1e-4 of the largest; then all take turns in the engine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from . import engine
from .candidate import Candidate
from .gate import GateError
from .networks import OURS, PYTORCH, both, resnet50

NAME = "ResNet-50, an image of 224 x 224"
SIZE, MOST_ERROR = 224, 1e-4
CHANNELS_LAST = "PyTorch channels_last"


@dataclass(frozen=True)
class Inference:
    """Seconds of a pass, PyTorch's in its faster memory format; the ratio of that to ours; the largest difference of
    the outputs over the largest output.
    """

    torch_s: float
    convlib_s: float
    ratio: float
    error: float


def passes() -> dict:
    """A call for each of the three, on the same random image."""
    theirs, ours = both(resnet50())
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    x_last = x.to(memory_format=torch.channels_last)
    return {PYTORCH: lambda: theirs(x), CHANNELS_LAST: lambda: last(x_last), OURS: lambda: ours(x)}


def output_error(theirs, ours) -> float:
    """The largest difference over the largest output. GateError above 1e-4."""
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error <= MOST_ERROR:
        raise GateError(f"outputs differ by {error:.1e} of the largest, at most {MOST_ERROR:.0e} allowed")
    return error


@torch.no_grad()
def measure(settings: engine.Settings, threads: int) -> Inference:
    torch.set_num_threads(threads)
    calls = passes()
    error = output_error(calls[PYTORCH](), calls[OURS]())
    timings = engine.measure([Candidate(name, call, lambda: None, 0.0) for name, call in calls.items()], settings)
    faster = min(PYTORCH, CHANNELS_LAST, key=lambda name: timings[name].median)
    a, b = timings[faster], timings[OURS]
    return Inference(a.median, b.median, engine.ratio(a, b), error)
