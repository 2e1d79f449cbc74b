"""`anybatch probe WORKLOAD`: measure, recommend, report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anybatch.cli.outputs import Outputs, check_writable, is_first_rank, numbers, told_by_bars
from anybatch.decide.noise_scale import Target
from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing import ProbeInterrupted, ProbeResult
from anybatch.probing import probe as measure
from anybatch.probing import verify as check_prediction
from anybatch.probing.probe import Autocast
from anybatch.probing.recommend import Objective
from anybatch.probing.verify import DEFAULT_BUDGET
from anybatch.workloads import load_workload

UNITS = ("", "k", "m", "g", "t")


def probe(
    workload: Annotated[
        str,
        typer.Argument(
            help="A built-in name (see [b]anybatch methods[/b]), or [b]path/to/file.py:function[/b], a function that "
            "returns an anybatch.Workload (examples/my_workload.py is one to copy)."
        ),
    ],
    report: Annotated[Path | None, typer.Option(help="Write the report, one HTML page that needs no network.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything measured as one JSON object.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Say how to make this batch size and what it costs, instead of choosing."),
    ] = None,
    objective: Annotated[
        Objective,
        typer.Option(help="time: the least to a given loss. samples: the fastest of the sizes that need few samples."),
    ] = "time",
    devices: Annotated[str, typer.Option(help="Numbers of devices to predict the speed-up of.")] = "1,8,64,512",
    target: Annotated[
        Target,
        typer.Option(help="Whose gradient the noise scale is about: this training set, or what it came from."),
    ] = "training_set",
    memory: Annotated[
        str | None,
        typer.Option(help="What training may use on a device, such as 8GB. \\[default: 80% of what is free]"),
    ] = None,
    budget: Annotated[float, typer.Option(help="Seconds for all measurements together, about.")] = 60.0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Measure the noise scale at these weights instead of along short runs."),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data, for workloads that take one.")] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it. \\[default: CUDA if there, else cpu]")] = None,
    autocast: Annotated[Autocast | None, typer.Option(help="Precision of forward passes. \\[default: full]")] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Workers of the data loader.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights and samples.")] = 0,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Train briefly at several batch sizes and lay the measured time beside it."),
    ] = False,
    verify_budget: Annotated[
        float, typer.Option(help="Seconds for these runs, about; sizes that it does not hold are skipped and said.")
    ] = DEFAULT_BUDGET,
    verify_target: Annotated[
        float | None,
        typer.Option(help="Train to this loss on training samples. \\[default: set from a small-batch run]"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs of --verify: finished ones are not run again.")] = Path(
        "runs"
    ),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure a workload and say which batch size it deserves.

    It finds the largest micro-batch that trains, how fast each size is, and how noisy gradients are along short runs;
    and joins them in one recommendation, with a reason for every number. With --verify it checks that advice: runs to
    one loss at several batch sizes, each at its own best rate. The same command again takes up what is in --runs.

    [b]anybatch probe digits --report probe.html[/b]

    [b]anybatch probe digits --verify --report probe.html[/b]

    [b]anybatch probe path/to/file.py:function --memory 8GB --json probe.json[/b]

    [b]torchrun --nproc-per-node 2 -m anybatch probe digits[/b]
    """
    outputs = Outputs(json, report)
    for path in outputs:
        check_writable(path)
    console = Console(quiet=not is_first_rank(), highlight=False)
    try:
        with told_by_bars() as told:
            loaded = load_workload(workload, data_root)
            result = measure(
                loaded,
                batch_size=batch_size,
                objective=objective,
                devices=numbers("--devices", devices, int),
                target=target,
                memory=None if memory is None else _bytes(memory),
                budget=budget,
                checkpoint=checkpoint,
                device=device,
                autocast=autocast,
                num_workers=num_workers,
                seed=seed,
                runs=runs if verify else None,
                progress=told,
            )
            if verify:
                result = check_prediction(
                    loaded,
                    result,
                    runs=runs,
                    budget=verify_budget,
                    target_loss=verify_target,
                    device=device,
                    progress=told,
                )
    except ProbeInterrupted as error:
        _show(error.partial, console, outputs)
        raise RunError("interrupted; what was measured before is above and in the files you asked for.") from None
    except AnybatchError as error:
        if isinstance(error.partial, ProbeResult) and error.partial.memory is not None:
            _show(error.partial, console, outputs)
        raise
    _show(result, console, outputs)


def _show(result: ProbeResult, console: Console, outputs: Outputs) -> None:
    if not is_first_rank():
        return
    from anybatch.report.terminal import print_probe

    print_probe(result.to_dict(), console)
    outputs.write(result, console)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None:
        raise InputError(f"--memory must be a number with a unit, such as 8GB or 500MiB; got {text!r}.")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** UNITS.index(unit))
