"""Transposing for the CPU weight gradient: grad_y to pixel-major on its way in, sums to w's order on their way out."""

from numba.core import types

from . import tracing
from .compilation import inlined
from .microkernel import vector_type
from .tracing import first_lanes, load, load_lanes, store, traced
from .vectors import broadcast
from .weight_grad_types import Types


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
