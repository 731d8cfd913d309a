"""The end of every kernel: y = activation(sum + bias + residual), while the sum is still in a register.

None, relu and relu6 are one operation, a clamp between two limits that are infinite where there is none; NaN stays
NaN. Which of clamp, leaky_relu and silu it is, is decided when the kernel runs: a branch per tile costs less than a
compilation per activation.
"""

import math

from numba.core import types

from . import tracing
from .compilation import inlined
from .short_floats import memory_functions
from .tracing import bits, choose, constant, convert, fma, maximum, minimum, select, traced

CLAMP, LEAKY, SILU = 0, 1, 2
PAST_CACHE_BYTES = 8 << 20  # outputs this large are stored past the cache
LOG_2_HIGH, LOG_2_LOW = 0.693359375, -2.12194440054690583e-4  # their sum is log(2); n * LOG_2_HIGH is exact
LIMITS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def activation_fields(problem):
    """(kind, low, high, slope) as the kernels take them."""
    kind = {"leaky_relu": LEAKY, "silu": SILU}.get(problem.activation, CLAMP)
    return kind, *LIMITS.get(problem.activation, (-math.inf, math.inf)), problem.slope


def finished_before_rounding(problem) -> bool:
    """Is the end more than a clamp, and the result rounded when it is stored? Then it cannot be finished in memory."""
    clamped = activation_fields(problem)[0] == CLAMP and not problem.has_residual
    return problem.dtype != problem.accumulate and not clamped


def as_type(V, number):
    """A number as a number or vector of this type."""
    number = convert(number, V.scalar)
    return tracing.broadcast(V, number) if V.count else number


def limits(V, low, high):
    """A clamp's ends, as numbers or vectors of this type."""
    return as_type(V, low), as_type(V, high)


def clamped(value, ends):
    """The value, or the end that it is beyond."""
    least, most = ends
    return maximum(least, minimum(most, value))


def activated(values, kind, low, high, slope):
    """The activation of a list of Values (numbers or vectors of one type)."""
    V = values[0].type

    def clamp():
        ends = limits(V, low, high)
        return [clamped(v, ends) for v in values]

    def leaky():
        factor = as_type(V, slope)
        return [select(v < 0, v * factor, v) for v in values]

    def silu():
        return [v / (exponential(-v) + 1) for v in values]

    def other():
        return choose(kind.equals(LEAKY), leaky, silu)

    return choose(kind.equals(CLAMP), clamp, other)


def exponential(x):
    """e to the x: 2^n times the Taylor series of e^f, |f| <= log(2)/2, to the last bit or two of the type."""
    single = x.type.kind == "f32"
    terms, bias, mantissa, most = (8, 127, 23, 88.0) if single else (14, 1023, 52, 709.0)
    integers = x.type.of("i32" if single else "i64")
    shift = 1.5 * 2.0**mantissa  # adding it leaves the nearest integer in the low bits
    clamped = select(x > most, most, select(x < -most, -most, x))
    shifted = fma(clamped, constant(x, 1 / math.log(2)), constant(x, shift))
    n = shifted - shift
    f = fma(n, constant(x, -LOG_2_LOW), fma(n, constant(x, -LOG_2_HIGH), clamped))
    series = constant(x, 1 / math.factorial(terms))
    for power in reversed(range(terms)):
        series = fma(series, f, constant(x, 1 / math.factorial(power)))
    exponent = (bits(shifted, integers) - bits(constant(x, shift), integers) + bias) << mantissa
    return select(x.differs(x), x, select(x < -most, 0.0, series * bits(exponent, x.type)))


@traced(lambda value, *_: value)
def activate(value, kind, low, high, slope):
    """One number's activation, for kernels that finish one output at a time."""
    return activated([value], kind, low, high, slope)[0]


def store_one_function(dtype_name):
    """A Numba function store_one(call, n, k, pixel, sum): residual, activation and store of one output, wherever y
    lies.
    """
    read, write, _, _ = memory_functions(dtype_name)

    @inlined
    def store_one(call, n, k, pixel, number):
        p, q = pixel // call.Q, pixel % call.Q
        if call.has_residual:
            here = n * call.residual_n + k * call.residual_k + p * call.residual_p + q * call.residual_q
            number += read(call.residual + here)
        number = activate(number, call.activation, call.low, call.high, call.slope)
        write(call.y + n * call.y_n + k * call.y_k + p * call.y_p + q * call.y_q, number)

    return store_one


@traced(types.float64)
def exponential_of(x):
    """For tests: e to the x."""
    return exponential(x)
