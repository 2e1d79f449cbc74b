"""`anybatch compare WORKLOAD`: train by several recipes at several batch sizes, put side by side."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from anybatch.cli import common_options as common
from anybatch.cli import compare_options as own
from anybatch.cli.launch import hold_out
from anybatch.cli.outputs import Outputs, check_distinct, check_writable, is_first_rank, numbers, told_by_bars
from anybatch.errors import AnybatchError
from anybatch.train.compare import compare as run
from anybatch.train.comparison import Comparison
from anybatch.workloads import load_workload


def compare(
    workload: own.Workload,
    batch_sizes: own.BatchSizes,
    recipes: own.Recipes = "plain,sqrt,regime",
    seeds: own.Seeds = 3,
    lr_factors: own.LrFactors = "1",
    epochs: own.Epochs = None,
    runs: own.Runs = Path("runs"),
    json: own.Json = None,
    report: common.Report = None,
    micro_batch_size: own.MicroBatchSize = None,
    evaluations: own.Evaluations = 20,
    data_root: common.DataRoot = None,
    device: common.Device = None,
    autocast: common.Autocast = None,
    num_workers: common.NumWorkers = 0,
    tensorboard: own.Tensorboard = False,
    finished_only: own.FinishedOnly = False,
    debug: common.Debug = False,
) -> None:
    """Train a workload by several recipes at several batch sizes and see which keeps it good.

    Each run ends in a folder of its own under --runs, so the same command goes on after a kill, and takes seconds once
    everything is finished. Several processes given the same command share the work. SIGTERM and Ctrl-C save the state
    first (exit codes 143 and 130).

    [b]anybatch compare digits --batch-sizes 32,512 --recipes plain,regime --seeds 2 --report compare.html[/b]

    [b]torchrun --nproc-per-node 2 -m anybatch compare digits --batch-sizes 64[/b]
    """
    outputs = Outputs(json, report)
    check_distinct(json=outputs.json, report=outputs.report)
    check_writable(*outputs)
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
        hold_out()
        if isinstance(error.partial, Comparison) and error.partial.runs:
            _show(error.partial, console, outputs)
        raise
    _show(comparison, console, outputs)


def _show(comparison: Comparison, console: Console, outputs: Outputs) -> None:
    if is_first_rank():
        from anybatch.report.terminal import print_comparison

        print_comparison(comparison.to_dict(), console)
        outputs.write(comparison, console)
