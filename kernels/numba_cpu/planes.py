"""Planes of a depthwise convolution, one after the other: what direct_rows.py, stacked_rows.py and whole_maps.py share.

    task: some planes, or a band of one      begin(shared): what all of them need, made once
        for every plane:                         -> plane(x, w, y, residual, bias), which computes one, or its band

Several filters of one channel, Kg of them, read the same plane of x.
"""

import math
import struct
from typing import NamedTuple

import numpy as np
from numba import from_dtype
from numba.core import types

from . import target
from .call import CALL_DTYPE, problem_fields
from .epilogue import CLAMP, limits
from .threads import task_loop
from .tracing import Value, loop, select, traced
from .vectors import record_at

TASKS_PER_THREAD = 2

CUT = ("tasks", "bands", "most_bands", "worker_bytes")
CALL_PLANES = from_dtype(np.dtype(CALL_DTYPE.descr + [(name, "i8") for name in CUT]))


class Shared(NamedTuple):
    """What all planes of a task share. p0, rows: the first row of outputs, and how many. scratch: the worker's own."""

    x_h: Value
    w_r: Value
    w_s: Value
    y_p: Value
    residual_p: Value
    has_residual: Value
    has_bias: Value
    H: Value
    W: Value
    Q: Value
    top: Value
    left: Value
    scratch: Value
    kind: Value
    low: Value
    high: Value
    slope: Value
    p0: Value
    rows: Value

    @property
    def plain(self):
        """Whether outputs are clamped sums, and no more."""
        return self.kind.equals(CLAMP) & self.has_residual.equals(0)

    def limits(self, V):
        """The clamp's two vectors; without limit where outputs are more than that."""
        return limits(V, select(self.plain, self.low, -math.inf), select(self.plain, self.high, math.inf))


def masks(problem) -> bool:
    """Has the processor masked loads and stores of this type? AVX2 has those of 32 and 64 bits."""
    least = 32 if problem.dtype == problem.accumulate else 64
    return target.vector_bytes() >= least


def most_tasks(threads) -> int:
    return TASKS_PER_THREAD * threads if threads > 1 else 1


def fields(problem, tasks, bands, worker_bytes, most_bands=None) -> bytes:
    """The fixed part of a call's record. most_bands: of a plane, that are computed at once; all, if None."""
    return problem_fields(problem) + struct.pack("4q", tasks, bands, most_bands or bands, worker_bytes)


def planes_loop(begin):
    """A task_loop over all planes. begin: traced, see above."""

    @traced(types.void)
    def some_planes(
        x, x_c, w, w_k, y, y_k, residual, residual_k, bias, bias_k, planes, m, Kg, x_h, w_r, w_s, y_p, residual_p,
        has_residual, has_bias, H, W, Q, top, left, scratch, kind, low, high, slope, p0, rows,
    ):  # fmt: skip
        """m: which of its channel's Kg filters the first plane belongs to."""
        plane = begin(
            Shared(
                x_h, w_r, w_s, y_p, residual_p, has_residual, has_bias, H, W, Q, top, left, scratch, kind, low, high,
                slope, p0, rows,
            )
        )  # fmt: skip

        def one_plane(i, carried):
            x, w, y, residual, bias, m = carried
            plane(x, w, y, residual, bias)
            last = (m + 1).equals(Kg)
            x, m = select(last, x + x_c, x), select(last, 0, m + 1)
            return [x, w + w_k, y + y_k, residual + residual_k, bias + bias_k, m]

        loop(planes, one_plane, [x, w, y, residual, bias, m])

    def task(call_address, index, worker):
        call = record_at(CALL_PLANES, call_address)
        bands = call.bands
        total = call.N * call.K * bands
        place, end = total * index // call.tasks, total * (index + 1) // call.tasks
        while place < end:
            band, k, n = place % bands, place // bands % call.K, place // bands // call.K
            if bands == 1:
                planes, p0, p1 = min(call.K - k, end - place), 0, call.P
                place += planes
            else:
                some = min(bands - band, end - place, call.most_bands)
                planes, p0, p1 = 1, call.P * band // bands, call.P * (band + some) // bands
                place += some
            c = k // call.Kg
            some_planes(
                call.x + n * call.x_n + c * call.x_c, call.x_c, call.w + k * call.w_k, call.w_k,
                call.y + n * call.y_n + k * call.y_k, call.y_k,
                call.residual + n * call.residual_n + k * call.residual_k, call.residual_k,
                call.bias + k * call.bias_k, call.bias_k, planes, k % call.Kg, call.Kg, call.x_h, call.w_r, call.w_s,
                call.y_p, call.residual_p, call.has_residual, call.has_bias, call.H, call.W, call.Q, call.top,
                call.left, call.workspace + worker * call.worker_bytes, call.activation, call.low, call.high,
                call.slope, p0, p1 - p0,
            )  # fmt: skip

    return task_loop(task)
