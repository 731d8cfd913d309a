"""What holds for every suite in Numba's simulator."""

import os
import time

import pytest

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    from numba.cuda.simulator.kernel import BlockThread

    @pytest.fixture(scope="package", autouse=True)
    def one_processor():
        """Another for each worker of pytest-xdist. Of the simulator's threads one runs at a time, and handing the turn
        from one processor to another costs more than most turns: four problems through three kernels took 15.7 s of
        processor time on two Zen 4 cores, on one of them 8.3.
        """
        if not hasattr(os, "sched_setaffinity"):
            yield
            return
        processors = os.sched_getaffinity(0)
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {sorted(processors)[worker % len(processors)]})
        yield
        os.sched_setaffinity(0, processors)

    @pytest.fixture(scope="session", autouse=True)
    def who_asks_a_thread_lets_it_run():
        """The simulator asks its threads without end whether they live, and while it asks none of them computes:
        without this simulated_tiled takes 30 s instead of 21.
        """
        is_alive = BlockThread.is_alive

        def after_others(thread):
            time.sleep(0)
            return is_alive(thread)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BlockThread, "is_alive", after_others)
            yield
