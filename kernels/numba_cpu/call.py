"""What a kernel is called with: one record of addresses, strides and sizes.

A compiled kernel takes the address of this record alone. Passing the 45 numbers as arguments costs 50 microseconds a
call; packing them here 1, since a problem's own numbers are packed once and only what changes from call to call is
packed anew: the addresses, and the strides unless they come again (job.py).

    call = record_at(CALL, address)         # inside a kernel
    here = call.x + n * call.x_n + c * call.x_c        # strides are bytes, and may be negative
"""

import ctypes
import struct
import sys
from functools import lru_cache

import numpy as np
from numba import from_dtype

from .epilogue import activation_fields

ARRAYS = ("x", "w", "y", "residual")
ADDRESSES = (*ARRAYS, "bias", "workspace")
STRIDES = (
    *(f"{array}_{axis}" for array, axes in zip(ARRAYS, ("nchw", "kcrs", "nkpq", "nkpq")) for axis in axes),
    "bias_k",
)  # fmt: skip
SIZES = (
    "N", "C", "H", "W", "K", "R", "S", "P", "Q", "groups", "Cg", "Kg", "stride_h", "stride_w", "top", "left",
    "dilation_h", "dilation_w", "has_bias", "has_residual", "activation",
)  # fmt: skip
REALS = ("low", "high", "slope")

CALL_DTYPE = np.dtype([(n, "i8") for n in ADDRESSES + STRIDES + SIZES] + [(n, "f8") for n in REALS])
CALL = from_dtype(CALL_DTYPE)

as_addresses, as_strides = (struct.Struct(f"{len(names)}q").pack for names in (ADDRESSES, STRIDES))
NO_STRIDES = (0, 0, 0, 0)
MEMORY = (ctypes.c_int64 * (1 << 56)).from_address(0)  # this process's, as words: MEMORY[address >> 3]
OBJECT_BYTES = object.__basicsize__


@lru_cache(maxsize=1024)
def problem_fields(problem) -> bytes:
    """The part of the record that depends on the problem alone."""
    (top, _), (left, _) = problem.padding
    kind, *reals = activation_fields(problem)
    sizes = (
        problem.N, problem.C, problem.H, problem.W, problem.K, problem.R, problem.S, problem.P, problem.Q,
        problem.groups, problem.Cg, problem.Kg, *problem.stride, top, left, *problem.dilation,
        problem.has_bias, problem.has_residual, kind,
    )  # fmt: skip
    return struct.pack(f"{len(SIZES)}q{len(REALS)}d", *sizes, *reals)


def slow_address(array) -> int:
    return array.__array_interface__["data"][0]


def fast_address(array) -> int:
    """The first field of NumPy's public C struct of an array (PyArrayObject_fields.data): 0.1 instead of 1.6
    microseconds.
    """
    return MEMORY[(id(array) + OBJECT_BYTES) >> 3]


def fast_address_works() -> bool:
    probe = np.zeros(4)
    return sys.implementation.name == "cpython" and fast_address(probe[1:]) == slow_address(probe[1:])


address = fast_address if fast_address_works() else slow_address


def pack_call(fields, x, w, y, bias=None, residual=None, workspace=None) -> bytes:
    """The record for these arrays, each in logical order. fields: problem_fields(problem), or that and a kernel's
    own.

    Packed weights have one dimension; bias, residual and workspace may be None.
    """
    addresses = pack_addresses(x, w, y, bias, residual, workspace)
    return addresses + pack_strides(x, w, y, bias, residual) + fields


def pack_addresses(x, w, y, bias, residual, workspace) -> bytes:
    """The record's first part: where the arrays lie."""
    return as_addresses(
        address(x),
        address(w),
        address(y),
        0 if residual is None else address(residual),
        0 if bias is None else address(bias),
        0 if workspace is None else address(workspace),
    )


def pack_strides(x, w, y, bias, residual) -> bytes:
    """Its second part."""
    return as_strides(
        *(x.strides if x.ndim == 4 else NO_STRIDES),
        *(w.strides if w.ndim == 4 else NO_STRIDES),
        *(y.strides if y.ndim == 4 else NO_STRIDES),
        *(NO_STRIDES if residual is None else residual.strides),
        0 if bias is None else bias.strides[0],
    )
