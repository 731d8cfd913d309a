"""The measurements in new processes give numbers of the thing they claim to measure. No test here judges a time."""

from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import cases, engine, memory, scaling, startup
from convlib.problem import make_problem


def test_every_ceiling_belongs_to_a_measurement(monkeypatch):
    monkeypatch.setattr(startup, "run", lambda code, **environment: 2.0 if "numba" in code else 1.0)
    monkeypatch.setattr(startup, "call_seconds", lambda: {"kernel": 1.0, "plan": 3.0, "conv2d": 7.0})
    monkeypatch.setattr(startup, "medians", lambda calls: {name: 5.0 * i for i, name in enumerate(calls)})
    measured = startup.measure()
    if find_spec("torch") is None:
        measured |= {name: 0.0 for name in startup.CEILINGS if "torch" in name}
    else:
        assert measured["convlib.torch.conv2d with gradient, beyond conv2d"] == 10.0
    assert set(startup.CEILINGS) <= set(measured)
    assert measured["plan, beyond the kernel"] == 2.0
    assert measured["conv2d, beyond the kernel"] == 6.0
    assert measured["import convlib, beyond numpy"] == 0.0


def test_a_new_process_says_how_long_it_took():
    assert startup.run("print(0.25)") == 0.25


def test_the_kernel_alone_computes_what_conv2d_does():
    x, w = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 3, 3), np.float32)
    y = np.full((1, 8, 8, 8), np.nan, np.float32)
    plan = startup.convlib.plan(x.shape, w, padding=1)
    startup.kernel_call(plan.name, x, w, y)()
    np.testing.assert_array_equal(y, plan(x))


@pytest.mark.skipif(not memory.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_of_a_call_counts_what_it_takes_and_no_more(monkeypatch):
    """128 MB taken and given back during the call are 128 MB more in the answer."""
    case = next(case for case in cases.cases("article_mnist_cnn") if case.name.startswith("64x5x5"))
    honest = memory.extra_bytes(case)
    hungry_call = "call = lambda: (np.ones(1 << 24), candidate.call())\ncall()\n"
    monkeypatch.setattr(memory, "MEASURE", memory.MEASURE.replace("candidate.call()\n", hungry_call))
    assert honest < 1 << 20
    assert memory.extra_bytes(case) - honest == pytest.approx(8 << 24, rel=0.1)


def test_scaling_compares_one_thread_with_all_and_leaves_all(monkeypatch):
    threads = []
    monkeypatch.setattr(scaling.numba, "set_num_threads", threads.append)
    timings = {"1 threads": engine.Timing((4.0, 6.0), 1), "2 threads": engine.Timing((2.0, 2.0), 1)}
    monkeypatch.setattr(engine, "measure", lambda candidates, settings: {c.name: timings[c.name] for c in candidates})
    case = cases.Case("any", "any", make_problem((1, 64, 40, 40), (64, 64, 3, 3), "float32", padding=1))
    assert scaling.compute_bound(case)
    found = scaling.measure(case, engine.Settings(), 2)
    assert (found.one_s, found.all_s, found.gain) == (5.0, 2.0, 2.5)
    assert {1, 2} == set(threads)
    assert threads[-1] == 2
