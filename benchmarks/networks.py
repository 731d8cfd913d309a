"""Two residual networks in PyTorch, of random weights, each also with convlib's convolutions.

He et al., Deep residual learning for image recognition, 2016, section 4.1 and table 1.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from convlib.torch import replace_convolutions

PYTORCH, OURS = "PyTorch", "convlib"
CLASSES = 10
STAGES18 = (64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)  # channels, blocks, the first one's stride
STAGES50 = (64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)  # the same; channels within a block
WIDENED = 4


class Block(nn.Module):
    """relu(body(x) + past(x)). past: what brings x to the body's shape, if that is another."""

    def __init__(self, body, past):
        super().__init__()
        self.body, self.past = nn.Sequential(*body), nn.Sequential(*past)

    def forward(self, x):
        return torch.relu(self.body(x) + self.past(x))


def resnet18():
    """For training: 11 million parameters, CLASSES outputs."""
    torch.manual_seed(0)
    blocks, C = [], 64
    for K, stride in blocks_of(STAGES18):
        body = *normalized(C, K, 3, stride), nn.ReLU(), *normalized(K, K, 3)
        blocks.append(Block(body, () if C == K else normalized(C, K, 1, stride)))
        C = K
    return nn.Sequential(*normalized(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, *head(C, CLASSES))


def resnet50():
    """For inference, its batch normalizations folded into the convolutions: 25.5 million parameters, 1000 outputs."""
    torch.manual_seed(0)
    blocks, C = [], 64
    for inner, stride in blocks_of(STAGES50):
        K = WIDENED * inner
        body = folded(C, inner, 1), nn.ReLU(), folded(inner, inner, 3, stride), nn.ReLU(), folded(inner, K, 1)
        blocks.append(Block(body, () if C == K else [folded(C, K, 1, stride)]))
        C = K
    layers = folded(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks, *head(C, 1000)
    return nn.Sequential(*layers).eval()


def blocks_of(stages):
    """(channels, stride) of every block."""
    return [(C, stride if i == 0 else 1) for C, count, stride in stages for i in range(count)]


def folded(C, K, window, stride=1):
    return nn.Conv2d(C, K, window, stride, window // 2)


def normalized(C, K, window, stride=1):
    return nn.Conv2d(C, K, window, stride, window // 2, bias=False), nn.BatchNorm2d(K)


def head(C, outputs):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, outputs)


def both(network):
    """The network, and one of the same weights whose convolutions are convlib's."""
    return network, replace_convolutions(copy.deepcopy(network))
