"""What becomes of a tuned rate at another batch size: rules, their limits, betas, warm-up, errors."""

import math

import numpy as np
import pytest
import torch

from anybatch import InputError
from anybatch.decide import scale_learning_rate


@pytest.mark.parametrize(
    ("batch_size", "critical", "rule", "factor", "holds"),
    [
        (512, 2000, "linear", 4.0, True),
        (512, 512, "linear", 4.0, True),
        (512, 511, "sqrt", 2.0, False),
        (512, None, "sqrt", 2.0, False),
        (32, 2000, "linear", 0.25, True),
        (32, 100, "sqrt", 0.5, False),  # the base batch itself lies above the critical one
    ],
)
def test_sgd_scales_linearly_below_the_critical_batch_and_by_the_root_beyond(batch_size, critical, rule, factor, holds):
    scale = scale_learning_rate(128, batch_size, family="sgd", critical_batch_size=critical)
    assert (scale.rule, scale.factor, scale.holds) == (rule, factor, holds)
    assert (scale.betas, scale.eps_factor) == (None, 1.0)


def test_the_reason_says_why_and_how_far_it_holds():
    def reason(batch_size, critical):
        return scale_learning_rate(128, batch_size, family="sgd", critical_batch_size=critical).reason

    assert reason(512, 2000) == "linear, 4 times, for SGD, both batches being below the critical 2e+03"
    assert "unknown without a critical batch size" in reason(512, None)
    assert "no rule holds (the other one says 4)" in reason(512, 200)
    assert reason(128, 20) == "the batch is the one the rate was tuned at"


@pytest.mark.parametrize("critical", [None, 10, 1000])
def test_the_same_batch_keeps_its_rate_whatever_the_noise(critical):
    scale = scale_learning_rate(128, 128, family="sgd", critical_batch_size=critical)
    assert scale.factor == 1.0
    assert scale.holds


@pytest.mark.parametrize(("rule", "factor"), [("linear", 9.0), ("sqrt", 3.0)])
def test_a_rule_that_is_asked_for_is_used(rule, factor):
    for critical in (1, 1e6):
        scale = scale_learning_rate(10, 90, family="sgd", critical_batch_size=critical, rule=rule)
        assert (scale.rule, scale.factor) == (rule, factor)


def test_the_square_root_for_sgd_does_not_hold_where_steps_add_up():
    scale = scale_learning_rate(128, 512, family="sgd", critical_batch_size=2000, rule="sqrt")
    assert not scale.holds
    assert "below the critical 2e+03 steps add up, and the linear 4 holds" in scale.reason


@pytest.mark.parametrize("family", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("rule", ["none", "linear", "sqrt"])
def test_up_and_down_again_is_where_it_began(family, rule):
    def scale(base_batch_size, batch_size):
        return scale_learning_rate(
            base_batch_size, batch_size, family=family, rule=rule, betas=(0.9, 0.999), warmup_epochs=3
        )

    up, down = scale(64, 256), scale(256, 64)
    assert up.factor * down.factor == pytest.approx(1)
    assert up.eps_factor * down.eps_factor == pytest.approx(1)
    assert up.warmup_epochs * down.warmup_epochs == pytest.approx(9)


@pytest.mark.parametrize("family", ["sgd", "adam", "rmsprop"])
def test_none_leaves_everything_and_says_that_nothing_asks_for_it(family):
    betas = None if family == "sgd" else (0.9, 0.999)
    scale = scale_learning_rate(128, 512, family=family, critical_batch_size=2000, betas=betas, rule="none")
    assert (scale.factor, scale.rule, scale.betas, scale.eps_factor) == (1.0, "none", betas, 1.0)
    assert not scale.holds
    assert scale.reason == "left alone at 4 times the batch, which no derivation asks for"


@pytest.mark.parametrize("rule", [None, "none", "linear", "sqrt"])
@pytest.mark.parametrize(("batch_size", "epochs"), [(64, 2.5), (128, 5.0), (4096, 160.0)])
def test_the_warm_up_keeps_its_number_of_updates(rule, batch_size, epochs):
    scale = scale_learning_rate(128, batch_size, family="sgd", rule=rule, warmup_epochs=5)
    assert scale.warmup_epochs == epochs
    assert scale.reason.endswith(f"; warmed up over {epochs:g} epochs")
    assert scale_learning_rate(128, batch_size, family="sgd", rule=rule).warmup_epochs == 0.0


@pytest.mark.parametrize("ratio", [0.25, 1, 4, 9.5])
def test_adam_moves_rate_betas_and_epsilon_as_its_diffusion_limit_asks(ratio):
    # Malladi et al. 2022, definition 5.1: rate sqrt(k), 1 - beta times k, epsilon over sqrt(k)
    scale = scale_learning_rate(100, 100 * ratio, family="adam", betas=(0.9, 0.999))
    assert scale.rule == "sqrt"
    assert scale.factor == pytest.approx(math.sqrt(ratio))
    assert scale.betas == pytest.approx((1 - ratio * 0.1, 1 - ratio * 0.001))
    assert scale.eps_factor == pytest.approx(1 / math.sqrt(ratio))
    assert scale.holds


def test_adam_says_where_its_rule_ends():
    scale = scale_learning_rate(100, 2000, family="adam", betas=(0.9, 0.999))
    assert not scale.holds
    assert scale.betas == (0.0, pytest.approx(0.98))
    assert "beyond 10 times the base batch a beta would be negative" in scale.reason


def test_a_beta_of_zero_is_no_average_and_sets_no_limit():
    scale = scale_learning_rate(100, 400, family="adam", betas=(0.0, 0.99))
    assert scale.betas == (0.0, pytest.approx(0.96))
    assert scale.holds
    assert scale_learning_rate(100, 50, family="adam", betas=(0.0, 0.99)).betas == (0.0, pytest.approx(0.995))


def test_adam_without_betas_gives_none():
    assert scale_learning_rate(100, 200, family="adam").betas is None


def test_rmsprop_moves_its_one_average_by_the_same_rule():
    scale = scale_learning_rate(100, 400, family="rmsprop", betas=(0.99,))
    assert (scale.rule, scale.factor, scale.betas, scale.eps_factor) == ("sqrt", 2.0, (0.96,), 0.5)
    assert scale.holds
    assert scale.reason == "the square root of 4 for RMSprop, with epsilon divided by 2 and betas 0.96"
    assert scale_learning_rate(100, 10000, family="rmsprop", betas=(0.99,)).holds
    beyond = scale_learning_rate(100, 10100, family="rmsprop", betas=(0.99,))
    assert not beyond.holds
    assert "beyond 100 times the base batch" in beyond.reason


@pytest.mark.parametrize(("family", "name"), [("adam", "Adam"), ("rmsprop", "RMSprop")])
def test_linear_scaling_of_adaptive_rates_is_done_on_request_and_does_not_hold(family, name):
    scale = scale_learning_rate(100, 400, family=family, betas=(0.9, 0.999), rule="linear")
    assert (scale.factor, scale.betas, scale.eps_factor, scale.holds) == (4.0, (0.9, 0.999), 1.0, False)
    assert f"{name} divides by the gradient's size, noise included, so that the square root 2" in scale.reason


def test_the_critical_batch_of_sgd_does_not_judge_adam():
    assert scale_learning_rate(100, 400, family="adam", critical_batch_size=1).holds


def displacement(optimizer, name, base, scale, num_samples=800):
    """Mean and spread over 4000 weights of what an optimizer does to them on gradients of mean 0.1 and variance 1."""
    batch_size = 1 if scale is None else 4
    if scale is not None:
        moved = scale.betas[0] if name == "alpha" else scale.betas
        base = {"lr": base["lr"] * scale.factor, "eps": base["eps"] * scale.eps_factor, name: moved}
    weights = torch.zeros(4000, requires_grad=True)
    steps = optimizer([weights], **base)
    rng = torch.Generator().manual_seed(batch_size)
    for _ in range(num_samples // batch_size):
        weights.grad = 0.1 + torch.randn(4000, generator=rng) / math.sqrt(batch_size)
        steps.step()
    return np.array([weights.mean().item(), weights.std().item()])


@pytest.mark.parametrize(
    ("optimizer", "family", "name", "value"),
    [(torch.optim.RMSprop, "rmsprop", "alpha", 0.98), (torch.optim.Adam, "adam", "betas", (0.9, 0.99))],
)
def test_only_the_square_root_moves_adaptive_weights_alike_over_the_same_samples(optimizer, family, name, value):
    base = {"lr": 1e-3, "eps": 0.5, name: value}  # an epsilon that matters
    betas = value if isinstance(value, tuple) else (value,)
    small = displacement(optimizer, name, base, None)
    ratio = {
        rule: displacement(optimizer, name, base, scale_learning_rate(1, 4, family=family, betas=betas, rule=rule))
        / small
        for rule in ("none", "linear", "sqrt")
    }
    assert ratio["sqrt"] == pytest.approx([1, 1], abs=0.1)  # the rule is exact for small steps only
    assert (ratio["linear"] > 1.25).all()
    assert (ratio["none"] < 0.75).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"base_batch_size": 0, "batch_size": 8, "family": "sgd"},
            "batch sizes must be positive and finite; got 0 and 8",
        ),
        (
            {"base_batch_size": 8, "batch_size": -1, "family": "sgd"},
            "batch sizes must be positive and finite; got 8 and -1",
        ),
        (
            {"base_batch_size": math.nan, "batch_size": 1, "family": "sgd"},
            "batch sizes must be positive and finite; got nan",
        ),
        (
            {"base_batch_size": 8, "batch_size": math.inf, "family": "sgd"},
            "batch sizes must be positive and finite; got 8 and inf",
        ),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "lion"},
            "family must be one of sgd, adam, rmsprop; got 'lion'",
        ),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "sgd", "rule": "cubic"},
            "rule must be one of none, linear, sqrt; got 'cubic'",
        ),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "adam", "betas": (0.9, 1.0)},
            r"betas must be at least 0 and below 1; got \(0.9, 1.0\)",
        ),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "sgd", "warmup_epochs": -1},
            "warmup_epochs must be at least 0; got -1. Pass 0 for no warm-up",
        ),
    ],
)
def test_bad_arguments_are_told_with_the_rule(arguments, message):
    with pytest.raises(InputError, match=message):
        scale_learning_rate(**arguments)
