"""How are torchvision's datasets read, and what is said where torchvision or the data are missing?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anybatch.errors import InputError

DatasetName = Literal["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"]
TITLES: dict[DatasetName, str] = {
    "MNIST": "MNIST",
    "FashionMNIST": "Fashion-MNIST",
    "CIFAR10": "CIFAR-10",
    "CIFAR100": "CIFAR-100",
}
FOLDERS: dict[DatasetName, str] = {
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
}


def load_images(dataset: DatasetName, data_root: str | Path | None, *, train: bool) -> tuple[Tensor, Tensor]:
    """Read a dataset of small images into memory, after downloading it where it is not there.

    Args:
        dataset: the name of torchvision's class.
        data_root: the folder that holds the dataset's own. Default: `data`.
        train: the training set, else the test set.

    Returns:
        Images, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,).

    Raises:
        InputError: torchvision is not installed, or the data is not there and cannot be downloaded.
    """
    root = find_root(data_root)
    torchvision_datasets = import_torchvision("datasets", TITLES[dataset])
    try:
        data = getattr(torchvision_datasets, dataset)(root, train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{TITLES[dataset]} is not in {root} and could not be downloaded. "
            f"Pass --data-root with the folder that holds {FOLDERS[dataset]}."
        ) from error
    pixels = torch.as_tensor(data.data)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(data.targets)


def find_root(data_root: str | Path | None) -> Path:
    """Return the folder of the data, `data` where none is given.

    Args:
        data_root: what the user gave.

    Returns:
        Its path.
    """
    return Path("data" if data_root is None else data_root)


def import_torchvision(module: str, title: str) -> Any:
    """Import a module of torchvision.

    Args:
        module: its name without `torchvision.`.
        title: what needs it.

    Returns:
        The module.

    Raises:
        InputError: torchvision is not installed.
    """
    try:
        return importlib.import_module(f"torchvision.{module}")
    except ImportError as error:
        raise InputError(f"{title} needs torchvision. Run: pip install 'anybatch[vision]'") from error
