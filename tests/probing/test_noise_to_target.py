"""The noise scale on the way to a loss, of runs that go on beyond it."""

import pytest
from probing.made_up import noise_of

from anybatch.probing.noise import NoiseCurve, NoisePoint, average


def points_of(*scales, step=100):
    """A run whose loss falls by 1 from point to point, from 4 on."""
    return [NoisePoint(step * index, 4.0 - index, noise_of(scale)) for index, scale in enumerate(scales)]


def test_a_run_is_cut_at_the_loss():
    run = points_of(10.0, 20.0, 40.0, 1e6)
    assert average(run, 1, until=2.0).inverse == pytest.approx(average(run[:3], 1).inverse)
    assert average(run, 1, until=-9.0).inverse == pytest.approx(average(run, 1).inverse)


def test_between_two_points_the_inverse_is_interpolated():
    run = points_of(10.0, 20.0, 40.0)
    halfway = NoisePoint(150, 2.5, noise_of(1 / (0.5 * (1 / 20 + 1 / 40))))
    assert average(run, 1, until=2.5).inverse == pytest.approx(average([*run[:2], halfway], 1).inverse, rel=1e-6)


def test_a_noise_scale_that_grows_is_smaller_on_the_way():
    run = points_of(10.0, 20.0, 40.0, 80.0)
    means = [average(run, 1, until=loss).value for loss in (3.0, 2.0, 1.0)]
    assert means == sorted(means)


def test_a_loss_above_the_start_leaves_the_first_point():
    assert average(points_of(10.0, 20.0), 1, until=9.0).value == pytest.approx(10.0)


def test_all_runs_count_and_a_checkpoint_is_its_one_point():
    first, second = points_of(10.0, 20.0, 40.0), points_of(30.0, 30.0, 30.0)
    whole = noise_of(99.0)
    curve = NoiseCurve(tuple(first), (), whole, 8, 1.0, 1.0, 1.0, {}, "made up", (tuple(second),))
    expected = (average(first, 8, until=2.0).inverse + 1 / 30) / 2
    assert curve.average_to(2.0).inverse == pytest.approx(expected)
    checkpoint = NoiseCurve((first[0],), (), whole, None, 1.0, None, 1.0, {}, "made up")
    assert checkpoint.average_to(2.0) is whole
