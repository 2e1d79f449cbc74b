"""Who seeds the global generators, and who puts them back?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CPU = torch.device("cpu")


def seed_generators(seed: int, device: torch.device = CPU) -> None:
    """Seed the global generators: torch's, random's and numpy's.

    `torch.manual_seed` would do, but asks every backend there is, which takes longer than a small step.

    Args:
        seed: up to 64 bits.
        device: whose generator is seeded beside the CPU's.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def kept_generators(device: torch.device = CPU) -> Iterator[None]:
    """Put the global generators back when the block ends.

    Args:
        device: whose generator is kept beside the CPU's.

    Yields:
        Nothing.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators, which dropout draws from, and put them back when the block ends.

    Args:
        device: whose generator is seeded too.
        seed: of torch, random and numpy.

    Yields:
        Nothing.
    """
    with kept_generators(device):
        seed_generators(seed, device)
        yield
