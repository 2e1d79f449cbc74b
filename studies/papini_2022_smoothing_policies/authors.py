"""What did the authors find? Figures of their notebooks and of the curves stored in the history of their code."""

from __future__ import annotations

from typing import NamedTuple


class LqFigures(NamedTuple):
    """One method on the LQ task, means of five runs; what is per update is not weighted by trajectories.

    Attributes:
        mean_return: over all updates.
        end_return: of the last policies; -6.16 is read off a figure.
        mean_batch: over all updates.
        num_updates: in 1e7 trajectories.
        first_batch: of updates two to six; 1800 is read off a figure.
        last_batch: of the last five updates, or the most there may be.
        returns: at `CHECKPOINTS`, where the curve is stored.
    """

    mean_return: float
    end_return: float
    mean_batch: float
    num_updates: int
    first_batch: float
    last_batch: float
    returns: tuple[float, ...] = ()


class PoleFigures(NamedTuple):
    """One method on the cart-pole, read off the notebook's figures.

    Attributes:
        end_return: discounted, after 2e6 trajectories.
        mean_batch: over all updates.
    """

    end_return: float
    mean_batch: float


CHECKPOINTS = (1_000_000, 2_000_000, 5_000_000, 9_800_000)  # trajectories
LQ = {
    "spg": LqFigures(-6.394, -6.24, 37_870, 265, 8340, 87_168, (-6.4687, -6.3798, -6.2881, -6.2387)),
    "fspg": LqFigures(-6.282, -6.16, 35_309, 286, 1800, 100_000),
    "adabatch": LqFigures(-6.647, -6.59, 17_502, 571, 7034, 21_234, (-6.7019, -6.6701, -6.6408, -6.5889)),
}
CART_POLE = {
    "lambda_0.1": PoleFigures(9.75, 1588),
    "lambda_0.2": PoleFigures(9.82, 623),
    "lambda_0.4": PoleFigures(9.89, 300),
    "gpomdp": PoleFigures(9.95, 100),
}
