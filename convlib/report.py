"""The static report: what the machine code of every GPU kernel takes of a GPU, read from the code itself.

    a problem --> the launcher, recorded --> kernel, block, shared bytes --> cubin for a target (compiling.py)
              --> registers, stack, shared memory (cuobjdump) --> blocks per multiprocessor, and what limits them
              --> SASS (nvdisasm) --> the main loop: its instructions by kind, widths of loads, issue bound

The main loop is the innermost loop with the most multiply-adds. Its issue bound is the share of the GPU's arithmetic
peak that it reaches if every scheduler issues an instruction every cycle and nothing ever waits: an upper limit, not a
prediction. No GPU is needed, and nothing here is measured.

On tensor cores a multiply-add instruction (HMMA) keeps its scheduler's tensor core busy for several cycles, in which
the others issue, so there shared memory counts too, which the four schedulers share:

    HMMA cycles     multiply-adds / what tensor cores do in a cycle: HMMA.16816.F32 takes 8 on sm_80, 6.1 on sm_90
    issue cycles    one for every instruction
    shared cycles   four times the loop's wavefronts, were there no bank conflicts (the emulator counts those)
    issue bound     HMMA cycles / the most of the three

Sources: NVIDIA, CUDA C++ Programming Guide, the tables of technical specifications per compute capability and of
arithmetic throughput; CUDA Occupancy Calculator (how registers and shared memory are handed out). Tensor cores: white
papers on the architectures of TU102, GA100, GA102, AD102, GH100 and GB202 (16-bit multiply-adds a cycle; GeForce cards
do half with float32 sums); Sun et al., Dissecting tensor cores via microbenchmarks, IEEE TPDS 2023 (arXiv 2206.02874);
Luo et al., Dissecting the NVIDIA Hopper architecture, 2025 (arXiv 2501.12084), table 7: mma.m16n8k16 of float16 reaches
310.6 TFLOP/s on an A100, all of its peak, and 494.4 on an H800, 65.3 % of the 512 multiply-adds a cycle that wgmma has.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import cache

import numpy as np

from . import arrays, compiling, device, dispatch, strided
from .emulator import arguments
from .emulator.profile import gpu_kernels, random_operands, short
from .kernels import launching
from .problem import make_problem

SCHEDULERS = 4  # per multiprocessor; each issues one warp instruction a cycle


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What one multiprocessor has. fma: warps of float32 multiply-adds it completes in a cycle; double: of float64.

    mma: 16-bit multiply-adds that one scheduler's tensor cores complete in a cycle under mma.sync; of TF32 half.
    """

    threads: int
    blocks: int
    shared: int
    reserved: int
    fma: float
    double: float
    mma: float


MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 65_536, 0, 2, 1 / 16, 128),
    80: Multiprocessor(2048, 32, 167_936, 1024, 2, 1, 256),
    86: Multiprocessor(1536, 16, 102_400, 1024, 4, 1 / 16, 128),
    89: Multiprocessor(1536, 24, 102_400, 1024, 4, 1 / 16, 128),
    90: Multiprocessor(2048, 32, 233_472, 1024, 4, 2, 0.653 * 512),
    100: Multiprocessor(2048, 32, 233_472, 1024, 4, 2, 0.653 * 512),  # mma: sm_90's, for want of a published figure
    120: Multiprocessor(1536, 24, 102_400, 1024, 4, 1 / 16, 128),
}
REGISTERS = 65_536
REGISTERS_AT_ONCE = 256  # a warp's registers are handed out in this many
SHARED_AT_ONCE = 128

# Problems to compile for: the first one that a kernel serves. VGG-16's conv3_1; MobileNetV2's first depthwise layer;
# conv3_1 again, for kernels that take float32 only where a lower precision is asked for.
PROBLEMS = (
    ((1, 128, 56, 56), (256, 128, 3, 3), {"padding": 1}),
    ((1, 32, 112, 112), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ((1, 128, 56, 56), (256, 128, 1, 1), {}),
    ((1, 56, 56, 128), (256, 128, 3, 3), {"padding": 1, "layout": "NHWC", "precision": "tf32"}),
)
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Row:
    """One function of one kernel, for one target and dtype. Loop counts are of SASS instructions of one iteration.

    stack: bytes per thread, spilled registers included. shared: static and dynamic bytes per block. blocks, warps: per
    multiprocessor. loads: bits per lane, averaged over the loop's load instructions, 0 where it has none. issue_bound:
    the largest share of peak. mma_share: tensor-core instructions among the loop's.
    """

    kernel: str
    function: str
    dtype: str
    target: int
    threads: int
    registers: int
    stack: int
    shared: int
    blocks: int
    warps: int
    occupancy: float
    limited_by: str
    loop: int
    fma_share: float
    integer_share: float
    shared_load_bits: float
    global_load_bits: float
    issue_bound: float
    mma_share: float = 0.0

    @property
    def key(self):
        return self.kernel, self.function, self.dtype, self.target


def rows(kernels=None, targets=compiling.TARGETS, dtypes=DTYPES):
    """A Row for every function that the GPU kernels launch, for each target and dtype they serve."""
    for name in kernels or gpu_kernels():
        for dtype in dtypes:
            for target in targets:
                yield from rows_of(name, dtype, target)


def rows_of(name, dtype, target):
    launches = recorded(name, dtype, target)
    functions = {}
    for launch in launches:
        cubin, function = machine_code(launch, target)
        functions.setdefault(function, (cubin, launch))
    for function, (cubin, launch) in functions.items():
        yield row(name, dtype, target, function, cubin, launch)


def recorded(name, dtype, target):
    """The launches of a listed kernel on the first of PROBLEMS that it serves; none if it serves none."""
    module, place = dispatch.kernel(name), device.emulator_of(target)
    for x, w, keywords in PROBLEMS:
        if "precision" in keywords and dtype != "float32":
            continue
        problem = make_problem(x, w, arrays.named_dtype(dtype), pass_=module.passes[0], **keywords)
        if not module.why_not(problem, place):
            workspace = strided.empty_aligned((dispatch.one_call_bytes(module, problem, place),), np.uint8)
            with launching.recording() as launches:
                module.run(problem, place, *random_operands(problem), workspace if workspace.size else None)
            return launches
    return []


def machine_code(launch, target):
    """The cubin of a launch's kernel, and the kernel's name in it."""
    if isinstance(launch.kernel, launching.CudaSource):
        return compiling.cuda_source_cubin(launch.kernel, target), launch.kernel.function
    cubin = numba_cubin(launch.kernel, arguments.numba_types(launch.args), target)
    return cubin, next(iter(compiling.resources(cubin)))


@cache
def numba_cubin(kernel, signature, target):
    return compiling.numba_cubin(kernel, signature, target)


def row(name, dtype, target, function, cubin, launch):
    used = compiling.resources(cubin)[function]
    has = MULTIPROCESSORS[target]
    threads = int(np.prod(launch.block))
    included = has.reserved if target >= 90 and used.shared else 0  # by cubins, of kernels that have any
    shared = used.shared - included + launch.shared_bytes
    blocks, limit = blocks_at_once(has, threads, used.registers, shared + has.reserved)
    warps = blocks * -(-threads // 32)
    loop = Loop.of(compiling.sass(cubin), function)
    return Row(
        name, short(function), dtype, target, threads, used.registers, used.stack, shared, blocks, warps,
        round(warps * 32 / has.threads, 4), limit, loop.size, round(loop.share(*MULTIPLY_ADDS), 4),
        round(loop.share(*INTEGER), 4), loop.load_bits("LDS", "LDSM"), loop.load_bits("LDG", "LDGSTS"),
        round(loop.issue_bound(has), 4), round(loop.share("HMMA"), 4),
    )  # fmt: skip


def blocks_at_once(has, threads, registers, shared):
    """Blocks of one kernel that a multiprocessor holds, and the resource that allows no more."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    shared = -(-shared // SHARED_AT_ONCE) * SHARED_AT_ONCE
    limits = {
        "threads": has.threads // (32 * warps),
        "blocks": has.blocks,
        "registers": REGISTERS // per_warp // SCHEDULERS * SCHEDULERS // warps,
        "shared memory": has.shared // shared if shared else has.blocks,
    }
    limit = min(limits, key=limits.get)
    return limits[limit], limit


# SASS

MULTIPLY_ADDS = ("FFMA", "FFMA2", "DFMA")  # not HFMA2, which compilers also use to load a constant
INTEGER = ("IMAD", "IADD", "IADD3", "LEA", "LOP3", "SHF", "ISETP", "IMNMX", "IABS", "SEL", "PRMT", "UIADD3", "UIMAD",
           "ULEA", "ULOP3", "USHF")  # fmt: skip
SHARED_MEMORY = ("LDS", "LDSM", "STS", "LDGSTS")
TENSOR = re.compile(r"HMMA\.168(16|8|4)\.F32(\.TF32)?")  # 16 x 8 x that
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
NEVER = re.compile(r"\*/\s+@!PT\s")  # issued, and does nothing: the assembler's LDS between copies and a barrier
LABEL = re.compile(r"^(\.L_x_\d+):")


class Loop:
    """The instructions of one loop: their names, modifiers included."""

    def __init__(self, instructions):
        self.names = instructions
        self.roots = Counter(name.partition(".")[0] for name in instructions)

    @classmethod
    def of(cls, sass, function):
        """Of the loops of `function` with no such loop inside, the one with the most multiply-adds."""
        instructions, loops = loops_of(sass, function)
        bodies = {(first, last): cls(instructions[first : last + 1]) for first, last in loops}
        working = {place: body for place, body in bodies.items() if body.multiply_adds}
        innermost = [
            body for (first, last), body in working.items()
            if not any((first, last) != (a, b) and first <= a and b <= last for a, b in working)
        ]  # fmt: skip
        return max(innermost, key=lambda body: body.multiply_adds, default=cls([]))

    @property
    def size(self):
        return len(self.names)

    @property
    def multiply_adds(self):
        """Of a lane; a tensor-core instruction's are shared out among the 32."""
        in_lanes = sum(self.roots[name] * (2 if name == "FFMA2" else 1) for name in MULTIPLY_ADDS)
        return in_lanes + sum(count for count, _ in self.tensor) / 32

    @property
    def tensor(self):
        """For each tensor-core instruction its multiply-adds, all lanes together, and whether they are TF32."""
        found = [TENSOR.match(name) for name in self.names]
        return [(16 * 8 * int(m[1]), m[2] is not None) for m in found if m]

    def share(self, *roots):
        return sum(self.roots[root] for root in roots) / max(self.size, 1)

    def load_bits(self, *roots):
        """Mean bits per lane of the loop's loads: LDS and LDSM (shared), LDG and LDGSTS (global)."""
        widths = [width_of(name) for name in self.names if name.partition(".")[0] in roots]
        return round(sum(widths) / len(widths), 1) if widths else 0.0

    def issue_bound(self, has):
        """Peak's share if each scheduler issues one instruction every cycle; see the top of this file."""
        if self.tensor:
            return self.tensor_cycles(has) / max(self.tensor_cycles(has), self.size, SCHEDULERS * self.wavefronts)
        cycles_of_arithmetic = max(self.roots["FFMA"] / has.fma, self.roots["DFMA"] / has.double)
        if not cycles_of_arithmetic:
            return 0.0
        return cycles_of_arithmetic / max(self.size / SCHEDULERS, cycles_of_arithmetic)

    def tensor_cycles(self, has):
        """Cycles for which a warp's tensor-core instructions keep its scheduler's tensor core busy."""
        return sum(count * (2 if is_tf32 else 1) for count, is_tf32 in self.tensor) / has.mma

    @property
    def wavefronts(self):
        """Of a warp's accesses to shared memory, were there no bank conflicts: 128 bytes each."""
        widths = [width_of(name) for name in self.names if name.partition(".")[0] in SHARED_MEMORY]
        return sum(max(width // 32, 1) for width in widths)


def width_of(name):
    """Bits per lane of a load, a store or a copy."""
    parts = name.split(".")
    if parts[0] == "LDSM":
        return 32 * int(parts[-1] if parts[-1] in ("2", "4") else 1)
    if "U8" in parts or "S8" in parts:
        return 8
    if "U16" in parts or "S16" in parts:
        return 16
    return next((int(part) for part in parts if part in ("64", "128", "256")), 32)


def loops_of(sass, function):
    """All instructions of `function`, and its loops as (first, last) positions: jumps backward to a label."""
    inside, names, labels, jumps = False, [], {}, []
    for line in sass.splitlines():
        if line.startswith(".text."):
            inside = line == f".text.{function}:"
        if not inside:
            continue
        label = LABEL.match(line)
        if label:
            labels[label.group(1)] = len(names)
        found = INSTRUCTION.search(line)
        if found:
            names.append("NOP" if NEVER.search(line) else found.group(2))
            goal = re.search(r"\.L_x_\d+", found.group(3))
            if found.group(2).startswith("BRA") and goal:
                jumps.append((len(names) - 1, goal.group(0)))
    loops = [(labels[goal], at) for at, goal in jumps if goal in labels and labels[goal] < at]
    return names, loops


# As a table, as CSV, against a baseline


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(list(asdict(row).values()) for row in rows)


def read_csv(path):
    with open(path, newline="") as file:
        return [Row(**{name: KINDS[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]


KINDS = {field.name: {"str": str, "int": int, "float": float}[field.type] for field in fields(Row)}


def losses(rows, baseline):
    """In words, what is worse than in `baseline`: spills, less occupancy, a smaller share of multiply-adds."""
    before = {row.key: row for row in baseline}
    found = []
    for now in rows:
        name = f"{now.kernel} {now.function} {now.dtype} sm_{now.target}"
        then = before.get(now.key)
        if then is None:
            found.append(f"{name}: not in the baseline")
            continue
        if now.stack > then.stack:
            found.append(f"{name}: {now.stack} bytes of stack or spills, were {then.stack}")
        if now.warps < then.warps:
            found.append(f"{name}: {now.warps} warps at once (limited by {now.limited_by}), were {then.warps}")
        for what in ("fma_share", "mma_share", "issue_bound"):
            if getattr(now, what) < getattr(then, what) - 0.01:
                found.append(f"{name}: {what} is {getattr(now, what)}, was {getattr(then, what)}")
    return found


def table(rows):
    """The rows as text, one line each."""
    head = ("kernel", "function", "dtype", "sm", "thr", "regs", "stack", "shared", "warps", "limited by", "loop", "fma",
            "mma", "int", "LDS", "LDG", "bound")  # fmt: skip
    lines = [
        (r.kernel, r.function, r.dtype, r.target, r.threads, r.registers, r.stack, f"{r.shared:,}",
         f"{r.warps} ({r.occupancy:.0%})", r.limited_by, r.loop, f"{r.fma_share:.0%}", f"{r.mma_share:.0%}",
         f"{r.integer_share:.0%}", f"{r.shared_load_bits:g}", f"{r.global_load_bits:g}", f"{r.issue_bound:.0%}")
        for r in rows
    ]  # fmt: skip
    widths = [max(len(str(line[i])) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(str(v).ljust(w) for v, w in zip(line, widths, strict=True)) for line in [head, *lines])
