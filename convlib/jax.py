"""JAX: conv2d and conv_transpose2d that jit, grad, vmap and everything made of them take.

    import convlib.jax
    by_w = jax.jit(jax.grad(lambda w: convlib.jax.conv2d(x, w, padding="same").sum()))(w)

Three primitives, each linear in both operands and each other's derivatives, so gradients of any order exist, in forward
and in reverse mode:

    primitive                    transposed by its first    by its second
    convlib_conv2d(x, w)         input_grad(g, w)           weight_grad(x, g)
    convlib_input_grad(y, w)     conv2d(g, w)               weight_grad(g, y)
    convlib_weight_grad(x, y)    input_grad(y, g)           conv2d(x, g)

vmap stacks images in N, filters in K and channels in C, or makes groups where both operands are batched: always one
call. Under shard_map a gradient is summed over the devices that share what it is taken by. XLA hands its own buffers to
the kernels (jax.experimental.buffer_callback), so nothing is copied on the way in or out; jax.pure_callback would copy
both ways, and can wait for itself. On a GPU the buffers are used where they lie, on XLA's stream, through CuPy; that
has not run on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

try:
    import jax
    from jax import numpy as jnp
    from jax.experimental.buffer_callback import buffer_callback
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
    from jax.sharding import NamedSharding, PartitionSpec
except ImportError as error:
    raise ImportError('convlib.jax: needs JAX, 0.6.1 or later: pip install "jax>=0.6.1"') from error

from . import gradients, operations, transposed_shapes
from .operands import callers_shape
from .problem import COMPLEX_DTYPES, Padding, Pair, batched_shape, checked_dtype, checked_padding, make_problem

# What each primitive is called by: the array that it gives. Its operands are the other two.
PRIMITIVES = {
    "y": Primitive("convlib_conv2d"),
    "x": Primitive("convlib_input_grad"),
    "w": Primitive("convlib_weight_grad"),
}
OPERANDS = {"y": ("x", "w"), "x": ("y", "w"), "w": ("x", "y")}
AXES = {"x": "NC", "w": "KC", "y": "NK"}  # besides rows and columns
KERNELS = {"y": operations.conv2d, "x": gradients.conv2d_input_grad, "w": gradients.conv2d_weight_grad}
CPU = 1  # DLPack's number for it


@dataclass(frozen=True)
class Parameters:
    """How x, w and y of one convolution belong together, besides their shapes."""

    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    layout: str
    weight_layout: str
    precision: str | None

    def axis(self, name: str, letter: str) -> int:
        """Where the axis `letter`, one of N, C and K, lies in the array `name`, one of x, w and y."""
        if name == "w":
            return self.weight_layout.index({"K": "O", "C": "I"}[letter])
        return self.layout.index("N" if letter == "N" else "C")


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    precision: str | None = None,
) -> jax.Array:
    """convlib.conv2d for JAX: y = x * w + bias, under jit, grad, jvp and vmap.

    x: (N, C, H, W), or (C, H, W) for one image; w: (K, C / groups, R, S); bias: (K,); the result (N, K, P, Q). Each a
    jax.Array or numpy.ndarray, all of one dtype (float16, bfloat16, float32, complex64; float64 and complex128 where
    JAX has jax_enable_x64).
    Parameters and errors are convlib.conv2d's; shapes and dtypes are checked while tracing. precision holds for the
    derivatives too; JAX's own setting, jax_default_matmul_precision, is not asked.

    >>> import jax
    >>> x, w = jax.numpy.ones((1, 1, 3, 3)), jax.numpy.ones((1, 1, 2, 2))
    >>> jax.jit(conv2d)(x, w)[0, 0]
    Array([[4., 4.],
           [4., 4.]], dtype=float32)
    >>> jax.grad(lambda x: conv2d(x, w).sum())(x)[0, 0]
    Array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    x, w, bias = operands(x, w, bias)
    shape, batched = batched_shape(x.shape)
    problem = make_problem(
        shape, w.shape, x.real.dtype, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
        weight_layout=weight_layout, precision=precision,
    )  # fmt: skip
    check_bias(bias, problem.K)
    parameters = parameters_of(problem, weight_layout)
    y = bind("y", x.reshape(shape), w, callers_shape(problem.y_shape, layout, True), parameters)
    return finished(y, bias, layout, batched)


def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    precision: str | None = None,
) -> jax.Array:
    """convlib.conv_transpose2d for JAX, under jit, grad, jvp and vmap.

    x: (N, C, H, W), or (C, H, W); w: (C, K / groups, R, S), "O" of weight_layout being C; bias: (K,). Arrays, dtypes
    and errors as conv2d here; the shape of the result as convlib.conv_transpose2d has it.

    >>> import jax
    >>> conv_transpose2d(jax.numpy.ones((1, 1, 2)), jax.numpy.ones((1, 1, 1, 2)))
    Array([[[1., 2., 1.]]], dtype=float32)

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016, chapter 4.
    """
    x, w, bias = operands(x, w, bias)
    shape, batched = batched_shape(x.shape)
    shape_y, padding = transposed_shapes.transposed_shape(
        shape, w.shape, layout, weight_layout, stride, checked_padding(padding), output_padding, dilation, groups
    )
    # The transposed convolution goes from y to x of this one.
    problem = make_problem(
        shape_y, w.shape, x.real.dtype, stride=stride, padding=padding, dilation=dilation, groups=groups, layout=layout,
        weight_layout=weight_layout, pass_="input_grad", precision=precision,
    )  # fmt: skip
    check_bias(bias, problem.C)
    parameters = parameters_of(problem, weight_layout)
    x = as_many(x.reshape(shape), callers_shape(problem.y_shape, layout, True))
    return finished(bind("x", x, w, shape_y, parameters), bias, layout, batched)


def parameters_of(problem, weight_layout):
    return Parameters(
        problem.stride, problem.padding, problem.dilation, problem.groups, problem.layout, weight_layout,
        problem.precision,
    )  # fmt: skip


def operands(x, w, bias):
    """The three as JAX arrays or tracers, of one supported dtype."""
    arrays = {"x": x, "w": w} | ({} if bias is None else {"bias": bias})
    for name, array in arrays.items():
        if not isinstance(array, (jax.Array, np.ndarray)):
            came = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(f"{name}: a JAX or NumPy array needed, got {came}")
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    dtype = arrays["x"].dtype
    if dtype.name not in COMPLEX_DTYPES:
        dtype = checked_dtype(dtype)
    for name, array in arrays.items():
        if array.dtype != dtype:
            raise TypeError(f"{name}: {dtype.name} needed, like x, got {array.dtype}; convlib never converts inputs")
    return arrays["x"], arrays["w"], arrays.get("bias")


def check_bias(bias, filters):
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"bias: shape {(filters,)} needed, got {bias.shape}")


def finished(y, bias, layout, batched):
    """y with its bias, which XLA adds together with what comes next; without N for a single image."""
    if bias is not None:
        y = y + (bias[:, None, None] if layout == "NCHW" else bias)
    return y if batched else y[0]


def as_many(x, shape):
    """x with zeros after it where the convolution has more outputs: output_padding may exceed the stride."""
    return jnp.pad(x, [(0, wanted - size) for wanted, size in zip(shape, x.shape)])


def bind(result, first, second, shape, parameters):
    """A primitive of two arrays. Under shard_map both are made to vary over the devices that either varies over.

    So the gradient of one that is the same on all of these is summed over them.
    """
    by_first, by_second = (varying(jax.typeof(array)) for array in (first, second))
    first, second = cast_varying(first, by_second - by_first), cast_varying(second, by_first - by_second)
    return PRIMITIVES[result].bind(first, second, shape=tuple(shape), parameters=parameters)


def varying(aval) -> frozenset:
    """The axes of a shard_map's mesh along which an array of this type differs from device to device."""
    kept = getattr(aval, "manual_axis_type", None)  # JAX 0.10
    return getattr(aval, "vma", frozenset()) if kept is None else kept.varying


def cast_varying(array, axes):
    if not axes:
        return array
    axes = tuple(axes)
    return jax.lax.pcast(array, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(array, axes)


@dataclass(frozen=True)
class Callback:
    """What XLA calls: one primitive on its buffers. Equal for equal calls, so that JAX compiles each once."""

    result: str
    shape: tuple[int, ...]
    parameters: Parameters

    def __call__(self, context, out, first, second):
        if out.__dlpack_device__()[0] == CPU:
            self.run(np.asarray(out), np.asarray(first), np.asarray(second))
        else:
            import cupy

            with cupy.cuda.ExternalStream(context.stream):
                self.run(*map(cupy.from_dlpack, (out, first, second)))

    def run(self, out, first, second):
        # JAX transposes without conjugating; the gradients that we call conjugate w and x.
        if self.result == "x" and second.dtype.kind == "c":
            second = second.conj()
        if self.result == "w" and first.dtype.kind == "c":
            first = first.conj()
        shape = () if self.result == "y" else (self.shape,)
        KERNELS[self.result](first, second, *shape, **vars(self.parameters), out=out)


def run(result, first, second, *, shape, parameters):
    return buffer_callback(Callback(result, shape, parameters), jax.ShapeDtypeStruct(shape, first.dtype))(first, second)


def abstract(first, second, *, shape, parameters):
    """An array that varies over devices as `first` does, with nothing said of how its own axes lie on them."""
    if not varying(first):
        return jax.core.ShapedArray(shape, first.dtype)
    sharding = NamedSharding(first.sharding.mesh, PartitionSpec(*[None] * len(shape)))
    return first.update(shape=shape, weak_type=False, sharding=sharding)


def transposed_by_first(result, grad, first, second, *, shape, parameters):
    wanted, other = OPERANDS[result]
    return derivative(wanted, {result: grad, other: second}, first.aval.shape, parameters)


def transposed_by_second(result, grad, first, second, *, shape, parameters):
    other, wanted = OPERANDS[result]
    return derivative(wanted, {result: grad, other: first}, second.aval.shape, parameters)


def derivative(wanted, arrays, shape, parameters):
    """The array `wanted`, one of x, w and y, from the other two."""
    return bind(wanted, *(arrays[name] for name in OPERANDS[wanted]), shape, parameters)


def batched(result, arrays, places, *, shape, parameters):
    """vmap: the new axis goes into one that the arrays have, so that one call serves all of it."""
    arrays, places = dict(zip(OPERANDS[result], arrays)), dict(zip(OPERANDS[result], places))
    B = next(arrays[name].shape[place] for name, place in places.items() if place is not None)
    if B == 0:
        return jnp.zeros((0, *shape), arrays[OPERANDS[result][0]].dtype), 0
    into, groups = axes_for_batch(result, [name for name in arrays if places[name] is not None], parameters.groups, B)
    for name, letter in into.items():
        if name != result:
            arrays[name] = joined(arrays[name], places[name], B, parameters.axis(name, letter))
    axis = parameters.axis(result, into[result])
    stacked = [B * size if a == axis else size for a, size in enumerate(shape)]
    given = bind(result, *arrays.values(), stacked, replace(parameters, groups=groups))
    return given.reshape(*shape[:axis], B, *shape[axis:]), axis


def axes_for_batch(result, names, groups, B):
    """For each array the axis that takes the batch, and the groups of the one convolution that serves all of it.

    names: the operands that are batched. A single one shares an axis with the result that the other operand does not
    have: x shares N with y, w shares K with y, and so on. Within groups channels and filters are not free.
    """
    if len(names) == 1:
        (name,) = names
        (letter,) = set(AXES[name]) & set(AXES[result])
        if letter == "N" or groups == 1:
            return {name: letter, result: letter}, groups
    return {"x": "C", "w": "K", "y": "K"}, groups * B


def joined(array, place, B, axis):
    """`array` with its batch in front of `axis` and one with it; repeated where it has none."""
    if place is None:
        array = jnp.broadcast_to(jnp.expand_dims(array, axis), (*array.shape[:axis], B, *array.shape[axis:]))
    else:
        array = jnp.moveaxis(array, place, axis)
    shape = array.shape
    return array.reshape(*shape[:axis], B * shape[axis + 1], *shape[axis + 2 :])


def register():
    for result, primitive in PRIMITIVES.items():
        primitive.def_impl(partial(run, result))
        primitive.def_abstract_eval(abstract)
        mlir.register_lowering(primitive, mlir.lower_fun(partial(run, result), multiple_results=False))
        ad.defbilinear(primitive, partial(transposed_by_first, result), partial(transposed_by_second, result))
        batching.primitive_batchers[primitive] = partial(batched, result)


register()
