"""The CPU kernels on PyTorch's own threads, for programs in which both compute in turn.

PyTorch's OpenMP threads spin for milliseconds after each of its operators, waiting for the next. The workers of another
pool must share the processors with them: on two of these the kernels took two to four times as long between PyTorch's
operators as alone. So from the first convolution of convlib.torch on the CPU, tasks go to the threads that spin:

    threads.run_tasks -> GOMP_parallel of the OpenMP library that PyTorch has loaded -> its threads, each in `member`

Every thread has a job of its own, an equal part of the tasks in a row, and helps the others when it is through. From
one counter for all, thousands of small tasks, as the weight gradient's copies are, took five times as long.

A fork leaves OpenMP's threads behind, and a child that asks for them waits for ever: threads.py gives every child a
pool of its own again. Where PyTorch was built on another threading library, everything stays as it was.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from functools import cache
from pathlib import Path

from .kernels.numba_cpu import threads
from .kernels.numba_cpu.compilation import compiled
from .kernels.numba_cpu.threads import LINE
from .kernels.numba_cpu.vectors import call_task_loop, fetch_add, load_shared, store_shared

# The pool's words, as byte offsets; after them a job for each thread: its counter and, a line further, where it ends.
TICKETS, LOOP, CALL, THREADS, JOBS = 0, LINE, LINE + 8, LINE + 16, 2 * LINE
JOB_BYTES = 2 * LINE


def build_open(source):
    """source: a hash of this file, whose text `compiled` does not look at."""

    def open_jobs(words, loop, call, tasks, count):
        store_shared(words + TICKETS, 0)
        store_shared(words + LOOP, loop)
        store_shared(words + CALL, call)
        store_shared(words + THREADS, count)
        for i in range(count):
            job = words + JOBS + i * JOB_BYTES
            store_shared(job, i * tasks // count)
            store_shared(job + LINE, (i + 1) * tasks // count)

    return open_jobs


def build_member(source):
    def member(words):
        """Do the tasks of one's own job, then what is left of the others'."""
        number, count = fetch_add(words + TICKETS, 1), load_shared(words + THREADS)
        for i in range(count):
            job = words + JOBS + (number + i) % count * JOB_BYTES
            call_task_loop(load_shared(words + LOOP), load_shared(words + CALL), job, number)

    return member


class TorchThreads:
    """Stands in for threads.Pool: one call at a time, on the OpenMP threads of whoever calls."""

    def __init__(self, parallel):
        source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self.open_jobs, self.member = compiled(build_open, source).call, compiled(build_member, source).address
        self.lock = threading.Lock()
        self.parallel = parallel
        self.words = threads.aligned_words(0)

    def run(self, loop, call, tasks, count):
        needed = (JOBS + count * JOB_BYTES) // 8
        if len(self.words) < needed:
            self.words = threads.aligned_words(needed)
        address = self.words.ctypes.data
        self.open_jobs(address, loop, call, tasks, count)
        self.parallel(self.member, address, count, 0)


def gomp_parallel():
    """GOMP_parallel(function, data, threads, flags) of the library that PyTorch has loaded; None where it has none."""
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return None
    function = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        function.restype = None
    return function


@cache
def share() -> None:
    """From here on run the CPU kernels on PyTorch's threads, where it has any that can be had."""
    parallel = gomp_parallel()
    if parallel is not None:
        threads._pool = TorchThreads(parallel)
