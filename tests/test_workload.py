"""A workload says at once what of it cannot be used."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from anybatch import InputError, Milestones, Workload


def fields(**changes) -> dict:
    return {
        "model": lambda: nn.Linear(4, 2),
        "train_set": TensorDataset(torch.zeros(10, 4), torch.zeros(10).long()),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        **changes,
    }


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(5)


class StreamWithLength(Stream):
    def __len__(self):
        return 5


class NoLength:
    def __getitem__(self, index):
        return index


class Iterable:
    def __iter__(self):
        yield 1


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("model", nn.ReLU, None),
        ("model", None, "model of a Workload must be a function; got NoneType"),
        ("model", 3, "model of a Workload must be a function; got 3"),
        ("loss", "mse", "loss of a Workload must be a function; got mse"),
        ("optimizer", 0.1, "optimizer of a Workload must be a function; got 0.1"),
        ("metric", "accuracy", "metric of a Workload must be a function or None; got accuracy"),
        ("collate", [], "collate of a Workload must be a function or None; got list"),
        ("batch_size_of", 4, "batch_size_of of a Workload must be a function or None; got 4"),
        ("base_batch_size", 0, "base_batch_size of a Workload must be a positive whole number or None; got 0"),
        ("base_batch_size", -8, "base_batch_size of a Workload must be a positive whole number or None; got -8"),
        ("base_batch_size", 32.0, "base_batch_size of a Workload must be a positive whole number or None; got 32.0"),
        ("base_batch_size", True, "base_batch_size of a Workload must be a positive whole number or None; got True"),
        ("base_batch_size", "32", "base_batch_size of a Workload must be a positive whole number or None; got 32"),
        ("epochs", 0, "epochs of a Workload must be a positive number or None; got 0"),
        ("epochs", -0.5, "epochs of a Workload must be a positive number or None; got -0.5"),
        ("epochs", float("nan"), "epochs of a Workload must be a positive number or None; got nan"),
        ("epochs", "three", "epochs of a Workload must be a positive number or None; got three"),
        ("epochs", 0.5, None),
        ("module_prefixes", 3, "module_prefixes of a Workload must be a sequence .* or None; got 3"),
        ("module_prefixes", {"all": ["weight", "bias"]}, None),
        ("module_prefixes", ["weight", "bias"], None),
        ("schedule", Milestones((1.0, 2.0)), None),
        ("schedule", torch.optim.lr_scheduler.ExponentialLR, None),
        ("schedule", "cosine", "schedule of a Workload must be Milestones, a function or None; got cosine"),
        ("train_set", None, "train_set of a Workload must be a dataset; got NoneType"),
        ("train_set", Iterable(), "train_set of a Workload must be a dataset; got Iterable"),
        ("train_set", TensorDataset(torch.zeros(1, 4)), "train_set .* at least 2 samples; got 1"),
        ("train_set", [], "train_set .* at least 2 samples; got 0"),
        ("train_set", NoLength(), "train_set must have a length or be an IterableDataset; NoLength has neither"),
    ],
)
def test_a_field_that_cannot_be_used_is_named_with_its_rule(field, value, rule):
    if rule is None:
        assert getattr(Workload(**fields(**{field: value})), field) is value
    else:
        with pytest.raises(InputError, match=rule):
            Workload(**fields(**{field: value}))


@pytest.mark.parametrize("stream", [Stream(), StreamWithLength()])
def test_a_stream_has_no_number_of_samples(stream):
    assert Workload(**fields(train_set=stream)).num_samples is None


def test_a_stream_has_no_epochs_to_schedule():
    with pytest.raises(InputError, match="schedule of a Workload must be None where train_set has no epochs; got one"):
        Workload(**fields(train_set=Stream(), schedule=Milestones((1.0,))))


def test_milestones_multiply_the_rate_at_each_of_their_epochs():
    milestones = Milestones((2, 5), decay=0.1)
    assert [milestones.factor(epoch) for epoch in (0, 1, 2, 4, 5, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_number_of_samples_is_the_length_of_the_training_set():
    workload = Workload(**fields())
    assert workload.num_samples == 10
    assert replace(workload, train_set=[1, 2]).num_samples == 2


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="must be a function"):
        Workload(**fields(loss=None))
