"""Fashion-MNIST with an MLP and a small ResNet, through torchvision's dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from anybatch.workload import Workload
from anybatch.workloads.classification import Accuracy, cross_entropy
from anybatch.workloads.torchvision_sets import load_images


def fashion_mnist_mlp(data_root: str | Path | None = None) -> Workload:
    """Build Fashion-MNIST with a two-layer perceptron: 60,000 images, SGD tuned at 128.

    Args:
        data_root: folder with torchvision's `FashionMNIST/`; it is downloaded there if it is not. Default: `data`.

    Returns:
        The workload.

    Raises:
        InputError: torchvision is not installed, or the data is not there and cannot be downloaded.
    """
    return _fashion_mnist("fashion-mnist", _mlp, data_root)


def fashion_mnist_resnet(data_root: str | Path | None = None) -> Workload:
    """Build Fashion-MNIST with a small ResNet with batch norm, SGD tuned at 128.

    Args:
        data_root: as for `fashion_mnist_mlp`.

    Returns:
        The workload.

    Raises:
        InputError: as for `fashion_mnist_mlp`.
    """
    return _fashion_mnist("fashion-mnist-resnet", SmallResNet, data_root)


class SmallResNet(nn.Module):
    """A ResNet-8 on (N, 1, 28, 28) images: three residual blocks of 16, 32 and 64 channels; 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 10) logits of (N, 1, 28, 28) images."""
        return self.head(self.blocks(self.stem(images)))


class _Block(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(),
            nn.Conv2d(num_out, num_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut = nn.Identity() if num_in == num_out else nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def _fashion_mnist(name: str, model: Any, data_root: str | Path | None) -> Workload:
    return Workload(
        name=name,
        model=model,
        train_set=_images(data_root, train=True),
        eval_set=_images(data_root, train=False),
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=_sgd,
        base_batch_size=128,
        epochs=10,
    )


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Keep norms and biases, which are vectors, outside weight decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 1e-4}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def _images(data_root: str | Path | None, *, train: bool) -> TensorDataset:
    images, labels = load_images("FashionMNIST", data_root, train=train)
    return TensorDataset((images.float() / 255 - 0.286) / 0.353, labels)
