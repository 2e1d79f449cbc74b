"""Which policies were deployed so far, what did they show, and how much of the promise is spent?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.deployed import DeployedPolicy, deployed_policies, is_within_noise
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.known_performance import KnownPerformance, UnknownPerformance
from anybatch.rl.policy import Policy
from anybatch.rl.safe_run import Guarantee, Iteration, SafeRun

STATE_VERSION = 1


class Deployment:
    """A policy that is updated, with its record.

    Args:
        policy: the first one.
        constants: of the task.
        caveats: why the guarantee is less than proven, apart from constants that are estimated.
        settings: of the loop: plain values. A state of other settings is refused.
        stays_when_void: whether the policy stays for good once a stated bound was exceeded.
        needs_volume: whether the volume of the action space enters the guarantee.
        performance: of policies, where it is known.
        remarks: what else a reader must know, one sentence each.
    """

    def __init__(
        self,
        policy: Policy,
        constants: BoundConstants,
        *,
        caveats: Sequence[str],
        settings: dict[str, Any],
        stays_when_void: bool,
        needs_volume: bool,
        performance: KnownPerformance | UnknownPerformance | None,
        remarks: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.constants = constants
        self.iterations: list[Iteration] = []
        self.settings = settings
        self.num_ended_early = 0
        self.worst = (math.inf, policy.parameters)  # of the policies that a step was taken from
        self._caveats = tuple(caveats)
        self._stays_when_void = stays_when_void
        self._needs_volume = needs_volume
        self._performance = performance
        self._remarks = tuple(remarks)

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

    @property
    def is_over(self) -> bool:
        """Whether no update will ever move the policy again, for want of a guarantee."""
        return self.guarantee == "void" and self._stays_when_void

    def observe(self, estimate: GradientEstimate) -> None:
        """Take in what the batch of the next update shows of the task, and warn once of a bound it exceeds."""
        before = self.constants
        self.constants = before.observe(estimate)
        self.num_ended_early += estimate.num_ended_early
        if self.constants.violations and not before.violations:
            warnings.warn("; ".join(self.constants.violations), stacklevel=4)

    def update(self, estimate: GradientEstimate, displacement: Tensor, *, promised: float, **decided: Any) -> Iteration:
        """Record an update and carry it out, or leave it where it needs a guarantee that is void.

        Args:
            estimate: of its gradient.
            displacement: (m,), added to the parameters.
            promised: probability with which the guaranteed gain may fail; 1 is put in its place for a step without
                guarantee, and where the guarantee is void.
            **decided: what an `Iteration` has of the decision.

        Returns:
            The record.
        """
        before = self.iterations[-1].failure_probability_so_far if self.iterations else 0.0
        if self.guarantee == "void":
            decided, promised = decided | self._without_guarantee(decided["step_size"]), 1.0
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
        self._note_worst()
        if iteration.step_size:
            self.policy = self.policy.with_parameters(self.policy.parameters + displacement)
        return iteration

    def _without_guarantee(self, step_size: float) -> dict[str, Any]:
        """Return what a decision comes to where a stated bound was exceeded: its error and its gain are not known."""
        taken = 0.0 if self._stays_when_void else step_size
        outcome = f"step {taken:.4g} as published, without a guarantee" if taken else "no step"
        return {
            "step_size": taken,
            "is_safe": False,
            "guaranteed_gain": -math.inf if taken else 0.0,
            "reason": f"a stated bound was exceeded: {outcome}; the guarantee is void",
        }

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
        policies = deployed_policies(self.iterations)
        worst, (_, parameters) = min(policies, key=lambda policy: policy.performance), self.worst
        if worst is policies[-1] and not self.iterations[-1].step_size:
            parameters = self.policy.parameters
        if last is not None and last < worst.performance:
            worst, parameters = DeployedPolicy(last, 0.0, len(self.iterations) + 1), self.policy.parameters
        return SafeRun(
            iterations=tuple(self.iterations),
            num_trajectories=self.num_trajectories,
            parameters=tuple(self.policy.parameters.tolist()),
            final_performance=last,
            first_performance=policies[0].performance,
            worst_performance=worst.performance,
            worst_iteration=worst.iteration,
            worst_parameters=tuple(parameters.tolist()),
            guarantee=self.guarantee,
            failure_probability=self.iterations[-1].failure_probability_so_far,
            guaranteed_gain=-math.inf
            if self.guarantee == "void"
            else sum(iteration.guaranteed_gain for iteration in self.iterations),
            notes=self.notes(),
            settings=self.settings | {"constants": self.constants.to_json()},
            worst_is_within_noise=last is None and is_within_noise(worst, policies[0], len(policies)),
        )

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know of the guarantee, one sentence each."""
        found = list(self.constants.violations)
        why = [f"{name} is estimated from data" for name in self.constants.estimated] + list(self._caveats)
        if why:
            standing = "had been heuristic before" if self.guarantee == "void" else "is heuristic"
            found.append(f"the guarantee {standing}: {', '.join(why)}")
        found += self._remarks
        if self._needs_volume and self.constants.has_unbounded_actions:
            volume = self.constants.action_volume
            found.append(f"the action space is unbounded: its volume is not known but stated, {volume:.6g}")
        unsafe = [update.iteration for update in self.iterations if update.step_size and not update.is_safe]
        if unsafe:
            found.append(f"{len(unsafe)} step(s) without a guarantee, the first at update {unsafe[0]}")
        if self.num_ended_early:
            found.append(
                f"{self.num_ended_early} trajectories ended before the horizon and were padded with rewards of 0"
            )
        found.append(
            "no exact performance is known: deployed policies are compared by the mean returns of their batches"
            if self._performance is None
            else self._performance.process
        )
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """Return all that an update changes: tensors and plain values."""
        return {
            "version": STATE_VERSION,
            "settings": self.settings,
            "parameters": self.policy.parameters.clone(),
            "constants": asdict(self.constants),
            "num_ended_early": self.num_ended_early,
            "worst": {"performance": self.worst[0], "parameters": self.worst[1].clone()},
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
        self.worst = (state["worst"]["performance"], state["worst"]["parameters"])
        self.iterations = [Iteration(**values) for values in state["iterations"]]

    def _evaluate(self) -> float | None:
        return None if self._performance is None else self._performance(self.policy)

    def _note_worst(self) -> None:
        if not self.iterations[-1].step_size:
            return  # the policy stays, and its next batch counts for it
        first = len(self.iterations) - 1
        while first and not self.iterations[first - 1].step_size:
            first -= 1
        (policy,) = deployed_policies(self.iterations[first:])
        if policy.performance < self.worst[0]:
            self.worst = (policy.performance, self.policy.parameters)
