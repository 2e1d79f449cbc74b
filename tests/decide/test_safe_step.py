"""The safe step: published transitions, the optimum of batch and step, what the modes do, scale laws, refusals."""

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.safe_step import best_batch_by_walking, best_step_by_grid

from anybatch import InputError
from anybatch.decide import choose_safe_step, error_bounds, gaussian_penalty, optimal_batch_size
from anybatch.decide.error_bounds import ErrorBound
from anybatch.decide.safe_step import BEST_ERROR

TASK = {"reward_bound": 4.0, "feature_bound": 2.0, "discount": 0.9, "std": 1.0}
PENALTY = gaussian_penalty(**TASK, action_volume=4.0)
LIMITS = {"min_batch_size": 100, "max_batch_size": 500_000}


def chebyshev(estimator: str, delta: float) -> ErrorBound:
    return error_bounds.chebyshev(estimator=estimator, **TASK, horizon=20, delta=delta)


def step_of(gradient: float, size: int, bound: ErrorBound, **options):
    options = {"penalty": PENALTY, **LIMITS, **options}
    return choose_safe_step(max_gradient=gradient, batch_size=size, bound=bound, **options)


def plain(d: float, f: float = 0.0) -> ErrorBound:
    return ErrorBound("bernstein", d, f, 0.1)


@pytest.mark.parametrize(
    ("constants", "penalty"),
    [
        ({"reward_bound": 4.0, "feature_bound": 2.0, "std": 1.0, "action_volume": 4.0}, 9753.230595),
        ({"reward_bound": 5.0, "feature_bound": 2.0, "std": 0.1, "action_volume": 4.0}, 4091538.24321),
        ({"reward_bound": 4.0, "feature_bound": 2.0, "std": 1.0, "action_volume": 2.0}, 8476.615297),
    ],
)
def test_the_penalty_is_the_published_one(constants, penalty):
    assert gaussian_penalty(**constants, discount=0.9) == pytest.approx(penalty, rel=1e-10)


def test_the_published_penalty_has_no_floor_and_the_safe_one_has():
    ones = {"reward_bound": 1.0, "feature_bound": 1.0, "discount": 0.5, "std": 1.0, "action_volume": 1.0}
    assert gaussian_penalty(**ones, mode="paper") == pytest.approx(4 * (1 / math.sqrt(2 * math.pi) + 0.5), rel=1e-15)
    assert gaussian_penalty(**ones) == 4.0
    assert gaussian_penalty(**TASK, action_volume=4.0, mode="paper") == PENALTY


def test_several_actions_enter_the_penalty_by_their_joint_density():
    one = gaussian_penalty(**TASK, action_volume=4.0)
    assert gaussian_penalty(**TASK, action_volume=4.0, num_actions=1, covariance_det=1.0) == one
    two = gaussian_penalty(**TASK | {"std": 0.5}, action_volume=16.0, num_actions=2, covariance_det=0.25 * 4.0)
    assert two == pytest.approx(4 * 4 / (0.01 * 0.25) * (16 / (2 * math.pi) + 4.5))


def test_the_constants_of_the_best_batch_are_the_published_ones():
    assert pytest.approx(0.2807764064, abs=1e-10) == BEST_ERROR
    assert pytest.approx(12.6846584384, abs=1e-10) == 1 / BEST_ERROR**2
    bound = plain(BEST_ERROR * 100)  # 100 trajectories leave just the best error for a gradient of 10
    step = step_of(10.0, 100, bound)
    assert step.step_size * 2 * PENALTY == pytest.approx(0.3153415616, abs=1e-9)
    assert step.step_size == pytest.approx((13 - 3 * math.sqrt(17)) / (4 * PENALTY))
    assert step.guaranteed_gain * PENALTY / 100 == pytest.approx(0.0407801739, abs=1e-10)
    assert step.guaranteed_gain == pytest.approx((393 - 95 * math.sqrt(17)) / 32 * 100 / PENALTY)


# 780.9261406 asks for 77356.84 trajectories, rounded or not: the 77358 of the list these checks are from is off by one
@pytest.mark.parametrize(("d", "size"), [(150.1172258, 2859), (322.4386183, 13188), (780.9261406, 77357)])
def test_the_best_batch_is_the_published_one(d, size):
    assert optimal_batch_size(10.0, plain(d), 1, 10**6) == size
    assert plain(d).error(size) <= 10 * BEST_ERROR < plain(d).error(size - 1)


LOGGED = [
    ("reinforce", 0.95, 100, 11.796475, 32.243862, 1.105085e-5, 9477, False),
    ("reinforce", 0.95, 9477, 9.621503, 3.312162, 1.219962e-5, 14246, True),
    ("reinforce", 0.95, 14246, 9.355093, 2.701473, 1.561314e-5, 15069, True),
    ("gpomdp", 0.95, 3627, 9.489196, 2.492624, 1.748021e-5, 3175, True),
    ("gpomdp", 0.95, 3175, 9.543550, 2.664150, 1.628002e-5, 3139, True),
    ("gpomdp", 0.05, 58766, 9.522535, 2.699257, 1.597857e-5, 59895, True),
    ("hoeffding", 0.95, 100, 10.248359, 78.092614, 3.023593e-5, 73653, False),
    ("hoeffding", 0.95, 73653, 9.500647, 2.877496, 1.467709e-5, 85703, True),
]


@pytest.mark.parametrize(("kind", "delta", "size", "gradient", "error", "step_size", "following", "is_safe"), LOGGED)
def test_paper_mode_reproduces_the_logged_transitions(
    kind, delta, size, gradient, error, step_size, following, is_safe
):
    bound = error_bounds.hoeffding(1280.0, delta) if kind == "hoeffding" else chebyshev(kind, delta)
    step = step_of(gradient, size, bound, mode="paper")
    assert step.error == pytest.approx(error, abs=1e-6)
    assert step.step_size == pytest.approx(step_size, abs=1e-11)
    assert step.next_batch_size == following
    assert step.is_safe == is_safe
    safe = step_of(gradient, size, bound)
    assert safe == step if is_safe else (safe.step_size, safe.is_safe) == (0.0, False)


OFFICIAL = {"std": 1.0, "reward_bound": 4.0, "feature_bound": 2.0, "discount": 0.9}


@pytest.mark.parametrize(
    ("bound", "error", "step_size", "following", "next_error"),
    [
        (chebyshev("reinforce", 0.95), 18.616002, 5.34738e-6, 13188, 2.807764),
        (chebyshev("gpomdp", 0.95), 8.667022, 3.00776e-7, 2859, 2.807764),
        (error_bounds.hoeffding(320.0, 0.95), 11.271698, 2.10820e-7, 4835, 2.807764),
        (error_bounds.hoeffding(100.0, 0.95), 3.522406, 1.353528e-5, 473, 2.807764),
        (error_bounds.empirical_bernstein(2500.0, 320.0, 0.95), 8.057493, 6.82586e-7, 1880, 2.335974),
        (error_bounds.empirical_bernstein(2500.0, 100.0, 0.95), 5.527701, 4.893221e-6, 1128, 2.563502),
    ],
)
def test_paper_mode_reproduces_the_official_test_configuration(bound, error, step_size, following, next_error):
    penalty = gaussian_penalty(**OFFICIAL, action_volume=2.0)
    step = step_of(10.0, 300, bound, penalty=penalty, min_batch_size=2, max_batch_size=100_000, mode="paper")
    assert step.error == pytest.approx(error, abs=1e-6)
    assert step.step_size == pytest.approx(step_size, rel=2e-6)
    assert step.next_batch_size == following
    assert bound.error(following) == pytest.approx(next_error, rel=2e-3 if not bound.f else 1e-6)


@pytest.mark.parametrize(
    ("std", "range_", "gradient", "first", "best"),
    [(32.0, 300.0, 10.0, 167, 1285), (30.0, 1280.0, 9.5, 581, 4086), (20.0, 150.0, 1.0, 1807, 17678)],
)
def test_bernsteins_search_finds_the_published_batches(std, range_, gradient, first, best):
    bound = error_bounds.empirical_bernstein(std**2, range_, 0.95)
    assert optimal_batch_size(gradient, bound, 100, 500_000) == best
    assert bound.error(first) < gradient <= bound.error(first - 1)


@settings(deadline=None, max_examples=200)
@given(
    gradient=st.floats(0.05, 50),
    d=st.floats(0, 200),
    f=st.floats(0.01, 3000),
    smallest=st.integers(1, 300),
    extra=st.integers(0, 4000),
)
def test_bernsteins_search_equals_the_walk(gradient, d, f, smallest, extra):
    largest = smallest + extra
    found = optimal_batch_size(gradient, plain(d, f), smallest, largest)
    assert found == best_batch_by_walking(gradient, d, f, smallest, largest)


def test_paper_mode_walks_up_to_one_below_the_largest_batch():
    bound = plain(100.0, 1000.0)
    limits = {"min_batch_size": 1, "max_batch_size": 600}
    assert step_of(10.0, 300, bound, **limits).next_batch_size == 600
    assert step_of(10.0, 300, bound, **limits, mode="paper").next_batch_size == 599
    assert step_of(10.0, 300, bound, min_batch_size=1, max_batch_size=100, mode="paper").next_batch_size == 100


def test_bernsteins_search_does_not_walk():
    bound = plain(3e4, 1e6)
    start = time.perf_counter()
    found = optimal_batch_size(0.01, bound, 1, 10**15)
    assert time.perf_counter() - start < 0.1  # 10^13 looks would take weeks
    assert found > 10**13


@given(d=st.floats(1, 500), gradient=st.floats(0.1, 20), scale=st.floats(0.1, 10))
def test_the_closed_form_follows_its_scale_law(d, gradient, scale):
    size = optimal_batch_size(gradient, plain(d), 1, 10**15)
    assert size == pytest.approx((13 + 3 * math.sqrt(17)) / 2 * d**2 / gradient**2, abs=1.000001)
    scaled = optimal_batch_size(gradient * scale, plain(d * scale), 1, 10**15)
    assert abs(scaled - size) <= 1  # a gradient in other units asks for the same batch


@given(d=st.floats(1, 500), gradient=st.floats(0.1, 20))
def test_the_closed_form_is_where_the_guaranteed_gain_per_trajectory_is_largest(d, gradient):
    size = optimal_batch_size(gradient, plain(d), 1, 10**15)

    def gain(n):
        bound = plain(d)
        return step_of(gradient, n, bound, min_batch_size=1, max_batch_size=10**15).guaranteed_gain / n

    assert gain(size) >= (1 - 1e-6) * max(gain(max(size // 2, 1)), gain(size * 2), gain(size + size // 10 + 1)) or (
        size < 20
    )


@given(gradient=st.floats(0.1, 20), shares=st.lists(st.floats(0, 0.99), min_size=2, max_size=2).map(sorted))
def test_a_larger_error_never_gives_a_larger_step_or_gain(gradient, shares):
    small, large = (step_of(gradient, 100, plain(share * gradient * 10)) for share in shares)
    assert small.step_size >= large.step_size > 0
    assert small.guaranteed_gain >= large.guaranteed_gain >= 0


@given(gradient=st.floats(0.1, 20), d=st.floats(0.1, 200), size=st.integers(1, 5000), scale=st.floats(0.1, 10))
def test_units_of_the_return_cancel_in_step_times_gradient(gradient, d, size, scale):
    for mode in ("safe", "paper"):
        one = step_of(gradient, size, plain(d), mode=mode)
        other = step_of(gradient * scale, size, plain(d * scale), penalty=PENALTY * scale, mode=mode)
        if one.is_safe == other.is_safe:
            assert other.step_size * gradient * scale == pytest.approx(one.step_size * gradient, abs=1e-12)
            assert other.guaranteed_gain == pytest.approx(one.guaranteed_gain * scale, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_the_step_is_the_one_with_the_largest_guaranteed_gain(share):
    step = step_of(10.0, 100, plain(100 * share), penalty=3.0)
    assert step.step_size == pytest.approx(best_step_by_grid(10.0, 10 * share, 3.0), abs=1 / 20_000 / 3)


@given(gradient=st.floats(0.1, 20), share=st.floats(0, 3), off=st.floats(-1, 1))
def test_the_gain_is_a_lower_bound_whatever_the_true_gradient_within_the_error(gradient, share, off):
    for mode in ("safe", "paper"):
        step = step_of(gradient, 100, plain(10 * share * gradient), mode=mode)
        moved = step.step_size * gradient
        improvement = moved * (gradient + off * step.error) - PENALTY * moved**2
        assert step.guaranteed_gain <= improvement + 1e-12


def test_safe_mode_takes_no_step_where_the_error_is_not_below_the_gradient():
    for gradient, error in ((5.0, 5.0), (5.0, 50.0), (0.0, 0.0), (0.0, 1.0)):
        step = step_of(gradient, 100, plain(10 * error))
        assert (step.step_size, step.guaranteed_gain, step.is_safe) == (0.0, 0.0, False)
        assert "no step" in step.reason


def test_paper_mode_steps_further_the_larger_the_error():
    sizes = [step_of(5.0, 100, plain(error * 10), mode="paper").step_size for error in (5.0, 10.0, 100.0, 1e9)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == pytest.approx(1 / (2 * PENALTY))
    assert step_of(0.0, 100, plain(0.0), mode="paper").step_size == 0


def test_the_next_batch_stays_within_its_limits():
    assert step_of(10.0, 100, plain(1.0)).next_batch_size == 100
    assert step_of(1e-3, 100, plain(100.0)).next_batch_size == 500_000
    assert step_of(1e-300, 100, plain(1e9)).next_batch_size == 500_000
    assert step_of(0.0, 100, plain(1.0)).next_batch_size == 500_000
    assert step_of(0.0, 100, plain(1.0, 1.0)).next_batch_size == 500_000


def test_the_reason_says_what_was_compared_and_what_comes_next():
    assert step_of(10.0, 10_000, chebyshev("gpomdp", 0.25)).reason == (
        "chebyshev error of 10000 trajectories 2.926 < gradient 10: step 1.535e-05 improves with probability 0.75 per "
        "coordinate; next batch 10863"
    )
    unsafe = step_of(10.0, 10, chebyshev("gpomdp", 0.25))
    assert unsafe.reason == "chebyshev error of 10 trajectories 92.54 >= gradient 10: no step; next batch 10863"
    assert "as published, without a guarantee" in step_of(10.0, 10, chebyshev("gpomdp", 0.25), mode="paper").reason
    hopeless = step_of(0.01, 10, chebyshev("gpomdp", 0.25))
    assert hopeless.reason.endswith("no step; no batch of up to 500000 trajectories would do")
    assert "if the heuristic bound holds" in step_of(10.0, 10_000, replace(plain(1.0), is_heuristic=True)).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"min_batch_size": 500, "max_batch_size": 100},
            "min_batch_size must be at most max_batch_size; got 500 and 1",
        ),
        ({"min_batch_size": 0}, "min_batch_size must be a whole number of at least 1; got 0"),
        ({"max_batch_size": 10.5}, "max_batch_size must be a whole number"),
        ({"max_batch_size": math.inf}, "max_batch_size must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"penalty": 0.0}, "penalty must be positive and finite; got 0.0"),
        ({"max_gradient": math.nan}, "max_gradient must be at least 0 and finite; got nan"),
        ({"max_gradient": -1.0}, "max_gradient must be at least 0"),
        ({"mode": "bold"}, "mode must be one of safe, paper; got 'bold'"),
    ],
)
def test_what_is_out_of_range_is_refused(change, message):
    good = {"max_gradient": 1.0, "batch_size": 10, "bound": plain(1.0), "penalty": 1.0, **LIMITS}
    with pytest.raises(InputError, match=message):
        choose_safe_step(**good | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"discount": 1.0}, "discount must be at least 0 and below 1; got 1.0. The result is infinite at 1"),
        ({"std": 0.0}, "std must be positive"),
        ({"action_volume": math.inf}, "action_volume must be positive and finite; got inf"),
        ({"covariance_det": 0.0}, "covariance_det must be positive"),
        ({"num_actions": 0}, "num_actions must be a whole number"),
        ({"mode": "bold"}, "mode must be one of safe, paper; got 'bold'"),
    ],
)
def test_a_penalty_of_impossible_constants_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        gaussian_penalty(**{"action_volume": 4.0} | TASK | change)
