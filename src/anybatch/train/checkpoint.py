"""How do saved weights get into a model?"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.stats.groups import unwrap

NESTED = ("model", "state_dict", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict: bare, or under the key model, state_dict or model_state_dict of a checkpoint.

    Args:
        path: file written by `torch.save`; only tensors and plain values are unpickled.

    Returns:
        Parameter or buffer name -> tensor on the CPU, without the prefixes of wrappers.

    Raises:
        InputError: no such file, or no state dict in it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file that torch did not write
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever the unpickler trips over
        raise InputError(
            f"checkpoint {path} cannot be read as a state dict. Save one by torch.save(model.state_dict(), path)."
        ) from error
    if isinstance(saved, dict):
        saved = next((saved[key] for key in NESTED if isinstance(saved.get(key), dict)), saved)
    if not isinstance(saved, dict) or not saved or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f"checkpoint {path} must hold names with their tensors; it holds something else.")
    return {_without_wrappers(name): value for name, value in saved.items()}


def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model, wrapped or not.

    Args:
        model: changed in place.
        weights: from `load_weights`.

    Raises:
        InputError: names or shapes do not fit the model.
    """
    try:
        unwrap(model).load_state_dict(weights)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise InputError(f"the checkpoint must fit the workload's model; {first}") from error


def _without_wrappers(name: str) -> str:
    while (prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name
