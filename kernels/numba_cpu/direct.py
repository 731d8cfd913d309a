"""Direct convolution: the definition as plain loops. Right for every parameter, type, stride and layout; not fast.

One task is one output plane (n, k). For each of its outputs:

    x[n, c, h, w]  with h = p * stride - top + r * dilation      the window of taps r, s is cut where it
    w[k, c, r, s]       w = q * stride - left + s * dilation      leaves the image, so no tap needs a test

Read this one first: every other kernel computes the same sums in another order. It costs one load of x and one of w
per multiply-add and uses no vectors: 1 to 2 GFLOP/s a core where the blocked kernels reach 90.
Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016.
"""

from functools import lru_cache

from numba import float32, float64, uint16

from .call import CALL, pack_call, problem_fields
from .compilation import compiled, inlined
from .epilogue import activate
from .short_floats import number_functions
from .threads import run_tasks, task_loop
from .vectors import array_at, record_at

passes = ("forward",)
SECONDS_PER_MAC = 1.2e-9


@inlined
def first_tap(start, dilation):
    """The first tap whose position start + tap * dilation is not negative."""
    return 0 if start >= 0 else (-start + dilation - 1) // dilation


@inlined
def end_tap(start, dilation, size, taps):
    """One past the last tap whose position is under `size`."""
    return max(0, min(taps, (size - 1 - start) // dilation + 1)) if start < size else 0


def build(dtype_name):
    element = {"float32": float32, "float64": float64}.get(dtype_name, uint16)
    real = float64 if dtype_name == "float64" else float32
    as_number, as_stored = number_functions(dtype_name)

    def direct(call_address, plane, worker):
        call = record_at(CALL, call_address)
        x = array_at(element, call.x, (call.N, call.C, call.H, call.W), (call.x_n, call.x_c, call.x_h, call.x_w))
        w = array_at(element, call.w, (call.K, call.Cg, call.R, call.S), (call.w_k, call.w_c, call.w_r, call.w_s))
        y = array_at(element, call.y, (call.N, call.K, call.P, call.Q), (call.y_n, call.y_k, call.y_p, call.y_q))
        n, k = plane // call.K, plane % call.K
        first_channel = k // call.Kg * call.Cg

        for p in range(call.P):
            top = p * call.stride_h - call.top
            r_first, r_end = first_tap(top, call.dilation_h), end_tap(top, call.dilation_h, call.H, call.R)
            for q in range(call.Q):
                left = q * call.stride_w - call.left
                s_first, s_end = first_tap(left, call.dilation_w), end_tap(left, call.dilation_w, call.W, call.S)
                total = real(0)
                for c in range(call.Cg):
                    for r in range(r_first, r_end):
                        for s in range(s_first, s_end):
                            h, v = top + r * call.dilation_h, left + s * call.dilation_w
                            total += as_number(x[n, first_channel + c, h, v]) * as_number(w[k, c, r, s])
                y[n, k, p, q] = as_stored(finished(call, total, n, k, p, q))

    @inlined
    def finished(call, total, n, k, p, q):
        if call.has_bias:
            bias = array_at(element, call.bias, (call.K,), (call.bias_k,))
            total += as_number(bias[k])
        if call.has_residual:
            shape = (call.N, call.K, call.P, call.Q)
            strides = (call.residual_n, call.residual_k, call.residual_p, call.residual_q)
            total += as_number(array_at(element, call.residual, shape, strides)[n, k, p, q])
        return activate(total, call.activation, call.low, call.high, call.slope)

    return task_loop(direct)


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return [] if device.kind == "cpu" else [f"runs on the CPU only, x is on {device}"]


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    return 20e-6 + problem.macs * SECONDS_PER_MAC / min(device.threads, problem.N * problem.K)


@lru_cache(maxsize=1024)
def prepared(problem):
    """What every call for this problem shares: the packed sizes and the compiled loop."""
    return problem_fields(problem), compiled(build, problem.dtype.name)


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write the convolution of x with w into y; arrays in logical order (N, C, H, W), (K, C/groups, R, S), (N, K, P,
    Q).
    """
    fields, loop = prepared(problem)
    call = pack_call(fields, x, w, y, bias, residual, workspace)
    run_tasks(loop, call, problem.N * problem.K, device.threads)
