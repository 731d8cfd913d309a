"""What ncu runs, python -m benchmarks.counted KERNEL SUITE CASE: one call between profilerStart and profilerStop."""

from __future__ import annotations

import sys

from . import cases, gpu, ours
from .layer_child import BATCHES


def main(kernel, suite, case_name):
    import cupy

    case = case_called(suite, case_name)
    with gpu.stream():
        candidate = ours.plan(case, cases.operands(case), gpu.place(), name=kernel, kernel=kernel)
        candidate.call()  # compiles
        gpu.stream().synchronize()
        cupy.cuda.runtime.profilerStart()
        candidate.call()
        gpu.stream().synchronize()
        cupy.cuda.runtime.profilerStop()


def case_called(suite: str, name: str) -> cases.Case:
    """The case of a row of results, whatever batch it had."""
    batches = (cases.batch_of(case, N) for case in cases.cases(suite) for N in BATCHES)
    return next(case for case in batches if case.name == name)


if __name__ == "__main__":
    main(*sys.argv[1:])
