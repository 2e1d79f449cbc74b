"""What does the package do for whom, and what was measured here? README's first table, from the studies' results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims_page import OURS, STUDIES, VERDICTS, Finding, ListedClaim, judge

NOT_YET = "not yet reproduced by a study here"
NOTHING = "no claim of its study failed"
UNKNOWN = "not known yet"
MISSED, OPEN = ("not",), ("partly", "undecided")
FULL = "full"  # what a study commits, if it says nothing else


@dataclass(frozen=True)
class Row:
    """What somebody has, what helps, and the study that tells.

    Attributes:
        have: the situation.
        use: the command or the name.
        study: its folder.
        claims: of the study, the first one found with figures is shown.
        beside: a claim that belongs to it, shown too; "" for none.
        limit: from all that the study found to a sentence on where it ends, shown where no claim failed.
    """

    have: str
    use: str
    study: str
    claims: Sequence[str]
    beside: str = ""
    limit: Callable[[Mapping[str, Any]], str] | None = None


def price_of_safety(results: Mapping[str, Any]) -> str:
    """Say what the proven guarantee of safe policy gradients costs."""
    price = next(row["over_true_variance"] for row in results["price"] if row["curve"] == "chebyshev_gpomdp_005")
    return (
        f"it is dear: {price:.0f} times the trajectories that the true variance would need (G(PO)MDP, Chebyshev, "
        "delta 0.05)"
    )


ROWS = (
    Row("a training whose batch size was a guess", "[`anybatch probe W --verify`](docs/probe.md)",
        "anybatch_2026_probe_regret",
        ("regret-digits",)),
    Row("a batch that must be large", "[regimes](docs/regime.md), [`anybatch compare`](docs/compare.md)",
        "hoffer_2017_train_longer",
        ("ra-1024", "ra-4096", "gap-4096")),
    Row("one or two samples per device", '[`nn.convert(model, "kalman")`](docs/convert.md)',
        "wang_2018_kalman_normalization",
        ("untuned-kn-bn",), "micro-kn-bn"),
    Row("a detector at a huge batch", "[`anybatch.AGVM`](docs/agvm.md)",
        "xue_2022_agvm",
        ("agvm-seg-256",), "predicted-instances"),
    Row("a policy that must not get worse", "[`anybatch safe-pg`](docs/safe_policy_gradients.md)",
        "papini_2017_safe_policy_gradients",
        ("promise-reinforce_without_baseline_chebyshev",), limit=price_of_safety),
)  # fmt: skip


def read_results(studies: Path = STUDIES) -> dict[str, dict[str, Any]]:
    """Return all studies' `results.json`, by study."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(studies.glob("*/results.json"))}


def story_table(rows: Iterable[Row], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table: what you have, what to use, what was measured, where it fails.

    Args:
        rows: in order.
        found: study -> its results.

    Returns:
        Markdown.
    """
    lines = ["| you have | use | measured here | where it fails |", "|---|---|---|---|"]
    for row in rows:
        results = found.get(row.study, {})
        cells = (row.have, row.use, measured(row, results), fails(row, results))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def measured(row: Row, results: Mapping[str, Any]) -> str:
    """Return the figures of the row's first claim that was run, else of its study's first."""
    claims = results.get("claims")
    if not claims:
        return NOT_YET
    by_id = {claim["id"]: claim for claim in claims}
    shown = [next((by_id[id_] for id_ in row.claims if id_ in by_id), claims[0])]
    shown += [by_id[row.beside]] if row.beside in by_id else []
    return "; ".join(_figures(row, claim, results) for claim in shown)


def fails(row: Row, results: Mapping[str, Any]) -> str:
    """Return the figures of the first claim that did not hold, and how many others did not.

    Where all hold it is the row's limit, or what holds in part.
    """
    claims = results.get("claims")
    if not claims:
        return UNKNOWN
    missed, open_ = ([claim for claim in claims if claim["verdict"] in verdicts] for verdicts in (MISSED, OPEN))
    if not missed and row.limit:
        return row.limit(results)
    missed = missed or open_
    if not missed:
        return NOTHING
    others = f", and {len(missed) - 1} more" if len(missed) > 1 else ""
    return _figures(row, missed[0], results) + others


def _figures(row: Row, claim: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    seeds = f"{claim['seeds']} seed{'s' if claim['seeds'] > 1 else ''}"
    size = results.get("size", FULL)
    alone = "" if size == FULL else f", `run.py --{size}` alone"
    verdict = {"not": "not reproduced"}.get(claim["verdict"], claim["verdict"])
    link = f"[{verdict}](studies/{row.study}/README.md)"
    return f"{link}: {claim['statement']}: {claim['ours']} ({seeds}{alone})"


def claims_count(listed: Sequence[ListedClaim], findings: Mapping[str, Finding]) -> str:
    """Return how many claims of the papers hold, and how many of our own, as part of a sentence."""
    ours = [claim for claim in listed if claim.paper == OURS]
    papers = [claim for claim in listed if claim.paper != OURS]
    groups = ((papers, "of the papers it stands on"), (ours, "of our own"))
    return "; ".join(_counted(claims, whose, findings) for claims, whose in groups if claims)


def _counted(claims: Sequence[ListedClaim], whose: str, findings: Mapping[str, Finding]) -> str:
    counts = Counter(judge(claim, findings) for claim in claims)
    return f"{len(claims)} claims {whose}: " + ", ".join(f"{counts[each]} {each}" for each in VERDICTS if counts[each])
