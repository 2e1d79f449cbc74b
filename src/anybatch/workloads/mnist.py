"""MNIST and Fashion-MNIST with the fully connected F1, as Hoffer et al. 2017 trained it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from anybatch.workload import Milestones, Workload
from anybatch.workloads.classification import Accuracy, cross_entropy, sgd
from anybatch.workloads.images import ImageTensors
from anybatch.workloads.networks import F1
from anybatch.workloads.torchvision_sets import DatasetName, load_images


def f1_mnist(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build MNIST with F1: 60,000 images, SGD tuned at 128.

    Args:
        data_root: folder with torchvision's `MNIST/`; it is downloaded there if it is not. Default: `data`.
        augment: whether images are padded by 2, cropped at random and flipped left to right. That digits are flipped
            too is as published.

    Returns:
        The workload.

    Raises:
        InputError: torchvision is not installed, or the data is not there and cannot be downloaded.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, and its code. Differs: clipping at norm 5 and the loss of momentum
        between epochs, which the code has in all its runs, are no part of a workload.
    """
    return _f1("f1-mnist", "MNIST", data_root, augment)


def f1_fashion_mnist(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build Fashion-MNIST with F1, as `f1_mnist`: not a workload of the paper, its regime on other images.

    Args:
        data_root: folder with torchvision's `FashionMNIST/`; it is downloaded there if it is not. Default: `data`.
        augment: as for `f1_mnist`.

    Returns:
        The workload.

    Raises:
        InputError: as for `f1_mnist`.
    """
    return _f1("f1-fashion-mnist", "FashionMNIST", data_root, augment)


def _f1(name: str, dataset: DatasetName, data_root: str | Path | None, augment: bool) -> Workload:
    normalized = partial(ImageTensors, mean=[0.5], std=[0.5])
    return Workload(
        name=name,
        model=F1,
        train_set=normalized(*load_images(dataset, data_root, train=True), pad=2 if augment else 0, flip=augment),
        eval_set=normalized(*load_images(dataset, data_root, train=False)),
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=partial(sgd, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Milestones((10, 20, 30)),
        epochs=50,
        base_batch_size=128,
    )
