"""What does a probe say in plain sentences? The summaries that its page and the terminal share."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from anybatch.report.wording import (
    Bounds,
    Record,
    bounds_of,
    in_words,
    noise_bounds,
    number,
    percent,
    sentences,
    span,
)

ADVICE = {
    "batch_size": "Batch size",
    "micro_batch_size": "Micro-batch size",
    "accumulation_steps": "Accumulation steps",
    "lr_scale": "Learning-rate factor",
    "time_of_largest": "Time at the largest that fits",
    "samples_of_largest": "Samples at the largest that fits",
}
SECTIONS = {
    "memory": "memory",
    "throughput": "throughput",
    "noise_scale": "noise scale",
    "curve": "predicted time",
    "devices": "devices",
    "recommendation": "recommendation",
}


class AdviceRow(NamedTuple):
    """One line of the recommendation, in words."""

    label: str
    value: str
    uncertainty: str
    reason: str


def headline(record: Record) -> str:
    """Return the recommendation in one sentence."""
    advice = record.get("recommendation") or {}
    if advice.get("batch_size") is None:
        return "This run gives no recommendation."
    use = f"Use a batch size of {number(advice['batch_size'])}"
    return ", ".join([use, *_split(record, advice), *_rate(advice)]) + "."


def _split(record: Record, advice: Record) -> Iterator[str]:
    micro_batch_size, steps = advice.get("micro_batch_size"), advice.get("accumulation_steps")
    world_size = (record.get("environment") or {}).get("world_size") or 1
    ranks = f" on each of {number(world_size)} devices" if world_size > 1 else ""
    if micro_batch_size is not None and steps is not None:
        many = f"{number(steps)} micro-batches" if steps > 1 else "one micro-batch"
        yield f"in {many} of {number(micro_batch_size)}{ranks}"


def _rate(advice: Record) -> Iterator[str]:
    lr_scale = advice.get("lr_scale")
    if lr_scale is not None:
        yield ("at the base learning rate" if lr_scale == 1 else f"at {number(lr_scale)} × the base learning rate")


def advice_rows(record: Record) -> list[AdviceRow]:
    """Return the recommendation line by line: what is to be set, and whatever else has a reason."""
    advice = record.get("recommendation") or {}
    reasons = advice.get("reasons") or {}
    names = [name for name in {**ADVICE, **reasons} if name in advice or name in reasons]
    return [_advice_row(advice, name, reasons.get(name)) for name in names]


def _advice_row(advice: Record, name: str, reason: str | None) -> AdviceRow:
    bounds = bounds_of(advice, name)
    if isinstance(bounds.value, Mapping):
        bounds = Bounds(*(bounds.value.get(key) for key in Bounds._fields))
    label = ADVICE.get(name) or name.replace("_", " ").capitalize()
    if name == "lr_scale" and bounds.value is not None and advice.get("lr_rule"):
        label += f" ({advice['lr_rule']} rule)"
    return AdviceRow(label, number(bounds.value), span(bounds.low, bounds.high), sentences(reason))


def interruption(record: Record) -> str:
    """Return the notice that a run was interrupted and what it lacks; empty if it was not."""
    if not record.get("partial"):
        return ""
    missing = ", ".join(words for name, words in SECTIONS.items() if not record.get(name))
    return f"This run was interrupted. Missing: {missing or 'none of the sections'}."


def noise_summary(record: Record) -> str:
    """Return how large the noise scale is, how sure that is and what it refers to."""
    noise = record.get("noise_scale")
    if not noise:
        return "The noise scale was not measured in this run."
    bounds = noise_bounds(noise)
    confidence, target = noise.get("confidence"), noise.get("target")
    sure = "" if confidence is None or bounds.is_empty else f", with {percent(confidence)} confidence"
    return sentences(
        f"The noise scale is {in_words(bounds, 'samples')}{sure}",
        f"It refers to the {target.replace('_', ' ')}" if target else None,
        noise.get("reason"),
    )


def law_summary(record: Record) -> str:
    """Return which batch size trades time for samples evenly; empty if that is not known."""
    law = record.get("law")
    if not law:
        return ""
    bounds = Bounds(law.get("critical_batch_size"), law.get("low"), law.get("high"))
    return sentences(f"The critical batch size is {in_words(bounds, 'samples')}", law.get("reason"))


def throughput_summary(record: Record) -> str:
    """Return where the knee of the throughput lies, and why."""
    if not record.get("throughput"):
        return "Throughput was not measured in this run."
    knee = record.get("knee") or {}
    missing = "No knee was found" if knee.get("micro_batch_size") is None else None
    return sentences(missing, knee.get("reason"))


def memory_summary(record: Record) -> str:
    """Return which micro-batch is the largest that fits, and what limits it."""
    memory = record.get("memory")
    if not memory:
        return "Memory was not measured in this run."
    largest = memory.get("max_micro_batch_size")
    missing = "The largest micro-batch that fits is not known" if largest is None else None
    return sentences(missing, memory.get("reason"))


def normalization_summary(record: Record) -> str:
    """Return how wrong batch norm's statistics are at the recommended micro-batch; empty where there are none."""
    found = record.get("normalization")
    return sentences(found.get("reason")) if found else ""


def devices_summary(record: Record) -> str:
    """Return from where on more devices pay little, and why."""
    if not record.get("devices"):
        return "No prediction was made for other numbers of devices."
    last = record.get("diminishing_devices") or {}
    count = last.get("devices")
    return sentences(None if count is None else f"Returns diminish at {number(count)} devices", last.get("reason"))
