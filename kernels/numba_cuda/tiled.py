"""Tiled direct convolution: a block's input with its halo lies in shared memory, a thread's outputs in registers.

    one block = 64 filters x 16 x 16 outputs         shared: 4 channels of the input tile, R = S = 3
    of one image, 256 threads                         . halo, # body
    +---------------- 16 q ----------------+          . . . . . . .
    | 16 lanes: one q each                 |          . # # # # # .     18 x 18 numbers a channel,
    | x 8 threads: 8 filters each          |  16 p    . # # # # # .     and the 64 filters' 3 x 3
    | x 2 threads: 8 neighbouring p each   |          . . . . . . .     windows of those channels
    +--------------------------------------+

A thread keeps 8 rows x 8 filters of sums. For one filter tap it takes 8 inputs and 8 weights from shared memory and
makes 64 multiply-adds of them; neighbouring rows of taps share inputs, which the compiler keeps in registers.
Why it pays: directly, the 192 products of a column of 3 taps would be 384 loads through the L1 cache; here they are 16
from shared memory: 10 inputs and 3 x 8 weights, these as 16-byte loads. An input comes from global memory once for 64
filters and not 9 x 64 times: 324 loads a channel instead of 147,456. In the machine code (sm_80, 3 x 3) 192 of the 220
instructions of the main loop are FFMA, 87 %; with the staging of 4 channels 2,304 of 3,100, 74 %.
Bank conflicts: none in the main loop. The 16 lanes of a row read neighbouring words, the threads of other filters next
to them the same words, a broadcast. With a stride, the columns of the tile are stored by phase, all those with
w % stride = 0 first, then = 1, so that neighbouring q are neighbours again. Weights are stored in rows of an odd number
of 16-byte runs: a warp stages 8 taps x 4 filters at a time, and those fall into 32 banks.
Limits: a tile with its halo and one channel's weights must fit a block's shared memory, which only far dilated or very
large windows exceed.
Source: the shared-memory tiling with halo of Kirk and Hwu, Programming Massively Parallel Processors, chapter 7;
register blocking of the outputs: Lavin, maxDNN: an efficient convolution kernel for deep learning, 2015.
"""

from dataclasses import dataclass, replace
from functools import cache, lru_cache

from numba import cuda

from ...device import simulating
from .. import gpu_cost as cost
from ..launching import MAX_GRID, ceil_div, launch
from .epilogue import epilogue_of, finish, operands
from .storage import at, register_type, run_length, small, widen

REGISTERS, SHARED_PER_SM = 65_536, 64 << 10  # of an SM; Turing has the least shared memory
SHARED_BYTES = 24 << 10  # of 48 KB at least: two blocks share an SM even where it has no more than 64 KB
THREAD_REGISTERS = 168  # of a thread with 64 sums, on every target
MOST_CHANNELS = 8  # staged at a time; past 8 the barriers are rare enough
LOAD_COST = 21  # instructions to stage one number, counted in the machine code: bounds, address, load, store
DECODE_COST = 40  # and to work out where one pixel of the tile lies, once for all staged channels

WAITING = cost.waiting("numba_cuda.tiled")

SIMULATED = simulating()

passes = ("forward",)


@dataclass(frozen=True, slots=True)
class Block:
    """A block's threads (lanes along q, threads along p and k) and each thread's outputs (rows p, filters k)."""

    lanes_q: int
    threads_p: int
    threads_k: int
    rows: int
    filters: int

    @property
    def threads(self):
        return self.lanes_q * self.threads_p * self.threads_k

    @property
    def P(self):
        return self.threads_p * self.rows

    @property
    def Q(self):
        return self.lanes_q

    @property
    def K(self):
        return self.threads_k * self.filters


# Wide and square images, 28 or 14 or 7 columns, few filters, one filter (depthwise). Lanes along q times threads along
# k are a warp or more wherever there are filters enough: then a warp's inputs come from one row.
BLOCKS = (
    Block(16, 2, 8, 8, 8),
    Block(16, 1, 8, 8, 8),
    Block(16, 1, 8, 7, 8),
    Block(16, 1, 4, 7, 8),
    Block(8, 1, 16, 7, 8),
    Block(8, 1, 8, 7, 8),
    Block(32, 2, 4, 8, 8),
    Block(32, 2, 2, 8, 8),
    Block(32, 4, 1, 4, 8),
    Block(32, 4, 1, 8, 4),
    Block(32, 4, 1, 8, 2),
    Block(32, 4, 1, 8, 1),
    Block(32, 1, 1, 7, 1),
    Block(16, 2, 1, 7, 1),
    Block(8, 4, 1, 2, 1),
)


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block stages of `channels` input channels, and where: weights first, then inputs."""

    channels: int
    rows: int  # of the input, halo included
    columns: int
    phase_width: int  # columns of one phase: the tile's columns are stored by w % stride
    row_pitch: int
    weight_pitch: int
    weights: int  # numbers
    pixels: int


def tile_of(block, channels, window, stride, dilation, run):
    (R, S), (stride_h, stride_w), (dilation_h, dilation_w) = window, stride, dilation
    rows = (block.P - 1) * stride_h + (R - 1) * dilation_h + 1
    columns = (block.Q - 1) * stride_w + (S - 1) * dilation_w + 1
    phase_width = ceil_div(columns, stride_w)
    row_pitch = phase_width * stride_w
    weight_pitch = run * (ceil_div(block.K, run) | 1)
    weights = channels * R * S * weight_pitch
    return Tile(channels, rows, columns, phase_width, row_pitch, weight_pitch, weights, channels * rows * row_pitch)


@cache
def compiled(window, stride, dilation, block, channels, epilogue):
    """The kernel for one window, stride and dilation, cut into `block`s, staging `channels` at a time."""
    dtype_name = epilogue[0]
    number, real, finished = widen(dtype_name), register_type(dtype_name), finish(*epilogue)
    tile = tile_of(block, channels, window, stride, dilation, run_length(dtype_name))
    (R, S), (stride_h, stride_w), (dilation_h, dilation_w) = window, stride, dilation
    threads, lanes_q, threads_k = block.threads, block.lanes_q, block.threads_k
    block_p, block_q, block_k, rows, filters = block.P, block.Q, block.K, block.rows, block.filters
    tile_rows, tile_columns, row_pitch, phase_width = tile.rows, tile.columns, tile.row_pitch, tile.phase_width
    weight_pitch, first_pixel, numbers = tile.weight_pitch, tile.weights, tile.weights + tile.pixels
    taps = channels * R * S
    tap_runs = ceil_div(taps, 8)
    filter_parts = ceil_div(block_k, threads // 8)
    pixel_runs = ceil_div(tile_rows * tile_columns, threads)

    @cuda.jit
    def conv2d_tiled(x, w, y, bias, residual, top, left, groups, filter_tiles, tiles_p, tiles_q):
        if SIMULATED:  # whose shared.array knows no alignment; 16-byte loads need it
            staged = cuda.shared.array(numbers, real)
        else:
            staged = cuda.shared.array(numbers, real, alignment=16)
        sums = cuda.local.array((rows, filters), real)
        my_pixels = cuda.local.array(rows, real)
        my_weights = cuda.local.array(filters, real)

        thread = cuda.threadIdx.x & (threads - 1)  # the mask tells the compiler its range
        lane_q, thread_k, thread_p = thread % lanes_q, thread // lanes_q % threads_k, thread // (lanes_q * threads_k)

        H, W = x.shape[2], x.shape[3]
        Cg, Kg = w.shape[1], w.shape[0] // groups
        index, k0 = cuda.blockIdx.x // filter_tiles, cuda.blockIdx.x % filter_tiles * block_k
        index, q0 = index // tiles_q, index % tiles_q * block_q
        index, p0 = index // tiles_p, index % tiles_p * block_p
        n, g = index // groups, index % groups
        h0, w0 = p0 * stride_h - top, q0 * stride_w - left

        for i in range(rows):
            for j in range(filters):
                sums[i, j] = real(0)

        for first_c in range(0, Cg, channels):
            for run in range(tap_runs):
                tap = small(thread % 8 + run * 8)
                c, window = first_c + tap // small(R * S), tap % small(R * S)
                r, s = window // small(S), window % small(S)
                for part in range(filter_parts):
                    k = thread // 8 + part * (threads // 8)
                    if tap < taps and k < block_k:
                        inside = c < Cg and k0 + k < Kg
                        weight = number(w[at(g * Kg + k0 + k), at(c), at(r), at(s)]) if inside else real(0)
                        staged[at(tap * weight_pitch + k)] = weight
            for run in range(pixel_runs):
                item = small(thread + run * threads)
                row, column = item // small(tile_columns), item % small(tile_columns)
                if row < tile_rows:
                    h, v = h0 + row, w0 + column
                    inside = 0 <= h < H and 0 <= v < W
                    phase, shift = column % small(stride_w), column // small(stride_w)
                    target = first_pixel + row * row_pitch + phase * phase_width + shift
                    for c in range(channels):
                        pixel = real(0)
                        if inside and first_c + c < Cg:
                            pixel = number(x[at(n), at(g * Cg + first_c + c), at(h), at(v)])
                        staged[at(target + c * (tile_rows * row_pitch))] = pixel
            cuda.syncthreads()

            for c in range(channels):
                for s in range(S):
                    phase, shift = s * dilation_w % stride_w, s * dilation_w // stride_w
                    row = c * tile_rows + thread_p * (rows * stride_h)
                    pixels_at = first_pixel + row * row_pitch + phase * phase_width + shift + lane_q
                    weights_at = (c * (R * S) + s) * weight_pitch + thread_k * filters
                    r = 0
                    while r < R:
                        for j in range(filters):
                            my_weights[j] = staged[at(weights_at + j)]
                        for i in range(rows):
                            my_pixels[i] = staged[at(pixels_at + i * (stride_h * row_pitch))]
                        for i in range(rows):
                            for j in range(filters):
                                sums[i, j] += my_pixels[i] * my_weights[j]
                        weights_at += S * weight_pitch
                        pixels_at += dilation_h * row_pitch
                        r += 1
            cuda.syncthreads()

        q = q0 + lane_q
        P, Q = y.shape[2], y.shape[3]
        for i in range(rows):
            p = p0 + thread_p * rows + i
            if p < P and q < Q:
                for j in range(filters):
                    k = k0 + thread_k * filters + j
                    if k < Kg:
                        k += g * Kg
                        y[at(n), at(k), at(p), at(q)] = finished(sums[0, j], bias, residual, n, k, p, q)
            for following in range(1, rows):  # the next row of sums moves up: registers cannot be indexed by i
                for j in range(filters):
                    sums[following - 1, j] = sums[following, j]

    return conv2d_tiled


@dataclass(frozen=True, slots=True)
class Plan:
    """The block chosen for a problem, the channels it stages at a time, and what that is expected to cost."""

    block: Block
    channels: int
    grid: tuple[int, int, int]  # tiles of filters, of p and of q
    share: float
    waste: float


@lru_cache(maxsize=4096)
def plan_for(problem, shared_limit, sm_count):
    """The block that issues the fewest instructions for the whole problem; None when no tile fits shared memory."""
    plans = [plan for block in blocks_for(problem) if (plan := planned(problem, block, shared_limit)) is not None]
    return min(plans, key=lambda plan: issued(problem, plan, sm_count), default=None)


def blocks_for(problem):
    """BLOCKS, in float64 with half as many filters a thread, as its sums take two registers each."""
    if problem.dtype.name != "float64":
        return BLOCKS
    return tuple(dict.fromkeys(replace(block, filters=max(1, block.filters // 2)) for block in BLOCKS))


def planned(problem, block, shared_limit):
    channels = channels_staged(problem, block, shared_limit)
    if channels is None:
        return None
    grid = ceil_div(problem.Kg, block.K), ceil_div(problem.P, block.P), ceil_div(problem.Q, block.Q)
    fmas = problem.R * problem.S * block.rows * block.filters
    instructions = fmas + problem.S * tap_cost(problem, block) + staging_cost(problem, block, channels)
    padded = grid[0] * block.K * grid[1] * block.P * grid[2] * block.Q * ceil_div(problem.Cg, channels) * channels
    return Plan(block, channels, grid, fmas / instructions, padded / (problem.Kg * problem.P * problem.Q * problem.Cg))


def channels_staged(problem, block, shared_limit):
    """The most channels that keep within SHARED_BYTES, or one where only the device's own limit allows it."""
    channels = MOST_CHANNELS
    while channels > 1 and (channels >= 2 * problem.Cg or shared_bytes(problem, block, channels) > SHARED_BYTES):
        channels //= 2
    return channels if shared_bytes(problem, block, channels) <= shared_limit else None


def shared_bytes(problem, block, channels):
    tile = tile_for(problem, block, channels)
    return (tile.weights + tile.pixels) * problem.accumulate.itemsize


def tile_for(problem, block, channels):
    window, run = (problem.R, problem.S), run_length(problem.dtype.name)
    return tile_of(block, channels, window, problem.stride, problem.dilation, run)


def tap_cost(problem, block):
    """Instructions besides multiply-adds for one column of taps of one channel."""
    return problem.R * (ceil_div(block.filters, run_length(problem.dtype.name)) + 1) + block.rows + problem.R + 10


def staging_cost(problem, block, channels):
    """Instructions a thread issues to stage its share of one channel."""
    tile = tile_for(problem, block, channels)
    weights = ceil_div(channels * problem.R * problem.S, 8) * ceil_div(block.K, block.threads // 8) / channels
    pixels = ceil_div(tile.rows * tile.columns, block.threads)
    return LOAD_COST * (weights + pixels) + DECODE_COST * pixels / channels


def issued(problem, plan, sm_count):
    """The problem's instructions, as many times as there are SMs to a block where there are too few blocks."""
    blocks = block_count(problem, plan)
    return plan.waste / plan.share * max(1.0, sm_count / blocks)


def block_count(problem, plan):
    filter_tiles, tiles_p, tiles_q = plan.grid
    return problem.N * problem.groups * filter_tiles * tiles_p * tiles_q


def plan_on(problem, device):
    return plan_for(problem, device.shared_bytes_per_block, device.sm_count)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    plan = plan_on(problem, device)
    if plan is None:
        least = min(shared_bytes(problem, block, 1) for block in blocks_for(problem))
        return [
            f"its smallest tile takes {least:,} bytes of shared memory for a {problem.R} x {problem.S} window with "
            f"stride {problem.stride} and dilation {problem.dilation}, a block has {device.shared_bytes_per_block:,}"
        ]
    if (blocks := block_count(problem, plan)) > MAX_GRID[0]:
        return [f"at most {MAX_GRID[0]:,} blocks, this problem has {blocks:,} tiles"]
    return []


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    """Waves of tiles at the counted share of multiply-adds; filter tiles after the first find the input in L2."""
    plan = plan_on(problem, device)
    blocks, tile = block_count(problem, plan), tile_for(problem, plan.block, plan.channels)
    steps = ceil_div(problem.Cg, plan.channels) * plan.channels
    macs = plan.block.K * plan.block.P * plan.block.Q * steps * problem.R * problem.S
    by_shared = SHARED_PER_SM // shared_bytes(problem, plan.block, plan.channels)
    by_registers = REGISTERS // (THREAD_REGISTERS * plan.block.threads)
    per_sm = max(1, min(by_registers, by_shared))
    multiply = cost.multiply_seconds(problem, device, blocks, macs, per_sm, plan.share)
    staged = blocks // plan.grid[0] * steps * tile.rows * tile.columns
    halo = max(0, staged - problem.N * problem.C * problem.H * problem.W)
    return max(WAITING * multiply, cost.memory_seconds(problem, device, halo * problem.dtype.itemsize)) + cost.LAUNCH


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write activation(conv(x, w) + bias + residual) into y, on `stream`. All in logical order, any strides."""
    plan = plan_on(problem, device)
    window, (top, _), (left, _) = (problem.R, problem.S), *problem.padding
    kernel = compiled(window, problem.stride, problem.dilation, plan.block, plan.channels, epilogue_of(problem))
    bias, residual = operands(y, bias, residual)
    args = (x, w, y, bias, residual, top, left, problem.groups, *plan.grid)
    launch(kernel, block_count(problem, plan), plan.block.threads, args, stream=stream)
