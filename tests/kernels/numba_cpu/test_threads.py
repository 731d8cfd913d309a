"""The pool: every task runs exactly once, whoever calls, however many threads there are, and after a fork."""

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from convlib.kernels.numba_cpu import threads
from convlib.kernels.numba_cpu.compilation import compiled
from convlib.kernels.numba_cpu.vectors import fetch_add, load_shared


def build_counting():
    """Task i adds 1 to word i of the memory whose address the call holds, after some work of uneven length."""

    def count(call, index, worker):
        for _ in range(index * 97 % 1000):
            fetch_add(call + 8, 1)
        fetch_add(load_shared(call) + 8 * index, 1)

    return threads.task_loop(count)


def run_counting(tasks, thread_count):
    counts = np.zeros(tasks, np.int64)
    call = (ctypes.c_int64 * 2)(counts.ctypes.data, 0)
    threads.run_tasks(compiled(build_counting), ctypes.addressof(call), tasks, thread_count)
    return counts


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    """A test before, of convlib.torch, may have set PyTorch's."""
    monkeypatch.setattr(threads, "most", lambda: sys.maxsize)


@pytest.mark.parametrize("thread_count", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 7, 100])
def test_every_task_runs_exactly_once(tasks, thread_count):
    for _ in range(20):
        np.testing.assert_array_equal(run_counting(tasks, thread_count), 1)


def test_several_python_threads_may_call_at_once():
    results = []

    def call_often():
        results.extend((run_counting(50, 2) == 1).all() for _ in range(200))

    callers = [threading.Thread(target=call_often) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 800
    assert all(results)


def processors():
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


@pytest.mark.skipif(len(processors()) < 2, reason="there is one processor, or none that a thread can be sent to")
def test_workers_that_are_woken_are_sent_off_the_callers_processor(monkeypatch):
    pool = threads.Pool()
    monkeypatch.setattr(threads, "_pool", pool)
    run_counting(2, 2)
    for here in processors()[:2]:
        monkeypatch.setattr(threads, "processor_of_caller", lambda here=here: here)
        while not pool.words[threads.SLEEPING // 8]:
            time.sleep(0.001)
        np.testing.assert_array_equal(run_counting(7, 2), 1)
        assert os.sched_getaffinity(pool.workers[0].thread.native_id) <= set(processors()) - {here}


@pytest.mark.skipif(len(processors()) < 2, reason="there is one processor, or none that a thread can be sent to")
def test_workers_follow_a_caller_who_may_run_on_fewer_processors_than_before(monkeypatch):
    pool = threads.Pool()
    monkeypatch.setattr(threads, "_pool", pool)
    before = set(processors())
    run_counting(2, 2)
    try:
        for allowed in (before, {min(before)}, {max(before)}, before):
            os.sched_setaffinity(0, allowed)
            while not pool.words[threads.SLEEPING // 8]:
                time.sleep(0.001)
            np.testing.assert_array_equal(run_counting(7, 2), 1)
            assert os.sched_getaffinity(pool.workers[0].thread.native_id) <= allowed
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too():
    program = """
        import os, warnings
        from tests.kernels.numba_cpu.test_threads import run_counting
        warnings.simplefilter("ignore")   # Python 3.12 warns of any fork beside threads
        assert (run_counting(40, 2) == 1).all()
        child = os.fork()
        if child == 0:
            os._exit(0 if all((run_counting(40, 2) == 1).all() for _ in range(50)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (run_counting(40, 2) == 1).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_calls_from_inside_a_parallel_function_are_served(layer):
    program = """
        import numba
        from tests.kernels.numba_cpu.test_threads import run_counting

        def call():
            assert (run_counting(30, 2) == 1).all()

        @numba.njit(parallel=True)
        def several():
            for i in numba.prange(8):
                with numba.objmode():
                    call()

        for _ in range(20):
            several()
    """
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4", "NUMBA_THREADING_LAYER": layer}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120, env=environment)


def test_an_interruption_while_pauses_are_timed_does_not_shorten_the_workers_patience(monkeypatch):
    seconds = iter([4e-3, 20e-6, 5e-6] + [6e-6] * 17)  # the first: another process had the core
    monkeypatch.setattr(threads, "timed", lambda *arguments: next(seconds))
    assert threads.spins_for.__wrapped__(100e-6) == pytest.approx(20 * threads.TIMED_SPINS, rel=0.01)


def test_numba_says_how_many_threads():
    program = """
        import numba
        from convlib.device import thread_count
        assert thread_count() == 3
        numba.set_num_threads(2)
        assert thread_count() == 2
    """
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120, env=environment)
