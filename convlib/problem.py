"""ConvProblem: one two-dimensional convolution, checked once, here.

Letters are the field's: x is (N, C, H, W), w is (K, C/groups, R, S), y is (N, K, P, Q), whatever the memory order.

    y[n, k, p, q] = activation(bias[k] + residual[n, k, p, q] + sum over c, r, s of
                    x[n, c, p*stride - top + r*dilation, q*stride - left + s*dilation] * w[k, c, r, s])

Everything else in convlib (kernels, dispatch, tests, benchmarks) takes a ConvProblem and trusts it.
Source of the definition: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, section 2.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real

import numpy as np

LAYOUTS = ("NCHW", "NHWC")
WEIGHT_LAYOUTS = ("OIHW", "OHWI", "HWIO")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
ACTIVATIONS = (None, "relu", "relu6", "silu", "leaky_relu")
DTYPES = ("float16", "bfloat16", "float32", "float64")
COMPLEX_DTYPES = ("complex64", "complex128")  # as problems of their real and imaginary parts: complex_numbers.py
PRECISIONS = (None, "tf32", "3xtf32")
PASSES = ("forward", "input_grad", "weight_grad")
CALLERS_NAMES = {  # what the caller of a pass calls the shapes of x and w
    "forward": ("x", "w"),
    "input_grad": ("input_shape", "w"),
    "weight_grad": ("x", "weight_shape"),
}
Pair = int | Sequence[int]  # (rows, columns)
Padding = int | str | Sequence[int | Sequence[int]]  # of ((top, bottom), (left, right))
LARGEST_INT = 2**31 - 1  # kernels take sizes and parameters as 32-bit numbers, offsets as 64-bit ones
LARGEST_ARRAY = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """The shapes and parameters of one convolution. Made by `make_problem`, which checks them.

    precision: what float32 may be multiplied in: None, float32 itself; "tf32", on tensor cores, x and w rounded to 11
    significant bits; "3xtf32", there too, as three products that keep the bits of float32.

    >>> problem = make_problem((1, 3, 8, 8), (4, 3, 3, 3), "float32", stride=2, padding=1)
    >>> problem.y_shape, problem.macs
    ((1, 4, 4, 4), 1728)
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: np.dtype = np.dtype(np.float32)
    layout: str = "NCHW"
    activation: str | None = None
    slope: float = 0.0
    has_bias: bool = False
    has_residual: bool = False
    pass_: str = "forward"
    precision: str | None = None

    @property
    def P(self) -> int:
        return output_size(self.H, self.R, self.stride[0], self.padding[0], self.dilation[0])

    @property
    def Q(self) -> int:
        return output_size(self.W, self.S, self.stride[1], self.padding[1], self.dilation[1])

    @property
    def Cg(self) -> int:
        """Input channels per group."""
        return self.C // self.groups

    @property
    def Kg(self) -> int:
        """Output channels per group."""
        return self.K // self.groups

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.K, self.Cg, self.R, self.S

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.K, self.P, self.Q

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct algorithm; GFLOP/s are quoted as 2 * macs / seconds for every algorithm."""
        return self.N * self.K * self.P * self.Q * self.Cg * self.R * self.S

    @property
    def operand_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of a kernel's two operands and its result, in the order in which it takes them."""
        shapes = {
            "forward": (self.x_shape, self.w_shape, self.y_shape),
            "input_grad": (self.y_shape, self.w_shape, self.x_shape),
            "weight_grad": (self.x_shape, self.y_shape, self.w_shape),
        }
        return shapes[self.pass_]

    @property
    def reduction(self) -> int:
        """How many products each element of the pass's result sums."""
        if self.pass_ == "input_grad":
            return self.Kg * self.R * self.S
        if self.pass_ == "weight_grad":
            return self.N * self.P * self.Q
        return self.Cg * self.R * self.S

    @property
    def accumulate(self) -> np.dtype:
        """The type sums are kept in: float64 for float64, float32 for everything shorter."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.C and self.groups > 1

    def __str__(self) -> str:
        (top, bottom), (left, right) = self.padding
        return (
            f"{self.pass_} {self.N}x{self.C}x{self.H}x{self.W} -> {self.K}, {self.R}x{self.S}, stride {self.stride}, "
            f"padding ({top}, {bottom}), ({left}, {right}), dilation {self.dilation}, groups {self.groups}, "
            f"{self.dtype}{f' in {self.precision}' if self.precision else ''}, {self.layout}"
        )


def output_size(size: int, window: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    """Output rows (or columns) of a convolution over `size` input rows."""
    return (size + sum(padding) - dilation * (window - 1) - 1) // stride + 1


def make_problem(
    x_shape,
    w_shape,
    dtype,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    layout="NCHW",
    weight_layout="OIHW",
    activation=None,
    has_bias=False,
    has_residual=False,
    pass_="forward",
    precision=None,
) -> ConvProblem:
    """Check one convolution and return it as a ConvProblem.

    x_shape: 4 sizes in `layout`'s order; w_shape: 4 sizes in `weight_layout`'s order. Raises ValueError for a wrong
    shape or value and TypeError for a wrong type; each names the argument, what came and what is needed.
    """
    check_choice("layout", layout, LAYOUTS)
    check_choice("weight_layout", weight_layout, WEIGHT_LAYOUTS)
    check_choice("pass_", pass_, PASSES)
    dtype = checked_dtype(dtype)
    check_precision(precision, dtype)
    return settled_problem(
        four_sizes("x", x_shape, layout), four_sizes("w", w_shape, weight_layout), dtype,
        *one_spelling(stride, padding, dilation, groups, activation), layout, weight_layout, bool(has_bias),
        bool(has_residual), pass_, precision,
    )  # fmt: skip


def check_precision(precision, dtype):
    check_choice("precision", precision, PRECISIONS)
    if precision and dtype != np.float32:
        raise ValueError(f"precision: None needed, except of float32; got {precision!r} with {dtype}")


def one_spelling(stride, padding, dilation, groups, activation):
    """The parameters checked one by one, each as it is spelled in a cache's key, where 1, 1.0 and True are the same."""
    return (
        pair("stride", stride, least=1),
        checked_padding(padding),
        pair("dilation", dilation, least=1),
        integer("groups", groups, least=1),
        checked_activation(activation),
    )


@lru_cache(maxsize=4096)
def settled_problem(
    x_shape, w_shape, dtype, stride, padding, dilation, groups, activation, layout, weight_layout, has_bias,
    has_residual, pass_, precision,
):  # fmt: skip
    """What is left of make_problem once every argument is well-formed: whether they agree with each other."""
    N, C, H, W = in_order(x_shape, layout, "NCHW")
    K, Cg, R, S = in_order(w_shape, weight_layout, "OIHW")
    x_name, w_name = CALLERS_NAMES[pass_]
    for name, size in (("C", C), ("H", H), ("W", W)):
        if size < 1:
            raise ValueError(f"{x_name}: {name} must be at least 1, got shape {x_shape} in {layout}")
    if min(K, Cg, R, S) < 1:
        raise ValueError(f"{w_name}: every size must be at least 1, got shape {w_shape} in {weight_layout}")
    check_channels(C, K, Cg, groups, w_name)
    padding = resolved_padding(padding, (H, W), (R, S), stride, dilation)
    check_window((H, W), (R, S), padding, dilation, x_name, w_name)
    activation, slope = activation if isinstance(activation, tuple) else (activation, 0.0)
    problem = ConvProblem(
        N, C, H, W, K, R, S, stride, padding, dilation, groups, dtype, layout, activation, slope, has_bias,
        has_residual, pass_, precision,
    )  # fmt: skip
    if math.prod(problem.y_shape) * dtype.itemsize > LARGEST_ARRAY:
        raise ValueError(f"padding: a result of at most {LARGEST_ARRAY} bytes needed, got N K P Q = {problem.y_shape}")
    return problem


def batched_shape(x_shape, name="x"):
    """The four sizes of an x of three or four dimensions, and whether it has four: three are one image.

    name: what the caller calls it.
    """
    x_shape = sizes(name, x_shape)
    if len(x_shape) == 4:
        return x_shape, True
    if len(x_shape) == 3:
        return (1, *x_shape), False
    raise ValueError(
        f"{name}: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got {len(x_shape)}: {x_shape}"
    )


def sizes(name, shape):
    """A shape as a tuple of ints."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{name}: a shape, as a tuple of ints, needed, got {shortened(shape)}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= LARGEST_INT:
            integer(name if name.endswith("_shape") else f"{name}'s shape", size, least=0)
    return tuple(map(int, shape))


def four_sizes(name, shape, order):
    shape = sizes(name, shape)
    if len(shape) != 4:
        raise ValueError(f"{name}: 4 dimensions needed ({', '.join(order)}), got {len(shape)}: {shape}")
    return shape


def in_order(shape, order, wanted):
    """The sizes of `shape`, whose axes are in `order`, in the order `wanted`."""
    return tuple(shape[order.index(axis)] for axis in wanted)


def checked_dtype(dtype, name="x") -> np.dtype:
    """A supported dtype in native byte order, from a dtype, a type or a name."""
    return supported_dtype(named_dtype(dtype, name) if isinstance(dtype, str) else np.dtype(dtype), name)


def named_dtype(text, name="x") -> np.dtype:
    """The NumPy dtype called `text`, bfloat16 included."""
    if text == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(text)
    except TypeError:
        raise TypeError(f"{name}: dtype must be one of {', '.join(DTYPES)}, got {text}") from None


@lru_cache
def supported_dtype(dtype, name):
    if dtype.name not in DTYPES:
        raise TypeError(
            f"{name}: dtype must be one of {', '.join(DTYPES)}, got {dtype.name}; convlib never converts inputs"
        )
    if not dtype.isnative:
        raise TypeError(
            f'{name}: native byte order needed, got {dtype.str}; use {name}.astype({name}.dtype.newbyteorder("="))'
        )
    return dtype


def shortened(value) -> str:
    """What came, in one line of an error, be it an array by mistake."""
    return " ".join(reprlib.repr(value).split())


def check_choice(name, value, choices):
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name}: one of {', '.join(map(repr, choices))} needed, got {shortened(value)}")


def as_float(number) -> float:
    """A real number as a float; one that is too large, as an int or a fraction may be, as an infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def integer(name, value, least, most=LARGEST_INT):
    if type(value) is int and least <= value <= most:  # the usual case, and many a time a call
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: an int needed, got {shortened(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name}: at least {least} and at most {most} needed, got {shortened(int(value))}")
    return int(value)


PAIR = "an int or a pair (rows, columns)"
PADDING = "an int, a pair (rows, columns), two pairs ((top, bottom), (left, right)), 'valid' or 'same'"
TOP_BOTTOM = "of rows an int or a pair (top, bottom)"
LEFT_RIGHT = "of columns an int or a pair (left, right)"


def pair(name, value, least, needed=PAIR):
    """An int or two ints (rows, columns), as two ints. needed: what an error says that the argument may be."""
    if type(value) is int and least <= value <= LARGEST_INT:  # as in `integer`
        return value, value
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: {needed} needed, got {shortened(value)}")
        return integer(name, value[0], least), integer(name, value[1], least)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: {needed} needed, got {shortened(value)}")
    value = integer(name, value, least)
    return value, value


def check_channels(C, K, Cg, groups, w_name):
    if C % groups:
        raise ValueError(f"groups: must divide C = {C}, got {groups}")
    if K % groups:
        raise ValueError(f"groups: must divide K = {K} (the filters of {w_name}), got {groups}")
    if Cg * groups != C:
        needed = f"C / groups = {C // groups} input channels needed (C = {C}, groups = {groups})"
        raise ValueError(f"{w_name}: {needed}, got {Cg}")


def check_window(size, window, padding, dilation, x_name, w_name):
    for axis in (0, 1):
        padded = size[axis] + sum(padding[axis])
        extent = dilation[axis] * (window[axis] - 1) + 1
        if extent > padded:
            raise ValueError(
                f"{w_name}: its {('rows', 'columns')[axis]} span {extent} (with dilation {dilation[axis]}), more than "
                f"the {padded} of {x_name} with its padding; add padding or use a smaller kernel"
            )


def checked_padding(padding):
    """Padding in any of its spellings as "valid", "same" or ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        check_choice("padding", padding, ("valid", "same"))
        return padding
    if isinstance(padding, (tuple, list)) and len(padding) == 2:
        rows, columns = padding
        if isinstance(rows, (tuple, list)) or isinstance(columns, (tuple, list)):
            return pair("padding", rows, 0, TOP_BOTTOM), pair("padding", columns, 0, LEFT_RIGHT)
    rows, columns = pair("padding", padding, least=0, needed=PADDING)
    return (rows, rows), (columns, columns)


def resolved_padding(padding, size, window, stride, dilation):
    """Padding as checked_padding gives it, as ((top, bottom), (left, right))."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        return tuple(same_padding(size[a], window[a], stride[a], dilation[a]) for a in (0, 1))
    return padding


def same_padding(size, window, stride, dilation):
    """As TensorFlow and JAX have it: ceil(size / stride) outputs, the odd element of padding at the end."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + dilation * (window - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def checked_activation(activation):
    """None, a name, or ("leaky_relu", slope)."""
    if isinstance(activation, (tuple, list)):
        if len(activation) != 2 or activation[0] != "leaky_relu" or not isinstance(activation[1], Real):
            raise ValueError(f'activation: a pair must be ("leaky_relu", slope), got {shortened(activation)}')
        slope = as_float(activation[1])
        if isinstance(activation[1], bool) or not math.isfinite(slope):
            raise ValueError(f"activation: a finite slope needed, got {shortened(activation)}")
        return "leaky_relu", slope + 0.0  # -0.0 becomes 0.0: they would share a cache's entry
    if isinstance(activation, str) and activation == "leaky_relu":
        raise ValueError('activation: leaky_relu needs its slope, as ("leaky_relu", 0.01)')
    if activation is not None and (not isinstance(activation, str) or activation not in ACTIVATIONS):
        names = ", ".join(map(repr, ACTIVATIONS[:-1]))
        raise ValueError(f'activation: one of {names}, ("leaky_relu", slope) needed, got {shortened(activation)}')
    return activation
