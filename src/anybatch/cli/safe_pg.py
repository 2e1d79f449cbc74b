"""`anybatch safe-pg`: make a policy better, update by update, and never worse but for a stated probability."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from anybatch.cli.outputs import Outputs, check_writable, told_by_bars
from anybatch.cli.safe_outcome import SafeOutcome
from anybatch.cli.safe_pg_inputs import make_environment, make_policy
from anybatch.cli.safe_pg_state import StateFile
from anybatch.decide.error_bounds import Estimator
from anybatch.decide.safe_step import Mode
from anybatch.decide.smoothing_step import Rule
from anybatch.errors import AnybatchError, InputError, StoppedError
from anybatch.train.stop import StopRequest

Paper = Literal["2017", "2022"]
OWN_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "2017": ("mode", "range", "min_batch_size", "action_volume", "penalty"),
    "2022": ("rule", "tolerance", "mini_batch_size", "growth", "warm_start", "feature_norm_bound"),
}
TASK, FIRST, SECOND = "The task and its constants", "Paper 2017 alone", "Paper 2022 alone"


def safe_pg(
    env: Annotated[
        str,
        typer.Option(
            help="[b]lqg1d[/b], [b]lqg[/b] (two dimensions), [b]cartpole-continuous[/b], an id of Gymnasium such as "
            "Pendulum-v1, or [b]path/to/file.py:function[/b] that returns a vector environment."
        ),
    ],
    trajectories: Annotated[int, typer.Option(help="Of the whole run. It ends before a batch that does not fit in.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help="The policy to improve: [b]path/to/file.py:function[/b] that returns one, or a saved state: "
            "torch.save(policy.state_dict(), file), or the --state of a run. \\[default: linear, weights 0]"
        ),
    ] = None,
    paper: Annotated[
        Paper,
        typer.Option(
            help="2017: one coordinate moves, delta is per update, the next batch is sized for the best gain per "
            "trajectory. 2022: all coordinates move, delta is for the whole run, a batch grows until it is enough."
        ),
    ] = "2017",
    bound: Annotated[
        str,
        typer.Option(
            help="On the error of a gradient. 2017: chebyshev, hoeffding, bernstein, student_t (approximate). 2022: "
            "bernstein, chebyshev, sample_chebyshev, sub_gaussian (Gaussian), bounded_score (softmax)."
        ),
    ] = "bernstein",
    estimator: Annotated[Estimator, typer.Option(help="Of the gradient; gpomdp varies less.")] = "gpomdp",
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Subtract the baselines that minimise the variance; they bias the gradient by order 1/N, so that "
            "nothing is proven with them.",
        ),
    ] = True,
    delta: Annotated[
        float, typer.Option(help="Probability of failure that is allowed: 0.05 is cautious and slow, 0.95 bold.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    std: Annotated[float | None, typer.Option(help="Of the default policy's actions. \\[default: 1]")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Most trajectories of an update. \\[default: 500000 in 2017, 100000 in 2022]")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Keep the state here, every few seconds; the same command goes on from it after a kill."),
    ] = None,
    records: Annotated[Path | None, typer.Option(help="Write one JSON object per update, as they come.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the whole run as one JSON object.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report, one HTML page that needs no network.")] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="safe: no step where the error is not below the gradient. paper: the published runs, which step "
            "even so and have a bias. \\[default: safe]",
            rich_help_panel=FIRST,
        ),
    ] = None,
    range: Annotated[
        str | None,
        typer.Option(
            help="Of one trajectory's gradient, for hoeffding and bernstein: theoretical, by the published formula, or "
            "empirical, that of the batch, which proves nothing and is much faster. \\[default: theoretical]",
            rich_help_panel=FIRST,
        ),
    ] = None,
    min_batch_size: Annotated[
        int | None,
        typer.Option(help="Least trajectories, and the first batch. \\[default: 100]", rich_help_panel=FIRST),
    ] = None,
    action_volume: Annotated[
        float | None, typer.Option(help="|A|. \\[default: of the box of actions]", rich_help_panel=FIRST)
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="c, instead of the one from the constants.", rich_help_panel=FIRST)
    ] = None,
    rule: Annotated[
        Rule | None,
        typer.Option(
            help="corrected: as derived. published, published_fast: by the authors' code, without the guarantee. "
            "\\[default: corrected]",
            rich_help_panel=SECOND,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Stay above (1 - this) times the best so far. \\[default: every update improves]",
            rich_help_panel=SECOND,
        ),
    ] = None,
    mini_batch_size: Annotated[
        int | None, typer.Option(help="Trajectories between two looks. \\[default: 100]", rich_help_panel=SECOND)
    ] = None,
    growth: Annotated[
        float | None,
        typer.Option(help="Of a batch between two looks; 2 doubles it. \\[default: 1]", rich_help_panel=SECOND),
    ] = None,
    warm_start: Annotated[
        float | None,
        typer.Option(help="Begin with so many times the batch before. \\[default: 0]", rich_help_panel=SECOND),
    ] = None,
    feature_norm_bound: Annotated[
        float | None, typer.Option(help="F. \\[default: from --feature-bound]", rich_help_panel=SECOND)
    ] = None,
    reward_bound: Annotated[
        float | None,
        typer.Option(
            help="R, of every reward's size. \\[default: the environment's own; else the largest seen, and then the "
            "guarantee is heuristic]",
            rich_help_panel=TASK,
        ),
    ] = None,
    feature_bound: Annotated[
        float | None, typer.Option(help="M, of every feature's size, likewise.", rich_help_panel=TASK)
    ] = None,
    discount: Annotated[
        float | None, typer.Option(help="\\[default: the environment's own]", rich_help_panel=TASK)
    ] = None,
    horizon: Annotated[int | None, typer.Option(help="In steps, likewise.", rich_help_panel=TASK)] = None,
    early_end: Annotated[
        Literal["pad", "refuse"],
        typer.Option(
            help="Episodes that end before the horizon: count rewards of 0 after it, or stop.", rich_help_panel=TASK
        ),
    ] = "pad",
    num_envs: Annotated[
        int, typer.Option(min=1, help="Sub-environments of an environment of Gymnasium.", rich_help_panel=TASK)
    ] = 100,
    num_workers: Annotated[
        int, typer.Option(min=1, help="Threads, for the environments built in.", rich_help_panel=TASK)
    ] = 1,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
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
    for path in (*outputs, state, records):
        check_writable(path)
    own = {
        "mode": mode, "range": range, "min_batch_size": min_batch_size, "action_volume": action_volume,
        "penalty": penalty, "rule": rule, "tolerance": tolerance, "mini_batch_size": mini_batch_size,
        "growth": growth, "warm_start": warm_start, "feature_norm_bound": feature_norm_bound,
    }  # fmt: skip
    shared = {
        "bound": bound, "estimator": estimator, "baseline": baseline, "delta": delta, "max_batch_size": max_batch_size,
        "reward_bound": reward_bound, "feature_bound": feature_bound, "discount": discount, "horizon": horizon,
        "early_end": early_end, "num_workers": num_workers, "seed": seed,
    }  # fmt: skip
    console = Console(highlight=False)
    with _plain_warnings():
        loop = _loop(paper, make_environment(env, num_envs), policy, std, {**_own(paper, own), **_given(shared)})
        kept = StateFile(state, loop, env, paper)
        if behind := kept.resume():
            console.print(f"Going on after update {behind} of {state}.", soft_wrap=True)
        try:
            _run(loop, kept, trajectories, records)
        except AnybatchError:
            if loop.iterations:
                _show(SafeOutcome(env, paper, trajectories, loop.result(), is_partial=True), console, outputs)
            raise
    _show(SafeOutcome(env, paper, trajectories, loop.result(), is_partial=False), console, outputs)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _own(paper: Paper, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, none of which may be the other paper's."""
    given = _given(options)
    for name, value in given.items():
        if name not in OWN_OPTIONS[paper]:
            other = next(year for year, names in OWN_OPTIONS.items() if name in names)
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} must be left alone with --paper {paper}; got {value}. It is of --paper {other}."
            )
    return given


def _loop(paper: Paper, env: Any, spec: str | None, std: float | None, options: dict[str, Any]) -> Any:
    from anybatch.rl import SafePolicyGradient, SmoothingPolicyGradient

    policy = make_policy(spec, env, std)
    if paper == "2017" and getattr(policy, "is_discrete", False):
        raise InputError(f"--paper must be 2022 for discrete actions, {env.single_action_space}; got {paper}.")
    return (SafePolicyGradient if paper == "2017" else SmoothingPolicyGradient)(env, policy, **options)


def _run(loop: Any, kept: StateFile, num_trajectories: int, records: Path | None) -> None:
    with StopRequest() as stop, told_by_bars() as told:

        def after_update(iteration: Any) -> None:
            if stop.signal is not None:
                saved = (
                    "the state is saved, call again to go on" if kept.path else "no --state was named, nothing is kept"
                )
                raise StoppedError(
                    f"stopped by {stop.signal.name} after update {iteration.iteration}; {saved}.", stop.signal
                )
            kept.save_now_and_then()

        try:
            loop.run(num_trajectories, records=records, callback=after_update, tell=told)
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
