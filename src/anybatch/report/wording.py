"""How does a figure of a record read? Numbers, intervals and estimates in words, the same everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]

NOTHING = "\N{EM DASH}"


class Bounds(NamedTuple):
    """An estimate as it may be shown: no value if it is undetermined, no end where it is unbounded."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return self == (None, None, None)


def number(value: float | None) -> str:
    """Return a number with three digits, a whole number in full, and a dash for nothing."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return NOTHING if share is None else f"{number(100 * share)}%"


def memory_size(num_bytes: float | None) -> str:
    """Return a number of bytes in GB of 10^9, or in MB below one GB."""
    if num_bytes is None:
        return NOTHING
    scale, unit = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{number(num_bytes / scale)} {unit}"


def span(low: float | None, high: float | None) -> str:
    """Return an interval, either end of which may be open."""
    if low is None and high is None:
        return NOTHING
    if high is None:
        return f"at least {number(low)}"
    if low is None:
        return f"at most {number(high)}"
    return number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def bounds_of(point: Record, name: str) -> Bounds:
    """Return the quantity `name` of a record with its ends `name_low` and `name_high`."""
    return Bounds(*(point.get(name + end) for end in ("", "_low", "_high")))


def noise_bounds(estimate: Record | None) -> Bounds:
    """Return what an estimate of the noise scale says; an undetermined one has a lower bound only."""
    estimate = estimate or {}
    value, low, high = (estimate.get(name) for name in ("value", "low", "high"))
    if value is None or estimate.get("verdict") == "undetermined":
        at_least = estimate.get("at_least")
        return Bounds(None, low if at_least is None else at_least, None)
    return Bounds(value, low, high)


def in_words(bounds: Bounds, unit: str = "") -> str:
    """Return an estimate: "28.1 (24 to 33)", "at least 24.9" or "not measured"."""
    value, low, high = bounds
    unit = f" {unit}" if unit else ""
    if bounds.is_empty:
        return "not measured"
    if value is None:
        return span(low, high) + unit
    return number(value) + unit + ("" if low is None and high is None else f" ({span(low, high)})")


def sentences(*parts: str | None) -> str:
    """Return those sentences that there are, joined, each with a capital and a full stop."""
    present = [part.strip() for part in parts if part and part.strip()]
    return " ".join(part[0].upper() + part[1:] + ("" if part[-1] in ".!?" else ".") for part in present)


def compact(count: float | None) -> str:
    """Return a count with three digits, in thousands (k), millions (M) or billions (G) from 10,000 on."""
    if count is None or count < 1e4:
        return number(count)
    scale, letter = next(pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= pair[0])
    return number(count / scale) + letter


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds is None:
        return NOTHING
    scale, unit = next((pair for pair in ((3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{number(seconds / scale)} {unit}"


def is_share(name: str) -> bool:
    """Return whether a metric lies between 0 and 1 and is read in percent."""
    return name.endswith("accuracy")


def metric_label(name: str) -> str:
    """Return the head of a metric's column or axis, with its unit: "Eval accuracy (%)"."""
    return name.replace("_", " ").capitalize() + (" (%)" if is_share(name) else "")


def score(value: float | None, name: str) -> str:
    """Return the value of a metric under a head that names its unit."""
    if value is None:
        return NOTHING
    return f"{100 * value:.2f}" if is_share(name) else f"{value:#.3g}".rstrip(".")


def spread(sd: float, name: str) -> str:
    """Return the standard deviation of a metric, in the metric's unit."""
    return f"{100 * sd:.2f}" if is_share(name) else f"{sd:.2g}"


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
