"""How fast are trajectories rolled out with their gradient statistics, and how much memory does a large batch take?

The one-dimensional LQG task at horizon 20, G(PO)MDP. Beside it NumPy's Generator draws as many float64 normals, 20 per
trajectory, on as many threads; and a scalar environment from `gymnasium.make` is stepped by a loop. Ours and NumPy's
are timed in turn, by the wall clock and by the processor's, which other work on the machine disturbs less; the loop
by the wall clock. Memory is the peak of a process of its own over what it held after import. Tasks of more numbers,
without a bar, are timed on one thread.

    python benchmarks/rl_trajectories.py --json benchmarks/results/rl_trajectories.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gymnasium
import numba
import numpy as np
import torch
from gymnasium import spaces

from anybatch.rl import LQG, ContinuousCartPole, GaussianPolicy, estimate_gradient
from anybatch.rl.native_env import NativeVectorEnv

HORIZON = 20
DISCOUNT = 0.9
BLOCK = 10_000
WEIGHT = -0.3


class ScalarLQG(gymnasium.Env):
    """The same task, one state at a time, as environments are usually written."""

    observation_space = spaces.Box(-2.0, 2.0, (1,), np.float64)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw an initial state."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-2.0, 2.0, 1)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step."""
        reward = -0.5 * float(self.state @ self.state + action @ action)
        self.state = np.clip(self.state + action, -2.0, 2.0)
        return self.state, reward, False, False, {}


def loop_seconds(num_trajectories: int) -> float:
    """Return the seconds of a scalar loop that keeps scores and rewards, without what is made of them."""
    gymnasium.register("ScalarLQG-v0", entry_point=lambda **_: ScalarLQG(), max_episode_steps=HORIZON)
    env, rng = gymnasium.make("ScalarLQG-v0"), np.random.default_rng(0)
    scores, rewards = np.empty((num_trajectories, HORIZON)), np.empty((num_trajectories, HORIZON))
    env.reset(seed=0)
    started = time.perf_counter()
    for n in range(num_trajectories):
        state, _ = env.reset()
        for t in range(HORIZON):
            noise = rng.standard_normal(1)
            scores[n, t] = (noise * state).item()
            action = np.clip(WEIGHT * state + noise, -2.0, 2.0)
            state, rewards[n, t], _, _, _ = env.step(action)
    seconds = time.perf_counter() - started
    gymnasium.registry.pop("ScalarLQG-v0")
    return seconds


def numpy_draw(num_trajectories: int, num_threads: int) -> Callable[[], None]:
    """Return what draws 20 float64 normals per trajectory, in blocks, on so many threads."""
    rngs = [np.random.default_rng(seed) for seed in range(num_threads)]
    num_blocks = num_trajectories // BLOCK // num_threads

    def draw(rng: np.random.Generator) -> None:
        for _ in range(num_blocks):
            rng.standard_normal((BLOCK, HORIZON))

    def draw_all() -> None:
        if num_threads == 1:
            return draw(rngs[0])
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(draw, rngs))

    return draw_all


def our_batch(num_trajectories: int, num_threads: int) -> Callable[[], None]:
    """Return what estimates the gradient from so many trajectories on so many threads."""
    env, policy = LQG(), GaussianPolicy(WEIGHT)

    def estimate() -> None:
        estimate_gradient(env, policy, num_trajectories, seed=0, num_workers=num_threads)

    return estimate


def pair_seconds(num_trajectories: int, num_threads: int, num_pairs: int) -> dict[str, list[float]]:
    """Return wall and processor seconds of ours and NumPy's, in turn."""
    ours, theirs = our_batch(num_trajectories, num_threads), numpy_draw(num_trajectories, num_threads)
    seconds: dict[str, list[float]] = {"ours": [], "numpy": [], "ours_cpu": [], "numpy_cpu": []}
    ours()
    theirs()
    for _ in range(num_pairs):
        for name, run in (("ours", ours), ("numpy", theirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - wall)
            seconds[f"{name}_cpu"].append(time.process_time() - cpu)
    return seconds


def speed(num_trajectories: int, num_threads: int, num_pairs: int) -> dict[str, float]:
    """Return microseconds per trajectory, and the quartiles of the ratio over pairs."""
    seconds = pair_seconds(num_trajectories, num_threads, num_pairs)
    row = {f"{name}_us": 1e6 * median(values) / num_trajectories for name, values in seconds.items()}
    for kind in ("", "_cpu"):
        ratios = [a / b for a, b in zip(seconds[f"ours{kind}"], seconds[f"numpy{kind}"], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        row |= {f"ratio{kind}": middle, f"ratio{kind}_low": low, f"ratio{kind}_high": high}
    return row


def other_tasks(share: float) -> dict[str, float]:
    """Return microseconds per trajectory of tasks whose states and policies have several numbers."""
    tasks = {
        "lqg of 2_us": (LQG(size=2), GaussianPolicy(WEIGHT * np.eye(2)), 200_000),
        "lqg of 4_us": (LQG(size=4), GaussianPolicy(WEIGHT * np.eye(4)), 50_000),
        "cart-pole_us": (ContinuousCartPole(), GaussianPolicy(np.zeros((1, 4))), 10_000),
    }
    return {name: 1e6 * _seconds_each(env, policy, int(share * num)) for name, (env, policy, num) in tasks.items()}


def _seconds_each(env: NativeVectorEnv, policy: GaussianPolicy, num_trajectories: int) -> float:
    estimate_gradient(env, policy, num_trajectories, seed=0)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        estimate_gradient(env, policy, num_trajectories, seed=0)
        seconds.append(time.perf_counter() - started)
    return median(seconds) / num_trajectories


def added_memory(num_trajectories: int, need_ranges: bool) -> float:
    """Return by how many megabytes the peak of this process exceeds what it held after import."""
    held = _mebibytes("VmRSS")
    estimate_gradient(LQG(), GaussianPolicy(WEIGHT), num_trajectories, seed=0, need_ranges=need_ranges, num_workers=2)
    return _mebibytes("VmHWM") - held


def _mebibytes(name: str) -> float:
    """Return a figure of this process; getrusage would count what its parent held when it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def memory_of_a_process(num_trajectories: int, need_ranges: bool) -> float:
    """Return the same of a process of its own."""
    command = [sys.executable, __file__, "--memory", str(num_trajectories), *(["--ranges"] if need_ranges else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure all and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few trajectories, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ranges", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(added_memory(arguments.memory, arguments.ranges))
        return
    num, num_pairs, num_loop = (20_000, 3, 50) if arguments.smoke else (500_000, 25, 2_000)
    results: dict[str, Any] = {f"threads: {count}": speed(num, count, num_pairs) for count in (1, 2)}
    loop_us = 1e6 * median(loop_seconds(num_loop) for _ in range(3)) / num_loop
    results["loop"] = {"loop_us": loop_us} | {
        f"times_faster, {name}": loop_us / results[name]["ours_us"] for name in ("threads: 1", "threads: 2")
    }
    results["other tasks"] = other_tasks(0.01 if arguments.smoke else 1.0)
    num_batch = 20_000 if arguments.smoke else 500_000
    results["memory"] = {
        name: memory_of_a_process(num_batch, need_ranges)
        for name, need_ranges in (("added_mb", False), ("added_mb_with_ranges", True))
    }
    for name, row in results.items():
        print(name + ": " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if arguments.json:
        about = {"torch": torch.__version__, "numpy": np.__version__, "numba": numba.__version__}
        about |= {"python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
