"""The modules train under DistributedDataParallel: two processes with half a batch each end where one with all ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from tests.convlib import ddp_child  # noqa: E402

CHILD, CHECKOUT = Path(ddp_child.__file__), Path(__file__).parents[2]
MOST_SECONDS = 300


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name need not lead anywhere
    command = [sys.executable, str(CHILD)]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=MOST_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)

    begun = ddp_child.model().state_dict()
    alone = ddp_child.trained(ddp_child.model(), slice(None))
    half = ddp_child.trained(ddp_child.model(), slice(ddp_child.BATCH // 2))
    for rank in range(2):
        together = torch.load(tmp_path / f"weights{rank}.pt")
        assert together.keys() == alone.keys()
        for name, weights in together.items():
            torch.testing.assert_close(weights, alone[name], rtol=1e-9, atol=1e-12)
            assert not torch.allclose(weights, begun[name], rtol=1e-3, atol=1e-5)
            assert not torch.allclose(weights, half[name], rtol=1e-3, atol=1e-5)
