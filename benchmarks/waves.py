"""How the layers of networks fill a GPU's multiprocessors, the time predicted for them, and what limits each.

For a product (implicit_gemm in float32, tensor_core in float16, and Winograd's where one of them is predicted to be the
fastest) and for the depthwise layers, with the tile that their launchers choose, in each pass: input gradients are
forward products, one for each phase of the stride; weight gradients have kernels of their own. Winograd's batched
product has a row for slices of equally many tiles.

    tile       "64 x 64 in 2": two slices of a block share its reduction
    whole      tiles that are one block each, and how many others are split in how many parts
    last wave  of the slots, SMs times the blocks that one has room for, how many the last wave of blocks has; where
               whole tiles come before parts of tiles they fill their waves, and the last wave is of parts; where tiles
               are of one stage and blocks stay, each for one after the other, there is one wave, of all slots
    busy       of the multiprocessors' time until the last is done, what blocks take, if all take equally long

A product passes if its last wave fills four fifths of the slots or it is split; a depthwise layer if it is busy for
four fifths, since its blocks are bound by memory, not by slots, and so does Winograd's batched product, of which a
slice is several waves of small blocks. A row that does not pass says why in `not full`: how many times as long the
fastest cut that does is predicted to take; or that there is none, as of a reduction of one stage, which nothing splits.
Predicted is not measured: no GPU is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from convlib import accuracy, dispatch, layers
from convlib.device import Device
from convlib.input_grad_phases import phases
from convlib.kernels import gpu_cost
from convlib.kernels.cupy_raw import (
    depthwise,
    depthwise_input_grad,
    depthwise_tiles,
    depthwise_weight_grad,
    implicit_gemm,
    tensor_core,
    tensor_core_weight_grad,
    waves,
    weight_grad,
    winograd_batched,
    winograd_fused,
)
from convlib.kernels.cupy_raw.cut import fills, slots
from convlib.problem import ConvProblem

NETWORKS = ("vgg16", "resnet50", "mobilenet_v2")
PRODUCTS = {"implicit_gemm": (implicit_gemm, "float32"), "tensor_core": (tensor_core, "float16")}
WEIGHT_GRADS = {"implicit_gemm": weight_grad, "tensor_core": tensor_core_weight_grad}
PASSES = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True, slots=True)
class Row:
    """One layer on one GPU. tile: in words; last_wave: None where `busy` counts; dearer: None where it passes, or
    nothing would; stages: of the whole reduction, 0 where none is split.
    """

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
    stages: int = 0

    @property
    def blocks(self) -> int:
        return self.whole + self.split_tiles * self.splits

    @property
    def passes(self) -> bool:
        return self.splits > 1 or (self.busy if self.last_wave is None else self.last_wave) >= waves.FULL

    @property
    def why_not_full(self) -> str:
        """In words; empty where it passes."""
        if self.passes:
            return ""
        if self.dearer is not None:
            return f"full: {self.dearer:.2f} times as long"
        return "one stage: nothing to split" if self.stages == 1 else "no tile fills"


def rows(
    place: Device,
    images: int,
    layout: str,
    networks: Iterable[str] = NETWORKS,
    product: str = "implicit_gemm",
    pass_: str = "forward",
) -> list[Row]:
    """A row for every launch that multiplies for the networks' layers, at `images` images in `layout`.

    Depthwise layers, and Winograd's, only beside implicit_gemm.
    """
    of_layer = {"forward": forward_rows, "input_grad": input_grad_rows, "weight_grad": weight_grad_rows}[pass_]
    dtype = np.dtype(PRODUCTS[product][1])
    found = []
    for network in networks:
        for layer in layers.layers(network):
            problem = replace(layer.problem, N=images, layout=layout, dtype=dtype, pass_=pass_)
            if pass_ != "forward":
                problem = replace(problem, activation=None, has_bias=False, has_residual=False)
            if not is_depthwise(problem) or product == "implicit_gemm":
                found += of_layer(network, layer.name, product, problem, place)
    return found


def is_depthwise(problem):
    return problem.Cg == problem.Kg == 1 < problem.groups


def forward_rows(network, layer, product, problem, place):
    if is_depthwise(problem):
        return [depthwise_row(network, layer, problem, place)]
    found = [product_row(network, layer, product, PRODUCTS[product][0], problem, place)]
    if product == "implicit_gemm":
        fastest = predicted_fastest(problem, place)
        if fastest == "cupy_raw.winograd_fused":
            found.append(winograd_row(network, layer, problem, place))
        if fastest == "cupy_raw.winograd_batched":
            found += winograd_batched_rows(network, layer, problem, place)
    return found


def input_grad_rows(network, layer, product, problem, place):
    """Of a strided depthwise layer all phases at once; else those of one window are one row."""
    if is_depthwise(problem) and problem.stride != (1, 1):
        tile, places = depthwise_input_grad.tile_for(problem, place), depthwise_input_grad.over_grad_y(problem)
        seconds = depthwise_input_grad.predicted_seconds(problem, place)
        row = of_memory(network, layer, "depthwise_input_grad", tile, tile.grid(places), seconds, problem, place)
        others = [
            (math.prod(other.grid(places)), 1, depthwise_input_grad.seconds(problem, places, place, other))
            for other in depthwise_input_grad.tiles(problem) if fits(places, other)
        ]  # fmt: skip
        return [with_dearer(row, others, place, gpu_cost.LAUNCH)]
    found = []
    for part in dict.fromkeys(phase.problem for phase in phases(problem) if phase.problem is not None):
        name = layer if problem.stride == (1, 1) else f"{layer}, {part.R}x{part.S} of it"
        found += forward_rows(network, name, product, part, place)
    return found


def weight_grad_rows(network, layer, product, problem, place):
    if is_depthwise(problem):
        tile = depthwise_weight_grad.tile_for(problem, place)
        seconds = depthwise_weight_grad.predicted_seconds(problem, place)
        row = of_memory(
            network, layer, "depthwise_weight_grad", tile, tile.grid(problem), seconds, problem, place, launches=2
        )
        others = [
            (math.prod(other.grid(problem)), other.splits, depthwise_weight_grad.seconds(problem, place, other))
            for other in depthwise_weight_grad.tiles(problem, place) if fits(problem, other)
        ]  # fmt: skip
        return [with_dearer(row, others, place, 2 * gpu_cost.LAUNCH)]
    module = WEIGHT_GRADS[product]
    cut = module.cut_for(problem, place)
    tiles, splits = cut.grid(problem)
    whole, split = (tiles, 0) if splits == 1 else (0, tiles)
    if module is weight_grad:
        kernel, tile = "weight_grad", f"{cut.tile_k} x {cut.tile_m}"
    else:
        kernel, tile = "tensor_core_weight_grad", words(cut.tile)
    row = Row(
        network, layer, kernel, tile, whole, split, splits, waves.busy(cut.blocks, place.sm_count),
        waves.last_wave(cut.blocks, slots(cut, place)), module.predicted_seconds(problem, place),
        limit_of_weight_grad(module, problem, place, cut),
    )  # fmt: skip
    return [row if row.passes else replace(row, dearer=dearer(module, problem, place, 2 * gpu_cost.LAUNCH))]


def limit_of_weight_grad(module, problem, place, cut):
    memory = gpu_cost.memory_seconds(problem, place)
    limits = {"launches": 2 * gpu_cost.LAUNCH, "memory": memory}
    limits["the sums of splits"] = gpu_cost.passing_seconds(place, cut.partial_bytes)
    rest = module.seconds(problem, place, cut) - limits["the sums of splits"]
    limits["multiply-adds"] = rest - memory if module is weight_grad else rest * (rest > memory)
    return max(limits, key=limits.get)


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
        waves.busy(cut.whole + cut.parts, place.sm_count), waves.last_wave(cut.parts or cut.blocks, slots(cut, place)),
        module.predicted_seconds(problem, place), limit_of(module.parts(problem, place, cut)),
    )  # fmt: skip
    return row if row.passes else replace(row, dearer=dearer(module, problem, place), stages=cut.stages)


def words(tile):
    slices = getattr(tile, "slices", 1)
    return f"{tile[0]} x {tile[1]}" + (f" in {slices}" if slices > 1 else "")


def dearer(module, problem, place, launches=0):
    """How many times as long as the fastest cut the fastest that passes takes; None where none passes.

    launches: seconds that module.seconds leaves out.
    """
    seconds = {cut: module.seconds(problem, place, cut) + launches for cut in module.cuts(problem, place)}
    passing = [seconds[cut] for cut in seconds if fills(cut, place)]
    return min(passing) / min(seconds.values()) if passing else None


def with_dearer(row, others, place, launches):
    """A row that goes by `busy`. others: of every tile its blocks, its splits and its seconds beside the launches'."""
    if row.passes:
        return row
    passing = [s for blocks, splits, s in others if splits > 1 or waves.busy(blocks, place.sm_count) >= waves.FULL]
    fastest = min(s for _, _, s in others) + launches
    return replace(row, dearer=(min(passing) + launches) / fastest if passing else None)


def fits(problem, tile):
    return depthwise_tiles.shared_bytes(problem, tile) <= depthwise_tiles.SHARED_BYTES


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


def winograd_batched_rows(network, layer, problem: ConvProblem, place: Device) -> list[Row]:
    """Its matrix product's launches: those of slices of as many tiles are one row."""
    sizes = winograd_batched.matrices(problem, place)
    found = []
    for tiles, count in Counter(tiles for _, tiles in winograd_batched.slices(problem, sizes)).items():
        others = [
            (
                winograd_batched.product_blocks(problem, other, tiles), 1,
                count * winograd_batched.multiply_seconds(problem, place, other, tiles),
            )
            for other in winograd_batched.possible_matrices(problem)
        ]  # fmt: skip
        blocks = winograd_batched.product_blocks(problem, sizes, tiles)
        name, tile = f"{layer}, slice of {tiles:,}", f"{sizes.tile_k} x {sizes.tile_m}"
        row = Row(
            network, name, "winograd_batched", tile, blocks, 0, 1, waves.busy(blocks, place.sm_count), None,
            count * winograd_batched.multiply_seconds(problem, place, sizes, tiles), "multiply-adds",
        )  # fmt: skip
        found.append(with_dearer(row, others, place, 0))
    return found


def of_memory(network, layer, kernel, tile, grid, predicted, problem: ConvProblem, place: Device, launches=1) -> Row:
    """A row of a depthwise kernel, whose blocks are bound by memory."""
    blocks, splits = math.prod(grid), grid[1] if launches == 2 else 1
    limits = {"launches": launches * gpu_cost.LAUNCH, "memory": gpu_cost.memory_seconds(problem, place)}
    limits["instructions"] = predicted - sum(limits.values())
    whole, split = (blocks, 0) if splits == 1 else (0, blocks // splits)
    return Row(
        network, layer, kernel, f"{tile.rows} rows", whole, split, splits, waves.busy(blocks, place.sm_count), None,
        predicted, max(limits, key=limits.get),
    )  # fmt: skip


def depthwise_row(network, layer, problem: ConvProblem, place: Device) -> Row:
    tile, predicted = depthwise.tile_for(problem, place), depthwise.predicted_seconds(problem, place)
    return of_memory(network, layer, "depthwise", tile, tile.grid(problem), predicted, problem, place)


def table(found: list[Row], place: Device, images: int, layout: str) -> Table:
    batch = "1 image" if images == 1 else f"{images} images"
    head = f"{place.name}, {place.sm_count} SMs, {batch}, {layout}: times are predicted, never measured"
    drawn = Table(title=head, title_justify="left")
    for name in ("network", "layer", "kernel", "tile", "limited by"):
        drawn.add_column(name)
    for name in ("whole", "split", "busy", "last wave", "predicted µs"):
        drawn.add_column(name, justify="right")
    drawn.add_column("not full")
    for row in found:
        last = "" if row.last_wave is None else f"{row.last_wave:.0%}"
        busy = f"{row.busy:.0%}"
        if not row.passes:
            last, busy = (f"[bold red]{last}[/]", busy) if last else (last, f"[bold red]{busy}[/]")
        split = f"{row.split_tiles:,} in {row.splits}" if row.splits > 1 else ""
        drawn.add_row(
            row.network, row.layer, row.kernel, row.tile, row.limited_by, f"{row.whole:,}", split, busy, last,
            f"{row.predicted_seconds * 1e6:,.1f}", row.why_not_full,
        )  # fmt: skip
    return drawn
