"""Profiles: what a listed GPU kernel does on a layer, counted by executing its compiled code; no time is measured.

A large layer is not executed whole: a sample of blocks from the start, the middle and the end of the grid runs, its
counts are scaled to the grid, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import device, dispatch, strided
from ..errors import UnsupportedError
from ..kernels import launching
from ..problem import ConvProblem
from . import watching
from .faults import Report

LANES = 16_384  # how many threads a sample has, unless more are asked for


@dataclass(frozen=True, slots=True)
class Profile:
    """A kernel's launches on one problem. reports: one per launch, in order."""

    kernel: str
    problem: ConvProblem
    target: int
    reports: tuple[Report, ...]

    @property
    def compulsory_bytes(self) -> int:
        """x, w and residual read once, y written once: no launch can move less between them."""
        problem = self.problem
        sizes = [
            problem.x_shape,
            problem.w_shape,
            problem.y_shape,
            *([problem.y_shape] if problem.has_residual else []),
        ]
        elements = sum(int(np.prod(shape)) for shape in sizes) + (problem.K if problem.has_bias else 0)
        return elements * problem.dtype.itemsize


def profile(kernel: str, problem: ConvProblem, target: int = 80, threads: int = LANES) -> Profile:
    """Execute the listed GPU kernel `kernel` on `problem`, on random numbers, and count.

    target: 80 is sm_80. threads: about how many threads of each launch are executed, in whole blocks.
    Raises ValueError for a name that is not a listed GPU kernel, UnsupportedError when it cannot run the problem.
    """
    if kernel not in gpu_kernels():
        raise ValueError(f"kernel: one of {', '.join(gpu_kernels())} needed, got {kernel!r}")
    module, place = dispatch.kernel(kernel), device.emulator_of(target)
    reasons = module.why_not(problem, place)
    if reasons:
        raise UnsupportedError(f"{kernel} cannot run {problem} for sm_{target}: {'; '.join(reasons)}")
    operands = random_operands(problem)
    workspace = strided.empty_aligned((dispatch.one_call_bytes(module, problem, place),), np.uint8)
    workspace[:] = 0
    with watching(blocks=lambda grid, block: sample(grid, block, threads), target=target) as watch, emulating():
        module.run(problem, place, *operands, workspace if workspace.size else None)
    return Profile(kernel, problem, target, tuple(watch.reports))


def gpu_kernels() -> tuple[str, ...]:
    return tuple(n for n in dispatch.KERNELS if "emulator" in dispatch.FAMILIES[dispatch.family_of(n)].runs_on)


def emulating():
    """Launches go to the emulator in here, whatever the environment says."""
    from . import launch_kernel

    return launching.through(lambda kernel, grid, block, args, shared_bytes, stream: launch_kernel(
        kernel, grid, block, args, shared_bytes))  # fmt: skip


def random_operands(problem):
    """What the pass's kernels take, in logical order, in the memory order that the problem's layout says."""
    random = np.random.default_rng(0)

    def values(shape):
        numbers = random.standard_normal(shape, np.float32).astype(problem.dtype)
        aligned = strided.empty_aligned(shape, numbers.dtype)  # as what a GPU allocates
        aligned[...] = numbers
        return strided.as_storage(aligned)

    def images(shape):
        n, c, h, w = shape
        return values(shape) if problem.layout == "NCHW" else values((n, h, w, c)).transpose(0, 3, 1, 2)

    if problem.pass_ == "weight_grad":
        return images(problem.x_shape), images(problem.y_shape), values(problem.w_shape), None, None
    if problem.pass_ == "input_grad":
        return images(problem.y_shape), values(problem.w_shape), images(problem.x_shape), None, None
    bias = values((problem.K,)) if problem.has_bias else None
    residual = images(problem.y_shape) if problem.has_residual else None
    return images(problem.x_shape), values(problem.w_shape), images(problem.y_shape), bias, residual


def sample(grid, block, threads):
    """The linear indices of the blocks to run: all, or three stretches at the start, the middle and the end."""
    total, wanted = int(np.prod(grid)), max(3, threads // int(np.prod(block)))
    if total <= wanted:
        return np.arange(total)
    part = -(-wanted // 3)
    starts = (0, (total - part) // 2, total - part)
    return np.unique(np.concatenate([np.arange(start, start + part) for start in starts]))


# As text


def table(profile: Profile) -> str:
    """The profile as a table to print."""
    lines = [f"{profile.kernel}, sm_{profile.target}: {profile.problem}", "counted by executing the PTX; no time here"]
    moved = 0
    for report in profile.reports:
        lines += ["", *launch_lines(report)]
        moved += report.counters.sector_bytes * scale(report)
    least = profile.compulsory_bytes
    lines += ["", f"global sectors of all launches: {moved / 1e6:,.1f} MB requested, at least {least / 1e6:,.1f} MB"
              f" (x, w, residual and y once): {moved / least:.2f} times; a cache may serve the rest"]  # fmt: skip
    return "\n".join(lines)


def scale(report):
    return report.counters.blocks / max(report.counters.blocks_run, 1)


def launch_lines(report):
    counts = report.counters
    yield f"{short(report.kernel)}, grid {report.grid}, block {report.block}"
    if counts.blocks_run < counts.blocks:
        yield f"  scaled from {counts.blocks_run:,} of {counts.blocks:,} blocks"
    yield f"  warp instructions      {counts.warp_instructions * scale(report):16,.0f}"
    yield f"  active lanes per warp  {counts.active_lanes_per_warp:16.1f} of 32"
    for unit, warps in sorted(counts.warps.items(), key=lambda item: -item[1]):
        if warps:
            yield f"    {unit:20} {warps * scale(report):16,.0f} {100 * counts.share(unit):5.1f} %"
    if counts.mma_multiply_adds:
        yield f"    multiply-adds of mma   {counts.mma_multiply_adds * scale(report):14,.0f}"
    for space, cost in (("shared", "wavefronts"), ("global", "sectors")):
        kinds = sorted({(t.kind, t.size) for t in counts.traffic if t.space == space})
        for kind, size in kinds:
            requests = sum(t.requests for t in counts.traffic if (t.space, t.kind, t.size) == (space, kind, size))
            best = max(size // 4, 1) if space == "shared" else size
            yield (
                f"  {space} {kind:8} of {8 * size:3} bits  {requests * scale(report):13,.0f} requests, "
                f"{counts.cost_per_request(space, size, kind):5.2f} {cost} each; {best} when full and in order"
            )


def short(name):
    """A Numba kernel's own name out of its mangled one."""
    if not name.startswith("_ZN"):
        return name
    parts, rest = [], name[3:]
    while rest and rest[0].isdigit():
        digits = len(rest) - len(rest.lstrip("0123456789"))
        length = int(rest[:digits])
        parts.append(rest[digits : digits + length])
        rest = rest[digits + length :]
    return next((part for part in reversed(parts) if "locals" not in part and part.isidentifier()), name)
