"""What holds for every suite in Numba's simulator."""

import os
import time

import pytest

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    from numba.cuda.simulator.kernel import BlockThread

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
