"""What the products on tensor cores have in common on the host: tiles, stages, what they cost, how arrays lie.

tensor_core.py and tensor_core_weight_grad.py bring their tiles and launch; tensor_core_tile.cuh is the kernels' side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import gpu_cost as cost
from .implicit_gemm import address_of
from .parameters import element_strides

VECTOR = 16  # bytes that a thread copies, loads or stores at once
CHUNKS = 4  # of them in a stage of one row or filter
STAGE_BYTES = CHUNKS * VECTOR
SHARED_BYTES = 49_152  # of a block, without asking the driver for more
SHARED_PER_SM = 160 * 1024  # of sm_80, for its blocks' stages
FEWEST_STAGES, MOST_STAGES = 3, 4  # that cp.async brings
WARPS_PER_SM = ((16, 8), (8, 12), (0, 16))  # above so many blocks of 16 x 8 sums of a warp
DTYPES = {"float16": (7, 5), "bfloat16": (8, 0), "float32": (8, 0)}  # since which compute capability they are taken

FOUND = (("from", "i4"), ("bits", "u4"))  # of a step of the reduction
MOST_BITS = 64  # of a window's taps
NO_ROW = 31  # of a window
MOST_FOUND = 3_584 // 8  # of 4 KB, which drivers take of arguments, 3.5 for a table of steps

THREAD_SLOTS = 900  # of each thread of a block beside its stages: addresses, the first stage's wait, the store
SHARED_BYTES_PER_CYCLE = 128  # of one SM: all banks
SCHEDULERS = 4  # of one SM, each with a tensor core
# What a warp that has a scheduler for itself waits in each stage: some 60 instructions beside its mma, and the barrier
# and the first ldmatrix, some 30 each. An assumption; nobody measured it. Who has a GPU measures it with
# `python -m convlib tune --layer resnet50:256x14x14-256-3x3 --dtype float16`: of 0, 128 and 256 cycles are predicted
# 11.8, 12.9 and 14.2 microseconds on an A100, 10.3, 10.9 and 11.7 on an H100.
WAITING_CYCLES = 128


class Tile(NamedTuple):
    """Rows (pixels, or columns of a weight gradient) and filters of a block, and of each of its warps.

    halves: 2 where twice as many warps share a stage's two steps.
    """

    rows: int
    filters: int
    warp_rows: int
    warp_filters: int
    halves: int = 1

    @property
    def pixels(self):
        return self.rows

    @property
    def warps(self):
        """Of each half."""
        return self.rows // self.warp_rows * (self.filters // self.warp_filters)

    @property
    def threads(self):
        return self.warps * self.halves * 32

    @property
    def stage_bytes(self):
        return (self.rows + self.filters) * STAGE_BYTES

    @property
    def matrix_bytes(self):
        """What its warps load of a stage: each its own rows and filters, of all steps or of one."""
        return self.warps * (self.warp_rows + self.warp_filters) * STAGE_BYTES

    @property
    def passed_bytes(self):
        """What one half leaves to the other in the end."""
        return (self.halves - 1) * self.rows * self.filters * 4


def chunk_of(problem):
    """Elements of VECTOR bytes."""
    return VECTOR // problem.dtype.itemsize


def depth_of(problem):
    """Steps of the reduction in a stage."""
    return STAGE_BYTES // problem.dtype.itemsize


def blocks_per_sm(tile, precision=None):
    """For how many the kernels ask the compiler to leave registers, if there is room for three stages of each."""
    need = tile.warp_rows * tile.warp_filters // (16 * 8) * (2 if precision == "3xtf32" else 1)
    warps = next(warps for least, warps in WARPS_PER_SM if need > least)
    return min(warps * 32 // tile.threads, SHARED_PER_SM // (FEWEST_STAGES * tile.stage_bytes))


def stages_held(tile, device):
    """How many stages lie in shared memory: two where registers bring them, else as many as fit beside other blocks."""
    if device.compute_capability < (8, 0):
        return 2
    return min(min(SHARED_BYTES, SHARED_PER_SM // blocks_per_sm(tile)) // tile.stage_bytes, MOST_STAGES)


def constants(problem, tile, stages):
    """Those that tensor_core_tile.cuh is compiled with, beside the types."""
    names = ("TILE_M", "TILE_K", "WARP_M", "WARP_K", "HALVES")
    return (*zip(names, tile, strict=True), ("STAGES", stages), ("PRECISE", int(problem.precision == "3xtf32")))


def table_steps(problem, steps, wide=False):
    """Taps inner: so many steps of the reduction lie in a table if all have room there, else none."""
    fits = steps <= MOST_FOUND and problem.R + problem.S < 32
    return steps if problem.Cg < chunk_of(problem) and fits and not wide else 0


def has_bits(problem, row, steps):
    """has_bits_of_taps of tensor_core_taps.cuh, where rows have so many taps and a thread brings so many steps."""
    return problem.R * row + steps - 1 <= MOST_BITS


def steps_struct(problem, x, count, run=1, row=None):
    """`struct Steps` of tensor_core_taps.cuh, for x: the first `count` steps of the reduction, each the first of a run,
    where a window's rows have so many taps (by default S).
    """
    return steps_by_strides(problem, x.strides, count, run, row or problem.S)


@lru_cache(maxsize=4096)
def steps_by_strides(problem, strides, count, run, row):
    struct = np.zeros((), [(name, type_, max(count, 2)) for name, type_ in FOUND])
    _, apart, down, right = element_strides("x", strides, problem.dtype.itemsize)
    channel, tap = divmod(np.arange(count) * run, problem.R * row)
    (r, s), exists = divmod(tap, row), channel < problem.Cg
    here = r * problem.dilation[0] * down + s * problem.dilation[1] * right
    struct["from"][:count] = here + np.where(exists, channel * apart, 0)
    if run > 1:
        struct["bits"][:count] = np.where(exists, r, NO_ROW) | s << 5
    else:
        struct["bits"][:count] = np.where(exists & (s < problem.S), 1 << r | 1 << problem.R + s, 0xFFFFFFFF)
    struct.flags.writeable = False
    return struct


def stage_slots(problem, device, tile, beside):
    """Issue slots that a stage takes of an SM, by its slowest part: multiplying, bringing it from L2, storing it and
    loading matrices of it, or issuing its instructions; `beside`: of those, what does not multiply.
    """
    macs = tile.rows * tile.filters * depth_of(problem)
    multiplying = macs / cost.tensor_multiply_adds(problem, device)
    bringing = tile.stage_bytes / cost.L2_BYTES_PER_CYCLE
    sharing = (tile.stage_bytes + tile.matrix_bytes) / SHARED_BYTES_PER_CYCLE
    multiplies = macs / (16 * 8 * (32 // problem.dtype.itemsize)) * (3 if problem.precision == "3xtf32" else 1)
    issuing = (multiplies * 32 + beside) / cost.SLOTS_PER_CYCLE
    return max(multiplying, bringing, sharing, issuing) * cost.SLOTS_PER_CYCLE


def block_of(problem, device, tile, stages, beside):
    """The cost of a block of so many stages; `beside`: as in stage_slots.

    Alone on an SM, a stage takes as long as one of its warps multiplies and waits; so many blocks are enough, as have
    their stages multiplied in that time. Beside their stages, warps issue as those of other kernels do.
    """
    stage, other = stage_slots(problem, device, tile, beside), other_slots(tile)
    multiplying = tile.rows * tile.filters * depth_of(problem) / cost.tensor_multiply_adds(problem, device)
    stage_alone = (WAITING_CYCLES + multiplying * SCHEDULERS * 32 / tile.threads) * cost.SLOTS_PER_CYCLE
    slots = stages * stage + other
    alone = stages * stage_alone + other * cost.WARPS_TO_SATURATE * 32 / tile.threads
    return cost.Block(slots, max(alone / slots, 1))


def other_slots(tile):
    """Of a block beside its stages; halves write sums to shared memory and read them."""
    passing = 2 * tile.passed_bytes / SHARED_BYTES_PER_CYCLE * cost.SLOTS_PER_CYCLE
    return THREAD_SLOTS * tile.threads + passing


def dtype_reasons(problem, device):
    """Why the tensor cores do not take these numbers."""
    name = problem.dtype.name
    if name == "float32" and problem.precision is None:
        return ['float32 only with precision "tf32" or "3xtf32"']
    if name not in DTYPES:
        return [f"{', '.join(DTYPES)} only, got {name}"]
    if device.compute_capability < DTYPES[name]:
        needed, has = (".".join(map(str, version)) for version in (DTYPES[name], device.compute_capability))
        return [f"{name} from compute capability {needed} on, {device} has {has}"]
    return []


def aligned(array, axes):
    """Whether vectors begin where the array does, and a step along any of `axes` further."""
    return address_of(array) % VECTOR == 0 and all(array.strides[axis] % VECTOR == 0 for axis in axes)
