"""What every rank of `test_sources_agree.py` runs: the noise scale of a model at rest, from data-parallel steps."""

import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anybatch.stats import Ranks

NUM_STEPS = 60
BATCH_SIZE = 32
SLOPE, SPREAD, WIDTH = 0.5, 2.0, 12


def make_model() -> nn.Module:
    """The same model in every process."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def loss_of(model: nn.Module, generator: torch.Generator, size: int) -> Tensor:
    """Mean loss of fresh samples."""
    inputs = torch.randn(size, 6, generator=generator)
    targets = inputs.sum(1, keepdim=True) + torch.randn(size, 1, generator=generator)
    return (model(inputs) - targets).square().mean()


class Toy(nn.Module):
    """Its gradient at every sample is the sample: N(slope, spread^2) in each coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)


def toy_loss(model: nn.Module, generator: torch.Generator, size: int) -> Tensor:
    """Mean over samples of a linear function of the weights."""
    return model(SLOPE + SPREAD * torch.randn(size, WIDTH, generator=generator)).mean()


TASKS = {"model": (make_model, loss_of), "toy": (Toy, toy_loss)}


def run(rank: int, world_size: int, port: int, folder: str) -> None:
    """Measure and save rank 0's moments."""
    torch.set_num_threads(1)
    if sys.platform == "linux" and "lo" in dict(socket.if_nameindex()).values():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    found = {}
    for name, (make, loss) in TASKS.items():
        model = DistributedDataParallel(make())
        source, generator = Ranks(model), torch.Generator().manual_seed(100 + rank)
        steps = []
        for _ in range(NUM_STEPS):
            model.zero_grad()
            with source.sub_batch(BATCH_SIZE // world_size):
                loss(model, generator, BATCH_SIZE // world_size).backward()
            moments = source.finish()
            steps.append([moments.sizes, moments.mean_of_sq_norms, moments.sq_norm_of_mean])
        found[name] = steps
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
