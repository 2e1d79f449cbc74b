"""How does a schedule follow the samples seen, so that another batch size does not move it?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from anybatch.decide.sample_schedule import ROUNDING
from anybatch.errors import InputError


class SampleScheduler:
    """Set an optimizer's rates from the number of samples seen.

    A scheduler of torch is stepped each time another `samples_per_step` samples have been seen, in one go where a
    batch covers several; on top of it, or alone, `factor` multiplies the rate.

    Args:
        optimizer: whose rates are set.
        factor: (samples seen) -> factor on the rate, such as `SampleSchedule.factor`; None: 1.
        scheduler: of the same optimizer, written for its base batch size; None: the optimizer's rate is scheduled by
            `factor` alone.
        samples_per_step: samples between two steps of the scheduler: the training set's for one that counts epochs,
            the base batch size for one that counts updates, times the stretch of a regime.

    Raises:
        InputError: a scheduler that waits for a metric, or one of another optimizer.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        >>> scheduler = SampleScheduler(optimizer, scheduler=halving, samples_per_step=100)
        >>> optimizer.step()
        >>> scheduler.advance(256)
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[float], float] | None = None,
        scheduler: LRScheduler | None = None,
        samples_per_step: float = 1.0,
    ) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise InputError(
                "scheduler must depend on progress alone; got ReduceLROnPlateau, which waits for a metric."
            )
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise InputError("scheduler must be the optimizer's own; it was made for another one.")
        self._optimizer = optimizer
        self._factor = factor
        self._scheduler = scheduler
        self._samples_per_step = samples_per_step
        self._last_step = getattr(scheduler, "total_steps", math.inf) - 1  # beyond, OneCycleLR has no rate
        self._num_steps = 0
        self._scheduled = [group["lr"] for group in optimizer.param_groups]
        self.advance(0)

    def advance(self, num_samples: int) -> None:
        """Set the rates for the step that begins after so many samples.

        Args:
            num_samples: seen since the start of training, never fewer than before.
        """
        if self._scheduler is not None:
            steps = int(num_samples / self._samples_per_step * (1 + ROUNDING))
            self._step(int(min(steps, self._last_step)) - self._num_steps)
        if self._factor is not None:
            self._set([lr * self._factor(num_samples) for lr in self._scheduled])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain values."""
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return {"version": 1, "num_steps": self._num_steps, "scheduled": self._scheduled, "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; the optimizer's own state is loaded beside it."""
        self._num_steps = state["num_steps"]
        self._scheduled = list(state["scheduled"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])

    def _step(self, count: int) -> None:
        if not count:
            return
        assert self._scheduler is not None
        self._set(self._scheduled)  # a scheduler reads the rate it has set, without the factor
        for _ in range(count):
            self._scheduler.step()
        self._num_steps += count
        self._scheduled = [group["lr"] for group in self._optimizer.param_groups]

    def _set(self, rates: list[float]) -> None:
        for group, lr in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
