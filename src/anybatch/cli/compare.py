"""`anybatch compare WORKLOAD`: train by several recipes at several batch sizes, put side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anybatch.cli.outputs import Outputs, check_writable, is_first_rank, numbers, told_by_bars
from anybatch.errors import AnybatchError
from anybatch.train.compare import Autocast
from anybatch.train.compare import compare as run
from anybatch.train.comparison import Comparison
from anybatch.train.recipes import RECIPES
from anybatch.workloads import load_workload


def compare(
    workload: Annotated[
        str,
        typer.Argument(
            help="A built-in name (see [b]anybatch methods[/b]), or [b]path/to/file.py:function[/b], a function that "
            "returns an anybatch.Workload with an eval_set, base_batch_size and epochs."
        ),
    ],
    batch_sizes: Annotated[
        str, typer.Option(help="Samples per step, with commas. Name the workload's own too, to compare with.")
    ],
    recipes: Annotated[
        str,
        typer.Option(
            help=f"With commas: {', '.join(RECIPES)}, or [b]path/to/file.py:NAME[/b], an anybatch.Recipe or a list of "
            "them."
        ),
    ] = "plain,sqrt,regime",
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, 2 ...")] = 3,
    lr_factors: Annotated[
        str, typer.Option(help="Factors on each recipe's rate, all tried; the best and the untuned one are marked.")
    ] = "1",
    epochs: Annotated[
        float | None,
        typer.Option(help="At the base batch size; the schedule moves in proportion. \\[default: the workload's own]"),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder of all runs: finished ones are not run again, killed ones go on.")
    ] = Path("runs"),
    json: Annotated[Path | None, typer.Option(help="Write everything as one JSON object.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report, one HTML page that needs no network.")] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="At most so many samples per forward pass and rank; the rest is accumulated.")
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Per run, equally spaced.")] = 20,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data, for workloads that take one.")] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it. \\[default: CUDA if there, else cpu]")] = None,
    autocast: Annotated[Autocast | None, typer.Option(help="Precision of forward passes. \\[default: full]")] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Workers of the data loader.")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard too.")] = False,
    finished_only: Annotated[
        bool, typer.Option("--finished-only", help="Show what is finished and train nothing.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a workload by several recipes at several batch sizes and see which keeps it good.

    Each run ends in a folder of its own under --runs, so the same command goes on after a kill, and takes seconds once
    everything is finished. Several processes given the same command share the work. SIGTERM and Ctrl-C save the state
    first (exit codes 143 and 130).

    [b]anybatch compare digits --batch-sizes 32,512 --recipes plain,regime --seeds 2 --report compare.html[/b]

    [b]torchrun --nproc-per-node 2 -m anybatch compare digits --batch-sizes 64[/b]
    """
    outputs = Outputs(json, report)
    for path in outputs:
        check_writable(path)
    console = Console(quiet=not is_first_rank(), highlight=False)
    try:
        with told_by_bars() as told:
            comparison = run(
                load_workload(workload, data_root),
                numbers("--batch-sizes", batch_sizes, int),
                recipes.split(","),
                seeds=seeds,
                lr_factors=numbers("--lr-factors", lr_factors, float),
                epochs=epochs,
                runs=runs,
                micro_batch_size=micro_batch_size,
                num_evaluations=evaluations,
                device=device,
                autocast=autocast,
                num_workers=num_workers,
                tensorboard=tensorboard,
                finished_only=finished_only,
                progress=told,
            )
    except AnybatchError as error:
        if isinstance(error.partial, Comparison) and error.partial.runs:
            _show(error.partial, console, outputs)
        raise
    _show(comparison, console, outputs)


def _show(comparison: Comparison, console: Console, outputs: Outputs) -> None:
    if is_first_rank():
        from anybatch.report.terminal import print_comparison

        print_comparison(comparison.to_dict(), console)
        outputs.write(comparison, console)
