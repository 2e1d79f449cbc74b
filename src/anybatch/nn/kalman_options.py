"""Which kind of Kalman normalization is it? Every choice, with its default, in one place."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from anybatch.errors import InputError
from anybatch.nn.layer_settings import is_count, is_number
from anybatch.nn.moments import Moments

Gain = Literal["fixed", "learned", "adaptive"]
Transition = Literal["analytic", "sampled", "learned"]
StateSpace = Literal["raw", "normalized", "observed"]
Gate = Literal["channel", "layer"]
RunningSplits = Literal["all", "first"]
# (layer, predicted, observed) -> the prior; `predicted` is what the network says, (S, C) or (1, C) where all splits
# share it, None where nothing leads to the layer
Prior = Callable[[Any, Moments | None, Moments], Moments | None]


@dataclass(frozen=True)
class KalmanOptions:
    """The choices of Kalman normalization.

    Attributes:
        splits: S equal, contiguous parts of the batch, each normalized by moments of its own.
        micro_batch_size: samples of a split; in place of `splits`.
        prior_weight: p, the weight of the prediction in the blend; 1 - p is the gain on what was observed. Published:
            0.9 for micro-batches of 2, 0.05 for batches of 128.
        gain: "fixed" keeps `prior_weight`; "learned" starts there and learns one number per layer; "adaptive" weighs
            by the noise of the observed means, 1 - p = 1 / (1 + noise / error of the prediction).
        transition: "analytic" predicts in closed form; "sampled" by one Gaussian map per split (the published code);
            "learned" by a diagonal map of the source's moments.
        state_space: what a normalized tensor is predicted from. "raw" is the posterior before normalization (the
            published code), "normalized" the affine parameters that the layer leaves it with, "observed" the observed
            moments in normalized units.
        gate: whether a prior that is `ratio_limit` times too wide is dropped for its channel or, by the mean ratio, for
            the layer (the published code). A split of one value per channel shows no variance: by channel its prior is
            kept, by layer dropped.
        ratio_limit: of prior variance to observed variance.
        detach_prior: no gradient through the prediction.
        running_splits: running statistics from all splits, or from the first alone (the published code).
        prior: takes the place of the prediction, for control experiments; called as `Prior` says.

    Raises:
        InputError: a choice that does not exist, or a number out of its range.

    Example:
        >>> published = KalmanOptions(
        ...     splits=64,
        ...     prior_weight=0.9,
        ...     gain="fixed",
        ...     transition="sampled",
        ...     state_space="raw",
        ...     gate="layer",
        ...     running_splits="first",
        ... )
        >>> published.count_splits(128)
        64

    Source:
        Wang et al. 2018, arXiv:1802.03133, and its official code. Defaults are ours, by `defaults.py` of the study.
    """

    splits: int = 1
    micro_batch_size: int | None = None
    prior_weight: float = 0.5
    gain: Gain = "learned"
    transition: Transition = "analytic"
    state_space: StateSpace = "normalized"
    gate: Gate = "channel"
    ratio_limit: float = 100.0
    detach_prior: bool = False
    running_splits: RunningSplits = "all"
    prior: Prior | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}; got {getattr(self, name)!r}.")
        _check_count("splits", self.splits)
        if self.micro_batch_size is not None:
            _check_count("micro_batch_size", self.micro_batch_size)
            if self.splits != 1:
                raise InputError(f"splits must be left out beside micro_batch_size; got {self.splits}. Choose one.")
        if not (is_number(self.prior_weight) and 0 <= self.prior_weight <= 1):
            raise InputError(
                f"prior_weight must be between 0 and 1; got {self.prior_weight!r}. The paper has 0.9 and 0.05."
            )
        if self.gain == "learned" and self.prior_weight in (0, 1):
            raise InputError(
                f"prior_weight must be between 0 and 1 and neither, for gain 'learned'; got {self.prior_weight}. "
                "Choose gain 'fixed'."
            )
        if not (is_number(self.ratio_limit) and self.ratio_limit > 0):
            raise InputError(f"ratio_limit must be positive; got {self.ratio_limit!r}. The paper's code has 100.")
        if not isinstance(self.detach_prior, bool):
            raise InputError(
                f"detach_prior must be True or False; got {self.detach_prior!r}. True cuts the prior's gradient."
            )
        if self.prior is not None and not callable(self.prior):
            raise InputError(f"prior must be a function or None; got {self.prior!r}. It is called as `Prior` says.")

    @property
    def is_weightless(self) -> bool:
        """Whether a prior has no part in the blend."""
        return self.gain == "fixed" and self.prior_weight == 0

    def count_splits(self, batch_size: int) -> int:
        """Return into how many splits a batch is cut.

        Args:
            batch_size: samples in the forward pass.

        Returns:
            S.

        Raises:
            InputError: the batch has no such equal parts, or no samples.

        Example:
            >>> KalmanOptions(micro_batch_size=2).count_splits(32)
            16
        """
        if batch_size < 1:
            raise InputError(f"a batch must have 1 sample or more in training; got {batch_size}. Leave empty ones out.")
        if self.micro_batch_size is None and batch_size % self.splits == 0:
            return self.splits
        if self.micro_batch_size is not None and batch_size % self.micro_batch_size == 0:
            return batch_size // self.micro_batch_size
        name = "splits" if self.micro_batch_size is None else "micro_batch_size"
        value = getattr(self, name)
        raise InputError(
            f"{name} must divide the batch; got {value} for a batch of {batch_size}. "
            f"Choose {_nearest(value, batch_size)}, or a batch of {max(1, round(batch_size / value)) * value}."
        )

    def __str__(self) -> str:
        """Return what differs from the defaults, as arguments."""
        default = KalmanOptions()
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value != getattr(default, name))


_CHOICES: dict[str, Any] = {
    "gain": Gain,
    "transition": Transition,
    "state_space": StateSpace,
    "gate": Gate,
    "running_splits": RunningSplits,
}


OPTION_NAMES = tuple(option.name for option in fields(KalmanOptions))
OF_SPLITS = ("splits", "micro_batch_size", "running_splits")  # what a layer lacks that takes each sample for a split


def check_option_names(given: Collection[str], known: Collection[str] = OPTION_NAMES) -> None:
    """Refuse options that a layer does not have.

    Args:
        given: names.
        known: those that it has.

    Raises:
        InputError: another name.
    """
    if unknown := [name for name in given if name not in known]:
        raise InputError(
            f"options must be among {', '.join(known)}; got {', '.join(unknown)}. Leave "
            f"{'it' if len(unknown) == 1 else 'them'} out."
        )


def _check_count(name: str, value: int) -> None:
    if not is_count(value):
        raise InputError(f"{name} must be a positive integer; got {value!r}. Choose 1 or more.")


def _nearest(value: int, batch_size: int) -> str:
    divisors = [divisor for divisor in range(1, batch_size + 1) if batch_size % divisor == 0]
    below, above = ([each for each in divisors if each < value][-1:], [each for each in divisors if each > value][:1])
    return " or ".join(str(each) for each in below + above)
