"""Implicit GEMM: the matrix product of im2col, its matrix gathered tile by tile into shared memory, never written.

    y[k, m] = sum over d of  filters[d, k] * x[window of m, d]         m = (n, p, q), d = a tap and a channel

    channels inner: d = (tap, c)   a stage of 8 rows is 8 channels of one tap; only at a new tap are the rows and
                                   columns of x looked at, and whether they lie inside the image
    taps inner:     d = (c, tap)   for few channels, which would not fill a stage

The product and its two buffers are im2col.py's: 8 x 8 sums a thread, one barrier a stage. `implicit_gemm_filters` first
writes w in the order of d, tile by tile. Who loads what: where pixels are neighbours in memory, 32 lanes take 32 pixels
of one channel; where channels are (NHWC), 8 lanes take the 8 channels of a pixel. x comes as one axis, from its lowest
element on, and strides in elements: then a load's address is one 32-bit offset, not four products of 64 bits.
Why it pays: im2col.py writes and reads R * S times the input; here it comes from the caches. A layer of 64 channels,
56 x 56 pixels, 128 filters and 3 x 3 taps requests 308 MB from them at 8 images, by the emulator's count, and writes
only y.
Small problems, and the last wave of others: several blocks share a tile, each with its part of d, cut by the same rules
as cupy_raw's (cut.py, waves.py). They leave their sums in the workspace, filters side by side or pixels as in y, and
`implicit_gemm_sum` adds them in their order: the same bits every time. The layers of VGG-16, ResNet-50 and MobileNetV2
are predicted to take 3.9 ms together at one image on 108 SMs, with whole tiles only 18.5; 89.4 and 94.2 at 32 images
(cupy_raw 2.8 and 61.8). The loop is no longer for it, 688 instructions instead of 699; registers 125 instead of 127
(channels last 793 instead of 792; 158, 156).
Bank conflicts: none. Eight lanes' runs of 4 numbers lie interleaved: pixel x of 32 at place x % 8 * 4 + x // 8. So
lanes store 32 pixels into 32 banks, load runs of 16 bytes, and their outputs are neighbours when they leave. A row is
16 bytes longer than its pixels, so that 8 channels times 4 places meet 32 banks as well.

What Numba's Python cannot say, and what it costs, beside cupy_raw/implicit_gemm.cu (sm_80, the layer above; a stage is
512 multiply-adds of a thread with a tile of 64 x 64, and its instructions are those of the machine code):

                                                        here     there
    instructions of a stage, channels first             699      637     those that only a new tap needs counted too
                             channels last              791      614
                             a tile of 128 x 128        661      602     512 are 77 and 85 %
    registers with it                                   122      122     two blocks an SM, of split tiles too
    wavefronts of a shared load of 128 bits             4        4       the least
    wavefronts of a shared store of 32 bits             1        1 to 2
    loads from global memory, channels first            16       10      of a thread in a stage of 64 x 64
                              channels last             16       4       there all of 128 bits
    sectors of a load of 32 bits                        4.3      4.3     of x; 4 when full and in order
                 of 128 bits                            -        16      the least
    sectors of a store, channels first and last         4, 8     4, 8

- Loads of 128 bits from global memory: an array has no alignment in Numba's types, so LLVM may not join four loads. In
  shared memory it may (`alignment=16`), and does. The bytes are the same, the instructions four times as many: with
  channels last a thread has 8 pixels to look after instead of two.
- Addresses: Numba's integers are 64 bits long, and an offset that is cut to 32 takes a shift and two more instructions
  on its way to an address, where NVRTC has one (IMAD.WIDE).
- Bounds on registers: `max_registers=128` would let two blocks of 256 threads share an SM always, but spills up to 40
  bytes on sm_90, channels last on sm_80 too, and Numba's simulator does not take it. So the block's place is worked out
  anew for the store, steps and packed filters are counted in 32 bits, and each column's filters are made to look new:
  otherwise the addresses of all eight in y and in the residual, and their biases, are worked out for all columns at
  once and kept, 160 registers of split tiles of 64 x 64 (125 now). Channels first, 16 warps fit from sm_80 on.
- Tensor cores (mma.sync), ldmatrix and cp.async: not at all, short of LLVM intrinsics, which no simulator runs.
- Fast divisions by a number known at launch: a division by Q is some 20 instructions, once an output.

Limits: N * P * Q below 2^31. Never run on hardware.
Source: Chetlur et al., cuDNN, 2014; the order of d: Thakkar et al., CUTLASS, implicit GEMM convolution, 2020; the
product: Volkov and Demmel, Benchmarking GPUs to tune dense linear algebra, SC 2008.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numba import cuda, int32, int64

from ...device import simulating
from .. import gpu_cost as cost
from ..cupy_raw.cut import Parts, chosen, split_cut, whole_cut, with_splits
from ..cupy_raw.parameters import element_strides, size_reasons
from ..cupy_raw.register_tile import DEPTH, EACH, reduction_of, tile_of
from ..launching import MAX_GRID, ceil_div, launch
from .epilogue import epilogue_of, finish, operands
from .implicit_gemm_beside import THREADS, at_place, compiled_filters, compiled_sum, place_in, tile_of_block
from .storage import at, register_type, run_length, small, widen

TILES = ((8, 8), (4, 16), (16, 16))  # filters x pixels, in the 8 (float64: 4) that a thread has of each
# For how many blocks a multiprocessor has registers, by layout and tile: the least of sm_75 to 120, whose compilers
# take 121 to 226 of a thread. In NCHW 128 mostly are enough, and it has some for 8 of the smallest, 2 of the largest.
BLOCKS_PER_SM = {"NCHW": {(8, 8): 6, (4, 16): 6, (16, 16): 1}, "NHWC": {(8, 8): 6, (4, 16): 4, (16, 16): 1}}
OUTSIDE = -1  # an offset where there is no pixel
FAR = -0x80000000  # a row outside of every image, whatever is added to it

# Issue slots beside a multiply-add itself, counted in the machine code: channels inner, taps inner; of a thread.
SLOTS_PER_MULTIPLY_ADD = (0.3, 0.7)
THREAD_SLOTS = 2500
WAITING = cost.waiting("numba_cuda.implicit_gemm", like="numba_cuda.im2col")
SIMULATED = simulating()

passes = ("forward",)


class Walk(NamedTuple):
    """How a block gathers its windows. taps_inner: d = (c, tap), not (tap, c); together: neighbouring lanes take
    neighbouring channels, not pixels; whole: no stage ends amid the channels; wide: offsets into x, or into the packed
    filters, take 64 bits.
    """

    taps_inner: bool
    together: bool
    whole: bool
    wide: bool


@cache
def compiled_product(R, S, tile_k, tile_m, walk, epilogue, split):
    """The kernel for y = filters x windows in tiles of tile_k filters and tile_m pixels. split: some tiles are."""
    dtype_name = epilogue[0]
    number, real, finished = widen(dtype_name), register_type(dtype_name), finish(*epilogue)
    zero = real(0)
    offset_type = int64 if walk.wide else int32
    taps_inner, together, whole = walk.taps_inner, walk.together, walk.whole
    run = run_length(dtype_name)
    micro = 2 * run
    threads = tile_k * tile_m // micro**2
    half_k, half_m = tile_k // 2, tile_m // 2
    warps_m = half_m // (8 * run)
    pixel_at, place_of, tile_and_part = at_place(8, run), place_in(8, run), tile_of_block(split)
    pitch = tile_m + run
    pixels_at = DEPTH * tile_k
    stage = pixels_at + DEPTH * pitch
    both_stages = 2 * stage
    filter_loads = pixels_at // threads
    lanes = threads // DEPTH if together else min(threads, tile_m)
    own = tile_m // lanes
    rows = DEPTH * tile_m // threads // own

    @cuda.jit
    def implicit_gemm_product(
        filters, x, y, bias, residual, partial, groups, filter_tiles, pixel_tiles, depth, channels,
        whole_tiles, split_tiles, split_steps, partial_k, partial_m, C, H, W,
        x_0, x_n, x_c, x_h, x_w, stride_h, stride_w, top, left, dilation_h, dilation_w,
    ):  # fmt: skip
        if SIMULATED:  # whose shared.array knows no alignment; 16-byte loads need it
            staged = cuda.shared.array(both_stages, real)
        else:
            staged = cuda.shared.array(both_stages, real, alignment=16)
        sums = cuda.local.array((micro, micro), real)
        my_filters = cuda.local.array(micro, real)
        my_pixels = cuda.local.array(micro, real)
        next_filters = cuda.local.array(filter_loads, real)
        next_pixels = cuda.local.array((own, rows), real)
        first_h = cuda.local.array(own, int32)
        first_w = cuda.local.array(own, int32)
        target = cuda.local.array(own, int32)
        corner = cuda.local.array(own, offset_type)
        here = cuda.local.array(own, offset_type)

        thread = cuda.threadIdx.x & (threads - 1)  # the mask tells the compiler its range
        lane, warp = thread & 31, thread >> 5
        my_m = (warp % warps_m * 8 + (lane & 7)) * run
        my_k = (warp // warps_m * 4 + (lane >> 3)) * run
        K, P, Q = y.shape[1], y.shape[2], y.shape[3]
        Cg, Kg, pixels = C // groups, K // groups, y.shape[0] * P * Q
        tile, part = tile_and_part(cuda.blockIdx.x, whole_tiles, split_tiles)
        first_step, steps = 0, depth // DEPTH
        if split and part >= 0:
            first_step = part * split_steps
            steps = min(split_steps, steps - first_step)
        filter_tile, pixel_tile = tile % filter_tiles, tile // filter_tiles % pixel_tiles
        g = tile // filter_tiles // pixel_tiles
        if together:
            my_lane, my_row = thread // DEPTH, thread & (DEPTH - 1)
        else:
            my_lane, my_row = thread & (lanes - 1), thread // lanes * rows

        for j in range(own):
            in_tile = my_lane + j * lanes
            if together:
                target[j] = pixels_at + my_row * pitch + in_tile
                in_tile = pixel_at(in_tile)
            else:
                target[j] = pixels_at + my_row * pitch + place_of(in_tile)
            pixel = small(pixel_tile * tile_m + in_tile)
            n, p, q = pixel // small(P * Q), pixel // small(Q) % small(P), pixel % small(Q)
            h, v = int32(p) * stride_h - top, int32(q) * stride_w - left
            first_h[j] = h if pixel < small(pixels) else FAR
            first_w[j] = v
            corner[j] = x_0 + int32(n) * x_n + (g * Cg) * x_c + h * x_h + v * x_w
        for i in range(micro):
            for j in range(micro):
                sums[i, j] = zero

        first_d = first_step * DEPTH
        next_filter = offset_type(((g * filter_tiles + filter_tile) * depth + first_d) * tile_k + thread)
        tap, first_channel = int32(first_d // channels), int32(first_d % channels)
        channel = int32(channels)
        steps = int32(steps)
        for step in range(int32(steps + 1)):
            last = step == steps
            if not last:
                for i in range(filter_loads):
                    next_filters[i] = number(filters[at(next_filter + i * threads)])
                next_filter = offset_type(next_filter + pixels_at)
                if taps_inner:
                    for i in range(rows):
                        d = small(first_d + step * DEPTH + my_row + i)
                        c = int32(d // small(R * S))
                        h = int32(d // small(S) % small(R)) * dilation_h
                        v = int32(d % small(S)) * dilation_w
                        further = offset_type(c * x_c + h * x_h + v * x_w)
                        for j in range(own):
                            my_h, my_w = int32(first_h[j] + h), int32(first_w[j] + v)
                            inside = c < Cg and 0 <= my_h < H and 0 <= my_w < W
                            offset = offset_type(corner[j] + further)
                            next_pixels[j, i] = number(x[at(offset)]) if inside else zero
                else:
                    if channel == channels:
                        channel = first_channel
                        h = int32(small(tap) // small(S)) * dilation_h
                        v = int32(small(tap) % small(S)) * dilation_w
                        tap = int32(tap + 1)
                        further = offset_type(my_row * x_c + h * x_h + v * x_w)
                        for j in range(own):
                            my_h, my_w = int32(first_h[j] + h), int32(first_w[j] + v)
                            inside = 0 <= my_h < H and 0 <= my_w < W
                            here[j] = offset_type(corner[j] + further) if inside else OUTSIDE
                        along = offset_type(channel * x_c)
                        first_channel = int32(0)
                    for j in range(own):
                        for i in range(rows):
                            inside = here[j] >= 0 and (whole or channel + my_row + i < Cg)
                            offset = offset_type(here[j] + along + i * x_c)
                            next_pixels[j, i] = number(x[at(offset)]) if inside else zero
                    channel = int32(channel + DEPTH)
                    along = offset_type(along + DEPTH * x_c)

            if step > 0:
                filled = ((step - 1) & 1) * stage
                t = 0
                while t < DEPTH:
                    for _ in range(4):
                        a, b = filled + t * tile_k + my_k, filled + pixels_at + t * pitch + my_m
                        for i in range(run):
                            my_filters[i] = staged[at(a + i)]
                            my_filters[run + i] = staged[at(a + half_k + i)]
                            my_pixels[i] = staged[at(b + i)]
                            my_pixels[run + i] = staged[at(b + half_m + i)]
                        for i in range(micro):
                            for j in range(micro):
                                sums[i, j] += my_filters[i] * my_pixels[j]
                        t += 1

            if not last:
                free = (step & 1) * stage
                for i in range(filter_loads):
                    staged[at(free + thread + i * threads)] = next_filters[i]
                for j in range(own):
                    for i in range(rows):
                        staged[at(free + target[j] + i * pitch)] = next_pixels[j, i]
                cuda.syncthreads()

        # The block's place anew, or it would take registers throughout the loop; blockIdx.y is zero.
        block = cuda.blockIdx.x + cuda.blockIdx.y
        tile, part = tile_and_part(block, whole_tiles, split_tiles)
        filter_tile, pixel_tile = tile % filter_tiles, tile // filter_tiles % pixel_tiles
        g = tile // filter_tiles // pixel_tiles
        tile_k0, tile_m0 = warp // warps_m * 4 * run + (lane >> 3), warp % warps_m * 8 * run + (lane & 7)
        for j in range(micro):
            m = tile_m0 + j // run * half_m + j % run * 8
            pixel = small(pixel_tile * tile_m + m)
            if split and part >= 0:
                target_0 = (block - whole_tiles) * (tile_k * tile_m) + m * partial_m
                for i in range(micro):
                    partial[at(target_0 + (tile_k0 + i // run * half_k + i % run * 4) * partial_k)] = sums[i, 0]
            elif pixel < small(pixels):
                n, p, q = pixel // small(P * Q), pixel // small(Q) % small(P), pixel % small(Q)
                first_k = filter_tile * tile_k + tile_k0 + (pixel >> 31)  # zero: see the opening
                for i in range(micro):
                    k = first_k + i // run * half_k + i % run * 4
                    if k < Kg:
                        k += g * Kg
                        y[at(n), at(k), at(p), at(q)] = finished(sums[i, 0], bias, residual, n, k, p, q)
            for i in range(micro):  # the next column of sums moves to the front: registers cannot be indexed by j
                for following in range(1, micro):
                    sums[i, following - 1] = sums[i, following]

    return implicit_gemm_product


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    """The cut that cupy_raw's rules choose, of those that are predicted here."""
    return chosen(device, {cut: parts(problem, device, cut).seconds for cut in cuts(problem, device)})


def cuts(problem, device):
    return with_splits(device, [cut_of(problem, tile_of(problem, lanes)) for lanes in TILES])


def cut_of(problem, tile, splits=1, first=0):
    """All tiles whole, or all but the first in so many splits."""
    each = EACH[problem.accumulate.itemsize]
    per_sm = BLOCKS_PER_SM[problem.layout][tile.filters // each, tile.pixels // each]
    return split_cut(whole_cut(problem, tile, per_sm, reduction_of(problem), problem.dtype.itemsize), splits, first)


def parts(problem, device, cut):
    each = SLOTS_PER_MULTIPLY_ADD[cut.taps_inner] + cost.multiply_slots(problem, device)

    def multiplying(blocks, stages):
        slots = stages * DEPTH * cut.tile.filters * cut.tile.pixels * each + THREAD_SLOTS * cut.tile.threads
        return cost.block_seconds(device, blocks, cut.tile.threads, slots)

    return Parts(
        WAITING * (multiplying(cut.whole, cut.depth // DEPTH) + multiplying(cut.parts, cut.stages)),
        cost.passing_seconds(device, cut.partial_bytes),
        cost.memory_seconds(problem, device, 2 * cut.packed_bytes),
        (3 if cut.splits > 1 else 2) * cost.LAUNCH,
    )


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons, cut = size_reasons(problem), cut_for(problem, device)
    pixels = problem.N * problem.P * problem.Q
    if pixels >= 2**31:
        reasons.append(f"N * P * Q: less than 2^31 needed, got {pixels:,}")
    grids = {"multiply": cut.blocks, "pack the weights": packing_blocks(problem, cut), "add": summing_blocks(cut)}
    for name, blocks in grids.items():
        if blocks > MAX_GRID[0]:
            reasons.append(f"at most {MAX_GRID[0]:,} blocks to {name}, this problem has {blocks:,}")
    return reasons


def packing_blocks(problem, cut):
    return ceil_div(problem.groups * cut.filters * cut.depth, THREADS)


def summing_blocks(cut):
    return ceil_div(cut.split_tiles * cut.tile.filters * cut.tile.pixels, THREADS)


def workspace_bytes(problem, device):
    """The filters, in the order of d, and the sums of splits."""
    cut = cut_for(problem, device)
    return cut.packed_bytes + cut.partial_bytes


def predicted_seconds(problem, device):
    return parts(problem, device, cut_for(problem, device)).seconds


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write activation(conv(x, w) + bias + residual) into y, on `stream`. All in logical order, any strides."""
    cut, (top, _), (left, _) = cut_for(problem, device), *problem.padding
    (tile_k, tile_m, threads, _), filter_tiles = cut.tile, cut.filters // cut.tile.filters
    filters = workspace[: cut.packed_bytes].view(x.dtype)
    kernel = compiled_filters(problem.R, problem.S, tile_k, run_length(problem.dtype.name), cut.taps_inner)
    args = (w, filters, problem.groups, filter_tiles, cut.depth, cut.channels)
    launch(kernel, packing_blocks(problem, cut), THREADS, args, stream=stream)

    split, filters_inner = cut.splits > 1, abs(y.strides[1]) == y.dtype.itemsize and problem.K > 1
    strides = element_strides("x", x.strides, x.dtype.itemsize)
    partial = workspace[cut.packed_bytes :][: cut.partial_bytes].view(problem.accumulate) if split else filters
    images, tiles = (y, *operands(y, bias, residual)), (problem.groups, filter_tiles, cut.tiles_m)
    walk, epilogue = walk_for(problem, cut, strides), epilogue_of(problem)
    kernel = compiled_product(problem.R, problem.S, tile_k, tile_m, walk, epilogue, split)
    args = (filters, one_axis(x), *images, partial, *tiles, cut.depth, cut.channels, cut.whole, cut.split_tiles)
    args += (cut.stages, *((1, tile_k) if filters_inner else (tile_m, 1)), problem.C, problem.H, problem.W)
    args += (bytes_below(x) // x.dtype.itemsize, *strides, *problem.stride, top, left, *problem.dilation)
    launch(kernel, cut.blocks, threads, args, stream=stream)
    if split:
        args = (partial, *images, *tiles, cut.whole, cut.split_tiles, cut.splits)
        kernel = compiled_sum(tile_k, tile_m, filters_inner, epilogue)
        launch(kernel, summing_blocks(cut), THREADS, args, stream=stream)


def walk_for(problem, cut, strides):
    """How to gather the windows of an x with these strides, in elements."""
    together = not cut.taps_inner and abs(strides[1]) == 1 and problem.C > 1
    whole = problem.Cg % DEPTH == 0
    (top, bottom), (left, right) = problem.padding
    reach = problem.N, problem.C + DEPTH, problem.H + top + bottom, problem.W + left + right
    filters = problem.groups * (cut.depth + DEPTH) * cut.filters
    wide = max(filters, sum(abs(stride) * size for stride, size in zip(strides, reach))) >= 2**31
    return Walk(cut.taps_inner, together, whole, wide)


def one_axis(x):
    """All of x's memory, from its lowest element on, as one axis: then an address is one offset, not four."""
    item, below = x.dtype.itemsize, bytes_below(x)
    span = sum((size - 1) * abs(stride) for size, stride in zip(x.shape, x.strides)) // item + 1
    if isinstance(x, np.ndarray):
        lowest = x[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in x.strides)]
        return np.lib.stride_tricks.as_strided(lowest, (span,), (item,))
    return type(x)((span,), (item,), x.dtype, gpu_data=x.gpu_data.view(-below, span * item - below))


def bytes_below(x):
    """How far before its first element x's memory begins: where an axis runs backwards."""
    return -sum((size - 1) * stride for size, stride in zip(x.shape, x.strides) if stride < 0)
