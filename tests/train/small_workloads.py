"""Workloads that train in milliseconds, for the tests of several rooms."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from anybatch import Workload
from anybatch.train.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


def simulated_ranks(world_size: int) -> list[Runtime]:
    return [Runtime(torch.device("cpu"), rank, world_size) for rank in range(world_size)]


def labelled_vectors(num_samples: int = 96, num_features: int = 6, seed: int = 0) -> TensorDataset:
    """Three noisy classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_samples,), generator=rng)
    centres = 1.5 * torch.randn(3, num_features, generator=rng)
    return TensorDataset(centres[labels] + torch.randn(num_samples, num_features, generator=rng), labels)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def vectors_workload(**changes: Any) -> Workload:
    """A linear classifier of vectors; any field can be given."""
    fields = {
        "model": lambda: nn.Linear(6, 3),
        "train_set": labelled_vectors(),
        "loss": cross_entropy,
        "optimizer": sgd,
        "base_batch_size": 16,
        "epochs": 2,
        **changes,
    }
    return Workload(**fields)


class Regularized(nn.Module):
    """Batch norm and dropout: buffers that move and draws that must not."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Indices(Dataset[int]):
    """Sample i is i."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[Any]):
    """The samples of a dataset, one after another, `times` times; it has no length."""

    def __init__(self, dataset: Any, times: int = 1) -> None:
        self.dataset = dataset
        self.times = times

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.times):
            for index in range(len(self.dataset)):
                yield self.dataset[index]


def weights_of(model: nn.Module) -> Tensor:
    """All parameters and buffers as one vector."""
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
