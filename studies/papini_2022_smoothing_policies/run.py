"""Do smoothing policies learn safely, and as fast as published? Papini, Pirotta and Restelli 2022.

    python studies/papini_2022_smoothing_policies/run.py --smoke   # seconds: every part, a few updates
    python studies/papini_2022_smoothing_policies/run.py --quick   # minutes: a tenth of the trajectories, one seed
    python studies/papini_2022_smoothing_policies/run.py --full    # the runs behind results.json

Units are kept under --runs and go on after a kill; --workers processes share them, and so does the same command in
another terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))

import pages
from command import is_own_record, keep_finished, read_arguments
from judging import judge, rows_of, split_claims
from plan import KINDS, LQ_KINDS, POLE_KINDS, SCALES, plan_units
from units import Results, Unit, add_worker_options, do_units, read_results, run_units

from anybatch import AnybatchError
from anybatch.train.environment import describe_environment
from anybatch.train.plain import plain, write_text
from anybatch.train.runtime import Runtime

HERE = Path(__file__).parent


def summarize(results: Results, units: Sequence[Unit], size: str) -> dict[str, Any]:
    """Return all that results.json holds."""
    done = {unit.name for found in results.values() for unit, _ in found}
    missing = [unit.name for unit in units if unit.name not in done]
    lq, pole = rows_of(results, LQ_KINDS), rows_of(results, POLE_KINDS)
    claims, left_out = ([], {}) if missing else split_claims(judge(lq, pole), is_whole=size == "full")
    return {
        "environment": describe_environment(Runtime(torch.device("cpu"))),
        "size": size,
        "incomplete": missing,
        "seconds": {label: sum(row["seconds"]) for rows in (lq, pole) for label, row in _prefixed(rows, rows is lq)},
        "lq": lq,
        "cart_pole": pole,
        "left_out": left_out,
        "claims": [plain(claim) for claim in claims],
    }


def _prefixed(rows: dict[str, dict[str, Any]], is_lq: bool) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{'lq' if is_lq else 'cart-pole'} {label}", row) for label, row in rows.items()]


def main() -> int:
    """Do the units that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, sizes=SCALES, more=add_worker_options)
        units = plan_units(SCALES[arguments.size])
        if arguments.work:
            do_units(units, KINDS, arguments.runs)
            return 0
        if not arguments.finished_only:
            run_units(__file__, units, arguments)
        found = summarize(read_results(units, arguments.runs), units, arguments.size)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for claim in found["claims"]:
        print(f"{claim['verdict']}: {claim['statement']}. {claim['ours']} ({claim['spread']}); paper: {claim['paper']}")
    for id_, reason in found["left_out"].items():
        print(f"left out: {id_}, {reason}")
    if arguments.json:
        write_text(arguments.json, json.dumps(plain(found), indent=1) + "\n")
        pages.draw(found, arguments.json.parent)
        keep_finished(arguments, HERE)
        if is_own_record(arguments, HERE):
            pages.write_readme(HERE / "README.md", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
