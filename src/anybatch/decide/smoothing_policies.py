"""How smooth is the performance of a policy class, as a function of its parameters?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.argument_checks import require_choice, require_discount, require_positive

Version = Literal["improved", "2019", "published"]


@dataclass(frozen=True)
class SmoothingConstants:
    """Bounds on the mean, over actions, of a policy's score and of its derivative, for every state and parameter.

    Attributes:
        score: xi1, of the score along any one direction.
        score_sq: xi2, of its square. With several actions the squared norm of a Gaussian policy's score is more.
        hessian: xi3, of the norm of the Hessian of log pi.
    """

    score: float
    score_sq: float
    hessian: float


def gaussian_smoothing(feature_bound: float, std: float) -> SmoothingConstants:
    """Return the constants of a Gaussian policy, linear in features, with fixed std.

    Args:
        feature_bound: F, of the 2-norm of the features.
        std: sig of the action; with several actions the root of the smallest eigenvalue of the covariance.

    Returns:
        2 F / (sqrt(2 pi) sig), F^2 / sig^2 and F^2 / sig^2.

    Raises:
        InputError: an argument that is not positive.

    Example:
        >>> round(gaussian_smoothing(1.0, 1.0).score, 7)
        0.7978846

    Source:
        Papini et al. 2022, arXiv:1905.03231.
    """
    require_positive(feature_bound=feature_bound, std=std)
    ratio = feature_bound / std
    return SmoothingConstants(2 * ratio / math.sqrt(2 * math.pi), ratio**2, ratio**2)


def softmax_smoothing(feature_bound: float, temperature: float) -> SmoothingConstants:
    """Return the constants of a softmax policy, linear in features.

    Args:
        feature_bound: F, of the 2-norm of the features of a state and an action.
        temperature: tau.

    Returns:
        2 F / tau, 4 F^2 / tau^2 and 2 F^2 / tau^2.

    Raises:
        InputError: an argument that is not positive.

    Example:
        >>> softmax_smoothing(1.0, 1.0)
        SmoothingConstants(score=2.0, score_sq=4.0, hessian=2.0)

    Source:
        Papini et al. 2022, arXiv:1905.03231.
    """
    require_positive(feature_bound=feature_bound, temperature=temperature)
    ratio = feature_bound / temperature
    return SmoothingConstants(2 * ratio, 4 * ratio**2, 2 * ratio**2)


def smoothness_constant(
    constants: SmoothingConstants, *, reward_bound: float, discount: float, version: Version = "improved"
) -> float:
    """Return L with |grad J(x) - grad J(y)| <= L |x - y|.

    "improved": R (xi2 + xi3) / (1 - gam)^2. "2019": R / (1 - gam)^2 (2 gam xi1^2 / (1 - gam) + xi2 + xi3).

    Args:
        constants: of the policy class.
        reward_bound: R, the largest absolute reward.
        discount: gam, in [0, 1).
        version: "improved"; "2019", of the first version of the paper; "published", the improved one as the authors'
            code has it, without R, so that steps are R times as long as the theory allows.

    Returns:
        In units of return per squared parameter.

    Raises:
        InputError: an argument outside its range, or an unknown version.

    Example:
        >>> round(smoothness_constant(gaussian_smoothing(1.0, 1.0), reward_bound=2.0, discount=0.9), 9)
        400.0

    Source:
        Papini et al. 2022, arXiv:1905.03231; improved after Yuan, Gower and Lazaric 2021, arXiv:2107.11433.
    """
    require_choice(Version, version=version)
    require_positive(reward_bound=reward_bound)
    require_discount(discount, below_one=True)
    curvature = constants.score_sq + constants.hessian
    if version == "2019":
        curvature += 2 * discount * constants.score**2 / (1 - discount)
    return (1.0 if version == "published" else reward_bound) * curvature / (1 - discount) ** 2
