"""The sums of weights that strassen.py multiplies, made ahead or once a call; those of pixels its products make."""

import numpy as np
from numba.core import types

from .call import CALL
from .compilation import inlined
from .microkernel import panel_rows, vector_type
from .short_floats import memory_functions
from .threads import task_loop
from .tracing import interleave, load, loop, store, traced
from .vectors import record_at

PRODUCTS = 7


@inlined
def half_depth(call):
    return call.Cg * call.R * call.S // 2


def seven_of(a11, a12, a21, a22):
    """What the seven products take of the left operand, in their order."""
    s1 = a21 + a22
    s2 = s1 - a11
    return a11, a12, s2, s1, a12 - s2, a11 - a21, a22


def pack_panel_function(dtype_name):
    """A Numba function pack_panel(call, to, w): the seven products' weights for `rows` filters, [7][depth][rows]."""
    real = np.float64 if dtype_name == "float64" else np.float32
    item, V, rows = np.dtype(real).itemsize, vector_type(real), panel_rows()
    W, contiguous = V.count, dtype_name == np.dtype(real).name
    read, _, _, _ = memory_functions(dtype_name)
    _, write, _, _ = memory_functions(np.dtype(real).name)

    @traced(types.void)
    def pack_vectors(to, panel_bytes, w, w_k, half_filters, half_channels, count):
        def some(i):
            here, there = w + i * V.bytes, to + i * (rows * V.bytes)
            begins = (here, here + half_channels, here + half_filters, here + half_filters + half_channels)
            quarters = [interleave([load(V, begin + w_k * j) for j in range(rows)]) for begin in begins]
            for j, quarter in enumerate(zip(*quarters)):
                for p, vector in enumerate(seven_of(*quarter)):
                    store(there + panel_bytes * p + V.bytes * j, vector)

        loop(count, some)

    @inlined
    def pack_panel(call, to, w):
        depth = half_depth(call)
        panel_bytes, half_filters, half_channels = depth * rows * item, call.Kg // 2 * call.w_k, depth * call.w_c
        done = 0
        if contiguous and call.w_c == item:
            pack_vectors(to, panel_bytes, w, call.w_k, half_filters, half_channels, depth // W)
            done = depth // W * W
        for c in range(done, depth):
            for j in range(rows):
                here, there = w + j * call.w_k + c * call.w_c, to + (c * rows + j) * item
                a11, a12 = read(here), read(here + half_channels)
                a21, a22 = read(here + half_filters), read(here + half_filters + half_channels)
                s1 = a21 + a22
                s2 = s1 - a11
                write(there, a11)
                write(there + panel_bytes, a12)
                write(there + 2 * panel_bytes, s2)
                write(there + 3 * panel_bytes, s1)
                write(there + 4 * panel_bytes, a12 - s2)
                write(there + 5 * panel_bytes, a11 - a21)
                write(there + 6 * panel_bytes, a22)

    return pack_panel


def build_pack(dtype_name):
    """Task: the panel of `rows` filters and of those half of all further. call.w: the weights, call.y: the panels."""
    rows, item = panel_rows(), 8 if dtype_name == "float64" else 4
    pack_panel = pack_panel_function(dtype_name)

    def pack(call_address, index, worker):
        call = record_at(CALL, call_address)
        panels = call.Kg // 2 // rows
        w = call.w + (index // panels * call.Kg + index % panels * rows) * call.w_k
        pack_panel(call, call.y + index * (PRODUCTS * half_depth(call) * rows * item), w)

    return task_loop(pack)
