"""One product of Strassen's in registers: what it fetches beside its multiply-adds."""

import numpy as np
import pytest

from convlib.kernels.numba_cpu import compilation, strassen_products
from convlib.kernels.numba_cpu.microkernel import VECTORS, holds_lone, panel_rows
from convlib.kernels.numba_cpu.strassen_products import product_function
from convlib.kernels.numba_cpu.threads import LINE
from convlib.kernels.numba_cpu.tracing import Lanes, constant, store
from convlib.kernels.numba_cpu.vectors import lanes

ROWS, ITEM, ROW = panel_rows(), 4, VECTORS * lanes(np.float32) * 4
DEPTH, Y_ROW = 2 * ROWS, 1_000


@pytest.mark.parametrize("lone", [0, 1] if holds_lone(np.dtype(np.float32)) else [0])
def test_each_line_of_y_is_fetched_ahead_wherever_its_rows_begin(monkeypatch, lone):
    """A one is written instead, for all to see, and no y."""
    monkeypatch.setattr(compilation, "_made", {})
    monkeypatch.setattr(strassen_products, "prefetch", lambda a, to_write: store(a, constant(a, 1, Lanes("i8"))))
    product = product_function(np.float32, lone, lambda sums, tiles: None, fetches=True)

    def multiply(a, b, y):
        product(
            a, b, ROW, b, ROW, 0, 0, 0, 0, DEPTH, 0, 0, y, Y_ROW, 0, 0, 0, 0, 0.0, 0.0, a, 0,
        )  # fmt: skip

    function, parameters = compilation.compile_with_numba(multiply)
    a, b, y = (np.zeros(count, np.uint8) for count in (DEPTH * ROWS * ITEM, DEPTH * ROW, ROWS * Y_ROW))
    addresses = [array.ctypes.data for array in (a, b, y)]
    compilation.as_callable(function.address, parameters, function).call(*addresses)

    def lines(offsets, begin):
        return {(begin + offset) // LINE for offset in offsets}

    for row in y.reshape(ROWS, Y_ROW):
        for begin in range(0, LINE, ITEM):
            assert lines(range(ROW + lone * ITEM), begin) <= lines(np.flatnonzero(row), begin)
