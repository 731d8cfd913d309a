"""convolve2d and correlate2d under SciPy's names, for any number of images and kernels in one call.

Three steps, each a function below: what SciPy means by mode, boundary and fillvalue becomes an image with padding;
numbers that no kernel takes become some that one does (complex ones real and imaginary parts, integers exact floats);
pairs of images and kernels, broadcast against each other, become batch, groups and filters of one conv2d:

    leading axis        image   kernel      becomes
    one kernel            n       1         batch (N)
    pairs                 g       g         groups: a depthwise convolution
    filters of one image  1       m         filters of a group

A kernel that is a column times a row may run as two passes (separable.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import accuracy, arrays, dispatch, running, separable, strided
from .operands import device_for, on, weights_view
from .operations import conv2d
from .problem import DTYPES, check_choice, make_problem, named_dtype

MODES = ("full", "same", "valid")
BOUNDARIES = {
    "fill": None,
    "pad": None,
    "wrap": "wrap",
    "circular": "wrap",
    "symm": "symmetric",
    "symmetric": "symmetric",
}
LIBRARIES = (arrays.NumPy, arrays.CuPy, arrays.Torch)
EXACT_BITS = {np.dtype(np.float32): 24, np.dtype(np.float64): 53}
PLAIN_SUMS_ONLY = 1e-300  # as max_error: only algorithms that sum products as they are, so exact integers stay exact


def convolve2d(
    in1: Any,
    in2: Any,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: Any = 0,
    *,
    algorithm: str = "auto",
    backend: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
) -> Any:
    """Convolve images with kernels, as scipy.signal.convolve2d does, any number of pairs in one call.

    in1: (..., H, W); in2: (..., R, S), turned by 180 degrees as the mathematical definition has it; their leading axes
    broadcast against each other. Both NumPy arrays (or lists), CuPy arrays or PyTorch tensors, on one device. Of any
    float, complex or integer dtype (not two of bool); the result's is NumPy's promotion of both, PyTorch's for tensors.
    Integers are summed exactly and wrap around as SciPy's do.

    mode: "full" gives (..., H + R - 1, W + S - 1), "same" (..., H, W), centred, "valid" (..., H - R + 1, W - S + 1),
    without padding; there the larger of the two is taken for the image. boundary: what lies around the image,
    "fill" (or "pad") `fillvalue`, "wrap" ("circular") or "symm" ("symmetric").
    algorithm, backend, max_error, workspace_limit: as conv2d has them. Windows from about 11 x 11 on are convolved by
    Fourier transforms of tiles. Their rounding is relative to the largest outputs nearby, and a NaN spoils those;
    algorithm="depthwise" (on a GPU also "tiled") sums products as they are.

    Raises ValueError for a wrong shape or value, TypeError for a wrong dtype or a mixture of libraries,
    UnsupportedError when no kernel serves a valid call.

    >>> import numpy as np
    >>> images = np.arange(32.0).reshape(2, 4, 4)
    >>> kernels = np.array([[[1.0, 0.0], [0.0, -1.0]], [[0.25, 0.25], [0.25, 0.25]]])
    >>> convolve2d(images, kernels, mode="valid")[1]  # the second image with the second kernel
    array([[18.5, 19.5, 20.5],
           [22.5, 23.5, 24.5],
           [26.5, 27.5, 28.5]])
    >>> convolve2d([[1, 2, 3], [3, 4, 5]], [[2, 3], [4, 5]], mode="same", boundary="wrap")
    array([[48, 38, 52],
           [40, 30, 44]])

    Source: the definitions and names are those of scipy.signal.convolve2d.
    """
    options = {"algorithm": algorithm, "backend": backend, "max_error": max_error, "workspace_limit": workspace_limit}
    result, _ = sums(in1, in2, mode, boundary, fillvalue, True, options)
    return result


def correlate2d(
    in1: Any,
    in2: Any,
    mode: str = "full",
    boundary: str = "fill",
    fillvalue: Any = 0,
    *,
    algorithm: str = "auto",
    backend: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
    workspace_limit: int | None = None,
) -> Any:
    """Correlate images with kernels, as scipy.signal.correlate2d does, any number of pairs in one call.

    The sum over r and s of in1[h + r, w + s] times the conjugate of in2[r, s]: in2 is not turned, and conjugated where
    it is complex. Everything else is convolve2d's. In mode "valid" with in2 larger than in1 the result is, as SciPy's,
    turned by 180 degrees and in1 is the one conjugated.

    >>> import numpy as np
    >>> correlate2d(np.array([[1j, 2.0, 3.0]]), np.array([[1j, 1.0]]), mode="valid")
    array([[3.+0.j, 3.-2.j]])

    Source: the definitions and names are those of scipy.signal.correlate2d.
    """
    options = {"algorithm": algorithm, "backend": backend, "max_error": max_error, "workspace_limit": workspace_limit}
    result, swapped = sums(in1, in2, mode, boundary, fillvalue, False, options)
    return reversed_windows(result) if swapped else result


def sums(in1, in2, mode, boundary, fillvalue, convolving, options):
    """(the result, whether in2 was taken for the image); convolving: or else correlating."""
    check_choice("mode", mode, MODES)
    check_choice("boundary", boundary, tuple(BOUNDARIES))
    dispatch.checked_choice(None, None, **options)
    library, in1, in2 = of_one_library(in1, in2)
    dtype = promoted(library, in1, in2)
    lead = broadcast_shape(in1, in2)
    swapped = mode == "valid" and image_is_second(in1.shape[-2:], in2.shape[-2:])
    image, kernel = (in2, in1) if swapped else (in1, in2)
    padding = tuple(padding_of(mode, taps, convolving) for taps in kernel.shape[-2:])
    fill = checked_fill(fillvalue, dtype)
    if math.prod(lead) == 0:
        sizes = (size + sum(p) - taps + 1 for size, p, taps in zip(image.shape[-2:], padding, kernel.shape[-2:]))
        return cast(library.result(image, (*lead, *sizes), False)[0], dtype), swapped
    image, padding = surrounded(library, in_dtype(image, dtype, fill), padding, BOUNDARIES[boundary], fill)
    kernel = in_dtype(kernel, dtype, 0)
    if dtype.kind == "c":
        return complex_sums(library, image, kernel, padding, convolving, options), swapped
    if dtype.kind in "iu":
        return cast(integer_sums(library, image, kernel, padding, convolving, options), dtype), swapped
    return real_sums(library, image, kernel, padding, convolving, options), swapped


# What SciPy means.


def of_one_library(in1, in2):
    """The library of both arguments, and they; what is no array of any library goes to NumPy."""
    in1, in2 = (
        np.asarray(a) if isinstance(a, (list, tuple, int, float, complex, np.generic)) else a for a in (in1, in2)
    )
    library = arrays.library_of(in1, "in1")
    if library not in LIBRARIES:
        raise TypeError(f"in1: a NumPy or CuPy array or a PyTorch tensor needed, got one of {library.name}")
    if not library.owns(in2):
        came = arrays.library_of(in2, "in2").name
        raise TypeError(f"in2: an array of {library.name} needed, like in1, got one of {came}")
    places = library.device(in1, "in1"), library.device(in2, "in2")
    if places[0] != places[1]:
        raise ValueError(f"in2: an array on {on(places[0])} needed, like in1, got one on {on(places[1])}")
    in1, in2 = (plain(library, array, name) for array, name in ((in1, "in1"), (in2, "in2")))
    for name, array in (("in1", in1), ("in2", in2)):
        if array.ndim < 2:
            raise ValueError(f"{name}: at least 2 dimensions, (..., rows, columns), needed, got {array.ndim}")
        if min(array.shape[-2:]) < 1:
            raise ValueError(f"{name}: at least one row and one column needed, got shape {tuple(array.shape)}")
    return library, in1, in2


def plain(library, array, name):
    """Without what no kernel reads: NumPy's subclasses, PyTorch's deferred conjugation; gradients are refused."""
    if library is arrays.CuPy:
        return array
    if library is arrays.Torch:
        array = array.resolve_conj().resolve_neg()
    view = library.view(array, name)
    return view if library is arrays.NumPy else array


def promoted(library, in1, in2):
    """The result's dtype: NumPy's promotion, of tensors PyTorch's."""
    dtypes = library.dtype(in1, "in1"), library.dtype(in2, "in2")
    for name, dtype in zip(("in1", "in2"), dtypes):
        if dtype.name not in (*DTYPES, "complex64", "complex128") and dtype.kind not in "iub":
            raise TypeError(f"{name}: dtype must be integer, bool, complex or one of {', '.join(DTYPES)}, got {dtype}")
    if dtypes[0].kind == dtypes[1].kind == "b":
        raise TypeError("in1, in2: numbers needed in one of them at least, got bool and bool")
    if library is arrays.Torch:
        import torch

        return named_dtype(str(torch.promote_types(in1.dtype, in2.dtype)).removeprefix("torch."), "in2")
    return np.promote_types(*dtypes).newbyteorder("=")


def broadcast_shape(in1, in2):
    """The leading axes of the result."""
    try:
        return np.broadcast_shapes(tuple(in1.shape[:-2]), tuple(in2.shape[:-2]))
    except ValueError:
        raise ValueError(
            f"in2: leading axes that broadcast against those of in1, {tuple(in1.shape[:-2])}, needed, "
            f"got {tuple(in2.shape[:-2])}"
        ) from None


def image_is_second(first, second):
    """For mode "valid": whether in2 is the larger one in both dimensions, and so is taken for the image."""
    if all(a >= b for a, b in zip(first, second)):
        return False
    if all(a <= b for a, b in zip(first, second)):
        return True
    raise ValueError(
        f"mode: 'valid' needs one of in1 and in2 to be at least as large as the other in both dimensions, "
        f"got {tuple(first)} and {tuple(second)}"
    )


def padding_of(mode, taps, convolving):
    """How many rows (or columns) of the surroundings are needed before and after."""
    if mode == "valid":
        return 0, 0
    if mode == "full":
        return taps - 1, taps - 1
    before = taps // 2 if convolving else (taps - 1) // 2
    return before, taps - 1 - before


def checked_fill(fillvalue, dtype):
    """`fillvalue` as a Python number that `dtype` can have. The messages quote SciPy's."""
    value = np.asarray(fillvalue)
    if value.size != 1:
        raise ValueError(
            f"fillvalue: `fillvalue` must be scalar or an array with one element, got {value.size} of them"
        )
    if value.dtype.kind not in "biufc" or (value.dtype.kind == "c" and dtype.kind != "c"):
        raise ValueError(
            f"fillvalue: could not cast `fillvalue` directly to the output type {dtype}, got one of {value.dtype}"
        )
    value = value.reshape(()).astype(dtype).item()
    return value if isinstance(value, complex) and value.imag else value.real


def in_dtype(array, dtype, fill):
    """`array` in the type it is computed in: a real operand of a complex result stays real, unless `fill` is not."""
    is_complex = array.dtype.is_complex if hasattr(array.dtype, "is_complex") else array.dtype.kind == "c"
    if dtype.kind == "c" and not is_complex and not isinstance(fill, complex):
        dtype = np.zeros(0, dtype).real.dtype
    return cast(array, dtype)


def surrounded(library, image, padding, mode, fill):
    """The image with its surroundings, and the padding with zeros that is left to the kernel."""
    if padding == ((0, 0), (0, 0)) or (mode is None and fill == 0):
        return image, padding
    (H, W), ((top, bottom), (left, right)) = image.shape[-2:], padding
    if mode is None:
        grown, _ = library.result(image, (*image.shape[:-2], top + H + bottom, left + W + right), False)
        grown[...] = fill
        grown[..., top : top + H, left : left + W] = image
        return grown, ((0, 0), (0, 0))
    rows, columns = (np.pad(np.arange(size), widths, mode) for size, widths in zip((H, W), padding))
    if library is arrays.Torch:
        import torch

        rows, columns = (torch.as_tensor(index, device=image.device) for index in (rows, columns))
    return image[..., rows, :][..., columns], ((0, 0), (0, 0))


# Numbers that no kernel takes.


@np.errstate(all="ignore")  # an infinity less an infinity is NaN without a warning, as in kernels
def complex_sums(library, image, kernel, padding, convolving, options):
    """By the real and imaginary parts of both, as two more axes of one call; what is real has only one part."""
    module = module_of(library)
    image, kernel = real_parts(module, image), real_parts(module, kernel)
    rank = max(image.ndim, kernel.ndim)
    y = real_sums(
        library, with_axes(image, rank)[:, None], with_axes(kernel, rank)[None], padding, convolving, options
    )  # fmt: skip
    sign = 1 if convolving else -1  # a correlation conjugates the kernel
    real, imaginary = y[0, 0], 0
    if kernel.shape[0] == 2:
        imaginary = y[0, 1] * sign
    if image.shape[0] == 2:
        imaginary = imaginary + y[1, 0]
    if image.shape[0] == kernel.shape[0] == 2:
        real = real - y[1, 1] * sign
    return module.complex(real, imaginary) if library is arrays.Torch else joined(module, real, imaginary)


def real_parts(module, array):
    """(parts, ...): one part of what is real, two of what is complex."""
    is_complex = module.is_complex(array) if hasattr(module, "is_complex") else array.dtype.kind == "c"
    return module.stack([array.real, array.imag]) if is_complex else array[None]


def with_axes(parts, rank):
    """Axes of length one put in behind the first, so that there are `rank`."""
    return parts.reshape((parts.shape[0], *[1] * (rank - parts.ndim), *parts.shape[1:]))


def joined(module, real, imaginary):
    result = module.empty(real.shape, module.result_type(real.dtype, module.complex64))
    result.real, result.imag = real, imaginary
    return result


def integer_sums(library, image, kernel, padding, convolving, options):
    """Modulo 2^64, by sums of floats that are exact: of the numbers themselves, or of pieces of their bits."""
    options = {**options, "max_error": PLAIN_SUMS_ONLY}
    taps = math.prod(kernel.shape[-2:])
    most = [largest(library, array) for array in (image, kernel)]
    for dtype, bits in EXACT_BITS.items():
        if most[0] * most[1] * taps <= 1 << bits:
            y = real_sums(library, cast(image, dtype), cast(kernel, dtype), padding, convolving, options)
            return cast(y, np.dtype(np.int64))
    width = (EXACT_BITS[np.dtype(np.float64)] - (taps - 1).bit_length()) // 2
    total = 0
    for i, high in enumerate(pieces(image, most[0], width)):
        for j, low in enumerate(pieces(kernel, most[1], width)):
            if (i + j) * width < 64:
                y = real_sums(library, high, low, padding, convolving, options)
                total = total + (cast(y, np.dtype(np.int64)) << (i + j) * width)
    return total


def largest(library, array):
    """The largest magnitude in a host array; that of the dtype on a GPU, which nothing here waits for."""
    if library.device(array, "in1")[0] != "cpu":
        limits = np.iinfo(library.dtype(array, "in1"))
        return max(limits.max, -limits.min)
    values = library.view(array, "in1")
    return max(int(values.max()), -int(values.min()))


def pieces(array, most, width):
    """Integers as float64 numbers below 2^width, the first worth 1, the next 2^width, ... modulo 2^64."""
    if most < 1 << width:
        return [cast(array, np.dtype(np.float64))]
    words = cast(array, np.dtype(np.int64))
    mask = (1 << width) - 1
    return [cast((words >> shift) & mask, np.dtype(np.float64)) for shift in range(0, 64, width)]


# Pairs as batch, groups and filters.


def real_sums(library, image, kernel, padding, convolving, options):
    """One conv2d over all pairs: (*leading axes, P, Q). image, kernel: of one dtype that kernels take."""
    lead = broadcast_shape(image, kernel)
    image, kernel = (a.reshape((1,) * (len(lead) + 2 - a.ndim) + tuple(a.shape)) for a in (image, kernel))
    batch = [axis for axis in range(len(lead)) if kernel.shape[axis] == 1]
    groups = [axis for axis in range(len(lead)) if axis not in batch and image.shape[axis] > 1]
    filters = [axis for axis in range(len(lead)) if axis not in batch + groups]
    order = batch + groups + filters
    N, G, M = (math.prod(lead[axis] for axis in axes) for axes in (batch, groups, filters))
    x = permuted(image, order).reshape((N, G, *image.shape[-2:]))
    w = permuted(kernel, order).reshape((G * M, 1, *kernel.shape[-2:]))
    y = convolved(library, x, w, G, padding, convolving, options)
    y = y.reshape((*(lead[axis] for axis in order), *y.shape[-2:]))
    return permuted(y, [order.index(axis) for axis in range(len(lead))])


def convolved(library, x, w, groups, padding, convolving, options):
    """conv2d, or what is faster: by a column and by a row."""
    place = device_for(library, x, options["backend"])
    problem = make_problem(tuple(x.shape), tuple(w.shape), library.dtype(x, "in1"), padding=padding, groups=groups)
    windows = weights_view(library.view(w, "in2"), "OIHW", convolving)
    chosen = separable.chosen(problem, place, windows, **options)
    if chosen is None:
        return conv2d(x, w, padding=padding, groups=groups, flip_kernel=convolving, **options)
    result, y = library.result(x, problem.y_shape, False)
    x, windows, y = (strided.as_storage(view) for view in (library.view(x, "in1"), windows, y))
    running.run_kernel(chosen, running.Call(problem, place, None, x, windows, y, None, None))
    return library.finished(result)


# The few functions whose names differ between the libraries.


def module_of(library):
    if library is arrays.NumPy:
        return np
    if library is arrays.CuPy:
        import cupy

        return cupy
    import torch

    return torch


def cast(array, dtype):
    """`array` in a NumPy dtype, itself if it has that already."""
    if arrays.Torch.owns(array):
        import torch

        return array.to(getattr(torch, dtype.name))
    return array.astype(dtype, copy=False)


def permuted(array, leading):
    """The leading axes in another order."""
    axes = (*leading, len(leading), len(leading) + 1)
    return array.permute(axes) if arrays.Torch.owns(array) else array.transpose(axes)


def reversed_windows(array):
    return array.flip((-2, -1)) if arrays.Torch.owns(array) else array[..., ::-1, ::-1]
