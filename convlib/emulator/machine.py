"""Executing a launch: one PTX instruction is one NumPy operation over all threads of a batch of blocks.

Lanes. A batch is as many whole blocks as fit in about 8,192 lanes; a block's lanes are its threads, filled up to whole
warps. A register is an array with one element per lane. `mask` says which lanes take part: None for all of them, or
an array of bools.

Segments. Instructions are cut at labels, branches and barriers. `pending` holds, for each segment that lanes stand
before, the mask of those lanes. The first segment in program order runs next, for all its lanes; so lanes that
went different ways wait for each other at the first instruction that both reach, where their masks are joined again.
(Compilers lay code out in an order in which that works; another order would cost time, not correctness.)

Barriers, and whoever waits at them: barriers.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property

import numpy as np

from . import checks, counters, opcodes, tensor_cores
from .barriers import Barriers
from .copies import Copies
from .dtypes import BITS, DTYPES
from .faults import Fault, Report
from .fences import Fences, for_the_whole_gpu
from .memory import SHARED_RED_ZONE, Space, up_to
from .opcodes import parts, warps
from .syntax import SIZES, Instruction, PtxError, Register

LANES_PER_BATCH = 8_192
MOST_FAULTS = 50
MOST_SEGMENTS = 20_000_000


@dataclass(slots=True)
class Segment:
    """Instructions that run without a jump or a wait. steps: what to call for each.

    aligned: whether one of them takes whole warps only.
    """

    first: int
    last: int
    steps: list
    next: int = 0
    lanes: int = 0
    warps: int = 0
    aligned: bool = False


def registers_in(operand):
    """The names of all registers in an operand, however deep."""
    if isinstance(operand, Register):
        return [operand.name]
    parts = operand if isinstance(operand, tuple) else ()
    if is_dataclass(operand):
        parts = [getattr(operand, field.name) for field in fields(operand)]
    return [name for part in parts for name in registers_in(part)]


class Machine:
    """One kernel with its grid, block and memories. `bind` it to its parameters, then `run` it."""

    def __init__(self, module, function, grid, block, global_memory, shared_bytes, checked, counting):
        self.module, self.function, self.grid, self.block = module, function, grid, block
        self.memory, self.symbols = global_memory, {}
        self.checked, self.counting = checked, counting
        self.report = Report(function.name, module.target, grid, block)
        self.faults = {}
        self.blocks = int(np.prod(grid))
        self.threads = int(np.prod(block))
        self.width = up_to(self.threads, 32)
        per_batch = max(1, (LANES_PER_BATCH if not checked else LANES_PER_BATCH // 2) // self.width)
        self.slots = min(per_batch, self.blocks)
        self.lanes = self.slots * self.width
        self.traffic = []
        self.guarded = {}
        self.lay_out_lanes()
        self.lay_out_memory(shared_bytes)
        self.copies, self.barriers = Copies(self), Barriers(self)
        self.registers = {name: np.zeros(self.lanes, DTYPES[t] if t == "pred" else BITS[SIZES[t]])
                          for name, t in function.registers.items()}  # fmt: skip

    def is_read(self, register) -> bool:
        """Whether anything but one load names `register`."""
        return register.name != "_" and self.mentions[register.name] > 1

    @cached_property
    def mentions(self):
        """How often the function's instructions name each register."""
        named = Counter()
        for instruction in self.function.instructions:
            named.update(registers_in((instruction.operands, instruction.guard)))
        return named

    # Laying out

    def lay_out_lanes(self):
        lane = np.arange(self.lanes)
        self.slot, self.thread = lane // self.width, (lane % self.width).astype(np.int32)
        self.exists = self.thread < self.threads
        self.here = self.exists.copy()  # lanes of blocks that this batch has
        bx, by, _ = self.block
        tid = np.minimum(self.thread, self.threads - 1).astype(np.uint32)
        self.tid = (tid % bx, tid // bx % by, tid // (bx * by))
        self.ctaid = tuple(np.zeros(self.lanes, np.uint32) for _ in range(3))
        self.block_index = np.zeros(self.slots, np.int64)
        self.clock = np.ones(self.lanes, np.int32)
        partial = self.checked and any(warps.orders_warps(i, self.threads) for i in self.function.instructions)
        self.known = np.zeros((self.lanes, self.width) if partial else (0, 0), np.int32)
        self.phase = np.zeros(self.slots, np.int32)
        self.phase_block = np.zeros(1024, np.int64)
        self.phases = 0
        fenced = self.checked and any(map(for_the_whole_gpu, self.function.instructions))
        self.fences = Fences(self, fenced)

    def lay_out_memory(self, shared_bytes):
        function, granule = self.function, narrowest_access(self.function)
        variables = [v for v in (*self.module.variables, *function.variables) if v.space == "shared"]
        places, end = self.shared_places(variables, shared_bytes)
        self.shared = Space("shared", 0, end, self.slots, self.slot, self.checked, granule)
        self.shared_owned = places
        depots = [v for v in function.variables if v.space == "local"]
        end = 0
        for variable in depots:
            self.symbols[variable.name] = up_to(end, variable.align)
            end = self.symbols[variable.name] + variable.size + 16
        self.local = Space("local", 0, end, self.lanes if depots else 1, np.arange(self.lanes), self.checked)
        for variable in depots:
            self.local.own(self.symbols[variable.name], variable.size)
        self.memory.build(self.checked, granule)
        self.memory.space.copy_starts = np.zeros(self.lanes, np.int64)
        self.spaces = {"shared": self.shared, "local": self.local, "global": self.memory.space}

    def shared_places(self, variables, shared_bytes):
        """Where each shared variable lies, dynamic memory (extern arrays) last; its real place modulo 128 is kept."""
        places, packed, gaps = [], 0, 0
        static = [v for v in variables if v.size]
        for variable in static:
            packed = up_to(packed, variable.align)
            self.symbols[variable.name] = packed + gaps
            places.append((packed + gaps, variable.size))
            packed, gaps = packed + variable.size, gaps + SHARED_RED_ZONE
        self.static_shared = packed
        dynamic = [v for v in variables if not v.size]
        packed = up_to(packed, max((v.align for v in dynamic), default=16))
        for variable in dynamic:
            self.symbols[variable.name] = packed + gaps
        if shared_bytes:
            places.append((packed + gaps, shared_bytes))
        return places, packed + gaps + shared_bytes

    # Binding: from instructions to calls on this batch's arrays

    def bind(self, parameters, symbols):
        """Turn every instruction into a call. parameters: bytes; symbols: addresses of variables and parameters."""
        self.parameters = parameters
        self.symbols.update(symbols)
        instructions = self.function.instructions
        self.index_of = {id(instruction): i for i, instruction in enumerate(instructions)}
        starts = {0, *self.function.labels.values()}
        for i, instruction in enumerate(instructions):
            row = opcodes.row_of(instruction)
            if row.ends_segment:
                starts |= {i + 1}
            if row.starts_segment:
                starts |= {i}
        starts = sorted(s for s in starts if s < len(instructions))
        self.segment_at = {start: k for k, start in enumerate(starts)}
        self.segments = [
            Segment(start, last, [], k + 1)
            for k, (start, last) in enumerate(zip(starts, [*starts[1:], len(instructions)], strict=True))
        ]
        for segment in self.segments:
            for i in range(segment.first, segment.last):
                segment.steps.append(self.step(instructions[i]))
                segment.aligned |= opcodes.row_of(instructions[i]).aligned

    def step(self, instruction: Instruction):
        """A function of the mask that executes one instruction; it returns True if it has moved the lanes elsewhere."""
        row = opcodes.row_of(instruction)
        run = row.bind(self, instruction)
        if instruction.guard is None or row.handles_guard:
            return run
        guard = self.registers[instruction.guard.name]
        negated = instruction.guard_negated
        counted = self.guarded.setdefault(id(instruction), [row.unit, 0, 0])

        def guarded(mask):
            mask = self.both(mask, ~guard if negated else guard)
            if mask.any():
                if self.counting:
                    counted[1] += np.count_nonzero(mask)
                    counted[2] += self.warps_of(mask)
                run(mask)

        return guarded

    def both(self, mask, condition):
        return condition & (self.here if mask is None else mask)

    def warps_of(self, mask):
        return int(np.count_nonzero(mask.reshape(-1, 32).any(axis=1)))

    def error(self, instruction, message):
        text = self.module.text[instruction.line - 1].strip()
        return PtxError(f"PTX line {instruction.line}: {message}: {text}")

    # Running

    def run(self, blocks=None):
        """Execute all blocks of the grid, or those whose linear indices are given, and return the report."""
        blocks = np.arange(self.blocks) if blocks is None else np.asarray(blocks, np.int64)
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), self.slots):
                self.run_batch(blocks[first : first + self.slots])
        self.report.faults = list(self.faults.values())
        if self.counting:
            self.count(len(blocks))
        return self.report

    def run_batch(self, blocks):
        self.start(blocks)
        steps = 0
        while True:
            if not self.pending:
                if not self.barriers.resolve():
                    return
                continue
            at = min(self.pending)
            self.execute(at, self.pending.pop(at))
            steps += 1
            if steps > MOST_SEGMENTS:
                raise RuntimeError(f"{self.function.name}: still running after {steps:,} steps; an endless loop?")

    def start(self, blocks):
        self.block_index[:] = -1
        self.block_index[: len(blocks)] = blocks
        self.here = self.exists & (self.slot < len(blocks))
        self.alive = self.here.copy()
        gx, gy, _ = self.grid
        linear = np.maximum(self.block_index, 0)[self.slot]
        for axis, value in zip(self.ctaid, (linear % gx, linear // gx % gy, linear // (gx * gy)), strict=True):
            axis[:] = value
        if self.checked:
            self.shared.flags[:] = 0
            self.shared.records[:] = 0
            for start, size in self.shared_owned:
                self.shared.own(start, size)
            self.local.flags &= np.uint8(checks.OWNED)
            self.known[:] = 0
            self.fences.start()
            self.new_phase(np.arange(self.slots))
        self.pending = {0: self.here.copy()}
        self.barriers.start()
        self.copies.clear()

    def new_phase(self, slots):
        """A number of its own for the next phase of the blocks in `slots`."""
        last = self.phases + len(slots)
        if last >= len(self.phase_block):
            self.phase_block = np.concatenate([self.phase_block, np.zeros(max(len(self.phase_block), last), np.int64)])
        numbers = np.arange(self.phases + 1, last + 1)
        self.phase[slots] = numbers
        self.phase_block[numbers] = self.block_index[slots]
        self.phases = last

    def execute(self, at, lanes, together=True):
        """Run a segment. together: whether lanes wait for the rest of their warp where it has aligned instructions."""
        segment = self.segments[at]
        if segment.aligned and together:
            lanes = self.barriers.whole_warps(at, lanes)
            if not lanes.any():
                return
        mask = None if np.array_equal(lanes, self.here) else lanes
        if self.counting:
            segment.lanes += np.count_nonzero(lanes)
            segment.warps += self.warps_of(lanes)
        for step in segment.steps:
            moved = step(mask)
        if moved is not True:  # a NumPy call returns its array
            self.go(segment.next, lanes)

    def go(self, segment, lanes):
        """Let lanes stand before a segment; past the last one they are done."""
        if segment >= len(self.segments):
            self.leave(lanes)
        elif segment in self.pending:
            self.pending[segment] = self.pending[segment] | lanes
        else:
            self.pending[segment] = lanes

    def leave(self, lanes):
        self.alive = self.alive & ~lanes

    # Faults and counts

    def fault(self, kind, instruction, lane, message, count=1):
        key = kind, instruction.line
        if key in self.faults:
            self.faults[key].count += count
        elif len(self.faults) < MOST_FAULTS:
            self.faults[key] = Fault(
                kind, message, instruction.line, self.module.text[instruction.line - 1].strip(), instruction.source,
                self.coordinates(self.block_index[self.slot[lane]], self.grid),
                self.coordinates(self.thread[lane], self.block), count,
            )  # fmt: skip

    def coordinates(self, index, sizes):
        index = int(index)
        return index % sizes[0], index // sizes[0] % sizes[1], index // (sizes[0] * sizes[1])

    def count(self, blocks_run):
        counts = self.report.counters
        for segment in self.segments:
            for i in range(segment.first, segment.last):
                instruction = self.function.instructions[i]
                row = opcodes.row_of(instruction)
                if id(instruction) in self.guarded:
                    unit, lanes, warps = self.guarded[id(instruction)]
                else:
                    unit, lanes, warps = row.unit, segment.lanes, segment.warps
                counts.lanes[unit] += lanes
                counts.warps[unit] += warps
                counts.lines[instruction.line] += segment.warps
                if unit == counters.MMA:
                    counts.mma_multiply_adds += warps * tensor_cores.multiply_adds(parts.shape_of(instruction))
        counts.traffic = [t for t in self.traffic if t.requests]
        counts.blocks, counts.blocks_run = self.blocks, blocks_run
        flags = self.memory.space.flags
        counts.bytes_read = int(np.count_nonzero(flags & checks.READ))
        counts.bytes_written = int(np.count_nonzero(flags & checks.WRITTEN))


def narrowest_access(function):
    """The fewest bytes any load, store or copy of the function takes: how fine races must be told apart."""
    sizes = [
        min(SIZES[m] for m in i.modifiers if m in SIZES)
        for i in function.instructions
        if i.root in ("ld", "st", "atom", "red") and "param" not in i.modifiers
    ]
    sizes += [size for size in map(parts.copied_bytes, function.instructions) if size]
    return min(sizes, default=4)
