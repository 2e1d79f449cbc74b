"""Does a source that the user names run before the layer that reads it? The first training pass tells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from anybatch.nn.carried_moments import Place
from anybatch.nn.kalman_layer import KalmanLayer


class LateSources:
    """A forward pre-hook of a layer and a forward hook of its model; warns once of sources that run behind the layer.

    Args:
        name: of the layer.
        layer: whose prior is read.
        places: source -> where its moments are.
    """

    def __init__(self, name: str, layer: KalmanLayer, places: Mapping[str, Place]) -> None:
        self._name, self._layer, self._places = name, layer, dict(places)
        self._missing: list[str] | None = None
        self._is_settled = False

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        """Note what the layer lacks; at the end of the model's pass, see what came too late."""
        if self._is_settled or torch.compiler.is_compiling():
            return
        if module is self._layer:
            self._missing = self._unknown() if module.needs_prior else None
        elif self._missing is not None:
            late = sorted({*self._missing} - {*self._unknown()})
            self._is_settled = bool(late) or not self._missing
            self._missing = None
            self._warn_of(late)

    @torch.no_grad()
    def _unknown(self) -> list[str]:
        return [name for name, place in self._places.items() if place.read(1) is None]

    def _warn_of(self, late: list[str]) -> None:
        if late:
            warnings.warn(
                f"sources of {self._name!r} must run before it; got {late}, behind it, so that it has no prior. Name a "
                "layer or a module that runs before it.",
                stacklevel=2,
            )
