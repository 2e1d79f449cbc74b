"""The sums for a gradient: how much memory they take, and when they are refused."""

import re
import subprocess
import sys

import pytest

from anybatch.errors import InputError
from anybatch.rl import LQG, GaussianPolicy, GradientBatch
from anybatch.rl import gradient_memory as module

GROWTH = """
import resource, torch
from anybatch.rl import GradientAccumulator, Trajectories
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
accumulator = GradientAccumulator("gpomdp", discount=0.9)
parts = [Trajectories(torch.randn(300, 100, 4), torch.randn(300, 4), max_feature=1.0) for _ in range(3)]
GradientAccumulator("gpomdp", discount=0.9).add(Trajectories(*(torch.randn(2, *rest, 4) for rest in ((2,), ())), 1.0))
before = peak()
for part in parts:
    accumulator.add(part)
accumulator.estimate()
print((peak() - before) / (8 * 100 * 302**2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss")
def test_an_accumulator_holds_no_more_copies_of_its_sums_than_are_counted():
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, timeout=200, check=True)
    assert float(done.stdout) < module.NUM_COPIES + 0.8


def batch(**options):
    return GradientBatch(LQG(), GaussianPolicy(0.0), seed=0, **options)


def test_sums_that_would_not_fit_in_memory_are_refused_with_the_bytes_they_need(monkeypatch):
    monkeypatch.setattr(module, "machine_bytes", lambda: 4_000_000)
    batch(horizon=300)
    message = (
        "must fit in 75% of the machine's 4,000,000 bytes; got 3,878,496 bytes for 1 parameters and a horizon of 400 "
        'on 1 thread(s). Take estimator="reinforce", whose sums do not grow with the horizon, or a shorter horizon.'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        batch(horizon=400)
    batch(horizon=400, estimator="reinforce")
    with pytest.raises(InputError, match="got 3,648,160 bytes for 1 parameters and a horizon of 300 on 2 thread"):
        batch(horizon=300, num_workers=2)


def test_the_machine_says_how_much_memory_it_has():
    assert 2**28 < module.machine_bytes() < 2**50
