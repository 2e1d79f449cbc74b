"""The walk of the weights: measured as the slow twin does, at updates that a logarithmic axis wants."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stats.nets import BodyAndHead
from torch import nn

from anybatch.stats.weight_distance import WeightDistance, log_spaced


def twin(initial, model):
    """Per tensor and together, number by number."""
    tensors = {}
    for name, parameter in model.named_parameters():
        pairs = zip(parameter.flatten().tolist(), initial[name], strict=True)
        tensors[name] = math.sqrt(math.fsum((now - then) ** 2 for now, then in pairs))
    return math.sqrt(math.fsum(value**2 for value in tensors.values())), tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1e-3, 1.0, 30.0])
def test_distances_equal_the_slow_twin_in_every_precision(dtype, step):
    torch.manual_seed(0)
    model = BodyAndHead().to(dtype)
    initial = {name: parameter.flatten().tolist() for name, parameter in model.named_parameters()}
    distance = WeightDistance(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step * torch.randn(parameter.shape).to(dtype))
    found = distance.measure()
    whole, tensors = twin(initial, model)
    assert found.whole.dtype is torch.float64
    # the parameters are exact numbers, whatever their type: so is the distance, but for the sum's rounding
    assert found.whole.item() == pytest.approx(whole, rel=1e-7)
    assert {name: value.item() for name, value in found.tensors.items()} == pytest.approx(tensors, rel=1e-7)


def test_nothing_has_moved_at_the_start():
    found = WeightDistance(BodyAndHead()).measure()
    assert found.whole.item() == 0
    assert not any(value.item() for value in found.tensors.values())


def test_the_initial_weights_do_not_follow_the_model():
    model = nn.Linear(2, 1, bias=False)
    distance = WeightDistance(model)
    start = model.weight.detach().clone()
    for _ in range(2):
        with torch.no_grad():
            model.weight += 1
        assert torch.equal(distance.initial["weight"], start)
    assert distance.measure().whole.item() == pytest.approx(math.sqrt(8), rel=1e-6)


def test_only_trainable_parameters_count_and_buffers_do_not():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    distance = WeightDistance(model)
    assert list(distance.initial) == ["0.weight", "1.weight", "1.bias"]
    model(torch.randn(8, 3))
    with torch.no_grad():
        model[0].bias += 5
    assert distance.measure().whole.item() == 0


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    distance = WeightDistance(model)
    with torch.no_grad():
        model[0].weight += 1
    assert distance.measure().whole.item() == pytest.approx(2.0, rel=1e-6)


def test_measuring_asks_for_no_gradient():
    found = WeightDistance(nn.Linear(2, 1)).measure()
    assert not found.whole.requires_grad


@given(last=st.integers(1, 10**7), per_decade=st.integers(1, 60))
def test_points_ascend_from_one_to_the_last(last, per_decade):
    points = log_spaced(last, per_decade)
    assert points[0] == 1
    assert points[-1] == last
    assert all(before < after for before, after in pairwise(points))


@given(last=st.integers(100, 10**7), per_decade=st.integers(3, 40))
def test_points_are_equally_spaced_on_a_logarithmic_axis(last, per_decade):
    points = log_spaced(last, per_decade)
    assert len(points) <= math.log10(last) * per_decade + 2
    width = math.log(10) / per_decade
    for before, after in pairwise(points):
        # whole numbers are off by a half at either end
        assert math.log((after - 0.5) / (before + 0.5)) <= width * (1 + 1e-9)
        assert after == before + 1 or math.log((after + 0.5) / (before - 0.5)) >= 0.5 * width
