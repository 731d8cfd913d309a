"""One call of a chosen kernel: its weights packed where it wants them so, its workspace, its arrays in its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import device_arrays, dispatch, workspace
from .device import Device
from .problem import ConvProblem

PACKED = np.empty(0, np.uint8)  # stands for packed weights, whose one dimension is all that a job wants to know


@dataclass(slots=True)
class Call:
    """What a kernel is run with: views in logical order, as every kernel takes them."""

    problem: ConvProblem
    device: Device
    stream: int | None
    x: Any
    w: Any
    y: Any
    bias: Any
    residual: Any


def run_kernel(chosen, call):
    """Give the kernel its weights, packed if it wants them so, and its workspace, and run it."""
    if call.device.kind == "cpu":
        return run_on_cpu(chosen, call)
    family, device = chosen.family, call.device
    with device_arrays.current(family, device):
        x, w, y, bias, residual = (
            device_arrays.for_family(view, family, device)
            for view in (call.x, call.w, call.y, call.bias, call.residual)
        )
        count = chosen.workspace_bytes
        memory = device_arrays.device_bytes(count, family, device, call.stream) if count else None
        chosen.kernel.run(call.problem, device, x, w, y, bias, residual, memory, call.stream)


def packs_weights(chosen, call) -> bool:
    """Whether the kernel wants this call's weights packed, and packing them does not cost more than it saves."""
    if not chosen.packed_bytes:
        return False
    kernel = chosen.kernel
    return not (hasattr(kernel, "reads_in_place") and kernel.reads_in_place(call.problem, call.w))


def run_on_cpu(chosen, call):
    CpuLaunch(chosen, packs_weights(chosen, call), partial(chosen.kernel.run, call.problem, call.device)).run(call)


@dataclass(slots=True)
class CpuLaunch:
    """A kernel with its look-ups done, for calls whose arrays have certain strides.

    packs: whether it is given its weights packed. kernel_run: see `runner`.
    """

    chosen: dispatch.Chosen
    packs: bool
    kernel_run: Callable

    def run(self, call):
        chosen, w = self.chosen, call.w
        packed = chosen.packed_bytes
        memory = workspace.take(packed + chosen.workspace_bytes)
        try:
            if self.packs:
                w = memory[:packed]
                chosen.kernel.pack(call.problem, call.device, call.w, w)
            self.kernel_run(call.x, w, call.y, call.bias, call.residual, memory[packed:])
        finally:
            workspace.keep(memory)


def cpu_launch(chosen, call) -> CpuLaunch:
    """For this call and others whose arrays have the same strides."""
    packs = packs_weights(chosen, call)
    w = PACKED if packs else call.w
    run = runner(chosen.kernel, call.problem, call.device, call.x, w, call.y, call.bias, call.residual)
    return CpuLaunch(chosen, packs, run)


def runner(kernel, problem, device, x, w, y, bias, residual) -> Callable:
    """The kernel's `run` for arrays of these strides, as a function of them and the workspace."""
    if hasattr(kernel, "job"):
        return kernel.job(problem, device, x, w, y, bias, residual).run
    return partial(kernel.run, problem, device)
