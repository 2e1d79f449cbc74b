"""Which rows and runs of a comparison are shown, and in which order? Picked here, nothing is computed anew."""

import math
from collections.abc import Iterable

from anybatch.report.wording import Record, number


def eval_metric(record: Record) -> str:
    """Return the name of the metric that decides, as rows and curves name it."""
    return f"eval_{record['metric']['name']}"


def mean_of(row: Record, name: str) -> float | None:
    """Return the mean of a metric over the seeds of a row, if any of them has it."""
    return row["metrics"].get(name, {}).get("mean")


def sd_of(row: Record, name: str) -> float | None:
    """Return the standard deviation of a metric over the seeds of a row; there is none for one seed."""
    return row["metrics"].get(name, {}).get("sd")


def recipe_names(record: Record) -> list[str]:
    """Return the recipes in the order in which they were asked for."""
    return list(dict.fromkeys([*record["settings"]["recipes"], *(row["recipe"] for row in record["table"])]))


def batch_sizes(record: Record) -> list[int]:
    """Return the batch sizes in ascending order."""
    return sorted({*record["settings"]["batch_sizes"], *(row["batch_size"] for row in record["table"])})


def has_grid(record: Record) -> bool:
    """Return whether more than one learning rate was tried."""
    return len(record["settings"]["lr_factors"]) > 1


def sorted_rows(record: Record) -> list[Record]:
    """Return the whole table by recipe, batch size and rate."""
    order = {name: place for place, name in enumerate(recipe_names(record))}
    return sorted(record["table"], key=lambda row: (order[row["recipe"]], row["batch_size"], row["lr_factor"]))


def chosen_rows(record: Record) -> list[Record]:
    """Return one row per recipe and batch size: at its best rate; at the untuned one if none is best."""
    chosen: dict[tuple[str, int], Record] = {}
    for row in sorted(sorted_rows(record), key=lambda row: (not row["is_best"], not row["is_untuned"])):
        chosen.setdefault((row["recipe"], row["batch_size"]), row)
    return [row for row in sorted_rows(record) if row is chosen[row["recipe"], row["batch_size"]]]


def untuned_rows(record: Record) -> list[Record]:
    """Return the rows at the untuned rate that are not chosen."""
    chosen = [id(row) for row in chosen_rows(record)]
    return [row for row in sorted_rows(record) if row["is_untuned"] and id(row) not in chosen]


def ranking(record: Record, batch_size: int) -> list[Record]:
    """Return the rows with a result at a batch size, the best first."""
    metric, sign = eval_metric(record), -1 if record["metric"]["higher_is_better"] else 1
    known = [row for row in chosen_rows(record) if row["batch_size"] == batch_size and mean_of(row, metric) is not None]
    return sorted(known, key=lambda row: sign * (mean_of(row, metric) or 0))


def runs_of(record: Record, row: Record, status: str | None = None) -> list[Record]:
    """Return the runs behind a row of the table, all of them or those of one status."""
    same = ("recipe", "batch_size", "lr_factor")
    runs = [run for run in record["runs"] if all(run[key] == row[key] for key in same)]
    return [run for run in runs if status in (None, run["status"])]


def num_planned(record: Record) -> int:
    """Return how many runs were asked for."""
    settings = record["settings"]
    return settings["seeds"] * math.prod(len(settings[name]) for name in ("recipes", "batch_sizes", "lr_factors"))


def outcome(runs: Iterable[Record], planned: int) -> str:
    """Return how runs ended: "2 done, 1 diverged"; those that are missing are unfinished."""
    statuses = [run["status"] for run in runs]
    done, diverged = statuses.count("done"), statuses.count("diverged")
    counts = ((done, "done"), (diverged, "diverged"), (planned - done - diverged, "unfinished"))
    return ", ".join(f"{number(count)} {status}" for count, status in counts if count)


def outcome_of(record: Record, row: Record) -> str:
    """Return how the runs behind a row of the table ended."""
    return outcome(runs_of(record, row), record["settings"]["seeds"])


def sorted_runs(record: Record) -> list[Record]:
    """Return the runs by recipe, batch size, rate and seed."""
    order = {name: place for place, name in enumerate(recipe_names(record))}
    return sorted(
        record["runs"], key=lambda run: (order[run["recipe"]], run["batch_size"], run["lr_factor"], run["seed"])
    )
