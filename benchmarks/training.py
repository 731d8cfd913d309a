"""A step of training a network of ResNet-18's size: PyTorch's own convolutions beside convlib's, everything else alike.

Before anything is timed both train for ten steps from the same weights on the same batch; their losses must agree to
1e-4, relative, at every step. Then the two take turns in the engine, a step at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from . import engine
from .candidate import Candidate
from .gate import GateError
from .networks import CLASSES, OURS, PYTORCH, both, resnet18

NAME = "a training step of ResNet-18, 8 images of 112 x 112"
STEPS, MOST_LOSS_ERROR = 10, 1e-4
IMAGES, SIZE = 8, 112
# With ten times as much the losses part by more than 1e-4 within ten steps, PyTorch's own in float32 and float64 too: a
# rounding that opens a ReLU in one network and not in the other is no small difference any more.
LEARNING_RATE = 3e-5


@dataclass(frozen=True)
class Training:
    """Seconds of a step, the ratio of PyTorch's to ours, and the largest relative difference of the losses."""

    torch_s: float
    convlib_s: float
    ratio: float
    error: float


class Trainer:
    """A network, its optimizer and a batch; a call is one step and returns the loss before it."""

    def __init__(self, network, images: int = IMAGES, size: int = SIZE):
        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(images, 3, size, size, generator=random)
        self.labels = torch.randint(0, CLASSES, (images,), generator=random)
        self.network, self.optimizer = network, torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def __call__(self) -> float:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.network(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def loss_error(theirs, ours, steps: int = STEPS) -> float:
    """The largest relative difference of the two trainers' losses over so many steps. GateError above 1e-4."""
    pairs = [(theirs(), ours()) for _ in range(steps)]
    error = max(abs(a - b) / abs(a) for a, b in pairs)
    if not error <= MOST_LOSS_ERROR:
        raise GateError(f"losses differ by {error:.1e}, at most {MOST_LOSS_ERROR:.0e} allowed: {pairs}")
    return error


def measure(settings: engine.Settings, threads: int) -> Training:
    torch.set_num_threads(threads)
    theirs, ours = (Trainer(network) for network in both(resnet18()))
    error = loss_error(theirs, ours)
    trainers = ((PYTORCH, theirs), (OURS, ours))
    candidates = [Candidate(name, trainer, lambda: None, 0.0) for name, trainer in trainers]
    timings = engine.measure(candidates, settings)
    a, b = timings[PYTORCH], timings[OURS]
    return Training(a.median, b.median, engine.ratio(a, b), error)
