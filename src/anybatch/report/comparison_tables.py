"""Which tables does a comparison have? Rows of text, as its page and the terminal show them."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from anybatch.report.comparison_rows import (
    batch_sizes,
    chosen_rows,
    eval_metric,
    has_grid,
    mean_of,
    num_planned,
    outcome_of,
    ranking,
    runs_of,
    sd_of,
    sorted_rows,
    sorted_runs,
    untuned_rows,
)
from anybatch.report.wording import (
    NOTHING,
    Record,
    compact,
    duration,
    listed,
    metric_label,
    number,
    score,
    span,
    spread,
)


class TextTable(NamedTuple):
    """Heads and rows of text; a column whose head ends in ">" is aligned to the right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()


Column = tuple[str, Callable[[Record], str]]


def results_table(record: Record) -> TextTable:
    """Return a row per recipe and batch size, and per untuned rate where another was better; the best are marked."""
    chosen = [id(row) for row in [*chosen_rows(record), *untuned_rows(record)]]
    rows = [row for row in sorted_rows(record) if id(row) in chosen]
    return _table(_result_columns(record), rows, _leaders(record))


def rates_table(record: Record) -> TextTable:
    """Return a row for every rate that was tried."""
    return _table(_result_columns(record), sorted_rows(record), _leaders(record))


def short_table(record: Record) -> TextTable:
    """Return the columns of the results that fit into 80 characters, at the best rate."""
    metric, train = eval_metric(record), f"train_{record['metric']['name']}"
    columns = [
        *_combination(),
        (_head(metric), lambda row: _mean_sd(record, row, metric)),
        (_head(train), lambda row: score(mean_of(row, train), train)),
        ("Updates>", lambda row: compact(row["updates"])),
        ("Samples>", lambda row: compact(row["samples"])),
        ("Time>", lambda row: duration(row["seconds"])),
    ]
    return _table(columns, chosen_rows(record))


def short_rates_table(record: Record) -> TextTable:
    """Return the metric at every rate that was tried; nothing if it was only one."""
    metric = eval_metric(record)
    columns = [*_combination(), (_head(metric), lambda row: _mean_sd(record, row, metric)), ("Factor on rate", _factor)]
    return _table(columns, sorted_rows(record) if has_grid(record) else [])


def runs_table(record: Record) -> TextTable:
    """Return every run, with how it ended."""
    names = _metric_names(record)
    columns: list[Column] = [
        *_combination(),
        *([("Factor on rate", _factor)] if has_grid(record) else []),
        ("Seed>", lambda run: number(run["seed"])),
        ("Outcome", lambda run: f"{run['status']}: {run['reason']}" if run["reason"] else run["status"]),
        *((_head(name), lambda run, name=name: score(run["metrics"].get(name), name)) for name in names),
        ("Updates>", lambda run: number(run["updates"])),
        ("Samples>", lambda run: number(run["samples"])),
        ("Time>", lambda run: duration(run["seconds"])),
    ]
    return _table(columns, sorted_runs(record))


def applied_table(record: Record) -> TextTable:
    """Return what each recipe set at each batch size, as its first run was set."""
    firsts = [runs[0] for row in chosen_rows(record) if (runs := runs_of(record, row))]
    columns = [
        *_combination(),
        ("Rate>", lambda run: number(run["settings"]["lr"])),
        ("× base rate>", lambda run: number(run["settings"]["lr_scale"])),
        ("Epochs>", lambda run: number(run["settings"]["epochs"])),
        ("Drops after epochs>", lambda run: listed([number(e) for e in run["settings"]["milestones"]]) or NOTHING),
        ("Warm-up epochs>", lambda run: number(run["settings"]["warmup_epochs"])),
        ("Ghost batch>", lambda run: number(run["settings"]["ghost_batch_size"])),
        ("Clip norm>", lambda run: number(run["settings"]["clip_norm"])),
        ("Noise variance>", lambda run: number(run["settings"]["noise_variance"])),
    ]
    return _table(columns, firsts)


def distance_table(record: Record) -> TextTable:
    """Return the laws fitted to distance over updates, a mean over the runs that have one, and which law is better."""
    fitted = {id(row): _laws(record, row) for row in chosen_rows(record)}
    columns = [
        *_combination(),
        ("Window>", lambda row: _window(fitted[id(row)])),
        ("Slope per ln t>", lambda row: f"{_mean(fitted[id(row)], 'slope'):#.3g}"),
        ("R² log>", lambda row: f"{_mean(fitted[id(row)], 'r2_log'):.4f}"),
        ("R² power>", lambda row: f"{_mean(fitted[id(row)], 'r2_power'):.4f}"),
        ("Better", lambda row: _verdicts(fitted[id(row)])),
    ]
    return _table(columns, [row for row in chosen_rows(record) if fitted[id(row)]])


def _table(columns: Sequence[Column], rows: Sequence[Record], marked: Iterable[int] = ()) -> TextTable:
    ids = set(marked)
    cells = [tuple(write(row) for _, write in columns) for row in rows]
    return TextTable([head for head, _ in columns], cells, frozenset(i for i, row in enumerate(rows) if id(row) in ids))


def _combination() -> list[Column]:
    return [("Recipe", lambda row: row["recipe"]), ("Batch>", lambda row: number(row["batch_size"]))]


def _factor(row: Record) -> str:
    notes = [word for word in ("untuned", "best") if row.get(f"is_{word}")]
    return ", ".join([f"× {number(row['lr_factor'])}", *notes])


def _result_columns(record: Record) -> list[Column]:
    metric, train = eval_metric(record), f"train_{record['metric']['name']}"
    tuning: list[Column] = [("Factor on rate", _factor)] if has_grid(record) else []
    loss: list[Column] = [("Eval loss>", lambda row: score(mean_of(row, "eval_loss"), "eval_loss"))]
    num_done = sum(run["status"] == "done" for run in record["runs"])
    seeds: list[Column] = [("Seeds", lambda row: outcome_of(record, row))]
    return [
        *_combination(),
        (_head(metric), lambda row: _mean_sd(record, row, metric)),
        (_head(train), lambda row: score(mean_of(row, train), train)),
        ("Gap>", lambda row: _gap(record, row)),
        *(loss if metric != "eval_loss" else []),
        ("Updates>", lambda row: number(row["updates"])),
        ("Samples>", lambda row: compact(row["samples"])),
        ("Time>", lambda row: duration(row["seconds"])),
        ("Rate>", lambda row: number(row["lr"])),
        *tuning,
        *(seeds if num_done < num_planned(record) else []),
    ]


def _head(name: str) -> str:
    return f"{metric_label(name)}>"


def _mean_sd(record: Record, row: Record, name: str) -> str:
    mean, sd = mean_of(row, name), sd_of(row, name)
    if mean is None:
        return "diverged" if runs_of(record, row, "diverged") else "unfinished"
    return score(mean, name) + ("" if sd is None else f" ± {spread(sd, name)}")


def _gap(record: Record, row: Record) -> str:
    """Return by how much training looks better than evaluation."""
    metric, sign = eval_metric(record), 1 if record["metric"]["higher_is_better"] else -1
    held_out, trained = mean_of(row, metric), mean_of(row, f"train_{record['metric']['name']}")
    return NOTHING if held_out is None or trained is None else score(sign * (trained - held_out), metric)


def _leaders(record: Record) -> list[int]:
    return [id(row) for size in batch_sizes(record) for row in ranking(record, size)[:1]]


def _metric_names(record: Record) -> list[str]:
    return list(dict.fromkeys([eval_metric(record), *(name for run in record["runs"] for name in run["metrics"])]))


def _laws(record: Record, row: Record) -> list[Record]:
    return [run["distance_law"] for run in runs_of(record, row) if run["distance_law"]]


def _mean(laws: Sequence[Record], name: str) -> float:
    return fmean(law[name] for law in laws)


def _window(laws: Sequence[Record]) -> str:
    return span(min(law["first_update"] for law in laws), max(law["last_update"] for law in laws))


def _verdicts(laws: Sequence[Record]) -> str:
    found = [law["better"] for law in laws]
    return ", ".join(f"{found.count(word)} {word}" for word in ("log", "power", "undecided") if word in found)
