"""Reinforcement learning: policies, rollouts, gradient estimates and environments. Needs gymnasium and numba."""

from importlib.util import find_spec

from anybatch.errors import InputError

if missing := [name for name in ("gymnasium", "numba") if find_spec(name) is None]:
    raise InputError(f"anybatch.rl needs {' and '.join(missing)}. Run: pip install 'anybatch[rl]'")

from anybatch.rl.cart_pole import ContinuousCartPole
from anybatch.rl.gaussian_policy import GaussianPolicy
from anybatch.rl.gradient_accumulator import GradientAccumulator
from anybatch.rl.gradient_estimate import GradientBatch, GradientEstimate, estimate_gradient
from anybatch.rl.lqg import LQG
from anybatch.rl.policy import Policy
from anybatch.rl.registration import register_environments
from anybatch.rl.safe_policy_gradient import SafePolicyGradient
from anybatch.rl.safe_run import Iteration, SafeRun
from anybatch.rl.smoothing_policy_gradient import SmoothingPolicyGradient
from anybatch.rl.softmax_policy import SoftmaxPolicy
from anybatch.rl.task import TaskConstants
from anybatch.rl.trajectories import Trajectories

register_environments()

__all__ = [
    "ContinuousCartPole",
    "GaussianPolicy",
    "GradientAccumulator",
    "GradientBatch",
    "GradientEstimate",
    "Iteration",
    "LQG",
    "Policy",
    "SafePolicyGradient",
    "SafeRun",
    "SmoothingPolicyGradient",
    "SoftmaxPolicy",
    "TaskConstants",
    "Trajectories",
    "estimate_gradient",
]
