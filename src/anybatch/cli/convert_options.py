"""Which options are those of `anybatch convert` alone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anybatch.cli.common_options import WORKLOAD
from anybatch.nn.conversion_targets import Kind

Workload = Annotated[str, typer.Argument(help=f"{WORKLOAD}.")]
To = Annotated[Kind, typer.Option(help="What batch norm becomes.")]
Part = Annotated[
    str | None, typer.Option(help="Convert this module of the model alone, such as backbone.body of a detector.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the table of layers and write nothing.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights to convert. \\[default: fresh ones]")]
CheckpointKind = Annotated[
    Kind | None,
    typer.Option(
        help="What batch norm was when the checkpoint was saved, such as kalman; to convert it back, --to batch. "
        "\\[default: batch]"
    ),
]
CheckpointOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Of the checkpoint's kind, as it was converted, such as gain=adaptive; those that change the tensors are "
        "needed. May be repeated."
    ),
]
Save = Annotated[Path | None, typer.Option(help="Write the converted model's state dict.")]
Option = Annotated[
    list[str] | None, typer.Option(help="Of the kind, as name=value, such as micro_batch_size=2; may be repeated.")
]
