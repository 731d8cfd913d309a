"""Cycles of float32 kernels in GPGPU-Sim, which simulates a GPU from PTX: no GPU is needed, only patience.

    launcher --> launching.recording --+--> a folder: plan, PTX, arrays --> simulated/host.cc --> cycles, result
    CUTLASS, simulated/cutlass.cu -----+                                    (the simulator)

simulated/README.md says how simulator, host program and CUTLASS's kernels are built. A plan has a line for each step:

    buffer NAME FILE                                                        memory of the GPU, filled
    ptx FILE                                                                kernels
    launch FUNCTION grid (3) block (3) dynamic-shared-bytes COUNT           and COUNT lines, an argument each:
    pBUFFER:OFFSET                                                          an address
    vHEX or vHEX@POSITION=BUFFER:OFFSET...                                  a value, addresses inside it
    read BUFFER FILE                                                        what has become of it

What such cycles are worth: the simulator issues PTX as it is written, in its order. The assembler's schedule, which
hides latencies on a GPU, is not in it, and what it would remove is. Simulated is not measured.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from convlib import compiling, dispatch, strided
from convlib.device import Device
from convlib.kernels import launching
from convlib.problem import ConvProblem

from . import gate

PLACE = Device("emulator", name="RTX 2060, simulated", compute_capability=(7, 5), sm_count=30)
LANES = 64  # float32 multiply-adds of an SM in a cycle
LAUNCH_CYCLES = 5000  # of each launch, in SM75_RTX2060/gpgpusim.config
ALIGNMENT = 256  # of the simulator's allocations
PTX_VERSION = "6.4"
CUTLASS = "CUTLASS"  # how the names of its kernels begin
SENTINEL, SENTINELS_APART = 0x1234567800000000, 0x1000000  # simulated/cutlass.cu: addresses of x, w, y, semaphores


@dataclass(frozen=True, slots=True)
class Launched:
    """One simulated launch; cycles: without LAUNCH_CYCLES."""

    function: str
    blocks: int
    cycles: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """A problem's launches, and how far the result is from float64 (None where multiply-adds were left out)."""

    problem: ConvProblem
    launches: tuple[Launched, ...]
    error: float | None

    @property
    def cycles(self) -> int:
        return sum(launch.cycles for launch in self.launches)

    @property
    def share(self) -> float:
        """Of the multiply-adds that the simulated GPU could have done in these cycles."""
        return self.problem.macs / (LANES * PLACE.sm_count * self.cycles)


def part_of(problem: ConvProblem, images: int, part: int) -> ConvProblem:
    """A layer of so many images, with 1 in `part` of its channels: whole ones take hours. Raises ValueError.

    >>> part_of(ConvProblem(1, 64, 7, 7, 8, 3, 3, (1, 1), ((1, 1), (1, 1))), images=2, part=4).x_shape
    (2, 16, 7, 7)
    """
    if part > 1 and (problem.groups > 1 or problem.C % part):
        raise ValueError(f"part: a divisor of {problem.C} channels in one group needed, got {part}")
    return replace(problem, N=images, C=problem.C // part)


def ours(kernel: str, problem: ConvProblem, host: Path, config: Path, folder: Path, timing_only=False) -> Simulated:
    """A listed kernel in CUDA C, cut for the simulated GPU. Raises ValueError where it cannot run the problem.

    host: the program of simulated/host.cc. config: a gpgpusim.config. folder: where plan, log and arrays are written.
    timing_only: leave the multiply-adds' values out, which changes no cycle and saves half of the time.
    """
    module = dispatch.kernel(kernel)
    reasons = module.why_not(problem, PLACE)
    if reasons:
        raise ValueError(f"{kernel} cannot run {problem}: {'; '.join(reasons)}")
    x, w, y = operands(problem)
    workspace = strided.empty_aligned((dispatch.one_call_bytes(module, problem, PLACE),), np.uint8)
    with launching.recording() as launches:
        module.run(problem, PLACE, x, w, y, workspace=workspace if workspace.size else None)
    plan = Plan(folder)
    for launch in launches:
        plan.launch(launch)
    plan.read(y, "result")
    return replayed(plan, problem, (x, w, y), host, config, timing_only)


def cutlass(
    program: Path, problem: ConvProblem, host: Path, config: Path, folder: Path, timing_only=False
) -> Simulated:
    """CUTLASS's kernel: `program` is simulated/cutlass.cu compiled, `program`.ptx its PTX; the problem is in NHWC."""
    sizes = (problem.N, problem.C, problem.H, problem.K, problem.R, problem.stride[0])
    said = subprocess.run([program, *map(str, sizes)], capture_output=True, text=True, check=True).stdout.split()
    x, w, y = operands(problem)
    krsc = np.ascontiguousarray(w.transpose(0, 2, 3, 1))
    plan = Plan(folder)
    text = program.with_suffix(".ptx").read_text()
    function = re.search(r"\.entry (\w+)\(", text)[1]
    plan.ptx(text)
    plan.lines.append(f"launch {function} {' '.join(said[:7])} 1")
    plan.lines.append(f"v{said[7]}{addresses_in(bytes.fromhex(said[7]), [plan.place(a) for a in (x, krsc, y)])}")
    plan.read(y, "result")
    return replayed(plan, problem, (x, w, y), host, config, timing_only)


def operands(problem):
    """x, w and y, x and y in the problem's layout."""
    random = np.random.default_rng(0)

    def image(shape):
        n, c, h, w = shape
        stored = strided.empty_aligned((n, c, h, w) if problem.layout == "NCHW" else (n, h, w, c), np.float32)
        return stored if problem.layout == "NCHW" else stored.transpose(0, 3, 1, 2)

    x, w, y = image(problem.x_shape), strided.empty_aligned(problem.w_shape, np.float32), image(problem.y_shape)
    x[...] = random.standard_normal(x.shape, np.float32)
    w[...] = random.standard_normal(w.shape, np.float32)
    y[...] = 0
    return x, w, y


class Plan:
    """The lines of a plan, and the files they name, in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.buffers, self.texts = folder, [], {}, []
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, array) -> str:
        """BUFFER:OFFSET of an array; arrays that share memory here share a buffer there, aligned as here."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        before = owner.ctypes.data % ALIGNMENT
        name, _ = self.buffers.setdefault(owner.ctypes.data, (f"buffer{len(self.buffers)}", owner))
        if f"buffer {name} {name}" not in self.lines:
            (self.folder / name).write_bytes(bytes(before) + owner.tobytes())
            self.lines.insert(0, f"buffer {name} {name}")
        return f"{name}:{before + array.ctypes.data - owner.ctypes.data}"

    def ptx(self, text: str) -> None:
        """Load kernels, unless that text is loaded already."""
        if text not in self.texts:
            name = f"kernels{len(self.texts)}.ptx"
            (self.folder / name).write_text(understood(text))
            self.texts.append(text)
            self.lines.append(f"ptx {name}")

    def launch(self, launch: launching.Launch) -> None:
        self.ptx(compiling.cuda_source_ptx(launch.kernel, 75))
        arguments = [self.argument(value) for value in launching.with_null_pointers(launch.args)]
        numbers = (*launch.grid, *launch.block, launch.shared_bytes, len(arguments))
        self.lines += [f"launch {launch.kernel.function} {' '.join(map(str, numbers))}", *arguments]

    def argument(self, value) -> str:
        is_array = isinstance(value, np.ndarray) and value.ndim
        return f"p{self.place(value)}" if is_array else f"v{np.asarray(value).tobytes().hex()}"

    def read(self, array, file: str) -> None:
        self.lines.append(f"read {self.place(array).partition(':')[0]} {file}")

    def result(self, array, file: str):
        """`array` as the simulator left it."""
        offset = int(self.place(array).partition(":")[2])
        return np.ndarray(array.shape, array.dtype, (self.folder / file).read_bytes(), offset, array.strides)


def addresses_in(values: bytes, places: list[str]) -> str:
    """@POSITION=BUFFER:OFFSET for each sentinel among 64-bit words; nobody's semaphores are left as they are."""
    found = []
    for position in range(0, len(values) - 7, 4):
        number = int.from_bytes(values[position : position + 8], "little")
        which, rest = divmod(number - SENTINEL, SENTINELS_APART)
        if rest == 0 and 0 <= which < len(places):
            found.append(f"@{position}={places[which]}")
    return "".join(found)


def understood(text: str) -> str:
    """PTX that GPGPU-Sim's parser reads: without hints, with older names for what CUTLASS's split sums would use."""
    text = re.sub(r"\.version \d+\.\d+", f".version {PTX_VERSION}", text)
    text = re.sub(r'[ \t]*\.pragma "used_bytes_mask[^;]*;\n', "", text)
    text = text.replace(".L2::128B", "").replace("ld.global.acquire.gpu.b32", "ld.global.cg.b32")
    text = text.replace("st.global.release.gpu.b32", "st.global.b32")
    return text


def replayed(plan, problem, operands, host, config, timing_only) -> Simulated:
    (plan.folder / "plan").write_text("\n".join(plan.lines) + "\n")
    (plan.folder / "gpgpusim.config").write_text(config.read_text())
    run = subprocess.run(
        [host.resolve(), *(["--timing-only"] if timing_only else [])],
        cwd=plan.folder, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    (plan.folder / "log").write_text(run.stdout)
    if run.returncode:
        raise RuntimeError(f"{host} failed in {plan.folder}: {run.stderr[-2000:]}")
    x, w, y = operands
    error = None if timing_only else error_of(problem, x, w, plan.result(y, "result"))
    return Simulated(problem, tuple(launches_in(run.stdout, plan.lines)), error)


def error_of(problem, x, w, y) -> float:
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *problem.padding))
    return gate.norm_relative_error(y, gate.by_matmul(problem, padded, w.astype(np.float64)))


def launches_in(log: str, plan: list[str]) -> list[Launched]:
    """What the simulator says of each launch, in their order. Raises ValueError if these are not the plan's."""
    said = re.findall(r"^kernel_name = (\w+) *\n(?:.*\n)*?gpu_sim_cycle = (\d+)", log, re.M)
    planned = [line.split() for line in plan if line.startswith("launch ")]
    if [name for name, _ in said] != [words[1] for words in planned]:
        raise ValueError(
            f"log: the launches {[words[1] for words in planned]} needed, got {[name for name, _ in said]}"
        )
    blocks = [int(words[2]) * int(words[3]) * int(words[4]) for words in planned]
    return [Launched(name, n, int(c) - LAUNCH_CYCLES) for (name, c), n in zip(said, blocks, strict=True)]


def table(found: list[tuple[str, str, Simulated]]) -> Table:
    """A row for each kernel's name, layer and result; ours beside the fastest of CUTLASS's tiles on the same layer."""
    drawn = Table(title=f"{PLACE.name}, {PLACE.sm_count} SMs: simulated, not measured", title_justify="left")
    for name in ("kernel", "layer"):
        drawn.add_column(name)
    for name in ("cycles", "of CUTLASS's fastest", "of peak", "launches: blocks, cycles", "error"):
        drawn.add_column(name, justify="right")
    for name, layer, one in found:
        launches = "; ".join(f"{launch.blocks}, {launch.cycles:,}" for launch in one.launches)
        error = "" if one.error is None else f"{one.error:.1e}"
        fastest = fastest_of_cutlass(found, layer)
        beside = f"{one.cycles / fastest:.2f}" if fastest else ""
        drawn.add_row(name, layer, f"{one.cycles:,}", beside, f"{one.share:.1%}", launches, error)
    return drawn


def fastest_of_cutlass(found: list[tuple[str, str, Simulated]], layer: str) -> int | None:
    """The fewest cycles of CUTLASS's tiles on `layer`; None where none was simulated.

    >>> problem = ConvProblem(1, 1, 1, 1, 1, 1, 1, (1, 1), ((0, 0), (0, 0)))
    >>> one, other = (Simulated(problem, (Launched("f", 1, cycles),), None) for cycles in (7, 9))
    >>> fastest_of_cutlass([("CUTLASS 64x64", "a", other), ("CUTLASS 128x64", "a", one)], "a")
    7
    """
    cycles = [one.cycles for name, of, one in found if of == layer and name.startswith(CUTLASS)]
    return min(cycles, default=None)
