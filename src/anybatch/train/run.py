"""How does one training run go from its first update to its last, through evaluations, kills and resumes?"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError, StoppedError
from anybatch.stats.groups import unwrap
from anybatch.stats.moments import widest_dtype
from anybatch.stats.weight_distance import WeightDistance, log_spaced
from anybatch.train.environment import describe_environment
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training, train
from anybatch.train.plain import plain
from anybatch.train.plan import Plan
from anybatch.train.randomness import kept_generators
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.train.stop import StopRequest
from anybatch.workload import Workload

STEPS_BETWEEN_AGREEMENTS = 8  # of several ranks, on whether to save or to stop
SECONDS_BETWEEN_NEWS = 0.2
LARGEST_EVAL_BATCH = 1024
Told = Callable[[float, str], None]


@dataclass(frozen=True)
class RunSettings:
    """What one run is.

    Attributes:
        batch_size: samples per step over all ranks.
        seed: of weights, order, augmentation and dropout.
        plan: what is changed of the workload's own training.
        micro_batch_size: at most so many samples per forward pass and rank; None: no accumulation.
        num_evaluations: how many, equally spaced, the last one at the end.
        max_eval_samples: of a larger set so many are drawn.
        takes_eval_loss: whether the workload's loss works in eval mode.
    """

    batch_size: int
    seed: int
    plan: Plan
    micro_batch_size: int | None = None
    num_evaluations: int = 20
    max_eval_samples: int = 10_000
    takes_eval_loss: bool = True

    def num_updates(self, workload: Workload) -> int:
        """Return how many updates a whole run takes, at least one."""
        if workload.num_samples is None or workload.epochs is None:
            raise InputError("a run needs a training set with a length, and a workload that states its epochs.")
        return max(1, round(workload.epochs * self.plan.stretch * workload.num_samples / self.batch_size))


@dataclass
class Record:
    """What a run has shown so far.

    Attributes:
        curve: one entry per evaluation.
        distance: one entry per measurement of ||w - w0||.
        loss_sum: of the steps since the last entry of the curve.
        loss_count: how many those are.
        seconds: of training, without evaluation and files.
    """

    curve: list[dict[str, Any]] = field(default_factory=list)
    distance: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    loss_count: int = 0
    seconds: float = 0.0

    def lines(self) -> list[dict[str, Any]]:
        """Return all entries in order of updates."""
        return sorted([*self.distance, *self.curve], key=lambda line: line["updates"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain values."""
        return {
            "version": 1,
            "curve": self.curve,
            "distance": self.distance,
            "loss_sum": self.loss_sum.item(),
            "loss_count": self.loss_count,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Record:
        """Return the record of a state."""
        loss_sum = torch.tensor(state["loss_sum"], dtype=widest_dtype(device), device=device)
        return cls(list(state["curve"]), list(state["distance"]), loss_sum, state["loss_count"], state["seconds"])


def run_training(
    workload: Workload,
    runtime: Runtime,
    settings: RunSettings,
    folder: RunFolder,
    *,
    stop: StopRequest | None = None,
    checkpoint_seconds: float = 30.0,
    num_workers: int = 0,
    tell: Told = lambda fraction, text: None,
) -> dict[str, Any]:
    """Train from the first update, or from the folder's checkpoint, to the last.

    On a CPU a run that was killed and called again ends with the weights of an uninterrupted one, bit for bit.

    Args:
        workload: what is trained.
        runtime: device, precision and ranks; rank 0 writes.
        settings: what the run is.
        folder: of this run alone.
        stop: asked after each step.
        checkpoint_seconds: between two checkpoints.
        num_workers: of the data loader.
        tell: told (fraction done, a few words).

    Returns:
        Plain values: status "done" or "diverged", reason, metrics, updates, samples, seconds, curve, distance. Equal
        on every rank.

    Raises:
        InputError: the folder's checkpoint cannot be read, or an argument does not fit the workload.
        StoppedError: a signal came; the state is saved.
        RunError: the folder cannot be written.
    """
    with kept_generators(runtime.device):
        run = _Run(workload, runtime, settings, folder)
        return run.to_the_end(stop or StopRequest(), checkpoint_seconds, num_workers, tell)


class _Run:
    def __init__(self, workload: Workload, runtime: Runtime, settings: RunSettings, folder: RunFolder) -> None:
        self.workload = workload
        self.runtime = runtime
        self.settings = settings
        self.folder = folder
        self.num_updates = settings.num_updates(workload)
        self.training = start_training(workload, runtime, seed=settings.seed, plan=settings.plan)
        self.weight_distance = WeightDistance(self.training.model)
        self.record = Record(loss_sum=torch.zeros((), dtype=widest_dtype(runtime.device), device=runtime.device))

    def to_the_end(self, stop: StopRequest, checkpoint_seconds: float, num_workers: int, tell: Told) -> dict[str, Any]:
        self._resume()
        settings, training = self.settings, self.training
        evaluate_at = evenly_spaced(self.num_updates, settings.num_evaluations)
        measure_at = set(log_spaced(self.num_updates))
        steps = train(
            self.workload,
            self.runtime,
            training,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            seed=settings.seed,
            num_workers=num_workers,
        )
        last_save = last_told = time.monotonic()
        self._start_clock()
        while training.num_steps < self.num_updates:
            self.record.loss_sum += next(steps)
            self.record.loss_count += 1
            update, now = training.num_steps, time.monotonic()
            if update in measure_at or update in evaluate_at:
                self._stop_clock()
                if not self._observe(with_evaluation=update in evaluate_at):
                    return self._finish("diverged", f"the loss was not finite by update {update}")
                self._start_clock()
            if now - last_told > SECONDS_BETWEEN_NEWS:
                tell(update / self.num_updates, self._latest())
                last_told = now
            must_save, signal_number = self._agree(now - last_save > checkpoint_seconds, stop)
            if must_save:
                self._stop_clock()
                self._save(signal_number)
                self._start_clock()
                last_save = time.monotonic()
        self._stop_clock()
        return self._finish("done", None)

    def _resume(self) -> None:
        is_writer = self.runtime.rank == 0
        state = self.runtime.broadcast(self.folder.checkpoint() if is_writer else None)
        if state is not None:
            self.training.load_state_dict(state["training"])
            self.record = Record.from_state(state["record"], self.runtime.device)
            if not is_writer:
                self.record.loss_sum.zero_()  # rank 0 has what all had
        if is_writer:
            self.folder.set_metrics(self.record.lines())

    def _agree(self, is_due: bool, stop: StopRequest) -> tuple[bool, int]:
        """Return whether to save now, and the signal that ends the run or 0; equal on every rank."""
        wishes = [float(is_due), float(stop.signal or 0)]
        if self.runtime.world_size > 1:
            if self.training.num_steps % STEPS_BETWEEN_AGREEMENTS:
                return False, 0
            wishes = self.runtime.max(wishes)
        return any(wishes), int(wishes[1])

    def _save(self, signal_number: int) -> None:
        record = self.record.state_dict()
        record["loss_sum"] = self.runtime.sum([record["loss_sum"]])[0]
        if self.runtime.rank == 0:
            self.folder.save_checkpoint({"training": self.training.state_dict(), "record": record})
        if signal_number:
            raise StoppedError(
                f"stopped by {signal.Signals(signal_number).name} at update {self.training.num_steps} of "
                f"{self.num_updates}; the state is saved, call again to go on.",
                signal_number,
            )

    def _observe(self, *, with_evaluation: bool) -> bool:
        """Record the distance, and an evaluation where it is due; return whether all is finite so far."""
        loss_sum, loss_count = self.runtime.sum([self.record.loss_sum.item(), self.record.loss_count])
        place = {"updates": self.training.num_steps, "samples": self.training.num_samples}
        distance = self.weight_distance.measure()
        tensors = {name: value.item() for name, value in distance.tensors.items()}
        self._add(self.record.distance, {**place, "distance": distance.whole.item(), "tensors": tensors})
        is_finite = math.isfinite(loss_sum) and math.isfinite(distance.whole.item())
        if with_evaluation and is_finite:
            lr = float(self.training.optimizer.param_groups[0]["lr"])
            figures = {"lr": lr, "loss": loss_sum / loss_count, **self._evaluate(), **self._module_rates()}
            if not all(math.isfinite(value) for name, value in figures.items() if name.endswith("loss")):
                return False
            epochs = self.training.num_samples / (self.workload.num_samples or 1)
            self._add(self.record.curve, {**place, "epochs": epochs, **figures})
            self.record.loss_sum.zero_()
            self.record.loss_count = 0
        return is_finite

    def _module_rates(self) -> dict[str, float]:
        """Return what AGVM has measured and set last, where it is used."""
        rates = self.training.module_rates
        return {} if rates is None else rates.agvm.log()

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the evaluation set and on as many training samples, the same ones each time."""
        settings = self.settings
        figures = {}
        eval_set = self.workload.eval_set
        most = settings.max_eval_samples
        as_many = min(most, len(eval_set)) if hasattr(eval_set, "__len__") else most  # pyright: ignore[reportArgumentType]
        for name, dataset, max_samples in (("eval", eval_set, most), ("train", self.workload.train_set, as_many)):
            found = evaluate(
                self.workload,
                self.runtime,
                self.training.model,
                batch_size=settings.micro_batch_size or min(settings.batch_size, LARGEST_EVAL_BATCH),
                max_samples=max_samples,
                dataset=dataset,
                with_loss=settings.takes_eval_loss,
            )
            figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        return figures

    def _add(self, lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
        lines.append(plain(line))
        if self.runtime.rank == 0:
            self.folder.add_metrics(lines[-1])

    def _finish(self, status: str, reason: str | None) -> dict[str, Any]:
        curve = self.record.curve
        last = curve[-1] if curve and status == "done" else {}
        result = {
            "status": status,
            "reason": reason,
            "metrics": {name: last[name] for name in last if name.startswith(("eval_", "train_"))},
            "updates": self.training.num_steps,
            "samples": self.training.num_samples,
            "seconds": self.record.seconds,
            "curve": curve,
            "distance": self.record.distance,
            "environment": describe_environment(self.runtime),
        }
        if self.runtime.rank == 0:
            self.folder.finish(result, unwrap(self.training.model).state_dict())
        return self.runtime.broadcast(result)

    def _latest(self) -> str:
        if not self.record.curve:
            return ""
        return ", ".join(f"{name} {value:.4g}" for name, value in self.record.curve[-1].items() if "eval_" in name)

    def _start_clock(self) -> None:
        self.since = time.perf_counter()

    def _stop_clock(self) -> None:
        self.runtime.synchronize()
        self.record.seconds += time.perf_counter() - self.since


def evenly_spaced(last: int, count: int) -> set[int]:
    """Return at most `count` update counts up to `last`, which is one of them.

    Args:
        last: the largest.
        count: how many.

    Returns:
        Update counts.

    Example:
        >>> sorted(evenly_spaced(10, 4))
        [3, 5, 8, 10]
    """
    return {math.ceil(last * index / count) for index in range(1, count + 1)}
