"""How alike are the gradients of the two halves of a batch?

With g1 and g2 the mean gradients of the halves, the inner product follows from norms alone, so that no rank ever needs
the other half's gradient: <f1 g1, f2 g2> = (|f1 g1 + f2 g2|^2 - |f1 g1|^2 - |f2 g2|^2) / 2 for any factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anybatch.stats.moments import GradientMoments, widest


@dataclass(frozen=True, eq=False)
class HalfBatches:
    """Squared norms and inner products of the mean gradients of a step's two halves, per module.

    Values are tensors on the gradients' device; nothing waits for the device until they are read.

    Attributes:
        modules: M names.
        sizes: (2,), the samples of each half; where its parts are not weighted by their sizes, those of an equally
            weighted mean with the same variance.
        weights: (2,), of each half's mean gradient in the step's gradient; they sum to 1.
        sq_norms: (2, M), |g1|^2 and |g2|^2.
        products: (M,), <g1, g2>.

    Source: Xue et al. 2022, arXiv:2210.11078. Differs: halves of any sizes.
    """

    modules: tuple[str, ...]
    sizes: Tensor
    weights: Tensor
    sq_norms: Tensor
    products: Tensor

    @classmethod
    def from_gradients(
        cls, first: Mapping[str, Tensor], second: Mapping[str, Tensor], sizes: Sequence[float] = (1.0, 1.0)
    ) -> HalfBatches:
        """Take the products of two gradients held in memory.

        Args:
            first: module -> the mean gradient of one half, of any shape.
            second: the same of the other half.
            sizes: of the halves, which are their weights too.

        Returns:
            The products, in float64 (float32 where the device has none).

        Raises:
            ValueError: halves with different modules, or sizes that are not two positive numbers.

        Example:
            >>> first, second = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
            >>> halves = HalfBatches.from_gradients({"all": first}, {"all": second})
            >>> halves.products.item(), round(halves.cosines().item(), 6)
            (24.0, 0.96)
        """
        if first.keys() != second.keys():
            raise ValueError(f"both halves must have the same modules; got {sorted(first)} and {sorted(second)}.")
        pairs = [(widest(first[name]), widest(second[name])) for name in first]
        sums = torch.stack([(sizes[0] * left + sizes[1] * right).square().sum() for left, right in pairs])
        sq_norms = torch.stack([torch.stack([half.square().sum() for half in pair]) for pair in pairs], dim=1)
        factors = torch.as_tensor(sizes).to(sq_norms)
        return cls.from_sums(tuple(first), sizes, sizes, sq_norms * factors.square()[:, None], sums)

    @classmethod
    def from_sums(
        cls,
        modules: Sequence[str],
        sizes: Sequence[float],
        factors: Sequence[float],
        half_sq_norms: Tensor,
        sum_sq_norm: Tensor,
    ) -> HalfBatches:
        """Take the products of halves of which only norms are known, as they add up in `p.grad`.

        Args:
            modules: M names.
            sizes: 2 sizes.
            factors: 2 factors that the halves' mean gradients carry.
            half_sq_norms: (2, M), |f_h g_h|^2.
            sum_sq_norm: (M,), |f_1 g_1 + f_2 g_2|^2.

        Returns:
            The products; weights are the factors divided by their sum.

        Raises:
            ValueError: sizes or factors that are not two positive numbers.
        """
        half_sq_norms, sum_sq_norm = widest(half_sq_norms), widest(sum_sq_norm)
        sizes_2, factors_2 = (_two_positive(*pair, half_sq_norms) for pair in (("sizes", sizes), ("weights", factors)))
        return cls(
            modules=tuple(modules),
            sizes=sizes_2,
            weights=factors_2 / factors_2.sum(),
            sq_norms=half_sq_norms / factors_2.square()[:, None],
            products=(sum_sq_norm - half_sq_norms.sum(0)) / 2 / factors_2.prod(),
        )

    def cosines(self) -> Tensor:
        """Return the cosine between the halves' gradients, <g1, g2> / (|g1| |g2|).

        Returns:
            (M,); NaN for a module without a gradient in one of the halves.
        """
        norms = self.sq_norms.sqrt().prod(0)
        return torch.where(norms > 0, self.products / norms, torch.nan)

    def moments(self) -> GradientMoments:
        """Return the gradient moments of the two halves as sub-batches."""
        part_sq_norms = self.sq_norms * self.weights.square()[:, None]
        sum_sq_norm = part_sq_norms.sum(0) + 2 * self.weights.prod() * self.products
        return GradientMoments.from_parts(
            self.modules, self.sizes.tolist(), self.weights.tolist(), part_sq_norms, sum_sq_norm
        )


def join_parts(sizes: Sequence[float], factors: Sequence[float]) -> tuple[float, float]:
    """Return a half's size and factor from those of its parts.

    Their weighted mean has the factor F = sum f_i and, per sample, the variance sum f_i^2 / n_i / F^2: that of a plain
    mean over F^2 / sum(f_i^2 / n_i) samples, which is their number where the factors follow the sizes.

    Args:
        sizes: of the parts.
        factors: that their mean gradients carry.

    Returns:
        Size and factor.

    Example:
        >>> join_parts([2, 6], [0.25, 0.75])
        (8.0, 1.0)
    """
    factor = sum(factors)
    return factor**2 / sum(f**2 / size for size, f in zip(sizes, factors, strict=True)), factor


def _two_positive(name: str, values: Sequence[float], like: Tensor) -> Tensor:
    if len(values) != 2 or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{name} of half-batches must be two positive numbers; got {list(values)}.")
    return torch.as_tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
