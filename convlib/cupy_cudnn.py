"""The convolutions of cupy.cudnn, which CuPy 14 dropped, by convlib's kernels: one import is all that changes.

    from convlib import cupy_cudnn as cudnn        # was: from cupy import cudnn

Names, argument order, keywords and layouts are those of cupyx/cudnn.pyx in CuPy 13. Results are written into the
caller's arrays. NumPy arrays are taken as CuPy's are, so that a program can be run and tested without a GPU. One
spatial dimension is two of which the first has length one. Three are one two-dimensional convolution for each slice of
the kernel, with x (N, C, D, H, W), W (K, C / groups, T, R, S), y (N, K, O, P, Q):

    y[n, :, o]  =  b + sum over t of  conv2d(x[n, :, o stride - pad + t dilation], W[:, :, t])

in which the images of one call are the slices o, and its residual the sum so far: nothing is copied. float16 sums are
rounded once for every t.
Source of the operations: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning, 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import arrays, gradients, operations
from .errors import UnsupportedError
from .operands import check_operands, spelled, view_of_out
from .problem import LARGEST_ARRAY, integer, output_size, shortened

CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC = 0, 1  # as in cupy.cuda.cudnn
LAYOUTS = {CUDNN_TENSOR_NCHW: ("NCHW", "OIHW"), CUDNN_TENSOR_NHWC: ("NHWC", "OHWI")}
DTYPES = ("float16", "float32", "float64")
TENSOR_CORE = ("always", "auto", "never")

# CuPy began with 8 MiB. cuDNN can do everything without any workspace; our weight gradient on the CPU cannot.
max_workspace_size = 1 << 30


def get_max_workspace_size() -> int:
    """The most scratch memory, in bytes, that a convolution may take; 1 GiB unless set.

    >>> get_max_workspace_size()
    1073741824
    """
    return max_workspace_size


def set_max_workspace_size(size: int) -> None:
    """Let no convolution take more than `size` bytes of scratch memory; one that cannot do with them raises.

    >>> set_max_workspace_size(2**30)
    """
    global max_workspace_size
    max_workspace_size = integer("size", size, least=0, most=LARGEST_ARRAY)


def convolution_forward(
    x: Any,
    W: Any,
    b: Any,
    y: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the cross-correlation of x and W, plus b, into y.

    x: (N, C, H, W); W: (K, C / groups, R, S); b: K elements, or None; y: (N, K, P, Q) with
    P = (H + 2 pad - dilation (R - 1) - 1) // stride + 1. One to three spatial dimensions, as many as pad, stride and
    dilation have. All NumPy or all CuPy, on one device, float16, float32 or float64. d_layout: CUDNN_TENSOR_NCHW, or
    CUDNN_TENSOR_NHWC for x (N, H, W, C) and y (N, P, Q, K); w_layout: CUDNN_TENSOR_NHWC for W (K, R, S, C / groups).

    auto_tune: True measures, before the first call of its kind, the kernels that the workspace has room for, on random
    numbers, and runs the fastest; the times are kept on disk, as `convlib.tune` keeps them. False takes the one
    predicted to be the fastest. tensor_core: "always" lets a GPU multiply float32 in TF32, of 11 significant bits;
    float16 is multiplied on tensor cores whatever is asked for, and summed in float32. Raises ValueError or TypeError,
    naming the argument, with y untouched, and UnsupportedError (a RuntimeError, as CuPy raised) where the workspace is
    too small, or where auto_tune would have to measure while a stream is captured.

    >>> import numpy as np
    >>> y = np.empty((1, 1, 2, 2), np.float32)
    >>> image, window = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> convolution_forward(image, window, None, y, (0, 0), (1, 1), (1, 1), 1, auto_tune=False, tensor_core="auto")
    >>> y[0, 0]
    array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
    library = check_arrays("y", x=x, W=W, b=b, y=y)
    geometry = geometry_of(("x", x), ("W", W), ("y", y), ("W", "y"), pad, stride, dilation, groups, d_layout, w_layout)
    b = flat_bias(b, geometry.K)
    parameters = geometry.keywords | choice(auto_tune, tensor_core, x.dtype)
    convolve = partial(operations.conv2d, **parameters)
    if geometry.dimensions == 3:
        meeting = {t: [(o, d) for d, o in pairs] for t, pairs in geometry.meeting().items()}
        add_slices(library, y, x, W, b, meeting, convolve)
    else:
        x, W, y = map(geometry.lifted, (x, W, y))
        convolve(x, W, b, out=y, workspace_limit=max_workspace_size)


def convolution_backward_data(
    W: Any,
    x: Any,
    b: Any,
    y: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write into y what a convolution by W would turn into x's gradient: its input gradient, plus b.

    W: (K, C / groups, R, S); x, the gradient by the convolution's result: (N, K, P, Q); b: C elements, or None; y:
    (N, C, H, W), of a size whose convolution is x's. With another b and names this is the transposed convolution.
    deterministic: it always is. Everything else as in convolution_forward.

    >>> import numpy as np
    >>> y = np.empty((1, 1, 3, 3), np.float32)
    >>> window, grad = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
    >>> convolution_backward_data(window, grad, None, y, (0, 0), (1, 1), (1, 1), 1,
    ...                           deterministic=True, auto_tune=False, tensor_core="auto")
    >>> y[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]], dtype=float32)
    """
    library = check_arrays("y", W=W, x=x, b=b, y=y)
    geometry = geometry_of(("y", y), ("W", W), ("x", x), ("y", "y"), pad, stride, dilation, groups, d_layout, w_layout)
    b = flat_bias(b, geometry.C)
    parameters = geometry.keywords | choice(auto_tune, tensor_core, x.dtype)
    convolve = partial(gradients.conv_transpose2d, output_padding=geometry.output_padding, **parameters)
    if geometry.dimensions == 3:
        add_slices(library, y, x, W, b, geometry.meeting(), convolve)
    else:
        x, W, y = map(geometry.lifted, (x, W, y))
        convolve(x, W, b, out=y, workspace_limit=max_workspace_size)


def convolution_backward_filter(
    x: Any,
    gy: Any,
    gW: Any,
    pad: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...] | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the gradient by a convolution's weights into gW.

    x: (N, C, H, W); gy, the gradient by the convolution's result: (N, K, P, Q); gW: (K, C / groups, R, S).
    deterministic: it always is. Everything else as in convolution_forward.

    >>> import numpy as np
    >>> gW = np.empty((1, 1, 2, 2), np.float32)
    >>> image, grad = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), np.ones((1, 1, 2, 2), np.float32)
    >>> convolution_backward_filter(image, grad, gW, (0, 0), (1, 1), (1, 1), 1,
    ...                             deterministic=True, auto_tune=False, tensor_core="auto")
    >>> gW[0, 0]
    array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    check_arrays("gW", x=x, gy=gy, gW=gW)
    blamed = ("gW", "gy")
    geometry = geometry_of(("x", x), ("gW", gW), ("gy", gy), blamed, pad, stride, dilation, groups, d_layout, w_layout)
    parameters = geometry.keywords | choice(auto_tune, tensor_core, x.dtype)
    differentiate = partial(gradients.conv2d_weight_grad, **parameters)
    if geometry.dimensions == 3:
        gradients_of_slices(x, gy, gW, geometry.meeting(), differentiate)
    else:
        x, gy, gW = map(geometry.lifted, (x, gy, gW))
        differentiate(x, gy, gW.shape, out=gW, workspace_limit=max_workspace_size)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution of one to three dimensions; one is two, with a height of 1. The tuples are by spatial dimension."""

    dimensions: int
    C: int
    K: int
    sizes: tuple[int, ...]
    window: tuple[int, ...]
    outputs: tuple[int, ...]
    pad: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    layout: str
    weight_layout: str

    @property
    def keywords(self) -> dict[str, Any]:
        """conv2d's keywords; of three dimensions the last two are its rows and columns."""
        return {
            "stride": self.stride[-2:], "padding": self.pad[-2:], "dilation": self.dilation[-2:], "groups": self.groups,
            "layout": self.layout, "weight_layout": self.weight_layout,
        }  # fmt: skip

    @property
    def output_padding(self) -> tuple[int, int]:
        """How many of the last rows and columns of the image no window reaches."""
        smallest = (
            (outputs - 1) * stride - 2 * pad + dilation * (window - 1) + 1
            for outputs, stride, pad, dilation, window in zip(
                self.outputs, self.stride, self.pad, self.dilation, self.window
            )
        )
        rows, columns = [size - least for size, least in zip(self.sizes, smallest)][-2:]
        return rows, columns

    def lifted(self, array):
        """An array of one dimension as one of two."""
        return array[:, :, None] if self.dimensions == 1 else array

    def meeting(self) -> dict[int, list[tuple[int, int]]]:
        """For each slice of a three-dimensional kernel the slices of image and result that it brings together."""
        pad, stride, dilation = self.pad[0], self.stride[0], self.dilation[0]
        met = {}
        for t in range(self.window[0]):
            pairs = ((o * stride - pad + t * dilation, o) for o in range(self.outputs[0]))
            met[t] = [(d, o) for d, o in pairs if 0 <= d < self.sizes[0]]
        return met


def check_arrays(out, **named):
    """All NumPy's or all CuPy's, on one device, of one dtype that cuDNN has; `out` apart from the others."""
    (first_name, first), *others = named.items()
    library = arrays.library_of(first, first_name)
    if library not in (arrays.NumPy, arrays.CuPy):
        raise TypeError(f"{first_name}: a CuPy or NumPy array needed, got one of {library.name}")
    dtype = library.dtype(first, first_name)
    if dtype.name not in DTYPES or not dtype.isnative:
        raise TypeError(
            f"{first_name}: {', '.join(DTYPES)} needed, as cuDNN had it, got {spelled(dtype)}; convlib.conv2d and its "
            "gradients take complex numbers"
        )
    given = {name: array for name, array in others if not (name == "b" and array is None)}
    check_operands(library, first, dtype, first_name, **given)
    inputs = {name: library.view(array, name) for name, array in {first_name: first, **given}.items() if name != out}
    view_of_out(library, named[out], inputs, out)
    return library


def geometry_of(image, filters, result, blamed, pad, stride, dilation, groups, d_layout, w_layout) -> Geometry:
    """The Geometry of a convolution of `image` by `filters` to `result`, each the name of an argument and its array.

    blamed: the names of the arguments whose channels and whose sizes are wrong where the three do not fit.
    """
    dimensions = len(pad) if isinstance(pad, (tuple, list)) else 0
    if not 1 <= dimensions <= 3:
        raise ValueError(f"pad: one number for each of one to three spatial dimensions needed, got {shortened(pad)}")
    pad = numbers("pad", pad, dimensions, least=0)
    stride = numbers("stride", stride, dimensions, least=1)
    dilation = numbers("dilation", (1,) * dimensions if dilation is None else dilation, dimensions, least=1)
    groups = integer("groups", groups, least=1)
    for name, array in (image, filters, result):
        if array.ndim != dimensions + 2:
            raise ValueError(f"{name}: {dimensions + 2} dimensions needed, as pad has {dimensions}, got {array.shape}")
        if min(array.shape[1:]) < 1:
            raise ValueError(f"{name}: sizes of at least 1 needed, got {array.shape}")
    layout, _ = layouts("d_layout", d_layout, dimensions)
    _, weight_layout = layouts("w_layout", w_layout, dimensions)

    N, C, *sizes = channels_first(image[1].shape, layout)
    K, Cg, *window = channels_first(filters[1].shape, weight_layout)
    check_channels(image, filters, result, blamed[0], (C, K, Cg, channels_first(result[1].shape, layout)[1]), groups)
    outputs = [
        output_size(size, extent, step, (padding, padding), spread)
        for size, extent, step, padding, spread in zip(sizes, window, stride, pad, dilation)
    ]
    check_sizes(image, filters, result, blamed[1], channels_last((N, K, *outputs), layout))
    if dimensions == 1:
        sizes, window, outputs = (1, *sizes), (1, *window), (1, *outputs)
        pad, stride, dilation = (0, *pad), (1, *stride), (1, *dilation)
    return Geometry(
        dimensions, C, K, tuple(sizes), tuple(window), tuple(outputs), pad, stride, dilation, groups, layout,
        weight_layout,
    )  # fmt: skip


def check_channels(image, filters, result, blamed, channels, groups):
    C, K, Cg, of_result = channels
    if K % groups:
        raise ValueError(f"groups: a divisor of the {K} filters of {filters[0]} needed, got {groups}")
    if Cg * groups != C and blamed == image[0]:
        raise ValueError(f"{blamed}: C = {Cg * groups} channels needed (groups = {groups}), got {C}")
    if Cg * groups != C:
        raise ValueError(f"{blamed}: C / groups = {C} / {groups} channels needed, as {image[0]} has, got {Cg}")
    if of_result != K:
        raise ValueError(f"{result[0]}: {K} channels needed, as {filters[0]} has filters, got {of_result}")


def check_sizes(image, filters, result, blamed, wanted):
    """wanted: the shape that image and filters give."""
    if min(wanted[1:]) < 1:
        raise ValueError(f"{filters[0]}: its window is larger than {image[0]} with its padding: {filters[1].shape}")
    if result[1].shape == wanted:
        return
    if blamed == result[0]:
        raise ValueError(f"{blamed}: shape {wanted} needed, got {result[1].shape}")
    raise ValueError(
        f"{blamed}: a shape whose convolution has {result[0]}'s shape {result[1].shape} needed, got {image[1].shape}, "
        f"whose convolution has {wanted}"
    )


def numbers(name, values, count, least):
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise ValueError(f"{name}: {count} numbers needed, as many as pad has, got {shortened(values)}")
    return tuple(integer(name, value, least) for value in values)


def layouts(name, value, dimensions):
    """The layouts of images and of weights that a constant of cuDNN stands for."""
    if isinstance(value, bool) or value not in LAYOUTS:
        raise ValueError(f"{name}: CUDNN_TENSOR_NCHW (0) or CUDNN_TENSOR_NHWC (1) needed, got {shortened(value)}")
    if value == CUDNN_TENSOR_NHWC and dimensions != 2:
        raise ValueError(f"{name}: CUDNN_TENSOR_NHWC has two spatial dimensions, got {dimensions}")
    return LAYOUTS[value]


def channels_first(shape, layout):
    return shape if layout in ("NCHW", "OIHW") else (shape[0], shape[-1], *shape[1:-1])


def channels_last(shape, layout):
    return shape if layout == "NCHW" else (shape[0], *shape[2:], shape[1])


def flat_bias(b, count):
    """b as conv2d takes it: CuPy took any shape of `count` elements."""
    if b is not None and b.size != count:
        raise ValueError(f"b: {count} elements needed, one for each channel of y, got shape {b.shape}")
    return None if b is None else b.reshape(-1)


def choice(auto_tune, tensor_core, dtype) -> dict[str, Any]:
    """conv2d's keywords that say how its kernel is chosen."""
    if tensor_core not in TENSOR_CORE:
        raise ValueError(f"tensor_core: 'always', 'auto' or 'never' needed, got {shortened(tensor_core)}")
    return {"tune": bool(auto_tune), "precision": "tf32" if tensor_core == "always" and dtype == "float32" else None}


def add_slices(library, target, source, W, b, meeting, convolve: Callable[..., Any]):
    """target[n, :, i] = b + the sum over t of convolve(source[n, :, j], W[:, :, t]), for the i and j that meet in t.

    As many slices i at once as half the workspace has room for: the sum so far passes between them and it, so that
    no convolution reads where it writes, and ends in target.
    """
    _, channels, slices, *sizes = target.shape
    plane = math.prod((channels, *sizes)) * target.dtype.itemsize
    count = min(slices, max(1, max_workspace_size // 2 // plane))
    limit = workspace_beside(count * plane, "a slice of the result")
    spare, _ = library.result(target, (count, channels, *sizes), False)
    for n in range(len(target)):
        to, of = target[n].swapaxes(0, 1), source[n].swapaxes(0, 1)
        for first in range(0, slices, count):
            block = to[first : first + count]
            met = {t: [(i - first, j) for i, j in pairs if 0 <= i - first < count] for t, pairs in meeting.items()}
            met = {t: tuple(zip(*pairs)) for t, pairs in met.items() if pairs}
            total, other = block, spare[: len(block)]
            if len(met) % 2:
                total, other = other, total
            total[...] = 0 if b is None else b[:, None, None]
            for t, (to_slices, of_slices) in met.items():
                if len(to_slices) < len(block):
                    other[...] = total
                at = evenly(to_slices)
                convolve(of[evenly(of_slices)], W[:, :, t], residual=total[at], out=other[at], workspace_limit=limit)
                total, other = other, total


def gradients_of_slices(x, gy, gW, meeting, differentiate: Callable[..., Any]):
    """gW[:, :, t], each from the slices of x and gy that meet in t, all of them images of one call."""
    # The largest first: where that finds room, all do, so that gW is written in full or not at all.
    for t, pairs in sorted(meeting.items(), key=lambda item: -len(item[1])):
        if not pairs:
            gW[:, :, t] = 0
            continue
        inputs, outputs = (array[:, :, evenly(part)].swapaxes(1, 2) for array, part in zip((x, gy), zip(*pairs)))
        copied = inputs.nbytes + outputs.nbytes if len(x) > 1 else 0
        limit = workspace_beside(copied, "copies of x and gy, slices side by side")
        inputs, outputs = (of_t.reshape(len(x) * len(pairs), *of_t.shape[2:]) for of_t in (inputs, outputs))
        differentiate(inputs, outputs, gW[:, :, t].shape, out=gW[:, :, t], workspace_limit=limit)


def workspace_beside(count, what):
    """The workspace that is left for a kernel beside `count` bytes for `what`."""
    if count > max_workspace_size:
        raise UnsupportedError(
            f"set_max_workspace_size: {count:,} bytes needed for {what} alone, got {max_workspace_size:,}"
        )
    return max_workspace_size - count


def evenly(indices):
    """The slice that has these indices, which are evenly spaced."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    return slice(indices[0], indices[-1] + 1, step)
