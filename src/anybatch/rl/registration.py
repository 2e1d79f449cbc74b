"""Under which ids does Gymnasium know the environments of this package?"""

from __future__ import annotations

import gymnasium

ENVIRONMENTS = {
    "anybatch/LQG1D-v0": ("anybatch.rl.lqg:LQG", {}),
    "anybatch/LQG-v0": ("anybatch.rl.lqg:LQG", {"size": 2}),
    "anybatch/ContinuousCartPole-v0": ("anybatch.rl.cart_pole:ContinuousCartPole", {}),
}


def register_environments() -> None:
    """Register the ids of `ENVIRONMENTS`, for `gymnasium.make_vec`; they are vector environments alone."""
    for name, (where, options) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, vector_entry_point=where, kwargs=dict(options))
