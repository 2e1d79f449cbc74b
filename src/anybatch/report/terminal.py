"""How does a record read in a terminal? What was measured first; the conclusion last, in sight."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from anybatch.report import (
    comparison_summaries,
    comparison_tables,
    probe_summaries,
    safe_run_summaries,
    safe_run_tables,
    verification_rows,
)
from anybatch.report.wording import Record, memory_size, noise_bounds, number, percent, sentences, span

WORST_NORMS = 3


def print_probe(record: Record, console: Console) -> None:
    """Print a probe's record as tables that read well at 80 columns, piped or not.

    Args:
        record: what `ProbeResult.to_dict()` gives; any section may be null or missing.
        console: where to print.
    """
    noise = sentences(probe_summaries.noise_summary(record), probe_summaries.law_summary(record))
    _print_section(console, "Noise scale", noise, _noise(record))
    _print_section(console, "Throughput", probe_summaries.throughput_summary(record), _throughput(record))
    _print_section(console, "Memory", probe_summaries.memory_summary(record), _memory(record))
    if normalization := probe_summaries.normalization_summary(record):
        _print_section(console, "Normalization", normalization, _normalization(record))
    _print_section(console, "Devices", probe_summaries.devices_summary(record), _devices(record))
    _print_section(console, "Cost", "", _cost(record))
    if record.get("verification"):
        told = sentences(verification_rows.verdict_summary(record), verification_rows.target_summary(record))
        table = verification_rows.sizes_table(record)
        _print_section(console, "Verification", told, _table(table.heads, table.rows))
    _print_section(console, "Warnings", "\n".join(_warnings(record)) or "None.")
    console.print()
    console.print(_recommendation(record))
    for name, code in ((record.get("recommendation") or {}).get("settings") or {}).items():
        _print_section(console, f"Settings for {name}", "")
        console.print(Text((code or "none").rstrip()), soft_wrap=True)


def print_comparison(record: Record, console: Console) -> None:
    """Print a comparison's record as tables that read well at 80 columns, piped or not.

    Args:
        record: what `Comparison.to_dict()` gives, whether all of its runs finished or not.
        console: where to print.
    """
    sections = (
        ("Rates", comparison_tables.short_rates_table(record)),
        ("Distance from the initial weights", comparison_tables.distance_table(record)),
        ("Results", comparison_tables.short_table(record)),
    )
    for title, content in sections:
        if content.rows:
            _print_section(console, title, "", _table(content.heads, content.rows))
    told = [*comparison_summaries.failures(record), *(sentences(warning) for warning in record["warnings"])]
    _print_section(console, "Warnings", "\n".join(told) or "None.")
    console.print()
    notice = comparison_summaries.interruption(record)
    course = comparison_summaries.course(record)
    more = [Text(), Text(course)] if course else []
    console.print(_panel(record, comparison_summaries.headline(record), notice, more))


def print_safe_run(record: Record, console: Console) -> None:
    """Print the record of a safe policy gradient as tables that read well at 80 columns, piped or not.

    Args:
        record: what `anybatch safe-pg --json` writes, of a run with an update or more.
        console: where to print.
    """
    sections = (
        ("Updates", safe_run_tables.updates_table(record)),
        ("Constants", safe_run_tables.constants_table(record)),
        ("Policies", safe_run_tables.policies_table(record)),
    )
    for title, content in sections:
        _print_section(console, title, "", _table(content.heads, content.rows))
    _print_section(console, "Notes", "\n".join(safe_run_summaries.notes(record)) or "None.")
    console.print()
    more = [Text(), Text(safe_run_summaries.course(record))]
    console.print(_panel(record, safe_run_summaries.headline(record), safe_run_summaries.interruption(record), more))


def _recommendation(record: Record) -> Panel:
    rows = probe_summaries.advice_rows(record)
    advice = [Text(), _table(("", "value>", "range>", "why"), rows)] if rows else []
    sentence = verification_rows.verification_of(record).get("sentence")
    measured = [Text(), Text(sentence, style="bold")] if sentence else []
    notice = probe_summaries.interruption(record)
    return _panel(record, probe_summaries.headline(record), notice, [*measured, *advice])


def _panel(record: Record, headline: str, notice: str, more: Sequence[Text | Table]) -> Panel:
    notices = [Text(notice, style="yellow")] if notice else []
    return Panel(
        Group(Text(headline, style="bold"), *notices, *more),
        title=Text(f"anybatch: {record.get('workload') or 'unnamed workload'}"),
        title_align="left",
        padding=(1, 1),
    )


def _noise(record: Record) -> Table:
    noise = record.get("noise_scale") or {}
    modules = {"all modules": noise, **(noise.get("modules") or {})} if noise else {}
    rows = [(name, *_noise_cells(estimate)) for name, estimate in modules.items()]
    return _table(("module", "noise scale>", "interval>"), rows)


def _noise_cells(estimate: Record | None) -> tuple[str, str]:
    value, low, high = noise_bounds(estimate)
    if value is None:
        return "not measured" if low is None else "undetermined", span(low, high)
    return number(value), span(low, high)


def _throughput(record: Record) -> Table:
    knee = (record.get("knee") or {}).get("micro_batch_size")
    rows = [
        (
            number(size := point.get("micro_batch_size")),
            number(point.get("samples_per_second")),
            span(point.get("samples_per_second_low"), point.get("samples_per_second_high")),
            number(point.get("samples_per_second_with_loader")),
            number(point.get("seconds_per_step")),
            "knee" if size is not None and size == knee else "",
        )
        for point in record.get("throughput") or []
    ]
    return _table(("micro-batch>", "samples/s>", "range>", "with loader>", "s/step>", ""), rows)


def _memory(record: Record) -> Table:
    rows = [
        (
            number(trial.get("micro_batch_size")),
            memory_size(trial.get("peak_bytes")),
            "fits" if trial.get("fits") else "does not fit",
        )
        for trial in (record.get("memory") or {}).get("trials") or []
    ]
    return _table(("micro-batch>", "peak memory>", ""), rows)


def _normalization(record: Record) -> Table:
    layers = (record.get("normalization") or {}).get("layers") or {}
    worst = sorted(layers.items(), key=lambda item: -item[1]["mean_error"] - item[1]["log_var_error"])[:WORST_NORMS]
    rows = [(name, number(error["mean_error"]), number(error["log_var_error"])) for name, error in worst]
    return _table(("least exact batch norms", "error of the mean (sd)>", "of the log variance>"), rows)


def _devices(record: Record) -> Table:
    rows = [
        (
            *(number(point.get(name)) for name in ("devices", "batch_size", "micro_batch_size", "speedup")),
            span(point.get("speedup_low"), point.get("speedup_high")),
            percent(point.get("efficiency")),
        )
        for point in record.get("devices") or []
    ]
    return _table(("devices>", "batch>", "micro-batch>", "speed-up>", "range>", "efficiency>"), rows)


def _warnings(record: Record) -> Iterator[str]:
    for warning in record.get("warnings") or []:
        difference = warning.get("relative_difference")
        size = None if difference is None else f"Relative difference: {percent(difference)}"
        yield f"{warning.get('cause')}: {sentences(warning.get('message'), size)}"


def _cost(record: Record) -> Table:
    seconds = record.get("seconds") or {}
    rows = [(name.replace("_", " "), number(value)) for name, value in seconds.items()]
    return _table(("measurement", "seconds>"), rows or [("not recorded", "")])


def _print_section(console: Console, title: str, summary: str, table: Table | None = None) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    if summary:
        console.print(Text(summary))
    if table is not None and table.row_count:
        console.print(table)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return text in columns; a head that ends in ">" stands over a column aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head in heads:
        table.add_column(Text(head.rstrip(">")), justify="right" if head.endswith(">") else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
