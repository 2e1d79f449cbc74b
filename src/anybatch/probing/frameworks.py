"""How is a batch size set in PyTorch, Hugging Face and Lightning?"""

from __future__ import annotations

from collections.abc import Mapping

from anybatch.probing.law import StepPlan

DROP_LAST = "shuffle=True, drop_last=True"


def settings_to_copy(
    plan: StepPlan, batch_size: int, world_size: int, optimizer: Mapping[str, float | tuple[float, ...]]
) -> dict[str, str]:
    """Write a recommendation as settings of common frameworks.

    Args:
        plan: of one step on one rank.
        batch_size: over all ranks.
        world_size: number of ranks.
        optimizer: what moves with the batch, as torch names it: lr, betas, eps; empty where it is not known.

    Returns:
        Framework -> lines of Python.
    """
    return {
        "PyTorch": _torch(plan, batch_size, world_size, optimizer),
        "Hugging Face": _hugging_face(plan, optimizer),
        "Lightning": _lightning(plan, world_size, optimizer),
    }


def _torch(plan: StepPlan, batch_size: int, world_size: int, optimizer: Mapping[str, object]) -> str:
    lines = [f"# {batch_size} samples per step on {world_size} device(s)"]
    if plan.accumulation_steps > 1:
        lines += [
            f"accumulation_steps = {plan.accumulation_steps}",
            "# (loss / accumulation_steps).backward() for each micro-batch, then one optimizer.step()",
        ]
    lines += [f"loader = DataLoader(train_set, batch_size={plan.micro_batch_size}, {DROP_LAST})"]
    if optimizer:
        lines += [f"# in the optimizer: {_arguments(optimizer)}"]
    return "\n".join(lines)


def _hugging_face(plan: StepPlan, optimizer: Mapping[str, float | tuple[float, ...]]) -> str:
    arguments: dict[str, object] = {
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "dataloader_drop_last": True,
    }
    for name, value in optimizer.items():
        if isinstance(value, tuple):
            arguments |= {"adam_beta1": value[0], "adam_beta2": value[1]}
        else:
            arguments[{"lr": "learning_rate", "eps": "adam_epsilon"}[name]] = value
    return "TrainingArguments(\n" + "".join(f"    {name}={_text(value)},\n" for name, value in arguments.items()) + ")"


def _lightning(plan: StepPlan, world_size: int, optimizer: Mapping[str, object]) -> str:
    lines = [
        f"Trainer(devices={world_size}, accumulate_grad_batches={plan.accumulation_steps})",
        f"# in the DataModule: DataLoader(train_set, batch_size={plan.micro_batch_size}, {DROP_LAST})",
    ]
    if optimizer:
        lines += [f"# in configure_optimizers: {_arguments(optimizer)}"]
    return "\n".join(lines)


def _arguments(optimizer: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in optimizer.items())


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
