"""A regime at another batch size: published numbers, what is kept, Monte Carlo of the covariance, errors."""

import math

import numpy as np
import pytest

from anybatch import InputError
from anybatch.decide import large_batch_regime, scale_learning_rate


def regime(batch_size=4096, base_batch_size=128, **changes):
    arguments = {"base_lr": 0.1, "milestones": [81, 122, 164], "epochs": 200, **changes}
    return large_batch_regime(base_batch_size, batch_size, **arguments)


def test_the_regime_of_the_paper_at_4096():
    found = regime()
    assert found.lr == pytest.approx(0.565685, abs=5e-7)
    assert found.milestones == (2592, 3904, 5248)
    assert found.epochs == 6400
    assert (found.ghost_batch_size, found.clip_norm, found.noise_variance) == (128, 5.0, 31)
    assert found.stretch == 32


def test_the_other_rate_that_the_paper_states():
    assert regime(2048, 256).lr == pytest.approx(0.282843, abs=5e-7)


@pytest.mark.parametrize(("batch_size", "first_drop"), [(128, 81), (2048, 1296), (4096, 2592)])
def test_the_first_drop_comes_at_the_same_update_at_any_batch(batch_size, first_drop):
    found = regime(batch_size)
    assert found.milestones[0] == first_drop
    assert found.milestones[0] * 50_000 / batch_size == 31_640.625


def test_without_adaptation_epochs_and_milestones_stay_and_the_rest_does_not():
    found = regime(adapt=False)
    assert (found.milestones, found.epochs, found.stretch) == ((81, 122, 164), 200, 1.0)
    assert found.lr == regime().lr
    assert found.noise_variance == 31


def test_the_base_batch_keeps_its_regime():
    found = regime(128)
    assert (found.lr, found.milestones, found.epochs) == (0.1, (81, 122, 164), 200)
    assert (found.ghost_batch_size, found.noise_variance, found.stretch) == (128, 0, 1)


def test_a_smaller_batch_shrinks_rate_and_epochs_and_adds_no_noise():
    found = regime(32, warmup_epochs=8)
    assert found.lr == pytest.approx(0.05)
    assert (found.milestones, found.epochs, found.warmup_epochs) == ((20.25, 30.5, 41), 50, 2)
    assert (found.ghost_batch_size, found.noise_variance) == (32, 0)
    assert "noise" not in found.reason


def test_the_rate_comes_with_how_it_came_about():
    found = regime(512, rule="sqrt", family="adam", betas=(0.9, 0.999), warmup_epochs=5)
    assert found.lr_scale == scale_learning_rate(
        128, 512, family="adam", betas=(0.9, 0.999), rule="sqrt", warmup_epochs=5
    )
    assert found.lr == 0.1 * found.lr_scale.factor
    assert found.warmup_epochs == 20


@pytest.mark.parametrize(("rule", "lr"), [("none", 0.1), ("linear", 3.2), ("sqrt", 0.1 * math.sqrt(32))])
def test_another_rule_moves_the_rate_alone(rule, lr):
    found = regime(rule=rule)
    assert found.lr == pytest.approx(lr)
    assert found.milestones == (2592, 3904, 5248)


def test_ghost_size_and_clipping_are_the_users_to_choose():
    found = regime(ghost_batch_size=64, clip_norm=None)
    assert (found.ghost_batch_size, found.clip_norm) == (64, None)
    assert regime(ghost_batch_size=4096).ghost_batch_size == 4096


def test_the_reason_tells_rate_length_and_the_alternative():
    assert regime(512).reason == (
        "rate 0.2 (the square root of 4, for SGD; how far it holds is unknown without a critical batch size) over 800 "
        "epochs, which make the same number of updates; or rate 0.1 with noise of variance 3"
    )
    assert "over 200 epochs, which make 0.25 times the number of updates" in regime(512, adapt=False).reason


# ----------------------------------------------------------------------------- covariance of an update

VARIANCES = np.array([1.0, 4.0, 0.25])
BASE, BATCH, NUM_DRAWS = 16, 128, 20_000
# a variance of NUM_DRAWS Gaussian draws spreads by sqrt(2 / NUM_DRAWS) = 1%
SPREAD = math.sqrt(2 / NUM_DRAWS)


def updates(batch_size, rate=1.0, noise_variance=0.0, mean=0.0):
    """NUM_DRAWS x 3 updates of gradients with VARIANCES, at a base rate of 1."""
    rng = np.random.default_rng(batch_size)
    total = np.zeros((NUM_DRAWS, 3))
    for _ in range(batch_size):
        grads = mean + np.sqrt(VARIANCES) * rng.standard_normal((NUM_DRAWS, 3))
        total += grads * (1 + math.sqrt(noise_variance) * rng.standard_normal((NUM_DRAWS, 1)))
    return -rate * total / batch_size


def test_the_scaled_rate_keeps_the_covariance_of_an_update():
    found = large_batch_regime(BASE, BATCH, base_lr=1.0)
    for drawn in (updates(BASE), updates(BATCH, rate=found.lr)):
        assert np.cov(drawn.T) == pytest.approx(np.diag(VARIANCES) / BASE, rel=5 * SPREAD, abs=5 * SPREAD / BASE)


def test_noise_at_the_base_rate_keeps_the_covariance_of_an_update():
    found = large_batch_regime(BASE, BATCH, base_lr=1.0)
    assert found.noise_variance == 7
    drawn = updates(BATCH, noise_variance=found.noise_variance)
    # products of two Gaussians have heavier tails than one, so some more than SPREAD
    assert np.cov(drawn.T) == pytest.approx(np.diag(VARIANCES) / BASE, rel=6 * SPREAD, abs=6 * SPREAD / BASE)


def test_rate_and_noise_together_are_eightfold_too_much():
    found = large_batch_regime(BASE, BATCH, base_lr=1.0)
    drawn = updates(BATCH, rate=found.lr, noise_variance=found.noise_variance)
    assert drawn.var(0) == pytest.approx(8 * VARIANCES / BASE, rel=6 * SPREAD)


def test_the_noise_keeps_the_mean_update_and_the_scaled_rate_does_not():
    found = large_batch_regime(BASE, BATCH, base_lr=1.0)
    tolerance = 5 * math.sqrt(VARIANCES.max() / BASE / NUM_DRAWS)
    noisy = updates(BATCH, noise_variance=found.noise_variance, mean=0.2)
    assert noisy.mean(0) == pytest.approx([-0.2] * 3, abs=tolerance)
    assert updates(BATCH, rate=found.lr, mean=0.2).mean(0) == pytest.approx([-0.2 * math.sqrt(8)] * 3, abs=tolerance)


def test_a_mean_adds_its_square_to_the_covariance_that_noise_gives():
    # E[z^2] E[g^2] - mean^2 over the batch: the second moment is kept, so mean^2 (1/BASE - 1/BATCH) is added
    noisy = updates(BATCH, noise_variance=7.0, mean=1.0)
    expected = VARIANCES / BASE + (1 / BASE - 1 / BATCH)
    assert noisy.var(0) == pytest.approx(expected, rel=6 * SPREAD)


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_batch_size": 0}, "batch sizes must be positive and finite; got 0 and 4096"),
        ({"batch_size": 0}, "batch sizes must be positive and finite; got 128 and 0"),
        ({"base_lr": -0.1}, "base_lr must be positive; got -0.1"),
        ({"base_lr": math.nan}, "base_lr must be positive; got nan"),
        ({"epochs": 0, "milestones": ()}, "epochs must be positive; got 0"),
        ({"milestones": [81, 201]}, "milestones must lie within the 200 epochs; got 201. Leave it out, or train"),
        ({"milestones": [122, 81]}, r"milestones must be positive and ascend; got \(122, 81\)"),
        ({"milestones": [81, 81]}, r"milestones must be positive and ascend; got \(81, 81\)"),
        ({"milestones": [0, 81]}, r"milestones must be positive and ascend; got \(0, 81\)"),
        ({"ghost_batch_size": 4097}, "ghost_batch_size must be at most the batch; got 4097 for a batch of 4096"),
        ({"ghost_batch_size": 0}, "ghost_batch_size must be positive; got 0"),
        ({"clip_norm": 0}, "clip_norm must be positive; got 0"),
        ({"warmup_epochs": 10, "adapt": False}, "the warm-up must end within the training; got 320 epochs of 200"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0; got -1"),
        ({"rule": "cubic"}, "rule must be one of none, linear, sqrt; got 'cubic'"),
    ],
)
def test_a_regime_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        regime(**changes)


def test_a_milestone_at_the_very_end_is_allowed():
    assert regime(milestones=[200]).milestones == (6400,)
