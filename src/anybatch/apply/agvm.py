"""How does a dense predictor train at a huge batch, when its modules differ in noise?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from anybatch.apply.split_step import SplitStep
from anybatch.decide.agvm import agvm_scales, measure_noise_fractions, precondition_like_adam
from anybatch.errors import InputError
from anybatch.nn.optimizer_rebinding import check_holds
from anybatch.stats.dense_predictors import find_predictor_modules
from anybatch.stats.geometry import find_param_group
from anybatch.stats.groups import ModulePrefixes, group_parameters
from anybatch.stats.half_batches import HalfBatches
from anybatch.stats.moments import GradientMoments

SAME_DATA = 1e-4  # noise fraction of every module below which halves are taken to hold the same samples; our choice
STATE_VERSION = 1


class AGVM:
    """Scale the learning rate of every module so that their gradients' noise is aligned with the anchor's.

    Adaptive gradient variance modulator. Every `interval` steps a measurement is observed; from `start_step` on,
    `optimizer.step()` runs module i at rate * scale_i, weight decay and momentum included as the optimizer applies its
    rate to them. The optimizer's own param groups, rates and state are never changed, so that schedulers and GradScaler
    work as without. A step that GradScaler skips does not count, but for fused optimizers, whose step it calls and
    which skip by themselves. While all scales are 1 nothing is done at all. A copy by `copy.deepcopy`, together with
    its optimizer and model, works on the copies.

    Args:
        optimizer: any of torch's except LBFGS, which has one group alone; its param groups may have rates of their own.
            Of one that wraps another, as Lookahead and Accelerate's do, the inner one.
        model: whose parameters it updates; wrapped, sharded by fully_shard, or neither. Of those that are unfrozen
            later nothing is known.
        module_prefixes: see `group_parameters`; "auto" for those of a detector or segmenter, as
            `anybatch.stats.find_predictor_modules` finds them.
        anchor: the module that keeps its rate, which the base rate must suit.
        interval: steps between measurements; 10 in the paper, 5 at batches beyond about 1000.
        momentum: of the scales' moving average, over measurements.
        start_step: the first step that is measured and scaled; some steps after the end of warm-up.
        clamp: smallest and largest ratio of noise fractions, before its square root.
        as_published: count a module without a gradient in one half, and halves that are equal, as the official code
            does. Its scales under SGD are then met to rounding, over an even number of ranks.

    Raises:
        InputError: an anchor that is no module, an interval, start, momentum or clamp out of range, an optimizer
            without a rate, one that wraps another, has an AGVM already or holds no parameter of the model, or LBFGS.
        ValueError: a parameter in no module or in two, or a prefix without a parameter.

    Example:
        >>> import torch
        >>> from anybatch.stats import MicroBatchHalves
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(8, 8), "head": torch.nn.Linear(8, 1)})
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> agvm = AGVM(optimizer, model, ["backbone", "head"], interval=2)
        >>> source = MicroBatchHalves(model, agvm.module_prefixes)
        >>> for step in range(4):
        ...     optimizer.zero_grad()
        ...     for inputs in torch.randn(2, 16, 8):
        ...         loss = (model["head"](model["backbone"](inputs)) - 1).square().mean() / 2
        ...         if agvm.is_due:
        ...             with source.sub_batch(size=16):
        ...                 loss.backward()
        ...         else:
        ...             loss.backward()
        ...     if agvm.is_due:
        ...         agvm.observe(source.finish())
        ...     optimizer.step()
        >>> agvm.scales["backbone"], agvm.scales["head"] > 1, optimizer.param_groups[0]["lr"]
        (1.0, True, 0.1)

    Source:
        Xue et al. 2022, arXiv:2210.11078, and its code. Differs: scales are saved and resumed, the optimizer's rates
        are not touched, any optimizer and number of ranks; a module without a gradient in one half keeps its scale.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        module_prefixes: ModulePrefixes | Literal["auto"] | None = "auto",
        anchor: str = "backbone",
        interval: int = 10,
        momentum: float = 0.97,
        start_step: int = 0,
        clamp: tuple[float, float] = (0.5, 10.0),
        as_published: bool = False,
    ) -> None:
        check_holds(optimizer, model)
        _check(optimizer, interval, start_step)
        self.module_prefixes = find_predictor_modules(model).prefixes if module_prefixes == "auto" else module_prefixes
        groups = group_parameters(model, self.module_prefixes)
        self._anchor, self._momentum, self._clamp = anchor, momentum, clamp
        self._interval, self._start_step, self._as_published = interval, start_step, as_published
        self._step = 0
        self._watches, self._rates = True, []
        self.scales = self._moved(dict.fromkeys(groups, math.nan), None)
        self.noise_fractions: dict[str, float] = {}
        if len(groups) == 1:
            warnings.warn(
                f"AGVM needs at least 2 modules to do anything; got {anchor!r} alone. Pass module_prefixes.",
                stacklevel=2,
            )
        self._optimizer = optimizer
        self._module_of = {parameter: name for name, group in groups.items() for parameter in group}
        self._attach()

    @property
    def is_due(self) -> bool:
        """Whether the next step is one to measure; the same on every rank."""
        return self._step >= self._start_step and self._step % self._interval == 0

    def observe(self, measurement: HalfBatches | GradientMoments | Mapping[str, float]) -> None:
        """Take a measurement of the gradient that the next step uses; before clipping.

        Before `start_step` it is logged alone. A measurement with a gradient that is not finite changes nothing; a
        module without a gradient keeps its scale.

        Args:
            measurement: of `MicroBatchHalves` or `RankHalves` (the cosine of the paper), of `MicroBatches` or `Ranks`
                (less scatter), or module -> noise fraction.

        Raises:
            InputError: a module that is not one of these, moments in another geometry than the optimizer's, or
                something else than a measurement.
        """
        if not isinstance(measurement, HalfBatches | GradientMoments | Mapping):
            raise InputError(
                "measurement must be HalfBatches, GradientMoments or noise fractions by module; got "
                f"{type(measurement).__name__}. Pass what a source's finish() returns."
            )
        if isinstance(measurement, GradientMoments):
            if self._as_published:
                raise InputError("measurement must be HalfBatches where AGVM is as_published; got GradientMoments.")
            self._check_geometry(measurement)
        unknown = set(_names(measurement)) - self.scales.keys()
        if unknown:
            raise InputError(
                f"measurement must have the modules {', '.join(self.scales)}; got {', '.join(sorted(unknown))}. "
                "Measure with module_prefixes=agvm.module_prefixes."
            )
        if isinstance(measurement, Mapping):
            fractions = dict(measurement)
        elif _is_finite(measurement):
            fractions = measure_noise_fractions(measurement, as_published=self._as_published)
        else:
            return
        self.noise_fractions = fractions
        _warn_of_same_data(fractions)
        if self._step >= self._start_step:
            self.scales = self._moved(fractions, self.scales)

    def preconditioner(self, parameter: nn.Parameter) -> Tensor | None:
        """Return what an Adam-like optimizer multiplies a parameter's gradient with; for a source.

        Args:
            parameter: any.

        Returns:
            1 / (sqrt(beta2 v) + eps), as the parameter's shape, and 0 where v is 0; None without second moments, as
            before the first step or with SGD.
        """
        second = self._optimizer.state.get(parameter, {}).get("exp_avg_sq")
        group = find_param_group(self._optimizer, parameter)
        if second is None or group is None:
            return None
        return precondition_like_adam(second, group["betas"][1], group["eps"])

    def log(self) -> dict[str, float]:
        """Return the noise fraction of the last measurement and the scale, per module, under names for a logger."""
        fractions = {f"noise_fraction/{name}": value for name, value in self.noise_fractions.items()}
        return fractions | {f"scale/{name}": value for name, value in self.scales.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain values."""
        return {
            "version": STATE_VERSION,
            "anchor": self._anchor,
            "step": self._step,
            "scales": dict(self.scales),
            "noise_fractions": dict(self.noise_fractions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`.

        Args:
            state: of the same modules and anchor.

        Raises:
            InputError: it has others, or is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise InputError(f"state of AGVM must have version {STATE_VERSION}; got {state.get('version')}.")
        if state["scales"].keys() != self.scales.keys() or state["anchor"] != self._anchor:
            raise InputError(
                f"state of AGVM must have the modules {', '.join(self.scales)} with anchor {self._anchor!r}; got "
                f"{', '.join(state['scales'])} with anchor {state['anchor']!r}. Group the modules as they were."
            )
        self._step = state["step"]
        self.scales = dict(state["scales"])
        self.noise_fractions = dict(state["noise_fractions"])

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: all but the hooks, which hold this optimizer and no other."""
        return {key: value for key, value in vars(self).items() if key not in ("_split_step", "_handles")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what is copied, and hook the copied optimizer."""
        vars(self).update(state)
        self._attach()

    def _check_geometry(self, moments: GradientMoments) -> None:
        """Refuse moments that see gradients in other coordinates than AGVM compares them in."""
        is_adam = any("exp_avg_sq" in state for state in self._optimizer.state.values()) or all(
            {"betas", "eps"} <= group.keys() for group in self._optimizer.param_groups
        )  # before the first step there is no state
        if moments.geometry == "adam" or (is_adam and moments.geometry == "sgd"):
            raise InputError(
                f"moments must be of the gradient as {type(self._optimizer).__name__} preconditions it; got geometry "
                f"{moments.geometry!r}. Measure with preconditioner=agvm.preconditioner."
            )

    def _attach(self) -> None:
        self._split_step = SplitStep(self._optimizer, self._module_of)
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def _moved(self, fractions: Mapping[str, float], scales: Mapping[str, float] | None) -> dict[str, float]:
        return agvm_scales(
            fractions, self._anchor, scales, self._momentum, self._clamp, as_published=self._as_published
        )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if optimizer is not self._optimizer:  # the view, in a step that calls its parent's
            return None
        self._split_step.clear()
        if self._step < self._start_step:
            return None
        if self._watches:
            self._watch_warm_up()
        if all(scale == 1.0 for scale in self.scales.values()):
            return None
        return (self._split_step.begin(self.scales), *args[1:]), kwargs

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self._optimizer:
            self._split_step.end()
            self._step += 1

    def _watch_warm_up(self) -> None:
        """Warn once if a rate still rises over the first steps that are scaled."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        rises = any(now > before for before, now in zip(self._rates, rates, strict=False))
        self._rates = rates
        self._watches = not rises and self._step < self._start_step + self._interval
        if rises:
            warnings.warn(
                f"AGVM must start after the end of warm-up; it started at step {self._start_step}, and the rate still "
                "rises. Pass a later start_step: noise fractions of a warm-up are not those of the training.",
                stacklevel=4,
            )


def _check(optimizer: Optimizer, interval: int, start_step: int) -> None:
    if isinstance(optimizer, LBFGS) or not all("lr" in group for group in optimizer.param_groups):
        raise InputError(
            f"optimizer must have a learning rate per param group; got {type(optimizer).__name__}. Use another one."
        )
    inner = next((value for value in vars(optimizer).values() if isinstance(value, Optimizer)), None)
    if inner is not None:
        raise InputError(
            f"optimizer must update the parameters itself; got {type(optimizer).__name__}, which leaves that to "
            f"{type(inner).__name__}. Pass the inner one."
        )
    if any(isinstance(getattr(hook, "__self__", None), AGVM) for hook in optimizer._optimizer_step_pre_hooks.values()):
        raise InputError(
            f"optimizer must have one AGVM; got {type(optimizer).__name__}, which has one. Call its remove() first."
        )
    if not isinstance(interval, int) or interval < 1:
        raise InputError(f"interval must be a whole number of steps, at least 1; got {interval}.")
    if not isinstance(start_step, int) or start_step < 0:
        raise InputError(f"start_step must be a whole number of steps, at least 0; got {start_step}.")


def _names(measurement: HalfBatches | GradientMoments | Mapping[str, float]) -> Iterable[str]:
    return measurement.keys() if isinstance(measurement, Mapping) else measurement.modules


def _is_finite(measurement: HalfBatches | GradientMoments) -> bool:
    if isinstance(measurement, GradientMoments):
        return not int(measurement.num_non_finite)
    return bool(measurement.sq_norms.isfinite().all() & measurement.products.isfinite().all())


def _warn_of_same_data(fractions: Mapping[str, float]) -> None:
    found = [fraction for fraction in fractions.values() if math.isfinite(fraction)]
    if found and max(found) < SAME_DATA:
        warnings.warn(
            f"the halves of a batch must hold different samples; all noise fractions are below {SAME_DATA:g}. Check "
            "that ranks and micro-batches draw different ones.",
            stacklevel=3,
        )
