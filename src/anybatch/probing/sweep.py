"""Which runs does a verification make, within its budget?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from anybatch.decide.samples_law import fit_samples_law
from anybatch.probing.kept_runs import KeptRuns
from anybatch.probing.rate_search import FEWEST_RATES, best_rate, is_bracketed, next_rate
from anybatch.probing.target import LossTarget
from anybatch.probing.target_runs import GROWTH, Limits, RunRecord, TargetRun
from anybatch.report.wording import number

NUM_SEEDS = (2, 3)  # the least that a size is taken up for, and the most
STEPS_FROM_RECOMMENDED = (4, 1 / 4, 2, 1 / 2, 8, 1 / 8)  # a long lever first
RUNS_PER_SIZE = FEWEST_RATES + NUM_SEEDS[0]
PATIENCE = 3.0  # times the samples expected, before a first rate is given up
EVALUATIONS_ON_THE_WAY = 50
Told = Callable[[float, str], None]


@dataclass(frozen=True)
class SizePlan:
    """A batch size that may be measured: how it is made and what the probe expects of it."""

    batch_size: int
    micro_batch_size: int
    seconds_per_sample: float
    relative_samples: float


@dataclass
class MeasuredSize:
    """What was tried at one batch size: a search for its rate, then runs with other seeds."""

    plan: SizePlan
    rates: dict[int, RunRecord] = field(default_factory=dict)
    runs: dict[int, RunRecord] = field(default_factory=dict)
    failed_rates: set[int] = field(default_factory=set)

    @property
    def costs(self) -> dict[int, float | None]:
        """Samples to the target by exponent of the rate, None where it was given up."""
        return {
            exponent: record.samples if record.status == "reached" and exponent not in self.failed_rates else None
            for exponent, record in self.rates.items()
        }

    @property
    def best(self) -> int | None:
        """The exponent of the best rate."""
        return best_rate(self.costs)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the budget ended the search or a run of it."""
        return not self.rates or any(record.status == "out of time" for record in self.rates.values())

    @property
    def is_lost(self) -> bool:
        """Whether no rate reached the target, the budget aside."""
        return self.best is None and not self.is_out_of_time

    @property
    def why_unfinished(self) -> str:
        """Why there is no run."""
        if self.is_lost:
            return "no rate reached the target with every seed"
        return "the budget ended before a run was finished"

    @property
    def samples(self) -> float | None:
        """Samples to the target at the best rate, in the search."""
        return None if self.best is None else self.rates[self.best].samples

    @property
    def cost(self) -> float | None:
        """Seconds of that run, with evaluations."""
        return None if self.best is None else self.rates[self.best].cost

    @property
    def is_bracketed(self) -> bool:
        """Whether the best rate lies between two that are worse."""
        return is_bracketed(self.costs)


class Sweep:
    """Measure as many sizes as the budget holds: rates by one seed, then all sizes by one further seed after another.

    Args:
        kept: where runs come from.
        target: of all runs.
        plans: of every size that may be measured.
        least_samples: E, as expected before the first run.
        slowdown: seconds that training takes over those that the probe expects.
        seconds_per_evaluation: in a run.
        eval_samples: that the loss is taken on.
        budget: seconds.
        first_rate: batch size -> the exponent to start from.
        tell: told before each run.

    Attributes:
        sizes: measured, by batch size.
        skipped: batch size -> why it was not.
    """

    def __init__(
        self,
        kept: KeptRuns,
        target: LossTarget,
        plans: Mapping[int, SizePlan],
        *,
        least_samples: float,
        slowdown: float,
        seconds_per_evaluation: float,
        eval_samples: int,
        budget: float,
        first_rate: Callable[[int], int],
        tell: Told,
    ) -> None:
        self._kept = kept
        self._target = target
        self._plans = plans
        self._least_samples = least_samples
        self._slowdown = slowdown
        self._seconds_per_evaluation = seconds_per_evaluation
        self._eval_samples = eval_samples
        self._budget = budget
        self._first_rate = first_rate
        self._tell = tell
        self.sizes: dict[int, MeasuredSize] = {}
        self.skipped: dict[int, str] = {}

    def run(self, order: list[int]) -> None:
        """Search the rates of all sizes that the budget holds, in this order, and measure them with further seeds."""
        for batch_size in order:
            needed, left = RUNS_PER_SIZE * self.cost_of(batch_size), max(self._left(), 0.0)
            if needed > left:
                self.skipped[batch_size] = (
                    f"it would take about {number(needed)} s, and {number(left)} s of budget are left"
                )
                continue
            self.sizes[batch_size] = MeasuredSize(self._plans[batch_size])
            self._search(self.sizes[batch_size])
            if batch_size == order[0] and self.sizes[batch_size].best is None:
                return  # without the recommended size there is nothing to compare
        for seed in range(1, 1 + NUM_SEEDS[1]):
            for size in list(self.sizes.values()):
                self._measure(size, seed)
        for batch_size, size in self.sizes.items():
            if not size.runs:
                self.skipped[batch_size] = size.why_unfinished

    def cost_of(self, batch_size: int) -> float:
        """Return the seconds that a run at a size should take, as far as is known from the runs so far."""
        costs = {size: cost for size, one in self.sizes.items() if (cost := one.cost) is not None}
        if batch_size in costs:
            return costs[batch_size]
        ratios = [cost / self._planned_cost(size) for size, cost in costs.items()]
        return self._planned_cost(batch_size) * (statistics.geometric_mean(ratios) if ratios else 1.0)

    def _planned_cost(self, batch_size: int) -> float:
        evaluations = EVALUATIONS_ON_THE_WAY * self._seconds_per_evaluation
        seconds_per_sample = self._slowdown * self._plans[batch_size].seconds_per_sample
        return self._samples_at(batch_size) * seconds_per_sample + evaluations

    def cost_of_two(self, recommended: int) -> float:
        """Return the seconds that the recommended size and the cheapest other one should take."""
        others = [self.cost_of(size) for size in {**self.sizes, **self.skipped} if size != recommended]
        return self._kept.spent + RUNS_PER_SIZE * (self.cost_of(recommended) + min(others, default=0.0))

    def _samples_at(self, batch_size: int) -> float:
        """Expect samples by the law, as the probe has it or, from three sizes on, as measured so far."""
        known = {size: cost for size, one in self.sizes.items() if (cost := one.samples) is not None}
        if batch_size in known:
            return known[batch_size]
        if len(known) > 2:
            return fit_samples_law(list(known), [[cost] for cost in known.values()]).samples(batch_size)
        ratios = [cost / self._plans[size].relative_samples for size, cost in known.items()]
        least = statistics.geometric_mean(ratios) if ratios else self._least_samples
        return least * self._plans[batch_size].relative_samples

    def _left(self) -> float:
        """Return the seconds that are not spent and not set aside for further seeds of the sizes begun."""
        owed = sum(NUM_SEEDS[0] * self.cost_of(size) for size, one in self.sizes.items() if not one.runs)
        return self._budget - self._kept.spent - owed

    def _search(self, size: MeasuredSize) -> None:
        first = self._guess(size.plan.batch_size)
        while (exponent := next_rate(size.costs, first)) is not None:
            best = size.samples
            is_enough = best is not None and len(size.rates) >= FEWEST_RATES
            if is_enough and self.cost_of(size.plan.batch_size) > self._left():
                return
            samples = PATIENCE * self._samples_at(size.plan.batch_size) if best is None else best
            record = self._take(size.plan, exponent, 0, samples)
            size.rates[exponent] = record
            if record.status == "out of time":
                return

    def _measure(self, size: MeasuredSize, seed: int) -> None:
        while (best := size.best) is not None:
            if self._budget - self._kept.spent < self.cost_of(size.plan.batch_size):
                return
            record = self._take(size.plan, best, seed, PATIENCE * size.rates[best].samples)
            if record.status == "reached":
                size.runs[seed] = record
                return
            if record.status == "out of time":
                return
            size.failed_rates.add(best)  # it reached the target by luck
            size.runs.clear()
            self._search(size)

    def _take(self, plan: SizePlan, exponent: int, seed: int, samples: float) -> RunRecord:
        spent = self._kept.spent
        self._tell(spent / self._budget, f"batch {plan.batch_size}, rate x{2.0**exponent:g}, seed {seed}")
        run = TargetRun(
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            lr_scale=2.0**exponent,
            seed=seed,
            target_loss=self._target.loss,
            spacing=spacing_of(self._target),
            eval_samples=self._eval_samples,
        )
        return self._kept.take(run, Limits(math.ceil(samples), self._budget - spent))

    def _guess(self, batch_size: int) -> int:
        """Guess a rate from the nearest size's best one by the square root rule."""
        known = {other: one.best for other, one in self.sizes.items() if one.best is not None}
        if not known:
            return self._first_rate(batch_size)
        near = min(known, key=lambda other: abs(math.log(other / batch_size)))
        return known[near] + round(0.5 * math.log2(batch_size / near))


def spacing_of(target: LossTarget) -> int:
    """Return the samples between evaluations at the start of a run."""
    return max(1, int((GROWTH - 1) * target.samples / 2))


def sizes_to_measure(recommended: int, largest: int, smallest: int, num_samples: int) -> list[int]:
    """Return the recommended size, sizes around it a factor 2 apart, and the largest that fits, by what they tell.

    Args:
        recommended: measured first.
        largest: that fits.
        smallest: that trains.
        num_samples: in the training set.

    Returns:
        Different sizes, the most telling first.

    Example:
        >>> sizes_to_measure(32, 1437, 1, 1437)
        [32, 128, 8, 1437, 64, 16, 256, 4]
    """
    around = [int(recommended * step) for step in STEPS_FROM_RECOMMENDED]
    order = [recommended, *around[:2], largest, *around[2:]]
    return list(dict.fromkeys(size for size in order if smallest <= size <= num_samples))
