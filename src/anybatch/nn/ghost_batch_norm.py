"""How does a large batch keep the normalization noise of a small one?

Ghost batch norm cuts the batch into parts of a small, fixed size and normalizes each by its own mean and variance.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.nn.layer_settings import check_eps, is_count
from anybatch.nn.micro_batch_parts import check_input, check_momentum, check_tensors
from anybatch.nn.part_normalization import GhostNormalized, normalize_parts

RunningUpdate = Literal["sequential", "average"]
DEFAULT_GHOST_BATCH_SIZE = 32


def count_ghost_batches(batch_size: int, ghost_batch_size: int) -> int:
    """Return into how many ghost batches a batch is cut: one per full `ghost_batch_size`, at least one.

    Args:
        batch_size: samples in the forward pass.
        ghost_batch_size: samples that share statistics, at least.

    Returns:
        max(1, floor(batch_size / ghost_batch_size)).

    Example:
        >>> [count_ghost_batches(size, 32) for size in (20, 64, 100, 128)]
        [1, 2, 3, 4]
    """
    return max(1, batch_size // ghost_batch_size)


def ghost_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    ghost_batch_size: int = DEFAULT_GHOST_BATCH_SIZE,
    eps: float = 1e-5,
) -> GhostNormalized:
    """Normalize each ghost batch of a training batch by its own statistics.

    Ghost batch l of the K contiguous, near-equal ones (larger ones first, as `torch.tensor_split` cuts) becomes
    weight * (x - mean_l) / sqrt(biased var_l + eps) + bias. Gradients flow through mean_l and var_l to the input.
    Changes nothing it is given.

    Args:
        input: (N, C) or (N, C, *), N samples; statistics are over a ghost batch's samples and all positions *.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        ghost_batch_size: samples that share statistics; a smaller batch is one ghost batch, and a batch that it
            does not divide has ghost batches of up to twice the size.
        eps: added to the variance.

    Returns:
        The output and the statistics of each ghost batch.

    Raises:
        InputError: `ghost_batch_size` is not a positive integer, `eps` is not above 0, a ghost batch has one value per
            channel, complex or integer input, or weights of other channels.

    Example:
        >>> normalized = ghost_batch_norm(torch.tensor([[1.0], [3.0], [2.0], [6.0]]), ghost_batch_size=2)
        >>> normalized.output.flatten().round(decimals=4).tolist(), normalized.mean.flatten().tolist()
        ([-1.0, 1.0, -1.0, 1.0], [2.0, 4.0])

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, algorithm 1. Differs: samples that do not fill a ghost batch are
        shared out over the others, and running statistics are `advance_running_statistic`'s.
    """
    _check_ghost_batch_size(ghost_batch_size)
    check_eps(eps)
    check_tensors(input, weight, bias)
    _check_more_than_one_value(input, ghost_batch_size)
    num_parts = count_ghost_batches(len(input), ghost_batch_size)
    return normalize_parts(input, num_parts, weight, bias, eps)


def advance_running_statistic(
    running: Tensor,
    parts: Tensor,
    momentum: float | None,
    *,
    running_update: RunningUpdate = "sequential",
    num_batches_tracked: Tensor | int | None = None,
) -> Tensor:
    """Return a running statistic after K ghost batches.

    "sequential" is K exponential updates, one per ghost batch, in closed form:
    (1 - momentum)^K running + sum over l = 1..K of momentum (1 - momentum)^(K - l) part_l. "average" is one update
    with the mean of the parts; with 1 - (1 - momentum)^K for a momentum it keeps as much of the past as "sequential"
    does, and weighs the ghost batches alike instead of the last most. Without a momentum either is the average of all
    ghost batches ever seen.

    Args:
        running: (..., C), the mean or the unbiased variance until now.
        parts: (..., K, C), that statistic of each ghost batch, in order.
        momentum: weight of a new statistic, PyTorch's convention; None for the cumulative average.
        running_update: "sequential" or "average".
        num_batches_tracked: ghost batches seen, these K among them; needed where `momentum` is None.

    Returns:
        (..., C), in the dtype of `parts`.

    Raises:
        InputError: an unknown `running_update`, or neither `momentum` nor `num_batches_tracked`.

    Example:
        >>> advance_running_statistic(torch.zeros(1), torch.tensor([[2.0], [4.0]]), 0.1)
        tensor([0.5800])

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, algorithm 1. Differs: its weights are printed (1 - momentum)^i and
        (1 - momentum)^|B_S|, which do not sum to 1; these are the ones of K updates, as the authors' code makes them,
        and of unbiased variances instead of standard deviations, as PyTorch keeps them.
    """
    _check_running_update(running_update)
    num_parts = parts.shape[-2]
    if momentum is None:
        if num_batches_tracked is None:
            raise InputError("num_batches_tracked must be given where momentum is None; got None. Pass the count.")
        return running.to(parts).lerp(parts.mean(-2), torch.as_tensor(num_parts / num_batches_tracked).to(parts))
    if running_update == "average":
        return running.to(parts).lerp(parts.mean(-2), momentum)
    base = 1 - momentum
    powers = torch.logspace(num_parts - 1, 0, num_parts, base, device=parts.device, dtype=parts.dtype)
    added = (powers[:, None] * parts).sum(-2)  # a matrix product would be low precision where the user allows it
    return added.mul_(momentum).add_(running.to(parts), alpha=base**num_parts)


@torch.no_grad()
def track_statistics(
    layer: nn.modules.batchnorm._BatchNorm,
    mean: Tensor,
    var: Tensor,
    *,
    num_batches: int = 1,
    running_update: RunningUpdate = "sequential",
) -> None:
    """Move a layer's running statistics by `advance_running_statistic`, and its count.

    Args:
        layer: with running statistics; changed in place.
        mean: (K, C).
        var: (K, C).
        num_batches: added to the count.
        running_update: "sequential" or "average".
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(num_batches)
    tracked = {"running_update": running_update, "num_batches_tracked": layer.num_batches_tracked}
    running = torch.stack((layer.running_mean, layer.running_var))
    moved = advance_running_statistic(running, torch.stack((mean, var)), layer.momentum, **tracked)
    layer.running_mean.copy_(moved[0])
    layer.running_var.copy_(moved[1])


class _GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Mixed in before a BatchNorm; ghost statistics in training, the BatchNorm itself otherwise."""

    ghost_batch_size: int
    running_update: RunningUpdate

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = DEFAULT_GHOST_BATCH_SIZE,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running_update: RunningUpdate = "sequential",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_ghost_batch_size(ghost_batch_size)
        check_eps(eps)
        check_momentum(momentum)
        _check_running_update(running_update)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.ghost_batch_size = ghost_batch_size
        self.running_update = running_update

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        check_input(input, self.num_features)
        if not self.training:
            return super().forward(input)
        _check_more_than_one_value(input, self.ghost_batch_size)
        num_parts = count_ghost_batches(len(input), self.ghost_batch_size)
        if num_parts == 1:
            return super().forward(input)
        output, mean, var = normalize_parts(input, num_parts, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            track_statistics(self, mean, var, num_batches=num_parts, running_update=self.running_update)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}, running_update={self.running_update}"


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of ghost batches; inputs are (N, C) or (N, C, L).

    A batch of n samples makes max(1, floor(n / ghost_batch_size)) near-equal contiguous ghost batches, so a batch
    below twice the ghost size, and any batch in evaluation, is treated exactly as BatchNorm does. Checkpoints are
    BatchNorm's, both ways.

    `num_batches_tracked` counts ghost batches, K per forward pass, for either `running_update`; with `momentum=None`
    the running statistics are the average over all of them.

    Args:
        num_features: C.
        ghost_batch_size: samples that share statistics, at least; the paper's 128 is for batches of thousands.
        eps: added to the variance.
        momentum: weight of a new statistic; None for the cumulative average.
        affine: whether there are `weight` and `bias`.
        track_running_stats: without them evaluation uses the statistics of the whole batch, as BatchNorm does.
        running_update: "sequential" updates once per ghost batch, so that memory per step is (1 - momentum)^K, as
            when the ghost batches were separate forward passes; "average" updates once with their mean.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        InputError: `ghost_batch_size` is not a positive integer, `eps` is not above 0, `running_update` is unknown,
            complex or integer input, other channels, or, in training, a ghost batch has one value per channel.

    Example:
        >>> layer = GhostBatchNorm1d(1, ghost_batch_size=2)
        >>> _ = layer(torch.tensor([[1.0], [3.0], [2.0], [6.0]]))
        >>> print(f"{layer.running_mean.item():.2f} {layer.running_var.item():.2f} {layer.num_batches_tracked.item()}")
        0.58 1.79 2

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, algorithm 1; see `ghost_batch_norm` for what differs.
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of ghost batches; inputs are (N, C, H, W).

    See `GhostBatchNorm1d`.

    Example:
        >>> GhostBatchNorm2d(8, ghost_batch_size=16)(torch.randn(64, 8, 5, 5)).shape
        torch.Size([64, 8, 5, 5])
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """BatchNorm3d whose training statistics are those of ghost batches; inputs are (N, C, D, H, W).

    See `GhostBatchNorm1d`.

    Example:
        >>> GhostBatchNorm3d(8, ghost_batch_size=16)(torch.randn(32, 8, 2, 5, 5)).shape
        torch.Size([32, 8, 2, 5, 5])
    """


def _check_ghost_batch_size(value: int) -> None:
    if not is_count(value):
        raise InputError(
            f"ghost_batch_size must be a positive integer; got {value!r}. Choose 32, or the batch the net was tuned at."
        )


def _check_running_update(value: str) -> None:
    if value not in get_args(RunningUpdate):
        raise InputError(f"running_update must be one of {', '.join(get_args(RunningUpdate))}; got {value!r}.")


def _check_more_than_one_value(input: Tensor, ghost_batch_size: int) -> None:
    smallest = len(input) // count_ghost_batches(len(input), ghost_batch_size)
    if smallest * math.prod(input.shape[2:]) == 1:
        raise InputError(
            f"a ghost batch must have more than 1 value per channel in training; got 1, with ghost_batch_size "
            f"{ghost_batch_size} and an input of shape {tuple(input.shape)}. Raise ghost_batch_size or the batch."
        )
