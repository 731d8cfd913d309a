"""Running a kernel's tasks on all processors: our own pool, because no threading layer of Numba's is safe everywhere.

Numba's workqueue ends the process when two Python threads call at once, GNU omp kills a forked child, tbb is often
absent. Here the workers are Python threads inside compiled code that holds no GIL:

    caller                                     worker
    open a job: loop, call, tasks              spins on `generation` for about 100 microseconds after its last job,
    wake those who sleep                       then sleeps on a lock
    take tasks  . . . . . . . . . . . . . . .  take tasks
    close the job                              leave
    wait until no worker is active             spin again

Each worker has a range of the tasks, the same one in every call, so that it finds in its cache what it wrote last time;
when its own are done it helps with the others'. Every range has an atomic counter. What a task computes depends on its
number alone, never on who runs it, so results are the same bits for every number of threads. A worker that comes
late finds the counters used up. While one Python thread has the pool, another that calls runs its tasks alone. After
a fork the child starts a new pool.

Measured on two Zen 5 cores: a job of two empty tasks takes 1.9 microseconds on two threads (0.9 on one) while workers
spin, 32 when one must be woken. With one counter for all instead of ranges, depthwise layers hardly gained from the
second core: half of what a task writes then lay, changed, in the other's cache.

Workers that are woken are first sent to other processors than the caller's. Linux 6.18 otherwise put both on the same
one of two cores in more than half of the bursts of calls that followed a pause of 12 ms, and left them there: medians
of 426 microseconds instead of 198 for 256 -> 1024 channels of 14 x 14, of 100 to 115 instead of 48 to 55 for 96 -> 576.

A job's words are written without waiting for each (`store_released`): the caller waits once, when `generation` grows.

Why it is safe without a lock: a worker first counts itself active, then looks whether the job is open; the caller
first closes the job, then waits until nobody is active. Both are sequentially consistent, so at least one sees the
other (Dekker).
"""

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from functools import cache

import numpy as np

from .compilation import compiled, inlined
from .vectors import call_task_loop, fetch_add, load_shared, pause, store_released, store_shared

TIMED_SPINS = 200
SPIN_SECONDS = 100e-6  # as long as Python usually needs between two layers; sleeping and waking costs about 50e-6
LINE = 64  # bytes; each word that threads write has a cache line of its own

WORKER_GAP = 1 << 16  # between the private workspaces of two workers

# The pool's words, as byte offsets, each on a cache line of its own.
GENERATION, OPEN, ACTIVE, SLEEPING, JOB = (LINE * i for i in range(5))
THREADS, LOOP, CALL = OPEN + 8, OPEN + 16, OPEN + 24
# A job's: how many tasks of its first round are done; its numbers; then a counter for every range, of both rounds.
MOST_RANGES = 16  # whoever runs out of tasks looks at all
DONE, TASKS, COUNTERS = (LINE * i for i in range(3))
FIRST_ROUND, RANGES, ROUND_COUNTERS = TASKS + 8, TASKS + 16, TASKS + 24
WORDS = (JOB + COUNTERS + 2 * MOST_RANGES * LINE) // 8

LoneJob = ctypes.c_int64 * ((COUNTERS + 2 * LINE) // 8)
LONE_TASKS, LONE_FIRST_ROUND, LONE_RANGES, LONE_COUNTERS = (
    word // 8 for word in (TASKS, FIRST_ROUND, RANGES, ROUND_COUNTERS)
)


def task_loop(task):
    """The function to compile for a task(call, index, worker): it takes task after task until the job has no more.

    call: address of what the kernel was called with. index: 0 .. tasks-1. worker: 0 .. threads-1, for private
    workspace.
    """
    run_round = round_function(task)

    def loop(call, job, worker):
        run_round(call, job, worker, load_shared(job + ROUND_COUNTERS), load_shared(job + TASKS))

    return loop


def two_round_loop(first, second, prepare=None):
    """The same for two kinds of tasks, where all of the first must be done before any of the second begins.

    Nobody waits while a task of the first round is left, so who waits knows that the others are at work on the rest.
    prepare(call, worker): what each worker does for itself before its first task of the second round, if one is left.
    """
    run_first, run_second = round_function(first), round_function(second)
    prepare_worker = inlined(prepare or nothing)

    def loop(call, job, worker):
        before = load_shared(job + FIRST_ROUND)
        done = run_first(call, job, worker, COUNTERS, before)
        fetch_add(job + DONE, done)
        while load_shared(job + DONE) < before:
            pause(1)
        if any_left(job):
            prepare_worker(call, worker)
        run_second(call, job, worker, load_shared(job + ROUND_COUNTERS), load_shared(job + TASKS))

    return loop


def nothing(call, worker):
    pass


@inlined
def any_left(job):
    """Is a task of the second round left?"""
    ranges, tasks, left = load_shared(job + RANGES), load_shared(job + TASKS), False
    for i in range(ranges):
        first, end = tasks * i // ranges, tasks * (i + 1) // ranges
        left = left or first + load_shared(job + load_shared(job + ROUND_COUNTERS) + i * LINE) < end
    return left


def round_function(task):
    """A Numba function run_round(call, job, worker, counters, tasks): this worker's share of them, then what is left of
    the others'; how many it did. counters: where in the job those of this round begin.
    """
    task = inlined(task)

    @inlined
    def run_round(call, job, worker, counters, tasks):
        ranges, done = load_shared(job + RANGES), 0
        for i in range(ranges):
            number = (worker + i) % ranges
            first, end = tasks * number // ranges, tasks * (number + 1) // ranges
            counter = job + counters + number * LINE
            while first + load_shared(counter) < end:
                index = first + fetch_add(counter, 1)
                if index >= end:
                    break
                task(call, index, worker)
                done += 1
        return done

    return run_round


def lines(count) -> int:
    """`count` bytes in whole cache lines."""
    return -(-count // LINE) * LINE


def worker_span(count) -> int:
    """Bytes from one worker's `count` bytes of private workspace to the next worker's.

    With a gap: processors fetch ahead along strides, ten steps and more past the end of what is copied, and so take
    lines from the neighbour that is writing there. On two Zen 5 cores a 1x1 layer took 66 instead of 47 microseconds,
    in about every other process.
    """
    return lines(count) + WORKER_GAP


def most() -> int:
    """How many threads a job may have at all; torch_threads.py puts PyTorch's number in its place."""
    return sys.maxsize


def run_tasks(loop, call, tasks, threads, before=0):
    """Run tasks 0 .. tasks-1 of a compiled task_loop on up to `threads` threads, and no more than `most()`, the calling
    one among them.

    loop: Compiled. call: what every task is handed the address of, as bytes or an address. before: for a
    two_round_loop, how many tasks of its first round to run before.
    """
    if threads > 1 and (tasks > 1 or before > 1) and (threads := min(threads, most())) > 1:
        pool = _pool
        if pool.lock.acquire(blocking=False):
            try:
                pool.run(loop.address, call, tasks, before, min(threads, max(tasks, before)))
            finally:
                pool.lock.release()
            return
    job = LoneJob()
    job[LONE_TASKS], job[LONE_FIRST_ROUND], job[LONE_RANGES], job[LONE_COUNTERS] = tasks, before, 1, COUNTERS + LINE
    loop.call(call, job, 0)


# Compiled: what threads do without the GIL.


def build_open():
    def open_job(pool, loop, call, tasks, before, threads):
        ranges = min(threads, MOST_RANGES)
        job = pool + JOB
        for i in range(2 * ranges):
            store_released(job + COUNTERS + i * LINE, 0)
        store_released(job + DONE, 0)
        store_released(job + TASKS, tasks)
        store_released(job + FIRST_ROUND, before)
        store_released(job + RANGES, ranges)
        store_released(job + ROUND_COUNTERS, COUNTERS + ranges * LINE)
        store_released(pool + THREADS, threads)
        store_released(pool + LOOP, loop)
        store_released(pool + CALL, call)
        store_released(pool + OPEN, 1)
        fetch_add(pool + GENERATION, 1)

    return open_job


def build_take_part():
    def take_part(pool, spins):
        """Run tasks, close the job and wait up to `spins` pauses for the workers; OPEN is 2 while some still work."""
        if load_shared(pool + OPEN) == 1:
            call_task_loop(load_shared(pool + LOOP), load_shared(pool + CALL), pool + JOB, 0)
            store_shared(pool + OPEN, 2)
        while load_shared(pool + ACTIVE) > 0 and spins > 0:
            spins -= pause(1)
        if load_shared(pool + ACTIVE) == 0:
            store_shared(pool + OPEN, 0)

    return take_part


def build_run():
    open_job, take_part = inlined(build_open()), inlined(build_take_part())

    def run(pool, loop, call, tasks, before, threads, spins):
        """The usual job in one call from Python: open it and take part, unless some who sleep are to be woken first."""
        open_job(pool, loop, call, tasks, before, threads)
        if load_shared(pool + SLEEPING) == 0:
            take_part(pool, spins)

    return run


def build_serve():
    def serve(pool, own, spins):
        """A worker's life until it should sleep. own: its three words, the generation it saw last, whether it sleeps,
        and its number.
        """
        seen = load_shared(own)
        if load_shared(own + 8):
            store_shared(own + 8, 0)
            fetch_add(pool + SLEEPING, -1)
        while True:
            left = spins
            while load_shared(pool + GENERATION) == seen and left > 0:
                left -= pause(1)
            if left == 0:
                store_shared(own + 8, 1)
                fetch_add(pool + SLEEPING, 1)
                if load_shared(pool + GENERATION) == seen:
                    return
                store_shared(own + 8, 0)
                fetch_add(pool + SLEEPING, -1)
            seen = load_shared(pool + GENERATION)
            store_shared(own, seen)
            fetch_add(pool + ACTIVE, 1)
            if load_shared(pool + OPEN) == 1:
                number = load_shared(own + 16)
                if number < load_shared(pool + THREADS):
                    call_task_loop(load_shared(pool + LOOP), load_shared(pool + CALL), pool + JOB, number)
            fetch_add(pool + ACTIVE, -1)

    return serve


def build_spin():
    def spin(pool, spins):
        """What a waiting worker does, to be timed."""
        while load_shared(pool + GENERATION) >= 0 and spins > 0:
            spins -= pause(1)

    return spin


@cache
def spins_for(seconds) -> int:
    """How many pauses take `seconds` on this processor (they differ by 20 times between models).

    The shortest of several times counts. Of a single one 1 or 2 % were interrupted where other processes wanted the
    cores too: the workers then slept after 1 to 10 microseconds, and every call woke them until the process ended,
    which on two Zen 5 cores made 64 -> 384 channels of 14 x 14 take 56 microseconds instead of 29.
    """
    words = np.zeros(WORDS, np.int64)
    spin = compiled(build_spin).call
    spin(words.ctypes.data, 10)
    return max(1, int(seconds * TIMED_SPINS / min(timed(spin, words.ctypes.data, TIMED_SPINS) for _ in range(20))))


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


# The pool.


def aligned_words(count):
    """`count` zeroed int64, starting on a cache line."""
    raw = np.zeros(count + LINE // 8, np.int64)
    skip = -raw.ctypes.data % LINE // 8
    return raw[skip : skip + count]


class Worker:
    """A thread of the pool: its three words and the lock it sleeps on. Number 0 is the caller."""

    def __init__(self, pool, number):
        self.words = aligned_words(LINE // 8)
        self.words[2] = number
        self.bed = threading.Lock()
        self.bed.acquire()
        self.thread = threading.Thread(target=self.live, args=(pool,), daemon=True, name="convlib")
        self.thread.start()

    def live(self, pool):
        serve, own = compiled(build_serve).call, self.words.ctypes.data
        while True:
            serve(pool.address, own, pool.spins)
            self.bed.acquire()


class Pool:
    """Workers, and the words through which they get a job. One job at a time: whoever holds `lock`."""

    def __init__(self):
        self.lock = threading.Lock()
        self.words = aligned_words(WORDS)
        self.address = self.words.ctypes.data
        self.view = memoryview(self.words)  # reads an int in 40 ns
        self.workers = []
        self.spins = 0
        self.sent = None  # away from which processor, how many, and all that the caller may run on

    def start(self, workers):
        self.spins = spins_for(SPIN_SECONDS)
        self.run_job, self.take_part = compiled(build_run).call, compiled(build_take_part).call
        compiled(build_serve)
        while len(self.workers) < workers:
            self.workers.append(Worker(self, number=len(self.workers) + 1))
        self.sent = None

    def run(self, loop, call, tasks, before, threads):
        if len(self.workers) < threads - 1:
            self.start(threads - 1)
        try:
            self.run_job(self.address, loop, call, tasks, before, threads, self.spins)
            if self.view[OPEN // 8] and self.view[SLEEPING // 8]:
                self.wake(threads - 1)
        finally:  # even when interrupted: nobody may work on a call that has ended
            if self.view[OPEN // 8]:
                self.take_part(self.address, self.spins)
            while self.view[OPEN // 8]:
                time.sleep(0)  # a worker has lost its processor; let it have this one
                self.take_part(self.address, self.spins)

    def wake(self, count):
        self.send_away(count)
        for worker in self.workers[:count]:
            # A worker that got up by itself leaves its lock open; its next sleep then ends at once, which does no
            # harm.
            if worker.words[1] and worker.bed.locked():
                worker.bed.release()

    def send_away(self, count):
        """Let these workers run on the caller's processors but the one it is on; each on one, if there are as many.

        On all of the caller's, if the others are fewer than the workers: it may have had more at an earlier call.
        """
        here = processor_of_caller()
        if here is None:
            return
        allowed = os.sched_getaffinity(0)
        if self.sent == (here, count, allowed):
            return
        self.sent = here, count, allowed
        others = sorted(allowed - {here})
        alone, enough = len(others) == count, len(others) >= count
        with suppress(OSError):  # a container may forbid it; then they run where the system lets them
            for i, worker in enumerate(self.workers[:count]):
                some = others[i : i + 1] if alone else others if enough else allowed
                os.sched_setaffinity(worker.thread.native_id, some)


@cache
def libc():
    return ctypes.PyDLL(None)


def processor_of_caller():
    """The number of the processor that this thread is on; None where only the system says who runs where."""
    return libc().sched_getcpu() if sys.platform == "linux" else None


_pool = Pool()


def renew():
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew)
