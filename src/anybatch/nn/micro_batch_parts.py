"""Into which parts is a batch cut for its statistics, and which inputs have none?"""

from __future__ import annotations

import math

from torch import Tensor

from anybatch.errors import InputError
from anybatch.nn.layer_settings import is_count, is_number


def count_parts(input: Tensor, micro_batch_size: int | None) -> int:
    """Return how many micro-batches a training batch holds, each with statistics of its own.

    Args:
        input: (N, C) or (N, C, *).
        micro_batch_size: samples that share statistics; None, or more than N, for the whole batch.

    Returns:
        N / micro_batch_size, at least 1.

    Raises:
        InputError: numbers that are no real floating point ones, a batch that is no multiple of `micro_batch_size`, or
            a micro-batch with one value per channel.

    Example:
        >>> import torch
        >>> count_parts(torch.zeros(8, 3, 2, 2), 2)
        4
    """
    check_is_real(input)
    num_samples = len(input)
    size = min(micro_batch_size or num_samples, num_samples)
    if num_samples % max(size, 1):
        raise InputError(
            f"micro_batch_size must divide the batch in training; got {size} for a batch of {num_samples}. Choose "
            f"{_listed(_divisors_around(num_samples, size))}, or a batch of "
            f"{_listed([num_samples // size * size, -(-num_samples // size) * size])}."
        )
    num_values = size * math.prod(input.shape[2:])
    if num_values <= 1:
        raise InputError(
            f"a micro-batch must have more than 1 value per channel in training; got {num_values}, with "
            f"micro_batch_size {micro_batch_size} and an input of shape {tuple(input.shape)}. Raise micro_batch_size "
            "or the batch."
        )
    return num_samples // size


def check_is_real(input: Tensor) -> None:
    """Refuse complex numbers and integers, which have no place on a normalized scale.

    Args:
        input: any tensor.

    Raises:
        InputError: its dtype is complex, an integer or bool.
    """
    if not input.is_floating_point():
        raise InputError(f"the input must have a real floating point dtype; got {input.dtype}. Convert it first.")


def check_input(input: Tensor, num_channels: int) -> None:
    """Refuse what a layer would broadcast over, or has no place for on a normalized scale.

    Args:
        input: (N, C) or (N, C, *).
        num_channels: C of the layer.

    Raises:
        InputError: as for `check_is_real`, an input without channels, or another number of them.
    """
    check_is_real(input)
    _check_has_channels(input)
    if input.shape[1] != num_channels:
        raise InputError(
            f"the input must have the {num_channels} channels of the layer; got {input.shape[1]}, in an input of shape "
            f"{tuple(input.shape)}. Channels are its second dimension."
        )


def _check_has_channels(input: Tensor) -> None:
    if input.dim() < 2:
        raise InputError(
            f"the input must have samples and channels, (N, C) or (N, C, *); got shape {tuple(input.shape)}. Channels "
            "are its second dimension."
        )


def check_tensors(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Refuse tensors that a normalization function would broadcast, or has no place for.

    Args:
        input: (N, C) or (N, C, *).
        weight: (C,) or None.
        bias: (C,) or None.

    Raises:
        InputError: as for `check_is_real`, an input without channels, or another number of weights.
    """
    check_is_real(input)
    _check_has_channels(input)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != input.shape[1:2]:
            raise InputError(
                f"{name} must have one value for each of the {input.shape[1]} channels; got shape "
                f"{tuple(tensor.shape)}. Pass a vector, or None."
            )


def check_micro_batch_size(value: int | None) -> None:
    """Refuse what is no number of samples.

    Args:
        value: None or a positive integer.

    Raises:
        InputError: anything else.
    """
    if value is not None and not is_count(value):
        raise InputError(
            f"micro_batch_size must be a positive integer or None; got {value!r}. None takes the whole batch."
        )


def check_momentum(value: float | None) -> None:
    """Refuse a weight of new statistics that is none.

    Args:
        value: between 0 and 1, or None for the cumulative average.

    Raises:
        InputError: anything else.
    """
    if value is not None and not (is_number(value) and 0 <= value <= 1):
        raise InputError(f"momentum must be between 0 and 1, or None; got {value!r}. It is the weight of a new value.")


def _divisors_around(number: int, size: int) -> list[int]:
    divisors = [each for each in range(1, number + 1) if number % each == 0]
    return [max(each for each in divisors if each <= size), min(each for each in divisors if each >= size)]


def _listed(numbers: list[int]) -> str:
    return " or ".join(str(number) for number in numbers)
