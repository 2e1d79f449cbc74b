"""What do policies have in common whose parameters are weights on features?"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Self

from torch import Tensor

from anybatch.rl.policy import FeatureMap, check_parameters, map_features

STATE_VERSION = 1


class LinearPolicy:
    """Weights on features of the state; the parameters are the weights row by row.

    Args:
        weights: of shape (numbers of an action or actions to choose among, p), float64.
        features: from (n, state size) states to (n, p) features. None: the states themselves.

    Attributes:
        kind: by which a saved state is told from that of another policy.
    """

    kind: ClassVar[str]

    def __init__(self, weights: Tensor, features: FeatureMap | None) -> None:
        self.weights = check_parameters(weights, weights.numel()).reshape(weights.shape)
        self.feature_map = features

    @property
    def parameters(self) -> Tensor:
        """(m,), float64: the weights row by row."""
        return self.weights.reshape(-1)

    @property
    def num_features(self) -> int:
        """How many features, p."""
        return self.weights.shape[1]

    @property
    def num_actions(self) -> int:
        """How many numbers an action has, or among how many a discrete one chooses."""
        return len(self.weights)

    def with_parameters(self, parameters: Tensor) -> Self:
        """Return the same policy with other weights.

        Args:
            parameters: (m,), row by row.

        Returns:
            A policy of its own.
        """
        policy = copy(self)
        policy.weights = check_parameters(parameters, self.weights.numel()).reshape(self.weights.shape)
        return policy

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and what else makes the policy; of code, a feature map or a class, there is the name."""
        state = {"version": STATE_VERSION, "kind": self.kind, "weights": self.weights.clone()}
        name = self._name_of_code()
        return state if name is None else state | {"needs": name}

    def _name_of_code(self) -> str | None:
        """Return what of the policy a state does not hold: None where it holds all."""
        if self.feature_map is not None:
            return getattr(self.feature_map, "__qualname__", type(self.feature_map).__qualname__)
        return None if type(self).__module__.startswith("anybatch.") else type(self).__qualname__

    def features(self, states: Tensor) -> Tensor:
        """Return (p, n) features of (state size, n) states; the same tensor where there is no feature map."""
        return states if self.feature_map is None else map_features(self.feature_map, states, self.num_features)
