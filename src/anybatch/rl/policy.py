"""What must a policy be able to do, for its gradient to be estimated?

Shapes are planar, the trajectories last, so that every operation runs along contiguous memory: n trajectories,
p features, m parameters, k numbers of noise per step, d of an action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from anybatch.errors import InputError

FeatureMap = Callable[[Tensor], Tensor]
Score = Literal["drawn", "clipped"]


class Policy(Protocol):
    """A stochastic policy with a gradient of its log-probability. It is not changed, only copied with changes."""

    noise_size: int
    is_discrete: bool

    @property
    def parameters(self) -> Tensor:
        """(m,), float64."""
        ...

    @property
    def num_features(self) -> int:
        """How many features, p."""
        ...

    @property
    def num_actions(self) -> int:
        """How many numbers an action has, or among how many a discrete one chooses."""
        ...

    def with_parameters(self, parameters: Tensor) -> Self:
        """Return the same policy with other parameters, (m,)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values that make the policy again."""
        ...

    def features(self, states: Tensor) -> Tensor:
        """Return (p, n) features of (state size, n) states; the same tensor where there is no feature map."""
        ...

    def draw_noise(self, noise: Tensor, generator: torch.Generator) -> None:
        """Fill (H, k, n) with the noise of all actions."""
        ...

    def act(self, features: Tensor, noise: Tensor, out: Tensor) -> None:
        """Write (d, n) actions of (p, n) features and (k, n) noise."""
        ...

    def scores(self, features: Tensor, noise: Tensor, actions: Tensor, score: Score, out: Tensor) -> None:
        """Write (H, m, n) scores of (H, p, n) features, (H, k, n) noise and (H, d, n) actions as they were taken.

        Features that are zero give scores that are zero. The noise may be overwritten, and the scores may be
        written over it where the two are of one shape.
        """
        ...


def map_features(feature_map: FeatureMap, states: Tensor, num_features: int) -> Tensor:
    """Apply a user's feature map, which takes (n, state size) to (n, p), to planar states.

    Args:
        feature_map: the user's.
        states: (state size, n).
        num_features: p, as the policy's weights have it.

    Returns:
        (p, n), of the states' type.

    Raises:
        InputError: the features are not (n, p), or not finite.
    """
    features = torch.as_tensor(feature_map(states.T))
    wanted = (states.shape[1], num_features)
    if tuple(features.shape) != wanted:
        raise InputError(
            f"the feature map must return {wanted[0]} rows of {num_features} features, as the policy's weights have; "
            f"got the shape {tuple(features.shape)}."
        )
    if not bool(features.isfinite().all()):
        raise InputError("features must be finite; got NaN or infinity. Check the feature map.")
    return features.T.to(states.dtype)


def check_parameters(parameters: Tensor, num_parameters: int) -> Tensor:
    """Return the parameters in float64, or say what is wrong with them.

    Args:
        parameters: of any shape with m entries.
        num_parameters: m.

    Returns:
        (m,).

    Raises:
        InputError: of another size, or not finite.
    """
    flat = torch.as_tensor(parameters, dtype=torch.float64).detach().reshape(-1).clone()
    if len(flat) != num_parameters:
        raise InputError(f"the policy's parameters must be {num_parameters}; got {len(flat)}.")
    if not bool(flat.isfinite().all()):
        raise InputError(f"the policy's parameters must be finite; got {flat.tolist()}.")
    return flat
