"""How does an optimizer take a step with its param groups split, without being touched?

A step pre-hook of torch may return other arguments for `step`, and the first of them is the optimizer. It is given a
view: an object of the same class that shares every attribute, and whose `param_groups` alone are other ones.
Schedulers, GradScaler, closures and whoever holds the optimizer see the groups they know, at any time and when a step
raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

ParamGroup = dict[str, Any]


class SplitStep:
    """A view of an optimizer whose param groups are split by module, each part at a rate of its own.

    Args:
        optimizer: any of torch's, or one built like them.
        module_of: parameter -> its module; a parameter that is not in it keeps its rate.
    """

    def __init__(self, optimizer: Optimizer, module_of: Mapping[nn.Parameter, str]) -> None:
        self._optimizer = optimizer
        self._module_of = module_of
        self._parts: list[
            tuple[ParamGroup, ParamGroup, ParamGroup]
        ] = []  # of the group, as it was, as the step sees it
        groups = property(lambda view: [part for _, _, part in self._parts])
        kind = type(optimizer)
        view = object.__new__(type(kind.__name__, (kind,), {"param_groups": groups, "__module__": kind.__module__}))
        view.__dict__ = optimizer.__dict__
        self._view = view

    def begin(self, scales: Mapping[str, float]) -> Optimizer:
        """Split the groups as they are now.

        Args:
            scales: module -> factor on its rate.

        Returns:
            The view, for one step.
        """
        self._parts = [
            (group, part, dict(part)) for group in self._optimizer.param_groups for part in self._split(group, scales)
        ]
        return self._view

    def end(self) -> None:
        """Take over what the step has written into its groups, as schedule-free optimizers and timm's LAMB do."""
        for group, before, part in self._parts:
            group.update({key: value for key, value in part.items() if value is not before.get(key)})
            for key in _counters(before):
                if part[key] is before[key]:
                    group[key].copy_(part[key])
        self.clear()

    def clear(self) -> None:
        """Forget a step, also one that has raised."""
        self._parts = []

    def _split(self, group: ParamGroup, scales: Mapping[str, float]) -> list[ParamGroup]:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            scale = scales.get(self._module_of.get(parameter, ""), 1.0)
            by_scale.setdefault(scale, []).append(parameter)
        return [
            {
                **group,
                **{key: group[key].clone() for key in _counters(group)},
                "params": parameters,
                "lr": group["lr"] * scale,
            }
            for scale, parameters in by_scale.items()
        ]


def _counters(group: ParamGroup) -> list[str]:
    """Return what an optimizer may count in place, a step, which each part must do by itself and only once."""
    return [key for key, value in group.items() if isinstance(value, Tensor) and key != "lr"]
