"""im2col: write every output's window out as a column, then multiply matrices; the classic, kept beside what
replaced it.

    patches[c, r, s][pixel]  =  x[c, p * stride - top + r * dilation, q * stride - left + s * dilation]     (0 outside)
    y[k][pixel]              =  sum over (c, r, s) of  w[k][c, r, s] * patches[c, r, s][pixel]

The patches are an image with C R S channels, and what is left is a 1x1 convolution of it: that is how it is run
here, by the GEMM of blocked.py. It costs R S times x in memory (a 3x3 layer of 64 x 224 x 224: 115 MB), written once
and read once, which is why blocked.py makes the same panels piecewise, in the cache, instead.
Source: Chellapilla, Puri and Simard, High Performance Convolutional Neural Networks for Document Processing, 2006.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numba import float32, float64, uint16

from . import blocked
from .call import CALL, pack_call, problem_fields
from .compilation import compiled
from .microkernel import CALL_SECONDS
from .threads import run_tasks, task_loop
from .vectors import array_at, record_at

passes = ("forward",)


def build(dtype_name):
    element = {"float32": float32, "float64": float64}.get(dtype_name, uint16)

    def patches(call_address, plane, worker):
        """Task: the R S patch planes of one input channel of one image. call.y: where the patches go, contiguous."""
        call = record_at(CALL, call_address)
        x = array_at(element, call.x, (call.N, call.C, call.H, call.W), (call.x_n, call.x_c, call.x_h, call.x_w))
        n, c = plane // call.C, plane % call.C
        shape = (call.R, call.S, call.P, call.Q)
        pixel = call.y_q
        out = array_at(
            element, call.y + plane * call.R * call.S * call.P * call.Q * pixel, shape,
            (call.S * call.P * call.Q * pixel, call.P * call.Q * pixel, call.Q * pixel, pixel),
        )  # fmt: skip
        for r in range(call.R):
            for s in range(call.S):
                for p in range(call.P):
                    h = p * call.stride_h - call.top + r * call.dilation_h
                    for q in range(call.Q):
                        v = q * call.stride_w - call.left + s * call.dilation_w
                        inside = h >= 0 and h < call.H and v >= 0 and v < call.W
                        out[r, s, p, q] = x[n, c, h, v] if inside else element(0)

    return task_loop(patches)


@lru_cache(maxsize=1024)
def multiplication(problem):
    """The 1x1 convolution of the patches."""
    return replace(
        problem, C=problem.C * problem.R * problem.S, H=problem.P, W=problem.Q, R=1, S=1,
        stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1),
    )  # fmt: skip


def patch_bytes(problem):
    count = problem.N * problem.C * problem.R * problem.S * problem.P * problem.Q
    return -(-count * problem.dtype.itemsize // 64) * 64


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    return patch_bytes(problem) + blocked.workspace_bytes(multiplication(problem), device)


def packed_bytes(problem, device):
    return blocked.packed_bytes(multiplication(problem), device)


def pack(problem, device, w, packed):
    """Write the weights w (K, C/groups, R, S) into `packed` as blocked.py takes them."""
    blocked.pack(multiplication(problem), device, w.reshape(problem.K, -1, 1, 1), packed)


def predicted_seconds(problem, device):
    rounds = 2 * CALL_SECONDS  # of threads, beside the product's: patches and weights
    return blocked.predicted_seconds(problem, device) + 3 * patch_bytes(problem) / 5e9 + rounds


def pack_seconds(problem, device):
    return blocked.seconds_to_pack(multiplication(problem), device)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with the packed weights w into y; x (N, C, H, W), y (N, K, P, Q) in logical
    order.
    """
    inner, count = multiplication(problem), patch_bytes(problem)
    element = np.dtype(np.uint16) if problem.dtype.itemsize == 2 else problem.dtype
    used = int(np.prod(inner.x_shape)) * element.itemsize
    patches = workspace[:used].view(element).reshape(inner.x_shape)
    call = pack_call(problem_fields(problem), x, x, patches, None, None, None)
    run_tasks(compiled(build, problem.dtype.name), call, problem.N * problem.C, device.threads)
    blocked.run(inner, device, patches, w, y, bias, residual, workspace[count:])
