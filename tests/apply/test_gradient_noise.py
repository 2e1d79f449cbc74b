"""Gradient noise: each sample's loss with its own weight, whatever the model and its outputs."""

import math

import pytest
import torch
from torch import nn
from train.small_workloads import Regularized

from anybatch import InputError
from anybatch.apply import GradientNoise

NUM_SAMPLES = 12
FLOAT32_WEIGHTS = {"rtol": 1e-5, "atol": 1e-7}  # in a float64 gradient, of which some entries cancel


def batch(num_samples=NUM_SAMPLES):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (num_samples,), generator=rng)
    return torch.randn(num_samples, 6, generator=rng, dtype=torch.float64), labels


def sample_losses(output, labels):
    return nn.functional.cross_entropy(output, labels, reduction="none")


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def weights_drawn(seed, variance, count=NUM_SAMPLES):
    return 1 + math.sqrt(variance) * torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()


def net(kind):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(6, 3).double()
    body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh())
    return nn.Sequential(body, nn.Linear(16, 3)).double()


@pytest.mark.parametrize("kind", ["linear", "batch norm"])
def test_the_gradient_is_that_of_explicitly_weighted_losses(kind):
    model, (inputs, labels) = net(kind), batch()
    (weights_drawn(3, 7.0) * sample_losses(model(inputs), labels)).mean().backward()
    wanted = gradient(model)
    model.zero_grad()
    plain = sample_losses(model(inputs), labels).mean().item()
    with GradientNoise(model, variance=7.0):
        torch.manual_seed(3)
        loss = sample_losses(model(inputs), labels).mean()
        loss.backward()
    assert loss.item() == plain
    torch.testing.assert_close(gradient(model), wanted, **FLOAT32_WEIGHTS)


class Heads(nn.Module):
    """Several outputs, one of which is made of another."""

    def __init__(self, layout):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.layout = layout

    def forward(self, inputs):
        features = self.body(inputs).tanh()
        return self.layout(features, self.head(features))


class Named(dict):
    """As model libraries return outputs: fields that are keys."""

    def __getattr__(self, name):
        return self[name]


def read(output):
    """Return (features, logits) of any layout."""
    if isinstance(output, dict):
        found = output["found"] if "found" in output else (output["features"], output["logits"])
        return found
    return output


LAYOUTS = {
    "dict": lambda features, logits: {"features": features, "logits": logits},
    "fields": lambda features, logits: Named(features=features, logits=logits),
    "tuple": lambda features, logits: (features, logits),
    "list": lambda features, logits: [features, logits],
    "nested": lambda features, logits: {"found": (features, logits), "epoch": 3, "name": "x", "none": None},
    "detached": lambda features, logits: (features.detach(), logits),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("with_features", [True, False], ids=["loss of both", "loss of logits"])
def test_outputs_that_depend_on_each_other_get_one_weight_per_sample(layout, with_features):
    torch.manual_seed(0)
    model, (inputs, labels) = Heads(layout).double(), batch()

    def losses():
        features, logits = read(model(inputs))
        return sample_losses(logits, labels) + with_features * features.square().sum(1)

    (weights_drawn(5, 3.0) * losses()).mean().backward()
    wanted = gradient(model)
    model.zero_grad()
    with GradientNoise(model, variance=3.0):
        torch.manual_seed(5)
        losses().mean().backward()
    torch.testing.assert_close(gradient(model), wanted, **FLOAT32_WEIGHTS)


def test_an_output_that_is_given_twice_is_weighed_once():
    model, (inputs, labels) = Heads(lambda features, logits: {"a": logits, "b": logits}).double(), batch()
    (weights_drawn(5, 3.0) * sample_losses(model(inputs)["a"], labels)).mean().backward()
    wanted = gradient(model)
    model.zero_grad()
    with GradientNoise(model, variance=3.0):
        torch.manual_seed(5)
        sample_losses(model(inputs)["a"], labels).mean().backward()
    torch.testing.assert_close(gradient(model), wanted, **FLOAT32_WEIGHTS)


def test_outputs_of_any_shape_are_weighed_by_row():
    model = nn.Conv1d(2, 3, 1).double()
    inputs = torch.randn(4, 2, 5, dtype=torch.float64)
    (weights_drawn(1, 2.0, 4)[:, None, None] * model(inputs)).mean().backward()
    wanted = gradient(model)
    model.zero_grad()
    with GradientNoise(model, variance=2.0):
        torch.manual_seed(1)
        model(inputs).mean().backward()
    torch.testing.assert_close(gradient(model), wanted, **FLOAT32_WEIGHTS)


def test_evaluation_and_no_grad_draw_nothing():
    model, (inputs, _) = net("batch norm"), batch()
    with GradientNoise(model, variance=7.0):
        state = torch.random.get_rng_state()
        model.eval()
        model(inputs).mean().backward()
        noisy = gradient(model)
        model.train()
        with torch.no_grad():
            model(inputs)
        assert torch.equal(torch.random.get_rng_state(), state)
        model(inputs)
        assert not torch.equal(torch.random.get_rng_state(), state)
    plain = net("batch norm").eval()
    plain(inputs).mean().backward()
    assert torch.equal(noisy, gradient(plain))


def test_removing_ends_the_noise():
    model, (inputs, _) = net("linear"), batch()
    model(inputs).mean().backward()
    wanted = gradient(model)
    noise = GradientNoise(model, variance=7.0)
    noise.remove()
    model.zero_grad()
    model(inputs).mean().backward()
    assert torch.equal(gradient(model), wanted)
    assert not model._forward_hooks


def test_a_variance_of_zero_changes_nothing():
    model, (inputs, _) = net("linear"), batch()
    model(inputs).mean().backward()
    wanted = gradient(model)
    model.zero_grad()
    with GradientNoise(model, variance=0.0):
        model(inputs).mean().backward()
    torch.testing.assert_close(gradient(model), wanted)


def test_the_mean_gradient_stays_and_the_covariance_is_that_of_the_small_batch():
    """Per-sample gradients are the inputs, of covariance diag(1, 4, 0.25): a step of 128 spreads as one of 16."""
    num_draws = 4000
    rng = torch.Generator().manual_seed(0)
    std, mean = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, -1.0, 0.1])
    model = nn.Linear(3, 1, bias=False)
    steps = []
    torch.manual_seed(0)
    with GradientNoise(model, variance=128 / 16 - 1):
        for _ in range(num_draws):
            model.weight.grad = None
            # of mean zero, since z also spreads the mean gradient: E[(z g)^2] = 8 E[g^2]
            model(std * torch.randn(128, 3, generator=rng)).mean().backward()
            steps.append(model.weight.grad[0])
        spread = torch.stack(steps)
        model.weight.grad = None
        shifted = []
        for _ in range(num_draws // 4):
            model.weight.grad = None
            model(mean + std * torch.randn(128, 3, generator=rng)).mean().backward()
            shifted.append(model.weight.grad[0])
    # standard error of a variance of 4000 draws: sqrt(2 / 4000) = 2.2 %; four of them
    assert spread.var(0).tolist() == pytest.approx((std**2 / 16).tolist(), rel=0.09)
    assert torch.corrcoef(spread.T).triu(1).abs().max() < 4 / math.sqrt(num_draws)
    error = torch.stack(shifted).std(0) / math.sqrt(len(shifted))
    assert ((torch.stack(shifted).mean(0) - mean).abs() < 4 * error).all()


@pytest.mark.parametrize("variance", [-0.1, float("nan")])
def test_a_negative_variance_is_refused(variance):
    with pytest.raises(InputError, match=rf"variance must be zero or positive; got {variance}\."):
        GradientNoise(nn.Linear(1, 1), variance)


class Returns(nn.Linear):
    def __init__(self, make):
        super().__init__(6, 3)
        self.make = make

    def forward(self, inputs):
        return self.make(super().forward(inputs))


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda output: output.mean(), r"got \(\)\."),
        (lambda output: {"loss": output.mean(), "logits": output}, r"got \(\), \(12, 3\)\."),
        (lambda output: (output[:5], output), r"got \(5, 3\), \(12, 3\)\."),
        (lambda output: output.detach(), "got no tensor with a gradient"),
        (lambda output: "text", "got no tensor with a gradient"),
    ],
)
def test_outputs_without_a_row_per_sample_are_refused(make, shown):
    model = Returns(make)
    with (
        GradientNoise(model, 1.0),
        pytest.raises(InputError, match=rf"outputs of the model must hold one row per sample.*{shown}"),
    ):
        model(torch.zeros(12, 6))


def test_dropout_and_noise_repeat_by_the_generator():
    torch.manual_seed(0)
    model = Regularized()
    inputs = torch.randn(8, 6)

    def drawn(seed):
        model.zero_grad()
        torch.manual_seed(seed)
        model(inputs).mean().backward()
        return gradient(model).clone()

    with GradientNoise(model, 1.0):
        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))
