"""The loop of 2022: growing batches, the schedule, rules, the milestone, resume, refusals."""

import io

import gymnasium
import numpy as np
import pytest
import torch

from anybatch import InputError
from anybatch.decide import confidence_schedule, return_interval, vector_error_bounds
from anybatch.rl import LQG, GaussianPolicy, SmoothingPolicyGradient, SoftmaxPolicy, estimate_gradient
from anybatch.rl.gradient_estimate import GradientBatch
from anybatch.seeds import derive_seed

SMOOTHNESS = 4 * (4 + 4) / 0.01  # R (F^2 + F^2) / sig^2 / (1 - gam)^2


class Bandit(gymnasium.vector.VectorEnv):
    """Forty sub-environments, two actions; the first pays 1 and the other nothing, for ever."""

    def __init__(self):
        self.num_envs = 40
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, 40)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, 40)

    def reset(self, *, seed=None, options=None):
        return np.ones((40, 1)), {}

    def step(self, actions):
        return np.ones((40, 1)), (np.asarray(actions) == 0).astype(float), np.zeros(40, bool), np.zeros(40, bool), {}


def agent(theta=0.0, **options) -> SmoothingPolicyGradient:
    options = {"bound": "sample_chebyshev", "delta": 0.25, "seed": 3, **options}
    return SmoothingPolicyGradient(LQG(), GaussianPolicy(theta), **options)


def bandit(**options) -> SmoothingPolicyGradient:
    defaults = {"bound": "sample_chebyshev", "delta": 0.25, "discount": 0.5, "horizon": 2, "reward_bound": 1.0}
    defaults |= {"feature_bound": 1.0, "mini_batch_size": 40, "max_batch_size": 400, "seed": 1}
    return SmoothingPolicyGradient(Bandit(), SoftmaxPolicy(torch.zeros(2, 1)), **(defaults | options))


def size_that_is_enough(bound_of, sizes, delta, theta) -> tuple[int, int]:
    """The batch size and the look at which the error is half the gradient, one size after the other."""
    batch = GradientBatch(LQG(), GaussianPolicy(theta), seed=derive_seed(3, "batch", 0))
    for check, size in enumerate(sizes, 1):
        batch.draw(size - batch.num_trajectories)
        estimate = batch.estimate()
        error = bound_of(float(estimate.variance.sum()), confidence_schedule(delta, 1, check)).error(size)
        if error <= abs(estimate.gradient.item()) / 2:
            return size, check
    raise AssertionError("never enough")


@pytest.mark.parametrize(("bound", "growth"), [("bernstein", 1.0), ("sample_chebyshev", 2.0)])
def test_a_batch_grows_until_its_error_is_half_the_gradient(bound, growth):
    def bound_of(variance, share):
        if bound == "sample_chebyshev":
            return vector_error_bounds.vector_chebyshev(variance, share)
        task = {"estimator": "gpomdp", "reward_bound": 4.0, "num_parameters": 1, "discount": 0.9, "horizon": 20}
        return vector_error_bounds.vector_bernstein(variance=variance, score_bound=2.0, delta=share, **task)

    mini = 10_000 if growth == 1 else 500
    sizes = [mini * look for look in range(1, 20)] if growth == 1 else [mini * 2**look for look in range(10)]
    size, check = size_that_is_enough(bound_of, sizes, 0.2, -0.5)
    update = agent(-0.5, bound=bound, delta=0.2, mini_batch_size=mini, growth=growth).step()
    assert check > 1
    assert update.batch_size == size
    assert update.step_size == pytest.approx(1 / (2 * SMOOTHNESS))
    assert update.error <= update.gradient_norm / 2
    assert update.guaranteed_gain >= update.gradient_norm**2 / (8 * SMOOTHNESS) * 0.999
    assert (update.is_safe, update.coordinate) == (True, None)


def test_the_whole_gradient_moves():
    env = LQG(size=2)
    loop = SmoothingPolicyGradient(env, GaussianPolicy(torch.zeros(2, 2)), "sample_chebyshev", delta=0.9, seed=3)
    update = loop.step()
    estimate = estimate_gradient(env, GaussianPolicy(torch.zeros(2, 2)), 100, seed=derive_seed(3, "batch", 0))
    assert update.batch_size == 100
    assert torch.allclose(loop.policy.parameters, update.step_size * estimate.gradient)
    assert loop.policy.parameters.count_nonzero() == 4


def test_a_batch_that_may_not_grow_takes_a_smaller_step_or_none():
    small = agent(-0.3, mini_batch_size=500, max_batch_size=500).step()
    assert small.batch_size == 500
    assert 0 < small.step_size < 1 / (2 * SMOOTHNESS)
    assert small.guaranteed_gain >= 0
    none = agent(-0.65, mini_batch_size=500, max_batch_size=700).step()
    assert (none.batch_size, none.step_size, none.is_safe) == (500, 0.0, False)


def test_the_probability_of_a_run_is_spent_along_the_schedule():
    run = agent(delta=0.3, growth=2.0).run(60_000)
    spent = [update.failure_probability for update in run.iterations]
    assert spent == pytest.approx([0.3 / (k * (k + 1)) for k in range(1, len(spent) + 1)])
    assert run.failure_probability == pytest.approx(0.3 * (1 - 1 / (len(spent) + 1)))
    assert len(spent) > 2


@pytest.mark.parametrize("rule", ["published", "published_fast"])
def test_published_rules_step_with_less_and_count_as_unsafe(rule):
    corrected, published = (agent(-0.5, rule=name, max_batch_size=3000).step() for name in ("corrected", rule))
    assert published.batch_size < corrected.batch_size
    assert published.step_size == pytest.approx((2 if rule == "published_fast" else 1) * 4 / (2 * SMOOTHNESS))  # no R
    assert not published.is_safe
    assert published.failure_probability == 1
    run = agent(-0.5, rule=rule).run(500)
    assert "the published rule has a batch that is too small" in run.notes[0]
    assert "step(s) without a guarantee, the first at update 1" in run.notes[1]


def test_a_softmax_policy_gets_better_and_every_bound_can_be_had():
    run = bandit().run(4000)
    assert run.iterations[-1].measured_performance > run.iterations[0].measured_performance
    assert run.parameters[0] > 0 > run.parameters[1]
    for bound in ("bernstein", "chebyshev", "bounded_score"):
        update = bandit(bound=bound, baseline=False).step()
        assert update.guarantee == "proven"
        assert bandit(bound=bound).step().guarantee == "heuristic"
        assert update.error > 0
    assert bandit().step().guarantee == "heuristic"
    with pytest.raises(InputError, match="bound must fit a softmax policy; got 'sub_gaussian'"):
        bandit(bound="sub_gaussian")


def test_bounds_of_a_gaussian_policy_are_those_of_the_paper():
    policy, share = GaussianPolicy(0.0), confidence_schedule(0.25, 1, 1)
    limits = {"mini_batch_size": 200, "max_batch_size": 200}
    estimate = estimate_gradient(LQG(), policy, 200, seed=derive_seed(3, "batch", 0))
    task = {"estimator": "gpomdp", "reward_bound": 4.0, "discount": 0.9, "horizon": 20}
    variance = vector_error_bounds.variance_bound(score_sq_bound=4.0, **task)
    task |= {"num_parameters": 1, "delta": share}
    expected = {
        "chebyshev": vector_error_bounds.vector_chebyshev(variance, share),
        "sub_gaussian": vector_error_bounds.sub_gaussian_score(score_scale=2.0, **task),
        "bernstein": vector_error_bounds.vector_bernstein(
            variance=float(estimate.variance.sum()), score_bound=2.0, **task
        ),
    }
    for name, bound in expected.items():
        assert agent(bound=name, **limits).step().error == pytest.approx(bound.error(200))
        update = agent(bound=name, baseline=False, **limits).step()
        assert update.guarantee == ("heuristic" if name == "bernstein" else "proven")
    with pytest.raises(InputError, match="bound must fit a Gaussian policy; got 'bounded_score'"):
        agent(bound="bounded_score")
    published = agent(bound="bernstein", rule="published", **limits).step()
    assert published.error < agent(bound="bernstein", **limits).step().error  # R is left out


def test_later_updates_have_a_smaller_share_of_the_probability():
    loop = agent(bound="sub_gaussian", mini_batch_size=200, max_batch_size=200)
    for iteration in (1, 2, 3):
        bound = vector_error_bounds.sub_gaussian_score(
            estimator="gpomdp",
            reward_bound=4.0,
            score_scale=2.0,
            num_parameters=1,
            discount=0.9,
            horizon=20,
            delta=confidence_schedule(0.25, iteration, 1),
        )
        assert loop.step().error == pytest.approx(bound.error(200))


def test_the_bound_on_features_becomes_one_on_their_norm():
    policy = GaussianPolicy(torch.zeros(2, 2))
    for options, norm in (({}, 2 * 2**0.5), ({"feature_norm_bound": 2.5}, 2.5)):
        loop = SmoothingPolicyGradient(LQG(size=2), policy, **options)
        assert loop.rule.smoothness(loop.deployment.constants) == pytest.approx(8 * 2 * norm**2 / 0.01)


def test_a_milestone_lets_updates_cost_fewer_trajectories():
    options = {"delta": 0.05, "mini_batch_size": 40, "max_batch_size": 40_000, "growth": 1.3}
    sizes = [bandit(tolerance=tolerance, **options).step().batch_size for tolerance in (0.0, 0.3, 0.9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    strict = bandit(tolerance=0.0, delta=0.05, max_batch_size=40).step()
    assert (strict.step_size, strict.batch_size) == (0.0, 40)
    relaxed = bandit(tolerance=0.9, **options).step()
    assert relaxed.step_size == pytest.approx(1 / (6 / 0.25))
    assert "may lose" in relaxed.reason


def test_a_warm_start_begins_near_the_last_batch():
    cold, warm = (agent(-0.3, growth=2.0, warm_start=factor) for factor in (0.0, 1.5))
    first, _ = warm.step(), cold.step()
    assert cold.next_batch_size == 100
    assert warm.next_batch_size == round(1.5 * first.batch_size) > 150
    assert warm.step().batch_size >= round(1.5 * first.batch_size)
    assert agent(-0.65, warm_start=2.0, max_batch_size=300, mini_batch_size=300).next_batch_size == 300


def test_a_resumed_run_equals_an_uninterrupted_one():
    for make in (lambda: agent(growth=2.0, delta=0.9), lambda: bandit(tolerance=0.3, delta=0.9, warm_start=1.5)):
        whole = make().run(20_000)
        first = make()
        first.run(1000)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = make()
        second.load_state_dict(torch.load(file, weights_only=True))
        assert 0 < len(second.iterations) < len(whole.iterations)
        assert second.run(20_000) == whole


def test_a_run_that_drew_more_than_was_asked_for_says_how_many_times():
    run = agent(-0.59, max_batch_size=1000).run(300)
    assert run.num_trajectories == 1000
    assert run.notes[-1] == (
        "the run drew 1000 trajectories, 3.33 times the 300 asked for: an update that has begun is completed"
    )
    loop = agent(-0.59, max_batch_size=300)
    for budget in (600, 300):  # met, and behind the loop
        run = loop.run(budget)
        assert run.num_trajectories == 600
        assert not any("asked for" in note for note in run.notes)


def test_an_update_that_is_ended_within_its_batch_leaves_the_loop_as_it_was():
    def stop(num_drawn):
        if num_drawn == 80:
            raise KeyError

    loop, whole = (bandit(tolerance=0.3, delta=0.9, max_batch_size=200) for _ in range(2))
    loop.run(1000)
    before = str(loop.state_dict())
    with pytest.raises(KeyError):
        loop.run(20_000, after_chunk=stop)
    assert str(loop.state_dict()) == before
    assert loop.run(20_000) == whole.run(20_000)


def upper_bound_on_the_performance(policy, iteration):
    """Of a batch of one look, a third of whose share of the probability is the interval's."""
    seed, task = derive_seed(1, "batch", iteration - 1), {"discount": 0.5, "horizon": 2}
    estimate = estimate_gradient(Bandit(), policy, 40, seed=seed, **task)
    share = confidence_schedule(0.25, iteration, 1, num_events=3)
    return return_interval(estimate.mean_return, estimate.return_std, 40, reward_bound=1.0, delta=share, **task).high


def test_the_best_performance_so_far_is_kept_and_saved():
    loop, other = (bandit(tolerance=0.3, max_batch_size=40) for _ in range(2))
    bounds, best = [], []
    for iteration in (1, 2, 3):
        bounds.append(upper_bound_on_the_performance(loop.policy, iteration))
        loop.step()
        best.append(loop.state_dict()["best_high"])
    assert best == pytest.approx([max(bounds[:count]) for count in (1, 2, 3)])
    other.load_state_dict(loop.state_dict())
    assert other.state_dict()["best_high"] == best[-1]


def test_a_policy_far_below_the_best_so_far_may_lose_nothing():
    options = {"tolerance": 0.9, "mini_batch_size": 4000, "max_batch_size": 4000}
    free, bound = (bandit(**options) for _ in range(2))
    bound.load_state_dict(bound.state_dict() | {"best_high": 100.0})
    assert "; may lose 0," not in free.step().reason
    assert "; may lose 0," in bound.step().reason
    assert bound.state_dict()["best_high"] == 100


def test_a_batch_is_judged_by_the_constants_that_it_shows_itself():
    options = {"bound": "chebyshev", "max_batch_size": 40}
    stated, estimated = (bandit(reward_bound=bound, **options) for bound in (1.0, None))
    assert estimated.step().error == stated.step().error  # the largest reward of any batch is 1
    assert estimated.result().guarantee == "heuristic"


def test_threads_do_not_move_a_run():
    options = {"mini_batch_size": 25_000, "max_batch_size": 50_000}
    assert agent(-0.5, **options).step() == agent(-0.5, num_workers=2, **options).step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "delta must be between 0 and 1; got 0.0"),
        ({"bound": "markov"}, "bound must be one of bernstein, chebyshev, sample_chebyshev, sub_gaussian, bounded_sc"),
        ({"rule": "fixed"}, "rule must be one of corrected, published, published_fast; got 'fixed'"),
        ({"estimator": "pgpe"}, "estimator must be one of"),
        ({"tolerance": 1.5}, "tolerance must be between 0 and 1, or None; got 1.5"),
        ({"mini_batch_size": 0}, "mini_batch_size must be a whole number of at least 1; got 0"),
        ({"mini_batch_size": 200, "max_batch_size": 100}, "mini_batch_size must be at most max_batch_size; got 200"),
        ({"growth": 0.5}, "growth must be at least 1 and finite; got 0.5"),
        ({"warm_start": -1.0}, "warm_start must be at least 0 and finite; got -1.0"),
        ({"feature_norm_bound": 0.0}, "feature_norm_bound must be positive and finite; got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        agent(**options)


def test_what_the_method_cannot_use_is_refused():
    class Silent:
        parameters = torch.zeros(1)

    with pytest.raises(
        InputError, match="policy must be Gaussian, with a covariance, or softmax, with a temperature; go"
    ):
        SmoothingPolicyGradient(LQG(), Silent())
    with pytest.raises(InputError, match="performance must not be negative with a tolerance"):
        agent(tolerance=0.2, mini_batch_size=1000).step()


@pytest.mark.parametrize(("rule", "updates", "sizes"), [("corrected", 1, {500}), ("published", 5, {500, 1000})])
def test_the_corrected_rule_stays_once_the_guarantee_is_void_and_the_published_one_goes_on(rule, updates, sizes):
    loop = agent(rule=rule, reward_bound=1.0, mini_batch_size=500, max_batch_size=1000)
    with pytest.warns(UserWarning, match="exceeds the stated bound 1"):
        run = loop.run(2500)
    assert len(run.iterations) == updates
    assert {update.batch_size for update in run.iterations} <= sizes
    assert {update.step_size > 0 for update in run.iterations} == {rule == "published"}
    assert not any(update.is_safe for update in run.iterations)


def test_a_discount_of_1_is_refused_as_the_smoothness_is_infinite_there():
    with pytest.raises(InputError, match="discount must be below 1 for the smoothness; got 1"):
        agent(discount=1.0)
