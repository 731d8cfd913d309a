"""Pictures larger than memory: conv2d on dask arrays, chunk by chunk, each with the halo that its window needs.

    x padded   |  chunk  |  chunk  |  chunk  |        lazily, by dask
    a task     [ chunk + halo ]                       halo = dilation (R - 1) rows and dilation (S - 1) columns
                         [ chunk + halo ]             of the neighbours behind
                                   [ chunk ]          the last one has its halo inside

Chunks are moved to begin at multiples of the stride, so every task is a convolution without padding whose outputs are
those of its own chunk: nothing is computed twice, and nothing is cut off afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import dask.array as da
except ImportError as error:
    needed = 'convlib.dask: needs dask, which is not installed: pip install "dask[array]>=2024.8"'
    raise ImportError(needed) from error

from . import accuracy, dispatch, operations
from .padding_modes import NUMPY_PAD, check_padding_mode
from .problem import PADDING_MODES, Padding, Pair, batched_shape, check_choice, make_problem

DASK_PAD = {"zeros": "constant"} | NUMPY_PAD


def conv2d(
    x: da.Array,
    w: Any,
    bias: Any = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    layout: str = "NCHW",
    weight_layout: str = "OIHW",
    padding_mode: str = "zeros",
    flip_kernel: bool = False,
    activation: str | tuple[str, float] | None = None,
    algorithm: str = "auto",
    backend: str = "auto",
    max_error: float = accuracy.DEFAULT_MAX_ERROR,
) -> da.Array:
    """convlib.conv2d of a dask array, as a dask array: nothing is computed before its result is asked for.

    x: (N, C, H, W) or (C, H, W), chunked along N, H and W as you like; its channels are brought together. w, bias: as
    conv2d has them, of the library of x's chunks (NumPy, CuPy). Chunks along H and W are moved to multiples of the
    stride and joined where they are smaller than the window. The other arguments and the errors are conv2d's; TypeError
    for an x that is no dask array.

    >>> import dask.array as da
    >>> import numpy as np
    >>> picture = da.ones((1, 1, 1000, 1000), chunks=(1, 1, 250, 250), dtype=np.float32)
    >>> y = conv2d(picture, np.ones((1, 1, 3, 3), np.float32), padding=1, stride=2)
    >>> y.shape, y.numblocks
    ((1, 1, 500, 500), (1, 1, 4, 4))
    >>> float(y[0, 0, 0, 0]), float(y.max())
    (4.0, 9.0)

    Source: Rocklin, Dask: Parallel computation with blocked algorithms and task scheduling, SciPy 2015.
    """
    if not isinstance(x, da.Array):
        raise TypeError(f"x: a dask array needed, got {type(x).__name__}")
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if any(np.isnan(size) for size in x.shape):
        raise ValueError(f"x: chunks of known sizes needed, got shape {x.shape}; call x.compute_chunk_sizes() first")
    x_shape, batched = batched_shape(x.shape)
    problem = make_problem(
        x_shape, tuple(w.shape), x.dtype, stride=stride, padding=padding, dilation=dilation, groups=groups,
        layout=layout, weight_layout=weight_layout, activation=activation, has_bias=bias is not None,
    )  # fmt: skip
    check_padding_mode(problem, padding_mode)
    dispatch.checked_choice(problem, None, backend, algorithm, max_error, None)
    for name, array in (("w", w), ("bias", bias)):
        if array is not None and array.dtype != x.dtype:
            raise TypeError(f"{name}: {x.dtype} needed, like x, got {array.dtype}; convlib never converts inputs")

    axes = [layout.index(axis) - (not batched) for axis in "CHW"]
    channels, *spatial = axes
    halos = [d * (size - 1) for d, size in zip(problem.dilation, (problem.R, problem.S), strict=True)]
    x = padded(x, spatial, problem.padding, DASK_PAD[padding_mode]).rechunk({channels: -1})
    x = x.rechunk(
        {axis: moved(x.chunks[axis], t, h) for axis, t, h in zip(spatial, problem.stride, halos, strict=True)}
    )
    chunks = list(x.chunks)
    chunks[channels] = (problem.K,)
    for axis, step, outputs in zip(spatial, problem.stride, (problem.P, problem.Q), strict=True):
        before_last = tuple(size // step for size in x.chunks[axis][:-1])
        chunks[axis] = (*before_last, outputs - sum(before_last))
    return da.map_overlap(
        of_chunk, x, depth={axis: (0, h) for axis, h in zip(spatial, halos, strict=True)}, boundary="none",
        trim=False, chunks=tuple(chunks), dtype=x.dtype, meta=x._meta, w=w, bias=bias, stride=problem.stride,
        dilation=problem.dilation, groups=groups, layout=layout, weight_layout=weight_layout, flip_kernel=flip_kernel,
        activation=activation, algorithm=algorithm, backend=backend, max_error=max_error, allow_rechunk=False,
    )  # fmt: skip


def of_chunk(x, *, w, bias, **keywords):
    """One task. Arrays that came from another process may lie at any address, and kernels want their own alignment."""
    x, w, bias = (np.require(a, requirements="A") if isinstance(a, np.ndarray) else a for a in (x, w, bias))
    return operations.conv2d(x, w, bias, **keywords)


def padded(x, spatial, padding, mode):
    widths = [(0, 0)] * x.ndim
    for axis, width in zip(spatial, padding, strict=True):
        widths[axis] = width
    return da.pad(x, widths, mode=mode) if np.any(widths) else x


def moved(chunks, step, halo):
    """Chunk sizes along one axis that begin at multiples of `step`, each larger than `halo`."""
    size, least, begins, end = sum(chunks), halo + 1, [0], 0
    for chunk in chunks[:-1]:
        end += chunk
        begin = end // step * step
        if begin - begins[-1] >= least and size - begin >= least:
            begins.append(begin)
    return tuple(np.diff([*begins, size]).tolist())
