"""Fashion-MNIST: what is said where its data are not, and how its models train where they are."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train.small_workloads import CPU, weights_of

from anybatch import InputError
from anybatch.train.loop import start_training
from anybatch.workloads import load_workload
from anybatch.workloads.fashion_mnist import SmallResNet, _sgd

DATA = Path(os.environ.get("ANYBATCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason=f"no FashionMNIST in {DATA}")


def test_without_data_or_network_the_folder_is_named(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match=rf"not in {tmp_path} and could not be downloaded. Pass --data-root"):
        load_workload("fashion-mnist", data_root=tmp_path)


def test_without_torchvision_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match=r"needs torchvision. Run: pip install 'anybatch\[vision\]'"):
        load_workload("fashion-mnist-resnet")


@needs_data
@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-resnet"])
def test_the_data_are_read_and_a_first_loss_is_that_of_guessing(name):
    workload = load_workload(name, data_root=DATA)
    assert (workload.name, workload.num_samples, len(workload.eval_set)) == (name, 60_000, 10_000)
    images, labels = workload.train_set.tensors
    assert images.shape == (60_000, 1, 28, 28)
    assert abs(images[:5000].mean()) < 0.05
    assert images[:5000].std() == pytest.approx(1, abs=0.05)
    training = start_training(workload, CPU, seed=0)
    assert workload.loss(training.model, (images[:64], labels[:64])).item() == pytest.approx(2.3, abs=0.5)


def test_norms_and_biases_are_outside_weight_decay():
    model = SmallResNet()
    decayed, other = _sgd(model).param_groups
    assert (decayed["weight_decay"], other["weight_decay"]) == (1e-4, 0.0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(other["params"]) == len(list(model.parameters()))


def test_the_residual_net_has_batch_norms_and_a_logit_per_class():
    torch.manual_seed(0)
    model = SmallResNet()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 7
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert weights_of(model).isfinite().all()
