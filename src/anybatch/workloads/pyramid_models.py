"""Detectors and segmenters small enough for a CPU: torchvision's own heads on a narrow backbone with a pyramid."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from anybatch.workloads.torchvision_sets import import_torchvision

WIDTHS = (16, 32, 64, 96)  # of the four stages of the backbone
NUM_PYRAMID_CHANNELS = 32
BACKGROUND_SHARE = 0.83  # of the pixels of `SceneSet`'s scenes, as counted
BOX_BACKGROUND_SHARE = 0.75  # at least, of the proposals that torchvision's sampler hands to the box head
NUM_GROUPS = 4  # of the norms of pyramid and semantic head
NUM_HIDDEN = 128  # of the box head
MEAN, STD = 0.3, 0.17  # of the pixels of a scene
# modules of torchvision's detectors, as `find_predictor_modules` finds them
PYRAMID = {"backbone": "backbone.body", "fpn": "backbone.fpn"}
ONE_STAGE_MODULES = {**PYRAMID, "head": "head"}
BOX_MODULES = {**PYRAMID, "rpn": "rpn", "box_head": ("roi_heads.box_head", "roi_heads.box_predictor")}
MASK_MODULES = {**BOX_MODULES, "mask_head": ("roi_heads.mask_head", "roi_heads.mask_predictor")}
ANCHOR_SIDES = ((10,), (18,), (30,), (44,), (64,))  # per level, of strides 4 to 64

Target = dict[str, Tensor]


def build_faster_rcnn(num_classes: int, *, size: int, num_proposals: int = 64) -> nn.Module:
    """Return torchvision's Faster R-CNN on the small backbone.

    Differs from torchvision's own: the pyramid has group norm, without which training diverges at twice the
    workload's rate; the box head has the start of Detectron, and its classifier begins at the classes' shares.

    Args:
        num_classes: with the background.
        size: height and width of its images; they are not resized.
        num_proposals: per image, that the box head is trained on.

    Returns:
        The model, with modules `backbone.body`, `backbone.fpn`, `rpn` and `roi_heads`.

    Raises:
        InputError: torchvision is not installed.
    """
    detection = import_torchvision("models.detection", "scenes")
    return detection.FasterRCNN(_detector_backbone(), **_two_stage_options(num_classes, size, num_proposals))


def build_mask_rcnn(num_classes: int, *, size: int, num_proposals: int = 64) -> nn.Module:
    """Return torchvision's Mask R-CNN on the small backbone, with what differs in `build_faster_rcnn`.

    Args:
        num_classes: with the background.
        size: height and width of its images; they are not resized.
        num_proposals: per image, that the box head is trained on.

    Returns:
        The model; its mask head is part of `roi_heads`.

    Raises:
        InputError: torchvision is not installed.
    """
    detection = import_torchvision("models.detection", "scenes")
    masks = detection.mask_rcnn
    return detection.MaskRCNN(
        _detector_backbone(),
        mask_head=masks.MaskRCNNHeads(NUM_PYRAMID_CHANNELS, (NUM_PYRAMID_CHANNELS,) * 2, dilation=1),
        mask_predictor=masks.MaskRCNNPredictor(NUM_PYRAMID_CHANNELS, NUM_PYRAMID_CHANNELS, num_classes),
        **_two_stage_options(num_classes, size, num_proposals),
    )


def build_retinanet(num_classes: int, *, size: int) -> nn.Module:
    """Return torchvision's RetinaNet on the small backbone, with group norm in the pyramid.

    Args:
        num_classes: with the background, which it does not count by itself.
        size: height and width of its images; they are not resized.

    Returns:
        The model, with modules `backbone.body`, `backbone.fpn` and `head`.

    Raises:
        InputError: torchvision is not installed.
    """
    detection = import_torchvision("models.detection", "scenes")
    return detection.RetinaNet(
        _detector_backbone(), num_classes, anchor_generator=_anchors(), **_transform_options(size)
    )


class SemanticFPN(nn.Module):
    """A pyramid whose levels are brought to one size, added and classified pixel by pixel.

    Args:
        num_classes: with the background.

    Raises:
        InputError: torchvision is not installed.

    Source:
        Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 3.1. Differs: one convolution per level,
        bilinear steps in one go, groups of 8 channels; the classifier starts at the classes' shares, as RetinaNet's.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.semantic_head = SemanticHead(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) of images (N, 3, H, W) between 0 and 1."""
        return self.semantic_head(self.backbone(_normalized(images)), images.shape[-2:])


class SemanticHead(nn.Module):
    """Logits per pixel from the levels of a pyramid.

    Args:
        num_classes: with the background.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = NUM_PYRAMID_CHANNELS
        self.levels = nn.ModuleList(_normalized_convolution(channels) for _ in WIDTHS)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        _start_at_shares(self.classify, BACKGROUND_SHARE)

    def forward(self, pyramid: dict[str, Tensor], size: torch.Size) -> Tensor:
        """Return logits (N, classes, *size) of a pyramid, finest level first; levels beyond the four are not used."""
        levels = list(pyramid.values())[: len(self.levels)]
        finest = levels[0].shape[-2:]
        merged = sum(
            interpolate(convolve(level).relu(), finest, mode="bilinear", align_corners=False)
            for convolve, level in zip(self.levels, levels, strict=True)
        )
        return interpolate(self.classify(merged), size, mode="bilinear", align_corners=False)


class PanopticFPN(nn.Module):
    """Mask R-CNN and a semantic head on one pyramid.

    Args:
        num_classes: with the background.
        size: height and width of its images.

    Raises:
        InputError: torchvision is not installed.

    Source:
        Kirillov et al. 2019, section 3.
    """

    def __init__(self, num_classes: int, *, size: int) -> None:
        super().__init__()
        self.instances = build_mask_rcnn(num_classes, size=size)
        self.semantic_head = SemanticHead(num_classes)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> tuple[Any, Tensor]:
        """Return what Mask R-CNN returns, losses in train mode and detections else, and semantic logits."""
        model: Any = self.instances
        prepared, scaled = model.transform(list(images), targets)
        levels = model.backbone(prepared.tensors)
        proposals, rpn_losses = model.rpn(prepared, levels, scaled)
        found, roi_losses = model.roi_heads(levels, proposals, prepared.image_sizes, scaled)
        logits = self.semantic_head(levels, images.shape[-2:])
        if model.training:
            return {**rpn_losses, **roi_losses}, logits
        sizes = [tuple(image.shape[-2:]) for image in images]
        return model.transform.postprocess(found, prepared.image_sizes, sizes), logits


def detection_loss(model: nn.Module, images: Tensor | list[Tensor], targets: list[Target]) -> Tensor:
    """Return the sum of a detector's losses, in eval mode too.

    torchvision's detectors return losses in train mode alone; here their batch norms stay in the mode they are in.

    Args:
        model: from this file, another of torchvision's, or one of them wrapped in DistributedDataParallel.
        images: (N, 3, H, W) between 0 and 1, or a list of (3, H, W) that differ in size.
        targets: one per image.

    Returns:
        A scalar, the mean over the images.
    """
    with _returning_losses(model):
        return torch.stack(list(model(list(images), targets).values())).sum()


def panoptic_loss(model: nn.Module, images: Tensor, targets: list[Target]) -> Tensor:
    """Return the losses of both heads of a `PanopticFPN`, added with equal weight, in eval mode too.

    Args:
        model: as for `detection_loss`.
        images: (N, 3, H, W) between 0 and 1.
        targets: one per image, with `semantic`.

    Returns:
        A scalar, the mean over the images.
    """
    with _returning_losses(model):
        losses, logits = model(images, targets)
    semantic = torch.stack([target["semantic"] for target in targets])
    return torch.stack(list(losses.values())).sum() + cross_entropy(logits, semantic)


@contextmanager
def _returning_losses(model: nn.Module) -> Iterator[None]:
    detection = import_torchvision("models.detection", "scenes")
    kinds = (
        detection.FasterRCNN,
        detection.RetinaNet,
        detection.rpn.RegionProposalNetwork,
        detection.roi_heads.RoIHeads,
    )
    asleep = [module for module in model.modules() if isinstance(module, kinds) and not module.training]
    for module in asleep:
        module.training = True
    try:
        yield
    finally:
        for module in asleep:
            module.training = False


def _detector_backbone() -> nn.Module:
    return _backbone(norm_layer=partial(nn.GroupNorm, NUM_GROUPS))


def _backbone(norm_layer: Callable[[int], nn.Module] | None = None) -> nn.Module:
    utilities = import_torchvision("models.detection.backbone_utils", "scenes")
    stages = [_stage(num_in, num_out) for num_in, num_out in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)]
    stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, 2, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
    named = {"stem": stem, **{f"stage{index}": stage for index, stage in enumerate(stages, start=1)}}
    levels = {f"stage{index}": str(index - 1) for index in range(1, len(WIDTHS) + 1)}
    body = nn.Sequential(OrderedDict(named))
    return utilities.BackboneWithFPN(body, levels, list(WIDTHS), NUM_PYRAMID_CHANNELS, norm_layer=norm_layer)


def _start_at_shares(classify: nn.Conv2d | nn.Linear, background_share: float) -> None:
    """Let a classifier predict background by its share and all else equally, whatever it sees.

    From PyTorch's own start the first updates do little but find these shares, and with a rising rate and momentum run
    past them by far.
    """
    assert classify.bias is not None
    nn.init.normal_(classify.weight, std=0.01)
    nn.init.constant_(classify.bias, math.log((1 - background_share) / max(1, len(classify.bias) - 1)))
    nn.init.constant_(classify.bias[:1], math.log(background_share))


def _box_layers(num_classes: int) -> dict[str, nn.Module]:
    """Return head and predictor of torchvision with the start of Detectron, which torchvision leaves at PyTorch's."""
    boxes = import_torchvision("models.detection", "scenes").faster_rcnn
    head = boxes.TwoMLPHead(NUM_PYRAMID_CHANNELS * 49, NUM_HIDDEN)
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    predictor = boxes.FastRCNNPredictor(NUM_HIDDEN, num_classes)
    _start_at_shares(predictor.cls_score, BOX_BACKGROUND_SHARE)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    nn.init.zeros_(predictor.bbox_pred.bias)
    return {"box_head": head, "box_predictor": predictor}


def _normalized_convolution(num_channels: int) -> nn.Module:
    convolution = nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(NUM_GROUPS, num_channels))


def _stage(num_in: int, num_out: int) -> nn.Module:
    blocks = import_torchvision("models.resnet", "scenes")
    shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, 2, bias=False), nn.BatchNorm2d(num_out))
    return blocks.BasicBlock(num_in, num_out, stride=2, downsample=shortcut)


def _anchors() -> Any:
    generator = import_torchvision("models.detection.anchor_utils", "scenes").AnchorGenerator
    return generator(ANCHOR_SIDES, ((0.5, 1.0, 2.0),) * len(ANCHOR_SIDES))


def _transform_options(size: int) -> dict[str, Any]:
    return {"min_size": size, "max_size": size, "image_mean": [MEAN] * 3, "image_std": [STD] * 3}


def _normalized(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


def _two_stage_options(num_classes: int, size: int, num_proposals: int) -> dict[str, Any]:
    pool = import_torchvision("ops", "scenes").MultiScaleRoIAlign
    names = [str(level) for level in range(len(WIDTHS))]
    return {
        **_transform_options(size),
        "rpn_anchor_generator": _anchors(),
        "box_roi_pool": pool(names, output_size=7, sampling_ratio=2, canonical_scale=56, canonical_level=4),
        **_box_layers(num_classes),
        "rpn_pre_nms_top_n_train": 300,
        "rpn_post_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 64,
        "box_batch_size_per_image": num_proposals,
        "box_detections_per_img": 30,
    }
