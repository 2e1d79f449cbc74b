"""A workload to copy: a model, its data and how it is trained, in one function.

Probe it with `anybatch probe examples/my_workload.py:my_workload`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import anybatch

Batch = tuple[Tensor, Tensor]


def my_workload() -> anybatch.Workload:
    """Return a two-moons classifier trained with AdamW at batch 64."""
    return anybatch.Workload(
        name="two moons",
        model=make_model,
        train_set=two_moons(4000, seed=0),
        eval_set=two_moons(1000, seed=1),
        loss=loss,
        metric=Accuracy,
        optimizer=make_optimizer,
        base_batch_size=64,
        epochs=5,
    )


def make_model() -> nn.Module:
    """Return a small perceptron; its children, `body` and `head`, are its module groups."""
    body = nn.Sequential(nn.Linear(2, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(32, 2)))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean over the batch's samples: a sum would be refused."""
    points, labels = batch
    return nn.functional.cross_entropy(model(points), labels)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with norms and biases, which are vectors, outside weight decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-3)


class Accuracy:
    """Share of right labels; anything with update, merge and compute is a metric."""

    def __init__(self) -> None:
        self.num_right = 0
        self.num_samples = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        points, labels = batch
        self.num_right += int((model(points).argmax(1) == labels).sum())
        self.num_samples += len(labels)

    def merge(self, other: Accuracy) -> None:
        """Add what another rank counted."""
        self.num_right += other.num_right
        self.num_samples += other.num_samples

    def compute(self) -> dict[str, float]:
        """Return the accuracy, between 0 and 1."""
        return {"accuracy": self.num_right / self.num_samples}


def two_moons(num_samples: int, seed: int) -> TensorDataset:
    """Return points of two interleaved half circles with noise, and which one each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (num_samples,), generator=generator)
    angle = torch.pi * torch.rand(num_samples, generator=generator)
    sign = 1 - 2 * labels
    points = torch.stack([angle.cos() + labels, sign * angle.sin() + 0.5 * labels], dim=1)
    return TensorDataset(points + 0.15 * torch.randn(num_samples, 2, generator=generator), labels)
