"""Weight gradient, blocked: for each tap a matrix product whose inner dimension is the pixel.

    grad_w[k, c, r, s] = sum over n, p, q of  x[n, c, p stride - top + r dilation, ...] * grad_y[n, k, p, q]

    rows (numbers, broadcast)      8 channels of x (4 with 16 registers), shifted by the tap
    columns (vectors)              up to 3 vectors of filters of grad_y                    the micro-kernel's tile
    depth                          the pixels of a chunk

A task owns a block of channels and a block of filters of one group, and all their sums. It goes through the images:

    for every slab of output rows                     as many as let its channels of x fit half of the L2 cache
        copy the slab of x                            padded, split by phase of the stride; or read it in place
        for every panel of up to 3 vectors of filters
            for every chunk of about 200 pixels       its 36 KB of grad_y, transposed to pixel-major, stay in L1
                for every tap: the micro-kernel       sums wait in the workspace, 24 vectors per 2300 cycles
        after every 8,192 pixels or so                add the sums to totals, and begin them anew
    put the totals, transposed back, into grad_w

How x is copied makes the shift of a tap one constant, whatever the pixel: no test, no copy per tap.

    shifted   row h = a stride + phase -> plane `phase`, row a, `pitch` numbers a row; grad_y's rows are filled up with
              zeros to the same pitch, so pixel m meets x at m + a pitch + b for the tap (a, b). The price is the
              filling, (S - 1) / Q of the work: 4 % on 56 x 56 with 3 x 3, 29 % on 7 x 7.
    columns   where that is over 8 %: each column s of taps has a copy of its own, and nothing is filled.
    windows   where there are fewer channels than a tile has rows: each tap has a copy of its own, as if it were a
              channel.
    batched   maps of up to 64 outputs: as windows, and images lie behind each other as if they were one map, since the
              sums, 24 vectors, would otherwise wait after every 49 pixels.
    in place  stride 1, no padding, and rows that lie one after the other: x is its own copy.

Groups of 1 to 4 channels, as first and depthwise layers have, need none of this where grad_y's rows are contiguous:
weight_grad_pixels.py has the pixels in the lanes; weight_grad_depthwise.py reads depthwise layers straight from x and
grad_y, with channels last too.

The multiplied zeros are also why an infinity in x may make NaN in other taps of its channel than those that read it.

Each element's sum is made by one task in the order of images and pixels, so neither the number of threads nor the
split into tasks changes a bit: no atomics, and no second reduction. One chain over all of 100,352 pixels (ResNet-50's
first layer, 8 images) had an error of 5.6e-6; begun anew on the way it is a third of that.
Measured (Zen 5, AVX-512, two cores): the multiplication alone runs at 450 to 505 GFLOP/s on ResNet-50's layers. Copying
every second column of 28 took 7 cycles a number row by row, whose masks cost more than the row; for all channels at
once, masks made once, a strided 1x1 layer went from 5.5 to 4.5 ms. With three channels that made it slower.
Its parts: weight_grad_cuts.py (tasks, slabs, the ways x is copied), weight_grad_input.py (copying x),
weight_grad_transposing.py (grad_y, and the sums), weight_grad_tasks.py (the loops); weight_grad_pixels.py and
weight_grad_depthwise.py.
Source: the blocking of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 2008.
"""

import struct
from functools import lru_cache
from math import ceil

from . import weight_grad_depthwise, weight_grad_pixels
from .call import problem_fields
from .compilation import compiled
from .job import weight_grad_job_of
from .microkernel import panel_rows, predicted
from .vectors import lanes
from .weight_grad_cuts import BATCHED, CUTS, FOUND, WINDOWS, cuts, lies_in_place, mode_of
from .weight_grad_tasks import build_task

passes = ("weight_grad",)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    own = cuts(problem, device.threads)[1]
    if weight_grad_pixels.serves(problem):
        own = max(own, weight_grad_pixels.workspace_bytes(problem, device.threads))
    return max(own, weight_grad_depthwise.workspace_bytes(problem)) if weight_grad_depthwise.serves(problem) else own


def predicted_seconds(problem, device):
    """Whole tiles at 60 GFLOP/s a thread: few filters or channels per group waste most of a tile."""
    if weight_grad_depthwise.serves(problem):
        return predicted(problem, device, weight_grad_depthwise.cycles(problem))
    width = lanes(problem.accumulate)
    if weight_grad_pixels.serves(problem):
        return 40e-6 + 2 * problem.macs * weight_grad_pixels.filled(problem) / (60e9 * device.threads)
    rows = problem.Cg * (problem.R * problem.S if mode_of(problem) in (WINDOWS, BATCHED) else 1)
    filled = ceil(problem.Kg / width) * width / problem.Kg * ceil(rows / panel_rows()) * panel_rows() / rows
    return 40e-6 + 2 * problem.macs * filled / (60e9 * device.threads)


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: how x is copied, the packed sizes, the compiled loop, the tasks, and how
    far apart rows are copied.
    """
    numbers, _ = cuts(problem, threads)
    cut = dict(zip(CUTS, numbers))
    fields = problem_fields(problem) + struct.pack(f"{len(CUTS)}q", *numbers)
    tasks = problem.groups * cut["row_tasks"] * cut["vector_tasks"]
    return cut["mode"], fields, compiled(build_task, problem.dtype.name), tasks, cut["pitch"]


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q)."""
    job(problem, device, x, grad_y, grad_w).run(x, grad_y, grad_w, workspace=workspace)


def job(problem, device, x, grad_y, grad_w, bias=None, residual=None):
    """`run` for arrays of these strides."""
    if weight_grad_depthwise.serves(problem) and weight_grad_depthwise.takes(problem, x, grad_y):
        fields, loop, tasks, before = weight_grad_depthwise.prepared(problem)
        return weight_grad_job_of(fields, loop, tasks, device.threads, x, grad_y, grad_w, before)
    if weight_grad_pixels.serves(problem) and weight_grad_pixels.takes(grad_y):
        fields, loop, tasks = weight_grad_pixels.prepared(problem, device.threads)
        return weight_grad_job_of(fields, loop, tasks, device.threads, x, grad_y, grad_w)
    mode, fields, loop, tasks, pitch = prepared(problem, device.threads)
    run_q, run_pitch, run_rows = problem.Q, pitch, problem.P
    if run_pitch == run_q and grad_y.strides[2] == problem.Q * grad_y.strides[3]:
        run_q, run_pitch, run_rows = problem.P * problem.Q, problem.P * problem.Q, 1  # an image's rows are one
    found = struct.pack(f"{len(FOUND)}q", lies_in_place(problem, mode, x), run_q, run_pitch, run_rows)
    return weight_grad_job_of(fields + found, loop, tasks, device.threads, x, grad_y, grad_w)
