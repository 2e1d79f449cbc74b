"""How smooth is a policy's class, and how large can its score be?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from anybatch.decide.smoothing_policies import SmoothingConstants, gaussian_smoothing, softmax_smoothing
from anybatch.errors import InputError
from anybatch.rl.gaussian_policy import GaussianPolicy
from anybatch.rl.softmax_policy import SoftmaxPolicy

LINEAR_POLICIES = (GaussianPolicy, SoftmaxPolicy)
_WAYS = ("means", "features", "draw_noise", "act", "scores")
LINEAR_CAVEAT = (
    f"the bound is proven for {' and '.join(policy.__name__ for policy in LINEAR_POLICIES)}, linear in their features, "
    "and this policy may not be"
)


def is_known_linear(policy: Any) -> bool:
    """Return whether a policy is known to be linear in its features, as the bounds are proven for.

    A subclass with a way of its own to draw or to score is not.
    """
    return any(isinstance(policy, known) and _acts_as(type(policy), known) for known in LINEAR_POLICIES)


def _acts_as(own: type, known: type) -> bool:
    return all(getattr(own, name, None) is getattr(known, name, None) for name in _WAYS)


@dataclass(frozen=True)
class PolicyClass:
    """What makes a policy class smooth.

    Attributes:
        is_gaussian: Gaussian with fixed covariance, or else softmax.
        scale: the smallest std in any direction, or the temperature.
        num_features: p.
        score_sq: mean squared norm of the score over that of the features, at most: the trace of the inverse
            covariance, or 4 / tau^2.
    """

    is_gaussian: bool
    scale: float
    num_features: int
    score_sq: float

    @classmethod
    def of(cls, policy: Any) -> PolicyClass:
        """Return the class of a policy with a covariance or a temperature.

        Args:
            policy: Gaussian or softmax.

        Returns:
            Its class.

        Raises:
            InputError: it has neither.
        """
        covariance, temperature = getattr(policy, "covariance", None), getattr(policy, "temperature", None)
        if covariance is not None:
            variances = torch.linalg.eigvalsh(covariance)
            return cls(True, math.sqrt(float(variances[0])), policy.num_features, float((1 / variances).sum()))
        if temperature is None:
            raise InputError(
                "policy must be Gaussian, with a covariance, or softmax, with a temperature; got "
                f"{type(policy).__name__}."
            )
        return cls(False, float(temperature), policy.num_features, 4 / temperature**2)

    def smoothing(self, feature_norm: float) -> SmoothingConstants:
        """Return the smoothing constants of features with at most this 2-norm."""
        smoothing = gaussian_smoothing if self.is_gaussian else softmax_smoothing
        return smoothing(feature_norm, self.scale)

    def score_bound(self, feature_norm: float) -> float:
        """Return W: the bound on the score's norm of a softmax policy, the sub-Gaussian scale of a Gaussian one."""
        return (1 if self.is_gaussian else 2) * feature_norm / self.scale
