"""What did the authors find? Figures of the paper's tables and of the raw logs in the history of their code."""

from __future__ import annotations

from typing import NamedTuple

CHECKPOINTS = (100_000, 1_000_000, 5_000_000, 10_000_000, 20_000_000, 29_800_000)  # trajectories


class Curve(NamedTuple):
    """One curve of the figures: how it was run, and what came of it.

    Attributes:
        figure: where it is drawn.
        estimator: of the gradient.
        bound: on its error.
        range: of one trajectory's gradient.
        delta: failure probability per update.
        min_batch_size: and that of the first batch.
        max_batch_size: never reached.
        average: return over all trajectories, mean of five runs (one, of the empirical Bernstein bound).
        low: end of the printed interval, mean less t(0.95) standard errors; None where it was not found.
        high: the other end.
        performances: closed form at `CHECKPOINTS`, means of five runs.
    """

    figure: str
    estimator: str
    bound: str
    range: str
    delta: float
    min_batch_size: int
    max_batch_size: int
    average: float
    low: float | None
    high: float | None
    performances: tuple[float, ...]

    @property
    def label(self) -> str:
        """Its name in tables and legends."""
        estimator = "G(PO)MDP" if self.estimator == "gpomdp" else "REINFORCE"
        empirical = "empirical " if self.range == "empirical" else ""
        return f"{estimator}, {empirical}{self.bound.capitalize()}, delta {self.delta:g}"


def _curve(figure: str, about: str, sizes: tuple[int, int], average: tuple[float, ...], *performances: float) -> Curve:
    estimator, bound, delta = about.split()
    range_, _, name = bound.rpartition("-")
    low, high = average[1:] if len(average) == 3 else (None, None)
    return Curve(
        figure, estimator, name, range_ or "theoretical", float(delta), *sizes, average[0], low, high, performances
    )


USUAL, LARGE = (100, 100_000), (10, 500_000)
CURVES = {
    "chebyshev_reinforce_095": _curve(
        "1", "reinforce chebyshev 0.95", USUAL, (-11.3266, -11.3277, -11.3256),
        -55.780, -48.693, -33.934, -27.103, -21.855, -19.652,
    ),
    "chebyshev_reinforce_075": _curve(
        "1", "reinforce chebyshev 0.75", USUAL, (-11.4303, -11.4308, -11.4297),
        -55.937, -50.121, -36.409, -29.288, -23.428, -20.882,
    ),
    "chebyshev_reinforce_050": _curve(
        "1", "reinforce chebyshev 0.5", USUAL, (-11.5947, -11.5958, -11.5937),
        -56.263, -52.115, -40.611, -33.371, -26.651, -23.477,
    ),
    "chebyshev_gpomdp_095": _curve(
        "1, 2", "gpomdp chebyshev 0.95", USUAL, (-10.6085, -10.6087, -10.6083),
        -52.752, -34.791, -20.993, -17.824, -15.897, -15.164,
    ),
    "chebyshev_gpomdp_075": _curve(
        "1", "gpomdp chebyshev 0.75", USUAL, (-10.7141, -10.7145, -10.7136),
        -53.499, -37.304, -22.454, -18.736, -16.445, -15.571,
    ),
    "chebyshev_gpomdp_050": _curve(
        "1", "gpomdp chebyshev 0.5", USUAL, (-10.9036, -10.9040, -10.9031),
        -54.550, -41.434, -25.442, -20.696, -17.639, -16.459,
    ),
    "chebyshev_gpomdp_025": _curve(
        "1", "gpomdp chebyshev 0.25", LARGE, (-11.2355, -11.2363, -11.2346),
        -55.535, -47.318, -31.893, -25.431, -20.690, -18.756,
    ),
    "chebyshev_gpomdp_005": _curve(
        "1", "gpomdp chebyshev 0.05", LARGE, (-11.8360, -11.8368, -11.8352),
        -56.441, -54.357, -47.258, -41.307, -34.164, -30.105,
    ),
    "hoeffding_gpomdp_095": _curve(
        "2", "gpomdp hoeffding 0.95", (100, 500_000), (-11.9140, -11.9143, -11.9136),
        -56.442, -55.012, -49.598, -44.561, -37.885, -33.706,
    ),
    "bernstein_gpomdp_095": _curve(
        "2", "gpomdp bernstein 0.95", USUAL, (-10.2159, -10.2162, -10.2155),
        -50.616, -29.363, -17.497, -15.302, -14.139, -13.759,
    ),
    "empirical_hoeffding_gpomdp_095": _curve(
        "2", "gpomdp empirical-hoeffding 0.95", (10, 100_000), (-9.8582, -9.8589, -9.8574),
        -26.642, -16.236, -14.257, -13.850, -13.585, -13.479,
    ),
    "empirical_bernstein_gpomdp_095": _curve(
        "2", "gpomdp empirical-bernstein 0.95", USUAL, (-9.6625,),
        -25.870, -14.752, -13.419, -13.273, -13.218, -13.208,
    ),
}  # fmt: skip

FIXED_BATCH = {10_000: -10.7182, 1_000: -10.8672}  # average return, G(PO)MDP, Chebyshev, delta 0.95

# share of updates that raise the closed form, in percent: (std, batch size) -> at each step size
STEP_SIZES = (1e-3, 1e-4, 1e-5, 1e-6)
IMPROVEMENT_RATES = {
    (0.5, 10_000): (95.96, 100.0, 98.99, 100.0),
    (0.5, 1_000): (52.85, 73.27, 81.88, 83.88),
    (0.5, 100): (49.79, 51.41, 55.69, 58.44),
    (1.0, 10_000): (24.24, 100.0, 100.0, 100.0),
    (1.0, 1_000): (37.64, 27.03, 99.90, 100.0),
    (1.0, 100): (50.40, 46.08, 39.04, 86.04),
}
RATES_START = -0.575853

# return of 200 at most: before the first update, of the last batch, over all trajectories
CART_POLE = {"adaptive": (187.5, 195.2, 193.12), "fixed": (187.4, 193.2, 192.86)}
CART_POLE_START = (-0.8987, 2.0987, 3.4874, 7.2518)
