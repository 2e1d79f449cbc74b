"""CIFAR-10 and CIFAR-100 with C1, C3, ResNet44 and WResNet16-4, as Hoffer et al. 2017 trained them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from anybatch.workload import Milestones, Workload
from anybatch.workloads.classification import Accuracy, cross_entropy, sgd
from anybatch.workloads.images import IMAGENET_MEAN, IMAGENET_STD, ImageTensors
from anybatch.workloads.networks import C1, C3, ResNet44, WResNet16x4
from anybatch.workloads.torchvision_sets import DatasetName, load_images


def c1_cifar10(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build CIFAR-10 with C1: 50,000 images, SGD without momentum, tuned at 128.

    The rate starts at .001 and rises to .01 at epoch 60, as in the published code.

    Args:
        data_root: folder with torchvision's `cifar-10-batches-py/`; it is downloaded there if it is not. Default:
            `data`.
        augment: whether images are padded by 4 with grey, cropped at random and flipped left to right.

    Returns:
        The workload.

    Raises:
        InputError: torchvision is not installed, or the data is not there and cannot be downloaded.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, and its code. Differs: clipping at norm 5, which the code has in all its
        runs, is no part of a workload.
    """
    return _shallow("c1-cifar10", "CIFAR10", data_root, augment, model=C1)


def c3_cifar100(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build CIFAR-100 with C3, trained as `c1_cifar10` is.

    Args:
        data_root: folder with torchvision's `cifar-100-python/`; it is downloaded there if it is not. Default: `data`.
        augment: as for `c1_cifar10`.

    Returns:
        The workload.

    Raises:
        InputError: as for `c1_cifar10`.
    """
    return _shallow("c3-cifar100", "CIFAR100", data_root, augment, model=C3)


def resnet44_cifar10(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build CIFAR-10 with ResNet44: SGD tuned at 128, 100 epochs with a drop at 81.

    Args:
        data_root: as for `c1_cifar10`.
        augment: as for `c1_cifar10`.

    Returns:
        The workload.

    Raises:
        InputError: as for `c1_cifar10`.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, figures 1 and 3, and its code, whose further drops at 122 and 164 lie
        beyond the 100 epochs of its examples. Differs as `f1_mnist`.
    """
    return _cifar(
        "resnet44-cifar10",
        "CIFAR10",
        data_root,
        augment,
        model=ResNet44,
        optimizer=partial(sgd, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Milestones((81,)),
        epochs=100,
    )


def wresnet16_4_cifar100(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build CIFAR-100 with WResNet16-4: SGD tuned at 256, 100 epochs with a drop at 60.

    Args:
        data_root: as for `c3_cifar100`.
        augment: as for `c1_cifar10`.

    Returns:
        The workload.

    Raises:
        InputError: as for `c1_cifar10`.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, and its code, whose further drops, to .004 at 120 and .0001 at 140, lie
        beyond the 100 epochs of its examples. The base batch size is not in the code, nor could it be checked against
        the paper's text. Differs as `f1_mnist`.
    """
    return _cifar(
        "wresnet16-4-cifar100",
        "CIFAR100",
        data_root,
        augment,
        model=WResNet16x4,
        optimizer=partial(sgd, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Milestones((60,), decay=0.2),
        epochs=100,
        base_batch_size=256,
    )


def _shallow(
    name: str, dataset: DatasetName, data_root: str | Path | None, augment: bool, *, model: Callable[[], nn.Module]
) -> Workload:
    return _cifar(
        name,
        dataset,
        data_root,
        augment,
        model=model,
        optimizer=partial(sgd, lr=0.001, weight_decay=5e-4),
        schedule=Milestones((60, 120, 180), decay=(10.0, 0.1, 0.1)),
        epochs=200,
    )


def _cifar(
    name: str,
    dataset: DatasetName,
    data_root: str | Path | None,
    augment: bool,
    *,
    model: Callable[[], nn.Module],
    optimizer: Callable[[nn.Module], Optimizer],
    schedule: Milestones,
    epochs: int,
    base_batch_size: int = 128,
) -> Workload:
    normalized = partial(ImageTensors, mean=IMAGENET_MEAN, std=IMAGENET_STD, fill=127)
    return Workload(
        name=name,
        model=model,
        train_set=normalized(*load_images(dataset, data_root, train=True), pad=4 if augment else 0, flip=augment),
        eval_set=normalized(*load_images(dataset, data_root, train=False)),
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=optimizer,
        schedule=schedule,
        epochs=epochs,
        base_batch_size=base_batch_size,
    )
