"""Does the generalization gap of large batches come from too few updates? Hoffer, Hubara and Soudry 2017, Table 1.

    python studies/hoffer_2017_train_longer/run.py --smoke   # a minute: every part, a few updates
    python studies/hoffer_2017_train_longer/run.py --quick   # 20 minutes: batch 1024 and a shorter regime
    python studies/hoffer_2017_train_longer/run.py --full    # the runs behind results.json

Runs are kept under --runs and go on after a kill; the same command in two terminals shares the work.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # what studies share

from command import is_own_record, keep_finished, read_arguments  # noqa: E402
from figures import draw  # noqa: E402
from parts import FULL, QUICK, Part, smoke  # noqa: E402
from potential import judge_potential, measure_potential  # noqa: E402
from record import join_results, read_earlier, write_readme  # noqa: E402
from verdicts import Claim  # noqa: E402

import anybatch  # noqa: E402
from anybatch import AnybatchError  # noqa: E402
from anybatch.train.comparison import Comparison  # noqa: E402
from anybatch.train.plain import write_text  # noqa: E402


def train_part(part: Part, arguments: argparse.Namespace) -> Comparison:
    """Train what is missing of a part, or read what is there."""
    return anybatch.compare(
        part.workload(arguments.data_root),
        part.batch_sizes,
        part.recipes,
        seeds=part.seeds,
        epochs=part.epochs,
        lr_factors=part.lr_factors,
        runs=arguments.runs,
        num_evaluations=2 if arguments.size == "smoke" else 25,
        max_eval_samples=500 if arguments.size == "smoke" else 10_000,
        checkpoint_seconds=60,
        finished_only=arguments.finished_only,
    )


def say(name: str, comparison: Comparison) -> None:
    """Print what a part came to."""
    for row in comparison.table:
        figures = {key: row.metrics.get(key) for key in ("eval_accuracy", "train_accuracy")}
        words = [f"{key} {100 * v.mean:.2f} (sd {100 * (v.sd or 0):.2f})" for key, v in figures.items() if v]
        about = f"{name}: {row.recipe} at {row.batch_size}, rate {row.lr:.3g}, {row.num_seeds} seeds:"
        print(about, *words, flush=True)


def report(comparisons: dict[str, Comparison], arguments: argparse.Namespace) -> None:
    """Print the claims, and write them with the rows and the figures where that is asked for."""
    directions, samples = (3, 256) if arguments.size == "smoke" else (50, 4096)
    potential = measure_potential(arguments.data_root, directions, samples)
    found = join_results(comparisons, read_earlier(arguments), [judge_potential(potential)])
    claims = [Claim(**claim) for claim in found["claims"]]
    for claim in claims:
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread}); paper: {claim.paper}")
    if arguments.json:
        write_text(arguments.json, json.dumps({**found, "potential": potential}, indent=1) + "\n")
        draw(found["rows"], comparisons, arguments.json.parent)
        keep_finished(arguments, HERE)
        if is_own_record(arguments, HERE):
            write_readme(HERE / "README.md", found["rows"], claims)


def main() -> int:
    """Train the parts that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, parts=FULL)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    parts = QUICK if arguments.size == "quick" else {name: FULL[name] for name in arguments.only or FULL}
    comparisons = {}
    for name, part in parts.items():
        try:
            comparisons[name] = train_part(smoke(part) if arguments.size == "smoke" else part, arguments)
        except AnybatchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
        say(name, comparisons[name])
    report(comparisons, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
