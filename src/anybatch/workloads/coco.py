"""Dense prediction on COCO of 2017: detectors with a ResNet-50, as large batches are published with them."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from anybatch.stats.groups import ModulePrefixes
from anybatch.workload import Milestones, Workload
from anybatch.workloads.classification import sgd
from anybatch.workloads.coco_images import Target, collate_images, load_coco
from anybatch.workloads.coco_models import BACKBONE_FILE, Detector, build_detector
from anybatch.workloads.dense_metrics import AveragePrecision, Kind
from anybatch.workloads.pyramid_models import BOX_MODULES, MASK_MODULES, ONE_STAGE_MODULES, detection_loss
from anybatch.workloads.torchvision_sets import find_root

MIN_SIZE, MAX_SIZE = 800, 1333
DataRoot = str | Path | None


def coco_faster_rcnn(data_root: DataRoot = None, *, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE) -> Workload:
    """Build COCO with Faster R-CNN: SGD at 0.02 for batches of 16, for 16 epochs with drops at 12 and 14.

    Images are mirrored at random. The backbone starts from `resnet50-0676ba61.pth` where that lies in the data root,
    else from random weights, with a warning.

    Args:
        data_root: folder with `train2017/`, `val2017/` and `annotations/`. Nothing is downloaded. Default: `data`.
        min_size: pixels that the shorter side of an image is resized to,
        max_size: unless the longer one would exceed so many.

    Returns:
        The workload; its metric is COCO's average precision of boxes.

    Raises:
        InputError: torchvision or faster-coco-eval is not installed, or the data is not there.

    Source:
        Xue et al. 2022, arXiv:2210.11078: the configurations of its code, scaled to 16 images by its rule. Differs as
        `build_detector`.
    """
    return _coco("coco-faster-rcnn", "fasterrcnn", data_root, (min_size, max_size), ("bbox",),
                 BOX_MODULES)  # fmt: skip


def coco_mask_rcnn(data_root: DataRoot = None, *, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE) -> Workload:
    """Build COCO with Mask R-CNN, trained as `coco_faster_rcnn` is.

    Args:
        data_root: as for `coco_faster_rcnn`.
        min_size: as for `coco_faster_rcnn`.
        max_size: as for `coco_faster_rcnn`.

    Returns:
        The workload; its metric is COCO's average precision of masks, then of boxes.

    Raises:
        InputError: as for `coco_faster_rcnn`.

    Source:
        As for `coco_faster_rcnn`. The paper's own figures come from 14 epochs.
    """
    return _coco("coco-mask-rcnn", "maskrcnn", data_root, (min_size, max_size), ("segm", "bbox"),
                 MASK_MODULES)  # fmt: skip


def coco_retinanet(data_root: DataRoot = None, *, min_size: int = MIN_SIZE, max_size: int = MAX_SIZE) -> Workload:
    """Build COCO with RetinaNet: SGD at 0.01 for batches of 16, for 12 epochs with drops at 8 and 11.

    Args:
        data_root: as for `coco_faster_rcnn`.
        min_size: as for `coco_faster_rcnn`.
        max_size: as for `coco_faster_rcnn`.

    Returns:
        The workload; its metric is COCO's average precision of boxes.

    Raises:
        InputError: as for `coco_faster_rcnn`.

    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1, whose 90,000 updates with drops at 60,000
        and 80,000 are rounded to epochs. Differs as `build_detector`.
    """
    return _coco("coco-retinanet", "retinanet", data_root, (min_size, max_size), ("bbox",),
                 ONE_STAGE_MODULES, lr=0.01, epochs=12, milestones=(8, 11))  # fmt: skip


def _coco(
    name: str,
    detector: Detector,
    data_root: DataRoot,
    sizes: tuple[int, int],
    kinds: tuple[Kind, ...],
    module_prefixes: ModulePrefixes,
    *,
    lr: float = 0.02,
    epochs: int = 16,
    milestones: tuple[int, int] = (12, 14),
) -> Workload:
    train_set, eval_set = load_coco(data_root, with_masks="segm" in kinds)
    class_names = train_set.instances.class_names
    model = partial(build_detector, detector, len(class_names) + 1, min_size=sizes[0], max_size=sizes[1])
    return Workload(
        name=name,
        model=partial(model, backbone_file=_find_backbone(find_root(data_root))),
        train_set=train_set,
        eval_set=eval_set,
        loss=_loss,
        metric=partial(AveragePrecision, class_names, kinds),
        collate=collate_images,
        module_prefixes=module_prefixes,
        optimizer=partial(sgd, lr=lr, momentum=0.9, weight_decay=1e-4),
        base_batch_size=16,
        epochs=epochs,
        schedule=Milestones(milestones),
    )


def _loss(model: nn.Module, batch: tuple[list[Tensor], list[Target]]) -> Tensor:
    return detection_loss(model, *batch)


def _find_backbone(root: Path) -> Path | None:
    path = root / BACKBONE_FILE
    if path.exists():
        return path
    warnings.warn(
        f"{BACKBONE_FILE} is not in {root}, so the backbone starts from random weights; every published training of a "
        "detector starts from ImageNet's. Put torchvision's file there.",
        stacklevel=4,
    )
    return None
