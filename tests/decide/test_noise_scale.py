"""The noise scale: intervals that cover the truth, corrections that are exact, and no number where there is none."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.gradient_moments import exact_noise_scale

from anybatch.decide import NoiseScale, average_noise_scale, estimate_noise_scale
from anybatch.stats import GradientMoments

SIZES = [8, 16, 8, 32]
BATCH_SIZE = sum(SIZES)
NUM_COORDINATES = 100
NUM_REPETITIONS = 2000

# the properties are wanted in the report whatever its family; `--junitxml` alone would warn
records_properties = pytest.mark.filterwarnings("ignore:record_property is incompatible:pytest.PytestWarning")


def gaussian_steps(
    scale: float, num_steps: int, seed: int, num_repetitions: int = NUM_REPETITIONS
) -> list[GradientMoments]:
    """Draw steps of Gaussian gradients with |G|^2 = 1 and tr(S) = scale; each "module" is a repetition."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(SIZES, dtype=float)
    steps = []
    for _ in range(num_steps):
        mean_of_sq_norms, mean = 0.0, 0.0
        for size, weight in zip(sizes, sizes / sizes.sum(), strict=True):
            gradient = rng.standard_normal((num_repetitions, NUM_COORDINATES))
            gradient *= math.sqrt(scale / NUM_COORDINATES / size)
            gradient[:, 0] += 1
            mean_of_sq_norms = mean_of_sq_norms + weight * (gradient**2).sum(1)
            mean = mean + weight * gradient
        steps.append(
            GradientMoments(
                modules=tuple(map(str, range(num_repetitions))),
                sizes=torch.from_numpy(sizes),
                weights=torch.from_numpy(sizes / sizes.sum()),
                mean_of_sq_norms=torch.from_numpy(mean_of_sq_norms),
                sq_norm_of_mean=torch.from_numpy((mean**2).sum(1)),
                num_non_finite=torch.tensor(0),
            )
        )
    return steps


def repetitions(scale: float, num_steps: int, seed: int, **options) -> list[NoiseScale]:
    return list(estimate_noise_scale(gaussian_steps(scale, num_steps, seed), **options).modules.values())


def covers(found: NoiseScale, truth: float) -> bool:
    return found.low <= truth and (found.high is None or truth <= found.high)


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


@pytest.fixture(scope="module")
def cells() -> dict[float, list[NoiseScale]]:
    """Repetitions of 40 steps for each true noise scale over the batch size."""
    return {ratio: repetitions(ratio * BATCH_SIZE, 40, seed=17) for ratio in (0.3, 3.0, 30.0, 300.0)}


# ------------------------------------------------------------------------------------------- intervals


@records_properties
@pytest.mark.parametrize("ratio", [0.3, 3.0, 30.0, 300.0])
def test_the_confidence_set_covers_the_truth_as_often_as_it_says(cells, ratio, record_property):
    found, truth = cells[ratio], ratio * BATCH_SIZE
    measured = [scale for scale in found if scale.verdict == "measured"]
    record_property("measured", share([scale.verdict == "measured" for scale in found]))
    covered = share([covers(scale, truth) for scale in found])
    record_property("covered", covered)
    # a squared norm that is significantly negative has no positive ratio: the set is empty, and told as 0 to
    # infinity. Counted as a miss, as Fieller's theorem counts it, the coverage is nominal in every cell; as told
    # it can only be more. 2 percent are 4 standard errors.
    empty = share([scale.high is None and scale.low == 0.0 for scale in found])
    assert 0.93 <= covered - empty <= 0.97
    assert covered >= 0.93
    assert share([not covers(scale, truth) for scale in measured]) * len(measured) <= 0.06 * len(found)


def test_over_all_cells_the_confidence_set_covers_93_to_97_percent(cells):
    covered = [covers(scale, ratio * BATCH_SIZE) for ratio, found in cells.items() for scale in found]
    assert 0.93 <= share(covered) <= 0.97


@pytest.mark.parametrize("ratio", [0.3, 3.0, 30.0, 300.0])
def test_the_one_sided_limit_is_below_the_truth_as_often_as_it_says(cells, ratio):
    # no limit at all, for want of any positive gradient, counts as a miss here
    below = [scale.at_least is not None and scale.at_least <= ratio * BATCH_SIZE for scale in cells[ratio]]
    assert 0.93 <= share(below) <= 0.97


@records_properties
def test_fewer_repetitions_are_measured_the_larger_the_scale(cells, record_property):
    shares = [share([scale.verdict == "measured" for scale in found]) for found in cells.values()]
    record_property("measured by scale over batch", dict(zip(cells, shares, strict=True)))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert 0.05 < shares[2] < 0.5
    assert shares[3] < 0.06


def test_the_verdict_is_undetermined_exactly_when_the_set_is_unbounded(cells):
    for scale in itertools.chain(*cells.values()):
        measured = scale.high is not None
        assert scale.verdict == ("measured" if measured else "undetermined")
        assert (scale.value is not None) == measured
        is_empty = not measured and scale.at_least is None
        assert (scale.steps_to_settle is None) == (measured or is_empty)
        assert type(scale.low) is float  # and not of numpy, for checkpoints and JSON
        assert type(scale.high) is (float if measured else type(None))
        if measured:
            assert 0 < scale.low <= scale.value <= scale.high
            assert scale.inverse == pytest.approx(1 / scale.value)
        else:
            assert "samples" in scale.reason


def test_more_confidence_is_a_wider_set(cells):
    steps = gaussian_steps(3.0 * BATCH_SIZE, 40, seed=17)
    wide = estimate_noise_scale(steps, confidence=0.99)
    for name, narrow in enumerate(cells[3.0]):
        assert wide.modules[str(name)].low < narrow.low < narrow.high < wide.modules[str(name)].high


def test_the_standard_error_of_the_inverse_is_its_spread():
    found = repetitions(0.3 * BATCH_SIZE, 20, seed=5)
    inverses = np.asarray([scale.inverse for scale in found])
    errors = np.asarray([scale.inverse_std_error for scale in found])
    # a standard deviation of 2,000 draws is known to 1.6 percent, one of 20 steps is low by 1 percent
    assert np.sqrt((errors**2).mean()) == pytest.approx(inverses.std(), rel=0.07)
    assert inverses.mean() == pytest.approx(1 / (0.3 * BATCH_SIZE), rel=0.01)


def test_the_model_is_the_sum_of_its_modules():
    steps = gaussian_steps(3.0 * BATCH_SIZE, 10, seed=1, num_repetitions=4)
    whole = estimate_noise_scale(steps)
    trace = sum(float(step.grad_var_trace().sum()) for step in steps)
    sq_norm = sum(float(step.grad_sq_norm().sum()) for step in steps)
    assert whole.value == pytest.approx(trace / sq_norm)
    assert list(whole.modules) == ["0", "1", "2", "3"]
    for index, scale in enumerate(whole.modules.values()):
        trace = sum(float(step.grad_var_trace()[index]) for step in steps)
        assert scale.value == pytest.approx(trace / sum(float(step.grad_sq_norm()[index]) for step in steps))
        assert scale.modules == {}


# ------------------------------------------------------------------------------------------- steps to settle


def share_measured(scale: float, num_steps: int) -> float:
    found = estimate_noise_scale(gaussian_steps(scale, num_steps, seed=3, num_repetitions=400))
    return share([one.verdict == "measured" for one in found.modules.values()])


@pytest.mark.parametrize("ratio", [15.0, 30.0])
def test_steps_to_settle_is_right_to_a_factor_of_two(ratio):
    """Half the number leaves most runs undetermined, twice the number settles most."""
    scale = ratio * BATCH_SIZE
    undetermined = [one for one in repetitions(scale, 20, seed=23) if one.verdict == "undetermined"]
    assert len(undetermined) > 0.3 * NUM_REPETITIONS
    predicted = float(np.median([one.steps_to_settle for one in undetermined if one.steps_to_settle]))
    assert share_measured(scale, math.ceil(predicted / 2)) < 0.5 < share_measured(scale, math.ceil(2 * predicted))


def test_steps_to_settle_never_promises_more_steps_than_are_needed_by_much(cells):
    """Where the gradient drowns, the number is a least: the truth needs about 10,000 steps of this kind."""
    predicted = [one.steps_to_settle for one in cells[300.0] if one.steps_to_settle]
    assert min(predicted) > 40
    assert float(np.median(predicted)) < 20_000


# ------------------------------------------------------------------------------------------- small populations


POPULATION = torch.tensor(
    [
        [2.0, 0.3, 1.0],
        [1.0, -0.5, 0.2],
        [3.0, 1.1, 0.8],
        [1.5, 0.0, -0.4],
        [2.2, 0.9, 0.1],
        [0.7, -1.0, 1.2],
        [2.6, 0.4, 0.5],
    ],
    dtype=torch.float64,
)
N = len(POPULATION)
SMALL_PARTS = [2, 1, 1]


def every_draw(replacement: bool) -> list[GradientMoments]:
    """Every possible step of parts of 2, 1 and 1 samples; equally likely, so averages are expectations."""
    num_drawn = sum(SMALL_PARTS)
    draws = (
        itertools.product(range(N), repeat=num_drawn) if replacement else itertools.permutations(range(N), num_drawn)
    )
    steps = []
    for draw in draws:
        samples = POPULATION[list(draw)]
        means = torch.stack([part.mean(0) for part in samples.split(SMALL_PARTS)])
        steps.append(GradientMoments.from_gradients({"all": means}, SMALL_PARTS))
    return steps


@pytest.fixture(scope="module", params=[False, True], ids=["without replacement", "with replacement"])
def draws(request) -> tuple[bool, list[GradientMoments]]:
    return request.param, every_draw(request.param)


@pytest.mark.parametrize("target", ["training_set", "population"])
def test_the_correction_for_a_small_training_set_is_exact_in_expectation(draws, target):
    replacement, steps = draws
    found = estimate_noise_scale(steps, target=target, population_size=N, replacement=replacement)
    assert found.value == pytest.approx(getattr(exact_noise_scale(list(POPULATION)), target), rel=1e-10)
    assert found.target == target


def test_without_the_correction_the_bias_is_visible(draws):
    """Uncorrected, draws without replacement speak of the population, draws with replacement of the set."""
    replacement, steps = draws
    found, exact = estimate_noise_scale(steps), exact_noise_scale(list(POPULATION))
    meant, other = exact.population, exact.training_set
    if replacement:
        meant, other = other, meant
    assert found.value == pytest.approx(meant, rel=1e-10)
    assert abs(found.value / other - 1) > 0.15


def test_taking_one_way_of_drawing_for_the_other_is_visible(draws):
    replacement, steps = draws
    found = estimate_noise_scale(steps, population_size=N, replacement=not replacement)
    assert abs(found.value / exact_noise_scale(list(POPULATION)).training_set - 1) > 0.15


def test_a_step_may_hold_the_whole_training_set():
    order = np.random.default_rng(0)
    steps = []
    for _ in range(400):
        samples = POPULATION[order.permutation(N)]
        means = torch.stack([part.mean(0) for part in samples.split([4, 3])])
        steps.append(GradientMoments.from_gradients({"all": means}, [4, 3]))
    found = estimate_noise_scale(steps, population_size=N)
    assert covers(found, exact_noise_scale(list(POPULATION)).training_set)


# ------------------------------------------------------------------------------------------- no number


def antithetic_steps(num_steps: int = 20) -> list[GradientMoments]:
    """Parts that cancel: they are no independent draws, and the squared norm comes out negative."""
    rng = torch.Generator().manual_seed(0)
    halves = [torch.randn(50, generator=rng) for _ in range(num_steps)]
    return [GradientMoments.from_gradients({"all": torch.stack([half, -half])}, [4, 4]) for half in halves]


def test_a_significantly_negative_squared_norm_never_becomes_a_number():
    found = estimate_noise_scale(antithetic_steps())
    assert (found.value, found.low, found.high, found.at_least) == (None, 0.0, None, None)
    assert found.verdict == "undetermined"
    assert found.inverse < 0
    assert "the squared norm came out negative" in found.reason


def test_gradients_that_are_zero_are_undetermined():
    steps = [GradientMoments.from_gradients({"all": torch.zeros(2, 3)}, [4, 4]) for _ in range(3)]
    found = estimate_noise_scale(steps)
    assert (found.value, found.verdict) == (None, "undetermined")


def test_gradients_without_noise_have_a_noise_scale_of_zero():
    steps = [GradientMoments.from_gradients({"all": torch.ones(2, 3)}, [4, 4]) for _ in range(3)]
    found = estimate_noise_scale(steps)
    assert found.verdict == "measured"
    assert found.value == pytest.approx(0.0, abs=1e-12)


def test_steps_that_are_not_finite_are_left_out_and_counted():
    steps = gaussian_steps(0.3 * BATCH_SIZE, 5, seed=0, num_repetitions=2)
    bad = GradientMoments.from_gradients({"0": torch.full((2, 1), float("nan")), "1": torch.ones(2, 1)}, [4, 4])
    found, clean = estimate_noise_scale([bad, *steps, bad]), estimate_noise_scale(steps)
    assert (found.value, found.low, found.high) == (clean.value, clean.low, clean.high)
    assert (found.num_steps, found.num_skipped, clean.num_skipped) == (5, 2, 0)
    assert found.reason == clean.reason + "; 2 steps with gradients that are not finite were left out"


def test_the_reason_of_a_measured_scale_is_its_interval():
    found = estimate_noise_scale(gaussian_steps(0.3 * BATCH_SIZE, 40, seed=0, num_repetitions=1), confidence=0.975)
    assert found.reason == (
        f"{found.value:.3g} samples, 97.5% interval {found.low:.3g} to {found.high:.3g}, from 40 steps"
    )


def test_the_reason_of_an_undetermined_scale_is_what_is_known_and_what_it_would_take(cells):
    found = next(scale for scale in cells[300.0] if scale.high is None and scale.at_least)
    assert found.reason == (
        f"at least {found.at_least:.3g} samples (95%): over 40 steps the gradient is not distinguishable from "
        f"zero; at least {found.steps_to_settle} such steps would settle it"
    )


# ------------------------------------------------------------------------------------------- averages


def point(inverse: float, std_error: float = 0.0, num_steps: int = 20, **fields) -> NoiseScale:
    values = {
        "value": 1 / inverse if inverse > 0 else None,
        "low": 0.0,
        "high": None,
        "verdict": "undetermined",
        "at_least": None,
        "steps_to_settle": None,
        "inverse": inverse,
        "inverse_std_error": std_error,
        "num_steps": num_steps,
        "num_skipped": 0,
        "confidence": 0.95,
        "target": "training_set",
    }
    return NoiseScale(**(values | fields))


def test_the_average_over_a_run_is_the_harmonic_mean():
    found = average_noise_scale([point(1 / 100), point(1 / 300)])
    assert found.value == pytest.approx(150.0)
    assert found.verdict == "measured"
    assert found.num_steps == 40


def test_weights_say_how_much_of_the_run_a_point_stands_for():
    found = average_noise_scale([point(1 / 100), point(1 / 300)], weights=[1, 3])
    assert found.value == pytest.approx(1 / (0.25 / 100 + 0.75 / 300))
    assert average_noise_scale([point(1 / 100), point(-5.0)], weights=[2, 0]).value == pytest.approx(100.0)


@pytest.mark.parametrize("inverse", [1e-4, 0.0, -1e-4])
def test_an_undetermined_point_takes_part_with_its_inverse(inverse):
    found = average_noise_scale([point(1 / 100, 1e-5), point(inverse, 1e-4)])
    assert found.value == pytest.approx(2 / (1 / 100 + inverse))
    assert found.inverse_std_error == pytest.approx(math.hypot(1e-5, 1e-4) / 2)
    assert found.low < found.value < found.high


def test_an_average_that_may_be_zero_is_undetermined():
    found = average_noise_scale([point(1e-3, 1e-3), point(-4e-4, 1e-3)])
    assert (found.value, found.high, found.verdict) == (None, None, "undetermined")
    assert found.low < found.at_least
    assert "at least" in found.reason
    assert found.steps_to_settle > found.num_steps


def test_an_average_that_is_negative_beyond_its_error_is_no_number():
    found = average_noise_scale([point(-1e-2, 1e-4), point(-1e-2, 1e-4)])
    assert (found.value, found.high, found.at_least) == (None, None, None)
    assert "the squared norm came out negative" in found.reason


def test_the_model_alone_is_the_same_without_its_modules():
    steps = gaussian_steps(50.0, 5, seed=0, num_repetitions=3)
    whole, alone = estimate_noise_scale(steps), estimate_noise_scale(steps, per_module=False)
    assert len(whole.modules) == 3
    assert alone == replace(whole, modules={})


def test_modules_are_averaged_each_for_itself():
    first = point(1 / 100, modules={"body": point(1 / 50), "head": point(1 / 10)})
    second = point(1 / 300, modules={"body": point(1 / 150), "head": point(1 / 30)})
    found = average_noise_scale([first, second])
    assert found.modules["body"].value == pytest.approx(75.0)
    assert found.modules["head"].value == pytest.approx(15.0)


def test_the_interval_of_an_average_covers_the_truth_as_often_as_it_says():
    """Three points of a run, the last alone mostly undetermined; unequal weights."""
    scales, weights = np.asarray([1.0, 4.0, 40.0]) * BATCH_SIZE, np.asarray([3.0, 2.0, 5.0])
    truth = 1 / (weights / weights.sum() / scales).sum()
    points = [estimate_noise_scale(gaussian_steps(scale, 15, seed)) for seed, scale in enumerate(scales)]
    undetermined = share([scale.verdict == "undetermined" for scale in points[2].modules.values()])
    assert undetermined > 0.8
    found = average_noise_scale(points, list(weights)).modules.values()
    assert 0.93 <= share([covers(scale, truth) for scale in found]) <= 0.97
    assert share([scale.verdict == "measured" for scale in found]) > 0.99


# ------------------------------------------------------------------------------------------- refusals


def two_steps() -> list[GradientMoments]:
    return gaussian_steps(BATCH_SIZE, 2, seed=0, num_repetitions=1)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
def test_a_confidence_outside_of_0_to_1_is_refused(confidence):
    with pytest.raises(ValueError, match=f"confidence must be between 0 and 1; got {confidence}"):
        estimate_noise_scale(two_steps(), confidence=confidence)


def test_steps_of_different_modules_are_refused():
    other = GradientMoments.from_gradients({"head": torch.ones(2, 2)}, [1, 1])
    with pytest.raises(ValueError, match=r"all steps must have the same modules; got \[\('0',\), \('head',\)\]"):
        estimate_noise_scale([*two_steps(), other])


def test_fewer_than_two_steps_are_refused():
    with pytest.raises(ValueError, match=r"a noise scale needs at least 2 steps; got 0\. Measure more steps"):
        estimate_noise_scale([])
    with pytest.raises(ValueError, match=r"at least 2 steps; got 1\. Measure more steps"):
        estimate_noise_scale(two_steps()[:1])


def test_fewer_than_two_finite_steps_are_refused_and_the_others_counted():
    bad = GradientMoments.from_gradients({"0": torch.full((2, 1), float("inf"))}, [1, 1])
    with pytest.raises(ValueError, match=r"got 1, and 2 with gradients that are not finite\. Measure more"):
        estimate_noise_scale([two_steps()[0], bad, bad])


@pytest.mark.parametrize("target", ["training_set", "population"])
def test_a_step_larger_than_the_population_is_refused_without_replacement(target):
    with pytest.raises(ValueError, match="must fit the population; got 64 samples of 63"):
        estimate_noise_scale(two_steps(), target=target, population_size=63)
    estimate_noise_scale(two_steps(), target=target, population_size=64)
    estimate_noise_scale(two_steps(), target=target, population_size=63, replacement=True)


@pytest.mark.parametrize("size", [1, 0, -5, float("inf"), float("nan")])
@pytest.mark.parametrize("replacement", [False, True])
def test_a_population_of_one_sample_or_none_is_refused(size, replacement):
    with pytest.raises(ValueError, match=f"population_size must be a number above 1; got {size}. Leave it out"):
        estimate_noise_scale(two_steps(), population_size=size, replacement=replacement)


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="an average needs at least 1 noise scale; got none"):
        average_noise_scale([])


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, -1], [0, 0], [1, float("nan")]])
def test_weights_of_an_average_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must be 2 numbers of at least 0; got \["):
        average_noise_scale([point(1.0), point(2.0)], weights)


def test_an_average_over_different_modules_is_refused():
    first, second = point(1.0, modules={"body": point(1.0)}), point(1.0, modules={"head": point(1.0)})
    with pytest.raises(ValueError, match=r"all noise scales must have the same modules; got .*'body'.*'head'"):
        average_noise_scale([first, second])


def test_a_module_without_gradient_at_one_point_keeps_the_run_finite():
    nothing = [GradientMoments.from_gradients({"0": torch.zeros(2, 3)}, [4, 4]) for _ in range(3)]
    something = gaussian_steps(0.3 * BATCH_SIZE, 40, seed=0, num_repetitions=1)
    found = average_noise_scale([estimate_noise_scale(nothing), estimate_noise_scale(something)])
    assert math.isfinite(found.inverse)
    assert "there is no gradient" in estimate_noise_scale(nothing).reason


def test_samples_without_noise_have_a_noise_scale_of_zero():
    same = [GradientMoments.from_gradients({"all": torch.ones(2, 3)}, [4, 4]) for _ in range(3)]
    found = estimate_noise_scale(same)
    assert found.verdict == "measured"
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert math.isfinite(found.inverse)


def test_a_larger_unit_divides_the_noise_scale():
    found = estimate_noise_scale(gaussian_steps(0.3 * BATCH_SIZE, 40, seed=0, num_repetitions=1))
    in_tens = found.in_units_of(10)
    assert in_tens.value == pytest.approx(found.value / 10)
    assert (in_tens.low, in_tens.high) == pytest.approx((found.low / 10, found.high / 10))
    assert in_tens.inverse == pytest.approx(10 * found.inverse)
    assert f"{in_tens.value:.3g} samples" in in_tens.reason
