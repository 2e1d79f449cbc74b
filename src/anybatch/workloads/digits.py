"""scikit-learn's 8x8 digits and a small CNN without batch norm: the offline default."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from anybatch.errors import InputError
from anybatch.workload import Workload
from anybatch.workloads.classification import Accuracy, cross_entropy


def digits() -> Workload:
    """Build the digits workload: 1,437 images to train on, 360 to evaluate, SGD tuned at 32.

    Returns:
        The workload.

    Raises:
        InputError: scikit-learn is not installed.
    """
    images, labels = _load()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    num_train = 1437
    return Workload(
        name="digits",
        model=SmallCNN,
        train_set=TensorDataset(images[:num_train], labels[:num_train]),
        eval_set=TensorDataset(images[num_train:], labels[num_train:]),
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=_sgd,
        base_batch_size=32,
        epochs=3,
    )


class SmallCNN(nn.Module):
    """Two convolutions and a linear head on (N, 1, 8, 8) images; 10 classes, no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 10) logits of (N, 1, 8, 8) images."""
        return self.classifier(self.features(images))


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("workload 'digits' needs scikit-learn. Run: pip install 'anybatch[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
