"""Where a kernel runs: what dispatch and the kernels' `why_not` need to know of a machine, and no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A processor. kind: "cpu", "cuda", "simulator" (Numba's), or "emulator" (ours, of PTX)."""

    kind: str
    index: int = 0
    name: str = ""
    compute_capability: tuple[int, int] = (0, 0)
    sm_count: int = 0
    shared_bytes_per_block: int = 49_152
    threads: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.kind != "cpu"

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" + (f" ({self.name})" if self.name else "")
