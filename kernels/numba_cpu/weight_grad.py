"""Weight gradient, blocked: for each tap a matrix product whose inner dimension is the pixel.

    grad_w[k, c, r, s] = sum over n, p, q of  x[n, c, p stride - top + r dilation, ...] * grad_y[n, k, p, q]

    rows (numbers, broadcast)      4 channels of x, shifted by the tap
    columns (vectors)              24 filters of grad_y, one vector lane each        the micro-kernel's tile
    depth                          the pixels of a chunk

Both operands are copied once so that the shift of a tap is one constant, whatever the pixel:

    x, padded, split by phase of the stride   row h = a stride + phase  ->  plane `phase`, row a; `pitch` numbers a row
    grad_y, panels of 24 filters              pixel-major, each row filled up with zeros to the same `pitch`

so pixel m of a chunk meets x at m + a pitch + b for every tap, (a, b) its shift in whole strides: no test, no copy per
tap. The price is the filling, (S - 1) / Q of the work: 4 % on 56 x 56 with 3 x 3, 29 % on 7 x 7. Where that is much,
or where there are too few channels to fill the tile's rows, x is unfolded: each column s of taps gets a shifted copy
of its own, as if it were a channel, and nothing is filled. The multiplied zeros are also why an infinity in x may make
NaN in other taps of its channel than those that read it.

    for every few images (as the workspace allows)
        copy them                                              all threads
        for every panel of filters, block of channels          one task
            for every chunk of about 256 pixels                its 24 KB of grad_y stay in the L1 cache
                for every tap: the micro-kernel                sums wait in the workspace, 24 vectors per 1500 cycles

Each element's sum is made by one task in the order of images and pixels, so neither the number of threads nor the
split into tasks changes a bit: no atomics, and no second reduction.
Source: the blocking of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 2008.
"""

import struct
from functools import lru_cache
from math import ceil

import numba
import numpy as np
from numba import from_dtype
from numba.core import types

from . import target, tracing
from .call import CALL_DTYPE, pack_call, problem_fields
from .compilation import compiled, inlined
from .microkernel import VECTORS, multiply_function, panel_rows, tile_rows, vector_type
from .short_floats import memory_functions
from .threads import run_tasks, task_loop
from .tracing import load, store, traced
from .vectors import Vector, broadcast, lanes, record_at

passes = ("weight_grad",)
TASKS_PER_THREAD = 6  # so that the last ones to finish do not leave the others idle for long
WORKSPACE = 32 << 20  # bytes of copied images and sums that we aim to stay under

CUTS = (
    "first_image", "images", "unfold", "phases_w", "panels", "channels", "channel_block", "channel_tasks", "pitch",
    "plane", "chunk", "x_image", "grad_at", "grad_image", "sums_at",
)  # fmt: skip
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS]))


class Types:
    """The vector type and the element functions of one dtype."""

    def __init__(self, dtype_name):
        self.real = np.float64 if dtype_name == "float64" else np.float32
        self.item = np.dtype(self.real).itemsize
        self.stored_item = 2 if dtype_name.endswith("16") else self.item
        self.W = lanes(self.real)
        self.panel_row = VECTORS * self.W * self.item
        self.read, self.write, self.read_vector, self.write_vector = memory_functions(dtype_name)
        self.read_sum, self.write_sum, _, self.write_sums = memory_functions(np.dtype(self.real).name)


def build_copy_input(dtype_name):
    """Task: one channel of one image, padded and split by phase."""
    t = Types(dtype_name)
    W, item, stored_item, zero = t.W, t.item, t.stored_item, t.real(0)
    V = Vector(numba.from_dtype(np.dtype(t.real)), W)
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums

    @inlined
    def meets_a_tap(phase, taps, dilation, stride):
        meets = False
        for tap in range(taps):
            meets |= tap * dilation % stride == phase
        return meets

    @inlined
    def clear(to, count):
        done = count // W * W
        for j in range(0, done, W):
            write_sums(to + j * item, broadcast(V, zero))
        for j in range(done, count):
            write_sum(to + j * item, zero)

    @inlined
    def copy_row(to, x, step, first, last, pitch):
        """Columns first .. last - 1 come from x, `step` bytes apart; zeros before and after."""
        clear(to, first)
        done = first
        if step == stored_item:
            while done + W <= last:
                write_sums(to + done * item, read_vector(x + (done - first) * step))
                done += W
        for j in range(done, last):
            write_sum(to + j * item, read(x + (j - first) * step))
        clear(to + last * item, pitch - last)

    def copy_input(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        column, rest = index % call.unfold, index // call.unfold
        c, i = rest % call.C, rest // call.C
        g = c // call.Cg
        phases = call.stride_h * call.phases_w
        channel = (i * call.groups + g) * phases * call.channels + c % call.Cg * call.unfold + column
        to = call.workspace + channel * call.plane * item
        x = call.x + (call.first_image + i) * call.x_n + c * call.x_c
        for phase_h in range(call.stride_h):
            if meets_a_tap(phase_h, call.R, call.dilation_h, call.stride_h):
                for phase_w in range(call.phases_w):
                    if call.phases_w == 1 or meets_a_tap(phase_w, call.S, call.dilation_w, call.stride_w):
                        phase = (phase_h * call.phases_w + phase_w) * call.channels * call.plane * item
                        copy_plane(call, to + phase, x, phase_h, phase_w + column * call.dilation_w)

    @inlined
    def copy_plane(call, to, x, row_shift, column_shift):
        """Element (row, j) of the plane is x's at row stride + row_shift - top, j stride + column_shift - left."""
        shift = column_shift - call.left
        first = min(max(0, (-shift + call.stride_w - 1) // call.stride_w), call.pitch)
        last = min(max(first, (call.W - shift + call.stride_w - 1) // call.stride_w), call.pitch)
        for row in range(call.plane // call.pitch):
            h = row * call.stride_h + row_shift - call.top
            line = to + row * call.pitch * item
            if h >= 0 and h < call.H:
                here = x + h * call.x_h + (first * call.stride_w + shift) * call.x_w
                copy_row(line, here, call.stride_w * call.x_w, first, last, call.pitch)
            else:
                clear(line, call.pitch)

    return task_loop(copy_input)


def build_copy_grad(dtype_name):
    """Task: one panel of filters of one image, pixel-major."""
    t = Types(dtype_name)
    W, item, stored_item, zero, panel_row = t.W, t.item, t.stored_item, t.real(0), t.panel_row
    V, lanes_type = Vector(numba.from_dtype(np.dtype(t.real)), W), vector_type(t.real)
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums
    same = item == stored_item

    @traced(types.void)
    def transpose_block(to, grad, filter_step):
        """W pixels of W filters: rows become columns."""
        rows = [load(lanes_type, grad + filter_step * i) for i in range(W)]
        for i, column in enumerate(tracing.transpose(rows)):
            store(to + panel_row * i, column)

    @inlined
    def copy_pixels(call, to, grad, filters, first, last):
        """Pixels first .. last - 1 of up to W filters."""
        for q in range(first, last):
            for k in range(W):
                here = grad + q * call.residual_q + k * call.residual_k
                write_sum(to + q * panel_row + k * item, read(here) if k < filters else zero)

    def copy_grad(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        panel, rest = index % call.panels, index // call.panels
        g, i = rest % call.groups, rest // call.groups
        filters = min(VECTORS * W, call.Kg - panel * VECTORS * W)
        grad = call.residual + (call.first_image + i) * call.residual_n
        grad += (g * call.Kg + panel * VECTORS * W) * call.residual_k
        to = call.workspace + call.grad_at + ((i * call.groups + g) * call.panels + panel) * call.grad_image
        for p in range(call.P):
            line, source = to + p * call.pitch * panel_row, grad + p * call.residual_p
            for k in range(0, filters, W):
                column, here, count = line + k * item, source + k * call.residual_k, min(W, filters - k)
                done = 0
                if count == W and call.residual_k == stored_item:
                    while done < call.Q:
                        write_sums(column + done * panel_row, read_vector(here + done * call.residual_q))
                        done += 1
                elif count == W and same and call.residual_q == item:
                    while done + W <= call.Q:
                        transpose_block(column + done * panel_row, here + done * item, call.residual_k)
                        done += W
                copy_pixels(call, column, here, count, done, call.Q)
                for q in range(call.Q, call.pitch):
                    write_sums(column + q * panel_row, broadcast(V, zero))

    return task_loop(copy_grad)


def build_multiply(dtype_name):
    """Task: the sums of one panel of filters and one block of channels, over the copied images."""
    t = Types(dtype_name)
    W, item, panel_row, panel = t.W, t.item, t.panel_row, panel_rows()
    multiply = multiply_function(t.real, "row")

    def accumulate(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        block, rest = index % call.channel_tasks, index // call.channel_tasks
        k_panel, g = rest % call.panels, rest // call.panels
        c0 = block * call.channel_block
        channels = min(call.channel_block, call.Cg * call.unfold - c0)
        vectors = (min(VECTORS * W, call.Kg - k_panel * VECTORS * W) + W - 1) // W
        phases, channel = call.stride_h * call.phases_w, call.plane * item
        columns = call.S // call.unfold
        taps = call.R * columns
        sums = call.workspace + call.sums_at + ((g * call.panels + k_panel) * taps * call.channels + c0) * panel_row
        pixels = (call.P - 1) * call.pitch + call.Q
        for i in range(call.images):
            x = call.workspace + i * call.x_image + (g * phases * call.channels + c0) * channel
            grad = call.workspace + call.grad_at + ((i * call.groups + g) * call.panels + k_panel) * call.grad_image
            for m in range(0, pixels, call.chunk):
                depth = min(call.chunk, pixels - m)
                fresh = call.first_image + i == 0 and m == 0
                for tap in range(taps):
                    h, w = tap // columns * call.dilation_h, tap % columns * call.dilation_w
                    phase = h % call.stride_h * call.phases_w + w % call.stride_w
                    shift = h // call.stride_h * call.pitch + w // call.stride_w + m
                    multiply(
                        vectors, channels, x + phase * call.channels * channel + shift * item, channel,
                        panel * channel, item, grad + m * panel_row, panel_row, depth,
                        sums + tap * call.channels * panel_row, panel_row, fresh, 0, 0, 0, 0, 0, 0.0, 0.0,
                    )  # fmt: skip

    return task_loop(accumulate)


def build_store(dtype_name):
    """Task: the finished sums of one panel of filters, put in their places in grad_w."""
    t = Types(dtype_name)
    W, item, panel_row = t.W, t.item, t.panel_row
    read_sum, write = t.read_sum, t.write

    def store_panel(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        k_panel, g = index % call.panels, index // call.panels
        filters = min(VECTORS * W, call.Kg - k_panel * VECTORS * W)
        columns = call.S // call.unfold
        sums = call.workspace + call.sums_at + index * call.R * columns * call.channels * panel_row
        grad_w = call.w + (g * call.Kg + k_panel * VECTORS * W) * call.w_k
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    tap, channel = (r, c * call.S + s) if call.unfold == call.S else (r * columns + s, c)
                    here = grad_w + c * call.w_c + r * call.w_r + s * call.w_s
                    line = sums + (tap * call.channels + channel) * panel_row
                    for k in range(filters):
                        write(here + k * call.w_k, read_sum(line + k * item))

    return task_loop(store_panel)


# How a problem is cut.


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS but the first, and the bytes of workspace in all."""
    item = problem.accumulate.itemsize
    width = VECTORS * lanes(problem.accumulate)
    panel_row = width * item
    tallest = max(tile_rows(vectors) for vectors in (1, 2, 3))
    panels = ceil(problem.Kg / width)
    unfold = problem.S if unfolds(problem) else 1
    channels = ceil(problem.Cg * unfold / tallest) * tallest
    phases_w = 1 if unfold > 1 else problem.stride[1]
    pitch = problem.Q + (0 if unfold > 1 else reach(problem, 1))
    plane = (problem.P + reach(problem, 0)) * pitch
    x_image = problem.groups * problem.stride[0] * phases_w * channels * plane * item
    grad_image = problem.P * pitch * panel_row
    sums = problem.groups * panels * problem.R * (problem.S // unfold) * channels * panel_row
    one_image = x_image + problem.groups * panels * grad_image
    images = min(problem.N, max(1, (WORKSPACE - sums) // one_image))

    tasks = ceil(TASKS_PER_THREAD * threads / (panels * problem.groups)) if threads > 1 else 1
    channel_block = ceil(channels / (tasks * tallest)) * tallest
    chunk = target.cache_bytes(1) * 3 // 4 // panel_row
    grad_at = lines(images * x_image)
    sums_at = grad_at + lines(images * problem.groups * panels * grad_image)
    numbers = (
        images, unfold, phases_w, panels, channels, channel_block, ceil(channels / channel_block), pitch, plane, chunk,
        x_image, grad_at, grad_image, sums_at,
    )  # fmt: skip
    return numbers, sums_at + sums + 64


def reach(problem, axis) -> int:
    """How many whole strides the last tap lies from the first."""
    window = (problem.R, problem.S)[axis]
    return (window - 1) * problem.dilation[axis] // problem.stride[axis]


def unfolds(problem) -> bool:
    """Whether each column of taps gets a copy of x: where channels are few, or where filling would cost over 8 %."""
    if problem.S == 1:
        return False
    return problem.Cg < panel_rows() or (reach(problem, 1) > 0.08 * problem.Q and problem.Kg >= 64)


def lines(count):
    """Bytes in whole cache lines."""
    return -(-count // 64) * 64


@lru_cache(maxsize=256)
def loops(dtype_name):
    return [compiled(build, dtype_name) for build in (build_copy_input, build_copy_grad, build_multiply, build_store)]


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[1]


def predicted_seconds(problem, device):
    """Whole tiles at 60 GFLOP/s a thread: few filters or channels per group waste most of a tile."""
    width = VECTORS * lanes(problem.accumulate)
    rows = problem.Cg * (problem.S if unfolds(problem) else 1)
    filled = ceil(problem.Kg / width) * width / problem.Kg * ceil(rows / panel_rows()) * panel_rows() / rows
    return 40e-6 + 2 * problem.macs * filled / (60e9 * device.threads)


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, R, S), from x (N, C, H, W) and grad_y (N, K, P, Q)."""
    numbers, _ = cuts(problem, device.threads)
    copy_input, copy_grad, multiply, store_sums = loops(problem.dtype.name)
    images, unfold, _, panels, _, _, channel_tasks, *_ = numbers
    fixed = problem_fields(problem)
    for first in range(0, problem.N, images):
        count = min(images, problem.N - first)
        fields = fixed + struct.pack(f"{len(CUTS)}q", first, count, *numbers[1:])
        call = pack_call(fields, x, grad_w, x, None, grad_y, workspace)
        run_tasks(copy_input, call, count * problem.C * unfold, device.threads)
        run_tasks(copy_grad, call, count * problem.groups * panels, device.threads)
        run_tasks(multiply, call, problem.groups * panels * channel_tasks, device.threads)
    run_tasks(store_sums, call, problem.groups * panels, device.threads)
