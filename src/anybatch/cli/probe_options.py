"""Which options are those of `anybatch probe` alone?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anybatch.cli.common_options import WORKLOAD
from anybatch.decide import noise_scale
from anybatch.probing import recommend

Workload = Annotated[str, typer.Argument(help=f"{WORKLOAD} (examples/my_workload.py is one to copy).")]
Json = Annotated[Path | None, typer.Option(help="Write everything measured as one JSON object.")]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Say how to make this batch size and what it costs, instead of choosing."),
]
Objective = Annotated[
    recommend.Objective,
    typer.Option(help="time: the least to a given loss. samples: the fastest of the sizes that need few samples."),
]
Devices = Annotated[str, typer.Option(help="Numbers of devices to predict the speed-up of.")]
Target = Annotated[
    noise_scale.Target,
    typer.Option(help="Whose gradient the noise scale is about: this training set, or what it came from."),
]
Memory = Annotated[
    str | None,
    typer.Option(help="What training may use on a device, such as 8GB. \\[default: 80% of what is free]"),
]
Budget = Annotated[float, typer.Option(help="Seconds for all measurements together, about.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Measure the noise scale at these weights instead of along short runs."),
]
Seed = Annotated[int, typer.Option(help="Of weights and samples.")]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Train briefly at several batch sizes and lay the measured time beside it."),
]
VerifyBudget = Annotated[
    float, typer.Option(help="Seconds for these runs, about; sizes that it does not hold are skipped and said.")
]
VerifyTarget = Annotated[
    float | None,
    typer.Option(help="Train to this loss on training samples. \\[default: set from a small-batch run]"),
]
Runs = Annotated[Path, typer.Option(help="Folder of the runs of --verify: finished ones are not run again.")]
