"""`anybatch safe-pg`: make a policy better, update by update, and never worse but for a stated probability."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from anybatch.cli import common_options as common
from anybatch.cli import safe_pg_options as own
from anybatch.cli.option_names import naming_options
from anybatch.cli.outputs import Outputs, check_distinct, check_writable, told_by_bars
from anybatch.cli.safe_outcome import SafeOutcome
from anybatch.cli.safe_pg_inputs import make_environment, make_policy
from anybatch.cli.safe_pg_state import StateFile
from anybatch.errors import AnybatchError, InputError, StoppedError
from anybatch.train.stop import StopRequest

if TYPE_CHECKING:
    from anybatch.rl.safe_run import SafeRun

Options = Mapping[str, Any]
NOTICE = "the run stops after the trajectories under way; a second signal does not wait for them."


def safe_pg(
    env: own.Env,
    trajectories: own.Trajectories,
    policy: own.Policy = None,
    paper: own.Paper = "2017",
    bound: own.Bound = "bernstein",
    estimator: own.Estimator = "gpomdp",
    baseline: own.Baseline = True,
    delta: own.Delta = 0.05,
    seed: own.Seed = 0,
    std: own.Std = None,
    max_batch_size: own.MaxBatchSize = None,
    state: own.State = None,
    records: own.Records = None,
    json: own.Json = None,
    report: common.Report = None,
    mode: own.Mode = None,
    range: own.Range = None,
    min_batch_size: own.MinBatchSize = None,
    action_volume: own.ActionVolume = None,
    penalty: own.Penalty = None,
    rule: own.Rule = None,
    tolerance: own.Tolerance = None,
    mini_batch_size: own.MiniBatchSize = None,
    growth: own.Growth = None,
    warm_start: own.WarmStart = None,
    feature_norm_bound: own.FeatureNormBound = None,
    reward_bound: own.RewardBound = None,
    feature_bound: own.FeatureBound = None,
    discount: own.Discount = None,
    horizon: own.Horizon = None,
    early_end: own.EarlyEnd = "pad",
    num_envs: own.NumEnvs = 100,
    num_workers: own.NumThreads = 1,
    debug: common.Debug = False,
) -> None:
    """Improve a policy so that no update makes it worse, but for a stated probability.

    Step size and batch size are chosen together from a bound on the gradient's error and from constants of the task:
    R bounds the reward, M the features, |A| is the volume of the actions.

    Every update says what it guarantees, and the end says which deployed policy was the worst, against the first. A
    guarantee is proven, heuristic where a constant came from data or a bound is approximate, or void from when a
    stated bound was exceeded.

    [b]anybatch safe-pg --env lqg1d --bound chebyshev --delta 0.25 --trajectories 1000000 --report run.html[/b]

    [b]anybatch safe-pg --env Pendulum-v1 --policy mine.py:policy --discount 0.9 --horizon 50 --trajectories 5000[/b]

    [b]anybatch safe-pg --env CartPole-v1 --paper 2022 --discount 0.9 --horizon 50 --trajectories 5000 --state s.pt[/b]
    """
    outputs = Outputs(json, report)
    check_distinct(json=json, records=records, report=report, state=state)
    check_writable(*outputs, state, records)
    of_both = {
        "bound": bound, "estimator": estimator, "baseline": baseline, "delta": delta, "max_batch_size": max_batch_size,
        "reward_bound": reward_bound, "feature_bound": feature_bound, "discount": discount, "horizon": horizon,
        "early_end": early_end, "num_workers": num_workers, "seed": seed,
    }  # fmt: skip
    of_2017 = {"mode": mode, "range": range, "min_batch_size": min_batch_size, "action_volume": action_volume,
               "penalty": penalty}  # fmt: skip
    of_2022 = {"rule": rule, "tolerance": tolerance, "mini_batch_size": mini_batch_size, "growth": growth,
               "warm_start": warm_start, "feature_norm_bound": feature_norm_bound}  # fmt: skip
    console = Console(highlight=False)
    with _plain_warnings(), naming_options([*of_both, *of_2017, *of_2022]):
        environment = make_environment(env, num_envs)
        options = {**_own(paper, {"2017": of_2017, "2022": of_2022}), **_given(of_both)}
        loop = _loop(paper, environment, policy, std, options)
        holders = [f"--{name}" for name, path in (("json", json), ("report", report), ("records", records)) if path]
        kept = StateFile(state, loop, env, paper)
        if behind := kept.resume():
            console.print(f"Going on after update {behind} of {state}.", soft_wrap=True)
        try:
            run = _run(loop, kept, trajectories, records, holders)
        except Exception:
            if loop.iterations:
                _show(SafeOutcome(env, paper, trajectories, loop.result(), is_partial=True), console, outputs)
            raise
    _show(SafeOutcome(env, paper, trajectories, run, is_partial=False), console, outputs)


def _given(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _own(paper: str, options: Mapping[str, Options]) -> dict[str, Any]:
    """Return the options of a paper that were given; none of another one's may be."""
    given = {year: _given(of_year) for year, of_year in options.items()}
    for year, of_year in given.items():
        if year != paper and of_year:
            name, value = next(iter(of_year.items()))
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} must be left alone with --paper {paper}; got {value}. It is of --paper {year}.")
    return given[paper]


def _loop(paper: str, env: Any, spec: str | None, std: float | None, options: Options) -> Any:
    from anybatch.rl import SafePolicyGradient, SmoothingPolicyGradient

    policy = make_policy(spec, env, std)
    if paper == "2017" and getattr(policy, "is_discrete", False):
        raise InputError(f"--paper must be 2022 for discrete actions, {env.single_action_space}; got {paper}.")
    return (SafePolicyGradient if paper == "2017" else SmoothingPolicyGradient)(env, policy, **options)


def _run(loop: Any, kept: StateFile, num_trajectories: int, records: Path | None, holders: list[str]) -> SafeRun:
    with StopRequest(NOTICE) as stop, told_by_bars() as told:

        def stopped(num_dropped: int = 0) -> StoppedError:
            assert stop.signal is not None
            where = kept.where_stopped(num_dropped, holders)
            return StoppedError(f"stopped by {stop.signal.name} {where}", stop.signal)

        def after_chunk(num_drawn: int) -> None:
            if stop.signal is not None:
                raise stopped(num_drawn)

        def after_update(iteration: Any) -> None:
            if stop.signal is not None:
                raise stopped()
            kept.save_now_and_then()

        try:
            return loop.run(
                num_trajectories, records=records, callback=after_update, tell=told, after_chunk=after_chunk
            )
        except AnybatchError:
            raise
        except (Exception, KeyboardInterrupt) as error:  # the environment's own processes may die of the signal
            if stop.signal is None:
                raise
            raise stopped() from (error if isinstance(error, Exception) else None)
        finally:
            if loop.iterations:
                kept.save()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say warnings in a sentence on stderr, without a line of code."""
    console = Console(stderr=True, highlight=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: console.print(f"anybatch: {message}.", soft_wrap=True, markup=False)
        yield


def _show(outcome: SafeOutcome, console: Console, outputs: Outputs) -> None:
    from anybatch.report.terminal import print_safe_run

    print_safe_run(outcome.to_dict(), console)
    outputs.write(outcome, console)
