"""COCO: what is read of its files, how detectors train on it, and what is said where it is not whole."""

import json
import sys
from itertools import islice

import pytest
import torch
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d
from train.small_workloads import CPU
from workloads.coco_files import CAR, CAT, CATEGORIES, KITE, write_annotations, write_coco

from anybatch import InputError, Milestones
from anybatch.stats import find_predictor_modules, group_parameters
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training, train
from anybatch.workloads import coco, load_workload
from anybatch.workloads.coco_images import collate_images, load_coco
from anybatch.workloads.coco_models import BACKBONE_FILE
from anybatch.workloads.dense_metrics import AveragePrecision

SMALL = {"min_size": 32, "max_size": 48}
FIGURES = {
    "coco-faster-rcnn": ["box_ap", "box_ap50"],
    "coco-mask-rcnn": ["mask_ap", "mask_ap50", "box_ap", "box_ap50"],
    "coco-retinanet": ["box_ap", "box_ap50"],
}
FUNCTIONS = {
    "coco-faster-rcnn": coco.coco_faster_rcnn,
    "coco-mask-rcnn": coco.coco_mask_rcnn,
    "coco-retinanet": coco.coco_retinanet,
}


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path)


def built(name, root):
    with pytest.warns(UserWarning, match=rf"{BACKBONE_FILE} is not in {root}, so the backbone starts from random wei"):
        return FUNCTIONS[name](root, **SMALL)


def with_file(root, change, split="train"):
    path = root / "annotations" / f"instances_{split}2017.json"
    write_annotations(root, split, change(json.loads(path.read_text())))


# data


def test_images_with_nothing_to_train_on_are_left_out_of_training_alone(root):
    train_set, eval_set = load_coco(root, with_masks=False)
    assert [image["id"] for image in train_set.instances.images] == [10, 20, 50, 60]
    assert [image["id"] for image in eval_set.instances.images] == [1, 2, 3]
    assert [len(eval_set[index][1]["boxes"]) for index in range(3)] == [1, 0, 1]


def test_categories_with_gaps_become_labels_without(root):
    train_set, _ = load_coco(root, with_masks=False)
    assert train_set.instances.class_names == ("car", "cat", "kite")
    found = [train_set[index][1]["labels"].tolist() for index in range(4)]
    assert found == [[CAT, CAR], [KITE], [], [CAT, CAR]]


def test_boxes_are_corners_cut_to_the_image_and_masks_are_what_was_drawn(root):
    train_set, eval_set = load_coco(root, with_masks=True)
    train_set._flip = False
    image, target = train_set[3]
    assert (image.shape, image.dtype) == ((3, 48, 64), torch.float32)
    assert 0 <= image.min() < image.max() <= 1
    assert target["boxes"].tolist() == [[10, 5, 42, 35], [60, 40, 64, 48]]
    drawn = torch.zeros(2, 48, 64, dtype=torch.uint8)
    drawn[0, 5:35, 10:22], drawn[0, 5:35, 30:42], drawn[1, 40:, 60:] = 1, 1, 1
    assert torch.equal(target["masks"], drawn)
    grey, target = eval_set[2]
    assert torch.equal(grey[0], grey[2])
    assert target["masks"].shape == (1, 48, 48)


def test_a_crowd_is_kept_apart_from_what_is_trained_on(root):
    train_set, _ = load_coco(root, with_masks=True)
    train_set._flip = False
    _, target = train_set[1]
    assert target["boxes"].tolist() == [[8, 8, 38, 28]]
    assert (target["crowd_boxes"].tolist(), target["crowd_labels"].tolist()) == ([[5, 40, 35, 60]], [KITE])
    drawn = torch.zeros(1, 64, 48, dtype=torch.uint8)
    drawn[0, 40:60, 5:35] = 1
    assert torch.equal(target["crowd_masks"], drawn)
    _, alone = train_set[2]
    assert [tuple(alone[name].shape) for name in ("boxes", "masks", "crowd_masks")] == [
        (0, 4),
        (0, 40, 40),
        (1, 40, 40),
    ]
    assert "masks" not in load_coco(root, with_masks=False)[0][1][1]


def test_half_of_the_training_images_are_mirrored_with_all_that_is_on_them(root):
    train_set, eval_set = load_coco(root, with_masks=True)
    torch.manual_seed(0)
    seen = [train_set[1] for _ in range(40)]
    plain = next(image for image, target in seen if target["boxes"][0, 0] == 8)
    mirrored = [(image, target) for image, target in seen if target["boxes"][0, 0] == 10]
    assert 8 < len(mirrored) < 32
    image, target = mirrored[0]
    assert torch.equal(image, plain.flip(-1))
    assert (target["boxes"].tolist(), target["crowd_boxes"].tolist()) == ([[10, 8, 40, 28]], [[13, 40, 43, 60]])
    for kind in ("", "crowd_"):
        (x1, y1, x2, y2) = target[f"{kind}boxes"][0].int().tolist()
        assert target[f"{kind}masks"][0, y1:y2, x1:x2].all()
        assert target[f"{kind}masks"].sum() == (x2 - x1) * (y2 - y1)
    assert all(torch.equal(eval_set[0][0], eval_set[0][0]) for _ in range(9))


def test_images_of_all_sizes_make_a_batch(root):
    images, targets = collate_images([load_coco(root, with_masks=False)[1][index] for index in range(3)])
    assert [tuple(image.shape) for image in images] == [(3, 44, 60), (3, 52, 40), (3, 48, 48)]
    assert len(targets) == 3


# metric


def found_on(eval_set, extra=()):
    """What a detector finds that knows all, and on the last image boxes more."""
    found = []
    for index in range(len(eval_set)):
        _, target = eval_set[index]
        boxes, labels, masks = target["boxes"], target["labels"], target["masks"][:, None].float()
        if index == 2:
            more = torch.tensor(extra).reshape(-1, 4)
            boxes, labels = torch.cat([boxes, more]), torch.cat([labels, torch.full((len(more),), KITE)])
            drawn = torch.zeros(len(more), 1, *masks.shape[2:])
            for mask, (x1, y1, x2, y2) in zip(drawn, more.int().tolist(), strict=True):
                mask[0, y1:y2, x1:x2] = 1
            masks = torch.cat([masks, drawn])
        scores = torch.linspace(0.5, 0.9, len(boxes)) if len(boxes) else torch.zeros(0)  # the last is the surest
        found.append({"boxes": boxes, "labels": labels, "scores": scores, "masks": masks})
    return found


def evaluated_from_the_file(root, eval_set, found, kind):
    """The evaluator on the file as it is, whose ids have gaps, for a twin."""
    library = pytest.importorskip("faster_coco_eval")
    truth = library.COCO(str(root / "annotations" / "instances_val2017.json"))
    category = {label: category_id for category_id, label in eval_set.instances.labels.items()}
    records = []
    for image, each in zip(eval_set.instances.images, found, strict=True):
        for box, label, score, mask in zip(*(each[key] for key in ("boxes", "labels", "scores", "masks")), strict=True):
            x1, y1, x2, y2 = box.tolist()
            segmentation = library.mask.encode(mask[0].byte().numpy().copy(order="F"))
            records.append({"image_id": image["id"], "category_id": category[int(label)], "score": float(score),
                            "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation})  # fmt: skip
    evaluation = library.COCOeval_faster(truth, truth.loadRes(records), iouType=kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


IN_CROWD, BESIDE = [26.0, 26, 40, 40], [2.0, 30, 20, 46]


@pytest.mark.parametrize("extra", [[], [IN_CROWD], [BESIDE], [IN_CROWD, BESIDE]], ids=["", "in", "beside", "both"])
def test_average_precision_is_that_of_the_evaluator_on_the_file(root, extra):
    _, eval_set = load_coco(root, with_masks=True)
    metric = AveragePrecision(eval_set.instances.class_names, ("segm", "bbox"))
    found = found_on(eval_set, extra)
    metric.add(found, [eval_set[index][1] for index in range(3)])
    figures = metric.compute()
    for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
        assert figures[name] == pytest.approx(evaluated_from_the_file(root, eval_set, found, kind))
    assert (figures["box_ap"] == pytest.approx(1)) == (BESIDE not in extra)


def test_boxes_are_evaluated_without_masks(root):
    _, with_masks = load_coco(root, with_masks=True)
    _, without = load_coco(root, with_masks=False)
    metric = AveragePrecision(without.instances.class_names)
    metric.add(found_on(with_masks, [IN_CROWD]), [without[index][1] for index in range(3)])
    assert metric.compute() == pytest.approx({"box_ap": 1, "box_ap50": 1})


# training


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_step_trains_the_model_and_the_metric_counts(name, root):
    workload = built(name, root)
    assert workload.num_samples == 4
    training = start_training(workload, CPU, seed=0)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    (loss,) = islice(train(workload, CPU, training, batch_size=4, seed=0), 1)
    assert loss.isfinite()
    unmoved = [
        parameter_name
        for (parameter_name, parameter), old in zip(training.model.named_parameters(), before, strict=True)
        if torch.equal(parameter, old)
    ]
    assert unmoved == []
    figures = evaluate(workload, CPU, training.model, batch_size=3, max_samples=3, with_loss=True)
    assert list(figures) == ["loss", *FIGURES[name]]
    assert all(0 <= figures[figure] <= 1 for figure in FIGURES[name])
    assert figures["loss"] > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_regime_is_the_published_one_and_modules_are_those_of_the_paper(name, root):
    workload = built(name, root)
    assert workload.name == name
    model = workload.model()
    (group,) = workload.optimizer(model).param_groups
    lr, epochs, drops = (0.01, 12, (8, 11)) if name == "coco-retinanet" else (0.02, 16, (12, 14))
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (lr, 0.9, 1e-4)
    assert (workload.base_batch_size, workload.epochs, workload.schedule) == (16, epochs, Milestones(drops))
    found = find_predictor_modules(model).prefixes
    assert {
        module: (given,) if isinstance(given, str) else given for module, given in workload.module_prefixes.items()
    } == found
    assert sum(map(len, group_parameters(model, workload.module_prefixes).values())) == len(list(model.parameters()))


def test_images_are_resized_to_800_and_1333_unless_asked_otherwise(root):
    with pytest.warns(UserWarning, match="random weights"):
        transform = coco.coco_retinanet(root).model().transform
    assert (transform.min_size, transform.max_size) == ((800,), 1333)
    transform = built("coco-retinanet", root).model().transform
    assert (transform.min_size, transform.max_size) == ((32,), 48)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(7)
    model = resnet50(weights=None)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
    return model.state_dict()


def test_the_backbone_begins_with_the_weights_beside_the_data_and_its_first_stages_stay(backbone, root):
    torch.save(backbone, root / BACKBONE_FILE)
    workload = coco.coco_faster_rcnn(root, **SMALL)
    training = start_training(workload, CPU, seed=0)
    body = training.model.backbone.body
    for name, value in body.state_dict().items():
        assert torch.equal(value, backbone[name])
    list(islice(train(workload, CPU, training, batch_size=2, seed=0), 1))
    moved = {name.split(".")[0] for name, value in body.state_dict().items() if not torch.equal(value, backbone[name])}
    assert moved == {"layer2", "layer3", "layer4"}
    assert {type(norm) for norm in (body.bn1, body.layer1[0].bn1, body.layer1[0].downsample[1])} == {FrozenBatchNorm2d}
    assert not any(parameter.requires_grad for parameter in [*body.conv1.parameters(), *body.layer1.parameters()])


@pytest.mark.parametrize("content", [b"", b"no weights", "others"])
def test_a_file_without_the_backbone_s_weights_is_refused(root, content):
    path = root / BACKBONE_FILE
    if content == "others":
        torch.save({"conv1.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{BACKBONE_FILE} must hold weights of torchvision's ResNet-50; loading it"):
        coco.coco_faster_rcnn(root, **SMALL).model()


# what is missing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_folder_without_coco_is_told_what_it_must_hold(name, tmp_path):
    message = (
        rf"^COCO is not in {tmp_path} and is not downloaded; missing: train2017, val2017, annotations/instances_train"
        r"2017\.json, annotations/instances_val2017\.json\. Pass --data-root with the folder that holds train2017/ and "
    )
    with pytest.raises(InputError, match=message):
        load_workload(name, data_root=tmp_path)


def test_only_what_is_missing_is_named(root):
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match=r"missing: annotations/instances_val2017\.json\. Pass"):
        load_coco(root, with_masks=False)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: [content], "TypeError"),
        (lambda content: {**content, "images": []}, "KeyError: 10"),
        (lambda content: {"images": []}, "KeyError: 'categories'"),
        (lambda content: {**content, "categories": CATEGORIES[:2]}, "ValueError: annotation 100 has no category"),
    ],
)
def test_a_file_that_is_not_coco_s_is_told_with_its_error(root, change, error):
    with_file(root, change)
    with pytest.raises(InputError, match=rf"instances_train2017.json must hold COCO's images, .* raised {error}"):
        load_coco(root, with_masks=False)


def test_a_broken_file_is_told(root):
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"val2017.json must hold COCO's .* raised JSONDecodeError: .* Copy it again"):
        load_coco(root, with_masks=False)


def test_other_categories_in_val_are_refused(root):
    more = [*CATEGORIES, {"id": 5, "name": "dog"}]
    with_file(root, lambda content: {**content, "categories": more}, "val")
    with pytest.raises(InputError, match="must have the same categories; got 3 and 4, not all of them the same"):
        load_coco(root, with_masks=False)


def test_a_missing_image_and_one_of_another_size_are_named(root):
    with_file(
        root, lambda content: {**content, "images": [{**image, "width": 7} for image in content["images"]]}, "val"
    )
    train_set, eval_set = load_coco(root, with_masks=False)
    with pytest.raises(InputError, match=r"1\.jpg must have the size of its annotations, 44 by 7; got 44 by 60"):
        eval_set[0]
    (root / "train2017" / "000000000010.jpg").unlink()
    with pytest.raises(InputError, match=r"image .*000000000010\.jpg must be there and whole; got .*Copy it again"):
        train_set[0]


def test_without_what_makes_masks_the_command_that_installs_it_is_said(monkeypatch, root):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match=r"needs faster-coco-eval. Run: pip install 'anybatch\[studies\]'"):
        load_coco(root, with_masks=True)


def test_without_torchvision_the_command_that_installs_it_is_said(monkeypatch, root):
    monkeypatch.setitem(sys.modules, "torchvision.datasets.folder", None)
    train_set, _ = load_coco(root, with_masks=False)
    with pytest.raises(InputError, match=r"COCO needs torchvision. Run: pip install 'anybatch\[vision\]'"):
        train_set[0]
