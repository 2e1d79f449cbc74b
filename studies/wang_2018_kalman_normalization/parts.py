"""What is compared? The recipes, and the parts they are trained in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cells import Part
from priors import Constant, MovingAverage, Oracle, Shuffled

from anybatch import NormRecipe, Recipe
from anybatch.nn import KalmanOptions
from anybatch.train.recipes import PUBLISHED_SHARES

CURVE = (1, 4, 8, 16, 32)  # samples normalized together, beside 2 and 128


def kalman(name: str, micro_batch_size: int | None = 2, **options: Any) -> NormRecipe:
    """Return a Kalman normalization; every option is spelled out, so that new defaults are new runs."""
    chosen = vars(KalmanOptions(micro_batch_size=micro_batch_size, **options))
    return NormRecipe(
        name, norm="kalman", norm_options={key: value for key, value in chosen.items() if value is not None}
    )


def ghost(name: str, micro_batch_size: int) -> NormRecipe:
    """Return batch norm of micro-batches, whose running statistics are the mean over them all."""
    options = {"ghost_batch_size": micro_batch_size, "running_update": "average"}
    return NormRecipe(name, norm="ghost", norm_options=options)


PUBLISHED: dict[str, Any] = {"transition": "sampled", "state_space": "raw", "gain": "fixed", "gate": "layer"}
OF_BATCHES = ("splits", "micro_batch_size", "running_splits", "prior")

BN_128 = Recipe("BN at 128")
BN = ghost("BN", 2)
GN = NormRecipe("GN", norm="group", norm_options={"num_groups": 4})
GN_8 = NormRecipe("GN of 8 groups", norm="group", norm_options={"num_groups": 8})
RENORM = NormRecipe("BatchRenorm", norm="batch_renorm", norm_options={"micro_batch_size": 2},
                    relaxation_shares=PUBLISHED_SHARES)  # fmt: skip
MABN = NormRecipe("MABN", norm="moving_average",
                  norm_options={"micro_batch_size": 2, "momentum": 0.02, "centered_weights": True})  # fmt: skip
KN_PUBLISHED = kalman("KN published", prior_weight=0.9, **PUBLISHED)
KN = kalman("KN")
CONTROLS = [
    kalman("prior: constant", prior=Constant()),
    kalman("prior: shuffled", prior=Shuffled()),
    kalman("prior: moving average", prior=MovingAverage()),
    kalman("prior: oracle", prior=Oracle()),
]
REASONS = [
    kalman("KN, prior detached", detach_prior=True),
    kalman("KN, weight fixed", gain="fixed"),
    kalman("KN, prior alone", gain="fixed", prior_weight=1.0),
]
SPACES = [kalman("KN raw", state_space="raw"), kalman("KN observed", state_space="observed")]
KN_128 = kalman("KN at 128", None, prior_weight=0.05)
KN_128_PUBLISHED = kalman("KN published at 128", None, prior_weight=0.05, **PUBLISHED)
RENORM_128 = replace(RENORM, name="BatchRenorm at 128", norm_options={})
GKN = NormRecipe("GKN", norm="group_kalman", norm_options={"num_groups": 4} | {
    key: value for key, value in vars(KalmanOptions()).items() if key not in OF_BATCHES})  # fmt: skip
AT_SIZES = [*(ghost(f"BN at {size}", size) for size in CURVE), *(kalman(f"KN at {size}", size) for size in CURVE)]
REAL = [
    Recipe("BN, real", lr_rule="linear"),
    replace(GN, name="GN, real", lr_rule="linear"),
    replace(RENORM_128, name="BatchRenorm, real", lr_rule="linear"),
    replace(MABN, name="MABN, real", lr_rule="linear", norm_options={"momentum": 0.02, "centered_weights": True}),
    replace(kalman("KN, real", None), lr_rule="linear"),
]

FULL = {
    "micro": Part([BN_128, BN, GN, GN_8, KN, KN_PUBLISHED, RENORM, MABN], is_decision=True),
    "priors": Part(CONTROLS, is_decision=True, num_evaluations=2),
    "reasons": Part(REASONS, num_evaluations=2),
    "spaces": Part(SPACES, seeds=3, num_evaluations=2),
    "large": Part([BN_128, KN_128, KN_128_PUBLISHED, RENORM_128, GN]),
    "groups": Part([GN, GKN]),
    "real": Part(REAL, batch_size=4, epochs=0.45, num_evaluations=3),
    "sizes": Part(
        AT_SIZES,
        seeds=2,
        rates_from={each.name: each.name.partition(" ")[0] for each in AT_SIZES},
        num_evaluations=2,
    ),
    "untuned": Part([BN, GN, KN, KN_PUBLISHED], is_tuned=False),
}
QUICK = {"micro": Part([BN_128, BN, GN, KN], seeds=3, is_decision=True, is_tuned=False, epochs=2.5, num_evaluations=2)}
