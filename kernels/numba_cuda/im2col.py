"""im2col: write every window out as a column of a matrix; then convolution is one matrix product.

    columns: one row per (c, r, s),                     y = filters x columns, a block of 256 threads:
             one column per output pixel                                128 pixels
              pixel 0  1  2 ...                         +---------------------------------------+
    row 0         x    x  x                        128  | each thread 8 x 8 outputs: two runs   |
    row 1         x    0  x     0 = padding    filters  | of 4 filters times two runs of 4      |
    ...                                                 | pixels, in registers                  |
    stored tile by tile, 128 columns wide,              +---------------------------------------+
    and the filters likewise, 128 filters wide          8 rows of both are staged at a time, twice

Three kernels: `im2col_filters` writes w as tiles once, `im2col_columns` writes the windows of one slice of pixels, and
`im2col_product` multiplies. Rows are padded with zeros to whole steps of 8, and filters and pixels to whole tiles, so
the product has no bounds to test until its outputs leave.
Why it pays: whatever the window, stride or dilation, a thread takes 16 numbers from shared memory in four 16-byte loads
for 64 multiply-adds, and a number that came from global memory is used 128 times. In the machine code (sm_80) 128 of
the 143 instructions of the main loop are FFMA, 90 %; with staging 512 of 625 a step, 82 %. Tiles are stored one after
the other so that a step's 8 x 128 numbers are one run of memory: a load is one instruction with a constant offset.
The price is the matrix: every pixel of x is written and read R*S times. Pixels are therefore taken in slices whose
columns fit WORKSPACE.
Staging is double-buffered: while a step is computed, the next one's global loads are on their way into registers. One
barrier a step is enough: it ends the filling of one buffer and, for every thread, the reading of the other.
Bank conflicts: none. A warp is 8 x 4 threads. Its pixel loads are 8 neighbouring 16-byte runs, 128 bytes in all, its
filter loads 4 runs, each shared by 8 threads; stores go to 32 neighbouring words.
Limits: none of its own; the workspace grows where not even one tile's columns fit it.
Source: Chellapilla, Puri and Simard, High performance convolutional neural networks for document processing, 2006; the
product: Volkov and Demmel, Benchmarking GPUs to tune dense linear algebra, SC 2008; contiguous tiles: Goto and van de
Geijn, Anatomy of high-performance matrix multiplication, 2008.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

from numba import cuda

from ...device import simulating
from .. import gpu_cost as cost
from ..launching import ceil_div, launch
from .epilogue import epilogue_of, finish, operands
from .storage import at, register_type, run_length, widen

WORKSPACE = 64 << 20  # bytes of columns: tiles enough for every SM, and large GPUs keep most of it in their L2
ALIGNMENT = 256  # bytes, of what lies in the workspace
DEPTH = 8  # rows staged per step: 8 x (128 + 128) floats, twice, are 16 of 48 KB
CHANNELS = 8  # per thread of im2col_columns: a pixel's coordinates are worked out once for 8 R S numbers, and in NHWC
#               8 float32 channels are the 32 bytes that one memory transaction brings anyway
THREADS = 256  # of the two kernels that move elements
TILES = ((128, 128), (64, 64), (32, 128))  # filters x pixels in float32, 64 outputs a thread; half of each in float64
BLOCKS_PER_SM = {1024: 1, 256: 6}  # by outputs a tile, in vectors: 166 registers a thread (sm_80) of 65,536
MULTIPLY_SHARE = 0.82  # multiply-adds among the instructions of a step, see above
WAITING = cost.waiting("numba_cuda.im2col")

SIMULATED = simulating()

passes = ("forward",)


@cache
def compiled_filters(R, S, tile_k):
    """The kernel that writes w as tiles of filters: (tile, row, filter of the tile), zero where they are padded."""

    @cuda.jit
    def im2col_filters(w, filters, groups, tiles, rows):
        Cg, Kg = w.shape[1], w.shape[0] // groups
        index = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        lane, index = index % tile_k, index // tile_k
        first_t, tile = index % (rows // DEPTH) * DEPTH, index // (rows // DEPTH)
        if tile >= groups * tiles:
            return

        g, k = tile // tiles, tile % tiles * tile_k + lane
        for t in range(first_t, first_t + DEPTH):
            c, r, s = t // (R * S), t // S % R, t % S
            inside = k < Kg and c < Cg
            element = w[at(g * Kg + k), at(c), at(r), at(s)] if inside else filters.dtype.type(0)
            filters[at((tile * rows + t) * tile_k + lane)] = element

    return im2col_filters


@cache
def compiled_columns(R, S, tile_m):
    """The kernel that writes a slice of pixels as tiles of columns, likewise; it moves elements, whatever they mean."""

    @cuda.jit
    def im2col_columns(
        x, columns, Cg, rows, tiles, first_pixel, pixels, P, Q, stride_h, stride_w, top, left, dilation_h, dilation_w
    ):
        C, H, W = x.shape[1], x.shape[2], x.shape[3]
        blocks = (tiles * tile_m + THREADS - 1) // THREADS
        column = cuda.blockIdx.x % blocks * THREADS + cuda.threadIdx.x
        first_c = cuda.blockIdx.x // blocks * CHANNELS
        tile, lane = column // tile_m, column % tile_m
        if tile >= tiles:
            return

        pixel = first_pixel + column
        n, p, q = pixel // (P * Q), pixel // Q % P, pixel % Q
        h0, w0 = p * stride_h - top, q * stride_w - left
        zero = columns.dtype.type(0)
        for c in range(first_c, min(C, first_c + CHANNELS)):
            g, group_c = c // Cg, c % Cg
            end = ((g * tiles + tile + 1) * rows) * tile_m + lane
            target = end - (rows - group_c * (R * S)) * tile_m
            for r in range(R):
                for s in range(S):
                    h, v = h0 + r * dilation_h, w0 + s * dilation_w
                    inside = pixel < pixels and 0 <= h < H and 0 <= v < W
                    columns[at(target + (r * S + s) * tile_m)] = x[at(n), at(c), at(h), at(v)] if inside else zero
            if group_c == Cg - 1:
                for padding in range(target + R * S * tile_m, end, tile_m):
                    columns[at(padding)] = zero

    return im2col_columns


@cache
def compiled_product(tile_k, tile_m, epilogue):
    """The kernel for y = filters x columns in tiles of tile_k filters and tile_m pixels."""
    dtype_name = epilogue[0]
    number, real, finished = widen(dtype_name), register_type(dtype_name), finish(*epilogue)
    run = run_length(dtype_name)
    micro = 2 * run
    threads = tile_k * tile_m // micro**2
    half_k, half_m = tile_k // 2, tile_m // 2
    warps_m = half_m // (8 * run)
    filters_stage, columns_stage = DEPTH * tile_k, DEPTH * tile_m
    stage = filters_stage + columns_stage
    both_stages = 2 * stage
    filter_loads, column_loads = filters_stage // threads, columns_stage // threads

    @cuda.jit
    def im2col_product(filters, columns, y, bias, residual, groups, filter_tiles, pixel_tiles, rows, first, pixels):
        if SIMULATED:  # whose shared.array knows no alignment; 16-byte loads need it
            staged = cuda.shared.array(both_stages, real)
        else:
            staged = cuda.shared.array(both_stages, real, alignment=16)
        sums = cuda.local.array((micro, micro), real)
        my_filters = cuda.local.array(micro, real)
        my_pixels = cuda.local.array(micro, real)
        next_filters = cuda.local.array(filter_loads, real)
        next_columns = cuda.local.array(column_loads, real)

        thread = cuda.threadIdx.x & (threads - 1)  # the mask tells the compiler its range
        lane, warp = thread & 31, thread >> 5
        my_m = (warp % warps_m * 8 + (lane & 7)) * run
        my_k = (warp // warps_m * 4 + (lane >> 3)) * run

        filter_tile = cuda.blockIdx.x % filter_tiles
        pixel_tile = cuda.blockIdx.x // filter_tiles % pixel_tiles
        g = cuda.blockIdx.x // filter_tiles // pixel_tiles
        next_filter = (g * filter_tiles + filter_tile) * rows * tile_k + thread
        next_column = (g * pixel_tiles + pixel_tile) * rows * tile_m + thread
        for i in range(micro):
            for j in range(micro):
                sums[i, j] = real(0)

        for step in range(rows // DEPTH + 1):
            last = step == rows // DEPTH
            if not last:
                for i in range(filter_loads):
                    next_filters[i] = number(filters[at(next_filter + i * threads)])
                for i in range(column_loads):
                    next_columns[i] = number(columns[at(next_column + i * threads)])
                next_filter += filters_stage
                next_column += columns_stage

            if step > 0:
                filled = ((step - 1) & 1) * stage
                t = 0
                while t < DEPTH:
                    for _ in range(2):
                        a, b = filled + t * tile_k + my_k, filled + filters_stage + t * tile_m + my_m
                        for i in range(run):
                            my_filters[i] = staged[at(a + i)]
                            my_filters[run + i] = staged[at(a + half_k + i)]
                            my_pixels[i] = staged[at(b + i)]
                            my_pixels[run + i] = staged[at(b + half_m + i)]
                        for i in range(micro):
                            for j in range(micro):
                                sums[i, j] += my_filters[i] * my_pixels[j]
                        t += 1

            if not last:
                free = (step & 1) * stage
                for i in range(filter_loads):
                    staged[at(free + thread + i * threads)] = next_filters[i]
                for i in range(column_loads):
                    staged[at(free + filters_stage + thread + i * threads)] = next_columns[i]
                cuda.syncthreads()

        k0, m0 = filter_tile * tile_k + my_k, pixel_tile * tile_m + my_m
        P, Q = y.shape[2], y.shape[3]
        Kg = y.shape[1] // groups
        for j in range(micro):
            pixel = first + m0 + j // run * half_m + j % run
            if pixel < pixels:
                n, p, q = pixel // (P * Q), pixel // Q % P, pixel % Q
                for i in range(micro):
                    k = k0 + i // run * half_k + i % run
                    if k < Kg:
                        k += g * Kg
                        y[at(n), at(k), at(p), at(q)] = finished(sums[i, 0], bias, residual, n, k, p, q)
            for i in range(micro):  # the next column of sums moves to the front: registers cannot be indexed by j
                for following in range(1, micro):
                    sums[i, following - 1] = sums[i, following]

    return im2col_product


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a problem is cut up. rows: C/groups R S, rounded up to whole steps; slice_tiles: pixel tiles at a time."""

    tile_k: int
    tile_m: int
    rows: int
    filter_tiles: int
    pixel_tiles: int
    slice_tiles: int
    filter_bytes: int
    slice_bytes: int


@lru_cache(maxsize=4096)
def tiling(problem, sm_count):
    rows = ceil_div(problem.reduction, DEPTH) * DEPTH
    pixels = problem.N * problem.P * problem.Q
    tile_k, tile_m = tile_for(problem, pixels, sm_count)
    filter_tiles, pixel_tiles = ceil_div(problem.Kg, tile_k), ceil_div(pixels, tile_m)
    tile_bytes = problem.groups * rows * tile_m * problem.dtype.itemsize
    slices = ceil_div(pixel_tiles, max(1, WORKSPACE // tile_bytes))
    slice_tiles = ceil_div(pixel_tiles, slices)
    filter_bytes = problem.groups * filter_tiles * rows * tile_k * problem.dtype.itemsize
    return Tiling(
        tile_k, tile_m, rows, filter_tiles, pixel_tiles, slice_tiles,
        ceil_div(filter_bytes, ALIGNMENT) * ALIGNMENT, slice_tiles * tile_bytes,
    )  # fmt: skip


def tile_for(problem, pixels, sm_count):
    """The largest tile that gives every SM a block and sticks out by no more filters than the smallest would."""
    scale = run_length(problem.dtype.name) / 4
    tiles = [(int(k * scale), int(m * scale)) for k, m in TILES]
    least = min(ceil_div(problem.Kg, k) * k for k, m in tiles)
    for tile_k, tile_m in tiles:
        filter_tiles = ceil_div(problem.Kg, tile_k)
        if filter_tiles * tile_k == least and problem.groups * filter_tiles * ceil_div(pixels, tile_m) >= sm_count:
            return tile_k, tile_m
    return tiles[-1]


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return []


def workspace_bytes(problem, device):
    """The filters and one slice of columns."""
    cut = tiling(problem, device.sm_count)
    return cut.filter_bytes + cut.slice_bytes


def predicted_seconds(problem, device):
    """Waves of tiles at the counted share of multiply-adds; the columns written once and read once."""
    cut = tiling(problem, device.sm_count)
    slices = ceil_div(cut.pixel_tiles, cut.slice_tiles)
    blocks = problem.groups * cut.filter_tiles * cut.slice_tiles
    macs = cut.tile_k * cut.tile_m * cut.rows
    per_sm = BLOCKS_PER_SM[cut.tile_k * cut.tile_m // run_length(problem.dtype.name) ** 2]
    multiply = cost.multiply_seconds(problem, device, blocks, macs, per_sm, MULTIPLY_SHARE)
    columns = cut.pixel_tiles * cut.tile_m * problem.groups * cut.rows * problem.dtype.itemsize
    moved = cost.memory_seconds(problem, device, 2 * (columns + cut.filter_bytes))
    return WAITING * slices * multiply + moved + (1 + 2 * slices) * cost.LAUNCH


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write activation(conv(x, w) + bias + residual) into y, on `stream`. All in logical order, any strides."""
    cut = tiling(problem, device.sm_count)
    R, S, groups = problem.R, problem.S, problem.groups
    filters = workspace[: cut.filter_bytes].view(x.dtype)
    columns = workspace[cut.filter_bytes : cut.filter_bytes + cut.slice_bytes].view(x.dtype)
    bias, residual = operands(y, bias, residual)
    pixels, (top, _), (left, _) = problem.N * problem.P * problem.Q, *problem.padding

    elements = groups * cut.filter_tiles * cut.tile_k * (cut.rows // DEPTH)
    kernel = compiled_filters(R, S, cut.tile_k)
    args = (w, filters, groups, cut.filter_tiles, cut.rows)
    launch(kernel, ceil_div(elements, THREADS), THREADS, args, stream=stream)

    micro = 2 * run_length(problem.dtype.name)
    threads = cut.tile_k * cut.tile_m // micro**2
    fill, multiply = compiled_columns(R, S, cut.tile_m), compiled_product(cut.tile_k, cut.tile_m, epilogue_of(problem))
    for first_tile in range(0, cut.pixel_tiles, cut.slice_tiles):
        tiles, first = min(cut.slice_tiles, cut.pixel_tiles - first_tile), first_tile * cut.tile_m
        blocks = ceil_div(tiles * cut.tile_m, THREADS) * ceil_div(problem.C, CHANNELS)
        args = (x, columns, problem.Cg, cut.rows, tiles, first, pixels, problem.P, problem.Q)
        args += (*problem.stride, top, left, *problem.dilation)
        launch(fill, blocks, THREADS, args, stream=stream)

        blocks = groups * cut.filter_tiles * tiles
        args = (filters, columns, y, bias, residual, groups, cut.filter_tiles, tiles, cut.rows, first, pixels)
        launch(multiply, blocks, threads, args, stream=stream)
