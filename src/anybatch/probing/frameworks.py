"""How is a batch size set in PyTorch, Hugging Face and Lightning?"""

from __future__ import annotations

from anybatch.decide.lr_scaling import LrScale
from anybatch.probing.law import StepPlan

DROP_LAST = "shuffle=True, drop_last=True"


def settings_to_copy(
    plan: StepPlan, batch_size: int, world_size: int, rate: float | None, lr: LrScale | None
) -> dict[str, str]:
    """Write a recommendation as settings of common frameworks.

    Args:
        plan: of one step on one rank.
        batch_size: over all ranks.
        world_size: number of ranks.
        rate: the scaled rate; None where it is not known.
        lr: what moved it, with Adam's betas.

    Returns:
        Framework -> lines of Python.
    """
    betas = None if lr is None else lr.betas
    return {
        "PyTorch": _torch(plan, batch_size, world_size, rate, betas),
        "Hugging Face": _hugging_face(plan, rate, betas),
        "Lightning": _lightning(plan, world_size, rate, betas),
    }


def _torch(
    plan: StepPlan, batch_size: int, world_size: int, rate: float | None, betas: tuple[float, float] | None
) -> str:
    lines = [f"# {batch_size} samples per step on {world_size} device(s)"]
    if plan.accumulation_steps > 1:
        lines += [
            f"accumulation_steps = {plan.accumulation_steps}",
            "# (loss / accumulation_steps).backward() for each micro-batch, then one optimizer.step()",
        ]
    lines += [f"loader = DataLoader(train_set, batch_size={plan.micro_batch_size}, {DROP_LAST})"]
    return "\n".join(lines + [f"# in the optimizer: {text}" for text in _optimizer(rate, betas)])


def _hugging_face(plan: StepPlan, rate: float | None, betas: tuple[float, float] | None) -> str:
    arguments = {
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "dataloader_drop_last": True,
    }
    if rate is not None:
        arguments["learning_rate"] = f"{rate:.4g}"
    if betas is not None:
        arguments |= {"adam_beta1": f"{betas[0]:.4g}", "adam_beta2": f"{betas[1]:.4g}"}
    return "TrainingArguments(\n" + "".join(f"    {name}={value},\n" for name, value in arguments.items()) + ")"


def _lightning(plan: StepPlan, world_size: int, rate: float | None, betas: tuple[float, float] | None) -> str:
    lines = [
        f"Trainer(devices={world_size}, accumulate_grad_batches={plan.accumulation_steps})",
        f"# in the DataModule: DataLoader(train_set, batch_size={plan.micro_batch_size}, {DROP_LAST})",
    ]
    return "\n".join(lines + [f"# in configure_optimizers: {text}" for text in _optimizer(rate, betas)])


def _optimizer(rate: float | None, betas: tuple[float, float] | None) -> list[str]:
    settings = [] if rate is None else [f"lr={rate:.4g}"]
    settings += [] if betas is None else [f"betas=({betas[0]:.4g}, {betas[1]:.4g})"]
    return [", ".join(settings)] if settings else []
