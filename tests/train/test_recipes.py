"""Recipes become numbers, and numbers become steps."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from train.small_workloads import CPU, vectors_workload, weights_of

from anybatch import InputError, Milestones
from anybatch.nn import GhostBatchNorm1d
from anybatch.nn.conversion_targets import TARGETS
from anybatch.train.loop import start_training, train, train_step
from anybatch.train.plain import plain
from anybatch.train.plan import AS_IT_IS, NormPlan, Plan
from anybatch.train.recipes import RECIPES, NormRecipe, Recipe, find_recipes, plan_training

CLIPPED = Plan(clip_norm=5.0)


def optimizer_of(kind=torch.optim.SGD, **options):
    return kind([torch.zeros(1, requires_grad=True)], lr=0.1, **options)


def planned(recipe, batch_size, optimizer=None, workload=None, lr_factor=1.0):
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    return plan_training(recipe, workload or vectors_workload(), batch_size, optimizer or optimizer_of(), lr_factor)


# numbers


@pytest.mark.parametrize(
    ("recipe", "plan"),
    [
        ("plain", Plan()),
        ("linear", Plan(lr_scale=4.0, warmup_epochs=2 / 18)),
        ("sqrt", Plan(lr_scale=2.0, clip_norm=5.0)),
        ("ghost", Plan(lr_scale=2.0, clip_norm=5.0, ghost_batch_size=16)),
        ("regime", Plan(lr_scale=2.0, clip_norm=5.0, ghost_batch_size=16, stretch=4.0)),
        ("noise", Plan(noise_variance=3.0, clip_norm=5.0)),
    ],
)
def test_built_in_recipes_at_four_times_the_base_batch(recipe, plan):
    assert planned(recipe, 64) == plan


OF_BATCHES = [name for name, recipe in RECIPES.items() if type(recipe) is Recipe]
OF_NORMS = [name for name, recipe in RECIPES.items() if isinstance(recipe, NormRecipe)]


@pytest.mark.parametrize("recipe", OF_BATCHES)
def test_at_the_base_batch_recipes_change_nothing_but_clipping(recipe):
    assert planned(recipe, 16) == (AS_IT_IS if recipe in ("plain", "linear") else CLIPPED)


def test_below_the_base_batch_rates_shrink_and_ghosts_and_noise_are_off():
    assert planned("regime", 4) == Plan(lr_scale=0.5, clip_norm=5.0, stretch=0.25)
    assert planned("noise", 4) == CLIPPED
    assert planned("linear", 4) == Plan(lr_scale=0.25)


def test_a_further_factor_multiplies_the_rate_alone():
    assert planned("regime", 64, lr_factor=0.5) == replace(planned("regime", 64), lr_scale=1.0)


def test_a_recipe_may_scale_from_a_batch_of_its_own():
    recipe = Recipe("gbn", lr_rule="sqrt", ghost_batch_size="base", adapts_regime=True, reference_batch_size=8)
    assert planned(recipe, 32) == Plan(lr_scale=2.0, ghost_batch_size=8, stretch=4.0)


def test_a_given_ghost_size_is_kept_where_the_batch_is_larger():
    recipe = Recipe("small", ghost_batch_size=24)
    assert planned(recipe, 25).ghost_batch_size == 24
    assert planned(recipe, 24).ghost_batch_size is None


def test_warm_up_of_the_base_batch_grows_with_the_batch_and_its_share_with_the_training():
    assert planned(Recipe("legw", warmup_epochs=0.25), 64).warmup_epochs == 1.0
    assert planned(Recipe("both", warmup_share=0.1, adapts_regime=True), 64).warmup_epochs == pytest.approx(0.8)


def test_adam_moves_its_betas_and_epsilon_with_the_square_root_rule_alone():
    adam = optimizer_of(torch.optim.AdamW, betas=(0.9, 0.99))
    plan = planned("sqrt", 64, adam)
    assert plan.lr_scale == 2.0
    assert plan.betas == pytest.approx((0.6, 0.96))
    assert plan.eps_factor == 0.5
    assert planned("plain", 64, adam) == AS_IT_IS
    assert planned("linear", 64, adam).betas == (0.9, 0.99)
    assert planned("sqrt", 64, optimizer_of(torch.optim.RMSprop, alpha=0.9)).betas == pytest.approx((0.6,))


def test_milestones_beyond_the_training_are_left_out():
    workload = vectors_workload(schedule=Milestones((1, 5)), epochs=2)
    assert planned("regime", 64, workload=workload).stretch == 4.0


def test_a_schedule_that_starts_at_a_rate_of_zero_can_be_planned():
    optimizer = optimizer_of()
    LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 5))
    assert optimizer.param_groups[0]["lr"] == 0
    assert planned("sqrt", 64, optimizer).lr_scale == 2.0


# steps


def rates_of(plan, schedule, count=6, batch_size=48):
    """The rate of every step; two steps are an epoch."""
    workload = vectors_workload(schedule=schedule)
    training = start_training(workload, CPU, seed=0, plan=plan)
    rates = [training.optimizer.param_groups[0]["lr"]]
    for _ in islice(train(workload, CPU, training, batch_size=batch_size, seed=0), count - 1):
        rates.append(training.optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        Milestones((1, 2), 0.5),
        lambda optimizer: StepLR(optimizer, 1, 0.5),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.3, total_steps=6),
    ],
    ids=["none", "milestones", "StepLR", "OneCycleLR"],
)
def test_a_scaled_rate_is_scaled_at_every_step_of_any_schedule(schedule):
    assert rates_of(Plan(lr_scale=0.5), schedule) == pytest.approx([0.5 * lr for lr in rates_of(AS_IT_IS, schedule)])


def test_a_plan_warms_up_on_top_of_the_schedule():
    rates = rates_of(Plan(warmup_epochs=2.0), Milestones((1.5,), 0.1), count=6, batch_size=48)
    factors = [1 / 192, 49 / 192, 97 / 192, 0.1 * 145 / 192, 0.1, 0.1]
    assert rates == pytest.approx([0.1 * factor for factor in factors])


def test_a_plan_sets_adams_hyperparameters_in_every_group():
    def optimizer(model):
        return torch.optim.Adam([{"params": [model.weight]}, {"params": [model.bias], "eps": 1e-6}], lr=0.01)

    plan = Plan(lr_scale=2.0, betas=(0.5, 0.9), eps_factor=0.5)
    groups = start_training(vectors_workload(optimizer=optimizer), CPU, seed=0, plan=plan).optimizer.param_groups
    assert [(group["lr"], group["betas"], group["eps"]) for group in groups] == [
        (0.02, (0.5, 0.9), 5e-9),
        (0.02, (0.5, 0.9), 5e-7),
    ]


class Total(nn.Module):
    """One weight, whose gradient is the mean of the samples."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, samples):
        return self.weight * samples


@pytest.mark.parametrize("sizes", [[8], [4, 4], [6, 2], [1] * 8])
@pytest.mark.parametrize(("clip_norm", "moved"), [(5.0, 5.0), (20.0, 10.0), (None, 10.0)])
def test_the_whole_gradient_is_clipped_after_averaging(sizes, clip_norm, moved):
    samples = torch.tensor([26.0, 2.0, -8.0, 40.0, 0.0, 10.0, 4.0, 6.0])
    assert samples.mean() == 10
    workload = vectors_workload(
        model=Total,
        loss=lambda model, batch: model(batch).mean(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0),
    )
    training = start_training(workload, CPU, seed=0, plan=Plan(clip_norm=clip_norm))
    train_step(workload, CPU, training, [(part, len(part)) for part in samples.split(sizes)])
    assert training.model.weight.item() == pytest.approx(-moved, rel=1e-5)


@pytest.mark.parametrize(("resets", "num_buffers"), [(True, 0), (False, 2)])
def test_momentum_is_forgotten_at_each_epoch_if_the_plan_says_so(resets, num_buffers):
    """Check 10 of the digest: before the first update of epoch 2 every buffer is gone, and else none is."""
    workload = vectors_workload(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    training = start_training(workload, CPU, seed=0, plan=Plan(resets_momentum=resets))
    steps = train(workload, CPU, training, batch_size=32, seed=0)  # three make an epoch
    found = []
    for _ in islice(steps, 7):
        states = training.optimizer.state.values()
        found.append(sum(bool(state["momentum_buffer"].any()) for state in states if "momentum_buffer" in state))
    assert found == [2, 2, num_buffers, 2, 2, num_buffers, 2]


def test_the_first_step_after_a_reset_has_no_momentum():
    workload = vectors_workload(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    training = start_training(workload, CPU, seed=0, plan=Plan(resets_momentum=True))
    steps = train(workload, CPU, training, batch_size=40, seed=0)  # 96 samples: the third step crosses
    for _ in islice(steps, 3):
        before = weights_of(training.model)
    before = weights_of(training.model)
    next(steps)
    moved = (before - weights_of(training.model)).norm()
    gradient = torch.cat([parameter.grad.flatten() for parameter in training.model.parameters()]).double()
    assert moved.item() == pytest.approx(0.1 * gradient.norm().item(), rel=1e-5)


def normalized():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()


def in_double(samples):
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs).double(), torch.stack(labels)


@pytest.mark.parametrize("plan", [Plan(), Plan(lr_scale=3.0, clip_norm=0.3)])
def test_ghost_layers_train_as_chunks_that_are_accumulated(plan):
    """Section 4.4 of the digest: the published code forwards each ghost batch by itself."""
    workload = vectors_workload(model=normalized, collate=in_double)

    def trained(plan, **options):
        training = start_training(workload, CPU, seed=0, plan=plan)
        losses = [loss.item() for loss in islice(train(workload, CPU, training, batch_size=32, seed=0, **options), 9)]
        return training.model, losses

    layer, layer_losses = trained(replace(plan, ghost_batch_size=8))
    chunks, chunk_losses = trained(plan, micro_batch_size=8)
    assert isinstance(layer[1], GhostBatchNorm1d)
    assert not isinstance(chunks[1], GhostBatchNorm1d)
    assert layer_losses == pytest.approx(chunk_losses, rel=1e-10)
    assert torch.allclose(weights_of(layer), weights_of(chunks), rtol=1e-9, atol=1e-12)
    whole, _ = trained(plan)
    assert not torch.allclose(weights_of(layer), weights_of(whole), rtol=1e-2)


def test_noise_of_a_plan_moves_training_and_not_the_loss_shown_first():
    workload = vectors_workload()

    def trained(plan):
        training = start_training(workload, CPU, seed=0, plan=plan)
        return training, next(train(workload, CPU, training, batch_size=32, seed=0)).item()

    plain, plain_loss = trained(AS_IT_IS)
    noisy, noisy_loss = trained(Plan(noise_variance=3.0))
    assert noisy_loss == plain_loss
    assert not torch.equal(weights_of(noisy.model), weights_of(plain.model))


# norms


@pytest.mark.parametrize("recipe", OF_NORMS)
@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_recipes_of_norms_change_the_norm_alone(recipe, batch_size):
    plan = planned(recipe, batch_size)
    assert isinstance(plan, NormPlan)
    assert plan.norm == RECIPES[recipe].norm
    assert {name: getattr(plan, name) for name in vars(AS_IT_IS)} == vars(AS_IT_IS)


def test_a_recipe_without_a_norm_has_the_fields_that_the_keys_of_finished_runs_were_made_of():
    """What is added here makes every run anew; a subclass does not."""
    assert list(plain(AS_IT_IS)) == [
        "lr_scale",
        "betas",
        "eps_factor",
        "stretch",
        "warmup_epochs",
        "ghost_batch_size",
        "clip_norm",
        "noise_variance",
        "resets_momentum",
    ]
    assert all(type(planned(recipe, 64)) is Plan for recipe in OF_BATCHES)


def test_the_limits_of_batch_renormalization_relax_over_the_first_quarter_of_a_training():
    options = dict(planned("batch-renorm", 1, workload=vectors_workload(epochs=10)).norm_options)  # 960 updates
    assert options == {"relaxation": (30, 150, 240)}
    stretched = NormRecipe("r", norm="batch_renorm", relaxation_shares=(0, 0.5, 1), lr_rule="sqrt", adapts_regime=True)
    assert dict(planned(stretched, 32).norm_options)["relaxation"] == (0, 6, 12)


@pytest.mark.parametrize("recipe", OF_NORMS)
def test_a_recipe_of_a_norm_trains_with_its_layers_and_goes_on_from_its_state(recipe):
    workload = vectors_workload(model=lambda: normalized().float(), collate=None)
    plan = planned(recipe, 16, workload=workload)
    whole = start_training(workload, CPU, seed=0, plan=plan)
    assert isinstance(whole.model[1], TARGETS[plan.norm].types[0])
    losses = [loss.item() for loss in islice(train(workload, CPU, whole, batch_size=16, seed=0), 6)]
    assert losses[-1] < losses[0]
    first = start_training(workload, CPU, seed=0, plan=plan)
    list(islice(train(workload, CPU, first, batch_size=16, seed=0), 3))
    second = start_training(workload, CPU, seed=0, plan=plan)
    second.load_state_dict(first.state_dict())
    list(islice(train(workload, CPU, second, batch_size=16, seed=0), 3))
    assert torch.equal(weights_of(second.model), weights_of(whole.model))


def test_weight_decay_leaves_the_gains_that_a_norm_adds_alone():
    def two_norms():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))

    def decayed(model):
        return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    workload = vectors_workload(model=two_norms, optimizer=decayed)
    training = start_training(workload, CPU, seed=0, plan=planned("kalman", 16, workload=workload))
    decay_of = {id(p): group["weight_decay"] for group in training.optimizer.param_groups for p in group["params"]}
    decays = {name: decay_of.pop(id(parameter)) for name, parameter in training.model.named_parameters()}
    assert decays.pop("4.prior_logit") == 0
    assert set(decays.values()) == {0.1}
    assert not decay_of  # nothing that the model no longer has


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "instance"}, "norm of recipe 'bad' must be one of ghost, batch, .*; got 'instance'"),
        ({"norm": "group", "ghost_batch_size": 8}, "recipe 'bad' must give a norm or ghost batches; it gives both"),
        ({"norm": "group", "lr_rule": "cubic"}, "lr_rule of a Recipe must be none, linear or sqrt; got 'cubic'"),
    ],
)
def test_norms_that_contradict_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        NormRecipe("bad", **fields)


# finding


FILE = """
from anybatch import Recipe
mine = Recipe("mine", lr_rule="sqrt")
both = [mine, Recipe("other")]
pair = (mine, Recipe("other"))
number = 5
none = []
mixed = [mine, 5]
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "my recipes.py"
    path.write_text(FILE)
    return path


def test_recipes_are_found_by_name_by_file_and_as_they_are(recipe_file):
    own = Recipe("own")
    found = find_recipes(["regime", own, f"{recipe_file}:both", "plain"])
    assert [recipe.name for recipe in found] == ["regime", "own", "mine", "other", "plain"]
    assert found[0] is RECIPES["regime"]
    assert found[1] is own
    assert found[2].lr_rule == "sqrt"
    assert [recipe.name for recipe in find_recipes([f"{recipe_file}:mine"])] == ["mine"]
    assert [recipe.name for recipe in find_recipes([f"{recipe_file}:pair"])] == ["mine", "other"]


@pytest.mark.parametrize("name", ["magic", "", "file.txt:mine", "plain x"])
def test_an_unknown_recipe_is_refused(name):
    with pytest.raises(InputError, match=rf"recipe must be one of {', '.join(RECIPES)}, or path/to"):
        find_recipes([name])


@pytest.mark.parametrize(
    ("variable", "kind"), [("number", "int"), ("none", "list"), ("mixed", "list"), ("missing", "NoneType")]
)
def test_a_variable_that_is_no_recipe_is_refused(variable, kind, recipe_file):
    with pytest.raises(InputError, match=rf":{variable} must be an anybatch\.Recipe or a list of them; got {kind}\."):
        find_recipes([f"{recipe_file}:{variable}"])


def test_a_file_that_is_missing_or_fails_is_told(tmp_path):
    with pytest.raises(InputError, match=r"recipe file must exist; .*none\.py does not\."):
        find_recipes([f"{tmp_path}/none.py:mine"])
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"bad\.py could not be loaded: ZeroDivisionError: division by zero"):
        find_recipes([f"{tmp_path}/bad.py:mine"])
    (tmp_path / "contradicting.py").write_text(FILE + 'bad = Recipe("bad", lr_rule="sqrt", adds_noise=True)')
    with pytest.raises(InputError, match="recipe 'bad' must scale the rate or add noise; it does both"):
        find_recipes([f"{tmp_path}/contradicting.py:bad"])


def test_two_recipes_of_one_name_are_refused(recipe_file):
    with pytest.raises(InputError, match=r"recipes must have names of their own; got mine, other more than once\."):
        find_recipes([f"{recipe_file}:both", f"{recipe_file}:pair", "plain"])


def test_no_recipe_at_all_is_refused():
    with pytest.raises(InputError, match="recipes must"):
        find_recipes([])


# refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_rule": "cubic"}, r"lr_rule of a Recipe must be none, linear or sqrt; got 'cubic'\."),
        ({"lr_rule": "sqrt", "adds_noise": True}, "recipe 'bad' must scale the rate or add noise; it does both"),
        ({"warmup_share": 0.1, "warmup_epochs": 1}, "recipe 'bad' must give warmup_share or warmup_epochs; it gives b"),
        ({"warmup_share": 1.0}, "warm-up of recipe 'bad' must be a share below 1, or epochs that are positive"),
        ({"warmup_share": -0.1}, "warm-up of recipe 'bad' must be a share below 1"),
        ({"warmup_epochs": -1}, "warm-up of recipe 'bad' must be a share below 1"),
    ],
)
def test_methods_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Recipe("bad", **fields)


@pytest.mark.parametrize("changes", [{"base_batch_size": None}, {"epochs": None}])
def test_a_workload_that_recipes_cannot_start_from_is_refused(changes):
    with pytest.raises(InputError, match="workload 'workload' must state base_batch_size and epochs for recipes to st"):
        planned("plain", 64, workload=vectors_workload(**changes))


@pytest.mark.parametrize(
    "fields", [{"ghost_batch_size": 0}, {"ghost_batch_size": "half"}, {"clip_norm": -1.0}, {"reference_batch_size": -8}]
)
def test_a_number_that_is_not_positive_is_refused(fields):
    (name,) = fields
    with pytest.raises(InputError, match=f"{name} of recipe 'bad' must be positive; got"):
        Recipe("bad", **fields)


def test_a_ghost_batch_that_is_not_below_the_batch_is_plain_batch_norm():
    assert planned(Recipe("g", ghost_batch_size=65), 64).ghost_batch_size is None
    assert planned(Recipe("g", ghost_batch_size=64), 64).ghost_batch_size is None


def test_a_warm_up_beyond_the_training_is_refused():
    with pytest.raises(InputError, match="the warm-up must end within the training; got 4 epochs of 2"):
        planned(Recipe("w", warmup_epochs=1), 64)


def test_an_optimizer_that_no_rule_is_known_for_is_refused_unless_the_rate_is_left_alone():
    adagrad = optimizer_of(torch.optim.Adagrad)
    with pytest.raises(InputError, match=r"recipe 'sqrt' must know how the rate of Adagrad scales; it knows SGD, Adam"):
        planned("sqrt", 64, adagrad)
    assert planned("plain", 64, adagrad) == AS_IT_IS
