"""Scores are the gradients of log-probabilities, by autograd; draws follow the distribution that is scored."""

import pytest
import torch

from anybatch.errors import InputError
from anybatch.rl import GaussianPolicy, SoftmaxPolicy

WEIGHTS = [[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]]
COVARIANCE = [[0.5, 0.2], [0.2, 0.8]]


def planar(policy, num):
    """(1, p, n) features, (1, k, n) noise and (1, d, n) actions of one step."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(policy.num_features, num, generator=generator, dtype=torch.float64)
    noise = torch.empty(1, policy.noise_size, num, dtype=torch.float64)
    policy.draw_noise(noise, generator)
    actions = torch.empty(1 if policy.is_discrete else policy.num_actions, num, dtype=torch.float64)
    policy.act(features, noise[0], actions)
    return features[None], noise, actions[None]


def log_probability(policy, weights, features, action):
    if policy.is_discrete:
        return torch.log_softmax(weights @ features / policy.temperature, 0)[action.long()].sum()
    return torch.distributions.MultivariateNormal(weights @ features, policy.covariance).log_prob(action)


@pytest.mark.parametrize("score", ["drawn", "clipped"])
@pytest.mark.parametrize(
    "policy",
    [GaussianPolicy(WEIGHTS, COVARIANCE), GaussianPolicy([[0.3, -0.2]], 4.0), SoftmaxPolicy(WEIGHTS, temperature=0.5)],
    ids=["gaussian", "one action", "softmax"],
)
def test_scores_are_the_gradient_of_the_log_probability_row_by_row(policy, score):
    features, noise, actions = planar(policy, 7)
    taken = actions if policy.is_discrete or score == "drawn" else actions.clamp(-0.5, 0.5)
    scores = torch.empty(1, len(policy.parameters), 7, dtype=torch.float64)
    policy.scores(features, noise, taken, score, scores)
    for n in range(7):
        weights = policy.weights.clone().requires_grad_()
        log_probability(policy, weights, features[0, :, n], taken[0, :, n]).backward()
        torch.testing.assert_close(scores[0, :, n], weights.grad.reshape(-1), rtol=1e-10, atol=1e-12)


def test_gaussian_draws_have_the_covariance():
    features, _, actions = planar(policy := GaussianPolicy(WEIGHTS, COVARIANCE), 200_000)
    deviations = actions[0] - policy.means(features[0])
    torch.testing.assert_close(deviations.cov(), policy.covariance, rtol=0, atol=0.01)
    assert deviations.mean(1).abs().max() < 0.01


def test_softmax_draws_have_the_probabilities():
    policy = SoftmaxPolicy([[0.5], [-0.5], [0.0]], temperature=0.7)
    features = torch.ones(1, 100_000)
    noise = torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0))
    actions = torch.empty(1, 100_000)
    policy.act(features, noise, actions)
    shares = torch.bincount(actions[0].long(), minlength=3) / 100_000
    torch.testing.assert_close(shares, policy.probabilities(features)[:, 0], rtol=0, atol=0.006)


@pytest.mark.parametrize("policy", [GaussianPolicy(WEIGHTS, COVARIANCE), SoftmaxPolicy(WEIGHTS, 2.0)])
def test_a_policy_with_other_parameters_leaves_the_first_alone(policy):
    before = policy.parameters.clone()
    other = policy.with_parameters(policy.parameters + 1)
    assert torch.equal(policy.parameters, before)
    assert torch.equal(other.parameters, before + 1)
    assert other.state_dict().keys() == policy.state_dict().keys()
    state = {key: value for key, value in policy.state_dict().items() if key not in ("version", "kind")}
    assert torch.equal(type(policy)(**state).parameters, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianPolicy([[float("nan")]]), "parameters must be finite"),
        (lambda: GaussianPolicy(torch.zeros(0)), "`weights` must be of shape"),
        (lambda: GaussianPolicy(0.0, covariance=0.0), "`covariance` must be positive"),
        (lambda: GaussianPolicy(WEIGHTS, [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: GaussianPolicy(WEIGHTS, [[1.0]]), r"of shape \(2, 2\)"),
        (lambda: GaussianPolicy(WEIGHTS).with_parameters(torch.zeros(5)), "parameters must be 6; got 5"),
        (lambda: SoftmaxPolicy([[1.0]]), "with 2 actions or more"),
        (lambda: SoftmaxPolicy(WEIGHTS, temperature=0), "`temperature` must be positive and finite; got 0"),
    ],
)
def test_policies_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
