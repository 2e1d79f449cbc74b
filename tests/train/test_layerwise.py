"""Recipes that give parts of a model rates of their own: AGVM in the loop, LARS, LAMB, and their warm-up."""

import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from train.resumable_runs import jittered_workload, settings_of
from train.small_workloads import CPU, Stream, labelled_vectors, simulated_ranks, vectors_workload, weights_of
from train.test_compare import Accuracy
from train.test_run import assert_same_run

from anybatch import AGVM, InputError, LayerwiseRecipe, ModuleRates, Recipe, compare
from anybatch.errors import StoppedError
from anybatch.stats import HalfBatches, MicroBatches, MicroBatchHalves
from anybatch.train.data import step_batches
from anybatch.train.loop import start_training, train
from anybatch.train.plan import LayerwisePlan, Plan
from anybatch.train.recipes import RECIPES, base_rate, plan_training
from anybatch.train.run import run_training
from anybatch.train.run_folder import RunFolder
from anybatch.train.stop import StopRequest

MODULES = ("0", "2")
OFTEN = LayerwisePlan(agvm=ModuleRates(interval=3, momentum=0.5))


def two_modules():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def workload_of(**changes):
    optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    fields = {"model": two_modules, "module_prefixes": MODULES, "optimizer": optimizer}
    held_out = TensorDataset(*labelled_vectors()[:30])
    return vectors_workload(**{**fields, "eval_set": held_out, "metric": Accuracy, **changes})


def planned(recipe, batch_size, workload=None, optimizer=None):
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    optimizer = optimizer or torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    return plan_training(recipe, workload or workload_of(), batch_size, optimizer)


def trained(plan, count=7, batch_size=16, workload=None, **options):
    workload = workload or workload_of()
    training = start_training(workload, CPU, seed=0, plan=plan)
    losses = [
        loss.item() for loss in islice(train(workload, CPU, training, batch_size=batch_size, seed=0, **options), count)
    ]
    return training, losses


# numbers


def test_agvm_is_sqrt_with_rates_of_modules():
    plan = planned("agvm", 64)
    assert plan == LayerwisePlan(**vars(planned("sqrt", 64)), agvm=ModuleRates(interval=10, momentum=0.97))


@pytest.mark.parametrize(("recipe", "lr"), [("lars", 2.0), ("lamb", 0.005)])
def test_lars_and_lamb_have_their_published_rate_at_512_and_the_square_root_elsewhere(recipe, lr):
    for batch_size in (16, 512, 2048):
        plan = planned(recipe, batch_size)
        assert plan.lr_scale * plan.optimizer_lr == pytest.approx(lr * (batch_size / 512) ** 0.5)
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    assert base_rate(sgd, plan) == plan.optimizer_lr
    assert base_rate(sgd, OFTEN) == base_rate(sgd) == 0.1


def test_betas_of_the_workload_s_adam_do_not_reach_another_optimizer():
    adam = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert planned("lamb", 64, optimizer=adam) == planned("lamb", 64)
    assert planned("agvm", 64, optimizer=adam).betas == planned("sqrt", 64, optimizer=adam).betas != None  # noqa: E711


PUBLISHED = LayerwiseRecipe(
    "published",
    lr_rule="sqrt",
    warmup_share=0.125,
    warmup_start=0.001,
    clip_norm=1.0,
    clip_share=(0.1, 0.15),
    agvm=ModuleRates(),
    agvm_share=0.14,
)


def test_shares_of_a_training_become_epochs_and_updates():
    workload = workload_of(epochs=16)  # of 96 samples
    plan = planned(PUBLISHED, 32, workload)
    assert (plan.warmup_epochs, plan.clip_epochs, plan.warmup_start) == (2.0, pytest.approx((1.6, 2.4)), 0.001)
    assert plan.agvm.start_step == round(0.14 * 48)
    longer = plan.stretched(2.0)
    assert (longer.stretch, longer.warmup_epochs, longer.clip_epochs) == (2.0, 4.0, pytest.approx((3.2, 4.8)))
    assert longer.agvm.start_step == 2 * plan.agvm.start_step
    assert replace(plan, agvm=None, clip_epochs=None).stretched(2.0).clip_norm == 1.0
    assert Plan(stretch=2.0, warmup_epochs=1.0).stretched(0.5) == Plan(warmup_epochs=0.5)


def test_the_rate_warms_up_exponentially_and_then_follows_the_schedule():
    plan = LayerwisePlan(warmup_epochs=1.0, warmup_start=0.001)
    workload = workload_of()
    training = start_training(workload, CPU, seed=0, plan=plan)
    rates = [training.optimizer.param_groups[0]["lr"]]
    for _ in islice(train(workload, CPU, training, batch_size=24, seed=0), 5):
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1 * 0.001 ** (1 - step / 4) for step in range(4)] + [0.1, 0.1])


def test_gradients_are_clipped_within_the_window_alone(monkeypatch):
    clipped = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, norm: clipped.append(training.num_steps))
    workload = workload_of()
    training = start_training(workload, CPU, seed=0, plan=LayerwisePlan(clip_norm=1.0, clip_epochs=(0.5, 1.0)))
    list(islice(train(workload, CPU, training, batch_size=24, seed=0), 8))  # 4 updates per epoch
    assert clipped == [2, 3, 4]
    assert [LayerwisePlan(clip_norm=1.0).clip_norm_at(epoch) for epoch in (0, 0.5, 9)] == [1.0] * 3


# AGVM in the loop


@pytest.mark.parametrize("as_published", [False, True])
def test_the_loop_treats_an_empty_half_as_published_where_it_is_asked_to(as_published):
    plan = LayerwisePlan(agvm=ModuleRates(momentum=0.0, as_published=as_published))
    agvm = start_training(workload_of(), CPU, seed=0, plan=plan).module_rates.agvm
    halves = HalfBatches.from_gradients(
        {"0": torch.tensor([1.0, 0.0]), "2": torch.tensor([0.0])}, {"0": torch.tensor([0.0, 1.0]), "2": torch.ones(1)}
    )
    agvm.scales["2"] = 2.0
    agvm.observe(halves)
    assert agvm.scales["2"] == (1.0 if as_published else 2.0)


@pytest.mark.parametrize("estimator", ["cosine", "moments"])
def test_the_loop_steps_as_agvm_by_hand_does(estimator):
    workload = workload_of()
    plan = LayerwisePlan(agvm=ModuleRates(interval=3, momentum=0.5, start_step=1, estimator=estimator, num_parts=4))
    found, _ = trained(plan, count=8, workload=workload)

    by_hand = start_training(workload, CPU, seed=0)
    agvm = AGVM(by_hand.optimizer, by_hand.model, MODULES, anchor="0", interval=3, momentum=0.5, start_step=1)
    source = {"cosine": MicroBatchHalves, "moments": MicroBatches}[estimator](by_hand.model, MODULES)
    batches = step_batches(workload, CPU, batch_size=16, micro_batch_size=16, seed=0)
    for step, [(batch, _)] in enumerate(islice(batches, 8)):
        by_hand.optimizer.zero_grad()
        if step in (3, 6):
            for part in zip(*(tensor.split(4) for tensor in batch), strict=True):
                with source.sub_batch(4, 0.25):
                    (workload.loss(by_hand.model, part) / 4).backward()
            agvm.observe(source.finish())
        else:
            workload.loss(by_hand.model, batch).backward()
        by_hand.optimizer.step()
    assert found.module_rates.agvm.scales == pytest.approx(agvm.scales)
    assert agvm.scales["2"] != 1
    assert torch.allclose(weights_of(found.model), weights_of(by_hand.model), rtol=1e-5)


def test_only_measured_steps_of_one_process_are_cut():
    def sizes(plan, **options):
        seen = []
        workload = workload_of()

        def loss(model, batch):
            seen.append(len(batch[0]))
            return workload.loss(model, batch)

        trained(plan, count=4, workload=replace(workload, loss=loss), **options)
        return seen

    assert sizes(OFTEN) == [8, 8, 16, 16, 8, 8]
    assert sizes(replace(OFTEN, agvm=replace(OFTEN.agvm, start_step=3))) == [16, 16, 16, 8, 8]
    assert sizes(OFTEN, micro_batch_size=4) == [4] * 16
    assert sizes(LayerwisePlan()) == [16] * 4


def test_a_cut_step_has_the_samples_of_a_whole_one():
    options = {"batch_size": 10, "micro_batch_size": 10, "seed": 3}
    for rank in [CPU, *simulated_ranks(2)]:
        for workload in (workload_of(), workload_of(train_set=Stream(labelled_vectors()))):
            whole = islice(step_batches(workload, rank, **options), 5)
            cut = islice(step_batches(workload, rank, **options, least_parts=lambda step: 1 + step % 3), 5)
            for step, (wanted, found) in enumerate(zip(whole, cut, strict=True)):
                assert len(found) == 1 + step % 3
                assert torch.equal(torch.cat([batch[0] for batch, _ in found]), wanted[0][0][0])


def test_cutting_counts_steps_from_the_start_of_the_training():
    steps = step_batches(
        workload_of(), CPU, batch_size=8, micro_batch_size=8, seed=0, start=24, least_parts=lambda s: 1 + (s == 4)
    )
    assert [len(step) for step in islice(steps, 3)] == [1, 2, 1]


def test_without_agvm_the_loop_measures_nothing():
    with_class, losses = trained(LayerwisePlan())
    without, plain_losses = trained(Plan())
    assert losses == plain_losses
    assert torch.equal(weights_of(with_class.model), weights_of(without.model))
    assert with_class.module_rates is None


@pytest.mark.parametrize(
    "plan",
    [OFTEN, LayerwisePlan(optimizer="lars", optimizer_lr=0.5), LayerwisePlan(optimizer="lamb", optimizer_lr=0.01)],
    ids=["agvm", "lars", "lamb"],
)
def test_a_training_goes_on_from_its_state_as_if_nothing_had_happened(plan):
    workload = workload_of()
    whole, losses = trained(plan, count=9, workload=workload)
    assert losses[-1] < losses[0]
    first, _ = trained(plan, count=4, workload=workload)
    second = start_training(workload, CPU, seed=0, plan=plan)
    second.load_state_dict(first.state_dict())
    list(islice(train(workload, CPU, second, batch_size=16, seed=0), 5))
    assert torch.equal(weights_of(second.model), weights_of(whole.model))
    if plan.agvm is not None:
        assert second.module_rates.agvm.state_dict() == whole.module_rates.agvm.state_dict()
        assert whole.module_rates.agvm.scales["2"] != 1


@pytest.mark.parametrize("plan", [OFTEN, LayerwisePlan(optimizer="lamb", optimizer_lr=0.01)], ids=["agvm", "lamb"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(plan, tmp_path):
    workload = jittered_workload(module_prefixes=("body", "head"), epochs=4)
    settings = settings_of(plan=plan)
    run_training(workload, CPU, settings, RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "stopped")
    for _ in range(3):  # one step each
        stop = StopRequest()
        stop.signal = 15
        with pytest.raises(StoppedError):
            run_training(workload, CPU, settings, folder, stop=stop)
    run_training(workload, CPU, settings, folder)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    last = folder.result()["curve"][-1]
    assert ("scale/head" in last) == ("noise_fraction/body" in last) == (plan.agvm is not None)


def test_a_checkpoint_of_before_agvm_is_still_one():
    workload = workload_of()
    training, _ = trained(Plan(), workload=workload)
    state = training.state_dict()
    del state["agvm"]
    start_training(workload, CPU, seed=0).load_state_dict(state)


# LARS and LAMB


def test_lars_and_lamb_take_over_the_parameter_groups_of_the_workload():
    def optimizer(model):
        groups = [{"params": [model[0].weight, model[2].weight], "weight_decay": 0.1}, {"params": [model[0].bias]}]
        return torch.optim.SGD(groups, lr=0.3)

    for name, decay in (("lars", 0.1), ("lamb", 0.01)):
        plan = LayerwisePlan(optimizer=name, optimizer_lr=0.5, lr_scale=2.0)
        found = start_training(workload_of(optimizer=optimizer), CPU, seed=0, plan=plan).optimizer
        assert type(found).__name__.lower() == name
        assert [(len(g["params"]), g["weight_decay"], g["lr"]) for g in found.param_groups] == [
            (2, decay, 1.0),
            (1, 0.0, 1.0),
        ]


def test_without_timm_the_command_that_installs_it_is_said_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(InputError, match=r"recipe 'lars' needs timm\. Run: pip install 'anybatch\[studies\]'"):
        compare(workload_of(), [16], ["plain", "lars"], runs=tmp_path)
    assert not list(tmp_path.iterdir())


# the comparison


def test_all_are_compared_at_their_rates_and_shown(tmp_path):
    recipes = ["plain", "sqrt", "agvm", "lars", "lamb"]
    found = compare(workload_of(), [16, 64], recipes, seeds=1, lr_factors=[0.5, 1], runs=tmp_path, num_evaluations=2)
    rates = {(row.recipe, row.batch_size, row.lr_factor): row.lr for row in found.table}
    assert rates["agvm", 64, 1] == rates["sqrt", 64, 1] == pytest.approx(0.2)
    assert rates["lars", 16, 0.5] == pytest.approx((16 / 512) ** 0.5)
    assert rates["lamb", 64, 1] == pytest.approx(0.005 * (64 / 512) ** 0.5)
    shown = next(run for run in found.runs if run.recipe == "agvm")
    assert {"scale/2", "noise_fraction/0"} <= shown.curve[-1].keys()
    assert shown.settings["agvm"]["interval"] == 10
    assert "agvm" in found.to_page()
    assert found.to_json()


def test_nothing_is_said_of_the_workload_s_adam_where_another_optimizer_takes_its_place(tmp_path):
    def adam(model):
        return torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.5, 0.99))

    warnings = compare(workload_of(optimizer=adam), [16, 64], ["sqrt", "lamb"], seeds=1, runs=tmp_path).warnings
    assert [warning.partition(":")[0] for warning in warnings if " at 64: " in warning] == ["sqrt at 64"]


@pytest.mark.parametrize(
    ("recipe", "changes", "batch_size", "message"),
    [
        ("agvm", {"module_prefixes": None}, 16, "the model must have a backbone and other children beside it"),
        ("agvm", {}, 1, "batch_sizes must be at least 2 for recipe 'agvm', which compares the halves of a batch; got"),
        (
            LayerwiseRecipe("r", agvm=ModuleRates(anchor="neck")),
            {},
            16,
            "anchor of AGVM must be a module, 0, 2; got 'neck'",
        ),
    ],
)
def test_what_agvm_cannot_train_is_refused_before_anything_is_trained(recipe, changes, batch_size, message, tmp_path):
    with pytest.raises(InputError, match=message):
        compare(workload_of(**changes), [batch_size], [recipe], runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_anchor_is_the_backbone_or_what_is_asked_for():
    def model():
        return nn.ModuleDict({"neck": nn.Linear(6, 6), "backbone": nn.Linear(6, 3)})

    workload = workload_of(model=model, module_prefixes=None)
    for anchor, wanted in ((None, "backbone"), ("fpn", "fpn")):
        plan = LayerwisePlan(agvm=ModuleRates(anchor=anchor))
        assert start_training(workload, CPU, seed=0, plan=plan).module_rates.agvm.state_dict()["anchor"] == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerwiseRecipe("bad", optimizer="sam"), "optimizer of recipe 'bad' must be lars or lamb; got 'sam'"),
        (lambda: LayerwiseRecipe("bad", agvm_share=1.0), "agvm_share of recipe 'bad' must be at least 0 and below 1"),
        (
            lambda: LayerwiseRecipe("bad", warmup_start=-1),
            "warmup_start of recipe 'bad' must be at least 0 and below 1",
        ),
        (lambda: LayerwiseRecipe("bad", clip_share=(0, 1)), r"clip_share of recipe 'bad' must be two shares that asce"),
        (lambda: LayerwiseRecipe("bad", clip_norm=1, clip_share=(1, 0)), r"clip_share of recipe 'bad' must be two sh"),
        (lambda: ModuleRates(estimator="norms"), "estimator of AGVM must be cosine or moments; got 'norms'"),
        (lambda: ModuleRates(num_parts=1), "num_parts of AGVM must be at least 2; got 1"),
        (lambda: ModuleRates(estimator="moments", as_published=True), "as_published must be cosine; got 'moments'"),
    ],
)
def test_what_contradicts_itself_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_recipes_without_parts_of_their_own_are_what_they_were():
    assert all(type(planned(name, 64)) is Plan for name, recipe in RECIPES.items() if type(recipe) is Recipe)
