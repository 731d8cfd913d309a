"""Strassen's algorithm, one level of it, for 1x1 layers and patches (patches.py): seven products of half the
filters, channels and pixels, not eight.

    halves of   filters x channels     channels x pixels     filters x pixels
                   [ A11 A12 ]            [ B11 B12 ]           [ Y11 Y12 ]
                   [ A21 A22 ]            [ B21 B22 ]           [ Y21 Y22 ]

    S1 = A21 + A22    S2 = S1 - A11    S3 = A11 - A21    S4 = A12 - S2        of the weights, ahead or in a call
    T1 = B12 - B11    T2 = B22 - T1    T3 = B22 - B12    T4 = T2 - B21        of two tiles of pixels, by every task

    for every pair of neighbouring tiles of pixels, 3 vectors each and perhaps a lone one: the left is B's first half
        for every 8 filters and the 8 half of all filters further: seven times the micro-kernel, in this order
            t  = A11 B11      Y11 = t + A12 B21      t += S2 T2      e = t + S1 T1
            Y12 = e + S4 B22      Y22 = e + S3 T3      t += S3 T3      Y21 = t - A22 T4

Why so: this is Winograd's form, with the fewest sums, and in this order two tiles of sums suffice, t and e, which stay
in the L1 cache: each of the four results is written once, finished. A product's weights lie in the order in which
they are read, 7/4 of the layer's in all. Sums of weights are made once, those of pixels by the first 8 filters' first
two products, T1 and T2 and then T3 and T4, into the L2 cache: a step of theirs has 24 multiply-adds to wait for. Where
a core has units that only add (`sums_made`), T2 alone is kept, and products subtract while they multiply: with T2 in
B12's place all others are differences of two, T1 = B22 - T2, T3 = T2 - B11 and T4 = T2 - B21. What pairs of tiles
leave over is blocked.py's. The error grows by less than twice (accuracy.py).

With 32 registers a tile may be a pixel wider than its vectors. Its sums, filters in the lanes, take one more register,
and one more multiply-add after 24. With vectors of 16, pairs are then 98 pixels, of which maps of 14 x 14 and 28 x 28
are a whole number, and nothing is left over for which all weights would be fetched again.

Measured on two Zen 5 cores, plans of ResNet-50's 1x1 layers at N = 1, as times of blocked.py over these: with AVX-512
1.01 to 1.10 from 64 channels and 256 filters on, 1.13 for 256 -> 512 with stride 2, 0.9 to 1.0 for 64 filters; held
to AVX2 1.06 to 1.11, and more where x's rows lie so that blocked.py reads them slowly. Seven products instead of eight
would be 1.14: sums of pixels cost 2 to 9 %, most where there are few filters, and what is left over 2 to 5 %.
What was learned there:
- A single call has to make the weights' sums. When threads then read what the others wrote, it took 9 microseconds more
  than a plan's for 65,536 weights, 28 for 262,144, of layers that take 200 to 400; and 37 and 118 to 150 in hours in
  which what one core writes comes slowly to the other. So each thread makes for itself what it reads, for one range of
  filters at a time, during its first pair of tiles.
- These sums are made beside the products of the 8 filters before, where registers allow: four channels a step, in five
  turns of which none needs more than 7 registers besides the product's own (`pack_few`). On two Zen 4 cores calls take
  5 to 15 microseconds more than plans so, 5 of them in Python, instead of 32 for 256 -> 1024 channels of 14 x 14, 40 to
  47 for 1024 -> 256, 80 to 110 for 1024 -> 512; by themselves they cost 240 to 390 cycles for 512 weights, most where
  rows lie a multiple of 4,096 bytes apart, beside products 50. Making them just before their products, with weights
  and what is written fetched ahead, gained 1 or 2 % only: stores and shuffles are what costs. Beside products, 24
  shuffles of two whole vectors for 8 x 16 weights took registers from the sums, and twice the time of all in turn.
  With 16 registers they are made just before.
- Products that begin with t or e in their registers, instead of being added to them, two at a time without a store
  between: 0.99 to 1.00 of the time, and 1.17 times the error, since each step is rounded at the sum's size.
- Two threads had a pair each of a map of 14 x 14, and one of them the last four pixels as well: 12 % of the time. In
  tiles with a lone pixel such layers take 0.92 to 0.97 of that, of 28 x 28 0.98 to 1.02; 56 x 56, of which 64 pixels
  are left over, gains nothing.
- The micro-kernel is at 0.97 of its best speed wherever the operands lie (L1, L2 or L3 cache, rows of x any number of
  bytes apart), at 0.96 of that with 64 channels a product and sums to finish. Sums of pixels take 3 cycles a vector
  where x lies in the L2 cache and 5 where it comes from L3: 14 % of 256 -> 64 channels of 56 x 56, 4 % of 512 -> 256
  of 28 x 28. A second level is strassen_twice.py's. Laderman's scheme of 23 products for 27 takes 0.97 of Winograd's 7
  for 8 before its sums, of which there are several times as many; it was not written.
- Tasks of what is left over lie evenly among the pairs'. Behind them all they were one thread's, and 512 -> 384
  channels of 16 x 16 took 259 microseconds instead of 203.
- Fetching x ahead for the sums, and walking a pair's filters in another order than the neighbour's, change nothing;
  nor did fetching the next pair's during this pair's products on two Zen 5 cores. On two Zen 4 cores the latter takes
  0.98 of the time with 128 channels and more, whose x, of one pair, the L1 cache does not hold, and with 64 up to 1.04.
- Sums of pixels made by the first products, and not before them, on two Zen 4 cores: 0.94 to 1.0 of the time, least
  where filters are few. All four by the first product are as fast.
- Between a product's last multiply-add and the next one's first two Zen 4 cores lose 20 cycles. Sums that begin with
  zeros cost 10 to 30 more than such that begin with the first step's products; 24 vectors of biases or limits 9 each.
  A tile that is stored as it is then costs 18 in all, added to t or e and stored 28, and both y and t 90; it was 140
  when all 24 sums were made before one was stored, and half of them left the registers. Storing them between the next
  product's first multiply-adds would gain 4 of 28 and 15 of 90. t or e as the beginning gains nothing, nor do 2 or 4
  channels a step. Plans take 0.97 to 1.0 of the time so, two levels 0.93 to 0.99.
- Plans in which two threads write one map, each other pixels of it: where each takes half the filters and all pixels,
  and makes all T's, two Zen 4 cores took 0.77 of the time for 96 -> 576 channels of 14 x 14, 0.86 to 0.92 for 256 ->
  1024, 0.94 and 0.96 for 512 -> 512 and 1024 -> 512, and 0.90 to 0.93 for 128 -> 512 and 192 -> 384 of 28 x 28 (two
  levels 0.88 and 0.93); 512 -> 256 and 1024 -> 256 were alike; in quiet hours some of these are, too. Rows of y
  of which no cache line has two owners change nothing.
- With 32 registers products that finish fetch the lines of y ahead, to write them, two at every step: row after row,
  then what is further right, over and over. Where three outputs are written in turn, plans of two levels take 0.90 to
  0.96 of the time so on two Zen 4 cores, of one 0.95 and 1.0; where it is one, again and again, 0.94 to 1.02. Held to
  AVX2, with steps of 12 multiply-adds, 0.94 (64 -> 256 channels of 56 x 56) to 1.09: there nothing is fetched.
- T2 alone kept, on two Zen 4 cores, calls in turn: 0.96 of the time for 64 -> 64 channels of 56 x 56, 0.97 for 256 ->
  64, with two levels 0.96 for 1024 -> 256 of 14 x 14, 0.97 for 512 -> 128 of 28 x 28 and 1024 -> 512, 0.99 for 64 ->
  256 and 256 -> 128 of 56 x 56, 1.0 to 1.014 from 512 filters on. A line stored beyond the L1 cache costs 4 cycles and
  more, a product of differences 1 to 4 % more than another, with three numbers each 2 to 5 %, with four a fifth; held
  to AVX2 2 to 13 %, so that there all four are kept.
- Maps of 56 x 56 in tiles with a lone pixel, so that nothing is left over: 1.0 to 1.12 of the time, since no row then
  begins with a cache line.
- Raw halves of x are read where they lie; copying them beside T1 .. T4 gains 1 % at best and costs 3 % for few filters.
Source: Strassen, Gaussian elimination is not optimal, 1969, in the form of Winograd 1971; sums made while packing and
results added on leaving as in Huang et al., Strassen's Algorithm Reloaded, SC 2016.
"""

import struct
from functools import lru_cache

import numpy as np

from . import blocked, patches, target, weight_rows
from .blocked import copy_biases_function, finish_tile_function, flat_rows
from .blocked_cuts import BLOCKING
from .call import pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP
from .flat_planes import copy_planes_function
from .job import job_of
from .microkernel import CLOCK, VECTORS, panel_rows, predicted
from .strassen_cuts import (
    ALONE_CYCLES,
    CALL_STRASSEN,
    PAIRS,
    best_cycles,
    blocking,
    fetch_seconds,
    lone_pixels,
    pairs,
    panel_bytes,
    rows_bytes,
    tile_pixels,
)
from .strassen_products import next_weights, packs_beside, pair_function
from .strassen_sums import CHANNELS, PRODUCTS, build_pack, half_depth, pack_numbers_function, pack_panel_function
from .threads import LINE, run_tasks, two_round_loop
from .vectors import lanes, load_shared, record_at, store_shared

passes = ("forward",)


@inlined
def reads_flat(call, item):
    """Whether the pixels of a channel of x are neighbours, and all of them wanted."""
    all_pixels = call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
    return all_pixels and call.x_w == item and flat_rows(call.x_h, call.x_w, call.W)


@inlined
def writes_flat(call, item):
    """Whether finished sums can go to y as they are."""
    return call.activation == CLAMP and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)


def build(dtype_name, lone):
    real = np.float64 if dtype_name == "float64" else np.float32
    item, stored_item = np.dtype(real).itemsize, 2 if dtype_name.endswith("16") else np.dtype(real).itemsize
    same = item == stored_item
    rows, width = panel_rows(), VECTORS * lanes(real) + lone
    x_tile, row = width * item, VECTORS * lanes(real) * item
    gap = lone * LINE
    tile_bytes, wait_row = rows * row + gap, row + gap
    wait_tile, near = rows * wait_row, target.cache_bytes(1)
    copy_planes, multiply_pair = copy_planes_function(dtype_name), pair_function(real, lone)
    copy_patches = patches.copy_patches_function(real)
    finish_tile, copy_biases = finish_tile_function(dtype_name), copy_biases_function(dtype_name)
    pack_panel, pack_numbers = pack_panel_function(dtype_name), pack_numbers_function(dtype_name)
    may_pack, left_over = packs_beside(), inlined(blocked.task_function(dtype_name))

    @inlined
    def next_pixels(x):
        """Lines of x, one of each row in each product."""
        return x, x + LINE, x + 2 * LINE, x + 3 * LINE, x + 4 * LINE, x + 5 * LINE, x + 6 * LINE

    def forget(call_address, worker):
        """A worker has no filters' sums of weights; at `made` stands whose it has, and behind that they are."""
        call = record_at(CALL_STRASSEN, call_address)
        if call.w_k != 0:
            store_shared(call.workspace + worker * call.worker_bytes + call.made_at, -1)

    def no_task(call_address, index, worker):
        pass

    @inlined
    def copy_halves(call, planes, x, first, c0, channels):
        """Of `channels` channels from c0 on and those half of all further: the rows of x in which the pair's pixels
        lie. Of patches, of so many depths: whole rows of windows.
        """
        row0, end = first // call.Q, first + 2 * width
        count = (end - 1) // call.Q - row0 + 1
        column, behind = (first % call.Q, (end - 1) % call.Q + 1) if count == 1 else (0, call.Q)
        for half in range(2):
            to, begin = planes + half * channels * call.planes_bytes, c0 + half * half_depth(call)
            if call.S > 1:
                line, lines = begin // call.S, channels // call.S
                copy_patches(call, to, call.planes_bytes, x, line, lines, row0, count, column, behind)
            else:
                here = x + begin * call.x_c
                copy_planes(call, to, call.planes_bytes, here, row0, 1, channels, count, column, behind, 0)

    @inlined
    def result(call, direct, y, y_half, wait, bias):
        """Where sums go, as pair_function's y, its biases and limits."""
        if direct:
            below = bias + call.pair_filters * item
            return y, call.y_k, y_half, x_tile, bias * call.has_bias, below * call.has_bias, call.low, call.high
        return wait, wait_row, 2 * wait_tile, wait_tile, 0, 0, -np.inf, np.inf

    @inlined
    def addend(call, c0, direct, residual, r_half, wait):
        """What sums are added to, as pair_function's residual: those of the channels before, the residual, nothing."""
        if c0 > 0:
            return wait, wait_row, 2 * wait_tile, wait_tile
        return residual if direct and call.has_residual else 0, call.residual_k, r_half, x_tile

    @inlined
    def finish(call, n, k0, first, wait, bias):
        """The four tiles at `wait`, of filters from k0 on and those half of all further."""
        for i in range(4):
            k, number = k0 + i // 2 * (call.Kg // 2), bias + i // 2 * call.pair_filters * item
            finish_tile(call, n, k, rows, first + i % 2 * width, width, wait + i * wait_tile, wait_row, number)

    @inlined
    def pair(call, index, worker):
        number, rest = index % call.pairs, index // call.pairs
        n, rest = rest % call.N, rest // call.N
        filter_task, g = rest % call.pair_filter_tasks, rest // call.pair_filter_tasks  # rest: whose weights
        first, depth, half = number * 2 * width, half_depth(call), call.Kg // 2
        begin = filter_task * call.pair_filters
        end = min(begin + call.pair_filters, half)
        planes = call.workspace + worker * call.worker_bytes
        totals, alone = planes + call.sums_at, planes + call.alone_at
        t, biases = planes + call.tiles_at, planes + call.pair_bias_at
        waiting = t + 2 * tile_bytes
        copy_biases(call, g * call.Kg + begin, end - begin, biases)
        copy_biases(call, g * call.Kg + half + begin, end - begin, biases + call.pair_filters * item)

        x = call.x + n * call.x_n + g * call.Cg * call.x_c
        in_place, direct = same and reads_flat(call, item), same and writes_flat(call, item)
        if call.has_residual:
            direct = direct and call.pair_channels == depth
            direct = direct and call.residual_q == item and flat_rows(call.residual_p, call.residual_q, call.Q)
        y_half, r_half = half * call.y_k, half * call.residual_k if call.has_residual else 0
        product_bytes = depth * rows * item
        panels, own, makes = call.w + call.panels_at + g * (half // rows * PRODUCTS * product_bytes), 0, False
        made, w = planes + call.made_at, call.w + g * call.Kg * call.w_k
        if call.w_k != 0:
            own, panels = rest, made + LINE - begin // rows * PRODUCTS * product_bytes
            makes = load_shared(made) != own
        y = call.y + n * call.y_n + g * call.Kg * call.y_k + first * item
        residual = call.residual + n * call.residual_n + g * call.Kg * call.residual_k + first * item
        for c0 in range(0, depth, call.pair_channels):
            channels = min(call.pair_channels, depth - c0)
            panel = channels * row
            if in_place:
                b, b_step, b_half = x + c0 * call.x_c + first * item, call.x_c, depth * call.x_c
            else:
                copy_halves(call, planes, x, first, c0, channels)
                b, b_step, b_half = planes + first % call.Q * item, call.planes_bytes, channels * call.planes_bytes
            last = c0 + channels == depth
            beside = may_pack and makes and call.w_c == item and channels >= CHANNELS
            fetches = in_place and number + 1 < call.pairs and 4 * panel > near
            for k in range(begin, end, rows):
                a = panels + k // rows * (PRODUCTS * product_bytes) + c0 * rows * item
                wait = waiting + (k - begin) // rows * call.waiting_step
                bias = biases + (k - begin) * item
                packs, next_w = beside and k + rows < end, w + (k + rows) * call.w_k
                if makes and (k == begin or not beside):
                    pack_panel(call, a - c0 * rows * item, w + k * call.w_k, c0, channels)
                out, out_row, out_half, out_tile, above, below, low, high = result(
                    call, last and direct, y + k * call.y_k, y_half, wait, bias
                )
                here = residual + k * call.residual_k
                add, add_row, add_half, add_tile = addend(call, c0, last and direct, here, r_half, wait)
                soon, soon_step = next_weights(a, product_bytes), rows * item
                if fetches and (k == begin + rows or k == begin + 2 * rows):  # the next pair's first half, its second
                    soon, soon_step = next_pixels(b + 2 * x_tile + (k - begin - rows) // rows * b_half), b_step
                multiply_pair(
                    k == begin, packs, (next_w + c0 * item, call.w_k, half * call.w_k, depth * item), a, product_bytes,
                    b, b_step, b_half, x_tile, totals, panel, row, alone, channels * item, item, channels, t, out,
                    out_row, out_half, out_tile, above, below, add, 0, add_row, add_half, add_tile, low, high, soon,
                    soon_step,
                )  # fmt: skip
                if packs:
                    to, whole = a + PRODUCTS * product_bytes - c0 * rows * item, channels // CHANNELS * CHANNELS
                    pack_numbers(call, to, next_w, c0 + whole, c0 + channels)
                if last and not direct:
                    finish(call, n, g * call.Kg + k, first, wait, bias)
        if makes:
            store_shared(made, own)

    def task(call_address, index, worker):
        call = record_at(CALL_STRASSEN, call_address)
        all_tasks = call.pair_tasks + call.left_tasks  # what is left over evenly among the pairs, as are the threads'
        before = index * call.left_tasks // all_tasks
        if (index + 1) * call.left_tasks // all_tasks == before:
            pair(call, index - before, worker)
        else:
            left_over(call_address, before, worker)

    return two_round_loop(no_task, task, forget)


@lru_cache(maxsize=1024)
def prepared(problem, threads, planned):
    numbers, tasks, _ = blocking(problem, threads, planned)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING + PAIRS)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, lone_pixels(problem)), tasks


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    filters, pixels = 2 * panel_rows(), 2 * tile_pixels(problem)
    reasons = []
    if problem.dtype != problem.accumulate:
        reasons.append(f"takes float32 and float64, not {problem.dtype}")
    point = problem.R * problem.S == 1 and problem.padding == ((0, 0), (0, 0))
    if not point and not patches.serves(problem):
        where = f"made for 1x1, or in NCHW for {patches.WHICH}, without padding"
        reasons.append(f"{where}; {patches.in_words(problem)}")
    if problem.Cg * problem.R % 2 or problem.Kg % filters:
        reasons.append(
            f"halves channels and filters: an even number of channels, or of their windows' rows, and a multiple of "
            f"{filters} filters per group needed, got {problem.Cg * problem.R} and {problem.Kg}"
        )
    if pairs(problem) == 0:
        reasons.append(f"at least {pixels} output pixels needed, got {problem.P} x {problem.Q}")
    return reasons


def workspace_bytes(problem, device):
    return max(blocking(problem, device.threads, planned)[-1] for planned in (True, False))


def reads_in_place(problem, w):
    """Weights of which a call makes the sums by itself."""
    return problem.Kg % weight_rows.padded_filters(1) == 0 and blocked.reads_in_place(problem, w)


def packed_bytes(problem, device):
    return rows_bytes(problem) + panel_bytes(problem)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned): rows of filters, and panels."""
    if rows_bytes(problem):
        blocked.pack(problem, device, w, packed)
    panels, w = packed[rows_bytes(problem) :], by_depth(problem, w)  # a copy has to live until it has been read
    call = pack_call(problem_fields(problem), panels, w, panels, None, None, None)
    run_tasks(
        compiled(build_pack, problem.dtype.name), call, problem.groups * problem.Kg // 2 // panel_rows(), device.threads
    )


def by_depth(problem, w):
    """The weights of each filter in a row; without a copy where they are contiguous."""
    return w.reshape(problem.K, problem.reduction, 1, 1)


def predicted_seconds(problem, device):
    cycles = best_cycles(problem, device.threads, planned=True) * device.threads
    seconds = predicted(problem, device, cycles + problem.N * problem.groups * blocked.store_cycles(problem))
    return seconds + fetch_seconds(panel_bytes(problem), cycles, device.threads)


def pack_seconds(problem, device):
    """Making the weights' sums, and cutting the problem so that each thread has made those that it wants."""
    alone, planned = (best_cycles(problem, device.threads, planned) for planned in (False, True))
    besides = 0.0 if packs_beside() else ALONE_CYCLES * problem.K * problem.reduction / device.threads
    return (alone - planned + besides) / CLOCK


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    planned = w.ndim == 1
    fields, loop, tasks = prepared(problem, device.threads, planned)
    w = w if planned else by_depth(problem, w)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w, packed or as `reads_in_place` asks, into y; all in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
