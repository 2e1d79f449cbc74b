"""In which coordinates are gradients measured: plain ones, or those in which Adam's step is a plain gradient step?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anybatch.errors import InputError
from anybatch.stats.moments import Geometry, MeasuredGeometry

OF_ADAM = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)


class AdamPreconditioner:
    r"""What gradients are multiplied with to be seen as Adam's step sees them: (sqrt(v_hat) + eps)^(-1/2).

    With the diagonal P = 1 / (sqrt(v_hat) + eps), an optimizer that steps along P g has the expected loss change, to
    second order,

        -lr G^T P G + lr^2/2 (G^T P H P G + tr(P H P S) / B),

    and wins most at a rate that falls as 1 / (1 + noise scale / B), where noise scale = tr(P H P S) / (G^T P H P G). In
    the coordinates y = P^(-1/2) x its step is a plain gradient step: gradients become P^(1/2) g and the Hessian
    P^(1/2) H P^(1/2). Where that one is a multiple of the identity, as SGD's noise scale supposes of H itself,

        noise scale = tr(P S) / (G^T P G),

    so each gradient is multiplied with the power 1/2 of P, about v^(-1/4), and its squared norm is g^T P g. With H
    itself a multiple of the identity P would be squared; that is not the curvature a preconditioner is made for.

    P is the optimizer's of the moment: v_hat holds earlier steps' gradients alone, so that P does not depend on the
    samples that are measured and both moments stay unbiased. It may not change between the parts of a step, and cannot:
    a step of the optimizer in between is refused. Momentum, the decay of weights and different rates of parameter
    groups are left out, and so is what the optimizer does not hold, as it takes no step.

    v_hat is taken as no less than (1 - beta_2) times its mean over the parameter. A word that no batch had so far, or
    whose second moment is that of its weight decay alone, would else have a factor of up to 1 / eps and drown all
    others, while Adam's step there is bounded, as its gradient enters v_hat with the weight 1 - beta_2 first.

    Args:
        optimizer: Adam, AdamW, NAdam, RAdam or another one whose state has `exp_avg_sq` and `step`.

    Raises:
        InputError: its parameter groups have no `betas` and `eps`.

    Note:
        RAdam's first steps (five at a beta_2 of 0.999) are plain momentum; this is its geometry from then on.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
        >>> optimizer = torch.optim.Adam([weight], eps=0.0)
        >>> weight.grad = torch.tensor([2.0, 4.0])
        >>> optimizer.step()
        >>> AdamPreconditioner(optimizer)(weight).square()
        tensor([0.5000, 0.2500])

    Source:
        McCandlish et al. 2018, arXiv:1812.06162, equations 2.4 to 2.8 for plain gradient steps; Kingma and Ba 2015,
        arXiv:1412.6980, algorithm 1 for v_hat. The noise scale of a preconditioned step is derived here.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not all("betas" in group and "eps" in group for group in optimizer.param_groups):
            raise InputError(
                "optimizer must have betas and eps, as Adam has, for geometry 'adam'; "
                f"got {type(optimizer).__name__}. Measure with geometry='sgd'."
            )
        self._optimizer = optimizer

    def has_state(self) -> bool:
        """Tell whether the optimizer has stepped."""
        return any(self._optimizer.state.values())

    def __call__(self, parameter: nn.Parameter) -> Tensor:
        """Return P^(1/2) of one parameter, computed anew and not kept.

        Args:
            parameter: of the optimizer.

        Returns:
            As the parameter's shape, in float32 or wider; 0 without a gradient so far, or not held.

        Raises:
            RuntimeError: the optimizer has not stepped or has no second moments.
        """
        group = find_param_group(self._optimizer, parameter)
        state = self._optimizer.state.get(parameter)
        states = [state] if state else self._optimizer.state.values()
        if not any({"exp_avg_sq", "step"} <= found.keys() for found in states):
            raise RuntimeError(
                "geometry 'adam' must find the optimizer's second moments, `exp_avg_sq` with `step`; got none for a "
                f"parameter of shape {tuple(parameter.shape)}. Measure after the optimizer's first step."
            )
        if group is None or not state:
            return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        second = state.get("max_exp_avg_sq", state["exp_avg_sq"]) if group.get("amsgrad") else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** state["step"]
        wide = torch.promote_types(second.dtype, torch.float32)
        estimate = second.to(wide) / correction
        least = (1 - group["betas"][1]) * estimate.mean()
        factor = estimate.clamp_min_(least).sqrt_().add_(group["eps"]).rsqrt_()
        return torch.where(least == 0, 0.0, factor)


def find_param_group(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """Return the param group that a parameter is in, None where it is in none.

    Args:
        optimizer: its groups are searched as they are now.
        parameter: any.

    Returns:
        The group itself.
    """
    groups = optimizer.param_groups
    return next((group for group in groups if any(other is parameter for other in group["params"])), None)


Preconditioner = Callable[[nn.Parameter], Tensor | None]  # what a gradient is multiplied with before its norm is taken


def resolve_geometry(
    geometry: Geometry, optimizer: Optimizer | None, own: Preconditioner | None
) -> tuple[Preconditioner | None, MeasuredGeometry]:
    """Return what a source multiplies gradients with, and what its moments are called.

    Args:
        geometry: see `choose_preconditioner`.
        optimizer: see `choose_preconditioner`.
        own: a preconditioner of the user's, beside which the geometry stays "sgd".

    Returns:
        The preconditioner, None for plain gradients, and the geometry.

    Raises:
        InputError: as `choose_preconditioner`, or a preconditioner beside another geometry.
    """
    if own is None:
        return choose_preconditioner(geometry, optimizer), geometry
    if geometry != "sgd":
        raise InputError(f"geometry must be 'sgd' beside a preconditioner; got {geometry!r}. Leave one of the two out.")
    return own, "preconditioned"


def geometry_of(optimizer: Optimizer) -> Geometry:
    """Return in which coordinates an optimizer's step is about a plain gradient step.

    Args:
        optimizer: any.

    Returns:
        "adam" for those of torch whose state `AdamPreconditioner` reads, else "sgd".

    Example:
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> geometry_of(torch.optim.AdamW(weights)), geometry_of(torch.optim.SGD(weights))
        ('adam', 'sgd')
    """
    return "adam" if isinstance(optimizer, OF_ADAM) else "sgd"


def choose_preconditioner(geometry: Geometry, optimizer: Optimizer | None) -> AdamPreconditioner | None:
    """Return what gradients are multiplied with in a geometry.

    Args:
        geometry: "sgd" or "adam".
        optimizer: whose second moments "adam" reads.

    Returns:
        None for "sgd".

    Raises:
        InputError: an unknown geometry, or "adam" without an optimizer of its kind.
    """
    if geometry not in get_args(Geometry):
        raise InputError(f"geometry must be one of {', '.join(get_args(Geometry))}; got {geometry!r}.")
    if geometry == "sgd":
        return None
    if optimizer is None:
        raise InputError("geometry 'adam' must come with the optimizer; got none. Pass optimizer=.")
    return AdamPreconditioner(optimizer)
