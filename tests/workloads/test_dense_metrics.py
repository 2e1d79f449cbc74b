"""Average precision, mean intersection over union and panoptic quality, against cases worked out by hand."""

import pickle
import sys

import pytest
import torch
from workloads.test_scene_set import scenes

from anybatch import InputError
from anybatch.workloads.dense_metrics import AveragePrecision, MeanIoU, PanopticQuality, merge_panoptic

NAMES = ["square", "bar", "disc"]


def found_exactly(target):
    """Return what a detector that makes no mistake finds."""
    return {
        "boxes": target["boxes"],
        "labels": target["labels"],
        "scores": torch.linspace(0.9, 0.8, len(target["labels"])),
        "masks": target["masks"][:, None].float(),
    }


TARGETS = [target for _, target in scenes(num_scenes=6)]
EXACT = [found_exactly(target) for target in TARGETS]


def precision(found, targets=TARGETS):
    metric = AveragePrecision(NAMES, ("segm", "bbox"))
    metric.add(found, targets)
    return metric.compute()


def test_a_detector_without_mistakes_has_average_precision_one():
    assert precision(EXACT) == pytest.approx({"mask_ap": 1, "mask_ap50": 1, "box_ap": 1, "box_ap50": 1})


def test_wrong_classes_have_none_and_shifted_boxes_count_at_loose_overlap_alone():
    wrong = [{**image, "labels": image["labels"] % 3 + 1} for image in EXACT]
    assert precision(wrong)["box_ap"] < 0.2
    sizes = [(image["boxes"][:, 2:] - image["boxes"][:, :2]).repeat(1, 2) for image in EXACT]
    shifted = [
        {**image, "boxes": image["boxes"] + size * torch.tensor([0.12, 0, 0.12, 0])}
        for image, size in zip(EXACT, sizes, strict=True)
    ]
    figures = precision(shifted)  # intersection over union 0.88 / 1.12 = 0.786: six of ten thresholds are passed
    assert figures["box_ap50"] == pytest.approx(1)
    assert figures["box_ap"] == pytest.approx(0.6)
    assert figures["mask_ap"] == pytest.approx(1)


def test_nothing_found_is_zero_and_no_image_is_no_number():
    nothing = [{name: value[:0] for name, value in image.items()} for image in EXACT]
    assert precision(nothing)["box_ap"] == 0
    assert all(value != value for value in AveragePrecision(NAMES).compute().values())


def test_two_ranks_count_what_one_counts():
    whole, left, right = (AveragePrecision(NAMES) for _ in range(3))
    half = [{**image, "labels": image["labels"].clone().fill_(1)} for image in EXACT]
    whole.add(half, TARGETS)
    left.add(half[:2], TARGETS[:2])
    right.add(half[2:], TARGETS[2:])
    left.merge(pickle.loads(pickle.dumps(right)))
    assert left.compute() == pytest.approx(whole.compute())
    assert 0 < whole.compute()["box_ap"] < 1


def test_without_the_evaluator_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r"needs faster-coco-eval. Run: pip install 'anybatch\[studies\]'"):
        AveragePrecision(NAMES)


def test_mean_iou_of_a_worked_case():
    metric, other = MeanIoU(4), MeanIoU(4)
    metric.add(torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[0, 1], [1, 1]]]))
    other.add(torch.tensor([[[2, 0]]]), torch.tensor([[[2, 0]]]))
    metric.merge(other)
    # class 0: 2 of 3, class 1: 2 of 3, class 2: 1 of 1, class 3 never occurs
    assert metric.compute() == pytest.approx({"miou": (2 / 3 + 2 / 3 + 1) / 3, "pixel_accuracy": 5 / 6})
    assert MeanIoU(2).compute()["miou"] != MeanIoU(2).compute()["miou"]


def test_panoptic_quality_of_a_worked_case():
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    truth[0, :2], truth[1, 2:] = True, True
    found = truth.clone()
    found[0, 1, 3] = False  # IoU 7/8
    found[1, 3] = False  # IoU 4/8, not above a half: missed and made up
    metric = PanopticQuality(3)
    metric.add(found, torch.tensor([1, 1]), truth, torch.tensor([1, 1]))
    assert metric.compute()["pq"] == pytest.approx((7 / 8) / (1 + 0.5 + 0.5))
    other = PanopticQuality(3)
    other.add(truth[:1], torch.tensor([2]), truth[:1], torch.tensor([1]))
    metric.merge(other)
    # class 1 now has two misses of three, class 2 one invention
    assert metric.compute()["pq"] == pytest.approx(((7 / 8) / (1 + 1 + 0.5) + 0) / 2)
    assert PanopticQuality(3).compute()["pq"] != PanopticQuality(3).compute()["pq"]


def test_exact_masks_and_map_give_panoptic_quality_one():
    metric = PanopticQuality(4)
    for image, target in zip(EXACT, TARGETS, strict=True):
        masks, labels = merge_panoptic(image, target["semantic"])
        metric.add(masks, labels, target["masks"].bool(), target["labels"])
    assert metric.compute() == {"pq": 1.0}


def test_the_surer_instance_keeps_the_pixels_both_claim():
    masks = torch.zeros(3, 1, 4, 4)
    masks[0, 0, :2], masks[1, 0, :3], masks[2, 0, 3] = 1, 1, 1
    found = {"masks": masks, "scores": torch.tensor([0.9, 0.8, 0.4]), "labels": torch.tensor([1, 2, 3])}
    label_map = torch.ones(4, 4, dtype=torch.int64)
    _, labels = merge_panoptic(found, label_map)
    assert labels.tolist() == [1]  # a third of the second is left, and the last is unsure
    label_map[0] = 0
    assert merge_panoptic(found, label_map)[0][0].sum() == 4
    assert merge_panoptic({**found, "scores": torch.zeros(3)}, label_map)[0].shape == (0, 4, 4)
