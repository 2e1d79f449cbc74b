"""In which direction does a policy get better, and how much do single trajectories disagree on it?"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile

import numpy as np
import torch
from torch import Tensor

from anybatch.decide.argument_checks import require_choice, require_discount
from anybatch.decide.error_bounds import Estimator
from anybatch.errors import InputError
from anybatch.rl.trajectories import Trajectories
from anybatch.rl.trajectory_sums import TrajectorySums, sum_trajectories

LARGEST_IN_MEMORY = 128 * 2**20


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """The mean of one gradient sample per trajectory, and the samples' spread; m parameters, on the CPU.

    Attributes:
        gradient: (m,), float64. Baselines come from the same trajectories: a bias of order 1/N.
        variance: (m,), float64, of one trajectory's sample, divided by N - 1.
        ranges: (m,), largest less smallest sample; None where it was not asked for.
        num_trajectories: N.
        mean_return: mean discounted return of the process as it was measured, clipping and horizon included.
        return_std: standard deviation of one trajectory's discounted return.
        min_reward: the smallest reward met, not discounted.
        max_reward: the largest.
        max_feature: the largest |phi_i(s)| met.
        max_feature_norm: the largest 2-norm of phi(s) met.
        num_ended_early: trajectories that ended before the horizon and were padded with zeros.
    """

    gradient: Tensor
    variance: Tensor
    ranges: Tensor | None
    num_trajectories: int
    mean_return: float
    return_std: float
    min_reward: float
    max_reward: float
    max_feature: float
    max_feature_norm: float
    num_ended_early: int

    @property
    def max_abs_reward(self) -> float:
        """The largest |reward| met, not discounted."""
        return max(-self.min_reward, self.max_reward)


class GradientAccumulator:
    """Trajectories come in parts of any size; the estimate is that of all of them as one batch.

    Only sums are kept. The range of the samples needs the samples, and these the baselines of the whole batch: where
    it is asked for, H + 1 numbers per trajectory and parameter are kept, in memory up to 128 MB and in a temporary
    file beyond. Rolling all trajectories out again from the same seeds would take twice the time, and an environment
    need not repeat itself.

    Args:
        estimator: "gpomdp" or "reinforce".
        discount: gamma.
        need_ranges: keep what the range needs.
        baseline: subtract the baselines that minimise the variance. Without them the estimate has no bias.

    Raises:
        InputError: an unknown estimator, or a discount outside [0, 1].

    Example:
        >>> scores = torch.tensor([[[0.5, -2.0]], [[-2.0, -1.5]]], dtype=torch.float64)
        >>> rewards = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
        >>> accumulator = GradientAccumulator("gpomdp", discount=0.5)
        >>> accumulator.add(Trajectories(scores, rewards, max_feature=2.0))
        >>> accumulator.estimate().gradient
        tensor([0.1131], dtype=torch.float64)

    Source: Papini et al. 2017, with the baselines of Peters and Schaal 2008 per component and, for G(PO)MDP, per step.
    """

    def __init__(
        self, estimator: Estimator = "gpomdp", *, discount: float, need_ranges: bool = False, baseline: bool = True
    ) -> None:
        require_choice(Estimator, estimator=estimator)
        require_discount(discount)
        self.estimator: Estimator = estimator
        self.discount = discount
        self.has_baseline = baseline
        self.sums: TrajectorySums | None = None
        self._rows = _StoredRows() if need_ranges else None

    @property
    def need_ranges(self) -> bool:
        """Whether the rows of `sum_trajectories` are kept."""
        return self._rows is not None

    @property
    def num_trajectories(self) -> int:
        """How many were added."""
        return 0 if self.sums is None else self.sums.num_trajectories

    def add(self, trajectories: Trajectories) -> None:
        """Add trajectories.

        Args:
            trajectories: of as many steps and parameters as those before.

        Raises:
            InputError: scores and rewards that are complex, not finite, or of shapes that do not fit each other or
                those before.
        """
        self.add_sums(*sum_trajectories(_as_arrays(trajectories), self.estimator, self.discount))

    def add_sums(self, sums: TrajectorySums, rows: Tensor | None) -> None:
        """Add what `sum_trajectories` returned, perhaps in another thread.

        Args:
            sums: of a part.
            rows: of the same, where they are needed.

        Raises:
            InputError: of another number of steps or parameters than before.
        """
        if self.sums is not None and self.sums.gram.shape != sums.gram.shape:
            known, new = (tuple(each.weighted_rewards.T.shape) for each in (self.sums, sums))
            raise InputError(f"steps and parameters must be as many as those before, {known}; got {new}.")
        self.sums = sums if self.sums is None else self.sums + sums
        if self._rows is not None:
            assert rows is not None
            self._rows.append(rows, sums.center)

    def estimate(self) -> GradientEstimate:
        """Estimate the gradient from all trajectories so far; more may be added afterwards.

        Returns:
            The estimate.

        Raises:
            InputError: fewer than 2 trajectories.
        """
        sums = self.sums
        if sums is None or sums.num_trajectories < 2:
            raise InputError(
                f"a gradient estimate with its variance must have at least 2 trajectories; got {self.num_trajectories}."
            )
        gradient, variance = sums.mean_and_variance(has_baseline=self.has_baseline)
        mean = sums.returns / sums.num_trajectories
        spread = (sums.squared_returns - sums.returns * mean) / (sums.num_trajectories - 1)
        return GradientEstimate(
            gradient=gradient,
            variance=variance,
            ranges=None if self._rows is None else self._rows.ranges(sums, self.has_baseline),
            num_trajectories=sums.num_trajectories,
            mean_return=mean + float(sums.center.sum()),
            return_std=math.sqrt(max(spread, 0.0)),
            min_reward=sums.min_reward,
            max_reward=sums.max_reward,
            max_feature=sums.max_feature,
            max_feature_norm=sums.max_feature_norm,
            num_ended_early=sums.num_ended_early,
        )


def _as_arrays(trajectories: Trajectories) -> Trajectories:
    """Return the same as compiled code takes them: on the CPU, contiguous, of one type, without a gradient."""
    scores, rewards = trajectories.scores, trajectories.rewards
    dtype = torch.promote_types(torch.promote_types(scores.dtype, rewards.dtype), torch.float32)
    if dtype.is_complex:
        raise InputError(f"scores and rewards must be real; got {scores.dtype} and {rewards.dtype}.")
    scores, rewards = (values.detach().to("cpu", dtype).contiguous() for values in (scores, rewards))
    return replace(trajectories, scores=scores, rewards=rewards)


class _StoredRows:
    """(H + 1, m, n) of every chunk in turn, in float32, in memory until they are too many."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=LARGEST_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._chunks: list[tuple[torch.Size, Tensor]] = []

    def append(self, rows: Tensor, center: Tensor) -> None:
        self._chunks.append((rows.shape, center))
        self._file.write(rows.float().cpu().numpy().tobytes())

    def ranges(self, sums: TrajectorySums, has_baseline: bool) -> Tensor:
        lows, highs = [], []
        self._file.seek(0)
        for shape, center in self._chunks:
            weights = sums.sample_weights(center, has_baseline=has_baseline).float()
            rows = torch.from_numpy(np.frombuffer(self._file.read(4 * shape.numel()), np.float32).copy()).view(shape)
            low, high = torch.einsum("mi,imn->mn", weights, rows).aminmax(dim=1)
            lows.append(low)
            highs.append(high)
        return (torch.stack(highs).amax(0) - torch.stack(lows).amin(0)).double()
