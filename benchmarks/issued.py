"""Which share of the instructions that a kernel's launches issue are multiply-adds that the problem asked for.

    PTX --> assembled with its own lines as line numbers --> SASS, each instruction with the PTX line it came from
        --> emulated, some blocks of the grid             --> how many warps came to each line

    issued = sum over SASS basic blocks of  instructions * how many warps came there
    share  = multiply-adds of the problem / 32 / issued

The launches are those of a single call, which packs the weights, or of a plan, which has packed them before. Prologue,
epilogue and sums of splits are in it, and so is what pads a tile. An instruction that the assembler moved to another
basic block says nothing about that block; so a block counts as most of its instructions do. Of a large grid one block
of each kind runs and stands for all of its kind: inside or at an end, and of the product with a whole tile or a split
of one. The product's loop is not run to its end either: its block issues

    a + s * stages + t * turns          stages: of the loop; turns: to the channels of the window's next tap

three short runs tell a, s and t, and every block of the grid is charged for its own stages and turns. Where a window
leaves the image, predicates change, which no count sees.
No time is measured and no GPU is needed.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from rich.table import Table

from convlib import compiling, dispatch, emulator, layers, strided
from convlib.device import Device
from convlib.kernels import launching
from convlib.kernels.cupy_raw import implicit_gemm
from convlib.problem import ConvProblem
from convlib.report import INSTRUCTION, LABEL

KERNEL = "cupy_raw.implicit_gemm"
NETWORKS = ("resnet50", "vgg16")
BARS = {1: 0.60, 32: 0.75}  # least share, by the images
DEPTH = implicit_gemm.DEPTH
FEW = 6  # blocks: up to so many all run
LINE = re.compile(r'//## File "kernel.ptx", line (\d+)')
ENDS = ("BRA", "EXIT", "RET", "BRX", "CALL", "JMP")


@dataclass(frozen=True, slots=True)
class Block:
    """A basic block of machine code. size: its instructions; lines: of the PTX, one for each that has one."""

    size: int
    lines: tuple[int, ...]

    def warps(self, came: dict[int, int]) -> int:
        counts = Counter(came.get(line, 0) for line in self.lines)
        return counts.most_common(1)[0][0] if counts else 0


@dataclass(frozen=True, slots=True)
class Launched:
    """One launch of a kernel. issued: warp instructions of its whole grid, counted on some blocks of it."""

    function: str
    grid: tuple[int, int, int]
    issued: float


@dataclass(frozen=True, slots=True)
class Share:
    """Of one problem's launches, what they issued, and the multiply-adds of the problem."""

    problem: ConvProblem
    packing: Launched
    launches: tuple[Launched, ...]  # of a plan

    @property
    def multiply_adds(self) -> float:
        """The problem's, by warps: what the launches cannot do without."""
        return self.problem.macs / 32

    @property
    def of_plan(self) -> float:
        return self.multiply_adds / sum(launch.issued for launch in self.launches)

    @property
    def of_call(self) -> float:
        """The least: a plan issues nothing that a single call does not."""
        return self.multiply_adds / sum(launch.issued for launch in (self.packing, *self.launches))


def layers_of(networks, images: int, layout: str) -> list[tuple[str, ConvProblem]]:
    """The 3x3 layers with 64 channels and more, named, at `images` images."""
    return [
        (f"{network}:{layer.name}", replace(layer.problem, N=images, layout=layout))
        for network in networks
        for layer in layers.layers(network)
        if (layer.problem.R, layer.problem.S) == (3, 3) and layer.problem.Cg >= 64
    ]


def share(kernel: str, problem: ConvProblem, place: Device) -> Share:
    """Of a listed kernel in CUDA C, compiled for `place` and cut for its multiprocessors.

    Raises ValueError where the kernel cannot run the problem.
    """
    module = dispatch.kernel(kernel)
    cut = module.cut_for(problem, place)
    reasons = module.why_not(problem, place)
    if reasons:
        raise ValueError(f"{kernel} cannot run {problem}: {'; '.join(reasons)}")
    x, y, bias, residual = operands(problem)
    w = np.ones(problem.w_shape, problem.dtype)
    workspace = strided.empty_aligned((module.one_call_bytes(problem, place),), np.uint8)
    with launching.recording() as launches:
        module.run(problem, place, x, w, y, bias, residual, workspace)
    target = int("".join(map(str, place.compute_capability)))
    pack, product, *add = launches
    counted = [of_product(product, target, problem, cut), *(launched(a, target) for a in add)]
    return Share(problem, launched(pack, target), tuple(counted))


def operands(problem):
    """Arrays of one image that stand for the whole batch: which image a block has changes no instruction of it."""

    def image(shape):
        n, c, h, w = shape
        stored = (c, h, w) if problem.layout == "NCHW" else (h, w, c)
        one = strided.empty_aligned(stored, problem.dtype)
        one[...] = 1
        one = one if problem.layout == "NCHW" else one.transpose(2, 0, 1)
        return np.lib.stride_tricks.as_strided(one, (n, c, h, w), (0, *one.strides))

    bias = np.ones(problem.K, problem.dtype) if problem.has_bias else None
    residual = image(problem.y_shape) if problem.has_residual else None
    return image(problem.x_shape), image(problem.y_shape), bias, residual


def launched(launch, target):
    issued = sum(weight * issued_by(launch, target, blocks) for blocks, weight in representatives(launch.grid))
    return Launched(launch.kernel.function, launch.grid, issued)


def issued_by(launch, target, blocks, args=None):
    """Warp instructions of these blocks, by their linear indices. args: others than the launch's."""
    function = launch.kernel.function
    ptx = compiling.cuda_source_ptx(launch.kernel, target)
    report = emulator.launch(
        ptx, function, launch.grid, launch.block, launching.with_null_pointers(args or launch.args),
        launch.shared_bytes, checks=False, blocks=blocks,
    )  # fmt: skip
    return sum(block.size * block.warps(report.counters.lines) for block in code_of(ptx, function, target))


def representatives(grid):
    """Linear indices of blocks to run, and how many blocks each stands for: one inside, and the last of each axis."""
    if math.prod(grid) <= FEW:
        return [(np.arange(math.prod(grid)), 1)]
    along = [[(n // 2, n - 1), (n - 1, 1)] if n > 1 else [(0, 1)] for n in grid]
    return [
        ([x + grid[0] * (y + grid[1] * z)], of_x * of_y * of_z)
        for x, of_x in along[0] for y, of_y in along[1] for z, of_z in along[2]
    ]  # fmt: skip


def of_product(launch, target, problem, cut):
    """Of the implicit product's launch: whole tiles first, then the splits of others, split by split."""
    costs, issued = {}, 0
    for number, tile, stages, turns in blocks_of_product(problem, cut):
        kind = number < cut.whole, *ends_of(problem, cut, tile)
        if kind not in costs:
            costs[kind] = costs_of(launch, target, number if number < cut.whole else tile)
        issued += np.dot(costs[kind], (1, stages, turns))
    return Launched(launch.kernel.function, launch.grid, float(issued))


def blocks_of_product(problem, cut):
    """The number of every block, its tile, its stages, and how often it turns to a window's next tap."""
    in_tap, last = cut.channels // DEPTH, cut.depth // DEPTH
    for tile in range(cut.whole):
        yield tile, tile, last, problem.R * problem.S - 1
    for split in range(cut.splits if cut.split_tiles else 0):
        first = split * cut.stages
        behind = min(first + cut.stages, last)
        for tile in range(cut.whole, cut.whole + cut.split_tiles):
            yield tile + split * cut.split_tiles, tile, behind - first, (behind - 1) // in_tap - first // in_tap


def costs_of(launch, target, block):
    """a, s and t of a block, of the first split if it is one, from runs of 4 and 6 stages with 2 or 3 in a tap."""
    *others, part = launch.args
    counts = []
    for stages, in_tap in ((4, 2), (6, 3), (6, 2)):
        short = part.copy()
        short["stages"], short["depth"], short["channels"] = stages, stages * DEPTH, in_tap * DEPTH
        counts.append(issued_by(launch, target, [block], (*others, short)))
    runs = [(1, stages, turns) for stages, turns in ((4, 1), (6, 1), (6, 2))]
    return np.linalg.solve(runs, counts).round(6)


def ends_of(problem, cut, tile):
    """Whether a tile sticks out of the pixels, and of the filters."""
    across = cut.filters // cut.tile.filters
    pixels_end = (
        problem.N * problem.P * problem.Q % cut.tile.pixels > 0 and tile // across % cut.tiles_m == cut.tiles_m - 1
    )
    return pixels_end, problem.Kg % cut.tile.filters > 0 and tile % across == across - 1


@cache
def code_of(ptx, function, target):
    return blocks_of(compiling.sass(compiling.cubin_with_ptx_lines(ptx, target), lines=True), function)


def blocks_of(sass, function):
    """The basic blocks of `function`, without those that only fill up its end."""
    found, names, lines, line, inside = [], [], [], None, False

    def close():
        if any(not name.startswith("NOP") for name in names) and [name[:3] for name in names] != ["BRA"]:
            found.append(Block(len(names), tuple(lines)))
        names.clear()
        lines.clear()

    for text in sass.splitlines():
        if text.startswith(".text."):
            inside = text == f".text.{function}:"
        if not inside:
            continue
        if LABEL.match(text):
            close()
        elif at := LINE.search(text):
            line = int(at[1])
        elif instruction := INSTRUCTION.search(text):
            names.append(instruction[2])
            if line is not None:
                lines.append(line)
            if instruction[2].startswith(ENDS):
                close()
    close()
    return tuple(found)


# As text


def write_csv(path: Path, found: list[tuple[str, Share]]) -> None:
    """A row for every launch, the layer's shares in each; issued: warp instructions of the whole grid."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("layer", "of_plan", "of_call", "multiply_adds", "function", "blocks", "issued"))
        for layer, one in found:
            shares = f"{one.of_plan:.4f}", f"{one.of_call:.4f}"
            for launch in (one.packing, *one.launches):
                numbers = math.prod(launch.grid), round(launch.issued)
                rows.writerow((layer, *shares, round(one.multiply_adds), launch.function, *numbers))


def table(found: list[tuple[str, Share]], place: Device, images: int, layout: str) -> Table:
    batch = "1 image" if images == 1 else f"{images} images"
    head = f"{KERNEL} for {place.name}, {batch}, {layout}: instructions per multiply-add needed, counted on a CPU"
    drawn = Table(title=head, title_justify="left")
    drawn.add_column("layer")
    for name in ("of a plan", "of a call", "pack", "multiply", "add splits", "grid"):
        drawn.add_column(name, justify="right")
    for layer, one in found:
        parts = [f"{launch.issued / one.multiply_adds:.3f}" for launch in (one.packing, *one.launches)]
        grid = " x ".join(str(n) for n in one.launches[0].grid if n > 1)
        drawn.add_row(layer, f"{one.of_plan:.1%}", f"{one.of_call:.1%}", *parts, *[""] * (3 - len(parts)), grid)
    return drawn
