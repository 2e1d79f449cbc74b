"""What is trained: the scenes, kept in memory, and the detectors and segmenters with what is changed of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anybatch import Workload
from anybatch.stats import find_predictor_modules, group_parameters
from anybatch.workloads import load_workload
from anybatch.workloads.classification import sgd
from anybatch.workloads.scene_set import Sample
from anybatch.workloads.scenes import Batch, collate_scenes

NAMES = {
    "segmentation": "scenes-semantic-fpn",
    "detection": "scenes-faster-rcnn",
    "instances": "scenes-mask-rcnn",
    "one stage": "scenes-retinanet",
}
METRICS = {"segmentation": "eval_miou", "detection": "eval_box_ap", "instances": "eval_mask_ap"}
# points of a predictor that knows nothing: background everywhere, 83% of the pixels and one of 11 classes; no boxes
CHANCE = {"segmentation": 7.5, "detection": 0.0, "instances": 0.0}
RATE = 0.02  # of the workloads, at 16; the grid starts from it


@dataclass(frozen=True)
class Size:
    """How much is trained on.

    Attributes:
        num_train: scenes.
        num_eval: scenes.
        epochs: at any batch size, so that all see the same samples.
    """

    num_train: int
    num_eval: int
    epochs: float


class KeptScenes(Dataset[Sample]):
    """Scenes drawn once and kept, pixels in 8 bits and masks in one: drawing takes as long as a third of a step.

    Args:
        scenes: a `SceneSet`.
        num_scenes: how many of its first ones.
    """

    def __init__(self, scenes: Any, num_scenes: int) -> None:
        self._kept = [_packed(*scenes[index]) for index in range(num_scenes)]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        pixels, bits, boxes, labels = self._kept[index]
        masks = np.unpackbits(bits, axis=1, count=pixels[0].numel()).reshape(len(labels), *pixels.shape[1:])
        semantic = torch.from_numpy(np.tensordot(labels.numpy(), masks, 1))
        target = {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks), "semantic": semantic}
        return pixels.float() / 255, target


def _packed(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Any, Tensor, Tensor]:
    bits = np.packbits(target["masks"].flatten(1).numpy(), axis=1)
    return (image * 255).round().to(torch.uint8), bits, target["boxes"], target["labels"]


@cache
def _kept(root: Path, *, train: bool, num_scenes: int) -> KeptScenes:
    whole = load_workload(NAMES["segmentation"], root)
    return KeptScenes(whole.train_set if train else whole.eval_set, num_scenes)


@cache
def make_workload(task: str, root: Path, size: Size, rate: float = RATE) -> Workload:
    """Return a task at some size.

    Args:
        task: one of `NAMES`.
        root: of the data.
        size: how much.
        rate: of SGD at 16.

    Returns:
        The workload.
    """
    whole = load_workload(NAMES[task], root)
    return replace(
        whole,
        name=f"{NAMES[task]}, {size.num_train} scenes kept in 8 bits",
        model=lambda: _channels_last(whole.model()),
        collate=_collated,
        train_set=_kept(root, train=True, num_scenes=size.num_train),
        eval_set=_kept(root, train=False, num_scenes=size.num_eval),
        module_prefixes=find_predictor_modules(whole.model()).prefixes,
        optimizer=lambda model: sgd(model, lr=rate, momentum=0.9, weight_decay=1e-4),
    )


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _collated(samples: list[Sample]) -> Batch:
    images, targets = collate_scenes(samples)
    return images.contiguous(memory_format=torch.channels_last), targets


def at_module_rates(workload: Workload, scales: Mapping[str, float]) -> Workload:
    """Return a workload whose modules have rates of their own from the first update to the last.

    Args:
        workload: of `make_workload`.
        scales: module -> factor on its rate.

    Returns:
        The workload.
    """

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        whole = workload.optimizer(model)
        modules = group_parameters(model, workload.module_prefixes)
        groups = [{"params": modules[name], "lr": whole.defaults["lr"] * scale} for name, scale in scales.items()]
        return type(whole)(groups, **whole.defaults)

    return replace(workload, optimizer=optimizer)


# interventions on the cause


def set_num_proposals(detector: Any, count: int) -> None:
    """Let a Faster R-CNN train its box head on so many proposals per image, and have more than enough of them."""
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = count
    detector.rpn._pre_nms_top_n["training"] = 1000
    detector.rpn._post_nms_top_n["training"] = 1000
    detector.rpn.nms_thresh = 0.9


class HeadPerLevel(nn.Module):
    """RetinaNet's head with weights of its own for each level of the pyramid.

    Args:
        heads: one per level.
    """

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Return the joined outputs of all levels."""
        found = [head([level]) for head, level in zip(self.heads, levels, strict=True)]
        return {name: torch.cat([part[name] for part in found], dim=1) for name in found[0]}

    def compute_loss(self, *arguments: Any) -> Any:
        """Return the losses, which use no weights."""
        head: Any = self.heads[0]
        return head.compute_loss(*arguments)


class OneLevel(nn.Module):
    """A backbone without a pyramid: its second stage, projected.

    Args:
        backbone: torchvision's, with a pyramid.
        num_channels: of the stage.
    """

    def __init__(self, backbone: Any, num_channels: int = 32) -> None:
        super().__init__()
        self.body = backbone.body
        self.out_channels = backbone.out_channels
        self.fpn = nn.Conv2d(num_channels, self.out_channels, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the one level, of stride 8."""
        return {"0": self.fpn(self.body(images)["1"])}


def one_stage(root: Path, size: Size, variant: str, rate: float) -> Workload:
    """Return RetinaNet as it is, with a head per level, or without the pyramid.

    Args:
        root: of the data.
        size: how much.
        variant: "shared head", "head per level" or "no pyramid".
        rate: of SGD at 16.

    Returns:
        The workload.
    """
    whole = make_workload("one stage", root, size, rate)
    return replace(
        whole, name=f"{whole.name}, {variant}", model=lambda: _channels_last(_changed(whole.model(), variant))
    )


def _changed(model: Any, variant: str) -> nn.Module:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead

    channels, num_classes = model.backbone.out_channels, model.head.classification_head.num_classes
    num_anchors = model.anchor_generator.num_anchors_per_location()
    if variant == "head per level":
        model.head = HeadPerLevel([RetinaNetHead(channels, count, num_classes) for count in num_anchors])
    if variant == "no pyramid":
        sides = tuple(side for level in model.anchor_generator.sizes for side in level)
        model.backbone = OneLevel(model.backbone)
        model.anchor_generator = AnchorGenerator((sides,), ((0.5, 1.0, 2.0),))
        model.head = RetinaNetHead(channels, sum(num_anchors), num_classes)
        # the upper stages now lead nowhere
        for stage in ("stage3", "stage4"):
            del model.backbone.body[stage]
        model.backbone.body.return_layers = {"stage1": "0", "stage2": "1"}
    return model
