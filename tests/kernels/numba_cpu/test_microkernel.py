import numpy as np

from convlib.kernels.numba_cpu import compilation, tracing
from convlib.kernels.numba_cpu.microkernel import AHEAD, VECTORS, multiply_function, panel_rows
from convlib.kernels.numba_cpu.tracing import Lanes, constant, store
from convlib.kernels.numba_cpu.vectors import lanes

PANELS, DEPTH, AHEAD_PANEL, AHEAD_STEP = 3, 5, 100, 7
ROWS, ITEM, ROW = PANELS * panel_rows(), 4, VECTORS * lanes(np.float32) * 4
A_PANEL, A_STEP = panel_rows() * DEPTH * ITEM, panel_rows() * ITEM


def test_what_is_fetched_ahead(monkeypatch):
    """A one is written instead, for all to see."""
    monkeypatch.setattr(compilation, "_made", {})
    monkeypatch.setattr(tracing, "prefetch", lambda address: store(address, constant(address, 1, Lanes("i8"))))
    multiply = multiply_function(np.float32, "row")

    def multiply_thrice(a, b, sums, all_rows, some_rows, rows):
        multiply(
            VECTORS, ROWS, a, ITEM, A_PANEL, A_STEP, b, ROW, DEPTH, sums, ROW, True, 0, 0, 0, 0, 0, 0.0, 0.0,
        )  # fmt: skip
        multiply(
            VECTORS, ROWS, a, ITEM, A_PANEL, A_STEP, b, ROW, DEPTH, sums, ROW, True, 0, 0, 0, 0, 0, 0.0, 0.0,
            all_rows, AHEAD_PANEL, AHEAD_STEP,
        )  # fmt: skip
        multiply(
            VECTORS, ROWS, a, ITEM, A_PANEL, A_STEP, b, ROW, DEPTH, sums, ROW, True, 0, 0, 0, 0, 0, 0.0, 0.0,
            some_rows, AHEAD_PANEL, AHEAD_STEP, rows,
        )  # fmt: skip

    function, parameters = compilation.compile_with_numba(multiply_thrice)
    a, b, sums = (np.zeros(count, np.uint8) for count in (AHEAD + PANELS * A_PANEL, DEPTH * ROW, ROWS * ROW))
    all_rows, some_rows = np.zeros((2, PANELS * AHEAD_PANEL), np.uint8)
    addresses = [array.ctypes.data for array in (a, b, sums, all_rows, some_rows)]
    compilation.as_callable(function.address, parameters, function).call(*addresses, (PANELS - 1) * panel_rows())

    def places(panels, panel, step):
        return [i * panel + d * step for i in range(panels) for d in range(DEPTH)]

    np.testing.assert_array_equal(np.flatnonzero(a) - AHEAD, places(PANELS, A_PANEL, A_STEP))
    np.testing.assert_array_equal(np.flatnonzero(all_rows), places(PANELS, AHEAD_PANEL, AHEAD_STEP))
    np.testing.assert_array_equal(np.flatnonzero(some_rows), places(PANELS - 1, AHEAD_PANEL, AHEAD_STEP))
