"""The slow obvious twin of `fit_samples_law`: a general optimizer over both parameters."""

import math

import numpy as np
from scipy.optimize import minimize


def fit_by_search(batch_sizes, means):
    """E and B_crit with the least squares of ln(mean) - ln(E (1 + B / B_crit)), from many starts."""

    def squares(parameters):
        examples, critical = np.exp(parameters)
        pairs = zip(batch_sizes, means, strict=True)
        return sum((math.log(mean) - math.log(examples * (1 + size / critical))) ** 2 for size, mean in pairs)

    starts = [(math.log(min(means)), math.log(size)) for size in np.geomspace(min(batch_sizes), max(batch_sizes), 5)]
    found = [
        minimize(squares, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}) for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    return tuple(np.exp(best.x))
