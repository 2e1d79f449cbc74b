"""Which options are those of `anybatch compare` alone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anybatch.cli.common_options import WORKLOAD
from anybatch.train.recipes import RECIPES

Workload = Annotated[str, typer.Argument(help=f"{WORKLOAD} with an eval_set, base_batch_size and epochs.")]
BatchSizes = Annotated[
    str, typer.Option(help="Samples per step, with commas. Name the workload's own too, to compare with.")
]
Recipes = Annotated[
    str,
    typer.Option(
        help=f"With commas: {', '.join(RECIPES)}, or [b]path/to/file.py:NAME[/b], an anybatch.Recipe or a list of them."
    ),
]
Seeds = Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, 2 ...")]
LrFactors = Annotated[
    str, typer.Option(help="Factors on each recipe's rate, all tried; the best and the untuned one are marked.")
]
Epochs = Annotated[
    float | None,
    typer.Option(help="At the base batch size; the schedule moves in proportion. \\[default: the workload's own]"),
]
Runs = Annotated[Path, typer.Option(help="Folder of all runs: finished ones are not run again, killed ones go on.")]
Json = Annotated[Path | None, typer.Option(help="Write everything as one JSON object.")]
MicroBatchSize = Annotated[
    int | None, typer.Option(help="At most so many samples per forward pass and rank; the rest is accumulated.")
]
Evaluations = Annotated[int, typer.Option(help="Per run, equally spaced.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard too.")]
FinishedOnly = Annotated[bool, typer.Option("--finished-only", help="Show what is finished and train nothing.")]
