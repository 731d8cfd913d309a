"""What one core can do at most, and how much of it the micro-kernel does: measured, for reports."""

import time

import numpy as np
from numba.core import types

from . import target, tracing
from .compilation import compiled
from .microkernel import VECTORS, multiply_function, panel_rows, vector_type
from .threads import aligned_words
from .tracing import fma, load, loop, store, traced
from .vectors import lanes


def build_peak(dtype_name):
    """Independent multiply-adds in registers and nothing else, as many as the latency needs."""
    V = vector_type(dtype_name)

    @traced(types.void)
    def multiply_often(address, rounds):
        factor = tracing.broadcast(V, load(V.scalar, address))
        sums = [tracing.broadcast(V, load(V.scalar, address + V.item_bytes * i)) for i in range(12)]
        for i, total in enumerate(loop(rounds, lambda _, sums: [fma(s, factor, factor) for s in sums], sums)):
            store(address + V.bytes * i, total)

    def peak(address, rounds):
        multiply_often(address, rounds)

    return peak


def peak_gflops(dtype=np.float32) -> float:
    """Measured floating-point peak of one core, in GFLOP/s: the best of 20 runs of 1 ms of multiply-adds in
    registers.
    """
    rounds = 300_000
    run = multiply_adds(dtype, rounds)
    return 2 * 12 * lanes(dtype) * rounds / min(seconds(run) for _ in range(20)) / 1e9


def multiply_adds(dtype, rounds):
    """A function without arguments that does 12 vectors of multiply-adds so many times, for one thread at a time."""
    words = np.full(12 * target.vector_bytes() // np.dtype(dtype).itemsize, 0.5, dtype)
    kernel = compiled(build_peak, np.dtype(dtype).name).call
    return lambda: kernel(words.ctypes.data, rounds)


def build_tiles(dtype_name):
    """The widest tile over and over, on panels that stay in the L1 and L2 cache."""
    multiply = multiply_function(dtype_name, "row")
    item, rows = np.dtype(dtype_name).itemsize, panel_rows()
    row = VECTORS * lanes(dtype_name) * item

    def tiles(a, b, sums, panels, depth):
        multiply(
            VECTORS, panels * rows, a, item, rows * depth * item, rows * item, b, row, depth, sums, row, True,
            0, 0, 0, 0, 0, 0.0, 0.0,
        )  # fmt: skip

    return tiles


def tile_gflops(dtype=np.float32, panels=64, depth=256) -> float:
    """Measured speed of the micro-kernel on one core, in GFLOP/s: the best of 200 runs over `panels` panels of A."""
    rows, columns = panels * panel_rows(), VECTORS * lanes(dtype)
    a, b, sums = (aligned_words(count).view(dtype) for count in (rows * depth, depth * columns, rows * columns))
    kernel = compiled(build_tiles, np.dtype(dtype).name).call
    arguments = (a.ctypes.data, b.ctypes.data, sums.ctypes.data, panels, depth)
    return max(2 * rows * columns * depth / seconds(kernel, *arguments) for _ in range(200)) / 1e9


def seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
