"""The exact performance of the clipped one-dimensional task, fast enough for thousands of policies."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.polynomial import Chebyshev
from torch import Tensor

from anybatch.rl import LQG, GaussianPolicy


@cache
def exact_polynomial() -> Chebyshev:
    """J(theta) by quadrature at 40 Chebyshev nodes of [-1, 0.1], interpolated: exact to 1e-8, and smooth."""
    env = LQG()
    return Chebyshev.interpolate(
        np.vectorize(lambda theta: env.exact_performance(GaussianPolicy(theta))), 39, domain=[-1.0, 0.1]
    )


def exact_performance() -> Callable[[Tensor], float]:
    """The performance of parameters (1,); policies outside of [-1, 0.1] count as minus infinity."""
    polynomial = exact_polynomial()

    def performance(parameters: Tensor) -> float:
        theta = float(parameters[0])
        return float(polynomial(theta)) if -1.0 <= theta <= 0.1 else -np.inf

    return performance
