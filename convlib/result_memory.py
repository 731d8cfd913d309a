"""Memory of results on the CPU, used again: what one leaves when nothing refers to it any more is the next one's.

The C library gives large blocks back to the system as they are freed, and each page of the next one comes from there,
cleared, when a kernel first writes to it. A chain of layers, each freed as soon as it is read, is spared most of that;
a program that keeps many results and then frees them all is not: CenterFace on 640 x 640 pixels, run node by node, met
3,600 new pages a frame and took 41 ms instead of 29 (two Zen 4 cores of a virtual machine).

    waiting blocks --> lent, each by a holder that its result holds --> waiting again when the holder is gone

An array holds the holder and a view of it holds the array, so a block waits only when none of them is left. Blocks that
wait are at most MOST bytes, or a part of the machine's memory; those that have waited longest are freed first.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from functools import partial

import numpy as np

from .strided import empty_aligned
from .workspace import memory_bytes

LEAST = 128 << 10  # bytes: what is smaller the C library keeps by itself
MOST, PART = 256 << 20, 64

waiting: deque[Block] = deque()
lent: set[Block] = set()


class Block:
    """Memory on a 64-byte boundary, and who tells when its result is gone."""

    __slots__ = ("end", "memory")

    def __init__(self, count):
        self.memory = empty_aligned((count,), np.uint8)


def result_array(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised C-contiguous array on a 64-byte boundary, in memory that an earlier one may have left."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    if not LEAST <= count <= most_waiting():
        return empty_aligned(shape, dtype)
    count = rounded(count)
    block = found(count) or Block(count)
    held = (ctypes.c_char * count).from_buffer(block.memory)  # NumPy would look through a memoryview
    block.end = weakref.ref(held, partial(give_back, block))
    lent.add(block)
    return np.ndarray(shape, dtype, held)


def most_waiting() -> int:
    return min(MOST, memory_bytes() // PART)


def rounded(count: int) -> int:
    """`count` or up to an eighth more, so that results of nearly the same size share blocks."""
    step = 1 << count.bit_length() - 4
    return -(-count // step) * step


def found(count):
    """The block of `count` bytes that came back last, or None. Several threads may look at once: one of them has it."""
    for block in reversed(all_waiting()):
        if block.memory.size == count:
            try:
                waiting.remove(block)
            except ValueError:
                continue
            return block
    return None


def give_back(block, _):
    """Called in whichever thread a result ends, perhaps in the middle of `found`: every step on `waiting` is whole."""
    lent.discard(block)
    over = block.memory.size + sum(other.memory.size for other in all_waiting()) - most_waiting()
    while over > 0:
        try:
            over -= waiting.popleft().memory.size
        except IndexError:  # another thread has freed the last one
            break
    waiting.append(block)


def all_waiting() -> list[Block]:
    """A copy; not a tuple, which allocates half way: that may begin a garbage collection, and so `give_back`."""
    return list(waiting)
