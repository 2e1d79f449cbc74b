"""ImageNet with AlexNet, as Hoffer et al. 2017 trained it, from a folder of images per class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anybatch.errors import InputError
from anybatch.workload import Milestones, Workload
from anybatch.workloads.classification import Accuracy, cross_entropy, sgd
from anybatch.workloads.images import IMAGENET_MEAN, IMAGENET_STD
from anybatch.workloads.networks import AlexNet
from anybatch.workloads.torchvision_sets import find_root, import_torchvision

MILESTONES = Milestones((10, 15, 20, 25), decay=(0.5, 0.2, 0.5, 0.2))
FIRST_UNDECAYED_EPOCH = 15


def alexnet_imagenet(data_root: str | Path | None = None, augment: bool = True) -> Workload:
    """Build ImageNet with AlexNet: SGD tuned at 128, no weight decay from epoch 15 on.

    Args:
        data_root: folder with `train/` and `val/`, each with a folder of images per class, of which there may be fewer
            than 1,000. It is not downloaded. Default: `data`.
        augment: whether images are cropped at random and flipped left to right, else cropped at the centre.

    Returns:
        The workload.

    Raises:
        InputError: torchvision is not installed, or the data is not there or has other classes in `val/`.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, and its code. Differs as `f1_mnist`. No number of epochs is given; 30 is
        our choice, five after the last drop.
    """
    root = find_root(data_root)
    train_set, eval_set = _read(root / "train", augment), _read(root / "val", augment=False)
    if train_set.classes != eval_set.classes:
        raise InputError(
            f"train and val in {root} must hold the same classes; got {len(train_set.classes)} and "
            f"{len(eval_set.classes)}, not all of them the same. Sort the images of val into folders named like those "
            "of train."
        )
    return Workload(
        name="alexnet-imagenet",
        model=AlexNet,
        train_set=train_set,
        eval_set=eval_set,
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=partial(sgd, lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=AlexNetRegime,
        epochs=30,
        base_batch_size=128,
    )


class AlexNetRegime(LambdaLR):
    """The rate's milestones, and no weight decay from epoch 15 on; stepped once per epoch."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, MILESTONES.factor)

    def step(self, epoch: int | None = None) -> None:
        """Begin an epoch."""
        super().step(epoch)
        if self.last_epoch >= FIRST_UNDECAYED_EPOCH:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = 0.0


def _read(folder: Path, augment: bool) -> Any:
    image_folder = import_torchvision("datasets", "ImageNet").ImageFolder
    try:
        return image_folder(folder, transform=_transform(augment))
    except OSError as error:
        raise InputError(
            f"ImageNet is not in {folder.parent} and cannot be downloaded. "
            "Pass --data-root with the folder that holds train and val, each with a folder of images per class."
        ) from error


def _transform(augment: bool) -> Any:
    v2 = import_torchvision("transforms.v2", "ImageNet")
    crops = [v2.RandomCrop(224), v2.RandomHorizontalFlip()] if augment else [v2.CenterCrop(224)]
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([v2.Resize(256), *crops, v2.ToImage(), to_float, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
