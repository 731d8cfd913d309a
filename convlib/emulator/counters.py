"""What a launch did, counted: instructions, shared-memory wavefronts, global sectors, bytes, divergence.

Shared memory has 32 banks of 4 bytes. A warp's request is served in wavefronts; one wavefront reads each bank once, so
lanes that want different words of one bank wait for each other:

    4 bytes a lane      all 32 lanes together
    8 bytes a lane      two halves of 16 lanes
    16 bytes a lane     four quarters of 8 lanes; ldmatrix is counted like that, one quarter per matrix
    wavefronts          for each group, the most different words in any one bank

Global memory is fetched in sectors of 32 bytes: a request costs as many as its lanes touch.
Sources: NVIDIA, CUDA C++ Programming Guide, sections on shared and global memory; Nsight Compute's metrics
smsp__sass_..._wavefronts_mem_shared and ..._sectors_per_request.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numba import njit

SECTOR = 32

# The units that instructions are counted under
FMA, FLOAT, DOUBLE, INTEGER, SPECIAL = "fma", "float", "double", "integer", "special function"
CONVERT, COMPARE, MOVE, CONTROL, BARRIER, WARP = "convert", "compare", "move", "control", "barrier", "warp"
GLOBAL, SHARED, LOCAL, PARAMETER, ATOMIC = "global", "shared", "local", "parameter", "atomic"
MMA, LDMATRIX, COPY = "mma", "ldmatrix", "copy"


@njit(cache=True)
def shared_wavefronts(address, active, size):
    """Requests (warps with an active lane) and wavefronts of one access of `size` bytes per lane."""
    group = 32 if size <= 4 else 128 // size
    words_per_lane = max(size // 4, 1)
    requests, wavefronts = 0, 0
    words, in_bank = np.empty(32, np.int64), np.empty(32, np.int64)
    for warp in range(0, address.shape[0], 32):
        any_active = False
        for first in range(warp, min(warp + 32, address.shape[0]), group):
            found, most = 0, 0
            in_bank[:] = 0
            for lane in range(first, first + group):
                if not active[lane]:
                    continue
                for i in range(words_per_lane):
                    word = (address[lane] >> 2) + i
                    known = False
                    for k in range(found):
                        known |= words[k] == word
                    if not known:
                        words[found] = word
                        found += 1
                        in_bank[word & 31] += 1
                        most = max(most, in_bank[word & 31])
            any_active |= most > 0
            wavefronts += most
        requests += any_active
    return requests, wavefronts


@njit(cache=True)
def global_sectors(address, active, size):
    """Requests and sectors of one access of `size` bytes per lane."""
    requests, total = 0, 0
    sectors = np.empty(64, np.int64)
    for warp in range(0, address.shape[0], 32):
        found = 0
        for lane in range(warp, min(warp + 32, address.shape[0])):
            if not active[lane]:
                continue
            for sector in range(address[lane] >> 5, (address[lane] + size - 1 >> 5) + 1):
                known = False
                for k in range(found - 1, -1, -1):
                    if sectors[k] == sector:
                        known = True
                        break
                if not known:
                    sectors[found] = sector
                    found += 1
        requests += found > 0
        total += found
    return requests, total


@dataclass(slots=True)
class Traffic:
    """One memory instruction's accesses. cost: wavefronts (shared) or sectors (global).

    kind: "load", "store", "atomic", "ldmatrix", or "copy", which counts in both spaces. size: bytes per lane.
    """

    space: str
    kind: str
    size: int
    line: int
    source: tuple | None = None
    requests: int = 0
    cost: int = 0
    lanes: int = 0


@dataclass(slots=True)
class Counters:
    """Counts of one launch; `add` sums launches, of which lines are those of one PTX.

    lines: how many warps came to each line of the PTX, guarded or not. mma_multiply_adds: those of tensor cores, all
    lanes together.
    """

    lanes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    warps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lines: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    traffic: list[Traffic] = field(default_factory=list)
    mma_multiply_adds: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    blocks: int = 0
    blocks_run: int = 0

    @property
    def lane_instructions(self) -> int:
        return sum(self.lanes.values())

    @property
    def warp_instructions(self) -> int:
        return sum(self.warps.values())

    @property
    def active_lanes_per_warp(self) -> float:
        """32 without divergence and with full warps."""
        return self.lane_instructions / max(self.warp_instructions, 1)

    def share(self, unit: str) -> float:
        """Instructions of `unit` among all that warps issued."""
        return self.warps.get(unit, 0) / max(self.warp_instructions, 1)

    @property
    def ffma_share(self) -> float:
        return self.share("fma")

    def cost_per_request(self, space: str, size: int | None = None, kind: str | None = None) -> float:
        """Wavefronts (space "shared") or sectors (space "global") per request, of all accesses or of one size."""
        chosen = [
            t for t in self.traffic
            if t.space == space and size in (None, t.size) and kind in (None, t.kind)
        ]  # fmt: skip
        return sum(t.cost for t in chosen) / max(sum(t.requests for t in chosen), 1)

    @property
    def sector_bytes(self) -> int:
        """Bytes that global requests moved, in whole sectors; a cache may spare memory some of them."""
        return SECTOR * sum(t.cost for t in self.traffic if t.space == "global")

    @property
    def least_bytes(self) -> int:
        """Each byte that was read, once, and each that was written, once."""
        return self.bytes_read + self.bytes_written

    def add(self, other: Counters) -> None:
        for unit, count in other.lanes.items():
            self.lanes[unit] += count
        for unit, count in other.warps.items():
            self.warps[unit] += count
        for line, count in other.lines.items():
            self.lines[line] += count
        self.traffic += other.traffic
        self.mma_multiply_adds += other.mma_multiply_adds
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.blocks += other.blocks
        self.blocks_run += other.blocks_run
