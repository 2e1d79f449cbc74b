"""How far may a policy step along its whole gradient, and when are there trajectories enough for it?

The rules of 2022: all coordinates move, the error is in the 2-norm, and the failure probability of a whole run is spent
along a schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.argument_checks import (
    require_choice,
    require_count,
    require_not_negative,
    require_positive,
    require_probability,
)
from anybatch.decide.error_bounds import ErrorBound

Rule = Literal["corrected", "published", "published_fast"]


@dataclass(frozen=True)
class SmoothingStep:
    """A step size along the gradient, or the wish for more trajectories.

    Attributes:
        step_size: multiply the gradient with it if the batch cannot grow any more, or is enough. 0 for no step.
        is_enough: whether the batch is as large as the rule asks for.
        required_batch_size: trajectories that would be enough if the gradient's norm stayed; None where none would.
        is_safe: whether the step keeps its promise with the bound's probability.
        error: of this batch, in the 2-norm.
        guaranteed_gain: lower bound on the improvement; negative where the rule allows a loss.
        reason: one sentence.
    """

    step_size: float
    is_enough: bool
    required_batch_size: int | None
    is_safe: bool
    error: float
    guaranteed_gain: float
    reason: str


def confidence_schedule(delta: float, iteration: int, check: int, *, num_events: int = 1) -> float:
    """Return the failure probability of one check of one iteration: delta / (k (k + 1) num_events i (i + 1)).

    Over all k and i, and the events of a check, they sum up to delta.

    Args:
        delta: of the whole run, in (0, 1).
        iteration: k, from 1.
        check: i, how often this iteration has looked at its batch, from 1.
        num_events: that may fail in one check: 1, or 3 with a milestone.

    Returns:
        The share of each event.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> confidence_schedule(0.05, iteration=1, check=1)
        0.0125

    Source:
        Papini, Pirotta and Restelli 2022, arXiv:1905.03231, by their code.
    """
    require_probability(delta)
    require_count(iteration=iteration, check=check, num_events=num_events)
    return delta / (iteration * (iteration + 1)) / (num_events * check * (check + 1))


def choose_smoothing_step(
    *,
    gradient_norm: float,
    batch_size: int,
    bound: ErrorBound,
    smoothness: float,
    rule: Rule = "corrected",
    step_smoothness: float | None = None,
) -> SmoothingStep:
    """Choose the step along a gradient estimate of one batch, which may grow until it is enough.

    J(theta + a g) - J(theta) >= a |g| (|g| - e) - L a^2 |g|^2 / 2 with e the error of the batch. "corrected": enough
    at e <= |g| / 2, that is n >= 4 d^2 / |g|^2, with the step 1 / (2 L), which gains |g|^2 / (8 L); a smaller batch
    may step by (1 - e / |g|) / L where e < |g|, which gains (|g| - e)^2 / (2 L).

    Args:
        gradient_norm: |g|, the 2-norm of the estimate.
        batch_size: trajectories that it is from.
        bound: of its error, at this check's share of the failure probability.
        smoothness: L, from `smoothness_constant`.
        rule: "corrected"; "published": n >= 4 d / |g|^2, not squared, is enough, and n >= d / |g|^2 for the same step
            where the batch may not grow; "published_fast": n >= d / |g|^2 is enough, with the step 1 / L. The
            published ones guarantee nothing where the error is above |g| / 2, and say so.
        step_smoothness: what the step is made of in place of L; gain and safety stay those by L. Default: L.

    Returns:
        The step and whether the batch is enough for it.

    Raises:
        InputError: an argument outside its range, or an unknown rule.

    Example:
        >>> bound = ErrorBound("sub_gaussian", d=50.0, f=0.0, delta=0.05)
        >>> step = choose_smoothing_step(gradient_norm=1.3, batch_size=5918, bound=bound, smoothness=200.0)
        >>> step.step_size, step.required_batch_size
        (0.0025, 5918)

    Source:
        Papini et al. 2022, arXiv:1905.03231. Their code lost the square when it moved from variances to tail bounds.
        The smaller step below the required batch is ours: theirs steps by 1 / (2 L) up to e = |g|, and above
        3 / 4 |g| that may make the policy worse.
    """
    require_choice(Rule, rule=rule)
    require_not_negative(gradient_norm=gradient_norm)
    taken = smoothness if step_smoothness is None else step_smoothness
    require_positive(smoothness=smoothness, step_smoothness=taken)
    require_count(batch_size=batch_size)
    error = bound.error(batch_size)
    if rule == "corrected":
        is_enough, step_size = _corrected(gradient_norm, error, taken)
    else:
        is_enough, step_size = _published(gradient_norm, error, batch_size, taken, rule)
    required = _required_batch_size(gradient_norm, bound, rule)
    gain = _gain(gradient_norm, error, step_size, smoothness)
    is_safe = error < gradient_norm and gain >= 0
    reason = _reason(gradient_norm, error, batch_size, is_enough, required, step_size)
    reason += _worth(step_size, is_safe, bound)
    return SmoothingStep(step_size, is_enough, required, is_safe, error, gain, reason)


def choose_relaxed_step(
    *,
    gradient_norm: float,
    batch_size: int,
    bound: ErrorBound,
    smoothness: float,
    budget: float,
    step_smoothness: float | None = None,
) -> SmoothingStep:
    """Choose the step that may lose no more than a budget of performance: 1 / L once e <= |g| / 2 + C L / |g|.

    Args:
        gradient_norm: |g|, the 2-norm of the estimate.
        batch_size: trajectories that it is from.
        bound: of its error, at this check's share of the failure probability.
        smoothness: L.
        budget: C, from `milestone_budget`.
        step_smoothness: what batch and step are made of in place of L; gain and safety stay those by L. Default: L.

    Returns:
        The step; 0 where the batch is not enough.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> bound = ErrorBound("bernstein", d=50.0, f=0.0, delta=0.05)
        >>> choose_relaxed_step(gradient_norm=1.0, batch_size=2500, bound=bound, smoothness=10.0, budget=0.05).is_enough
        True

    Source:
        Papini et al. 2022, arXiv:1905.03231, by their code.
    """
    require_not_negative(gradient_norm=gradient_norm, budget=budget)
    taken = smoothness if step_smoothness is None else step_smoothness
    require_positive(smoothness=smoothness, step_smoothness=taken)
    require_count(batch_size=batch_size)
    error = bound.error(batch_size)
    allowed = gradient_norm / 2 + budget * taken / gradient_norm if gradient_norm else 0.0
    is_enough = gradient_norm > 0 and error <= allowed
    step_size = 1 / taken if is_enough else 0.0
    required = _first_size(bound, allowed)
    gain = _gain(gradient_norm, error, step_size, smoothness)
    is_safe = is_enough and (taken >= smoothness or gain >= -budget)
    reason = _reason(gradient_norm, error, batch_size, is_enough, required, step_size) + f"; may lose {budget:.4g}"
    reason += _worth(step_size, is_safe, bound)
    return SmoothingStep(step_size, is_enough, required, is_safe, error, gain, reason)


def _corrected(norm: float, error: float, smoothness: float) -> tuple[bool, float]:
    if norm > 0 and error <= norm / 2:
        return True, 1 / (2 * smoothness)
    return False, (1 - error / norm) / smoothness if error < norm else 0.0


def _published(norm: float, error: float, batch_size: int, smoothness: float, rule: Rule) -> tuple[bool, float]:
    unsquared = error * math.sqrt(batch_size)  # the published code's eps, d where f is 0
    is_fast = rule == "published_fast"
    is_enough = batch_size * norm**2 >= (1 if is_fast else 4) * unsquared
    steps = batch_size * norm**2 >= unsquared and norm > 0
    return is_enough, (1 if is_fast else 0.5) / smoothness if steps else 0.0


def _required_batch_size(norm: float, bound: ErrorBound, rule: Rule) -> int | None:
    if rule == "corrected":
        return _first_size(bound, norm / 2)
    return _whole((1 if rule == "published_fast" else 4) * bound.d, norm * norm)


def _first_size(bound: ErrorBound, allowed: float) -> int | None:
    """Return the smallest n with d / sqrt(n) + f / (n - num_lost) <= allowed; a few more with a second term."""
    root = (bound.d + math.sqrt(bound.d**2 + 4 * bound.f * allowed)) / 2
    size = _whole(root * root, allowed * allowed)
    return size if size is None or not bound.f else size + bound.num_lost


def _whole(numerator: float, denominator: float) -> int | None:
    if denominator == 0 or math.isinf(numerator / denominator):
        return None
    return max(math.ceil(numerator / denominator), 1)


def _gain(norm: float, error: float, step_size: float, smoothness: float) -> float:
    if step_size == 0:
        return 0.0
    return step_size * norm * (norm - error) - smoothness * (step_size * norm) ** 2 / 2


def _worth(step_size: float, is_safe: bool, bound: ErrorBound) -> str:
    if step_size and not is_safe:
        return ", without a guarantee"
    return ", if the heuristic bound holds" if step_size and bound.is_heuristic else ""


def _reason(norm: float, error: float, batch_size: int, is_enough: bool, required: int | None, step_size: float) -> str:
    text = f"error {error:.4g} of {batch_size} trajectories against gradient {norm:.4g}: "
    if is_enough:
        return text + f"enough for step {step_size:.4g}"
    text += "not enough, and no number would be" if required is None else f"not enough, the rule asks for {required}"
    return text + (f", or a step of {step_size:.4g}" if step_size else "")
