"""Winograd F(4 x 4, 3 x 3) in steps: tiles and filters transformed, 36 matrix products, their results transformed back.

winograd_batched.cu tells the idea; this file slices the tiles, and launches. To the matrix product the transformed
problem is a convolution of one pixel, with 36 times the groups and a tile for each output.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from .. import gpu_cost as cost
from ..launching import MAX_GRID, CudaSource, ceil_div, launch
from . import im2col, waves
from .cut import round_up
from .implicit_gemm import aligned
from .parameters import (
    is_wide,
    problem_struct,
    size_reasons,
    store_constants,
    struct_of,
    type_constants,
    window_constants,
)
from .winograd_fused import (
    CHUNK,
    FILTER_THREADS,
    WINDOWS,
    matrix_constants,
    pixels_at_once,
    weights_in,
    window_reasons,
)

MINIMAL = 4  # outputs of a tile each way
PRODUCTS = (MINIMAL + 2) ** 2  # of a tile, a filter and a channel
THREADS = 256  # of a block that transforms tiles or products
WORKSPACE_BYTES = 64 << 20  # of columns and products, unless a single tile of the matrix product has more
TILES = (*im2col.TILES, (8, 4), (4, 4))  # of a matrix product: one of few tiles is cut into more blocks
THREAD_SLOTS = 600  # of each thread of the matrix product beside its loop: few channels make a short one

passes = ("forward",)
declined = {
    "weight_grad": "F(3 x 3, 4 x 4) writes and reads 2.25 times x and 2.25 times grad_y, and sums N P Q products at "
    "eight times a plain sum's error bound"
}


@lru_cache(maxsize=1024)
def transformed(problem):
    """The 36 matrix products as one problem of 1 x 1 windows: each product of a group is a group, each tile a pixel."""
    tiles = problem.N * ceil_div(problem.P, MINIMAL) * ceil_div(problem.Q, MINIMAL)
    return replace(
        problem,
        N=1,
        C=PRODUCTS * problem.C,
        H=1,
        W=tiles,
        K=PRODUCTS * problem.K,
        R=1,
        S=1,
        padding=((0, 0), (0, 0)),
        groups=PRODUCTS * problem.groups,
        dtype=problem.accumulate,
        layout="NCHW",
        activation=None,
        slope=0.0,
        has_bias=False,
        has_residual=False,
    )


@lru_cache(maxsize=1024)
def matrices(problem, device):
    """The matrices' sizes, as im2col has them; its columns_bytes are those of the columns, the products lie behind.

    Of its tiles the fastest, but first of those that cost little more the ones that keep the multiprocessors busy.
    """
    seconds = {sizes: products_seconds(problem, device, sizes) for sizes in possible_matrices(problem)}
    taken = [sizes for sizes in seconds if seconds[sizes] <= waves.DEARER * min(seconds.values())]
    return min(taken, key=lambda sizes: (not is_busy(problem, device, sizes), seconds[sizes]))


def possible_matrices(problem):
    return [in_slices(problem, sizes) for sizes in im2col.possible_matrices(transformed(problem), TILES)]


def is_busy(problem, device, sizes):
    """In each of its slices."""
    blocks = [product_blocks(problem, sizes, tiles) for _, tiles in slices(problem, sizes)]
    return all(waves.busy(count, cost.sm_count(device)) >= waves.FULL for count in blocks)


def in_slices(problem, sizes):
    """With the tiles of its largest slice."""
    products = transformed(problem)
    column = products.groups * sizes.depth * problem.accumulate.itemsize
    affordable = WORKSPACE_BYTES // (column + product_bytes(problem, 1)) // sizes.tile_m * sizes.tile_m
    count = ceil_div(products.W, max(affordable, sizes.tile_m))
    pixels = round_up(ceil_div(products.W, count), sizes.tile_m)
    return sizes._replace(pixels=pixels, columns_bytes=pixels * column)


def slices(problem, sizes):
    """The first tile of each slice, and how many it has: as evenly as whole tiles of the matrix product allow, since a
    small one would leave multiprocessors idle.
    """
    total = transformed(problem).W
    whole, count = ceil_div(total, sizes.tile_m), ceil_div(total, sizes.pixels)
    firsts = [whole * number // count * sizes.tile_m for number in range(count)]
    return [(first, end - first) for first, end in zip(firsts, [*firsts[1:], total])]


def product_blocks(problem, sizes, tiles):
    """Of the matrix product of a slice of so many."""
    return im2col.gemm_blocks(transformed(problem), sizes, round_up(tiles, sizes.tile_m))


def product_bytes(problem, tiles):
    return tiles * PRODUCTS * problem.K * problem.accumulate.itemsize


def why_not(problem, device):
    reasons = window_reasons(problem) + size_reasons(problem)
    if reasons:
        return reasons
    sizes, products = matrices(problem, device), transformed(problem)
    grids = {
        "multiply": im2col.gemm_blocks(products, sizes, sizes.pixels),
        "transform the filters": packing_blocks(problem, sizes),
        "transform the products": finishing_blocks(problem, sizes.pixels),
    }
    return [
        f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}"
        for name, blocks in grids.items()
        if blocks > MAX_GRID[0]
    ]


def packing_blocks(problem, sizes):
    return problem.groups * sizes.depth // CHUNK * (sizes.filters // WINDOWS)


def finishing_blocks(problem, tiles):
    return ceil_div(problem.K * tiles, THREADS)


def workspace_bytes(problem, device):
    sizes = matrices(problem, device)
    return sizes.packed_bytes + sizes.columns_bytes + product_bytes(problem, sizes.pixels)


def predicted_seconds(problem, device):
    """Packing, then per slice: columns and products written and read, and whole waves of the products' blocks."""
    sizes, tiles = matrices(problem, device), transformed(problem).W
    columns = sizes.columns_bytes // sizes.pixels * round_up(tiles, sizes.tile_m)
    extra = 2 * (columns + product_bytes(problem, tiles) + sizes.packed_bytes)
    launches = 1 + 3 * len(slices(problem, sizes))
    return (
        products_seconds(problem, device, sizes) + cost.memory_seconds(problem, device, extra) + launches * cost.LAUNCH
    )


def products_seconds(problem, device, sizes):
    """The matrix products of all slices."""
    return sum(multiply_seconds(problem, device, sizes, tiles) for _, tiles in slices(problem, sizes))


def multiply_seconds(problem, device, sizes, tiles):
    """The matrix products of one slice of `tiles`."""
    blocks = product_blocks(problem, sizes, tiles)
    slots = im2col.block_slots(problem, device, sizes) + THREAD_SLOTS * sizes.threads
    return im2col.WAITING * cost.block_seconds(device, blocks, sizes.threads, slots)


class Lying(NamedTuple):
    """How images lie in memory: the constants of winograd_batched.cu."""

    adjacent: str = "PIXELS"
    loaded: int = 4
    stored: int = 4
    together: bool = False
    weights: str = "ROWS"


ALIGNED = Lying()  # NCHW, rows of whole vectors


def lying(problem, x, w, y, residual):
    loaded = pixels_at_once(problem.W, x, (4, 2))
    stored = min(pixels_at_once(problem.Q, image, (4, 2)) for image in (y, residual) if image is not None)
    return Lying(adjacent_in(problem, x), loaded, stored, y.strides[1] == y.itemsize, weights_in(w))


def adjacent_in(problem, x):
    """What a patch is loaded as: pairs of channels, several pixels of a row, or one element after the other."""
    if x.strides[1] == x.itemsize and problem.Cg % 2 == 0 and aligned(x, 2 * x.itemsize, (0, 2, 3)):
        return "CHANNELS"
    return "PIXELS" if x.strides[3] == x.itemsize and problem.padding[1] == (1, 1) else "NONE"


def threads_of_tile(problem, lying):
    """That share its chunk of channels, a pair each, or of float64 one; elsewhere a thread has them all."""
    if lying.adjacent != "CHANNELS":
        return 1
    return CHUNK if problem.accumulate.itemsize == 8 else CHUNK // 2


def sources(problem, device, wide=False, lying=ALIGNED):
    """The kernels: transform filters, transform tiles, multiply, transform products."""
    return sources_of(problem, matrices(problem, device), wide, lying)


@lru_cache(maxsize=4096)
def sources_of(problem, sizes, wide, lying):
    constants = type_constants(problem, wide) + window_constants(problem) + store_constants(problem)
    constants += (*matrix_constants(MINIMAL), ("ADJACENT", lying.adjacent), ("LOADED", lying.loaded))
    constants += (("STORED", lying.stored), ("TOGETHER", int(lying.together)), ("WEIGHTS", lying.weights))
    products, wide_products = transformed(problem), PRODUCTS * problem.K * sizes.pixels >= 2**31
    vector = 16 // problem.accumulate.itemsize  # filters that are one store
    stored = ("FILTER_RUN", vector if lying.together and problem.Kg % vector == 0 else 1)
    constants += (stored,)
    multiplying = (*type_constants(products, wide_products), *store_constants(products), stored)
    multiplying += (("TILE_K", sizes.tile_k), ("TILE_M", sizes.tile_m))
    return (
        CudaSource("winograd_batched.cu", "transform_filters", constants),
        CudaSource("winograd_batched.cu", "transform_tiles", constants),
        CudaSource("gemm.cu", "conv2d_gemm", multiplying),
        CudaSource("winograd_batched.cu", "transform_products", constants),
    )


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x and w into y. workspace: `workspace_bytes` of them, 64-byte aligned."""
    sizes, total = matrices(problem, device), transformed(problem).W
    struct, lies = problem_struct(problem, x, w, y, bias, residual), lying(problem, x, w, y, residual)
    pack, scatter, gemm, gather = sources_of(problem, sizes, is_wide(problem, x, w, y, residual), lies)
    packed, columns = workspace[: sizes.packed_bytes], workspace[sizes.packed_bytes :][: sizes.columns_bytes]
    products = workspace[sizes.packed_bytes + sizes.columns_bytes :]
    chunks, sharing = min(problem.groups * sizes.depth // CHUNK, MAX_GRID[1]), threads_of_tile(problem, lies)

    arguments = (w, packed, struct, im2col.slice_struct(sizes, 0, total))
    launch(pack, packing_blocks(problem, sizes), FILTER_THREADS, arguments, stream=stream)
    for first, tiles in slices(problem, sizes):
        part = im2col.slice_struct(sizes, first, first + tiles)
        padded = int(part["padded"])
        grid = ceil_div(padded * sharing, THREADS), chunks
        launch(scatter, grid, THREADS, (x, columns, struct, part), stream=stream)
        arguments = (packed, columns, products, None, None, products_struct(problem, padded, lies.together))
        arguments += (im2col.slice_struct(sizes, 0, tiles),)
        launch(gemm, product_blocks(problem, sizes, tiles), sizes.threads, arguments, stream=stream)
        arguments = (products, y, bias, residual, struct, part)
        launch(gather, finishing_blocks(problem, tiles), THREADS, arguments, stream=stream)


def products_struct(problem, padded, together):
    """`struct Problem` of the matrix product. together: filters are neighbours in `products`, elsewhere tiles are."""
    item, filters = problem.accumulate.itemsize, PRODUCTS * problem.K
    along_filters, along_tiles = (item, filters * item) if together else (padded * item, item)
    y = (0, along_filters, 0, along_tiles)
    return struct_of(transformed(problem), item, (0, 0, 0, 0), (0, 0, 0, 0), y, None, None)
