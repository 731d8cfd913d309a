"""The memories of a launch: global buffers, shared and local memory, parameters; what lies where, and red zones.

    global    one long byte array; every argument's memory is copied in, with at least 64 KB that belong to nobody
              between two of them, and copied back after the launch. Only the bytes of an argument's own elements are
              OWNED: the gaps of a strided view are red zone too.
    shared    one copy per block of the batch; red zones of 1 KB between variables. Every variable keeps the place
              modulo 128 bytes (the width of the banks) that it has when they are packed, so bank conflicts stay true.
    local     one copy per thread
    generic   an address says by its window which of the three is meant

Addresses are what the kernel sees: an offset in shared and local memory, GLOBAL_BASE plus an index in global memory.
Buffers keep their address modulo 512 bytes, so an alignment that the caller's array has (or lacks) stays so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from . import checks

GLOBAL_BASE = 1 << 40
SHARED_WINDOW = 1 << 36
LOCAL_WINDOW = 1 << 37
WINDOW_SIZE = 1 << 32
ALIGNMENT = 512
RED_ZONE = 1 << 16
SHARED_RED_ZONE = 1024


def up_to(value, multiple):
    return -(-value // multiple) * multiple


@dataclass(slots=True)
class Region:
    """Memory of one or more arguments (they may overlap), or a variable of the module, inside the global array."""

    names: list[str]
    host: int
    size: int
    start: int = 0
    views: list = None


class Space:
    """One memory: its bytes, its flags and records (see checks.py), and how lanes find their own copy of it."""

    def __init__(self, name, base, size_per_copy, copies=1, copy_of_lane=None, checked=False, granule=0):
        self.name, self.base, self.limit = name, base, size_per_copy
        self.stride = up_to(size_per_copy, 16) if copies > 1 else 0
        self.copy_starts = None if copy_of_lane is None else copy_of_lane * np.int64(self.stride)
        total = up_to(max(self.stride * copies, size_per_copy), 16)
        self.bytes = np.zeros(total, np.uint8)
        self.flags = np.zeros(total if checked else 0, np.uint8)
        self.granule_shift = max(granule, 1).bit_length() - 1
        self.records = np.zeros((total // granule if granule and checked else 0, checks.RECORD), np.int32)

    def own(self, start, size, ready=False):
        """Give bytes of every copy to a variable."""
        state = checks.OWNED | (checks.READY if ready else 0)
        for first in range(start, len(self.flags), self.stride or len(self.flags) + 1):
            self.flags[first : first + size] = state

    def as_type(self, dtype):
        return self.bytes.view(dtype)


@njit(cache=True, _nrt=False)
def gather(memory, index, good, shift, out):
    """out[lane] = memory[index[lane] >> shift] for the good lanes; memory and out have one element type."""
    for lane in range(index.shape[0]):
        if good[lane]:
            out[lane] = memory[index[lane] >> shift]


@njit(cache=True, _nrt=False)
def scatter(memory, index, good, shift, values):
    """The lanes in order, so of several that write one place the last one stays."""
    for lane in range(index.shape[0]):
        if good[lane]:
            memory[index[lane] >> shift] = values[lane]


class GlobalMemory:
    """The arguments' arrays and the module's global variables, each with red zones around it."""

    def __init__(self):
        self.regions: list[Region] = []

    def add_array(self, name, array):
        """Take in the memory that `array`, any strided view, spans; overlapping arrays share their region."""
        first, last = np.lib.array_utils.byte_bounds(array)
        overlapping = [r for r in self.regions if r.views and r.host < last and first < r.host + r.size]
        merged = Region([name], first, last - first, views=[array])
        for region in overlapping:
            self.regions.remove(region)
            end = max(merged.host + merged.size, region.host + region.size)
            merged.host = min(merged.host, region.host)
            merged.size = end - merged.host
            merged.names, merged.views = region.names + merged.names, region.views + merged.views
        self.regions.append(merged)

    def add_variable(self, variable):
        region = Region([variable.name], 0, variable.size)
        self.regions.append(region)
        return region

    def build(self, checked, granule):
        """Lay the regions out and copy their contents in."""
        end = RED_ZONE
        for region in self.regions:
            region.start = up_to(end, ALIGNMENT) + region.host % ALIGNMENT
            end = region.start + region.size + max(RED_ZONE, min(region.size, 1 << 22))
        self.space = Space("global", GLOBAL_BASE, up_to(end, ALIGNMENT), checked=checked, granule=granule)
        for region in self.regions:
            for view in region.views or ():
                self.elements(region, view, self.space.bytes)[...] = as_bytes(view)
                if checked:
                    self.elements(region, view, self.space.flags)[...] = checks.OWNED | checks.READY

    def elements(self, region, view, of):
        """The bytes of `view`'s elements in `of`, the space's bytes or flags; shape view.shape + (itemsize,)."""
        start = region.start + view.__array_interface__["data"][0] - region.host
        return np.lib.stride_tricks.as_strided(of[start:], (*view.shape, view.itemsize), (*view.strides, 1))

    def address(self, array):
        """The address a kernel gets for `array`: of its first element in logical order."""
        pointer = array.__array_interface__["data"][0]
        region = self.region_of(array)
        return GLOBAL_BASE + region.start + pointer - region.host

    def region_of(self, array):
        first, last = np.lib.array_utils.byte_bounds(array)
        return next(r for r in self.regions if r.views and r.host <= first and last <= r.host + r.size)

    def copy_back(self):
        """Bring what the kernel changed back into the caller's arrays; arrays it did not change are not touched."""
        for region in self.regions:
            for view in region.views or ():
                ours = self.elements(region, view, self.space.bytes)
                changed = as_bytes(view) != ours
                if changed.any():
                    if not view.flags.writeable:
                        raise ValueError(f"{region.names[0]}: the kernel wrote into an array that is read-only")
                    np.copyto(as_bytes(view), ours, where=changed)

    def describe(self, address):
        """An address in words: which argument, and how far inside it or past it."""
        at = address - GLOBAL_BASE
        if not self.regions:
            return "no buffer was passed"
        region = min(self.regions, key=lambda r: max(r.start - at, at - (r.start + r.size - 1), 0))
        what = " and ".join(region.names)
        if at < region.start:
            return f"{region.start - at:,} bytes before {what}"
        if at >= region.start + region.size:
            return f"{at - region.start - region.size:,} bytes past the end of {what} ({region.size:,} bytes)"
        return f"byte {at - region.start:,} of {what}"


def as_bytes(view):
    """The bytes of a strided array's elements, as a view of shape + (itemsize,)."""
    by_element = np.lib.stride_tricks.as_strided(view, (*view.shape, 1), (*view.strides, view.itemsize))
    return by_element.view(np.uint8)


class Tracked:
    """An array whose bytes are followed over several launches: scratch memory, and outputs.

    Its bytes count as uninitialised until a kernel writes them.
    """

    def __init__(self, name, array):
        self.name, self.array = name, array
        self.first, self.last = np.lib.array_utils.byte_bounds(array)
        self.flags = np.zeros(self.last - self.first, np.uint8)

    def spans(self, region, space):
        """Where this array and `region` meet: the flags here and there."""
        lo, hi = max(self.first, region.host), min(self.last, region.host + region.size)
        if lo >= hi:
            return None
        start = region.start + lo - region.host
        return self.flags[lo - self.first : hi - self.first], space.flags[start : start + hi - lo]

    def before(self, region, space):
        both = self.spans(region, space)
        if both:
            ours, theirs = both
            theirs[(ours & checks.READY) == 0] &= ~np.uint8(checks.READY)

    def after(self, region, space):
        both = self.spans(region, space)
        if both:
            ours, theirs = both
            again = np.where(ours & theirs & checks.WRITTEN, np.uint8(checks.AGAIN), np.uint8(0))
            ours |= again | theirs & np.uint8(checks.READY | checks.WRITTEN | checks.AGAIN)

    def elements_with(self, flag):
        """For each element, whether all of its bytes carry `flag`; shaped like the array."""
        start = self.array.__array_interface__["data"][0] - self.first
        shape, strides = (*self.array.shape, self.array.itemsize), (*self.array.strides, 1)
        return (np.lib.stride_tricks.as_strided(self.flags[start:], shape, strides) & flag).all(axis=-1)
