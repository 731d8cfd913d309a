"""The input gradient as plain convolutions: one for each phase of the stride, none with inserted zeros.

The gradient by x of a convolution with stride t, top padding a and dilation d is, along one axis,

    grad_x[h] = sum over r of  grad_y[(h + a - r d) / t] * w[r],   where t divides h + a - r d

Take the inputs h = f, f + t, f + 2t, ... of one phase f. They all meet the same taps, r = r0, r0 + t/g, r0 + 2 t/g,
... with g = gcd(d, t), and their positions in grad_y advance by one: a convolution of stride 1 and dilation d/g, whose
window is those taps in reverse order. So t x t phases, each an ordinary forward problem that any listed kernel can
run, write the t x t interleaved slices of grad_x, and together they multiply no more than the forward pass did.

        t = 2, R = 3, a = 1        phase 0:  grad_x[0, 2, 4]  <-  w[1]
                                   phase 1:  grad_x[1, 3, 5]  <-  w[2], w[0]

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, chapter 4 (which inserts
zeros); the split by phase is the polyphase decomposition of Vaidyanathan, Multirate Systems and Filter Banks, 1993,
section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd

from .problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Axis:
    """One phase along one axis: which inputs it makes, from which of grad_y's elements and taps, padded by how much."""

    inputs: slice
    outputs: slice
    taps: slice
    padding: tuple[int, int]
    dilation: int
    size: int
    window: int

    @property
    def count(self) -> int:
        """How many inputs it makes."""
        return self.size + sum(self.padding) - self.dilation * (self.window - 1)


@dataclass(frozen=True, slots=True)
class Phase:
    """A forward problem whose x is grad_y[:, :, outputs], whose w are w's taps, reversed, with the roles of C and K
    exchanged, and whose y is grad_x[:, :, inputs]. problem is None where no tap meets these inputs: they are zero.
    """

    problem: ConvProblem | None
    inputs: tuple[slice, slice]
    outputs: tuple[slice, slice] | None = None
    taps: tuple[slice, slice] | None = None


@lru_cache(maxsize=1024)
def phases(problem: ConvProblem, outputs: tuple[int, int] | None = None) -> tuple[Phase, ...]:
    """The forward problems that together make the input gradient of `problem`.

    outputs: the rows and columns of grad_y where they are fewer than the problem's P and Q, as in a transposed
    convolution whose output_padding exceeds its stride; what is not there counts as zero.
    """
    P, Q = outputs or (problem.P, problem.Q)
    rows = axis_phases(problem.H, P, problem.R, problem.stride[0], problem.padding[0][0], problem.dilation[0])
    columns = axis_phases(problem.W, Q, problem.S, problem.stride[1], problem.padding[1][0], problem.dilation[1])
    return tuple(phase(problem, *axes) for axes in product(rows, columns))


def phase(problem, rows, columns):
    inputs = (rows.inputs, columns.inputs)
    if not (rows.window and columns.window and rows.size and columns.size):
        return Phase(None, inputs)
    forward = replace(
        problem,
        C=problem.K,
        H=rows.size,
        W=columns.size,
        K=problem.C,
        R=rows.window,
        S=columns.window,
        stride=(1, 1),
        padding=(rows.padding, columns.padding),
        dilation=(rows.dilation, columns.dilation),
        pass_="forward",
    )
    return Phase(forward, inputs, (rows.outputs, columns.outputs), (rows.taps, columns.taps))


def axis_phases(size, outputs, window, stride, padding, dilation):
    """The phases along one axis; fewer than `stride` where the input is shorter than that."""
    return [axis_phase(size, outputs, window, stride, padding, dilation, f) for f in range(min(stride, size))]


def axis_phase(size, outputs, window, stride, padding, dilation, first):
    inputs = slice(first, size, stride)
    common = gcd(dilation, stride)
    step, spread = stride // common, dilation // common
    meeting = [r for r in range(min(step, window)) if (first + padding - r * dilation) % stride == 0]
    if not meeting:
        return Axis(inputs, slice(0), slice(0), (0, 0), 1, 0, 0)
    tap = meeting[0]
    taps = -(-(window - tap) // step)
    count = -(-(size - first) // stride)
    before = (taps - 1) * spread - (first + padding - tap * dilation) // stride
    after = count - outputs - before + (taps - 1) * spread
    read = slice(max(0, -before), outputs - max(0, -after))
    length = max(0, read.stop - read.start)
    return Axis(inputs, read, slice(tap, window, step), (max(0, before), max(0, after)), spread, length, taps)
