"""What does a safe run say in plain sentences? The summaries that its page and the terminal share."""

from collections.abc import Iterator

from anybatch.report.wording import Record, number, sentences

MEANINGS = {
    "proven": "The guarantee is proven, given the stated constants",
    "heuristic": "The guarantee is heuristic: something in it came from data or is approximate",
    "void": "The guarantee is void: a stated bound was exceeded",
}


def headline(record: Record) -> str:
    """Return how the worst deployed policy did against the first, and what the guarantee is worth."""
    first, worst = record["first_performance"], record["worst_performance"]
    updates = record["iterations"]
    steps = sum(update["step_size"] > 0 for update in updates)
    moved = f"{number(steps)} of {number(len(updates))} updates moved the policy"
    if worst >= first:
        return sentences(f"No deployed policy was worse than the first; {moved}")
    kind = "" if is_exact(record) else " as measured"
    noise = ", which is within noise" if record["worst_is_within_noise"] else ""
    return sentences(
        f"The worst deployed policy stands at {worst:.5g}{kind}, the first at {first:.5g}{noise}; {moved}",
    )


def interruption(record: Record) -> str:
    """Return the notice that a run was ended before its budget; empty if it was not."""
    if not record["partial"]:
        return ""
    asked = record["settings"]["trajectories"]
    return f"This run was ended at {number(record['num_trajectories'])} of {number(asked)} trajectories."


def course(record: Record) -> str:
    """Return from where to where it went, from how many trajectories, and what that may be relied on for."""
    updates = record["iterations"]
    return sentences(
        f"{number(len(updates))} updates from {number(record['num_trajectories'])} trajectories",
        _way(record),
        MEANINGS[record["guarantee"]],
        f"The chance that some update did worse than promised is at most {number(record['failure_probability'])}"
        + (", a union bound over all updates, which says nothing at 1" if record["failure_probability"] == 1 else ""),
    )


def notes(record: Record) -> list[str]:
    """Return what a reader must know of the guarantee."""
    return [sentences(note) for note in record["notes"]]


def is_exact(record: Record) -> bool:
    """Return whether performances are exact, not measured."""
    return record["final_performance"] is not None


def shares_a_scale(record: Record) -> bool:
    """Return whether the exact performance is that of the process that was measured, as far as figures show."""
    updates = record["iterations"]
    pairs = [(u["performance"], u["measured_performance"], u["measured_std_error"]) for u in updates]
    return all(exact is not None and abs(exact - mean) <= 6 * error for exact, mean, error in pairs)


def _way(record: Record) -> str:
    first, last = record["iterations"][0], record["iterations"][-1]
    return " and ".join(_stretches(record, first, last))


def _stretches(record: Record, first: Record, last: Record) -> Iterator[str]:
    low, high = (f"{update['measured_performance']:.5g}" for update in (first, last))
    yield f"the measured return went from {low} to {high}"
    if is_exact(record):
        name = "the performance" if shares_a_scale(record) else "the closed form of the environment"
        yield f"{name} from {record['first_performance']:.5g} to {record['final_performance']:.5g}"
