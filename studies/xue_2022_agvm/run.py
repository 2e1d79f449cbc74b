"""Do the modules of a dense predictor fall apart at large batches, and does AGVM help? Xue et al. 2022.

    python studies/xue_2022_agvm/run.py --smoke   # two minutes: every step, a few updates
    python studies/xue_2022_agvm/run.py --quick   # 20 minutes: segmentation at 256, Figure 1, proposals
    python studies/xue_2022_agvm/run.py --full    # the runs behind results.json

Runs are kept under --runs and go on after a kill; the same command in two terminals shares the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # what studies share

from accuracy_claims import ALIGNED, SCALED, control_scales, judge_accuracy  # noqa: E402
from causes import change  # noqa: E402
from cells import Cell, final_scales, make_cell  # noqa: E402
from command import is_own_record, keep_finished, read_arguments  # noqa: E402
from figures import draw  # noqa: E402
from noise import CPU, Point, follow  # noqa: E402
from noise_claims import judge_noise, judge_overhead  # noqa: E402
from parts import FULL, QUICK, Cause, Control, Followed, Part, Step, smoke  # noqa: E402
from reporting import claims_section, rewrite_results  # noqa: E402
from tasks import RATE, at_module_rates, make_workload  # noqa: E402
from tuning import best_factor, is_at_edge, next_factor  # noqa: E402
from verdicts import Claim, shown  # noqa: E402

import anybatch  # noqa: E402
from anybatch import AnybatchError, Recipe, Workload  # noqa: E402
from anybatch.train.comparison import Run  # noqa: E402
from anybatch.train.environment import describe_environment  # noqa: E402
from anybatch.train.fingerprint import fingerprint  # noqa: E402
from anybatch.train.plain import plain, write_text  # noqa: E402
from anybatch.train.run_folder import RunFolder  # noqa: E402

RUN_HEAD = ("step", "recipe", "rate", "seeds", "diverged", "updates", "points", "seed 0 at each factor on the rate")
OVERHEAD = HERE.parent.parent / "benchmarks" / "results" / "agvm.json"


@dataclass
class Study:
    """The steps, what they have come to, and the rates that the first of each task has found.

    Attributes:
        steps: by name, in order.
        arguments: of the command line.
        cells: (step, recipe) -> its runs at the best rate.
        grids: (step, recipe) -> score by rate, of seed 0.
        noise: step -> its points.
        rates: of SGD at 16, by task.
        missing: steps that are not finished.
    """

    steps: dict[str, Step]
    arguments: argparse.Namespace
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    grids: dict[tuple[str, str], dict[float, float | None]] = field(default_factory=dict)
    noise: dict[str, Sequence[Point]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def do(self, name: str) -> None:
        """Do one step, or read it."""
        step = self.steps[name]
        rate = self.rate_of(self.task_of(step))
        if isinstance(step, Part):
            is_there = rate is not None and self._train(name, step, rate)
        elif isinstance(step, Control):
            is_there = self._control(name, step)
        else:
            points = None if rate is None else self._measure(step, rate)
            is_there = points is not None
            if points is not None:
                self.noise[name] = points
        if not is_there:
            self.missing.append(name)

    def task_of(self, step: Step) -> str:
        """Return what a step trains."""
        if isinstance(step, Control):
            return self.task_of(self.steps[step.of])
        return "detection" if isinstance(step, Cause) else step.task

    def rate_of(self, task: str) -> float | None:
        """Return the rate of SGD at 16 that the task's first part finds; None while it is not known."""
        task = {"instances": "detection"}.get(task, task)
        tuning = [step for step in self.steps.values() if isinstance(step, Part) and step.tunes_base]
        part = next((step for step in tuning if step.task == task), None)
        if part is None:
            return RATE
        if task not in self.rates:
            best = _best(part, self._tune(part, RATE)[part.recipes[0].name])
            if best is None:
                return None
            self.rates[task] = RATE * best.lr_factor
        return self.rates[task]

    def best_of(self, name: str) -> Run | None:
        """Return seed 0 of a step's AGVM at its best rate; None while it is not known."""
        part = self.steps[name]
        assert isinstance(part, Part)
        rate = self.rate_of(part.task)
        return None if rate is None else _best(part, self._tune(part, rate)[ALIGNED])

    def _train(self, name: str, part: Part, tuned: float) -> bool:
        """Try the grid with one seed and go on with the best rate of each recipe; return whether all is there."""
        start = RATE if part.tunes_base else tuned
        if part.factor_of is not None:
            reference = self.best_of(part.factor_of)
            if reference is None:
                return False
            part = replace(part, lr_factors=(reference.lr_factor,))
        tried = self._tune(part, start)
        is_there = True
        for recipe in part.recipes:
            chosen = tried[recipe.name]
            if not chosen:
                is_there = False
                continue
            self.grids[name, recipe.name] = scores = _scores(part, chosen)
            factor = best_factor(scores) or min(scores)
            chosen = [run for run in chosen if run.lr_factor == factor]
            if part.seeds > 1:
                chosen = self._compare(part, [recipe], start, [factor], part.seeds)
                is_there = is_there and len(chosen) == part.seeds
            self.cells[name, recipe.name] = cell = make_cell(part.task, chosen, is_at_edge=is_at_edge(scores))
            print(f"{name}: {recipe.name}, {cell.to_dict()}", flush=True)
        return is_there

    def _tune(self, part: Part, rate: float) -> dict[str, list[Run]]:
        """Return seed 0 of each recipe over its grid, with what was tried beyond; none of it while any is missing."""
        tried = self._compare(part, part.recipes, rate, part.lr_factors)
        found = {}
        for recipe in part.recipes:
            runs = [run for run in tried if run.recipe == recipe.name]
            is_there = len(runs) == len(part.lr_factors)
            while is_there and (factor := next_factor(_scores(part, runs), part.beyond)) is not None:
                more = self._compare(part, [recipe], rate, [factor])
                is_there, runs = bool(more), [*runs, *more]
            found[recipe.name] = runs if is_there else []
        return found

    def _control(self, name: str, step: Control) -> bool:
        """Train plain scaling at the rates that AGVM came to, and at their mean; return whether all is there."""
        part, best = self.steps[step.of], self.best_of(step.of)
        rate = self.rate_of(self.task_of(step))
        if not isinstance(part, Part) or best is None or rate is None:
            return False
        recipe = next(recipe for recipe in part.recipes if recipe.name == SCALED)
        is_there = True
        for control, scales in control_scales(final_scales(best)).items():
            runs = self._compare(part, [recipe], rate, [best.lr_factor], scales=scales)
            is_there = is_there and bool(runs)
            if runs:
                self.grids[name, control] = _scores(part, runs)
                self.cells[name, control] = make_cell(part.task, runs)
                print(f"{name}: {control}, {scales}, {self.cells[name, control].to_dict()}", flush=True)
        return is_there

    def _compare(
        self,
        part: Part,
        recipes: Sequence[Recipe],
        rate: float,
        lr_factors: Sequence[float],
        seeds: int = 1,
        scales: Mapping[str, float] | None = None,
    ) -> list[Run]:
        """Return the runs, at fixed scales of the modules' rates if any; with --finished-only those that are there."""
        workload = make_workload(part.task, self.arguments.data_root, part.size, rate)
        found = anybatch.compare(
            workload if scales is None else at_module_rates(workload, scales),
            [part.batch_size],
            recipes,
            seeds=seeds,
            epochs=part.size.epochs,
            lr_factors=lr_factors,
            runs=self.arguments.runs,
            micro_batch_size=part.micro_batch_size,
            num_evaluations=1,  # the last one is all that is used
            checkpoint_seconds=60,
            finished_only=self.arguments.finished_only,
        )
        return list(found.runs)

    def _measure(self, step: Followed | Cause, rate: float) -> list[Point] | None:
        """Return the points of a step; None while they are missing, or in the hands of another process."""
        root = self.arguments.data_root
        task = step.task if isinstance(step, Followed) else "detection"
        workload = make_workload(task, root, step.size, rate)
        config = plain({"version": anybatch.__version__, "workload": fingerprint(workload, CPU), "step": step})
        folder = RunFolder(self.arguments.runs / f"noise-{_digest(config)}")
        if (result := folder.result()) is not None or self.arguments.finished_only:
            return None if result is None else result["points"]
        with folder.lock() as is_ours:
            if not is_ours:
                return None
            folder.claim(config)
            points = self._points(step, workload, rate, folder)
            folder.finish({"points": points})
            return points

    def _points(self, step: Followed | Cause, workload: Workload, rate: float, folder: RunFolder) -> list[Point]:
        if isinstance(step, Followed):
            return follow(workload, step.run, folder)
        return change(step, self.arguments.data_root, rate, folder)

    def claims(self) -> list[Claim]:
        """Return what the steps show so far."""
        overhead = json.loads(OVERHEAD.read_text())["results"]
        return [*judge_accuracy(self.cells), *judge_noise(self.noise), judge_overhead(overhead)]

    def summary(self) -> dict[str, Any]:
        """Return all that results.json holds."""
        rows = [
            {"step": step, "recipe": recipe, "grid": self.grids[step, recipe], **cell.to_dict()}
            for (step, recipe), cell in self.cells.items()
        ]
        return {
            "environment": describe_environment(CPU),
            "incomplete": self.missing,
            "rows": rows,
            "noise": self.noise,
            "claims": self.claims(),
        }


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def _scores(part: Part, runs: Sequence[Run]) -> dict[float, float | None]:
    """Return the score of each factor, in their order; None where it diverged."""
    ordered = sorted(runs, key=lambda run: run.lr_factor)
    return {run.lr_factor: make_cell(part.task, [run]).values[0] if run.status == "done" else None for run in ordered}


def _best(part: Part, runs: Sequence[Run]) -> Run | None:
    factor = best_factor(_scores(part, runs))
    return next((run for run in runs if run.lr_factor == factor), None)


def _run_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Return the rows of the README's table of runs."""
    found = []
    for row in rows:
        mean = "diverged" if row["diverged"] == row["seeds"] else shown(row["values"])
        rate = "" if row["lr"] is None else f"{row['lr']:.3g}"
        scores = {factor: "diverged" if score is None else f"{score:.2f}" for factor, score in row["grid"].items()}
        grid = ", ".join(f"×{factor:g}: {score}" for factor, score in scores.items())
        found.append((row["step"], row["recipe"], rate, row["seeds"], row["diverged"], row["updates"], mean, grid))
    return found


def main() -> int:
    """Do the steps that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, parts=FULL)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    steps = QUICK if arguments.size == "quick" else FULL
    if arguments.size == "smoke":
        steps = {name: smoke(step) for name, step in steps.items()}
    study = Study(steps, arguments)
    for name in arguments.only or steps:
        try:
            study.do(name)
        except AnybatchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
    for claim in study.claims():
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread}); paper: {claim.paper}")
    if arguments.json:
        summary = study.summary()
        write_text(arguments.json, json.dumps(plain(summary), indent=1) + "\n")
        draw(study.cells, study.noise, arguments.json.parent)
        keep_finished(arguments, HERE)
        if is_own_record(arguments, HERE):
            runs = ("Runs", RUN_HEAD, _run_rows(summary["rows"]))
            rewrite_results(HERE / "README.md", [claims_section(summary["claims"]), runs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
