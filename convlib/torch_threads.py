"""The CPU kernels on PyTorch's own threads, for programs in which both compute in turn.

PyTorch's OpenMP threads spin for milliseconds after each of its operators, waiting for the next. The workers of another
pool must share the processors with them: on two of these the kernels took two to four times as long between PyTorch's
operators as alone. So from the first convolution of convlib.torch on the CPU, tasks go to the threads that spin:

    threads.run_tasks -> GOMP_parallel of the OpenMP library that PyTorch has loaded -> its threads, each in `member`

A fork leaves OpenMP's threads behind, and a child that asks for them waits for ever: threads.py gives every child a
pool of its own again. Where PyTorch was built on another threading library, the pool stays as it was.

Everywhere, in a child too, no more threads run than torch.set_num_threads allows: a DataLoader's worker says 1 there,
as torchrun does by OMP_NUM_THREADS. Where no convolution of convlib.torch ever ran, Numba alone is asked.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from functools import cache
from pathlib import Path

from .kernels.numba_cpu import threads
from .kernels.numba_cpu.compilation import compiled
from .kernels.numba_cpu.threads import ACTIVE, CALL, JOB, LOOP
from .kernels.numba_cpu.vectors import call_task_loop, fetch_add, load_shared


def build_member(source):
    """source: a hash of this file, whose text `compiled` does not look at."""

    def member(words):
        number = fetch_add(words + ACTIVE, 1)
        call_task_loop(load_shared(words + LOOP), load_shared(words + CALL), words + JOB, number)

    return member


class TorchThreads:
    """Stands in for threads.Pool: one job at a time, on the OpenMP threads of whoever calls."""

    def __init__(self, parallel):
        self.lock = threading.Lock()
        self.parallel = parallel
        self.words = threads.aligned_words(threads.WORDS)
        self.address = self.words.ctypes.data
        self.open_job = compiled(threads.build_open).call
        self.member = compiled(build_member, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()).address

    def run(self, loop, call, tasks, before, count):
        self.words[ACTIVE // 8] = 0
        self.open_job(self.address, loop, call, tasks, before, count)
        self.parallel(self.member, self.address, count, 0)


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
    """From here on run the CPU kernels on as many threads as PyTorch may use, its own where they can be had."""
    import torch

    threads.most = torch.get_num_threads
    parallel = gomp_parallel()
    if parallel is not None:
        threads._pool = TorchThreads(parallel)
