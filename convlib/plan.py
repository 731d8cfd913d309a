"""plan: choose the kernel once, pack the weights once, hold the workspace; then call it again and again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from . import accuracy, arrays, dispatch
from .operations import (
    FROM_LAYOUT,
    check_no_overlap,
    check_operands,
    check_shape,
    device_for,
    hashable,
    logical,
    result_shape,
    weights_view,
)
from .problem import make_problem
from .workspace import scratch


def plan(
    x_shape: tuple[int, ...],
    w: Any,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | str | tuple = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    residual: bool = False,
    algorithm: str = "auto",
    backend: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
) -> Plan:
    """A convolution with everything but the image settled: y = plan(x) equals conv2d(x, w, bias, ...).

    x_shape: the shape of every x to come, (N, C, H, W) or (C, H, W) in `layout`'s order. residual: whether a residual
    will be given with each call. The other arguments and the errors are conv2d's; padding is with zeros. The weights
    and bias are read now: later changes to them are not seen where the kernel packs weights, so make a new plan then.

    >>> import numpy as np
    >>> smooth = plan((1, 1, 4, 4), np.full((1, 1, 3, 3), 1 / 9, np.float32), padding=1)
    >>> smooth(np.ones((1, 1, 4, 4), np.float32))[0, 0, 1]
    array([0.6666667, 1.       , 1.       , 0.6666667], dtype=float32)
    """
    library = arrays.library_of(w, "w")
    dtype = library.dtype(w)
    check_operands(library, w, dtype, bias=bias)
    batched = len(x_shape) == 4
    problem = make_problem(
        tuple(x_shape) if batched else (1, *x_shape), tuple(w.shape), dtype, layout=layout,
        weight_layout=weight_layout, has_bias=bias is not None, has_residual=bool(residual),
        stride=hashable(stride), padding=hashable(padding), dilation=hashable(dilation), groups=groups,
        activation=hashable(activation),
    )  # fmt: skip
    check_shape("bias", bias, (problem.K,))
    device = device_for(library, w, backend)
    name = dispatch.choose(problem, device, backend, algorithm, max_error, workspace_limit)
    weights = arrays.as_storage(weights_view(library.view(w, "w"), weight_layout, flip_kernel))
    bias = arrays.as_storage(library.view(bias, "bias")) if bias is not None else None
    return Plan(problem, device, name, library, batched, weights, bias)


class Plan:
    """A chosen kernel with packed weights and workspace. Made by `plan`; call it with x.

    name: the chosen kernel. problem: the ConvProblem. Several threads may call one plan at once; on a GPU, calls of one
    plan share a workspace and belong on one stream at a time.
    """

    def __init__(self, problem, device, name, library, batched, weights, bias):
        self.problem, self.device, self.name = problem, device, name
        self.library, self.batched = library, batched
        self.kernel, self.family = dispatch.kernel(name), dispatch.family_of(name)
        self.x_shape = self.callers_shape(problem.x_shape)
        self.y_shape = result_shape(problem, batched)
        self.dtype = problem.dtype
        self.order = FROM_LAYOUT[problem.layout]
        self.bias = arrays.for_family(bias, self.family, device)
        self.weights = self.packed(weights)
        self.workspace_bytes = self.kernel.workspace_bytes(problem, device)
        self.workspace = self.new_workspace()
        self.in_use = threading.Lock()

    def callers_shape(self, shape):
        N, C, H, W = shape
        image = (C, H, W) if self.problem.layout == "NCHW" else (H, W, C)
        return (N, *image) if self.batched else image

    def packed(self, weights):
        if not hasattr(self.kernel, "pack"):
            return arrays.for_family(weights, self.family, self.device)
        memory = arrays.empty_aligned((self.kernel.packed_bytes(self.problem, self.device),), np.uint8)
        self.kernel.pack(self.problem, self.device, weights, memory)
        return memory

    def new_workspace(self):
        if self.device.kind == "cpu":
            return arrays.empty_aligned((self.workspace_bytes,), np.uint8)
        if not self.workspace_bytes:
            return None
        return arrays.device_bytes(self.workspace_bytes, self.family, self.device, None)

    def __call__(self, x: Any, *, residual: Any = None, out: Any = None) -> Any:
        """The convolution of x, in x's library. residual: as planned; out: where to write, apart from every input."""
        library = self.library
        self.check(x, residual, out)
        channels_last = self.batched and library.channels_last(x) and self.problem.layout == "NCHW"
        if out is None:
            result, y = library.result(x, self.y_shape, channels_last)
        else:
            result, y = out, library.view(out, "out")
        x_view = library.view(x, "x")
        r_view = library.view(residual, "residual") if residual is not None else None
        if out is not None:
            library.check_out(out)
            check_no_overlap(y, {"x": x_view, "w": self.weights, "bias": self.bias, "residual": r_view})
        if self.problem.N > 0:
            self.run(*(logical(view, self.batched, self.order) for view in (x_view, y, r_view)), library.stream(x))
        return library.finished(result)

    def check(self, x, residual, out):
        library = self.library
        if not library.owns(x):
            came = arrays.library_of(x, "x").name
            raise TypeError(f"x: an array of {library.name} needed, like the plan's weights, got one of {came}")
        if tuple(x.shape) != self.x_shape:
            raise ValueError(f"x: shape {self.x_shape} needed, as planned, got {tuple(x.shape)}")
        if library.dtype(x) != self.dtype:
            raise TypeError(f"x: {self.dtype} needed, as planned, got {library.dtype(x)}")
        if (residual is not None) != self.problem.has_residual:
            planned, came = ("one", "none") if self.problem.has_residual else ("none", "one")
            raise ValueError(f"residual: {planned} was planned, got {came}")
        if residual is not None or out is not None:
            check_operands(library, x, self.dtype, residual=residual, out=out)
            check_shape("residual", residual, self.y_shape)
            check_shape("out", out, self.y_shape)

    def run(self, x, y, residual, stream):
        if self.device.kind == "cpu":
            return self.run_on_cpu(x, y, residual)
        x, y, residual = (arrays.for_family(view, self.family, self.device) for view in (x, y, residual))
        self.kernel.run(self.problem, self.device, x, self.weights, y, self.bias, residual, self.workspace, stream)

    def run_on_cpu(self, x, y, residual):
        if self.in_use.acquire(blocking=False):
            try:
                self.launch(x, y, residual, self.workspace)
            finally:
                self.in_use.release()
        else:  # another thread is in this plan: take scratch memory of our own
            with scratch(self.workspace_bytes) as workspace:
                self.launch(x, y, residual, workspace)

    def launch(self, x, y, residual, workspace):
        self.kernel.run(self.problem, self.device, x, self.weights, y, self.bias, residual, workspace)

    def __repr__(self):
        return f"Plan({self.name}: {self.problem})"
