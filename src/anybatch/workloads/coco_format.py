"""How are annotations written for other tools, and what do COCO's evaluators read?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anybatch.errors import InputError
from anybatch.workloads.torchvision_sets import import_torchvision

Records = dict[str, list[dict[str, Any]]]
CROWD = "crowd_"  # before the names of what is in a target but not trained on


def to_coco(targets: Iterable[Mapping[str, Tensor]], class_names: Sequence[str]) -> Records:
    """Return annotations in COCO's format, as its evaluators and label tools read them.

    Args:
        targets: one per image, see `describe_image`.
        class_names: of label 1 and up.

    Returns:
        `images`, `annotations` and `categories`; image ids count from 1, masks are run lengths down the columns.

    Example:
        >>> mask = torch.tensor([[[0, 1], [1, 1]]], dtype=torch.uint8)
        >>> target = {"masks": mask, "boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([1])}
        >>> found = to_coco([target], ["shirt"])["annotations"][0]
        >>> found["segmentation"], found["bbox"], found["area"]
        ({'size': [2, 2], 'counts': [1, 3]}, [0.0, 0.0, 2.0, 2.0], 3)

    Source:
        Lin et al. 2014, "Microsoft COCO", and the format page of its site.
    """
    return join_images([describe_image(target) for target in targets], class_names)


def describe_image(target: Mapping[str, Tensor]) -> Records:
    """Return what `to_coco` says of one image, before it has a number.

    Args:
        target: `boxes` (K, 4) as x1, y1, x2, y2, `labels` (K,) from 1 and, unless boxes are all that is known, `masks`
            (K, H, W); perhaps the same of crowds, `crowd_boxes` and so on.

    Returns:
        `images`, of one record, and `annotations`.
    """
    size: dict[str, Any] = {}
    if "masks" in target:
        size["height"], size["width"] = target["masks"].shape[1:]
    return {"images": [size], "annotations": [*_annotations(target, ""), *_annotations(target, CROWD)]}


def join_images(described: Sequence[Records], class_names: Sequence[str]) -> Records:
    """Number images and annotations.

    Args:
        described: by `describe_image`.
        class_names: of label 1 and up.

    Returns:
        As for `to_coco`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, described_image in enumerate(described, start=1):
        images += [
            {"id": image_id, **record, "file_name": f"{image_id:06d}.png"} for record in described_image["images"]
        ]
        for annotation in described_image["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(target: Mapping[str, Tensor], prefix: str) -> list[dict[str, Any]]:
    if f"{prefix}boxes" not in target:
        return []
    boxes, labels = target[f"{prefix}boxes"].tolist(), target[f"{prefix}labels"].tolist()
    masks = target.get(f"{prefix}masks")
    annotations = []
    for index, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True)):
        annotation: dict[str, Any] = {
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(prefix == CROWD),
        }
        if masks is not None:
            annotation["area"] = int(masks[index].count_nonzero())
            annotation["segmentation"] = {"size": list(masks.shape[1:]), "counts": run_lengths(masks[index])}
        annotations.append(annotation)
    return annotations


def run_lengths(mask: Tensor) -> list[int]:
    """Return how many pixels down the columns are 0, then 1, then 0 and so on.

    Args:
        mask: of shape (H, W), zero or not.

    Returns:
        Counts that begin with zeros, perhaps none of them, and sum to H * W.

    Example:
        >>> run_lengths(torch.tensor([[1, 0], [1, 1]]))
        [0, 2, 1, 1]
    """
    flat = mask.numpy(force=True).astype(bool).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(np.int8)))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def export_coco(scenes: Dataset[Any], class_names: Sequence[str], folder: str | Path) -> Path:
    """Write scenes as PNG images and one `annotations.json`.

    Args:
        scenes: of (image, target), images float (3, H, W) between 0 and 1; with a length.
        class_names: of label 1 and up.
        folder: made where it is not.

    Returns:
        The path of the annotations.

    Raises:
        InputError: torchvision is not installed, or the folder cannot be written.
    """
    to_picture = import_torchvision("transforms.functional", "COCO export").to_pil_image
    path = Path(folder) / "annotations.json"
    targets = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for index in range(len(scenes)):  # pyright: ignore[reportArgumentType]
            image, target = scenes[index]
            to_picture((image * 255).round().to(torch.uint8)).save(path.parent / f"{index + 1:06d}.png")
            targets.append(target)
        path.write_text(json.dumps(to_coco(targets, class_names)))
    except OSError as error:
        raise InputError(f"folder of the export must be writable; got {folder}: {error}.") from error
    return path
