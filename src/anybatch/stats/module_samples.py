"""What are the samples' own gradients of a module whose operations are not known one by one?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from anybatch.stats.sample_gradients import wide


@dataclass(eq=False)
class ModuleCall:
    """One call of a module, run again sample by sample: `vmap` of `grad` of its output times the output's gradient.

    Attributes:
        module: what was called.
        parameters: those to differentiate by, and their names in the module.
        num_samples: N.
        inputs: its arguments, flat; those with one row per sample are told from the others by their first axis.
        structure: of the arguments.
        out_grads: gradient of each output with one row per sample; zeros until `backward()` has come by.
        autocast: device type, data type and whether it is on.
    """

    module: nn.Module
    parameters: dict[nn.Parameter, str]
    num_samples: int
    inputs: list[Any]
    structure: Any
    out_grads: dict[int, Tensor] = field(default_factory=dict)
    autocast: tuple[str, torch.dtype, bool] = ("cpu", torch.bfloat16, False)

    def grads(self, parameters: Sequence[nn.Parameter], samples: slice) -> dict[nn.Parameter, Tensor]:
        """Return some samples' own gradients, (n, *parameter.shape), in float32 or wider."""
        names = {parameter: self.parameters[parameter] for parameter in parameters}
        rows = [value[samples] if has_rows(value, self.num_samples) else value for value in self.inputs]
        axes = [0 if has_rows(value, self.num_samples) else None for value in self.inputs]
        out_grads = {index: grad[samples] for index, grad in self.out_grads.items()}

        def loss(values: dict[str, Tensor], row: list[Any], grads: dict[int, Tensor]) -> Tensor:
            one = [value if axis is None else value[None] for value, axis in zip(row, axes, strict=True)]
            args, kwargs = tree_unflatten(one, self.structure)
            device, dtype, is_on = self.autocast
            with torch.autocast(device, dtype=dtype, enabled=is_on):
                outputs, _ = tree_flatten(torch.func.functional_call(self.module, values, args, kwargs))
            return torch.stack([(wide(outputs[index][0]) * wide(grad)).sum() for index, grad in grads.items()]).sum()

        values = {name: parameter.detach() for parameter, name in names.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # a loop where vmap has no rule
            found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, axes, 0))(values, rows, out_grads)
        return {parameter: wide(found[name]) for parameter, name in names.items()}


def has_rows(value: Any, num_samples: int) -> bool:
    """Tell whether a value is a tensor with one row per sample."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_samples
