"""The training loop: accumulation is one large batch, runs repeat, and bad parts of a workload are named."""

import random
from collections import namedtuple
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate
from train.small_workloads import CPU, cross_entropy, vectors_workload, weights_of

from anybatch import InputError, Milestones
from anybatch.stats import MicroBatches
from anybatch.train.data import SampleDraws, to_device
from anybatch.train.loop import accumulate, require_scalar, start_training, train, train_step
from anybatch.train.plan import Plan
from anybatch.workloads import load_workload


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def sentences(num_samples=12) -> TensorDataset:
    """Vectors of 1 to 5 tokens, filled up; the mask says which count."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 6, (num_samples, 1), generator=rng)
    mask = (torch.arange(5)[None] < lengths).double()
    return TensorDataset(
        torch.randn(num_samples, 5, 4, generator=rng, dtype=torch.float64),
        torch.randint(3, (num_samples, 5), generator=rng),
        mask,
    )


def token_mean(model, batch):
    tokens, labels, mask = batch
    losses = nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / mask.sum()


def num_tokens(batch) -> float:
    return float(batch[2].sum())


@pytest.mark.parametrize("sizes", [[12], [5, 4, 3], [1, 7, 4], [1] * 12])
def test_accumulating_unequal_parts_equals_one_large_batch(sizes):
    workload = vectors_workload(model=lambda: nn.Linear(6, 3).double(), collate=in_double)
    samples = SampleDraws(workload, CPU, 0, "test").samples(12)
    model = start_training(workload, CPU, seed=0).model
    loss = cross_entropy(model, in_double(samples))
    loss.backward()
    wanted = gradient(model)
    model.zero_grad()
    rest = iter(samples)
    parts = [(in_double(list(islice(rest, size))), size) for size in sizes]
    accumulated = accumulate(workload, CPU, model, parts)
    assert torch.allclose(gradient(model), wanted, rtol=1e-12, atol=1e-15)
    assert accumulated.item() == pytest.approx(loss.item(), rel=1e-12)
    assert not accumulated.requires_grad


def in_double(samples):
    inputs, labels = default_collate(samples)
    return inputs.double(), labels


def test_accumulating_a_token_mean_needs_the_tokens_as_sizes():
    workload = vectors_workload(
        model=lambda: nn.Linear(4, 3).double(), train_set=sentences(), loss=token_mean, batch_size_of=num_tokens,
        base_batch_size=None,
    )  # fmt: skip
    model = start_training(workload, CPU, seed=0).model
    batch = workload.train_set.tensors
    loss = token_mean(model, batch)
    loss.backward()
    wanted = gradient(model)
    parts = [(tuple(tensor[part] for tensor in batch), 0) for part in (slice(0, 3), slice(3, 10), slice(10, 12))]
    model.zero_grad()
    accumulated = accumulate(workload, CPU, model, parts)
    assert torch.allclose(gradient(model), wanted, rtol=1e-12, atol=1e-15)
    assert accumulated.item() == pytest.approx(loss.item(), rel=1e-12)
    model.zero_grad()
    sized = [(part, len(part[0])) for part, _ in parts]
    accumulate(replace(workload, batch_size_of=None), CPU, model, sized)
    assert not torch.allclose(gradient(model), wanted, rtol=1e-3)


def test_accumulating_adds_to_what_is_there():
    workload = vectors_workload()
    model = start_training(workload, CPU, seed=0).model
    parts = SampleDraws(workload, CPU, 0, "test").parts([8])
    accumulate(workload, CPU, model, parts)
    once = gradient(model).clone()
    accumulate(workload, CPU, model, parts)
    assert torch.allclose(gradient(model), 2 * once)


def test_a_source_records_each_part_with_its_size():
    workload = vectors_workload()
    model = start_training(workload, CPU, seed=0).model
    source = MicroBatches(model)
    accumulate(workload, CPU, model, SampleDraws(workload, CPU, 0, "test").parts([5, 3]), source)
    moments = source.finish()
    assert moments.sizes.tolist() == [5, 3]
    assert moments.weights.tolist() == [5 / 8, 3 / 8]


def test_training_on_the_digits_lowers_the_loss():
    workload = load_workload("digits")
    training = start_training(workload, CPU, seed=0)
    losses = [loss.item() for loss in islice(train(workload, CPU, training, batch_size=32, seed=0), 60)]
    assert np.mean(losses[:3]) > 2
    assert np.mean(losses[-10:]) < 0.7
    assert (training.num_steps, training.num_samples) == (60, 60 * 32)


@pytest.mark.parametrize("micro_batch_size", [None, 16, 5])
def test_micro_batches_of_a_step_train_the_same(micro_batch_size):
    workload = vectors_workload(model=lambda: nn.Linear(6, 3).double(), collate=in_double)
    training = start_training(workload, CPU, seed=0)
    options = {"batch_size": 16, "seed": 0}
    list(islice(train(workload, CPU, training, micro_batch_size=micro_batch_size, **options), 10))
    whole = start_training(workload, CPU, seed=0)
    list(islice(train(workload, CPU, whole, **options), 10))
    assert torch.allclose(weights_of(training.model), weights_of(whole.model), rtol=1e-10)


def test_a_run_repeats_bit_for_bit():
    def weights(seed, noise):
        torch.manual_seed(noise)
        random.seed(noise)
        workload = vectors_workload()
        training = start_training(workload, CPU, seed=seed)
        list(islice(train(workload, CPU, training, batch_size=8, seed=seed), 20))
        return weights_of(training.model)

    assert torch.equal(weights(0, noise=1), weights(0, noise=2))
    assert not torch.equal(weights(0, noise=1), weights(1, noise=1))


@pytest.mark.parametrize(
    "schedule",
    [Milestones((1, 2), decay=0.5), lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)],
    ids=["milestones", "scheduler"],
)
@pytest.mark.parametrize("batch_size", [32, 96, 40])
def test_the_schedule_is_stepped_once_an_epoch(schedule, batch_size):
    workload = vectors_workload(schedule=schedule)  # 96 samples
    training = start_training(workload, CPU, seed=0, plan=Plan(lr_scale=0.5))
    rates = []
    for _ in islice(train(workload, CPU, training, batch_size=batch_size, seed=0), 7):
        rates.append(training.optimizer.param_groups[0]["lr"])
        if training.num_samples >= 3 * 96:
            break
    epochs = [(step * batch_size) // 96 for step in range(1, len(rates) + 1)]
    most = 2 if isinstance(schedule, Milestones) else 10
    assert rates == pytest.approx([0.05 * 0.5 ** min(epoch, most) for epoch in epochs])


def test_starting_leaves_the_global_generator_and_repeats_by_seed():
    workload = vectors_workload()
    before = torch.random.get_rng_state()
    first, second, other = (weights_of(start_training(workload, CPU, seed=seed).model) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_training_starts_in_train_mode_with_every_rate_scaled():
    def optimizer(model):
        return torch.optim.SGD([{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "lr": 0.4}])

    workload = vectors_workload(model=lambda: nn.Linear(6, 3).eval(), optimizer=optimizer)
    training = start_training(workload, CPU, seed=0, plan=Plan(lr_scale=0.5))
    assert training.model.training
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.1, 0.2]


def test_a_step_forgets_earlier_gradients():
    workload = vectors_workload()
    training, other = (start_training(workload, CPU, seed=0) for _ in range(2))
    for parameter in training.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    parts = SampleDraws(workload, CPU, 0, "test").parts([8])
    train_step(workload, CPU, training, parts)
    train_step(workload, CPU, other, parts)
    assert torch.equal(weights_of(training.model), weights_of(other.model))


def frozen():
    return nn.Linear(6, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda: "linear"}, "model of a Workload must return an nn.Module; got str"),
        ({"model": frozen}, "model must have a trainable parameter; got none. Set requires_grad on some"),
        ({"model": nn.ReLU}, "model must have a trainable parameter"),
        ({"optimizer": lambda model: None}, "optimizer of a Workload must return an Optimizer; got NoneType"),
    ],
)
def test_a_workload_whose_functions_return_something_else_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        start_training(vectors_workload(**changes), CPU, seed=0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (1.5, "loss of a Workload must return a scalar Tensor; got float"),
        (None, "loss of a Workload must return a scalar Tensor; got NoneType"),
        (torch.zeros(3, requires_grad=True), r"must return a scalar; got shape \(3,\). Take the mean over samples"),
        (torch.zeros(1, requires_grad=True), r"must return a scalar; got shape \(1,\)"),
        (torch.tensor(1.0), "must depend on the model's parameters; it has no gradient"),
    ],
)
def test_a_loss_that_is_not_a_scalar_with_a_gradient_is_refused(loss, message):
    with pytest.raises(InputError, match=message):
        require_scalar(loss)
    workload = vectors_workload(loss=lambda model, batch: loss)
    steps = train(workload, CPU, start_training(workload, CPU, seed=0), batch_size=8, seed=0)
    with pytest.raises(InputError, match=message):
        next(steps)


def test_a_good_loss_is_returned_as_it_is():
    loss = torch.tensor(1.0, requires_grad=True)
    assert require_scalar(loss) is loss


Pair = namedtuple("Pair", "image label")


@dataclass(frozen=True)
class Boxes:
    corners: Tensor
    names: list[str]


class Graph:
    """A batch of a library: it moves itself."""

    def __init__(self, device="cpu"):
        self.device = device

    def to(self, device):
        return Graph(str(device))


def test_a_nested_batch_is_moved_and_keeps_its_structure():
    batch = {
        "pair": Pair(torch.zeros(2), [torch.zeros(1), "cat"]),
        "boxes": Boxes(torch.zeros(4), ["a"]),
        "graph": Graph(),
        "tuple": (torch.zeros(3), None, 5),
    }
    moved = to_device(batch, torch.device("meta"))
    assert list(moved) == list(batch)
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].image.is_meta
    assert moved["pair"].label[0].is_meta
    assert moved["pair"].label[1] == "cat"
    assert isinstance(moved["boxes"], Boxes)
    assert moved["boxes"].corners.is_meta
    assert moved["boxes"].names == ["a"]
    assert moved["graph"].device == "meta"
    assert moved["tuple"][0].is_meta
    assert moved["tuple"][1:] == (None, 5)
    assert batch["pair"].image.device.type == "cpu"


def test_forward_passes_run_in_the_precision_asked_for():
    seen = []

    def loss(model, batch):
        out = model(batch[0])
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out.float(), batch[1])

    workload = vectors_workload(loss=loss)
    runtime = replace(CPU, autocast=torch.bfloat16)
    next(train(workload, runtime, start_training(workload, runtime, seed=0), batch_size=8, seed=0))
    next(train(workload, CPU, start_training(workload, CPU, seed=0), batch_size=8, seed=0))
    assert seen == [torch.bfloat16, torch.float32]
