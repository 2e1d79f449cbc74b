"""Workloads as a user writes them, good and bad; the file is given to the command line by its path."""

import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from anybatch import Workload


def vectors(num_samples=96):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (num_samples,), generator=rng)
    return TensorDataset(torch.randn(num_samples, 6, generator=rng) + labels[:, None], labels)


def mean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def good(**changes):
    fields = {
        "model": lambda: nn.Linear(6, 3),
        "train_set": vectors(),
        "loss": mean_loss,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        "base_batch_size": 20,
        "epochs": 2,
        **changes,
    }
    return Workload(**fields)


def a_number():
    return 5


def raising():
    raise OSError("disk on fire")


def empty():
    return good(train_set=[])


def exits():
    raise SystemExit("no data at all")


def half_trained_by_adam():
    return good(
        model=lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        optimizer=lambda model: torch.optim.Adam(model[2].parameters()),
    )


def by_adafactor():
    return good(optimizer=lambda model: torch.optim.Adafactor(model.parameters()))


def one_sample():
    return good(train_set=vectors(1), base_batch_size=None)


def vector_loss():
    return good(loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"))


def summed():
    return good(loss=lambda model, batch: mean_loss(model, batch) * len(batch[0]))


def nan_loss():
    return good(loss=lambda model, batch: mean_loss(model, batch) * float("nan"))


def frozen():
    return good(model=lambda: nn.Linear(6, 3).requires_grad_(False))


def wrong_shapes():
    return good(model=lambda: nn.Linear(5, 3))


def nan_in_the_run():
    """The run's batch is a quarter of 20, a size that nothing before it uses."""

    def loss(model, batch):
        return mean_loss(model, batch) * (float("nan") if len(batch[0]) == 5 else 1.0)

    return good(loss=loss)


def waiting():
    """Tell that the run has begun, and wait in it."""

    def loss(model, batch):
        if len(batch[0]) == 5:
            Path(os.environ["STARTED"]).touch()
            time.sleep(60)
        return mean_loss(model, batch)

    return good(loss=loss)


def failing_on_rank_1():
    calls = []

    def loss(model, batch):
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) == 60:
            raise ValueError("label 11 is out of range")
        return mean_loss(model, batch)

    return good(loss=loss)


not_a_function = 3


def plenty():
    return good(train_set=vectors(2000))
