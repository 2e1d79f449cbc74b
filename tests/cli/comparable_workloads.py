"""Workloads to compare recipes on, given to the command line by this file's path."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from anybatch import Recipe, Workload

clipped = Recipe("clipped", "the same rate, clipped hard", clip_norm=0.1)


def vectors(num_samples=96, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_samples,), generator=rng)
    return TensorDataset(torch.randn(num_samples, 6, generator=rng) + labels[:, None], labels)


def mean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def good(**changes):
    fields = {
        "model": lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)),
        "train_set": vectors(),
        "eval_set": vectors(40, seed=1),
        "loss": mean_loss,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "base_batch_size": 16,
        "epochs": 4,
        **changes,
    }
    return Workload(**fields)


def at_training_step(number, act):
    """The mean loss, which does something at its n-th step."""
    calls = []

    def loss(model, batch):
        calls.append(model.training and torch.is_grad_enabled())
        if sum(calls) == number and calls[-1]:
            act()
        return mean_loss(model, batch)

    return loss


def terminated():
    """SIGTERM comes in the middle, once."""
    return good(loss=at_training_step(14, lambda: once(lambda: os.kill(os.getpid(), signal.SIGTERM))))


def interrupted():
    """Ctrl-C comes in the middle, once."""
    return good(loss=at_training_step(14, lambda: once(lambda: os.kill(os.getpid(), signal.SIGINT))))


def slow():
    """Steps that leave time for a signal from outside."""

    def loss(model, batch):
        Path(os.environ["STARTED"]).touch()
        time.sleep(0.02)
        return mean_loss(model, batch)

    return good(loss=loss, epochs=400)


def once(act):
    flag = Path(os.environ["ONCE"])
    if not flag.exists():
        flag.touch()
        act()


def without_eval_set():
    return good(eval_set=None)


def dying_on_rank_1():
    """A rank is killed, as by a machine that runs out of memory."""

    def die():
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    return good(loss=at_training_step(14, die))


def failing_on_rank_1():
    def fail():
        if os.environ.get("RANK") == "1":
            raise ValueError("label 11 is out of range")

    return good(loss=at_training_step(14, fail))
