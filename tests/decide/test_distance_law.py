"""Logarithm or power: known laws are found, the choice is not made without evidence, bad input is refused."""

import math

import numpy as np
import pytest

from anybatch import InputError
from anybatch.decide import choose_distance_law, fit_distance_law

T = np.geomspace(1, 20_000, 40)
# figure 2b of Hoffer et al. 2017, batch 64, read off the plot: distance after so many updates
FIGURE_T = [1000, 2000, 3900, 7800, 15600, 20000, 50000]
FIGURE_D = [2.63, 4.26, 5.84, 7.40, 8.88, 9.38, 10.51]


def test_a_logarithm_is_found_and_preferred():
    law = fit_distance_law(T, 1 + 2.1 * np.log(T))
    assert (law.intercept, law.slope) == pytest.approx((1, 2.1))
    assert law.better == "log"
    assert law.r2_log == pytest.approx(1)
    assert law.r2_power < 0.999
    assert law.aicc_difference > 6


@pytest.mark.parametrize(("coefficient", "exponent"), [(1.0, 0.5), (0.3, 0.37), (2.0, 1.0), (5.0, -0.25), (1e-6, 3.0)])
def test_a_power_is_found_and_preferred(coefficient, exponent):
    law = fit_distance_law(T, coefficient * T**exponent)
    assert (law.coefficient, law.exponent) == pytest.approx((coefficient, exponent), rel=1e-5)
    assert law.better == "power"
    assert law.r2_power == pytest.approx(1)
    assert law.r2_log < 0.99
    assert law.aicc_difference < -6


def test_both_fits_are_least_squares_in_the_distance():
    noisy = 1 + 2.1 * np.log(T) + np.random.default_rng(0).normal(0, 0.5, len(T)).clip(-1, 1)
    law = fit_distance_law(T, noisy)

    def r2(fitted):
        return 1 - ((noisy - fitted) ** 2).sum() / ((noisy - noisy.mean()) ** 2).sum()

    assert law.r2_log == pytest.approx(r2(law.intercept + law.slope * np.log(T)))
    assert law.r2_power == pytest.approx(r2(law.coefficient * T**law.exponent))
    for step in (0.999, 1.001):
        assert r2(law.intercept + law.slope * step * np.log(T)) < law.r2_log
        assert r2(law.intercept * step + law.slope * np.log(T)) < law.r2_log
        assert r2(law.coefficient * step * T**law.exponent) < law.r2_power
        assert r2(law.coefficient * T ** (law.exponent * step)) < law.r2_power


def test_the_published_curve_is_a_logarithm_of_slope_two_until_it_flattens():
    law = fit_distance_law(FIGURE_T, FIGURE_D, window=(1000, 20_000))
    assert law.better == "log"
    assert law.slope == pytest.approx(2.2, abs=0.1)
    assert (law.first_update, law.last_update, law.num_points) == (1000, 20_000, 6)
    assert fit_distance_law(FIGURE_T, FIGURE_D).slope < law.slope


def test_the_order_of_points_and_the_unit_of_distance_do_not_matter():
    law = fit_distance_law(FIGURE_T, FIGURE_D)
    order = [3, 0, 6, 2, 5, 1, 4]
    mixed = fit_distance_law([FIGURE_T[i] for i in order], [100 * FIGURE_D[i] for i in order])
    assert mixed.slope == pytest.approx(100 * law.slope)
    assert mixed.exponent == pytest.approx(law.exponent, abs=1e-6)
    assert mixed.aicc_difference == pytest.approx(law.aicc_difference, rel=1e-4)


def test_neither_is_preferred_where_noise_hides_the_difference():
    rng = np.random.default_rng(1)
    t = np.geomspace(1000, 20_000, 10)
    law = fit_distance_law(t, -11.3 + 2.1 * np.log(t) + rng.normal(0, 0.5, 10))
    assert law.better == "undecided"
    assert law.r2_log > 0.9
    assert law.reason.startswith("the two fit about as well: R^2 0.9")


def wandering(rng, n):
    """Noise in which neighbours are alike (correlation 0.9), with a standard deviation of 0.5."""
    noise = 0.5 * rng.standard_normal(n)
    for i in range(1, n):
        noise[i] = 0.9 * noise[i - 1] + math.sqrt(1 - 0.9**2) * noise[i]
    return noise


def test_the_wrong_law_is_rarely_preferred_although_neighbours_are_alike():
    rng = np.random.default_rng(2)
    t = np.geomspace(1000, 20_000, 100)
    truths = {"log": -11.3 + 2.1 * np.log(t), "power": 0.43 * t**0.31}
    wrong = naive = 0
    for _ in range(100):
        for truth, distance in truths.items():
            law = fit_distance_law(t, distance + wandering(rng, len(t)))
            difference = law.aicc_difference * law.num_points / law.num_independent
            wrong += law.better not in (truth, "undecided")
            naive += abs(difference) > 6 and (difference > 0) != (truth == "log")
    assert wrong / 200 < 0.096  # one in twenty, and three standard errors of 200 trials
    assert naive > 3 * wrong  # what counting every point as independent would give


def test_white_residuals_count_as_many_as_they_are():
    noise = np.random.default_rng(3).normal(0, 0.1, 1000)
    law = fit_distance_law(np.geomspace(10, 1e5, 1000), 5 + np.log(np.geomspace(10, 1e5, 1000)) + noise)
    assert law.num_independent == pytest.approx(1000, rel=0.15)


def test_the_reason_states_both_fits_and_the_window():
    assert fit_distance_law(FIGURE_T, FIGURE_D, window=(1000, 20_000)).reason == (
        "the logarithm fits better: R^2 0.9994 of -12.9 + 2.26 ln t and 0.9717 of 0.28 t^0.358, AICc apart by 13.5 "
        "(decisive from 6), over 6 points from update 1000 to 20000"
    )
    assert fit_distance_law(T, np.sqrt(T)).reason.startswith("the power fits better")


def test_the_numbers_are_plain():
    law = fit_distance_law(T, np.sqrt(T))
    assert {type(value) for value in vars(law).values()} == {float, int, str}


@pytest.mark.parametrize(
    ("updates", "distances", "window", "message"),
    [
        ([1, 2, 3], [1, 2, 3], None, "a law needs points at 4 or more different updates; got 3 from 0 to inf. Widen"),
        ([1, 2, 3, 4], [1, 2, 3, 4], (2, 9), "at 4 or more different updates; got 3 from 2 to 9"),
        ([1, 1, 2, 2, 3], [1, 2, 3, 4, 5], None, "at 4 or more different updates; got 3"),
        ([1, 2, 3, 4], [1, 2, 3], None, "updates and distances must be as many; got 4 and 3"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], None, "updates and distances must be as many; got 4 and 4"),
        ([0, 1, 2, 3], [0, 1, 2, 3], None, "updates must be positive and finite; got one that is not"),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], None, "updates must be positive and finite"),
        ([1, 2, 3, 4], [1, 2, math.nan, 4], None, "distances must be finite and at least 0; got one that is not"),
        ([1, 2, 3, 4], [1, 2, math.inf, 4], None, "distances must be finite and at least 0"),
        ([1, 2, 3, 4], [1, 2, -3, 4], None, "distances must be finite and at least 0"),
        ([1, 2, 3, 4], [2, 2, 2, 2], None, "distances must differ; got 2 at all 4 points. Nothing moved"),
    ],
)
def test_points_that_hold_no_law_are_refused(updates, distances, window, message):
    with pytest.raises(InputError, match=message):
        fit_distance_law(updates, distances, window)


@pytest.mark.parametrize(
    ("differences", "law"),
    [([-3.8, -3.2, -3.4], "power"), ([3.0, 3.1], "log"), ([1.4, 1.5, 1.5], "undecided"), ([-5.0, 5.0], "undecided"),
     ([6.1], "log"), ([], "undecided"), ([math.nan], "undecided")],
)  # fmt: skip
def test_what_one_run_leaves_open_several_may_decide(differences, law):
    assert choose_distance_law(differences) == law
