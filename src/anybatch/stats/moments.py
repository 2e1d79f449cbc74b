"""What do the gradients of a batch's parts say about the mean gradient and its noise?

With parts i of size n_i and weight w_i (weights summing to 1) and mean gradients g_i:

    a = sum w_i / n_i        A = sum w_i |g_i|^2
    b = sum w_i^2 / n_i      B = |sum w_i g_i|^2

    trace of the covariance of one sample's gradient = (A - B) / (a - b)
    squared norm of the true gradient                = (a B - b A) / (a - b)

Both are unbiased for samples drawn independently, for any sizes and weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Geometry = Literal["sgd", "adam"]
MeasuredGeometry = Literal[Geometry, "preconditioned"]  # the last one: by a preconditioner of the user's


@dataclass(frozen=True, eq=False)
class GradientMoments:
    """First and second moments of the gradients of one optimizer step's parts, per module.

    Shapes: K parts, M modules. Values are tensors on the gradients' device; nothing waits for the device until
    they are read.

    Attributes:
        modules: M names.
        sizes: (K,), what each part's loss averages over: samples, tokens or boxes.
        weights: (K,), the weight of each part's mean gradient in the step's gradient; they sum to 1.
        mean_of_sq_norms: (M,), A = sum w_i |g_i|^2.
        sq_norm_of_mean: (M,), B = |sum w_i g_i|^2.
        num_non_finite: scalar, how many parts had a NaN or an infinity in their gradient; 1 where only their sum
            has, as when half precision overflows. Where it is not zero, the moments are not finite either and
            `estimate_noise_scale` leaves the step out, and says so.
        geometry: what |g|^2 stands for: "sgd" for the plain one, "adam" for g^T P g of `AdamPreconditioner`,
            "preconditioned" for that of a gradient times a source's `preconditioner`.

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1. Differs: any number of parts, of any sizes and
    weights.
    """

    modules: tuple[str, ...]
    sizes: Tensor
    weights: Tensor
    mean_of_sq_norms: Tensor
    sq_norm_of_mean: Tensor
    num_non_finite: Tensor
    geometry: MeasuredGeometry = "sgd"

    @classmethod
    def from_gradients(
        cls, gradients: Mapping[str, Tensor], sizes: Sequence[float], weights: Sequence[float] | None = None
    ) -> GradientMoments:
        """Take the moments of gradients held in memory.

        Args:
            gradients: module -> (K, ...), the mean gradient of each of K >= 2 parts.
            sizes: K sizes.
            weights: K weights; they are scaled to sum to 1. Default: the sizes.

        Returns:
            The moments, in float64 (float32 where the device has none).

        Raises:
            ValueError: fewer than two parts, or sizes and weights that are not positive or do not fit K.

        Example:
            >>> moments = GradientMoments.from_gradients({"all": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}, [1, 1])
            >>> moments.grad_var_trace().item(), moments.grad_sq_norm().item()
            (1.0, 0.0)
        """
        factors = sizes if weights is None else weights
        flat = [widest(grad).reshape(len(grad), -1) for grad in gradients.values()]
        _check_counts(len(sizes), len(factors), len(flat[0]))
        share = torch.as_tensor(factors, dtype=flat[0].dtype, device=flat[0].device)
        return cls.from_parts(
            tuple(gradients),
            sizes,
            factors,
            torch.stack([grad.square().sum(1) for grad in flat], dim=1) * share.square()[:, None],
            torch.stack([(share @ grad).square().sum() for grad in flat]),
        )

    @classmethod
    def from_parts(
        cls,
        modules: Sequence[str],
        sizes: Sequence[float],
        factors: Sequence[float],
        part_sq_norms: Tensor,
        sum_sq_norm: Tensor,
        geometry: MeasuredGeometry = "sgd",
    ) -> GradientMoments:
        """Take the moments of parts of which only norms are known, as they lie in `p.grad`.

        Args:
            modules: M names.
            sizes: K sizes.
            factors: K factors that the parts' mean gradients carry.
            part_sq_norms: (K, M), |f_i g_i|^2.
            sum_sq_norm: (M,), |sum f_i g_i|^2.
            geometry: of the norms.

        Returns:
            The moments; weights are the factors divided by their sum.

        Raises:
            ValueError: fewer than two parts, or sizes and factors that are not positive or do not fit K.
        """
        _check_counts(len(sizes), len(factors), len(part_sq_norms))
        part_sq_norms, sum_sq_norm = widest(part_sq_norms), widest(sum_sq_norm)
        sizes_K = _positive("sizes", sizes, part_sq_norms)
        factors_K = _positive("weights", factors, part_sq_norms)
        total = factors_K.sum()
        return cls(
            modules=tuple(modules),
            sizes=sizes_K,
            weights=factors_K / total,
            mean_of_sq_norms=(part_sq_norms / factors_K[:, None]).sum(0) / total,
            sq_norm_of_mean=sum_sq_norm / total.square(),
            num_non_finite=torch.maximum(
                (~part_sq_norms.isfinite()).any(1).sum(), (~sum_sq_norm.isfinite()).any().long()
            ),
            geometry=geometry,
        )

    def grad_var_trace(self) -> Tensor:
        """Estimate the trace of the covariance of one sample's gradient, (A - B) / (a - b).

        Returns:
            (M,), unbiased; never negative up to rounding.
        """
        a, b = self._inverse_sizes
        return (self.mean_of_sq_norms - self.sq_norm_of_mean) / (a - b)

    def grad_sq_norm(self) -> Tensor:
        """Estimate the squared norm of the true gradient, (a B - b A) / (a - b).

        Returns:
            (M,), unbiased; may be negative.
        """
        a, b = self._inverse_sizes
        return (a * self.sq_norm_of_mean - b * self.mean_of_sq_norms) / (a - b)

    @cached_property
    def _inverse_sizes(self) -> tuple[Tensor, Tensor]:
        return (self.weights / self.sizes).sum(), (self.weights.square() / self.sizes).sum()


def _check_counts(num_sizes: int, num_factors: int, num_parts: int) -> None:
    if num_sizes < 2:
        raise ValueError(
            f"gradient moments need at least 2 sub-batches; got {num_sizes}. "
            "Accumulate 2 or more micro-batches, or measure over ranks."
        )
    if not num_sizes == num_factors == num_parts:
        raise ValueError(
            f"sizes, weights and sub-batches must be as many; got {num_sizes}, {num_factors} and {num_parts}."
        )


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def widest(tensor: Tensor) -> Tensor:
    """Return the tensor in the widest floating-point type of its device."""
    return tensor.to(widest_dtype(tensor.device))


def _positive(name: str, values: Sequence[float], like: Tensor) -> Tensor:
    if not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{name} must be positive and finite; got {list(values)}.")
    return torch.as_tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
