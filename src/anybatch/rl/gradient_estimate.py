"""How is the gradient of a policy's performance estimated on an environment?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Required, TypedDict, Unpack

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from anybatch.decide.argument_checks import require_choice, require_count
from anybatch.decide.error_bounds import Estimator
from anybatch.errors import InputError
from anybatch.rl.buffers import borrowed
from anybatch.rl.gradient_accumulator import GradientAccumulator, GradientEstimate
from anybatch.rl.gradient_memory import require_memory
from anybatch.rl.gymnasium_rollout import check_spaces, roll_out_gymnasium
from anybatch.rl.native_env import is_native
from anybatch.rl.policy import Policy, Score
from anybatch.rl.rollout import EarlyEnd, roll_out
from anybatch.rl.trajectory_sums import TrajectorySums, sum_trajectories
from anybatch.seeds import derive_seed

LARGEST_CHUNK = 50_000
NUMBERS_PER_CHUNK = 2_000_000
NUM_SEEDS_OF_GYMNASIUM = 2**31

AfterChunk = Callable[[int], object]

__all__ = ["AfterChunk", "GradientBatch", "GradientEstimate", "estimate_gradient"]


class GradientBatch:
    """A batch of trajectories under one policy that may grow, and the gradient estimate it gives.

    Trajectories come in chunks, each from draws of its own that depend on the seed and on how many chunks came
    before, and on nothing else: not on threads, not on what is drawn elsewhere. Two chunks draw the same with a chance
    of 2^-32: PyTorch's generator takes no more of a seed on the CPU. A native environment is rolled out past its
    Gymnasium class, in float32, `chunk_size` trajectories at a time; any other one as many as it has sub-environments,
    and what is asked for is rounded up to whole chunks. Only sums are kept of a chunk.

    Args:
        env: a vector environment of Gymnasium, one of this package's or any other.
        policy: fitting it.
        estimator: "gpomdp" or "reinforce".
        discount: gamma. Default: the environment's own, `env.task.discount`.
        horizon: H. Default: the environment's own.
        seed: of everything that is drawn.
        need_ranges: whether the range of the samples is estimated; keeps H + 1 numbers per trajectory and parameter.
        baseline: subtract baselines. They come from the same trajectories, which biases the estimate by order 1/N:
            about 3% at 100 trajectories of the LQG task where the gradient is large, 10% near the optimum.
        score: of the action as it was "drawn", which is unbiased, or as it was "clipped", which is what the authors
            of 2017 published.
        early_end: "pad" episodes that end before the horizon with zeros and count them, or "refuse" them.
        chunk_size: trajectories at a time of a native environment. Default: 50,000, fewer where horizon times
            parameters is above 40.
        num_workers: threads, for native environments. The result does not depend on it.

    Raises:
        InputError: an environment that is no vector environment, a policy that does not fit it, an unknown name, a
            discount, horizon or number out of range or not known, threads for another environment, or sums that the
            machine's memory does not hold.

    Example:
        >>> from anybatch.rl import LQG, GaussianPolicy
        >>> batch = GradientBatch(LQG(), GaussianPolicy(-0.3), seed=0)
        >>> batch.draw(10_000)
        >>> estimate = batch.estimate()
        >>> batch.draw(10_000)
        >>> estimate.num_trajectories, batch.estimate().num_trajectories
        (10000, 20000)
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        *,
        estimator: Estimator = "gpomdp",
        discount: float | None = None,
        horizon: int | None = None,
        seed: int,
        need_ranges: bool = False,
        baseline: bool = True,
        score: Score = "drawn",
        early_end: EarlyEnd = "pad",
        chunk_size: int | None = None,
        num_workers: int = 1,
    ) -> None:
        require_choice(Score, score=score)
        require_choice(EarlyEnd, early_end=early_end)
        check_env(env)
        check_spaces(env, policy)
        task = env.task if is_native(env) else None
        discount = _known("discount", discount if discount is not None or task is None else task.discount)
        self._horizon = int(_known("horizon", horizon if horizon is not None or task is None else task.horizon))
        require_count(horizon=self._horizon, num_workers=num_workers)
        if task is None and (num_workers > 1 or chunk_size is not None):
            name, value = ("num_workers", num_workers) if num_workers > 1 else ("chunk_size", chunk_size)
            raise InputError(
                f"{name} must be left alone for an environment that is not written in tensors; got {value}. Make a "
                "vector environment with more sub-environments."
            )
        size = _chunk_size(self._horizon * len(policy.parameters)) if chunk_size is None else chunk_size
        require_count(chunk_size=size)
        self._env, self._policy, self._seed = env, policy, seed
        self._score: Score = score
        self._early_end: EarlyEnd = early_end
        self._num_workers = num_workers
        self._chunk_size = size if task is not None else env.num_envs
        self._num_chunks = 0
        self._accumulator = GradientAccumulator(
            estimator, discount=discount, need_ranges=need_ranges, baseline=baseline
        )
        require_memory(estimator, len(policy.parameters), self._horizon, num_workers)

    @property
    def num_trajectories(self) -> int:
        """How many were drawn so far."""
        return self._accumulator.num_trajectories

    def draw(self, num_trajectories: int, after_chunk: AfterChunk | None = None) -> None:
        """Draw more trajectories.

        Args:
            num_trajectories: how many, in full chunks and one that takes the rest; see `whole_chunks`.
            after_chunk: called after each chunk with how many were drawn so far; what it raises ends the draw, and
                the batch is of no more use.

        Raises:
            InputError: less than 1, rewards, observations or scores that are not finite, or an early end where that is
            refused.
        """
        require_count(num_trajectories=num_trajectories)
        full, rest = divmod(whole_chunks(self._env, num_trajectories), self._chunk_size)
        sizes = [self._chunk_size] * full + [rest] * (rest > 0)
        with closing(self._sum_chunks(sizes)) as chunks:
            for sums, rows in chunks:
                self._accumulator.add_sums(sums, rows)
                if after_chunk is not None:
                    after_chunk(self.num_trajectories)

    def estimate(self) -> GradientEstimate:
        """Estimate the gradient from all trajectories so far.

        Returns:
            The estimate.

        Raises:
            InputError: fewer than 2 trajectories.
        """
        return self._accumulator.estimate()

    def _sum_chunks(self, sizes: list[int]) -> Generator[tuple[TrajectorySums, Tensor | None]]:
        chunks = list(enumerate(sizes, start=self._num_chunks))
        self._num_chunks += len(sizes)
        if self._num_workers == 1 or len(sizes) == 1:
            yield from (self._sum_chunk(*chunk) for chunk in chunks)
            return
        pending: deque[Future[tuple[TrajectorySums, Tensor | None]]] = deque()
        pool = ThreadPoolExecutor(self._num_workers)
        waits = True
        try:
            for chunk in chunks:
                pending.append(pool.submit(self._sum_chunk, *chunk))
                if len(pending) > self._num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except KeyboardInterrupt:
            waits = False
            raise
        finally:
            pool.shutdown(wait=waits, cancel_futures=True)

    def _sum_chunk(self, index: int, size: int) -> tuple[TrajectorySums, Tensor | None]:
        """Return the sums over a chunk, and its rows where they are needed."""
        start = derive_seed(self._seed, "initial states", index)
        noise = derive_seed(self._seed, "actions", index)
        about = self._accumulator.estimator, self._accumulator.discount
        if is_native(self._env):
            with borrowed() as buffers:
                trajectories = roll_out(
                    self._env.dynamics,
                    self._policy,
                    size,
                    self._horizon,
                    start_seed=start,
                    noise_seed=noise,
                    score=self._score,
                    early_end=self._early_end,
                    buffers=buffers,
                )
                sums, rows = sum_trajectories(trajectories, *about, buffers)
                return sums, rows.clone() if self._accumulator.need_ranges else None
        with torch.no_grad():
            trajectories = roll_out_gymnasium(
                self._env,
                self._policy,
                self._horizon,
                start_seed=start % NUM_SEEDS_OF_GYMNASIUM,
                noise_seed=noise,
                score=self._score,
                early_end=self._early_end,
            )
            return sum_trajectories(trajectories, *about)


def whole_chunks(env: VectorEnv, num_trajectories: int) -> int:
    """Return how many trajectories are drawn where so many are asked for.

    Args:
        env: a native environment gives any number; another one a multiple of its `num_envs`.
        num_trajectories: asked for.

    Returns:
        The next number there can be.
    """
    unit = _unit(env)
    return -(-int(num_trajectories) // unit) * unit


def largest_batch(env: VectorEnv, min_batch_size: int, max_batch_size: int) -> int:
    """Return the largest batch of whole chunks within limits.

    Args:
        env: see `whole_chunks`.
        min_batch_size: least trajectories.
        max_batch_size: most trajectories.

    Returns:
        Trajectories, at most the most.

    Raises:
        InputError: the least in whole chunks is above the most.
    """
    unit, least = _unit(env), whole_chunks(env, min_batch_size)
    if least > max_batch_size:
        raise InputError(
            f"max_batch_size must be at least {least}, the smallest batch there can be with {unit} sub-environments; "
            f"got {max_batch_size}. Raise it, or make fewer of them."
        )
    return max_batch_size // unit * unit


def _unit(env: VectorEnv) -> int:
    return 1 if is_native(env) else env.num_envs


class BatchOptions(TypedDict, total=False):
    """The keywords of `GradientBatch`, which tells what they are."""

    estimator: Estimator
    discount: float | None
    horizon: int | None
    seed: Required[int]
    need_ranges: bool
    baseline: bool
    score: Score
    early_end: EarlyEnd
    chunk_size: int | None
    num_workers: int


def estimate_gradient(
    env: VectorEnv,
    policy: Policy,
    num_trajectories: int,
    **options: Unpack[BatchOptions],
) -> GradientEstimate:
    """Estimate the gradient of a policy's performance from so many trajectories.

    Args:
        env: a vector environment of Gymnasium, one of this package's or any other.
        policy: fitting it.
        num_trajectories: N, 2 or more; rounded up by `whole_chunks`.
        **options: keywords of `GradientBatch`, of which `seed` must be given.

    Returns:
        The estimate.

    Raises:
        InputError: see `GradientBatch`; fewer than 2 trajectories.

    Example:
        >>> from anybatch.rl import LQG, GaussianPolicy
        >>> estimate = estimate_gradient(LQG(), GaussianPolicy(0.0), 20_000, seed=0)
        >>> -10.5 < estimate.gradient.item() < -9.1
        True
    """
    require_count(num_trajectories=num_trajectories)
    if num_trajectories < 2:
        raise InputError(f"num_trajectories must be at least 2, for there to be a variance; got {num_trajectories}.")
    batch = GradientBatch(env, policy, **options)
    batch.draw(int(num_trajectories))
    return batch.estimate()


def _chunk_size(numbers_per_trajectory: int) -> int:
    return max(1, min(LARGEST_CHUNK, NUMBERS_PER_CHUNK // numbers_per_trajectory))


def _known(name: str, value: float | None) -> float:
    if value is None:
        raise InputError(f"{name} must be given for an environment that does not say its own; got None.")
    return value


def check_env(env: object) -> None:
    """Refuse what is no vector environment.

    Args:
        env: anything.

    Raises:
        InputError: it is none.
    """
    if not isinstance(env, VectorEnv):
        raise InputError(
            f"`env` must be a vector environment; got {type(env).__name__}. "
            "Make one with gymnasium.make_vec(id, num_envs=...)."
        )
