"""Which policies were deployed so far, what did they show, and how much of the promise is spent?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.policy import Policy
from anybatch.rl.safe_run import Guarantee, Iteration, SafeRun

STATE_VERSION = 1
Performance = Callable[[Any], float]


class Deployment:
    """A policy that is updated, with its record.

    Args:
        env: whose `performance(policy)` is recorded, where it has one and none is given.
        policy: the first one.
        constants: of the task.
        caveats: why the guarantee is less than proven, apart from constants that are estimated.
        settings: of the loop: plain values. A state of other settings is refused.
        performance: exact performance of a policy.
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        constants: BoundConstants,
        *,
        caveats: Sequence[str],
        settings: dict[str, Any],
        performance: Performance | None,
    ) -> None:
        self.policy = policy
        self.constants = constants
        self.iterations: list[Iteration] = []
        self.settings = settings
        self.num_ended_early = 0
        self.worst = (math.inf, 0, policy.parameters)
        self._caveats = tuple(caveats)
        self._performance = performance or _own_performance(env, policy)

    @property
    def num_trajectories(self) -> int:
        """Of all updates."""
        return self.iterations[-1].num_trajectories if self.iterations else 0

    @property
    def guarantee(self) -> Guarantee:
        """What the promise is worth by what was seen so far."""
        if self.constants.violations:
            return "void"
        return "heuristic" if self._caveats or self.constants.estimated else "proven"

    def observe(self, estimate: GradientEstimate) -> None:
        """Take in what the batch of the next update shows of the task, and warn once of a bound it exceeds."""
        before = self.constants
        self.constants = before.observe(estimate)
        self.num_ended_early += estimate.num_ended_early
        if self.constants.violations and not before.violations:
            warnings.warn("; ".join(self.constants.violations), stacklevel=4)

    def update(self, estimate: GradientEstimate, displacement: Tensor, *, promised: float, **decided: Any) -> Iteration:
        """Record an update and carry it out.

        Args:
            estimate: of its gradient.
            displacement: (m,), added to the parameters.
            promised: probability with which the guaranteed gain may fail; 1 is put in its place for a step without
                guarantee.
            **decided: what an `Iteration` has of the decision.

        Returns:
            The record.
        """
        before = self.iterations[-1].failure_probability_so_far if self.iterations else 0.0
        failure = 1.0 if decided["step_size"] and not decided["is_safe"] else promised
        iteration = Iteration(
            iteration=len(self.iterations) + 1,
            batch_size=estimate.num_trajectories,
            num_trajectories=self.num_trajectories + estimate.num_trajectories,
            performance=self._evaluate(),
            measured_performance=estimate.mean_return,
            measured_std_error=estimate.return_std / math.sqrt(estimate.num_trajectories),
            max_gradient=float(estimate.gradient.abs().max()),
            gradient_norm=float(torch.linalg.vector_norm(estimate.gradient)),
            failure_probability=failure,
            failure_probability_so_far=min(before + failure, 1.0),
            guarantee=self.guarantee,
            **decided,
        )
        self.iterations.append(iteration)
        self._note_worst(_shown(iteration))
        self.policy = self.policy.with_parameters(self.policy.parameters + displacement)
        return iteration

    def result(self) -> SafeRun:
        """Return the run so far.

        Returns:
            The run.

        Raises:
            InputError: before the first update.
        """
        if not self.iterations:
            raise InputError("a result must have an update behind it; got none. Call step() or run() first.")
        last = self._evaluate()
        worst, number, parameters = self.worst
        if last is not None and last < worst:
            worst, number, parameters = last, len(self.iterations) + 1, self.policy.parameters
        return SafeRun(
            iterations=tuple(self.iterations),
            num_trajectories=self.num_trajectories,
            parameters=tuple(self.policy.parameters.tolist()),
            final_performance=last,
            first_performance=_shown(self.iterations[0]),
            worst_performance=worst,
            worst_iteration=number,
            worst_parameters=tuple(parameters.tolist()),
            guarantee=self.guarantee,
            failure_probability=self.iterations[-1].failure_probability_so_far,
            guaranteed_gain=sum(iteration.guaranteed_gain for iteration in self.iterations),
            notes=self.notes(),
            settings=self.settings | {"constants": self.constants.to_json()},
        )

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know of the guarantee, one sentence each."""
        found = list(self.constants.violations)
        why = [f"{name} is estimated from data" for name in self.constants.estimated] + list(self._caveats)
        if why:
            found.append(f"the guarantee is heuristic: {', '.join(why)}")
        unsafe = [iteration.iteration for iteration in self.iterations if iteration.failure_probability == 1]
        if unsafe:
            found.append(f"{len(unsafe)} steps were taken without a guarantee, the first at update {unsafe[0]}")
        if self.num_ended_early:
            found.append(
                f"{self.num_ended_early} trajectories ended before the horizon and were padded with rewards of 0"
            )
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """Return all that an update changes: tensors and plain values."""
        worst, number, parameters = self.worst
        return {
            "version": STATE_VERSION,
            "settings": self.settings,
            "parameters": self.policy.parameters.clone(),
            "constants": asdict(self.constants),
            "num_ended_early": self.num_ended_early,
            "worst": {"performance": worst, "iteration": number, "parameters": parameters.clone()},
            "iterations": [asdict(iteration) for iteration in self.iterations],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`.

        Args:
            state: as it was saved, of a deployment with the same settings.

        Raises:
            InputError: it is of another version or of other settings.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"state of a safe run must have version {STATE_VERSION}; got {state.get('version')}.")
        saved = state["settings"]
        other = sorted(
            name for name in saved.keys() | self.settings.keys() if saved.get(name) != self.settings.get(name)
        )
        if other:
            raise InputError(
                f"state of a safe run must be of the same settings; got another {', '.join(other)}. "
                "Build the loop as it was before loading."
            )
        self.policy = self.policy.with_parameters(state["parameters"])
        self.constants = replace(self.constants, **state["constants"])
        self.num_ended_early = state["num_ended_early"]
        worst = state["worst"]
        self.worst = (worst["performance"], worst["iteration"], worst["parameters"])
        self.iterations = [Iteration(**values) for values in state["iterations"]]

    def _evaluate(self) -> float | None:
        return None if self._performance is None else self._performance(self.policy)

    def _note_worst(self, performance: float) -> None:
        if performance < self.worst[0]:
            self.worst = (performance, len(self.iterations), self.policy.parameters)


def _shown(iteration: Iteration) -> float:
    return iteration.measured_performance if iteration.performance is None else iteration.performance


def _own_performance(env: Any, policy: Policy) -> Performance | None:
    found = getattr(env, "performance", None)
    if found is None:
        return None
    try:
        found(policy)
    except InputError:  # it has a closed form for other policies
        return None
    return found
