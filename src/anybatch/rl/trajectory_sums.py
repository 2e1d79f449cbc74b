"""Which sums over trajectories hold all that the gradient estimate of a whole batch needs?

REINFORCE and G(PO)MDP subtract baselines that minimise the variance, and these are known only when the batch is
complete. Yet the sample of a trajectory is linear in them. With C_t the score summed up to step t, q_t the discounted
reward and A = sum_t C_t q_t (REINFORCE: one step, of summed score and summed reward),

    sample = A - sum_t b_t C_t,    b_t = sum_n C_t^2 q_t / sum_n C_t^2,

per component. So the products of (C_1, ..., C_H, A, 1) with each other, summed over trajectories, and the numerators
of the baselines give mean and variance of the samples exactly, and no sample is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.buffers import Buffers
from anybatch.rl.trajectories import Trajectories

Estimator = Literal["gpomdp", "reinforce"]
TILE = 8  # matrix products are a quarter faster with 24 rows than with 22
MAXIMA = ("max_abs_reward", "max_feature")


@dataclass(frozen=True, eq=False)
class TrajectorySums:
    """Sums over trajectories: m components, H steps (1 for REINFORCE). Adding two joins their trajectories.

    Attributes:
        gram: (m, H + 2, H + 2), float64, products of (C_1, ..., C_H, A, 1) with each other.
        weighted_rewards: (m, H), float64, C_t^2 q_t.
        returns: of the discounted returns.
        squared_returns: of their squares.
        num_trajectories: N.
        max_abs_reward: the largest |reward|, not discounted.
        max_feature: the largest |phi_i(s)|.
        num_ended_early: how many ended before the horizon.
    """

    gram: Tensor
    weighted_rewards: Tensor
    returns: float
    squared_returns: float
    num_trajectories: int
    max_abs_reward: float
    max_feature: float
    num_ended_early: int

    def __add__(self, other: TrajectorySums) -> TrajectorySums:
        """Return the sums over the trajectories of both."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return TrajectorySums(
            **{name: max(pair) if name in MAXIMA else pair[0] + pair[1] for name, pair in pairs.items()}
        )

    def baselines(self) -> Tensor:
        """Return (m, H) baselines; a component whose score is always zero at a step has the baseline 0 there."""
        squared_scores = self.gram.diagonal(dim1=1, dim2=2)[:, :-2]
        return self.weighted_rewards / torch.where(squared_scores == 0, 1.0, squared_scores)

    def sample_weights(self) -> Tensor:
        """Return (m, H + 1), what (C_1, ..., C_H, A) are multiplied with to give a trajectory's sample."""
        return torch.cat([-self.baselines(), torch.ones(len(self.gram), 1, dtype=torch.float64)], dim=1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Return (m,) mean and (m,) sample variance, divided by N - 1, of the trajectories' gradient samples."""
        weights = self.sample_weights()
        sums = torch.einsum("mi,mi->m", weights, self.gram[:, :-1, -1])
        squares = torch.einsum("mi,mij,mj->m", weights, self.gram[:, :-1, :-1], weights)
        mean = sums / self.num_trajectories
        return mean, ((squares - sums * mean) / (self.num_trajectories - 1)).clamp_min(0)


def sum_trajectories(
    trajectories: Trajectories, estimator: Estimator, discount: float, buffers: Buffers | None = None
) -> tuple[TrajectorySums, Tensor]:
    """Sum over the trajectories of one chunk.

    Args:
        trajectories: of H steps each.
        estimator: "gpomdp", or "reinforce", for which the steps are summed first.
        discount: gamma.
        buffers: where the large arrays are put. Default: new ones.

    Returns:
        The sums, and (H + 1, m, N) of C_1, ..., C_H and A of every trajectory, which the next call with the same
        buffers overwrites.

    Raises:
        InputError: rewards or scores that are not finite.
    """
    scores, rewards = trajectories.scores, trajectories.rewards
    buffers = buffers or Buffers(scores.dtype, scores.device)
    discounts = discount ** torch.arange(len(rewards), dtype=torch.float64)
    low, high = rewards.aminmax()
    returns = discounts.to(rewards) @ rewards
    if estimator == "reinforce":
        rows, weighted = _fill_rows(scores.sum(0, keepdim=True), returns[None], torch.ones(1), buffers)
    else:
        rows, weighted = _fill_rows(scores, rewards, discounts, buffers)
    num_used = weighted.shape[1] + 2
    gram = _gram(rows)[:, :num_used, :num_used].double().cpu()
    if not math.isfinite(float(gram.sum())):
        raise InputError(_not_finite(rewards))
    sums = TrajectorySums(
        gram=gram,
        weighted_rewards=weighted.cpu(),
        returns=float(returns.sum(dtype=torch.float64)),
        squared_returns=float(returns.double().square().sum()),
        num_trajectories=trajectories.num_trajectories,
        max_abs_reward=max(-float(low), float(high)),
        max_feature=trajectories.max_feature,
        num_ended_early=trajectories.num_ended_early,
    )
    return sums, rows[: num_used - 1]


def _fill_rows(scores: Tensor, rewards: Tensor, discounts: Tensor, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """Return (rows, m, N) of C_1, ..., C_H, A, 1 and zeros, and (m, H) of C_t^2 q_t summed over trajectories."""
    num_steps, num_components, num = scores.shape
    padded = buffers.take("rows", -(-(num_steps + 2) // TILE) * TILE, num_components, num)
    padded[num_steps + 2 :].zero_()
    rows = padded[: num_steps + 2]
    *summed, total, ones = rows.unbind()
    before = ones.zero_()
    for now, score in zip(summed, scores, strict=True):
        before = torch.add(before, score, out=now)
    ones.fill_(1)
    products = torch.mul(rows[:-2], rewards[:, None], out=buffers.take("products", *scores.shape))
    torch.mv(products.view(num_steps, -1).T, discounts.to(products), out=total.view(-1))
    weighted = products.mul_(rows[:-2]).sum(2).double()
    return padded, (weighted * discounts.to(weighted)[:, None]).T


def _gram(rows: Tensor) -> Tensor:
    """Return (m, rows, rows), one matrix product per component: a batch of them is slower."""
    return torch.stack([rows[:, component] @ rows[:, component].T for component in range(rows.shape[1])])


def _not_finite(rewards: Tensor) -> str:
    bad = ~rewards.isfinite()
    if not bool(bad.any()):
        return "the policy's scores must be finite; got NaN or infinity. Check the features and the states."
    step = int(bad.any(1).nonzero()[0])
    value = float(rewards[step][bad[step]][0])
    return f"rewards must be finite; got {value} at step {step}. Check the environment and the policy."
