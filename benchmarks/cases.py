"""What is measured: layers of known networks (convlib/layers.json), their gradients, image filters; their operands.

Inputs are standard normal and weights normal over the square root of C R S (per group), so outputs are of unit size
and errors of different layers can be compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from convlib import layers
from convlib.problem import ConvProblem, make_problem, named_dtype

FILTERS = "filters"
IMAGE_SIZES = {"512": (512, 512), "1080p": (1080, 1920), "2160p": (2160, 3840)}
WINDOWS = (3, 5, 7, 9, 11, 15, 21, 31)

# What training needs beside the forward pass, on batches: a suite for each network and gradient.
GRADIENTS = {"input-grad": "input_grad", "weight-grad": "weight_grad"}
GRADIENT_NETWORKS, GRADIENT_BATCH = ("resnet50", "vgg16", "mobilenet_v2"), 8

# One layer of each kind for --quick: first layer, 3x3 early and late, 1x1, strided 1x1, depthwise at both strides.
QUICK = {
    "resnet50": ("3x224x224-64-7x7/2", "64x56x56-64-3x3", "256x56x56-64-1x1", "1024x14x14-2048-1x1/2"),
    "vgg16": ("64x224x224-64-3x3", "512x14x14-512-3x3"),
    "mobilenet_v2": ("144x56x56-144-3x3-g144", "96x112x112-96-3x3/2-g96", "32x28x28-192-1x1"),
    "unet_same_256": ("128x128x128-128-3x3", "64x256x256-2-1x1"),
    FILTERS: ("1080p-1-3x3", "512-3-9x9"),
}


@dataclass(frozen=True)
class Case:
    """One problem to measure. suite: a network's name, one of its gradients or "filters"; count: how often there."""

    suite: str
    name: str
    problem: ConvProblem
    count: int = 1

    def __str__(self):
        return f"{self.suite}:{self.name}"


@dataclass(frozen=True)
class Operands:
    """The arrays of a case in logical order: x (N, C, H, W), w (K, C / groups, R, S), bias (K,) or None.

    grad_y: (N, K, P, Q), for the gradients only.
    """

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    grad_y: np.ndarray | None = None


def operands(case: Case) -> Operands:
    """The same numbers for the same case, on any machine."""
    problem = case.problem
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))

    def normal(shape, scale=1.0):
        return (rng.standard_normal(shape, dtype=problem.accumulate) * problem.accumulate.type(scale)).astype(
            problem.dtype
        )

    x = normal(problem.x_shape)
    filters = 1 if case.suite == FILTERS else problem.K  # one filter for every channel of an image
    w = normal((filters, *problem.w_shape[1:]), 1 / np.sqrt(problem.reduction))
    bias = normal(problem.K) if problem.has_bias else None
    grad_y = None if problem.pass_ == "forward" else normal(problem.y_shape)
    return Operands(x, np.repeat(w, problem.K // filters, axis=0), bias, grad_y)


def network_cases(network: str) -> list[Case]:
    return [Case(network, layer.name, layer.problem, layer.count) for layer in layers.layers(network)]


def filter_cases() -> list[Case]:
    """One filter over images of one channel, and of three interleaved ones (NHWC), keeping the size."""
    return [filter_case(size, channels, window) for size in IMAGE_SIZES for channels in (1, 3) for window in WINDOWS]


def filter_case(size: str, channels: int, window: int) -> Case:
    H, W = IMAGE_SIZES[size]
    layout, shape = ("NCHW", (1, 1, H, W)) if channels == 1 else ("NHWC", (1, H, W, channels))
    problem = make_problem(
        shape, (channels, 1, window, window), "float32", padding=window // 2, groups=channels, layout=layout
    )
    return Case(FILTERS, f"{size}-{channels}-{window}x{window}", problem)


def batch_of(case: Case, N: int) -> Case:
    """The case with N images for each one it has."""
    if N == 1:
        return case
    return replace(case, name=f"{N * case.problem.N}x{case.name}", problem=replace(case.problem, N=N * case.problem.N))


def in_dtype(case: Case, dtype: str) -> Case:
    """The case in another dtype."""
    return replace(case, problem=replace(case.problem, dtype=named_dtype(dtype)))


def in_layout(case: Case, layout: str | None) -> Case:
    """The case with x and y in another layout, which its name says; None leaves each case its own."""
    if layout is None:
        return case
    name = case.name.removesuffix("-NHWC") + ("-NHWC" if layout == "NHWC" else "")
    return replace(case, name=name, problem=replace(case.problem, layout=layout))


def gradient_cases(suite: str) -> list[Case]:
    """A network's layers, each as the problem of one gradient on a batch; without bias: its gradient is a plain sum."""
    batches = [batch_of(case, GRADIENT_BATCH) for case in network_cases(suite.partition("-")[0])]
    return [
        replace(case, suite=suite, problem=replace(case.problem, pass_=gradient_of(suite), has_bias=False))
        for case in batches
    ]


def suites() -> tuple[str, ...]:
    return (*layers.networks(), FILTERS)


def gradient_suites() -> tuple[str, ...]:
    return tuple(f"{network}-{gradient}" for network in GRADIENT_NETWORKS for gradient in GRADIENTS)


def gradient_of(suite: str) -> str | None:
    """The pass that a suite measures; None for the forward one."""
    return GRADIENTS.get(suite.partition("-")[2])


def cases(suite: str) -> list[Case]:
    """All cases of a network, of a network's gradient or of "filters"."""
    if suite == FILTERS:
        return filter_cases()
    return gradient_cases(suite) if gradient_of(suite) else network_cases(suite)


def quick_cases(suites: Iterable[str] = tuple(QUICK)) -> list[Case]:
    """A dozen cases of every kind; of a network's gradient those that its forward pass has."""
    return [case for suite in suites for case in cases(suite) if case.name in quick_names(suite)]


def quick_names(suite: str) -> tuple[str, ...]:
    if gradient_of(suite):
        return tuple(f"{GRADIENT_BATCH}x{name}" for name in QUICK[suite.partition("-")[0]])
    return QUICK.get(suite, ())
