"""A COCO of 2017 with 6 images to train on and 3 to evaluate on, written to disk."""

import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 90, "name": "kite"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]  # in no order
KITE, CAR, CAT = 3, 1, 2  # their labels
TRAIN = {  # id -> (width, height)
    10: (60, 44),
    20: (48, 64),
    30: (50, 50),
    40: (52, 40),
    50: (40, 40),
    60: (64, 48),
}
VAL = {1: (60, 44), 2: (40, 52), 3: (48, 48)}


def polygon(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def thing(image_id, category_id, *boxes):
    """An object of one rectangle or several, as polygons."""
    x1, y1 = min(x for x, *_ in boxes), min(y for _, y, *_ in boxes)
    x2, y2 = max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)
    segmentation = [polygon(*box) for box in boxes]
    area = sum(w * h for *_, w, h in boxes)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0,
            "segmentation": segmentation}  # fmt: skip


def crowd(image_id, category_id, box, size):
    """A rectangle as run lengths down the columns of an image of (width, height)."""
    (x, y, w, h), (width, height) = box, size
    counts = [x * height + y, h, *([height - h, h] * (w - 1)), height - y - h + (width - x - w) * height]
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "area": w * h, "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": counts}}  # fmt: skip


TRAIN_OBJECTS = [
    thing(10, 17, (4, 6, 20, 16)),
    thing(10, 3, (30, 10, 24, 30)),
    thing(20, 90, (8, 8, 30, 20)),
    crowd(20, 90, (5, 40, 30, 20), TRAIN[20]),
    thing(40, 3, (10, 10, 1, 20)),  # too narrow
    crowd(50, 17, (2, 2, 30, 30), TRAIN[50]),
    thing(60, 17, (10, 5, 12, 30), (30, 5, 12, 30)),  # in two pieces
    thing(60, 3, (60, 40, 10, 10)),  # beyond the image
]
VAL_OBJECTS = [
    thing(1, 3, (10, 4, 30, 30)),
    thing(3, 90, (2, 2, 20, 20)),
    crowd(3, 90, (24, 24, 20, 20), VAL[3]),
]


def write_coco(root):
    """Write all of it below root."""
    for split, sizes, objects in (("train", TRAIN, TRAIN_OBJECTS), ("val", VAL, VAL_OBJECTS)):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for image_id, (width, height) in sizes.items():
            shape = (height, width) if image_id in (10, 3) else (height, width, 3)  # there is grey in COCO too
            pixels = np.random.default_rng(image_id).integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{image_id:012d}.jpg")
        records = [
            {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height}
            for image_id, (width, height) in reversed(sizes.items())
        ]
        annotations = [{"id": number, **each} for number, each in enumerate(objects, start=100)]
        write_annotations(root, split, {"images": records, "annotations": annotations, "categories": CATEGORIES})
    return root


def write_annotations(root, split, content):
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
