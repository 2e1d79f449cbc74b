"""What becomes of a tuned rate at another batch size: rules, their limits, Adam's betas, errors."""

import math

import pytest

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


def test_up_and_down_again_is_where_it_began():
    for family in ("sgd", "adam"):
        up = scale_learning_rate(64, 256, family=family, critical_batch_size=1000)
        down = scale_learning_rate(256, 64, family=family, critical_batch_size=1000)
        assert up.factor * down.factor == pytest.approx(1)


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


def test_adam_without_betas_gives_none():
    assert scale_learning_rate(100, 200, family="adam").betas is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_batch_size": 0, "batch_size": 8, "family": "sgd"}, "batch sizes must be positive; got 0 and 8"),
        ({"base_batch_size": 8, "batch_size": -1, "family": "sgd"}, "batch sizes must be positive; got 8 and -1"),
        ({"base_batch_size": math.nan, "batch_size": 1, "family": "sgd"}, "batch sizes must be positive; got nan"),
        ({"base_batch_size": 8, "batch_size": 8, "family": "lion"}, "family must be one of sgd, adam; got 'lion'"),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "sgd", "rule": "cubic"},
            "rule must be one of linear, sqrt; got 'cubic'",
        ),
        (
            {"base_batch_size": 8, "batch_size": 8, "family": "adam", "rule": "linear"},
            "rule must be sqrt for the adam family; got 'linear'",
        ),
    ],
)
def test_bad_arguments_are_told_with_the_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_learning_rate(**arguments)
