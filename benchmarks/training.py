"""A step of training a network of ResNet-18's size: PyTorch's own convolutions beside convlib's, everything else alike.

Before anything is timed both train for ten steps from the same weights on the same batch; their losses must agree to
1e-4, relative, at every step. Then the two take turns in the engine, a step at a time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from . import engine
from .candidate import Candidate
from .gate import GateError

STEPS, MOST_LOSS_ERROR = 10, 1e-4
IMAGES, SIZE, CLASSES = 8, 112, 10
# With ten times as much the losses part by more than 1e-4 within ten steps, PyTorch's own in float32 and float64 too: a
# rounding that opens a ReLU in one network and not in the other is no small difference any more.
LEARNING_RATE = 3e-5
BLOCKS = (
    (64, 64, 1),
    (64, 64, 1),
    (64, 128, 2),
    (128, 128, 1),
    (128, 256, 2),
    (256, 256, 1),
    (256, 512, 2),
    (512, 512, 1),
)
PYTORCH, OURS = "PyTorch", "convlib"


@dataclass(frozen=True)
class Training:
    """Seconds of a step, the ratio of PyTorch's to ours, and the largest relative difference of the losses."""

    torch_s: float
    convlib_s: float
    ratio: float
    loss_error: float


def resnet18():
    """ResNet-18: He et al., Deep residual learning for image recognition, 2016; 11 million parameters."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, C, K, stride):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(C, K, 3, stride, 1, bias=False), nn.BatchNorm2d(K), nn.ReLU(),
                nn.Conv2d(K, K, 3, 1, 1, bias=False), nn.BatchNorm2d(K),
            )  # fmt: skip
            self.past = nn.Sequential()
            if stride > 1:
                self.past = nn.Sequential(nn.Conv2d(C, K, 1, stride, bias=False), nn.BatchNorm2d(K))

        def forward(self, x):
            return torch.relu(self.body(x) + self.past(x))

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        *(Block(*sizes) for sizes in BLOCKS), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES),
    )  # fmt: skip


def both():
    """Two networks of the same weights: PyTorch's own, and the one whose convolutions are convlib's."""
    from convlib.torch import replace_convolutions

    theirs = resnet18()
    return theirs, replace_convolutions(copy.deepcopy(theirs))


class Trainer:
    """A network, its optimizer and a batch; a call is one step and returns the loss before it."""

    def __init__(self, network, images: int = IMAGES, size: int = SIZE):
        import torch

        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(images, 3, size, size, generator=random)
        self.labels = torch.randint(0, CLASSES, (images,), generator=random)
        self.network, self.optimizer = network, torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def __call__(self) -> float:
        from torch.nn.functional import cross_entropy

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
    import torch

    torch.set_num_threads(threads)
    theirs, ours = (Trainer(network) for network in both())
    error = loss_error(theirs, ours)
    trainers = ((PYTORCH, theirs), (OURS, ours))
    candidates = [Candidate(name, trainer, lambda: None, 0.0) for name, trainer in trainers]
    timings = engine.measure(candidates, settings)
    a, b = timings[PYTORCH], timings[OURS]
    return Training(a.median, b.median, engine.ratio(a, b), error)
