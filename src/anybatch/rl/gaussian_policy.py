"""How does a Gaussian policy act, whose mean is linear in features, and what is its score?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.linear_policy import LinearPolicy
from anybatch.rl.policy import FeatureMap, Score


class GaussianPolicy(LinearPolicy):
    """Actions a ~ N(Theta phi(s), Sigma) with a fixed covariance.

    The score is Sigma^-1 (a - Theta phi) phi^T; parameters are the weights row by row.

    Args:
        weights: Theta, (d, p) for d numbers of an action and p features; (p,) or a number where d is 1.
        covariance: Sigma, (d, d), or one variance for every number of an action, each independent of the others.
        features: from (n, state size) states to (n, p) features. Default: the states themselves.

    Attributes:
        precision: (d, d), the inverse of the covariance.

    Raises:
        InputError: weights that are not finite or of another shape, or a covariance that is not symmetric,
            positive definite and (d, d).

    Example:
        >>> policy = GaussianPolicy(weights=[[-0.3, 0.1]], covariance=0.25)
        >>> policy.parameters
        tensor([-0.3000,  0.1000], dtype=torch.float64)
        >>> policy.with_parameters(torch.zeros(2)).weights
        tensor([[0., 0.]], dtype=torch.float64)

    Source: Papini et al. 2017, the policy of their experiments, there with one number per action.
    """

    kind = "gaussian"
    is_discrete = False

    def __init__(self, weights: Any, covariance: Any = 1.0, features: FeatureMap | None = None) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.ndim > 2 or weights.numel() == 0:
            raise InputError(
                f"`weights` must be of shape (numbers of an action, features); got {tuple(weights.shape)}."
            )
        super().__init__(weights.reshape(-1, weights.shape[-1] if weights.ndim else 1), features)
        self.noise_size = len(self.weights)
        self.covariance = _check_covariance(covariance, self.noise_size)
        self._has_unit_covariance = self.covariance.equal(torch.eye(self.noise_size, dtype=torch.float64))
        self._factor = torch.linalg.cholesky(self.covariance)
        self.precision = torch.cholesky_inverse(self._factor)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and covariance; the feature map is code and is not saved."""
        return super().state_dict() | {"covariance": self.covariance.clone()}

    def means(self, features: Tensor) -> Tensor:
        """Return (..., d, n) mean actions of (..., p, n) features."""
        return self.weights.to(features) @ features

    def draw_noise(self, noise: Tensor, generator: torch.Generator) -> None:
        """Fill (H, d, n) with draws of N(0, Sigma)."""
        noise.normal_(generator=generator)
        self._multiply(self._factor, noise)

    def act(self, features: Tensor, noise: Tensor, out: Tensor) -> None:
        """Write (d, n) actions of (p, n) features and (d, n) noise."""
        if self.weights.numel() == 1:
            torch.add(noise, features, alpha=self.weights.item(), out=out)
        else:
            torch.addmm(noise, self.weights.to(features), features, out=out)

    def scores(self, features: Tensor, noise: Tensor, actions: Tensor, score: Score, out: Tensor) -> None:
        """Write (H, m, n) scores of (H, p, n) features; with "clipped", of the actions as they were taken."""
        if score == "clipped":
            torch.sub(actions, self.means(features), out=noise)
        self._multiply(self.precision, noise)
        shape = (len(noise), self.num_actions, self.num_features, noise.shape[-1])
        torch.mul(noise[:, :, None], features[:, None], out=out.view(shape))

    def _multiply(self, matrix: Tensor, planes: Tensor) -> None:
        """Multiply (H, d, n) in place by the covariance's factor or inverse."""
        if self._has_unit_covariance:
            return
        if len(matrix) == 1:
            planes.mul_(matrix.item())
        else:
            planes.copy_(matrix.to(planes) @ planes)


def _check_covariance(covariance: Any, size: int) -> Tensor:
    given = torch.as_tensor(covariance, dtype=torch.float64)
    full = torch.eye(size, dtype=torch.float64) * given if given.ndim == 0 else given
    is_fitting = full.shape == (size, size) and bool(full.isfinite().all()) and full.equal(full.T)
    if not is_fitting or float(torch.linalg.eigvalsh(full)[0]) <= 0:
        raise InputError(
            f"`covariance` must be positive, or symmetric and positive definite of shape {(size, size)}; "
            f"got {given.tolist()}."
        )
    return full.clone()
