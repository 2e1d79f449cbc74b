"""The law of samples against batch size: known ones are found, intervals cover, bad input is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.samples_law import fit_by_search

from anybatch import InputError
from anybatch.decide import fit_samples_law

SIZES = [4, 8, 16, 32, 64, 128, 256]
DIGITS = [2948, 2952, 3728, 5152, 8128, 13440, 24832]  # samples of a trial on the digits, per size one run


def exact(sizes, examples, critical):
    return [[examples * (1 + size / critical)] for size in sizes]


@given(st.floats(0.1, 1e9), st.floats(2, 2000))
def test_an_exact_law_is_found(examples, critical):
    law = fit_samples_law(SIZES, exact(SIZES, examples, critical))
    assert law.examples == pytest.approx(examples, rel=1e-5)
    assert law.critical_batch_size == pytest.approx(critical, rel=1e-5)
    assert law.low <= critical * (1 + 1e-5)
    assert law.high >= critical * (1 - 1e-5)
    assert max(map(abs, law.residuals)) < 1e-6


@given(st.lists(st.floats(0.7, 1.4), min_size=7, max_size=7), st.floats(5, 500))
def test_the_fit_is_that_of_a_general_optimizer(factors, critical):
    means = [values[0] * factor for values, factor in zip(exact(SIZES, 1000, critical), factors, strict=True)]
    law = fit_samples_law(SIZES, [[mean] for mean in means])
    if law.critical_batch_size is None or law.critical_batch_size > 1e4:
        return
    examples, found = fit_by_search(SIZES, means)
    assert law.examples == pytest.approx(examples, rel=1e-3)
    assert law.critical_batch_size == pytest.approx(found, rel=1e-3)


def test_the_digits_are_within_what_the_trial_found():
    law = fit_samples_law(SIZES, [[value] for value in DIGITS])
    assert max(map(abs, law.residuals)) == pytest.approx(0.064, abs=0.0005)
    assert law.low < law.critical_batch_size < law.high
    assert "critical batch size 28" in law.reason
    assert "within 6.4% of all 7 sizes" in law.reason


def test_residuals_are_measured_over_predicted_less_one_in_the_order_given():
    order = [3, 0, 6, 1]
    law = fit_samples_law([SIZES[i] for i in order], [[DIGITS[i]] for i in order])
    expected = [DIGITS[i] / law.samples(SIZES[i]) - 1 for i in order]
    assert law.residuals == pytest.approx(expected)


@given(st.floats(1e-6, 1e6))
def test_the_unit_of_samples_moves_only_the_examples(unit):
    law = fit_samples_law(SIZES, [[value] for value in DIGITS])
    scaled = fit_samples_law(SIZES, [[unit * value] for value in DIGITS])
    assert scaled.examples == pytest.approx(unit * law.examples)
    assert scaled.critical_batch_size == pytest.approx(law.critical_batch_size)
    assert (scaled.low, scaled.high) == pytest.approx((law.low, law.high))


def test_the_unit_of_batch_sizes_moves_the_critical_one_with_it():
    law = fit_samples_law(SIZES, [[value] for value in DIGITS])
    tokens = fit_samples_law([64 * size for size in SIZES], [[value] for value in DIGITS])
    assert tokens.critical_batch_size == pytest.approx(64 * law.critical_batch_size)
    assert (tokens.low, tokens.high) == pytest.approx((64 * law.low, 64 * law.high))


def test_the_mean_of_the_runs_is_fitted():
    spread = [[0.9 * value, 1.1 * value] for value in DIGITS]
    law, alone = fit_samples_law(SIZES, spread), fit_samples_law(SIZES, [[value] for value in DIGITS])
    assert law.critical_batch_size == pytest.approx(alone.critical_batch_size)
    assert law.examples == pytest.approx(alone.examples)
    assert law.low < alone.low
    assert law.high > alone.high


def test_a_weight_pulls_the_law_to_its_size():
    heavy = fit_samples_law(SIZES, [[value] for value in DIGITS], weights=[100, 1, 1, 1, 1, 1, 1])
    even = fit_samples_law(SIZES, [[value] for value in DIGITS])
    assert abs(heavy.residuals[0]) < abs(even.residuals[0]) / 5


def test_equal_weights_of_any_size_change_nothing():
    even = fit_samples_law(SIZES, [[value] for value in DIGITS])
    assert fit_samples_law(SIZES, [[value] for value in DIGITS], weights=[7] * 7) == even


@pytest.mark.parametrize("runs", [1, 4])
def test_the_interval_covers_the_truth_as_often_as_it_says(runs):
    rng, covered, trials = np.random.default_rng(3), 0, 300
    for _ in range(trials):
        noisy = [value * np.exp(rng.normal(0, 0.08, runs)) for (value,) in exact([8, 16, 32, 64, 128], 1000, 40)]
        law = fit_samples_law([8, 16, 32, 64, 128], noisy, confidence=0.9)
        covered += law.low <= 40 <= (math.inf if law.high is None else law.high)
    assert 0.87 <= covered / trials <= 0.99  # of runs and residuals the wider counts, so it may be above 0.9


def test_samples_that_do_not_grow_have_no_critical_size():
    for means in ([100, 100, 100, 100], [130, 120, 110, 100]):
        law = fit_samples_law([8, 16, 32, 64], [[value] for value in means])
        assert law.critical_batch_size is None
        assert law.high is None
        assert law.samples(1e9) == law.examples == pytest.approx(math.exp(np.log(means).mean()))
        assert "do not grow" in law.reason


def test_samples_that_grow_as_the_batch_have_an_interval_from_zero():
    law = fit_samples_law([8, 16, 32, 64], [[8], [16], [32], [64]])
    assert law.low == 0
    assert law.samples(128) == pytest.approx(128, rel=1e-2)


def test_two_single_runs_are_joined_without_an_interval():
    law = fit_samples_law([10, 100], [[110], [200]])
    assert (law.examples, law.critical_batch_size) == pytest.approx((100, 100))
    assert (law.low, law.high) == (0, None)
    assert "no upper end" in law.reason


def test_two_sizes_of_several_runs_have_an_interval():
    law = fit_samples_law([10, 100], [[109, 111], [198, 202]])
    assert 0 < law.low < 100 < law.high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([8], [[1]]), r"needs? 2 or more batch sizes, each once; got \[8\]"),
        (([8, 8], [[1], [2]]), r"each once; got \[8, 8\]. Pool a size's runs"),
        (([8, 16], [[1]]), r"one per batch size; got 1 and 2 for 2 sizes"),
        (([8, 16], [[1], [2]], [1]), r"one per batch size; got 2 and 1 for 2 sizes"),
        (([8, 16], [[1], []]), r"samples must be positive and finite; got \[\]. Leave such a size out"),
        (([8, 16], [[1], [math.inf]]), r"samples must be positive and finite; got \[inf\]"),
        (([0, 16], [[1], [2]]), r"batch_sizes must be positive and finite"),
        (([8, 16], [[1], [2]], [1, 0]), r"weights must be positive and finite"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    sizes, samples, *weights = arguments
    with pytest.raises(InputError, match=message):
        fit_samples_law(sizes, samples, weights=weights[0] if weights else None)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(InputError, match="confidence must be between 0 and 1"):
        fit_samples_law([8, 16], [[1], [2]], confidence=confidence)
