"""Which claims of the papers hold here? The list of claims joined with what the studies found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STUDIES = Path(__file__).parent.parent / "studies"
OURS = "McCandlish et al. 2018, and this package"
VERDICTS = ("reproduced", "partly", "not", "undecided", "unfinished", "not measured")


@dataclass(frozen=True)
class ListedClaim:
    """A claim of a paper, in our own words.

    Attributes:
        id: of the claim.
        paper: whose it is.
        where: in the paper.
        statement: one or two sentences.
        studies: `folder/id` of the claims of studies that measure it.
        why: why it is not measured, or what of it is not; None where there is nothing to say.
    """

    id: str
    paper: str
    where: str
    statement: str
    studies: tuple[str, ...]
    why: str | None


@dataclass(frozen=True)
class Finding:
    """What a study says: the verdict and its figures."""

    verdict: str
    ours: str


def read_listed(path: Path = STUDIES / "claims.json") -> list[ListedClaim]:
    """Return the claims of all papers, in the order of the page."""
    return [ListedClaim(**{**entry, "studies": tuple(entry["studies"])}) for entry in json.loads(path.read_text())]


def read_findings(studies: Path = STUDIES) -> dict[str, Finding]:
    """Return what the studies found, by `folder/id`."""
    return {
        f"{path.parent.name}/{claim['id']}": Finding(claim["verdict"], claim["ours"])
        for path in sorted(studies.glob("*/results.json"))
        for claim in json.loads(path.read_text())["claims"]
    }


def unlisted(listed: Iterable[ListedClaim], findings: Iterable[str]) -> list[str]:
    """Return the findings that no listed claim names."""
    named = {study for claim in listed for study in claim.studies}
    return sorted(set(findings) - named)


def judge(claim: ListedClaim, findings: Mapping[str, Finding]) -> str:
    """Return the one verdict of all findings.

    "partly" is where they differ and one holds, "unfinished" where some parts were not run, "not measured" where none
    was.
    """
    verdicts = {findings[study].verdict for study in claim.studies if study in findings}
    if not verdicts:
        return "not measured"
    if any(study not in findings for study in claim.studies):
        return "unfinished"
    if len(verdicts) == 1:
        return verdicts.pop()
    return "partly" if verdicts & {"reproduced", "partly"} else "not"


def claims_page(listed: Sequence[ListedClaim], findings: Mapping[str, Finding]) -> str:
    """Return the page: counts per paper, then a table per paper."""
    papers = list(dict.fromkeys(claim.paper for claim in listed))
    verdicts = {claim.id: judge(claim, findings) for claim in listed}
    counts = {paper: Counter(verdicts[claim.id] for claim in listed if claim.paper == paper) for paper in papers}
    lines = [
        "# Claims",
        "",
        "**Question.** Which claims of the papers hold here?",
        "",
        "Written by `make docs` from [studies/claims.json](../studies/claims.json), the claims in our own words, and "
        "each study's `results.json`. A claim that several parts of a study measure is *reproduced* or *not* where all "
        "of them say so, else *partly*. *Undecided* is what the seeds leave open, whichever way the mean points; "
        "*unfinished* is a claim of which some parts are still to be run. What stands on other data or smaller "
        "networks, the study's own page says.",
        "",
        _row(["paper", *VERDICTS]),
        _row(["---"] + ["---:"] * len(VERDICTS)),
        *(_row([paper, *(str(counts[paper][verdict]) for verdict in VERDICTS)]) for paper in papers),
        _row(["all", *(str(sum(counts[paper][verdict] for paper in papers)) for verdict in VERDICTS)]),
    ]
    for paper in papers:
        lines += ["", f"## {paper}", "", _row(["id", "claim", "where", "verdict", "what was found, or why not"])]
        lines += [_row(["---"] * 5)]
        lines += [
            _row([claim.id, claim.statement, claim.where, verdicts[claim.id], _evidence(claim, findings)])
            for claim in listed
            if claim.paper == paper
        ]
    return "\n".join(lines) + "\n"


def _evidence(claim: ListedClaim, findings: Mapping[str, Finding]) -> str:
    found = [(study, findings[study]) for study in claim.studies if study in findings]
    missing = [study.split("/")[1] for study in claim.studies if study not in findings]
    parts = [f"{_link(study)}: {finding.verdict}, {finding.ours}" for study, finding in found]
    parts += [f"not yet run: {', '.join(missing)}"] if missing else []
    parts += [claim.why] if claim.why else []
    return "<br>".join(parts)


def _link(study: str) -> str:
    folder, id_ = study.split("/")
    return f"[{id_}](../studies/{folder}/README.md)"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
