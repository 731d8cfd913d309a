"""`tune`: measure the kernels that could run a convolution, for calls with tune=True."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import accuracy, choosing, dispatch, measuring
from .device import Device
from .explain import Explanation, explain
from .operands import check_flag
from .problem import Padding, Pair, as_float


def tune(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    planned: bool = False,
    dtype: Any = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    residual: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    on: Device | str | None = None,
) -> Explanation:
    """Measure the kernels that could run a convolution, and keep the times for calls with tune=True.

    planned: as `plan` runs them, their weights packed before; else as `conv2d` does. The other arguments are those of
    `explain`, arrays or shapes, and so is the result, with measured times; `chosen` is what tune=True will run. The
    numbers that are convolved are random ones, x and w are not looked at. Kernels take turns, a few blocks of
    calls each; the first time, they are compiled, which takes seconds.

    Raises what `explain` raises, and UnsupportedError where no kernel can run, or where nothing can be measured: in a
    simulator, in the emulator, on a GPU that is not here.

    >>> found = tune((1, 8, 12, 12), (8, 8, 3, 3), padding=1)
    >>> min((c.measured, c.name) for c in found.candidates if c.measured)[1] == found.chosen
    True
    """
    check_flag("planned", planned)
    told = explain(
        x, w, bias, dtype=dtype, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
        weight_layout=weight_layout, padding_mode=padding_mode, flip_kernel=flip_kernel, activation=activation,
        residual=residual, algorithm=algorithm, backend=backend, precision=precision, max_error=max_error,
        workspace_limit=workspace_limit, on=on,
    )  # fmt: skip
    problem, place, left = told.problem, told.device, told.workspace_limit
    chosen = choosing.chosen(problem, place, backend, algorithm, max_error, left, planned, tune=True)
    candidates = dispatch.candidates(problem, place, as_float(max_error), left, planned)
    trusted = {c.name: c.trust for c in told.candidates}
    candidates = tuple(replace(c, trust=trusted[c.name]) for c in candidates)
    return replace(told, candidates=measuring.with_measured(candidates, problem, place, planned), chosen=chosen.name)
