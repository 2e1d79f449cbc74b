"""The dense-prediction workloads: losses, modules and metrics on scenes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset
from train.small_workloads import CPU
from workloads.test_fashion_mnist import DATA, needs_data

from anybatch.registry import WORKLOADS
from anybatch.stats import find_predictor_modules, group_parameters
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training, train
from anybatch.train.plan import Plan
from anybatch.workloads import load_workload
from anybatch.workloads.pyramid_models import BACKGROUND_SHARE, BOX_BACKGROUND_SHARE, build_faster_rcnn
from anybatch.workloads.scenes import collate_scenes

NAMES = [name for name in WORKLOADS if name.startswith("scenes-")]
FIGURES = {
    "scenes-faster-rcnn": ["box_ap", "box_ap50"],
    "scenes-mask-rcnn": ["mask_ap", "mask_ap50", "box_ap", "box_ap50"],
    "scenes-retinanet": ["box_ap", "box_ap50"],
    "scenes-semantic-fpn": ["miou", "pixel_accuracy"],
    "scenes-panoptic-fpn": ["pq"],
}


@pytest.fixture(params=NAMES)
def workload(request):
    return load_workload(request.param, data_root=DATA)


@needs_data
def test_a_step_trains_every_parameter_and_the_metric_counts(workload):
    training = start_training(workload, CPU, seed=0)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    loss = next(train(workload, CPU, training, batch_size=4, seed=0))
    assert loss.isfinite()
    unmoved = [
        name
        for (name, parameter), old in zip(training.model.named_parameters(), before, strict=True)
        if torch.equal(parameter, old)
    ]
    assert unmoved == []
    few = replace(workload, eval_set=Subset(workload.eval_set, range(4)))
    figures = evaluate(few, CPU, training.model, batch_size=2, max_samples=4, with_loss=True)
    assert list(figures) == ["loss", *FIGURES[workload.name]]
    assert figures["loss"] > 0
    assert training.model.training


@needs_data
def test_each_parameter_is_in_one_named_module(workload):
    model = workload.model()
    groups = group_parameters(model, workload.module_prefixes)
    assert list(groups) == list(workload.module_prefixes)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert {name: as_tuple(prefixes) for name, prefixes in workload.module_prefixes.items()} == (
        find_predictor_modules(model).prefixes
    )


def as_tuple(prefixes):
    return (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)


@needs_data
def test_the_loss_in_eval_mode_is_that_of_train_mode_up_to_batch_norm():
    workload = load_workload("scenes-retinanet", data_root=DATA)  # it draws no proposals
    torch.manual_seed(0)
    model = workload.model()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = collate_scenes([workload.train_set[index] for index in range(2)])
    trained = workload.loss(model, batch)
    assert torch.equal(workload.loss(model.eval(), batch), trained)
    assert not model.training


@needs_data
def test_training_and_evaluation_scenes_are_of_other_items_and_places():
    workload = load_workload("scenes-semantic-fpn", data_root=DATA)
    assert (len(workload.train_set), len(workload.eval_set)) == (4096, 512)
    assert not torch.equal(workload.train_set[0][0], workload.eval_set[0][0])


@needs_data
def test_the_docs_tell_how_many_parameters_there_are(workload):
    count = sum(parameter.numel() for parameter in workload.model().parameters())
    table = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{workload.name}`")]
    assert f"| {count:,} |" in row


@needs_data
def test_a_fresh_segmenter_predicts_the_shares_of_the_classes():
    workload = load_workload("scenes-semantic-fpn", data_root=DATA)
    images, targets = collate_scenes([workload.train_set[index] for index in range(64)])
    labels = torch.stack([target["semantic"] for target in targets])
    assert (labels == 0).double().mean().item() == pytest.approx(BACKGROUND_SHARE, abs=0.03)
    torch.manual_seed(0)
    model = workload.model()
    with torch.no_grad():
        shares = model(images).softmax(1).mean((0, 2, 3))
    assert shares[0].item() == pytest.approx(BACKGROUND_SHARE, abs=0.03)
    assert shares[1:].tolist() == pytest.approx([(1 - BACKGROUND_SHARE) / 10] * 10, rel=0.3)


def test_a_fresh_box_head_predicts_the_share_of_the_background():
    torch.manual_seed(0)
    model = build_faster_rcnn(11, size=96).eval()
    boxes = [torch.tensor([[10.0, 10.0, 40.0, 40.0], [30.0, 5.0, 90.0, 60.0]])] * 2
    with torch.no_grad():
        levels = model.backbone(torch.rand(2, 3, 96, 96))
        pooled = model.roi_heads.box_roi_pool(levels, boxes, [(96, 96)] * 2)
        logits, moves = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    shares = logits.softmax(1).mean(0)
    assert shares[0].item() == pytest.approx(BOX_BACKGROUND_SHARE, abs=0.03)
    assert shares[1:].tolist() == pytest.approx([(1 - BOX_BACKGROUND_SHARE) / 10] * 10, rel=0.3)
    assert moves.abs().max() < 0.05


@needs_data
def test_faster_rcnn_stays_finite_at_twice_its_rate():
    workload = load_workload("scenes-faster-rcnn", data_root=DATA)
    training = start_training(workload, CPU, seed=0, plan=Plan(lr_scale=2.0))
    steps = train(workload, CPU, training, batch_size=8, seed=0)
    losses = [next(steps).item() for _ in range(15)]
    assert max(losses) < 3.0
