"""The convolution layers of known networks, read from layers.json: the one place where tests and benchmarks take them.

Each layer of the file has its `type` ("conv" or "conv_transpose"), N C H W K R S, stride, padding (rows, columns),
dilation, groups, bias, its output's P and Q, its multiply-adds (`macs`) and how often it occurs (`count`); a layer with
channels last has `layout` "NHWC".
Networks: ResNet-50 (stride in the 3x3, as torchvision has it), VGG-16, MobileNetV2, a U-Net with "same" padding on
256x256, and the small MNIST network of many tutorials. Under "other_networks" stand single layers of many others, one
or a few of each kind that none of these has; `of` says whose they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .problem import ConvProblem, make_problem


@dataclass(frozen=True, slots=True)
class Layer:
    """One distinct layer of a network. count: how often it occurs there; macs: multiply-adds of one occurrence."""

    network: str
    name: str
    problem: ConvProblem
    count: int
    macs: int


def networks() -> tuple[str, ...]:
    """The names of the networks.

    >>> networks()
    ('article_mnist_cnn', 'resnet50', 'vgg16', 'mobilenet_v2', 'unet_same_256', 'other_networks')
    """
    return tuple(tables())


def layers(network: str) -> tuple[Layer, ...]:
    """The distinct convolution layers of `network`, in the order in which they occur; transposed ones are left out.

    Raises ValueError for a network that is not in the file.

    >>> layers("vgg16")[1].name
    '64x224x224-64-3x3'
    """
    if network not in tables():
        raise ValueError(f"network: one of {', '.join(networks())} needed, got {network!r}")
    rows = (row for row in tables()[network]["layers"] if row["type"] == "conv")
    return tuple(Layer(network, layer_name(row), layer_problem(row), row["count"], row["macs"]) for row in rows)


@cache
def tables() -> dict:
    return json.loads((Path(__file__).parent / "layers.json").read_text())


def layer_name(row: dict) -> str:
    """Input, filters and window; batch, stride, dilation and groups where they are not 1, a layout that is not NCHW."""
    name = "{C}x{H}x{W}-{K}-{R}x{S}".format(**row)
    if row["N"] != 1:
        name = f"{row['N']}x{name}"
    if row["stride"] != [1, 1]:
        name += "/" + "x".join(str(s) for s in dict.fromkeys(row["stride"]))
    if row["dilation"] != [1, 1]:
        name += "-d" + "x".join(str(d) for d in dict.fromkeys(row["dilation"]))
    if row["groups"] != 1:
        name += f"-g{row['groups']}"
    if layout_of(row) != "NCHW":
        name += f"-{layout_of(row)}"
    return name


def layout_of(row: dict) -> str:
    return row.get("layout", "NCHW")


def layer_problem(row: dict) -> ConvProblem:
    layout = layout_of(row)
    C, K, R, S = (row[axis] for axis in "CKRS")
    return make_problem(
        tuple(row[axis] for axis in layout),
        (K, C // row["groups"], R, S),
        "float32",
        layout=layout,
        stride=tuple(row["stride"]),
        padding=tuple(row["padding"]),
        dilation=tuple(row["dilation"]),
        groups=row["groups"],
        has_bias=row["bias"],
    )


def layer_called(text: str) -> Layer:
    """The layer that "network:which" names: its place from 1 on, its name, or, of VGG-16, the paper's name.

    Raises ValueError, with the names there are, for any other.

    >>> layer_called("vgg16:conv3_1").name, layer_called("vgg16:5").name
    ('128x56x56-256-3x3', '128x56x56-256-3x3')
    """
    network, _, which = text.partition(":")
    found = layers(network)
    called = {str(i): layer for i, layer in enumerate(found, 1)} | {layer.name: layer for layer in found}
    papers = papers_names(found) if network == "vgg16" else {}
    if which not in called | papers:
        names = ", ".join([*(layer.name for layer in found), *papers])
        raise ValueError(
            f"layer: a number from 1 to {len(found)} or a name needed after {network}:, got {which!r}; names: {names}"
        )
    return (called | papers)[which]


def papers_names(found):
    """conv1_1 to conv5_3, as VGG-16's authors number its layers: blocks of one image size, layers within a block."""
    names, in_block = {}, {}
    for layer in found:
        block = list(dict.fromkeys(other.problem.H for other in found)).index(layer.problem.H) + 1
        for _ in range(layer.count):
            in_block[block] = in_block.get(block, 0) + 1
            names[f"conv{block}_{in_block[block]}"] = layer
    return names
