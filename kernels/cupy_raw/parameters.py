"""How a ConvProblem and its arrays become arguments and constants of the CUDA C kernels: the twin of problem.cuh."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

ELEMENTS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}
ACTIVATIONS = {None: "IDENTITY", "relu": "RELU", "relu6": "RELU6", "silu": "SILU", "leaky_relu": "LEAKY_RELU"}

STRIDES = np.dtype([("n", "i8"), ("c", "i8"), ("h", "i8"), ("w", "i8")])


@cache
def problem_type(accumulate):
    """The layout of `struct Problem`; a kernel takes it by value, as a 0-dimensional array."""
    strides = [(name, STRIDES) for name in ("x", "w", "y", "residual")]
    sizes = [(name, "i4") for name in ("N", "C", "H", "W", "K", "P", "Q", "Cg", "Kg", "groups", "top", "left")]
    return np.dtype([*strides, ("bias", "i8"), *sizes, ("slope", accumulate)], align=True)


def problem_struct(problem, x=None, w=None, y=None, bias=None, residual=None):
    """The argument `problem` of every kernel; of the arrays, those that it reads or writes."""
    item = problem.dtype.itemsize
    return struct_of(problem, item, *(strides_of(array) for array in (x, w, y, bias, residual)))


def strides_of(array):
    return None if array is None else array.strides


@lru_cache(maxsize=4096)
def struct_of(problem, item, x, w, y, bias, residual):
    """problem_struct by the arrays' strides in bytes; cached, since to fill one takes longer than a launch."""
    (top, _), (left, _) = problem.padding
    struct = np.zeros((), problem_type(problem.accumulate))
    for name, strides in (("x", x), ("w", w), ("y", y), ("residual", residual)):
        struct[name] = element_strides(name, strides, item)
    struct["bias"] = element_strides("bias", bias, item)[0]
    for name in ("N", "C", "H", "W", "K", "P", "Q", "Cg", "Kg", "groups"):
        struct[name] = getattr(problem, name)
    struct["top"], struct["left"], struct["slope"] = top, left, problem.slope
    struct.flags.writeable = False
    return struct


def element_strides(name, strides, item):
    """Strides in elements, as the kernels count them; zeros where there is no array."""
    if strides is None:
        return (0, 0, 0, 0)
    if any(stride % item for stride in strides):
        raise ValueError(f"{name}: strides that are multiples of its {item}-byte elements needed, got {strides}")
    return tuple(stride // item for stride in strides)


def type_constants(problem, wide):
    """-D constants of storage.cuh and problem.cuh: the arrays' type, and that of offsets into them."""
    return (("ELEMENT", ELEMENTS[problem.dtype.name]), ("WIDE", int(wide)))


def window_constants(problem):
    """-D constants of problem.cuh: what makes the loops over the window unroll."""
    return (
        ("R", problem.R),
        ("S", problem.S),
        ("STRIDE_H", problem.stride[0]),
        ("STRIDE_W", problem.stride[1]),
        ("DILATION_H", problem.dilation[0]),
        ("DILATION_W", problem.dilation[1]),
    )


def store_constants(problem):
    """-D constants of epilogue.cuh."""
    return (("ACTIVATION", ACTIVATIONS[problem.activation]),)


def layout_constants(problem):
    return (("CHANNELS_LAST", int(problem.layout == "NHWC")),)


def is_wide(problem, x=None, w=None, y=None, residual=None):
    """Whether an array, or x with its padding, spans 2^31 elements, or outputs are as many: these need 64 bits."""
    return spans_wide(problem, *(strides_of(array) for array in (x, w, y, residual)))


@lru_cache(maxsize=4096)
def spans_wide(problem, x, w, y, residual):
    N, C, H, W = problem.x_shape
    (top, bottom), (left, right) = problem.padding
    padded = N, C, H + top + bottom, W + left + right
    shapes = {
        "x": (x, padded),
        "w": (w, problem.w_shape),
        "y": (y, problem.y_shape),
        "residual": (residual, problem.y_shape),
    }
    item = problem.dtype.itemsize
    spans = (span(element_strides(name, strides, item), shape) for name, (strides, shape) in shapes.items())
    return max(problem.N * problem.P * problem.Q, *spans) >= 2**31


def span(strides, shape):
    """How many elements lie between the first and the last of `shape`, at these strides."""
    return sum(abs(stride) * size for stride, size in zip(strides, shape))


def size_reasons(problem):
    """Why sizes do not fit the kernels' 32-bit coordinates; offsets and counts of outputs are 64-bit and always fit."""
    (top, bottom), (left, right) = problem.padding
    sizes = {"H with its padding": problem.H + top + bottom, "W with its padding": problem.W + left + right}
    sizes["C / groups * R * S"] = problem.Cg * problem.R * problem.S
    return [f"{name}: less than 2^31 needed, got {size:,}" for name, size in sizes.items() if size >= 2**31]
