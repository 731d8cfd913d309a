"""Weight gradient, directly: a block for each filter, channel and few taps, its threads share the pixels.

    grad_w[k, c, r, s] = sum over n, p, q of  grad_y[n, k, p, q] * x[n, c, p stride - top + r dilation, ...]

A thread takes every 128th output pixel, loads grad_y once and x for each tap, and keeps the taps' sums in registers.
From pixel to pixel it moves by whole images, rows and columns: dividing its number anew would double the loop's length.
Then the threads' sums are added pairwise in shared memory, halving their number each time, always in the same order.
Where weights are few, the pixels are split among blocks too, and weight_grad.py's second kernel adds the splits.

    threads      0   1   2   3   4   5   6   7
    sums         a   b   c   d   e   f   g   h        neighbouring threads add to neighbouring sums: no bank
                a+e b+f c+g d+h                       conflict, and whole warps fall idle together
              a+c+.. b+d+..

Why so: with few filters and channels per group, as in depthwise layers, the tile of weight_grad.py would be nearly
empty. One load per multiply-add is the price; neighbouring pixels side by side in memory make it a cheap one. In the
machine code of a 3 x 3 window (sm_80) a pixel takes 199 instructions, 22 a tap, most of them addresses and tests.
Limits: none on the problem. Never run on hardware.
Source: the definition; Harris, Optimizing Parallel Reduction in CUDA, 2007 (sequential addressing).
"""

import math
from functools import cache, lru_cache

from numba import cuda

from ..cupy_raw.weight_grad_splits import Slots, direct_cut, direct_seconds, launch_reasons
from ..launching import ceil_div, launch
from .storage import at, register_type, widen
from .weight_grad import add_splits

THREADS = 128
MOST_TAPS = 16  # at once: 16 x 128 float64 are 16 of 48 KB
FEWEST_PIXELS = 8 * THREADS  # of one split: the pairwise sums must pay
SLOTS = Slots(tap=18, pixel=30, sum=3)
WAITING = 3.0  # times as long as its issue slots: what direct.py took on an H200

passes = ("weight_grad",)


@cache
def compiled(R, S, rows, columns, dtype_name):
    """The kernel that writes each split's sums, rows x columns taps of the window at a time."""
    number, real, taps = widen(dtype_name), register_type(dtype_name), rows * columns
    across = ceil_div(S, columns)
    chunks = ceil_div(R, rows) * across

    @cuda.jit
    def weight_grad_direct(
        x, grad_y, partial, Cg, Kg, split_pixels, stride_h, stride_w, top, left, dilation_h, dilation_w
    ):
        shares = cuda.shared.array((taps, THREADS), real)
        sums = cuda.local.array(taps, real)
        N, K, P, Q = grad_y.shape
        H, W = x.shape[2], x.shape[3]
        thread = cuda.threadIdx.x
        first_r = cuda.blockIdx.x % chunks // across * rows
        first_s = cuda.blockIdx.x % across * columns
        c, k = cuda.blockIdx.x // chunks % Cg, cuda.blockIdx.x // chunks // Cg
        channel = k // Kg * Cg + c

        for t in range(taps):
            sums[t] = real(0)
        first = cuda.blockIdx.y * split_pixels
        end = min(first + split_pixels, N * P * Q)
        n, p, q = (first + thread) // (P * Q), (first + thread) // Q % P, (first + thread) % Q
        step_n, step_p, step_q = THREADS // (P * Q), THREADS // Q % P, THREADS % Q
        for _ in range(first + thread, end, THREADS):
            factor = number(grad_y[at(n), at(k), at(p), at(q)])
            h0, w0 = p * stride_h - top + first_r * dilation_h, q * stride_w - left + first_s * dilation_w
            for r in range(rows):
                for s in range(columns):
                    h, v = h0 + r * dilation_h, w0 + s * dilation_w
                    if first_r + r < R and 0 <= h < H and first_s + s < S and 0 <= v < W:
                        sums[r * columns + s] += factor * number(x[at(n), at(channel), at(h), at(v)])
            n, p, q = n + step_n, p + step_p, q + step_q
            if q >= Q:
                q -= Q
                p += 1
            if p >= P:
                p -= P
                n += 1

        for t in range(taps):
            shares[t, thread] = sums[t]
        half = THREADS // 2
        while half > 0:
            cuda.syncthreads()
            for i in range(thread, taps * half, THREADS):
                t, j = i // half, i % half
                shares[t, j] += shares[t, j + half]
            half //= 2
        cuda.syncthreads()
        r, s = first_r + thread // columns, first_s + thread % columns
        if thread < taps and r < R and s < S:
            weight = (k * Cg + c) * (R * S) + r * S + s
            partial[at(cuda.blockIdx.y * K * Cg * (R * S) + weight)] = shares[thread, 0]

    return weight_grad_direct


def taps_at_once(problem):
    """Rows and columns of the window that a block takes."""
    columns = min(problem.S, MOST_TAPS)
    return min(problem.R, MOST_TAPS // columns), columns


@lru_cache(maxsize=4096)
def cut_for(problem, device):
    rows, columns = taps_at_once(problem)
    chunks = ceil_div(problem.R, rows) * ceil_div(problem.S, columns)
    return direct_cut(problem, device, chunks, FEWEST_PIXELS)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return launch_reasons(problem, cut_for(problem, device))


def workspace_bytes(problem, device):
    return cut_for(problem, device).partial_bytes


def predicted_seconds(problem, device):
    taps = math.prod(taps_at_once(problem))
    return direct_seconds(problem, device, cut_for(problem, device), taps, THREADS, SLOTS, WAITING)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q).

    workspace: `workspace_bytes` of them, 64-byte aligned.
    """
    cut, (top, _), (left, _) = cut_for(problem, device), *problem.padding
    partial = workspace[: cut.partial_bytes].view(problem.accumulate)
    args = (x, grad_y, partial, problem.Cg, problem.Kg, cut.pixels)
    args += (*problem.stride, top, left, *problem.dilation)
    kernel = compiled(problem.R, problem.S, *taps_at_once(problem), problem.dtype.name)
    launch(kernel, cut.grid(problem), THREADS, args, stream=stream)
    add_splits(problem, cut, partial, grad_w, stream)
