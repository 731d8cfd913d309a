"""Weights packed for the micro-kernel: panels of a few filters, interleaved, in the order in which they are read.

    one panel, 4 filters:   w[k][d=0] w[k+1][0] w[k+2][0] w[k+3][0]  w[k][1] w[k+1][1] ...       d = (c, r, s)

Panels of one depth block lie one after the other, so the multiply reads one stream. The number of filters is filled
up to whole tiles with zeros. float16 and bfloat16 become float32 here.
"""

import numpy as np
from numba.core import types

from . import tracing
from .call import CALL
from .compilation import inlined
from .microkernel import panel_rows, tile_rows, vector_type
from .short_floats import memory_functions
from .threads import task_loop
from .tracing import interleave, load, store, traced
from .vectors import record_at


def padded_filters(Kg) -> int:
    """Filters of a group, filled up to whole tiles of every shape."""
    rows = max(tile_rows(vectors) for vectors in (1, 2, 3))
    return -(-Kg // rows) * rows


def packed_items(problem) -> int:
    """How many numbers the packed weights hold."""
    return problem.groups * padded_filters(problem.Kg) * problem.reduction


def build(dtype_name, channel_block):
    """Task: one panel of filters, all depths. call.w: the weights, call.y: where they go."""
    real = np.float64 if dtype_name == "float64" else np.float32
    V, rows = vector_type(real), panel_rows()
    item = V.item_bytes
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)

    @traced(types.int64)
    def interleave_rows(to, w, w_k, count):
        """Interleave the `rows` contiguous rows at w, w + w_k, ...; returns how many numbers of each it did."""

        def step(i):
            panel = interleave([load(V, w + w_k * row + V.bytes * i) for row in range(rows)])
            for j, vector in enumerate(panel):
                store(to + (i * rows + j) * V.bytes, vector)

        tracing.loop(count // V.count, step)
        return count // V.count * V.count

    @inlined
    def interleave_block(call, to, w, filters, c0, channels):
        """One panel's channels c0 .. c0 + channels - 1."""
        taps = call.R * call.S
        done = 0
        contiguous = call.w_s == item and call.w_r == call.S * item and call.w_c == taps * item
        if contiguous and filters == rows and not narrow_type:
            done = interleave_rows(to, w + c0 * call.w_c, call.w_k, channels * taps)
        for d in range(done, channels * taps):
            c, r, s = c0 + d // taps, d % taps // call.S, d % call.S
            here = w + c * call.w_c + r * call.w_r + s * call.w_s
            for i in range(filters):
                write(to + (d * rows + i) * item, read(here + i * call.w_k))
            for i in range(filters, rows):
                write(to + (d * rows + i) * item, 0.0)

    narrow_type = dtype_name in ("float16", "bfloat16")

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        filters_padded = (call.Kg + padding - 1) // padding * padding
        panels = filters_padded // rows
        g, k = index // panels, index % panels * rows
        taps = call.R * call.S
        filters = max(0, min(rows, call.Kg - k))
        w = call.w + (g * call.Kg + min(k, call.Kg - 1)) * call.w_k
        group = call.y + g * filters_padded * call.Cg * taps * item
        for c0 in range(0, call.Cg, channel_block):
            channels = min(channel_block, call.Cg - c0)
            block = group + c0 * taps * filters_padded * item
            interleave_block(call, block + k * channels * taps * item, w, filters, c0, channels)

    padding = padded_filters(1)
    return task_loop(pack)
