"""Which environment, and which policy, do the names on the command line stand for?"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from anybatch.errors import AnybatchError, InputError
from anybatch.workloads.load import load_function

ENVIRONMENTS = ("lqg1d", "lqg", "cartpole-continuous")


def make_environment(name: str, num_envs: int) -> Any:
    """Make a vector environment.

    Args:
        name: one of `ENVIRONMENTS`, an id of Gymnasium, or `path/to/file.py:function`.
        num_envs: sub-environments, where Gymnasium makes it.

    Returns:
        The environment.

    Raises:
        InputError: there is no such environment, or it cannot be made.
    """
    from anybatch.rl import LQG, ContinuousCartPole

    if name in ENVIRONMENTS:
        return {"lqg1d": LQG, "lqg": lambda: LQG(size=2), "cartpole-continuous": ContinuousCartPole}[name]()
    import gymnasium

    if ".py:" in name:
        env = _call(name, "environment")
        if not isinstance(env, gymnasium.vector.VectorEnv):
            raise InputError(f"{name} must return a gymnasium.vector.VectorEnv; got {type(env).__name__}.")
        return env
    try:
        return gymnasium.make_vec(name, num_envs=num_envs)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        known = ", ".join(ENVIRONMENTS)
        raise InputError(
            f"--env must be {known}, path/to/file.py:function or an id of Gymnasium; got {name!r}: "
            f"{str(error).rstrip('.')}."
        ) from error


def make_policy(spec: str | None, env: Any, std: float | None) -> Any:
    """Make the first policy.

    Args:
        spec: `path/to/file.py:function`, a file with a saved state, or None for weights of zero.
        env: that it acts in.
        std: of the actions, where there is no spec.

    Returns:
        The policy.

    Raises:
        InputError: there is no such policy, or it is none.
    """
    if spec is None:
        return _zero_policy(env, 1.0 if std is None else std)
    if std is not None:
        raise InputError(f"--std must be left alone with --policy, which has its own; got {std}.")
    if ".py:" not in spec:
        _check_state_file(spec)
        return load_policy(Path(spec))
    policy = _call(spec, "policy")
    if not all(hasattr(policy, name) for name in ("parameters", "with_parameters", "scores", "state_dict")):
        raise InputError(f"{spec} must return a policy, such as anybatch.rl.GaussianPolicy; got {type(policy)}.")
    return policy


def _check_state_file(spec: str) -> None:
    path = Path(spec)
    if path.suffix == ".py":
        raise InputError(f"--policy must name the function in a file of code; got {spec}. Give {spec}:function.")
    if not path.is_file():
        raise InputError(
            "--policy must be a saved state or path/to/file.py:function, such as mine.py:function; "
            f"got {spec}, which is no file."
        )


def load_policy(path: Path) -> Any:
    """Make a policy from its saved state, or from that of a run, whose last policy it is.

    Args:
        path: written by `torch.save(policy.state_dict(), path)` or by --state.

    Returns:
        The policy, linear in the states.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    from anybatch.rl import GaussianPolicy, SoftmaxPolicy

    saved = read_state(path)
    saved = saved.get("policy", saved)
    if "needs" in saved:
        raise InputError(
            f"--policy {path} needs code that a saved state does not hold: {saved['needs']}. "
            "Give path/to/file.py:function that makes the policy."
        )
    if saved.get("kind") == "gaussian":
        return GaussianPolicy(saved["weights"], saved["covariance"])
    if saved.get("kind") == "softmax":
        return SoftmaxPolicy(saved["weights"], saved["temperature"])
    raise InputError(f"--policy {path} must hold a policy's state_dict() or the --state of a run; it does not.")


def read_state(path: Path) -> dict[str, Any]:
    """Return a dictionary that torch saved.

    Args:
        path: of the file.

    Returns:
        Tensors and plain values.

    Raises:
        InputError: it cannot be read, or holds no dictionary.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file that torch did not write
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever the unpickler trips over
        raise InputError(f"{path} cannot be read as a saved state. Choose another file.") from error
    if not isinstance(saved, dict):
        raise InputError(f"{path} must hold a saved state; it holds {type(saved).__name__}.")
    return saved


def _call(spec: str, what: str) -> Any:
    function = load_function(spec, what)
    try:
        return function()
    except AnybatchError:
        raise
    except Exception as error:
        raise InputError(f"{spec} raised {type(error).__name__}: {error}") from error


def _zero_policy(env: Any, std: float) -> Any:
    from gymnasium import spaces

    from anybatch.rl import GaussianPolicy, SoftmaxPolicy

    if not 0 < std < math.inf:
        raise InputError(f"--std must be positive and finite; got {std}.")
    states, actions = env.single_observation_space, env.single_action_space
    num_features = math.prod(getattr(states, "shape", None) or (1,))
    if isinstance(actions, spaces.Discrete):
        return SoftmaxPolicy(torch.zeros(int(actions.n), num_features))
    if isinstance(actions, spaces.Box):
        return GaussianPolicy(torch.zeros(math.prod(actions.shape), num_features), std**2)
    raise InputError(f"actions must be numbers (Box) or one choice (Discrete); got {actions}. Wrap the environment.")
