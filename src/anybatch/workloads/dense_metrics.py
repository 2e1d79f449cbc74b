"""How good are boxes, masks and label maps? Average precision, mean intersection over union, panoptic quality."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.workloads.coco_format import Records, describe_image, join_images

Batch = tuple[Tensor, list[dict[str, Tensor]]]
Kind = Literal["bbox", "segm"]
MATCH = 0.5  # panoptic segments of the same class match above this intersection over union; at most one can


class AveragePrecision:
    """COCO's average precision of a detector, by faster-coco-eval.

    Args:
        class_names: of label 1 and up.
        kinds: "bbox" for boxes, "segm" for masks; the first one's AP is the figure that ranks.

    Raises:
        InputError: faster-coco-eval is not installed.

    Source:
        Lin et al. 2014; mean over IoU 0.50 to 0.95 in steps of 0.05, at most 100 detections per image.
    """

    def __init__(self, class_names: Sequence[str], kinds: Sequence[Kind] = ("bbox",)) -> None:
        import_evaluator()
        self._class_names = list(class_names)
        self._kinds = tuple(kinds)
        self._truth: list[Records] = []
        self._found: list[list[dict[str, Any]]] = []

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Run the model in eval mode on one batch and keep what it finds."""
        images, targets = batch
        self.add(model(list(images)), targets)

    def add(self, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Keep what was found on some images.

        Args:
            found: per image `boxes` (K, 4), `scores` (K,), `labels` (K,) and, for "segm", `masks` (K, 1, H, W).
            targets: per image as for `describe_image`; what is found in crowds counts neither for nor against.
        """
        self._found += [_records(image, with_masks="segm" in self._kinds) for image in found]
        self._truth += [describe_image(target) for target in targets]

    def merge(self, other: Self) -> None:
        """Add the images of another rank."""
        self._truth += other._truth
        self._found += other._found

    def compute(self) -> dict[str, float]:
        """Return `box_ap`, `box_ap50` and, for "segm", `mask_ap`, `mask_ap50`; NaN of no images."""
        figures: dict[str, float] = {}
        for kind, name in (("segm", "mask"), ("bbox", "box")):
            if kind in self._kinds:
                figures[f"{name}_ap"], figures[f"{name}_ap50"] = self._evaluate(kind)
        return figures

    def _evaluate(self, kind: str) -> tuple[float, float]:
        library = import_evaluator()
        found = [
            {**record, "image_id": image_id}
            for image_id, records in enumerate(self._found, start=1)
            for record in records
        ]
        if not self._truth:
            return float("nan"), float("nan")
        if not found:
            return 0.0, 0.0
        truth = library.COCO(join_images(self._truth, self._class_names))
        evaluation = library.COCOeval_faster(truth, truth.loadRes(found), iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0]), float(evaluation.stats[1])


class MeanIoU:
    """Mean over classes of intersection over union of label maps; classes that never occur are left out.

    Args:
        num_classes: with the background.

    Source:
        Everingham et al. 2010, "The Pascal Visual Object Classes Challenge", section 4.3.
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # [truth, prediction]

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch of a model that returns logits (N, classes, H, W)."""
        images, targets = batch
        self.add(model(images).argmax(1), torch.stack([target["semantic"] for target in targets]))

    def add(self, predicted: Tensor, truth: Tensor) -> None:
        """Count label maps.

        Args:
            predicted: int64 of shape (N, H, W).
            truth: of the same shape.
        """
        size = len(self._counts)
        pairs = (truth * size + predicted).flatten()
        self._counts += torch.bincount(pairs, minlength=size * size).view(size, size).cpu()

    def merge(self, other: Self) -> None:
        """Add another rank's counts."""
        self._counts += other._counts

    def compute(self) -> dict[str, float]:
        """Return `miou` between 0 and 1, NaN of no pixels, and `pixel_accuracy`."""
        right = self._counts.diag().double()
        union = self._counts.sum(0) + self._counts.sum(1) - right
        return {
            "miou": (right / union)[union > 0].mean().item(),
            "pixel_accuracy": (right.sum() / self._counts.sum()).item(),
        }


class PanopticQuality:
    """Panoptic quality over things: matched intersection over union against what is missed and what is made up.

    PQ of a class = sum of IoU over matches / (matches + misses / 2 + inventions / 2); the mean over classes.

    Args:
        num_classes: with the background, which is not counted.

    Source:
        Kirillov et al. 2019, "Panoptic Segmentation", equation 1.
    """

    def __init__(self, num_classes: int) -> None:
        self._iou = np.zeros(num_classes)
        self._matches = np.zeros(num_classes)
        self._segments = np.zeros(num_classes)  # predicted and true ones together

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch of a `PanopticFPN`."""
        images, targets = batch
        found, logits = model(images)
        for instances, label_map, target in zip(found, logits.argmax(1), targets, strict=True):
            masks, labels = merge_panoptic(instances, label_map)
            self.add(masks, labels, target["masks"].bool(), target["labels"])

    def add(self, masks: Tensor, labels: Tensor, true_masks: Tensor, true_labels: Tensor) -> None:
        """Count the segments of one image.

        Args:
            masks: bool of shape (K, H, W), disjoint.
            labels: of shape (K,).
            true_masks: bool of shape (T, H, W), disjoint.
            true_labels: of shape (T,).
        """
        for kind in (labels, true_labels):
            self._segments += np.bincount(kind.numpy(force=True), minlength=len(self._segments))
        if not len(masks) or not len(true_masks):
            return
        found, truth = masks.flatten(1).float(), true_masks.flatten(1).float()
        common = found @ truth.T
        iou = common / (found.sum(1)[:, None] + truth.sum(1) - common)
        iou = iou * (labels[:, None] == true_labels) * (iou > MATCH)
        best = iou.amax(0).double().numpy(force=True)
        classes = true_labels.numpy(force=True)
        np.add.at(self._iou, classes, best)
        np.add.at(self._matches, classes, best > 0)

    def merge(self, other: Self) -> None:
        """Add another rank's counts."""
        self._iou += other._iou
        self._matches += other._matches
        self._segments += other._segments

    def compute(self) -> dict[str, float]:
        """Return `pq` between 0 and 1; NaN of no segments."""
        occurs = self._segments > 0
        if not occurs.any():
            return {"pq": float("nan")}
        # matches + misses/2 + inventions/2 = (segments of both sides) / 2
        return {"pq": float(np.mean(2 * self._iou[occurs] / self._segments[occurs]))}


def merge_panoptic(instances: dict[str, Tensor], label_map: Tensor, min_score: float = 0.5) -> tuple[Tensor, Tensor]:
    """Join instances and a label map into disjoint segments, the surest instance first.

    A pixel goes to the surest instance that claims it; an instance of which less than half is left is dropped. Things
    that the label map alone has are not made instances.

    Args:
        instances: of Mask R-CNN: `masks` (K, 1, H, W) of probabilities, `scores`, sorted, and `labels`.
        label_map: int64 of shape (H, W), 0 where there is background.
        min_score: instances below it are dropped.

    Returns:
        Masks, bool of shape (S, H, W), and labels of shape (S,).

    Source:
        Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", section 4, after "Panoptic Segmentation", section 6.
        Differs: an instance keeps no pixel where the label map sees background.
    """
    is_free = label_map != 0
    masks, labels = [], []
    for mask, score, label in zip(
        instances["masks"][:, 0] > 0.5, instances["scores"], instances["labels"], strict=True
    ):
        left = mask & is_free
        if score >= min_score and left.any() and left.sum() >= 0.5 * mask.sum():
            is_free = is_free & ~left
            masks.append(left)
            labels.append(label)
    if not masks:
        return label_map.new_zeros((0, *label_map.shape), dtype=torch.bool), label_map.new_zeros(0)
    return torch.stack(masks), torch.stack(labels)


def _records(found: dict[str, Tensor], *, with_masks: bool) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for index, (box, score, label) in enumerate(
        zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    ):
        records.append(
            {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "score": score, "category_id": label}
        )
        if with_masks:
            mask = (found["masks"][index, 0] > 0.5).byte().numpy(force=True)
            records[-1]["segmentation"] = import_evaluator().mask.encode(np.asfortranarray(mask))
    return records


def import_evaluator() -> Any:
    """Import faster-coco-eval.

    Returns:
        The module.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("faster_coco_eval")
    except ImportError as error:
        raise InputError(
            "average precision, as do masks of COCO, needs faster-coco-eval. Run: pip install 'anybatch[studies]'"
        ) from error
