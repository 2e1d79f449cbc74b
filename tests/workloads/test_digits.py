"""The offline default: its sizes, its model, and that a run repeats."""

import sys

import pytest
import torch
from torch import nn

from anybatch import InputError
from anybatch.workloads import load_workload
from anybatch.workloads.classification import Accuracy


def test_the_digits_are_split_the_same_each_time():
    first, second = load_workload("digits"), load_workload("digits")
    assert (first.num_samples, len(first.eval_set), first.base_batch_size, first.epochs) == (1437, 360, 32, 3)
    for one, other in ((first.train_set, second.train_set), (first.eval_set, second.eval_set)):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))
    images, labels = first.train_set.tensors
    assert images.shape == (1437, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.unique().tolist() == list(range(10))


def test_the_model_has_no_batch_norm_and_gives_a_logit_per_class():
    workload = load_workload("digits")
    model = workload.model()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    batch = tuple(tensor[:5] for tensor in workload.train_set.tensors)
    assert model(batch[0]).shape == (5, 10)
    assert workload.loss(model, batch).item() == pytest.approx(2.3, abs=0.1)
    assert workload.optimizer(model).param_groups[0]["lr"] == 0.5


def test_without_scikit_learn_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"needs scikit-learn. Run: pip install 'anybatch\[demo\]'"):
        load_workload("digits")


def test_accuracy_counts_over_batches_and_ranks():
    metric, other = Accuracy(), Accuracy()
    logits = torch.eye(4)
    metric.update(nn.Identity(), (logits, torch.tensor([0, 1, 2, 0])))
    other.update(nn.Identity(), (logits[:1], torch.tensor([0])))
    metric.merge(other)
    assert metric.compute() == {"accuracy": 4 / 5}
    assert str(Accuracy().compute()) == "{'accuracy': nan}"
