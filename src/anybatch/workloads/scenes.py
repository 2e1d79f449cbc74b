"""Dense prediction anywhere: detectors and segmenters on scenes of Fashion-MNIST items, 96 by 96 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anybatch.stats.groups import ModulePrefixes
from anybatch.workload import Metric, Milestones, Workload
from anybatch.workloads.classification import sgd
from anybatch.workloads.dense_metrics import AveragePrecision, MeanIoU, PanopticQuality
from anybatch.workloads.pyramid_models import (
    BOX_MODULES,
    MASK_MODULES,
    ONE_STAGE_MODULES,
    PYRAMID,
    PanopticFPN,
    SemanticFPN,
    build_faster_rcnn,
    build_mask_rcnn,
    build_retinanet,
    detection_loss,
    panoptic_loss,
)
from anybatch.workloads.scene_set import Layout, Sample, SceneSet, Target
from anybatch.workloads.torchvision_sets import load_images

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NUM_CLASSES = len(CLASS_NAMES) + 1
SIZE = Layout().size
NUM_TRAIN, NUM_EVAL = 4096, 512
TUNED_RATE = 0.2  # of Faster R-CNN and the segmenter: of 0.02, 0.06, 0.2 and 0.6, by the study of AGVM
Batch = tuple[Tensor, list[Target]]
DataRoot = str | Path | None


def scenes_faster_rcnn(data_root: DataRoot = None) -> Workload:
    """Build Faster R-CNN with a pyramid on scenes, SGD for batches of 16 at the best of four rates.

    Args:
        data_root: folder with torchvision's `FashionMNIST/`; it is downloaded there if it is not. Default: `data`.

    Returns:
        The workload; its metric is COCO's average precision of boxes.

    Raises:
        InputError: torchvision or faster-coco-eval is not installed, or the data is not there.
    """
    return _scenes("scenes-faster-rcnn", lambda: build_faster_rcnn(NUM_CLASSES, size=SIZE), _detected, _boxes,
                   BOX_MODULES, data_root, lr=TUNED_RATE)  # fmt: skip


def scenes_mask_rcnn(data_root: DataRoot = None) -> Workload:
    """Build Mask R-CNN with a pyramid on scenes, SGD for batches of 16, whose rate is not tuned.

    Args:
        data_root: as for `scenes_faster_rcnn`.

    Returns:
        The workload; its metric is COCO's average precision of masks, then of boxes.

    Raises:
        InputError: as for `scenes_faster_rcnn`.
    """
    return _scenes("scenes-mask-rcnn", lambda: build_mask_rcnn(NUM_CLASSES, size=SIZE), _detected, _masks,
                   MASK_MODULES, data_root)  # fmt: skip


def scenes_retinanet(data_root: DataRoot = None) -> Workload:
    """Build RetinaNet on scenes, SGD for batches of 16, whose rate is not tuned.

    Args:
        data_root: as for `scenes_faster_rcnn`.

    Returns:
        The workload; its metric is COCO's average precision of boxes.

    Raises:
        InputError: as for `scenes_faster_rcnn`.
    """
    return _scenes("scenes-retinanet", lambda: build_retinanet(NUM_CLASSES, size=SIZE), _detected, _boxes,
                   ONE_STAGE_MODULES, data_root)  # fmt: skip


def scenes_semantic_fpn(data_root: DataRoot = None) -> Workload:
    """Build semantic segmentation with a pyramid on scenes, SGD for batches of 16 at the best of four rates.

    Args:
        data_root: as for `scenes_faster_rcnn`.

    Returns:
        The workload; its metric is the mean intersection over union.

    Raises:
        InputError: as for `scenes_faster_rcnn`.
    """
    return _scenes("scenes-semantic-fpn", lambda: SemanticFPN(NUM_CLASSES), _segmented, lambda: MeanIoU(NUM_CLASSES),
                   {**PYRAMID, "semantic_head": "semantic_head"}, data_root, lr=TUNED_RATE)  # fmt: skip


def scenes_panoptic_fpn(data_root: DataRoot = None) -> Workload:
    """Build panoptic segmentation on scenes: Mask R-CNN and a semantic head on one pyramid, SGD not tuned, at 16.

    Args:
        data_root: as for `scenes_faster_rcnn`.

    Returns:
        The workload; its metric is the panoptic quality of things.

    Raises:
        InputError: as for `scenes_faster_rcnn`.
    """
    modules = {name: _within("instances", prefixes) for name, prefixes in MASK_MODULES.items()}
    return _scenes("scenes-panoptic-fpn", lambda: PanopticFPN(NUM_CLASSES, size=SIZE), _panoptic,
                   lambda: PanopticQuality(NUM_CLASSES),
                   {**modules, "semantic_head": "semantic_head"}, data_root)  # fmt: skip


def load_scenes(data_root: DataRoot, *, train: bool, num_scenes: int) -> SceneSet:
    """Return scenes of the items of Fashion-MNIST's training or test set.

    Args:
        data_root: as for `scenes_faster_rcnn`.
        train: which items, and which scenes.
        num_scenes: how many.

    Returns:
        The scenes, the same ones on every machine.

    Raises:
        InputError: as for `scenes_faster_rcnn`.
    """
    images, labels = load_images("FashionMNIST", data_root, train=train)
    return SceneSet(images, labels, num_scenes=num_scenes, seed=0 if train else 1)


def collate_scenes(samples: list[Sample]) -> Batch:
    """Return images (N, 3, H, W) and one target per image, since the numbers of their items differ."""
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def _scenes(
    name: str,
    model: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Batch], Tensor],
    metric: Callable[[], Metric],
    module_prefixes: ModulePrefixes,
    data_root: DataRoot,
    lr: float = 0.02,
) -> Workload:
    return Workload(
        name=name,
        model=model,
        train_set=load_scenes(data_root, train=True, num_scenes=NUM_TRAIN),
        eval_set=load_scenes(data_root, train=False, num_scenes=NUM_EVAL),
        loss=loss,
        metric=metric,
        collate=collate_scenes,
        module_prefixes=module_prefixes,
        optimizer=lambda model: sgd(model, lr=lr, momentum=0.9, weight_decay=1e-4),
        base_batch_size=16,
        epochs=12,
        schedule=Milestones((8, 11)),
    )


def _within(child: str, prefixes: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{child}.{prefix}" for prefix in ((prefixes,) if isinstance(prefixes, str) else prefixes))


def _detected(model: nn.Module, batch: Batch) -> Tensor:
    return detection_loss(model, *batch)


def _panoptic(model: nn.Module, batch: Batch) -> Tensor:
    return panoptic_loss(model, *batch)


def _segmented(model: nn.Module, batch: Batch) -> Tensor:
    images, targets = batch
    return cross_entropy(model(images), torch.stack([target["semantic"] for target in targets]))


def _boxes() -> Any:
    return AveragePrecision(CLASS_NAMES)


def _masks() -> Any:
    return AveragePrecision(CLASS_NAMES, ("segm", "bbox"))
