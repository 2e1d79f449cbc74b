"""Which state space, weight of the prediction, gain and transition should Kalman normalization have by default?

    python studies/wang_2018_kalman_normalization/defaults.py --json defaults.json

Gains and transitions are varied beside the other defaults. Every candidate at two rates and two seeds, 40 minutes of
one core, on other images than the study trains on, evaluated on held-out training images: the study that judges the
default has not chosen it. Spaces and weights were compared before the study, gains and transitions after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

sys.path.append(str(Path(__file__).parents[1]))

from cells import Bench, Cell, Part
from images import other_workload
from parts import kalman

from anybatch.nn.kalman_options import Gain, KalmanOptions, StateSpace, Transition
from anybatch.train.plain import write_text

HERE = Path(__file__).parent
WEIGHTS = (0.9, 0.5)
FACTORS = (1.0, 3.0)
NUM_SEEDS = 2
OTHERS = KalmanOptions()


def main() -> int:
    """Train all candidates and print them, the best first; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="on 256 images")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="folder of all runs")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="folder that holds the dataset")
    parser.add_argument("--json", type=Path, help="write the rows")
    arguments = parser.parse_args()
    options: dict[str, Any] = {"num_trained": 256} if arguments.smoke else {}
    bench = Bench(other_workload("fashion-mnist", arguments.data_root, **options), arguments.runs)
    candidates = [
        kalman(f"{space}, {weight:g}", state_space=space, prior_weight=weight)
        for space, weight in product(get_args(StateSpace), WEIGHTS)
    ]
    candidates += [kalman(f"gain {gain}", gain=gain) for gain in get_args(Gain) if gain != OTHERS.gain]
    candidates += [
        kalman(f"transition {transition}", transition=transition)
        for transition in get_args(Transition)
        if transition != OTHERS.transition
    ]
    jobs = bench.jobs(Part(candidates, num_evaluations=1), candidates, NUM_SEEDS, FACTORS)
    runs = bench.do(jobs, finished_only=False)
    found: dict[tuple[str, float], dict[int, float]] = {}
    for job in jobs:
        cell = Cell({job.cell.settings.seed: job}, {job.cell.settings.seed: runs[job.folder.path]})
        found.setdefault((job.cell.recipe.name, job.cell.lr_factor), {}).update(cell.accuracies)
    rows = [
        {"candidate": name, "lr_factor": factor, "accuracies": list(by_seed.values())}
        for (name, factor), by_seed in found.items()
    ]
    rows.sort(key=lambda row: -statistics.mean(row["accuracies"]))
    for row in rows:
        each = ", ".join(f"{accuracy:.2f}" for accuracy in row["accuracies"])
        print(f"{row['candidate']}, rate x{row['lr_factor']:g}: {statistics.mean(row['accuracies']):.2f} ({each})")
    if arguments.json:
        write_text(arguments.json, json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
