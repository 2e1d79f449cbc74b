"""`anybatch convert WORKLOAD`: which layers of a model another normalization replaces, and its weights after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from anybatch.cli import common_options as common
from anybatch.cli import convert_options as own
from anybatch.cli.outputs import check_writable
from anybatch.errors import InputError
from anybatch.nn.conversion_targets import TARGETS, Kind
from anybatch.nn.convert import Conversion, put_in_place
from anybatch.nn.convert import convert as convert_model
from anybatch.train.checkpoint import load_weights, put_weights
from anybatch.train.example_inputs import find_example_inputs
from anybatch.train.loop import start_training
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload
from anybatch.workloads import load_workload

_NAME_ITS_KIND = (
    "If it was saved after a conversion, name what batch norm was by --checkpoint-kind, and its options by "
    "--checkpoint-option."
)
_OF_NAMES = ("centered_weights",)
_TRUTH = {"true": True, "false": False}
_PART_NOT_CALLED = (
    "--part must name a module that is called with positional arguments alone, for kinds that follow the graph; "
    "{!r} is not. Name the module around it."
)
_MODEL_NOT_CALLED = (
    "the loss must call the model with positional arguments alone, for kinds that follow the graph. Call it so, or "
    "name a part that is called so with --part."
)


def convert(
    workload: own.Workload,
    to: own.To,
    part: own.Part = None,
    dry_run: own.DryRun = False,
    checkpoint: own.Checkpoint = None,
    checkpoint_kind: own.CheckpointKind = None,
    checkpoint_option: own.CheckpointOption = None,
    save: own.Save = None,
    option: own.Option = None,
    data_root: common.DataRoot = None,
    debug: common.Debug = False,
) -> None:
    """Replace the batch norms of a workload's model and show which layers that concerns.

    [b]anybatch convert f1-fashion-mnist --to group --dry-run[/b]

    [b]anybatch convert scenes-faster-rcnn --to kalman --part backbone.body --dry-run[/b]

    [b]anybatch convert path/to/file.py:function --to batch_renorm --checkpoint model.pt --save renorm.pt[/b]

    [b]anybatch convert path/to/file.py:function --to batch --checkpoint k.pt --checkpoint-kind kalman --save b.pt[/b]
    """
    if dry_run == (save is not None):
        raise InputError("convert must be given --dry-run, to show what would be done, or --save FILE; give one.")
    _check_checkpoint(checkpoint, checkpoint_kind, checkpoint_option)
    check_writable(save)
    given = load_workload(workload, data_root)
    model = start_training(given, Runtime(torch.device("cpu")), seed=0).model
    kinds: list[Kind] = [to] if checkpoint_kind is None else [checkpoint_kind, to]
    inputs = _example_inputs(given, model, part) if any(TARGETS[kind].is_wired for kind in kinds) else None
    if checkpoint_kind is not None:
        model, _ = _convert(model, part, checkpoint_kind, checkpoint_option, inputs)
    if checkpoint is not None:
        _load(model, checkpoint)
    model, conversion = _convert(model, part, to, option, inputs)
    Console(highlight=False).print(str(conversion), soft_wrap=True, markup=False)
    if save is not None:
        torch.save(model.state_dict(), save)


def _check_checkpoint(checkpoint: Path | None, kind: Kind | None, options: list[str] | None) -> None:
    if kind is not None and checkpoint is None:
        raise InputError(f"--checkpoint-kind must come with --checkpoint; got {kind} alone. Name the file too.")
    if options and kind is None:
        raise InputError(
            f"--checkpoint-option must come with --checkpoint-kind; got {options[0]} alone. Name the kind."
        )


def _example_inputs(workload: Workload, model: nn.Module, part: str | None) -> Any:
    inputs = find_example_inputs(workload, model, model if part is None else _part_of(model, part))
    if inputs is None:
        raise InputError(_MODEL_NOT_CALLED if part is None else _PART_NOT_CALLED.format(part))
    return inputs


def _convert(
    model: nn.Module, part: str | None, to: Kind, options: list[str] | None, inputs: Any
) -> tuple[nn.Module, Conversion]:
    """Convert a model or a part of it, and return the model with what was done."""
    module = model if part is None else _part_of(model, part)
    conversion = convert_model(module, to, example_inputs=inputs, **_options(options or []))
    if part is None:
        return conversion.model, conversion
    put_in_place(model, {module: conversion.model})
    return model, conversion


def _load(model: nn.Module, checkpoint: Path) -> None:
    weights = load_weights(checkpoint)
    try:
        put_weights(model, weights)
    except InputError as error:
        raise InputError(f"{error} {_NAME_ITS_KIND}") from error


def _part_of(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if not name or name not in modules:
        known = ", ".join(name for name, _ in model.named_children())
        has = f"It consists of {known}." if known else "It has no parts."
        raise InputError(f"--part must name a module of the model; got {name!r}. {has}")
    return modules[name]


def _options(given: list[str]) -> dict[str, Any]:
    pairs = dict(_pair(text) for text in given)
    return {name: _names(text) if name in _OF_NAMES else _value(text) for name, text in pairs.items()}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--option must be name=value, such as micro_batch_size=2; got {text!r}.")
    return name, value


def _names(text: str) -> bool | list[str]:
    """Return a truth value, or names of layers, which may be numbers."""
    return _TRUTH[text.lower()] if text.lower() in _TRUTH else text.split(",")


def _value(text: str) -> Any:
    """Return a number, a truth value, several of them with commas, or the text itself."""
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return _TRUTH.get(text.lower(), text)
