"""Which networks are trained on COCO? torchvision's detectors with a ResNet-50 and a pyramid."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.workloads.torchvision_sets import import_torchvision

Detector = Literal["fasterrcnn", "maskrcnn", "retinanet"]  # as torchvision's functions begin
BACKBONE_FILE = "resnet50-0676ba61.pth"  # torchvision's name of the first ImageNet weights of its ResNet-50
FROZEN = ("conv1", "bn1", "layer1")  # Xue et al. 2022: frozen_stages = 1


def build_detector(
    detector: Detector, num_classes: int, *, min_size: int, max_size: int, backbone_file: Path | None
) -> nn.Module:
    """Return a detector of torchvision with a ResNet-50, whose batch norms are trained.

    Args:
        detector: which.
        num_classes: with the background.
        min_size: pixels that the shorter side of an image is resized to,
        max_size: unless the longer one would exceed so many.
        backbone_file: ImageNet weights of the backbone, whose first two stages are frozen then, with the statistics
            of their batch norms; None: every layer is trained from random weights.

    Returns:
        The model; its heads have random weights.

    Raises:
        InputError: torchvision is not installed, or the file is none of its ResNet-50.

    Source:
        Xue et al. 2022, arXiv:2210.11078, and its code. Differs: a sigmoid in the proposal network, and beta 1/9 in the
        smooth L1 loss of boxes, as torchvision has them; batch norm is not synchronized by itself.
    """
    options: dict[str, Any] = {} if detector == "retinanet" else {"box_score_thresh": 0.0}
    build = getattr(import_torchvision("models.detection", "COCO"), f"{detector}_resnet50_fpn")
    model = build(
        weights=None, weights_backbone=None, num_classes=num_classes, min_size=min_size, max_size=max_size, **options
    )
    if backbone_file is not None:
        _load(model.backbone.body, backbone_file)
    return model


def _load(body: Any, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        body.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} must hold weights of torchvision's ResNet-50; loading it raised {type(error).__name__}. Copy it "
            "again, or take it away to train from random weights."
        ) from error
    for name in FROZEN:
        body[name] = _without_statistics(body[name].requires_grad_(False))


def _without_statistics(module: nn.Module) -> nn.Module:
    """Return a module whose batch norms normalize with the statistics they have, in train mode too."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = import_torchvision("ops", "COCO").FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, _without_statistics(child))
    return module
