"""How does a softmax policy choose among discrete actions, and what is its score?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.linear_policy import LinearPolicy
from anybatch.rl.policy import FeatureMap, Score


class SoftmaxPolicy(LinearPolicy):
    """Action i with probability proportional to exp(w_i . phi(s) / tau).

    The score is (indicator of the action - probabilities) phi^T / tau; parameters are the weights row by row.

    Args:
        weights: (actions, p).
        temperature: tau.
        features: from (n, state size) states to (n, p) features. Default: the states themselves.

    Raises:
        InputError: fewer than 2 actions, weights that are not finite, or a temperature that is not positive.

    Example:
        >>> policy = SoftmaxPolicy(weights=torch.zeros(2, 4))
        >>> policy.probabilities(torch.ones(4, 1)).flatten()
        tensor([0.5000, 0.5000])

    Source: Papini et al. 2022, the policy of their cart-pole.
    """

    kind = "softmax"
    is_discrete = True
    noise_size = 1

    def __init__(self, weights: Any, temperature: float = 1.0, features: FeatureMap | None = None) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.ndim != 2 or len(weights) < 2 or weights.shape[1] < 1:
            raise InputError(
                f"`weights` must be of shape (actions, features) with 2 actions or more; got {tuple(weights.shape)}."
            )
        if not 0 < temperature < math.inf:
            raise InputError(f"`temperature` must be positive and finite; got {temperature}.")
        super().__init__(weights, features)
        self.temperature = float(temperature)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and temperature; the feature map is code and is not saved."""
        return super().state_dict() | {"temperature": self.temperature}

    def probabilities(self, features: Tensor) -> Tensor:
        """Return (..., actions, n) probabilities of (..., p, n) features."""
        return torch.softmax(self.weights.to(features) @ features / self.temperature, dim=-2)

    def draw_noise(self, noise: Tensor, generator: torch.Generator) -> None:
        """Fill (H, 1, n) with uniform draws."""
        noise.uniform_(generator=generator)

    def act(self, features: Tensor, noise: Tensor, out: Tensor) -> None:
        """Write (1, n) indices of actions of (p, n) features and (1, n) noise."""
        passed = self.probabilities(features).cumsum(-2)[:-1] <= noise
        torch.sum(passed, dim=0, keepdim=True, dtype=out.dtype, out=out)

    def scores(self, features: Tensor, noise: Tensor, actions: Tensor, score: Score, out: Tensor) -> None:
        """Write (H, m, n) scores of (H, p, n) features and (H, 1, n) actions. Nothing is clipped in any case."""
        indices = torch.arange(self.num_actions, device=actions.device)[:, None]
        deviations = ((actions == indices).to(features) - self.probabilities(features)) / self.temperature
        shape = (len(actions), self.num_actions, self.num_features, actions.shape[-1])
        torch.mul(deviations[:, :, None], features[:, None], out=out.view(shape))
