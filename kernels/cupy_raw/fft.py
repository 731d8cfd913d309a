"""Large windows by Fourier transforms of tiles of 64 x 64. fft.cu tells the idea.

This file cuts outputs into tiles, large windows into blocks and the spectra into slices, and launches.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from .parameters import is_wide, problem_struct, size_reasons, store_constants, type_constants

TILE, RADIX, THREADS = 64, 8, 256  # as in fft.cu
WORKSPACE_BYTES = 64 << 20  # of the tiles' spectra, unless those of a single row of tiles take more

# Issue slots of one thread, counted in the machine code: the arithmetic of a transform; what else it takes, with its
# loads or stores; a product.
ARITHMETIC_SLOTS, MOVING_SLOTS, PRODUCT_SLOTS = 560, 840, 130
CACHE_SPEED = 3.0  # of the second-level cache, over memory's: spectra are read again and again
WAITING = cost.waiting("cupy_raw.fft", like="cupy_raw.tiled")  # the same barriers

passes = ("forward",)

SIZES = (
    "R", "S", "dilation_h", "dilation_w", "outputs_h", "outputs_w", "down", "across", "first_down", "second_n",
    "second_down", "block_r", "block_s", "blocks_r", "blocks_s",
)  # fmt: skip
TILES = np.dtype([("first_plane", "i8"), *((name, "i4") for name in SIZES)], align=True)


class Cut(NamedTuple):
    """One axis: outputs of a tile, taps of a block of the window, how many blocks."""

    outputs: int
    block: int
    blocks: int


class Tiling(NamedTuple):
    """rows, columns: their cuts. planes: (pairs of) images times channels; down, across: pairs of tiles.

    second_n, second_down: how many images, or rows of tiles, the second tile of a pair is behind the first.
    """

    rows: Cut
    columns: Cut
    planes: int
    down: int
    across: int
    second_n: int
    second_down: int

    @property
    def blocks(self):
        return self.rows.blocks * self.columns.blocks

    @property
    def pairs(self):
        return self.planes * self.down * self.across

    def spectra(self, down):
        """Of a plane in so many rows of pairs, with those that the window's further blocks reach."""
        return (down + self.rows.blocks - 1) * (self.across + self.columns.blocks - 1)


class Slices(NamedTuple):
    """What is worked on at a time: so many planes, and of each so many rows of pairs of tiles."""

    planes: int
    down: int


def cuts(taps, dilation):
    """The window whole, if outputs are left; or in blocks as long as the outputs, so that tiles serve all of them."""
    extent = (taps - 1) * dilation + 1
    found = [Cut(TILE - extent + 1, taps, 1)] if extent <= TILE else []
    block = (TILE // dilation + 1) // 2
    return found + ([Cut(block * dilation, block, ceil_div(taps, block))] if block and taps > block else [])


@lru_cache(maxsize=4096)
def tiling_for(problem, device):
    """The tiling predicted to be the fastest; None where the taps are too far apart."""
    both = product(cuts(problem.R, problem.dilation[0]), cuts(problem.S, problem.dilation[1]))
    found = [tiling_of(problem, rows, columns) for rows, columns in both]
    return min(found, key=lambda tiling: seconds(problem, device, tiling), default=None)


def tiling_of(problem, rows, columns):
    tiles = ceil_div(problem.P, rows.outputs)
    images, down = ceil_div(problem.N, 2), ceil_div(tiles, 2)
    by_images = problem.N > 1
    return Tiling(
        rows, columns, (images if by_images else problem.N) * problem.C, tiles if by_images else down,
        ceil_div(problem.Q, columns.outputs), images if by_images else 0, down if not by_images and tiles > 1 else 0,
    )  # fmt: skip


def alone(problem, tiling):
    """Whether every tile's spectrum is needed once, and so need not be stored."""
    return problem.Kg * tiling.blocks == 1


def spectrum_bytes(problem):
    return TILE * TILE * 2 * problem.accumulate.itemsize


def windows_of(problem, tiling):
    return problem.K * tiling.blocks


def slices_of(problem, tiling):
    """As much as WORKSPACE_BYTES of spectra allow, at least one row of pairs."""
    if alone(problem, tiling):
        return Slices(tiling.planes, tiling.down)
    affordable = WORKSPACE_BYTES // spectrum_bytes(problem)
    planes = min(affordable // tiling.spectra(tiling.down), tiling.planes)
    if planes:
        return Slices(planes, tiling.down)
    rows = affordable // (tiling.across + tiling.columns.blocks - 1) - (tiling.rows.blocks - 1)
    return Slices(1, max(rows, 1))


def spectra_bytes(problem, tiling):
    """Of the largest slice's tiles."""
    if alone(problem, tiling):
        return 0
    slices = slices_of(problem, tiling)
    return slices.planes * tiling.spectra(slices.down) * spectrum_bytes(problem)


def windows_bytes(problem, tiling):
    return windows_of(problem, tiling) * spectrum_bytes(problem)


def why_not(problem, device):
    if problem.Cg != 1:
        return [f"takes one channel per group (groups = C); this problem has {problem.Cg}"]
    if problem.stride != (1, 1):
        return [f"stride 1 needed, got {problem.stride}"]
    tiling = tiling_for(problem, device)
    if tiling is None:
        return [f"neighbouring taps at most {TILE} apart needed, got dilation {problem.dilation}"]
    slices = slices_of(problem, tiling)
    grids = {
        "transform the windows": windows_of(problem, tiling),
        "transform a slice's tiles": slices.planes * tiling.spectra(slices.down),
        "convolve a slice's tiles": slices.planes * problem.Kg * slices.down * tiling.across,
    }
    return size_reasons(problem) + [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def workspace_bytes(problem, device):
    tiling = tiling_for(problem, device)
    return windows_bytes(problem, tiling) + spectra_bytes(problem, tiling)


def predicted_seconds(problem, device):
    return seconds(problem, device, tiling_for(problem, device))


def seconds(problem, device, tiling):
    """The transforms of windows, tiles and sums; between them spectra are written, and read by every filter."""
    products = tiling.pairs * problem.Kg * tiling.blocks
    spectra = tiling.planes * tiling.spectra(tiling.down)
    if alone(problem, tiling):
        read, transforms = 0, (windows_of(problem, tiling), 2 * tiling.pairs)
    else:
        read, transforms = products, (windows_of(problem, tiling), spectra, tiling.pairs * problem.Kg)
    slots = ARITHMETIC_SLOTS * cost.multiply_slots(problem, device) + MOVING_SLOTS
    computing = sum(cost.block_seconds(device, blocks, THREADS, THREADS * slots) for blocks in transforms)
    computing += cost.block_seconds(device, products, THREADS, THREADS * PRODUCT_SLOTS)
    moved = windows_bytes(problem, tiling) + (spectra + read / CACHE_SPEED) * spectrum_bytes(problem) * (read > 0)
    launches = len(transforms)
    return WAITING * computing + cost.memory_seconds(problem, device, moved) + launches * cost.LAUNCH


@cache
def roots_constant():
    """-D constant of fft.cu: root^(g k), in its rows' order."""
    powers = np.exp(-2j * np.pi / TILE * np.outer(np.arange(RADIX), np.arange(RADIX)))
    rows = (",".join(f"{{{root.real!r},{root.imag!r}}}" for root in row.tolist()) for row in powers)
    return ("ROOTS", f"{{{','.join(f'{{{row}}}' for row in rows)}}}")


@lru_cache(maxsize=4096)
def sources(problem, alone, wide=False):
    """The kernels: transform the windows, transform tiles, convolve tiles."""
    constants = (*type_constants(problem, wide), roots_constant())
    plain = (*constants, ("ACTIVATION", "IDENTITY"), ("ALONE", 0))
    return (
        CudaSource("fft.cu", "transform_windows", plain),
        CudaSource("fft.cu", "transform_tiles", plain),
        CudaSource("fft.cu", "convolve_tiles", (*constants, *store_constants(problem), ("ALONE", int(alone)))),
    )


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    tiling, struct = tiling_for(problem, device), problem_struct(problem, x, w, y, bias, residual)
    one = alone(problem, tiling)
    window_kernel, tile_kernel, kernel = sources(problem, one, is_wide(problem, x, w, y, residual))
    windows = workspace[: windows_bytes(problem, tiling)]
    spectra = None if one else workspace[windows_bytes(problem, tiling) :]

    slices, whole = slices_of(problem, tiling), tiles_struct(problem, tiling, 0, 0, tiling.down)
    launch(window_kernel, windows_of(problem, tiling), THREADS, (w, windows, struct, whole), stream=stream)
    for plane, row in product(range(0, tiling.planes, slices.planes), range(0, tiling.down, slices.down)):
        planes, down = min(slices.planes, tiling.planes - plane), min(slices.down, tiling.down - row)
        tiles = tiles_struct(problem, tiling, plane, row, down)
        if not one:
            blocks = planes * tiling.spectra(down)
            launch(tile_kernel, blocks, THREADS, (x, spectra, struct, tiles), stream=stream)
        blocks = planes * problem.Kg * down * tiling.across
        launch(kernel, blocks, THREADS, (x, spectra, windows, y, bias, residual, struct, tiles), stream=stream)


@lru_cache(maxsize=4096)
def tiles_struct(problem, tiling, first_plane, first_down, down):
    """`struct Tiles`."""
    struct = np.zeros((), TILES)
    struct["first_plane"], struct["first_down"], struct["down"] = first_plane, first_down, down
    struct["R"], struct["S"], struct["across"] = problem.R, problem.S, tiling.across
    struct["dilation_h"], struct["dilation_w"] = problem.dilation
    struct["second_n"], struct["second_down"] = tiling.second_n, tiling.second_down
    for axis, cut, letter in (("h", tiling.rows, "r"), ("w", tiling.columns, "s")):
        struct[f"outputs_{axis}"], struct[f"block_{letter}"] = cut.outputs, cut.block
        struct[f"blocks_{letter}"] = cut.blocks
    struct.flags.writeable = False
    return struct
