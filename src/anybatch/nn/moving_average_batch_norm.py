"""How does batch norm train on tiny batches, when the statistics of its backward pass are noisy too?

Moving-average batch norm takes both from the last few micro-batches: the second moment of the forward pass, and the
mean of gradient times output of the backward pass. The mean is left to centred weights, see `center_weights`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anybatch.errors import InputError
from anybatch.nn.buffer_reads import read_buffer
from anybatch.nn.layer_settings import check_eps, is_number
from anybatch.nn.micro_batch_parts import check_input, check_micro_batch_size, check_momentum, count_parts
from anybatch.nn.moments import wide_dtype

DEFAULT_NUM_AVERAGED = 16
DEFAULT_WARMUP_UPDATES = 100
DEFAULT_R_MAX = 5.0


class _MovingAverageBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Mixed in before a BatchNorm; moving averages in training, the BatchNorm itself otherwise."""

    second_moments: Tensor
    projections: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.02,
        affine: bool = True,
        micro_batch_size: int | None = None,
        num_averaged: int = DEFAULT_NUM_AVERAGED,
        warmup_updates: int = DEFAULT_WARMUP_UPDATES,
        r_max: float = DEFAULT_R_MAX,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_micro_batch_size(micro_batch_size)
        check_momentum(momentum)
        check_eps(eps, may_be_zero=True)
        _check_averages(num_averaged, warmup_updates, r_max)
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.micro_batch_size = micro_batch_size
        self.num_averaged = num_averaged
        self.warmup_updates = max(warmup_updates, num_averaged)
        self.r_max = r_max
        assert self.running_var is not None
        wide = wide_dtype(self.running_var)
        for name in ("second_moments", "projections"):
            self.register_buffer(name, torch.zeros(num_averaged - 1, num_features, device=device, dtype=wide))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        check_input(input, self.num_features)
        if not self.training:
            return super().forward(input)
        num_parts = count_parts(input, self.micro_batch_size)
        assert self.running_mean is not None
        wide = wide_dtype(input)
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        centred = input.to(wide) - self.running_mean.to(wide).view(shape)
        with torch.no_grad():
            is_warm = read_buffer(self.num_updates) >= self.warmup_updates
            var, r = self._look(_means_of_parts(centred.square(), num_parts), is_warm)
            self.num_updates.add_(1)
        output = _Stabilized.apply(centred, var + self.eps, r, self.projections, is_warm)
        assert isinstance(output, Tensor)
        if self.weight is not None:
            output = output * self.weight.to(wide).view(shape)
        if self.bias is not None:
            output = output + self.bias.to(wide).view(shape)
        return output.to(input.dtype)

    def _look(self, second_moments: Tensor, is_warm: Tensor) -> tuple[Tensor, Tensor]:
        """Return the variances of the parts, averaged over the last ones, and their correction; track them."""
        assert self.running_var is not None
        averaged = windowed_means(read_buffer(self.second_moments), second_moments, self.num_averaged)
        var = torch.where(is_warm, averaged, second_moments)
        r = ((var + self.eps) / (read_buffer(self.running_var).to(var) + self.eps)).sqrt()
        r = torch.where(is_warm, r.clamp(1 / self.r_max, self.r_max), torch.ones_like(r))
        _push(self.second_moments, second_moments)
        self._track(var.mean(0))
        return var, r

    def _track(self, var: Tensor) -> None:
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = 1 / (self.num_batches_tracked + 1) if self.momentum is None else self.momentum
        is_first = self.num_batches_tracked == 0  # there is nothing to keep: statistics start at 1
        weight = torch.where(is_first, torch.ones_like(var), momentum)
        self.running_var.copy_(self.running_var.to(var).lerp(var, weight))
        self.num_batches_tracked.add_(1)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take a checkpoint of BatchNorm too, which has seen no micro-batch yet."""
        for name in ("second_moments", "projections", "num_updates"):
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        average = f"num_averaged={self.num_averaged}, warmup_updates={self.warmup_updates}, r_max={self.r_max}"
        return f"{super().extra_repr()}, micro_batch_size={self.micro_batch_size}, {average}"


class MovingAverageBatchNorm1d(_MovingAverageBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d with statistics of the last few micro-batches, forward and backward; inputs are (N, C) or (N, C, L).

    With z = (x - center) / sqrt(v + eps), where v is the mean of (x - center)^2 over the last `num_averaged`
    micro-batches, the output is weight (r z) + bias with r = sqrt((v + eps) / (running var + eps)), clipped and taken
    as a constant. The gradient of x is (g - z m) / sqrt(v + eps), where g is that of z and m the mean of g z over the
    last micro-batches too. While it warms up the layer takes each micro-batch's own v and m, and r is 1.

    The center is `running_mean`, which is never updated: zero in a new layer, as published, where `center_weights`
    keeps the true mean near it; a converted layer keeps the mean of the batch norm that it replaces, so that
    evaluation, which is BatchNorm's, stays what it was. Checkpoints of BatchNorm load; for the other way convert back,
    since the averages are part of the layer's own. Not for activation checkpointing, whose second forward pass would
    be averaged too, and not for second derivatives.

    Args:
        num_features: C.
        eps: added to the second moment.
        momentum: weight of a new `running_var`, once per forward pass; None for the cumulative average.
        affine: whether there are `weight` and `bias`.
        micro_batch_size: samples that share statistics; None for the whole batch.
        num_averaged: micro-batches that are averaged, the present one included.
        warmup_updates: forward passes that are batch norm without the mean; at least `num_averaged`.
        r_max: how far the scale may be corrected, as a factor.
        device: of parameters and buffers.
        dtype: of parameters and buffers; averages are float32 or wider.

    Raises:
        InputError: sizes that are none, or, in training, a batch that `count_parts` refuses.

    Example:
        >>> layer = MovingAverageBatchNorm1d(1, micro_batch_size=2)
        >>> layer(torch.tensor([[1.0], [1.0], [3.0], [4.0]])).detach().flatten()
        tensor([1.0000, 1.0000, 0.8485, 1.1314])

    Source:
        Yan et al. 2020, ICLR, "Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization",
        and the authors' code (megvii-model/MABN: 16 micro-batches, momentum 0.02, clipping at 5, 100 updates of
        warm-up). Differs: the center, which lets a trained batch norm be replaced; and a batch may hold any number of
        micro-batches.
    """


class MovingAverageBatchNorm2d(_MovingAverageBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d with statistics of the last few micro-batches, forward and backward; inputs are (N, C, H, W).

    See `MovingAverageBatchNorm1d`.

    Example:
        >>> MovingAverageBatchNorm2d(8, micro_batch_size=2)(torch.randn(16, 8, 5, 5)).shape
        torch.Size([16, 8, 5, 5])
    """


class MovingAverageBatchNorm3d(_MovingAverageBatchNorm, nn.BatchNorm3d):
    """BatchNorm3d with statistics of the last few micro-batches, forward and backward; inputs are (N, C, D, H, W).

    See `MovingAverageBatchNorm1d`.

    Example:
        >>> MovingAverageBatchNorm3d(8, micro_batch_size=2)(torch.randn(4, 8, 2, 5, 5)).shape
        torch.Size([4, 8, 2, 5, 5])
    """


def windowed_means(before: Tensor, now: Tensor, num_averaged: int) -> Tensor:
    """Average each row with those before it.

    Args:
        before: (num_averaged - 1, C), the latest last.
        now: (K, C), in order.
        num_averaged: rows in an average.

    Returns:
        (K, C): row k is the mean of row k of `now` and the num_averaged - 1 rows before it.

    Example:
        >>> windowed_means(torch.tensor([[0.0], [3.0]]), torch.tensor([[6.0], [9.0]]), 3).flatten().tolist()
        [3.0, 6.0]
    """
    return torch.cat((before.to(now), now)).unfold(0, num_averaged, 1).mean(-1)


def _push(history: Tensor, rows: Tensor) -> None:
    if len(history):
        history.copy_(torch.cat((history.to(rows), rows))[-len(history) :])


def _means_of_parts(values: Tensor, num_parts: int) -> Tensor:
    """Return (K, C) means of (N, C, *) over the samples and positions of each part."""
    return values.unflatten(0, (num_parts, -1)).mean((1, *range(3, values.dim() + 1)))


class _Stabilized(torch.autograd.Function):
    """r z, with a gradient whose mean of gradient times output comes from the last micro-batches."""

    @staticmethod
    def forward(ctx: Any, centred: Tensor, var: Tensor, r: Tensor, projections: Tensor, is_warm: Tensor) -> Tensor:
        ctx.save_for_backward(centred, var, r, is_warm)
        ctx.projections = projections
        return _times(centred, r / var.sqrt())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, var, r, is_warm = ctx.saved_tensors
        (grad,) = grad_outputs
        scale = r / var.sqrt()
        own = scale * _means_of_parts(grad * centred, len(var))
        averaged = windowed_means(ctx.projections, own, len(ctx.projections) + 1)
        _push(ctx.projections, own)
        projection = torch.where(is_warm, averaged, own)
        return _times(grad, scale) - _times(centred, projection / var), None, None, None, None


def _times(values: Tensor, factors: Tensor) -> Tensor:
    """Return (N, C, *) with each part times its factors of (K, C)."""
    shape = (len(factors), 1, -1, *(1 for _ in values.shape[2:]))
    return (values.unflatten(0, (len(factors), -1)) * factors.view(shape)).flatten(0, 1)


def _check_averages(num_averaged: int, warmup_updates: int, r_max: float) -> None:
    for name, value, least in (("num_averaged", num_averaged, 1), ("warmup_updates", warmup_updates, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"{name} must be an integer of at least {least}; got {value!r}. Leave it out for the authors'."
            )
    if not (is_number(r_max) and r_max >= 1):
        raise InputError(f"r_max must be at least 1; got {r_max!r}. 1 corrects nothing, 5 is the authors'.")
