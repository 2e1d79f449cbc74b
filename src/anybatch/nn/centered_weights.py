"""How is the mean of a layer's output kept near zero without subtracting a batch's mean?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from anybatch.errors import InputError

WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class CenteredWeight(nn.Module):
    """A weight less its mean over the inputs of each output."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return (O, *) without the mean of each row."""
        return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)


def center_weights(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Let convolutions and linear layers use their weights less the mean over the inputs of each output, in place.

    The parameter is the same object and is trained; the layer computes with the centred one. In `state_dict` its name
    becomes `parametrizations.weight.original`.

    Args:
        model: any module.
        names: of convolutions and linear layers; what is centred already stays as it is.

    Returns:
        The names of the layers that are centred now and were not.

    Raises:
        InputError: a name that is not one of a convolution or linear layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> center_weights(model, ["0"]), model[0].weight.sum(1).abs().max().item() < 1e-6
        (('0',), True)

    Source:
        Yan et al. 2020, section 4.2; their code centres every convolution in this way.
    """
    check_have_weights(model, names)
    new = tuple(name for name in names if not _is_centred(model.get_submodule(name)))
    for name in new:
        parametrize.register_parametrization(model.get_submodule(name), "weight", CenteredWeight())
    return new


def check_have_weights(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse names of layers that cannot be centred.

    Args:
        model: any module.
        names: of its layers.

    Raises:
        InputError: one is not the name of a convolution or linear layer.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not isinstance(modules.get(name), WITH_WEIGHTS):
            found = type(modules[name]).__name__ if name in modules else "no such layer"
            raise InputError(
                f"layer {name!r} must be a convolution or a linear layer to be centred; got {found}. Leave it out."
            )


def uncenter_weights(model: nn.Module) -> tuple[str, ...]:
    """Make centred weights plain ones again, of the values that the layers computed with.

    Args:
        model: changed in place; parameters stay the same objects.

    Returns:
        The names of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> _ = center_weights(model, ["0"])
        >>> uncenter_weights(model), list(model.state_dict())
        (('0',), ['0.weight', '0.bias'])
    """
    names = tuple(name for name, module in model.named_modules() if _is_centred(module))
    for name in names:
        module = model.get_submodule(name)
        parametrize.remove_parametrizations(module, "weight")
        module._parameters["bias"] = module._parameters.pop("bias")  # in the order that a new layer has
    return names


def layers_before(model: nn.Module, norms: Sequence[str]) -> tuple[str, ...]:
    """Find the convolution or linear layer that was registered last before each normalization layer.

    Args:
        model: any module.
        norms: names of layers.

    Returns:
        Names, each once; nothing for a norm that comes first.

    Example:
        >>> layers_before(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)), ["1"])
        ('0',)
    """
    found: dict[str, None] = {}
    latest: str | None = None
    for name, module in model.named_modules():
        if isinstance(module, WITH_WEIGHTS):
            latest = name
        elif name in norms and latest is not None:
            found[latest] = None
    return tuple(found)


def _is_centred(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    return any(isinstance(each, CenteredWeight) for each in module.parametrizations["weight"])  # pyright: ignore
