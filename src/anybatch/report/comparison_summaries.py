"""What does a comparison say in plain sentences? The summaries that its page and the terminal share."""

from collections.abc import Iterator

from anybatch.report.comparison_rows import (
    batch_sizes,
    eval_metric,
    has_grid,
    mean_of,
    num_planned,
    outcome,
    ranking,
    recipe_names,
    runs_of,
    sd_of,
    sorted_rows,
)
from anybatch.report.wording import Record, duration, is_share, listed, number, score, sentences, spread


def headline(record: Record) -> str:
    """Return who is best at the largest batch size, beside the first recipe (or the next best), and the base batch."""
    sizes = [size for size in batch_sizes(record) if ranking(record, size)]
    if not sizes:
        return "No run has finished."
    return sentences(*_missing(record, sizes[-1]), _at_largest(record, sizes[-1]), _at_base(record, sizes))


def interruption(record: Record) -> str:
    """Return the notice that a comparison was interrupted and what it lacks; empty if it was not."""
    if not record["partial"]:
        return ""
    if not record["runs"]:
        return "This comparison was interrupted before its first run."
    finished = sum(run["status"] != "unfinished" for run in record["runs"])
    return (
        f"This comparison was interrupted: {number(num_planned(record) - finished)} of {_runs(record)} did not finish."
    )


def course(record: Record) -> str:
    """Return how many runs there were, how they ended and how long they took; empty if there were none."""
    if not record["runs"]:
        return ""
    seconds = sum(run["seconds"] for run in record["runs"])
    return sentences(
        f"{_runs(record)}: {outcome(record['runs'], num_planned(record))}; {duration(seconds)} in all",
        "Means and standard deviations are over the seeds that finished" if record["settings"]["seeds"] > 1 else None,
        _tuning(record),
    )


def failures(record: Record) -> list[str]:
    """Return a sentence for each recipe, batch size and rate with a run that diverged."""
    rows = [(row, runs) for row in sorted_rows(record) if (runs := runs_of(record, row, "diverged"))]
    return [_failure(record, row, runs) for row, runs in rows]


def _failure(record: Record, row: Record, runs: list[Record]) -> str:
    factor = f" and {number(row['lr_factor'])} × its rate" if has_grid(record) else ""
    share = f"{number(len(runs))} of {number(record['settings']['seeds'])}"
    reason = runs[0]["reason"]
    place = f"{row['recipe']} at batch size {number(row['batch_size'])}{factor}"
    return f"{place}: {share} seeds diverged" + (f": {reason.rstrip('.')}." if reason else ".")


def _missing(record: Record, largest: int) -> Iterator[str]:
    beyond = [number(size) for size in batch_sizes(record) if size > largest]
    if beyond:
        yield f"At batch size {listed(beyond)}, no run has finished"


def _at_largest(record: Record, size: int) -> str:
    best, *others = ranking(record, size)
    first = recipe_names(record)[0]
    reference = _reference(record, size)
    words = f"At batch size {number(size)}, {best['recipe']} reaches {_score(record, best)}"
    if reference is None:
        return f"{words}, {first} {_lack(record, first, size)}"
    beside = reference if best is not reference else next(iter(others), None)
    return f"{words}, {beside['recipe']} {_score(record, beside, best)}" if beside else words


def _lack(record: Record, recipe: str, size: int) -> str:
    """Return why a recipe has no result at a batch size."""
    statuses = [run["status"] for run in record["runs"] if (run["recipe"], run["batch_size"]) == (recipe, size)]
    return "diverged" if "diverged" in statuses else "has no result"


def _at_base(record: Record, sizes: list[int]) -> str | None:
    base = record["settings"]["base_batch_size"]
    size = base if base in sizes else sizes[0]
    if size == sizes[-1]:
        return None
    row, beside = _reference(record, size) or ranking(record, size)[0], ranking(record, sizes[-1])[0]
    place = f"the base batch size of {number(size)}" if size == base else f"batch size {number(size)}"
    return f"At {place}, {row['recipe']} reaches {_score(record, row, beside)}"


def _reference(record: Record, size: int) -> Record | None:
    """Return the first recipe's row at a batch size, if it has a result."""
    first = recipe_names(record)[0]
    return next((row for row in ranking(record, size) if row["recipe"] == first), None)


def _score(record: Record, row: Record, beside: Record | None = None) -> str:
    """Return a mean with its spread; the metric's name and the number of seeds unless the row beside it tells them."""
    name = eval_metric(record)
    count = len(row["metrics"][name]["values"])
    sd = sd_of(row, name)
    evidence = [] if sd is None else [f"sd {spread(sd, name)}"]
    if beside is None or len(beside["metrics"][name]["values"]) != count:
        evidence.append(f"{number(count)} seed{'' if count == 1 else 's'}")
    value = score(mean_of(row, name), name) + ("%" if is_share(name) else "")
    words = value if beside else f"an {name.replace('_', ' ')} of {value}"
    return f"{words} ({', '.join(evidence)})" if evidence else words


def _tuning(record: Record) -> str | None:
    if not has_grid(record):
        return None
    factors = listed([number(factor) for factor in record["settings"]["lr_factors"]])
    return f"Every recipe and batch size was trained at {factors} × its rate and stands at the best of them"


def _runs(record: Record) -> str:
    count = num_planned(record)
    return f"{number(count)} run{'' if count == 1 else 's'}"
