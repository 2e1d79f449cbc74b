"""A user's own policy, with what the protocol asks for and a covariance: no weights, no feature map, not linear."""

from copy import copy

import torch

from anybatch.rl import GaussianPolicy

LARGEST = 50.0  # mean action


class SaturatedPolicy:
    """Actions a ~ N(50 tanh(theta s), 1): its score is up to 50 times that of a linear policy."""

    noise_size = 1
    is_discrete = False
    num_features = 1
    num_actions = 1

    def __init__(self, theta: float) -> None:
        self.parameters = torch.tensor([theta], dtype=torch.float64)
        self.covariance = torch.eye(1, dtype=torch.float64)

    def with_parameters(self, parameters):
        policy = copy(self)
        policy.parameters = parameters
        return policy

    def state_dict(self):
        return {"theta": self.parameters.clone()}

    def features(self, states):
        return states

    def draw_noise(self, noise, generator):
        noise.normal_(generator=generator)

    def act(self, features, noise, out):
        torch.add(noise, LARGEST * torch.tanh(self.parameters.item() * features), out=out)

    def scores(self, features, noise, actions, score, out):
        slopes = LARGEST * features / torch.cosh(self.parameters.item() * features) ** 2
        torch.mul(noise, slopes, out=out)


class OwnGaussianPolicy(GaussianPolicy):
    """One that is linear, by inheritance."""
