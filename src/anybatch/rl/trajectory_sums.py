"""Which sums over trajectories hold all that the gradient estimate of a whole batch needs?

REINFORCE and G(PO)MDP subtract baselines that minimise the variance, and these are known only when the batch is
complete. Yet the sample of a trajectory is linear in them. With C_t the score summed up to step t, q_t the discounted
reward and A = sum_t C_t q_t (REINFORCE: one step, of summed score and summed reward),

    sample = A - sum_t b_t C_t,    b_t = sum_n C_t^2 q_t / sum_n C_t^2,

per component. So the products of (C_1, ..., C_H, A, 1) with each other, summed over trajectories, and the numerators
of the baselines give mean and variance of the samples exactly, and no sample is kept.

A reward that is nearly the same in all trajectories would leave nothing of a sample but the rounding of two large
numbers. A constant per step does not change a sample with baselines, so q_t is held less a center c_t: the mean of the
chunk's first trajectories. Joining two chunks moves the one to the center of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from anybatch.decide.error_bounds import Estimator
from anybatch.errors import InputError
from anybatch.rl.buffers import Buffers
from anybatch.rl.compiled import sum_up
from anybatch.rl.trajectories import Trajectories

NUM_CENTERED = 1000  # trajectories whose mean reward is the center
MAXIMA = ("max_reward", "max_feature", "max_feature_norm", "rounding")


@dataclass(frozen=True, eq=False)
class TrajectorySums:
    """Sums over trajectories: m components, H steps (1 for REINFORCE). Adding two joins their trajectories.

    Attributes:
        center: (H,), float64, c_t, which every q_t and hence A is less of.
        gram: (m, H + 2, H + 2), float64, products of (C_1, ..., C_H, A, 1) with each other.
        weighted_rewards: (m, H), float64, C_t^2 (q_t - c_t).
        returns: of the discounted returns less the sum of the center.
        squared_returns: of their squares.
        num_trajectories: N.
        min_reward: the smallest reward, not discounted.
        max_reward: the largest.
        max_feature: the largest |phi_i(s)|.
        max_feature_norm: the largest 2-norm of phi(s).
        num_ended_early: how many ended before the horizon.
        rounding: relative, of the numbers that were multiplied.
    """

    center: Tensor
    gram: Tensor
    weighted_rewards: Tensor
    returns: float
    squared_returns: float
    num_trajectories: int
    min_reward: float
    max_reward: float
    max_feature: float
    max_feature_norm: float
    num_ended_early: int
    rounding: float

    def __add__(self, other: TrajectorySums) -> TrajectorySums:
        """Return the sums over the trajectories of both, at the center of the first."""
        moved = other.at_center(self.center)
        sums = [field.name for field in fields(self) if field.name not in (*MAXIMA, "min_reward", "center", "gram")]
        joined = {name: getattr(self, name) + getattr(moved, name) for name in sums}
        joined |= {name: max(getattr(self, name), getattr(other, name)) for name in MAXIMA}
        joined |= {"min_reward": min(self.min_reward, other.min_reward), "center": self.center}
        return TrajectorySums(**joined, gram=moved.gram.add_(self.gram))

    def at_center(self, center: Tensor) -> TrajectorySums:
        """Return the sums as they would be with another center, (H,)."""
        shift = self.center - center
        gram = self.gram.clone()
        gram[:, -2] += shift @ gram[:, :-2]
        gram[:, :, -2] += gram[:, :, :-2] @ shift
        total = float(shift.sum())
        return replace(
            self,
            center=center,
            gram=gram,
            weighted_rewards=self.weighted_rewards + shift * self._squared_scores(),
            returns=self.returns + self.num_trajectories * total,
            squared_returns=self.squared_returns + 2 * total * self.returns + self.num_trajectories * total**2,
        )

    def baselines(self) -> Tensor:
        """Return (m, H) baselines; a component whose score is always zero at a step has that of no reward there."""
        return self.center + self._centered_baselines()

    def sample_weights(self, center: Tensor, *, has_baseline: bool = True) -> Tensor:
        """Return (m, H + 1), what (C_1, ..., C_H, A) at a center, (H,), are multiplied with to give a sample."""
        baselines = (
            self._centered_baselines() + self.center if has_baseline else torch.zeros_like(self.weighted_rewards)
        )
        return torch.cat([center - baselines, torch.ones(len(self.gram), 1, dtype=torch.float64)], dim=1)

    def mean_and_variance(self, *, has_baseline: bool = True) -> tuple[Tensor, Tensor]:
        """Return (m,) mean and (m,) sample variance, divided by N - 1, of the trajectories' gradient samples.

        The variance is no smaller than what rounding may have left of it.
        """
        weights = self.sample_weights(self.center, has_baseline=has_baseline)
        sums = torch.einsum("mi,mi->m", weights, self.gram[:, :-1, -1])
        squares = torch.einsum("mi,mij,mj->m", weights, self.gram[:, :-1, :-1], weights)
        mean = sums / self.num_trajectories
        least = self.rounding * self.gram[:, -2, -2] / self.num_trajectories
        return mean, torch.maximum((squares - sums * mean) / (self.num_trajectories - 1), least)

    def _squared_scores(self) -> Tensor:
        return self.gram.diagonal(dim1=1, dim2=2)[:, :-2]

    def _centered_baselines(self) -> Tensor:
        squared_scores = self._squared_scores()
        return self.weighted_rewards / torch.where(squared_scores == 0, 1.0, squared_scores)


def sum_trajectories(
    trajectories: Trajectories, estimator: Estimator, discount: float, buffers: Buffers | None = None
) -> tuple[TrajectorySums, Tensor]:
    """Sum over the trajectories of one chunk.

    Args:
        trajectories: of H steps each; contiguous, of one type, on the CPU.
        estimator: "gpomdp", or "reinforce", for which the steps are summed first.
        discount: gamma.
        buffers: where the large arrays are put. Default: new ones.

    Returns:
        The sums, and (H + 1, m, N) of C_1, ..., C_H and A, at the center of the sums, of every trajectory, which the
        next call with the same buffers overwrites.

    Raises:
        InputError: scores and rewards of shapes that do not fit each other, or that are not finite.
    """
    scores, rewards = trajectories.scores, trajectories.rewards
    _check_shapes(scores, rewards)
    buffers = buffers or Buffers(scores.dtype)
    by_step = estimator == "gpomdp"
    num_steps, *rest = scores.shape
    rows = buffers.take("rows", (num_steps if by_step else 1) + 2, *rest)
    discounts = discount ** torch.arange(num_steps, dtype=torch.float64)
    means = rewards[:, :NUM_CENTERED].mean(1)
    center = discounts * means.double()
    arrays = (tensor.numpy() for tensor in (scores, rewards, means, discounts.to(rewards)))
    weighted, returns, squared_returns, low, high, are_finite = sum_up(*arrays, by_step, rows.numpy())
    if not are_finite:
        raise InputError(_not_finite(rewards))
    gram = _gram(rows)
    if not math.isfinite(float(gram.sum())):
        raise InputError("the policy's scores must be finite; got NaN or infinity. Check the features and the states.")
    sums = TrajectorySums(
        center=center if by_step else center.sum(0, keepdim=True),
        gram=gram,
        weighted_rewards=torch.from_numpy(weighted) * (discounts if by_step else 1),
        returns=returns,
        squared_returns=squared_returns,
        num_trajectories=trajectories.num_trajectories,
        min_reward=low,
        max_reward=high,
        max_feature=trajectories.max_feature,
        max_feature_norm=trajectories.max_feature_norm,
        num_ended_early=trajectories.num_ended_early,
        rounding=torch.finfo(scores.dtype).eps,
    )
    return sums, rows[:-1]


def _check_shapes(scores: Tensor, rewards: Tensor) -> None:
    if scores.ndim != 3 or scores.numel() == 0 or rewards.shape != (scores.shape[0], scores.shape[2]):
        raise InputError(
            "scores must be of shape (steps, parameters, trajectories), at least 1 of each, and rewards of shape "
            f"(steps, trajectories); got {tuple(scores.shape)} and {tuple(rewards.shape)}."
        )


def _gram(rows: Tensor) -> Tensor:
    """Return (m, rows, rows), float64, one matrix product per component: a batch of them is slower."""
    num_rows, num_components, _ = rows.shape
    gram = torch.empty(num_components, num_rows, num_rows, dtype=torch.float64)
    for component in range(num_components):
        gram[component] = rows[:, component] @ rows[:, component].T
    return gram


def _not_finite(rewards: Tensor) -> str:
    bad = ~rewards.isfinite()
    step = int(bad.any(1).nonzero()[0])
    value = float(rewards[step][bad[step]][0])
    return f"rewards must be finite; got {value} at step {step}. Check the environment and the policy."
