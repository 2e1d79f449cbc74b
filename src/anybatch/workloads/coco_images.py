"""What does a detector see of COCO? Images as they are, and their boxes, labels and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anybatch.errors import InputError
from anybatch.workloads.coco_annotations import Instances, Record, folder_of, read_instances, require_layout
from anybatch.workloads.coco_format import CROWD
from anybatch.workloads.dense_metrics import import_evaluator
from anybatch.workloads.torchvision_sets import find_root, import_torchvision

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
MIN_SIDE = 1  # in pixels: an image whose boxes all have a side of at most this is not trained on


class CocoImages(Dataset[Sample]):
    """Images of COCO with their objects, and crowds apart from them.

    Args:
        folder: of the images.
        instances: the images to have, and what is on them.
        with_masks: whether masks are made of polygons and run lengths, else there are boxes alone.
        flip: whether an image is mirrored left to right with probability 1/2.

    Raises:
        InputError: masks are wanted, and faster-coco-eval, which makes them, is not installed.
    """

    def __init__(self, folder: Path, instances: Instances, *, with_masks: bool, flip: bool) -> None:
        if with_masks:
            import_evaluator()
        self.instances = instances
        self._folder = folder
        self._with_masks = with_masks
        self._flip = flip

    def __len__(self) -> int:
        return len(self.instances.images)

    def __getitem__(self, index: int) -> Sample:
        """Return one image, mirrored by a draw from torch's global generator where that is wanted.

        Args:
            index: of the image.

        Returns:
            The image, float32 of shape (3, H, W) between 0 and 1, and its target: `boxes` (K, 4) as x1, y1, x2, y2 in
            pixels, cut to the image, `labels` (K,) from 1 and, where they are wanted, `masks` uint8 (K, H, W); the same
            of its crowds as `crowd_boxes` and so on.

        Raises:
            InputError: the image cannot be read, or has another size than its annotations say.
        """
        record = self.instances.images[index]
        image = self._read(record)
        size = (int(record["height"]), int(record["width"]))
        objects = self.instances.objects[record["id"]]
        target = self._target([each for each in objects if not each.get("iscrowd")], size)
        crowds = self._target([each for each in objects if each.get("iscrowd")], size)
        target |= {f"{CROWD}{name}": value for name, value in crowds.items()}
        if self._flip and torch.rand(()) < 0.5:
            return image.flip(-1), {name: _mirrored(name, value, size[1]) for name, value in target.items()}
        return image, target

    def _read(self, record: Record) -> Tensor:
        path = self._folder / record["file_name"]
        to_tensor = import_torchvision("transforms.functional", "COCO").pil_to_tensor
        try:
            image = to_tensor(import_torchvision("datasets.folder", "COCO").default_loader(path))  # grey becomes RGB
        except OSError as error:
            raise InputError(f"image {path} must be there and whole; got {error}. Copy it again.") from error
        if tuple(image.shape[1:]) != (record["height"], record["width"]):
            raise InputError(
                f"image {path} must have the size of its annotations, {record['height']} by {record['width']}; got "
                f"{image.shape[1]} by {image.shape[2]}. Leave images at their size: the model resizes them."
            )
        return image.float() / 255

    def _target(self, objects: Sequence[Record], size: tuple[int, int]) -> Target:
        height, width = size
        boxes = torch.tensor([each["bbox"] for each in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.minimum(torch.tensor([width, height] * 2)).clamp(min=0)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = [self.instances.labels[each["category_id"]] for each in objects]
        target = {"boxes": boxes[kept], "labels": torch.tensor(labels, dtype=torch.int64)[kept]}
        if self._with_masks:
            masks = [_mask(each["segmentation"], size) for each in objects]
            target["masks"] = torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, height, width))[kept]
        return target


def load_coco(data_root: str | Path | None, *, with_masks: bool) -> tuple[CocoImages, CocoImages]:
    """Return COCO's images of train2017, mirrored at random, and those of val2017.

    Images without an object are left out of the training set, as are those on which every box is at most 1 pixel high
    or wide; an image of crowds alone stays.

    Args:
        data_root: folder with COCO's folders. Default: `data`.
        with_masks: see `CocoImages`.

    Returns:
        The training and the evaluation set.

    Raises:
        InputError: a folder or file is missing or cannot be read, or the two have other categories.

    Source:
        Lin et al. 2014; what is left out is what torchvision's reference training of detectors leaves out.
    """
    root = find_root(data_root)
    require_layout(root)
    train, val = read_instances(root, "train"), read_instances(root, "val")
    if (train.labels, train.class_names) != (val.labels, val.class_names):
        raise InputError(
            f"train2017 and val2017 in {root} must have the same categories; got {len(train.labels)} and "
            f"{len(val.labels)}, not all of them the same. Take both files of annotations from one release."
        )
    trained_on = [image for image in train.images if _is_trained_on(train.objects[image["id"]])]
    return (
        CocoImages(folder_of(root, "train"), replace(train, images=trained_on), with_masks=with_masks, flip=True),
        CocoImages(folder_of(root, "val"), val, with_masks=with_masks, flip=False),
    )


def collate_images(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    """Return images and their targets as lists, since their sizes differ; the model resizes and pads them."""
    return [image for image, _ in samples], [target for _, target in samples]


def _is_trained_on(objects: Sequence[Record]) -> bool:
    return any(min(each["bbox"][2:]) > MIN_SIDE for each in objects)


def _mask(segmentation: Any, size: tuple[int, int]) -> Any:
    """Return a mask, uint8 of shape (H, W), of polygons or of run lengths."""
    masks = import_evaluator().mask
    return masks.decode(masks.segmToRle(segmentation, size[1], size[0]))


def _mirrored(name: str, value: Tensor, width: int) -> Tensor:
    if name.endswith("boxes"):
        x1, y1, x2, y2 = value.unbind(1)
        return torch.stack([width - x2, y1, width - x1, y2], 1)
    return value.flip(-1) if name.endswith("masks") else value
