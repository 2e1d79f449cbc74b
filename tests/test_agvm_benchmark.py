"""The benchmark of AGVM favours none of what it sets side by side."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest


def test_every_action_comes_first_as_often_as_any_other_and_keeps_its_column(monkeypatch):
    pytest.importorskip("torchvision")
    path = Path(__file__).parent.parent / "benchmarks" / "agvm.py"
    spec = importlib.util.spec_from_file_location("agvm_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    order = []
    monkeypatch.setattr(benchmark, "_seconds", lambda action: action())

    def action(name):
        return lambda: order.append(name) or float(name)

    rounds = benchmark.in_turns([action(name) for name in range(3)], lambda: order.append("prepared"), 6)
    assert rounds == [[0.0, 1.0, 2.0]] * 6
    assert order[0::2] == ["prepared"] * 18
    assert Counter(order[1::6]) == {0: 2, 1: 2, 2: 2}
