"""What batch norm's statistics are worth at a micro-batch: against what they must be, and leaving no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from anybatch import Workload, probe
from anybatch.nn import convert
from anybatch.probing.normalization import LayerError, choose_cures, layer_error, measure_normalization_error
from anybatch.train.loop import start_training
from anybatch.train.runtime import Runtime

CPU = Runtime.detect("cpu")


class Net(nn.Module):
    """A batch norm on the data themselves, and one behind dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(64)
        self.body = nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def forward(self, x):
        return self.body(self.first(x))


def mean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def bare():
    return nn.Linear(64, 2)


def workload(num_samples=4096, **changes):
    x = torch.randn(num_samples, 64, generator=torch.Generator().manual_seed(0))
    fields = {
        "model": Net,
        "train_set": TensorDataset(3 * x + 7, x[:, 0].gt(0).long()),
        "loss": mean_loss,
        "optimizer": sgd,
        "base_batch_size": 32,
        "epochs": 1,
    }
    return Workload(**{**fields, **changes})


def measured(size, seed=0, **changes):
    given = workload(**changes)
    model = start_training(given, CPU, seed=0).model
    return measure_normalization_error(given, CPU, model, micro_batch_size=size, seed=seed)


@pytest.mark.parametrize("size", [4, 32, 256])
def test_independent_values_have_the_error_that_their_number_gives(size):
    """The mean of b values is off by 1/sqrt(b) standard deviations; the log variance of many by sqrt(2/b)."""
    errors = [measured(size, seed).layers["first"] for seed in range(3)]
    means = sum(error.mean_error for error in errors) / 3
    assert means == pytest.approx(size**-0.5, rel=0.08)  # 3 x 7 x 64 degrees of freedom: 2% for one standard deviation
    if size > 4:
        log_vars = sum(error.log_var_error for error in errors) / 3
        assert log_vars == pytest.approx((2 / size) ** 0.5, rel=0.12)


def test_pooled_moments_hold_the_spread_of_the_means():
    error = layer_error(torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [1.0], [1.0]]), 0.0)
    assert error.mean_error == pytest.approx((4 / (1 + 8 / 3)) ** 0.5)
    exact = layer_error(torch.ones(4, 3), torch.ones(4, 3), 1e-5)
    assert (exact.mean_error, exact.log_var_error) == (0, 0)
    dead = layer_error(torch.zeros(4, 3), torch.zeros(4, 3), 1e-5)
    assert (dead.mean_error, dead.log_var_error) == (0, 0)


def test_small_micro_batches_are_told_a_cure_and_large_ones_another():
    assert measured(2).cures == ("kalman", "group")
    assert "2 are noisy: try kalman or group in their place, or a larger micro-batch" in measured(2).reason
    assert measured(256).cures == ("ghost",)
    assert "the noise of batch 32: ghost batches of that size keep it" in measured(256).reason
    assert measured(256, base_batch_size=None).cures == ()
    assert measured(256, base_batch_size=256).reason.endswith("batch norm does well with that")
    assert choose_cures({"a": LayerError(0.0, 0.4)}, 2, None) == ("kalman", "group")


def test_each_cure_is_a_kind_of_conversion():
    for size in (2, 256):
        for kind in measured(size).cures:
            assert convert(Net(), kind, example_inputs=torch.randn(2, 64)).replaced == ("first", "body.2")


def test_measuring_changes_nothing():
    given = workload()
    model = start_training(given, CPU, seed=0).model
    model.body.eval()
    model(torch.randn(4, 64)).sum().backward()
    before = copy.deepcopy(model)
    gradient = model.first.weight.grad.clone()
    state = torch.get_rng_state()
    measure_normalization_error(given, CPU, model, micro_batch_size=16, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, tensor), other in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert torch.equal(model.first.weight.grad, gradient)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_measures_the_same():
    assert measured(16) == measured(16) != measured(16, seed=1)


def test_there_is_nothing_to_measure_without_batch_norm_or_two_micro_batches():
    assert measured(8, model=lambda: nn.Linear(64, 2)) is None
    assert measured(8, model=lambda: convert(Net(), "group").model) is None
    assert measured(8, num_samples=15) is None
    assert measured(8, num_samples=16).num_micro_batches == 2


def test_a_probe_reports_it_at_the_recommended_micro_batch():
    result = probe(workload(), batch_size=16, budget=1.0, device="cpu")
    found = result.to_dict()["normalization"]
    assert found["micro_batch_size"] == result.recommendation.micro_batch_size
    assert found["layers"].keys() == {"first", "body.2"}
    assert found["layers"]["first"].keys() == {"mean_error", "log_var_error"}
    assert set(found["cures"]) <= {"kalman", "group", "ghost"}
    assert "the least exact of 2 batch norms" in found["reason"]
    assert probe(workload(model=bare), budget=1.0).to_dict()["normalization"] is None
