"""What is annotated in COCO's files of 2017, and are all of them here? They are read and never downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anybatch.errors import InputError

Split = Literal["train", "val"]
Record = Mapping[str, Any]
LAYOUT = (
    "train2017/ and val2017/, each with its images, and annotations/ with instances_train2017.json and "
    "instances_val2017.json"
)


@dataclass(frozen=True)
class Instances:
    """What an `instances_*.json` says.

    Attributes:
        images: its records of images, ascending by id.
        objects: image id -> records of annotations.
        labels: category id -> label, from 1 without gaps, ascending by id.
        class_names: of label 1 and up.
    """

    images: Sequence[Record]
    objects: Mapping[int, Sequence[Record]]
    labels: Mapping[int, int]
    class_names: tuple[str, ...]


def require_layout(root: Path) -> None:
    """Refuse a folder that is not laid out like COCO's.

    Args:
        root: that should hold it.

    Raises:
        InputError: something is missing.
    """
    splits: tuple[Split, ...] = ("train", "val")
    needed = [*(folder_of(root, split) for split in splits), *(_file_of(root, split) for split in splits)]
    missing = [str(path.relative_to(root)) for path in needed if not path.exists()]
    if missing:
        raise InputError(
            f"COCO is not in {root} and is not downloaded; missing: {', '.join(missing)}. "
            f"Pass --data-root with the folder that holds {LAYOUT}."
        )


def folder_of(root: Path, split: Split) -> Path:
    """Return where the images of a split are."""
    return root / f"{split}2017"


def read_instances(root: Path, split: Split) -> Instances:
    """Read the annotations of a split.

    Args:
        root: folder with COCO's.
        split: which.

    Returns:
        What the file says.

    Raises:
        InputError: it is no such file.
    """
    path = _file_of(root, split)
    try:
        return _indexed(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} must hold COCO's images, annotations and categories; reading it raised {type(error).__name__}: "
            f"{error}. Copy it again."
        ) from error


def _file_of(root: Path, split: Split) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def _indexed(content: Mapping[str, Any]) -> Instances:
    categories = sorted((category["id"], category["name"]) for category in content["categories"])
    labels = {category_id: label for label, (category_id, _) in enumerate(categories, start=1)}
    objects: dict[int, list[Record]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["category_id"] not in labels:
            raise ValueError(f"annotation {annotation['id']} has no category")
        objects[annotation["image_id"]].append(annotation)
    images = sorted(content["images"], key=lambda image: image["id"])
    return Instances(images, objects, labels, tuple(name for _, name in categories))
