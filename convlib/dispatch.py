"""The one list of kernels, and why each can or cannot run a problem; choosing.py takes one of those that can.

A kernel is a module of convlib.kernels. It has

    passes                                   ("forward", "input_grad", "weight_grad"), those it implements
    declined                                 optional: a reason for each pass that was thought of and left
    why_not(problem, device)                 reasons, in words for its user, why it cannot run; empty when it can
    workspace_bytes(problem, device)         scratch memory that `run` is to be given
    predicted_seconds(problem, device)       from counts and published or measured limits; the smallest is chosen
    pack_seconds(problem, device)            optional: what a single call takes longer than one with packed weights
    run(problem, device, x, w, y, bias, residual, workspace, stream)
    packed_bytes(problem, device), pack(problem, device, w, packed)      only where weights are repacked first; on a GPU
                                             `pack` takes a stream too
    reads_in_place(problem, w)               of those, where `run` also takes these weights as they lie: for one call
    one_call_bytes(problem, device)          of those, where it takes any as they lie: `run`'s scratch memory then, or
                                             None where a single call had better pack them
    job(problem, device, x, w, y, bias, residual)     optional, on the CPU: has `run` for arrays of these strides

and its name is "family.algorithm", the module's path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from numbers import Real
from types import ModuleType

from . import accuracy, machine
from .device import Device
from .errors import UnsupportedError
from .problem import LARGEST_ARRAY, ConvProblem, as_float, check_choice, integer, shortened
from .workspace import aligned, fresh_seconds, memory_bytes

KERNELS: tuple[str, ...] = (
    "numba_cpu.direct",
    "numba_cpu.im2col",
    "numba_cpu.depthwise",
    "numba_cpu.blocked",
    "numba_cpu.blocked_by_filters",
    "numba_cpu.grouped",
    "numba_cpu.bfloat16_dot",
    "numba_cpu.strassen",
    "numba_cpu.strassen_twice",
    "numba_cpu.strassen_by_filters",
    "numba_cpu.winograd_f2",
    "numba_cpu.winograd_f3",
    "numba_cpu.winograd_f4",
    "numba_cpu.winograd_f5",
    "numba_cpu.winograd_f6",
    "numba_cpu.winograd_columns",
    "numba_cpu.winograd_dilated",
    "numba_cpu.fft",
    "numba_cpu.input_grad",
    "numba_cpu.weight_grad",
    "numba_cpu.winograd_weight_grad",
    "numba_cuda.direct",
    "numba_cuda.tiled",
    "numba_cuda.im2col",
    "numba_cuda.implicit_gemm",
    "numba_cuda.weight_grad",
    "numba_cuda.weight_grad_direct",
    "cupy_raw.direct",
    "cupy_raw.tiled",
    "cupy_raw.im2col",
    "cupy_raw.implicit_gemm",
    "cupy_raw.tensor_core",
    "cupy_raw.winograd_fused",
    "cupy_raw.winograd_batched",
    "cupy_raw.depthwise",
    "cupy_raw.fft",
    "cupy_raw.weight_grad",
    "cupy_raw.weight_grad_direct",
    "cupy_raw.tensor_core_weight_grad",
    "cupy_raw.depthwise_input_grad",
    "cupy_raw.depthwise_weight_grad",
)


@dataclass(frozen=True, slots=True)
class Family:
    """What the kernels of one family have in common: where they run and which packages they need."""

    runs_on: tuple[str, ...]
    needs: tuple[str, ...]
    install: str


FAMILIES = {
    "numba_cpu": Family(("cpu",), ("numba",), "pip install numba"),
    "numba_cuda": Family(("cuda", "simulator", "emulator"), ("numba",), 'pip install "numba-cuda[cu13]"'),
    "cupy_raw": Family(("cuda", "emulator"), ("cupy",), "pip install cupy-cuda13x"),
}


BACKENDS = ("auto", *FAMILIES)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One listed kernel held against one problem. seconds: predicted, never measured.

    workspace_bytes: all the scratch memory of a call, repacked weights included. error: the norm-relative one that it
    keeps to (accuracy.py). trust: on a GPU, whether the kernel is verified there and since when (trust.py); None
    elsewhere. measured: what measuring.py found on this machine.
    """

    name: str
    reasons: tuple[str, ...]
    seconds: float | None = None
    workspace_bytes: int | None = None
    error: float | None = None
    trust: str | None = None
    measured: float | None = None

    @property
    def possible(self) -> bool:
        return not self.reasons

    @property
    def expected(self) -> str:
        """The time in words: measured, else predicted; empty where there is neither."""
        if self.measured is not None:
            return f"{self.measured * 1e3:.3f} ms measured"
        return "" if self.seconds is None else f"{self.seconds * 1e3:.3f} ms predicted"

    @property
    def numbers(self) -> str:
        """Time, error and memory in words; empty where the kernel cannot compute the problem at all."""
        if self.seconds is None:
            return ""
        return f"{self.expected:>20}  error {self.error:.1e}  {self.workspace_bytes:>11,} bytes"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The kernel that is to run a problem, and how many bytes it is to be given for packed weights and workspace."""

    name: str
    family: str
    kernel: ModuleType
    packed_bytes: int
    workspace_bytes: int


@cache
def kernel(name: str) -> ModuleType:
    """The module of the listed kernel `name`."""
    return import_module(f".kernels.{name}", __package__)


def family_of(name: str) -> str:
    return name.partition(".")[0]


def algorithm_of(name: str) -> str:
    return name.partition(".")[2]


@cache
def algorithms() -> tuple[str, ...]:
    return tuple(dict.fromkeys(algorithm_of(name) for name in KERNELS))


@lru_cache(maxsize=4096)
def candidates(
    problem: ConvProblem, device: Device, max_error: float, workspace_limit: int | None, planned: bool = False
) -> tuple[Candidate, ...]:
    """Every listed kernel with its reasons against `problem` on `device`, in the list's order.

    planned: the weights have been packed already, so that their packing does not count.
    """
    problem = with_an_image(problem)
    return tuple(candidate(name, problem, device, max_error, workspace_limit, planned) for name in KERNELS)


def with_an_image(problem):
    """Kernels are asked about batches of at least one image: an empty one is answered without them."""
    return problem if problem.N else replace(problem, N=1)


def candidate(name, problem, device, max_error, workspace_limit, planned):
    reasons = family_reasons(family_of(name), device)
    if reasons:
        return Candidate(name, tuple(reasons))
    module = kernel(name)
    if problem.pass_ not in module.passes:
        return Candidate(name, (other_pass(module, problem.pass_),))
    reasons = list(module.why_not(problem, device))
    if reasons:
        return Candidate(name, tuple(reasons))
    workspace = sum(scratch_bytes(module, problem, device, planned))
    error = accuracy.of_sums(problem, algorithm_of(name))
    if workspace_limit is not None and workspace > workspace_limit:
        reasons.append(f"needs {workspace:,} bytes of workspace, workspace_limit is {workspace_limit:,}")
    if device.kind == "cpu" and workspace > memory_bytes():
        reasons.append(f"needs {workspace:,} bytes of workspace, this machine has {memory_bytes():,} in all")
    if error > max_error and not accuracy.sums_plainly(algorithm_of(name)):
        reasons.append(f"its error bound is {error:.1e}, max_error is {max_error:.1e}")
    seconds = module.predicted_seconds(problem, device)
    if not planned and hasattr(module, "pack_seconds"):
        seconds += module.pack_seconds(problem, device)
    return Candidate(name, tuple(reasons), seconds, workspace, error + accuracy.of_store(problem))


def other_pass(module, pass_):
    """Why a kernel does not compute a pass: it is made for others, and where one was thought of, why it was left."""
    only = f"computes {', '.join(module.passes)} only, not {pass_}"
    declined = getattr(module, "declined", {})
    return f"{only}: {declined[pass_]}" if pass_ in declined else only


def scratch_bytes(module, problem, device, planned):
    """What packed weights take, rounded up so that the workspace behind them is aligned as they are; and that."""
    alone = module.one_call_bytes(problem, device) if not planned and hasattr(module, "one_call_bytes") else None
    if alone is not None:
        return 0, alone
    packed = aligned(module.packed_bytes(problem, device)) if hasattr(module, "pack") else 0
    return packed, module.workspace_bytes(problem, device)


def one_call_bytes(module, problem, device) -> int:
    """Scratch memory of a GPU kernel's `run` that is given the weights as they lie."""
    return getattr(module, "one_call_bytes", module.workspace_bytes)(problem, device)


def family_reasons(family, device):
    facts = FAMILIES[family]
    if device.kind not in facts.runs_on:
        return [f"runs on {' or '.join(facts.runs_on)}, the arrays are on {device.kind}"]
    if device.kind == "emulator":
        return []
    missing = [package for package in facts.needs if not machine.installed(package)]
    return [f"needs {package}, which is not installed: {facts.install}" for package in missing]


def checked_choice(problem, device, backend, algorithm, max_error, workspace_limit):
    check_choice("backend", backend, BACKENDS)
    if isinstance(algorithm, str) and algorithm in KERNELS:
        family, name = algorithm.split(".")
        raise ValueError(f"algorithm: {algorithm!r} is a kernel: ask for it by backend={family!r}, algorithm={name!r}")
    check_choice("algorithm", algorithm, ("auto", *algorithms()))
    if isinstance(max_error, bool) or not isinstance(max_error, Real):
        raise TypeError(f"max_error: a number needed, got {shortened(max_error)}")
    if not max_error > 0:
        raise ValueError(f"max_error: a number above 0 needed, got {max_error!r}")
    if workspace_limit is not None:
        workspace_limit = integer("workspace_limit", workspace_limit, least=0, most=LARGEST_ARRAY)
    return problem, device, backend, algorithm, as_float(max_error), workspace_limit


def as_chosen(name, problem, device, planned) -> Chosen:
    module = kernel(name)
    return Chosen(name, family_of(name), module, *scratch_bytes(module, problem, device, planned))


def ranked(problem, device, backend, algorithm, max_error, workspace_limit, planned=False) -> list[str]:
    """The kernels that can run `problem` and were asked for, the fastest predicted first.

    For a single call on the CPU, scratch memory that would be fresh pages every time counts with what touching them
    takes. Memory for weights that are not packed, lying as most do, is not touched.
    """
    problem = with_an_image(problem)
    asked = asked_for(problem, device, backend, algorithm, max_error, workspace_limit, planned)
    possible = [c for c in asked if c.possible]
    if not possible:
        raise UnsupportedError(refusal(problem, device, backend, algorithm, asked))
    if planned or device.kind != "cpu":
        return [c.name for c in sorted(possible, key=lambda c: c.seconds)]
    seconds = {c.name: c.seconds + fresh_seconds(touched_bytes(c, problem, device)) for c in possible}
    return sorted(seconds, key=seconds.get)


def touched_bytes(candidate, problem, device) -> int:
    """Scratch memory that a single call with contiguous weights uses."""
    module = kernel(candidate.name)
    packed, workspace = scratch_bytes(module, problem, device, planned=False)
    reads_weights_in_place = hasattr(module, "pack_seconds") and module.pack_seconds(problem, device) == 0.0
    return workspace if reads_weights_in_place else packed + workspace


def possible(problem, device, backend, algorithm, max_error, workspace_limit) -> list[Candidate]:
    """The kernels of this backend and algorithm that can run `problem`; of wrong arguments, `chosen`'s errors."""
    asked = asked_for(*checked_choice(problem, device, backend, algorithm, max_error, workspace_limit))
    return [candidate for candidate in asked if candidate.possible]


def asked_for(problem, device, backend, algorithm, max_error, workspace_limit, planned=False) -> list[Candidate]:
    """The candidates of this backend and algorithm, those that cannot run too."""
    return [
        c
        for c in candidates(problem, device, max_error, workspace_limit, planned)
        if backend in ("auto", family_of(c.name)) and algorithm in ("auto", algorithm_of(c.name))
    ]


def refusal(problem, device, backend, algorithm, asked):
    forced = [f"{k}={v!r}" for k, v in (("backend", backend), ("algorithm", algorithm)) if v != "auto"]
    head = f"{', '.join(forced) or 'convlib'} cannot run this problem on {device}:\n  {problem}"
    if not asked:
        return f"{head}\n  no listed kernel is both"
    said = {c.name: "; ".join(c.reasons) for c in asked}
    if len(said) > 1 and len(set(said.values())) == 1:
        return f"{head}\n  each of {len(said)} kernels: {said[asked[0].name]}"
    return "\n".join([head, *(f"  {name}: {reasons}" for name, reasons in said.items())])
