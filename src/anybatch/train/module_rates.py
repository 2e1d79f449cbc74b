"""How does AGVM take part in the training loop: which modules, measured by what, on which steps?"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from anybatch.apply.agvm import AGVM
from anybatch.errors import InputError
from anybatch.stats import MicroBatches, MicroBatchHalves, RankHalves, Ranks
from anybatch.stats.dense_predictors import find_predictor_modules
from anybatch.stats.groups import ModulePrefixes, find_ddp, group_parameters
from anybatch.stats.sub_batches import SubBatchSource
from anybatch.train.plan import ModuleRates
from anybatch.workload import Workload


class MeasuredRates:
    """AGVM on one training, and the source that measures for it: over ranks where there are any.

    Args:
        options: how.
        workload: whose `module_prefixes` are the modules.
        model: as it is trained, wrapped in DistributedDataParallel or not.
        optimizer: its own.

    Raises:
        InputError: as for `find_modules`.
    """

    def __init__(self, options: ModuleRates, workload: Workload, model: nn.Module, optimizer: Optimizer) -> None:
        prefixes, anchor = find_modules(workload, model, options.anchor)
        self.agvm = AGVM(
            optimizer,
            model,
            prefixes,
            anchor=anchor,
            interval=options.interval,
            momentum=options.momentum,
            start_step=options.start_step,
            clamp=options.clamp,
            as_published=options.as_published,
        )
        is_spread = find_ddp(model) is not None
        self._source: SubBatchSource[Any]
        if options.estimator == "moments":
            moments = Ranks if is_spread else MicroBatches
            self._source = moments(model, prefixes, preconditioner=self.agvm.preconditioner)
        else:
            self._source = (RankHalves if is_spread else MicroBatchHalves)(model, prefixes, self.agvm.preconditioner)

    def source_if_due(self) -> SubBatchSource[Any] | None:
        """Return what records the next step, if that one is measured."""
        return self._source if self.agvm.is_due else None


def find_modules(workload: Workload, model: nn.Module, anchor: str | None) -> tuple[ModulePrefixes, str]:
    """Return the modules of a workload's model, and the one that keeps its rate.

    Args:
        workload: with `module_prefixes`; without, its model is taken for a detector or segmenter.
        model: its model.
        anchor: its name; None: "backbone", or else the first.

    Returns:
        Prefixes for `group_parameters`, and the anchor.

    Raises:
        InputError: no modules are known, or the anchor is none of them.
    """
    prefixes = workload.module_prefixes
    if prefixes is None:
        prefixes = find_predictor_modules(model).prefixes
    names = list(group_parameters(model, prefixes))
    chosen = anchor or ("backbone" if "backbone" in names else names[0])
    if chosen not in names:
        raise InputError(f"anchor of AGVM must be a module, {', '.join(names)}; got {chosen!r}.")
    return prefixes, chosen
