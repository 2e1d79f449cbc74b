"""Records of safe runs as `anybatch safe-pg --json` writes them, made by hand."""

from typing import Any


def update(number: int, **changed: Any) -> dict[str, Any]:
    """One update; the later, the better."""
    return {
        "iteration": number,
        "batch_size": 1000 * number,
        "num_trajectories": 500 * number * (number + 1),
        "step_size": 1.6e-5,
        "coordinate": 0,
        "performance": -12.0 + 0.1 * number,
        "measured_performance": -12.01 + 0.1 * number,
        "measured_std_error": 0.05,
        "max_gradient": 9.5 - number,
        "gradient_norm": 9.6 - number,
        "error": 2.5,
        "is_safe": True,
        "guaranteed_gain": 0.01,
        "failure_probability": 0.05,
        "failure_probability_so_far": 0.05 * number,
        "guarantee": "proven",
        "reason": f"chebyshev error 2.5 < gradient {9.5 - number}: step 1.6e-05",
    } | changed


def safe_record(**changed: Any) -> dict[str, Any]:
    """A run of five updates, all of them safe, with an exact performance of the process that was measured."""
    return {
        "version": "0.1.0",
        "workload": "lqg1d",
        "partial": False,
        "iterations": [update(number) for number in range(1, 6)],
        "num_trajectories": 15_000,
        "parameters": [-0.25],
        "final_performance": -11.4,
        "first_performance": -11.9,
        "worst_performance": -11.9,
        "worst_iteration": 1,
        "worst_parameters": [0.0],
        "worst_is_within_noise": False,
        "guarantee": "proven",
        "failure_probability": 0.25,
        "guaranteed_gain": 0.05,
        "notes": [],
        "constants": {
            "discount": 0.9, "horizon": 20, "action_volume": 4.0, "stated_reward_bound": 4.0,
            "stated_feature_bound": None, "max_abs_reward": 3.9, "max_feature": 1.99, "reward_bound": 4.0,
            "feature_bound": 1.99, "estimated": ["feature_bound"],
        },
        "settings": {"env": "lqg1d", "paper": "2017", "trajectories": 20_000, "bound": "chebyshev", "delta": 0.05},
        "environment": {"torch": "2.14.1", "device": "CPU, 2 cores"},
    } | changed  # fmt: skip


def measured_record() -> dict[str, Any]:
    """A run without an exact performance, by the method of 2022, which waited twice and was ended early."""
    updates = [update(number, performance=None, coordinate=None) for number in range(1, 6)]
    for waiting in updates[:2]:
        waiting |= {"step_size": 0.0, "is_safe": False, "guaranteed_gain": 0.0}
    return safe_record(
        iterations=updates,
        partial=True,
        final_performance=None,
        worst_performance=-12.3,
        worst_iteration=3,
        worst_is_within_noise=True,
        guarantee="heuristic",
        notes=["the guarantee is heuristic: feature_bound is estimated from data"],
    )


def other_scale_record() -> dict[str, Any]:
    """A run whose exact performance is that of another process, as on the published task."""
    updates = [update(number, performance=-56.0 + number) for number in range(1, 6)]
    return safe_record(iterations=updates, first_performance=-55.0, worst_performance=-55.0, final_performance=-50.0)


def single_record() -> dict[str, Any]:
    """A run of one update, unsafe and taken, with nothing known but what was measured."""
    only = update(1, is_safe=False, error=None, guaranteed_gain=-0.2, performance=None, failure_probability=1.0)
    return safe_record(iterations=[only], final_performance=None, failure_probability=1.0, guarantee="void")


def hostile_safe_record() -> dict[str, Any]:
    """Names that would be markup or script."""
    note = "<script>alert(1)</script> [red]exceeds[/red]"
    return safe_record(workload="<b>env</b>", notes=[note], settings={"env": "<i>", "trajectories": 20_000})
