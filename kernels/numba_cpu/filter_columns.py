"""Weights packed as columns for the micro-kernel: for every depth, the filters of one vector side by side.

    a vector of 8 filters:   w[k .. k+7][d=0]   w[k .. k+7][d=1]   ...            d = (c, r, s)

Missing filters of the last vector are zeros. Vectors of one depth block lie one after the other, so that a tile may
begin with any. float16 and bfloat16 become float32 here.
"""

import numpy as np
from numba.core import types

from .call import CALL
from .compilation import inlined
from .microkernel import vector_type
from .short_floats import memory_functions
from .threads import task_loop
from .tracing import load, loop, store, traced, transpose
from .vectors import lanes, record_at


def padded_filters(problem) -> int:
    """Filters of a group, filled up to whole vectors."""
    W = lanes(problem.accumulate)
    return -(-problem.Kg // W) * W


def packed_items(problem) -> int:
    """How many numbers the packed weights hold."""
    return problem.groups * padded_filters(problem) * problem.reduction


def pack_vector_function(dtype_name):
    """A Numba function pack_vector(call, to, w, filters, c0, channels): up to a vector of filters, w: the first one's
    address, of so many channels from c0 on.
    """
    real = np.float64 if dtype_name == "float64" else np.float32
    V = vector_type(real)
    W, item = V.count, V.item_bytes
    row = V.bytes
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)
    narrow_type = dtype_name in ("float16", "bfloat16")

    @traced(types.int64)
    def transpose_filters(to, w, w_k, count):
        """W filters whose weights are contiguous, `count` of each; returns how many it did."""

        def step(i):
            square = transpose([load(V, w + w_k * k + V.bytes * i) for k in range(W)])
            for d, filters in enumerate(square):
                store(to + (i * W + d) * row, filters)

        loop(count // W, step)
        return count // W * W

    @traced(types.void)
    def copy_filters(to, w):
        """A depth's W filters, which lie side by side."""
        store(to, load(V, w))

    @inlined
    def pack_vector(call, to, w, filters, c0, channels):
        taps = call.R * call.S
        done = 0
        contiguous = call.w_s == item and call.w_r == call.S * item and call.w_c == taps * item
        whole = filters == W and not narrow_type
        if contiguous and whole:
            done = transpose_filters(to, w + c0 * call.w_c, call.w_k, channels * taps)
        for d in range(done, channels * taps):
            c, r, s = c0 + d // taps, d % taps // call.S, d % call.S
            here = w + c * call.w_c + r * call.w_r + s * call.w_s
            if whole and call.w_k == item:
                copy_filters(to + d * row, here)
                continue
            for i in range(filters):
                write(to + d * row + i * item, read(here + i * call.w_k))
            for i in range(filters, W):
                write(to + d * row + i * item, 0.0)

    return pack_vector


def build(dtype_name, channel_block):
    """Task: one vector of filters, all depths. call.w: the weights, call.y: where they go."""
    real = np.float64 if dtype_name == "float64" else np.float32
    W, item = lanes(real), np.dtype(real).itemsize
    pack_vector = pack_vector_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        padded = (call.Kg + W - 1) // W * W
        g, k = index // (padded // W), index % (padded // W) * W
        taps = call.R * call.S
        w = call.w + (g * call.Kg + k) * call.w_k
        group = call.y + g * padded * call.Cg * taps * item
        for c0 in range(0, call.Cg, channel_block):
            channels = min(channel_block, call.Cg - c0)
            block = group + c0 * taps * padded * item
            to = block + k * channels * taps * item
            pack_vector(call, to, w, min(W, call.Kg - k), c0, channels)

    return task_loop(pack)
