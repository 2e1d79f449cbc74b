"""A workload's fingerprint: the same whenever it is taken, and another one when what is trained changes."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers
from torch.utils.data import TensorDataset
from train.resumable_runs import jittered_workload
from train.small_workloads import CPU, Regularized, Stream, cross_entropy, labelled_vectors, vectors_workload

from anybatch import Milestones
from anybatch.train.fingerprint import fingerprint
from anybatch.workloads import load_workload
from anybatch.workloads.classification import Accuracy


def base(**changes):
    fields = {"model": Regularized, "eval_set": labelled_vectors(40), "schedule": Milestones((1,)), **changes}
    return vectors_workload(**fields)


def moved_labels():
    inputs, labels = labelled_vectors().tensors
    return TensorDataset(inputs, (labels + 1) % 3)


def sgd(**options):
    return lambda model: torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def with_decay(chooses):
    """Weight decay for some parameters; each group holds as many, with the same settings."""

    def optimizer(model):
        some = [parameter for name, parameter in model.named_parameters() if chooses(name)]
        others = [parameter for name, parameter in model.named_parameters() if not chooses(name)]
        return torch.optim.SGD([{"params": some, "weight_decay": 0.1}, {"params": others}], lr=0.1)

    return optimizer


class Wider(Regularized):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 3))


class LessDropout(Regularized):
    def __init__(self):
        super().__init__()
        self.body[3] = nn.Dropout(0.4)


def smoothed(amount):
    return lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=amount)


CHANGES = {
    "another architecture": {"model": Wider},
    "another rate of dropout": {"model": LessDropout},
    "another type of weights": {
        "model": lambda: Regularized().double(),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0].double()), batch[1]),
    },
    "another start": {"model": lambda: scaled(Regularized())},
    "another rate": {"optimizer": sgd(lr=0.11)},
    "another momentum": {"optimizer": sgd(momentum=0.5)},
    "another optimizer": {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.1)},
    "more samples": {"train_set": labelled_vectors(97)},
    "other samples": {"train_set": labelled_vectors(seed=1)},
    "other labels": {"train_set": moved_labels()},
    "another evaluation set": {"eval_set": labelled_vectors(40, seed=1)},
    "a smaller evaluation set": {"eval_set": labelled_vectors(39)},
    "another loss": {"loss": lambda model, batch: 2 * cross_entropy(model, batch)},
    "another base batch": {"base_batch_size": 17},
    "other epochs": {"epochs": 3},
    "no schedule": {"schedule": None},
    "another milestone": {"schedule": Milestones((1.5,))},
    "another decay": {"schedule": Milestones((1,), 0.2)},
    "another name": {"name": "other"},
    "a metric": {"metric": Accuracy},
    "labels smoothed a little": {"loss": smoothed(0.02)},
    "sizes counted otherwise": {"batch_size_of": lambda batch: 2.0 * len(batch[0])},
}


def scaled(model):
    with torch.no_grad():
        model.head.weight *= 1.5
    return model


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_is_trained_changes_the_fingerprint(changes):
    assert fingerprint(base(**changes), CPU) != fingerprint(base(), CPU)


SCHEDULES = {
    "another step": (
        lambda optimizer: torch_schedulers.StepLR(optimizer, 5, 0.1),
        lambda optimizer: torch_schedulers.StepLR(optimizer, 10, 0.1),
    ),
    "another factor": (
        lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.9),
        lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.8),
    ),
    "another function": (
        lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda epoch: 0.8**epoch),
    ),
    "another kind": (
        lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, 2),
        lambda optimizer: torch_schedulers.PolynomialLR(optimizer, 2),
    ),
}


@pytest.mark.parametrize("schedules", SCHEDULES.values(), ids=SCHEDULES)
def test_a_change_of_a_scheduler_of_torch_changes_the_fingerprint(schedules):
    first, second = (fingerprint(base(schedule=schedule, epochs=12), CPU) for schedule in schedules)
    assert first != second


def test_a_change_of_which_parameters_a_group_holds_changes_the_fingerprint():
    first, second = (
        fingerprint(base(optimizer=with_decay(chooses)), CPU)
        for chooses in (lambda name: name.endswith("weight"), lambda name: name.endswith("bias"))
    )
    assert first != second


def drawing_loss(model, batch):
    """Draws in the loss, as mix-up does."""
    return cross_entropy(model, batch) * (1 + np.random.beta(1.0, 1.0) + random.random() + torch.rand(()))


@pytest.mark.parametrize(
    "make",
    [base, jittered_workload, lambda: base(loss=drawing_loss), lambda: load_workload("digits")],
    ids=["vectors", "random augmentation", "random loss", "digits"],
)
def test_the_fingerprint_is_the_same_whenever_it_is_taken(make):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    first = fingerprint(make(), CPU)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    assert fingerprint(make(), CPU) == first


def test_taking_it_leaves_generators_and_workload_alone():
    workload = base()
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    fingerprint(workload, CPU)
    after = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_evaluation_set_may_be_missing_or_a_stream():
    prints = {fingerprint(base(eval_set=eval_set), CPU) for eval_set in (None, Stream(labelled_vectors(40)))}
    assert all(len(print_) == 16 for print_ in prints)


class Nested(TensorDataset):
    """Samples as dicts, with words and lists in them."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return {"inputs": [inputs], "label": label, "word": "a" if index else self.first_word, "number": 3}

    first_word = "a"


def nested_workload(first_word="a"):
    dataset = Nested(*labelled_vectors().tensors)
    dataset.first_word = first_word

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["inputs"][0]), batch["label"])

    return vectors_workload(train_set=[dataset[index] for index in range(96)], loss=loss)


def test_nested_samples_count_with_their_words():
    first = fingerprint(nested_workload(), CPU)
    assert fingerprint(nested_workload(), CPU) == first
    assert fingerprint(nested_workload("b"), CPU) != first
