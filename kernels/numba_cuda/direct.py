"""Direct convolution: one thread computes one output, straight from the definition.

    y[n, k, p, q] = sum over c, r, s of
        x[n, c, p*stride - top + r*dilation, q*stride - left + s*dilation] * w[k, c, r, s]

    NCHW: 32 neighbouring threads = 32 neighbouring q        NHWC: 32 neighbouring threads = 32 neighbouring k
    x: neighbouring addresses, one 128-byte line a load      x: one address for all 32, a broadcast
    w: one address for all 32, a broadcast                   w: 32 filters, and y leaves in whole lines

Why it is here: it is the definition on a GPU, serves every problem, and is read first. Every product costs two loads
through the L1 cache and, in the machine code of a 3 x 3 window (sm_80), 9 to 10 instructions, one of them the
multiply-add; tiled.py takes the same sums out of shared memory and registers at 1.3.
R and S are compile-time constants: the taps of a window unroll, their 18 loads are under way together, and whether a
row or a column of the window lies inside the image is worked out once per output, not once per channel.
Shared memory: none, so no bank conflicts. Limits: none; offsets are 64-bit, and the grid is one-dimensional, where
2^31 - 1 blocks of 256 outputs are more than any GPU's memory holds.
Source: the definition: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, section 2.
"""

from functools import cache

from numba import cuda

from .. import gpu_cost as cost
from ..launching import ceil_div, launch
from .epilogue import epilogue_of, finish, operands
from .storage import at, register_type, widen

THREADS = 256
BLOCKS_PER_SM = 4  # 64 registers a thread (3 x 3, sm_80) of 65,536: 32 warps to hide the loads behind
MULTIPLY_SHARE = 0.1  # multiply-adds among the instructions of the loop, see above

WAITING = cost.waiting("numba_cuda.direct")

passes = ("forward",)


@cache
def compiled(R, S, channels_last, epilogue):
    """The kernel for one window, one order of threads and one epilogue; other sizes are arguments."""
    dtype_name = epilogue[0]
    number, real, finished = widen(dtype_name), register_type(dtype_name), finish(*epilogue)

    @cuda.jit
    def conv2d_direct(x, w, y, bias, residual, stride_h, stride_w, top, left, dilation_h, dilation_w, groups):
        N, K, P, Q = y.shape
        H, W = x.shape[2], x.shape[3]
        Cg = w.shape[1]

        index = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if index >= N * K * P * Q:
            return
        if channels_last:
            index, k = index // K, index % K
            index, q = index // Q, index % Q
            n, p = index // P, index % P
        else:
            index, q = index // Q, index % Q
            index, p = index // P, index % P
            n, k = index // K, index % K

        h0, w0 = p * stride_h - top, q * stride_w - left
        first_c = k // (K // groups) * Cg
        total = real(0)
        for c in range(Cg):
            for r in range(R):
                for s in range(S):
                    h, v = h0 + r * dilation_h, w0 + s * dilation_w
                    if 0 <= h < H and 0 <= v < W:
                        total += number(x[at(n), at(first_c + c), at(h), at(v)]) * number(w[at(k), at(c), at(r), at(s)])
        y[at(n), at(k), at(p), at(q)] = finished(total, bias, residual, n, k, p, q)

    return conv2d_direct


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    return []


def workspace_bytes(problem, device):
    return 0


def predicted_seconds(problem, device):
    """Bound by the instructions of its loop, which the load units could hardly feed faster."""
    blocks, macs = ceil_div(problem.N * problem.K * problem.P * problem.Q, THREADS), THREADS * problem.reduction
    multiply = cost.multiply_seconds(problem, device, blocks, macs, BLOCKS_PER_SM, MULTIPLY_SHARE)
    return max(WAITING * multiply, cost.memory_seconds(problem, device)) + cost.LAUNCH


def run(problem, device, x, w, y, bias=None, residual=None, workspace=None, stream=None):
    """Write activation(conv(x, w) + bias + residual) into y, on `stream`. All in logical order, any strides."""
    (top, _), (left, _) = problem.padding
    kernel = compiled(problem.R, problem.S, problem.layout == "NHWC", epilogue_of(problem))
    outputs = problem.N * problem.K * problem.P * problem.Q
    bias, residual = operands(y, bias, residual)
    args = (x, w, y, bias, residual, *problem.stride, top, left, *problem.dilation, problem.groups)
    launch(kernel, ceil_div(outputs, THREADS), THREADS, args, stream=stream)
