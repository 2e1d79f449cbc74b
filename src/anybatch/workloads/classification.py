"""Loss, metric and optimizer of the classification workloads, whose batches are (inputs, labels)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of (N, classes) logits, a scalar."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def sgd(model: nn.Module, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Return SGD with weight decay on every parameter, norms and biases included."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


class Accuracy:
    """Share of samples whose largest logit is the label's."""

    def __init__(self) -> None:
        self.num_right = 0.0
        self.num_samples = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch."""
        inputs, labels = batch
        self.num_right += float((model(inputs).argmax(1) == labels).sum())
        self.num_samples += len(labels)

    def merge(self, other: Self) -> None:
        """Add another rank's counts."""
        self.num_right += other.num_right
        self.num_samples += other.num_samples

    def compute(self) -> dict[str, float]:
        """Return {"accuracy": between 0 and 1}; NaN of no samples."""
        return {"accuracy": self.num_right / self.num_samples if self.num_samples else float("nan")}
