"""Weight gradient as a matrix product whose inner dimension is the output pixel, windows gathered as it goes.

    grad_w[k, d] = sum over m of  grad_y[k, m] * x[window of m, d]     m = (n, p, q), d = (c, r, s) of k's group

                     64 columns d             a block of 64 threads, each 8 x 8 weights: two runs of 4 filters times
                    +-------------+           two runs of 4 columns, in registers, as in im2col.py
     8 pixels m     |      x      |
          +-----+   +=============+           staging: eight lanes take the eight pixels of a step of one filter or
    64 k  | gy  |   |   grad_w    |           column, so that neighbouring pixels, side by side in memory, are loaded
          +-----+   +=============+           together; a thread takes 8 filters and 8 columns

A thread's filters and columns never change, so their taps are worked out once; only its pixel moves on, by 8.
Why two kernels: there are few weights and many pixels. Tiles of weights alone would leave most of a GPU idle, so the
pixels are split among blocks; each writes its tile of sums to the workspace, and `finish_weight_grad` adds the splits
in their order: the same bits every time, without atomics.
Staging is double-buffered with one barrier a step, as im2col.py tells.
Bank conflicts: none. A row of the tile is 16 bytes longer than its 64 numbers, so the eight pixels of four rows that a
warp stores meet 32 banks; loads are im2col.py's. In the machine code (sm_80) 128 of the inner loop's 148 instructions
are FFMA, and four 16-byte loads serve 64 of them.
Limits: none on the problem. A group of few filters or few columns wastes most of a tile: weight_grad_direct.py.
Never run on hardware.
Source: Chetlur et al., cuDNN, 2014 (the gradient as an implicit product); Osama et al., Stream-K, PPoPP 2023, and
CUTLASS's split-K before it (reduction in two steps).
"""

import math
from functools import cache, lru_cache

from numba import cuda

from ...device import simulating
from .. import gpu_cost as cost
from ..cupy_raw.weight_grad_splits import DEPTH, fastest, launch_reasons
from ..launching import ceil_div, launch
from .storage import at, narrow, register_type, run_length, widen

TILES = ((8, 8),)  # filters x columns, in the 8 (float64: 4) that a thread has of each
THREADS = 64  # of the product: two warps, 16 runs of filters times 16 of columns, half of them in each
FINISH_THREADS = 256
FEWEST_STAGES = 32  # of one split: its prologue, which `seconds` leaves out, must pay

SLOTS_PER_MULTIPLY_ADD = 0.6  # beside the multiply-add itself: loads from shared memory, addresses, tests of the window
WAITING = 2.0  # times as long as its issue slots: what im2col's product, the same loop, took on an H200
FAR = -0x80000000  # a row outside of every image, whatever is added to it

SIMULATED = simulating()

passes = ("weight_grad",)


@cache
def compiled(R, S, dtype_name):
    """The kernel that writes each split's sums."""
    number, real, run = widen(dtype_name), register_type(dtype_name), run_length(dtype_name)
    micro, tile = 2 * run, 16 * run
    half, pitch = tile // 2, tile + run
    columns_at, stage = DEPTH * pitch, 2 * DEPTH * pitch
    both_stages = 2 * stage
    rows = THREADS // DEPTH  # filters, or columns, that the threads load at a time
    own = tile // rows
    zero = real(0)

    @cuda.jit
    def weight_grad(
        x, grad_y, partial, Cg, Kg, filter_tiles, column_tiles, split_pixels, stride_h, stride_w, top, left,
        dilation_h, dilation_w,
    ):  # fmt: skip
        if SIMULATED:  # whose shared.array knows no alignment; 16-byte loads need it
            staged = cuda.shared.array(both_stages, real)
        else:
            staged = cuda.shared.array(both_stages, real, alignment=16)
        sums = cuda.local.array((micro, micro), real)
        my_filters = cuda.local.array(micro, real)
        my_columns = cuda.local.array(micro, real)
        next_filters = cuda.local.array(own, real)
        next_columns = cuda.local.array(own, real)
        channel = cuda.local.array(own, "int32")
        tap_h = cuda.local.array(own, "int32")
        tap_w = cuda.local.array(own, "int32")

        N, P, Q = grad_y.shape[0], grad_y.shape[2], grad_y.shape[3]
        H, W = x.shape[2], x.shape[3]
        thread = cuda.threadIdx.x & (THREADS - 1)  # the mask tells the compiler its range
        lane, warp = thread & 31, thread >> 5
        my_m, my_k = (lane & 7) * run, (warp * 4 + (lane >> 3)) * run
        filter_tile = cuda.blockIdx.x % filter_tiles
        column_tile = cuda.blockIdx.x // filter_tiles % column_tiles
        g = cuda.blockIdx.x // filter_tiles // column_tiles

        my_pixel, my_row = thread & (DEPTH - 1), thread // DEPTH
        first_k = filter_tile * tile + my_row
        for i in range(own):
            d = column_tile * tile + my_row + i * rows
            c = d // (R * S)
            channel[i] = g * Cg + c if c < Cg else 0
            tap_h[i] = d // S % R * dilation_h - top if c < Cg else FAR
            tap_w[i] = d % S * dilation_w - left
        for i in range(micro):
            for j in range(micro):
                sums[i, j] = zero

        first = cuda.blockIdx.y * split_pixels
        end = min(first + split_pixels, N * P * Q)
        m = first + my_pixel
        n, p, q = m // (P * Q), m // Q % P, m % Q
        steps = (end - first + DEPTH - 1) // DEPTH
        for step in range(steps + 1):
            last = step == steps
            if not last:
                live = m < end
                h0, w0 = p * stride_h, q * stride_w
                for i in range(own):
                    k = first_k + i * rows
                    wanted = live and k < Kg
                    next_filters[i] = number(grad_y[at(n), at(g * Kg + k), at(p), at(q)]) if wanted else zero
                    h, v = h0 + tap_h[i], w0 + tap_w[i]
                    inside = live and 0 <= h < H and 0 <= v < W
                    next_columns[i] = number(x[at(n), at(channel[i]), at(h), at(v)]) if inside else zero
                m += DEPTH
                q += DEPTH
                while q >= Q:
                    q -= Q
                    p += 1
                    if p == P:
                        p = 0
                        n += 1

            if step > 0:
                filled = ((step - 1) & 1) * stage
                t = 0
                while t < DEPTH:
                    for _ in range(2):
                        a, b = filled + t * pitch + my_k, filled + columns_at + t * pitch + my_m
                        for i in range(run):
                            my_filters[i] = staged[at(a + i)]
                            my_filters[run + i] = staged[at(a + half + i)]
                            my_columns[i] = staged[at(b + i)]
                            my_columns[run + i] = staged[at(b + half + i)]
                        for i in range(micro):
                            for j in range(micro):
                                sums[i, j] += my_filters[i] * my_columns[j]
                        t += 1

            if not last:
                free = (step & 1) * stage + my_pixel * pitch + my_row
                for i in range(own):
                    staged[at(free + i * rows)] = next_filters[i]
                    staged[at(free + columns_at + i * rows)] = next_columns[i]
                cuda.syncthreads()

        columns = column_tiles * tile
        groups = grad_y.shape[1] // Kg
        filters_row = (cuda.blockIdx.y * groups + g) * filter_tiles * tile + filter_tile * tile + my_k
        target = filters_row * columns + column_tile * tile + my_m
        for j in range(micro):
            column = target + j // run * half + j % run
            for i in range(micro):
                partial[at(column + (i // run * half + i % run) * columns)] = sums[i, 0]
            for i in range(micro):  # the next column of sums moves to the front: registers cannot be indexed by j
                for following in range(1, micro):
                    sums[i, following - 1] = sums[i, following]

    return weight_grad


@cache
def compiled_finish(R, S, dtype_name):
    """The kernel that adds what each split of the pixels summed, always in the same order."""
    real, rounded = register_type(dtype_name), narrow(dtype_name)

    @cuda.jit
    def finish_weight_grad(partial, grad_w, splits, Kg, filters, columns):
        K, Cg = grad_w.shape[0], grad_w.shape[1]
        index = cuda.blockIdx.x * FINISH_THREADS + cuda.threadIdx.x
        if index >= K * Cg * (R * S):
            return
        d, k = index % (Cg * (R * S)), index // (Cg * (R * S))
        source = (k // Kg * filters + k % Kg) * columns + d
        total = real(0)
        for _ in range(splits):
            total += partial[at(source)]
            source += K // Kg * filters * columns
        grad_w[at(k), at(d // (R * S)), at(d // S % R), at(d % S)] = rounded(total)

    return finish_weight_grad


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    return fastest(problem, device, TILES, FEWEST_STAGES, seconds)


def seconds(problem, device, cut):
    """The busiest SM's blocks, then what the splits write and read again."""
    slots = cut.tile_k * cut.tile_m * cut.pixels * (SLOTS_PER_MULTIPLY_ADD + cost.multiply_slots(problem, device))
    multiply = cost.block_seconds(device, math.prod(cut.grid(problem)), THREADS, slots)
    return WAITING * multiply + cost.memory_seconds(problem, device, 2 * cut.partial_bytes)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return launch_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    return seconds(problem, device, cut_for(problem, device)) + 2 * cost.LAUNCH


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut, (top, _), (left, _) = cut_for(problem, device), *problem.padding
    partial = workspace[: cut.partial_bytes].view(problem.accumulate)
    args = (x, grad_y, partial, problem.Cg, problem.Kg)
    args += (cut.filters // cut.tile_k, cut.columns // cut.tile_m, cut.pixels)
    args += (*problem.stride, top, left, *problem.dilation)
    kernel = compiled(problem.R, problem.S, problem.dtype.name)
    launch(kernel, cut.grid(problem), THREADS, args, stream=stream)
    add_splits(problem, cut, partial, grad_w, stream)


def add_splits(problem, cut, partial, grad_w, stream):
    weights = problem.K * problem.Cg * problem.R * problem.S
    args = (partial, grad_w, cut.splits, problem.Kg, cut.filters, cut.columns)
    kernel = compiled_finish(problem.R, problem.S, problem.dtype.name)
    launch(kernel, ceil_div(weights, FINISH_THREADS), FINISH_THREADS, args, stream=stream)
