"""Strassen's algorithm for 1x1 layers and patches (patches.py) on maps of few pixels: filters in the lanes, the
weights' sums ahead in a plan.

    halves of   pixels x channels      channels x filters    pixels x filters
                   [ A11 A12 ]            [ B11 B12 ]           [ Y11 Y12 ]
                   [ A21 A22 ]            [ B21 B22 ]           [ Y21 Y22 ]

    S1 = A21 + A22    S2 = S1 - A11    S3 = A11 - A21    S4 = A12 - S2        of x, by every thread
    T1 = B12 - B11    T2 = B22 - T1    T3 = B22 - B12    T4 = B21 - T2        of the weights, once

    for some vectors of a thread's filters and those half of all further: for every block of channels
        seven times, for all tiles of pixels and those half of all further, in this order
            t  = A11 B11      Y11 = t + A12 B21      t += S2 T2      e = S1 T1
            Y12 = t + e + S4 B22      t += S3 T3      Y22 = t + e      Y21 = t + A22 T4

Why so: strassen.py halves pixels by tiles of vectors, of which a map of 7 x 7 has three, and one pixel. Here what is
halved in vectors are the filters, of which such layers have hundreds. Two forms of tile:

    flat: 5 pixels x 4 or 5 vectors of filters    9 or 10 loads for 20 or 25 multiply-adds
    tall: 25 pixels x 1 vector                    a load for each, where one multiply-add starts a cycle

Flat ones cut 49 pixels into 2 x 25 but for one. A product's weights, 32 KB of each block, come from memory once and
from the L1 cache for every further tile; while they are used the next product's are fetched. The tiles t and e of all
pixels wait in L1 and L2. A tall tile has half the pixels, so each weight is read once, all channels are one block and
sums wait once a product; the halves are pixels 0 to 24 and 24 to 48, so nothing is masked, and what the products take
of x itself they read where it lies. x is small: each thread makes for itself all that the seven products take of it,
once for all its filters. Of patches it first sorts x into rows, one for each depth (c, r, s), which are the channels.

A single call would make the weights' sums for 49 pixels only: more work than they save (below).

Measured on two Zen 5 cores with AVX-512, plans at N = 1, as times of blocked.py over these: ResNet-50's 512 -> 2048
channels of 7 x 7 1.10, 2048 -> 512 1.06 to 1.11, 1024 -> 2048 with stride 2 1.13, MobileNetV2's 320 -> 1280 1.07,
160 -> 960 1.03, 960 -> 320 1.0. Seven products instead of eight would be 1.14, of 50 pixels instead of 49 1.12. The
products run at 0.92 of two cores' peak; what is made of x takes 2 to 13 % of a layer, most where there are few filters.
On two Zen 4 cores with AVX-512 (peak 236 GFLOP/s), plans with tall tiles, flat ones, and of blocked.py, microseconds:
512 -> 2048 of 7 x 7 428, 455, 485; 2048 -> 512 425, 458, 485; 1024 -> 2048 with stride 2 865, 925, 1,020; 320 -> 1280
175, 190, 194; 960 -> 320 135, 151, 149; 160 -> 960 75, 81, 79; 256 -> 512 of 6 x 6 50, 57, 73; 512 -> 2048 of 8 x 8
535, 575, 615. The loop alone does 0.975 of the peak with all weights from L3.
What was learned there:
- Blocks of 24 to 64 KB of weights are all as fast, as the L2 cache would do too.
- The pixels of a product's tiles must lie together, 5 to a channel: all 25 side by side made sums in half the time and
  cost the products 7 %, since each tile then touched the lines of all five.
- With as many bytes from tile to tile of x's sums as say 256 channels of 4 pixels have, 4,096, the 7 sums of all tiles
  fell into one set of the L1 cache (`spaced_tile`). With a line more two Zen 4 cores held to AVX2 take 0.73 of the time
  for 1024 -> 512 channels of 8 x 8, of 7 x 7 0.94, 0.93 for 2048 -> 512 and 0.98 for 512 -> 2048.
- Patches on two Zen 4 cores, plans, as times of blocked.py's: 384 -> 768 channels of 14 x 14 under 2 x 2 0.82, 512 ->
  1024 0.86, 256 -> 512 of 16 x 16 0.84, 160 -> 256 of 14 x 14 0.94, 3 -> 768 of 224 x 224 under 32 x 32 0.90, 96 -> 192
  of 28 x 28 under 4 x 4 0.96. Held to AVX2 0.69 to 0.93; strassen.py, where it takes them, is there about as fast.
- Windows that overlap are Winograd's: with 49 pixels 512 -> 512 channels under 3 x 3 are 4,608 channels here, of which
  a plan takes 0.97 to 1.05 ms on two Zen 4 cores; a single call of Winograd's F(2) takes 0.72, with stride 2 1.0.
- In a first round of tasks that shared them, x's sums took half the time, 1 to 3 % of a layer less where what one core
  wrote soon came to the other, and 20 to 45 % more in other hours, when it did not.
- A flat tile must not fetch ahead behind its task's last weights: there lay the other thread's sums of x, and layers of
  7 x 7 took 1.15 to 1.2 times as long (two Zen 4 cores), as allocations happened to fall.
- Tall tiles fetch weights ahead by any distance or not at all and are as fast: 7 MB from L3 cost 2 % of the peak.
- Nor do sums of weights from memory cost what their bytes take by themselves: 1536 -> 2048 channels of 10 x 10 2,530
  microseconds, blocked.py 3,220; 2048 -> 4096 of 7 x 7, 59 MB of sums, 3,370 and 4,480 (two Zen 4 cores).
- Sums of weights made by vectors for one call, into a buffer that stays in the caches: a thread's half of 512 -> 2048
  channels took one Zen 4 core 112 to 135 microseconds, 0.8 to 0.95 cycles a weight, of which 72 are reading 2 MB of L3
  at 29 GB/s, the rest transposing and seven stores; fetching ahead gained at most a sixth. Products save 30 to 60 of
  blocked.py's time. (Plans make all in 178 on two cores; a call that does so takes 60 to 240 more than a plan's, and of
  4 images or more 240 to 1,040.) What might pay is to make the next block's sums within the loops of this block's
  products, where by arithmetic there is room for loads and stores; it was not written.
- Where the maps are larger, strassen.py is faster by 1.2 times (14 x 14) and 1.4 times (28 x 28).
Source: Strassen, Gaussian elimination is not optimal, 1969, in the form of Winograd 1971; the order of the products
after Huang et al., Strassen's Algorithm Reloaded, SC 2016; filters in the lanes as in blocked_by_filters.py.
"""

import struct
from functools import lru_cache

import numpy as np

from . import patches
from .blocked import copy_biases_function, flat_rows
from .call import CALL, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import CLAMP, store_one_function
from .flat_planes import copy_planes_function
from .job import job_of
from .microkernel import AHEAD, CLOCK, predicted, vector_type
from .short_floats import memory_functions
from .strassen import by_depth
from .strassen_by_filters_cuts import (
    BLOCKING,
    CALL_STRASSEN,
    blocking,
    channel_block,
    copied,
    cycles,
    filter_groups,
    possible_tiles,
    spaced_tile,
    tall,
    tile_of,
)
from .strassen_by_filters_products import (
    STEPS,
    pack_vectors_function,
    product_function,
    seven_of_filters,
    sum_pixels_function,
    sum_rows_function,
)
from .strassen_cuts import fetch_seconds
from .strassen_sums import PRODUCTS, half_depth
from .threads import run_tasks, task_loop
from .vectors import lanes, record_at

passes = ("forward",)


def build(dtype_name, height, width):
    real = np.dtype(dtype_name).type
    V = vector_type(real)
    item = V.item_bytes
    tile_bytes, group = height * width * V.bytes, width * V.count
    read, _, _, _ = memory_functions(dtype_name)
    is_tall, sum_rows, sum_pixels = tall((height, width), real), None, None
    if is_tall:
        sum_rows = sum_rows_function(real, height)
    else:
        sum_pixels = sum_pixels_function(real, height)
    copy_biases = copy_biases_function(dtype_name)
    store_one = store_one_function(dtype_name)
    copy_planes, copy_patches = copy_planes_function(dtype_name), patches.copy_patches_function(real)
    first, second, third, fourth, fifth, sixth, seventh = (
        product_function(real, height, width, *step) for step in STEPS
    )

    @inlined
    def in_place(call):
        """Do x's pixels lie side by side?"""
        point = call.stride_h == 1 and call.stride_w == 1 and call.H == call.P and call.W == call.Q
        return point and call.x_w == item and flat_rows(call.x_h, call.x_w, call.W)

    @inlined
    def copy_pixels(call, to, image, c, count):
        """Planes of `count` channels, or depths of patches, from c on."""
        if call.S > 1:
            copy_patches(call, to, call.plane_bytes, image, c // call.S, count // call.S, 0, call.P, 0, call.Q)
        else:
            copy_planes(call, to, call.plane_bytes, image + c * call.x_c, 0, 1, count, call.P, 0, call.Q, 0)

    @inlined
    def sum_tiles(call, to, planes, image):
        """All that the products take of x, block after block of channels; planes: where some of these may be copied."""
        depth, tiles, pixels, at_once = half_depth(call), call.tiles, call.P * call.Q, copied(call.S)
        for c0 in range(0, depth, call.channels):
            channels = min(call.channels, depth - c0)
            tile = spaced_tile(channels, height * item)
            for c in range(0, channels, at_once):
                some = min(at_once, channels - c)
                x, x_half, x_step = image + (c0 + c) * call.x_c, depth * call.x_c, call.x_c
                if not in_place(call):
                    for i in range(2):
                        copy_pixels(call, planes + i * some * call.plane_bytes, image, c0 + c + i * depth, some)
                    x, x_half, x_step = planes, some * call.plane_bytes, call.plane_bytes
                sum_pixels(to + c * height * item, tiles * tile, tile, x, x_half, x_step, some, tiles, pixels)
            to += PRODUCTS * tiles * tile

    @inlined
    def sum_x(call, to, planes, image):
        """What the products take of one image and group; where its pixels lie side by side, and their step."""
        depth, x, x_step = half_depth(call), image, call.x_c
        if not is_tall:
            sum_tiles(call, to, planes, image)
            return x, x_step
        if not in_place(call):
            x, x_step = planes, call.plane_bytes
            copy_pixels(call, x, image, 0, 2 * depth)
        panel = depth * call.tiles * height * item
        sum_rows(to, panel, x, depth * x_step, call.second * item, x_step, depth, call.tiles)
        return x, x_step

    @inlined
    def left_operand(call, p, c0, channels, sums_of_x, x, x_step):
        """Product p's, from channel c0 on: where it begins, how far its next tile is, and its next channel."""
        depth, row = half_depth(call), call.tiles * height * item
        if not is_tall:
            tile, whole = spaced_tile(channels, height * item), spaced_tile(call.channels, height * item)
            before = c0 // call.channels * PRODUCTS * whole + p * tile
            return sums_of_x + before * call.tiles, tile, height * item
        if p < 2:
            return x + (c0 + p * depth) * x_step, height * item, x_step
        if p == PRODUCTS - 1:
            return x + (c0 + depth) * x_step + call.second * item, height * item, x_step
        return sums_of_x + ((p - 2) * depth + c0) * row, height * item, row

    @inlined
    def finish_one_by_one(call, n, k0, sums, biases, pixel, left):
        for i in range(left):
            for k in range(group):
                store_one(call, n, k0 + k, pixel + i, read(sums + (i * group + k) * item) + read(biases + k * item))

    @inlined
    def multiply(p, a, a_step, b, depth, ahead, share, t, e, wait, goes_on, y, y_k, left, bias, add, add_k, low, high):
        """One tile of the product number p."""
        arguments = (a, a_step, b, depth, ahead, share, t, e, wait, goes_on, y, y_k, left, bias, add, add_k, low, high)
        if p == 0:
            first(*arguments)
        elif p == 1:
            second(*arguments)
        elif p == 2:
            third(*arguments)
        elif p == 3:
            fourth(*arguments)
        elif p == 4:
            fifth(*arguments)
        elif p == 5:
            sixth(*arguments)
        else:
            seventh(*arguments)

    @inlined
    def multiply_filters(call, n, g, number, behind, sums_of_x, x, x_step, own):
        """Of one image and group, `width` vectors of filters and those half of all further. behind: the first number
        that is another task's.
        """
        depth, tiles = half_depth(call), call.tiles
        k0 = g * call.Kg + number * group
        k1 = k0 + call.Kg // 2
        others, waiting, biases = own + tiles * tile_bytes, own + call.waiting_at, own + call.bias_at
        copy_biases(call, k0, group, biases)
        copy_biases(call, k1, group, biases + group * item)

        direct = call.activation == CLAMP and call.y_q == item and flat_rows(call.y_p, call.y_q, call.Q)
        if call.has_residual:
            direct = direct and call.residual_q == item
            direct = direct and flat_rows(call.residual_p, call.residual_q, call.Q)
        y = call.y + n * call.y_n + k0 * call.y_k
        y_half, r_half = call.Kg // 2 * call.y_k, call.Kg // 2 * call.residual_k
        residual = call.residual + n * call.residual_n + k0 * call.residual_k
        b = call.w + (g * call.filter_groups + number) * (PRODUCTS * depth * group * item)
        for c0 in range(0, depth, call.channels):
            channels = min(call.channels, depth - c0)
            goes_on, last = c0 > 0, c0 + channels == depth
            panel, share = channels * group * item, group * item // tiles
            soon = min(panel, AHEAD) if tiles == 1 else panel
            for p in range(PRODUCTS):
                a, a_tile, a_step = left_operand(call, p, c0, channels, sums_of_x, x, x_step)
                to_second, to_half = p == 5 or p == 6, p == 4 or p == 5  # of the pixels, of the filters
                waits = waiting + (2 * to_second + to_half) * tiles * tile_bytes
                above = biases + to_half * group * item
                # Behind the task's last panel may lie what other threads write, and fetching that would stop both.
                further = 0 if last and p == PRODUCTS - 1 and number + 1 == behind else soon
                out = y + to_half * y_half + to_second * call.second * item if last and direct else 0
                add = 0
                if last and direct and call.has_residual:
                    add = residual + to_half * r_half + to_second * call.second * item
                for i in range(tiles):
                    t, e, wait = own + i * tile_bytes, others + i * tile_bytes, waits + i * tile_bytes
                    left = min(call.P * call.Q - to_second * call.second - i * height, height)
                    ahead = b + further + i * channels * share
                    to = out + i * height * item if out != 0 else 0
                    more = add + i * height * item if add != 0 else 0
                    multiply(
                        p, a + i * a_tile, a_step, b, channels, ahead, share, t, e, wait, goes_on, to, call.y_k, left,
                        above, more, call.residual_k, call.low, call.high,
                    )  # fmt: skip
                b += panel
        if not direct:
            for i in range(4 * tiles):
                quarter, pixel = i // tiles, i // tiles // 2 * call.second + i % tiles * height
                bias, left = biases + quarter % 2 * group * item, min(call.P * call.Q - pixel, height)
                finish_one_by_one(call, n, k1 if quarter % 2 else k0, waiting + i * tile_bytes, bias, pixel, left)

    def task(call_address, index, worker):
        """Of one image and group, one range of the filters."""
        call = record_at(CALL_STRASSEN, call_address)
        filter_task, image = index % call.filter_tasks, index // call.filter_tasks
        g, n = image % call.groups, image // call.groups
        sums_of_x = call.workspace + worker * call.worker_bytes
        image = call.x + n * call.x_n + g * call.Cg * call.x_c
        x, x_step = sum_x(call, sums_of_x, sums_of_x + call.planes_at, image)
        behind = call.filter_groups * (filter_task + 1) // call.filter_tasks
        for number in range(call.filter_groups * filter_task // call.filter_tasks, behind):
            multiply_filters(call, n, g, number, behind, sums_of_x, x, x_step, sums_of_x + call.own_at)

    return task_loop(task)


def build_pack(dtype_name, width, channels):
    """Task: `width` vectors of filters and those half of all further. call.w: the weights, call.y: the panels."""
    V = vector_type(dtype_name)
    W, item, group = V.count, V.item_bytes, width * V.count
    read, write, _, _ = memory_functions(dtype_name)
    pack_vectors, seven_of = pack_vectors_function(dtype_name, group), inlined(seven_of_filters)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        depth, groups = half_depth(call), call.Kg // 2 // group
        half_filters, half_channels = call.Kg // 2 * call.w_k, depth * call.w_c
        w = call.w + (index // groups * call.Kg + index % groups * group) * call.w_k
        to = call.y + index * (PRODUCTS * depth * group * item)
        for c0 in range(0, depth, channels):
            count, begin, done = min(channels, depth - c0), w + c0 * call.w_c, 0
            panel = count * group * item
            if call.w_c == item:
                done = count // W * W
                for k in range(0, group, W):
                    here = begin + k * call.w_k
                    pack_vectors(to + k * item, panel, here, call.w_k, half_filters, half_channels, done // W)
            for k in range(group):
                for c in range(done, count):
                    here, there = begin + k * call.w_k + c * call.w_c, to + (c * group + k) * item
                    b11, b12 = read(here), read(here + half_filters)
                    b21, b22 = read(here + half_channels), read(here + half_filters + half_channels)
                    sums = seven_of(b11, b12, b21, b22)
                    for p in range(PRODUCTS):
                        write(there + p * panel, sums[p])
            to += PRODUCTS * panel

    return task_loop(pack)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    numbers, tasks = blocking(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(BLOCKING)}q", *numbers)
    return fields, compiled(build, problem.dtype.name, *tile_of(problem)), tasks


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    if device.kind != "cpu":
        return [f"runs on the CPU only, x is on {device}"]
    reasons = []
    if problem.dtype != problem.accumulate:
        reasons.append(f"takes float32 and float64, not {problem.dtype}")
    if problem.layout != "NCHW":
        reasons.append(f"made for NCHW, the layout is {problem.layout}")
    point = problem.R * problem.S == 1 and problem.padding == ((0, 0), (0, 0))
    if not point and not patches.apart(problem):
        reasons.append(f"made for 1x1 and {patches.WHICH}, without padding; {patches.in_words(problem)}")
    if problem.Cg * problem.R % 2 or problem.Kg % 2 or tile_of(problem) is None:
        filters = 2 * min(width for _, width in possible_tiles(problem)) * lanes(problem.accumulate)
        reasons.append(
            f"halves channels and filters: an even number of channels, or of their windows' rows, and a multiple of "
            f"{filters} filters per group needed, got {problem.Cg * problem.R} and {problem.Kg}"
        )
    return reasons


def workspace_bytes(problem, device):
    numbers, _ = blocking(problem, device.threads)
    return device.threads * numbers[BLOCKING.index("worker_bytes")]


def packed_bytes(problem, device):
    return PRODUCTS * problem.groups * (problem.Kg // 2) * (problem.reduction // 2) * problem.accumulate.itemsize


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` (uint8, 64-byte aligned), as seven panels a block."""
    packing = compiled(build_pack, problem.dtype.name, tile_of(problem)[1], channel_block(problem))
    w = by_depth(problem, w)  # a copy has to live until it has been read
    call = pack_call(problem_fields(problem), packed, w, packed, None, None, None)
    run_tasks(packing, call, problem.groups * filter_groups(problem), device.threads)


def predicted_seconds(problem, device):
    products = cycles(problem, device.threads)
    return predicted(problem, device, products) + fetch_seconds(packed_bytes(problem, device), products, device.threads)


def pack_seconds(problem, device):
    return 12.0 * problem.K * problem.reduction / CLOCK / device.threads


def job(problem, device, x, w, y, bias, residual):
    """`run` for arrays of these strides."""
    fields, loop, tasks = prepared(problem, device.threads)
    return job_of(fields, loop, tasks, device.threads, x, w, y, bias, residual)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical order."""
    job(problem, device, x, w, y, bias, residual).run(x, w, y, bias, residual, workspace)
