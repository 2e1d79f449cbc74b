"""What do the samples of a single batch say about the gradient and its noise?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anybatch.errors import InputError
from anybatch.stats.geometry import choose_preconditioner
from anybatch.stats.groups import ModulePrefixes, unwrap
from anybatch.stats.moments import Geometry, GradientMoments, widest_dtype
from anybatch.stats.rank_group import refuse_ranks
from anybatch.stats.sample_norms import SampleNorms
from anybatch.stats.sample_recorder import SampleRecorder
from anybatch.stats.sub_batches import SubBatchSource

FEWEST_SAMPLES = 4


@final
class PerSample(SubBatchSource[GradientMoments]):
    """Measure every sample of a step by itself, on one device, from one pass over each micro-batch.

    The squared norm of each sample's own gradient comes from layers' inputs and output gradients, without the gradients
    themselves: linear layers and convolutions by products of positions or of patches, whichever costs less; embeddings
    and LayerNorm, RMSNorm, GroupNorm and batch norm in eval mode directly; parameters added to or multiplied with
    activations too. A parameter that is used several times, tied or not, adds up its samples' gradients, a few samples
    at a time. Any other module is run again sample by sample, `vmap` of `grad`, by the parameters that need it.

    Samples lie along the first axis, and the loss is the mean over them. What would give a wrong number is refused:
    batch norm in train mode and whatever else lets samples see each other (the first measurement sends the last
    sample's gradient back alone to find it), random layers inside a module that has to run again, uses of a parameter
    that are not seen.

    Changes no gradient, parameter, buffer or random state.

    Args:
        model: the model, not compiled.
        module_prefixes: see `group_parameters`.
        stride: every so many samples one norm is taken, of 4 samples at least, and the mean of all is estimated from
            them; both moments stay unbiased. 1: all.
        geometry: see `MicroBatches`.
        optimizer: see `MicroBatches`.

    Raises:
        InputError: a stride below 1, an unknown geometry, or "adam" without an optimizer of its kind.
        TypeError: the model is compiled, sharded, or data-parallel over more than one rank.

    Example:
        >>> import torch
        >>> from anybatch.stats import PerSample
        >>> _ = torch.manual_seed(0)
        >>> model, data = torch.nn.Linear(3, 1), torch.randn(12, 3)
        >>> source = PerSample(model)
        >>> with source.sub_batch(size=len(data)):
        ...     model(data).square().mean().backward()
        >>> moments = source.finish()
        >>> moments.modules, len(moments.sizes)
        (('weight', 'bias'), 12)

    Source:
        Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683. Differs:
        for the moments of a step, not for clipping; tied weights; samples are checked to be apart.
    """

    def __init__(
        self,
        model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        *,
        stride: int = 1,
        geometry: Geometry = "sgd",
        optimizer: Optimizer | None = None,
    ) -> None:
        if stride < 1:
            raise InputError(f"stride must be at least 1; got {stride}.")
        super().__init__(model, module_prefixes, choose_preconditioner(geometry, optimizer))
        refuse_ranks(model, "PerSample", "Ranks")
        self._model = unwrap(model)
        if any(hasattr(module, "_orig_mod") for module in model.modules()):
            raise TypeError("PerSample must see each operation; got a compiled model. Measure the model without it.")
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        self._names = {parameter: names[parameter] for parameter in self._parameters}
        self._geometry: Geometry = geometry
        self._stride = stride
        self._samples: list[Tensor] = []
        self._is_checked = False

    @contextmanager
    def sub_batch(self, size: float, weight: float | None = None) -> Iterator[None]:
        """Record the gradients of the samples that the forward and backward pass inside sees.

        Args:
            size: how many samples; the loss is their mean.
            weight: see `MicroBatches.sub_batch`.

        Yields:
            Nothing; run the forward pass and `backward()` inside, once.

        Raises:
            InputError: size is not a whole number.
            RuntimeError: as for `MicroBatches`, or samples cannot be told apart, with the reason.
        """
        if size != int(size):
            raise InputError(f"size must be a whole number of samples; got {size}.")
        stride = min(self._stride, max(int(size) // FEWEST_SAMPLES, 1))
        norms = SampleNorms(self._names, int(size), self._weights, stride, self._is_checked)
        recorder = SampleRecorder(self._model, self._names, int(size), norms)
        with super().sub_batch(size, weight), norms.collecting(), recorder.recording():
            yield
        self._samples.append(self._join(norms.sq_norms, len(range(0, int(size), stride))))
        self._is_checked = self._is_checked or size > 1

    def finish(self, loss_scale: float | Tensor = 1.0) -> GradientMoments:
        """Join the samples recorded since the last call; after the last `backward()`, before unscale, clip, step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            The moments of this step, each sample a part of size 1.

        Raises:
            ValueError: fewer than two samples.
            RuntimeError: no sample at all, or gradients changed since the last `backward()`.
        """
        samples = self._samples
        sizes, factors, _, sum_sq_norm = self._take_parts(loss_scale)
        rows = [
            part if len(part) == size else part.mean(0).expand(int(size), -1)
            for part, size in zip(samples, sizes, strict=True)
        ]
        sq_norms = torch.cat(rows) / torch.as_tensor(loss_scale).to(sum_sq_norm).square()
        shares = [factor / size for size, factor in zip(sizes, factors, strict=True) for _ in range(int(size))]
        ones = [1.0] * len(shares)
        return GradientMoments.from_parts(self.modules, ones, shares, sq_norms, sum_sq_norm, self._geometry)

    def sample_sq_norms(self) -> Tensor:
        """Return what is recorded so far, before `finish()`.

        Returns:
            (N, M), fewer rows with a stride: squared norms of the samples' shares of the loss, those of 1/N of
            their own gradients where the loss is the mean of one sub-batch.
        """
        return torch.cat(self._samples)

    def _weights(self, parameter: nn.Parameter) -> Tensor | None:
        factor = None if self._preconditioner is None else self._preconditioner(parameter)
        return None if factor is None else factor.square()

    def _join(self, sq_norms: dict[nn.Parameter, Tensor], num_samples: int) -> Tensor:
        out = torch.zeros(len(self.modules), num_samples, dtype=widest_dtype(self._device), device=self._device)
        reached = [index for index, parameter in enumerate(self._parameters) if parameter in sq_norms]
        if reached:
            rows = torch.stack([sq_norms[self._parameters[index]] for index in reached]).to(out)
            out.index_add_(0, self._module_of[reached].to(self._device), rows)
        return out.T

    def _take(self, index: int, grad: Tensor) -> Tensor:
        return self._nothing

    def _reset(self) -> None:
        super()._reset()
        self._samples = []
