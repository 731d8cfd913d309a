"""Our kernels by themselves, for pytest-benchmark to follow from commit to commit. The gate comes first here too."""

from . import cases, engine, gate, gpu

MOST_SECONDS = 1.0  # for one candidate on one case
MOST_ROUNDS = 30


def test_speed(benchmark, case, make):
    operands = cases.operands(case)
    candidate = make(case, operands)
    error = gate.check(candidate, gate.exact(case, operands))
    call = candidate.call if gpu.unavailable() else gpu.synchronised(candidate.call)
    seconds = engine.call_seconds(call, engine.host_block)
    calls = max(round(0.001 / seconds), 1)  # blocks of at least a millisecond
    rounds = min(max(int(MOST_SECONDS / (calls * seconds)), 1), MOST_ROUNDS)
    benchmark.group = str(case)
    benchmark.extra_info |= {"kernel": candidate.kernel, "error": error, "macs": case.problem.macs}
    benchmark.pedantic(call, rounds=rounds, iterations=calls, warmup_rounds=1)
