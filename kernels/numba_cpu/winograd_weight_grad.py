"""Weight gradient by Winograd F(3 x 3, 4 x 4)."""

import struct
from functools import lru_cache

from . import target
from .call import pack_call, problem_fields
from .compilation import compiled
from .threads import run_tasks
from .vectors import lanes
from .winograd_weight_grad_cuts import CUTS, cuts, cycles
from .winograd_weight_grad_tasks import build_tasks

passes = ("weight_grad",)

CALL_SECONDS = 25e-6
# weight_grad.py predicts 60 GFLOP/s a thread, whatever the processor, where it reaches about so much of the peak, its
# copying included: what is counted here in cycles is told in its measure, for the two to be compared.
FLOPS, SHARE_OF_PEAK = 60e9, 0.7


def why_not(problem, device):
    """Reasons why this kernel cannot run `problem` on `device`, in words for its user; empty when it can."""
    reasons = []
    if device.kind != "cpu":
        reasons.append(f"runs on the CPU only, x is on {device}")
    if (problem.R, problem.S) != (3, 3):
        reasons.append(f"3 x 3 kernels only, got {problem.R} x {problem.S}")
    if problem.stride != (1, 1):
        reasons.append(f"stride 1 only, got {problem.stride}")
    if problem.dilation != (1, 1):
        reasons.append(f"dilation 1 only, got {problem.dilation}")
    return reasons


def workspace_bytes(problem, device):
    return cuts(problem, device.threads)[1]


def predicted_seconds(problem, device):
    cut = dict(zip(CUTS, cuts(problem, device.threads)[0], strict=True))
    counted = cycles(problem, device.threads, cut["row_block"], cut["vector_block"])
    flops = 2 * lanes(problem.accumulate) * target.multiply_adds_per_cycle()
    return CALL_SECONDS + counted * flops * SHARE_OF_PEAK / FLOPS


@lru_cache(maxsize=1024)
def prepared(problem, threads):
    """What every call for this problem shares: the record's fields, the compiled loop, and the tasks of both rounds."""
    numbers, _ = cuts(problem, threads)
    cut = dict(zip(CUTS, numbers, strict=True))
    fields = problem_fields(problem) + struct.pack(f"{len(CUTS)}q", *numbers)
    blocks = problem.groups * cut["row_tasks"] * cut["vector_tasks"]
    return fields, compiled(build_tasks, problem.dtype.name), cut["parts"] * blocks, blocks if cut["parts"] > 1 else 0


def run(problem, device, x, grad_y, grad_w, bias=None, residual=None, workspace=None, stream=None):
    """Write the weight gradient into grad_w (K, C/groups, 3, 3), from x (N, C, H, W) and grad_y (N, K, P, Q)."""
    fields, loop, parts, blocks = prepared(problem, device.threads)
    run_tasks(loop, pack_call(fields, x, grad_w, x, None, grad_y, workspace), blocks, device.threads, parts)
