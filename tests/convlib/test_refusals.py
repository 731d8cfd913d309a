"""conv2d of what is wrong: every refusal, its message included."""

import re

import numpy as np
import pytest

from convlib import UnsupportedError, conv2d
from tests.convlib.calls import BIAS, W, X, integers


def read_only(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


FOREIGN = np.dtype(np.float32).newbyteorder()
Y = (2, 4, 7, 6)

ONE_OF = "dtype must be one of float16, bfloat16, float32, float64"
VALUE_ERRORS = {
    "x of 2 dimensions": (
        {"x": X[0, 0]},
        "x: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 2: (9, 8)",
    ),
    "x of 5 dimensions": (
        {"x": X[None]},
        "x: 4 dimensions needed, (N, C, H, W), or 3 for one image, (C, H, W), got 5: (1, 2, 6, 9, 8)",
    ),
    "w of 3 dimensions": ({"w": W[0]}, "w: 4 dimensions needed (O, I, H, W), got 3: (6, 3, 3)"),
    "no channels": ({"x": X[:, :0], "w": W[:, :0]}, "x: C must be at least 1, got shape (2, 0, 9, 8) in NCHW"),
    "bias of another length": ({"bias": BIAS[:3]}, "bias: shape (4,) needed, got (3,)"),
    "bias of two dimensions": ({"bias": BIAS[None]}, "bias: shape (4,) needed, got (1, 4)"),
    "residual of x's shape": ({"residual": X}, "residual: shape (2, 4, 7, 6) needed, got (2, 6, 9, 8)"),
    "residual in the other layout": (
        {"residual": integers(2, 7, 6, 4)},
        "residual: shape (2, 4, 7, 6) needed, got (2, 7, 6, 4)",
    ),
    "out of another shape": ({"out": integers(2, 4, 9, 8)}, "out: shape (2, 4, 7, 6) needed, got (2, 4, 9, 8)"),
    "out that is read-only": ({"out": read_only(Y)}, "out: a writeable array needed, got a read-only one"),
    "out whose elements overlap": (
        {"out": np.lib.stride_tricks.as_strided(np.zeros(99, np.float32), Y, (0, 4, 8, 4))},
        "out: elements that lie apart in memory needed, got strides (0, 4, 8, 4)",
    ),
    "padding_mode": (
        {"padding_mode": "constant"},
        "padding_mode: one of 'zeros', 'reflect', 'replicate', 'circular' needed, got 'constant'",
    ),
    "reflection of too much": (
        {"padding": (0, 8), "padding_mode": "reflect"},
        "padding: at most 7 needed for padding_mode='reflect' with W = 8, got 8",
    ),
    "wrapping of too much": (
        {"padding": 10, "padding_mode": "circular"},
        "padding: at most 9 needed for padding_mode='circular' with H = 9, got 10",
    ),
    "backend": (
        {"backend": "opencl"},
        "backend: one of 'auto', 'numba_cpu', 'numba_cuda', 'cupy_raw' needed, got 'opencl'",
    ),
    "max_error": ({"max_error": 0}, "max_error: a number above 0 needed, got 0"),
    "max_error that is no number": ({"max_error": float("nan")}, "max_error: a number above 0 needed, got nan"),
    "workspace_limit": (
        {"workspace_limit": -1},
        f"workspace_limit: at least 0 and at most {2**63 - 1} needed, got -1",
    ),
    "x that is not aligned": (
        {"x": unaligned(X)},
        "x: an address and strides that are multiples of its 4-byte elements needed, got strides (1728, 288, 32, 4); "
        "pass x.copy()",
    ),
    "out that is not aligned": (
        {"out": unaligned(np.zeros(Y, np.float32))},
        "out: an address and strides that are multiples of its 4-byte elements needed, got strides (672, 168, 24, 4); "
        "pass out.copy()",
    ),
}  # fmt: skip

TYPE_ERRORS = {
    "x as a list": (
        {"x": [[1.0]]},
        "x: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; "
        "make it one, as numpy.asarray(x, numpy.float32)",
    ),
    "w as a list": (
        {"w": [[1.0]]},
        "w: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.list; "
        "make it one, as numpy.asarray(w, numpy.float32)",
    ),
    "a scalar": (
        {"x": 1.0},
        "x: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.float; "
        "make it one, as numpy.asarray(x, numpy.float32)",
    ),
    "no array": ({"w": None}, "w: a NumPy, CuPy, Numba, PyTorch or JAX array needed, got builtins.NoneType"),
    "a masked array": (
        {"x": np.ma.masked_less(X, 0)},
        "x: a NumPy array without a mask needed, got numpy.ma.MaskedArray; fill it first, as x.filled(0)",
    ),
    "integers": (
        {"x": X.astype(int), "w": W.astype(int)},
        f"x: {ONE_OF}, got int64; convlib never converts inputs",
    ),
    "bools": (
        {"x": X > 0},
        f"x: {ONE_OF}, got bool; convlib never converts inputs",
    ),
    "objects": (
        {"x": X.astype(object)},
        f"x: {ONE_OF}, got object; convlib never converts inputs",
    ),
    "w of another dtype": (
        {"w": W.astype(np.float64)},
        "w: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "bias of another dtype": (
        {"bias": BIAS.astype(np.float16)},
        "bias: float32 needed, like x, got float16; convlib never converts inputs",
    ),
    "residual of another dtype": (
        {"residual": np.zeros(Y)},
        "residual: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "out of another dtype": (
        {"out": np.zeros(Y)},
        "out: float32 needed, like x, got float64; convlib never converts inputs",
    ),
    "x in foreign byte order": (
        {"x": X.astype(FOREIGN)},
        f'x: native byte order needed, got {FOREIGN.str}; use x.astype(x.dtype.newbyteorder("="))',
    ),
    "w in foreign byte order": (
        {"w": W.astype(FOREIGN)},
        "w: float32 needed, like x, got float32 in foreign byte order; convlib never converts inputs",
    ),
    "bool stride": ({"stride": True}, "stride: an int or a pair (rows, columns) needed, got True"),
    "flip_kernel": ({"flip_kernel": 1}, "flip_kernel: True or False needed, got 1"),
    "max_error as text": ({"max_error": "1e-3"}, "max_error: a number needed, got '1e-3'"),
    "max_error as a list": ({"max_error": [1e-3]}, "max_error: a number needed, got [0.001]"),
    "max_error as a bool": ({"max_error": True}, "max_error: a number needed, got True"),
    "workspace_limit as a float": ({"workspace_limit": 1e6}, "workspace_limit: an int needed, got 1000000.0"),
}


@pytest.mark.parametrize(("arguments", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_wrong_shapes_and_values(arguments, message):
    with pytest.raises(ValueError) as raised:
        conv2d(**{"x": X, "w": W, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize(("arguments", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError) as raised:
        conv2d(**{"x": X, "w": W, **arguments})
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["x", "w", "bias", "residual"])
def test_out_lies_apart_from_every_input(name):
    memory = np.zeros(2000, np.float32)

    def at(start, shape):
        return memory[start : start + int(np.prod(shape))].reshape(shape)

    arrays = {"x": X, "w": W, "bias": BIAS, "residual": np.zeros(Y, np.float32)}
    arrays[name] = at(335, arrays[name].shape)  # its first element is out's last but one
    with pytest.raises(ValueError, match=f"^out: memory apart from every input needed, but it overlaps {name}$"):
        conv2d(**arrays, out=at(1, Y))
    beside = at(0, Y)
    arrays[name] = at(336, arrays[name].shape)
    assert conv2d(**arrays, out=beside) is beside


def test_interleaved_slices_of_one_array_do_not_overlap():
    both = np.zeros((2, 6, 9, 16), np.float32)
    both[..., ::2] = X
    out = both[:, :, :, 1::2]
    conv2d(both[..., ::2], np.eye(6, dtype=np.float32)[:, :, None, None], out=out)
    np.testing.assert_array_equal(out, X)


def test_a_forced_kernel_that_cannot_run_says_why():
    with pytest.raises(UnsupportedError) as raised:
        conv2d(X, W, backend="cupy_raw")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("backend='cupy_raw' cannot run this problem on cpu:0")
    assert re.fullmatch("  each of [0-9]+ kernels: runs on cuda or emulator, the arrays are on cpu", lines[-1])
    assert issubclass(UnsupportedError, NotImplementedError)


def test_a_forced_algorithm_is_an_error_if_no_kernel_has_that_name():
    with pytest.raises(ValueError, match="^algorithm: one of 'auto', 'direct'.* needed, got 'fourier'$"):
        conv2d(X, W, algorithm="fourier")


def test_workspace_limit_counts_the_padded_input():
    padded = 2 * 6 * 11 * 10 * 4
    with pytest.raises(UnsupportedError) as raised:
        conv2d(X, W, padding=1, padding_mode="reflect", workspace_limit=padded - 1)
    assert str(raised.value) == "workspace_limit: 5,280 bytes needed for the padded input alone, got 5,279"
    conv2d(X, W, padding=1, padding_mode="reflect", workspace_limit=padded)


def test_workspace_limit_zero_leaves_the_kernels_that_need_none():
    np.testing.assert_array_equal(conv2d(X, W, workspace_limit=0), conv2d(X, W))
