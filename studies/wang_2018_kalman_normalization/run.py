"""Does a prediction from the layers before make batch norm work on two samples? Wang et al. 2018, Kalman normalization.

    python studies/wang_2018_kalman_normalization/run.py --smoke   # a minute: every part, two updates
    python studies/wang_2018_kalman_normalization/run.py --quick   # 20 minutes: four methods at micro-batches of 2
    python studies/wang_2018_kalman_normalization/run.py --full    # the runs behind results.json

Runs are kept under --runs and go on after a kill; the same command in two terminals shares the work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import figures
import page
from cells import (
    FACTORS,
    Bench,
    Cell,
    Key,
    Part,
    choose_rates,
    estimate_seconds,
    final_jobs,
    jobs_beyond,
    join_cells,
    seed_by_seed,
)
from cells import tuning_jobs as make_tuning_jobs
from command import is_own_record, keep_finished, read_arguments
from evidence import Found, above, appears_at_drop, blend_is_closer, combined, sooner
from examination import examine
from images import DATASETS, NUM_TRAINED, final_workload, tuning_workload
from judging import Expected, judge
from parts import CURVE, FULL, QUICK

from anybatch import AnybatchError
from anybatch.train.jobs import Job
from anybatch.train.plain import plain, write_text

HERE = Path(__file__).parent


def micro(name: str) -> Key:
    """Return the cell of a recipe at micro-batches of 2."""
    return "micro", name


CURVES, RANKING, ABSTRACT, HERE_ASKED = "training curves", "authors' note", "abstract", "control"
TENTH = "7.65 < 8.5 < 8.7 % error, CIFAR-10, ResNet-32"
EXPECTED = (
    Expected("micro-kn-bn", "a rate tuned for each, normalized by 2 samples, KN > BN", CURVES, TENTH,
             above(micro("KN"), micro("BN"))),
    Expected("micro-kn-gn", "micro-batches of 2: KN > GN", CURVES, TENTH, above(micro("KN"), micro("GN"))),
    Expected("micro-kn-gn-8", "micro-batches of 2: KN > GN of 8 groups", CURVES, TENTH,
             above(micro("KN"), micro("GN of 8 groups"))),
    Expected("micro-published-bn", "the same of KN as published: KN > BN", CURVES, TENTH,
             above(micro("KN published"), micro("BN"))),
    Expected("micro-published-gn", "the same of KN as published: KN > GN", CURVES, TENTH,
             above(micro("KN published"), micro("GN"))),
    Expected("half-of-gap", "KN at 2 closes half of the gap between BN at 2 and BN at 128", "this package", "none",
             combined({micro("KN"): 1.0, micro("BN"): -0.5, micro("BN at 128"): -0.5})),
    Expected("untuned-kn-bn", "at the published rate, normalized by 2 samples, KN > BN", CURVES, TENTH,
             above(("untuned", "KN"), ("untuned", "BN"))),
    Expected("untuned-half", "at the published rate KN at 2 closes half of the gap between BN at 2 and BN at 128",
             "this package", "none",
             combined({("untuned", "KN"): 1.0, ("untuned", "BN"): -0.5, micro("BN at 128"): -0.5})),
    Expected("as-accurate", "KN at 2 >= BN at 128 - 0.5: as accurate with a batch 64 times smaller", "first abstract",
             "comparable", above(micro("KN"), micro("BN at 128"), 0.5)),
    Expected("rival-renorm", "micro-batches of 2: KN > BatchRenorm", "ImageNet, batch 4", "76.1 > 73.7",
             above(micro("KN"), micro("BatchRenorm"))),
    Expected("rival-mabn", "micro-batches of 2: KN > MABN", HERE_ASKED, "later work",
             above(micro("KN"), micro("MABN"))),
    Expected("prior-constant", "KN > the same with a constant prior", HERE_ASKED, "none",
             above(micro("KN"), ("priors", "prior: constant"))),
    Expected("prior-shuffled", "KN > the same with the prediction of other channels", HERE_ASKED, "none",
             above(micro("KN"), ("priors", "prior: shuffled"))),
    Expected("prior-moving", "KN > the same with a moving average of the layer's own moments", HERE_ASKED, "none",
             above(micro("KN"), ("priors", "prior: moving average"))),
    Expected("prior-oracle", "KN >= the same with the moments of the whole batch - 0.5", HERE_ASKED, "none",
             above(micro("KN"), ("priors", "prior: oracle"), 0.5)),
    Expected("drop", "the lead of KN over BN at 2 grows at the first drop of the rate", CURVES, "appears there",
             appears_at_drop(micro("KN"), micro("BN"))),
    Expected("large-kn", "batch 128: KN with weight 0.05 > BN", CURVES, "5.85 < 6.15 % error, ResNet-110",
             above(("large", "KN at 128"), micro("BN at 128"))),
    Expected("large-published", "batch 128: KN as published with weight 0.05 > BN", CURVES,
             "5.85 < 6.15 % error, ResNet-110", above(("large", "KN published at 128"), micro("BN at 128"))),
    Expected("large-renorm", "batch 128: BN > BatchRenorm, as other variants fall behind", ABSTRACT, "no figure",
             above(micro("BN at 128"), ("large", "BatchRenorm at 128"))),
    Expected("large-gn", "batch 128: BN > GN", RANKING, "BN (large) > GN", above(micro("BN at 128"), micro("GN"))),
    Expected("faster-micro", "KN reaches the final accuracy of BN at 2 in fewer epochs", ABSTRACT, "speeds up",
             sooner(micro("KN"), micro("BN"))),
    Expected("faster-large", "KN with weight 0.05 reaches that of BN at 128 in fewer epochs", ABSTRACT, "speeds up",
             sooner(("large", "KN at 128"), micro("BN at 128"))),
    Expected("kn-keeps", "KN at 2 >= KN at 128 - 0.5: it degrades little", RANKING, "equal",
             above(micro("KN"), ("large", "KN at 128"), 0.5)),
    Expected("bn-falls", "BN at 128 > BN at 2: it degrades", RANKING, "a lot", above(micro("BN at 128"), micro("BN"))),
    Expected("falls-less", "from 32 samples to 2 KN loses less than BN", RANKING, "no figure",
             combined({("sizes", "BN at 32"): 1.0, micro("BN"): -1.0, ("sizes", "KN at 32"): -1.0, micro("KN"): 1.0})),
    Expected("real-kn-bn", "training with batches of 4: KN > BN", ABSTRACT, "76.1 > 72.7, ImageNet",
             above(("real", "KN, real"), ("real", "BN, real"))),
    Expected("real-kn-gn", "training with batches of 4: KN > GN", ABSTRACT, "no figure",
             above(("real", "KN, real"), ("real", "GN, real"))),
    Expected("groups", "GKN > GN", ABSTRACT, "extends to other norms", above(("groups", "GKN"), micro("GN"))),
    Expected("moments-mean", "the blend is nearer to the whole batch's mean than the micro-batch's own", ABSTRACT,
             "no figure", blend_is_closer("KN, trained", "mean")),
    Expected("moments-var", "the same of the variance", ABSTRACT, "no figure",
             blend_is_closer("KN, trained", "var")),
    Expected("detached", "KN > the same without the gradient through the prediction", HERE_ASKED, "none",
             above(micro("KN"), ("reasons", "KN, prior detached"))),
    Expected("weight-fixed", "KN > the same with the weight of the prediction fixed at 0.5", HERE_ASKED, "none",
             above(micro("KN"), ("reasons", "KN, weight fixed"))),
    Expected("prior-alone", "KN > the same with the prediction alone, where there is one", HERE_ASKED, "none",
             above(micro("KN"), ("reasons", "KN, prior alone"))),
    Expected("micro-gn-bn", "micro-batches of 2: GN > BN", CURVES, TENTH, above(micro("GN"), micro("BN"))),
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    parts: dict[str, Part]
    num_trained: int = NUM_TRAINED
    factors: Sequence[float] = FACTORS
    max_eval_samples: int = 10_000
    num_batches: int = 8
    num_forgetting: int = 60

    def rate_owners(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Return the part whose rates others take, where one of them is asked for."""
        owner = FULL["micro"] if self.num_trained == NUM_TRAINED else _smoke(FULL["micro"])
        return {"micro": owner} if any(part.rates_from for part in parts.values()) else {}


def _smoke(part: Part) -> Part:
    """Return a part that takes seconds."""
    batch_size = min(part.batch_size, 32)
    return replace(part, seeds=1, batch_size=batch_size, epochs=2 * batch_size / 256, num_evaluations=2)


def _scale_of(arguments: argparse.Namespace) -> Scale:
    """Return what was asked for."""
    if arguments.size == "quick":
        return Scale(QUICK)
    parts = {name: FULL[name] for name in arguments.only or FULL}
    if arguments.size == "full":
        return Scale(parts)
    return Scale({name: _smoke(part) for name, part in parts.items()}, 256, (1.0,), 64, 1, 2)


def find(arguments: argparse.Namespace, scale: Scale) -> tuple[Found, list[str]]:
    """Tune and train what is missing, the decision first; return what is there, and the parts that are not whole."""
    benches = {
        name: Bench(make(arguments.dataset, arguments.data_root, count), arguments.runs, scale.max_eval_samples)
        for name, make, count in (
            ("tuning", tuning_workload, scale.num_trained), ("final", final_workload, scale.num_trained),
        )
    }  # fmt: skip
    tuning, final = benches["tuning"], benches["final"]
    stages = [
        {name: part for name, part in scale.parts.items() if part.is_decision is first} for first in (True, False)
    ]
    if arguments.size == "full" and not arguments.finished_only:
        _tell_cost(tuning, final, scale)
    rates: list[dict[str, Any]] = []
    cells: dict[Key, Cell] = {}
    for parts in stages:
        tried = make_tuning_jobs(tuning, parts | scale.rate_owners(parts), scale.factors)
        tried = {key: jobs for key, jobs in tried.items() if key not in {(r["recipe"], r["batch_size"]) for r in rates}}
        rates += _choose(tuning, parts | scale.rate_owners(parts), tried, finished_only=arguments.finished_only)
        jobs = final_jobs(final, parts, rates)
        cells |= join_cells(jobs, final.do(seed_by_seed(jobs), finished_only=arguments.finished_only))
    whole = {key for key, cell in cells.items() if len(cell.runs) == len(cell.jobs)}
    missing = {part for part, recipe in cells if (part, recipe) not in whole}
    found = Found(cells, rates)
    if arguments.json:
        found = replace(found, **examine(final, cells, scale.num_batches, scale.num_forgetting))
    return found, [name for name in scale.parts if name in missing]


def _choose(
    tuning: Bench, parts: Mapping[str, Part], tried: dict[tuple[str, int], list[Job]], *, finished_only: bool
) -> list[dict[str, Any]]:
    """Return the rates that are best of those tried, and of one more where the best is at the edge."""
    runs = tuning.do([job for jobs in tried.values() for job in jobs], finished_only=finished_only)
    rates = choose_rates(tried, runs)
    more = jobs_beyond(tuning, parts, rates)
    if not more:
        return rates
    runs |= tuning.do([job for jobs in more.values() for job in jobs], finished_only=finished_only)
    return choose_rates({key: [*jobs, *more.get(key, ())] for key, jobs in tried.items()}, runs)


def _tell_cost(tuning: Bench, final: Bench, scale: Scale) -> None:
    tried = [job for jobs in make_tuning_jobs(tuning, scale.parts, scale.factors).values() for job in jobs]
    jobs = seed_by_seed(final_jobs(final, scale.parts, []))
    hours = (estimate_seconds(tuning, tried) + estimate_seconds(final, jobs)) / 3600
    print(
        f"about {hours:.1f} hours of one core are missing; the same command in a second terminal halves them",
        flush=True,
    )


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=DATASETS, default="fashion-mnist")


def main() -> int:
    """Train the parts that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, parts=FULL, more=_add_dataset)
        found, missing = find(arguments, _scale_of(arguments))
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    rows = page.rows_of(found)
    for row in rows:
        print(page.line_of(row))
    claims = judge(EXPECTED, found)
    for claim in claims:
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread}); paper: {claim.paper}")
    if arguments.json:
        results = {**page.results_of(found, rows, missing), "claims": [plain(claim) for claim in claims]}
        write_text(arguments.json, json.dumps(results, indent=1) + "\n")
        figures.draw(found, CURVE, arguments.json.parent)
        keep_finished(arguments, HERE)
        if is_own_record(arguments, HERE):
            page.write_readme(HERE / "README.md", results, claims)
    return 0


if __name__ == "__main__":
    sys.exit(main())
