"""From a launch's arguments to the bytes a kernel finds in its parameter space.

    CUDA C    an array is its address, None a null pointer; a NumPy scalar or struct is its bytes
    Numba     an array is taken apart, as Numba's calling convention has it:
              meminfo (null), parent (null), nitems, itemsize, data, shape..., strides...
              Python numbers have Numba's types: int64, float64; NumPy scalars their own

Each value must have the size that the kernel's PTX declares for it.
"""

from __future__ import annotations

import numpy as np

from .memory import up_to
from .syntax import PtxError


def parameter_bytes(function, values):
    """The parameter space, and where each parameter lies in it, of a kernel called with `values` (bytes objects)."""
    if len(values) != len(function.parameters):
        raise PtxError(f"{function.name}: {len(function.parameters)} parameters needed, got {len(values)}")
    places, end = {}, 0
    for parameter in function.parameters:
        places[parameter.name] = up_to(end, parameter.align)
        end = places[parameter.name] + parameter.size
    space = np.zeros(up_to(end, 16) + 16, np.uint8)
    for position, (parameter, value) in enumerate(zip(function.parameters, values, strict=True)):
        if len(value) != parameter.size:
            raise PtxError(
                f"{function.name}: parameter {position} has {parameter.size} bytes in the PTX, "
                f"its argument {len(value)}"
            )
        at = places[parameter.name]
        space[at : at + parameter.size] = np.frombuffer(value, np.uint8)
    return space, places


def raw_values(args, address_of):
    """The arguments of a CUDA C kernel as bytes."""
    return [raw_value(position, arg, address_of) for position, arg in enumerate(args)]


def raw_value(position, arg, address_of):
    if arg is None:
        return np.uint64(0).tobytes()
    if isinstance(arg, np.ndarray) and arg.ndim:
        return np.uint64(address_of(arg)).tobytes()
    if isinstance(arg, (np.generic, np.ndarray)) and not arg.dtype.hasobject:
        return arg.tobytes()
    raise TypeError(f"argument {position}: an array, None, a NumPy scalar or a struct needed, got {arg!r}")


def numba_values(args, address_of):
    """The arguments of a Numba kernel as bytes, arrays taken apart."""
    values = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            fields = (0, 0, arg.size, arg.itemsize, address_of(arg), *arg.shape, *arg.strides)
            values += [np.int64(value).tobytes() for value in fields]
        elif isinstance(arg, tuple):
            values += numba_values(arg, address_of)
        else:
            values.append(np.asarray(arg).tobytes())
    return values


def numba_types(args):
    """The Numba types a GPU launch would compile for: those of device arrays, never read-only."""
    return tuple(numba_type(arg) for arg in args)


def numba_type(arg):
    from numba import typeof, types
    from numba.np import numpy_support

    if isinstance(arg, tuple):
        return types.BaseTuple.from_types([numba_type(a) for a in arg])
    if not isinstance(arg, np.ndarray):
        return typeof(arg)
    repeated = 0 in arg.strides and arg.size != 0
    layout = "C" if arg.flags.c_contiguous else "F" if arg.flags.f_contiguous else "A"
    return types.Array(numpy_support.from_dtype(arg.dtype), arg.ndim, "A" if repeated else layout)


def arrays_in(args):
    """The arrays among the arguments, those inside tuples included."""
    for arg in args:
        if isinstance(arg, np.ndarray) and arg.ndim:
            yield arg
        elif isinstance(arg, tuple):
            yield from arrays_in(arg)
