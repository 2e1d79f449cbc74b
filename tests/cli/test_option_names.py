"""Messages name options as the command line has them, and leave plain words alone."""

import pytest

from anybatch.cli.option_names import with_option_names

NAMES = ("delta", "horizon", "estimator", "baseline", "mode", "min_batch_size", "early_end", "reward_bound")


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("delta must be between 0 and 1; got 2.", "--delta must be between 0 and 1; got 2."),
        (
            "episodes must last to the horizon of 5 steps. Pass early_end='pad', or a shorter horizon.",
            "episodes must last to the horizon of 5 steps. Pass --early-end pad, or a shorter horizon.",
        ),
        ('Take estimator="reinforce" or mode="safe".', "Take --estimator reinforce or --mode safe."),
        ("Take baseline=False, not baseline=True.", "Take --no-baseline, not --baseline."),
        ("Raise it, or lower min_batch_size.", "Raise it, or lower --min-batch-size."),
        ("num_trajectories must be 2", "--trajectories must be 2"),
        ("--delta must be 1", "--delta must be 1"),
        ("for a softmax policy use SmoothingPolicyGradient.", "for a softmax policy use --paper 2022."),
        ("the modes of min_batch_sizes", "the modes of min_batch_sizes"),
        ("runs/reward_bound.pt cannot be read", "runs/reward_bound.pt cannot be read"),
        ("reward_bound.pt cannot be read", "reward_bound.pt cannot be read"),
        ("make_vec(id, min_batch_size=...)", "make_vec(id, min_batch_size=...)"),
    ],
)
def test_arguments_become_options(message, wanted):
    assert with_option_names(message, NAMES) == wanted
