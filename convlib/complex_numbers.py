"""Complex numbers: real and imaginary parts as blocks of one real convolution, whose products are then put together.

    (a + ib) * (c + id)  =  (a*c - b*d) + i (a*d + b*c)

                   filters c    filters d
    images a          a*c          a*d            one call of a real kernel
    images b          b*c          b*d

A real operand stays as it is: the call has two blocks instead of four. Each operand's parts lie along an axis that it
shares with the result alone, so that they meet every part of the other:

    forward            x by its images                  w by its filters
    input gradient     grad_y by its images             w by its channels
    transposed         x by its images                  w by its filters, which lie where a convolution's channels do
    weight gradient    x by its channels                grad_y by its filters

and side by side within each group, where that is an axis of groups. The gradients are the adjoints, as PyTorch defines
them: w and x are conjugated in them, which costs a sign while they are copied into blocks. A product's four parts are
put together with one rounding more than a real convolution has; `accuracy.elementwise` has room for it, and the
norm-relative error stays under the real contract, since results grow as errors do.
Source: Trabelsi et al., Deep Complex Networks, ICLR 2018, section 3.2, which has the blocks in one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from . import arrays, device_arrays
from .operands import check_operands, check_shape, device_for, result_shape, spelled, view_of_out
from .padding_modes import limit_after
from .problem import COMPLEX_DTYPES, ConvProblem, batched_shape, checked_padding, make_problem, shortened
from .transposed_shapes import transposed_shape

PARTS = {"complex64": np.dtype(np.float32), "complex128": np.dtype(np.float64)}
BESIDE = ("float16", "float32", "float64")  # what a real operand beside a complex one may be


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand: along which of its axes, and in how many groups, its parts are to lie; and where in the result."""

    name: str
    array: Any
    axis: int
    groups: int
    result_axis: int
    result_groups: int
    conjugated: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """What `multiplied` needs: the real operation, its two operands, and the caller's wishes for the result."""

    library: Any
    dtype: np.dtype
    real: Callable[..., Any]
    first: Operand
    second: Operand
    shape: tuple[int, ...]
    layout: str
    backend: str
    workspace_limit: int | None
    out: Any = None
    bias: Any = None
    residual: Any = None


def conv2d(real_conv2d, x, w, bias, *, activation, residual, out, backend, workspace_limit, **keywords):
    """`real_conv2d`, which is operations.conv2d, where x, w or both are complex."""
    check_no_activation(activation)
    library, dtype = common(x=x, w=w, bias=bias, residual=residual, out=out)
    shape, batched = batched_shape(x.shape)
    problem = problem_of(shape, w.shape, keywords)
    layout, groups = problem.layout, problem.groups
    shape = result_shape(problem, batched)
    check_shape("bias", bias, (problem.K,))
    check_shape("residual", residual, shape)
    images = Operand("x", x, 0, 1, 0, 1)
    filters = Operand("w", w, keywords["weight_layout"].index("O"), groups, layout.index("C"), groups)
    real = partial(real_conv2d, **keywords)
    return multiplied(
        Product(library, dtype, real, images, filters, shape, layout, backend, workspace_limit, out, bias, residual)
    )


def conv2d_input_grad(real_input_grad, grad_y, w, input_shape, *, out, backend, workspace_limit, **keywords):
    """`real_input_grad`, which is gradients.conv2d_input_grad, where grad_y, w or both are complex."""
    library, dtype = common(grad_y=grad_y, w=w, out=out)
    shape, batched = batched_shape(input_shape, "input_shape")
    problem = problem_of(shape, w.shape, keywords, "input_grad")
    layout, groups = problem.layout, problem.groups
    check_shape("grad_y", grad_y, result_shape(problem, batched))
    channels = keywords["weight_layout"].index("I")

    def real(grad_y, w, **choice):
        sizes = {"N": grad_y.shape[0], "C": groups * w.shape[channels], "H": problem.H, "W": problem.W}
        return real_input_grad(grad_y, w, tuple(sizes[axis] for axis in layout), **keywords, **choice)

    images = Operand("grad_y", grad_y, 0, 1, 0, 1)
    by_channels = Operand("w", w, channels, 1, layout.index("C"), groups, conjugated=True)
    shape = tuple(input_shape)
    return multiplied(Product(library, dtype, real, images, by_channels, shape, layout, backend, workspace_limit, out))


def conv2d_weight_grad(real_weight_grad, x, grad_y, weight_shape, *, out, backend, workspace_limit, **keywords):
    """`real_weight_grad`, which is gradients.conv2d_weight_grad, where x, grad_y or both are complex."""
    library, dtype = common(x=x, grad_y=grad_y, out=out)
    shape, batched = batched_shape(x.shape)
    problem = problem_of(shape, weight_shape, keywords, "weight_grad")
    layout, groups = problem.layout, problem.groups
    check_shape("grad_y", grad_y, result_shape(problem, batched))
    weight_layout, channels = keywords["weight_layout"], layout.index("C")

    def real(x, grad_y, **choice):
        sizes = {"O": grad_y.shape[channels], "I": x.shape[channels] // groups, "H": problem.R, "W": problem.S}
        return real_weight_grad(x, grad_y, tuple(sizes[a] for a in weight_layout), **keywords, **choice)

    by_channels = Operand("x", x, channels, groups, weight_layout.index("I"), 1, conjugated=True)
    by_filters = Operand("grad_y", grad_y, channels, groups, weight_layout.index("O"), groups)
    shape = tuple(weight_shape)
    return multiplied(
        Product(library, dtype, real, by_channels, by_filters, shape, layout, backend, workspace_limit, out)
    )


def conv_transpose2d(real_transpose, x, w, bias, *, activation, residual, out, backend, workspace_limit, **keywords):
    """`real_transpose`, which is gradients.conv_transpose2d, where x, w or both are complex."""
    check_no_activation(activation)
    library, dtype = common(x=x, w=w, bias=bias, residual=residual, out=out)
    layout, weight_layout, groups = keywords["layout"], keywords["weight_layout"], keywords["groups"]
    shape, batched = batched_shape(x.shape)
    shape, _ = transposed_shape(
        shape, w.shape, layout, weight_layout, keywords["stride"], checked_padding(keywords["padding"]),
        keywords["output_padding"], keywords["dilation"], groups,
    )  # fmt: skip
    check_shape("bias", bias, (shape[layout.index("C")],))
    shape = shape if batched else shape[1:]
    check_shape("residual", residual, shape)
    images = Operand("x", x, 0, 1, 0, 1)
    filters = Operand("w", w, weight_layout.index("I"), 1, layout.index("C"), groups)
    real = partial(real_transpose, **keywords)
    return multiplied(
        Product(library, dtype, real, images, filters, shape, layout, backend, workspace_limit, out, bias, residual)
    )


def problem_of(x_shape, w_shape, keywords, pass_="forward") -> ConvProblem:
    """The problem with the caller's own sizes, which errors are to speak of."""
    names = ("stride", "padding", "dilation", "groups", "layout", "weight_layout")
    return make_problem(x_shape, tuple(w_shape), np.float32, pass_=pass_, **{name: keywords[name] for name in names})


def dtype_of(*dtypes) -> str | None:
    """The dtype, by NumPy's rule, of a result of operands of these; None where none is complex."""
    return np.result_type(*dtypes).name if any(dtype.kind == "c" for dtype in dtypes) else None


def in_blocks(problem: ConvProblem, x_dtype, w_dtype, workspace_limit) -> tuple[ConvProblem, int | None]:
    """The forward problem that real kernels get for `problem`, whose x, w or both are complex, and the bytes left."""
    operands = ((x_dtype, math.prod(problem.x_shape)), (w_dtype, math.prod(problem.w_shape)))
    left = limit_beside_blocks(workspace_limit, problem.dtype, *operands, math.prod(result_shape(problem, True)))
    return replace(problem, N=copies(x_dtype) * problem.N, K=copies(w_dtype) * problem.K), left


def check_no_activation(activation):
    if activation is not None:
        raise ValueError(
            f"activation: None needed with complex numbers, which have no order that relu and its like could cut at, "
            f"got {shortened(activation)}"
        )


def common(out=None, **named):
    """The library of all operands, the first one's, and by NumPy's rule the dtype of the result."""
    (first_name, first), *others = named.items()
    library = arrays.library_of(first, first_name)
    check_operands(library, first, None, first_name, **dict(others), out=out)
    dtypes = {name: library.dtype(array, name) for name, array in named.items() if array is not None}
    for name, dtype in dtypes.items():
        if dtype.name not in (*COMPLEX_DTYPES, *BESIDE) or not dtype.isnative:
            raise TypeError(
                f"{name}: {', '.join((*COMPLEX_DTYPES, *BESIDE))} needed where complex numbers are, "
                f"got {spelled(dtype)}"
            )
    dtype = np.result_type(*dtypes.values())
    if out is not None and library.dtype(out, "out") != dtype:
        came = ", ".join(f"{name} in {came}" for name, came in dtypes.items())
        raise TypeError(f"out: {dtype} needed for {came}, got {spelled(library.dtype(out, 'out'))}")
    return library, dtype


def multiplied(product: Product) -> Any:
    """The result of the operation in the operands' library: real products of blocks, put together."""
    library, operands = product.library, (product.first, product.second)
    check_shape("out", product.out, product.shape)
    named = {operand.name: operand.array for operand in operands} | {"bias": product.bias, "residual": product.residual}
    views = {name: library.view(array, name) for name, array in named.items() if array is not None}
    like = product.first.array
    if product.out is None:
        result, y = library.result(like, product.shape, library.channels_last(like), product.dtype)
    else:
        result, y = product.out, view_of_out(library, product.out, views)
    first, second = (views[operand.name] for operand in operands)
    real, sizes = PARTS[product.dtype.name], ((first.dtype, first.size), (second.dtype, second.size))
    limit = limit_beside_blocks(product.workspace_limit, real, *sizes, y.size)
    place = device_for(library, like, product.backend)
    backend = "numba_cuda" if place.kind == "simulator" and product.backend == "auto" else product.backend
    with device_arrays.array_module(place, library.stream(like), "complex numbers") as (module, array):
        given = {name: four_axes(array(view)) for name, view in views.items()}
        blocks = [as_blocks(module, given[operand.name], operand, real) for operand in operands]
        products = product.real(*blocks, backend=backend, workspace_limit=limit)
        y = four_axes(array(y))
        put_together(module, y, products, operands, (copies(first.dtype), copies(second.dtype)))
        if "bias" in given:
            y += given["bias"] if product.layout == "NHWC" else given["bias"][:, None, None]
        if "residual" in given:
            y += given["residual"]
    return library.finished(result)


def copies(dtype) -> int:
    """How many blocks an operand makes."""
    return 2 if dtype.kind == "c" else 1


def limit_beside_blocks(workspace_limit, real, first, second, y_size):
    """What is left for a kernel beside the blocks of both operands, each its dtype and size, and of their products; an
    operand that serves as it is takes nothing.
    """
    taken = sum(copies(dtype) * size for dtype, size in (first, second) if dtype != real)
    taken += copies(first[0]) * copies(second[0]) * y_size
    return limit_after(workspace_limit, taken * real.itemsize, "blocks of real and imaginary parts")


def four_axes(array):
    """An image without a batch as a batch of one; everything else as it is."""
    return array[None] if array.ndim == 3 else array


def as_blocks(module, array, operand, dtype):
    """A copy in real numbers, each group's real parts before its imaginary ones; of a real array no more than that."""
    if array.dtype.kind != "c":
        return array.astype(dtype, copy=False)
    before, size, after = array.shape[: operand.axis], array.shape[operand.axis], array.shape[operand.axis + 1 :]
    source = array.reshape(*before, operand.groups, size // operand.groups, *after)
    blocks = module.empty((*before, operand.groups, 2, size // operand.groups, *after), dtype)
    real, imaginary = (blocks[(*(slice(None),) * (operand.axis + 1), part)] for part in (0, 1))
    real[...] = source.real
    if operand.conjugated:
        module.negative(source.imag, out=imaginary)
    else:
        imaginary[...] = source.imag
    return blocks.reshape(*before, 2 * size, *after)


def put_together(module, y, products, operands, copies):
    """Write complex results into y: sums of the real products, in which each operand has as many blocks as copies."""
    whole = block(y, operands, (1, 1), (0, 0))
    part = partial(block, products, operands, copies)
    if copies == (2, 2):
        module.subtract(part((0, 0)), part((1, 1)), out=whole.real)
        module.add(part((0, 1)), part((1, 0)), out=whole.imag)
    else:
        whole.real[...] = part((0, 0))
        whole.imag[...] = part((copies[0] - 1, copies[1] - 1))


def block(array, operands, copies, parts):
    """A view of the block of a result that belongs to `parts`, one of each operand's; its axes are split by groups."""
    shape, index = list(array.shape), [slice(None)] * array.ndim
    by_axis = sorted(zip(operands, copies, parts), key=lambda row: row[0].result_axis, reverse=True)
    for operand, count, part in by_axis:
        axis, groups = operand.result_axis, operand.result_groups
        shape[axis : axis + 1] = groups, count, shape[axis] // (groups * count)
        index[axis : axis + 1] = slice(None), part, slice(None)
    return array.reshape(shape)[tuple(index)]
