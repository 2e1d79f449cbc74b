"""Environments and policies as a user writes them: good ones, and each kind of bad one."""

import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from rl.saturated_policy import SaturatedPolicy

from anybatch.rl import LQG, GaussianPolicy

STEPS = 5


class Task(gymnasium.Env):
    """A walk with a constant reward, which ends when told to."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, reward=0.5, length=STEPS, width=1.0):
        self.reward, self.length = reward, length
        self.action_space = spaces.Box(-width, width, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 1), {}

    def step(self, action):
        self.steps += 1
        gain = self.reward if np.isnan(self.reward) else self.reward - float(np.clip(action, -1, 1)[0]) ** 2
        return self.np_random.uniform(-1, 1, 1), gain, self.steps >= self.length, False, {}


def vector(**options):
    return SyncVectorEnv([lambda: Task(**options) for _ in range(20)])


class Signalled(SyncVectorEnv):
    """Sub-environments that once, at their ninth reset, send this process SIGINT, and may then die of it."""

    num_resets = 0
    is_fragile = False

    def reset(self, **options):
        self.num_resets += 1
        flag = Path(os.environ["ONCE"])
        if self.num_resets == 9 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGINT)
            if self.is_fragile:
                raise EOFError("a worker is gone")
        return super().reset(**options)


class Fragile(Signalled):
    is_fragile = True


class Broken(SyncVectorEnv):
    """Sub-environments that fail at their ninth reset."""

    num_resets = 0

    def reset(self, **options):
        self.num_resets += 1
        if self.num_resets == 9:
            raise ValueError("the simulator is gone")
        return super().reset(**options)


class Endless(SyncVectorEnv):
    """Sub-environments that hang in their ninth reset, once they have said so by a file."""

    num_resets = 0

    def reset(self, **options):
        self.num_resets += 1
        if self.num_resets == 9:
            Path(os.environ["ONCE"]).touch()
            time.sleep(100)
        return super().reset(**options)


def signalled():
    return Signalled([Task] * 20)


def fragile():
    return Fragile([Task] * 20)


def broken():
    return Broken([Task] * 20)


def endless():
    return Endless([Task] * 20)


def good():
    return vector()


def short():
    return vector(length=3)


def unbounded():
    return vector(width=np.inf)


def not_a_number():
    return vector(reward=np.nan)


def raises():
    raise ValueError("no licence")


def start():
    return GaussianPolicy(-0.3)


def large_features():
    return GaussianPolicy([[-0.1, 0.1]], features=lambda states: torch.cat([states, 3 * states], 1))


def own_policy():
    return SaturatedPolicy(0.0)


def no_policy():
    return 3


class Interrupted(LQG):
    """The task, which once sends this process SIGTERM when the third policy is evaluated."""

    num_evaluations = 0

    def performance(self, policy):
        self.num_evaluations += 1
        flag = Path(os.environ["ONCE"])
        if self.num_evaluations == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().performance(policy)


def interrupted():
    return Interrupted()


def lqg():
    return LQG()
