"""What does a verification say, in sentences and in a table? The page and the terminal share it."""

from anybatch.report.comparison_tables import TextTable
from anybatch.report.wording import NOTHING, Bounds, Record, bounds_of, in_words, listed, number, sentences, span

WORTH_SAYING = 1.25  # of measured over predicted time


def verification_of(record: Record) -> Record:
    """Return a probe's verification; empty where it has none."""
    return record.get("verification") or {}


def verdict_summary(record: Record) -> str:
    """Return the verdict on the critical batch size, its reason and what was not measured; empty without one."""
    found = verification_of(record)
    if not found:
        return ""
    words = (found.get("verdict") or "undetermined").capitalize()
    reason = found.get("reason") or "no reason was recorded"
    return sentences(f"{words}: {reason}", _law(found), _slowdown(found), _skipped(found))


def target_summary(record: Record) -> str:
    """Return to which loss the runs went, and how they were made."""
    found = verification_of(record)
    target = found.get("target") or {}
    if target.get("loss") is None:
        return ""
    why = f"; {target['reason']}" if target.get("reason") else ""
    return sentences(
        f"All runs go to a loss of {number(target['loss'])} on a fixed draw of training samples{why}",
        f"The runs cost {number(found.get('spent'))} of {number(found.get('budget'))} s",
    )


def sizes_table(record: Record) -> TextTable:
    """Return a row per measured batch size; the recommended one is marked."""
    found = verification_of(record)
    points = measured_points(record)
    marked = {row for row, point in enumerate(points) if point["batch_size"] == found.get("recommended")}
    heads = ("Batch", "Seconds>", "Range>", "Samples>", "Range>", "Rate>", "Runs>")
    return TextTable(heads, [_row(point) for point in points], frozenset(marked))


def measured_points(record: Record) -> list[Record]:
    """Return the measured points that have a place, in ascending order."""
    points = verification_of(record).get("points") or []
    known = [point for point in points if point and point.get("batch_size") is not None]
    return sorted(known, key=lambda point: point["batch_size"])


def _row(point: Record) -> list[str]:
    rate = point.get("lr_scale")
    edge = "" if point.get("is_bracketed") else ", at the edge"
    return [
        number(point["batch_size"]),
        number(point.get("seconds")),
        _range(bounds_of(point, "seconds")),
        number(point.get("samples")),
        _range(bounds_of(point, "samples")),
        NOTHING if rate is None else f"× {number(rate)}{edge}",
        number(point.get("num_runs")),
    ]


def _range(bounds: Bounds) -> str:
    return span(bounds.low, bounds.high)


def _law(found: Record) -> str | None:
    law = found.get("law") or {}
    errors = [abs(error) for error in law.get("residuals") or [] if error is not None]
    if not errors or law.get("critical_batch_size") is None:
        return None
    bounds = Bounds(law["critical_batch_size"], law.get("low"), law.get("high"))
    return (
        f"The law E (1 + B / B_crit) with B_crit {in_words(bounds)} meets the {len(errors)} sizes that it is fitted "
        f"to within {number(100 * max(errors))}%"
    )


def _slowdown(found: Record) -> str | None:
    slowdown = found.get("slowdown")
    if slowdown is None or 1 / WORTH_SAYING < slowdown < WORTH_SAYING:
        return None
    return (
        f"Over all sizes the runs took {number(slowdown)} times the seconds predicted for their samples; other work on "
        "the machine, then or during the probe, does that"
    )


def _skipped(found: Record) -> str | None:
    skipped = [one for one in found.get("skipped") or [] if one and one.get("batch_size") is not None]
    if not skipped:
        return None
    named = [f"{number(one['batch_size'])} ({one.get('reason')})" for one in skipped]
    return f"Not measured: {listed(named)}"
