"""How wrong are the moments of a micro-batch, and which running statistics should evaluate them?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cells import Bench
from torch import Tensor, nn

from anybatch.apply.sample_stream import Keys
from anybatch.nn import Moments
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.train.data import SeededDataset
from anybatch.train.evaluate import evaluate
from anybatch.train.jobs import Job
from anybatch.train.loop import start_training

EPS = 1e-5  # of the layers: what a variance is never seen below


def error_of(moments: Moments, pooled: Moments) -> tuple[float, float]:
    """Return how far micro-batches' moments are from those of the whole batch, over splits and channels.

    Args:
        moments: (S, C).
        pooled: (1, C).

    Returns:
        Root mean square of (mean - pooled mean) / pooled standard deviation, and of log(var / pooled var).
    """
    scale = (pooled.var + EPS).sqrt()
    of_mean = ((moments.mean - pooled.mean) / scale).square().mean().sqrt()
    of_var = ((moments.var + EPS) / (pooled.var + EPS)).log().square().mean().sqrt()
    return of_mean.item(), of_var.item()


def scatter_of(moments: Moments, pooled: Moments) -> tuple[float, float]:
    """Return how far micro-batches' moments are from one another, which no affine parameter can make good.

    Args:
        moments: (S, C).
        pooled: (1, C), of the whole batch.

    Returns:
        Root mean square over splits and channels of the mean's distance from its own average over splits, in pooled
        standard deviations, and of that of log var.
    """
    means, logs = moments.mean / (pooled.var + EPS).sqrt(), (moments.var + EPS).log()
    of_mean, of_var = ((each - each.mean(0)).square().mean().sqrt() for each in (means, logs))
    return of_mean.item(), of_var.item()


def moment_errors(bench: Bench, jobs: Mapping[int, Job], *, is_trained: bool, num_batches: int) -> list[dict[str, Any]]:
    """Return the errors and the scatter of every layer that has a prior, one value per seed.

    The network runs as in training: each layer is fed what the layers before it made of their own posteriors.
    """
    rows: dict[str, dict[str, Any]] = {}
    for seed, job in jobs.items():
        model = _model(bench, job, weights=job if is_trained else None)
        for name, figures in _errors_by_layer(model, _batches(bench, job, num_batches)).items():
            row = rows.setdefault(name, {"layer": name, "seeds": []})
            row["seeds"].append(seed)
            for key, value in figures.items():
                row.setdefault(key, []).append(value)
    return list(rows.values())


def _errors_by_layer(model: nn.Module, batches: Iterator[Tensor]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = {}
    for images in batches:
        with torch.no_grad():
            model(images)
        for name, layer in model.named_modules():
            if isinstance(layer, KalmanLayer) and layer.latest is not None and layer.latest.prior is not None:
                for key, value in _figures(layer.latest).items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    return {name: {key: float(np.mean(values)) for key, values in figures.items()} for name, figures in found.items()}


def _figures(latest: Any) -> dict[str, float]:
    pooled = latest.observed.pooled()
    figures = {"prior_weight": float(latest.prior_weight.mean())}
    for name in ("observed", "prior", "posterior"):
        moments = getattr(latest, name)
        figures[f"{name}_mean"], figures[f"{name}_var"] = error_of(moments, pooled)
        figures[f"{name}_mean_scatter"], figures[f"{name}_var_scatter"] = scatter_of(moments, pooled)
    return figures


def evaluate_with_other_statistics(
    bench: Bench, job: Job, kinds: Mapping[str, Mapping[str, Any]], num_batches: int
) -> dict[str, float]:
    """Return a trained network's accuracy by running statistics that are taken in other ways.

    Args:
        bench: whose evaluation set it is.
        job: a finished run.
        kinds: name -> fields of the plan to replace.
        num_batches: passed through the final weights, with the layers' own momentum, to forget those of the run.

    Returns:
        Percent by name; "of the run" are those it ended with.
    """
    found = {}
    for name, changes in {"of the run": {}, **kinds}.items():
        model = _model(bench, job, weights=job, changes=changes)
        with torch.no_grad():
            for images in _batches(bench, job, num_batches) if changes else ():
                model(images)
        figures = evaluate(
            bench.workload, bench.runtime, model, batch_size=job.cell.settings.batch_size,
            max_samples=bench.max_eval_samples,
        )  # fmt: skip
        found[name] = 100 * figures["accuracy"]
    return found


def _model(bench: Bench, job: Job, *, weights: Job | None, changes: Mapping[str, Any] | None = None) -> nn.Module:
    settings = job.cell.settings
    plan: Any = settings.plan
    model = start_training(bench.workload, bench.runtime, seed=settings.seed, plan=replace(plan, **changes or {})).model
    if weights is not None:
        path = weights.folder.path / "weights.pt"
        model.load_state_dict(torch.load(path, map_location=bench.runtime.device, weights_only=True))
    return model


def _batches(bench: Bench, job: Job, count: int) -> Iterator[Tensor]:
    """Yield batches of training images, augmented, the same ones for every network of a seed."""
    seed, size = job.cell.settings.seed, job.cell.settings.batch_size
    rng = np.random.default_rng(seed)
    data = SeededDataset(bench.workload, bench.workload.train_set, seed)
    for epoch in range(count):
        indices = rng.choice(bench.workload.num_samples or 0, size, replace=False)
        yield data.__getitems__(Keys(np.full(size, epoch, dtype=np.int64), indices))[0].to(bench.runtime.device)


def per_seed(rows: Sequence[Mapping[str, Any]], figure: Callable[[Mapping[str, Any], int], float]) -> list[float]:
    """Return the mean over layers of a figure of a row, for every seed."""
    return [
        float(np.mean([figure(row, index) for row in rows])) for index in range(len(rows[0]["seeds"]) if rows else 0)
    ]
