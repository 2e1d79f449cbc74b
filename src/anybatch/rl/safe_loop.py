"""What do both papers' loops have in common? A deployed policy, its record, and a budget of trajectories."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from anybatch.decide.argument_checks import require_count
from anybatch.decide.error_bounds import Estimator
from anybatch.errors import InputError, RunError
from anybatch.rl.deployment import Deployment
from anybatch.rl.gradient_estimate import AfterChunk, GradientBatch
from anybatch.rl.policy import Score
from anybatch.rl.rollout import EarlyEnd
from anybatch.rl.safe_run import Iteration, SafeRun
from anybatch.seeds import derive_seed

Tell = Callable[[str, float, str], None]


class SafeLoop(ABC):
    """A policy that is updated safely, one batch after another; how far and from how many is up to the child."""

    env: Any
    seed: int
    early_end: EarlyEnd
    num_workers: int
    deployment: Deployment

    @property
    def policy(self) -> Any:
        """The policy as it stands."""
        return self.deployment.policy

    @property
    def iterations(self) -> list[Iteration]:
        """The updates so far."""
        return self.deployment.iterations

    @property
    def num_trajectories(self) -> int:
        """Of all batches so far."""
        return self.deployment.num_trajectories

    @property
    @abstractmethod
    def next_batch_size(self) -> int:
        """Trajectories that the next update begins with."""

    @abstractmethod
    def step(self, after_chunk: AfterChunk | None = None) -> Iteration:
        """Take one update.

        Args:
            after_chunk: called after each chunk of the batch with its trajectories so far; what it raises ends the
                update, and the loop stays as it was before.

        Returns:
            Its record.
        """

    def run(
        self,
        num_trajectories: int,
        *,
        records: str | Path | None = None,
        callback: Callable[[Iteration], object] | None = None,
        tell: Tell | None = None,
        after_chunk: AfterChunk | None = None,
    ) -> SafeRun:
        """Take updates while the next batch fits the budget and the policy may still move.

        Args:
            num_trajectories: of the whole run, what is behind it included. A batch that grows is completed beyond.
            records: file with one JSON object per update; written anew with the updates behind the loop.
            callback: called with each update; what it raises ends the run, and the loop may be saved and go on.
            tell: shown progress, within updates too: (stage, fraction, a few words).
            after_chunk: called within each update, see `step`; what it raises ends the run as well.

        Returns:
            The run so far, with a note on what is left of the budget or goes beyond it.

        Raises:
            InputError: the budget does not hold the first batch.
            RunError: the records cannot be written.
        """
        require_count(num_trajectories=num_trajectories)
        if self.num_trajectories == 0 and self.next_batch_size > num_trajectories:
            raise InputError(
                f"num_trajectories must hold the first batch; got {num_trajectories} for a batch of "
                f"{self.next_batch_size}. Raise it, or lower min_batch_size."
            )
        if records is not None:
            _write(records, "w", [iteration.to_json() for iteration in self.iterations])
        while not self.deployment.is_over and self.num_trajectories + self.next_batch_size <= num_trajectories:
            iteration = self.step(self._telling(num_trajectories, tell, after_chunk))
            if records is not None:
                _write(records, "a", [iteration.to_json()])
            if tell is not None:
                tell("updates", min(self.num_trajectories / num_trajectories, 1.0), _news(iteration))
            if callback is not None:
                callback(iteration)
        run = self.result()
        return replace(run, notes=run.notes + self._why_ended(num_trajectories))

    def _telling(self, budget: int, tell: Tell | None, after_chunk: AfterChunk | None) -> AfterChunk:
        """Return what tells how far an update is, before it calls `after_chunk`."""
        news = [_news(iteration) for iteration in self.iterations[-1:]]

        def told(num_drawn: int) -> None:
            if tell is not None:
                under_way = f"update {len(self.iterations) + 1}, {num_drawn} trajectories"
                tell("updates", min((self.num_trajectories + num_drawn) / budget, 1.0), "; ".join([under_way, *news]))
            if after_chunk is not None:
                after_chunk(num_drawn)

        return told

    def _why_ended(self, num_trajectories: int) -> tuple[str, ...]:
        """Say what kept a run from the trajectories that are left of its budget, or what took it beyond."""
        left = num_trajectories - self.num_trajectories
        if left < 0 and self.num_trajectories - self.iterations[-1].batch_size < num_trajectories:
            return (
                f"the run drew {self.num_trajectories} trajectories, {self.num_trajectories / num_trajectories:.3g} "
                f"times the {num_trajectories} asked for: an update that has begun is completed",
            )
        if left <= 0:
            return ()
        why = (
            ", as the guarantee is void"
            if self.deployment.is_over
            else f": the next batch wants {self.next_batch_size}"
        )
        return (f"the run ended with {left} of {num_trajectories} trajectories left{why}",)

    def result(self) -> SafeRun:
        """Return the run so far."""
        return self.deployment.result()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that an update changes: tensors and plain values. The policy's code is not saved."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; what follows equals an uninterrupted run.

        Args:
            state: as it was saved, of a loop with the same settings.
        """

    def _new_batch(
        self, estimator: Estimator, *, baseline: bool, need_ranges: bool = False, score: Score = "drawn"
    ) -> GradientBatch:
        """Return an empty batch of the next update, whose draws depend on the seed and on which update it is."""
        constants = self.deployment.constants
        return GradientBatch(
            self.env,
            self.policy,
            estimator=estimator,
            discount=constants.discount,
            horizon=constants.horizon,
            seed=derive_seed(self.seed, "batch", len(self.iterations)),
            need_ranges=need_ranges,
            baseline=baseline,
            score=score,
            early_end=self.early_end,
            num_workers=self.num_workers,
        )


def _news(iteration: Iteration) -> str:
    performance = iteration.measured_performance if iteration.performance is None else iteration.performance
    words = f"update {iteration.iteration}, batch {iteration.batch_size}, performance {performance:.5g}"
    return words if iteration.guarantee == "proven" else f"{words}, guarantee {iteration.guarantee}"


def _write(path: str | Path, mode: Literal["w", "a"], lines: list[dict[str, Any]]) -> None:
    try:
        with Path(path).open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error
