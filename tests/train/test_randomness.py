"""Global generators: seeded alike, and left as they were found."""

import random

import numpy as np
import pytest
import torch

from anybatch.train.randomness import CPU, kept_generators, seed_generators, seeded


def draws():
    return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()


def test_a_seed_decides_what_all_three_generators_draw():
    with kept_generators():
        seed_generators(5)
        first = draws()
        seed_generators(5)
        assert draws() == first
        seed_generators(6)
        assert all(left != right for left, right in zip(draws(), first, strict=True))


def test_torch_draws_as_after_its_own_manual_seed():
    with kept_generators():
        torch.manual_seed(2**63 - 1)
        wanted = torch.rand(4)
        seed_generators(2**63 - 1)
        assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("enter", [kept_generators, lambda: seeded(CPU, 1)])
@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_after_a_block_as_if_it_had_not_been(enter, fails):
    with kept_generators():
        seed_generators(0)
        wanted = draws()
        seed_generators(0)
        try:
            with enter():
                draws()
                np.random.seed(1)
                torch.manual_seed(1)
                random.seed(1)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert draws() == wanted


def test_a_seeded_block_draws_as_its_seed_says():
    with seeded(CPU, 7):
        first = draws()
    draws()
    with seeded(CPU, 7):
        assert draws() == first
