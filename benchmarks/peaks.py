"""What this machine could do at most: multiply-adds of one core, and bytes through its memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

COPY_BYTES = 64 << 20  # for each thread: several times any last-level cache's share of a core
TRIES = 7


def measure(threads: int) -> dict:
    """In float32: core_gflops, one core's multiply-adds in registers; tile_gflops, those of the widest tile of the CPU
    kernels, on panels in its caches; bandwidth_gbs, GB/s read and written by copying.
    """
    from convlib.kernels.numba_cpu.core_peak import peak_gflops, tile_gflops

    return {
        "core_gflops": peak_gflops(np.float32),
        "tile_gflops": tile_gflops(np.float32),
        "bandwidth_gbs": copy_bandwidth(threads) / 1e9,
    }


def copy_bandwidth(threads: int) -> float:
    """Bytes per second, read plus written, of `threads` threads copying arrays too large for any cache; best of 7."""
    pairs = [(np.ones(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(copy_seconds(pool, pairs) for _ in range(TRIES))
    return 2 * COPY_BYTES * threads / seconds


def copy_seconds(pool, pairs) -> float:
    start = time.perf_counter()
    list(pool.map(lambda pair: np.copyto(*pair), pairs))  # NumPy lets go of the interpreter's lock while it copies
    return time.perf_counter() - start
