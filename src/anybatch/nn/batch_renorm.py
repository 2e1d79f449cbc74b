"""How does a layer train with the statistics it will be evaluated with, when those of its batch are noisy?

Batch renormalization corrects the batch's mean and variance towards the running ones, within limits that widen slowly.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.nn.buffer_reads import read_buffer
from anybatch.nn.ghost_batch_norm import track_statistics
from anybatch.nn.layer_settings import check_eps, is_number
from anybatch.nn.micro_batch_parts import check_input, check_micro_batch_size, check_momentum, count_parts
from anybatch.nn.moments import wide_dtype
from anybatch.nn.part_normalization import normalize_parts
from anybatch.nn.recomputation import is_computed_again, nearest

Relaxation = tuple[int, int, int]
PUBLISHED_RELAXATION: Relaxation = (5_000, 25_000, 40_000)
_REMEMBERED = 16  # passes that a checkpoint may compute again
_OTHER = 1e-6  # squared distance of means, over their squares, beyond which they are of another batch
_FORGOTTEN = (
    f"a pass that a checkpoint computes again must be among the last {_REMEMBERED} of its layer; got one of another "
    "batch, whose gradients are off. Go backward after fewer passes."
)


class RenormLimits(NamedTuple):
    """How far the correction may go: r in [1 / r_max, r_max] and d in [-d_max, d_max]."""

    r_max: Tensor
    d_max: Tensor


class BatchRenormalized(NamedTuple):
    """A normalized batch of K micro-batches, with the statistics of each.

    Attributes:
        output: the shape, dtype and memory format of the input.
        mean: (K, C), detached; float32 or wider.
        var: (K, C), unbiased, detached; float32 or wider.
    """

    output: Tensor
    mean: Tensor
    var: Tensor


def renorm_limits(
    num_updates: Tensor, r_max: float = 3.0, d_max: float = 5.0, relaxation: Relaxation = PUBLISHED_RELAXATION
) -> RenormLimits:
    """Return the limits of the correction after a number of updates: none at first, then growing in a straight line.

    Args:
        num_updates: scalar, forward passes in training before this one.
        r_max: the limit in the end, at least 1.
        d_max: the limit in the end, at least 0.
        relaxation: updates at which both begin to grow, d has grown, and r has; growth in no time is a step.

    Returns:
        Two scalars; (1, 0) is batch norm.

    Example:
        >>> import torch
        >>> [tuple(limit.item() for limit in renorm_limits(torch.tensor(n))) for n in (0, 15_000, 40_000)]
        [(1.0, 0.0), (1.571..., 2.5), (3.0, 5.0)]

    Source:
        Ioffe 2017, arXiv:1702.03275, section 4.2: the first 5,000 updates are batch norm, d_max reaches 5 at 25,000 and
        r_max 3 at 40,000. That both grow in a straight line is our reading of "gradually".
    """
    start, end_of_d, end_of_r = relaxation
    share_of_r, share_of_d = (
        ((num_updates - start + (end == start)) / max(end - start, 1)).clamp(0, 1) for end in (end_of_r, end_of_d)
    )
    return RenormLimits(1 + (r_max - 1) * share_of_r, d_max * share_of_d)


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    limits: RenormLimits,
    micro_batch_size: int | None = None,
    eps: float = 1e-5,
) -> BatchRenormalized:
    """Normalize each micro-batch of a training batch by its statistics, corrected towards the running ones.

    Micro-batch k becomes weight ((x - mean_k) / s_k * r_k + d_k) + bias with s_k = sqrt(biased var_k + eps),
    s = sqrt(running var + eps), r_k = s_k / s and d_k = (mean_k - running mean) / s, both clipped and taken as
    constants. Without clipping that is the layer's own evaluation, with the gradients of batch norm.

    Args:
        input: (N, C) or (N, C, *).
        running_mean: (C,).
        running_var: (C,), unbiased.
        weight: (C,) or None.
        bias: (C,) or None.
        limits: of r and d.
        micro_batch_size: samples that share statistics; None for the whole batch.
        eps: added to the variances.

    Returns:
        The output and the statistics of each micro-batch.

    Raises:
        InputError: as for `count_parts`.

    Example:
        >>> import torch
        >>> x, limits = torch.tensor([[1.0], [3.0]]), RenormLimits(torch.tensor(3.0), torch.tensor(5.0))
        >>> batch_renorm(x, torch.zeros(1), torch.ones(1), limits=limits).output.flatten().round(decimals=3).tolist()
        [1.0, 3.0]

    Source:
        Ioffe 2017, arXiv:1702.03275, algorithm 1. Differs: the running statistic is PyTorch's unbiased variance, not
        a mean of standard deviations, so that checkpoints are BatchNorm's and evaluation is BatchNorm.
    """
    num_parts = count_parts(input, micro_batch_size)
    plain, mean, var = normalize_parts(input, num_parts, None, None, eps)
    count = input.numel() // input.shape[1] // num_parts
    std = (running_var.detach().to(var) + eps).sqrt()
    r_max, d_max = limits.r_max.to(var), limits.d_max.to(var)
    r = ((var * (count - 1) / count + eps).sqrt() / std).clamp(1 / r_max, r_max)
    d = ((mean - running_mean.detach().to(mean)) / std).clamp(-d_max, d_max)
    scale = r if weight is None else weight.to(r) * r
    shift = d if weight is None else weight.to(d) * d
    shift = shift if bias is None else shift + bias.to(d)
    shape = (num_parts, 1, -1, *(1 for _ in input.shape[2:]))
    output = plain.unflatten(0, (num_parts, -1)) * scale.view(shape) + shift.view(shape)
    return BatchRenormalized(output.flatten(0, 1).to(input.dtype), mean, var)


class _Pass(NamedTuple):
    """What a training pass saw, and what it read.

    Attributes:
        seen: (C,), the mean of its batch.
        running_mean: (C,), before the pass.
        running_var: (C,), before the pass.
        num_updates: scalar, before the pass.
    """

    seen: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_updates: Tensor


class _BatchRenorm(nn.modules.batchnorm._BatchNorm):
    """Mixed in before a BatchNorm; corrected statistics in training, the BatchNorm itself otherwise."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        micro_batch_size: int | None = None,
        r_max: float = 3.0,
        d_max: float = 5.0,
        relaxation: Relaxation = PUBLISHED_RELAXATION,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_eps(eps)
        check_micro_batch_size(micro_batch_size)
        check_momentum(momentum)
        _check_limits(r_max, d_max, relaxation)
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.micro_batch_size = micro_batch_size
        self.r_max = r_max
        self.d_max = d_max
        self._passes: deque[_Pass] = deque(maxlen=_REMEMBERED)
        self.relaxation: Relaxation = (relaxation[0], relaxation[1], relaxation[2])

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        check_input(input, self.num_features)
        if not self.training:
            return super().forward(input)
        if is_computed_again() and self._passes:
            return self._normalize(input, *self._take(input)[1:]).output
        return self._train(input)

    def _train(self, input: Tensor) -> Tensor:
        """Normalize, and move the statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked)
        read = [read_buffer(each) for each in buffers]
        output, mean, var = self._normalize(input, *read)
        mean, var = mean.mean(0, keepdim=True), var.mean(0, keepdim=True)
        if not torch.compiler.is_compiling():  # a compiler sees to checkpoints itself
            self._passes.append(_Pass(mean[0], *(each.clone() for each in read)))
        track_statistics(self, mean, var)
        return output

    def _normalize(
        self, input: Tensor, running_mean: Tensor, running_var: Tensor, num_updates: Tensor
    ) -> BatchRenormalized:
        updates = num_updates.to(wide_dtype(running_var))
        limits = renorm_limits(updates, self.r_max, self.d_max, self.relaxation)
        options = {"limits": limits, "micro_batch_size": self.micro_batch_size, "eps": self.eps}
        return batch_renorm(input, running_mean, running_var, self.weight, self.bias, **options)

    @torch.no_grad()
    def _take(self, input: Tensor) -> _Pass:
        """Return what the pass that is computed again read; of several of one batch, each in its turn from the last."""
        if len(self._passes) == 1:
            return self._passes[0]
        num_parts = count_parts(input, self.micro_batch_size)
        seen = normalize_parts(input, num_parts, None, None, self.eps).mean.mean(0)
        index, distance = nearest(seen, [each.seen for each in self._passes])
        if len(self._passes) == _REMEMBERED and distance > _OTHER * float(seen.square().sum()):
            warnings.warn(_FORGOTTEN, stacklevel=3)
        found = self._passes[index]
        del self._passes[index]
        self._passes.appendleft(found)  # the first to be found no more, and to be forgotten
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._passes.clear()  # they would stay where the layer was
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica._passes = deque(maxlen=_REMEMBERED)
        return replica

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_passes": deque(maxlen=_REMEMBERED)}

    def extra_repr(self) -> str:
        limits = f"r_max={self.r_max}, d_max={self.d_max}, relaxation={self.relaxation}"
        return f"{super().extra_repr()}, micro_batch_size={self.micro_batch_size}, {limits}"


class BatchRenorm1d(_BatchRenorm, nn.BatchNorm1d):
    """BatchNorm1d that trains with what it is evaluated with, within limits; inputs are (N, C) or (N, C, L).

    Evaluation is BatchNorm's and checkpoints load both ways. `num_batches_tracked` counts forward passes and is the
    clock of `relaxation`, so a layer that comes with the statistics of a long training starts with the full correction.
    Activation checkpointing computes one of the last 16 passes again with the statistics that it read, and moves none.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a new statistic, of the mean over the micro-batches; None for the cumulative average.
        affine: whether there are `weight` and `bias`.
        micro_batch_size: samples that share statistics, so that a batch of 128 can be normalized as 64 devices with 2
            samples each would; None for the whole batch.
        r_max: how far the standard deviation may be corrected in the end, as a factor.
        d_max: how far the mean may be corrected in the end, in standard deviations.
        relaxation: updates at which both limits begin to grow, that of d is reached, and that of r is; (0, 0, 0) for
            the full correction from the start.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        InputError: limits or sizes that are none, or, in training, a batch that `count_parts` refuses.

    Example:
        >>> import torch
        >>> layer = BatchRenorm1d(1, micro_batch_size=2)
        >>> _ = layer(torch.tensor([[1.0], [3.0], [2.0], [6.0]]))
        >>> print(f"{layer.running_mean.item():.2f} {layer.running_var.item():.2f}")
        0.03 1.04

    Source:
        Ioffe 2017, arXiv:1702.03275; see `batch_renorm` for what differs. Momentum 0.01, r_max 3, d_max 5 and the
        relaxation are the paper's, for 130,000 updates and more; scale the relaxation with the length of training.
    """


class BatchRenorm2d(_BatchRenorm, nn.BatchNorm2d):
    """BatchNorm2d that trains with what it is evaluated with, within limits; inputs are (N, C, H, W).

    See `BatchRenorm1d`.

    Example:
        >>> import torch
        >>> BatchRenorm2d(8, micro_batch_size=2)(torch.randn(16, 8, 5, 5)).shape
        torch.Size([16, 8, 5, 5])
    """


class BatchRenorm3d(_BatchRenorm, nn.BatchNorm3d):
    """BatchNorm3d that trains with what it is evaluated with, within limits; inputs are (N, C, D, H, W).

    See `BatchRenorm1d`.

    Example:
        >>> import torch
        >>> BatchRenorm3d(8, micro_batch_size=2)(torch.randn(4, 8, 2, 5, 5)).shape
        torch.Size([4, 8, 2, 5, 5])
    """


def _check_limits(r_max: float, d_max: float, relaxation: Relaxation) -> None:
    if not is_number(r_max) or not r_max >= 1:
        raise InputError(f"r_max must be at least 1; got {r_max!r}. 1 corrects no variance, 3 is the paper's.")
    if not is_number(d_max) or not d_max >= 0:
        raise InputError(f"d_max must be at least 0; got {d_max!r}. 0 corrects no mean, 5 is the paper's.")
    is_triple = isinstance(relaxation, (tuple, list)) and [type(number) for number in relaxation] == [int] * 3
    if not is_triple or not 0 <= relaxation[0] <= min(relaxation[1:]):
        raise InputError(
            f"relaxation must be three numbers of updates, the start not after the ends; got {relaxation!r}. "
            f"The paper's is {PUBLISHED_RELAXATION}."
        )
