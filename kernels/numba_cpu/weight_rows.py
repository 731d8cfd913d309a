"""Weights copied into rows for the micro-kernel, where it cannot take them as they lie.

    filter k      w[k][d=0] w[k][1] w[k][2] ...                       d = (c, r, s)
    filter k+1    w[k+1][0] ...               a whole number of cache lines further

Contiguous float32 and float64 weights have this form as they come, which is why a single call copies none. A plan
does: its rows begin on cache lines, and never a multiple of 1,024 bytes apart, or the rows of one tile would share a
few places of the L1 cache. The number of filters is filled up to whole tiles with zeros. float16 and bfloat16 become
float32 here.

Interleaved panels, which the micro-kernel reads as one stream, are no better (blocked.py).
"""

import numpy as np

from .call import CALL
from .compilation import inlined
from .microkernel import tile_rows
from .short_floats import memory_functions
from .threads import task_loop
from .vectors import lanes, record_at

LINE = 64  # bytes


def padded_filters(Kg) -> int:
    """Filters of a group, filled up to whole tiles of every shape."""
    rows = max(tile_rows(vectors) for vectors in (1, 2, 3))
    return -(-Kg // rows) * rows


def row_bytes(problem) -> int:
    """From filter to filter."""
    return bytes_of_row(problem.reduction, problem.accumulate.itemsize)


def bytes_of_row(depth, item):
    count = (depth * item + LINE - 1) // LINE * LINE
    return count + LINE if count % 1024 == 0 else count


def pack_tasks(problem) -> int:
    return problem.groups * padded_filters(problem.Kg)


def packed_bytes(problem) -> int:
    return pack_tasks(problem) * row_bytes(problem)


def packed_rows(problem, packed):
    """`packed` (uint8) as an array (1, filters, 1, depths) of which each row is a filter's place."""
    shape = (1, pack_tasks(problem), 1, row_bytes(problem) // problem.accumulate.itemsize)
    return packed[: packed_bytes(problem)].view(problem.accumulate).reshape(shape)


def build(dtype_name):
    """Task: one filter, or one row of zeros. call.w: the weights, call.y: the packed rows."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, W = np.dtype(real).itemsize, lanes(real)
    stored_item = 2 if dtype_name.endswith("16") else item
    read, _, read_vector, _ = memory_functions(dtype_name)
    _, write, _, write_vector = memory_functions(np.dtype(real).name)
    padding, spacing = padded_filters(1), inlined(bytes_of_row)

    @inlined
    def copy_contiguous(to, w, count):
        done = count // W * W
        for d in range(0, done, W):
            write_vector(to + d * item, read_vector(w + d * stored_item))
        for d in range(done, count):
            write(to + d * item, read(w + d * stored_item))

    @inlined
    def copy_filter(call, to, w):
        for c in range(call.Cg):
            for r in range(call.R):
                for s in range(call.S):
                    write(to, read(w + c * call.w_c + r * call.w_r + s * call.w_s))
                    to += item

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        padded, depth = (call.Kg + padding - 1) // padding * padding, call.Cg * call.R * call.S
        g, k = index // padded, index % padded
        to, w = call.y + index * spacing(depth, item), call.w + (g * call.Kg + k) * call.w_k
        by_row = call.w_s == stored_item and call.w_r == call.S * stored_item
        if k >= call.Kg:
            for d in range(depth):
                write(to + d * item, 0.0)
        elif by_row and call.w_c == call.R * call.w_r:
            copy_contiguous(to, w, depth)
        else:
            copy_filter(call, to, w)

    return task_loop(pack)
