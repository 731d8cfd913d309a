"""How the layers of networks fill a GPU's multiprocessors, the time predicted for them, and what limits each.

For a product (implicit_gemm in float32, tensor_core in float16, winograd_fused where it is the one predicted to be the
fastest) and for the depthwise layers, with the tile that their launchers choose:

    tile       "64 x 64 in 2": two slices of a block share its reduction
    whole      tiles that are one block each, and how many others are split in how many parts
    last wave  of the slots, SMs times the blocks that one has room for, how many the last wave of blocks has; where
               whole tiles come before parts of tiles they fill their waves, and the last wave is of parts
    busy       of the multiprocessors' time until the last is done, what blocks take, if all take equally long

A product passes if its last wave fills four fifths of the slots or it is split; a depthwise layer if it is busy for
four fifths, since its blocks are bound by memory, not by slots. A product that does not pass says in `dearer` how many
times as long the fastest cut that does is predicted to take. Predicted is not measured: no GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from convlib import accuracy, dispatch, layers
from convlib.device import Device
from convlib.kernels import gpu_cost
from convlib.kernels.cupy_raw import depthwise, implicit_gemm, tensor_core, waves, winograd_fused
from convlib.problem import ConvProblem

NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
PRODUCTS = {"implicit_gemm": (implicit_gemm, "float32"), "tensor_core": (tensor_core, "float16")}
WINOGRAD = "cupy_raw.winograd_fused"


@dataclass(frozen=True, slots=True)
class Row:
    """One layer on one GPU. tile: in words; last_wave: None for depthwise; dearer: None where it passes, or nothing
    would."""

    network: str
    layer: str
    kernel: str
    tile: str
    whole: int
    split_tiles: int
    splits: int
    busy: float
    last_wave: float | None
    predicted_seconds: float
    limited_by: str
    dearer: float | None = None

    @property
    def blocks(self) -> int:
        return self.whole + self.split_tiles * self.splits

    @property
    def passes(self) -> bool:
        filled = self.busy if self.last_wave is None else self.last_wave
        return self.splits > 1 or filled >= waves.FULL


def rows(
    place: Device, images: int, layout: str, networks: Iterable[str] = NETWORKS, product: str = "implicit_gemm"
) -> list[Row]:
    """A row for every layer of the networks, at `images` images in `layout`, and more for those Winograd is chosen for.

    Depthwise layers, and Winograd's, only beside implicit_gemm.
    """
    module, dtype = PRODUCTS[product]
    found = []
    for network in networks:
        for layer in layers.layers(network):
            problem = replace(layer.problem, N=images, layout=layout, dtype=np.dtype(dtype))
            names = (network, layer.name)
            if problem.Cg > 1 or problem.groups == 1:
                found.append(product_row(*names, product, module, problem, place))
            elif module is implicit_gemm:
                found.append(depthwise_row(*names, problem, place))
            if module is implicit_gemm and predicted_fastest(problem, place) == WINOGRAD:
                found.append(winograd_row(*names, problem, place))
    return found


def predicted_fastest(problem: ConvProblem, place: Device) -> str:
    """The kernel of cupy_raw that a call would take, whether CuPy is installed here or not."""
    seconds = {}
    for name in (name for name in dispatch.KERNELS if dispatch.family_of(name) == "cupy_raw"):
        module, error = dispatch.kernel(name), accuracy.norm_relative(problem, dispatch.algorithm_of(name))
        serves = problem.pass_ in module.passes and not module.why_not(problem, place)
        if serves and error <= accuracy.DEFAULT_MAX_ERROR:
            seconds[name] = module.predicted_seconds(problem, place)
    return min(seconds, key=seconds.get)


def product_row(network, layer, kernel, module, problem: ConvProblem, place: Device) -> Row:
    cut = module.cut_for(problem, place)
    row = Row(
        network, layer, kernel, words(cut.tile), cut.whole, cut.split_tiles, cut.splits,
        waves.busy(cut.blocks, place.sm_count), waves.last_wave(cut.parts or cut.whole, cut.slots(place)),
        module.predicted_seconds(problem, place), limit_of(module.parts(problem, place, cut)),
    )  # fmt: skip
    return row if row.passes else replace(row, dearer=dearer(module, problem, place))


def words(tile):
    slices = getattr(tile, "slices", 1)
    return f"{tile[0]} x {tile[1]}" + (f" in {slices}" if slices > 1 else "")


def dearer(module, problem, place):
    """How many times as long as the fastest cut the fastest that passes takes; None where none passes."""
    seconds = {cut: module.seconds(problem, place, cut) for cut in module.cuts(problem, place)}
    passing = [seconds[cut] for cut in seconds if cut.fills(place)]
    return min(passing) / min(seconds.values()) if passing else None


def limit_of(parts):
    names = {"multiply": "multiply-adds", "add": "the sums of splits", "memory": "memory", "launches": "launches"}
    return names[max(parts._fields, key=lambda field: getattr(parts, field))]


def winograd_row(network, layer, problem: ConvProblem, place: Device) -> Row:
    """Its one block of 256 threads takes more registers than leave room for a second."""
    tiling = winograd_fused.tiling_for(problem, place)
    blocks, splits = tiling.grid(problem)
    whole, split = (0, blocks) if splits > 1 else (blocks, 0)
    share = waves.busy(blocks * splits, place.sm_count)
    return Row(
        network, layer, "winograd_fused", "64 x 32", whole, split, splits, share,
        waves.last_wave(blocks * splits, place.sm_count), winograd_fused.predicted_seconds(problem, place),
        "multiply-adds",
    )  # fmt: skip


def depthwise_row(network, layer, problem: ConvProblem, place: Device) -> Row:
    tile = depthwise.tile_for(problem, place)
    blocks = math.prod(tile.grid(problem))
    predicted = depthwise.predicted_seconds(problem, place)
    limits = {"launches": gpu_cost.LAUNCH, "memory": gpu_cost.memory_seconds(problem, place)}
    limits["instructions"] = predicted - sum(limits.values())
    return Row(
        network, layer, "depthwise", f"{tile.rows} rows", blocks, 0, 1, waves.busy(blocks, place.sm_count), None,
        predicted, max(limits, key=limits.get),
    )  # fmt: skip


def table(found: list[Row], place: Device, images: int, layout: str) -> Table:
    batch = "1 image" if images == 1 else f"{images} images"
    head = f"{place.name}, {place.sm_count} SMs, {batch}, {layout}: times are predicted, never measured"
    drawn = Table(title=head, title_justify="left")
    for name in ("network", "layer", "kernel", "tile", "limited by"):
        drawn.add_column(name)
    for name in ("whole", "split", "busy", "last wave", "dearer", "predicted µs"):
        drawn.add_column(name, justify="right")
    for row in found:
        last = "" if row.last_wave is None else f"{row.last_wave:.0%}"
        busy = f"{row.busy:.0%}"
        if not row.passes:
            last, busy = (f"[bold red]{last}[/]", busy) if last else (last, f"[bold red]{busy}[/]")
        split = f"{row.split_tiles:,} in {row.splits}" if row.splits > 1 else ""
        costs = "" if row.dearer is None else f"{row.dearer:.2f}"
        drawn.add_row(
            row.network, row.layer, row.kernel, row.tile, row.limited_by, f"{row.whole:,}", split, busy, last, costs,
            f"{row.predicted_seconds * 1e6:,.1f}",
        )  # fmt: skip
    return drawn
