"""Is there an exact performance of a policy on an environment, and of which process?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.lqg_performance import TooSharpError
from anybatch.rl.native_env import is_native
from anybatch.rl.policy import Policy
from anybatch.rl.policy_class import is_known_linear

Performance = Callable[[Any], float]


class KnownPerformance:
    """The performance of policies, computed once for as long as the parameters stay.

    Args:
        function: from a policy to its performance.
        process: what it is the performance of: one sentence.
    """

    def __init__(self, function: Performance, process: str) -> None:
        self.process = process
        self._function = function
        self._last: tuple[Tensor, float] | None = None

    def __call__(self, policy: Policy) -> float:
        """Return the performance of a policy."""
        if self._last is None or not self._last[0].equal(policy.parameters):
            self._last = policy.parameters, float(self._function(policy))
        return self._last[1]


class UnknownPerformance:
    """No performance where there is one of other policies.

    Args:
        why: this one has none: one sentence.
    """

    def __init__(self, why: str) -> None:
        self.process = f"deployed policies are compared by the mean returns of their batches: {why}"

    def __call__(self, policy: Policy) -> None:
        """Return nothing."""


def find_performance(
    env: Any, policy: Policy, given: Performance | None, constants: BoundConstants, *, is_published: bool
) -> KnownPerformance | UnknownPerformance | None:
    """Return what deployed policies are judged by.

    Args:
        env: a native environment may know its exact performance, and the published closed form.
        policy: of which the environment must know it; it knows none of a class of the user's own.
        given: by the user; goes before the environment's.
        constants: of the run, whose discount and horizon may be others than the environment's.
        is_published: take the published closed form, and not that of the process which is measured.

    Returns:
        The performance; None where there is none.
    """
    if given is not None:
        return KnownPerformance(given, "performance is that of the function that was given")
    name = "performance" if is_published else "exact_performance"
    function = getattr(env, name, None) if is_native(env) else None
    if function is None or not is_known_linear(policy):
        return None
    own = {"discount": constants.discount} | ({} if is_published else {"horizon": constants.horizon})
    if any(value != getattr(env.task, name) for name, value in own.items()):
        if not own.keys() <= signature(function).parameters.keys():
            return None
        function = partial(function, **own)
    process = (
        "performance is the published closed form, of a process without clipping and without horizon; "
        "measured_performance is of the process with both"
        if is_published
        else "performance is the exact one of the process that is measured, clipping and horizon included"
    )
    found = KnownPerformance(function, process)
    try:
        found(policy)
    except TooSharpError as error:
        return UnknownPerformance(str(error).rstrip("."))
    except InputError:  # it is known of other policies
        return None
    return found
