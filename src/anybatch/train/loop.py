"""How is a step taken, and the next? The one training loop: accumulate, step, repeat; alone or under torchrun."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from anybatch.apply.gradient_noise import GradientNoise
from anybatch.apply.sample_scheduler import SampleScheduler
from anybatch.decide.sample_schedule import SampleSchedule
from anybatch.errors import InputError
from anybatch.nn.conversion_targets import TARGETS
from anybatch.nn.convert import convert
from anybatch.seeds import derive_seed
from anybatch.stats.groups import unwrap
from anybatch.stats.sub_batches import SubBatchSource
from anybatch.train.data import MicroBatch, size_of, step_batches, to_device
from anybatch.train.example_inputs import find_example_inputs
from anybatch.train.module_rates import MeasuredRates
from anybatch.train.plan import AS_IT_IS, LayerwisePlan, NormPlan, Plan
from anybatch.train.randomness import seed_generators, seeded
from anybatch.train.runtime import Runtime
from anybatch.train.timm_optimizers import make_optimizer
from anybatch.workload import Milestones, Workload

STATE_VERSION = 2


@dataclass
class Training:
    """A model under training: what a step changes."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: SampleScheduler
    plan: Plan = AS_IT_IS
    num_steps: int = 0
    num_samples: int = 0
    module_rates: MeasuredRates | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: tensors and plain values."""
        return {
            "version": STATE_VERSION,
            "model": unwrap(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "num_steps": self.num_steps,
            "num_samples": self.num_samples,
            "agvm": None if self.module_rates is None else self.module_rates.agvm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`, of a training started in the same way.

        Args:
            state: as it was saved.

        Raises:
            InputError: it is of another version, or of another optimizer.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"state of a training must have version {STATE_VERSION}; got {state.get('version')}.")
        unwrap(self.model).load_state_dict(state["model"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise InputError(
                f"state of a training must be of the same optimizer; got another's ({error}). Delete it to start anew."
            ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        self.num_steps, self.num_samples = state["num_steps"], state["num_samples"]
        if self.module_rates is not None:
            self.module_rates.agvm.load_state_dict(state["agvm"])


def start_training(workload: Workload, runtime: Runtime, *, seed: int, plan: Plan = AS_IT_IS) -> Training:
    """Build the model and its optimizer, equal on every rank.

    Args:
        workload: what is trained.
        runtime: device; with more than one rank the model is wrapped in DistributedDataParallel.
        seed: of the initial weights; the global random state is left as it was.
        plan: what is changed of the workload's own training.

    Returns:
        The training, at step 0, in train mode.

    Raises:
        InputError: `model` or `optimizer` returns something else, the model has nothing to train, or the optimizer
            has no rate.
    """
    with seeded(runtime.device, derive_seed(seed, "init")):
        model = workload.model()
    if not isinstance(model, nn.Module):
        raise InputError(f"model of a Workload must return an nn.Module; got {type(model).__name__}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the model must have a trainable parameter; got none. Set requires_grad on some.")
    model = model.to(runtime.device)
    optimizer = _optimizer_of(workload, model)
    if plan.ghost_batch_size is not None:
        model = convert(model, "ghost", ghost_batch_size=plan.ghost_batch_size).model
    if isinstance(plan, NormPlan):
        inputs = find_example_inputs(workload, model) if TARGETS[plan.norm].is_wired else None
        model = convert(model, plan.norm, example_inputs=inputs, optimizer=optimizer, **dict(plan.norm_options)).model
    if plan.noise_variance:
        GradientNoise(model, plan.noise_variance)
    if isinstance(plan, LayerwisePlan) and plan.optimizer is not None and plan.optimizer_lr is not None:
        optimizer = make_optimizer(plan.optimizer, plan.optimizer_lr, optimizer)
    _set_hyperparameters(optimizer, plan)
    scheduler = _scheduler(workload, optimizer, plan)
    if runtime.world_size > 1:
        devices = [runtime.device] if runtime.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=devices)
    training = Training(model.train(), optimizer, scheduler, plan)
    if isinstance(plan, LayerwisePlan) and plan.agvm is not None:
        training.module_rates = MeasuredRates(plan.agvm, workload, model, optimizer)
    return training


def _optimizer_of(workload: Workload, model: nn.Module) -> Optimizer:
    optimizer = workload.optimizer(model)
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer of a Workload must return an Optimizer; got {type(optimizer).__name__}.")
    if not all("lr" in group for group in optimizer.param_groups):
        raise InputError(
            f"optimizer of a Workload must have a rate, lr, in each of its parameter groups; got "
            f"{type(optimizer).__name__} without. Give it one, which may be 1."
        )
    return optimizer


def train(
    workload: Workload,
    runtime: Runtime,
    training: Training,
    *,
    batch_size: int,
    micro_batch_size: int | None = None,
    seed: int,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Train without end, one step per item; what runs between two items sees the model at rest.

    A training that was loaded goes on where it stood. Each step seeds the global generators from (seed, step, rank),
    for dropout and the like, so nothing that is drawn in between moves a run.

    Args:
        workload: what is trained.
        runtime: device, precision and ranks.
        training: from `start_training`; each step changes it.
        batch_size: samples per step over all ranks.
        micro_batch_size: at most so many per forward pass; the rest is accumulated. Default: no accumulation.
        seed: of the order of samples.
        num_workers: of the data loader.

    Yields:
        The step's loss, a scalar that is not waited for; see `accumulate`.

    Raises:
        InputError: a batch that does not fit the training set or the ranks, or a loss that cannot be used.
    """
    batches = step_batches(
        workload,
        runtime,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size or batch_size,
        seed=seed,
        num_workers=num_workers,
        start=training.num_samples,
        least_parts=_least_parts(training.plan, runtime),
    )
    for micro_batches in batches:
        seed_generators(derive_seed(seed, "step", training.num_steps, runtime.rank), runtime.device)
        loss = train_step(workload, runtime, training, micro_batches)
        _count_samples(workload, training, batch_size)
        yield loss


def train_step(workload: Workload, runtime: Runtime, training: Training, micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Take one optimizer step on this rank's micro-batches.

    Args:
        workload: what is trained.
        runtime: device, precision and ranks.
        training: changed in place.
        micro_batches: (batch, number of samples) each.

    Returns:
        The loss, a scalar; see `accumulate`.

    Raises:
        InputError: a loss that is not a scalar with a gradient.
    """
    training.optimizer.zero_grad(set_to_none=True)
    source = None if training.module_rates is None else training.module_rates.source_if_due()
    loss = accumulate(workload, runtime, training.model, micro_batches, source)
    if training.module_rates is not None and source is not None:
        training.module_rates.agvm.observe(source.finish())
    clip_norm = training.plan.clip_norm_at(training.num_samples / (workload.num_samples or 1))
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), clip_norm)
    training.optimizer.step()
    training.num_steps += 1
    return loss


def accumulate(
    workload: Workload,
    runtime: Runtime,
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    source: SubBatchSource | None = None,
) -> Tensor:
    """Add up the gradient of the mean loss over all micro-batches of all ranks in `p.grad`.

    Args:
        workload: whose loss it is.
        runtime: device, precision and ranks.
        model: its gradients are added to.
        micro_batches: (batch, number of samples) each, of this rank.
        source: records each part, where given.

    Returns:
        A scalar whose mean over the ranks is the mean loss of the whole batch: in a single process that loss itself.

    Raises:
        InputError: a loss that is not a scalar with a gradient.
    """
    sizes = [size_of(workload, batch, count) for batch, count in micro_batches]
    total = runtime.sum([sum(sizes)])[0]
    mean_loss = torch.zeros((), device=runtime.device)
    for index, ((batch, _), size) in enumerate(zip(micro_batches, sizes, strict=True)):
        weight = size * runtime.world_size / total
        with _averaging(model, last=index == len(sizes) - 1):
            with runtime.precision():
                loss = require_scalar(workload.loss(model, to_device(batch, runtime.device)))
            with nullcontext() if source is None else source.sub_batch(size, weight):
                (loss if weight == 1 else loss * weight).backward()
        mean_loss = torch.add(mean_loss, loss.detach(), alpha=weight)
    return mean_loss


def require_scalar(loss: Any) -> Tensor:
    """Return the loss if it is a scalar with a gradient.

    Args:
        loss: what a workload's loss function returned.

    Returns:
        The loss.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(loss, Tensor):
        raise InputError(f"loss of a Workload must return a scalar Tensor; got {type(loss).__name__}.")
    if loss.ndim:
        raise InputError(
            f"loss of a Workload must return a scalar; got shape {tuple(loss.shape)}. Take the mean over samples."
        )
    if not loss.requires_grad:
        raise InputError("loss of a Workload must depend on the model's parameters; it has no gradient.")
    return loss


def _set_hyperparameters(optimizer: Optimizer, plan: Plan) -> None:
    for group in optimizer.param_groups:
        if "eps" in group and plan.eps_factor != 1:
            group["eps"] = group["eps"] * plan.eps_factor
        if plan.betas is not None and "betas" in group:
            group["betas"] = plan.betas
        elif plan.betas is not None and "alpha" in group:
            (group["alpha"],) = plan.betas


def _scheduler(workload: Workload, optimizer: Optimizer, plan: Plan) -> SampleScheduler:
    epoch = workload.num_samples
    if epoch is None:
        return SampleScheduler(optimizer, lambda num_samples: plan.lr_scale)
    milestones = scheduler = None
    if isinstance(workload.schedule, Milestones):
        milestones = workload.schedule
    elif workload.schedule is not None:
        scheduler = workload.schedule(optimizer)
    warmup_start = plan.warmup_start if isinstance(plan, LayerwisePlan) else 0.0
    schedule = SampleSchedule.from_epochs(milestones, epoch, plan.stretch, plan.warmup_epochs, warmup_start)

    def factor(num_samples: float) -> float:
        return plan.lr_scale * schedule.factor(num_samples)

    return SampleScheduler(optimizer, factor, scheduler, epoch * plan.stretch)


def _least_parts(plan: Plan, runtime: Runtime) -> Callable[[int], int]:
    """Return into how many micro-batches a step is cut at least: one process compares parts of its own batch."""
    if isinstance(plan, LayerwisePlan) and plan.agvm is not None and runtime.world_size == 1:
        return plan.agvm.parts_of
    return lambda step: 1


def _count_samples(workload: Workload, training: Training, batch_size: int) -> None:
    """Count a step's samples, move the schedule and, at the end of an epoch, reset the momentum if the plan says so."""
    before = training.num_samples
    training.num_samples += batch_size
    training.scheduler.advance(training.num_samples)
    epoch = workload.num_samples
    if training.plan.resets_momentum and epoch is not None and training.num_samples // epoch > before // epoch:
        training.optimizer.state.clear()


def _averaging(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
