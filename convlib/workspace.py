"""Scratch memory on the CPU: kept per thread between calls, since fresh pages cost more than many a convolution.

A page touched for the first time costs about 0.25 microseconds: 2 to 3 ms for the 38 MB of transformed weights of a
512 -> 512 layer. At most KEPT_BYTES stay with a thread; larger requests are returned at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import cache

import numpy as np

from .problem import LARGEST_ARRAY
from .strided import empty_aligned

KEPT_BYTES = 64 << 20
ALIGNMENT = 64
PAGE_BYTES, PAGE_SECONDS = 4096, 0.25e-6

held = threading.local()


@contextlib.contextmanager
def scratch(count: int):
    """`count` uninitialised bytes on a 64-byte boundary, this thread's own until the block ends."""
    memory = take(count)
    try:
        yield memory[:count]
    finally:
        keep(memory)


def take(count):
    """At least `count` bytes: the thread's kept memory if it is large enough and not in use, otherwise new memory."""
    memory = getattr(held, "memory", None)
    held.memory = None
    if memory is not None and memory.size >= count:
        return memory
    try:
        return empty_aligned((max(count, 4096),), np.uint8)
    except MemoryError:
        raise MemoryError(
            f"no room for {count:,} bytes of scratch memory; a workspace_limit leaves kernels that take less"
        ) from None


def keep(memory):
    """Keep what `take` gave for the thread's next call."""
    if memory.size <= KEPT_BYTES:
        held.memory = memory


def fresh_seconds(count: int) -> float:
    """What touching `count` bytes takes that no thread keeps, and that are fresh pages every time."""
    return count / PAGE_BYTES * PAGE_SECONDS if count > KEPT_BYTES else 0.0


@cache
def memory_bytes() -> int:
    """This machine's memory; without a limit where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return LARGEST_ARRAY


def aligned(count: int) -> int:
    """`count` rounded up, so that what follows it begins on a boundary again."""
    return -(-count // ALIGNMENT) * ALIGNMENT
