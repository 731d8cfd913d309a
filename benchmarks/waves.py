"""How the layers of networks fill a GPU's multiprocessors, the time predicted for them, and what limits each.

For the implicit product and the depthwise kernel, with the tile that their launchers choose:

    busy       of the multiprocessors' time until the last is done, what blocks take, if all take equally long
    last wave  of the blocks that fit the GPU at once, how many its last wave has

A layer passes if it is busy for four fifths or its product is split. Predicted is not measured: no GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.table import Table

from convlib import layers
from convlib.device import Device
from convlib.kernels import gpu_cost
from convlib.kernels.cupy_raw import depthwise, implicit_gemm
from convlib.problem import ConvProblem

NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
LEAST_BUSY = 0.8
WARPS_AT_ONCE = {256: 16}  # of an SM, by a block's threads, as register_tile.cuh asks the compiler for; 12 otherwise


@dataclass(frozen=True, slots=True)
class Row:
    """One layer on one GPU. tile: in words; last_wave: None where how many blocks fit an SM is not settled."""

    network: str
    layer: str
    kernel: str
    tile: str
    splits: int
    blocks: int
    busy: float
    last_wave: float | None
    predicted_seconds: float
    limited_by: str

    @property
    def passes(self) -> bool:
        return self.splits > 1 or self.busy >= LEAST_BUSY


def rows(place: Device, images: int, layout: str, networks: Iterable[str] = NETWORKS) -> list[Row]:
    """A row for every layer of the networks, at `images` images in `layout`."""
    found = []
    for network in networks:
        for layer in layers.layers(network):
            problem = replace(layer.problem, N=images, layout=layout)
            row = depthwise_row if problem.Cg == 1 and problem.groups > 1 else product_row
            found.append(row(network, layer.name, problem, place))
    return found


def product_row(network: str, layer: str, problem: ConvProblem, place: Device) -> Row:
    cut = implicit_gemm.cut_for(problem, place)
    blocks = math.prod(cut.grid(problem))
    at_once = place.sm_count * (32 * WARPS_AT_ONCE.get(cut.threads, 12) // cut.threads)
    parts = implicit_gemm.parts(problem, place, cut)
    names = {"multiply": "multiply-adds", "add": "the sums of splits", "memory": "memory", "launches": "launches"}
    limit = names[max(parts._fields, key=lambda field: getattr(parts, field))]
    return Row(
        network, layer, "implicit_gemm", f"{cut.tile_k} x {cut.tile_m}", cut.splits, blocks,
        implicit_gemm.busy_share(problem, place, cut), (blocks % at_once or at_once) / at_once,
        implicit_gemm.predicted_seconds(problem, place), limit,
    )  # fmt: skip


def depthwise_row(network: str, layer: str, problem: ConvProblem, place: Device) -> Row:
    tile = depthwise.tile_for(problem, place)
    blocks = math.prod(tile.grid(problem))
    predicted = depthwise.predicted_seconds(problem, place)
    limits = {"launches": gpu_cost.LAUNCH, "memory": gpu_cost.memory_seconds(problem, place)}
    limits["instructions"] = predicted - sum(limits.values())
    return Row(
        network, layer, "depthwise", f"{tile.rows} rows", 1, blocks,
        blocks / (math.ceil(blocks / place.sm_count) * place.sm_count), None, predicted, max(limits, key=limits.get),
    )  # fmt: skip


def table(found: list[Row], place: Device, images: int, layout: str) -> Table:
    batch = "1 image" if images == 1 else f"{images} images"
    head = f"{place.name}, {place.sm_count} SMs, {batch}, {layout}: times are predicted, never measured"
    drawn = Table(title=head, title_justify="left")
    for name in ("network", "layer", "kernel", "tile", "limited by"):
        drawn.add_column(name)
    for name in ("splits", "blocks", "busy", "last wave", "predicted µs"):
        drawn.add_column(name, justify="right")
    for row in found:
        last = "" if row.last_wave is None else f"{row.last_wave:.0%}"
        busy = f"{row.busy:.0%}" if row.passes else f"[bold red]{row.busy:.0%}[/]"
        drawn.add_row(
            row.network, row.layer, row.kernel, row.tile, row.limited_by, str(row.splits), f"{row.blocks:,}", busy,
            last, f"{row.predicted_seconds * 1e6:,.1f}",
        )  # fmt: skip
    return drawn
