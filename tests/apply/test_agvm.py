"""Steps of an optimizer at the rates of AGVM: what they do, what nobody else sees, and what is refused."""

import copy
import io
import warnings

import pytest
import torch
from stats.nets import BodyAndHead, make_samples, mean_loss, split, stack
from timm.optim.lamb import Lamb
from torch import nn
from torch.optim import lr_scheduler

from anybatch import AGVM
from anybatch.decide import agvm_scales, measure_noise_fractions
from anybatch.stats import GradientMoments, HalfBatches, MicroBatches, MicroBatchHalves

OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "SGD foreach": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "AdamW tensor rate": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.01), foreach=False),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=0.01),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=0.5),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=0.01),
    "ASGD": lambda params: torch.optim.ASGD(params, lr=0.01),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "LAMB of timm": lambda params: Lamb(params, lr=0.01),
}
PARTS = split(make_samples(12), [3, 3, 3, 3])
SCALED = {"body": 1.0, "head": 2.0}


def backward(model, parts=PARTS):
    for part in parts:
        (mean_loss(model, *stack(part)) / len(parts)).backward()


def start(make=OPTIMIZERS["SGD"], **options):
    model = BodyAndHead()
    optimizer = make(model.parameters())
    return model, optimizer, AGVM(optimizer, model, ["body", "head"], **({"anchor": "body"} | options))


def set_scales(agvm, **scales):
    agvm.load_state_dict(agvm.state_dict() | {"scales": agvm.scales | scales})


def train(model, optimizer, agvm=None, steps=4, between=lambda: None):
    source = None if agvm is None else MicroBatchHalves(model, agvm.module_prefixes, agvm.preconditioner)
    for index in range(steps):
        optimizer.zero_grad()
        is_due = agvm is not None and agvm.is_due
        parts = split(make_samples(12, seed=index), [3, 3, 3, 3])
        for part in parts:
            if is_due:
                with source.sub_batch(3):
                    (mean_loss(model, *stack(part)) / 4).backward()
            else:
                (mean_loss(model, *stack(part)) / 4).backward()
        if is_due:
            agvm.observe(source.finish())
        optimizer.step()
        between()
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------- what a step does


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_check_15_a_scale_is_the_rate_of_its_module_for_any_optimizer(make):
    """As an optimizer that was built with one group per module and their rates; three steps, state included."""
    model, optimizer, agvm = start(make)
    set_scales(agvm, **SCALED)
    by_hand = BodyAndHead()
    rate = optimizer.param_groups[0]["lr"]
    groups = [{"params": list(by_hand.body.parameters())}, {"params": list(by_hand.head.parameters()), "lr": rate * 2}]
    other = make(groups)
    for _ in range(3):
        for net, stepped in ((model, optimizer), (by_hand, other)):
            stepped.zero_grad()
            backward(net)
            stepped.step()
    assert same(model.state_dict(), by_hand.state_dict())
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        for key, value in optimizer.state[mine].items():
            torch.testing.assert_close(value, other.state[theirs][key], rtol=0, atol=0)


def test_check_15_sgd_leaves_its_momentum_buffer_as_it_is():
    model, optimizer, agvm = start()
    bare = BodyAndHead()
    other = OPTIMIZERS["SGD"](bare.parameters())
    set_scales(agvm, **SCALED)
    before = model.head.weight.detach().clone()
    for net, stepped in ((model, optimizer), (bare, other)):
        backward(net)
        stepped.step()
    buffers = (optimizer.state[model.head.weight], other.state[bare.head.weight])
    assert torch.equal(buffers[0]["momentum_buffer"], buffers[1]["momentum_buffer"])
    torch.testing.assert_close(model.head.weight - before, 2 * (bare.head.weight - before))
    assert torch.equal(model.body.weight, bare.body.weight)


def test_check_15_adamw_scales_its_decay_as_well():
    model, optimizer, agvm = start(lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.5))
    set_scales(agvm, **SCALED)
    before = model.head.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.head.weight, before * (1 - 2 * 0.01 * 0.5))


def test_param_groups_keep_their_own_rates_and_settings():
    model, by_hand = BodyAndHead(), BodyAndHead()
    optimizer = torch.optim.SGD(
        [
            {"params": [model.body.weight, model.head.weight], "lr": 0.1, "weight_decay": 0.01},
            {"params": [model.head.bias, model.body.bias], "lr": 0.02, "momentum": 0.5},
        ]
    )
    other = torch.optim.SGD(
        [
            {"params": [by_hand.body.weight], "lr": 0.1, "weight_decay": 0.01},
            {"params": [by_hand.head.weight], "lr": 0.2, "weight_decay": 0.01},
            {"params": [by_hand.head.bias], "lr": 0.04, "momentum": 0.5},
            {"params": [by_hand.body.bias], "lr": 0.02, "momentum": 0.5},
        ]
    )
    set_scales(AGVM(optimizer, model, ["body", "head"], anchor="body"), **SCALED)
    for _ in range(2):
        for net, stepped in ((model, optimizer), (by_hand, other)):
            stepped.zero_grad()
            backward(net)
            stepped.step()
    assert same(model.state_dict(), by_hand.state_dict())


def test_a_closure_is_called_once_and_sees_the_groups_it_knows():
    model, optimizer, agvm = start()
    set_scales(agvm, **SCALED)
    seen = []

    def closure():
        optimizer.zero_grad()
        backward(model)
        seen.append([(group["lr"], len(group["params"])) for group in optimizer.param_groups])
        return torch.tensor(3.0)

    assert optimizer.step(closure).item() == 3
    assert seen == [[(0.05, 4)]]


class Counting(torch.optim.SGD):
    """Writes into its groups and on itself, as schedule-free optimizers do, and steps by its parent's step."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


def test_what_a_step_writes_on_the_optimizer_and_its_groups_stays():
    model, optimizer, agvm = start(lambda params: Counting(params, lr=0.1))
    set_scales(agvm, **SCALED)
    before = copy.deepcopy(model)
    for _ in range(2):
        optimizer.zero_grad()
        model.head.bias.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.num_steps == 2
    assert optimizer.param_groups[0]["k"] == 2
    torch.testing.assert_close(model.head.bias, before.head.bias - 2 * 0.2)  # scaled once, not once per step()


# ------------------------------------------------------------------------------------------- what nobody else sees


def test_what_a_step_counts_in_a_tensor_of_its_group_counts_once_and_in_place():
    _, optimizer, agvm = start(OPTIMIZERS["LAMB of timm"])
    set_scales(agvm, **SCALED)
    optimizer.step()
    (group,) = optimizer.param_groups
    counter = group["step"]
    for count in (2, 3):
        optimizer.step()
        assert group["step"] is counter
        assert counter == count


def snapshot(optimizer):
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def test_check_7_groups_and_rates_are_the_same_objects_after_every_step():
    model, optimizer, agvm = start(lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.1), foreach=False))
    set_scales(agvm, body=1.0, head=1.1)
    groups, rate = optimizer.param_groups, optimizer.param_groups[0]["lr"]
    members = list(groups[0]["params"])
    for _ in range(5):
        backward(model)
        optimizer.step()
    assert optimizer.param_groups is groups
    assert len(groups) == 1
    assert groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.1).item()
    assert all(a is b for a, b in zip(groups[0]["params"], members, strict=True))


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=3)]
    )


@pytest.mark.parametrize(
    "make",
    [chained, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 8), lambda o: lr_scheduler.StepLR(o, 2)],
    ids=["chained", "cosine", "step"],
)
def test_check_7_a_scheduler_gives_the_same_rates_with_and_without(make):
    rates = []
    for with_agvm in (True, False):
        model, optimizer = BodyAndHead(), None
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        agvm = AGVM(optimizer, model, ["body", "head"], anchor="body", interval=1) if with_agvm else None
        scheduler, found = make(optimizer), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # ConstantLR's rate rises, which is another test
            train(model, optimizer, agvm, 8, lambda: (scheduler.step(), found.append(optimizer.param_groups[0]["lr"])))  # noqa: B023
        rates.append(found)
    assert rates[0] == rates[1]


def test_nothing_is_left_behind_by_a_step_that_raises():
    model, optimizer, agvm = start()
    set_scales(agvm, **SCALED)
    groups, before = optimizer.param_groups, snapshot(optimizer)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert optimizer.param_groups is groups
    assert snapshot(optimizer) == before
    assert agvm.state_dict()["step"] == 0
    set_scales(agvm, body=1.0, head=1.0)
    optimizer.param_groups[0]["momentum"] = 0.3
    backward(model)
    optimizer.step()
    assert optimizer.param_groups[0]["momentum"] == 0.3
    assert agvm.state_dict()["step"] == 1


def test_what_a_step_wrote_before_it_raised_does_not_come_back_later():
    model, optimizer, agvm = start(lambda params: Counting(params, lr=0.1))
    set_scales(agvm, **SCALED)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    set_scales(agvm, body=1.0, head=1.0)
    optimizer.param_groups[0]["k"] = 10
    backward(model)
    optimizer.step()
    assert optimizer.param_groups[0]["k"] == 11


def test_the_optimizers_state_dict_is_that_of_one_without():
    model, optimizer, agvm = start()
    set_scales(agvm, **SCALED)
    train(model, optimizer, None, 2)
    state = optimizer.state_dict()
    assert [len(group["params"]) for group in state["param_groups"]] == [4]
    assert sorted(state["state"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_check_6_one_module_alone_warns_and_leaves_the_trajectory_bit_for_bit(make):
    bare, model = BodyAndHead(), BodyAndHead()
    optimizer = make(model.parameters())
    with pytest.warns(UserWarning, match="AGVM needs at least 2 modules to do anything; got 'all' alone"):
        agvm = AGVM(optimizer, model, {"all": ["body", "head"]}, anchor="all", interval=1)
    assert same(train(model, optimizer, agvm), train(bare, make(bare.parameters())))
    assert agvm.scales == {"all": 1.0}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_check_6_equal_fractions_leave_the_trajectory_bit_for_bit(make):
    model, optimizer, agvm = start(make, interval=1)
    bare = BodyAndHead()
    for _ in range(4):
        agvm.observe({"body": 0.4, "head": 0.4})
    assert same(train(model, optimizer, None), train(bare, make(bare.parameters())))


def test_check_8_without_scales_a_step_is_the_optimizers_own():
    model, optimizer, agvm = start(start_step=3)
    # nothing is asked of it before the start
    agvm._split_step = type("Unused", (), {"clear": lambda self: None, "end": lambda self: None})()
    agvm.scales = dict(SCALED)
    train(model, optimizer, None, 3)
    with pytest.raises(AttributeError, match="begin"):
        train(model, optimizer, None, 1)


def test_a_copy_scales_the_copied_optimizer_and_leaves_the_first():
    model, optimizer, agvm = start(lambda params: torch.optim.SGD(params, lr=0.1))
    set_scales(agvm, **SCALED)
    other_model, other_optimizer, other = copy.deepcopy((model, optimizer, agvm))
    other.observe({"body": 0.5, "head": 0.1})
    backward(other_model)
    expected = model.head.weight - 0.1 * other.scales["head"] * other_model.head.weight.grad
    other_optimizer.step()
    torch.testing.assert_close(other_model.head.weight, expected)
    assert (other.state_dict()["step"], agvm.state_dict()["step"]) == (1, 0)
    assert agvm.scales == SCALED
    backward(model)
    optimizer.step()
    assert agvm.state_dict()["step"] == 1


def test_after_remove_steps_are_plain():
    model, optimizer, agvm = start()
    bare = BodyAndHead()
    with agvm:
        set_scales(agvm, **SCALED)
    assert same(train(model, optimizer, None), train(bare, OPTIMIZERS["SGD"](bare.parameters())))


# ------------------------------------------------------------------------------------------- when it measures


def test_measurements_are_due_from_the_start_on_and_every_interval():
    model, optimizer, agvm = start(interval=3, start_step=4)
    due = []
    for _ in range(12):
        due.append(agvm.is_due)
        backward(model)
        optimizer.step()
    assert [step for step, is_due in enumerate(due) if is_due] == [6, 9]


def test_a_measurement_before_the_start_is_logged_alone():
    _, _, agvm = start(start_step=1)
    agvm.observe({"body": 0.5, "head": 0.1})
    assert agvm.scales == {"body": 1.0, "head": 1.0}
    assert agvm.log() == {
        "noise_fraction/body": 0.5,
        "noise_fraction/head": 0.1,
        "scale/body": 1.0,
        "scale/head": 1.0,
    }


def test_observing_moves_the_scales_as_the_pure_function_does():
    _, _, agvm = start(momentum=0.5, clamp=(0.9, 4.0))
    expected = None
    for fractions in ({"body": 0.8, "head": 0.1}, {"body": 0.2, "head": 0.6}, {"body": 0.5}):
        agvm.observe(fractions)
        expected = agvm_scales(fractions, "body", expected, 0.5, (0.9, 4.0))
    assert agvm.scales == expected


def test_halves_and_moments_of_the_same_step_are_both_understood():
    for source_type in (MicroBatchHalves, MicroBatches):
        model, _, agvm = start(momentum=0.0)
        source = source_type(model, agvm.module_prefixes)
        for part in PARTS:
            with source.sub_batch(3):
                (mean_loss(model, *stack(part)) / 4).backward()
        agvm.observe(source.finish())
        assert set(agvm.noise_fractions) == {"body", "head"}
        assert agvm.scales["body"] == 1.0


def test_moments_under_adam_are_of_the_gradient_as_adam_preconditions_it():
    model, optimizer, agvm = start(OPTIMIZERS["AdamW"], interval=1)
    train(model, optimizer, agvm, 2)
    found = []
    for source in (
        MicroBatchHalves(model, agvm.module_prefixes, agvm.preconditioner),
        MicroBatches(model, agvm.module_prefixes, preconditioner=agvm.preconditioner),
    ):
        model.zero_grad()
        for part in PARTS[:2]:
            with source.sub_batch(3):
                (mean_loss(model, *stack(part)) / 2).backward()
        found.append(source.finish())
    halves, moments = found
    assert measure_noise_fractions(moments) == pytest.approx(measure_noise_fractions(halves.moments()), rel=1e-4)
    agvm.observe(moments)
    assert agvm.noise_fractions == measure_noise_fractions(moments)


@pytest.mark.parametrize(("geometry", "num_steps"), [("sgd", 0), ("sgd", 2), ("adam", 2)])
def test_moments_in_another_geometry_are_refused_under_adam(geometry, num_steps):
    model, optimizer, agvm = start(OPTIMIZERS["AdamW"])
    train(model, optimizer, agvm, num_steps)
    source = MicroBatches(model, agvm.module_prefixes, geometry=geometry, optimizer=optimizer)
    model.zero_grad()
    for part in PARTS:
        with source.sub_batch(3):
            mean_loss(model, *stack(part)).backward()
    with pytest.raises(ValueError, match=rf"as AdamW preconditions it; got geometry '{geometry}'\. Measure with prec"):
        agvm.observe(source.finish())


def test_a_preconditioner_beside_a_geometry_is_refused():
    model, optimizer, agvm = start(OPTIMIZERS["AdamW"])
    with pytest.raises(ValueError, match="geometry must be 'sgd' beside a preconditioner; got 'adam'"):
        MicroBatches(model, geometry="adam", optimizer=optimizer, preconditioner=agvm.preconditioner)


def test_as_published_a_head_without_positives_counts_as_noise():
    empty = HalfBatches.from_gradients(
        {"body": torch.tensor([3.0, 4.0]), "head": torch.zeros(2)},
        {"body": torch.tensor([4.0, 3.0]), "head": torch.ones(2)},
    )
    for as_published, expected in ((False, 1.0), (True, 0.5**0.5)):
        _, _, agvm = start(momentum=0.0, as_published=as_published)
        agvm.observe(empty)
        assert agvm.scales["head"] == pytest.approx(expected)


def test_the_preconditioner_is_adams_before_the_step_and_none_for_sgd():
    model, optimizer, agvm = start(lambda params: torch.optim.AdamW(params, lr=0.01, betas=(0.9, 0.5), eps=0.1))
    assert agvm.preconditioner(model.head.bias) is None
    backward(model)
    optimizer.step()
    expected = 1 / ((0.5 * optimizer.state[model.head.bias]["exp_avg_sq"]).sqrt() + 0.1)
    torch.testing.assert_close(agvm.preconditioner(model.head.bias), expected)
    sgd = start()[2]
    assert sgd.preconditioner(next(BodyAndHead().parameters())) is None


# ------------------------------------------------------------------------------------------- mixed precision


def scaled_step(model, optimizer, agvm, scaler, spoil=False):
    optimizer.zero_grad()
    source = MicroBatchHalves(model, agvm.module_prefixes)
    for part in PARTS:
        with source.sub_batch(3):
            scaler.scale(mean_loss(model, *stack(part)) / 4 * (float("inf") if spoil else 1)).backward()
    agvm.observe(source.finish(scaler.get_scale()))
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()


def test_check_11_the_loss_scale_does_not_matter():
    found = []
    for scale in (1.0, 65536.0):
        model, optimizer, agvm = start(momentum=0.0)
        scaled_step(model, optimizer, agvm, torch.amp.GradScaler("cpu", init_scale=scale))
        found.append((agvm.noise_fractions, agvm.scales, model.state_dict()))
    assert found[0][:2] == found[1][:2]
    assert same(found[0][2], found[1][2])


def test_check_11_a_step_that_the_scaler_skips_changes_nothing_and_does_not_count():
    model, optimizer, agvm = start(momentum=0.0, interval=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaled_step(model, optimizer, agvm, scaler)
    agvm.load_state_dict(agvm.state_dict() | {"step": 2})
    before, weights = agvm.state_dict(), copy.deepcopy(model.state_dict())
    scaled_step(model, optimizer, agvm, scaler, spoil=True)
    assert agvm.state_dict() == before
    assert same(model.state_dict(), weights)
    assert agvm.is_due
    scaled_step(model, optimizer, agvm, scaler)
    assert agvm.state_dict()["step"] == 3


def test_a_fused_optimizer_that_skips_by_itself_keeps_its_weights_and_counts():
    model, optimizer, agvm = start(lambda params: torch.optim.AdamW(params, lr=0.1, fused=True))
    set_scales(agvm, **SCALED)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    weights = copy.deepcopy(model.state_dict())
    scaler.scale(mean_loss(model, *stack(PARTS[0])) * float("inf")).backward()
    scaler.step(optimizer)
    assert same(model.state_dict(), weights)
    assert agvm.state_dict()["step"] == 1


def test_moments_that_are_not_finite_change_nothing():
    _, _, agvm = start()
    gradients = {"body": torch.tensor([[1.0], [0.0]]), "head": torch.tensor([[1.0], [float("nan")]])}
    agvm.observe(GradientMoments.from_gradients(gradients, [1, 1]))
    assert agvm.log() == {"scale/body": 1.0, "scale/head": 1.0}


# ------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD"], OPTIMIZERS["AdamW"]], ids=["SGD", "AdamW"])
def test_check_14_a_run_resumes_to_the_bit(make):
    def run(model, optimizer, agvm, steps):
        source = MicroBatchHalves(model, agvm.module_prefixes, agvm.preconditioner)
        for index in steps:
            optimizer.zero_grad()
            is_due = agvm.is_due
            for part in split(make_samples(12, seed=index), [3, 3, 3, 3]):
                if is_due:
                    with source.sub_batch(3):
                        (mean_loss(model, *stack(part)) / 4).backward()
                else:
                    (mean_loss(model, *stack(part)) / 4).backward()
            if is_due:
                agvm.observe(source.finish())
            optimizer.step()

    options = {"interval": 3, "momentum": 0.5}
    straight = start(make, **options)
    run(*straight, range(9))
    first = start(make, **options)
    run(*first, range(5))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = start(make, **options)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*second, range(5, 9))
    assert same(straight[0].state_dict(), second[0].state_dict())
    assert straight[2].state_dict() == second[2].state_dict()
    assert straight[2].scales["head"] != 1


def test_check_14_a_module_that_is_frozen_in_training_keeps_its_scale():
    model, optimizer, agvm = start(interval=1, momentum=0.0)
    source = MicroBatchHalves(model, agvm.module_prefixes)
    agvm.observe({"body": 0.5, "head": 0.25})
    before = agvm.scales["head"]
    model.head.requires_grad_(False)
    for part in PARTS:
        with source.sub_batch(3):
            (mean_loss(model, *stack(part)) / 4).backward()
    agvm.observe(source.finish())
    optimizer.step()
    assert agvm.scales == {"body": 1.0, "head": before}


@pytest.mark.parametrize(
    "other",
    [{"module_prefixes": ["body.weight", "body.bias", "head"], "anchor": "head"}, {"anchor": "head"}],
    ids=["groups", "anchor"],
)
def test_the_state_of_another_grouping_is_refused(other):
    _, _, agvm = start()
    model = BodyAndHead()
    foreign = AGVM(torch.optim.SGD(model.parameters(), lr=1), model, **({"module_prefixes": ["body", "head"]} | other))
    with pytest.raises(
        ValueError, match=r"state of AGVM must have the modules body, head with anchor 'body'; got .*head"
    ):
        agvm.load_state_dict(foreign.state_dict())


def test_the_state_of_another_version_is_refused():
    _, _, agvm = start()
    with pytest.raises(ValueError, match="state of AGVM must have version 1; got 0"):
        agvm.load_state_dict({**agvm.state_dict(), "version": 0})


# ------------------------------------------------------------------------------------------- bad input and warnings


def test_the_same_data_in_both_halves_warns():
    model, _, agvm = start()
    source = MicroBatchHalves(model, agvm.module_prefixes)
    for _ in range(2):
        with source.sub_batch(3):
            mean_loss(model, *stack(PARTS[0])).backward()
    halves = source.finish()
    for measurement in (halves, halves.moments()):
        with pytest.warns(
            UserWarning, match=r"halves of a batch must hold different samples; all noise fractions are be"
        ):
            agvm.observe(measurement)


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD"], OPTIMIZERS["AdamW tensor rate"]])
@pytest.mark.parametrize("start_step", [0, 2])
def test_a_start_before_the_end_of_warm_up_warns_once(start_step, make):
    model, optimizer, _ = start(make, start_step=start_step)
    scheduler = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=6)
    with pytest.warns(UserWarning, match=rf"after the end of warm-up; it started at step {start_step}, and") as found:
        train(model, optimizer, None, 8, scheduler.step)
    assert len(found) == 1


def test_a_start_after_warm_up_and_a_rate_that_rises_again_later_do_not_warn():
    model, optimizer, agvm = start(start_step=4, interval=2)
    factors = [0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.4, 1.0, 1.0, 1.0, 1.0]
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: factors[step])
    train(model, optimizer, None, 12, scheduler.step)
    assert agvm.state_dict()["step"] == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor": "backbone"}, r"anchor must be a module; got 'backbone'\. The modules are body, head"),
        ({"interval": 0}, "interval must be a whole number of steps, at least 1; got 0"),
        ({"interval": 2.5}, "interval must be a whole number of steps, at least 1; got 2.5"),
        ({"start_step": -1}, "start_step must be a whole number of steps, at least 0; got -1"),
        ({"start_step": 0.5}, "start_step must be a whole number of steps, at least 0; got 0.5"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"clamp": (10.0, 0.5)}, "clamp must be two positive numbers that ascend"),
        ({"module_prefixes": ["body"]}, "every parameter must be in a module group; 2 are in none"),
        (
            {"module_prefixes": {"a": "body", "b": ["body.weight", "head"]}, "anchor": "a"},
            "must be in one module group",
        ),
        ({"module_prefixes": "auto"}, r"the model must have a backbone and other children beside it; BodyAndHead has"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    model = BodyAndHead()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        AGVM(optimizer, model, **({"module_prefixes": ["body", "head"], "anchor": "body"} | options))
    assert not optimizer._optimizer_step_pre_hooks


class Lookahead(torch.optim.Optimizer):
    """As wrappers do: the groups of another optimizer, which updates the parameters."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_around_another_is_refused_and_the_inner_one_is_scaled():
    model = BodyAndHead()
    outer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"got Lookahead, which leaves that to SGD\. Pass the inner one"):
        AGVM(outer, model, ["body", "head"], anchor="body")
    set_scales(AGVM(outer.inner, model, ["body", "head"], anchor="body"), **SCALED)
    before = model.head.weight.detach().clone()
    backward(model)
    outer.step()
    torch.testing.assert_close(model.head.weight, before - 0.2 * model.head.weight.grad)


def test_moments_are_refused_where_scales_are_to_be_as_published():
    model, _, agvm = start(as_published=True)
    source = MicroBatches(model, agvm.module_prefixes)
    for part in PARTS:
        with source.sub_batch(3):
            mean_loss(model, *stack(part)).backward()
    with pytest.raises(ValueError, match="must be HalfBatches where AGVM is as_published; got GradientMoments"):
        agvm.observe(source.finish())


def test_an_optimizer_and_a_model_in_each_others_place_are_refused():
    model = BodyAndHead()
    with pytest.raises(ValueError, match=r"optimizer must be a torch\.optim\.Optimizer or None; got BodyAndHead"):
        AGVM(model, OPTIMIZERS["SGD"](model.parameters()), ["body", "head"], anchor="body")


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="optimizer must hold parameters of the model; got SGD without any"):
        AGVM(OPTIMIZERS["SGD"](BodyAndHead().parameters()), BodyAndHead(), ["body", "head"], anchor="body")


def test_a_second_one_on_an_optimizer_is_refused_until_the_first_is_removed():
    model, optimizer, agvm = start()
    with pytest.raises(ValueError, match=r"optimizer must have one AGVM; got SGD, which has one\. Call its remove"):
        AGVM(optimizer, model, ["body", "head"], anchor="body")
    agvm.remove()
    AGVM(optimizer, model, ["body", "head"], anchor="body")


def test_what_is_no_measurement_is_refused():
    _, _, agvm = start()
    with pytest.raises(ValueError, match=r"measurement must be HalfBatches, .* got int\. Pass what a source's finish"):
        agvm.observe(3)


def test_lbfgs_is_refused():
    model = BodyAndHead()
    with pytest.raises(ValueError, match="optimizer must have a learning rate per param group; got LBFGS"):
        AGVM(torch.optim.LBFGS(model.parameters()), model, ["body", "head"], anchor="body")


def test_a_measurement_of_other_modules_is_refused():
    _, _, agvm = start()
    with pytest.raises(
        ValueError, match=r"measurement must have the modules body, head; got head\.weight\. Measure with"
    ):
        agvm.observe({"body": 0.5, "head.weight": 0.1})


# ------------------------------------------------------------------------------------------- the digest's documents


def test_check_12_normalization_over_both_halves_makes_them_anticorrelated():
    """Noise alone. What the samples of a half add to the weight's gradient leans against what those of the other half
    add where batch norm's statistics are of both, as SyncBatchNorm's are over ranks, and not where each has its own.
    """

    def fraction(batches):
        torch.manual_seed(0)
        found = []
        for _ in range(20):
            linear, norm = nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32)
            inputs, noise = torch.randn(256, 64).relu(), torch.randn(256, 32)
            hidden = linear(inputs)
            outputs = torch.cat([norm(hidden[part]) for part in batches])
            (grad,) = torch.autograd.grad((outputs * noise).sum(), hidden)
            first, second = ({"linear": grad[half].T @ inputs[half]} for half in (slice(0, 128), slice(128, 256)))
            found.append(measure_noise_fractions(HalfBatches.from_gradients(first, second))["linear"])
        return sum(found) / len(found)

    assert fraction([slice(0, 256)]) == pytest.approx(1.2, abs=0.05)
    assert fraction([slice(0, 128), slice(128, 256)]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.000226), (230, 0.001272), (460, 0.007155), (690, 0.040238), (919, 0.224582)]
)
def test_check_13_the_published_warm_up(step, rate):
    """lr 0.001^(1 - i / W); with torch's own scheduler, as the card shows it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.16 * 2**0.5)
    lr_scheduler.LambdaLR(optimizer, lambda i: 0.001 ** max(1 - (i + step) / 920, 0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=6e-7)
