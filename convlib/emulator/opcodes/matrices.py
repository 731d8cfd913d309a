"""mma, ldmatrix: instructions of whole warps."""

from __future__ import annotations

import numpy as np

from .. import accesses, checks, registers, tensor_cores
from .. import arithmetic as a
from ..counters import SHARED, Traffic
from ..syntax import Refused
from .parts import registers_of, shape_of, space_name, types_of


def of_whole_warps(machine, instruction, run):
    """`run`, and a fault if a warp does not come as a whole."""
    last_is_cut = machine.threads % 32 != 0

    def checked(mask):
        if mask is not None or last_is_cut:
            machine.barriers.report_divergence(instruction, machine.here if mask is None else mask)
        run(mask)

    return checked


def load_matrices(machine, instruction):
    """ldmatrix: 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r (16 bytes) of matrix i.

    Lane 4 g + t gets elements 2 t and 2 t + 1 of row g, transposed those of column g. For the checks each lane reads
    what it gets: the bytes that another thread wrote must be ordered before.
    """
    into, where = instruction.operands
    into = registers_of(into)
    transposed = "trans" in instruction.modifiers
    if f"x{len(into)}" not in instruction.modifiers or space_name(instruction) != "shared":
        raise machine.error(instruction, "as many registers as .x1, .x2 or .x4 says and .shared needed")
    targets = [registers.target(machine, instruction, item, np.dtype(np.uint32)) for item in into]
    address = registers.address(machine, instruction, where)
    traffic = Traffic(SHARED, "ldmatrix", 4 * len(into), instruction.line, instruction.source)
    machine.traffic.append(traffic)
    lane = np.arange(machine.lanes) % 32
    first, g, t = np.arange(machine.lanes) - lane, lane >> 2, lane & 3
    gives_address, halves = lane < 8 * len(into), np.zeros((2, machine.lanes), np.uint16)
    all_must_be_valid = machine.module.target == "sm_75"  # the addresses of lanes that give no row too

    def run(mask):
        lanes, at = machine.here if mask is None else mask, address()
        rows = lanes & gives_address
        if machine.counting:
            accesses.count_traffic(machine, traffic, at, rows, 16)
        needed = lanes if all_must_be_valid else rows
        _, good = accesses.check(machine, instruction, machine.shared, checks.PEEKS, 16, at, needed)
        for i, target in enumerate(targets):
            if not transposed:
                row = first + 8 * i + g
                accesses.load_element(machine, instruction, 4, at[row] + 4 * t, lanes & good[row], target)
                continue
            for half, part in enumerate(halves):
                row = first + 8 * i + 2 * t + half
                accesses.load_element(machine, instruction, 2, at[row] + 2 * g, lanes & good[row], part)
            np.copyto(target, halves[1].astype(np.uint32) << np.uint32(16) | halves[0], where=lanes)

    return of_whole_warps(machine, instruction, run)


def multiply_matrices(machine, instruction):
    """mma: D = A B + C of one warp, see tensor_cores.py."""
    into, left, right, addend = (registers_of(o) for o in instruction.operands)
    types, order = types_of(instruction), [m for m in instruction.modifiers if m in ("row", "col")]
    depth = tensor_cores.DEPTHS.get((shape_of(instruction), types[1]))
    if depth is None or types != ["f32", types[1], types[1], "f32"] or order != ["row", "col"]:
        raise Refused(f"PTX line {instruction.line}: opcode {instruction.opcode} is not known to the emulator")
    held = 32 * tensor_cores.VALUES_PER_REGISTER[types[1]]
    if (len(left), len(right), len(addend), len(into)) != (16 * depth // held, 8 * depth // held, 4, 4):
        raise machine.error(instruction, "as many registers as its shape has needed")
    outs = tuple(registers.target(machine, instruction, item, np.dtype(np.float32)) for item in into)
    left, right = (tuple(every_lane(machine, instruction, item, "b32") for item in items) for items in (left, right))
    addend = tuple(every_lane(machine, instruction, item, "f32") for item in addend)
    warp, widened = tensor_cores.Warp(depth), tensor_cores.WIDENED[types[1]]

    def run(mask):
        lanes = machine.here if mask is None else mask
        tensor_cores.multiply(left, right, addend, outs, lanes, widened, a.F32_NAN, *warp.matrices)

    return of_whole_warps(machine, instruction, run)


def every_lane(machine, instruction, operand, type_):
    """An operand as an array of all lanes, a constant too."""
    value = registers.source(machine, instruction, operand, type_)
    return value if np.ndim(value) else np.full(machine.lanes, value)
