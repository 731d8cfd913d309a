"""What ncu runs, python -m benchmarks.counted KERNEL SUITE CASE: one call between profilerStart and profilerStop."""

from __future__ import annotations

import sys

from convlib import calibration

from . import cases, gpu, ours


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
    """The case of a row of results, its batch before its name."""
    images, layer = calibration.batch_and_layer(name)
    return cases.batch_of(next(case for case in cases.cases(suite) if case.name == layer), images)


if __name__ == "__main__":
    main(*sys.argv[1:])
