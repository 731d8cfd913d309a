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

The multiplied zeros are also why an infinity in x may make NaN in other taps of its channel than those that read it.

Each element's sum is made by one task in the order of images and pixels, so neither the number of threads nor the
split into tasks changes a bit: no atomics, and no second reduction. One chain over all of 100,352 pixels (ResNet-50's
first layer, 8 images) had an error of 5.6e-6; begun anew on the way it is a third of that.
Measured (Zen 5, AVX-512, two cores): the multiplication alone runs at 450 to 505 GFLOP/s on ResNet-50's layers. Copying
every second column of 28 took 7 cycles a number row by row, whose masks cost more than the row; for all channels at
once, masks made once, a strided 1x1 layer went from 5.5 to 4.5 ms. With three channels that made it slower.
Source: the blocking of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 2008.
"""

import struct
from functools import lru_cache
from itertools import product
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
from .threads import run_tasks, task_loop, worker_span
from .tracing import first_lanes, lanes_between, load, load_lanes, loop, prefetch, shuffle, store, traced, when
from .vectors import Vector, broadcast, lanes, record_at

passes = ("weight_grad",)
SHIFTED, COLUMNS, WINDOWS, BATCHED = range(4)  # how x is copied

# What a task does for one output pixel, in cycles: to be weighed against each other, not to be believed.
TRANSPOSED = 1.0  # for each number of grad_y: moved to pixel-major
READ, COPIED, COPIED_ROW = 0.5, 0.5, 20  # for each number of x, each one copied, and each row of those
COPIED_ROW_OF_ALL = 3  # a row, where it is copied for all channels at once
NARROW = (0, 1.3, 1.05, 1.0)  # times as long as its multiply-adds, by the vectors of a panel
UNEVEN = 0.1  # of a task: what the threads wait for the last one

SHORT = 8  # vectors of a row: such rows are copied for all channels at once
CHUNK_PIXELS = 128  # after which sums may wait
FEW_PIXELS = 64  # of a map; with so few, several images are multiplied at a time
CHAIN = 8_192  # pixels, about, whose products are added one after the other

CUTS = (
    "mode", "copies_h", "copies_w", "taps", "rows", "row_block", "row_tasks", "vectors", "vector_block",
    "vector_tasks", "pitch", "slab", "slab_rows", "plane", "chunk", "chain_images", "chain_rows", "batch",
    "grad_at", "sums_at", "totals_at", "worker_bytes",
)  # fmt: skip
FOUND = ("in_place", "run_q", "run_pitch", "run_rows")  # by looking at the arrays
CALL_CUT = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUTS + FOUND]))
SLACK = 16  # numbers, or pixels, behind what is copied: the last vector, or block of a transposition, may reach there


class Types:
    """The vector type and the element functions of one dtype."""

    def __init__(self, dtype_name):
        self.real = np.float64 if dtype_name == "float64" else np.float32
        self.item = np.dtype(self.real).itemsize
        self.stored_item = 2 if dtype_name.endswith("16") else self.item
        self.W = lanes(self.real)
        self.V = Vector(numba.from_dtype(np.dtype(self.real)), self.W)
        self.read, self.write, self.read_vector, self.write_vector = memory_functions(dtype_name)
        self.read_sum, self.write_sum, self.read_sums, self.write_sums = memory_functions(np.dtype(self.real).name)


# Copying x.


def copy_input_function(dtype_name):
    """A Numba function: the slab of x that a task's rows need, padded and split, to where the task keeps it."""
    t = Types(dtype_name)
    W, V, item, zero = t.W, t.V, t.item, t.real(0)
    lanes_type, same = vector_type(t.real), t.item == t.stored_item
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums

    @traced(V)
    def read_between(address, first, last):
        """Lane j: what lies j numbers behind `address`, or zero outside of first .. last - 1, where nothing is read."""
        return load_lanes(lanes_type, address, lanes_between(lanes_type, first * 0, first, last))

    @traced(V)
    def read_second(address):
        return shuffle(load(lanes_type, address), load(lanes_type, address + lanes_type.bytes), range(0, 2 * W, 2))

    @traced(V)
    def read_second_between(address, first, last):
        """read_between of every second number."""
        halves = []
        for half in (0, W):
            inside = lanes_between(lanes_type, first * 0 + half, 2 * first, 2 * last - 1)
            halves.append(load_lanes(lanes_type, address + half * item, inside))
        return shuffle(*halves, range(0, 2 * W, 2))

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
        """Columns first .. last - 1 come from x, `step` bytes apart; zeros before and after.

        x: of column 0. The last vector of a row may reach into the next one, which is copied later.
        """
        if same and step == item:
            for j in range(0, pitch, W):
                whole = first <= j and j + W <= last
                values = read_vector(x + j * step) if whole else read_between(x + j * step, first - j, last - j)
                write_sums(to + j * item, values)
        elif same and step == 2 * item:
            for j in range(0, pitch, W):
                whole = first <= j and j + W < last  # one more: a whole vector holds the number behind the last one too
                values = read_second(x + j * step) if whole else read_second_between(x + j * step, first - j, last - j)
                write_sums(to + j * item, values)
        else:
            clear(to, first)
            for j in range(first, last):
                write_sum(to + j * item, read(x + j * step))
            clear(to + last * item, pitch - last)

    def neighbours(first, last, vectors):
        """What reads vector j of a row, zeros outside of lanes first .. last - 1; masks are made once for all rows."""
        masks = [lanes_between(lanes_type, first * 0 + j * W, first, last) for j in range(vectors)]
        return lambda x, j: load_lanes(lanes_type, x + lanes_type.bytes * j, masks[j])

    def every_second(first, last, vectors):
        masks = [lanes_between(lanes_type, first * 0 + i * W, 2 * first, 2 * last - 1) for i in range(2 * vectors)]

        def vector(x, j):
            halves = [load_lanes(lanes_type, x + lanes_type.bytes * i, masks[i]) for i in (2 * j, 2 * j + 1)]
            return shuffle(*halves, range(0, 2 * W, 2))

        return vector

    def lines_copied_by(reader):
        @traced(types.void)
        def copy_lines(to, step, x, x_step, ahead, count, vectors, first, last):
            """A short row of each of `count` channels; the row `ahead` bytes further is fetched."""

            def of(number):
                vector = reader(first, last, number)

                def channel(c):
                    prefetch(x + c * x_step + ahead)
                    for j in range(number):
                        store(to + c * step + lanes_type.bytes * j, vector(x + c * x_step, j))

                loop(count, channel)

            for number in range(1, SHORT + 1):
                with when(vectors.equals(number)):
                    of(number)

        return copy_lines

    copy_neighbours, copy_every_second = lines_copied_by(neighbours), lines_copied_by(every_second)

    @inlined
    def short_rows(call):
        return call.pitch <= SHORT * W

    @inlined
    def copy_line(call, to, step, x, count, first, last):
        """copy_row of `count` channels, `step` bytes apart where they go. The last vector may reach into what follows
        the row, which is copied later or lies behind the plane.
        """
        x_step, vectors = call.stride_w * call.x_w, (call.pitch + W - 1) // W
        if same and x_step == item and short_rows(call):
            copy_neighbours(to, step, x, call.x_c, call.stride_h * call.x_h, count, vectors, first, last)
        elif same and x_step == 2 * item and short_rows(call):
            copy_every_second(to, step, x, call.x_c, call.stride_h * call.x_h, count, vectors, first, last)
        else:
            for c in range(count):
                copy_row(to + c * step, x + c * call.x_c, x_step, first, last, call.pitch)

    @inlined
    def columns_inside(call, shift):
        """The outputs of a row whose input at this shift lies inside the image: the first, and the one behind them."""
        first = min(max(0, (-shift + call.stride_w - 1) // call.stride_w), call.pitch)
        return first, min(max(first, (call.W - shift + call.stride_w - 1) // call.stride_w), call.pitch)

    @inlined
    def copy_planes(call, to, step, x, count, first_row, row_shift, column_shift):
        """Element (row, j) of a plane is x's at (first_row + row) stride + row_shift - top, j stride + ... - left.

        x: of the first of `count` channels, whose planes lie `step` bytes apart.
        """
        shift = column_shift - call.left
        first, last = columns_inside(call, shift)
        for row in range(call.slab_rows):
            h = (first_row + row) * call.stride_h + row_shift - call.top
            inside = h >= 0 and h < call.H
            line = to + row * call.pitch * item
            copy_line(
                call, line, step, x + h * call.x_h + shift * call.x_w, count, first if inside else 0,
                last if inside else 0,
            )  # fmt: skip

    @inlined
    def copy_plane(call, to, x, first_row, row_shift, column_shift):
        """copy_planes of one channel, row by row: with few channels masks would not be worth their making."""
        shift = column_shift - call.left
        first, last = columns_inside(call, shift)
        for row in range(call.slab_rows):
            h = (first_row + row) * call.stride_h + row_shift - call.top
            line = to + row * call.pitch * item
            if h >= 0 and h < call.H:
                copy_row(line, x + h * call.x_h + shift * call.x_w, call.stride_w * call.x_w, first, last, call.pitch)
            else:
                clear(line, call.pitch)

    @inlined
    def copy_batch(call, to, x, images, row0, rows):
        """Row (c, tap) of tiles: what that tap reads, row after row, image after image."""
        taps, plane = call.R * call.S, call.plane * item
        for tap in range(taps):
            shift_h, shift_w = tap // call.S * call.dilation_h - call.top, tap % call.S * call.dilation_w - call.left
            c = (row0 - tap + taps - 1) // taps
            row = c * taps + tap - row0
            count = (rows - row + taps - 1) // taps
            first, last = columns_inside(call, shift_w)
            for line in range(images * call.P):
                image, h = line // call.P, line % call.P * call.stride_h + shift_h
                here = x + image * call.x_n + c * call.x_c + h * call.x_h + shift_w * call.x_w
                inside, into = h >= 0 and h < call.H, to + row * plane + line * call.Q * item
                copy_line(call, into, taps * plane, here, count, first if inside else 0, last if inside else 0)

    @inlined
    def copy_input(call, to, x, images, first_row, row0, rows):
        """x: the group's first channel of the image; row0: the first of the task's rows of tiles."""
        plane, taps = call.plane * item, call.R * call.S
        if call.mode == BATCHED:
            copy_batch(call, to, x, images, row0, rows)
            return
        if call.mode == WINDOWS:
            for i in range(row0, row0 + rows):
                channel, tap = x + i // taps * call.x_c, i % taps
                shift_h, shift_w = tap // call.S * call.dilation_h, tap % call.S * call.dilation_w
                copy_plane(call, to + (i - row0) * plane, channel, first_row, shift_h, shift_w)
            return
        for a in range(call.copies_h):
            if meets_a_tap(a, call.R, call.dilation_h, call.stride_h):
                for b in range(call.copies_w):
                    if call.mode == COLUMNS or meets_a_tap(b, call.S, call.dilation_w, call.stride_w):
                        column_shift = b * call.dilation_w if call.mode == COLUMNS else b
                        first = to + (a * call.copies_w + b) * call.row_block * plane
                        channels, at_a_time = x + row0 * call.x_c, rows if short_rows(call) else 1
                        for i in range(0, rows, at_a_time):  # long rows one plane after the other, as they are fetched
                            here = channels + i * call.x_c
                            copy_planes(call, first + i * plane, plane, here, at_a_time, first_row, a, column_shift)

    return copy_input


# Transposing grad_y, and the sums.


def transpose_functions(t):
    """Two Numba functions: W vectors to W vectors, their numbers exchanged; of whole vectors, and of `count` lanes."""
    V, W = vector_type(t.real), t.W

    @traced(types.void)
    def transpose(to, to_step, source, source_step):
        for i, column in enumerate(tracing.transpose([load(V, source + source_step * i) for i in range(W)])):
            store(to + to_step * i, column)

    @traced(types.void)
    def transpose_some(to, to_step, source, source_step, count):
        mask = first_lanes(V, count)
        rows = [load_lanes(V, source + source_step * i, mask) for i in range(W)]
        for i, column in enumerate(tracing.transpose(rows)):
            store(to + to_step * i, column)

    return transpose, transpose_some


def copy_grad_function(dtype_name):
    """A Numba function: a chunk of one panel of filters, pixel-major, rows filled up with zeros to the pitch."""
    t = Types(dtype_name)
    W, V, item, stored_item, zero = t.W, t.V, t.item, t.stored_item, t.real(0)
    read, read_vector, write_sum, write_sums = t.read, t.read_vector, t.write_sum, t.write_sums
    same = item == stored_item
    transpose, transpose_some = transpose_functions(t)

    @inlined
    def copy_run(call, to, row, grad, filters, pixels):
        """`pixels` neighbouring pixels of up to W filters."""
        q = 0
        if filters == W and call.residual_k == stored_item:
            while q < pixels:
                write_sums(to + q * row, read_vector(grad + q * call.residual_q))
                q += 1
        elif filters == W and same and call.residual_q == item:
            while q + W <= pixels:
                transpose(to + q * row, row, grad + q * item, call.residual_k)
                q += W
            if q < pixels:
                transpose_some(to + q * row, row, grad + q * item, call.residual_k, pixels - q)
                q = pixels
        while q < pixels:
            for k in range(W):
                here = grad + q * call.residual_q + k * call.residual_k
                write_sum(to + q * row + k * item, read(here) if k < filters else zero)
            q += 1

    @inlined
    def copy_grad(call, to, row, grad, filters, first, depth):
        """Pixels first .. first + depth - 1 from an image's beginning. grad: that, of the panel's first filter."""
        for k in range(0, row // item, W):
            column, channel, count = to + k * item, grad + k * call.residual_k, min(W, filters - k)
            done = 0
            while done < depth:
                line, q = (first + done) // call.run_pitch, (first + done) % call.run_pitch
                image, p = line // call.run_rows, line % call.run_rows
                pixels = min(call.run_pitch - q, depth - done)
                real = max(0, min(pixels, call.run_q - q))
                here = channel + image * call.residual_n + p * call.residual_p + q * call.residual_q
                copy_run(call, column + done * row, row, here, count, real)
                for m in range(done + real, done + pixels):
                    write_sums(column + m * row, broadcast(V, zero))
                done += pixels

    return copy_grad


def store_function(dtype_name):
    """A Numba function: the finished sums of a panel, a line of vectors for each tap and row, into grad_w."""
    t = Types(dtype_name)
    W, item = t.W, t.item
    read_sum, write, read_sums, write_sums = t.read_sum, t.write, t.read_sums, t.write_sums
    same = item == t.stored_item
    transpose, _ = transpose_functions(t)

    @inlined
    def line_at(call, sums, row, j):
        """Where the j-th of the task's (c, r, s) has its line of sums."""
        return sums + (j % call.taps * call.row_block + j // call.taps) * row

    @inlined
    def store_panel(call, sums, row, grad_w, filters, first, lines, spare):
        """grad_w: of the panel's first filter; first: the first (c, r, s), of `lines`. spare: room for W vectors."""
        taps = call.R * call.S
        dense = same and call.w_s == item and call.w_r == call.S * item and call.w_c == taps * item
        done = lines // W * W if dense else 0
        for k in range(0, filters, W):
            whole = done if filters - k >= W else 0
            for j in range(0, whole, W):
                for i in range(W):
                    write_sums(spare + i * W * item, read_sums(line_at(call, sums, row, j + i) + k * item))
                transpose(grad_w + k * call.w_k + (first + j) * item, call.w_k, spare, W * item)
            for j in range(whole, lines):
                c, r, s = (first + j) // taps, (first + j) // call.S % call.R, (first + j) % call.S
                here = grad_w + c * call.w_c + r * call.w_r + s * call.w_s
                line = line_at(call, sums, row, j)
                for i in range(k, min(k + W, filters)):
                    write(here + i * call.w_k, read_sum(line + i * item))

    return store_panel


def build_task(dtype_name):
    """Task: all sums of a block of filters and a block of rows (channels, or channels and taps) of one group."""
    t = Types(dtype_name)
    W, V, item, panel, zero = t.W, t.V, t.item, panel_rows(), t.real(0)
    read_sums, write_sums = t.read_sums, t.write_sums
    copy_input, copy_grad, store_panel = (
        f(dtype_name) for f in (copy_input_function, copy_grad_function, store_function)
    )
    multiply = multiply_function(t.real, "row")

    @inlined
    def width_of(left):
        """Vectors of the next panel: of the fewest panels, as equal as they can be."""
        panels = (left + VECTORS - 1) // VECTORS
        return (left + panels - 1) // panels

    @inlined
    def multiply_taps(call, width, rows, x, x_row, first_pixel, copy_bytes, grad, depth, sums, fresh):
        row = width * W * item
        for tap in range(call.taps):
            h, w = tap // call.S * call.dilation_h, tap % call.S * call.dilation_w
            shift, column = h // call.stride_h * call.pitch + first_pixel, tap % call.S
            if call.mode == SHIFTED:
                shift, column = shift + w // call.stride_w, w % call.stride_w
            copy = h % call.stride_h * call.copies_w + column
            multiply(
                width, rows, x + copy * copy_bytes + shift * item, x_row, panel * x_row, item, grad,
                row, depth, sums + tap * call.row_block * row, row, fresh,
                0, 0, 0, 0, 0, 0.0, 0.0,
            )  # fmt: skip

    @inlined
    def ends_a_chain(call, n, p):
        """After the rows before p of image n."""
        if p < call.P:
            return p % call.chain_rows == 0
        return (n + 1) % call.chain_images == 0 or n == call.N - 1

    @inlined
    def add_sums(totals, sums, count, first):
        for at in range(0, count, W * item):
            so_far = broadcast(V, zero) if first else read_sums(totals + at)
            write_sums(totals + at, so_far + read_sums(sums + at))

    def all_sums(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        row_task, rest = index % call.row_tasks, index // call.row_tasks
        vector_task, g = rest % call.vector_tasks, rest // call.vector_tasks
        row0, vector0 = row_task * call.row_block, vector_task * call.vector_block
        rows = min(call.row_block, call.rows - row0)
        vectors = min(call.vector_block, call.vectors - vector0)
        own = call.workspace + worker * call.worker_bytes
        grad, sums, totals = own + call.grad_at, own + call.sums_at, own + call.totals_at
        block = call.row_block * call.taps * W * item  # sums of one vector of filters
        chains, begun, n = 0, False, 0
        while n < call.N:
            images = min(call.batch, call.N - n, call.chain_images - n % call.chain_images)
            x = call.x + n * call.x_n + g * call.Cg * call.x_c
            grad_n = call.residual + n * call.residual_n + g * call.Kg * call.residual_k
            p0 = 0
            while p0 < call.P:
                p1 = min(p0 + call.slab, (p0 // call.chain_rows + 1) * call.chain_rows, call.P)
                here, x_row = own, call.plane * item
                if call.in_place:
                    here, x_row = x + row0 * call.x_c + p0 * call.x_h, call.x_c
                else:
                    copy_input(call, own, x, images, p0, row0, rows)
                pixels = (images * (p1 - p0) - 1) * call.pitch + call.Q
                vector = vector0
                while vector < vector0 + vectors:
                    width = width_of(vector0 + vectors - vector)
                    filters = min(width * W, call.Kg - vector * W)
                    chunk = call.chunk // width
                    chunks = (pixels + chunk - 1) // chunk
                    chunk = (pixels + chunks - 1) // chunks
                    grad_k = grad_n + vector * W * call.residual_k
                    for m in range(0, pixels, chunk):
                        depth = min(chunk, pixels - m)
                        copy_grad(call, grad, width * W * item, grad_k, filters, p0 * call.pitch + m, depth)
                        multiply_taps(
                            call, width, rows, here, x_row, m, call.row_block * call.plane * item, grad, depth,
                            sums + (vector - vector0) * block, not begun and m == 0,
                        )  # fmt: skip
                    vector += width
                begun, p0 = True, p1
                if ends_a_chain(call, n + images - 1, p0):
                    add_sums(totals, sums, vectors * block, chains == 0)
                    begun, chains = False, chains + 1
            n += images
        vector = vector0
        while vector < vector0 + vectors:
            width = width_of(vector0 + vectors - vector)
            filters = min(width * W, call.Kg - vector * W)
            to = call.w + (g * call.Kg + vector * W) * call.w_k
            first, lines = row0 * call.taps, rows * call.taps
            store_panel(call, totals + (vector - vector0) * block, width * W * item, to, filters, first, lines, grad)
            vector += width

    return task_loop(all_sums)


# How a problem is cut.


@lru_cache(maxsize=1024)
def cuts(problem, threads):
    """The numbers of CUTS, and the bytes of workspace in all."""
    item, mode = problem.accumulate.itemsize, mode_of(problem)
    vectors = ceil(problem.Kg / lanes(problem.accumulate))
    tallest = max(tile_rows(width) for width in (1, 2, 3))
    copies_h, copies_w, met, rows, taps = copies_of(problem, mode)
    row_block, vector_block = blocks_of(problem, threads, mode, met, rows, taps, vectors, tallest)

    pitch = problem.Q + (reach(problem, 1) if mode == SHIFTED else 0)
    below = 0 if mode in (WINDOWS, BATCHED) else reach(problem, 0)
    slab = target.cache_bytes(2) // 2 // (row_block * met * pitch * item) - below
    slab = ceil(problem.P / ceil(problem.P / max(1, min(problem.P, slab))))
    batch = 1
    if mode == BATCHED:
        slab, batch = problem.P, images_at_a_time(problem, row_block)
    plane = batch * (slab + below) * pitch + lanes(problem.accumulate)  # its last vector may reach that far
    vector = lanes(problem.accumulate) * item
    chunk = target.cache_bytes(1) * 3 // 4 // vector
    grad_at = lines(
        (1 if mode in (WINDOWS, BATCHED) else copies_h * copies_w) * row_block * plane * item + SLACK * item
    )
    sums_at = grad_at + lines((chunk + SLACK * VECTORS) * vector)
    totals_at = sums_at + lines(vector_block * row_block * taps * vector)
    worker_bytes = worker_span(2 * totals_at - sums_at)
    numbers = (
        mode, copies_h, copies_w, taps, rows, row_block, ceil(rows / row_block), vectors, vector_block,
        ceil(vectors / vector_block), pitch, slab, slab + below, plane, chunk, *chain_of(problem), batch,
        grad_at, sums_at, totals_at, worker_bytes,
    )  # fmt: skip
    return numbers, max(threads, 1) * worker_bytes + 64


def images_at_a_time(problem, row_block):
    """As many as let what is copied fit half of the L2 cache."""
    image = row_block * problem.P * problem.Q * problem.accumulate.itemsize
    return max(1, min(problem.N, target.cache_bytes(2) // 2 // image))


def chain_of(problem):
    """How many images, or how many rows of one, are added up before the sums are begun anew; whatever the threads."""
    pixels = problem.P * problem.Q
    if pixels <= CHAIN:
        return CHAIN // pixels, problem.P
    return 1, ceil(problem.P / round(pixels / CHAIN))


def mode_of(problem) -> int:
    """How x is copied."""
    if problem.Cg < panel_rows():
        return WINDOWS
    dense = problem.R * problem.S == 1 and problem.stride == (1, 1)  # x is read in place
    if problem.N > 1 and problem.P * problem.Q <= FEW_PIXELS and not dense:
        return BATCHED
    return COLUMNS if reach(problem, 1) > 0.08 * problem.Q and problem.Kg >= 64 else SHIFTED


def copies_of(problem, mode):
    """Copies of a channel by row and by column, those of them that a tap reads, rows of tiles in all, and taps."""
    R, S, (stride_h, stride_w) = problem.R, problem.S, problem.stride
    if mode in (WINDOWS, BATCHED):
        return R, S, 1, problem.Cg * R * S, 1
    met_h = len({r * problem.dilation[0] % stride_h for r in range(R)})
    if mode == COLUMNS:
        return stride_h, S, met_h * S, problem.Cg, R * S
    met_w = len({s * problem.dilation[1] % stride_w for s in range(S)})
    return stride_h, stride_w, met_h * met_w, problem.Cg, R * S


def blocks_of(problem, threads, mode, met, rows, taps, vectors, tallest):
    """Rows and vectors of a task: the split that is predicted to be the fastest."""

    def blocks(count, least):
        """Every size of block that makes another number of them, up to several for each thread."""
        units = ceil(count / least)
        return sorted({ceil(units / parts) * least for parts in range(1, min(units, 4 * threads) + 1)}, reverse=True)

    def cycles(row_block, vector_block):
        panels = ceil(vector_block / VECTORS)
        narrow = NARROW[ceil(vector_block / panels)]
        multiplied = row_block * taps * vector_block / 2 * narrow
        read = 1 if mode in (WINDOWS, BATCHED) else problem.stride[0] * problem.stride[1]
        a_row = COPIED_ROW_OF_ALL if mode == BATCHED else COPIED_ROW
        copied = row_block * (read * READ + met * (COPIED + a_row / problem.Q))
        copied += vector_block * lanes(problem.accumulate) * TRANSPOSED
        tasks = problem.groups * ceil(rows / row_block) * ceil(vectors / vector_block)
        return (ceil(tasks / threads) + UNEVEN) * (multiplied + copied)

    row_blocks = blocks(rows, tallest)
    if mode == BATCHED:  # enough pixels at a time for a chunk, with what is copied in half of the L2 cache
        enough = min(problem.N, ceil(CHUNK_PIXELS / (problem.P * problem.Q)))
        row_blocks = [block for block in row_blocks if images_at_a_time(problem, block) >= enough] or row_blocks[-1:]
    return min(product(row_blocks, blocks(vectors, 1)), key=lambda sizes: cycles(*sizes))


def reach(problem, axis) -> int:
    """How many whole strides the last tap lies from the first."""
    window = (problem.R, problem.S)[axis]
    return (window - 1) * problem.dilation[axis] // problem.stride[axis]


def lines(count):
    """Bytes in whole cache lines."""
    return -(-count // 64) * 64


def lies_in_place(problem, mode, x) -> bool:
    """Whether x can be read as if it were its own copy, the rows that fill up the last tile included."""
    item = problem.accumulate.itemsize
    plain = problem.stride == (1, 1) and problem.padding == ((0, 0), (0, 0)) and mode == SHIFTED
    dense = x.strides[2:] == (problem.W * item, item) and x.itemsize == item
    return plain and dense and problem.Cg % max(tile_rows(width) for width in (1, 2, 3)) == 0


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[1]


def predicted_seconds(problem, device):
    """Whole tiles at 60 GFLOP/s a thread: few filters or channels per group waste most of a tile."""
    width = lanes(problem.accumulate)
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
    mode, fields, loop, tasks, pitch = prepared(problem, device.threads)
    run_q, run_pitch, run_rows = problem.Q, pitch, problem.P
    if run_pitch == run_q and grad_y.strides[2] == problem.Q * grad_y.strides[3]:
        run_q, run_pitch, run_rows = problem.P * problem.Q, problem.P * problem.Q, 1  # an image's rows are one
    found = struct.pack(f"{len(FOUND)}q", lies_in_place(problem, mode, x), run_q, run_pitch, run_rows)
    run_tasks(loop, pack_call(fields + found, x, grad_w, x, None, grad_y, workspace), tasks, device.threads)
