"""Input gradient of a strided convolution: all phases of the stride from one copy of grad_y, stored side by side.

    grad_x[c, i t + f] = sum over k and the taps r that phase f meets of  w[k, c, r] * grad_y[k, i + shift(f, r)]

(convlib/input_grad_phases.py derives it.) As forward problems of their own the phases copy grad_y into panels once
each and write every second number of each line, which is then read, changed and written once per phase. Here

    a task owns a few tiles of 48 pixels (3 vectors) of the coarse grid (n, i, j), i < H / t, and a block of channels
    for every block of filters k                          a panel, 48 pixels x about 192 filters, fits the L1 cache
        copy grad_y into one panel for each shift         3x3 with stride 2 has 9 taps but 4 shifts, 1x1 one
        for 64 channels: for every tile: for every phase: for every tap:
            the micro-kernel                              rows: channels; columns: pixels; depth: filters
    for every tile: the sums of phases that are neighbours in a row of grad_x, interleaved, and zeros where no tap
    meets a phase: whole lines, written once

The coarse grid runs on from image to image, so a batch of 7 x 7 maps fills its tiles. Where a group has few channels
(three, for the first layer of a network) those of all phases are the rows of one tile, and a shift takes the place of
a tap: 12 rows and 16 shifts of a 7x7 window with stride 2, some of whose weights are zero, instead of 8 rows and 49
taps.

A 1x1 has one shift, and a tile whose pixels are neighbours in grad_y is read where it lies instead of copied; with
stride 1 the micro-kernel also stores it. Many weights of a 1x1 are read where they lie too: the channels of a filter,
the rows of a tile, are neighbours in w.

Each sum is made by one task in the order of blocks, taps and filters, whatever the number of threads.

Measured on two Zen 5 cores with AVX-512, eight images of ResNet-50's layers, where two micro-kernels reach 530 GFLOP/s,
whole calls: 3x3 with stride 2 340 to 430, 1x1 with stride 2 350 to 410 (three of four numbers stored are zeros), 1x1
410 to 470. As phases the former were 156 to 283. What taught most:
- Packing 9 MB of weights panel by panel, 32 bytes of each filter at a time, took 2.2 ms when no cache held them and 0.5
  when one did; filter by filter it takes 0.4 and 0.3. A benchmark that packs again and again does not see it.
- Copying grad_y filter by filter, 1 to 2 KB at a time, instead of a cache line of each filter in turn made all 1x1
  layers 5 to 12 % faster; reading tiles in place instead another 10 to 20 % on 56 x 56 with few channels and 0 to 7 %
  elsewhere.
- Packing 4 to 8 MB of weights of a 1x1 takes 5 to 17 % of a call, reading them in place costs less; packing less than
  2 MB is cheaper where filters lie 4 KB and more apart, and meet in the caches. With AVX2, whose tiles are half as high
  and wide, packing is cheaper for all but 4 MB of filters that lie near each other.
- 1x1 by blocks of 512 filters instead of 171: 3 %, though a tile then comes from the L2 cache. With AVX2 128 are best.
- Lines that the other core has just written come slowly: where weights are many and pixels few, a thread packs those
  of the channels that it multiplies, channels being cut outermost. On two Zen 4 cores, one image: 512 channels of
  14 x 14 to 512, 3x3 with stride 2, 2,460 instead of 3,460 microseconds, 256 of 28 x 28 1,420 instead of 1,920, 1024 of
  14 x 14 to 256, 1x1, 550 instead of 810; eight images of the first 9.8 instead of 11.9 ms.
- Of one image of 7 x 7 or 14 x 14 up to four pixels are left behind the tiles; each is multiplied along with a tile,
  its sums the lanes of one vector of channels, since these are neighbours in the weights (two Zen 4 cores, AVX-512):
  1x1, 2048 channels of 7 x 7 to 512 490 instead of 680 microseconds, 1024 to 256 of 14 x 14 520 instead of 550. Where
  1x1 layers have a stride nothing was gained.
- Where a task has all pixels, it packs the weights of 64 channels itself, in the L2 cache: with the lone pixel 512
  channels of 14 x 14 to 512, 3x3 with stride 2, 1,490 instead of 2,090 microseconds.
- With a stride, half of what is not multiplication is waiting for the lines of grad_x: fetched while a tile is
  multiplied they cost 2 to 5 % less. With stride 1 that changes nothing.
- The 7x7 first layer: phases 24 ms, a panel for each of 16 shifts 11.8, a slab that all shifts read 6.9, fetching the
  rows copied next while multiplying 6.4. Copying whole rows of one filter after the other took longer.
- A transposed convolution's bias and activation are applied to the sums of a tile before they are interleaved: two
  Zen 4 cores, 24 channels of 64 x 64 to 24, 2x2 with stride 2, 207 microseconds with a bias, 189 without, by phases
  1,220.
Its parts: input_grad_cuts.py (tasks and blocks), input_grad_weights.py (packing), input_grad_panels.py (copying
grad_y), input_grad_tiled.py and input_grad_stacked.py (the product, of many channels and of few), input_grad_lone.py
(pixels behind the tiles), input_grad_stores.py; input_grad_depthwise.py (depthwise layers, by another way).
Source: the phases are the polyphase decomposition of Vaidyanathan, Multirate Systems and Filter Banks, 1993, section
4.3; loop order and blocking after Goto and van de Geijn 2008.
"""

import struct
from dataclasses import replace
from functools import lru_cache

from . import input_grad_depthwise, target
from .call import pack_call, problem_fields
from .compilation import compiled
from .input_grad_cuts import CUTS, FOUND, cuts, rows_of, wants_weights_in_place
from .input_grad_stacked import build_stacked
from .input_grad_tiled import build_tiled
from .microkernel import multiply_cycles, predicted
from .threads import run_tasks
from .vectors import lanes

passes = ("input_grad",)

MASK_CYCLES = 600  # for each vector of pixels of a group: what it costs however few channels and filters there are


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the packed sizes, the compiled loop, the numbers of tasks, and whether
    the weights are better read in place.
    """
    numbers, tasks, _ = cuts(problem, threads)
    fields = problem_fields(problem) + struct.pack(f"{len(CUTS)}q", *numbers)
    if rows_of(problem)[0]:
        twelve = problem.Cg * problem.stride[0] * problem.stride[1] == 12 and target.register_count() == 32
        return fields, compiled(build_stacked, problem.dtype.name, twelve), tasks, False
    return fields, compiled(build_tiled, problem.dtype.name), tasks, wants_weights_in_place(problem)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]
    if problem.dtype != problem.accumulate:
        reasons.append(f"float32 and float64 only, got {problem.dtype}")
    if problem.stride == (1, 1) and problem.R * problem.S > 1:
        reasons.append("stride 1 has one phase only, a forward problem that Winograd serves better")
    if problem.has_residual:
        reasons.append("adds no residual")
    if problem.stride == (1, 1) and (problem.has_bias or problem.activation):
        reasons.append("with stride 1 adds no bias and applies no activation: the micro-kernel stores its sums itself")
    return reasons


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[-1]


def predicted_seconds(problem, device):
    if input_grad_depthwise.serves(problem):
        return predicted(replace(problem, pass_="forward"), device, input_grad_depthwise.cycles(problem))
    _, rows, panels = rows_of(problem)
    numbers, _, _ = cuts(problem, device.threads)
    cut = dict(zip(CUTS, numbers))
    pixels, alone = cut["tiled"], problem.R * problem.S == 1
    multiply = multiply_cycles(rows, pixels, problem.Kg * panels, problem.dtype)
    copies = 2 if cut["stacked"] else cut["shifts_h"] * cut["shifts_w"] * cut["channel_tasks"]
    copy = (0.2 if alone else 0.5) * pixels * problem.Kg * copies
    one_by_one = problem.layout == "NHWC" or problem.stride[1] > 2
    vectors = -(-pixels // lanes(problem.dtype))
    sums = 2.0 * rows * vectors * panels * -(-problem.Kg // cut["depth_block"])  # read and left again for each panel
    masks = 0 if problem.stride == (1, 1) else MASK_CYCLES * vectors
    store = 3.0 if one_by_one else 0.1 if problem.stride == (1, 1) else 0.5
    stores = store * problem.N * problem.C * problem.H * problem.W
    forward = replace(problem, pass_="forward")  # whose operands it shares
    pack = 0.0 if wants_weights_in_place(problem) else 5e-6 + 7e-11 * cut["workers_at"] / device.threads
    return pack + predicted(forward, device, problem.groups * (multiply + copy + sums + masks) + stores)


def run(problem, device, grad_y, w, grad_x, bias=None, residual=None, workspace=None, stream=None):
    """Write the input gradient into grad_x (N, C, H, W), from grad_y (N, K, P, Q) and w (K, C/groups, R, S);
    bias: (C,).
    """
    if input_grad_depthwise.serves(problem) and input_grad_depthwise.takes(grad_y, grad_x):
        fields, compiled_loop, tasks = input_grad_depthwise.prepared(problem)
        run_tasks(compiled_loop, pack_call(fields, grad_y, w, grad_x, None, None, None), tasks, device.threads)
        return
    fields, compiled_loop, (before, tasks), wants_in_place = prepared(problem, device.threads)
    in_place = wants_in_place and w.strides[1] == problem.dtype.itemsize
    found = struct.pack(f"{len(FOUND)}q", in_place)
    call = pack_call(fields + found, grad_y, w, grad_x, bias, None, workspace)
    run_tasks(compiled_loop, call, tasks, device.threads, 0 if in_place else before)
