"""The launches beside the product of implicit_gemm.py, which tells the idea: filters are packed before, splits added
behind; and where a number of a tile lies in shared memory.
"""

from __future__ import annotations

from functools import cache

from numba import cuda

from .epilogue import finish
from .storage import at, device_function, register_type

THREADS = 256


@cache
def compiled_filters(R, S, tile_k, run, taps_inner):
    """The kernel that writes w as tiles of filters: (tile, d, place), zero where they are padded."""
    filter_at = at_place(4, run)

    @cuda.jit
    def implicit_gemm_filters(w, filters, groups, tiles, depth, channels):
        Cg, Kg = w.shape[1], w.shape[0] // groups
        index = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        place, index = index % tile_k, index // tile_k
        d, tile = index % depth, index // depth
        if tile >= groups * tiles:
            return

        if taps_inner:
            c, tap = d // (R * S), d % (R * S)
        else:
            c, tap = d % channels, d // channels
        g, k = tile // tiles, tile % tiles * tile_k + filter_at(place)
        inside = k < Kg and c < Cg
        element = w[at(g * Kg + k), at(c), at(tap // S), at(tap % S)] if inside else filters.dtype.type(0)
        filters[at((tile * depth + d) * tile_k + place)] = element

    return implicit_gemm_filters


@cache
def compiled_sum(tile_k, tile_m, filters_inner, epilogue):
    """The kernel that adds what the parts of a tile left, in their order. filters_inner: these lie side by side there,
    not pixels, as they do in y.
    """
    real, finished = register_type(epilogue[0]), finish(*epilogue)
    of_tile = tile_k * tile_m

    @cuda.jit
    def implicit_gemm_sum(
        partial, y, bias, residual, groups, filter_tiles, pixel_tiles, whole_tiles, split_tiles, splits
    ):
        index = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if index >= split_tiles * of_tile:
            return
        tile, within = whole_tiles + index // of_tile, index % of_tile
        if filters_inner:
            m, k = within // tile_k, within % tile_k
        else:
            k, m = within // tile_m, within % tile_m
        k += tile % filter_tiles * tile_k
        pixel = tile // filter_tiles % pixel_tiles * tile_m + m
        g = tile // filter_tiles // pixel_tiles
        P, Q, Kg = y.shape[2], y.shape[3], y.shape[1] // groups
        if k >= Kg or pixel >= y.shape[0] * P * Q:
            return

        total = real(0)
        for part in range(splits):
            total += partial[at(index + part * split_tiles * of_tile)]
        n, p, q = pixel // (P * Q), pixel // Q % P, pixel % Q
        k += g * Kg
        y[at(n), at(k), at(p), at(q)] = finished(total, bias, residual, n, k, p, q)

    return implicit_gemm_sum


@cache
def place_in(lanes, run):
    """Where number x of a tile lies in shared memory: `lanes` neighbours are the first of as many lanes' runs."""
    block = lanes * run
    return device_function(lambda x: x // block * block + x % lanes * run + x // lanes % run)


@cache
def at_place(lanes, run):
    """The number that lies at a place: the inverse."""
    block = lanes * run
    return device_function(lambda place: place // block * block + place % run * lanes + place // run % lanes)


@cache
def tile_of_block(split):
    """The tile that a block multiplies, and which part of it, -1 for all.

    Whole tiles come first, then the first part of each of the others, the second of each ...
    """
    if not split:
        return device_function(lambda block, whole_tiles, split_tiles: (block, -1))

    def tile_and_part(block, whole_tiles, split_tiles):
        part = (block - whole_tiles) // split_tiles if block >= whole_tiles else -1
        return block - (part * split_tiles if part >= 0 else 0), part

    return device_function(tile_and_part)
