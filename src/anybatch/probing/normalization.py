"""How wrong are the statistics that batch norm takes from a micro-batch, and what helps?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.nn.conversion_targets import BATCH_TYPES, Kind
from anybatch.train.data import SampleDraws, to_device
from anybatch.train.preserve import preserved
from anybatch.train.randomness import seeded
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

NUM_PASSES = 8
LARGE_MEAN_ERROR = 0.25
LARGE_LOG_VAR_ERROR = 0.35
GHOST_FROM = 2  # times the base batch size


@dataclass(frozen=True)
class LayerError:
    """How far a layer's statistics of one micro-batch are from those of all, root mean square over channels.

    Attributes:
        mean_error: in standard deviations of the feature.
        log_var_error: of the logarithm of the variance; 0.35 is a factor of 1.4.
    """

    mean_error: float
    log_var_error: float

    @property
    def is_large(self) -> bool:
        """Whether it is more than that of 16 independent values per channel, about."""
        return self.mean_error > LARGE_MEAN_ERROR or self.log_var_error > LARGE_LOG_VAR_ERROR


@dataclass(frozen=True)
class NormalizationError:
    """What batch norm's statistics are worth at a micro-batch size.

    Attributes:
        micro_batch_size: samples that share statistics.
        num_micro_batches: how many were looked at.
        layers: by name, those that are BatchNorm.
        cures: kinds of `anybatch.nn.convert` that help; none where nothing is wrong.
        reason: one sentence.
    """

    micro_batch_size: int
    num_micro_batches: int
    layers: Mapping[str, LayerError]
    cures: tuple[Kind, ...]
    reason: str


def measure_normalization_error(
    workload: Workload, runtime: Runtime, model: nn.Module, *, micro_batch_size: int, seed: int
) -> NormalizationError | None:
    """Compare each batch norm's statistics of single micro-batches with those of all of them.

    Forward passes alone; model, gradients and random states are left as they were.

    Args:
        workload: whose samples are drawn.
        runtime: device and precision; every rank measures for itself.
        model: not wrapped.
        micro_batch_size: samples of a forward pass.
        seed: of the draw.

    Returns:
        The errors; None where no layer is BatchNorm, or the training set has no two micro-batches.

    Example:
        >>> from anybatch.train.loop import start_training
        >>> from anybatch.workloads import load_workload
        >>> workload, runtime = load_workload("digits"), Runtime.detect("cpu")
        >>> model = start_training(workload, runtime, seed=0).model  # without batch norm
        >>> measure_normalization_error(workload, runtime, model, micro_batch_size=2, seed=0) is None
        True
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    norms = {name: module for name, module in norms.items() if type(module) in BATCH_TYPES}
    passes = min(NUM_PASSES, (workload.num_samples or math.inf) // micro_batch_size)
    if not norms or passes < 2:
        return None
    alone = Runtime(runtime.device, autocast=runtime.autocast)
    draws = SampleDraws(workload, alone, seed, "normalization")
    sizes = [micro_batch_size] * int(passes)
    with preserved(model), seeded(runtime.device, seed), _observed(norms) as seen, torch.no_grad(), alone.precision():
        model.train()
        for batch, _ in draws.parts(sizes, distinct=False):
            workload.loss(model, to_device(batch, runtime.device))
    layers = {
        name: layer_error(torch.stack(means), torch.stack(variances), norms[name].eps)
        for name, (means, variances) in seen.items()
    }
    cures = choose_cures(layers, micro_batch_size, workload.base_batch_size)
    reason = _why(layers, cures, micro_batch_size, workload.base_batch_size)
    return NormalizationError(micro_batch_size, len(sizes), layers, cures, reason)


def layer_error(means: Tensor, variances: Tensor, eps: float) -> LayerError:
    """Return how far the moments of micro-batches are from their pooled ones.

    Args:
        means: (n, C), n >= 2.
        variances: (n, C), biased.
        eps: added to variances.

    Returns:
        The errors; that of the mean is freed of what the pooled mean takes from each micro-batch.

    Example:
        >>> error = layer_error(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), 0.0)
        >>> error.mean_error, round(error.log_var_error, 4)
        (1.0, 0.6931)
    """
    pooled = variances.mean(0) + means.var(0, correction=0) + eps
    mean_error = (means.var(0, correction=1) / pooled).mean().sqrt()
    log_var_error = ((variances + eps) / pooled).log().square().mean().sqrt()
    return LayerError(mean_error.item(), log_var_error.item())


def choose_cures(
    layers: Mapping[str, LayerError], micro_batch_size: int, base_batch_size: int | None
) -> tuple[Kind, ...]:
    """Return what to convert batch norm to, for statistics that are noisy, or less so than the net was tuned with.

    Args:
        layers: what was measured.
        micro_batch_size: samples that share statistics.
        base_batch_size: at which the workload was tuned.

    Returns:
        Kinds of `anybatch.nn.convert`.

    Example:
        >>> choose_cures({"bn": LayerError(0.5, 0.8)}, 2, 32), choose_cures({"bn": LayerError(0.01, 0.02)}, 4096, 32)
        (('kalman', 'group'), ('ghost',))
    """
    if any(error.is_large for error in layers.values()):
        return ("kalman", "group")
    if base_batch_size is not None and micro_batch_size >= GHOST_FROM * base_batch_size:
        return ("ghost",)
    return ()


@contextmanager
def _observed(norms: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[list[Tensor], list[Tensor]]]]:
    """Take the moments of what each layer is given, in float32 or wider."""
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def look(name: str, input: Tensor) -> None:
        wide = input.detach().to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(wide, (0, *range(2, wide.dim())), correction=0)
        means, variances = seen.setdefault(name, ([], []))
        means.append(mean)
        variances.append(var)

    def hook_of(name: str) -> Any:
        return lambda module, inputs: look(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in norms.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _why(
    layers: Mapping[str, LayerError], cures: tuple[Kind, ...], micro_batch_size: int, base_batch_size: int | None
) -> str:
    name, worst = max(layers.items(), key=lambda item: item[1].mean_error + item[1].log_var_error)
    size = (
        f"at micro-batch {micro_batch_size} the mean of {name or 'the layer'}, the least exact of {len(layers)} batch "
        f"norms, is off by {worst.mean_error:.2g} standard deviations and its variance by a factor of "
        f"{math.exp(worst.log_var_error):.3g}"
    )
    if "kalman" in cures:
        num_large = sum(error.is_large for error in layers.values())
        return f"{size}; {num_large} are noisy: try {' or '.join(cures)} in their place, or a larger micro-batch"
    if "ghost" in cures:
        return (
            f"{size}; the net was tuned with the noise of batch {base_batch_size}: ghost batches of that size keep it"
        )
    return f"{size}; batch norm does well with that"
