"""One process of a distributed training: python ddp_child.py RANK PROCESSES FOLDER (see test_torch_ddp.py)."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from convlib.torch import replace_convolutions

STEPS, BATCH = 4, 6


def model() -> nn.Module:
    """Convolutions of every kind, without normalization, whose statistics would be those of each process's own part."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 64, 5),
    )  # fmt: skip
    return replace_convolutions(network.double())


def trained(network, part: slice) -> dict:
    """The weights after some steps on a part of the batch."""
    torch.manual_seed(1)
    x, labels = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (BATCH,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(network(x[part]), labels[part]).backward()
        optimizer.step()
    return network.state_dict()


def main(rank: int, processes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = (folder / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    network = nn.parallel.DistributedDataParallel(model())
    share = BATCH // processes
    trained(network, slice(rank * share, (rank + 1) * share))
    torch.save(network.module.state_dict(), folder / f"weights{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
