"""The tasks of the CPU weight gradient: the loops over images, slabs, panels of filters, chunks of pixels and taps."""

from .compilation import inlined
from .microkernel import VECTORS, multiply_function, panel_rows
from .threads import task_loop
from .vectors import broadcast, record_at
from .weight_grad_cuts import CALL_CUT, SHIFTED
from .weight_grad_input import copy_input_function
from .weight_grad_transposing import copy_grad_function, store_function
from .weight_grad_types import Types


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
