"""Which options are those of `anybatch safe-pg` alone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from anybatch.decide import error_bounds, safe_step, smoothing_step

PaperYear = Literal["2017", "2022"]
TASK, FIRST, SECOND = "The task and its constants", "Paper 2017 alone", "Paper 2022 alone"

Env = Annotated[
    str,
    typer.Option(
        help="[b]lqg1d[/b], [b]lqg[/b] (two dimensions), [b]cartpole-continuous[/b], an id of Gymnasium such as "
        "Pendulum-v1, or [b]path/to/file.py:function[/b] that returns a vector environment."
    ),
]
Trajectories = Annotated[
    int,
    typer.Option(
        help="Of the whole run. 2017: it ends before a batch that does not fit in. 2022: an update that has begun is "
        "finished, so a run may take up to --max-batch-size more."
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="The policy to improve: [b]path/to/file.py:function[/b] that returns one, or a saved state: "
        "torch.save(policy.state_dict(), file), or the --state of a run. \\[default: linear, weights 0]"
    ),
]
Paper = Annotated[
    PaperYear,
    typer.Option(
        help="2017: one coordinate moves, delta is per update, the next batch is sized for the best gain per "
        "trajectory. 2022: all coordinates move, delta is for the whole run, a batch grows until it is enough."
    ),
]
Bound = Annotated[
    str,
    typer.Option(
        help="On the error of a gradient. 2017: chebyshev, hoeffding, bernstein, student_t (approximate). 2022: "
        "bernstein, chebyshev, sample_chebyshev, sub_gaussian (Gaussian), bounded_score (softmax)."
    ),
]
Estimator = Annotated[error_bounds.Estimator, typer.Option(help="Of the gradient; gpomdp varies less.")]
Baseline = Annotated[
    bool,
    typer.Option(
        "--baseline/--no-baseline",
        help="Subtract the baselines that minimise the variance; they bias the gradient by order 1/N, so that "
        "nothing is proven with them.",
    ),
]
Delta = Annotated[
    float, typer.Option(help="Probability of failure that is allowed: 0.05 is cautious and slow, 0.95 bold.")
]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Std = Annotated[float | None, typer.Option(help="Of the default policy's actions. \\[default: 1]")]
MaxBatchSize = Annotated[
    int | None, typer.Option(help="Most trajectories of an update. \\[default: 500000 in 2017, 100000 in 2022]")
]
State = Annotated[
    Path | None,
    typer.Option(help="Keep the state here, every few seconds; the same command goes on from it after a kill."),
]
Records = Annotated[Path | None, typer.Option(help="Write one JSON object per update, as they come.")]
Json = Annotated[Path | None, typer.Option(help="Write the whole run as one JSON object.")]

Mode = Annotated[
    safe_step.Mode | None,
    typer.Option(
        help="safe: no step where the error is not below the gradient. paper: the published runs, which step "
        "even so and have a bias. \\[default: safe]",
        rich_help_panel=FIRST,
    ),
]
Range = Annotated[
    str | None,
    typer.Option(
        help="Of one trajectory's gradient, for hoeffding and bernstein: theoretical, by the published formula, or "
        "empirical, that of the batch, which proves nothing and is much faster. \\[default: theoretical]",
        rich_help_panel=FIRST,
    ),
]
MinBatchSize = Annotated[
    int | None,
    typer.Option(help="Least trajectories, and the first batch. \\[default: 100]", rich_help_panel=FIRST),
]
ActionVolume = Annotated[
    float | None, typer.Option(help="|A|. \\[default: of the box of actions]", rich_help_panel=FIRST)
]
Penalty = Annotated[float | None, typer.Option(help="c, instead of the one from the constants.", rich_help_panel=FIRST)]

Rule = Annotated[
    smoothing_step.Rule | None,
    typer.Option(
        help="corrected: as derived. published, published_fast: by the authors' code, without the guarantee. "
        "\\[default: corrected]",
        rich_help_panel=SECOND,
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Stay above (1 - this) times the best so far. \\[default: every update improves]", rich_help_panel=SECOND
    ),
]
MiniBatchSize = Annotated[
    int | None, typer.Option(help="Trajectories between two looks. \\[default: 100]", rich_help_panel=SECOND)
]
Growth = Annotated[
    float | None,
    typer.Option(help="Of a batch between two looks; 2 doubles it. \\[default: 1]", rich_help_panel=SECOND),
]
WarmStart = Annotated[
    float | None,
    typer.Option(help="Begin with so many times the batch before. \\[default: 0]", rich_help_panel=SECOND),
]
FeatureNormBound = Annotated[
    float | None, typer.Option(help="F. \\[default: from --feature-bound]", rich_help_panel=SECOND)
]

RewardBound = Annotated[
    float | None,
    typer.Option(
        help="R, of every reward's size. \\[default: the environment's own; else the largest seen, and then the "
        "guarantee is heuristic]",
        rich_help_panel=TASK,
    ),
]
FeatureBound = Annotated[float | None, typer.Option(help="M, of every feature's size, likewise.", rich_help_panel=TASK)]
Discount = Annotated[float | None, typer.Option(help="\\[default: the environment's own]", rich_help_panel=TASK)]
Horizon = Annotated[int | None, typer.Option(help="In steps, likewise.", rich_help_panel=TASK)]
EarlyEnd = Annotated[
    Literal["pad", "refuse"],
    typer.Option(
        help="Episodes that end before the horizon: count rewards of 0 after it, or stop.", rich_help_panel=TASK
    ),
]
NumEnvs = Annotated[
    int, typer.Option(min=1, help="Sub-environments of an environment of Gymnasium.", rich_help_panel=TASK)
]
NumThreads = Annotated[int, typer.Option(min=1, help="Threads, for the environments built in.", rich_help_panel=TASK)]
