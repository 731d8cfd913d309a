"""What PTX text says, once it is read: operands, instructions, variables, functions, a module; parser.py reads it.

Source: NVIDIA, PTX ISA 9.0, chapter 5 (state spaces, types, variables).
"""

from __future__ import annotations

from dataclasses import dataclass, field

SIZES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4,
    "f32": 4, "tf32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8,
}  # fmt: skip


class PtxError(ValueError):
    """PTX that is malformed, or says something the emulator does not know."""


class Refused(PtxError):
    """An instruction, a modifier or a type that opcodes/ does not have."""


@dataclass(frozen=True, slots=True)
class Register:
    """A register, special ones (%tid.x) included; `_` is the register that nobody reads."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant: its bits, and whether it was written as an "int", an "f32" (0f...) or an "f64" (0d...)."""

    bits: int
    kind: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable, or of a byte past its start; also the name of a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """[base + offset]; base is a Register, a Symbol or None."""

    base: Register | Symbol | None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    """{a, b, ...}"""

    items: tuple


@dataclass(frozen=True, slots=True)
class Pair:
    """d|p: a destination and the predicate that goes with it."""

    first: Register
    second: Register


@dataclass(frozen=True, slots=True)
class Negated:
    """!p"""

    register: Register


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. guard: the register of @%p or None; guard_negated: whether it was @!%p."""

    opcode: str
    operands: tuple
    line: int
    source: tuple[str, int] | None = None
    guard: Register | None = None
    guard_negated: bool = False

    @property
    def root(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in memory. size: bytes (0 for extern .shared arrays); initial: its bytes, or None."""

    name: str
    space: str
    size: int
    align: int
    initial: bytes | None = None


@dataclass(slots=True)
class Function:
    """A kernel (entry) or device function. registers: name -> type; labels: name -> index of an instruction."""

    name: str
    entry: bool
    parameters: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    most_threads: int = 1024


@dataclass(slots=True)
class Module:
    """A whole PTX file. text: its lines, for messages."""

    target: str
    functions: dict[str, Function]
    variables: list[Variable]
    text: list[str]

    def kernel(self, name: str | None = None) -> Function:
        """The kernel called `name`, or the only one."""
        kernels = {f.name: f for f in self.functions.values() if f.entry}
        if name is None and len(kernels) == 1:
            return next(iter(kernels.values()))
        if name not in kernels:
            raise PtxError(f"no kernel {name!r} in this PTX, which has {', '.join(kernels) or 'none'}")
        return kernels[name]
