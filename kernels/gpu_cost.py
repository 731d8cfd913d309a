"""Predicted times, from counts and limits of a streaming multiprocessor, fitted to what GPUs measured.

Both GPU families are predicted with these, so that they can be compared. A kernel counts multiply-adds and the share
they have of its instructions, or the issue slots of a block: one for each instruction of each thread, more for a
multiply-add where an SM has fewer than 128 lanes for them. An SM issues 128 slots per cycle (four schedulers, a warp
each) once it has warps enough.
Per SM: NVIDIA's architecture papers for Turing to Blackwell (float32 lanes, float64 ratio). Memory bandwidth is that of
the cards' data sheets divided by their SMs. Issue slots alone are too kind: a warp also waits, for shared memory and at
barriers. A kernel's WAITING says how many times as long it takes as its slots.
What was measured lies in gpu_cost.json and goes before all this: the waiting of each kernel, and per compute capability
the clock and the bandwidth. `python -m convlib calibrate` fits them to the committed results and names these there.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

FITTED = json.loads((Path(__file__).parent / "gpu_cost.json").read_text())


def of_capability(name):
    """A fitted constant by compute capability."""
    return {tuple(map(int, key.split("."))): value for key, value in FITTED[name].items()}


CLOCK = 1.5e9  # cycles per second, between the base and boost clocks of data-centre cards
CLOCKS = of_capability("clock")
LAUNCH = 3e-6  # seconds from one launch to the next
DATA_SHEETS = {(7, 5): 8e9, (8, 0): 14e9, (8, 6): 11e9, (8, 9): 8e9, (9, 0): 25e9, (10, 0): 54e9, (12, 0): 10e9}
MEMORY_PER_SM = DATA_SHEETS | of_capability("memory_per_sm")
ASSUMED_WAITING = 2.0  # of a kernel that nobody measured, nor one like it
SLOTS_PER_CYCLE = 128  # per SM
WARPS_TO_SATURATE = 8  # two for each scheduler, where every thread has tens of independent sums

# The L2 cache: data sheets of the cards in convlib/device.py. And of it, for one SM: 5,120 bytes for the A100's 108,
# NVIDIA's white paper.
L2_BYTES = {
    capability: megabytes << 20
    for capability, megabytes in {
        (7, 5): 4, (8, 0): 40, (8, 6): 6, (8, 9): 72, (9, 0): 50, (10, 0): 126, (12, 0): 96
    }.items()
}  # fmt: skip
L2_BYTES_PER_CYCLE = 47
L2_CYCLES = 265  # until a load from there is answered: Luo et al., 2025 (262 on an A100, 263 on an H100, 273 on Ada)
# What an SM of 7.5 brings of what others left: simulated, 256 sectors under way, each for 444 cycles
# (results/simulated-sm75-2026-11-28). With 47 a part of 512x28x28-1024-1x1/2 was split and took 1.8 times as long.
PASSING_BYTES_PER_CYCLE = {(7, 5): 16}

FLOAT32_LANES = {(7, 5): 64, (8, 0): 64}  # and 128 from 8.6 on
FLOAT64_RATIO = {(8, 0): 2, (9, 0): 2, (10, 0): 2, (7, 5): 32}  # and 64 on cards for graphics

# Multiply-adds of float16 or bfloat16, summed in float32, that the tensor cores of one SM do in a cycle by mma.sync:
# NVIDIA's architecture papers, GeForce cards from 8.6 on; for 9.0, 65.3 % of that, which mma.sync reaches (Luo et al.,
# Dissecting the NVIDIA Hopper architecture, 2025, table 7), and for 10.0 as much, for want of a published figure.
TENSOR_MULTIPLY_ADDS = {(7, 5): 512, (8, 0): 1024, (8, 6): 256, (8, 9): 256, (9, 0): 1337, (10, 0): 1337, (12, 0): 256}


def waiting(kernel, like=None):
    """How many times as long `kernel` takes as its issue slots; until it is measured, as `like`, with the same loop."""
    measured = FITTED["waiting"]
    return measured.get(kernel, measured.get(like, ASSUMED_WAITING))


def sm_count(device):
    return max(device.sm_count, 1)


def clock(device):
    return CLOCKS.get(device.compute_capability, CLOCK)


def multiply_adds_per_second(problem, device):
    """The most one SM does per second, in the type that sums are kept in."""
    lanes = FLOAT32_LANES.get(device.compute_capability, 128)
    if problem.accumulate.itemsize == 8:
        lanes /= FLOAT64_RATIO.get(device.compute_capability, 64)
    return lanes * clock(device)


def multiply_seconds(problem, device, blocks, macs_per_block, blocks_per_sm, share):
    """Seconds for `blocks` equal blocks in whole waves; share: the fraction of issued instructions that multiply."""
    rate = multiply_adds_per_second(problem, device) * share
    waves, rest = divmod(blocks, sm_count(device) * blocks_per_sm)
    busy = waves * blocks_per_sm + -(-rest // sm_count(device))
    return busy * macs_per_block / rate


def multiply_slots(problem, device):
    """Issue slots that one multiply-add takes, in the type that sums are kept in."""
    return SLOTS_PER_CYCLE * clock(device) / multiply_adds_per_second(problem, device)


def tensor_multiply_adds(problem, device):
    """Multiply-adds that the tensor cores of one SM do in a cycle; in TF32 half as many, in three products a sixth."""
    rate = TENSOR_MULTIPLY_ADDS.get(device.compute_capability, 256) * 2 / problem.dtype.itemsize
    return rate / 3 if problem.precision == "3xtf32" else rate


class Block(NamedTuple):
    """slots: that a block issues in all; enough: as many such blocks keep an SM issuing all the time."""

    slots: float
    enough: float


def block_seconds(device, blocks, threads, slots):
    """Seconds until the busiest SM has issued its blocks, each of `threads` threads and `slots` issue slots in all."""
    return seconds_of(device, blocks, Block(slots, WARPS_TO_SATURATE * 32 / threads))


def seconds_of(device, blocks, block):
    """The same of a Block: an SM that has fewer than enough takes as long as if it had them."""
    busiest = -(-blocks // sm_count(device))
    if busiest == 0:
        return 0
    return max(busiest, block.enough) * block.slots / (SLOTS_PER_CYCLE * clock(device))


def wave_seconds(device, counts, resident, blocks):
    """The same for so many whole tiles and so many parts behind them, a Block of each; an SM holds `resident`.

    The last wave has fewer warps to issue from. Whole tiles that fill none share their SMs with the parts, which begin
    as soon as there is room.
    """
    (whole, parts), (of_whole, of_part) = counts, blocks
    waves, rest = divmod(whole, sm_count(device) * resident)
    full = waves * seconds_of(device, resident * sm_count(device), of_whole)
    if rest == 0:
        waves, rest = divmod(parts, sm_count(device) * resident)
        full += waves * seconds_of(device, resident * sm_count(device), of_part)
        return full + seconds_of(device, rest, of_part)
    whole, parts = -(-rest // sm_count(device)), -(-parts // sm_count(device))
    saturation = min(min(whole + parts, resident) / of_whole.enough, 1)
    together = (whole * of_whole.slots + parts * of_part.slots) / (SLOTS_PER_CYCLE * clock(device) * saturation)
    return full + max(together, seconds_of(device, 1, of_whole))


def bytes_per_second(device):
    """Of memory, for one SM."""
    return MEMORY_PER_SM.get(device.compute_capability, 10e9)


def moving_seconds(device, size):
    """Seconds to move `size` bytes to or from memory, all SMs together."""
    return size / (bytes_per_second(device) * sm_count(device))


def passing_seconds(device, size):
    """Seconds to write `size` bytes and to read them in the launch behind: in L2 if half of it holds them.

    Half, since everything else passes there too.
    """
    if 2 * size > L2_BYTES.get(device.compute_capability, 0):
        return moving_seconds(device, 2 * size)
    return 2 * size / (passing_bytes_per_second(device) * sm_count(device))


def passing_bytes_per_second(device):
    """Of one SM."""
    return PASSING_BYTES_PER_CYCLE.get(device.compute_capability, L2_BYTES_PER_CYCLE) * clock(device)


def adding_seconds(device, tiles, splits, tile_bytes):
    """Seconds in which the splits of each tile write their sums and the last of them adds all, in the same launch.

    Of two it reads the other's only. What the very last one reads it reads alone, after four answers of L2, one behind
    the other: of its writes, its fence, its count and the first that it reads.
    """
    if splits == 1:
        return 0
    read = splits - (splits == 2)
    alone = 4 * L2_CYCLES / clock(device) + read * tile_bytes / passing_bytes_per_second(device)
    return passing_seconds(device, tiles * (splits + read) * tile_bytes / 2) + alone


def memory_seconds(problem, device, extra_bytes=0):
    """Seconds to read x and w and write y once, and to move `extra_bytes` more."""
    x = problem.N * problem.C * problem.H * problem.W
    w = math.prod(problem.w_shape)
    y = problem.N * problem.K * problem.P * problem.Q * (2 if problem.has_residual else 1)
    return moving_seconds(device, (x + w + y) * problem.dtype.itemsize + extra_bytes)
