"""The metric over the evaluation set: each sample once, the model as it was."""

import pytest
import torch
from torch import nn
from train.small_workloads import CPU, Indices, Regularized, Stream, labelled_vectors, vectors_workload, weights_of

from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training
from anybatch.workloads.classification import Accuracy


class Seen:
    """Which samples were counted, in which mode."""

    found: list

    def __init__(self):
        Seen.found = []

    def update(self, model, batch):
        assert not model.training
        assert not torch.is_grad_enabled()
        Seen.found += batch.tolist()

    def merge(self, other):
        raise AssertionError("there is one rank")

    def compute(self):
        return {"count": float(len(Seen.found))}


@pytest.mark.parametrize("eval_set", [Indices(10), Stream(Indices(10))], ids=["dataset", "stream"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_each_sample_is_counted_once(eval_set, batch_size):
    workload = vectors_workload(eval_set=eval_set, metric=Seen)
    assert evaluate(workload, CPU, nn.Linear(6, 3), batch_size=batch_size, max_samples=100) == {"count": 10.0}
    assert sorted(Seen.found) == list(range(10))


def test_the_model_is_left_as_it_was():
    workload = vectors_workload(model=Regularized, eval_set=labelled_vectors(), metric=Accuracy)
    model = start_training(workload, CPU, seed=0).model
    before = weights_of(model)
    assert 0 <= evaluate(workload, CPU, model, batch_size=32, max_samples=100)["accuracy"] <= 1
    assert torch.equal(weights_of(model), before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("changes", [{}, {"eval_set": labelled_vectors()}, {"metric": Accuracy}])
def test_without_a_set_or_a_metric_there_is_nothing_to_tell(changes):
    assert evaluate(vectors_workload(**changes), CPU, nn.Linear(6, 3), batch_size=8, max_samples=100) == {}
