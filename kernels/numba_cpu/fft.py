"""Convolution by Fourier transforms of tiles: what a window costs grows with the logarithm of its size.

    tile of T x T numbers of x        column transforms, in place     strips of rows, in the first-level cache:
    +-------------------+             +--+--+--+--+                   turn, transform, times the kernel's spectrum,
    | outputs     |     |             |  |  |  |  |   -------------->  transform back, turn
    |             |     |   ------>   |  |  |  |  |                                  |
    +-------------+     |             |  |  |  |  |   <------------------------------+
    |  R - 1 rows more  |             +--+--+--+--+   column transforms back; the first T - R + 1 rows and columns of
    +-------------------+                             the tile are outputs (overlap-save), the others are discarded

Two tiles at once: their convolutions with one real kernel are the real and the imaginary part of one complex
convolution, so no transform of real numbers is needed, and none is ever taken apart. The two may lie in one image or
in two.

One task: a pair of tiles of one filter. It reads T x T numbers twice and writes (T - R + 1)^2 outputs twice, for
about 20 T^2 log2(T) operations: with T = 256 some 170 operations for an output of a 63 x 63 window that takes 7,938
directly. Channels are summed as spectra, and only the sum is transformed back. A window larger than half the largest
tile is cut into blocks of taps that are summed likewise, as if they were channels; so windows may be as large as the
image. Each filter of a group transforms x for itself: for layers of many filters this is no algorithm.

With channels last, the channels of a tile are neighbouring tasks, since they share its cache lines: three channels of
1920 x 1080 take 5.0 ms on two Zen 5 cores, 7.9 with one channel after the other, and three planes 2.9.

The weights are packed as spectra, T x T complex numbers for every filter, channel and block.

Rounding: relative to the largest output of a tile, not to each output (accuracy.py). A NaN or an infinity in x
reaches all outputs of its tile and of the tile that shares its transforms.
Source: Stockham, High-speed convolution and correlation, 1966; two real signals in one transform: Cooley, Lewis and
Welch, The fast Fourier transform algorithm, 1970. The passes are fft_passes.py's.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2, prod

import numpy as np
from numba import from_dtype

from . import target
from .call import CALL_DTYPE, address, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import activate, store_one_function
from .fft_passes import strip_functions, tables, transform_functions
from .panel import panel_filling
from .short_floats import lanes_for, memory_functions, real_of, strided_functions, vector_of
from .threads import lines, run_tasks, task_loop, worker_span
from .vectors import Vector, broadcast, load, record_at

passes = ("forward",)

GEOMETRY = (
    "tile_h", "tile_w", "outputs_h", "outputs_w", "tiles_h", "tiles_w",  # numbers in a tile, outputs of it, tiles
    "block_r", "block_s", "blocks_r", "blocks_s",  # taps of a block of the window, and how many blocks
    "row_bytes", "plane_bytes", "strip_at", "sums_at", "worker_bytes", "spectrum_bytes", "spectra_bytes",
)  # fmt: skip
TABLES = ("passes_h", "count_h", "factors_h", "passes_w", "count_w", "factors_w")  # fft_passes.tables, by address
FFT_CALL = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in GEOMETRY + TABLES]))

TILES = (32, 64, 128, 256, 512, 1024)  # a tile has so many rows, and so many columns
THREADS = 4  # for which tiles are chosen

# Fitted to a Zen 5 with AVX-512, windows of 7 x 7 to 127 x 127, tiles of every size; then times 1.6, since these are
# held against depthwise.py's, which are a Zen 3's. The transforms of a pair take CYCLES times size times log2(size), in
# vectors of 16: in the second-level cache, a little past it, and far past it.
CYCLES, CYCLES_PER_ROW, CYCLES_PER_OUTPUT, CYCLES_PER_TASK = (0.22, 0.28, 0.38), 15, 1.3, 1700
# So many times all of it takes beside others' kernels where one multiply-add starts per cycle (two Zen 4 cores, 5 x 5
# to 13 x 13, maps of 56 x 56 to 1,920 x 1,080: 1.1 to 1.8).
SLOWER = 1.35
CYCLES_PER_NUMBER_APART = 1.5  # one of several channels side by side is read, and written, number by number
CYCLES_PER_PACKED_NUMBER, CALL_SECONDS, CYCLES_PER_SECOND, SECONDS_PER_BYTE = 4, 8e-6, 3e9, 4e-11
# x larger than that comes from memory again for every filter, and spectra in every call (128 -> 128 channels of 46 x 46
# under 7 x 7, 537 MB of them, two Zen 4 cores: 24 ms, `blocked` 15.7)
CACHED_BYTES, SECONDS_PER_BYTE_AGAIN = 12 << 20, 1e-10


def build_pack(dtype_name):
    real, L = real_of(dtype_name), lanes_for(dtype_name)
    lanes = vector_of(dtype_name)
    item, V_bytes = lanes.item_bytes, lanes.bytes
    forward, _, _ = transform_functions(real.name)
    load_strip, _ = strip_functions(lanes)
    _, _, number_at, put_number = panel_filling(dtype_name)
    _, _, read_vector, write_vector = memory_functions(real.name)
    V = Vector(real, L)

    @inlined
    def fill_taps(call, planes, w, r0, s0):
        """One block's taps in the corner of a tile of zeros."""
        zero = broadcast(V, real(0))
        for i in range(0, 2 * call.plane_bytes, V_bytes):
            write_vector(planes + i, zero)
        for r in range(r0, min(r0 + call.block_r, call.R)):
            for s in range(s0, min(s0 + call.block_s, call.S)):
                to = planes + (r - r0) * call.dilation_h * call.row_bytes + (s - s0) * call.dilation_w * item
                put_number(to, number_at(w + r * call.w_r + s * call.w_s))

    def pack(call_address, index, worker):
        call = record_at(FFT_CALL, call_address)
        planes = call.x + call.spectra_bytes + worker * call.worker_bytes
        spectrum = call.x + index * call.spectrum_bytes
        block_s, rest = index % call.blocks_s, index // call.blocks_s
        block_r, rest = rest % call.blocks_r, rest // call.blocks_r
        c, k = rest % call.Cg, rest // call.Cg
        fill_taps(call, planes, call.w + k * call.w_k + c * call.w_c, block_r * call.block_r, block_s * call.block_s)
        for v in range(((call.block_s - 1) * call.dilation_w + L) // L):  # the columns behind are zero and stay so
            column = planes + v * V_bytes
            forward(column, call.plane_bytes, call.row_bytes, call.passes_h, call.count_h, call.factors_h)
        scale = broadcast(V, real(1) / real(call.tile_h * call.tile_w))
        zero = broadcast(V, real(0))
        for row in range(0, call.tile_h, L):
            strip = spectrum + row * call.tile_w * 2 * item
            load_strip(strip, planes + row * call.row_bytes, call.row_bytes, call.plane_bytes, call.tile_w // L)
            forward(strip, V_bytes, 2 * V_bytes, call.passes_w, call.count_w, call.factors_w)
            for i in range(strip, strip + 2 * V_bytes * call.tile_w, 2 * V_bytes):  # conjugated: a correlation
                write_vector(i, read_vector(i) * scale)
                write_vector(i + V_bytes, zero - read_vector(i + V_bytes) * scale)

    return task_loop(pack)


def build(dtype_name):
    real, L = real_of(dtype_name), lanes_for(dtype_name)
    lanes = vector_of(dtype_name)
    item, V_bytes = lanes.item_bytes, lanes.bytes
    V = Vector(real, L)
    stored = 2 if dtype_name.endswith("16") else item
    forward, backward, convolve = transform_functions(real.name)
    load_strip, store_strip = strip_functions(lanes)
    fill_columns, _, _, _ = panel_filling(dtype_name)
    read, _, read_vector, write_vector = memory_functions(dtype_name)
    read_apart, write_apart = strided_functions(dtype_name)
    read_number, _, _, _ = memory_functions(real.name)
    store_one = store_one_function(dtype_name)

    @inlined
    def store_row(call, row, n, k, p, q0, count, bias):
        """Outputs q0 .. q0+count-1 of one row, from the numbers at `row`."""
        y = call.y + n * call.y_n + k * call.y_k + p * call.y_p + q0 * call.y_q
        more = call.residual + n * call.residual_n + k * call.residual_k + p * call.residual_p + q0 * call.residual_q
        if count >= L:
            for i in range(0, count, L):
                at = min(i, count - L)  # the last vector may write some outputs a second time
                total = load(V, row, at) + broadcast(V, bias)
                if call.has_residual:
                    here = more + at * call.residual_q
                    adjacent = call.residual_q == stored
                    total = total + (read_vector(here) if adjacent else read_apart(here, call.residual_q))
                total = activate(total, call.activation, call.low, call.high, call.slope)
                if call.y_q == stored:
                    write_vector(y + at * stored, total)
                else:
                    write_apart(y + at * call.y_q, call.y_q, total)
        else:
            for i in range(count):
                store_one(call, n, k, p * call.Q + q0 + i, read_number(row + i * item) + bias)

    @inlined
    def store_tile(call, plane, tile, k, bias):
        images = call.tiles_h * call.tiles_w
        n, tile = tile // images, tile % images
        p0, q0 = tile // call.tiles_w * call.outputs_h, tile % call.tiles_w * call.outputs_w
        for i in range(min(call.outputs_h, call.P - p0)):
            store_row(call, plane + i * call.row_bytes, n, k, p0 + i, q0, min(call.outputs_w, call.Q - q0), bias)

    @inlined
    def fill_plane(call, plane, tile, channel, r0, s0):
        """The numbers of one tile that a block of taps meets; zeros for a tile past the last one."""
        images = call.tiles_h * call.tiles_w
        n, tile = tile // images, tile % images
        rows = call.H if n < call.N else 0
        x = call.x + n * call.x_n + channel * call.x_c
        h = tile // call.tiles_w * call.outputs_h - call.top + r0 * call.dilation_h
        w = tile % call.tiles_w * call.outputs_w - call.left + s0 * call.dilation_w
        fill_columns(
            plane, call.row_bytes, 0, x, call.x_h, call.x_w, rows, call.W, h, call.tile_h, w, call.tile_w, 1
        )  # fmt: skip

    def convolve_pair(call_address, index, worker):
        call = record_at(FFT_CALL, call_address)
        planes = call.workspace + worker * call.worker_bytes
        strip, sums = planes + call.strip_at, planes + call.sums_at
        tiles = call.N * call.tiles_h * call.tiles_w
        pairs = (tiles + 1) // 2
        # A tile's channels one after another where they share its cache lines; else all tiles of one spectrum.
        if call.y_k < call.y_q:
            k, first = index % call.K, index // call.K * 2
        else:
            k, first = index // pairs, index % pairs * 2
        blocks = call.blocks_r * call.blocks_s
        terms = call.Cg * blocks
        strip_bytes = 2 * V_bytes * call.tile_w

        for term in range(terms):
            c, block = term // blocks, term % blocks
            channel = k // call.Kg * call.Cg + c
            r0, s0 = block // call.blocks_s * call.block_r, block % call.blocks_s * call.block_s
            fill_plane(call, planes, first, channel, r0, s0)
            fill_plane(call, planes + call.plane_bytes, first + 1, channel, r0, s0)
            for v in range(call.tile_w // L):
                column = planes + v * V_bytes
                forward(column, call.plane_bytes, call.row_bytes, call.passes_h, call.count_h, call.factors_h)
            spectrum = call.w + (k * terms + term) * call.spectrum_bytes
            for s in range(call.tile_h // L):
                rows, at = planes + s * L * call.row_bytes, s * strip_bytes
                load_strip(strip, rows, call.row_bytes, call.plane_bytes, call.tile_w // L)
                convolve(
                    strip, spectrum + at, sums + at, call.passes_w, call.count_w, call.factors_w,
                    term == 0, term == terms - 1,
                )  # fmt: skip
                if term == terms - 1:
                    store_strip(strip, rows, call.row_bytes, call.plane_bytes, (call.outputs_w + L - 1) // L)

        for v in range((min(call.outputs_w, call.Q) + L - 1) // L):
            column = planes + v * V_bytes
            backward(column, call.plane_bytes, call.row_bytes, call.passes_h, call.count_h, call.factors_h)
        bias = read(call.bias + k * call.bias_k) if call.has_bias else real(0)
        store_tile(call, planes, first, k, bias)
        if first + 1 < tiles:
            store_tile(call, planes + call.plane_bytes, first + 1, k, bias)

    return task_loop(convolve_pair)


# How a problem is cut.


@dataclass(frozen=True)
class Tiling:
    """How a problem is cut: the numbers of GEOMETRY."""

    tile_h: int
    tile_w: int
    outputs_h: int
    outputs_w: int
    tiles_h: int
    tiles_w: int
    block_r: int
    block_s: int
    blocks_r: int
    blocks_s: int
    row_bytes: int
    plane_bytes: int
    strip_at: int
    sums_at: int
    worker_bytes: int
    spectrum_bytes: int
    spectra_bytes: int

    def packed(self) -> bytes:
        return struct.pack(f"{len(GEOMETRY)}q", *(getattr(self, name) for name in GEOMETRY))


@lru_cache(maxsize=1024)
def tiling(problem) -> Tiling:
    """The tiles that take the least time on THREADS threads, however many there are: the same tiles, the same bits."""
    tilings = [tiled(problem, h, w) for h in tile_sizes(problem, 0) for w in tile_sizes(problem, 1)]
    return min(tilings, key=lambda tiles: run_seconds(problem, tiles, THREADS))


def tile_sizes(problem, axis):
    """Sizes up to the first that holds everything."""
    whole = ((problem.P, problem.Q)[axis] - 1) + extent(problem, axis, (problem.R, problem.S)[axis])
    return [size for size in TILES if size == TILES[0] or size < 2 * whole]


def extent(problem, axis, taps):
    """How many rows (or columns) so many taps span."""
    return (taps - 1) * problem.dilation[axis] + 1


def tiled(problem, tile_h, tile_w) -> Tiling:
    L, item = lanes_for(problem.dtype.name), problem.accumulate.itemsize
    block_r, block_s = block(problem, 0, tile_h), block(problem, 1, tile_w)
    outputs_h = min(tile_h - extent(problem, 0, block_r) + 1, problem.P)
    outputs_w = min(tile_w - extent(problem, 1, block_s) + 1, problem.Q)
    blocks_r, blocks_s = ceil(problem.R / block_r), ceil(problem.S / block_s)
    terms = problem.Cg * blocks_r * blocks_s
    row_bytes = lines(tile_w * item) + 64  # rows a power of two apart would share the cache's sets
    plane_bytes = tile_h * row_bytes + 64
    spectrum_bytes = lines(2 * tile_h * tile_w * item)
    strip_at = 2 * plane_bytes
    sums_at = strip_at + lines(2 * L * tile_w * item)
    tiles_h, tiles_w = ceil(problem.P / outputs_h), ceil(problem.Q / outputs_w)
    worker_bytes = worker_span(sums_at + (spectrum_bytes if terms > 1 else 0))
    return Tiling(
        tile_h, tile_w, outputs_h, outputs_w, tiles_h, tiles_w, block_r, block_s, blocks_r, blocks_s, row_bytes,
        plane_bytes, strip_at, sums_at, worker_bytes, spectrum_bytes, problem.K * terms * spectrum_bytes,
    )  # fmt: skip


def block(problem, axis, tile):
    """How many taps a block has: all of them, unless most of every tile were to be discarded for that."""
    taps, outputs = (problem.R, problem.S)[axis], (problem.P, problem.Q)[axis]
    span = extent(problem, axis, taps)
    if taps == 1 or span <= max(tile // 2, tile - outputs + 1):
        return taps
    most = max((tile // 2 - 1) // problem.dilation[axis] + 1, 1)
    return ceil(taps / ceil(taps / most))


def run_seconds(problem, tiles, threads):
    pairs = ceil(problem.N * tiles.tiles_h * tiles.tiles_w / 2)
    terms = problem.Cg * tiles.blocks_r * tiles.blocks_s
    wide = problem.accumulate.itemsize / 4
    outputs_h, outputs_w = tiles.outputs_h, tiles.outputs_w
    there = transform_cycles(problem, tiles.tile_h, tiles.tile_w) * (0.5 + 0.5 / terms)
    apart = CYCLES_PER_NUMBER_APART if problem.layout == "NHWC" else 0
    filling = CYCLES_PER_ROW * 2 * tiles.tile_h + (problem.C > 1) * apart * 2 * tiles.tile_h * tiles.tile_w
    storing = CYCLES_PER_ROW * 2 * outputs_h
    storing += (CYCLES_PER_OUTPUT * wide + (problem.K > 1) * apart) * 2 * outputs_h * outputs_w
    cycles = terms * (there + filling) + storing + CYCLES_PER_TASK
    compute = ceil(pairs * problem.K / threads) * cycles / CYCLES_PER_SECOND
    compute *= SLOWER if target.multiply_adds_per_cycle() == 1 else 1.0
    numbers = problem.N * (problem.C * problem.H * problem.W + problem.K * problem.P * problem.Q)
    moved = numbers * problem.dtype.itemsize + tiles.spectra_bytes
    x_bytes = prod(problem.x_shape) * problem.dtype.itemsize
    again = sum(
        times * count for times, count in ((problem.Kg - 1, x_bytes), (1, tiles.spectra_bytes)) if count > CACHED_BYTES
    )
    return CALL_SECONDS + compute + (moved * SECONDS_PER_BYTE + again * SECONDS_PER_BYTE_AGAIN) / threads


def transform_cycles(problem, tile_h, tile_w):
    """Transforms of a pair of tiles there and back: in the second-level cache, a little past it, or far."""
    size = tile_h * tile_w
    bytes_held = 2 * size * problem.accumulate.itemsize
    rate = CYCLES[0 if bytes_held <= 1 << 19 else 1 if bytes_held <= 1 << 21 else 2]
    return rate * size * log2(size) * 16 / lanes_for(problem.dtype.name)


# The kernel.


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = []
    if device.kind != "cpu":
        reasons.append(f"runs on the CPU only, x is on {device}")
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 needed, got {problem.stride}")
    return reasons


def workspace_bytes(problem, device):
    return tiling(problem).worker_bytes * device.threads


def packed_bytes(problem, device):
    """The spectra, and behind them a tile for each thread that makes them."""
    tiles = tiling(problem)
    return tiles.spectra_bytes + tiles.worker_bytes * device.threads


def pack(problem, device, w, packed):
    """Write the spectra of the weights w (K, C/groups, R, S) into `packed`."""
    fields, _, _ = prepared(problem)
    tiles = tiling(problem)
    call = pack_call(fields, packed, w, packed, None, None, None)
    count = problem.K * problem.Cg * tiles.blocks_r * tiles.blocks_s
    run_tasks(compiled(build_pack, problem.dtype.name), call, count, device.threads)


def predicted_seconds(problem, device):
    return run_seconds(problem, tiling(problem), device.threads)


def pack_seconds(problem, device):
    tiles = tiling(problem)
    spectra = tiles.spectra_bytes // tiles.spectrum_bytes
    size = tiles.tile_h * tiles.tile_w
    cycles = transform_cycles(problem, tiles.tile_h, tiles.tile_w) / 2 + CYCLES_PER_PACKED_NUMBER * size
    compute = ceil(spectra / device.threads) * cycles / CYCLES_PER_SECOND
    return CALL_SECONDS + compute + tiles.spectra_bytes * SECONDS_PER_BYTE / device.threads


@lru_cache(maxsize=1024)
def prepared(problem):
    """What calls for this problem share: the record's fixed part, the number of tasks, and what must stay in memory."""
    tiles, real = tiling(problem), problem.accumulate.name
    rows, columns = tables(tiles.tile_h, real), tables(tiles.tile_w, real)
    addresses = [n for passes, factors in (rows, columns) for n in (address(passes), len(passes), address(factors))]
    pairs = ceil(problem.N * tiles.tiles_h * tiles.tiles_w / 2)
    fields = problem_fields(problem) + tiles.packed() + struct.pack(f"{len(TABLES)}q", *addresses)
    return fields, problem.K * pairs, (rows, columns)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical order."""
    fields, tasks, _ = prepared(problem)
    call = pack_call(fields, x, w, y, bias, residual, workspace)
    run_tasks(compiled(build, problem.dtype.name), call, tasks, device.threads)
