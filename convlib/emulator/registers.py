"""What operands stand for: registers and constants as arrays, special registers, addresses of lanes."""

from __future__ import annotations

import numpy as np

from .dtypes import BITS, DTYPES
from .syntax import SIZES, Address, Immediate, Register, Symbol


def source(machine, instruction, operand, type_):
    """An operand as an array (or a scalar) of `type_`; a register that is wider gives its low part."""
    dtype = DTYPES[type_]
    if isinstance(operand, Immediate):
        return constant(machine, instruction, operand, type_)
    if isinstance(operand, Symbol):
        return (
            np.asarray(address_of(machine, instruction, operand), np.uint64)
            .astype(BITS[dtype.itemsize])
            .view(dtype)[()]
        )
    if not isinstance(operand, Register):
        raise machine.error(instruction, f"operand {operand} is not known here")
    if operand.name in machine.registers:
        register = machine.registers[operand.name]
    else:
        register = np.asarray(special(machine, instruction, operand.name))
    if (register.dtype == bool) != (type_ == "pred") or register.itemsize < dtype.itemsize:
        raise machine.error(instruction, f"{operand.name} cannot be read as .{type_}")
    if register.itemsize == dtype.itemsize:
        return register.view(dtype)
    if register.ndim == 0:
        return register.astype(BITS[dtype.itemsize]).view(dtype)[()]
    return register.view(BITS[dtype.itemsize])[:: register.itemsize // dtype.itemsize].view(dtype)


def constant(machine, instruction, operand, type_):
    if type_ == "pred":
        return np.bool_(operand.bits)
    dtype = DTYPES[type_]
    if operand.kind != "int" and SIZES[operand.kind] != dtype.itemsize:
        raise machine.error(instruction, f"a constant of type {operand.kind} cannot be read as .{type_}")
    bits = operand.bits % (1 << 8 * dtype.itemsize)
    return np.array(bits, BITS[dtype.itemsize]).view(dtype)[()]


def target(machine, instruction, operand, dtype):
    """Where a result of `dtype` goes: the register's array, seen as that kind of number in the register's width."""
    if isinstance(operand, Register) and operand.name == "_":
        return np.zeros(machine.lanes, dtype)
    register = machine.registers.get(operand.name) if isinstance(operand, Register) else None
    if register is None:
        raise machine.error(instruction, f"{operand} cannot be written")
    if np.dtype(bool) in (dtype, register.dtype):
        if dtype != register.dtype:
            raise machine.error(instruction, f"{operand.name} cannot take this result")
        return register
    if register.itemsize < dtype.itemsize:
        raise machine.error(instruction, f"{operand.name} is too narrow for this result")
    if register.itemsize == dtype.itemsize:
        return register.view(dtype)
    if dtype.kind == "f":
        raise machine.error(instruction, f"{operand.name} is too wide for this result")
    return register.view(np.dtype(f"{dtype.kind}{register.itemsize}"))


def address_of(machine, instruction, symbol):
    if symbol.name not in machine.symbols:
        raise machine.error(instruction, f"{symbol.name} is not a variable this kernel can reach")
    return machine.symbols[symbol.name] + symbol.offset


def address(machine, instruction, operand: Address):
    """A function that gives the lanes' addresses as int64."""
    if not isinstance(operand, Address):
        raise machine.error(instruction, f"an address is needed, not {operand}")
    if operand.base is None or isinstance(operand.base, Symbol):
        start = 0 if operand.base is None else address_of(machine, instruction, operand.base)
        fixed = np.full(machine.lanes, start + operand.offset, np.int64)
        return lambda: fixed
    register = machine.registers[operand.base.name]
    if register.itemsize == 8:
        register = register.view(np.int64)
    offset = np.int64(operand.offset)
    if register.itemsize == 4:
        return lambda: (register + offset) & np.int64(0xFFFFFFFF)
    return (lambda: register + offset) if operand.offset else (lambda: register)


def special(machine, instruction, name):
    """A special register's value: a scalar, or an array that follows the batch."""
    axis = "xyz".find(name[-1]) if name[-2:-1] == "." else -1
    values = {"%tid": machine.tid, "%ctaid": machine.ctaid, "%ntid": machine.block, "%nctaid": machine.grid}
    if axis >= 0 and name[:-2] in values:
        value = values[name[:-2]][axis]
        return value if isinstance(value, np.ndarray) else np.uint32(value)
    lane = (machine.thread % 32).astype(np.uint32)
    bit = np.uint32(1) << lane
    known = {
        "%laneid": lane, "%warpid": (machine.thread // 32).astype(np.uint32), "%lanemask_eq": bit,
        "%lanemask_lt": bit - np.uint32(1), "%lanemask_le": bit | bit - np.uint32(1),
        "%lanemask_gt": ~(bit | bit - np.uint32(1)), "%lanemask_ge": ~(bit - np.uint32(1)),
        "%dynamic_smem_size": np.uint32(machine.shared.limit), "%nwarpid": np.uint32(machine.width // 32),
    }  # fmt: skip
    if name not in known:
        raise machine.error(instruction, f"register {name} is not known")
    return known[name]
