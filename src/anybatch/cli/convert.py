"""`anybatch convert WORKLOAD`: which layers of a model another normalization replaces, and its weights after it."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from torch import nn

from anybatch.cli import common_options as common
from anybatch.cli import convert_options as own
from anybatch.cli.outputs import check_writable
from anybatch.errors import InputError
from anybatch.nn.conversion_targets import TARGETS
from anybatch.nn.convert import convert as convert_model
from anybatch.nn.convert import put_in_place
from anybatch.train.checkpoint import load_weights, put_weights
from anybatch.train.example_inputs import find_example_inputs
from anybatch.train.loop import start_training
from anybatch.train.runtime import Runtime
from anybatch.workloads import load_workload

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
    save: own.Save = None,
    option: own.Option = None,
    data_root: common.DataRoot = None,
    debug: common.Debug = False,
) -> None:
    """Replace the batch norms of a workload's model and show which layers that concerns.

    [b]anybatch convert f1-fashion-mnist --to group --dry-run[/b]

    [b]anybatch convert scenes-faster-rcnn --to kalman --part backbone.body --dry-run[/b]

    [b]anybatch convert path/to/file.py:function --to batch_renorm --checkpoint model.pt --save renorm.pt[/b]
    """
    if dry_run == (save is not None):
        raise InputError("convert must be given --dry-run, to show what would be done, or --save FILE; give one.")
    check_writable(save)
    given = load_workload(workload, data_root)
    model = start_training(given, Runtime(torch.device("cpu")), seed=0).model
    if checkpoint is not None:
        put_weights(model, load_weights(checkpoint))
    module = model if part is None else _part_of(model, part)
    inputs = find_example_inputs(given, model, module) if TARGETS[to].is_wired else None
    if TARGETS[to].is_wired and inputs is None:
        raise InputError(_MODEL_NOT_CALLED if part is None else _PART_NOT_CALLED.format(part))
    conversion = convert_model(module, to, example_inputs=inputs, **_options(option or []))
    if part is None:
        model = conversion.model
    else:
        put_in_place(model, {module: conversion.model})
    Console(highlight=False).print(str(conversion), soft_wrap=True, markup=False)
    if save is not None:
        torch.save(model.state_dict(), save)


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
