"""Which tables does a safe run have? Rows of text, as its page and the terminal show them."""

from anybatch.report.comparison_tables import TextTable
from anybatch.report.wording import NOTHING, Record, compact, number

MOST_ROWS = 12


def updates_table(record: Record) -> TextTable:
    """Return updates from the first to the last, evenly spaced, as few as can be read."""
    heads = ("Update>", "Batch>", "Return>", "Gradient>", "Error>", "Step>", "Gain at least>", "Safe")
    updates = record["iterations"]
    places = sorted({round(place * (len(updates) - 1) / (MOST_ROWS - 1)) for place in range(MOST_ROWS)})
    return TextTable(heads, [_row(updates[place]) for place in places])


def policies_table(record: Record) -> TextTable:
    """Return the first, the worst and the last policy."""
    last = record["final_performance"]
    updates = len(record["iterations"])
    rows = [
        ("first", "1", _performance(record["first_performance"]), NOTHING),
        (
            "worst deployed",
            number(record["worst_iteration"]),
            _performance(record["worst_performance"]),
            _parameters(record["worst_parameters"]),
        ),
        ("last", number(updates + 1), _performance(last), _parameters(record["parameters"])),
    ]
    kind = "measured" if last is None else "exact"
    return TextTable(("Policy", "Before update>", f"Performance ({kind})>", "Parameters"), rows)


def constants_table(record: Record) -> TextTable:
    """Return the constants of the task, what was seen, and which of them came from data."""
    constants = record["constants"]
    rows = [
        (name, _constant(constants[key]), _seen(constants, key), _origin(constants, key))
        for name, key in (
            ("R, of rewards", "reward_bound"),
            ("M, of features", "feature_bound"),
            ("|A|, of actions", "action_volume"),
            ("discount", "discount"),
            ("horizon", "horizon"),
        )
    ]
    return TextTable(("Constant", "Value>", "Largest seen>", "From"), rows)


def _row(update: Record) -> tuple[str, ...]:
    gradient = update["gradient_norm"] if update["coordinate"] is None else update["max_gradient"]
    return (
        number(update["iteration"]),
        compact(update["batch_size"]),
        f"{update['measured_performance']:.5g}",
        _constant(gradient),
        _constant(update["error"]),
        f"{update['step_size']:.3g}",
        _constant(update["guaranteed_gain"]),
        "yes" if update["is_safe"] else "no",
    )


def _performance(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6g}"


def _parameters(values: list[float]) -> str:
    shown = ", ".join(f"{value:.5g}" for value in values[:8])
    return f"{shown}, and {number(len(values) - 8)} more" if len(values) > 8 else shown


def _constant(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _seen(constants: Record, key: str) -> str:
    return _constant({"reward_bound": constants["max_abs_reward"], "feature_bound": constants["max_feature"]}.get(key))


def _origin(constants: Record, key: str) -> str:
    if constants[key] is None:
        return NOTHING
    return "estimated from data" if key in constants["estimated"] else "stated"
