"""The kernels on PyTorch's threads: every task runs exactly once, however few threads come, and after a fork."""

import ctypes
import os
import subprocess
import sys
import textwrap
import threading

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed (extra torch)")

import numpy as np
import torch

from convlib import torch_threads
from convlib.kernels.numba_cpu import threads
from convlib.torch import conv2d
from tests.kernels.numba_cpu.test_threads import run_counting

gomp_parallel = torch_threads.gomp_parallel
has_openmp = gomp_parallel() is not None
needs_openmp = pytest.mark.skipif(not has_openmp, reason="this PyTorch has no GOMP_parallel")


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    monkeypatch.setattr(threads, "most", lambda: sys.maxsize)


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(threads, "_pool", torch_threads.TorchThreads(torch_threads.gomp_parallel()))


@needs_openmp
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("tasks", [2, 7, 40, 1000])
def test_every_task_runs_once(tasks, count, shared):
    for _ in range(20):
        assert (run_counting(tasks, count) == 1).all()


@pytest.mark.parametrize("coming", [1, 2, 4])
def test_whoever_comes_does_what_is_left_for_the_others(coming, monkeypatch):
    numbers = []

    def parallel(member, words, count, flags):
        numbers.append(count)
        for _ in range(coming):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(member)(words)

    monkeypatch.setattr(threads, "_pool", torch_threads.TorchThreads(parallel))
    assert (run_counting(30, 4) == 1).all()
    assert numbers == [4]


@needs_openmp
def test_several_python_threads_may_call_at_once(shared):
    results = []
    callers = [
        threading.Thread(target=lambda: results.extend((run_counting(20, 2) == 1).all() for _ in range(50)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 200
    assert all(results)


@needs_openmp
def test_convolutions_of_pytorch_run_on_its_threads_and_give_the_same_bits(monkeypatch):
    x, w = torch.randn(4, 16, 30, 30), torch.randn(24, 16, 3, 3)
    monkeypatch.setattr(threads, "_pool", threads.Pool())
    torch_threads.share.cache_clear()
    with monkeypatch.context() as without:
        without.setattr(torch_threads, "gomp_parallel", lambda: None)
        wanted = conv2d(x, w)
    assert type(threads._pool) is threads.Pool
    torch_threads.share.cache_clear()
    y = conv2d(x, w)
    assert type(threads._pool) is torch_threads.TorchThreads
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("library", [gomp_parallel, lambda: None], ids=["PyTorch's threads", "our own"])
def test_no_more_threads_run_than_pytorch_may_use(library, monkeypatch):
    monkeypatch.setattr(torch_threads, "gomp_parallel", library)
    monkeypatch.setattr(threads, "_pool", threads.Pool())
    torch_threads.share.cache_clear()
    torch_threads.share()
    numbers = []
    monkeypatch.setattr(threads._pool, "run", lambda *job: numbers.append(job[-1]), raising=True)
    before = torch.get_num_threads()
    try:
        for allowed in (1, 2, 3):
            torch.set_num_threads(allowed)
            run_counting(40, 8)
    finally:
        torch.set_num_threads(before)
    assert numbers == [2, 3]


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    program = """
        import os, threading, warnings
        import torch
        from convlib.torch import conv2d
        warnings.simplefilter("ignore")   # Python 3.12 warns of any fork beside threads
        x, w = torch.randn(4, 16, 30, 30), torch.randn(24, 16, 3, 3)
        y = conv2d(x, w)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # as a worker of a DataLoader does
            right = bytes(conv2d(x, w).numpy()) == bytes(y.numpy()) and threading.active_count() == 1
            torch.set_num_threads(2)
            os._exit(0 if right and all(bytes(conv2d(x, w).numpy()) == bytes(y.numpy()) for _ in range(5)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert bytes(conv2d(x, w).numpy()) == bytes(y.numpy())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)
