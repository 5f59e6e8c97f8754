"""DistributedDataParallel: each process draws its own share of every epoch.

Run: torchrun --nproc-per-node 2 examples/with_ddp.py out.h5
"""

import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import loader.torch


def train(path: str, n_epochs: int = 2) -> nn.Module:
    """Train a small network on this process's share of the batches."""
    # Rank and world size are those of torch.distributed; no DistributedSampler.
    dataset = loader.torch.IterableDataset(
        path, batch_size=2, seed=7, normalize="zscore", prefetch=2
    )
    batches = DataLoader(dataset, batch_size=None)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Conv2d(1, 3, 3, padding=1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(n_epochs):  # each pass is the next epoch, on every rank
        for images, masks in batches:
            loss = nn.functional.cross_entropy(model(images), masks.squeeze(1).long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


if __name__ == "__main__":
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    model = train(sys.argv[1])
    weights = sum(one.double().sum().item() for one in model.parameters())
    print(f"rank {distributed.get_rank()} of {distributed.get_world_size()}: {weights!r}\n", end="")
    distributed.destroy_process_group()
