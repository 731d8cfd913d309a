"""plan: choose the kernel once, pack the weights once, hold the workspace; then call it again and again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import accuracy, arrays, choosing, device_arrays, repeated, separable, strided
from .arrays import Array
from .operands import (
    FROM_LAYOUT,
    callers_shape,
    check_flag,
    check_no_overlap,
    check_operands,
    check_shape,
    device_for,
    logical,
    on,
    spelled,
    view_of_out,
    weights_view,
)
from .padding_taps import without_padding_taps
from .problem import ConvProblem, Padding, Pair, batched_shape, checked_dtype, make_problem
from .result_memory import result_array
from .running import runner
from .workspace import scratch


def plan(
    x_shape: Sequence[int],
    w: Any,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    residual: bool = False,
    algorithm: str = "auto",
    backend: str = "auto",
    precision: str | None = None,
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
    tune: bool = False,
) -> Plan:
    """A convolution with everything but the image settled: y = plan(x) equals conv2d(x, w, bias, ...).

    x_shape: the shape of every x to come, (N, C, H, W) or (C, H, W) in `layout`'s order. residual: whether a residual
    will be given with each call. The other arguments and the errors are conv2d's; padding is with zeros.

    On the CPU the plan has its own copy of the weights and bias. Packed for Winograd's kernels weights take up to seven
    times their bytes, 157 MB for 1,024 channels and filters under 3x3; workspace_limit counts them. On a GPU it has one
    of the weights if its kernel packs them, and reads the caller's with every call if not, as it does the bias: write
    to neither meanwhile. Where, on the CPU, every window is a column times a row, it may run as two passes: then its
    bits are not conv2d's, but its error is within `max_error`, what splitting the windows left over included.

    >>> import numpy as np
    >>> smooth = plan((1, 1, 4, 4), np.full((1, 1, 3, 3), 1 / 9, np.float32), padding=1)
    >>> smooth(np.ones((1, 1, 4, 4), np.float32))[0, 0, 1]
    array([0.6666667, 1.       , 1.       , 0.6666667], dtype=float32)
    """
    library = arrays.library_of(w, "w")
    if arrays.is_complex(library, w):
        raise TypeError(f"w: real weights needed for a plan, got {library.dtype(w, 'w')}; conv2d takes complex ones")
    dtype = checked_dtype(library.dtype(w, "w"), "w")
    check_operands(library, w, dtype, "w", bias=bias)
    check_flag("flip_kernel", flip_kernel)
    check_flag("residual", residual)
    check_flag("tune", tune)
    x_shape, batched = batched_shape(x_shape, "x_shape")
    problem = make_problem(
        x_shape, w.shape, dtype, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
        weight_layout=weight_layout, activation=activation, has_bias=bias is not None, has_residual=residual,
        precision=precision,
    )  # fmt: skip
    check_shape("bias", bias, (problem.K,))
    device = device_for(library, w, backend)
    weights = weights_view(library.view(w, "w"), weight_layout, flip_kernel)
    problem, taps = without_padding_taps(problem, algorithm)
    weights = weights if taps is None else weights[taps]
    asked = (backend, algorithm, max_error, workspace_limit)
    chosen = separable.chosen(problem, device, weights, *asked, planned=True, tune=tune)
    chosen = chosen or choosing.chosen(problem, device, *asked, planned=True, tune=tune)
    weights = strided.as_storage(weights)
    bias = None if bias is None else strided.as_storage(library.view(bias, "bias"))
    return Plan(problem, device, chosen, library, library.device(w, "w"), batched, weights, bias, library.stream(w))


class Plan:
    """A chosen kernel with packed weights and workspace. Made by `plan`; call it with x.

    name: the chosen kernel, or two of them with a plus between. problem: the ConvProblem. Several threads may call one
    plan at once; on a GPU, calls of one plan share a workspace and belong on one stream at a time.

    >>> import numpy as np
    >>> p = plan((1, 1, 4, 4), np.ones((2, 1, 3, 3), np.float32), padding=1, algorithm="direct")
    >>> p.name, p.y_shape
    ('numba_cpu.direct', (1, 2, 4, 4))
    """

    problem: ConvProblem
    name: str
    workspace_bytes: int
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]

    def __init__(self, problem, device, chosen, library, place, batched, weights, bias, stream):
        self.problem, self.device, self.name = problem, device, chosen.name
        self.kernel, self.family, self.workspace_bytes = chosen.kernel, chosen.family, chosen.workspace_bytes
        self.library, self.place, self.batched = library, place, batched
        self.x_shape = callers_shape(problem.x_shape, problem.layout, batched)
        self.y_shape = callers_shape(problem.y_shape, problem.layout, batched)
        self.dtype = problem.dtype
        self.order = FROM_LAYOUT[problem.layout]
        self.as_they_lie = batched and problem.layout == "NCHW" and problem.dtype.itemsize > 2
        self.read_later = {} if device.kind == "cpu" else {"w": weights, "bias": bias}
        with device_arrays.current(self.family, device):
            self.weights = self.own_weights(weights, chosen.packed_bytes, stream)
            self.bias = self.own_bias(bias)
            self.workspace = self.new_workspace()
        self.in_use = threading.Lock()
        self.known_calls = repeated.Repeated()

    def own_weights(self, weights, packed_bytes, stream):
        """The weights as the kernel takes them: on the CPU a copy, packed if the kernel wants them so."""
        if self.device.kind != "cpu":
            return self.weights_on_gpu(weights, packed_bytes, stream)
        if not packed_bytes or self.problem.N == 0:
            return weights.copy()
        memory = strided.empty_aligned((packed_bytes,), np.uint8)
        self.kernel.pack(self.problem, self.device, weights, memory)
        return memory

    def weights_on_gpu(self, weights, packed_bytes, stream):
        """The caller's, or packed; and that done, for calls may go to another stream."""
        family, device = self.family, self.device
        weights = device_arrays.for_family(weights, family, device)
        if not packed_bytes or self.problem.N == 0:
            return weights
        memory = device_arrays.device_bytes(packed_bytes, family, device, stream)
        self.kernel.pack(self.problem, device, weights, memory, stream)
        device_arrays.wait_for(stream, device)
        return memory

    def own_bias(self, bias):
        if bias is None or self.device.kind != "cpu":
            return device_arrays.for_family(bias, self.family, self.device)
        return bias.copy()

    def new_workspace(self):
        if self.device.kind == "cpu":
            return strided.empty_aligned((self.workspace_bytes,), np.uint8)
        if not self.workspace_bytes:
            return None
        return device_arrays.device_bytes(self.workspace_bytes, self.family, self.device, None)

    def __call__(self, x: Array, *, residual: Any = None, out: Any = None) -> Array:
        """The convolution of x, in x's library. residual: as planned; out: where to write, apart from every input."""
        signature = repeated.signature((x, residual, out))
        kernel_run = self.known_calls.find(signature)
        if kernel_run is not None:
            return self.again(kernel_run, x, residual, out)
        library = self.library
        self.check(x, residual, out)
        x_view = library.view(x, "x")
        r_view = None if residual is None else library.view(residual, "residual")
        if out is None:
            channels_last = self.problem.layout == "NCHW" and library.channels_last(x)
            out, y = library.result(x, self.y_shape, channels_last)
        else:
            y = view_of_out(library, out, {"x": x_view, "residual": r_view, **self.read_later})
        if self.problem.N > 0:
            x_view, y, r_view = self.logical(x_view), self.logical(y), self.logical(r_view)
            if self.device.kind == "cpu":
                kernel_run = self.runner(x_view, y, r_view)
                self.known_calls.keep(signature, kernel_run)
                self.run_on_cpu(kernel_run, x_view, y, r_view)
            else:
                self.run_on_gpu(x_view, y, r_view, library.stream(x))
        return library.finished(out)

    def again(self, kernel_run, x, residual, out):
        """A call with NumPy arrays that are like those of an earlier one."""
        if out is None:
            out = result_array(self.y_shape, x.dtype)
        elif np.may_share_memory(out, x) or residual is not None:
            check_no_overlap(out, {"x": x, "residual": residual})
        self.run_on_cpu(kernel_run, self.logical(x), self.logical(out), self.logical(residual))
        return out

    def logical(self, view):
        return view if self.as_they_lie else logical(view, self.batched, self.order)

    def check(self, x, residual, out):
        library = self.library
        if not library.owns(x):
            came = arrays.library_of(x, "x").name
            raise TypeError(f"x: an array of {library.name} needed, like the plan's weights, got one of {came}")
        if tuple(x.shape) != self.x_shape:
            raise ValueError(f"x: shape {self.x_shape} needed, as planned, got {tuple(x.shape)}")
        dtype, place = library.dtype(x, "x"), library.device(x, "x")
        if dtype != self.dtype:
            raise TypeError(f"x: {self.dtype} needed, as planned, got {spelled(dtype)}")
        if place != self.place:
            raise ValueError(f"x: an array on {on(self.place)} needed, as planned, got one on {on(place)}")
        if (residual is not None) != self.problem.has_residual:
            planned, came = ("one", "none") if self.problem.has_residual else ("none", "one")
            raise ValueError(f"residual: {planned} was planned, got {came}")
        if residual is not None:
            check_operands(library, x, dtype, residual=residual)
            check_shape("residual", residual, self.y_shape)
        if out is not None:
            check_operands(library, x, dtype, out=out)
            check_shape("out", out, self.y_shape)

    def run_on_gpu(self, x, y, residual, stream):
        family, device = self.family, self.device
        with device_arrays.current(family, device):
            x, y, residual = (device_arrays.for_family(view, family, device) for view in (x, y, residual))
            self.kernel.run(self.problem, device, x, self.weights, y, self.bias, residual, self.workspace, stream)

    def runner(self, x, y, residual):
        """The kernel's `run` for arrays of these strides."""
        return runner(self.kernel, self.problem, self.device, x, self.weights, y, self.bias, residual)

    def run_on_cpu(self, kernel_run, x, y, residual):
        if self.in_use.acquire(blocking=False):
            try:
                kernel_run(x, self.weights, y, self.bias, residual, self.workspace)
            finally:
                self.in_use.release()
        else:  # another thread is in this plan: take scratch memory of our own
            with scratch(self.workspace_bytes) as workspace:
                kernel_run(x, self.weights, y, self.bias, residual, workspace)

    def __reduce__(self):
        raise TypeError(
            "a plan cannot be pickled or copied: its weights are packed for this processor; send x_shape, w and the "
            "other arguments of convlib.plan, and plan again there"
        )

    def __repr__(self):
        return f"Plan({self.name}: {self.problem})"
