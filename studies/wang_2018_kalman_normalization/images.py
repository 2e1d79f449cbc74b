"""What is trained: images, net and regime of the published code, at a scale for two cores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from network import PreActivationNet
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch import Milestones, Workload
from anybatch.workloads.classification import Accuracy, cross_entropy
from anybatch.workloads.images import ImageTensors
from anybatch.workloads.torchvision_sets import DatasetName, load_images

Dataset = Literal["fashion-mnist", "cifar10"]
DATASETS = get_args(Dataset)
NUM_UNITS = 1  # n of 6n + 2
BATCH_SIZE = 128
FIRST_RATE, RATE = 0.01, 0.1
WEIGHT_DECAY = 2e-4
EPOCHS, DROPS = 6, (3.0, 4.8)
NUM_TRAINED, NUM_HELD_OUT = 20_480, 5_000
_TITLES: dict[Dataset, DatasetName] = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_PADS: dict[Dataset, int] = {"fashion-mnist": 0, "cifar10": 4}  # published: 4 of 32
_MEANS: dict[Dataset, tuple[float, ...]] = {"fashion-mnist": (0.286,), "cifar10": (0.491, 0.482, 0.447)}
_SDS: dict[Dataset, tuple[float, ...]] = {"fashion-mnist": (0.353,), "cifar10": (0.247, 0.243, 0.262)}


def final_workload(dataset: Dataset, root: Path, num_trained: int = NUM_TRAINED) -> Workload:
    """Return the training that is reported, evaluated on the test set."""
    images, labels = _load(dataset, root, train=True)
    test = _normalized(dataset, *_load(dataset, root, train=False))
    return _workload(dataset, "final", images[:num_trained], labels[:num_trained], test)


def tuning_workload(dataset: Dataset, root: Path, num_trained: int = NUM_TRAINED) -> Workload:
    """Return the training that rates are chosen by, evaluated on training images that are never trained on."""
    images, labels = _load(dataset, root, train=True)
    held_out = _normalized(dataset, images[-NUM_HELD_OUT:], labels[-NUM_HELD_OUT:])
    return _workload(dataset, "tuning", images[:num_trained], labels[:num_trained], held_out)


def other_workload(dataset: Dataset, root: Path, num_trained: int = NUM_TRAINED) -> Workload:
    """Return the training that defaults are chosen by: other images than all of the above, evaluated as tuning is."""
    images, labels = _load(dataset, root, train=True)
    held_out = _normalized(dataset, images[-NUM_HELD_OUT:], labels[-NUM_HELD_OUT:])
    others = slice(-NUM_HELD_OUT - num_trained, -NUM_HELD_OUT)
    return _workload(dataset, "other", images[others], labels[others], held_out)


def _load(dataset: Dataset, root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return images and labels; those of Fashion-MNIST in a frame of 32 x 32, halved to 16 x 16."""
    images, labels = load_images(_TITLES[dataset], root, train=train)
    if dataset == "fashion-mnist":
        images = F.avg_pool2d(F.pad(images.float(), (2, 2, 2, 2)), 2).round().to(torch.uint8)
    return images, labels


def _normalized(dataset: Dataset, images: Tensor, labels: Tensor) -> ImageTensors:
    return ImageTensors(images, labels, mean=_MEANS[dataset], std=_SDS[dataset])


def _workload(dataset: Dataset, what: str, images: Tensor, labels: Tensor, evaluated: ImageTensors) -> Workload:
    train_set = ImageTensors(images, labels, mean=_MEANS[dataset], std=_SDS[dataset], pad=_PADS[dataset], flip=True)
    return Workload(
        name=f"pre-activation ResNet-{6 * NUM_UNITS + 2} on {dataset}, {what}",
        model=partial(PreActivationNet, NUM_UNITS, images.shape[1]),
        train_set=train_set,
        eval_set=evaluated,
        loss=cross_entropy,
        metric=Accuracy,
        optimizer=_sgd,
        schedule=Milestones((0.5, *DROPS), decay=(RATE / FIRST_RATE, 0.1, 0.1)),
        epochs=EPOCHS,
        base_batch_size=BATCH_SIZE,
    )


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Decay weights of convolutions and linear layers alone, as published."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=FIRST_RATE, momentum=0.9)
