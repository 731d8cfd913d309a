"""winograd_columns.py's work where channels come last (NHWC): lanes are filters, as they lie in y.

    rows of x: c c c c c c c c c    of 6 rows as they lie, all numbers alike:    B^T down, in L1
    4 pixels x 6 products, sums in 24 registers: for each depth d = (s, c), weights of 16 filters from U, and the
    number q C + d of each transformed row, broadcast from memory, for each pixel q

The window of a pixel is S C neighbours of a transformed row, since columns and channels lie together in x. The pixels
of a tile go by all filters, so that a run of y is stored at once.
"""

from numba.core import types

from .compilation import inlined
from .short_floats import lanes_for, stored_kind, vector_of
from .threads import two_round_loop
from .tracing import Lanes, broadcast, constant, fma, hidden, load, loop, traced, zeros
from .vectors import record_at
from .weight_rows import LINE
from .winograd_columns_tiles import (
    AXIS,
    CALL_COLUMNS,
    OWN,
    Activation,
    Place,
    S,
    copies,
    filters_function,
    put_outputs,
    rows_function,
)


def tiles_function(dtype_name):
    """The traced function for a strip of OWN pixels, filters after filters, from sums to store."""
    V, stored, n, m = vector_of(dtype_name), Lanes(stored_kind(dtype_name)), AXIS.points, AXIS.m

    @traced(types.void)
    def tiles(
        u, v, v_row, C, K, y, y_k, y_p, y_q, residual, residual_k, residual_p, residual_q, has_residual,
        rows_left, bias, scratch, kind, low, high, slope, past,
    ):  # fmt: skip
        activation = Activation(kind, low, high, slope)
        to, more = Place(y, y_q, y_p, y_k), Place(residual, residual_q, residual_p, residual_k)
        at_once = (rows_left >= m) & y_k.equals(stored.item_bytes) & has_residual.equals(0)
        at_once = at_once & activation.is_least_alone()
        pixel, turn = C * V.item_bytes, V.bytes * (S * n)

        def tile(i):
            def bias_of(_):
                return load(V, hidden(bias) + V.bytes * i)

            def step(_, carried):
                sums, u, v = carried
                for s in range(S):
                    for p in range(n):
                        filters, here = load(V, u + V.bytes * (s * n + p)), v + v_row * p + V.item_bytes * s
                        for q in range(OWN):
                            number = broadcast(V, load(V.scalar, here + pixel * q))
                            sums[q][p] = fma(number, filters, sums[q][p])
                return [sums, u + turn, v + V.item_bytes * S]

            begin = [bias_of(None), *[zeros(V, u)] * (n - 2), bias_of(None)]
            sums = loop(C, step, [[list(begin) for _ in range(OWN)], u + turn * C * i, v])[0]
            left, at = (constant(u, OWN), rows_left), i * V.count
            put_outputs(
                dtype_name, sums, bias_of, to.at(at), more.at(at), has_residual, left, at_once, past, scratch,
                activation,
            )  # fmt: skip

        loop(K // V.count, tile)

    return tiles


def build(dtype_name):
    W, n, m = lanes_for(dtype_name), AXIS.points, AXIS.m
    transform_filters, transform_rows = filters_function(dtype_name, W, channels_inner=True), rows_function(dtype_name)
    tiles, (copy_number, copy_bias) = tiles_function(dtype_name), copies(dtype_name)
    item, stored_item = vector_of(dtype_name).item_bytes, Lanes(stored_kind(dtype_name)).item_bytes

    @inlined
    def transform_group(call, index, to):
        """W filters, number `index`."""
        w = call.w + index * W * call.w_k
        here = to + index * (call.C * S * n * W * item)
        transform_filters(w, call.w_k, call.w_c, call.w_r, call.w_s, call.C, W, here)

    def packing(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        transform_group(call, index, call.y)

    def prepare(call_address, worker):
        """In a single call: each thread's own."""
        call = record_at(CALL_COLUMNS, call_address)
        if call.u_at:
            for index in range(call.K // W):
                transform_group(call, index, call.workspace + worker * call.worker_bytes + call.u_at)

    @inlined
    def gather_rows(call, x, row, column, panel, columns):
        """Rows of x, padded, whose numbers are no neighbours."""
        for i in range(n):
            for j in range(columns):
                for c in range(call.C):
                    to = panel + i * call.v_row + (j * call.C + c) * stored_item
                    copy_number(call, x + c * call.x_c, row + i, column + j, to)

    def task(call_address, index, worker):
        call = record_at(CALL_COLUMNS, call_address)
        band, image = index % call.bands, index // call.bands
        memory = call.workspace + worker * call.worker_bytes
        scratch, panel, v = memory + call.scratch_at, memory + call.panel_at, memory + call.v_at
        for k in range(call.K):
            copy_bias(call, k, True, memory + k * item)
        u = memory + call.u_at if call.u_at else call.w
        neighbours = call.x_c == stored_item and call.x_w == call.C * stored_item
        aligned = (call.y | call.y_n | call.y_p | call.y_q) % LINE == 0
        past, strips = call.streaming if aligned else 0, (call.P + m - 1) // m
        x = call.x + image * call.x_n
        for p in range(strips * band // call.bands * m, min(strips * (band + 1) // call.bands * m, call.P), m):
            y = call.y + image * call.y_n + p * call.y_p
            residual = call.residual + image * call.residual_n + p * call.residual_p
            for begin in range(0, call.Q, call.strip):
                first = min(begin, call.Q - OWN)
                columns = min(begin + call.strip, call.Q) - first
                read = (columns + S - 1) * call.C
                vectors = (read + W - 1) // W
                row, column = p - call.top, first - call.left
                if neighbours:
                    width = call.W * call.C
                    transform_rows(x, call.x_h, row, call.H, column * call.C, width, v, call.v_row, vectors)
                else:
                    gather_rows(call, x, row, column, panel, columns + S - 1)
                    transform_rows(panel, call.v_row, 0, n, 0, read, v, call.v_row, vectors)
                for q in range(0, columns, OWN):
                    at = min(q, columns - OWN)
                    tiles(
                        u, v + at * call.C * item, call.v_row, call.C, call.K,
                        y + (first + at) * call.y_q, call.y_k, call.y_p, call.y_q,
                        residual + (first + at) * call.residual_q,
                        call.residual_k, call.residual_p, call.residual_q, call.has_residual,
                        call.P - p, memory, scratch,
                        call.activation, call.low, call.high, call.slope, past,
                    )  # fmt: skip

    return two_round_loop(packing, task, prepare)
