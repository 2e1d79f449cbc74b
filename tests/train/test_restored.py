"""What was taken apart for a file comes back equal."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from probing.made_up import noise_of
from train.small_workloads import vectors_workload

import anybatch
from anybatch.probing import ProbeResult
from anybatch.train.restored import restored


@dataclass(frozen=True)
class Leaf:
    value: float | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf]
    first: Leaf | None = None


def through_json(value):
    return json.loads(json.dumps(dataclasses.asdict(value)))


@pytest.mark.parametrize(
    "value",
    [
        Leaf(None),
        Leaf(1.5, ("a", "b")),
        Tree((Leaf(1.0), Leaf(None)), {"x": Leaf(2.0, ("y",))}, Leaf(3.0)),
        Tree((), {}),
        noise_of(3.0, modules={"a": noise_of(None)}),
    ],
)
def test_it_comes_back_equal(value):
    assert restored(type(value), through_json(value)) == value


def test_a_whole_probe_comes_back():
    result = anybatch.probe(vectors_workload(), budget=0.5, device="cpu")
    again = restored(ProbeResult, through_json(result))
    assert again.to_dict() == result.to_dict()
    assert again.noise == result.noise
