"""Recipes of detectors: the numbers of the published configurations, and a rule for the batches beside them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from train.small_workloads import CPU, Indices, Stream, labelled_vectors, vectors_workload
from train.test_layerwise import workload_of

from anybatch import DetectorRecipe, InputError, ModuleRates, compare
from anybatch.train.loop import start_training
from anybatch.train.plan import LayerwisePlan
from anybatch.train.recipes import RECIPES, plan_training

COCO = 117_266  # images with an object
# configurations of the official code, by (recipe, batch): rate, warm-up, start of AGVM, first and last clipped update
PUBLISHED = {
    ("agvm-faster-rcnn", 256): (0.226274, 920, 1020, (820, 1020)),
    ("agvm-faster-rcnn", 512): (0.38, 460, 560, (360, 560)),
    ("agvm-mask-rcnn", 256): (0.226274, 920, 1020, (820, 1020)),
    ("agvm-mask-rcnn", 512): (0.32, 460, 560, (360, 560)),
}


def sgd(model, lr=0.02):
    return torch.optim.SGD(model.parameters(), lr=lr)


def coco_sized(**changes):
    fields = {"train_set": Indices(COCO), "base_batch_size": 16, "epochs": 16, "optimizer": sgd}
    return vectors_workload(**{**fields, **changes})


def planned(recipe, batch_size, workload=None, lr_factor=1.0):
    workload = workload or coco_sized()
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    return plan_training(recipe, workload, batch_size, workload.optimizer(nn.Linear(1, 1)), lr_factor)


def clipped_between(plan, batch_size):
    """The first and the last update that is clipped, by asking at each as the loop does."""
    clipped = [update for update in range(8000) if plan.clip_norm_at(update * batch_size / COCO) == 1.0]
    assert clipped == list(range(clipped[0], clipped[-1] + 1))
    return clipped[0], clipped[-1]


@pytest.mark.parametrize(("recipe", "batch_size"), PUBLISHED)
def test_published_configurations_are_met_to_the_update(recipe, batch_size):
    lr, warmup, start, clipping = PUBLISHED[recipe, batch_size]
    plan = planned(recipe, batch_size)
    assert 0.02 * plan.lr_scale == pytest.approx(lr, rel=1e-5)
    assert plan.warmup_epochs * COCO == pytest.approx(warmup * batch_size)
    assert plan.agvm == ModuleRates(interval=10, momentum=0.97, clamp=(0.5, 10.0), start_step=start)
    assert clipped_between(plan, batch_size) == clipping
    assert (plan.clip_norm, plan.warmup_start, plan.stretch) == (1.0, 0.001, 1.0)


def test_the_rate_warms_up_as_in_the_published_code():
    workload = coco_sized()
    training = start_training(workload, CPU, seed=0, plan=replace(planned("agvm-faster-rcnn", 256), agvm=None))
    rates = {0: 0.000226, 230: 0.001272, 460: 0.007155, 690: 0.040238, 919: 0.224582, 920: 0.226274, 2000: 0.226274}
    for update, rate in rates.items():
        training.scheduler.advance(update * 256)
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=6e-7)


@pytest.mark.parametrize(
    ("batch_size", "lr", "warmup", "interval"),
    [(16, 0.02, 14660, 10), (32, 0.04, 7330, 10), (128, 0.16, 1840, 10), (1000, 0.16 * 7.8125**0.5, 240, 10),
     (1024, 0.16 * 8**0.5, 230, 5), (4096, 0.16 * 32**0.5, 60, 5)],
)  # fmt: skip
def test_other_batches_follow_the_rule(batch_size, lr, warmup, interval):
    for recipe in ("agvm-faster-rcnn", "agvm-mask-rcnn"):
        plan = planned(recipe, batch_size)
        assert 0.02 * plan.lr_scale == pytest.approx(lr)
        assert plan.warmup_epochs * COCO == pytest.approx(warmup * batch_size)
        assert (plan.agvm.interval, plan.agvm.start_step) == (interval, warmup + 100)
        assert plan.clip_epochs[0] * COCO == pytest.approx(max(warmup - 100, 0) * batch_size)


def test_the_rate_is_relative_to_the_workload_s_own():
    halved = coco_sized(optimizer=lambda model: sgd(model, lr=0.01))
    assert planned("agvm-mask-rcnn", 512, halved) == planned("agvm-mask-rcnn", 512)
    at_32 = coco_sized(base_batch_size=32)
    assert planned("agvm-mask-rcnn", 512, at_32).lr_scale == pytest.approx(0.32 / 0.04)
    assert planned("agvm-mask-rcnn", 512, lr_factor=0.5).lr_scale == planned("agvm-mask-rcnn", 512).lr_scale / 2


def test_without_agvm_all_else_is_the_same():
    plan = planned(DetectorRecipe("without AGVM", agvm=None), 512)
    assert plan == replace(planned("agvm-mask-rcnn", 512), agvm=None)
    assert type(plan) is LayerwisePlan


def test_options_of_agvm_that_do_not_follow_are_kept():
    plan = planned(DetectorRecipe("moments", agvm=ModuleRates(estimator="moments", num_parts=4, momentum=0.95)), 2048)
    assert plan.agvm == ModuleRates(estimator="moments", num_parts=4, momentum=0.95, interval=5, start_step=220)


def test_a_comparison_trains_with_it(tmp_path):
    workload = workload_of(epochs=25)  # 150 updates of 16: 20 of warm-up, AGVM from 120
    found = compare(workload, [16], ["agvm-mask-rcnn"], seeds=1, runs=tmp_path, num_evaluations=2)
    (run,) = found.runs
    assert run.status == "done"
    assert run.settings["lr"] == pytest.approx(0.1)
    assert run.settings["agvm"]["start_step"] == 120
    assert run.curve[-1]["scale/2"] != 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02)},
            r"recipe 'agvm-mask-rcnn' must have SGD, for which it was published, .* got AdamW and 117266 samples\. Use",
        ),
        ({"train_set": Stream(labelled_vectors())}, "a train_set with a length; got SGD and None samples"),
        ({"epochs": 2}, "must have more updates than the 560 before AGVM starts; got 458. Use recipe 'agvm', or a"),
        ({"base_batch_size": None}, "must state base_batch_size and epochs"),
    ],
)
def test_a_training_it_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        planned("agvm-mask-rcnn", 512, coco_sized(**changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_rule": "sqrt"}, "lr_rule of recipe 'bad' must be 'none', since it has a rule of its own; got 'sqrt'"),
        ({"warmup_share": 0.1}, "warmup_share of recipe 'bad' must be left out, since the batch size decides it; got"),
        ({"warmup_epochs": 2.0}, "warmup_epochs of recipe 'bad' must be left out"),
        ({"clip_share": (0.1, 0.2)}, r"clip_share of recipe 'bad' must be left out, .*; got \(0.1, 0.2\)"),
        ({"agvm_share": 0.1}, "agvm_share of recipe 'bad' must be left out"),
        ({"adapts_regime": True}, "adapts_regime of recipe 'bad' must be left out"),
        ({"optimizer": "lars"}, "optimizer of recipe 'bad' must be left out, .* Give a LayerwiseRecipe to choose it"),
    ],
)
def test_what_the_batch_size_decides_cannot_be_given(options, message):
    with pytest.raises(InputError, match=message):
        DetectorRecipe("bad", **options)
