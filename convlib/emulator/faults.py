"""What the emulator finds wrong, and the report of a launch."""

from __future__ import annotations

from dataclasses import dataclass, field

from .counters import Counters

KINDS = (
    "out of bounds", "misaligned", "uninitialised read", "race: write after read", "race: read after write",
    "race: write after write", "copy in flight", "divergent barrier", "divergent warp",
    "missing threads at a warp barrier", "source size", "trap", "never written", "written twice",
)  # fmt: skip


class EmulationError(RuntimeError):
    """A kernel did what it must not do; the message lists its faults."""


@dataclass(slots=True)
class Fault:
    """One kind of fault at one place. line: in the PTX; source: (file, line) of the CUDA C or Python, where known.

    block and thread: of the first access found, x first; count: how many such accesses there were.
    """

    kind: str
    message: str
    line: int
    text: str = ""
    source: tuple[str, int] | None = None
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f"PTX line {self.line}" if self.line else "at the end"
        if self.source:
            where = f"{self.source[0]}:{self.source[1]}, {where}"
        who = f", block {self.block}, thread {self.thread}" if self.block is not None else ""
        times = f", {self.count:,} times" if self.count > 1 else ""
        text = f"\n    {self.text}" if self.text else ""
        return f"{self.kind}: {self.message} ({where}{who}{times}){text}"


@dataclass(slots=True)
class Report:
    """What one launch did. faults: empty when all checks are clean; counters: see counters.py."""

    kernel: str
    target: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    faults: list[Fault] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    ptx: str = ""

    def raise_if_faulty(self) -> None:
        """Raise EmulationError with every fault, if there is one."""
        if self.faults:
            raise EmulationError(
                f"{self.kernel}, {self.target}, grid {self.grid}, block {self.block}\n{self.listing()}"
            )

    def listing(self) -> str:
        return "\n".join(f"  {fault}" for fault in self.faults)

    def kinds(self) -> set[str]:
        return {fault.kind for fault in self.faults}
