"""`anybatch probe WORKLOAD`: measure, recommend, report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from anybatch.cli import common_options as common
from anybatch.cli import probe_options as own
from anybatch.cli.launch import hold_out
from anybatch.cli.outputs import Outputs, check_distinct, check_writable, is_first_rank, numbers, told_by_bars
from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing import ProbeInterrupted, ProbeResult
from anybatch.probing import probe as measure
from anybatch.probing import verify as check_prediction
from anybatch.probing.verify import DEFAULT_BUDGET
from anybatch.workloads import load_workload

UNITS = ("", "k", "m", "g", "t")


def probe(
    workload: own.Workload,
    report: common.Report = None,
    json: own.Json = None,
    batch_size: own.BatchSize = None,
    objective: own.Objective = "time",
    devices: own.Devices = "1,8,64,512",
    target: own.Target = "training_set",
    memory: own.Memory = None,
    budget: own.Budget = 60.0,
    checkpoint: own.Checkpoint = None,
    data_root: common.DataRoot = None,
    device: common.Device = None,
    autocast: common.Autocast = None,
    num_workers: common.NumWorkers = 0,
    seed: own.Seed = 0,
    verify: own.Verify = False,
    verify_budget: own.VerifyBudget = DEFAULT_BUDGET,
    verify_target: own.VerifyTarget = None,
    runs: own.Runs = Path("runs"),
    debug: common.Debug = False,
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
    check_distinct(json=outputs.json, report=outputs.report)
    check_writable(*outputs)
    console = Console(quiet=not is_first_rank(), highlight=False)
    with _partial_shown(console, outputs), told_by_bars() as told:
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
    _show(result, console, outputs)


@contextmanager
def _partial_shown(console: Console, outputs: Outputs) -> Iterator[None]:
    """Show what was measured before an end that came too early."""
    try:
        yield
    except ProbeInterrupted as error:
        hold_out()
        _show(error.partial, console, outputs)
        raise RunError("interrupted; what was measured before is above and in the files you asked for.") from None
    except AnybatchError as error:
        hold_out()
        if isinstance(error.partial, ProbeResult) and error.partial.memory is not None:
            _show(error.partial, console, outputs)
        raise


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
