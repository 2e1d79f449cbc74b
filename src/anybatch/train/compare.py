"""Which recipe keeps a workload as good at a large batch as at its own?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anybatch.errors import AnybatchError
from anybatch.train.comparison import Comparison, RankedBy, Run, join_runs
from anybatch.train.comparison_checks import as_int, check_comparison, check_modules
from anybatch.train.comparison_warnings import try_evaluation, warn_after, warn_before
from anybatch.train.environment import describe_environment
from anybatch.train.jobs import Job, epochs_of_first_rate, plan_jobs
from anybatch.train.loop import start_training
from anybatch.train.progress import Progress, silent
from anybatch.train.recipes import Recipe, find_recipes
from anybatch.train.runtime import Autocast, Runtime
from anybatch.train.shared_work import SharedWork
from anybatch.workload import Workload


def compare(
    workload: Workload,
    batch_sizes: Sequence[int],
    recipes: Sequence[str | Recipe] = ("plain", "sqrt", "regime"),
    *,
    seeds: int = 3,
    lr_factors: Sequence[float] = (1.0,),
    epochs: float | None = None,
    runs: str | Path = "runs",
    micro_batch_size: int | None = None,
    num_evaluations: int = 20,
    max_eval_samples: int = 10_000,
    checkpoint_seconds: float = 30.0,
    device: str | None = None,
    autocast: Autocast | None = None,
    num_workers: int = 0,
    tensorboard: bool = False,
    finished_only: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Train a workload by several recipes at several batch sizes and put the results side by side.

    Every run has a folder under `runs`, named after its batch size, seed and a digest of all that decides it. A run
    that is finished is read, one that was killed goes on from its checkpoint, and several processes given the same
    call share the work. Under torchrun every rank calls it, after `torch.distributed.init_process_group`.

    Args:
        workload: with `eval_set`, `base_batch_size` and `epochs`.
        batch_sizes: samples per step over all ranks.
        recipes: names of built-in recipes, `path/to/file.py:NAME`, or recipes.
        seeds: how many, from 0 on.
        lr_factors: factors on each recipe's rate that are all tried; the table marks the best and the untuned one.
        epochs: train so many at the base batch size instead of the workload's own; its schedule moves in proportion.
        runs: folder of all runs.
        micro_batch_size: at most so many samples per forward pass and rank; the rest is accumulated. None: no limit.
        num_evaluations: per run, equally spaced, on the evaluation set and on as many training samples.
        max_eval_samples: of a larger set so many are drawn.
        checkpoint_seconds: between two checkpoints.
        device: as torch names it; default: CUDA where there is one, else the CPU.
        autocast: precision of forward passes; None for full precision.
        num_workers: of the data loader.
        tensorboard: whether metrics are written for TensorBoard too.
        finished_only: whether only what is finished is shown, and nothing trained.
        progress: told how far each run is.

    Returns:
        The comparison; `.table`, `.runs`, `.to_json()`, `.to_html(path)`.

    Raises:
        InputError: an argument or the workload cannot be used; found before anything is trained.
        AnybatchError: a RunError where a folder cannot be written, a StoppedError of SIGTERM or Ctrl-C with the state
            saved. What is finished is the exception's `partial`.

    Example:
        >>> import anybatch, tempfile
        >>> from anybatch.workloads import load_workload
        >>> digits = load_workload("digits")
        >>> found = anybatch.compare(digits, [32, 64], ["plain"], seeds=1, epochs=0.5, runs=tempfile.mkdtemp())
        >>> [(row.batch_size, row.updates) for row in found.table]
        [(32, 22), (64, 11)]
    """
    runtime = Runtime.detect(device, autocast)
    chosen = find_recipes(recipes)
    settings = {
        "batch_sizes": [as_int(batch_size) for batch_size in batch_sizes],
        "recipes": [recipe.name for recipe in chosen],
        "seeds": as_int(seeds),
        "lr_factors": list(lr_factors),
        "base_batch_size": workload.base_batch_size,
        "epochs": workload.epochs if epochs is None else epochs,
        "micro_batch_size": as_int(micro_batch_size),
        "num_evaluations": as_int(num_evaluations),
        "max_eval_samples": as_int(max_eval_samples),
        "autocast": autocast,
        "device": str(runtime.device),
        "runs": str(runs),
    }
    jobs, warnings = _prepare(workload, runtime, chosen, settings, tensorboard)
    work = SharedWork(workload, runtime, jobs, checkpoint_seconds, num_workers, progress)
    first_rate = epochs_of_first_rate(workload, runtime)
    try:
        work.read() if finished_only else work.do()
    except AnybatchError as error:
        error.partial = _join(work, chosen, settings, warnings, first_rate)
        raise
    return _join(work, chosen, settings, warnings, first_rate)


def _prepare(
    workload: Workload, runtime: Runtime, recipes: Sequence[Recipe], settings: dict[str, Any], tensorboard: bool
) -> tuple[list[Job], list[str]]:
    """Refuse what cannot be compared, and return the runs with what is to be warned of before them."""
    check_comparison(workload, runtime, settings, recipes)
    training = start_training(workload, Runtime(runtime.device), seed=0)
    check_modules(workload, runtime, training.model, settings, recipes)
    takes_eval_loss, of_evaluation = try_evaluation(workload, runtime, training.model)
    warnings = [*of_evaluation, *warn_before(workload, runtime, training, recipes, settings)]
    jobs = plan_jobs(
        workload,
        runtime,
        recipes,
        training.optimizer,
        settings,
        takes_eval_loss=takes_eval_loss,
        tensorboard=tensorboard,
    )
    return jobs, warnings


def _join(
    work: SharedWork, recipes: tuple[Recipe, ...], settings: dict[str, Any], warnings: Sequence[str], first_rate: float
) -> Comparison:
    """Put what is finished side by side."""
    runs = tuple(job.run(work.results[job.folder.path], work.workload, first_rate) for job in work.finished())
    metric = _ranked_by(work.workload, runs)
    return Comparison(
        workload=work.workload.name,
        settings=settings,
        environment=describe_environment(work.runtime),
        metric=metric,
        recipes=recipes,
        runs=runs,
        table=join_runs(runs, metric),
        warnings=(*warnings, *warn_after(runs)),
        partial=len(runs) < len(work.jobs),
    )


def _ranked_by(workload: Workload, runs: Sequence[Run]) -> RankedBy:
    names = [name.removeprefix("eval_") for run in runs for name in run.metrics if name.startswith("eval_")]
    first = next((name for name in names if name != "loss"), None)
    if workload.metric is None or first is None:
        return RankedBy("loss", False)
    return RankedBy(first, getattr(workload.metric(), "higher_is_better", True))
