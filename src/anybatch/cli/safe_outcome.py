"""What does a safe run leave behind: one JSON object, and a page?"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from anybatch.train.environment import describe_environment
from anybatch.train.plain import Exportable, plain
from anybatch.train.runtime import Runtime

if TYPE_CHECKING:
    from anybatch.rl.safe_run import SafeRun


@dataclass(frozen=True)
class SafeOutcome(Exportable):
    """A run with what it was asked for.

    Attributes:
        env: name of the environment.
        paper: whose loop it is.
        num_trajectories: the budget.
        run: what came of it.
        is_partial: whether it was ended before.
    """

    env: str
    paper: str
    num_trajectories: int
    run: SafeRun
    is_partial: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found = plain(self.run.to_json())
        asked = {"env": self.env, "paper": self.paper, "trajectories": self.num_trajectories}
        constants = found["settings"].pop("constants")
        return {
            "version": version("anybatch"),
            "workload": self.env,
            "partial": self.is_partial,
            **found,
            "constants": constants,
            "settings": asked | found["settings"],
            "environment": describe_environment(Runtime(torch.device("cpu"))),
        }

    def to_page(self) -> str:
        """Return one self-contained HTML page."""
        from anybatch.report.page import render_safe_run

        return render_safe_run(self.to_dict())
