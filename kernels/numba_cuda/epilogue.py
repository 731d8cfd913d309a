"""The end of every kernel: y = activation(sum + bias + residual), while the sum is still in a register.

One device function, chosen when the kernel is built, so a convolution without bias carries no test for one. Fusing it
saves a pass over y: a separate ReLU would read and write all of it again, 8 bytes of traffic per float32 output.
NaN stays NaN under every activation, as in PyTorch.
"""

import math
from functools import cache

from .storage import at, device_function, narrow, register_type, widen


def epilogue_of(problem):
    """What `finish` needs to know of a problem, and nothing else: kernels are memoised by it."""
    return problem.dtype.name, problem.activation, problem.slope, problem.has_bias, problem.has_residual


def operands(y, bias, residual):
    """bias and residual as kernel arguments: where there is none, y stands in its place and is never read there."""
    return y if bias is None else bias, y if residual is None else residual


@cache
def finish(dtype_name, activation, slope, has_bias, has_residual):
    """The device function that turns output (n, k, p, q)'s sum into the element to be stored."""
    add_bias = with_bias(dtype_name) if has_bias else unchanged()
    add_residual = with_residual(dtype_name) if has_residual else unchanged()
    activate = ACTIVATIONS[activation](register_type(dtype_name), slope)
    rounded = narrow(dtype_name)

    def finish_output(total, bias, residual, n, k, p, q):
        return rounded(activate(add_residual(add_bias(total, bias, n, k, p, q), residual, n, k, p, q)))

    return device_function(finish_output)


def with_bias(dtype_name):
    number = widen(dtype_name)
    return device_function(lambda total, bias, n, k, p, q: total + number(bias[at(k)]))


def with_residual(dtype_name):
    number = widen(dtype_name)
    return device_function(lambda total, residual, n, k, p, q: total + number(residual[at(n), at(k), at(p), at(q)]))


def unchanged():
    return device_function(lambda total, operand, n, k, p, q: total)


def identity(real, slope):
    return device_function(lambda total: total)


def relu(real, slope):
    return device_function(lambda total: real(0) if total < real(0) else total)


def relu6(real, slope):
    return device_function(lambda total: real(0) if total < real(0) else (real(6) if total > real(6) else total))


def leaky_relu(real, slope):
    return device_function(lambda total: total * real(slope) if total < real(0) else total)


def silu(real, slope):
    def activate(total):
        """total / (1 + exp(-total)), with an exponential that never overflows."""
        power = real(math.exp(-abs(total)))
        return total / (real(1) + power) * (power if total < real(0) else real(1))

    return device_function(activate)


ACTIVATIONS = {None: identity, "relu": relu, "relu6": relu6, "leaky_relu": leaky_relu, "silu": silu}
