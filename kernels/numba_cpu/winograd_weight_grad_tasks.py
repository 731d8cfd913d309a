"""The tasks of the CPU weight gradient by Winograd: the loops over chains, strips, pieces of rows, and planes."""

from .compilation import inlined
from .microkernel import VECTORS, multiply_function, panel_rows
from .threads import two_round_loop
from .vectors import record_at
from .weight_grad_transposing import store_function
from .weight_grad_types import Types
from .winograd_weight_grad_chains import SIDE, TILE
from .winograd_weight_grad_cuts import CALL_CUT
from .winograd_weight_grad_transforms import copy_rows_function, transform_back_function, transform_functions


@inlined
def tiles_of_piece(call, tile, end):
    """How many tiles from `tile` on lie in one row, `piece` at most; the image, and where in it the first one is."""
    line, column = tile // call.tile_columns, tile % call.tile_columns
    count = min(call.tile_columns - column, end - tile, call.piece)
    return count, line // call.tile_rows, line % call.tile_rows * SIDE, column * SIDE


@inlined
def width_of(left):
    """Vectors of the next panel: of the fewest panels, as equal as they can be."""
    panels = (left + VECTORS - 1) // VECTORS
    return (left + panels - 1) // panels


@inlined
def block_of(call, index):
    """(group, first channel, channels, first vector of filters, vectors)"""
    row_task, rest = index % call.row_tasks, index // call.row_tasks
    vector_task, g = rest % call.vector_tasks, rest // call.vector_tasks
    row0, vector0 = row_task * call.row_block, vector_task * call.vector_block
    return g, row0, min(call.row_block, call.Cg - row0), vector0, min(call.vector_block, call.vectors - vector0)


def strip_functions(dtype_name):
    """Numba functions for a strip: (copy_inputs, copy_grads), from x and grad_y to its planes."""
    t = Types(dtype_name)
    W, vector_bytes, span, item = t.W, t.W * t.item, TILE.rows.span, t.item
    copy_rows = copy_rows_function(dtype_name)
    transform_input, transform_grad = transform_functions(TILE, t.real)

    @inlined
    def copy_inputs(call, staged, target, x, channels, first, end):
        """x: the first of `channels` channels, of the first image. target: their planes, a vector of them after
        another for each tile.
        """
        steps, row = (call.x_c, call.x_h, call.x_w), call.row_block * item
        for c in range(0, channels, W):
            tile = first
            while tile < end:
                tiles, image, p, q = tiles_of_piece(call, tile, end)
                source, some = x + image * call.x_n + c * call.x_c, min(W, channels - c)
                copy_rows(
                    staged, call.pitch, source, steps, some, p - call.top, span, call.H,
                    q - call.left, tiles * SIDE + span - SIDE, call.W,
                )  # fmt: skip
                to = target + (tile - first) * row + c * item
                for i in range(tiles):
                    transform_input(staged + i * SIDE * vector_bytes, call.pitch, to + i * row, call.input_plane)
                tile += tiles

    @inlined
    def copy_grads(call, staged, target, grad_y, filters, first, end):
        """Likewise of filters, panel after panel."""
        steps = call.residual_k, call.residual_p, call.residual_q
        vectors, vector = (filters + W - 1) // W, 0
        while vector < vectors:
            width = width_of(vectors - vector)
            panel, row = target + vector * call.strip * vector_bytes, width * vector_bytes
            for j in range(width):
                tile, k = first, (vector + j) * W
                while tile < end:
                    tiles, image, p, q = tiles_of_piece(call, tile, end)
                    source, some = grad_y + image * call.residual_n + k * call.residual_k, min(W, filters - k)
                    copy_rows(staged, call.pitch, source, steps, some, p, SIDE, call.P, q, tiles * SIDE, call.Q)
                    to = panel + (tile - first) * row + j * vector_bytes
                    for i in range(tiles):
                        transform_grad(staged + i * SIDE * vector_bytes, call.pitch, to + i * row, call.grad_plane)
                    tile += tiles
            vector += width

    return copy_inputs, copy_grads


def sums_functions(t):
    """Numba functions for the sums of a block: (multiply_planes, transform_sums)."""
    vector_bytes, item, panel, planes = t.W * t.item, t.item, panel_rows(), TILE.planes
    multiply = multiply_function(t.real, "row")
    transform_back = transform_back_function(TILE, t.real)

    @inlined
    def multiply_planes(call, inputs, grads, sums, rows, vectors, tiles, fresh):
        row = call.row_block * item
        for plane in range(planes):
            a, b, c = inputs + plane * call.input_plane, grads + plane * call.grad_plane, sums + plane * call.sum_plane
            vector = 0
            while vector < vectors:
                width = width_of(vectors - vector)
                multiply(
                    width, rows, a, item, panel * item, row, b + vector * call.strip * vector_bytes,
                    width * vector_bytes, tiles, c + vector * call.row_block * vector_bytes, width * vector_bytes,
                    fresh, 0, 0, 0, 0, 0, 0.0, 0.0,
                )  # fmt: skip
                vector += width

    @inlined
    def transform_sums(call, sums, totals, rows, vectors, continued):
        tap, vector = call.row_block * vector_bytes, 0
        while vector < vectors:
            width = width_of(vectors - vector)
            for c in range(rows):
                for j in range(width):
                    source = sums + (vector * call.row_block + c * width + j) * vector_bytes
                    target = totals + (vector + j) * call.taps * tap + c * vector_bytes
                    transform_back(source, call.sum_plane, target, tap, continued)
            vector += width

    return multiply_planes, transform_sums


def build_tasks(dtype_name):
    """First round: the sums of a part of the tiles, for a block of channels and a block of filters of one group.
    Second round, where there are several parts: their sum.
    """
    t = Types(dtype_name)
    W, vector_bytes = t.W, t.W * t.item
    read_sums, write_sums = t.read_sums, t.write_sums
    copy_inputs, copy_grads = strip_functions(dtype_name)
    multiply_planes, transform_sums = sums_functions(t)
    store_panel = store_function(dtype_name)

    @inlined
    def store_block(call, totals, block, spare):
        g, row0, rows, vector0, vectors = block_of(call, block)
        for j in range(vectors):
            k = (vector0 + j) * W
            filters, to = min(W, call.Kg - k), call.w + (g * call.Kg + k) * call.w_k
            own = totals + j * call.taps * call.row_block * vector_bytes
            store_panel(call, own, vector_bytes, to, filters, row0 * call.taps, rows * call.taps, spare)

    def sum_part(call_address, index, worker):
        call = record_at(CALL_CUT, call_address)
        blocks = call.groups * call.row_tasks * call.vector_tasks
        part, block = index // blocks, index % blocks
        g, row0, rows, vector0, vectors = block_of(call, block)
        staged = call.workspace + worker * call.worker_bytes
        inputs, grads, sums = staged + call.inputs_at, staged + call.grads_at, staged + call.sums_at
        totals = call.workspace + call.totals_at + (index if call.parts > 1 else worker) * call.totals_bytes
        x = call.x + (g * call.Cg + row0) * call.x_c
        grad_y, filters = call.residual + (g * call.Kg + vector0 * W) * call.residual_k, call.Kg - vector0 * W
        first_chain, behind = part * call.chains // call.parts, (part + 1) * call.chains // call.parts
        for chain in range(first_chain, behind):
            begin, end = chain * call.tiles // call.chains, (chain + 1) * call.tiles // call.chains
            for first in range(begin, end, call.strip):
                last = min(first + call.strip, end)
                copy_inputs(call, staged, inputs, x, rows, first, last)
                copy_grads(call, staged, grads, grad_y, min(vectors * W, filters), first, last)
                multiply_planes(call, inputs, grads, sums, rows, vectors, last - first, first == begin)
            transform_sums(call, sums, totals, rows, vectors, chain > first_chain)
        if call.parts == 1:
            store_block(call, totals, block, staged)

    def sum_parts(call_address, block, worker):
        call = record_at(CALL_CUT, call_address)
        totals, step = call.workspace + call.totals_at + block * call.totals_bytes, call.totals_bytes
        step *= call.groups * call.row_tasks * call.vector_tasks
        for at in range(0, call.totals_bytes, vector_bytes):
            total = read_sums(totals + at)
            for part in range(1, call.parts):
                total += read_sums(totals + part * step + at)
            write_sums(totals + at, total)
        store_block(call, totals, block, call.workspace + worker * call.worker_bytes)

    return two_round_loop(sum_part, sum_parts)
